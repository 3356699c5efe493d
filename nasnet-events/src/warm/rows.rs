//! Events that were committed with their state, one row each.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use nasnet_dbmanager::{BootId, Scope};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use ulid::Ulid;

use crate::block::{flags_of, parse_flags};
use crate::body::Body;
use crate::chain::{self, Digest};
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::loaded::RowsKnown;
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::warm::names;

/// Rows of one statement, largest first: few forms, so that each stays prepared.
const CHUNKS: [usize; 4] = [64, 16, 4, 1];

static INSERT: LazyLock<HashMap<usize, String>> = LazyLock::new(|| {
    let statement = |rows: usize| {
        format!(
            "INSERT INTO event_rows (pos, stream, version, kind, flags, schema, event_id, actor, correlation_id, \
             causation_id, subject, wall_ms, boot, boottime_ms, body, digest, crc) VALUES {}",
            vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows].join(", ")
        )
    };
    CHUNKS.into_iter().map(|rows| (rows, statement(rows))).collect()
});

/// The rows that are known are passed over, if they are those of this file.
const VERSIONS: &str = "SELECT (SELECT n.text FROM event_names n WHERE n.id = r.stream), MAX(r.version) FROM event_rows r \
     WHERE r.pos > CASE (SELECT digest FROM event_rows WHERE pos = ?2) WHEN ?3 THEN ?2 ELSE 0 END \
     AND r.stream IN (SELECT n.id FROM event_names n WHERE n.text IN (SELECT value FROM json_each(?1))) \
     GROUP BY r.stream";
const COUNT: &str = "SELECT COUNT(*) FROM event_rows WHERE pos BETWEEN ?1 AND ?2";
const WINDOW: &str = "SELECT r.pos, n.text, r.version, r.event_id, r.digest FROM event_rows r \
     LEFT JOIN event_names n ON n.id = r.stream \
     WHERE r.pos > CASE (SELECT digest FROM event_rows WHERE pos = ?1) WHEN ?2 THEN ?1 ELSE 0 END ORDER BY r.pos";
const CHAINED: &str = "SELECT digest FROM (SELECT pos, digest FROM event_rows WHERE pos = (SELECT MAX(pos) FROM event_rows) \
     UNION ALL SELECT pos, digest FROM event_chain WHERE lane = 'rows') ORDER BY pos DESC LIMIT 1";
const CHAINED_AT: &str = "SELECT pos, digest FROM (SELECT * FROM (SELECT pos, digest FROM event_rows WHERE pos <= ?1 \
     ORDER BY pos DESC LIMIT 1) UNION ALL SELECT pos, digest FROM event_chain WHERE lane = 'rows' AND pos <= ?1) \
     ORDER BY pos DESC LIMIT 1";
const TOTALS: &str = "SELECT COUNT(*), COALESCE(SUM(length(body)), 0), MIN(pos), MAX(pos) FROM event_rows";

/// The columns of an event, each text spelled out. Outer joins, so that a missing name shows as damage.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.pos, s.text, r.version, k.text, r.flags, r.schema, r.event_id, a.text, r.correlation_id, ",
            "r.causation_id, r.subject, u.text, r.wall_ms, b.text, r.boottime_ms, r.body, r.digest, r.crc ",
            "FROM event_rows r ",
            "LEFT JOIN event_names s ON s.id = r.stream LEFT JOIN event_names k ON k.id = r.kind ",
            "LEFT JOIN event_names a ON a.id = r.actor LEFT JOIN event_names b ON b.id = r.boot ",
            "LEFT JOIN event_names u ON u.id = r.subject ",
            $rest
        )
    };
}

/// With a sign behind LIMIT the statement is not prepared anew for each number.
const FORWARDS: &str = select!("WHERE r.pos > ?1 AND r.pos <= ?2 ORDER BY r.pos LIMIT +?3");
const BACKWARDS: &str = select!("WHERE r.pos > ?1 AND r.pos <= ?2 ORDER BY r.pos DESC LIMIT +?3");
const STREAM_FORWARDS: &str = select!(
    "WHERE r.stream = (SELECT id FROM event_names WHERE text = ?4) AND r.pos > ?1 AND r.pos <= ?2 \
     ORDER BY r.pos LIMIT +?3"
);
const STREAM_BACKWARDS: &str = select!(
    "WHERE r.stream = (SELECT id FROM event_names WHERE text = ?4) AND r.pos > ?1 AND r.pos <= ?2 \
     ORDER BY r.pos DESC LIMIT +?3"
);

