//! The SQL of consumers: their definition and durable position in system.db, where they stand in runtime.db.

use nasnet_dbmanager::Now;
use sqlx::SqliteConnection;

use crate::consumer::marker::Mark;
use crate::consumer::{Consumer, Filter, GuardLimits};
use crate::error::Error;
use crate::position::Position;

const FIND: &str =
    "SELECT name, uid, filter, pos, told, guard_max_age_ms, guard_bytes_max FROM event_consumers WHERE name = ?1";
const ALL: &str =
    "SELECT name, uid, filter, pos, told, guard_max_age_ms, guard_bytes_max FROM event_consumers ORDER BY name";
const IS_DEFINED: &str = "SELECT EXISTS (SELECT 1 FROM event_consumers WHERE name = ?1 AND uid = ?2)";
const CREATE: &str = "INSERT INTO event_consumers (name, filter, pos, told, guard_max_age_ms, guard_bytes_max, \
     moved_boot, moved_boottime_ms, moved_wall_ms, uid) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
     ON CONFLICT (name) DO NOTHING";
const REDEFINE: &str =
    "UPDATE event_consumers SET filter = ?2, guard_max_age_ms = ?3, guard_bytes_max = ?4 WHERE name = ?1 AND uid = ?5";
const SAVE: &str = "UPDATE event_consumers SET pos = ?2, told = ?3, moved_boot = ?4, moved_boottime_ms = ?5, \
     moved_wall_ms = ?6 WHERE name = ?1 AND uid = ?7 AND (pos < ?2 OR (pos = ?2 AND told < ?3))";
const FORGET: &str = "DELETE FROM event_consumers WHERE name = ?1";

const STAND: &str = "SELECT session, instance, boottime_ms FROM event_progress WHERE name = ?1";
const STANDS: &str = "SELECT uid, pos FROM event_progress";
const CLAIM: &str = "INSERT INTO event_progress (name, pos, told, session, instance, boottime_ms, uid) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?8) ON CONFLICT (name) DO UPDATE SET session = excluded.session, \
     instance = excluded.instance, boottime_ms = excluded.boottime_ms, uid = excluded.uid, \
     pos = CASE WHEN uid = excluded.uid THEN MAX(pos, excluded.pos) ELSE excluded.pos END, \
     told = CASE WHEN uid = excluded.uid THEN MAX(told, excluded.told) ELSE excluded.told END \
     WHERE event_progress.instance IS ?7 RETURNING pos, told";
const MOVE: &str = "UPDATE event_progress SET pos = MAX(pos, ?2), told = MAX(told, ?3), boottime_ms = ?4 \
     WHERE name = ?1 AND session = ?5 AND instance = ?6";
const RELEASE: &str =
    "UPDATE event_progress SET session = NULL, instance = NULL WHERE name = ?1 AND session = ?2 AND instance = ?3";
const UNCLAIM: &str = "DELETE FROM event_progress WHERE name = ?1 AND session = ?2 AND instance = ?3";
const FORGET_STAND: &str = "DELETE FROM event_progress WHERE name = ?1";

/// Who reads as a consumer: the session of its store, and the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reader {
    pub(crate) session: [u8; 16],
    pub(crate) instance: [u8; 16],
}

/// Tells a consumer from one of the same name that was made after it was forgotten.
pub(crate) type Uid = [u8; 16];

/// A consumer as system.db knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defined {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) filter: Filter,
    pub(crate) mark: Mark,
    pub(crate) guard: Option<GuardLimits>,
}

/// A consumer as runtime.db knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) reader: Option<Reader>,
    pub(crate) boottime_ms: u64,
}

/// What became of a reader's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advanced {
    /// It reads as the consumer.
    Confirmed,
    /// Somebody else reads in its place.
    Taken,
    /// There is no such consumer in runtime.db: that was made anew, or the consumer was forgotten.
    Absent,
}

/// Where a consumer stands, as one of its readers knows it.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) mark: Mark,
}

impl From<Defined> for Moved {
    fn from(Defined { name, uid, mark, .. }: Defined) -> Self {
        Self { name, uid, mark }
    }
}

/// A consumer, and none that was made anew under its name.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uid: Uid,
}

