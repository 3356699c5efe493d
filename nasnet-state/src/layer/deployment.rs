//! Layer 3, what the device confirmed. Written by the engine only, and only from states of an operation at or after its
//! confirmation. Revisions are never changed; a pointer moves to the newest confirmed one.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::canonical::StateHash;
use crate::stamp::{Stamp, Timestamp};
use crate::value::Fields;

/// What was deployed, and how the last attempt went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// The newest confirmed revision.
    pub current: Option<DeploymentRevision>,
    /// The newest revision, confirmed or not.
    pub latest: Attempt,
}

/// How an attempt went, without what it applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The revision that records it.
    pub revision: u64,
    /// The generation it was to apply.
    pub generation: u64,
    /// The operation it was part of.
    pub operation: Ulid,
    /// How it ended.
    pub outcome: Outcome,
}

/// The immutable record of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentRevision {
    /// Its number: 1, 2, 3 ... per resource.
    pub revision: u64,
    /// Digest of `last_applied`.
    pub last_applied_hash: StateHash,
    /// Who recorded it, when.
    pub recorded: Stamp,
    /// What was recorded.
    #[serde(flatten)]
    pub record: DeploymentRecord,
}

/// What the engine has to say about a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentRecord {
    /// The generation of the configuration it applied.
    pub generation: u64,
    /// The operation it was part of.
    pub operation: Ulid,
    /// How it ended.
    pub outcome: Outcome,
    /// The fields that were applied: the base of the next three-way comparison.
    pub last_applied: Fields,
    /// What the device made of its own accord: public keys, assigned values.
    #[serde(default, skip_serializing_if = "Fields::is_empty")]
    pub generated: Fields,
    /// The rows on the device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowRef>,
    /// The safety net that was armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The software version of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_version: Option<String>,
    /// When the writes were sent.
    pub applied_at: Timestamp,
    /// When the device was seen to have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<Timestamp>,
    /// What confirmed it: names of probes, or of the person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmed_by: Vec<String>,
}

impl DeploymentRecord {
    /// Starts the record of a deployment that was confirmed by reading it back.
    pub fn confirmed(generation: u64, operation: Ulid, last_applied: Fields, at: Timestamp) -> Self {
        Self {
            generation,
            operation,
            outcome: Outcome::Confirmed,
            last_applied,
            generated: Fields::new(),
            rows: Vec::new(),
            tier: None,
            device_version: None,
            applied_at: at,
            confirmed_at: Some(at),
            confirmed_by: Vec::new(),
        }
    }
}

/// How a deployment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The device was seen to have it.
    Confirmed,
    /// It was taken back.
    RolledBack,
    /// It did not happen.
    Failed,
    /// Nobody can tell.
    Indeterminate,
}

/// A row on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRef {
    /// Its menu.
    pub menu: String,
    /// Its handle (`*1A`), good for one boot of the device.
    pub id: Option<String>,
    /// The boot the handle is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_epoch: Option<u64>,
    /// What tells it from other rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub natural_key: Option<String>,
    /// The mark in its comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
}
