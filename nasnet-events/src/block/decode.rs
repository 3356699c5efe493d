//! Reading a block: all of its events, or those that are wanted.

use std::cell::RefCell;

use foldhash::{HashMap, HashMapExt as _};
use nasnet_dbmanager::{BootId, Scope};
use ulid::Ulid;

use super::{
    COMPRESSED, Flags, HEADER_BYTES, PAYLOAD_BYTES_MAX, VERSION, WITH_DICTIONARY, checksum, flag, parse_flags,
};
use crate::body::Body;
use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::varint::{Malformed, Reader};

/// Entries of a list for which room is made before they are read.
const LIST_ROOM_MAX: usize = 1_024;

/// What can be told of an event before it is put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peek<'a> {
    pub(crate) position: Position,
    pub(crate) scope: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) class: Class,
    pub(crate) level: Level,
    pub(crate) actor: Option<&'a str>,
    pub(crate) correlation_id: Option<Ulid>,
    pub(crate) id: Ulid,
    pub(crate) wall_ms: i64,
}

/// Some events of a block, and how many it holds in all.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) events: Vec<Recorded>,
    pub(crate) count: usize,
    /// Positions of the first and the last event of the block.
    pub(crate) ends: Option<(Position, Position)>,
}

/// As [`decode_with`], of a block that needs no dictionary.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Recorded>, Malformed> {
    decode_with(bytes, None)
}

/// Decodes what [`super::encode`] wrote. Every damage is an error, never a panic and never a large allocation.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decode_with(bytes: &[u8], dictionary: Option<&[u8]>) -> Result<Vec<Recorded>, Malformed> {
    Ok(pick(bytes, dictionary, None, &|_| true)?.events)
}

/// As [`decode_with`], of the wanted events only: most of the time goes into putting events together. Where one stream is
/// asked for, nothing of the others is looked at.
pub(crate) fn pick(
    bytes: &[u8],
    dictionary: Option<&[u8]>,
    stream: Option<&str>,
    wanted: &dyn Fn(&Peek<'_>) -> bool,
) -> Result<Picked, Malformed> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Err(Malformed("ends early")) };
    let mut stored = Reader::new(&header[2..]);
    if u32::from_le_bytes(stored.array()?) != checksum(bytes) {
        return Err(Malformed("checksum differs"));
    }
    match (header[0], header[1]) {
        (VERSION, 0) => pick_payload(rest, stream, wanted),
        (VERSION, flags @ (COMPRESSED | WITH_DICTIONARY)) => {
            let mut reader = Reader::new(rest);
            let length = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
            if length > PAYLOAD_BYTES_MAX {
                return Err(Malformed("block too large"));
            }
            let payload = if flags == COMPRESSED {
                decompress(reader.remaining(), length)
            } else {
                let dictionary = dictionary.ok_or(Malformed("its dictionary is missing"))?;
                zstd::bulk::Decompressor::with_dictionary(dictionary)
                    .and_then(|mut decompressor| decompressor.decompress(reader.remaining(), length))
            };
            let payload = payload.map_err(|_| Malformed("zstd cannot decompress"))?;
            if payload.len() != length {
                return Err(Malformed("length differs"));
            }
            pick_payload(&payload, stream, wanted)
        }
        (VERSION, _) => Err(Malformed("unknown flags")),
        _ => Err(Malformed("unknown version")),
    }
}

/// Decompresses with a context that this thread keeps: a read by stream opens a block for each event.
fn decompress(bytes: &[u8], length: usize) -> std::io::Result<Vec<u8>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress(bytes, length)
    })
}

/// The columns of one event as they are read, texts and ids by number.
struct Columns {
    position: Position,
    scope: u64,
    stream: u64,
    version: u64,
    kind: u64,
    flags: Flags,
    schema: u16,
    actor: Option<u64>,
    subject: Option<u64>,
    correlation: Option<u64>,
    causation: Option<u64>,
    id_ms: u64,
    wall_ms: i64,
    boot: u64,
    boottime_ms: u64,
}

/// The distinct texts and ids of a block, each text parsed at most once per use it is put to.
struct Texts<'a> {
    texts: Vec<&'a str>,
    ids: Vec<[u8; 16]>,
    scopes: HashMap<usize, Scope>,
    streams: HashMap<usize, StreamName>,
    kinds: HashMap<usize, EventType>,
}

