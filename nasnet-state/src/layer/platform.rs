//! Layer 8, what the device can do. Written by the adapter only, from facts read on the device.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::canonical::StateHash;
use crate::stamp::Timestamp;

/// What is known about the device a resource lives on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Digest of the facts below.
    pub facts: StateHash,
    /// The maker.
    pub vendor: String,
    /// The software version.
    pub version: String,
    /// The processor.
    pub architecture: String,
    /// The model.
    pub board: String,
    /// What tells this device from any other. Another one here means the wrong device answered.
    pub serial: String,
    /// Software packages, with versions.
    #[serde(default)]
    pub packages: BTreeMap<String, String>,
    /// What our login may do.
    #[serde(default)]
    pub policies: BTreeSet<String>,
    /// What the device is allowed to do at all.
    #[serde(default)]
    pub device_mode: BTreeMap<String, bool>,
    /// Ports the device listens on, by service.
    #[serde(default)]
    pub services: BTreeMap<String, u16>,
    /// Features that exist from some version on.
    #[serde(default)]
    pub gates: BTreeSet<String>,
    /// Bounds such as free flash, free memory, the longest script.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
    /// Whether the device's clock is set, and how far it is off.
    #[serde(default)]
    pub clock: DeviceClock,
    /// When the facts were read.
    pub seen_at: Timestamp,
}

/// The clock of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceClock {
    /// Whether it is set; `None` when the device does not say.
    pub synchronised: Option<bool>,
    /// How far it is ahead of ours.
    pub offset_ms: Option<i64>,
}
