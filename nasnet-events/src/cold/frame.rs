//! One frame of a cold file: a skippable zstd frame that describes it, then up to 1,000 lines of JSON as a zstd frame.
//!
//! `zstd -dc` skips the first and prints the second. The description is `NNEV`, version u8, then varints: count, first
//! and last key, wall clock span, classes, compressed and raw length, the event types; the SHA-256 of the lines; the
//! chain before and after them; and a CRC32C.

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{CParameter, Strategy};

use crate::chain::{self, Digest};
use crate::class::Class;
use crate::copied::{Link, Tip};
use crate::event::Recorded;
use crate::line;
use crate::position::Position;
use crate::query::Query;
use crate::varint::{self, Malformed, Reader};

/// The most events of a frame.
pub(crate) const FRAME_EVENTS_MAX: usize = 1_000;
/// Bytes of lines at which a frame ends early.
pub(crate) const FRAME_BYTES_MAX: usize = 4 << 20;

const LEVEL: i32 = 9;
/// Level 9 with a search that weighs literals against matches, in tables as small as those of the level itself: lines
/// differ in short places, for which the quick search of the level is no good. It makes frames a seventh smaller.
const SEARCH: [CParameter; 6] = [
    CParameter::Strategy(Strategy::ZSTD_btopt),
    CParameter::MinMatch(4),
    CParameter::TargetLength(256),
    CParameter::SearchLog(8),
    CParameter::HashLog(16),
    CParameter::ChainLog(20),
];
/// Magic number of the first kind of skippable frame.
pub(crate) const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
/// Begins each description.
pub(crate) const MAGIC: &[u8; 4] = b"NNEV";
const VERSION: u8 = 3;
/// Magic number and length of a skippable frame.
pub(crate) const PREFIX_BYTES: usize = 8;
/// The longest description accepted, so that damage cannot ask for memory.
pub(crate) const HEADER_BYTES_MAX: usize = 1 << 20;
/// The longest run of lines accepted: one event of the largest size above the limit.
const RAW_BYTES_MAX: u64 = 512 << 20;

/// What a frame says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) events: u64,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) wall_ms: (i64, i64),
    /// The bits of the classes of its events.
    pub(crate) classes: u8,
    /// Bytes of the compressed lines that follow.
    pub(crate) packed_bytes: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) kinds: Vec<String>,
    pub(crate) digest: [u8; 32],
    /// The chain of this scope's archived events before this frame, and after it.
    pub(crate) chain: (Digest, Digest),
}

/// Encodes events in ascending order of position, chained to those archived before; they must not be empty.
pub(crate) fn encode(events: &[Recorded], before: Digest) -> Result<(Header, Vec<u8>), Malformed> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Err(Malformed("empty frame")) };
    let mut lines = Vec::new();
    for event in events {
        serde_json::to_writer(&mut lines, event).map_err(|_| Malformed("event is not JSON"))?;
        lines.push(b'\n');
    }
    let packed = compress(&lines).map_err(|_| Malformed("zstd cannot compress"))?;
    let times = events.iter().map(|event| event.wall_ms);
    let mut kinds: Vec<String> = events.iter().map(|event| event.kind.to_string()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let header = Header {
        events: events.len() as u64,
        first: first.position,
        last: last.position,
        wall_ms: (times.clone().min().unwrap_or(0), times.max().unwrap_or(0)),
        classes: class_bits(events),
        packed_bytes: packed.len() as u64,
        raw_bytes: lines.len() as u64,
        kinds,
        digest: Sha256::digest(&lines).into(),
        chain: (before, chain::fold(before, events)),
    };
    let mut bytes = header.prefixed()?;
    bytes.extend_from_slice(&packed);
    Ok((header, bytes))
}

/// All classes there are.
const CLASSES: u8 = Class::Low.bit() | Class::Normal.bit() | Class::Critical.bit();

fn class_bits(events: &[Recorded]) -> u8 {
    events.iter().fold(0, |bits, event| bits | event.class.bit())
}

fn compress(lines: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    for parameter in SEARCH {
        compressor.set_parameter(parameter)?;
    }
    compressor.compress(lines)
}

/// The length of the description that follows a prefix; `None` when this is no prefix of ours.
pub(crate) fn header_length(prefix: [u8; PREFIX_BYTES]) -> Option<usize> {
    let (magic, length) = prefix.split_at(SKIPPABLE.len());
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    (magic == SKIPPABLE && length <= HEADER_BYTES_MAX).then_some(length)
}

