//! What makes the record tamper-evident: one digest of each event, folded into chains. Pure.
//!
//! The digest of an event covers what is stored of it and not how: an event keeps it in a row, a segment and a frame,
//! and after its facts were shredded. A chain goes on by position, never by time, so a clock that went back is no
//! tampering.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use crate::block::flags_of;
use crate::error::Error;
use crate::event::Recorded;
use crate::varint;

const LEAF: &[u8] = b"nasnet-events leaf 1\0";
const LINK: &[u8] = b"nasnet-events link 1\0";

/// A SHA-256 digest. Prints as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub(crate) [u8; 32]);

impl Digest {
    /// The digest of a chain without events.
    pub const GENESIS: Self = Self([0; 32]);

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid { what: "digest", value: text.to_owned(), why: "expected 64 digits of a-f0-9" };
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if text.len() != 64 {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = (digit(pair[0]).ok_or_else(invalid)? << 4) | digit(pair[1]).ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything stored of an event in one unambiguous spelling, its names spelled out.
pub(crate) fn canonical(event: &Recorded) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(event.body.get().len() + 192);
    varint::put(&mut bytes, u64::from(event.position.epoch));
    varint::put(&mut bytes, event.position.seq);
    varint::put(&mut bytes, event.version);
    varint::put(&mut bytes, flags_of(event));
    varint::put(&mut bytes, u64::from(event.schema));
    for text in [event.scope.as_str(), event.stream.as_str(), event.kind.as_str(), event.body.get()] {
        varint::put_bytes(&mut bytes, text.as_bytes());
    }
    for text in [event.actor.as_deref(), event.subject.as_ref().map(|subject| subject.as_str())] {
        varint::put(&mut bytes, u64::from(text.is_some()));
        varint::put_bytes(&mut bytes, text.unwrap_or_default().as_bytes());
    }
    for id in [Some(event.id), event.correlation_id, event.causation_id] {
        varint::put(&mut bytes, u64::from(id.is_some()));
        bytes.extend_from_slice(&id.unwrap_or(Ulid::nil()).to_bytes());
    }
    varint::put_signed(&mut bytes, event.wall_ms);
    bytes.extend_from_slice(event.boot.as_bytes());
    varint::put(&mut bytes, event.boottime_ms);
    bytes
}

/// The digest of one event as it is stored.
pub(crate) fn leaf(event: &Recorded) -> Digest {
    let mut hash = Sha256::new();
    hash.update(LEAF);
    hash.update(canonical(event));
    Digest(hash.finalize().into())
}

/// The chain after one more event.
pub(crate) fn link(before: Digest, leaf: Digest) -> Digest {
    let mut hash = Sha256::new();
    hash.update(LINK);
    hash.update(before.0);
    hash.update(leaf.0);
    Digest(hash.finalize().into())
}

/// The chain after several more events.
pub(crate) fn fold<'a>(before: Digest, events: impl IntoIterator<Item = &'a Recorded>) -> Digest {
    events.into_iter().fold(before, |chain, event| link(chain, leaf(event)))
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{BootId, ClockQuality};
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::arbitrary;
    use crate::body::Body;
    use crate::class::Class;
    use crate::event::Level;
    use crate::name::{EventType, StreamName, Subject};
    use crate::position::Position;

    /// The event with one field changed, once for each field. A new field does not compile until it is one of them.
    fn changed(event: &Recorded) -> Vec<(&'static str, Recorded)> {
        let Recorded {
            position,
            id,
            scope: _,
            stream,
            version,
            kind,
            class,
            level,
            schema,
            actor,
            correlation_id,
            causation_id,
            wall_ms,
            quality,
            boot,
            boottime_ms,
            subject,
            synced,
            body,
        } = event;
        let other = |id: Option<Ulid>| Some(Ulid(id.map_or(0, |id| id.0 ^ 1)));
        let own = || event.clone();
        let mut boot = *boot.as_bytes();
        boot[0] ^= 1;
        let swapped = |text: &str| if text == "a" { "b".to_owned() } else { "a".to_owned() };
        let other_subject = Subject::parse(&swapped(subject.as_ref().map_or("", |subject| subject.as_str())));
        let json = if body.get() == "1" { "2" } else { "1" };
        vec![
            ("epoch", Recorded { position: Position::new(position.epoch ^ 1, position.seq), ..own() }),
            ("seq", Recorded { position: Position::new(position.epoch, position.seq ^ 1), ..own() }),
            ("id", Recorded { id: Ulid(id.0 ^ 1), ..own() }),
            ("scope", Recorded { scope: format!("{}x", event.scope).parse().unwrap(), ..own() }),
            ("stream", Recorded { stream: StreamName::parse(&swapped(stream.as_str())).unwrap(), ..own() }),
            ("version", Recorded { version: version ^ 1, ..own() }),
            ("kind", Recorded { kind: EventType::parse(&swapped(kind.as_str())).unwrap(), ..own() }),
            ("class", Recorded { class: if *class == Class::Low { Class::Normal } else { Class::Low }, ..own() }),
            ("level", Recorded { level: if *level == Level::Info { Level::Error } else { Level::Info }, ..own() }),
            ("schema", Recorded { schema: schema ^ 1, ..own() }),
            ("actor", Recorded { actor: Some(swapped(actor.as_deref().unwrap_or_default())), ..own() }),
            ("an actor without a name", Recorded { actor: actor.is_none().then(String::new), ..own() }),
            ("correlation_id", Recorded { correlation_id: other(*correlation_id), ..own() }),
            ("causation_id", Recorded { causation_id: other(*causation_id), ..own() }),
            ("wall_ms", Recorded { wall_ms: wall_ms ^ 1, ..own() }),
            (
                "quality",
                Recorded {
                    quality: match quality {
                        ClockQuality::Synced => ClockQuality::Unsynced,
                        _ => ClockQuality::Synced,
                    },
                    ..own()
                },
            ),
            ("boot", Recorded { boot: BootId::from_bytes(boot), ..own() }),
            ("boottime_ms", Recorded { boottime_ms: boottime_ms ^ 1, ..own() }),
            ("subject", Recorded { subject: Some(other_subject.unwrap()), ..own() }),
            ("synced", Recorded { synced: !synced, ..own() }),
            (
                "sealed",
                Recorded { body: Body::from_stored(body.get().to_owned(), !body.is_sealed()).unwrap(), ..own() },
            ),
            ("body", Recorded { body: Body::Json(RawValue::from_string(json.to_owned()).unwrap()), ..own() }),
        ]
    }

    proptest! {
        #[test]
        fn every_field_counts(events in arbitrary::events(2..3)) {
            let own = &events[0];
            for (field, changed) in changed(own) {
                prop_assert_ne!(&changed, own, "{} was not changed", field);
                prop_assert_ne!(leaf(&changed), leaf(own), "{} does not count", field);
            }
            prop_assert_eq!(leaf(own), leaf(&own.clone()));
            prop_assert_ne!(fold(Digest::GENESIS, &events), fold(Digest::GENESIS, events.iter().rev()));
        }

        #[test]
        fn digests_print_and_parse(bytes: [u8; 32]) {
            prop_assert_eq!(Digest(bytes).to_string().parse::<Digest>().unwrap(), Digest(bytes));
        }
    }

    #[test]
    fn other_spellings_of_a_digest_are_refused() {
        let text = Digest([0xab; 32]).to_string();
        for bad in [text.to_uppercase(), text[1..].to_owned(), format!("{text}0"), "g".repeat(64), String::new()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