impl<'a> Texts<'a> {
    fn text(&self, number: u64) -> Result<(usize, &'a str), Malformed> {
        let index = usize::try_from(number).map_err(|_| Malformed("unknown text"))?;
        Ok((index, self.texts.get(index).ok_or(Malformed("unknown text"))?))
    }

    fn id(&self, number: u64) -> Result<[u8; 16], Malformed> {
        let index = usize::try_from(number).map_err(|_| Malformed("unknown id"))?;
        self.ids.get(index).copied().ok_or(Malformed("unknown id"))
    }

    fn scope(&mut self, number: u64) -> Result<Scope, Malformed> {
        let (index, text) = self.text(number)?;
        if let Some(scope) = self.scopes.get(&index) {
            return Ok(scope.clone());
        }
        let scope: Scope = text.parse().map_err(|_| Malformed("malformed scope"))?;
        self.scopes.insert(index, scope.clone());
        Ok(scope)
    }

    fn stream(&mut self, number: u64) -> Result<StreamName, Malformed> {
        let (index, text) = self.text(number)?;
        if let Some(stream) = self.streams.get(&index) {
            return Ok(stream.clone());
        }
        let stream = StreamName::parse(text).map_err(|_| Malformed("malformed stream name"))?;
        self.streams.insert(index, stream.clone());
        Ok(stream)
    }

    fn kind(&mut self, number: u64) -> Result<EventType, Malformed> {
        let (index, text) = self.text(number)?;
        if let Some(kind) = self.kinds.get(&index) {
            return Ok(kind.clone());
        }
        let kind = EventType::parse(text).map_err(|_| Malformed("malformed event type"))?;
        self.kinds.insert(index, kind.clone());
        Ok(kind)
    }

    fn peek(&self, event: &Columns, random: [u8; 10]) -> Result<Peek<'a>, Malformed> {
        let (scope, stream, kind) = (self.text(event.scope)?.1, self.text(event.stream)?.1, self.text(event.kind)?.1);
        let correlation = event.correlation.map(|number| self.id(number)).transpose()?;
        Ok(Peek {
            position: event.position,
            scope,
            stream,
            kind,
            class: event.flags.class,
            level: event.flags.level,
            actor: event.actor.map(|number| self.text(number)).transpose()?.map(|(_, text)| text),
            correlation_id: correlation.map(Ulid::from_bytes),
            id: id_of(event, random),
            wall_ms: event.wall_ms,
        })
    }
}

/// So many of one thing. Collected from results, a list would grow step by step from the beginning, and a number that is
/// damaged gets no room it has no bytes for.
fn list<T>(count: usize, mut read: impl FnMut() -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
    let mut list = Vec::with_capacity(count.min(LIST_ROOM_MAX));
    for _ in 0..count {
        list.push(read()?);
    }
    Ok(list)
}

