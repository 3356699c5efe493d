//! The one dynamic seam of the engine: what a managed device must be able to do.
//!
//! The seam is minimal on purpose. A write is never a `Result`: a device can say yes, can say no, can never have been
//! reached, or can leave the caller without a trustworthy answer, and each of the four needs another continuation.

pub mod testing;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// The fields of one row in the device's own spelling, without the row id.
pub type RawFields = BTreeMap<String, String>;

/// A menu of the device, such as `/interface/wireguard/peers`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MenuPath(String);

impl MenuPath {
    /// Returns the path as text, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A menu path that cannot name a menu.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid menu path {given:?}: segments of a-z, 0-9 and '-' after a leading slash are allowed")]
pub struct InvalidMenuPath {
    /// What was given, shortened to 120 characters.
    pub given: String,
}

impl FromStr for MenuPath {
    type Err = InvalidMenuPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMenuPath { given: text.chars().take(120).collect() };
        let rest = text.strip_prefix('/').ok_or_else(invalid)?;
        let segment_ok = |segment: &str| {
            !segment.is_empty()
                && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        };
        if text.len() > 200 || !rest.split('/').all(segment_ok) {
            return Err(invalid());
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for MenuPath {
    type Error = InvalidMenuPath;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MenuPath> for String {
    fn from(path: MenuPath) -> Self {
        path.0
    }
}

impl fmt::Display for MenuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The handle of a row on the device (`*1A`): valid for one boot of the device only, resolved again before every write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowId(pub String);

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns whether a field holds a secret by its name, whatever menu it is in.
///
/// This guards `Debug` output only; what is sealed is decided by the kind's schema.
pub fn is_secret_name(field: &str) -> bool {
    let last = field.rsplit('.').next().unwrap_or(field);
    ["password", "passphrase", "secret", "private-key", "preshared-key", "pre-shared-key", "token", "psk"]
        .iter()
        .any(|word| last == *word || last.ends_with(&format!("-{word}")))
        || last.contains("passphrase")
        || last.contains("authentication-password")
}

struct Redacted<'a>(&'a RawFields);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), if is_secret_name(name) { "(secret)" } else { value.as_str() }));
        f.debug_map().entries(shown).finish()
    }
}

/// One row of a menu as the device prints it. `Debug` shows no secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The row's handle; `None` for a menu that holds exactly one row (`/ip/dns`).
    pub id: Option<RowId>,
    /// The printed fields.
    pub fields: RawFields,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("id", &self.id).field("fields", &Redacted(&self.fields)).finish()
    }
}

/// What is known of a device besides its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The name the device gives itself.
    pub identity: String,
    /// The operating system's version.
    pub version: String,
    /// The board or model name.
    pub board: String,
    /// The CPU architecture.
    pub architecture: String,
    /// The serial number: another one at the same address is another device, and every write stops.
    pub serial: String,
    /// Time since the device booted.
    pub uptime_ms: u64,
}

/// One write to one row. `Debug` shows no secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum WriteOp {
    /// Creates a row.
    Add {
        /// The menu to add to.
        menu: MenuPath,
        /// The fields to set.
        fields: RawFields,
    },
    /// Changes fields of a row.
    Set {
        /// The menu of the row.
        menu: MenuPath,
        /// The row, or `None` for a menu of one row.
        id: Option<RowId>,
        /// Fields to set.
        fields: RawFields,
        /// Fields to clear.
        unset: Vec<String>,
    },
    /// Removes a row.
    Remove {
        /// The menu of the row.
        menu: MenuPath,
        /// The row.
        id: RowId,
    },
}

impl WriteOp {
    /// Returns the menu the write goes to.
    pub fn menu(&self) -> &MenuPath {
        match self {
            Self::Add { menu, .. } | Self::Set { menu, .. } | Self::Remove { menu, .. } => menu,
        }
    }
}

