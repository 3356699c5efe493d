//! The one form in which many events are stored as bytes: hot blocks and warm segments.
//!
//! Layout, version 2: `version u8, flags u8, crc32c u32le` over version, flags and the rest, then the payload, or with flag
//! 1 the payload's length as a varint and the payload in zstd, or with flag 2 the same in zstd with a dictionary. The
//! payload holds the count, the distinct texts, the distinct 16-byte ids, one column after the other, and the bodies.

mod decode;

use std::cell::RefCell;
use std::hash::Hash;

use foldhash::{HashMap, HashMapExt as _};
use nasnet_dbmanager::ClockQuality;

use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::varint::{self, Malformed};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use decode::decode;
#[cfg(feature = "fuzzing")]
pub(crate) use decode::decode_with;
pub(crate) use decode::{Peek, pick};

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

/// What the columns of an event take, more or less.
const COLUMN_BYTES: usize = 48;

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
    fn with_capacity(count: usize) -> Self {
        Self { index: HashMap::with_capacity(count), order: Vec::with_capacity(count) }
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
    let failed = |_| Malformed("zstd cannot compress");
    let (packed, flag) = match packing {
        Packing::Plain => (None, 0),
        Packing::Zstd(level) => (Some(compress(&payload, level).map_err(failed)?), COMPRESSED),
        Packing::Dictionary(level, dictionary) => {
            let mut compressor = zstd::bulk::Compressor::with_dictionary(level, dictionary).map_err(failed)?;
            (Some(compressor.compress(&payload).map_err(failed)?), WITH_DICTIONARY)
        }
    };
    let packed = packed.filter(|packed| packed.len() < payload.len());
    let stored_bytes = packed.as_ref().map_or(payload.len(), |packed| packed.len() + varint::BYTES_MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + stored_bytes);
    bytes.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0]);
    match packed {
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

/// Whether a block is stored as it is, by its first two bytes.
pub(crate) fn is_plain(head: &[u8]) -> bool {
    head == [VERSION, 0]
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
    // A stream each, and what they have in common.
    let mut texts = Interner::with_capacity(events.len() + 16);
    let mut ids = Interner::with_capacity(4);
    let mut columns = Vec::with_capacity(events.len() * COLUMN_BYTES);

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
    let mut body_bytes = 0;
    for event in events {
        varint::put(&mut columns, event.body.get().len() as u64);
        body_bytes += event.body.get().len();
    }

    let text_bytes: usize = texts.order.iter().map(|text| text.len() + 2).sum();
    let mut payload = Vec::with_capacity(text_bytes + ids.order.len() * 16 + columns.len() + body_bytes + 32);
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
    for event in events {
        payload.extend_from_slice(event.body.get().as_bytes());
    }
    if payload.len() > PAYLOAD_BYTES_MAX { Err(Malformed("block too large")) } else { Ok(payload) }
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
        fn the_wanted_events_alone_come_back_as_they_were(
            events in arbitrary::events(0..20),
            packing in packing(),
            choice: u64,
            of_stream: Option<prop::sample::Index>,
        ) {
            let (bytes, _) = encode(&events.iter().collect::<Vec<_>>(), packing).unwrap();
            // One of theirs, all streams, or one that none is of.
            let names: Vec<&str> = events.iter().map(|event| event.stream.as_str()).chain(["none"]).collect();
            let stream = of_stream.map(|index| names[index.index(names.len())]);
            let wanted = |event: &Recorded| {
                choice & (1 << (event.position.seq % 64)) != 0 && stream.is_none_or(|name| event.stream.as_str() == name)
            };
            let picked = pick(&bytes, None, stream, &|peek| {
                let event = events.iter().find(|event| event.position == peek.position).unwrap();
                let names = (event.scope.as_str(), event.stream.as_str(), event.kind.as_str());
                assert_eq!((peek.scope, peek.stream, peek.kind), names);
                let who = (event.actor.as_deref(), event.correlation_id, event.id);
                assert_eq!((peek.actor, peek.correlation_id, peek.id), who);
                assert_eq!((peek.class, peek.level, peek.wall_ms), (event.class, event.level, event.wall_ms));
                wanted(event)
            })
            .unwrap();
            prop_assert_eq!(picked.count, events.len());
            prop_assert_eq!(picked.ends, events.first().zip(events.last()).map(|(a, b)| (a.position, b.position)));
            let expected: Vec<_> = events.iter().filter(|event| wanted(event)).cloned().collect();
            prop_assert_eq!(picked.events, expected);
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
