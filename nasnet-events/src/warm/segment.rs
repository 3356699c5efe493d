//! Normal events of one flush as one compressed row, chained to the one before by its digest.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use nasnet_dbmanager::{AnnexPlace, Annexes, Scope};
use sqlx::SqliteConnection;

use crate::block::{self, Packing, Peek};
use crate::chain::{self, Digest};
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::name::StreamName;
use crate::position::Position;
use crate::varint::{self, Malformed};
use crate::warm::bodies::{self, Body};
use crate::warm::dictionary::{self, Dictionary, DictionaryId};
use crate::warm::{lists, names};

const LEVEL: i32 = 3;
/// A short segment takes the most bytes for each event, and to press it harder costs milliseconds (docs/adr/0013).
const SMALL_BYTES: usize = 64 << 10;
const SMALL_LEVEL: i32 = 9;

const REMOVED: &str = "SELECT pos, digest FROM event_chain WHERE lane = 'segments' ORDER BY pos DESC LIMIT 1";
const CHAINED_AT: &str = "SELECT pos, digest FROM (SELECT * FROM (SELECT last_pos AS pos, digest FROM event_segments \
     WHERE first_pos <= ?1 AND last_pos <= ?1 ORDER BY first_pos DESC LIMIT 1) UNION ALL SELECT pos, digest \
     FROM event_chain WHERE lane = 'segments' AND pos <= ?1) ORDER BY pos DESC LIMIT 1";
const CHAINED: &str = "SELECT last_pos, digest FROM event_segments ORDER BY first_pos DESC LIMIT 1";

/// The statements about one of the two tables.
struct Sql {
    table: &'static str,
    insert: &'static str,
    last: &'static str,
    metas_forwards: &'static str,
    metas_backwards: &'static str,
    body: &'static str,
    streams: &'static str,
    totals: &'static str,
}

macro_rules! metas {
    ($table:literal, $order:literal) => {
        concat!(
            "SELECT first_pos, last_pos, through_pos, complete_pos, events, wall_min_ms, wall_max_ms, kinds, streams, ",
            "raw_bytes, dictionary, prev_digest, digest, crc FROM ",
            $table,
            " WHERE first_pos >= COALESCE((SELECT MAX(first_pos) FROM ",
            $table,
            " WHERE first_pos <= ?1), 0) ",
            "AND first_pos <= ?2 AND last_pos > ?1 ORDER BY first_pos",
            $order,
            " LIMIT +?3"
        )
    };
}

macro_rules! sql {
    ($table:literal) => {
        Sql {
            table: $table,
            insert: concat!(
                "INSERT INTO ",
                $table,
                " (first_pos, last_pos, through_pos, complete_pos, events, wall_min_ms, ",
                "wall_max_ms, kinds, streams, raw_bytes, dictionary, prev_digest, digest, crc, file, file_offset, ",
                "file_bytes, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
            ),
            last: concat!("SELECT through_pos, complete_pos, digest FROM ", $table, " ORDER BY first_pos DESC LIMIT 1"),
            metas_forwards: metas!($table, ""),
            metas_backwards: metas!($table, " DESC"),
            body: concat!("SELECT file, file_offset, file_bytes, body FROM ", $table, " WHERE first_pos = ?1"),
            streams: concat!("SELECT first_pos, streams FROM ", $table),
            totals: concat!(
                "SELECT COUNT(*), COALESCE(SUM(events), 0), COALESCE(SUM(COALESCE(file_bytes, length(body))), 0), MIN(first_pos), ",
                "MAX(last_pos) FROM ",
                $table
            ),
        }
    };
}

static FLUSHED: Sql = sql!("event_segments");
static SEALED: Sql = sql!("event_sealed");

/// The statements that read pages.
#[cfg(test)]
pub(super) fn pages() -> Vec<&'static str> {
    [&FLUSHED, &SEALED].into_iter().flat_map(|sql| [sql.metas_forwards, sql.metas_backwards, sql.body]).collect()
}

/// Where the events of a segment were before. The positions of the two kinds interleave; among themselves they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// In the hot tier only.
    Flushed,
    /// In rows of their own.
    Sealed,
}

