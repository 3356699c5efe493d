//! Replaces durable rows that have grown old by compressed segments, in the transaction that removes them.

use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{Cause, ClockQuality, Now, Scope};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::chain::{self, Digest};
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::position::Position;
use crate::shared::FlushTurn;
use crate::store::{EventStore, blocking};
use crate::warm::bodies;
use crate::warm::dictionary::{self, Dictionary};
use crate::warm::rows::{self, Stored};
use crate::warm::segment::{self, Lane, Tail};

/// It gives back more than it takes, but takes first.
const SEAL: Cause = Cause::new("event-seal").critical();
/// Rows of one segment at most, and from how many on a segment pays.
const SEGMENT_EVENTS_MAX: u32 = 512;
const SEGMENT_EVENTS_MIN: usize = 32;
/// Bytes of bodies in one segment at most, one event aside: it is put together in memory.
const SEGMENT_BYTES_MAX: i64 = 8 << 20;
/// Segments of one scope in one run.
const STEPS_MAX: usize = 64;

const FITTING: &str = "SELECT COUNT(*), COALESCE(SUM(bytes <= ?4), 0) FROM (SELECT SUM(bytes) OVER (ORDER BY pos) AS bytes FROM \
     (SELECT pos, octet_length(body) AS bytes FROM event_rows WHERE pos > ?1 AND pos <= ?2 ORDER BY pos LIMIT ?3))";
const BEFORE: &str = "SELECT digest FROM (SELECT pos, digest FROM event_rows WHERE pos < ?1 \
     UNION ALL SELECT pos, digest FROM event_chain WHERE lane = 'rows' AND pos < ?1) ORDER BY pos DESC LIMIT 1";
const MARK: &str = "INSERT INTO event_retained (what, through_pos) SELECT -4, ?1 \
     WHERE NOT EXISTS (SELECT 1 FROM event_retained WHERE what = -4 AND through_pos >= ?1) \
     ON CONFLICT (what) DO UPDATE SET through_pos = excluded.through_pos";
const REMOVE: &str = "DELETE FROM event_rows WHERE pos IN (SELECT value FROM json_each(?1))";

/// What a sealing did.
#[derive(Debug, Default)]
pub struct SealReport {
    /// Segments written.
    pub segments: u64,
    /// Rows in them, which are rows no more.
    pub events: u64,
    /// Scopes whose database could not be read or written: nothing of them has changed.
    pub failed: Vec<(Scope, Error)>,
}

/// How many of the oldest rows are ripe to be sealed, of `rows` in the order of their positions and `total` in all.
///
/// Few rows are not worth a segment, unless they are so long that no more fit into it: then they are `full`.
///
/// A row is old by boot time; one of an earlier boot by the wall clock, when that could be trusted then and now, or once
/// this boot alone has lasted long enough. Too many rows are sealed whatever their age.
fn ripe(rows: &[&Recorded], full: bool, total: u64, now: &Now, keep: Duration, rows_max: u64) -> usize {
    let is_old = |event: &&&Recorded| match now.age_of(event.boot, event.boottime_ms) {
        Some(age) => age >= keep,
        None => {
            let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            let trusted = event.quality == ClockQuality::Synced && now.quality == ClockQuality::Synced;
            let by_wall = trusted && now.wall_ms.saturating_sub(event.wall_ms) >= keep_ms;
            by_wall || u128::from(now.boottime_ms) >= keep.as_millis()
        }
    };
    let old = rows.iter().take_while(is_old).count();
    let over = usize::try_from(total.saturating_sub(rows_max)).unwrap_or(usize::MAX);
    let enough = |count: usize| if count >= SEGMENT_EVENTS_MIN || (full && count == rows.len()) { count } else { 0 };
    // Too many are sealed down to the half, so that the next row does not ask for it again.
    let crowded = if over == 0 { 0 } else { over.saturating_add(usize::try_from(rows_max / 2).unwrap_or(0)) };
    enough(old.max(crowded).min(rows.len()))
}

/// The longest run of whole rows from the first one on that belong together in the chain, and the chain before it.
fn run_of(mut before: Digest, rows: Vec<Stored>) -> Vec<Recorded> {
    let mut run = Vec::new();
    for row in rows {
        let Ok(event) = row.event else { break };
        let after = chain::link(before, chain::leaf(&event));
        if row.digest != Some(after) {
            break;
        }
        before = after;
        run.push(event);
    }
    run
}

