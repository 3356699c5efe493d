//! The codecs of stored bytes for the fuzz targets in `fuzz/`, with the seeds of their corpus, and for benches. No part of the
//! API.

use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use ulid::Ulid;

use crate::block::{self, Packing};
use crate::body::Body;
use crate::chain::{self, Digest};
use crate::class::Class;
use crate::cold::fuzzing as cold;
use crate::event::{Level, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::varint::{self, Malformed, Reader};
use crate::warm::rows::{self, Columns};
use crate::warm::segment;

/// Decodes a row of durable events: its columns one after the other.
///
/// # Panics
/// When what was accepted is not what is written again.
pub fn row(bytes: &[u8]) {
    if let Some(event) = accepted_row(bytes) {
        let again = accepted_row(&row_bytes(&event)).expect("a row that was decoded can be written and read");
        assert!(again == event, "a row changes when it is written again");
    }
}

/// Decodes a segment or hot block, and its lists of types and streams.
///
/// # Panics
/// When what was accepted is not what is written again.
pub fn segment(bytes: &[u8]) {
    let _refused_or_not = segment::parse_lists(bytes);
    for bytes in [bytes.to_vec(), block::with_right_checksum(bytes)] {
        let Ok(events) = block::decode(&bytes) else { continue };
        let refs: Vec<&Recorded> = events.iter().collect();
        let (written, _) = block::encode(&refs, Packing::Plain).expect("a block that was decoded can be written");
        let again = block::decode(&written).expect("and read");
        assert!(again == events, "a block changes when it is written again");
    }
}

/// Decodes a frame of the cold tier.
///
/// # Panics
/// When what was accepted is not what is written again.
pub fn frame(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), cold::with_right_checksum(bytes)] {
        let Ok((before, events)) = cold::decode(&bytes) else { continue };
        let written = cold::encode(&events, before).expect("a frame that was decoded can be written");
        let (_, again) = cold::decode(&written).expect("and read");
        assert!(again == events, "a frame changes when it is written again");
    }
}

/// Encodes events as a block of the hot tier (`None`: not compressed) or a segment's body (the level of zstd).
///
/// # Panics
/// When an event is none that the store made.
#[must_use]
pub fn encode_block(events: &[Recorded], level: Option<i32>) -> Vec<u8> {
    let refs: Vec<&Recorded> = events.iter().collect();
    let packing = level.map_or(Packing::Plain, Packing::Zstd);
    block::encode(&refs, packing).expect("events of a store can be written").0
}

/// Decodes a block or a segment's body.
///
/// # Panics
/// When the bytes are damaged.
#[must_use]
pub fn decode_block(bytes: &[u8]) -> Vec<Recorded> {
    block::decode(bytes).expect("a block that was encoded")
}

/// Encodes events as one frame of the cold tier.
///
/// # Panics
/// When an event is none that the store made.
#[must_use]
pub fn encode_frame(events: &[Recorded]) -> Vec<u8> {
    cold::encode(events, Digest::GENESIS).expect("events of a store can be written")
}

/// Decodes a frame of the cold tier.
///
/// # Panics
/// When the bytes are damaged.
#[must_use]
pub fn decode_frame(bytes: &[u8]) -> Vec<Recorded> {
    cold::decode(bytes).expect("a frame that was encoded").1
}

/// True when the decoder of a target takes the bytes as they are.
#[must_use]
pub fn is_accepted(target: &str, bytes: &[u8]) -> bool {
    match target {
        "row" => accepted_row(bytes).is_some(),
        "segment" => block::decode(bytes).is_ok(),
        "frame" => cold::decode(bytes).is_ok(),
        _ => false,
    }
}

/// The seeds of every target: its name, theirs and their bytes.
#[must_use]
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let events: Vec<Recorded> = (1..=48).map(sample).collect();
    let refs: Vec<&Recorded> = events.iter().collect();
    let mut seeds = Vec::new();
    for event in events.iter().take(6) {
        seeds.push(("row", format!("seed-{}", event.position.seq), row_bytes(event)));
    }
    for (name, count, packing) in [
        ("one", 1, Packing::Plain),
        ("some", 6, Packing::Plain),
        ("packed", 12, Packing::Zstd(3)),
        ("many", 48, Packing::Zstd(1)),
    ] {
        let (bytes, _) = block::encode(refs.get(..count).unwrap_or_default(), packing).expect("samples can be written");
        seeds.push(("segment", format!("seed-{name}"), bytes));
    }
    for (name, count) in [("one", 1), ("some", 5), ("more", 12), ("many", 48)] {
        let bytes = cold::encode(events.get(..count).unwrap_or_default(), Digest::GENESIS);
        seeds.push(("frame", format!("seed-{name}"), bytes.expect("samples can be written")));
    }
    seeds
}