impl Lane {
    fn sql(self) -> &'static Sql {
        match self {
            Self::Flushed => &FLUSHED,
            Self::Sealed => &SEALED,
        }
    }
}

/// What is known of a segment without its events.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub(crate) lane: Lane,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) through: Position,
    pub(crate) complete: Position,
    pub(crate) events: u64,
    pub(crate) wall_ms: (i64, i64),
    kinds: Vec<u8>,
    streams: Vec<u8>,
    raw_bytes: i64,
    /// What its body was compressed with.
    pub(crate) dictionary: Option<DictionaryId>,
    /// The chain of flushed events before this segment, and after it.
    pub(crate) prev_digest: Digest,
    pub(crate) digest: Digest,
    crc: i64,
}

/// How far a scope is flushed, from its newest segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    pub(crate) through: Position,
    pub(crate) complete: Position,
    pub(crate) digest: Digest,
}

impl Tail {
    /// A scope without segments.
    pub(crate) const EMPTY: Self =
        Self { through: Position::START, complete: Position::START, digest: Digest::GENESIS };
}

/// Events made ready outside of the transaction that stores them.
pub(crate) struct Prepared {
    pub(crate) events: Vec<Recorded>,
    pub(crate) body: Arc<[u8]>,
    raw_bytes: usize,
    dictionary: Option<DictionaryId>,
}

/// Encodes the events of one segment; they must not be empty. With a dictionary when that makes it smaller. Slow: not for
/// a thread of the runtime.
pub(crate) fn prepare(events: Vec<Recorded>, dictionary: Option<&Dictionary>) -> Result<Prepared, Error> {
    let refs: Vec<&Recorded> = events.iter().collect();
    let failed = |error: Malformed| Error::corrupt("segment to be written", error);
    let bytes: usize = events.iter().map(|event| event.body.get().len()).sum();
    let level = if bytes <= SMALL_BYTES { SMALL_LEVEL } else { LEVEL };
    let (mut body, raw_bytes) = block::encode(&refs, Packing::Zstd(level)).map_err(failed)?;
    let mut used = None;
    if let Some(dictionary) = dictionary {
        let packing = Packing::Dictionary(level, &dictionary.body);
        let (with, _) = block::encode(&refs, packing).map_err(failed)?;
        if with.len() < body.len() {
            (body, used) = (with, Some(dictionary.id));
        }
    }
    Ok(Prepared { events, body: body.into(), raw_bytes, dictionary: used })
}

impl Meta {
    /// Bytes of its events before they were compressed.
    pub(crate) fn raw_bytes(&self) -> u64 {
        u64::try_from(self.raw_bytes).unwrap_or(0)
    }

    fn checksum(&self, body: &[u8]) -> Result<u32, Error> {
        let mut bytes = Vec::new();
        for position in [self.first, self.last, self.through, self.complete] {
            varint::put_signed(&mut bytes, position.to_key()?);
        }
        varint::put(&mut bytes, self.events);
        for number in [self.wall_ms.0, self.wall_ms.1, self.raw_bytes] {
            varint::put_signed(&mut bytes, number);
        }
        varint::put(&mut bytes, self.dictionary.map_or(0, DictionaryId::number));
        for blob in [&self.kinds[..], &self.streams, &self.prev_digest.0, &self.digest.0] {
            varint::put_bytes(&mut bytes, blob);
        }
        Ok(crc32c::crc32c_append(crc32c::crc32c(&bytes), body))
    }

    /// True when the segment may hold events of one of the kinds and one of the streams. A damaged list hides nothing.
    pub(crate) fn may_hold(&self, kinds: Option<&HashSet<i64>>, streams: Option<&HashSet<i64>>) -> bool {
        let meets = |wanted: Option<&HashSet<i64>>, held: Result<Vec<i64>, Malformed>| match (wanted, held) {
            (Some(wanted), Ok(held)) => held.iter().any(|id| wanted.contains(id)),
            _ => true,
        };
        let held_streams = lists::parse_streams(&self.streams).map(|held| held.into_iter().map(|(id, _)| id).collect());
        meets(kinds, lists::parse_ids(&self.kinds)) && meets(streams, held_streams)
    }
}

