//! What a caller believes about a stream when it appends to it.

use std::fmt;

/// The version a stream must be at for an append to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Any version, also none.
    Any,
    /// The stream holds no event yet.
    Unwritten,
    /// The stream holds at least one event.
    Exists,
    /// The stream is at exactly this version.
    Exact(u64),
}

impl Expected {
    /// True when a stream at `version` (0 = unwritten) satisfies the expectation.
    #[must_use]
    pub const fn holds_at(self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Unwritten => version == 0,
            Self::Exists => version > 0,
            Self::Exact(expected) => version == expected,
        }
    }

    /// The version after which the caller has seen nothing; a conflict lists what came later.
    pub(crate) const fn seen_version(self, actual: u64) -> u64 {
        match self {
            Self::Exact(version) => version,
            Self::Unwritten => 0,
            Self::Any | Self::Exists => actual,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any version"),
            Self::Unwritten => f.write_str("an unwritten stream"),
            Self::Exists => f.write_str("an existing stream"),
            Self::Exact(version) => write!(f, "version {version}"),
        }
    }
}
