//! What a kind looks like: its fields, their types, and how they behave on the device.

use std::collections::BTreeMap;

use crate::kind::{KindName, is_kind_name};
use crate::value::{FieldValue, Fields};

/// The description of one kind. Written as a constant, so that a mistake is a compile error:
///
/// ```
/// use nasnet_state::{FieldSpec, FieldType, KindSchema};
///
/// static VLAN: KindSchema = KindSchema::new("net.vlan", 1, &[
///     FieldSpec::new("name", FieldType::Str).required(),
///     FieldSpec::new("vlan-id", FieldType::Int { min: 1, max: 4094 }).default("1"),
///     FieldSpec::new("interface", FieldType::Ref("interface")).required(),
///     FieldSpec::new("disabled", FieldType::Bool).default("no"),
/// ])
/// .menu("/interface/vlan")
/// .natural_key(&["name"])
/// .provides(&["interface"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindSchema {
    name: &'static str,
    /// Grows when the meaning of a field changes; hashes of different revisions are incomparable.
    pub revision: u32,
    /// The fields.
    pub fields: &'static [FieldSpec],
    /// The device's menu, such as `/interface/vlan`; empty when the kind has none.
    pub menu: &'static str,
    /// The fields that tell one row from another on the device; empty when nothing does.
    pub natural_key: &'static [&'static str],
    /// Name spaces the names of this kind count in, besides the kind itself (`interface`).
    pub provides: &'static [&'static str],
    /// True when the menu is one object instead of a table.
    pub singleton: bool,
    /// True when the order of the rows means something (firewall).
    pub ordered: bool,
    /// What a mistake in this kind can do.
    pub risk: Risk,
    /// How much of the past is kept.
    pub history: History,
    /// What fields without a description count as.
    pub unknown: UnknownFields,
}

/// What a mistake in a kind can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// Nothing beyond the row itself.
    Low,
    /// Some traffic may stop.
    Traffic,
    /// The router may become unreachable.
    Management,
}

/// How much of the past of a kind is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Every change, back to the horizon.
    Full,
    /// Only what is true now.
    CurrentOnly,
}

/// What fields without a description count as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFields {
    /// Something the device said: kept in observations, never taken for a wish.
    Observation,
    /// Part of the row like any other field.
    Intent,
}

/// The description of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSpec {
    /// The name in the model.
    pub name: &'static str,
    /// The name on the device.
    pub device: &'static str,
    /// The type of the value.
    pub ty: FieldType,
    /// Words the device uses in place of a value (`auto`, `none`).
    pub words: &'static [&'static str],
    /// Where a `!` may stand.
    pub negation: Negation,
    /// Who may set the field.
    pub access: Access,
    /// True when a resource without the field is refused.
    pub required: bool,
    /// What the device assumes when the field is not set, in its own spelling.
    pub default: Option<&'static str>,
    /// How the field is taken back.
    pub unset: Unset,
    /// True when the value is a secret.
    pub sensitive: bool,
    /// True when an empty text means something other than "not set".
    pub keeps_empty: bool,
    /// How a difference on the device is seen.
    pub drift: DriftRule,
    /// Where the description comes from.
    pub provenance: Provenance,
}

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldType {
    /// `yes`, `no`, `true`, `false`.
    Bool,
    /// Like [`Bool`](Self::Bool), and true when it stands there without a value (`blackhole`).
    Flag,
    /// A whole number between two bounds.
    Int {
        /// Smallest value allowed.
        min: i64,
        /// Largest value allowed.
        max: i64,
    },
    /// A span of time.
    Duration,
    /// A decimal-scaled rate.
    Rate,
    /// A binary-scaled size.
    Bytes,
    /// A hardware address.
    Mac,
    /// One address.
    Ip,
    /// An address with a prefix length.
    Prefix {
        /// What happens to the bits beyond the prefix.
        host_bits: HostBits,
        /// How a prefix of one host is printed.
        host: HostForm,
    },
    /// What firewalls match on: an address, a prefix or a range of addresses.
    AddressMatch,
    /// Numbers and spans of numbers, in no particular order.
    Ranges {
        /// Smallest number allowed.
        min: u32,
        /// Largest number allowed.
        max: u32,
    },
    /// One of a list of words.
    Enum(&'static [&'static str]),
    /// Any text.
    Str,
    /// The name of another resource, in a kind or a name space.
    Ref(&'static str),
    /// Several values, separated by commas.
    List(&'static FieldType, ListSem),
}

/// What happens to the bits beyond the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostBits {
    /// They are part of the value (the address of an interface).
    Keep,
    /// They are cleared (a route).
    Zero,
}