/// Stores a segment in the caller's write transaction, directly after `tail`. Its place in an annex, if it got one, is to be
/// confirmed after the commit.
pub(crate) async fn insert(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    lane: Lane,
    prepared: &Prepared,
    tail: &Tail,
    through: Position,
    complete: Position,
) -> Result<Option<AnnexPlace>, Error> {
    let (Some(first), Some(last)) = (prepared.events.first(), prepared.events.last()) else { return Ok(None) };
    let mut tops: BTreeMap<&str, u64> = BTreeMap::new();
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    for event in &prepared.events {
        let top = tops.entry(event.stream.as_str()).or_default();
        *top = event.version.max(*top);
        kinds.insert(event.kind.as_str());
    }
    let texts: BTreeSet<&str> = tops.keys().copied().chain(kinds.iter().copied()).collect();
    let ids = names::intern(conn, &texts).await?;
    let kinds = kinds.into_iter().map(|kind| names::number(&ids, kind)).collect::<Result<Vec<_>, _>>()?;
    let kind_bytes = lists::put_ids(kinds);
    let numbered = tops.into_iter().map(|(stream, top)| Ok((names::number(&ids, stream)?, top)));
    let stream_bytes = lists::put_streams(&numbered.collect::<Result<_, Error>>()?);
    let times = prepared.events.iter().map(|event| event.wall_ms);
    let mut meta = Meta {
        lane,
        first: first.position,
        last: last.position,
        through,
        complete,
        events: prepared.events.len() as u64,
        wall_ms: (times.clone().min().unwrap_or(0), times.max().unwrap_or(0)),
        kinds: kind_bytes,
        streams: stream_bytes,
        raw_bytes: i64::try_from(prepared.raw_bytes).unwrap_or(i64::MAX),
        dictionary: prepared.dictionary,
        prev_digest: tail.digest,
        digest: chain::fold(tail.digest, &prepared.events),
        crc: 0,
    };
    meta.crc = i64::from(meta.checksum(&prepared.body)?);
    let place = bodies::store(conn, annexes, lane, &prepared.body).await?;
    sqlx::query(lane.sql().insert)
        .bind(meta.first.to_key()?)
        .bind(meta.last.to_key()?)
        .bind(meta.through.to_key()?)
        .bind(meta.complete.to_key()?)
        .bind(meta.events.cast_signed())
        .bind(meta.wall_ms.0)
        .bind(meta.wall_ms.1)
        .bind(meta.kinds)
        .bind(meta.streams)
        .bind(meta.raw_bytes)
        .bind(meta.dictionary.map(DictionaryId::key))
        .bind(meta.prev_digest.0.to_vec())
        .bind(meta.digest.0.to_vec())
        .bind(meta.crc)
        .bind(place.map(|place| i64::from(place.file)))
        .bind(place.map(|place| place.offset.cast_signed()))
        .bind(place.map(|place| place.bytes.cast_signed()))
        .bind(place.is_none().then_some(&prepared.body[..]))
        .execute(conn)
        .await?;
    Ok(place)
}

fn position(scope: &Scope, key: i64) -> Result<Position, Error> {
    Position::from_key(key).ok_or_else(|| Error::corrupt(format!("{scope} event_segments"), "negative key"))
}

fn digest(scope: &Scope, bytes: Vec<u8>) -> Result<Digest, Error> {
    Digest::from_slice(&bytes)
        .ok_or_else(|| Error::corrupt(format!("{scope} event_segments"), "digest has another length"))
}

/// How far the scope is flushed.
pub(crate) async fn tail(conn: &mut SqliteConnection, scope: &Scope) -> Result<Tail, Error> {
    let found: Option<(i64, i64, Vec<u8>)> = sqlx::query_as(FLUSHED.last).fetch_optional(&mut *conn).await?;
    let Some((through, complete, chained)) = found else {
        // The chain goes on behind segments that were removed.
        let removed: Option<(i64, Vec<u8>)> = sqlx::query_as(REMOVED).fetch_optional(conn).await?;
        let Some((last, chained)) = removed else { return Ok(Tail::EMPTY) };
        return Ok(Tail { through: position(scope, last)?, digest: digest(scope, chained)?, ..Tail::EMPTY });
    };
    Ok(Tail {
        through: position(scope, through)?,
        complete: position(scope, complete)?,
        digest: digest(scope, chained)?,
    })
}

