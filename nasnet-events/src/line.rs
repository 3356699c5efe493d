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
use crate::query::Query;

/// The fields in an order that compresses: what differs from line to line stands together, what hardly ever does too, and
/// what the event is about last. The wall clock is `time`, or `wall_ms` beyond the years 0-9999.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    epoch: u32,
    seq: u64,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    time: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    wall_ms: Option<i64>,
    boottime_ms: u64,
    id: Ulid,
    #[serde(borrow)]
    scope: Cow<'a, str>,
    class: Class,
    level: Level,
    #[serde(borrow)]
    clock: Cow<'a, str>,
    #[serde(borrow)]
    boot: Cow<'a, str>,
    schema: u16,
    #[serde(skip_serializing_if = "is_false", default)]
    synced: bool,
    /// The body is sealed under the key of the subject.
    #[serde(skip_serializing_if = "is_false", default)]
    sealed: bool,
    #[serde(skip_serializing_if = "is_false", default)]
    shredded: bool,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    actor: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    correlation_id: Option<Ulid>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    causation_id: Option<Ulid>,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    subject: Option<Cow<'a, str>>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    version: u64,
    #[serde(borrow)]
    body: Cow<'a, RawValue>,
}

const fn is_false(value: &bool) -> bool {
    !*value
}

/// Texts that are in the line of every event a query wants, so that most lines need not be parsed to be passed over.
pub(crate) fn needles(query: &Query) -> Vec<String> {
    let field = |name: &str, value: &str| format!("\"{name}\":{}", serde_json::Value::from(value));
    let Query { stream, kind, actor, correlation_id, id, .. } = query;
    [
        stream.as_ref().map(|stream| field("stream", stream.as_str())),
        kind.as_ref().map(|kind| field("type", kind.as_str())),
        actor.as_ref().map(|actor| field("actor", actor)),
        correlation_id.map(|id| field("correlation_id", &id.to_string())),
        id.map(|id| field("id", &id.to_string())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The wall clock as text of one length, `None` when it is beyond the years 0-9999.
fn rfc3339(wall_ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(wall_ms) * 1_000_000).ok()?;
    if !(0..=9_999).contains(&time.year()) {
        return None;
    }
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second, ms) = (time.hour(), time.minute(), time.second(), time.millisecond());
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"))
}

/// The wall clock of a line.
fn wall_ms_of(time: Option<&str>, wall_ms: Option<i64>) -> Result<i64, &'static str> {
    match (wall_ms, time) {
        (Some(wall_ms), _) => Ok(wall_ms),
        (None, Some(time)) => {
            let time = OffsetDateTime::parse(time, &Rfc3339).map_err(|_| "time is not RFC 3339")?;
            i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).map_err(|_| "time is out of range")
        }
        (None, None) => Err("neither time nor wall_ms"),
    }
}

impl Serialize for Recorded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = rfc3339(self.wall_ms);
        Line {
            epoch: self.position.epoch,
            seq: self.position.seq,
            wall_ms: if time.is_some() { None } else { Some(self.wall_ms) },
            time: time.map(Cow::from),
            boottime_ms: self.boottime_ms,
            id: self.id,
            scope: self.scope.as_str().into(),
            class: self.class,
            level: self.level,
            clock: self.quality.as_str().into(),
            boot: self.boot.to_string().into(),
            schema: self.schema,
            synced: self.synced,
            sealed: self.body.is_sealed(),
            shredded: self.body.is_shredded(),
            actor: self.actor.as_deref().map(Cow::from),
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            subject: self.subject.as_ref().map(|subject| subject.as_str().into()),
            kind: self.kind.as_str().into(),
            stream: self.stream.as_str().into(),
            version: self.version,
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
            wall_ms: wall_ms_of(line.time.as_deref(), line.wall_ms).map_err(D::Error::custom)?,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_wall_clock_comes_back(wall_ms in prop_oneof![any::<i64>(), -70_000_000_000_000..300_000_000_000_000_i64]) {
            let time = rfc3339(wall_ms);
            let kept = if time.is_some() { None } else { Some(wall_ms) };
            prop_assert_eq!(wall_ms_of(time.as_deref(), kept), Ok(wall_ms));
            prop_assert!(time.is_none_or(|time| time.len() == 24));
        }
    }

    #[test]
    fn a_line_without_a_time_or_with_a_bad_one_is_refused() {
        for (time, wall_ms) in [(None, None), (Some("yesterday"), None), (Some("2026-11-21T12:00:00"), None)] {
            assert!(wall_ms_of(time, wall_ms).is_err(), "{time:?}");
        }
    }
}
