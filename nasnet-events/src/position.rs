//! Where an event stands in the one order of the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Bits of the sequence number in the packed key.
const SEQ_BITS: u32 = 40;
const SEQ_MAX: u64 = (1 << SEQ_BITS) - 1;
const EPOCH_MAX: u32 = (1 << 23) - 1;

/// A place in the order of the whole store: the incarnation of the hot tier, then a sequence number inside it.
///
/// Orders by epoch, then by sequence number. Prints as `3:1042`. The first event of an epoch has sequence number 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Incarnation of hot.db; grows by one when it is created anew.
    pub epoch: u32,
    /// Sequence number inside the epoch, from 1.
    pub seq: u64,
}

impl Position {
    /// Before every event.
    pub const START: Self = Self { epoch: 0, seq: 0 };
    /// At or after every event a store can hold.
    pub const END: Self = Self { epoch: EPOCH_MAX, seq: SEQ_MAX };

    /// Makes a position.
    #[must_use]
    pub const fn new(epoch: u32, seq: u64) -> Self {
        Self { epoch, seq }
    }

    /// Packs the position into one ascending SQL integer.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the epoch needs more than 23 bits or the sequence number more than 40.
    pub(crate) fn to_key(self) -> Result<i64, Error> {
        if self.epoch > EPOCH_MAX || self.seq > SEQ_MAX {
            return Err(Error::Invalid {
                what: "position",
                value: self.to_string(),
                why: "epoch or sequence too large",
            });
        }
        Ok(self.to_key_clamped())
    }

    /// Packs a bound given by a caller: anything too large means "the end".
    pub(crate) fn to_key_clamped(self) -> i64 {
        let clamped = self.min(Self::END);
        let packed = (u64::from(clamped.epoch) << SEQ_BITS) | clamped.seq.min(SEQ_MAX);
        i64::try_from(packed).unwrap_or(i64::MAX)
    }

    /// Unpacks a key written by [`Position::to_key`]; `None` for a negative one.
    pub(crate) fn from_key(key: i64) -> Option<Self> {
        let packed = u64::try_from(key).ok()?;
        Some(Self { epoch: u32::try_from(packed >> SEQ_BITS).ok()?, seq: packed & SEQ_MAX })
    }

    /// The position directly before this one in key order.
    pub(crate) fn before(self) -> Self {
        Self::from_key(self.to_key_clamped() - 1).unwrap_or(Self::START)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid { what: "position", value: text.to_owned(), why: "expected EPOCH:SEQ" };
        let (epoch, seq) = text.split_once(':').ok_or_else(invalid)?;
        Ok(Self { epoch: epoch.parse().map_err(|_| invalid())?, seq: seq.parse().map_err(|_| invalid())? })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_and_come_back() {
        let positions =
            [Position::START, Position::new(1, 1), Position::new(1, SEQ_MAX), Position::new(2, 0), Position::END];
        for pair in positions.windows(2) {
            assert!(pair[0].to_key().unwrap() < pair[1].to_key().unwrap());
        }
        for position in positions {
            assert_eq!(Position::from_key(position.to_key().unwrap()), Some(position));
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
    }

    #[test]
    fn a_position_that_does_not_fit_the_key_is_refused() {
        assert!(Position::new(1, SEQ_MAX + 1).to_key().is_err());
        assert!(Position::new(EPOCH_MAX + 1, 0).to_key().is_err());
        assert_eq!(Position::from_key(-1), None);
        assert!("3-4".parse::<Position>().is_err());
    }
}
