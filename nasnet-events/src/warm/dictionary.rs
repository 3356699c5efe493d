//! What zstd is told beforehand about the events of a scope: versions that only add up, each named by its content.

use std::collections::BTreeSet;
use std::fmt;

use sqlx::SqliteConnection;

use crate::error::Error;
use crate::event::Recorded;
use crate::position::Position;
use crate::varint;
use crate::warm::names;

/// The size dictionaries are trained to.
const BYTES: usize = 8 << 10;
/// Events a dictionary is trained on.
pub(crate) const SAMPLES_MIN: usize = 256;
pub(crate) const SAMPLES_MAX: usize = 1_024;
/// Versions a scope keeps at most: after that the newest stays in use.
pub(crate) const VERSIONS_MAX: usize = 16;
/// A new version must make segments smaller by this part.
const GAIN_PERCENT_MIN: usize = 5;
const LEVEL: i32 = 3;

const NEWEST: &str = "SELECT id, body FROM event_dictionaries ORDER BY made_pos DESC LIMIT 1";
const FIND: &str = "SELECT id, body FROM event_dictionaries WHERE id = ?1";
const MADE_THROUGH: &str = "SELECT MAX(made_pos) FROM event_dictionaries";
const COUNT: &str = "SELECT COUNT(*) FROM event_dictionaries";
const INSERT: &str = "INSERT INTO event_dictionaries (id, made_pos, kinds, events, body) VALUES (?1, ?2, ?3, ?4, ?5) \
     ON CONFLICT (id) DO NOTHING";

/// Names a dictionary: the CRC32C of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DictionaryId(u64);

impl DictionaryId {
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    pub(crate) const fn key(self) -> i64 {
        self.0.cast_signed()
    }

    pub(crate) const fn from_key(key: i64) -> Self {
        Self(key.cast_unsigned())
    }
}

impl fmt::Display for DictionaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A dictionary.
#[derive(Debug, Clone)]
pub(crate) struct Dictionary {
    pub(crate) id: DictionaryId,
    pub(crate) body: Vec<u8>,
}

impl Dictionary {
    fn new(body: Vec<u8>) -> Self {
        Self { id: DictionaryId(u64::from(crc32c::crc32c(&body)).max(1)), body }
    }

    /// A stored dictionary, `None` when its bytes are not those it is named by.
    fn checked((key, body): (i64, Vec<u8>)) -> Option<Self> {
        let dictionary = Self::new(body);
        (dictionary.id == DictionaryId::from_key(key)).then_some(dictionary)
    }
}

/// The dictionary new segments are written with. A damaged one is none: segments are larger without.
pub(crate) async fn newest(conn: &mut SqliteConnection) -> Result<Option<Dictionary>, Error> {
    let found: Option<(i64, Vec<u8>)> = sqlx::query_as(NEWEST).fetch_optional(conn).await?;
    Ok(found.and_then(Dictionary::checked))
}

/// A dictionary, `None` when it is not there or damaged.
pub(crate) async fn find(conn: &mut SqliteConnection, id: DictionaryId) -> Result<Option<Dictionary>, Error> {
    let found: Option<(i64, Vec<u8>)> = sqlx::query_as(FIND).bind(id.key()).fetch_optional(conn).await?;
    Ok(found.and_then(Dictionary::checked))
}

/// The newest event a dictionary was made from.
pub(crate) async fn made_through(conn: &mut SqliteConnection) -> Result<Position, Error> {
    let found: Option<i64> = sqlx::query_scalar(MADE_THROUGH).fetch_one(conn).await?;
    Ok(found.and_then(Position::from_key).unwrap_or(Position::START))
}

/// Versions there are.
pub(crate) async fn count(conn: &mut SqliteConnection) -> Result<usize, Error> {
    let found: i64 = sqlx::query_scalar(COUNT).fetch_one(conn).await?;
    Ok(usize::try_from(found).unwrap_or(usize::MAX))
}

/// Trains a dictionary on events, `None` when they are too few or too unlike each other, or when it is no better than
/// the one in use. Slow: not for a thread of the runtime.
pub(crate) fn train(events: &[Recorded], in_use: Option<&Dictionary>) -> Option<Dictionary> {
    let (sampled, judged) = events.split_at_checked(events.len() - events.len() / 4)?;
    if events.len() < SAMPLES_MIN {
        return None;
    }
    // Bodies with the names before them, as they stand in a block.
    let sample = |event: &Recorded| format!("{}{}{}", event.stream, event.kind, event.body.get()).into_bytes();
    let samples: Vec<Vec<u8>> = sampled.iter().map(sample).collect();
    let trained = Dictionary::new(zstd::dict::from_samples(&samples, BYTES).ok()?);
    // Judged by events it has not seen, in runs as long as a page of flash.
    let size = |dictionary: Option<&Dictionary>| {
        let mut compressor = match dictionary {
            Some(dictionary) => zstd::bulk::Compressor::with_dictionary(LEVEL, &dictionary.body).ok()?,
            None => zstd::bulk::Compressor::new(LEVEL).ok()?,
        };
        let runs = judged.chunks(60).map(|run| run.iter().flat_map(sample).collect::<Vec<u8>>());
        runs.map(|run| Some(compressor.compress(&run).ok()?.len())).sum::<Option<usize>>()
    };
    let (before, after) = (size(in_use)?, size(Some(&trained))?);
    (after * 100 <= before * (100 - GAIN_PERCENT_MIN)).then_some(trained)
}

/// Stores a dictionary made from these events.
pub(crate) async fn insert(
    conn: &mut SqliteConnection,
    dictionary: &Dictionary,
    events: &[Recorded],
) -> Result<(), Error> {
    let Some(last) = events.iter().map(|event| event.position).max() else { return Ok(()) };
    debug_assert!(last > Position::START, "stored events have positions");
    let kinds: BTreeSet<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let ids = names::intern(conn, &kinds).await?;
    let mut kind_bytes = Vec::new();
    for kind in kinds {
        varint::put(&mut kind_bytes, names::number(&ids, kind)?.cast_unsigned());
    }
    sqlx::query(INSERT)
        .bind(dictionary.id.key())
        .bind(last.to_key()?)
        .bind(kind_bytes)
        .bind(i64::try_from(events.len()).unwrap_or(i64::MAX))
        .bind(dictionary.body.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}
