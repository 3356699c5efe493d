//! The one form in which many events are stored as bytes: hot blocks and warm segments.
//!
//! Layout, version 2: `version u8, flags u8, crc32c u32le` over version, flags and the rest, then the payload, or with
//! flag 1 the payload's length as a varint and the payload in zstd, or with flag 2 the same in zstd with a dictionary. The payload holds the count, the distinct texts, the
//! distinct 16-byte ids, one column after the other, and the bodies.

use std::cell::RefCell;
use std::hash::Hash;

use foldhash::{HashMap, HashMapExt as _};
use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use ulid::Ulid;

use crate::body::Body;
use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::varint::{self, Malformed, Reader};

const VERSION: u8 = 2;
const COMPRESSED: u8 = 1;
/// Compressed with a dictionary that is kept elsewhere.
const WITH_DICTIONARY: u8 = 2;
/// Version, flags and checksum.
const HEADER_BYTES: usize = 6;
/// The most bytes a payload may claim to need, so that a damaged length cannot exhaust memory.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Payloads up to this length are compressed with a context that is kept.
const KEPT_CONTEXT_BYTES: usize = 256 << 10;

/// Bytes of the per-event flags.
mod flag {
    pub(super) const CLASS_MASK: u64 = 0b11;
    pub(super) const LEVEL_SHIFT: u32 = 2;
    pub(super) const LEVEL_MASK: u64 = 0b111;
    pub(super) const UNSYNCED: u64 = 1 << 5;
    pub(super) const ACTOR: u64 = 1 << 6;
    pub(super) const CORRELATION: u64 = 1 << 7;
    pub(super) const CAUSATION: u64 = 1 << 8;
    pub(super) const SUBJECT: u64 = 1 << 9;
    pub(super) const SEALED: u64 = 1 << 10;
    pub(super) const SYNCED: u64 = 1 << 11;
    pub(super) const KNOWN: u64 = (1 << 12) - 1;
}

/// Whether a block is compressed, and how hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing<'a> {
    /// As it is.
    Plain,
    /// zstd at this level, unless that does not make it smaller.
    Zstd(i32),
    /// As before, with a dictionary.
    Dictionary(i32, &'a [u8]),
}

/// Packs class, level, clock quality and the two marks as rows and blocks keep them.
pub(crate) fn flags_of(event: &Recorded) -> u64 {
    let class = match event.class {
        Class::Low => 0,
        Class::Normal => 1,
        Class::Critical => 2,
    };
    let level = match event.level {
        Level::Debug => 0,
        Level::Info => 1,
        Level::Warning => 2,
        Level::Error => 3,
    };
    let unsynced = if event.quality == ClockQuality::Unsynced { flag::UNSYNCED } else { 0 };
    let sealed = if event.body.is_sealed() { flag::SEALED } else { 0 };
    let synced = if event.synced { flag::SYNCED } else { 0 };
    class | (level << flag::LEVEL_SHIFT) | unsynced | sealed | synced
}

/// What [`flags_of`] packs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    pub(crate) class: Class,
    pub(crate) level: Level,
    pub(crate) quality: ClockQuality,
    pub(crate) sealed: bool,
    pub(crate) synced: bool,
}

/// Unpacks [`flags_of`].
pub(crate) fn parse_flags(flags: u64) -> Result<Flags, Malformed> {
    let pick = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    let class = Class::ALL.get(pick(flags & flag::CLASS_MASK)).ok_or(Malformed("unknown class"))?;
    let level = Level::ALL.get(pick((flags >> flag::LEVEL_SHIFT) & flag::LEVEL_MASK));
    let level = level.ok_or(Malformed("unknown level"))?;
    let quality = if flags & flag::UNSYNCED == 0 { ClockQuality::Synced } else { ClockQuality::Unsynced };
    let (sealed, synced) = (flags & flag::SEALED != 0, flags & flag::SYNCED != 0);
    Ok(Flags { class: *class, level: *level, quality, sealed, synced })
}

/// Gives each distinct value a small number, in order of first use.
struct Interner<K> {
    index: HashMap<K, u64>,
    order: Vec<K>,
}

