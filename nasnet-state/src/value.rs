//! Typed field values, and the one way they are written as JSON.

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::Error;
use crate::kind::KindName;
use crate::secret::SecretRef;
use crate::spelling;

/// The name of a field, as the schema of the kind spells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FieldName(Cow<'static, str>);

impl FieldName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for FieldName {
    fn from(name: &str) -> Self {
        Self(Cow::Owned(name.to_owned()))
    }
}

impl From<String> for FieldName {
    fn from(name: String) -> Self {
        Self(Cow::Owned(name))
    }
}

impl Borrow<str> for FieldName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fields of one layer, by name. A field that is absent is not the same as one that is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(BTreeMap<FieldName, FieldValue>);

impl Fields {
    /// Starts without any field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field and returns the set, for building one in an expression.
    #[must_use]
    pub fn with(mut self, name: impl Into<FieldName>, value: impl Into<FieldValue>) -> Self {
        self.insert(name, value);
        self
    }

    /// Sets a field and returns what it was.
    pub fn insert(&mut self, name: impl Into<FieldName>, value: impl Into<FieldValue>) -> Option<FieldValue> {
        self.0.insert(name.into(), value.into())
    }

    /// Removes a field and returns what it was.
    pub fn remove(&mut self, name: &str) -> Option<FieldValue> {
        self.0.remove(name)
    }

    /// Returns the value of a field.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.0.get(name)
    }

    /// Returns the text of a field that holds text, a word or a reference.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(FieldValue::text)
    }

    /// Returns true when the field is present.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Visits the fields in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&FieldName, &FieldValue)> + Clone {
        self.0.iter()
    }

    /// Visits the names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &FieldName> + Clone {
        self.0.keys()
    }

    /// Keeps the fields the predicate wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&FieldName, &FieldValue) -> bool) {
        self.0.retain(|name, value| keep(name, value));
    }

    /// Returns the number of fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true when there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Visits the fields that hold a secret.
    pub fn secrets(&self) -> impl Iterator<Item = (&FieldName, &SecretRef)> {
        self.0.iter().filter_map(|(name, value)| match value {
            FieldValue::Secret(secret) => Some((name, secret)),
            _ => None,
        })
    }
}

impl FromIterator<(FieldName, FieldValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (FieldName, FieldValue)>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl IntoIterator for Fields {
    type Item = (FieldName, FieldValue);
    type IntoIter = std::collections::btree_map::IntoIter<FieldName, FieldValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One value. Every value is canonical by construction: two spellings of one meaning cannot both exist.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FieldValue {
    /// A switch.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A span of time.
    Duration(Duration),
    /// Bits per second, or any other decimal-scaled rate.
    Rate(u64),
    /// A size in bytes.
    Bytes(u64),
    /// A hardware address.
    Mac(Mac),
    /// An address.
    Ip(IpAddr),
    /// An address with a prefix length. Whether host bits are kept is the field's rule, applied when it was parsed.
    Prefix(IpNet),
    /// Addresses from one to another, both included.
    IpRange(IpRange),
    /// Numbers and spans of numbers, sorted and merged (ports, VLAN ids).
    Ranges(RangeSet),
    /// A word from the field's list.
    Enum(String),
    /// Text, kept to the byte.
    Str(String),
    /// Members whose order means nothing.
    Set(BTreeSet<FieldValue>),
    /// Members whose order means something.
    List(Vec<FieldValue>),
    /// Another resource, by the name it has in a kind or name space.
    Ref(Reference),
    /// A secret, by reference.
    Secret(SecretRef),
    /// Everything but the value (`!10.0.0.0/8`).
    Not(Box<FieldValue>),
    /// Text that is not a value of the field's type, kept so that nothing is lost.
    Opaque(String),
}

impl FieldValue {
    /// Returns the text of a value that is text, a word, a reference or opaque.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Enum(text) | Self::Opaque(text) => Some(text),
            Self::Ref(reference) => Some(&reference.key),
            _ => None,
        }
    }

    /// Visits the references in the value, also those inside lists.
    pub fn references(&self) -> Vec<&Reference> {
        match self {
            Self::Ref(reference) => vec![reference],
            Self::Not(inner) => inner.references(),
            Self::Set(members) => members.iter().flat_map(Self::references).collect(),
            Self::List(members) => members.iter().flat_map(Self::references).collect(),
            _ => Vec::new(),
        }
    }

    /// Returns tag and text of a value without members.
    pub(crate) fn leaf(&self) -> Option<(&'static str, Cow<'_, str>)> {
        Some(match self {
            Self::Bool(value) => ("bool", Cow::Borrowed(if *value { "true" } else { "false" })),
            Self::Int(value) => ("int", Cow::Owned(value.to_string())),
            Self::Duration(value) => ("duration", Cow::Owned(spelling::print_duration(*value))),
            Self::Rate(value) => ("rate", Cow::Owned(value.to_string())),
            Self::Bytes(value) => ("bytes", Cow::Owned(value.to_string())),
            Self::Mac(value) => ("mac", Cow::Owned(value.to_string())),
            Self::Ip(value) => ("ip", Cow::Owned(value.to_string())),
            Self::Prefix(value) => ("prefix", Cow::Owned(value.to_string())),
            Self::IpRange(value) => ("ip_range", Cow::Owned(value.to_string())),
            Self::Ranges(value) => ("ranges", Cow::Owned(value.to_string())),
            Self::Enum(value) => ("enum", Cow::Borrowed(value)),
            Self::Str(value) => ("str", Cow::Borrowed(value)),
            Self::Ref(value) => ("ref", Cow::Owned(format!("{}:{}", value.target, value.key))),
            Self::Secret(value) => ("secret", Cow::Owned(format!("{}:{}", value.fingerprint, value.version))),
            Self::Opaque(value) => ("opaque", Cow::Borrowed(value)),
            Self::Set(_) | Self::List(_) | Self::Not(_) => return None,
        })
    }

    fn from_leaf(tag: &str, text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("stored value", tag);
        Ok(match tag {
            "duration" => Self::Duration(spelling::parse_duration(text).ok_or_else(invalid)?),
            "rate" => Self::Rate(text.parse().map_err(|_| invalid())?),
            "bytes" => Self::Bytes(text.parse().map_err(|_| invalid())?),
            "mac" => Self::Mac(spelling::parse_mac(text).ok_or_else(invalid)?),
            "ip" => Self::Ip(text.parse().map_err(|_| invalid())?),
            "prefix" => Self::Prefix(text.parse().map_err(|_| invalid())?),
            "ip_range" => Self::IpRange(spelling::parse_ip_range(text).ok_or_else(invalid)?),
            "ranges" => Self::Ranges(spelling::parse_ranges(text).ok_or_else(invalid)?),
            "enum" => Self::Enum(text.to_owned()),
            "opaque" => Self::Opaque(text.to_owned()),
            "ref" => {
                let (target, key) = text.split_once(':').ok_or_else(invalid)?;
                Self::Ref(Reference { target: target.parse()?, key: key.to_owned() })
            }
            "secret" => {
                let (fingerprint, version) = text.split_once(':').ok_or_else(invalid)?;
                let version = version.parse().map_err(|_| invalid())?;
                Self::Secret(SecretRef { fingerprint: fingerprint.parse()?, version, sealed: None })
            }
            _ => return Err(invalid()),
        })
    }
}

