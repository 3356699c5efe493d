//! Which incarnation of hot.db this is, and what became of the ones before.

use std::time::Duration;

use futures_util::future::join_all;
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{Cause, Database, DbManager, Scope};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::hot::log;
use crate::in_flight::{self, InFlight};
use crate::position::Position;
use crate::warm::segment;

/// Without it nothing can be appended, whatever its class.
const OPEN: Cause = Cause::new("event-epoch").critical();
/// Databases looked into at the same time.
const TOGETHER: usize = 4;
pub(crate) const COUNTER: &str = "event_epoch";
/// Past incarnations looked at when the record of their endings is missing.
const UNRECORDED_MAX: u32 = 16;

const ENDED: &str = "SELECT MAX(epoch) FROM event_epochs";
const LOST: &str = "SELECT epoch, after_seq FROM event_epochs WHERE ending = 'lost' ORDER BY epoch";
const RECORD: &str = "INSERT INTO event_epochs (epoch, ending, after_seq, wall_ms) VALUES (?1, ?2, ?3, ?4) \
     ON CONFLICT (epoch) DO UPDATE SET ending = excluded.ending, after_seq = excluded.after_seq, \
     wall_ms = excluded.wall_ms";
const NEWEST: &str = "SELECT MAX(pos) FROM (SELECT MAX(pos) AS pos FROM event_rows \
     UNION ALL SELECT * FROM (SELECT last_pos FROM event_segments ORDER BY first_pos DESC LIMIT 1) \
     UNION ALL SELECT * FROM (SELECT last_pos FROM event_sealed ORDER BY first_pos DESC LIMIT 1) \
     UNION ALL SELECT MAX(pos) FROM event_chain)";
const RESTORED: &str = "SELECT until_pos FROM event_restored WHERE one = 1";
const UNRECORD: &str = "DELETE FROM event_epochs WHERE epoch = ?1 AND ending = 'clean'";
const IS_CLEAN: &str = "SELECT COUNT(*) FROM event_epochs WHERE epoch = ?1 AND ending = 'clean'";

/// The hot tier of an epoch was lost before everything in it was safe.
///
/// Every event up to `after_seq` that was to outlive the hot tier is on flash. Later ones are there when their receipt
/// said `Synced`; the others are gone. Low events end with their hot tier by their class and are not counted as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailLost {
    /// The incarnation that was lost.
    pub epoch: u32,
    /// The last sequence number known to be safe.
    pub after_seq: u64,
}

/// The incarnation in use and the losses known.
pub(crate) struct Opened {
    pub(crate) epoch: u32,
    /// Uid of the hot.db that has this number.
    pub(crate) file: [u8; 16],
    pub(crate) losses: Vec<TailLost>,
}

/// Finds the incarnation of hot.db, giving it a number and recording how the last one ended when it is new.
///
/// The caller holds the lock that keeps other stores from doing the same.
pub(crate) async fn open(manager: &DbManager, in_flight: &InFlight) -> Result<Opened, Error> {
    let hot = manager.hot();
    let known = hot.read(OPEN, |conn| Box::pin(log::epoch(conn))).await?;
    let epoch = match known {
        Some(epoch) => {
            reopen(manager, epoch).await?;
            epoch
        }
        None => begin(manager, &hot, in_flight).await?,
    };
    let losses = manager.system().read(OPEN, |conn| Box::pin(losses(conn))).await?;
    Ok(Opened { epoch, file: hot.file_uid(), losses })
}