/// The statements that read pages.
#[cfg(test)]
pub(super) const PAGES: [&str; 5] = [FORWARDS, BACKWARDS, STREAM_FORWARDS, STREAM_BACKWARDS, COUNT];

/// The statements that look at what came behind the rows that are known.
#[cfg(test)]
pub(super) const BEHIND: [&str; 2] = [VERSIONS, WINDOW];

/// CRC32C over an event with its names spelled out, so that a damaged name is noticed too, and over its place in the
/// chain.
pub(crate) fn checksum(event: &Recorded, chain: Digest) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chain::canonical(event)), &chain.0)
}

/// The digest of the newest row there is or was: where the chain of this scope's rows goes on.
pub(crate) async fn chained(conn: &mut SqliteConnection) -> Result<Digest, Error> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(CHAINED).fetch_optional(conn).await?;
    let Some(bytes) = found else { return Ok(Digest::GENESIS) };
    Digest::from_slice(&bytes).ok_or_else(|| Error::corrupt("event_rows", "digest has another length"))
}

/// Whether so many events are inserted by one statement, all or none, whatever becomes of who waits for it.
pub(crate) fn is_one_statement(events: usize) -> bool {
    CHUNKS.contains(&events)
}

/// Inserts events in the caller's transaction.
///
/// The caller holds the database's write lock since before their positions were given, so rows come in the order of
/// their positions and each is chained to the one before.
pub(crate) async fn insert(conn: &mut SqliteConnection, events: &[&Recorded]) -> Result<(), Error> {
    let boots: HashMap<BootId, String> = events.iter().map(|event| (event.boot, event.boot.to_string())).collect();
    let mut texts: BTreeSet<&str> = boots.values().map(String::as_str).collect();
    for event in events {
        texts.insert(event.stream.as_str());
        texts.insert(event.kind.as_str());
        texts.extend(event.actor.as_deref());
        texts.extend(event.subject.as_ref().map(|subject| subject.as_str()));
    }
    let ids = names::intern(conn, &texts).await?;
    let mut chain = chained(conn).await?;

    let mut rest = events;
    while !rest.is_empty() {
        let size = CHUNKS.into_iter().find(|size| *size <= rest.len()).unwrap_or(1);
        let (chunk, later) = rest.split_at(size);
        rest = later;
        let Some(sql) = INSERT.get(&size) else { continue };
        let mut query = sqlx::query(sql.as_str());
        for event in chunk {
            let id_of = |text: &str| names::number(&ids, text);
            let boot = boots.get(&event.boot).map_or("", String::as_str);
            chain = chain::link(chain, chain::leaf(event));
            query = query
                .bind(event.position.to_key()?)
                .bind(id_of(event.stream.as_str())?)
                .bind(event.version.cast_signed())
                .bind(id_of(event.kind.as_str())?)
                .bind(flags_of(event).cast_signed())
                .bind(i64::from(event.schema))
                .bind(event.id.to_bytes().to_vec())
                .bind(event.actor.as_deref().map(id_of).transpose()?)
                .bind(event.correlation_id.map(|id| id.to_bytes().to_vec()))
                .bind(event.causation_id.map(|id| id.to_bytes().to_vec()))
                .bind(event.subject.as_ref().map(|subject| id_of(subject.as_str())).transpose()?)
                .bind(event.wall_ms)
                .bind(id_of(boot)?)
                .bind(event.boottime_ms.cast_signed())
                .bind(event.body.get())
                .bind(chain.0.to_vec())
                .bind(i64::from(checksum(event, chain)));
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

/// The highest version each of `streams` has in the rows this connection sees behind those that are known. There is no
/// index for it (docs/adr/0010), so all of these are looked at.
pub(crate) async fn versions(
    conn: &mut SqliteConnection,
    streams: &BTreeSet<&str>,
    known: RowsKnown,
) -> Result<HashMap<String, u64>, Error> {
    let wanted = serde_json::to_string(streams).map_err(|error| Error::corrupt("stream names", error))?;
    let query = sqlx::query_as(VERSIONS).bind(wanted).bind(known.through.to_key_clamped());
    let found: Vec<(String, i64)> = query.bind(&known.digest.0[..]).fetch_all(conn).await?;
    Ok(found.into_iter().map(|(text, version)| (text, version.cast_unsigned())).collect())
}

/// Number of rows at positions `first..=last` this connection sees.
pub(crate) async fn count(conn: &mut SqliteConnection, first: Position, last: Position) -> Result<u64, Error> {
    let found: i64 = sqlx::query_scalar(COUNT).bind(first.to_key()?).bind(last.to_key()?).fetch_one(conn).await?;
    Ok(found.cast_unsigned())
}

/// What the heads need to know of a row.
pub(crate) struct RowHead {
    pub(crate) position: Position,
    pub(crate) stream: StreamName,
    pub(crate) version: u64,
    /// `None` when it is damaged.
    pub(crate) id: Option<Ulid>,
    /// The chain of rows after this one, `None` when it is damaged.
    pub(crate) digest: Option<Digest>,
}

type FoundHead = (i64, Option<String>, i64, Vec<u8>, Vec<u8>);

/// Heads of all rows behind those that are known, in order. One whose stream is damaged is left out: reading it reports the
/// damage.
pub(crate) async fn window(conn: &mut SqliteConnection, known: RowsKnown) -> Result<Vec<RowHead>, Error> {
    let query = sqlx::query_as(WINDOW).bind(known.through.to_key_clamped()).bind(&known.digest.0[..]);
    let found: Vec<FoundHead> = query.fetch_all(conn).await?;
    let head = |(pos, stream, version, id, digest): FoundHead| {
        Some(RowHead {
            position: Position::from_key(pos)?,
            stream: StreamName::parse(&stream?).ok()?,
            version: version.cast_unsigned(),
            id: id.try_into().ok().map(Ulid::from_bytes),
            digest: Digest::from_slice(&digest),
        })
    };
    Ok(found.into_iter().filter_map(head).collect())
}

/// Number of rows, bytes of their bodies, first and last position.
pub(crate) async fn totals(
    conn: &mut SqliteConnection,
) -> Result<(u64, u64, Option<Position>, Option<Position>), Error> {
    let (events, bytes, first, last): (i64, i64, Option<i64>, Option<i64>) =
        sqlx::query_as(TOTALS).fetch_one(conn).await?;
    let position = |key: Option<i64>| key.and_then(Position::from_key);
    Ok((events.cast_unsigned(), bytes.cast_unsigned(), position(first), position(last)))
}

/// A row as it is stored.
pub(crate) struct Stored {
    pub(crate) position: Position,
    /// The event, or what is wrong with it.
    pub(crate) event: Result<Recorded, Error>,
    /// The chain of rows after this one, when it can be read.
    pub(crate) digest: Option<Digest>,
}

/// Rows after `after` up to `until` in the given order, of one stream or of all.
pub(crate) async fn page(
    conn: &mut SqliteConnection,
    scope: &Scope,
    (after, until): (Position, Position),
    stream: Option<&StreamName>,
    order: Order,
    limit: u32,
) -> Result<Vec<Stored>, Error> {
    let sql = match (order, stream.is_some()) {
        (Order::Forwards, false) => FORWARDS,
        (Order::Backwards, false) => BACKWARDS,
        (Order::Forwards, true) => STREAM_FORWARDS,
        (Order::Backwards, true) => STREAM_BACKWARDS,
    };
    let mut query = sqlx::query(sql).bind(after.to_key_clamped()).bind(until.to_key_clamped()).bind(i64::from(limit));
    if let Some(stream) = stream {
        query = query.bind(stream.as_str());
    }
    let found = query.fetch_all(conn).await?;
    found
        .iter()
        .map(|row| {
            let key: i64 = row.try_get(0)?;
            let what = format!("{scope} event_rows row {key}");
            let position = Position::from_key(key).ok_or_else(|| Error::corrupt(what.as_str(), "negative key"))?;
            let columns = columns(row);
            let digest = columns.as_ref().ok().and_then(|columns| Digest::from_slice(&columns.digest));
            let event = columns.and_then(|columns| columns.decode(scope, position));
            Ok(Stored { position, event: event.map_err(|why| Error::corrupt(what, why)), digest })
        })
        .collect()
}

/// Where the chain of rows stands behind everything up to a position, and its last row there; `None` before the first.
pub(crate) async fn chained_at(
    conn: &mut SqliteConnection,
    position: Position,
) -> Result<Option<(Position, Digest)>, Error> {
    let found: Option<(i64, Vec<u8>)> =
        sqlx::query_as(CHAINED_AT).bind(position.to_key_clamped()).fetch_optional(conn).await?;
    let at = |(pos, digest): (i64, Vec<u8>)| Some((Position::from_key(pos)?, Digest::from_slice(&digest)?));
    found
        .map(|found| at(found).ok_or_else(|| Error::corrupt("event_rows", "position or digest is malformed")))
        .transpose()
}

/// The columns of a row, whatever they hold. A text that is not UTF-8 damages its own row only.
fn columns(row: &SqliteRow) -> Result<Columns, String> {
    fn get<'r, T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(
        row: &'r SqliteRow,
        index: usize,
    ) -> Result<T, String> {
        row.try_get(index).map_err(|error| error.to_string())
    }
    Ok(Columns {
        stream: get(row, 1)?,
        version: get(row, 2)?,
        kind: get(row, 3)?,
        flags: get(row, 4)?,
        schema: get(row, 5)?,
        id: get(row, 6)?,
        actor: get(row, 7)?,
        correlation: get(row, 8)?,
        causation: get(row, 9)?,
        subject_number: get(row, 10)?,
        subject: get(row, 11)?,
        wall_ms: get(row, 12)?,
        boot: get(row, 13)?,
        boottime_ms: get(row, 14)?,
        body: get(row, 15)?,
        digest: get(row, 16)?,
        crc: get(row, 17)?,
    })
}

/// What a row holds, its names spelled out.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    pub(crate) stream: Option<String>,
    pub(crate) version: i64,
    pub(crate) kind: Option<String>,
    pub(crate) flags: i64,
    pub(crate) schema: i64,
    pub(crate) id: Vec<u8>,
    pub(crate) actor: Option<String>,
    pub(crate) correlation: Option<Vec<u8>>,
    pub(crate) causation: Option<Vec<u8>>,
    pub(crate) subject_number: Option<i64>,
    pub(crate) subject: Option<String>,
    pub(crate) wall_ms: i64,
    pub(crate) boot: Option<String>,
    pub(crate) boottime_ms: i64,
    pub(crate) body: String,
    pub(crate) digest: Vec<u8>,
    pub(crate) crc: i64,
}

impl Columns {
    /// Decodes and checks the event. Every damage is an error, never a panic.
    pub(crate) fn decode(self, scope: &Scope, position: Position) -> Result<Recorded, String> {
        let name = |text: Option<String>| text.ok_or_else(|| "a name is missing".to_owned());
        let ulid =
            |bytes: Vec<u8>| bytes.try_into().map(Ulid::from_bytes).map_err(|_| "an id has another length".to_owned());
        let flags = parse_flags(self.flags.cast_unsigned()).map_err(|error| error.to_string())?;
        if self.subject_number.is_some() != self.subject.is_some() {
            return Err("a name is missing".to_owned());
        }
        let subject = self.subject.map(|subject| Subject::parse(&subject)).transpose();
        let digest = Digest::from_slice(&self.digest).ok_or_else(|| "digest has another length".to_owned())?;
        let event = Recorded {
            position,
            id: ulid(self.id)?,
            scope: scope.clone(),
            stream: StreamName::parse(&name(self.stream)?).map_err(|error| error.to_string())?,
            version: self.version.cast_unsigned(),
            kind: EventType::parse(&name(self.kind)?).map_err(|error| error.to_string())?,
            class: flags.class,
            level: flags.level,
            schema: u16::try_from(self.schema).map_err(|_| "schema too large".to_owned())?,
            actor: self.actor,
            correlation_id: self.correlation.map(ulid).transpose()?,
            causation_id: self.causation.map(ulid).transpose()?,
            wall_ms: self.wall_ms,
            quality: flags.quality,
            boot: name(self.boot)?.parse().map_err(|error: nasnet_dbmanager::Error| error.to_string())?,
            boottime_ms: self.boottime_ms.cast_unsigned(),
            subject: subject.map_err(|error| error.to_string())?,
            synced: flags.synced,
            body: Body::from_stored(self.body, flags.sealed).map_err(|error| error.to_string())?,
        };
        if i64::from(checksum(&event, digest)) == self.crc { Ok(event) } else { Err("checksum differs".to_owned()) }
    }
}