/// How a prefix of one host is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostForm {
    /// With its length: `10.0.0.1/32`.
    WithLength,
    /// As an address: `10.0.0.1`.
    Bare,
}

/// What the order and repetition of list members mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListSem {
    /// Nothing: sorted, each once.
    Set,
    /// Everything: kept as it is.
    Ordered,
}

/// Where a `!` may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negation {
    /// Nowhere; a leading `!` belongs to the text.
    Never,
    /// Before the whole value.
    Whole,
    /// Before each member of a list.
    Members,
}

/// Who may set a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, at any time.
    Writable,
    /// Anyone, but only when the row is made.
    CreateOnly,
    /// The device makes a value when none is given (a private key).
    Generated,
    /// Only the device.
    ReadOnly,
}

/// How a field is taken back on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// Write the default; without one, write the empty text.
    WriteDefault,
    /// Write the empty text.
    WriteEmpty,
    /// Use the device's way to unset a field.
    Command,
    /// Not at all: the row must be made anew.
    Recreate,
}

/// How a difference on the device is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftRule {
    /// It is drift.
    Compare,
    /// It means nothing.
    Ignore,
}

/// Where the description of a field comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// The vendor's documentation.
    Documented,
    /// Seen on a device or in an export.
    Observed,
    /// Assumed.
    Guess,
}

impl FieldSpec {
    /// Describes an optional, writable field that has the same name on the device.
    pub const fn new(name: &'static str, ty: FieldType) -> Self {
        Self {
            name,
            device: name,
            ty,
            words: &[],
            negation: Negation::Never,
            access: Access::Writable,
            required: false,
            default: None,
            unset: Unset::WriteDefault,
            sensitive: false,
            keeps_empty: false,
            drift: DriftRule::Compare,
            provenance: Provenance::Documented,
        }
    }

    /// Names the field as the device does, where that differs.
    #[must_use]
    pub const fn device(mut self, name: &'static str) -> Self {
        self.device = name;
        self
    }

    /// Lists words the device uses in place of a value.
    #[must_use]
    pub const fn words(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }

    /// Says where a `!` may stand.
    #[must_use]
    pub const fn negation(mut self, negation: Negation) -> Self {
        self.negation = negation;
        self
    }

    /// Allows a `!` before the whole value.
    #[must_use]
    pub const fn negatable(self) -> Self {
        self.negation(Negation::Whole)
    }

    /// Refuses resources without the field.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Says what the device assumes when the field is not set, in the device's spelling.
    #[must_use]
    pub const fn default(mut self, spelling: &'static str) -> Self {
        self.default = Some(spelling);
        self
    }

    /// Says who may set the field.
    #[must_use]
    pub const fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Only the device sets the field.
    #[must_use]
    pub const fn read_only(self) -> Self {
        self.access(Access::ReadOnly)
    }

    /// The device makes a value when none is given.
    #[must_use]
    pub const fn generated(self) -> Self {
        self.access(Access::Generated)
    }

    /// Says how the field is taken back.
    #[must_use]
    pub const fn unset(mut self, unset: Unset) -> Self {
        self.unset = unset;
        self
    }

    /// The value is a secret.
    #[must_use]
    pub const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// An empty text is a value of its own.
    #[must_use]
    pub const fn keeps_empty(mut self) -> Self {
        self.keeps_empty = true;
        self
    }

    /// Says how a difference on the device is seen.
    #[must_use]
    pub const fn drift(mut self, drift: DriftRule) -> Self {
        self.drift = drift;
        self
    }

    /// Says where this description comes from.
    #[must_use]
    pub const fn provenance(mut self, provenance: Provenance) -> Self {
        self.provenance = provenance;
        self
    }

    /// Returns true when a user may give the field a value.
    pub fn is_settable(&self) -> bool {
        self.access != Access::ReadOnly
    }
}

impl KindSchema {
    /// Describes a kind whose changes have a full history and can stop traffic.
    ///
    /// # Panics
    /// When `name`, or what a reference points into, is not a kind name; in a constant this is a compile error.
    pub const fn new(name: &'static str, revision: u32, fields: &'static [FieldSpec]) -> Self {
        assert!(is_kind_name(name), "not a kind name");
        let mut at = 0;
        while at < fields.len() {
            assert!(references_kind_names(&fields[at].ty), "a reference does not name a kind or name space");
            at += 1;
        }
        Self {
            name,
            revision,
            fields,
            menu: "",
            natural_key: &[],
            provides: &[],
            singleton: false,
            ordered: false,
            risk: Risk::Traffic,
            history: History::Full,
            unknown: UnknownFields::Observation,
        }
    }

