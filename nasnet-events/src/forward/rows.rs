//! The SQL of blocked streams and dead letters, in system.db.

use std::time::Duration;

use nasnet_dbmanager::{BootId, Now, Scope};
use sqlx::SqliteConnection;

use crate::consumer::left_out;
use crate::consumer::rows::Identity;
use crate::error::Error;
use crate::event::Recorded;
use crate::forward::{BlockedStream, DeadLetter};
use crate::name::StreamName;
use crate::position::Position;

const BLOCKED: &str = "SELECT scope, stream, pos, tries, why, boot, boottime_ms, delay_ms FROM event_blocked \
     WHERE consumer = ?1 ORDER BY pos";
const BLOCK: &str = "INSERT INTO event_blocked (consumer, scope, stream, pos, tries, why, boot, boottime_ms, delay_ms) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (consumer, scope, stream) DO UPDATE SET pos = excluded.pos, \
     tries = excluded.tries, why = excluded.why, boot = excluded.boot, boottime_ms = excluded.boottime_ms, \
     delay_ms = excluded.delay_ms";
const UNBLOCK: &str = "DELETE FROM event_blocked WHERE consumer = ?1 AND scope = ?2 AND stream = ?3";

const BURY: &str = "INSERT INTO event_dead_letters (consumer, pos, tries, why, wall_ms, event) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (consumer, pos) DO UPDATE SET tries = excluded.tries, why = excluded.why, \
     wall_ms = excluded.wall_ms, retry = 0";
const PRUNE: &str = "DELETE FROM event_dead_letters WHERE consumer = ?1 AND pos <= COALESCE((SELECT pos \
     FROM event_dead_letters WHERE consumer = ?1 ORDER BY pos DESC LIMIT 1 OFFSET ?2), -1)";
const DEAD: &str =
    "SELECT pos, tries, why, wall_ms, retry, event FROM event_dead_letters WHERE consumer = ?1 ORDER BY pos";
const REQUESTED: &str = "SELECT pos, tries, why, wall_ms, retry, event FROM event_dead_letters \
     WHERE consumer = ?1 AND retry = 1 ORDER BY pos LIMIT ?2";
const REQUEST: &str = "UPDATE event_dead_letters SET retry = 1 WHERE consumer = ?1 \
     AND (?2 IS NULL OR pos IN (SELECT value FROM json_each(?2)))";
const RISEN: &str = "DELETE FROM event_dead_letters WHERE consumer = ?1 AND pos = ?2";

/// What a round changes, written in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) blocked: Vec<BlockedStream>,
    pub(crate) unblocked: Vec<(Scope, StreamName)>,
    pub(crate) dead: Vec<(Recorded, u32, String)>,
    pub(crate) risen: Vec<Position>,
    /// Scopes that were left out and have been sent up to here.
    pub(crate) settled: Vec<(Scope, Position)>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocked.is_empty()
            && self.unblocked.is_empty()
            && self.dead.is_empty()
            && self.risen.is_empty()
            && self.settled.is_empty()
    }
}

pub(crate) async fn blocked(conn: &mut SqliteConnection, consumer: &str) -> Result<Vec<BlockedStream>, Error> {
    type Found = (String, String, i64, i64, String, Vec<u8>, i64, i64);
    let found: Vec<Found> = sqlx::query_as(BLOCKED).bind(consumer).fetch_all(conn).await?;
    found
        .into_iter()
        .map(|(scope, stream, pos, tries, why, boot, boottime, delay)| {
            let corrupt = |detail: &str| Error::corrupt(format!("system.db event_blocked {consumer} {stream}"), detail);
            Ok(BlockedStream {
                scope: scope.parse().map_err(|_| corrupt("its scope is none"))?,
                position: Position::from_key(pos).ok_or_else(|| corrupt("its position is negative"))?,
                tries: u32::try_from(tries).unwrap_or(u32::MAX),
                boot: BootId::from_bytes(boot.try_into().map_err(|_| corrupt("its boot is not 16 bytes long"))?),
                boottime_ms: boottime.cast_unsigned(),
                pause: Duration::from_millis(delay.cast_unsigned()),
                stream: StreamName::parse(&stream)?,
                why,
            })
        })
        .collect()
}

