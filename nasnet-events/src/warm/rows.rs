//! Events that were committed with their state, one row each.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use nasnet_dbmanager::{BootId, Scope};
use serde_json::value::RawValue;
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::block::{flags_of, parse_flags};
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::name::{EventType, StreamName};
use crate::position::Position;
use crate::varint;
use crate::warm::names;

/// Rows of one statement, largest first: few forms, so that each stays prepared.
const CHUNKS: [usize; 4] = [64, 16, 4, 1];

static INSERT: LazyLock<HashMap<usize, String>> = LazyLock::new(|| {
    let statement = |rows: usize| {
        format!(
            "INSERT INTO event_rows (pos, stream, version, kind, flags, schema, event_id, actor, correlation_id, \
             causation_id, wall_ms, boot, boottime_ms, body, crc) VALUES {}",
            vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows].join(", ")
        )
    };
    CHUNKS.into_iter().map(|rows| (rows, statement(rows))).collect()
});

const VERSIONS: &str = "SELECT n.text, MAX(r.version) FROM event_names n JOIN event_rows r ON r.stream = n.id \
     WHERE n.text IN (SELECT value FROM json_each(?1)) GROUP BY n.id";
const COUNT: &str = "SELECT COUNT(*) FROM event_rows WHERE pos BETWEEN ?1 AND ?2";
const WINDOW: &str = "SELECT r.pos, n.text, r.version, r.event_id FROM event_rows r \
     LEFT JOIN event_names n ON n.id = r.stream ORDER BY r.pos";
const TOTALS: &str = "SELECT COUNT(*), COALESCE(SUM(length(body)), 0), MIN(pos), MAX(pos) FROM event_rows";

/// The columns of an event, each text spelled out. Outer joins, so that a missing name shows as damage.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.pos, s.text, r.version, k.text, r.flags, r.schema, r.event_id, a.text, r.correlation_id, ",
            "r.causation_id, r.wall_ms, b.text, r.boottime_ms, r.body, r.crc FROM event_rows r ",
            "LEFT JOIN event_names s ON s.id = r.stream LEFT JOIN event_names k ON k.id = r.kind ",
            "LEFT JOIN event_names a ON a.id = r.actor LEFT JOIN event_names b ON b.id = r.boot ",
            $rest
        )
    };
}

const FORWARDS: &str = select!("WHERE r.pos > ?1 AND r.pos <= ?2 ORDER BY r.pos LIMIT ?3");
const BACKWARDS: &str = select!("WHERE r.pos > ?1 AND r.pos <= ?2 ORDER BY r.pos DESC LIMIT ?3");
// Positions and versions of a stream ascend together, so the unique index gives the order.
const STREAM_FORWARDS: &str = select!(
    "WHERE r.stream = (SELECT id FROM event_names WHERE text = ?4) AND r.pos > ?1 AND r.pos <= ?2 \
     ORDER BY r.version LIMIT ?3"
);
const STREAM_BACKWARDS: &str = select!(
    "WHERE r.stream = (SELECT id FROM event_names WHERE text = ?4) AND r.pos > ?1 AND r.pos <= ?2 \
     ORDER BY r.version DESC LIMIT ?3"
);

/// CRC32C over an event with its names spelled out, so that a damaged name is noticed too.
fn checksum(event: &Recorded) -> u32 {
    let mut bytes = Vec::with_capacity(event.body.get().len() + 160);
    varint::put(&mut bytes, u64::from(event.position.epoch));
    varint::put(&mut bytes, event.position.seq);
    varint::put(&mut bytes, event.version);
    varint::put(&mut bytes, flags_of(event));
    varint::put(&mut bytes, u64::from(event.schema));
    for text in [event.scope.as_str(), event.stream.as_str(), event.kind.as_str(), event.body.get()] {
        varint::put_bytes(&mut bytes, text.as_bytes());
    }
    varint::put(&mut bytes, u64::from(event.actor.is_some()));
    varint::put_bytes(&mut bytes, event.actor.as_deref().unwrap_or_default().as_bytes());
    for id in [Some(event.id), event.correlation_id, event.causation_id] {
        varint::put(&mut bytes, u64::from(id.is_some()));
        bytes.extend_from_slice(&id.unwrap_or(Ulid::nil()).to_bytes());
    }
    varint::put_signed(&mut bytes, event.wall_ms);
    bytes.extend_from_slice(event.boot.as_bytes());
    varint::put(&mut bytes, event.boottime_ms);
    crc32c::crc32c(&bytes)
}

