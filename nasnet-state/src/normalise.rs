//! From the device's text to canonical values and back.
//!
//! Parsing is total: what is not a value of its field's type becomes [`FieldValue::Opaque`] with a finding, and a field
//! nobody has described becomes text. Printing a parsed value and parsing it again changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::diff::{Edit, FieldChange};
use crate::error::Error;
use crate::kind::KindName;
use crate::opaque::MENU_FIELD;
use crate::schema::{
    Access, FieldSpec, FieldType, HostBits, HostForm, KindSchema, ListSem, Negation, UnknownFields, Unset,
};
use crate::secret::{Secret, SecretIntake, SecretRef, is_sensitive_name};
use crate::spelling;
use crate::validate::finding::{Finding, Severity, codes, nearest};
use crate::value::{FieldName, FieldValue, Fields, Reference};

/// What a row became.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// The values, by the names of the model.
    pub fields: Fields,
    /// Sensitive fields the device has but does not show.
    pub hidden: BTreeSet<FieldName>,
    /// What was odd about the row. Nothing of it was lost.
    pub findings: Vec<Finding>,
}

/// What has to be written to make a change on the device, in its own spelling and without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    /// Fields to set.
    pub set: BTreeMap<String, String>,
    /// Fields to unset with the device's own command.
    pub unset: Vec<String>,
    /// Secrets to reveal and set, by device name.
    pub secrets: BTreeMap<String, SecretRef>,
    /// Fields that can only change by making the row anew.
    pub recreate: Vec<FieldName>,
}

impl KindSchema {
    /// Reads a row in the device's spelling. A key that starts with a dot is the device's own and left out.
    ///
    /// # Errors
    /// Only when a secret cannot be sealed; text is never an error.
    pub fn parse(&self, raw: &BTreeMap<String, String>, secrets: &SecretIntake<'_>) -> Result<Parsed, Error> {
        let kind = self.kind();
        let mut parsed = Parsed::default();
        for (device_name, text) in raw {
            if device_name.starts_with('.') && !(self.is_opaque() && device_name == MENU_FIELD) {
                continue;
            }
            // People use the names of the model; where both names stand, the device's own counts.
            let spec = self
                .device_field(device_name)
                .or_else(|| self.field(device_name).filter(|spec| !raw.contains_key(spec.device)));
            let name = match spec {
                Some(spec) => FieldName::from(spec.name),
                None if self.field(device_name).is_some() => {
                    parsed.findings.push(unknown_field(self, device_name));
                    continue;
                }
                None => FieldName::from(device_name.as_str()),
            };
            if spec.is_none() && self.unknown == UnknownFields::Observation {
                parsed.findings.push(unknown_field(self, device_name));
            }
            if spec.map_or_else(|| is_sensitive_name(device_name), |spec| spec.sensitive) {
                match text.as_str() {
                    "" => {}
                    text if is_masked(text) => {
                        parsed.hidden.insert(name);
                    }
                    text => {
                        let secret = secrets.take(&kind, &name, &Secret::new(text.as_bytes()))?;
                        parsed.fields.insert(name, FieldValue::Secret(secret));
                    }
                }
                continue;
            }
            let Some(spec) = spec else {
                parsed.fields.insert(name, FieldValue::Str(text.clone()));
                continue;
            };
            if let Some(value) = spec.parse(text) {
                if let FieldValue::Opaque(_) = value {
                    parsed.findings.push(not_understood(spec, text));
                }
                parsed.fields.insert(name, value);
            }
        }
        Ok(parsed)
    }

    /// Prints fields in the device's spelling, by device names. Secrets are left out: see
    /// [`print_revealed`](Self::print_revealed).
    pub fn print(&self, fields: &Fields) -> BTreeMap<String, String> {
        fields
            .iter()
            .filter(|(name, value)| name.as_str() != MENU_FIELD && !matches!(value, FieldValue::Secret(_)))
            .map(|(name, value)| (self.device_name(name), self.print_value(name, value)))
            .collect()
    }