    /// Says which menu of the device holds the rows.
    #[must_use]
    pub const fn menu(mut self, menu: &'static str) -> Self {
        self.menu = menu;
        self
    }

    /// Says which fields tell one row from another.
    #[must_use]
    pub const fn natural_key(mut self, fields: &'static [&'static str]) -> Self {
        self.natural_key = fields;
        self
    }

    /// Says in which name spaces the names of this kind count.
    #[must_use]
    pub const fn provides(mut self, name_spaces: &'static [&'static str]) -> Self {
        self.provides = name_spaces;
        self
    }

    /// The menu is one object.
    #[must_use]
    pub const fn singleton(mut self) -> Self {
        self.singleton = true;
        self
    }

    /// The order of the rows means something.
    #[must_use]
    pub const fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Says what a mistake can do.
    #[must_use]
    pub const fn risk(mut self, risk: Risk) -> Self {
        self.risk = risk;
        self
    }

    /// Says how much of the past is kept.
    #[must_use]
    pub const fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Says what fields without a description count as.
    #[must_use]
    pub const fn unknown(mut self, unknown: UnknownFields) -> Self {
        self.unknown = unknown;
        self
    }

    /// Returns the name of the kind.
    pub const fn kind(&self) -> KindName {
        KindName::from_static(self.name)
    }

    /// Returns the description of a field by its name in the model.
    pub fn field(&self, name: &str) -> Option<&'static FieldSpec> {
        self.fields.iter().find(|spec| spec.name == name)
    }

    /// Returns the description of a field by its name on the device.
    pub fn device_field(&self, device_name: &str) -> Option<&'static FieldSpec> {
        self.fields.iter().find(|spec| spec.device == device_name)
    }

    /// Returns the name a row has by its natural key. A part that is absent counts as its default; without a required
    /// part, or without a natural key, there is no such name.
    pub fn natural_name(&self, fields: &Fields) -> Option<String> {
        let part = |key: &&str| {
            let spec = self.field(key);
            let default = || spec.and_then(FieldSpec::default_value);
            match fields.get(key).cloned().or_else(default) {
                Some(value) => name_part(&value),
                None if spec.is_some_and(|spec| spec.required) => None,
                None => Some(String::new()),
            }
        };
        let parts = self.natural_key.iter().map(part).collect::<Option<Vec<_>>>()?;
        if parts.iter().all(String::is_empty) { None } else { Some(parts.join("/")) }
    }
}

const fn references_kind_names(ty: &FieldType) -> bool {
    match ty {
        FieldType::Ref(target) => is_kind_name(target),
        FieldType::List(inner, _) => references_kind_names(inner),
        _ => true,
    }
}

fn name_part(value: &FieldValue) -> Option<String> {
    Some(match value {
        FieldValue::Ref(reference) => reference.key.clone(),
        FieldValue::Secret(_) => return None,
        FieldValue::Set(members) => join_parts(members.iter())?,
        FieldValue::List(members) => join_parts(members.iter())?,
        FieldValue::Not(inner) => format!("!{}", name_part(inner)?),
        leaf => leaf.leaf()?.1.into_owned(),
    })
}

fn join_parts<'a>(members: impl Iterator<Item = &'a FieldValue>) -> Option<String> {
    members.map(name_part).collect::<Option<Vec<_>>>().map(|parts| parts.join(","))
}

/// The kinds a program knows, and the opaque kind for every other menu.
#[derive(Debug, Clone)]
pub struct Schemas {
    by_kind: BTreeMap<KindName, &'static KindSchema>,
    by_menu: BTreeMap<&'static str, &'static KindSchema>,
}

impl Schemas {
    /// Collects kinds. Where two have one name or one menu, the later one counts.
    pub fn new(kinds: impl IntoIterator<Item = &'static KindSchema>) -> Self {
        let mut schemas = Self { by_kind: BTreeMap::new(), by_menu: BTreeMap::new() };
        for schema in std::iter::once(KindSchema::opaque()).chain(kinds) {
            schemas.by_kind.insert(schema.kind(), schema);
            if !schema.menu.is_empty() {
                schemas.by_menu.insert(schema.menu, schema);
            }
        }
        schemas
    }

    /// Returns the description of a kind.
    pub fn kind(&self, kind: &KindName) -> Option<&'static KindSchema> {
        self.by_kind.get(kind).copied()
    }

    /// Returns the description of the rows of a menu, the opaque one where there is none.
    pub fn for_menu(&self, menu: &str) -> &'static KindSchema {
        self.by_menu.get(menu).copied().unwrap_or(KindSchema::opaque())
    }

    /// Visits the kinds in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &'static KindSchema> + '_ {
        self.by_kind.values().copied()
    }
}
