//! The SQL of what is remembered of removed events: the versions of each stream, and how far retention has come.

use std::collections::{BTreeMap, HashMap};

use sqlx::SqliteConnection;

use crate::error::Error;
use crate::name::StreamName;
use crate::position::Position;
use crate::retain::versions::Versions;

const TOPS: &str = "SELECT stream, version FROM event_tops";
const KNOWN: &str = "SELECT removed FROM event_tops WHERE stream = ?1";
const RAISE: &str = "INSERT INTO event_tops (stream, version, pos, removed) VALUES (?1, ?2, ?3, ?4) \
     ON CONFLICT (stream) DO UPDATE SET version = MAX(version, excluded.version), pos = MAX(pos, excluded.pos), \
     removed = excluded.removed";
const OF_STREAM: &str =
    "SELECT removed, pos FROM event_tops WHERE stream = (SELECT id FROM event_names WHERE text = ?1)";
/// What sealing removed is in segments.
const RETAINED: &str = "SELECT MAX(through_pos) FROM event_retained WHERE what <> -4";

/// What retention removed of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// These versions.
    pub(crate) versions: Versions,
    /// Nothing after here.
    pub(crate) through: Position,
}

/// The highest version removed of each stream, by number of its name.
pub(crate) async fn tops(conn: &mut SqliteConnection) -> Result<HashMap<i64, u64>, Error> {
    let found: Vec<(i64, i64)> = sqlx::query_as(TOPS).fetch_all(conn).await?;
    Ok(found.into_iter().map(|(stream, version)| (stream, version.cast_unsigned())).collect())
}

/// Remembers streams of which events are about to be removed.
pub(crate) async fn raise(conn: &mut SqliteConnection, removed: &BTreeMap<i64, Removed>) -> Result<(), Error> {
    for (stream, removed) in removed {
        let Some(top) = removed.versions.top() else { continue };
        let known: Option<Vec<u8>> = sqlx::query_scalar(KNOWN).bind(*stream).fetch_optional(&mut *conn).await?;
        let mut versions = known.map(|bytes| parse(&bytes)).transpose()?.unwrap_or_default();
        versions.add_all(&removed.versions);
        sqlx::query(RAISE)
            .bind(*stream)
            .bind(top.cast_signed())
            .bind(removed.through.to_key()?)
            .bind(versions.encode())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Versions, Error> {
    Versions::parse(bytes).map_err(|error| Error::corrupt("event_tops removed", error))
}

/// What retention removed of a stream, `None` when nothing.
pub(crate) async fn of_stream(conn: &mut SqliteConnection, stream: &StreamName) -> Result<Option<Removed>, Error> {
    let found: Option<(Vec<u8>, i64)> = sqlx::query_as(OF_STREAM).bind(stream.as_str()).fetch_optional(conn).await?;
    let Some((removed, pos)) = found else { return Ok(None) };
    let through = Position::from_key(pos).ok_or_else(|| Error::corrupt("event_tops", "negative key"))?;
    Ok(Some(Removed { versions: parse(&removed)?, through }))
}

/// How far retention has come, `None` when it has removed nothing.
pub(crate) async fn retained(conn: &mut SqliteConnection) -> Result<Option<Position>, Error> {
    let found: Option<i64> = sqlx::query_scalar(RETAINED).fetch_one(conn).await?;
    Ok(found.and_then(Position::from_key))
}