impl Identity {
    /// Begins a transaction of whoever reads as the consumer: what it writes is keyed by the name alone.
    pub(crate) async fn check(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        let Self { name, uid } = self;
        let is_there: bool = sqlx::query_scalar(IS_DEFINED).bind(name).bind(uid.as_slice()).fetch_one(conn).await?;
        if is_there { Ok(()) } else { Err(Error::ConsumerTaken { consumer: name.clone() }) }
    }
}

type FoundDefinition = (String, Vec<u8>, String, i64, i64, Option<i64>, Option<i64>);

fn mark_of(what: &str, pos: i64, told: i64) -> Result<Mark, Error> {
    let position = |key| Position::from_key(key).ok_or_else(|| Error::corrupt(what, "a position is negative"));
    Ok(Mark { position: position(pos)?, told: position(told)? })
}

fn decode((name, uid, filter, pos, told, age, bytes): FoundDefinition) -> Result<Defined, Error> {
    let what = format!("system.db event_consumers {name}");
    let mark = mark_of(&what, pos, told)?;
    let uid = uid.try_into().map_err(|_| Error::corrupt(what.clone(), "its uid is not 16 bytes long"))?;
    let filter = serde_json::from_str(&filter).map_err(|error| Error::corrupt(what, error))?;
    let guard = age.zip(bytes).map(|(age, bytes)| GuardLimits {
        max_age: std::time::Duration::from_millis(age.cast_unsigned()),
        bytes_max: bytes.cast_unsigned(),
    });
    Ok(Defined { name, uid, filter, mark, guard })
}

pub(crate) async fn find(conn: &mut SqliteConnection, name: &str) -> Result<Option<Defined>, Error> {
    let found: Option<FoundDefinition> = sqlx::query_as(FIND).bind(name).fetch_optional(conn).await?;
    found.map(decode).transpose()
}

pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<Vec<Defined>, Error> {
    let found: Vec<FoundDefinition> = sqlx::query_as(ALL).fetch_all(conn).await?;
    found.into_iter().map(decode).collect()
}

fn guard_columns(guard: Option<GuardLimits>) -> (Option<i64>, Option<i64>) {
    let age = guard.map(|limits| i64::try_from(limits.max_age.as_millis()).unwrap_or(i64::MAX));
    (age, guard.map(|limits| i64::try_from(limits.bytes_max).unwrap_or(i64::MAX)))
}

fn filter_text(filter: &Filter) -> Result<String, Error> {
    let why = "it cannot be written as JSON";
    serde_json::to_string(filter).map_err(|error| Error::Invalid { what: "filter", value: error.to_string(), why })
}

/// Stores a new consumer, or finds the one that was quicker.
pub(crate) async fn define(
    conn: &mut SqliteConnection,
    consumer: &Consumer,
    uid: Uid,
    start: Mark,
    now: Now,
) -> Result<Defined, Error> {
    let name = consumer.name.as_str();
    let filter = filter_text(&consumer.filter)?;
    let (age, bytes) = guard_columns(consumer.guard);
    sqlx::query(CREATE)
        .bind(name)
        .bind(&filter)
        .bind(start.position.to_key()?)
        .bind(start.told.to_key()?)
        .bind(age)
        .bind(bytes)
        .bind(now.boot.as_bytes().as_slice())
        .bind(now.boottime_ms.cast_signed())
        .bind(now.wall_ms)
        .bind(uid.as_slice())
        .execute(&mut *conn)
        .await?;
    find(conn, name).await?.ok_or_else(|| Error::corrupt("system.db event_consumers", "a new row is not there"))
}

/// Stores another filter and guard of a consumer; its position stays. One that was forgotten stays that.
pub(crate) async fn redefine(conn: &mut SqliteConnection, consumer: &Consumer, of: &Identity) -> Result<(), Error> {
    let (age, bytes) = guard_columns(consumer.guard);
    let filter = filter_text(&consumer.filter)?;
    let query = sqlx::query(REDEFINE).bind(&of.name).bind(filter).bind(age).bind(bytes).bind(of.uid.as_slice());
    query.execute(conn).await?;
    Ok(())
}