/// Numbers a new hot.db. Its number is written into it first and counted on flash then, before anything is appended: a
/// crash between the two leaves either a file whose number is still to be counted, or after a wipe a number that was
/// never used and is given again. Neither is taken for a loss.
async fn begin(manager: &DbManager, hot: &Database, in_flight: &InFlight) -> Result<u32, Error> {
    let traces = traces(manager, in_flight).await?;
    // An older system.db may have come back: a number that events have is never given again.
    let used = traces.iter().map(|trace| u64::from(trace.newest.epoch)).fold(0, u64::max);
    let reserved = manager.system().counters().get(COUNTER).await?.max(used) + 1;
    let too_many = || Error::Invalid { what: "epoch", value: reserved.to_string(), why: "too many incarnations" };
    let epoch = u32::try_from(reserved).map_err(|_| too_many())?;
    Position::new(epoch, 1).to_key().map_err(|_| too_many())?;

    let ended: Option<i64> = manager
        .system()
        .read(OPEN, |conn| Box::pin(async move { Ok::<_, Error>(sqlx::query_scalar(ENDED).fetch_one(conn).await?) }))
        .await?;
    let recorded = ended.and_then(|ended| u32::try_from(ended).ok()).unwrap_or(0);
    let first = (recorded + 1).max(epoch.saturating_sub(UNRECORDED_MAX)).max(1);
    if first < epoch {
        let wall_ms = manager.now().wall_ms;
        manager
            .system()
            .write(OPEN, move |conn| {
                Box::pin(async move {
                    for lost in first..epoch {
                        record(conn, lost, "lost", safe_through(&traces, lost), wall_ms).await?;
                    }
                    Ok::<_, Error>(())
                })
            })
            .await?;
        crate::observe::tails_lost(epoch - first);
    }
    hot.write(OPEN, move |conn| Box::pin(log::set_epoch(conn, epoch))).await?;
    manager.system().counters().raise(COUNTER, reserved).await?;
    Ok(epoch)
}

/// What the database of a scope shows of past incarnations.
struct Trace {
    /// The last position known to be safe, of all scopes.
    complete: Position,
    /// The last position of an event.
    newest: Position,
    /// It came from a backup: it lacks flushed events between the two.
    lacks: Option<(Position, Position)>,
}

/// The last number of an incarnation known to be safe. A database that came from a backup and was not flushed again since
/// makes what others claim untrue. Pure.
fn safe_through(traces: &[Trace], lost: u32) -> u64 {
    let of_lost = |at: Position| (at.epoch == lost).then_some(at.seq);
    let claimed = traces.iter().filter_map(|trace| of_lost(trace.complete)).max().unwrap_or(0);
    let lacking = traces.iter().filter_map(|trace| trace.lacks).filter(|(_, until)| until.epoch == lost);
    lacking.map(|(after, _)| of_lost(after).unwrap_or(0)).fold(claimed, u64::min)
}

async fn traces(manager: &DbManager, in_flight: &InFlight) -> Result<Vec<Trace>, Error> {
    let (mut traces, mut patience) = (Vec::new(), in_flight::PATIENCE);
    for some in scopes(manager).await?.chunks(TOGETHER) {
        let looked = some.iter().map(|scope| async move {
            let database = manager.scope(scope).await?;
            let waited = in_flight.all_landed(&database, scope, patience).await;
            let own = scope.clone();
            let found = database.read(OPEN, move |conn| Box::pin(async move { trace(conn, &own).await })).await;
            Ok::<_, Error>((found?, waited))
        });
        let mut longest = Duration::ZERO;
        // A claim of safety is about all scopes, so that of a database which cannot be read now is not missed for long:
        // without it the loss is reported as larger than it may be, never as smaller.
        for (scope, found) in some.iter().zip(join_all(looked).await) {
            match found {
                Ok((trace, waited)) => {
                    traces.push(trace);
                    longest = longest.max(waited);
                }
                Err(error) => tracing::warn!(%scope, %error, "the end of its flushed events is unknown"),
            }
        }
        patience = patience.saturating_sub(longest);
    }
    Ok(traces)
}

async fn trace(conn: &mut SqliteConnection, scope: &Scope) -> Result<Trace, Error> {
    let segment::Tail { complete, through, .. } = segment::tail(&mut *conn, scope).await?;
    let newest: Option<i64> = sqlx::query_scalar(NEWEST).fetch_one(&mut *conn).await?;
    let until: Option<i64> = sqlx::query_scalar(RESTORED).fetch_optional(conn).await?;
    let until = until.and_then(Position::from_key).filter(|until| through < *until);
    let newest = newest.and_then(Position::from_key).unwrap_or(Position::START);
    Ok(Trace { complete, newest, lacks: until.map(|until| (through, until)) })
}

