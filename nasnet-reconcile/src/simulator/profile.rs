//! Which router is simulated, and how the behaviours that are not known for certain are switched.

use serde::{Deserialize, Serialize};

/// How a request without the needed policy is refused (S10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    /// With status 403.
    Forbidden,
    /// With status 400.
    BadRequest,
}

/// What a PATCH to a dynamic row does (S23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DynamicEdit {
    /// It is refused with a text that names the dynamic row.
    Refused,
    /// It is refused as if the row did not exist.
    NotFound,
}

/// How control characters inside strings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlCharacters {
    /// As they are, which is not valid JSON.
    Raw,
    /// Escaped, as JSON demands.
    Escaped,
}

/// One simulated router model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimProfile {
    /// The version as `/system/resource` prints it.
    pub version: String,
    /// The board's name.
    pub board: String,
    /// The CPU architecture.
    pub architecture: String,
    /// The serial number; empty for a virtual router, which has a licence id instead.
    pub serial: String,
    /// How many `etherN` interfaces a router without configuration has.
    pub ethernet_ports: u8,
    /// The seed of generated keys and MAC addresses: the same seed generates the same ones.
    pub random_seed: u64,
    /// S10.
    pub denial: Denial,
    /// S23.
    pub dynamic_edit: DynamicEdit,
    /// S12b.
    pub control_characters: ControlCharacters,
}

impl SimProfile {
    /// A virtual router of version 7.16.
    pub fn chr_7_16() -> Self {
        Self {
            version: "7.16.2 (stable)".to_owned(),
            board: "CHR QEMU Standard PC (i440FX + PIIX, 1996)".to_owned(),
            architecture: "x86_64".to_owned(),
            serial: String::new(),
            ethernet_ports: 5,
            random_seed: 0,
            denial: Denial::Forbidden,
            dynamic_edit: DynamicEdit::Refused,
            control_characters: ControlCharacters::Raw,
        }
    }

    /// A home router with a serial number and version 7.16.
    pub fn hap_7_16() -> Self {
        Self {
            board: "hAP ax^3".to_owned(),
            architecture: "arm64".to_owned(),
            serial: "HH70A000001".to_owned(),
            ..Self::chr_7_16()
        }
    }

    /// Takes the seed of generated values from the operating system; keeps the given one when it has none to give.
    #[must_use]
    pub fn with_os_random_seed(mut self) -> Self {
        self.random_seed = getrandom::u64().unwrap_or(self.random_seed);
        self
    }
}

impl Default for SimProfile {
    fn default() -> Self {
        Self::hap_7_16()
    }
}