/// Where the chain of flushed events stands, and its last event; `None` before the first.
pub(crate) async fn chained(conn: &mut SqliteConnection, scope: &Scope) -> Result<Option<(Position, Digest)>, Error> {
    let mut found: Option<(i64, Vec<u8>)> = sqlx::query_as(CHAINED).fetch_optional(&mut *conn).await?;
    if found.is_none() {
        found = sqlx::query_as(REMOVED).fetch_optional(conn).await?;
    }
    found.map(|(last, chained)| Ok((position(scope, last)?, digest(scope, chained)?))).transpose()
}

/// Where the chain of flushed events stands behind everything up to a position, and its last event there; `None` before
/// the first.
pub(crate) async fn chained_at(
    conn: &mut SqliteConnection,
    scope: &Scope,
    at: Position,
) -> Result<Option<(Position, Digest)>, Error> {
    let found: Option<(i64, Vec<u8>)> =
        sqlx::query_as(CHAINED_AT).bind(at.to_key_clamped()).fetch_optional(conn).await?;
    found.map(|(last, chained)| Ok((position(scope, last)?, digest(scope, chained)?))).transpose()
}

/// Segments of one lane that may hold events after `after` up to `until`, at most `limit`, in the given order.
pub(crate) async fn metas(
    conn: &mut SqliteConnection,
    scope: &Scope,
    lane: Lane,
    (after, until): (Position, Position),
    order: Order,
    limit: u32,
) -> Result<Vec<Meta>, Error> {
    type Found = (i64, i64, i64, i64, i64, i64, i64, Vec<u8>, Vec<u8>, i64, Option<i64>, Vec<u8>, Vec<u8>, i64);
    let sql = match order {
        Order::Forwards => lane.sql().metas_forwards,
        Order::Backwards => lane.sql().metas_backwards,
    };
    let found: Vec<Found> = sqlx::query_as(sql)
        .bind(after.to_key_clamped())
        .bind(until.to_key_clamped())
        .bind(i64::from(limit))
        .fetch_all(conn)
        .await?;
    found
        .into_iter()
        .map(|row| {
            Ok(Meta {
                lane,
                first: position(scope, row.0)?,
                last: position(scope, row.1)?,
                through: position(scope, row.2)?,
                complete: position(scope, row.3)?,
                events: row.4.cast_unsigned(),
                wall_ms: (row.5, row.6),
                kinds: row.7,
                streams: row.8,
                raw_bytes: row.9,
                dictionary: row.10.map(DictionaryId::from_key),
                prev_digest: digest(scope, row.11)?,
                digest: digest(scope, row.12)?,
                crc: row.13,
            })
        })
        .collect()
}

/// Reads and checks the events of a segment.
pub(crate) async fn events(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    meta: &Meta,
) -> Result<Vec<Recorded>, Error> {
    wanted_events(conn, annexes, scope, meta, &|_| true).await
}