/// An event whose fields depend on its number alone, and cover each form there is.
fn sample(number: u64) -> Recorded {
    let has = |every: u64| number.is_multiple_of(every);
    let body =
        if has(5) { r#""c2VhbGVk""#.to_owned() } else { format!(r#"{{"number":{number},"name":"wg{number}"}}"#) };
    Recorded {
        position: Position::new(3, number),
        id: Ulid::from_parts(1_795_000_000_000 + number, u128::from(number) << 40),
        scope: Scope::System,
        stream: StreamName::parse(&format!("resource/{}", number % 7)).expect("a name"),
        version: number,
        kind: EventType::from_static(if has(3) { "config.applied" } else { "resource.updated" }),
        class: if has(3) { Class::Critical } else { Class::Normal },
        level: if has(4) { Level::Warning } else { Level::Info },
        schema: 1,
        actor: has(2).then(|| "anna".to_owned()),
        correlation_id: has(3).then(|| Ulid::from_parts(7, 7)),
        causation_id: has(6).then(|| Ulid::from_parts(8, 8)),
        wall_ms: 1_795_000_000_000 - i64::try_from(number).unwrap_or(0) * 1_000,
        quality: if has(7) { ClockQuality::Unsynced } else { ClockQuality::Synced },
        boot: BootId::from_bytes([9; 16]),
        boottime_ms: number * 1_000,
        subject: has(5).then(|| Subject::parse("user/anna").expect("a subject")),
        synced: has(3),
        body: Body::from_stored(body, has(5)).expect("a body"),
    }
}

fn accepted_row(bytes: &[u8]) -> Option<Recorded> {
    let (position, columns) = read_columns(bytes).ok()?;
    columns.decode(&Scope::System, position).ok()
}

fn row_bytes(event: &Recorded) -> Vec<u8> {
    let digest = chain::link(Digest::GENESIS, chain::leaf(event));
    let optional = |id: Option<Ulid>| id.map(|id| id.to_bytes().to_vec());
    let columns = Columns {
        stream: Some(event.stream.to_string()),
        version: event.version.cast_signed(),
        kind: Some(event.kind.to_string()),
        flags: block::flags_of(event).cast_signed(),
        schema: i64::from(event.schema),
        id: event.id.to_bytes().to_vec(),
        actor: event.actor.clone(),
        correlation: optional(event.correlation_id),
        causation: optional(event.causation_id),
        subject_number: event.subject.as_ref().map(|_| 1),
        subject: event.subject.as_ref().map(ToString::to_string),
        wall_ms: event.wall_ms,
        boot: Some(event.boot.to_string()),
        boottime_ms: event.boottime_ms.cast_signed(),
        body: event.body.get().to_owned(),
        digest: digest.0.to_vec(),
        crc: i64::from(rows::checksum(event, digest)),
    };
    let mut out = Vec::new();
    let key = event.position.to_key_clamped();
    for number in
        [key, columns.version, columns.flags, columns.schema, columns.wall_ms, columns.boottime_ms, columns.crc]
    {
        varint::put_signed(&mut out, number);
    }
    let texts = [columns.stream, columns.kind, columns.actor, columns.subject, columns.boot, Some(columns.body)];
    let bytes = [Some(columns.id), columns.correlation, columns.causation, Some(columns.digest)];
    for part in texts.into_iter().map(|text| text.map(String::into_bytes)).chain(bytes) {
        varint::put(&mut out, u64::from(part.is_some()));
        varint::put_bytes(&mut out, &part.unwrap_or_default());
    }
    out
}

fn read_columns(bytes: &[u8]) -> Result<(Position, Columns), Malformed> {
    fn part(reader: &mut Reader<'_>) -> Result<Option<Vec<u8>>, Malformed> {
        let is_there = reader.varint()? != 0;
        let bytes = reader.bytes()?.to_vec();
        Ok(is_there.then_some(bytes))
    }
    fn text(reader: &mut Reader<'_>) -> Result<Option<String>, Malformed> {
        part(reader)?.map(String::from_utf8).transpose().map_err(|_| Malformed("text is not UTF-8"))
    }
    let mut reader = Reader::new(bytes);
    let position = Position::from_key(reader.signed()?).ok_or(Malformed("negative key"))?;
    let mut columns = Columns {
        version: reader.signed()?,
        flags: reader.signed()?,
        schema: reader.signed()?,
        wall_ms: reader.signed()?,
        boottime_ms: reader.signed()?,
        crc: reader.signed()?,
        stream: text(&mut reader)?,
        kind: text(&mut reader)?,
        actor: text(&mut reader)?,
        subject: text(&mut reader)?,
        boot: text(&mut reader)?,
        body: text(&mut reader)?.unwrap_or_default(),
        id: part(&mut reader)?.unwrap_or_default(),
        correlation: part(&mut reader)?,
        causation: part(&mut reader)?,
        digest: part(&mut reader)?.unwrap_or_default(),
        subject_number: None,
    };
    columns.subject_number = columns.subject.as_ref().map(|_| 1);
    Ok((position, columns))
}
