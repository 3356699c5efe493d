//! The number that decides which of two holders came later.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A number that grows with every lease granted, across processes, restarts, reboots and a deleted run directory.
///
/// A database that has committed a write under a token refuses every lower one for the same keys
/// ([`crate::fence::check`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(NonZeroU64);

impl FencingToken {
    /// The first one.
    #[cfg(feature = "postgres")]
    pub(crate) const MIN: Self = Self(NonZeroU64::MIN);

    /// Takes a number; `None` for 0 and for numbers SQLite cannot store.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number > i64::MAX as u64 {
            return None;
        }
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Returns the number as SQLite stores it.
    pub(crate) fn to_sql(self) -> i64 {
        i64::try_from(self.0.get()).unwrap_or(i64::MAX)
    }

    /// Reads a number back from a column.
    pub(crate) fn from_sql(number: i64) -> Result<Self, Error> {
        u64::try_from(number)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| Error::Corrupt { what: "fencing token", detail: number.to_string() })
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_numbers_beyond_sqlite_are_no_tokens() {
        assert!(FencingToken::new(0).is_none());
        assert!(FencingToken::new(u64::MAX).is_none());
        assert!(matches!(FencingToken::from_sql(-1), Err(Error::Corrupt { .. })));
        let largest = FencingToken::new(i64::MAX as u64).unwrap();
        assert_eq!(FencingToken::from_sql(largest.to_sql()).unwrap(), largest);
    }
}