/// Inserts events in the caller's transaction.
pub(crate) async fn insert(conn: &mut SqliteConnection, events: &[&Recorded]) -> Result<(), Error> {
    let boots: HashMap<BootId, String> = events.iter().map(|event| (event.boot, event.boot.to_string())).collect();
    let mut texts: BTreeSet<&str> = boots.values().map(String::as_str).collect();
    for event in events {
        texts.insert(event.stream.as_str());
        texts.insert(event.kind.as_str());
        texts.extend(event.actor.as_deref());
    }
    let ids = names::intern(conn, &texts).await?;

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
                .bind(event.wall_ms)
                .bind(id_of(boot)?)
                .bind(event.boottime_ms.cast_signed())
                .bind(event.body.get())
                .bind(i64::from(checksum(event)));
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

/// The highest version each of `streams` has in the rows this connection sees.
pub(crate) async fn versions(
    conn: &mut SqliteConnection,
    streams: &BTreeSet<&str>,
) -> Result<HashMap<String, u64>, Error> {
    let wanted = serde_json::to_string(streams).map_err(|error| Error::corrupt("stream names", error))?;
    let found: Vec<(String, i64)> = sqlx::query_as(VERSIONS).bind(wanted).fetch_all(conn).await?;
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
    pub(crate) id: Ulid,
}

/// Heads of all rows. Damaged ones are left out: reading them reports the damage.
pub(crate) async fn window(conn: &mut SqliteConnection) -> Result<Vec<RowHead>, Error> {
    let found: Vec<(i64, Option<String>, i64, Vec<u8>)> = sqlx::query_as(WINDOW).fetch_all(conn).await?;
    let head = |(pos, stream, version, id): (i64, Option<String>, i64, Vec<u8>)| {
        Some(RowHead {
            position: Position::from_key(pos)?,
            stream: StreamName::parse(&stream?).ok()?,
            version: version.cast_unsigned(),
            id: Ulid::from_bytes(id.try_into().ok()?),
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

type Found = (
    i64,
    Option<String>,
    i64,
    Option<String>,
    i64,
    i64,
    Vec<u8>,
    Option<String>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    i64,
    Option<String>,
    i64,
    String,
    i64,
);

/// A page of rows: each with its position, and the event or what is wrong with it.
pub(crate) type Page = Vec<(Position, Result<Recorded, Error>)>;

/// Rows after `after` up to `until` in the given order, of one stream or of all.
pub(crate) async fn page(
    conn: &mut SqliteConnection,
    scope: &Scope,
    (after, until): (Position, Position),
    stream: Option<&StreamName>,
    order: Order,
    limit: u32,
) -> Result<Page, Error> {
    let sql = match (order, stream.is_some()) {
        (Order::Forwards, false) => FORWARDS,
        (Order::Backwards, false) => BACKWARDS,
        (Order::Forwards, true) => STREAM_FORWARDS,
        (Order::Backwards, true) => STREAM_BACKWARDS,
    };
    let mut query = sqlx::query_as::<_, Found>(sql)
        .bind(after.to_key_clamped())
        .bind(until.to_key_clamped())
        .bind(i64::from(limit));
    if let Some(stream) = stream {
        query = query.bind(stream.as_str());
    }
    let found = query.fetch_all(conn).await?;
    found
        .into_iter()
        .map(|row| {
            let what = format!("{scope} event_rows row {}", row.0);
            let position = Position::from_key(row.0).ok_or_else(|| Error::corrupt(what.as_str(), "negative key"))?;
            Ok((position, decode(scope, position, row).map_err(|why| Error::corrupt(what, why))))
        })
        .collect()
}

fn decode(scope: &Scope, position: Position, row: Found) -> Result<Recorded, String> {
    let (
        _,
        stream,
        version,
        kind,
        flags,
        schema,
        id,
        actor,
        correlation,
        causation,
        wall_ms,
        boot,
        boottime,
        body,
        crc,
    ) = row;
    let name = |text: Option<String>| text.ok_or_else(|| "a name is missing".to_owned());
    let ulid =
        |bytes: Vec<u8>| bytes.try_into().map(Ulid::from_bytes).map_err(|_| "an id has another length".to_owned());
    let (class, level, quality) = parse_flags(flags.cast_unsigned()).map_err(|error| error.to_string())?;
    let event = Recorded {
        position,
        id: ulid(id)?,
        scope: scope.clone(),
        stream: StreamName::parse(&name(stream)?).map_err(|error| error.to_string())?,
        version: version.cast_unsigned(),
        kind: EventType::parse(&name(kind)?).map_err(|error| error.to_string())?,
        class,
        level,
        schema: u16::try_from(schema).map_err(|_| "schema too large".to_owned())?,
        actor,
        correlation_id: correlation.map(ulid).transpose()?,
        causation_id: causation.map(ulid).transpose()?,
        wall_ms,
        quality,
        boot: name(boot)?.parse().map_err(|error: nasnet_dbmanager::Error| error.to_string())?,
        boottime_ms: boottime.cast_unsigned(),
        body: RawValue::from_string(body).map_err(|_| "body is not JSON".to_owned())?,
    };
    if i64::from(checksum(&event)) == crc { Ok(event) } else { Err("checksum differs".to_owned()) }
}