impl fmt::Debug for WriteOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { menu, fields } => {
                f.debug_struct("Add").field("menu", menu).field("fields", &Redacted(fields)).finish()
            }
            Self::Set { menu, id, fields, unset } => f
                .debug_struct("Set")
                .field("menu", menu)
                .field("id", id)
                .field("fields", &Redacted(fields))
                .field("unset", unset)
                .finish(),
            Self::Remove { menu, id } => f.debug_struct("Remove").field("menu", menu).field("id", id).finish(),
        }
    }
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The device said yes; `row` is what it says it stored.
    Done {
        /// The row after the write; `None` after a removal.
        row: Option<Row>,
    },
    /// The device said no and changed nothing.
    Rejected {
        /// The kind of refusal.
        class: ErrorClass,
        /// The device's own words, with secrets removed.
        detail: String,
    },
    /// The write provably never reached the device.
    NotSent(DeviceError),
    /// The write was sent and no trustworthy answer came back: only reading can tell.
    Unknown {
        /// What was seen instead of an answer.
        hint: String,
    },
}

/// The kinds of refusal a device gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The field does not exist in this menu of this version.
    UnknownField,
    /// The value is not accepted.
    InvalidValue,
    /// A referenced row does not exist.
    MissingReference,
    /// Such a row exists already.
    AlreadyExists,
    /// The row does not exist.
    NoSuchItem,
    /// The menu or command does not exist.
    NoSuchMenu,
    /// The login lacks a right.
    NotPermitted,
    /// The device mode forbids it.
    DeviceMode,
    /// The row is dynamic or built in.
    ReadOnlyRow,
    /// The device is busy with another command of this session.
    Busy,
    /// The device gave up on the command.
    Timeout,
    /// The device closed the session.
    SessionClosed,
    /// The request was not understood.
    Malformed,
    /// Anything else.
    Other,
}

/// Why the device could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No connection could be made.
    #[error("device {address} is unreachable: {cause}")]
    Unreachable {
        /// Where the device was looked for.
        address: String,
        /// The transport's words.
        cause: String,
    },
    /// The connection ended or timed out before a whole answer came.
    #[error("device {address} gave no whole answer to {request}: {cause}")]
    NoAnswer {
        /// Where the device was asked.
        address: String,
        /// What was asked.
        request: String,
        /// The transport's words.
        cause: String,
    },
    /// The device refused to answer.
    #[error("device refused {request}: {detail} ({class:?})")]
    Refused {
        /// What was asked.
        request: String,
        /// The kind of refusal.
        class: ErrorClass,
        /// The device's own words.
        detail: String,
    },
    /// The answer could not be understood.
    #[error("device answered {request} with something unreadable: {cause}")]
    Malformed {
        /// What was asked.
        request: String,
        /// What was wrong with the answer.
        cause: String,
    },
}

impl DeviceError {
    /// Returns whether asking again later can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { class, .. } => {
                matches!(class, ErrorClass::Busy | ErrorClass::Timeout | ErrorClass::SessionClosed)
            }
            Self::Malformed { .. } => false,
        }
    }
}

/// One managed device.
///
/// # Cancel safety
///
/// A dropped `write` may have reached the device: treat it as [`WriteOutcome::Unknown`].
#[async_trait]
pub trait Device: Send + Sync {
    /// Reads identity, version and serial number.
    async fn facts(&self) -> Result<DeviceFacts, DeviceError>;
    /// Reads all rows of a menu in the device's order; a menu of one row gives one row without an id.
    async fn list(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError>;
    /// Reads one row; `None` means it does not exist.
    async fn get(&self, menu: &MenuPath, id: &RowId) -> Result<Option<Row>, DeviceError>;
    /// Performs one write and says which of the four things happened.
    async fn write(&self, op: &WriteOp) -> WriteOutcome;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_secret() {
        let fields = RawFields::from([
            ("name".into(), "wg0".into()),
            ("private-key".into(), "canary".into()),
            ("security.passphrase".into(), "canary".into()),
        ]);
        let row = Row { id: None, fields: fields.clone() };
        let add = WriteOp::Add { menu: "/interface/wireguard".parse().unwrap(), fields };
        let shown = format!("{row:?} {add:?}");
        assert!(shown.contains("wg0") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn a_menu_path_is_parsed_strictly() {
        for good in ["/ip/address", "/interface/wireguard/peers", "/ip/dhcp-server"] {
            assert_eq!(good.parse::<MenuPath>().unwrap().to_string(), good);
        }
        for bad in ["", "/", "ip/address", "/ip/address/", "/ip//address", "/../etc", "/ip address", "/IP"] {
            assert!(bad.parse::<MenuPath>().is_err(), "{bad:?} was accepted");
        }
    }
}
