//! The codecs of stored bytes for the fuzz targets in `fuzz/`, with the seeds of their corpus, and for benches. No part of the
//! API.

use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use ulid::Ulid;

use crate::block::{self, Packing};
use crate::body::Body;
use crate::chain::{self, Digest};
use crate::class::Class;
use crate::cold::fuzzing as cold;
use crate::consumer::{ConsumerName, Filter};
use crate::event::{Level, Recorded};
use crate::evidence::Bundle;
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::sealing;
use crate::varint::{self, Malformed, Reader};
use crate::warm::lists;
use crate::warm::rows::{self, Columns};

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
    let _refused_or_not = lists::parse_any(bytes);
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

/// Decodes a segment that needs a dictionary: the length of the dictionary, its bytes, those of the segment.
///
/// # Panics
/// When what was accepted is not what is written again.
pub fn packed(bytes: &[u8]) {
    let Ok((dictionary, bytes)) = split_dictionary(bytes) else { return };
    for bytes in [bytes.to_vec(), block::with_right_checksum(bytes)] {
        let Ok(events) = block::decode_with(&bytes, Some(dictionary)) else { continue };
        let refs: Vec<&Recorded> = events.iter().collect();
        // Not every run of bytes is a dictionary to compress with.
        let Ok((written, _)) = block::encode(&refs, Packing::Dictionary(3, dictionary)) else { continue };
        let again = block::decode_with(&written, Some(dictionary)).expect("and read");
        assert!(again == events, "a segment changes when it is written again");
    }
}

/// Indexes a whole file of the cold tier.
///
/// # Panics
/// When the index contradicts itself.
pub fn index(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), cold::with_right_checksum(bytes)] {
        cold::index(&bytes).expect("a file in memory can be read");
    }
}

/// Reads an evidence bundle and verifies it against the head it carries.
///
/// # Panics
/// When what was accepted has another spelling.
pub fn bundle(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for bundle in [Bundle::from_json(text).ok(), Bundle::righted(text)].into_iter().flatten() {
        let spelled = bundle.to_json().expect("a bundle that was read can be written");
        let proven = bundle.verify(bundle.head());
        let Ok(again) = Bundle::from_json(&spelled) else {
            assert!(proven.is_err(), "what cannot be read was verified");
            continue;
        };
        assert!(again == bundle, "a bundle changes when it is written again");
        let events = bundle.events().len() as u64;
        assert!(proven.is_err() || proven.is_ok_and(|proven| proven.events >= events), "an unproven event is verified");
    }
}

/// Reads the small texts of a store: positions, digests, names, file names, envelopes of sealed bodies and filters.
///
/// # Panics
/// When what was accepted is not what is written again.
pub fn texts(bytes: &[u8]) {
    fn comes_back<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert!(
                value.to_string().parse().is_ok_and(|again: T| again == value),
                "{text} changes when written again"
            );
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    comes_back::<Position>(text);
    comes_back::<Digest>(text);
    comes_back::<ConsumerName>(text);
    comes_back::<Scope>(text);
    if let Ok(name) = StreamName::parse(text) {
        assert_eq!(name.as_str(), text, "a stream has one spelling");
    }
    if let Ok(kind) = EventType::parse(text) {
        assert_eq!(kind.as_str(), text, "a type has one spelling");
    }
    if let Ok(subject) = Subject::parse(text) {
        assert_eq!(subject.as_str(), text, "a subject has one spelling");
    }
    if let Ok(filter) = serde_json::from_str::<Filter>(text) {
        let spelled = serde_json::to_string(&filter).expect("a filter that was read can be written");
        assert!(serde_json::from_str::<Filter>(&spelled).is_ok_and(|again| again == filter), "a filter changes");
    }
    if let Ok(event) = serde_json::from_str::<Recorded>(text) {
        let spelled = serde_json::to_string(&event).expect("a line that was read can be written");
        assert!(serde_json::from_str::<Recorded>(&spelled).is_ok_and(|again| again == event), "a line changes");
    }
    let _known_or_not = (cold::is_file_name(text), sealing::is_envelope(text));
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
        "packed" => {
            split_dictionary(bytes).is_ok_and(|(dictionary, block)| block::decode_with(block, Some(dictionary)).is_ok())
        }
        "index" => cold::index(bytes).is_ok_and(|found| found.frames > 0 && found.readable == found.frames),
        "bundle" => std::str::from_utf8(bytes).is_ok_and(|text| Bundle::from_json(text).is_ok()),
        // Each of them is one of them.
        "texts" => std::str::from_utf8(bytes).is_ok_and(is_text),
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
    seeds.extend(packed_seeds(&refs));
    seeds.extend(index_seeds(&events));
    seeds.extend(bundle_seeds(&events));
    seeds.extend(text_seeds(&events));
    seeds
}

/// Segments written with a dictionary, which stands before them. Any bytes are one.
fn packed_seeds(events: &[&Recorded]) -> Vec<(&'static str, String, Vec<u8>)> {
    let dictionary: Vec<u8> = events.iter().take(8).flat_map(|event| event.body.get().bytes()).collect();
    let seed = |(name, count): (&str, usize)| {
        let packing = Packing::Dictionary(3, &dictionary);
        let (block, _) =
            block::encode(events.get(..count).unwrap_or_default(), packing).expect("samples can be written");
        let mut bytes = Vec::new();
        varint::put_bytes(&mut bytes, &dictionary);
        bytes.extend_from_slice(&block);
        ("packed", format!("seed-{name}"), bytes)
    };
    [("one", 1), ("some", 6), ("more", 12), ("many", 48)].map(seed).into()
}