impl<K: Copy + Eq + Hash> Interner<K> {
    fn new() -> Self {
        Self { index: HashMap::new(), order: Vec::new() }
    }

    fn number(&mut self, key: K) -> u64 {
        let next = self.order.len() as u64;
        *self.index.entry(key).or_insert_with(|| {
            self.order.push(key);
            next
        })
    }
}

/// Encodes events in ascending order of position. Returns the bytes and the length of the payload.
pub(crate) fn encode(events: &[&Recorded], packing: Packing<'_>) -> Result<(Vec<u8>, usize), Malformed> {
    let payload = encode_payload(events)?;
    let mut bytes = vec![VERSION, 0, 0, 0, 0, 0];
    let failed = |_| Malformed("zstd cannot compress");
    let (packed, flag) = match packing {
        Packing::Plain => (None, 0),
        Packing::Zstd(level) => (Some(compress(&payload, level).map_err(failed)?), COMPRESSED),
        Packing::Dictionary(level, dictionary) => {
            let mut compressor = zstd::bulk::Compressor::with_dictionary(level, dictionary).map_err(failed)?;
            (Some(compressor.compress(&payload).map_err(failed)?), WITH_DICTIONARY)
        }
    };
    match packed.filter(|packed| packed.len() < payload.len()) {
        Some(packed) => {
            bytes[1] = flag;
            varint::put(&mut bytes, payload.len() as u64);
            bytes.extend_from_slice(&packed);
        }
        None => bytes.extend_from_slice(&payload),
    }
    let crc = checksum(&bytes);
    bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok((bytes, payload.len()))
}

/// Compresses a small payload with a context that this thread keeps: making one costs as much as compressing does. That of a
/// large one would keep too much memory.
fn compress(payload: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    if payload.len() > KEPT_CONTEXT_BYTES {
        return zstd::bulk::compress(payload, level);
    }
    thread_local! {
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => {
                compressor.set_compression_level(level)?;
                compressor
            }
            None => kept.insert(zstd::bulk::Compressor::new(level)?),
        };
        compressor.compress(payload)
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..2]), &bytes[HEADER_BYTES..])
}