    /// Prints fields in the device's spelling, secrets included, as `reveal` opens them.
    ///
    /// # Errors
    /// What `reveal` returns, and [`Error::Seal`] when a secret is not text.
    pub fn print_revealed(
        &self,
        fields: &Fields,
        mut reveal: impl FnMut(&FieldName, &SecretRef) -> Result<Secret, Error>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut raw = self.print(fields);
        for (name, reference) in fields.secrets() {
            let secret = reveal(name, reference)?;
            let text = std::str::from_utf8(secret.expose()).map_err(|source| Error::Seal {
                action: "print",
                field: name.to_string(),
                source: source.into(),
            })?;
            raw.insert(self.device_name(name), text.to_owned());
        }
        Ok(raw)
    }

    /// Translates changes of fields into what has to be written to an existing row. `before` are the fields the changes
    /// start from.
    pub fn print_changes(&self, before: &Fields, changes: &[FieldChange]) -> DeviceChange {
        let mut device = DeviceChange::default();
        for change in changes {
            let name = &change.field;
            let spec = self.field(name.as_str());
            if spec.is_some_and(|spec| spec.access == Access::ReadOnly) || name.as_str() == MENU_FIELD {
                continue;
            }
            if spec.is_some_and(|spec| spec.access == Access::CreateOnly) {
                device.recreate.push(name.clone());
                continue;
            }
            let device_name = self.device_name(name);
            match change.value_after(before) {
                Some(FieldValue::Secret(secret)) => {
                    device.secrets.insert(device_name, secret);
                }
                Some(value) => {
                    device.set.insert(device_name, self.print_value(name, &value));
                }
                None => match spec.map_or(Unset::WriteEmpty, |spec| spec.unset) {
                    Unset::WriteDefault => {
                        let default = spec.and_then(|spec| spec.default).unwrap_or_default();
                        device.set.insert(device_name, default.to_owned());
                    }
                    Unset::WriteEmpty => {
                        device.set.insert(device_name, String::new());
                    }
                    Unset::Command => device.unset.push(device_name),
                    Unset::Recreate => device.recreate.push(name.clone()),
                },
            }
        }
        device
    }

