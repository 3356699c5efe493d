//! A stored event as one line of JSON: what the cold tier keeps and `jq` reads.

use std::borrow::Cow;

use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ulid::Ulid;

use crate::body::Body;
use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;

/// The fields in the order people look for them. `time` repeats `wall_ms` for the eye and is not read back.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    epoch: u32,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none", default, skip_deserializing)]
    time: Option<String>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    scope: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    version: u64,
    class: Class,
    level: Level,
    id: Ulid,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    actor: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    correlation_id: Option<Ulid>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    causation_id: Option<Ulid>,
    wall_ms: i64,
    #[serde(borrow)]
    clock: Cow<'a, str>,
    #[serde(borrow)]
    boot: Cow<'a, str>,
    boottime_ms: u64,
    schema: u16,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    subject: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_false", default)]
    synced: bool,
    /// The body is sealed under the key of the subject.
    #[serde(skip_serializing_if = "is_false", default)]
    sealed: bool,
    #[serde(skip_serializing_if = "is_false", default)]
    shredded: bool,
    #[serde(borrow)]
    body: Cow<'a, RawValue>,
}

const fn is_false(value: &bool) -> bool {
    !*value
}

/// The wall clock as text, `None` when it is beyond the years 0-9999.
pub(crate) fn rfc3339(wall_ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(wall_ms) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}

impl Serialize for Recorded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Line {
            epoch: self.position.epoch,
            seq: self.position.seq,
            time: rfc3339(self.wall_ms),
            kind: self.kind.as_str().into(),
            scope: self.scope.as_str().into(),
            stream: self.stream.as_str().into(),
            version: self.version,
            class: self.class,
            level: self.level,
            id: self.id,
            actor: self.actor.as_deref().map(Cow::from),
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            wall_ms: self.wall_ms,
            clock: self.quality.as_str().into(),
            boot: self.boot.to_string().into(),
            boottime_ms: self.boottime_ms,
            schema: self.schema,
            subject: self.subject.as_ref().map(|subject| subject.as_str().into()),
            synced: self.synced,
            sealed: self.body.is_sealed(),
            shredded: self.body.is_shredded(),
            body: match &self.body {
                Body::Json(text) | Body::Sealed(text) => Cow::Borrowed(text),
                Body::Shredded => Cow::Owned(RawValue::NULL.to_owned()),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Recorded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let line = Line::deserialize(deserializer)?;
        Ok(Self {
            position: Position::new(line.epoch, line.seq),
            id: line.id,
            scope: line.scope.parse::<Scope>().map_err(D::Error::custom)?,
            stream: StreamName::parse(&line.stream).map_err(D::Error::custom)?,
            version: line.version,
            kind: EventType::parse(&line.kind).map_err(D::Error::custom)?,
            class: line.class,
            level: line.level,
            schema: line.schema,
            actor: line.actor.map(Cow::into_owned),
            correlation_id: line.correlation_id,
            causation_id: line.causation_id,
            wall_ms: line.wall_ms,
            quality: line.clock.parse::<ClockQuality>().map_err(D::Error::custom)?,
            boot: line.boot.parse::<BootId>().map_err(D::Error::custom)?,
            boottime_ms: line.boottime_ms,
            subject: line.subject.map(|subject| Subject::parse(&subject)).transpose().map_err(D::Error::custom)?,
            synced: line.synced,
            body: match (line.sealed, line.shredded) {
                (false, false) => Body::Json(line.body.into_owned()),
                (true, false) => Body::Sealed(line.body.into_owned()),
                (false, true) => Body::Shredded,
                (true, true) => return Err(D::Error::custom("a body is sealed or shredded, not both")),
            },
        })
    }
}
