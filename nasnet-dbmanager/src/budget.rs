//! The flash budget: how many bytes a day may reach flash, and which writes go without when they are used up.
//!
//! Every write to a database on flash is charged to the [cause](crate::Cause) of its operation; a transaction shared by
//! several is split evenly among them, and what checkpoints write is a cause of its own. Each process adds what it
//! counted to a table in `runtime.db` every second, so the budget is one for all of them.
//!
//! The meter sees what SQLite writes to databases, logs and journals: not the WAL index, not what the file system adds,
//! but the files of this crate outside of SQLite are charged as they are written: backups, markers, the reserve.

mod ledger;

#[cfg(test)]
pub(crate) use ledger::STATEMENTS;
pub(crate) use ledger::{Ledger, ULID_HIGH_WATER, schema_set};

use crate::id::Class;
use crate::options::Preset;

/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What operations on the connection of an opening or a closing wrote: creation, migration, recovery.
pub(crate) const OPENING: &str = "open";
/// What checkpoints wrote: pages that go from the log into the database.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// Files outside of SQLite, by what they are.
pub(crate) const BACKUP_FILES: &str = "backup-files";
/// The compressed databases of purged routers.
pub(crate) const RETIRED_FILES: &str = "retired-files";
/// The ballast for a full medium.
pub(crate) const RESERVE_FILE: &str = "reserve-file";
/// The markers of the data directory and of restores.
pub(crate) const MARKER_FILES: &str = "marker-files";
/// Databases that are put into place as files: new ones from their template, restored ones from a backup.
pub(crate) const PUT_IN_PLACE: &str = "put-in-place";
/// What was written today before the last boot.
pub(crate) const EARLIER: &str = "earlier-today";

/// How many bytes may reach flash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlashBudget {
    /// Bytes of a day, earned evenly over it.
    pub bytes_per_day: u64,
    /// Bytes a day begins with, so that work may come in bursts.
    pub burst: u64,
    /// The last bytes of what is earned are for critical writes.
    pub reserve_for_critical: u64,
}

impl FlashBudget {
    /// Sets no bound.
    pub const UNLIMITED: Self = Self { bytes_per_day: u64::MAX, burst: u64::MAX, reserve_for_critical: 0 };

    pub(crate) const fn of(preset: Preset) -> Self {
        const MIB: u64 = 1024 * 1024;
        match preset {
            Preset::RouterFlash => Self { bytes_per_day: 128 * MIB, burst: 64 * MIB, reserve_for_critical: 16 * MIB },
            Preset::Server => Self::UNLIMITED,
        }
    }

    /// Returns what may still be written, given what the day's writes are and how much of the day is over.
    pub fn left(&self, spent: u64, day_ms: u64) -> u64 {
        let day = u128::from(DAY_MS.unsigned_abs());
        let earned = u128::from(self.bytes_per_day) * u128::from(day_ms).min(day) / day;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX).saturating_add(self.burst);
        earned.saturating_sub(spent)
    }

    /// Tells how far the budget is used up.
    pub fn level(&self, spent: u64, day_ms: u64) -> BudgetLevel {
        match self.left(spent, day_ms) {
            0 => BudgetLevel::Overdrawn,
            left if left <= self.reserve_for_critical => BudgetLevel::Reserved,
            left if left / 2 <= self.reserve_for_critical && self.reserve_for_critical > 0 => BudgetLevel::Scarce,
            _ => BudgetLevel::Ample,
        }
    }
}

/// How far a flash budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetLevel {
    /// Everything is admitted.
    Ample,
    /// What is low goes without.
    Scarce,
    /// Only what is critical is admitted.
    Reserved,
    /// Only what is critical is admitted, and more was written than was to be.
    Overdrawn,
}

impl BudgetLevel {
    /// Tells whether writes of a class are admitted. What is critical always is.
    pub const fn admits(self, class: Class) -> bool {
        match (self, class) {
            (_, Class::Critical) | (Self::Ample, _) | (Self::Scarce, Class::Normal) => true,
            (Self::Scarce | Self::Reserved | Self::Overdrawn, _) => false,
        }
    }
}

/// What one cause wrote to flash in a day.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Charge {
    /// The name of the cause.
    pub cause: String,
    /// Bytes of all writes.
    pub bytes: u64,
    /// 4,096 for each distinct 4 KiB page dirtied between two syncs.
    pub dirty_4k_bytes: u64,
    /// Syncs.
    pub syncs: u64,
}

/// What all processes of a fleet wrote to flash today.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlashReport {
    /// The day, counted from 1970 by the wall clock.
    pub day: i64,
    /// Bytes of all writes.
    pub spent: u64,
    /// What may still be written now.
    pub left: u64,
    /// How far the budget is used up.
    pub level: BudgetLevel,
    /// By cause, the largest first.
    pub charges: Vec<Charge>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: FlashBudget = FlashBudget { bytes_per_day: 1000, burst: 100, reserve_for_critical: 50 };

    #[test]
    fn a_day_earns_evenly_from_its_burst_on() {
        let day = DAY_MS.unsigned_abs();
        assert_eq!(BUDGET.left(0, 0), 100);
        assert_eq!(BUDGET.left(0, day / 2), 600);
        assert_eq!(BUDGET.left(200, day), 900);
        assert_eq!(BUDGET.left(2000, day), 0);
    }

    #[test]
    fn classes_go_without_in_order_and_critical_never_does() {
        let levels = [(0, BudgetLevel::Scarce), (49, BudgetLevel::Scarce), (50, BudgetLevel::Reserved)];
        for (spent, level) in levels.into_iter().chain([(100, BudgetLevel::Overdrawn), (900, BudgetLevel::Overdrawn)]) {
            assert_eq!(BUDGET.level(spent, 0), level, "{spent}");
        }
        assert_eq!(BUDGET.level(0, DAY_MS.unsigned_abs()), BudgetLevel::Ample);
        let admitted =
            |level: BudgetLevel| [Class::Low, Class::Normal, Class::Critical].map(|class| level.admits(class));
        assert_eq!(admitted(BudgetLevel::Ample), [true, true, true]);
        assert_eq!(admitted(BudgetLevel::Scarce), [false, true, true]);
        assert_eq!(admitted(BudgetLevel::Reserved), [false, false, true]);
        assert_eq!(admitted(BudgetLevel::Overdrawn), [false, false, true]);
    }

    #[test]
    fn no_bound_is_never_used_up() {
        assert_eq!(FlashBudget::UNLIMITED.level(u64::MAX / 2, 0), BudgetLevel::Ample);
    }

    proptest! {
        #[test]
        fn more_writing_never_admits_more_and_more_time_never_less(
            spent in 0u64..3000, more in 0u64..3000, at in 0u64..86_400_000, later in 0u64..86_400_000,
        ) {
            prop_assert!(BUDGET.level(spent, at) <= BUDGET.level(spent + more, at));
            prop_assert!(BUDGET.level(spent, at.max(later)) <= BUDGET.level(spent, at.min(later)));
        }
    }
}