/// The same bytes with the checksum they ought to have, so that damage gets past it.
#[cfg(feature = "fuzzing")]
pub(crate) fn with_right_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= HEADER_BYTES {
        let crc = checksum(&bytes);
        bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn encode_payload(events: &[&Recorded]) -> Result<Vec<u8>, Malformed> {
    let mut texts = Interner::new();
    let mut ids = Interner::new();
    let mut columns = Vec::new();
    let mut bodies = Vec::new();

    let mut previous = 0_u64;
    for event in events {
        let key = event.position.to_key().map_err(|_| Malformed("position too large"))?.cast_unsigned();
        if key <= previous {
            return Err(Malformed("positions do not ascend"));
        }
        varint::put(&mut columns, key - previous);
        previous = key;
    }
    // Most blocks are of one scope.
    let mut scope = None;
    for event in events {
        let number = match scope {
            Some((text, number)) if text == event.scope.as_str() => number,
            _ => texts.number(event.scope.as_str()),
        };
        scope = Some((event.scope.as_str(), number));
        varint::put(&mut columns, number);
        varint::put(&mut columns, texts.number(event.stream.as_str()));
        varint::put(&mut columns, event.version);
        varint::put(&mut columns, texts.number(event.kind.as_str()));
    }
    for event in events {
        let optional = |present: bool, bit: u64| if present { bit } else { 0 };
        let flags = flags_of(event)
            | optional(event.actor.is_some(), flag::ACTOR)
            | optional(event.correlation_id.is_some(), flag::CORRELATION)
            | optional(event.causation_id.is_some(), flag::CAUSATION)
            | optional(event.subject.is_some(), flag::SUBJECT);
        if event.body.is_shredded() {
            return Err(Malformed("a shredded event is not stored"));
        }
        varint::put(&mut columns, flags);
        varint::put(&mut columns, u64::from(event.schema));
        if let Some(actor) = &event.actor {
            varint::put(&mut columns, texts.number(actor));
        }
        for id in [event.correlation_id, event.causation_id].into_iter().flatten() {
            varint::put(&mut columns, ids.number(id.to_bytes()));
        }
        if let Some(subject) = &event.subject {
            varint::put(&mut columns, texts.number(subject.as_str()));
        }
    }
    let (mut id_ms, mut wall_ms, mut boottime_ms) = (0_i64, 0_i64, 0_i64);
    for event in events {
        let (own_ms, own_boottime_ms) = (event.id.timestamp_ms().cast_signed(), event.boottime_ms.cast_signed());
        varint::put_signed(&mut columns, own_ms.wrapping_sub(id_ms));
        varint::put_signed(&mut columns, event.wall_ms.wrapping_sub(wall_ms));
        varint::put(&mut columns, ids.number(*event.boot.as_bytes()));
        varint::put_signed(&mut columns, own_boottime_ms.wrapping_sub(boottime_ms));
        (id_ms, wall_ms, boottime_ms) = (own_ms, event.wall_ms, own_boottime_ms);
    }
    for event in events {
        columns.extend_from_slice(&event.id.to_bytes()[6..]);
    }
    for event in events {
        varint::put(&mut columns, event.body.get().len() as u64);
        bodies.extend_from_slice(event.body.get().as_bytes());
    }

    let mut payload = Vec::with_capacity(columns.len() + bodies.len() + 256);
    varint::put(&mut payload, events.len() as u64);
    varint::put(&mut payload, texts.order.len() as u64);
    for text in &texts.order {
        varint::put_bytes(&mut payload, text.as_bytes());
    }
    varint::put(&mut payload, ids.order.len() as u64);
    for id in &ids.order {
        payload.extend_from_slice(id);
    }
    payload.extend_from_slice(&columns);
    payload.extend_from_slice(&bodies);
    if payload.len() > PAYLOAD_BYTES_MAX { Err(Malformed("block too large")) } else { Ok(payload) }
}

/// Decodes what [`encode`] wrote. Every damage is an error, never a panic and never a large allocation.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Recorded>, Malformed> {
    decode_with(bytes, None)
}

/// As [`decode`], of a block that may need a dictionary.
pub(crate) fn decode_with(bytes: &[u8], dictionary: Option<&[u8]>) -> Result<Vec<Recorded>, Malformed> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Err(Malformed("ends early")) };
    let mut stored = Reader::new(&header[2..]);
    if u32::from_le_bytes(stored.array()?) != checksum(bytes) {
        return Err(Malformed("checksum differs"));
    }
    match (header[0], header[1]) {
        (VERSION, 0) => decode_payload(rest),
        (VERSION, flags @ (COMPRESSED | WITH_DICTIONARY)) => {
            let mut reader = Reader::new(rest);
            let length = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
            if length > PAYLOAD_BYTES_MAX {
                return Err(Malformed("block too large"));
            }
            let payload = if flags == COMPRESSED {
                zstd::bulk::decompress(reader.remaining(), length)
            } else {
                let dictionary = dictionary.ok_or(Malformed("its dictionary is missing"))?;
                zstd::bulk::Decompressor::with_dictionary(dictionary)
                    .and_then(|mut decompressor| decompressor.decompress(reader.remaining(), length))
            };
            let payload = payload.map_err(|_| Malformed("zstd cannot decompress"))?;
            if payload.len() != length {
                return Err(Malformed("length differs"));
            }
            decode_payload(&payload)
        }
        (VERSION, _) => Err(Malformed("unknown flags")),
        _ => Err(Malformed("unknown version")),
    }
}

/// The columns of one event while it is being decoded.
struct Partial {
    position: Position,
    scope: Scope,
    stream: StreamName,
    version: u64,
    kind: EventType,
    flags: Flags,
    schema: u16,
    actor: Option<String>,
    subject: Option<Subject>,
    correlation_id: Option<Ulid>,
    causation_id: Option<Ulid>,
    id_ms: u64,
    wall_ms: i64,
    boot: BootId,
    boottime_ms: u64,
}

