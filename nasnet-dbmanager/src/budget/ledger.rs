//! The ledger: what was written to flash, gathered in this process and added up in `runtime.db` for all.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use super::{BudgetLevel, CHECKPOINT, Charge, DAY_MS, EARLIER, FlashBudget, FlashReport, OPENING};
use crate::clock::{Clock, Now};
use crate::database::Database;
use crate::driver::during;
use crate::error::Error;
use crate::id::Cause;
use crate::observe;
use crate::schema::{FileKind, Migration, SchemaSet};
use crate::system::{SystemDb, counters, settings};
use crate::vfs::Written;

const SETTLE: Cause = Cause::new("flash-ledger").critical();
const SAVE: Cause = Cause::new("flash-ledger-save");

/// The counter that keeps ids growing when the clock went back while the program was down.
pub(crate) const ULID_HIGH_WATER: &str = "ulid_high_water_ms";

/// Where the day's sum is saved in `system.db`.
const SAVED: (&str, &str) = ("flash", "ledger");
/// A sum that grew by less is not worth a write to flash.
const WORTH_SAVING: u64 = 256 * 1024;

const ADD: &str = "
    INSERT INTO flash_ledger (day, cause, bytes, dirty_4k_bytes, syncs) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (day, cause) DO UPDATE SET
        bytes = bytes + excluded.bytes, dirty_4k_bytes = dirty_4k_bytes + excluded.dirty_4k_bytes,
        syncs = syncs + excluded.syncs";
const CONTINUE: &str = "
    INSERT INTO flash_ledger (day, cause, bytes, dirty_4k_bytes, syncs)
    SELECT ?1, ?2, ?3, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM flash_ledger WHERE day = ?1)";
const FORGET: &str = "DELETE FROM flash_ledger WHERE day < ?1 - 7";
const SUM: &str = "SELECT COALESCE(SUM(bytes), 0) FROM flash_ledger WHERE day = ?1";
const LIST: &str = "
    SELECT cause, bytes, dirty_4k_bytes, syncs FROM flash_ledger WHERE day = ?1 ORDER BY bytes DESC, cause";

/// For the test of the query plans.
#[cfg(test)]
pub(crate) const STATEMENTS: &[(&str, &str)] = &[
    ("ledger::ADD", ADD),
    ("ledger::CONTINUE", CONTINUE),
    ("ledger::FORGET", FORGET),
    ("ledger::SUM", SUM),
    ("ledger::LIST", LIST),
];

/// Returns the tables of the ledger.
pub(crate) fn schema_set() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "flash_ledger",
        up: include_str!("../../migrations/flash/0001_flash_ledger.up.sql"),
        down: include_str!("../../migrations/flash/0001_flash_ledger.down.sql"),
    };
    SchemaSet::new("flash", FileKind::Runtime, vec![first])
}

/// The sum of a day as it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    day: i64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    bytes: u64,
    dirty_4k_bytes: u64,
    syncs: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.dirty_4k_bytes += other.dirty_4k_bytes;
        self.syncs += other.syncs;
    }
}

/// What this process wrote and has not yet added to the table.
#[derive(Debug)]
pub(crate) struct Ledger {
    budget: FlashBudget,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held while adding to the table: of two at once, the one that ends last may know less.
    settling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    charges: BTreeMap<&'static str, Sum>,
    /// Bytes being added to the table: no longer in `charges`, not yet in `spent`.
    settling: u64,
    /// The day's sum of all processes when it was last added up.
    spent: u64,
    /// What each file had written when it was last charged.
    charged: HashMap<PathBuf, Written>,
    saved: Option<Saved>,
    /// The newest id that is saved.
    saved_id_ms: u64,
}

impl Ledger {
    pub(crate) fn new(budget: FlashBudget, clock: Arc<dyn Clock>) -> Self {
        Self { budget, clock, state: Mutex::default(), settling: tokio::sync::Mutex::default() }
    }

    /// Charges what a file has written since it was last charged: what reached the database file itself to the
    /// checkpoint that moved it there, the rest evenly to the causes.
    pub(crate) fn charge(&self, kind: FileKind, path: &Path, written: Written, causes: &[Cause]) {
        let mut state = self.state();
        let before = match state.charged.get_mut(path) {
            Some(before) => std::mem::replace(before, written),
            None => state.charged.insert(path.to_owned(), written).unwrap_or_default(),
        };
        let new = written - before;
        if new == Written::default() {
            return;
        }
        if causes.is_empty() {
            let all = Sum { bytes: new.bytes, dirty_4k_bytes: new.dirty_4k_bytes, syncs: new.syncs };
            state.charges.entry(OPENING).or_default().add(all);
            observe::wrote(Some(kind), OPENING, all.bytes);
            return;
        }
        // The page count of a file is its bytes again when whole pages are moved.
        let moved = Sum { bytes: new.db_bytes, dirty_4k_bytes: new.db_bytes.min(new.dirty_4k_bytes), syncs: 0 };
        if moved.bytes > 0 {
            state.charges.entry(CHECKPOINT).or_default().add(moved);
            observe::wrote(Some(kind), CHECKPOINT, moved.bytes);
        }
        let rest = [new.bytes - new.db_bytes, new.dirty_4k_bytes - moved.dirty_4k_bytes, new.syncs];
        let count = causes.len() as u64;
        for (number, cause) in (0_u64..).zip(causes) {
            // What does not divide goes to the first.
            let [bytes, dirty_4k_bytes, syncs] = rest.map(|sum| sum / count + u64::from(number < sum % count));
            state.charges.entry(cause.as_str()).or_default().add(Sum { bytes, dirty_4k_bytes, syncs });
            observe::wrote(Some(kind), cause.as_str(), bytes);
        }
    }

