//! Who wrote, and when people would say it was.

use serde::{Deserialize, Serialize};

/// A moment for people to read. Nothing is ever ordered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Milliseconds since 1970 by the clock of the box.
    pub unix_ms: i64,
    /// False when the clock had not been set yet, so the number may be years off.
    #[serde(default = "synced", skip_serializing_if = "is_synced")]
    pub synced: bool,
}

impl Timestamp {
    /// A moment read from a clock that is known to be set.
    pub const fn synced(unix_ms: i64) -> Self {
        Self { unix_ms, synced: true }
    }

    /// A moment read from a clock nobody has set since the box started.
    pub const fn unsynced(unix_ms: i64) -> Self {
        Self { unix_ms, synced: false }
    }
}

fn synced() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_synced(synced: &bool) -> bool {
    *synced
}

/// The mark every write leaves: when it happened and on whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// When.
    pub at: Timestamp,
    /// On whose behalf: a user, or a part of the system such as `import`.
    pub by: String,
}

impl Stamp {
    /// Makes a mark.
    pub fn new(at: Timestamp, by: impl Into<String>) -> Self {
        Self { at, by: by.into() }
    }
}