/// The distinct texts of a block, each parsed at most once per use it is put to.
struct Texts<'a> {
    texts: Vec<&'a str>,
    scopes: HashMap<usize, Scope>,
    streams: HashMap<usize, StreamName>,
    kinds: HashMap<usize, EventType>,
}

impl Texts<'_> {
    fn text(&self, number: u64) -> Result<(usize, &str), Malformed> {
        let index = usize::try_from(number).map_err(|_| Malformed("unknown text"))?;
        Ok((index, self.texts.get(index).ok_or(Malformed("unknown text"))?))
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
}

fn decode_payload(payload: &[u8]) -> Result<Vec<Recorded>, Malformed> {
    let mut reader = Reader::new(payload);
    // Each event takes at least its id's random half and one byte in each of ten columns.
    let count = reader.count(20)?;
    let text_count = reader.count(1)?;
    let texts = (0..text_count).map(|_| reader.text()).collect::<Result<Vec<_>, _>>()?;
    let mut texts = Texts { texts, scopes: HashMap::new(), streams: HashMap::new(), kinds: HashMap::new() };
    let id_count = reader.count(16)?;
    let ids = (0..id_count).map(|_| reader.array::<16>()).collect::<Result<Vec<_>, _>>()?;
    let id_at = |number: u64| {
        usize::try_from(number).ok().and_then(|index| ids.get(index)).copied().ok_or(Malformed("unknown id"))
    };

    let mut events = Vec::with_capacity(count);
    let mut key = 0_u64;
    for _ in 0..count {
        let step = reader.varint()?;
        key = key.checked_add(step).filter(|_| step > 0).ok_or(Malformed("positions do not ascend"))?;
        let position = Position::from_key(key.cast_signed()).ok_or(Malformed("position too large"))?;
        events.push(position);
    }
    let mut named = Vec::with_capacity(count);
    for position in events {
        let scope = texts.scope(reader.varint()?)?;
        let stream = texts.stream(reader.varint()?)?;
        let version = reader.varint()?;
        named.push((position, scope, stream, version, texts.kind(reader.varint()?)?));
    }
    let mut partial = Vec::with_capacity(count);
    for (position, scope, stream, version, kind) in named {
        let flags = reader.varint()?;
        if flags & !flag::KNOWN != 0 {
            return Err(Malformed("unknown event flags"));
        }
        let parsed = parse_flags(flags)?;
        let schema = u16::try_from(reader.varint()?).map_err(|_| Malformed("schema too large"))?;
        let has = |bit: u64| flags & bit != 0;
        let actor = if has(flag::ACTOR) { Some(texts.text(reader.varint()?)?.1.to_owned()) } else { None };
        let correlation = if has(flag::CORRELATION) { Some(id_at(reader.varint()?)?) } else { None };
        let causation = if has(flag::CAUSATION) { Some(id_at(reader.varint()?)?) } else { None };
        let subject = if has(flag::SUBJECT) { Some(texts.text(reader.varint()?)?.1) } else { None };
        let subject = subject.map(Subject::parse).transpose().map_err(|_| Malformed("malformed subject"))?;
        partial.push(Partial {
            position,
            scope,
            stream,
            version,
            kind,
            flags: parsed,
            schema,
            actor,
            subject,
            correlation_id: correlation.map(Ulid::from_bytes),
            causation_id: causation.map(Ulid::from_bytes),
            id_ms: 0,
            wall_ms: 0,
            boot: BootId::from_bytes([0; 16]),
            boottime_ms: 0,
        });
    }
    let (mut id_ms, mut wall_ms, mut boottime_ms) = (0_i64, 0_i64, 0_i64);
    for event in &mut partial {
        id_ms = id_ms.wrapping_add(reader.signed()?);
        wall_ms = wall_ms.wrapping_add(reader.signed()?);
        event.boot = BootId::from_bytes(id_at(reader.varint()?)?);
        boottime_ms = boottime_ms.wrapping_add(reader.signed()?);
        (event.id_ms, event.wall_ms, event.boottime_ms) = (id_ms.cast_unsigned(), wall_ms, boottime_ms.cast_unsigned());
    }
    let randoms = (0..count).map(|_| reader.array::<10>()).collect::<Result<Vec<_>, _>>()?;
    let lengths = (0..count).map(|_| reader.varint()).collect::<Result<Vec<_>, _>>()?;
    let mut events = Vec::with_capacity(count);
    for ((event, random), length) in partial.into_iter().zip(randoms).zip(lengths) {
        let length = usize::try_from(length).map_err(|_| Malformed("body too large"))?;
        events.push(finish(event, random, reader.take(length)?)?);
    }
    if reader.is_empty() { Ok(events) } else { Err(Malformed("bytes left over")) }
}