impl From<bool> for FieldValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for FieldValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for FieldValue {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<String> for FieldValue {
    fn from(value: String) -> Self {
        Self::Str(value)
    }
}

/// A hardware address of six bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02X}:{b:02X}:{c:02X}:{d:02X}:{e:02X}:{g:02X}")
    }
}

/// Addresses of one family from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

impl IpRange {
    /// Makes a range; `None` when the families differ or the order is reversed.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// Returns the first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Returns the last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Numbers and spans of numbers: sorted, without overlap, neighbours joined.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeSet(Vec<(u32, u32)>);

impl RangeSet {
    /// Makes a set from spans in any order; a reversed span is turned round.
    pub fn new(spans: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut spans: Vec<_> = spans.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        spans.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match merged.last_mut() {
                Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Visits the spans in order, both ends included.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Returns true when the number is in the set.
    pub fn contains(&self, number: u32) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&number))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// A resource, by the name it has in a kind or a name space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The kind or name space the name is looked up in.
    pub target: KindName,
    /// The name there.
    pub key: String,
}

impl Reference {
    /// Makes a reference.
    pub fn new(target: KindName, key: impl Into<String>) -> Self {
        Self { target, key: key.into() }
    }
}

/// Bool, int and text are themselves, an ordered list is an array, everything else an object with one key, its type.
impl Serialize for FieldValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Str(value) => serializer.serialize_str(value),
            Self::List(members) => {
                let mut seq = serializer.serialize_seq(Some(members.len()))?;
                members.iter().try_for_each(|member| seq.serialize_element(member))?;
                seq.end()
            }
            tagged => {
                let mut map = serializer.serialize_map(Some(1))?;
                match tagged {
                    Self::Set(members) => map.serialize_entry("set", members)?,
                    Self::Not(inner) => map.serialize_entry("not", inner)?,
                    leaf => {
                        let (tag, text) =
                            leaf.leaf().ok_or_else(|| serde::ser::Error::custom("value without a form"))?;
                        map.serialize_entry(tag, &text)?;
                    }
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = FieldValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bool, an integer, a text, an array or an object with one typed value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<FieldValue, E> {
        Ok(FieldValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<FieldValue, E> {
        Ok(FieldValue::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<FieldValue, E> {
        i64::try_from(value).map(FieldValue::Int).map_err(|_| E::custom("integer beyond 63 bits"))
    }

    fn visit_str<E>(self, value: &str) -> Result<FieldValue, E> {
        Ok(FieldValue::Str(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<FieldValue, E> {
        Ok(FieldValue::Str(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FieldValue, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = seq.next_element()? {
            members.push(member);
        }
        Ok(FieldValue::List(members))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FieldValue, A::Error> {
        let tag: String = map.next_key()?.ok_or_else(|| de::Error::custom("typed value without a type"))?;
        let value = match tag.as_str() {
            "set" => FieldValue::Set(map.next_value()?),
            "not" => FieldValue::Not(map.next_value()?),
            tag => FieldValue::from_leaf(tag, &map.next_value::<String>()?).map_err(de::Error::custom)?,
        };
        if map.next_key::<String>()?.is_some() {
            return Err(de::Error::custom("typed value with more than one type"));
        }
        Ok(value)
    }
}