    /// Returns the part of an observation that somebody must have wanted: settable fields that are not at their
    /// default. What only the device says, and fields nobody described, stay behind.
    pub fn intent_of(&self, observed: &Fields) -> Fields {
        observed
            .iter()
            .filter(|(name, value)| match self.field(name.as_str()) {
                Some(spec) => spec.is_settable() && (spec.required || spec.default_value().as_ref() != Some(value)),
                None => self.unknown == UnknownFields::Intent,
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// Parses values that are still text in fields whose type is another: what a user typed becomes what it means.
    /// Typed values are kept as they are.
    pub fn normalise(&self, fields: &Fields) -> Fields {
        fields
            .iter()
            .filter_map(|(name, value)| {
                let value = match (self.field(name.as_str()), value) {
                    (Some(spec), FieldValue::Str(text) | FieldValue::Opaque(text)) if !spec.sensitive => {
                        spec.parse(text)
                    }
                    (Some(spec), FieldValue::Prefix(net)) => Some(FieldValue::Prefix(spec.ty.mask(*net))),
                    (Some(FieldSpec { ty: FieldType::Str, .. }), FieldValue::Int(number)) => {
                        Some(FieldValue::Str(number.to_string()))
                    }
                    _ => Some(value.clone()),
                }?;
                Some((name.clone(), value))
            })
            .collect()
    }

    fn device_name(&self, name: &FieldName) -> String {
        self.field(name.as_str()).map_or_else(|| name.to_string(), |spec| spec.device.to_owned())
    }

    fn print_value(&self, name: &FieldName, value: &FieldValue) -> String {
        match self.field(name.as_str()) {
            Some(spec) => spec.print(value),
            None => print(&FieldType::Str, value),
        }
    }
}

impl FieldSpec {
    /// Reads one value; `None` when the text means "not set", opaque when it is no value of this field.
    pub fn parse(&self, text: &str) -> Option<FieldValue> {
        if text.is_empty() && !self.keeps_empty {
            return if self.ty == FieldType::Flag { Some(FieldValue::Bool(true)) } else { None };
        }
        Some(self.parse_understood(text).unwrap_or_else(|| FieldValue::Opaque(text.to_owned())))
    }

    /// Prints one value as the device spells it.
    pub fn print(&self, value: &FieldValue) -> String {
        print(&self.ty, value)
    }

    /// Returns the value the device assumes when the field is not set.
    pub fn default_value(&self) -> Option<FieldValue> {
        self.default.and_then(|text| self.parse(text))
    }

    fn parse_understood(&self, text: &str) -> Option<FieldValue> {
        if self.ty == FieldType::Str && self.negation == Negation::Never {
            return Some(FieldValue::Str(text.to_owned()));
        }
        let trimmed = text.trim();
        match trimmed.strip_prefix('!') {
            Some(rest) if self.negation == Negation::Whole => {
                self.parse_plain(rest).map(|value| FieldValue::Not(Box::new(value)))
            }
            _ => self.parse_plain(trimmed),
        }
    }

    fn parse_plain(&self, text: &str) -> Option<FieldValue> {
        if self.words.contains(&text) {
            return Some(FieldValue::Enum(text.to_owned()));
        }
        match self.ty {
            FieldType::List(inner, sem) => {
                let members = text.split(',').map(str::trim).map(|member| match member.strip_prefix('!') {
                    Some(rest) if self.negation == Negation::Members => {
                        parse(inner, rest).map(|value| FieldValue::Not(Box::new(value)))
                    }
                    _ if self.words.contains(&member) => Some(FieldValue::Enum(member.to_owned())),
                    _ => parse(inner, member),
                });
                match sem {
                    ListSem::Set => members.collect::<Option<BTreeSet<_>>>().map(FieldValue::Set),
                    ListSem::Ordered => members.collect::<Option<Vec<_>>>().map(FieldValue::List),
                }
            }
            ty => parse(&ty, text),
        }
    }
}

impl FieldType {
    /// Applies the field's rule about host bits to a prefix.
    fn mask(&self, net: IpNet) -> IpNet {
        match self {
            Self::Prefix { host_bits: HostBits::Keep, .. } => net,
            _ => net.trunc(),
        }
    }
}

fn parse(ty: &FieldType, text: &str) -> Option<FieldValue> {
    if text.is_empty() {
        return None;
    }
    Some(match ty {
        FieldType::Bool | FieldType::Flag => FieldValue::Bool(spelling::parse_bool(text)?),
        FieldType::Int { min, max } => {
            FieldValue::Int(spelling::parse_int(text).filter(|value| (*min..=*max).contains(value))?)
        }
        FieldType::Duration => FieldValue::Duration(spelling::parse_duration(text)?),
        FieldType::Rate => FieldValue::Rate(spelling::parse_rate(text)?),
        FieldType::Bytes => FieldValue::Bytes(spelling::parse_bytes(text)?),
        FieldType::Mac => FieldValue::Mac(spelling::parse_mac(text)?),
        FieldType::Ip => FieldValue::Ip(spelling::parse_ip(text)?),
        FieldType::Prefix { .. } => FieldValue::Prefix(ty.mask(spelling::parse_prefix(text)?)),
        FieldType::AddressMatch => match spelling::parse_prefix(text) {
            Some(net) => FieldValue::Prefix(ty.mask(net)),
            None => match spelling::parse_ip_range(text)? {
                range if range.first() == range.last() => FieldValue::Prefix(IpNet::from(range.first())),
                range => FieldValue::IpRange(range),
            },
        },
        FieldType::Ranges { min, max } => FieldValue::Ranges(
            spelling::parse_ranges(text)
                .filter(|set| set.spans().all(|(first, last)| first >= *min && last <= *max))?,
        ),
        FieldType::Enum(words) => {
            let word = words.iter().find(|word| word.eq_ignore_ascii_case(text))?;
            FieldValue::Enum((*word).to_owned())
        }
        FieldType::Str => FieldValue::Str(text.to_owned()),
        // A handle is only good for one boot of the device, so it is never taken for a name.
        FieldType::Ref(_) if text.starts_with('*') => return None,
        FieldType::Ref(target) => FieldValue::Ref(Reference::new(KindName::from_static(target), text)),
        // Lists of lists have no spelling.
        FieldType::List(..) => return None,
    })
}

fn print(ty: &FieldType, value: &FieldValue) -> String {
    let inner = if let FieldType::List(inner, _) = ty { inner } else { ty };
    let join = |members: &mut dyn Iterator<Item = &FieldValue>| {
        members.map(|member| print(inner, member)).collect::<Vec<_>>().join(",")
    };
    match value {
        FieldValue::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        FieldValue::Rate(rate) => spelling::print_rate(*rate),
        FieldValue::Prefix(net) if net.prefix_len() == net.max_prefix_len() => match inner {
            FieldType::Prefix { host: HostForm::Bare, .. } | FieldType::AddressMatch => net.addr().to_string(),
            _ => net.to_string(),
        },
        FieldValue::Ref(reference) => reference.key.clone(),
        FieldValue::Not(negated) => format!("!{}", print(ty, negated)),
        FieldValue::Set(members) => join(&mut members.iter()),
        FieldValue::List(members) => join(&mut members.iter()),
        FieldValue::Secret(_) => String::new(),
        leaf => leaf.leaf().map(|(_, text)| text.into_owned()).unwrap_or_default(),
    }
}

/// Devices show a secret they do not show as a row of stars.
fn is_masked(text: &str) -> bool {
    text.chars().all(|c| c == '*')
}

fn unknown_field(schema: &KindSchema, device_name: &str) -> Finding {
    let suggestion = nearest(device_name, schema.fields.iter().map(|spec| spec.device));
    Finding::new(
        codes::UNKNOWN_FIELD,
        Severity::Info,
        device_name,
        format!("{} has no field {device_name}", schema.kind()),
    )
    .suggest(suggestion)
}

pub(crate) fn not_understood(spec: &FieldSpec, text: &str) -> Finding {
    let shown: String = text.chars().take(80).collect();
    let suggestion = match spec.ty {
        FieldType::Enum(words) => nearest(text, words.iter().copied()),
        _ => None,
    };
    let message = format!("{shown:?} is not {}", expected(&spec.ty));
    Finding::new(codes::NOT_UNDERSTOOD, Severity::Error, spec.name, message).suggest(suggestion)
}

/// Describes a type for people.
pub(crate) fn expected(ty: &FieldType) -> String {
    match ty {
        FieldType::Bool | FieldType::Flag => "yes or no".to_owned(),
        FieldType::Int { min, max } => format!("a number from {min} to {max}"),
        FieldType::Duration => "a span of time such as 1d2h30s".to_owned(),
        FieldType::Rate => "a rate such as 10M".to_owned(),
        FieldType::Bytes => "a size such as 64KiB".to_owned(),
        FieldType::Mac => "a hardware address".to_owned(),
        FieldType::Ip => "an address".to_owned(),
        FieldType::Prefix { .. } => "an address with a prefix length".to_owned(),
        FieldType::AddressMatch => "an address, a prefix or a range of addresses".to_owned(),
        FieldType::Ranges { min, max } => format!("numbers or spans between {min} and {max}"),
        FieldType::Enum(words) => format!("one of {}", words.join(", ")),
        FieldType::Str => "text".to_owned(),
        FieldType::Ref(target) => format!("the name of a {target}"),
        FieldType::List(inner, _) => format!("a list of values, each {}", expected(inner)),
    }
}

impl FieldChange {
    /// Returns the value the field has after the change, given the fields before it.
    fn value_after(&self, before: &Fields) -> Option<FieldValue> {
        match &self.edit {
            Edit::Replace { after, .. } => after.clone(),
            Edit::Members { removed, added } => match before.get(self.field.as_str()) {
                Some(FieldValue::Set(members)) => {
                    Some(FieldValue::Set(members.difference(removed).chain(added).cloned().collect()))
                }
                _ => Some(FieldValue::Set(added.clone())),
            },
        }
    }
}