/// Moves durable positions forward. Those of consumers that were forgotten move nothing.
pub(crate) async fn save(conn: &mut SqliteConnection, moved: &[Moved], now: Now) -> Result<(), Error> {
    for Moved { name, uid, mark } in moved {
        sqlx::query(SAVE)
            .bind(name)
            .bind(mark.position.to_key()?)
            .bind(mark.told.to_key()?)
            .bind(now.boot.as_bytes().as_slice())
            .bind(now.boottime_ms.cast_signed())
            .bind(now.wall_ms)
            .bind(uid.as_slice())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

pub(crate) async fn forget(conn: &mut SqliteConnection, name: &str) -> Result<bool, Error> {
    Ok(sqlx::query(FORGET).bind(name).execute(conn).await?.rows_affected() > 0)
}

pub(crate) async fn forget_standing(conn: &mut SqliteConnection, name: &str) -> Result<(), Error> {
    sqlx::query(FORGET_STAND).bind(name).execute(conn).await?;
    Ok(())
}

pub(crate) async fn standing(conn: &mut SqliteConnection, name: &str) -> Result<Option<Standing>, Error> {
    type Found = (Option<Vec<u8>>, Option<Vec<u8>>, i64);
    let found: Option<Found> = sqlx::query_as(STAND).bind(name).fetch_optional(conn).await?;
    let Some((session, instance, boottime)) = found else { return Ok(None) };
    let what = format!("runtime.db event_progress {name}");
    let id =
        |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt(what.clone(), "a reader is not 16 bytes long"));
    let reader = match session.zip(instance) {
        Some((session, instance)) => Some(Reader { session: id(session)?, instance: id(instance)? }),
        None => None,
    };
    Ok(Some(Standing { reader, boottime_ms: boottime.cast_unsigned() }))
}

/// Where all consumers stand now.
pub(crate) async fn standings(conn: &mut SqliteConnection) -> Result<Vec<(Uid, Position)>, Error> {
    let found: Vec<(Vec<u8>, i64)> = sqlx::query_as(STANDS).fetch_all(conn).await?;
    Ok(found.into_iter().filter_map(|(uid, pos)| Some((uid.try_into().ok()?, Position::from_key(pos)?))).collect())
}

/// Makes `reader` the one that reads as this consumer, in the place of `before`; `None` when another was quicker.
pub(crate) async fn claim(
    conn: &mut SqliteConnection,
    consumer: &Moved,
    reader: Reader,
    before: Option<Reader>,
    boottime_ms: u64,
) -> Result<Option<Mark>, Error> {
    let Moved { name, uid, mark } = consumer;
    let found: Option<(i64, i64)> = sqlx::query_as(CLAIM)
        .bind(name)
        .bind(mark.position.to_key()?)
        .bind(mark.told.to_key()?)
        .bind(reader.session.as_slice())
        .bind(reader.instance.as_slice())
        .bind(boottime_ms.cast_signed())
        .bind(before.map(|reader| reader.instance.to_vec()))
        .bind(uid.as_slice())
        .fetch_optional(conn)
        .await?;
    found.map(|(pos, told)| mark_of("runtime.db event_progress", pos, told)).transpose()
}

/// Moves a consumer and confirms its reader.
pub(crate) async fn advance(
    conn: &mut SqliteConnection,
    name: &str,
    mark: Mark,
    reader: Reader,
    boottime_ms: u64,
) -> Result<Advanced, Error> {
    let done = sqlx::query(MOVE)
        .bind(name)
        .bind(mark.position.to_key()?)
        .bind(mark.told.to_key()?)
        .bind(boottime_ms.cast_signed())
        .bind(reader.session.as_slice())
        .bind(reader.instance.as_slice())
        .execute(&mut *conn)
        .await?;
    if done.rows_affected() > 0 {
        return Ok(Advanced::Confirmed);
    }
    Ok(if standing(conn, name).await?.is_some() { Advanced::Taken } else { Advanced::Absent })
}

/// Takes a claim back, with the position that came with it.
pub(crate) async fn unclaim(conn: &mut SqliteConnection, name: &str, reader: Reader) -> Result<(), Error> {
    let query = sqlx::query(UNCLAIM).bind(name).bind(reader.session.as_slice()).bind(reader.instance.as_slice());
    query.execute(conn).await?;
    Ok(())
}

/// Lets others read as this consumer.
pub(crate) async fn release(conn: &mut SqliteConnection, name: &str, reader: Reader) -> Result<(), Error> {
    let query = sqlx::query(RELEASE).bind(name).bind(reader.session.as_slice()).bind(reader.instance.as_slice());
    query.execute(conn).await?;
    Ok(())
}
