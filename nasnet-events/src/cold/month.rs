//! Which file a frame belongs to. Pure.

use std::fmt;
use std::str::FromStr;

use nasnet_dbmanager::ClockQuality;
use time::OffsetDateTime;

use crate::event::Recorded;

const PREFIX: &str = "events-";
const SUFFIX: &str = ".jsonl.zst";

/// A file of the cold tier, ordered as its frames are: files of a trusted month after those without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FileName {
    /// No event with a trusted clock is known yet: epoch, and part as for a month.
    Unsynced(u32, u16),
    /// Year, month and part: 1, or more when a file of this name is somebody else's.
    Month(u16, u8, u16),
}

impl FileName {
    /// The file for a frame: the month of its last event with a trusted clock, never earlier than that of the current
    /// file, so that a clock that went back does not scatter the order.
    ///
    /// `today` is the month now, when that clock is trusted. Nothing was recorded after it: an event that says so was
    /// recorded while the clock was wrong, and a file named by such an event is not gone on with.
    pub(crate) fn of(events: &[Recorded], current: Option<Self>, today: Option<Self>) -> Self {
        let plausible = |month: &Self| today.is_none_or(|today| month.month() <= today.month());
        let trusted = events.iter().rev().filter(|event| event.quality == ClockQuality::Synced);
        let own = trusted.filter_map(|event| Self::of_wall_ms(event.wall_ms)).find(plausible);
        let current = current.filter(|current| matches!(current, Self::Month(..)) && plausible(current));
        let epoch = events.last().map_or(0, |event| event.position.epoch);
        own.max(current).unwrap_or(Self::Unsynced(epoch, 1))
    }

    /// The file of an instant.
    pub(crate) fn of_wall_ms(wall_ms: i64) -> Option<Self> {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(wall_ms) * 1_000_000).ok()?;
        Some(Self::Month(u16::try_from(time.year()).ok()?, u8::from(time.month()), 1))
    }

    const fn month(self) -> Option<(u16, u8)> {
        match self {
            Self::Unsynced(..) => None,
            Self::Month(year, month, _) => Some((year, month)),
        }
    }

    /// The file to take when this one is somebody else's, `None` when there is no other.
    pub(crate) fn next_part(self) -> Option<Self> {
        match self {
            Self::Unsynced(epoch, part) => Some(Self::Unsynced(epoch, part.checked_add(1)?)),
            Self::Month(year, month, part) => Some(Self::Month(year, month, part.checked_add(1)?)),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsynced(epoch, 1) => write!(f, "{PREFIX}unsynced-{epoch}{SUFFIX}"),
            Self::Unsynced(epoch, part) => write!(f, "{PREFIX}unsynced-{epoch}.{part}{SUFFIX}"),
            Self::Month(year, month, 1) => write!(f, "{PREFIX}{year:04}-{month:02}{SUFFIX}"),
            Self::Month(year, month, part) => write!(f, "{PREFIX}{year:04}-{month:02}.{part}{SUFFIX}"),
        }
    }
}

impl FromStr for FileName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let stem = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX)).ok_or(())?;
        let (first, second) = stem.split_once('-').ok_or(())?;
        let (second, part) = second.split_once('.').unwrap_or((second, "1"));
        let part = part.parse().map_err(drop)?;
        let parsed = if first == "unsynced" {
            Self::Unsynced(second.parse().map_err(drop)?, part)
        } else {
            let month = second.parse().ok().filter(|month| (1..=12).contains(month)).ok_or(())?;
            Self::Month(first.parse().map_err(drop)?, month, part)
        };
        // Only the one spelling this crate writes.
        if parsed.to_string() == name { Ok(parsed) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;
    use crate::arbitrary;

    const NOVEMBER_2026_MS: i64 = 1_795_000_000_000;

    fn events(clock: &[(i64, ClockQuality)]) -> Vec<Recorded> {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut events = arbitrary::events(clock.len()..clock.len() + 1).new_tree(&mut runner).unwrap().current();
        for (event, (wall_ms, quality)) in events.iter_mut().zip(clock) {
            (event.wall_ms, event.quality) = (*wall_ms, *quality);
        }
        events
    }

    #[test]
    fn the_last_trusted_clock_names_the_month() {
        use ClockQuality::{Synced, Unsynced};
        let frame = events(&[(0, Synced), (NOVEMBER_2026_MS, Synced), (i64::MAX, Unsynced)]);
        assert_eq!(FileName::of(&frame, None, None).to_string(), "events-2026-11.jsonl.zst");
    }

    #[test]
    fn a_clock_that_went_back_does_not_open_an_earlier_file() {
        let frame = events(&[(0, ClockQuality::Synced)]);
        assert_eq!(FileName::of(&frame, Some(FileName::Month(2026, 11, 2)), None), FileName::Month(2026, 11, 2));
        assert_eq!(FileName::of(&frame, Some(FileName::Unsynced(3, 1)), None), FileName::Month(1970, 1, 1));
    }

    #[test]
    fn without_a_trusted_clock_the_file_is_named_by_the_epoch() {
        let frame = events(&[(NOVEMBER_2026_MS, ClockQuality::Unsynced)]);
        assert_eq!(FileName::of(&frame, None, None).to_string(), "events-unsynced-7.jsonl.zst");
        assert_eq!(FileName::of(&frame, Some(FileName::Month(2026, 1, 1)), None), FileName::Month(2026, 1, 1));
    }

    #[test]
    fn a_clock_that_was_far_ahead_names_no_file_once_it_is_known_to_have_been_wrong() {
        use ClockQuality::Synced;
        let today = FileName::of_wall_ms(NOVEMBER_2026_MS);
        let ahead = NOVEMBER_2026_MS + 73 * 365 * 86_400_000;
        let frame = events(&[(NOVEMBER_2026_MS - 40 * 86_400_000, Synced), (ahead, Synced)]);
        assert_eq!(FileName::of(&frame, None, today), FileName::Month(2026, 10, 1));
        let wrong = FileName::of(&frame, None, FileName::of_wall_ms(ahead));
        assert!(matches!(wrong, FileName::Month(2099, ..)), "{wrong}");
        assert_eq!(FileName::of(&frame, Some(wrong), today), FileName::Month(2026, 10, 1));
        assert_eq!(FileName::of(&frame[1..], Some(wrong), today), FileName::Unsynced(7, 1));
    }

    #[test]
    fn other_files_are_left_alone() {
        for name in [
            "events-2026-11.1.jsonl.zst",
            "events-unsynced-7.1.jsonl.zst",
            "events-unsynced-7.02.jsonl.zst",
            "events-2026-11.02.jsonl.zst",
            "events-2026-13.jsonl.zst",
            "events-2026-1.jsonl.zst",
            "events-2026-11.jsonl",
            "notes.txt",
            "",
        ] {
            assert_eq!(name.parse::<FileName>(), Err(()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_come_back(year in 0..10_000_u16, month in 1..=12_u8, part in 1..u16::MAX, epoch: u32) {
            for name in [FileName::Month(year, month, part), FileName::Unsynced(epoch, part)] {
                prop_assert_eq!(name.to_string().parse::<FileName>(), Ok(name));
            }
        }
    }
}