fn pick_payload(payload: &[u8], stream: Option<&str>, wanted: &dyn Fn(&Peek<'_>) -> bool) -> Result<Picked, Malformed> {
    let mut reader = Reader::new(payload);
    // Each event takes at least its id's random half and one byte in each of ten columns.
    let count = reader.count(20)?;
    let text_count = reader.count(1)?;
    let texts = list(text_count, || reader.text())?;
    let id_count = reader.count(16)?;
    let ids = list(id_count, || reader.array::<16>())?;
    // Each text is there once. One that is not there is no event's stream.
    let asked = stream.map(|stream| texts.iter().position(|text| *text == stream).map_or(u64::MAX, |at| at as u64));
    let mut texts = Texts { texts, ids, scopes: HashMap::new(), streams: HashMap::new(), kinds: HashMap::new() };

    let columns = read_columns(&mut reader, count)?;
    let randoms = list(count, || reader.array::<10>())?;
    let lengths = list(count, || reader.varint())?;
    let ends = columns.first().zip(columns.last()).map(|(first, last)| (first.position, last.position));
    let mut events = Vec::new();
    for ((event, random), length) in columns.into_iter().zip(randoms).zip(lengths) {
        let length = usize::try_from(length).map_err(|_| Malformed("body too large"))?;
        let body = reader.take(length)?;
        if asked.is_none_or(|number| number == event.stream) && wanted(&texts.peek(&event, random)?) {
            events.push(finish(&mut texts, &event, random, body)?);
        }
    }
    if reader.is_empty() { Ok(Picked { events, count, ends }) } else { Err(Malformed("bytes left over")) }
}

fn read_columns(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Columns>, Malformed> {
    let mut positions = Vec::with_capacity(count);
    let mut key = 0_u64;
    for _ in 0..count {
        let step = reader.varint()?;
        key = key.checked_add(step).filter(|_| step > 0).ok_or(Malformed("positions do not ascend"))?;
        positions.push(Position::from_key(key.cast_signed()).ok_or(Malformed("position too large"))?);
    }
    let mut named = Vec::with_capacity(count);
    for position in positions {
        named.push((position, [reader.varint()?, reader.varint()?, reader.varint()?, reader.varint()?]));
    }
    let mut columns = Vec::with_capacity(count);
    for (position, [scope, stream, version, kind]) in named {
        let flags = reader.varint()?;
        if flags & !flag::KNOWN != 0 {
            return Err(Malformed("unknown event flags"));
        }
        let parsed = parse_flags(flags)?;
        let schema = u16::try_from(reader.varint()?).map_err(|_| Malformed("schema too large"))?;
        let mut optional = |bit: u64| if flags & bit == 0 { Ok(None) } else { reader.varint().map(Some) };
        columns.push(Columns {
            position,
            scope,
            stream,
            version,
            kind,
            flags: parsed,
            schema,
            actor: optional(flag::ACTOR)?,
            correlation: optional(flag::CORRELATION)?,
            causation: optional(flag::CAUSATION)?,
            subject: optional(flag::SUBJECT)?,
            id_ms: 0,
            wall_ms: 0,
            boot: 0,
            boottime_ms: 0,
        });
    }
    let (mut id_ms, mut wall_ms, mut boottime_ms) = (0_i64, 0_i64, 0_i64);
    for event in &mut columns {
        id_ms = id_ms.wrapping_add(reader.signed()?);
        wall_ms = wall_ms.wrapping_add(reader.signed()?);
        event.boot = reader.varint()?;
        boottime_ms = boottime_ms.wrapping_add(reader.signed()?);
        (event.id_ms, event.wall_ms, event.boottime_ms) = (id_ms.cast_unsigned(), wall_ms, boottime_ms.cast_unsigned());
    }
    Ok(columns)
}

fn id_of(event: &Columns, random: [u8; 10]) -> Ulid {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&event.id_ms.to_be_bytes()[2..]);
    id[6..].copy_from_slice(&random);
    Ulid::from_bytes(id)
}

fn finish(texts: &mut Texts<'_>, event: &Columns, random: [u8; 10], body: &[u8]) -> Result<Recorded, Malformed> {
    let body = std::str::from_utf8(body).map_err(|_| Malformed("body is not UTF-8"))?;
    let actor = event.actor.map(|number| texts.text(number)).transpose()?.map(|(_, text)| text.to_owned());
    let subject = event.subject.map(|number| texts.text(number)).transpose()?.map(|(_, text)| Subject::parse(text));
    let numbered = |number: Option<u64>| number.map(|number| texts.id(number)).transpose();
    let (correlation_id, causation_id) = (numbered(event.correlation)?, numbered(event.causation)?);
    let boot = BootId::from_bytes(texts.id(event.boot)?);
    Ok(Recorded {
        position: event.position,
        id: id_of(event, random),
        scope: texts.scope(event.scope)?,
        stream: texts.stream(event.stream)?,
        version: event.version,
        kind: texts.kind(event.kind)?,
        class: event.flags.class,
        level: event.flags.level,
        schema: event.schema,
        actor,
        correlation_id: correlation_id.map(Ulid::from_bytes),
        causation_id: causation_id.map(Ulid::from_bytes),
        wall_ms: event.wall_ms,
        quality: event.flags.quality,
        boot,
        boottime_ms: event.boottime_ms,
        subject: subject.transpose().map_err(|_| Malformed("malformed subject"))?,
        synced: event.flags.synced,
        body: Body::from_stored(body.to_owned(), event.flags.sealed)?,
    })
}
