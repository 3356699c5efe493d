//! Layer 1, what is wanted. Written by users and the API, nobody else. Mandatory.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::canonical::{Domain, FieldMask, StateHash, hash};
use crate::kind::KindName;
use crate::stamp::{Stamp, Timestamp};
use crate::value::{FieldName, Fields};

/// What somebody wants the resource to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The fields somebody wrote. Defaults never enter.
    pub spec: Fields,
    /// Grows when the meaning changes: a field, or the intent.
    pub generation: u64,
    /// Digest of all fields of `spec`.
    pub desired_hash: StateHash,
    /// How the wish is to be treated.
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
}

impl Configuration {
    /// Makes the first generation.
    pub fn first(kind: &KindName, schema_revision: u32, spec: Fields, settings: Settings) -> Self {
        let desired_hash = hash(Domain::Desired, kind, schema_revision, &FieldMask::All, &spec);
        Self { spec, generation: 1, desired_hash, settings }
    }
}

/// How a wish is to be treated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether the resource should be there at all.
    #[serde(default)]
    pub intent: Intent,
    /// What to do about drift, where it differs from the kind's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_policy: Option<DriftPolicy>,
    /// Differences that are known and accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<IgnoreRule>,
    /// Who owns which fields, by name of the manager.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub managers: BTreeMap<String, ManagedFields>,
    /// Set when the resource is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// Refuses deletion while true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prevent_destroy: bool,
}

impl Settings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the resource should be there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// It should be as configured.
    #[default]
    Present,
    /// It should not be there.
    Absent,
    /// It stays as it is for now.
    Paused,
    /// It is only watched.
    Observe,
}

/// What to do about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftPolicy {
    /// Say so.
    Report,
    /// Restore what was confirmed last.
    Heal,
    /// Take the device's value as the wish.
    Adopt,
    /// Let somebody decide.
    Ask,
}

/// A difference that is known and accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoreRule {
    /// Which field.
    pub field: FieldName,
    /// Why.
    pub reason: String,
    /// Who accepts it.
    pub owner: String,
    /// When somebody has to look again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// The fields one manager owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedFields {
    /// Which fields.
    pub fields: BTreeSet<FieldName>,
    /// When and by whom they were claimed.
    pub claimed: Stamp,
}

/// That the resource is to go, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Who asked for it.
    pub requested: Stamp,
    /// What becomes of the row on the device.
    pub mode: DeletionMode,
    /// What has to happen first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
}

/// What becomes of the row on the device when its resource goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeletionMode {
    /// It goes too.
    Delete,
    /// It stays, unmanaged.
    Orphan,
}
