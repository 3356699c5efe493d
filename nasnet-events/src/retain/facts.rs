//! The SQL of what retention needs to know of a scope.

use nasnet_dbmanager::Scope;
use sqlx::SqliteConnection;

use crate::archive;
use crate::block;
use crate::class::Class;
use crate::error::Error;
use crate::position::Position;
use crate::retain::plan::{Facts, Unit, UnitKind};
use crate::retain::policy::Retention;
use crate::warm::{lists, names};

/// The oldest of each table that are looked at in one pass: what is left is for the next.
const UNITS_MAX: i64 = 16_384;

const ROWS: &str = "SELECT pos, kind, stream, flags, wall_ms, length(body) FROM event_rows ORDER BY pos LIMIT ?1";
const SEGMENTS: &str = "SELECT first_pos, last_pos, events, wall_max_ms, kinds, streams, COALESCE(file_bytes, length(body)) \
     FROM event_segments ORDER BY first_pos LIMIT ?1";
const SEALED: &str = "SELECT first_pos, last_pos, events, wall_max_ms, kinds, streams, COALESCE(file_bytes, length(body)) \
     FROM event_sealed ORDER BY first_pos LIMIT ?1";
const NEWEST: &str = "SELECT MAX(first_pos) FROM event_segments";

/// The last position of the cold tier when there is one.
pub(super) async fn archived(conn: &mut SqliteConnection, has_cold: bool) -> Result<Option<Position>, Error> {
    match has_cold {
        true => Ok(Some(archive::confirmed(conn).await?.unwrap_or(Position::START))),
        false => Ok(None),
    }
}

/// Up to where snapshots reach.
pub(super) async fn snapshot(
    conn: &mut SqliteConnection,
    policy: &Retention,
    scope: &Scope,
) -> Result<Option<Position>, Error> {
    match &policy.snapshots {
        Some(snapshots) => snapshots.snapshot_through(conn, scope).await,
        None => Ok(None),
    }
}

/// Looks at the warm tier of a scope in one snapshot of its database.
pub(super) async fn gather(
    conn: &mut SqliteConnection,
    scope: &Scope,
    policy: &Retention,
    has_cold: bool,
    resolved: Position,
) -> Result<Facts, Error> {
    let mut units = rows(conn, scope).await?;
    units.extend(segments(conn, scope, UnitKind::Sealed).await?);
    units.extend(segments(conn, scope, UnitKind::Segment).await?);
    let newest: Option<i64> = sqlx::query_scalar(NEWEST).fetch_one(&mut *conn).await?;
    Ok(Facts {
        scope: scope.clone(),
        names: if units.is_empty() { Default::default() } else { names::all(conn).await? },
        units,
        newest: newest.and_then(Position::from_key),
        archived: archived(conn, has_cold).await?,
        snapshot: snapshot(conn, policy, scope).await?,
        resolved,
    })
}

fn position(scope: &Scope, key: i64) -> Result<Position, Error> {
    Position::from_key(key).ok_or_else(|| Error::corrupt(format!("{scope} warm tier"), "negative key"))
}

async fn rows(conn: &mut SqliteConnection, scope: &Scope) -> Result<Vec<Unit>, Error> {
    let found: Vec<(i64, i64, i64, i64, i64, i64)> = sqlx::query_as(ROWS).bind(UNITS_MAX).fetch_all(conn).await?;
    let unit = |(pos, kind, stream, flags, wall_max_ms, bytes): (i64, i64, i64, i64, i64, i64)| {
        let at = position(scope, pos)?;
        // What is damaged stays as long as anything does.
        let class = block::parse_flags(flags.cast_unsigned()).map_or(Class::Critical, |flags| flags.class);
        Ok(Unit {
            kind: UnitKind::Row,
            first: at,
            last: at,
            events: 1,
            bytes: bytes.cast_unsigned(),
            wall_max_ms,
            class: Some(class),
            kinds: vec![kind],
            streams: vec![stream],
        })
    };
    found.into_iter().map(unit).collect()
}

async fn segments(conn: &mut SqliteConnection, scope: &Scope, kind: UnitKind) -> Result<Vec<Unit>, Error> {
    type Found = (i64, i64, i64, i64, Vec<u8>, Vec<u8>, i64);
    let sql = if kind == UnitKind::Segment { SEGMENTS } else { SEALED };
    let found: Vec<Found> = sqlx::query_as(sql).bind(UNITS_MAX).fetch_all(conn).await?;
    let unit = |(first, last, events, wall_max_ms, kinds, streams, bytes): Found| {
        // A damaged list hides nothing: its one number is nobody's name.
        const DAMAGED: i64 = -1;
        let streams = lists::parse_streams(&streams).map(|held| held.into_iter().map(|(id, _)| id).collect());
        Ok(Unit {
            kind,
            first: position(scope, first)?,
            last: position(scope, last)?,
            events: events.cast_unsigned(),
            bytes: bytes.cast_unsigned(),
            wall_max_ms,
            class: (kind == UnitKind::Segment).then_some(Class::Normal),
            kinds: lists::parse_ids(&kinds).unwrap_or_else(|_| vec![DAMAGED]),
            streams: streams.unwrap_or_else(|_| vec![DAMAGED]),
        })
    };
    found.into_iter().map(unit).collect()
}