async fn before(conn: &mut SqliteConnection, position: Position) -> Result<Digest, Error> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(BEFORE).bind(position.to_key()?).fetch_optional(conn).await?;
    let digest = found.map(|bytes| Digest::from_slice(&bytes).ok_or("digest has another length"));
    digest.transpose().map_err(|why| Error::corrupt("event_chain", why)).map(|found| found.unwrap_or(Digest::GENESIS))
}

/// What the next segment is made of.
struct Step {
    run: Vec<Recorded>,
    before: Digest,
    dictionary: Option<Dictionary>,
    /// It is as long as a segment may be.
    is_full: bool,
    /// Rows that are damaged, or stand in no chain, are passed over and stay as they are.
    after: Position,
}

impl EventStore {
    /// Seals rows that are older than [`crate::EventOptions::seal_after`], and the oldest of more than
    /// [`crate::EventOptions::rows_max`], scope by scope. The events stay where they were in the order and read as before;
    /// their ids are no longer remembered once the store is opened again. Damaged rows stay as they are.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db or the registry cannot be read. A scope that fails is in the report and does not
    /// stop the others.
    ///
    /// # Cancel safety
    /// Safe: a segment is written and its rows removed in one transaction.
    pub async fn seal(&self) -> Result<SealReport, Error> {
        let mut report = SealReport::default();
        let turn = self.shared().flush_turn().await;
        for scope in epoch::scopes(&self.shared().manager).await? {
            if let Err(error) = self.seal_scope(&turn, &scope, &mut report).await {
                report.failed.push((scope, error));
            }
        }
        Ok(report)
    }

    async fn seal_scope(&self, turn: &FlushTurn, scope: &Scope, report: &mut SealReport) -> Result<(), Error> {
        let shared = Arc::clone(self.shared());
        let database = shared.manager.scope(scope).await?;
        // A good moment: nothing is flushed or sealed meanwhile.
        bodies::remove_unnamed(&database, bodies::UNNAMED_KEPT).await?;
        let mut after = Position::START;
        for _ in 0..STEPS_MAX {
            // Rows of a transaction that is not resolved say how it ended, so they stay.
            let resolved = self.view().await?.resolved();
            let (own, now) = (scope.clone(), shared.manager.now());
            let (keep, rows_max) = (shared.options.seal_after, shared.options.rows_max);
            let step = database
                .read(SEAL, move |conn| {
                    Box::pin(async move { step(conn, &own, (after, resolved), &now, keep, rows_max).await })
                })
                .await?;
            let Some(step) = step else { return Ok(()) };
            after = step.after;
            let (Some(first), Some(last)) = (step.run.first(), step.run.last()) else { continue };
            if step.run.len() < SEGMENT_EVENTS_MIN / 2 && !step.is_full {
                continue;
            }
            let (first, last) = (first.position, last.position);
            let keys = step.run.iter().map(|event| event.position.to_key()).collect::<Result<Vec<i64>, _>>()?;
            let keys_json = serde_json::to_string(&keys).map_err(|error| Error::corrupt("positions", error))?;
            let ids: Vec<Ulid> = step.run.iter().map(|event| event.id).collect();
            let (run, dictionary) = (step.run, step.dictionary);
            let prepared = blocking(move || segment::prepare(run, dictionary.as_ref())).await?;
            let events = prepared.events.len() as u64;
            let chained = step.before;
            let (annexes, turn) = (database.annexes().cloned(), Arc::clone(turn));
            let done = database
                .write(SEAL, move |conn| {
                    Box::pin(async move {
                        let _until_it_ends = turn;
                        // Another process may have sealed them, or retention removed some.
                        if before(conn, first).await? != chained || rows::count(conn, first, last).await? != events {
                            return Ok::<_, Error>(None);
                        }
                        let tail = Tail { digest: chained, ..Tail::EMPTY };
                        let annexes = annexes.as_ref();
                        let place =
                            segment::insert(conn, annexes, Lane::Sealed, &prepared, &tail, last, Position::START)
                                .await?;
                        sqlx::query(MARK).bind(last.to_key()?).execute(&mut *conn).await?;
                        let removed = sqlx::query(REMOVE).bind(keys_json).execute(&mut *conn).await?.rows_affected();
                        if removed == events {
                            Ok(Some(place))
                        } else {
                            Err(Error::corrupt("event_rows", format!("{removed} of {events} sealed rows were removed")))
                        }
                    })
                })
                .await?;
            let Some(place) = done else { return Ok(()) };
            bodies::confirm(database.annexes(), Lane::Sealed, place);
            shared.heads().note_sealed(&ids);
            report.segments += 1;
            report.events += events;
        }
        Ok(())
    }
}