/// Writes what a round changed; returns how many dead letters were dropped because there are more than `dead_max`.
pub(crate) async fn write(
    conn: &mut SqliteConnection,
    consumer: &Identity,
    changes: &Changes,
    dead_max: u64,
    now: Now,
) -> Result<u64, Error> {
    consumer.check(conn).await?;
    let consumer = consumer.name.as_str();
    for (scope, stream) in &changes.unblocked {
        sqlx::query(UNBLOCK).bind(consumer).bind(scope.as_str()).bind(stream.as_str()).execute(&mut *conn).await?;
    }
    for blocked in &changes.blocked {
        sqlx::query(BLOCK)
            .bind(consumer)
            .bind(blocked.scope.as_str())
            .bind(blocked.stream.as_str())
            .bind(blocked.position.to_key()?)
            .bind(i64::from(blocked.tries))
            .bind(&blocked.why)
            .bind(blocked.boot.as_bytes().as_slice())
            .bind(blocked.boottime_ms.cast_signed())
            .bind(i64::try_from(blocked.pause.as_millis()).unwrap_or(i64::MAX))
            .execute(&mut *conn)
            .await?;
    }
    for (scope, through) in &changes.settled {
        left_out::settle(conn, consumer, scope, *through).await?;
    }
    for position in &changes.risen {
        sqlx::query(RISEN).bind(consumer).bind(position.to_key()?).execute(&mut *conn).await?;
    }
    for (event, tries, why) in &changes.dead {
        let line = serde_json::to_string(event).map_err(|error| Error::corrupt(format!("{event:?}"), error))?;
        sqlx::query(BURY)
            .bind(consumer)
            .bind(event.position.to_key()?)
            .bind(i64::from(*tries))
            .bind(why)
            .bind(now.wall_ms)
            .bind(line)
            .execute(&mut *conn)
            .await?;
    }
    if changes.dead.is_empty() { Ok(0) } else { prune(conn, consumer, dead_max).await }
}

/// Drops all dead letters but the newest.
pub(crate) async fn prune(conn: &mut SqliteConnection, consumer: &str, keep: u64) -> Result<u64, Error> {
    let keep = i64::try_from(keep).unwrap_or(i64::MAX);
    Ok(sqlx::query(PRUNE).bind(consumer).bind(keep).execute(conn).await?.rows_affected())
}

type FoundLetter = (i64, i64, String, i64, i64, String);

fn letter(consumer: &str, (pos, tries, why, wall_ms, retry, event): FoundLetter) -> Result<DeadLetter, Error> {
    let what = || format!("system.db event_dead_letters {consumer} {pos}");
    let event: Recorded = serde_json::from_str(&event).map_err(|error| Error::corrupt(what(), Error::form(&error)))?;
    if Position::from_key(pos) != Some(event.position) {
        return Err(Error::corrupt(what(), "its event stands elsewhere"));
    }
    Ok(DeadLetter { tries: u32::try_from(tries).unwrap_or(u32::MAX), why, wall_ms, is_requested: retry != 0, event })
}

pub(crate) async fn dead(conn: &mut SqliteConnection, consumer: &str) -> Result<Vec<DeadLetter>, Error> {
    let found: Vec<FoundLetter> = sqlx::query_as(DEAD).bind(consumer).fetch_all(conn).await?;
    found.into_iter().map(|found| letter(consumer, found)).collect()
}

/// Dead letters somebody asked to be tried again.
pub(crate) async fn requested(
    conn: &mut SqliteConnection,
    consumer: &str,
    limit: u32,
) -> Result<Vec<DeadLetter>, Error> {
    let found: Vec<FoundLetter> = sqlx::query_as(REQUESTED).bind(consumer).bind(limit).fetch_all(conn).await?;
    found.into_iter().map(|found| letter(consumer, found)).collect()
}

/// Asks for dead letters to be tried again, `None` = all of them.
pub(crate) async fn request(
    conn: &mut SqliteConnection,
    consumer: &str,
    positions: Option<&[Position]>,
) -> Result<u64, Error> {
    let keys =
        positions.map(|positions| positions.iter().map(|position| position.to_key_clamped()).collect::<Vec<_>>());
    let keys = keys.map(|keys| serde_json::to_string(&keys).unwrap_or_default());
    Ok(sqlx::query(REQUEST).bind(consumer).bind(keys).execute(conn).await?.rows_affected())
}