    /// Charges what a checkpoint asked for by itself wrote.
    pub(crate) fn charge_checkpoint(&self, kind: FileKind, path: &Path, written: Written) {
        self.charge(kind, path, written, &[Cause::new(CHECKPOINT)]);
    }

    /// Charges a file that was written as a whole, past SQLite.
    pub(crate) fn charge_file(&self, cause: &'static str, bytes: u64) {
        const PAGE: u64 = 4096;
        let sum = Sum { bytes, dirty_4k_bytes: bytes.div_ceil(PAGE) * PAGE, syncs: 1 };
        self.state().charges.entry(cause).or_default().add(sum);
        observe::wrote(None, cause, bytes);
    }

    /// Tells how far the budget is used up, as of the last second.
    pub(crate) fn level(&self) -> BudgetLevel {
        let spent = {
            let state = self.state();
            state.spent.saturating_add(state.settling).saturating_add(bytes_of(&state.charges))
        };
        self.budget.level(spent, day_of(&self.clock.now()).1)
    }

    /// Continues the day where an earlier boot left it.
    pub(crate) async fn resume(&self, system: &SystemDb, runtime: &Database, now: &Now) -> Result<(), Error> {
        let saved = system.settings().get(SAVED.0, SAVED.1).await?;
        let saved = saved.and_then(|setting| serde_json::from_value::<Saved>(setting.value).ok());
        let saved_id_ms = system.counters().get(ULID_HIGH_WATER).await?;
        {
            let mut state = self.state();
            (state.saved, state.saved_id_ms) = (saved, saved_id_ms);
        }
        let (day, _) = day_of(now);
        if let Some(saved) = saved.filter(|saved| saved.day == day && saved.bytes > 0 && !runtime.is_read_only()) {
            let bytes = stored(saved.bytes);
            runtime
                .write(SETTLE, move |conn| {
                    Box::pin(async move {
                        let what = during("continue the flash ledger");
                        sqlx::query(CONTINUE).bind(day).bind(EARLIER).bind(bytes).execute(conn).await.map_err(what)?;
                        Ok::<_, Error>(())
                    })
                })
                .await?;
        }
        self.settle(runtime, now).await
    }

    /// Adds what this process wrote to the table, and learns what the others did.
    pub(crate) async fn settle(&self, runtime: &Database, now: &Now) -> Result<(), Error> {
        let _settling = self.settling.lock().await;
        let charges = {
            let mut state = self.state();
            let charges = std::mem::take(&mut state.charges);
            state.settling += bytes_of(&charges);
            charges
        };
        let (day, _) = day_of(now);
        let adding: Vec<_> = charges.iter().map(|(cause, sum)| (*cause, *sum)).collect();
        let added = if charges.is_empty() || runtime.is_read_only() {
            runtime.read(SETTLE, move |conn| Box::pin(sum(conn, day))).await
        } else {
            runtime.write(SETTLE, move |conn| Box::pin(async move { add(conn, day, &adding).await })).await
        };
        match added {
            Ok(spent) => {
                let mut state = self.state();
                // All that was ever being added is in it: a caller who went away left a write that was queued before.
                (state.spent, state.settling) = (spent, 0);
                Ok(())
            }
            Err(error) => {
                // Not added, so it is still to be.
                let mut state = self.state();
                state.settling = state.settling.saturating_sub(bytes_of(&charges));
                for (cause, sum) in charges {
                    state.charges.entry(cause).or_default().add(sum);
                }
                Err(error)
            }
        }
    }