/// Looks for the next rows to seal after a position.
async fn step(
    conn: &mut SqliteConnection,
    scope: &Scope,
    (after, resolved): (Position, Position),
    now: &Now,
    keep: Duration,
    rows_max: u64,
) -> Result<Option<Step>, Error> {
    let total = rows::totals(conn).await?.0;
    let (there, fitting): (i64, i64) = sqlx::query_as(FITTING)
        .bind(after.to_key_clamped())
        .bind(resolved.to_key_clamped())
        .bind(i64::from(SEGMENT_EVENTS_MAX))
        .bind(SEGMENT_BYTES_MAX)
        .fetch_one(&mut *conn)
        .await?;
    let limit = u32::try_from(fitting).unwrap_or(SEGMENT_EVENTS_MAX).max(1);
    let mut found = rows::page(conn, scope, (after, resolved), None, Order::Forwards, limit).await?;
    let is_full = fitting < there;
    let Some(first) = found.first() else { return Ok(None) };
    let (first, first_is_whole) = (first.position, first.event.is_ok());
    let events: Vec<&Recorded> = found.iter().filter_map(|row| row.event.as_ref().ok()).collect();
    let count = ripe(&events, is_full, total, now, keep, rows_max);
    if count == 0 {
        return Ok(None);
    }
    if !first_is_whole {
        return Ok(Some(Step {
            run: Vec::new(),
            before: Digest::GENESIS,
            dictionary: None,
            is_full: false,
            after: first,
        }));
    }
    found.truncate(count);
    let before = before(conn, first).await?;
    let run = run_of(before, found);
    let after = run.last().map_or(first, |event| event.position);
    Ok(Some(Step { run, before, dictionary: dictionary::newest(conn).await?, is_full, after }))
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::arbitrary;

    const DAY: Duration = Duration::from_secs(86_400);
    const DAY_MS: u64 = 86_400_000;

    fn drawn(count: usize) -> Vec<Recorded> {
        arbitrary::events(count..count + 1).new_tree(&mut TestRunner::deterministic()).unwrap().current()
    }

    #[test]
    fn rows_ripen_by_boot_time_and_never_because_the_clock_jumps() {
        let mut rows = drawn(64);
        let boot = rows[0].boot;
        for (number, row) in (0..).zip(&mut rows) {
            (row.boot, row.boottime_ms, row.wall_ms) = (boot, number * 60_000, 1_795_000_000_000);
            row.quality = ClockQuality::Synced;
        }
        let rows: Vec<&Recorded> = rows.iter().collect();
        let at = |boot, boottime_ms, wall_ms| Now { wall_ms, quality: ClockQuality::Synced, boot, boottime_ms };
        let count = |now| ripe(&rows, false, 64, &now, DAY, 512);
        let ahead = 1_795_000_000_000 + 56 * 365 * 86_400_000;
        assert_eq!(count(at(boot, 3_600_000, ahead)), 0, "a jump of 56 years ages nothing of this boot");
        assert_eq!(count(at(boot, DAY_MS + 39 * 60_000, 0)), 40);
        assert_eq!(count(at(boot, DAY_MS + 9 * 60_000, 0)), 0, "ten rows are not worth a segment");
        let other = nasnet_dbmanager::BootId::from_bytes([9; 16]);
        assert_eq!(count(at(other, 1_000, 1_795_000_000_000 + 3_600_000)), 0);
        assert_eq!(count(at(other, 1_000, 1_795_000_000_000 + 86_400_000)), 64);
        assert_eq!(count(at(other, DAY_MS, 0)), 64);
        assert_eq!(ripe(&rows, false, 600, &at(boot, 0, 0), DAY, 512), 64, "too many are sealed whatever their age");
        let few = |full| ripe(&rows[..5], full, 64, &at(boot, 2 * DAY_MS, 0), DAY, 512);
        assert_eq!((few(false), few(true)), (0, 5), "few are worth a segment when no more fit into it");
    }
}
