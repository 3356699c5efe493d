//! Layer 4, what the device is doing now. Written by the observer only, into a file of its own that may vanish: reading
//! the device again restores all of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::canonical::StateHash;
use crate::stamp::Timestamp;
use crate::value::{FieldName, FieldValue, Fields};

/// What was seen of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The fields as the device has them.
    pub observed: BTreeMap<FieldName, Observed>,
    /// What the device says about the row itself.
    #[serde(default)]
    pub flags: Flags,
    /// Digest over the fields somebody owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_hash: Option<StateHash>,
    /// Digest over every field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_hash: Option<StateHash>,
    /// The reading it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_id: Option<Ulid>,
    /// When it was read, by our clock.
    pub observed_at: Timestamp,
    /// When it was read, by the device's uptime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_uptime_ms: Option<u64>,
    /// Whether the reading was whole.
    #[serde(default)]
    pub completeness: Completeness,
    /// How it compares with the wish.
    #[serde(default)]
    pub drift: DriftState,
}

impl Runtime {
    /// Records a whole reading of settable fields, without any comparison yet.
    pub fn of_reading(fields: &Fields, hidden: &BTreeSet<FieldName>, observed_at: Timestamp) -> Self {
        let known = fields.iter().map(|(name, value)| (name.clone(), Observed::known(value.clone())));
        let hidden = hidden.iter().map(|name| (name.clone(), Observed::hidden()));
        Self {
            observed: known.chain(hidden).collect(),
            flags: Flags::default(),
            observed_hash: None,
            full_hash: None,
            read_id: None,
            observed_at,
            device_uptime_ms: None,
            completeness: Completeness::Whole,
            drift: DriftState::Unknown,
        }
    }

    /// Returns the fields whose values are known.
    pub fn fields(&self) -> Fields {
        let known = |(name, seen): (&FieldName, &Observed)| Some((name.clone(), seen.value.clone()?));
        self.observed.iter().filter_map(known).collect()
    }
}

/// One field as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The value; `None` unless the state is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<FieldValue>,
    /// Whether it could be seen.
    #[serde(default)]
    pub state: FieldVisibility,
    /// Where the value comes from.
    #[serde(default)]
    pub origin: Origin,
}

impl Observed {
    /// A value that was seen, of unknown origin.
    pub fn known(value: FieldValue) -> Self {
        Self { value: Some(value), state: FieldVisibility::Known, origin: Origin::Unknown }
    }

    /// A value the device has but does not show.
    pub fn hidden() -> Self {
        Self { value: None, state: FieldVisibility::Hidden, origin: Origin::Unknown }
    }
}

/// Whether a field could be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldVisibility {
    /// It was seen.
    #[default]
    Known,
    /// The device has none.
    Absent,
    /// The device does not show it.
    Hidden,
    /// The device does not know it.
    Unsupported,
}

/// Where a value comes from, in the words of NMDA (RFC 8342).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Somebody configured it.
    Intended,
    /// A protocol made it.
    Dynamic,
    /// The device made it.
    System,
    /// The device learned it from others.
    Learned,
    /// Nobody set it.
    Default,
    /// It cannot be told.
    #[default]
    Unknown,
}

/// What the device says about a row. `None` is not false: the menu does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// A protocol made the row.
    pub dynamic: Option<bool>,
    /// The row is always there.
    pub builtin: Option<bool>,
    /// The row refers to something that is missing.
    pub invalid: Option<bool>,
    /// The row is switched off.
    pub disabled: Option<bool>,
    /// The row is at work.
    pub running: Option<bool>,
}

/// Whether a reading was whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// Every row and field of the menu was read.
    Whole,
    /// Some were.
    #[default]
    Partial,
}

/// How an observation compares with the wish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftState {
    /// Nobody compared.
    #[default]
    Unknown,
    /// No difference.
    InSync,
    /// These fields differ.
    Drifted(Vec<FieldName>),
    /// No difference that could be seen; these fields are hidden.
    Unverifiable(Vec<FieldName>),
    /// The row is gone.
    Missing,
    /// The row is there, its resource is not.
    Orphaned,
    /// The reading is too old.
    Stale,
    /// The comparison failed.
    Error(String),
}