/// As [`events`], of those that are wanted.
pub(crate) async fn wanted_events(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    meta: &Meta,
    wanted: &(dyn Fn(&Peek<'_>) -> bool + Sync),
) -> Result<Vec<Recorded>, Error> {
    let found: bodies::Columns =
        sqlx::query_as(meta.lane.sql().body).bind(meta.first.to_key()?).fetch_one(&mut *conn).await?;
    let damaged = |path, why: &str| damaged(scope, meta, path, why);
    let Body { bytes: body, path } = bodies::load(annexes, meta.lane, found).map_err(|error| error.about(damaged))?;
    if i64::from(meta.checksum(&body)?) != meta.crc {
        return Err(damaged(path, "checksum differs"));
    }
    open_body(conn, scope, meta, &body, wanted).await
}

fn what(scope: &Scope, meta: &Meta) -> String {
    format!("{scope} {} row {}", meta.lane.sql().table, meta.first.to_key_clamped())
}

fn damaged(scope: &Scope, meta: &Meta, path: Option<PathBuf>, why: &str) -> Error {
    match path {
        Some(path) => Error::SegmentBody { scope: scope.clone(), segment: meta.first, path, why: why.to_owned() },
        None => Error::corrupt(what(scope, meta), why),
    }
}

/// The wanted events of a body. It has a checksum of its own, whatever the columns beside it say.
async fn open_body(
    conn: &mut SqliteConnection,
    scope: &Scope,
    meta: &Meta,
    body: &[u8],
    wanted: &(dyn Fn(&Peek<'_>) -> bool + Sync),
) -> Result<Vec<Recorded>, Error> {
    let dictionary = match meta.dictionary {
        None => None,
        Some(id) => {
            let missing = || Error::DictionaryMissing { scope: scope.clone(), segment: meta.first, dictionary: id };
            Some(dictionary::find(conn, id).await?.ok_or_else(missing)?)
        }
    };
    let others = Cell::new(false);
    let wanted = |peek: &Peek<'_>| {
        others.set(others.get() || peek.scope != scope.as_str());
        wanted(peek)
    };
    // All are looked at: they are to be of this scope.
    let picked = block::pick(body, dictionary.as_ref().map(|dictionary| dictionary.body.as_slice()), None, &wanted)
        .map_err(|error| Error::corrupt(what(scope, meta), error))?;
    let right = picked.ends == Some((meta.first, meta.last)) && picked.count as u64 == meta.events;
    if right && !others.get() {
        Ok(picked.events)
    } else {
        Err(Error::corrupt(what(scope, meta), "its events are not those of its columns"))
    }
}

/// The highest version of each stream in the segments: by number of its name, and by name those of segments whose list is
/// damaged, whose body is asked instead.
pub(crate) struct StreamTops {
    pub(crate) by_number: HashMap<i64, u64>,
    pub(crate) by_name: Vec<(StreamName, u64)>,
}

/// Reads [`StreamTops`]. Fails when neither the list nor the body of a segment can be read: which versions were given is not
/// known then.
pub(crate) async fn stream_tops(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
) -> Result<StreamTops, Error> {
    let mut tops = StreamTops { by_number: HashMap::new(), by_name: Vec::new() };
    for lane in [Lane::Flushed, Lane::Sealed] {
        let found: Vec<(i64, Vec<u8>)> = sqlx::query_as(lane.sql().streams).fetch_all(&mut *conn).await?;
        for (first, list) in found {
            match lists::parse_streams(&list) {
                Ok(streams) => {
                    for (id, version) in streams {
                        let top = tops.by_number.entry(id).or_default();
                        *top = version.max(*top);
                    }
                }
                Err(error) => {
                    tracing::warn!(%scope, first, %error, "the list of streams of a segment is damaged; its body is read");
                    let first = position(scope, first)?;
                    let events = events_of_body(conn, annexes, scope, lane, first).await?;
                    tops.by_name.extend(events.into_iter().map(|event| (event.stream, event.version)));
                }
            }
        }
    }
    Ok(tops)
}

/// The events of a segment whose columns are damaged.
async fn events_of_body(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    lane: Lane,
    first: Position,
) -> Result<Vec<Recorded>, Error> {
    let metas = metas(conn, scope, lane, (first.before(), first), Order::Forwards, 1).await?;
    let meta = metas.first().ok_or_else(|| Error::corrupt(format!("{scope} segment {first}"), "it is gone"))?;
    let found: bodies::Columns = sqlx::query_as(lane.sql().body).bind(first.to_key()?).fetch_one(&mut *conn).await?;
    let body = bodies::load(annexes, lane, found);
    let body = body.map_err(|error| error.about(|path, why: &str| damaged(scope, meta, path, why)))?;
    open_body(conn, scope, meta, &body.bytes, &|_| true).await
}

/// What the segments of a scope hold together.
pub(crate) struct Totals {
    pub(crate) segments: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) first: Option<Position>,
    pub(crate) last: Option<Position>,
}

/// Sums over the segments of a scope.
pub(crate) async fn totals(conn: &mut SqliteConnection, lane: Lane) -> Result<Totals, Error> {
    let found: (i64, i64, i64, Option<i64>, Option<i64>) = sqlx::query_as(lane.sql().totals).fetch_one(conn).await?;
    Ok(Totals {
        segments: found.0.cast_unsigned(),
        events: found.1.cast_unsigned(),
        bytes: found.2.cast_unsigned(),
        first: found.3.and_then(Position::from_key),
        last: found.4.and_then(Position::from_key),
    })
}
