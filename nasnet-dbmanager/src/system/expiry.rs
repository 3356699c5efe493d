//! How old something is that was issued in this boot or another: pure rules.

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::column;
use crate::clock::{BootId, ClockQuality, Now};
use crate::error::Error;

/// The moment of issue and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Issue {
    pub(super) wall_ms: i64,
    pub(super) quality: ClockQuality,
    pub(super) boot: BootId,
    pub(super) uptime_ms: u64,
    /// `None` lasts for ever.
    pub(super) ttl_ms: Option<u64>,
}

/// What is known about an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    Expired,
    /// Neither clock reaches back to the issue.
    Untold,
}

impl Issue {
    pub(super) fn new(now: &Now, ttl: Option<Duration>) -> Self {
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1));
        Self { wall_ms: now.wall_ms, quality: now.quality, boot: now.boot, uptime_ms: now.boottime_ms, ttl_ms }
    }

    /// Within one boot the monotonic clock decides, whatever the wall clock does. Across boots both wall clocks must
    /// have been synced, and one that is behind the issue tells nothing.
    pub(super) fn age(&self, now: &Now) -> Age {
        let Some(ttl_ms) = self.ttl_ms else { return Age::Fresh };
        let passed = if now.boot == self.boot {
            now.boottime_ms.saturating_sub(self.uptime_ms)
        } else {
            if self.quality != ClockQuality::Synced || now.quality != ClockQuality::Synced {
                return Age::Untold;
            }
            let Ok(passed) = u64::try_from(now.wall_ms.saturating_sub(self.wall_ms)) else { return Age::Untold };
            passed
        };
        if passed >= ttl_ms { Age::Expired } else { Age::Fresh }
    }

    /// Reads the columns `issued_*` and `ttl_ms`.
    pub(super) fn decode(row: &SqliteRow) -> Result<Self, Error> {
        Ok(Self {
            wall_ms: row.try_get("issued_ms")?,
            quality: row.try_get::<&str, _>("issued_quality")?.parse()?,
            boot: BootId::from_bytes(column::bytes_16("boot id", row.try_get("issued_boot")?)?),
            uptime_ms: column::unsigned("uptime", row.try_get("issued_uptime_ms")?)?,
            ttl_ms: column::optional(row, "ttl_ms", |ttl: i64| column::unsigned("time to live", ttl))?,
        })
    }

    /// The time to live as a column holds it.
    pub(super) fn ttl_column(&self) -> Option<i64> {
        self.ttl_ms.map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX))
    }

    pub(super) fn uptime_column(&self) -> i64 {
        i64::try_from(self.uptime_ms).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn within_a_boot_only_the_monotonic_clock_counts() {
        let clock = ManualClock::new(1_800_000_000_000);
        let issue = Issue::new(&clock.now(), Some(HOUR));
        clock.set_wall_ms(9_000_000_000_000);
        assert_eq!(issue.age(&clock.now()), Age::Fresh, "the wall clock jumped ahead");
        clock.set_wall_ms(0);
        clock.advance(HOUR - Duration::from_millis(1));
        assert_eq!(issue.age(&clock.now()), Age::Fresh);
        clock.advance(Duration::from_millis(1));
        assert_eq!(issue.age(&clock.now()), Age::Expired, "the wall clock went back");
    }

    #[test]
    fn across_boots_only_synced_clocks_that_reach_back_count() {
        let clock = ManualClock::new(1_800_000_000_000);
        let issue = Issue::new(&clock.now(), Some(HOUR));
        clock.reboot();
        clock.set_wall_ms(1_800_000_000_000 + 1000);
        clock.set_quality(ClockQuality::Synced);
        assert_eq!(issue.age(&clock.now()), Age::Fresh);
        clock.set_wall_ms(1_800_000_000_000 + 3_600_000);
        assert_eq!(issue.age(&clock.now()), Age::Expired);
        clock.set_wall_ms(1_800_000_000_000 - 1);
        assert_eq!(issue.age(&clock.now()), Age::Untold);
        clock.set_wall_ms(1_800_000_000_000 + 1000);
        clock.set_quality(ClockQuality::Unsynced);
        assert_eq!(issue.age(&clock.now()), Age::Untold);
    }

    #[test]
    fn what_has_no_end_is_fresh_in_every_boot() {
        let clock = ManualClock::new(1_800_000_000_000);
        let issue = Issue::new(&clock.now(), None);
        clock.reboot();
        clock.set_wall_ms(5);
        assert_eq!(issue.age(&clock.now()), Age::Fresh);
    }
}