impl Header {
    /// Where an archive ends whose last frame this is.
    pub(crate) const fn tip(&self) -> Tip {
        Tip { last: self.last, digest: self.chain.1 }
    }

    /// What is looked at of the frame where only chains matter.
    pub(crate) const fn link(&self) -> Link {
        Link { last: self.last, chain: self.chain }
    }

    /// The description as a skippable frame.
    pub(crate) fn prefixed(&self) -> Result<Vec<u8>, Malformed> {
        let described = self.encode()?;
        let length = u32::try_from(described.len()).map_err(|_| Malformed("description too long"))?;
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + described.len());
        bytes.extend_from_slice(&SKIPPABLE);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&described);
        Ok(bytes)
    }

    fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        varint::put(&mut bytes, self.events);
        for position in [self.first, self.last] {
            let key = position.to_key().map_err(|_| Malformed("position too large"))?;
            varint::put(&mut bytes, key.cast_unsigned());
        }
        varint::put_signed(&mut bytes, self.wall_ms.0);
        varint::put_signed(&mut bytes, self.wall_ms.1);
        varint::put(&mut bytes, u64::from(self.classes));
        varint::put(&mut bytes, self.packed_bytes);
        varint::put(&mut bytes, self.raw_bytes);
        varint::put(&mut bytes, self.kinds.len() as u64);
        for kind in &self.kinds {
            varint::put_bytes(&mut bytes, kind.as_bytes());
        }
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&self.chain.0.0);
        bytes.extend_from_slice(&self.chain.1.0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a description.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let split = bytes.len().checked_sub(4).ok_or(Malformed("ends early"))?;
        let (body, crc) = bytes.split_at(split);
        if Reader::new(crc).array()? != crc32c::crc32c(body).to_le_bytes() {
            return Err(Malformed("checksum differs"));
        }
        let (header, rest) = Self::parse(body)?;
        if rest.is_empty() { Ok(header) } else { Err(Malformed("description contradicts itself")) }
    }

    /// True when a whole description that checks stands at the start, whatever its prefix says of its length.
    pub(crate) fn is_whole_at(bytes: &[u8]) -> bool {
        let Ok((_, rest)) = Self::parse(bytes) else { return false };
        let length = bytes.len() - rest.len();
        let (Some(body), Some(crc)) = (bytes.get(..length), rest.get(..4)) else { return false };
        crc == crc32c::crc32c(body).to_le_bytes()
    }

    /// Reads the fields, which say themselves where they end.
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(Malformed("not a frame of events"));
        }
        if reader.array()? != [VERSION] {
            return Err(Malformed("unknown version"));
        }
        let events = reader.varint()?;
        let mut position = || Position::from_key(reader.varint()?.cast_signed()).ok_or(Malformed("position too large"));
        let (first, last) = (position()?, position()?);
        let wall_ms = (reader.signed()?, reader.signed()?);
        let classes = u8::try_from(reader.varint()?).ok().filter(|bits| (1..=CLASSES).contains(bits));
        let classes = classes.ok_or(Malformed("unknown classes"))?;
        let (packed_bytes, raw_bytes) = (reader.varint()?, reader.varint()?);
        let kind_count = reader.count(1)?;
        let kinds = (0..kind_count).map(|_| reader.text().map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
        let digest = reader.array()?;
        let chain = (Digest(reader.array()?), Digest(reader.array()?));
        if first > last || events == 0 || raw_bytes > RAW_BYTES_MAX {
            return Err(Malformed("description contradicts itself"));
        }
        let header = Self { events, first, last, wall_ms, classes, packed_bytes, raw_bytes, kinds, digest, chain };
        Ok((header, reader.remaining()))
    }

    /// Decodes and checks the lines this description is about.
    pub(crate) fn open(&self, packed: &[u8]) -> Result<Vec<Recorded>, Malformed> {
        let text = self.lines(packed)?;
        let events = text.lines().map(event_of).collect::<Result<Vec<Recorded>, _>>()?;
        let ends = (events.first().map(|event| event.position), events.last().map(|event| event.position));
        let ascending = events.windows(2).all(|pair| pair[0].position < pair[1].position);
        let described = (Some(self.first), Some(self.last)) == ends && self.classes == class_bits(&events);
        if described && events.len() as u64 == self.events && ascending { Ok(events) } else { Err(MISDESCRIBED) }
    }

    /// As [`Header::open`], of the wanted events. The digest has shown that the lines are as they were written, so those
    /// that lack what each wanted one has are not parsed: to parse a frame takes longer than the rest of reading it.
    pub(crate) fn open_wanted(&self, packed: &[u8], query: &Query) -> Result<Vec<Recorded>, Malformed> {
        let (text, needles) = (self.lines(packed)?, line::needles(query));
        if text.lines().count() as u64 != self.events {
            return Err(MISDESCRIBED);
        }
        let may_be_wanted = |line: &&str| needles.iter().all(|needle| line.contains(needle));
        let mut events = Vec::new();
        for line in text.lines().filter(may_be_wanted) {
            let event = event_of(line)?;
            if event.position < self.first || event.position > self.last {
                return Err(MISDESCRIBED);
            }
            if query.matches(&event) {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// The text whose digest this is.
    fn lines(&self, packed: &[u8]) -> Result<String, Malformed> {
        let length = usize::try_from(self.raw_bytes).map_err(|_| Malformed("lines too long"))?;
        let lines = zstd::bulk::decompress(packed, length).map_err(|_| Malformed("zstd cannot decompress"))?;
        if <[u8; 32]>::from(Sha256::digest(&lines)) != self.digest {
            return Err(Malformed("digest differs"));
        }
        String::from_utf8(lines).map_err(|_| Malformed("lines are not UTF-8"))
    }
}

const MISDESCRIBED: Malformed = Malformed("its lines are not those it describes");

fn event_of(line: &str) -> Result<Recorded, Malformed> {
    serde_json::from_str(line).map_err(|_| Malformed("a line is no event"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;

    fn split(bytes: &[u8]) -> Result<(Header, &[u8]), Malformed> {
        let prefix = bytes.get(..PREFIX_BYTES).and_then(|prefix| prefix.try_into().ok()).ok_or(Malformed("short"))?;
        let length = header_length(prefix).ok_or(Malformed("no prefix"))?;
        let header = bytes.get(PREFIX_BYTES..PREFIX_BYTES + length).ok_or(Malformed("short"))?;
        Ok((Header::decode(header)?, &bytes[PREFIX_BYTES + length..]))
    }

    #[test]
    fn the_bits_of_classes_are_those_of_the_format() {
        assert_eq!(Class::ALL.map(Class::bit), [1, 2, 4]);
    }

    proptest! {
        #[test]
        fn a_frame_comes_back(events in arbitrary::events(1..20)) {
            let (written, bytes) = encode(&events, Digest::GENESIS).unwrap();
            let (header, packed) = split(&bytes).unwrap();
            prop_assert_eq!(&header, &written);
            prop_assert_eq!(header.open(packed).unwrap(), events);
        }

        #[test]
        fn the_wanted_events_alone_come_back(events in arbitrary::events(1..20), about: prop::sample::Index, which: u8) {
            let (_, bytes) = encode(&events, Digest::GENESIS).unwrap();
            let (header, packed) = split(&bytes).unwrap();
            let about = about.get(&events);
            let on = |bit: u8| which & (1 << bit) != 0;
            let mut query = Query::all();
            query = if on(0) { query.stream(about.stream.clone()) } else { query };
            query = if on(1) { query.kind(about.kind.clone()) } else { query };
            query = about.actor.iter().filter(|_| on(2)).fold(query, |query, actor| query.actor(actor));
            query = about.correlation_id.iter().filter(|_| on(3)).fold(query, |query, id| query.correlation_id(*id));
            query = if on(4) { query.level_min(about.level) } else { query };
            query.id = Some(about.id).filter(|_| on(5));
            let wanted: Vec<_> = events.iter().filter(|event| query.matches(event)).cloned().collect();
            prop_assert!(wanted.contains(about));
            prop_assert_eq!(header.open_wanted(packed, &query).unwrap(), wanted);
        }

        #[test]
        fn a_changed_byte_is_an_error(events in arbitrary::events(1..4), at: prop::sample::Index, flip in 1..=255_u8) {
            let (_, mut bytes) = encode(&events, Digest::GENESIS).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let opened = split(&bytes).and_then(|(header, packed)| header.open(packed));
            // zstd does not check every bit of its own headers; what is decoded is right nevertheless.
            prop_assert!(opened.is_err() || opened.unwrap() == events);
        }

        #[test]
        fn a_plain_zstd_decoder_prints_the_lines(events in arbitrary::events(1..4)) {
            let (_, mut file) = encode(&events, Digest::GENESIS).unwrap();
            file.extend(encode(&events, Digest::GENESIS).unwrap().1);
            let text = String::from_utf8(zstd::stream::decode_all(&file[..]).unwrap()).unwrap();
            let lines: Vec<Recorded> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            prop_assert_eq!(lines, [events.clone(), events].concat());
        }
    }
}