/// Files: whole, torn, damaged in the middle, and with somebody else's bytes at the end.
fn index_seeds(events: &[Recorded]) -> Vec<(&'static str, String, Vec<u8>)> {
    let frames: Vec<Vec<u8>> = events
        .chunks(6)
        .take(3)
        .map(|events| cold::encode(events, Digest::GENESIS).expect("samples can be written"))
        .collect();
    let whole = frames.concat();
    let mut torn = whole.clone();
    torn.truncate(whole.len() - 20);
    let mut damaged = whole.clone();
    // In the description of the second frame.
    if let Some(byte) = frames.first().and_then(|first| damaged.get_mut(first.len() + 20)) {
        *byte ^= 0x55;
    }
    let foreign = [&whole[..], b"what somebody else wrote"].concat();
    [("whole", whole), ("torn", torn), ("damaged", damaged), ("foreign", foreign)]
        .map(|(name, bytes)| ("index", format!("seed-{name}"), bytes))
        .into()
}

/// Bundles of one chain: from its beginning, from the middle, with nothing but digests before the event, and of two lanes.
fn bundle_seeds(events: &[Recorded]) -> Vec<(&'static str, String, Vec<u8>)> {
    let lane = |lane: &str, events: &[Recorded], shown: std::ops::Range<usize>| {
        let mut state = Digest::GENESIS;
        let mut links = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let leaf = chain::leaf(event);
            state = chain::link(state, leaf);
            links.push(match shown.contains(&index) {
                true => serde_json::json!({ "event": event }),
                false => serde_json::json!({ "leaf": leaf }),
            });
        }
        let position = events.last().map_or(Position::START, |event| event.position);
        let proof = serde_json::json!({ "scope": "system", "lane": lane, "start": Digest::GENESIS, "links": links });
        let head = serde_json::json!({ "scope": "system", "lane": lane, "position": position, "digest": state });
        (proof, head)
    };
    let bundle = |name: &str, (after, until): (Position, u64), lanes: Vec<(serde_json::Value, serde_json::Value)>| {
        let (proofs, heads): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        let fleet = Ulid::from_parts(1_795_000_000_000, 5);
        let head = serde_json::json!({
            "version": 1, "fleet": fleet, "made_ms": 1_795_000_000_000_i64, "lanes": heads, "fingerprint": "00",
        });
        let text = serde_json::json!({
            "version": 1, "type": "nasnet-events evidence", "controls": ["A.8.15"], "fleet": fleet,
            "made_ms": 1_795_000_000_000_i64, "after": after, "until": Position::new(3, until), "lanes": proofs,
            "head": head, "digest": Digest::GENESIS,
        });
        let bundle = Bundle::righted(&text.to_string()).expect("the fields of a bundle");
        let text = bundle.to_json().expect("a bundle can be written");
        ("bundle", format!("seed-{name}"), text.into_bytes())
    };
    let part = |count: usize| events.get(..count).unwrap_or_default();
    vec![
        bundle("one", (Position::START, 48), vec![lane("rows", part(1), 0..1)]),
        bundle("some", (Position::START, 48), vec![lane("segments", part(4), 0..4)]),
        bundle("part", (Position::new(3, 3), 4), vec![lane("frames", part(6), 3..4)]),
        bundle("two", (Position::new(3, 1), 3), vec![lane("rows", part(3), 1..3), lane("segments", part(5), 1..3)]),
    ]
}

fn text_seeds(events: &[Recorded]) -> Vec<(&'static str, String, Vec<u8>)> {
    let filter = Filter::all().scope(Scope::System).kind_prefix("resource.").class(Class::Critical).stream_prefix("a/");
    let mut texts = vec![
        ("position", Position::new(3, 48).to_string()),
        ("digest", Digest::GENESIS.to_string()),
        ("consumer", "forward.http-1".to_owned()),
        ("scope", "router-1".to_owned()),
        ("file", "events-2026-11.2.jsonl.zst".to_owned()),
        ("filter", serde_json::to_string(&filter).expect("a filter can be written")),
    ];
    for (name, event) in ["line", "line-2"].into_iter().zip(events.iter().skip(4)) {
        texts.push((name, serde_json::to_string(event).expect("an event can be written")));
    }
    texts.into_iter().map(|(name, text)| ("texts", format!("seed-{name}"), text.into_bytes())).collect()
}

fn is_text(text: &str) -> bool {
    text.parse::<Position>().is_ok()
        || text.parse::<Digest>().is_ok()
        || text.parse::<ConsumerName>().is_ok()
        || cold::is_file_name(text)
        || serde_json::from_str::<Filter>(text).is_ok()
        || serde_json::from_str::<Recorded>(text).is_ok()
}

/// A dictionary and the segment behind it.
fn split_dictionary(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut reader = Reader::new(bytes);
    let dictionary = reader.bytes()?;
    Ok((dictionary, reader.remaining()))
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