/// All scopes of the fleet. A router whose database was set aside is one of them: it cannot be read, and whoever asks is told
/// so instead of taking it for one without events.
pub(crate) async fn scopes(manager: &DbManager) -> Result<Vec<Scope>, Error> {
    let routers = manager.system().routers().list().await?.into_iter();
    let present = routers.filter(|router| matches!(router.lifecycle, Lifecycle::Active | Lifecycle::Quarantined));
    Ok(std::iter::once(Scope::System).chain(present.map(|router| Scope::Router(router.id))).collect())
}

/// An incarnation that was closed cleanly goes on: should it be lost now, the clean end must not be believed.
async fn reopen(manager: &DbManager, epoch: u32) -> Result<(), Error> {
    // Whoever numbered the file may have died before counting the number.
    if manager.system().counters().get(COUNTER).await? < u64::from(epoch) {
        manager.system().counters().raise(COUNTER, u64::from(epoch)).await?;
    }
    let clean: i64 = manager
        .system()
        .read(OPEN, move |conn| {
            Box::pin(async move {
                Ok::<_, Error>(sqlx::query_scalar(IS_CLEAN).bind(i64::from(epoch)).fetch_one(conn).await?)
            })
        })
        .await?;
    if clean > 0 { withdraw_clean_end(manager, epoch).await } else { Ok(()) }
}

/// Takes back a clean end.
async fn withdraw_clean_end(manager: &DbManager, epoch: u32) -> Result<(), Error> {
    manager
        .system()
        .write(OPEN, move |conn| {
            Box::pin(async move {
                sqlx::query(UNRECORD).bind(i64::from(epoch)).execute(conn).await?;
                Ok::<_, Error>(())
            })
        })
        .await
}

/// Records that everything of the incarnation up to `end` is safe and nothing comes after it.
pub(crate) async fn record_clean_end(manager: &DbManager, end: Position) -> Result<(), Error> {
    let wall_ms = manager.now().wall_ms;
    manager
        .system()
        .write(OPEN, move |conn| Box::pin(async move { record(conn, end.epoch, "clean", end.seq, wall_ms).await }))
        .await
}

async fn record(
    conn: &mut SqliteConnection,
    epoch: u32,
    ending: &'static str,
    after_seq: u64,
    wall_ms: i64,
) -> Result<(), Error> {
    sqlx::query(RECORD)
        .bind(i64::from(epoch))
        .bind(ending)
        .bind(after_seq.cast_signed())
        .bind(wall_ms)
        .execute(conn)
        .await?;
    Ok(())
}

/// The losses known, oldest first.
pub(crate) async fn recorded_losses(manager: &DbManager) -> Result<Vec<TailLost>, Error> {
    manager.system().read(OPEN, |conn| Box::pin(losses(conn))).await
}

async fn losses(conn: &mut SqliteConnection) -> Result<Vec<TailLost>, Error> {
    let found: Vec<(i64, i64)> = sqlx::query_as(LOST).fetch_all(conn).await?;
    let loss = |(epoch, after_seq): (i64, i64)| {
        Some(TailLost { epoch: u32::try_from(epoch).ok()?, after_seq: after_seq.cast_unsigned() })
    };
    Ok(found.into_iter().filter_map(loss).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_came_from_a_backup_makes_claims_of_others_untrue_until_it_is_flushed_again() {
        let at = Position::new;
        let trace = |complete, lacks| Trace { complete, newest: complete, lacks };
        let of = |lacks| [trace(at(2, 100), None), trace(at(2, 4), lacks)];
        assert_eq!(safe_through(&of(None), 2), 100);
        assert_eq!(safe_through(&of(Some((at(2, 4), at(2, 110)))), 2), 4);
        assert_eq!(safe_through(&of(Some((at(1, 9), at(2, 110)))), 2), 0, "it has nothing of that incarnation");
        assert_eq!(safe_through(&of(Some((at(1, 4), at(1, 9)))), 2), 100, "an earlier one");
        assert_eq!(safe_through(&[], 2), 0);
    }
}