fn finish(event: Partial, random: [u8; 10], body: &[u8]) -> Result<Recorded, Malformed> {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&event.id_ms.to_be_bytes()[2..]);
    id[6..].copy_from_slice(&random);
    let body = std::str::from_utf8(body).map_err(|_| Malformed("body is not UTF-8"))?;
    Ok(Recorded {
        position: event.position,
        id: Ulid::from_bytes(id),
        scope: event.scope,
        stream: event.stream,
        version: event.version,
        kind: event.kind,
        class: event.flags.class,
        level: event.flags.level,
        schema: event.schema,
        actor: event.actor,
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        wall_ms: event.wall_ms,
        quality: event.flags.quality,
        boot: event.boot,
        boottime_ms: event.boottime_ms,
        subject: event.subject,
        synced: event.flags.synced,
        body: Body::from_stored(body.to_owned(), event.flags.sealed)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;

    fn packing() -> impl Strategy<Value = Packing<'static>> {
        prop_oneof![Just(Packing::Plain), Just(Packing::Zstd(1)), Just(Packing::Zstd(3))]
    }

    proptest! {
        #[test]
        fn events_come_back_as_they_were(events in arbitrary::events(0..20), packing in packing()) {
            let (bytes, _) = encode(&events.iter().collect::<Vec<_>>(), packing).unwrap();
            prop_assert_eq!(decode(&bytes).unwrap(), events);
        }

        #[test]
        fn a_changed_byte_is_an_error(events in arbitrary::events(1..8), packing in packing(), at: prop::sample::Index, flip in 1..=255_u8) {
            let (mut bytes, _) = encode(&events.iter().collect::<Vec<_>>(), packing).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn a_missing_end_is_an_error(events in arbitrary::events(1..8), packing in packing(), at: prop::sample::Index) {
            let (bytes, _) = encode(&events.iter().collect::<Vec<_>>(), packing).unwrap();
            prop_assert!(decode(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn damage_behind_a_right_checksum_never_panics(
            events in arbitrary::events(1..8),
            packing in packing(),
            at: prop::sample::Index,
            with: Vec<u8>,
        ) {
            let (mut bytes, _) = encode(&events.iter().collect::<Vec<_>>(), packing).unwrap();
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            bytes.splice(at..(at + with.len()).min(bytes.len()), with);
            let crc = checksum(&bytes);
            bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            drop(decode(&bytes));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            drop(decode(&bytes));
            bytes.splice(0..0, [VERSION, 0, 0, 0, 0, 0]);
            let crc = checksum(&bytes);
            bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            drop(decode(&bytes));
        }

        #[test]
        fn a_cold_line_holds_the_whole_event(events in arbitrary::events(1..4)) {
            for event in events {
                let line = serde_json::to_string(&event).unwrap();
                prop_assert!(!line.contains('\n'));
                prop_assert_eq!(serde_json::from_str::<Recorded>(&line).unwrap(), event);
            }
        }
    }

    #[test]
    fn a_claim_of_more_than_there_is_takes_no_memory() {
        let mut bytes = vec![VERSION, COMPRESSED, 0, 0, 0, 0];
        varint::put(&mut bytes, u64::MAX);
        let crc = checksum(&bytes);
        bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes).unwrap_err(), Malformed("block too large"));
    }
}