    /// Saves the day's sum where it outlives the boot, when it is worth a write, and the newest id with it; an id that
    /// is a day ahead of the saved one is worth a write of its own.
    pub(crate) async fn save(&self, system: &SystemDb, now: &Now, newest_id_ms: u64) -> Result<(), Error> {
        let (day, _) = day_of(now);
        let new = Saved { day, bytes: self.state().spent };
        let worth_it = match self.state().saved {
            Some(saved) if saved.day == day => new.bytes >= saved.bytes.saturating_add(WORTH_SAVING),
            _ => new.bytes >= WORTH_SAVING,
        };
        let saved_id_ms = self.state().saved_id_ms;
        if !worth_it && newest_id_ms < saved_id_ms.saturating_add(DAY_MS.unsigned_abs()) {
            return Ok(());
        }
        let (value, at) = (settings::encode(&new)?, *now);
        let written: Result<(), Error> = system
            .write(SAVE, move |conn| {
                Box::pin(async move {
                    if worth_it {
                        settings::put(conn, SAVED.0, SAVED.1, &value, 1, &at).await?;
                    }
                    counters::raise(conn, ULID_HIGH_WATER, newest_id_ms).await
                })
            })
            .await;
        written?;
        let mut state = self.state();
        state.saved_id_ms = newest_id_ms;
        if worth_it {
            state.saved = Some(new);
        }
        Ok(())
    }

    /// Returns what all processes wrote today.
    pub(crate) async fn report(&self, runtime: &Database, now: &Now) -> Result<FlashReport, Error> {
        self.settle(runtime, now).await?;
        let (day, day_ms) = day_of(now);
        let charges: Vec<Charge> = runtime.read(SETTLE, move |conn| Box::pin(list(conn, day))).await?;
        let spent = charges.iter().map(|charge| charge.bytes).sum();
        let level = self.budget.level(spent, day_ms);
        Ok(FlashReport { day, spent, left: self.budget.left(spent, day_ms), level, charges })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(charges: &BTreeMap<&'static str, Sum>) -> u64 {
    charges.values().map(|sum| sum.bytes).sum()
}

/// The day of a moment, and the milliseconds of it that are over.
fn day_of(now: &Now) -> (i64, u64) {
    (now.wall_ms.div_euclid(DAY_MS), now.wall_ms.rem_euclid(DAY_MS).unsigned_abs())
}

fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn add(conn: &mut SqliteConnection, day: i64, charges: &[(&'static str, Sum)]) -> Result<u64, Error> {
    let what = during("add to the flash ledger");
    for (cause, sum) in charges {
        sqlx::query(ADD)
            .bind(day)
            .bind(*cause)
            .bind(stored(sum.bytes))
            .bind(stored(sum.dirty_4k_bytes))
            .bind(stored(sum.syncs))
            .execute(&mut *conn)
            .await
            .map_err(&what)?;
    }
    sqlx::query(FORGET).bind(day).execute(&mut *conn).await.map_err(&what)?;
    sum(conn, day).await
}

async fn sum(conn: &mut SqliteConnection, day: i64) -> Result<u64, Error> {
    let sum: i64 = sqlx::query_scalar(SUM).bind(day).fetch_one(conn).await.map_err(during("read the flash ledger"))?;
    Ok(sum.unsigned_abs())
}

async fn list(conn: &mut SqliteConnection, day: i64) -> Result<Vec<Charge>, Error> {
    let what = during("read the flash ledger");
    let rows = sqlx::query(LIST).bind(day).fetch_all(conn).await.map_err(&what)?;
    let number = |row: &sqlx::sqlite::SqliteRow, column: &str| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
    let charge = |row: &sqlx::sqlite::SqliteRow| {
        Ok(Charge {
            cause: row.try_get("cause")?,
            bytes: number(row, "bytes")?,
            dirty_4k_bytes: number(row, "dirty_4k_bytes")?,
            syncs: number(row, "syncs")?,
        })
    };
    rows.iter().map(charge).collect::<Result<_, sqlx::Error>>().map_err(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Cause = Cause::new("a");
    const B: Cause = Cause::new("b");

    fn written(db: u64, wal: u64, syncs: u64) -> Written {
        Written { bytes: db + wal, db_bytes: db, wal_bytes: wal, syncs, ..Written::default() }
    }

    fn charged_in(ledger: &Ledger) -> Vec<(&'static str, u64)> {
        ledger.state().charges.iter().map(|(cause, sum)| (*cause, sum.bytes)).collect()
    }

    #[test]
    fn a_shared_commit_is_split_and_nothing_gets_lost() {
        let ledger = Ledger::new(FlashBudget::UNLIMITED, Arc::new(crate::clock::ManualClock::new(0)));
        let path = Path::new("/f");
        ledger.charge(FileKind::System, path, written(10, 0, 0), &[]);
        ledger.charge(FileKind::System, path, written(10, 101, 1), &[A, B]);
        ledger.charge(FileKind::System, path, written(110, 101, 1), &[A]);
        ledger.charge(FileKind::System, path, written(110, 201, 2), &[B]);
        assert_eq!(charged_in(&ledger), [("a", 51), ("b", 150), ("checkpoint", 100), ("open", 10)]);
        ledger.charge_checkpoint(FileKind::System, path, written(150, 201, 3));
        assert_eq!(charged_in(&ledger).iter().map(|(_, bytes)| bytes).sum::<u64>(), 351);
    }
}
