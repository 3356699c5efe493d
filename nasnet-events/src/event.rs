//! An event before and after it is stored.

use std::fmt;

use nasnet_dbmanager::{BootId, ClockQuality, Scope};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ulid::Ulid;

use crate::body::Body;
use crate::class::Class;
use crate::error::Error;
use crate::expected::Expected;
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;

/// How loud an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// Ordinary course of things.
    #[default]
    Info,
    /// Someone should look at it.
    Warning,
    /// Something failed.
    Error,
}

impl Level {
    pub(crate) const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warning, Self::Error];
}

/// An event to be appended. Its `Debug` form shows nothing of the body.
#[derive(Clone)]
pub struct NewEvent {
    /// Identifies the event: appending the same id again within the idempotency window writes nothing.
    pub id: Ulid,
    /// What happened, in the past tense.
    pub kind: EventType,
    /// How loud it is.
    pub level: Level,
    /// Version of the body's form.
    pub schema: u16,
    /// The facts, as JSON. Line breaks between its tokens are stored as spaces.
    pub body: Box<RawValue>,
    /// Who caused it.
    pub actor: Option<String>,
    /// Same request or run.
    pub correlation_id: Option<Ulid>,
    /// Direct cause.
    pub causation_id: Option<Ulid>,
    /// Whom the facts are about: they are stored sealed under a key of this subject, and [`crate::EventStore::shred`]
    /// destroys it.
    pub subject: Option<Subject>,
}

impl NewEvent {
    /// Makes an event of level [`Level::Info`] and schema 1.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the body cannot be written as JSON.
    pub fn new(id: Ulid, kind: EventType, body: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::value::to_raw_value(body).map_err(|error| Error::Invalid {
            what: "event body",
            value: Error::form(&error),
            why: "it cannot be written as JSON",
        })?;
        Ok(Self::with_body(id, kind, body))
    }

    /// Makes an event of level [`Level::Info`] and schema 1 whose body is JSON already; it is not parsed again.
    #[must_use]
    pub const fn with_body(id: Ulid, kind: EventType, body: Box<RawValue>) -> Self {
        Self {
            id,
            kind,
            level: Level::Info,
            schema: 1,
            body,
            actor: None,
            correlation_id: None,
            causation_id: None,
            subject: None,
        }
    }

    /// Sets the level.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Sets the version of the body's form.
    #[must_use]
    pub fn schema(mut self, schema: u16) -> Self {
        self.schema = schema;
        self
    }

    /// Names who caused the event.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// Ties the event to a request or run.
    #[must_use]
    pub fn correlation_id(mut self, id: Ulid) -> Self {
        self.correlation_id = Some(id);
        self
    }

    /// Names the direct cause.
    #[must_use]
    pub fn causation_id(mut self, id: Ulid) -> Self {
        self.causation_id = Some(id);
        self
    }

    /// Names whom the facts are about.
    #[must_use]
    pub fn subject(mut self, subject: Subject) -> Self {
        self.subject = Some(subject);
        self
    }
}

impl fmt::Debug for NewEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.body.get().len();
        write!(f, "NewEvent({} {} schema {}, {bytes} bytes)", self.id, self.kind, self.schema)
    }
}

/// Events for one stream, to be appended together.
#[derive(Debug, Clone)]
pub struct StreamAppend {
    /// The stream.
    pub stream: StreamName,
    /// The version it must be at.
    pub expected: Expected,
    /// The events, in order.
    pub events: Vec<NewEvent>,
}

impl StreamAppend {
    /// Makes an append.
    #[must_use]
    pub const fn new(stream: StreamName, expected: Expected, events: Vec<NewEvent>) -> Self {
        Self { stream, expected, events }
    }
}

/// A stored event. Serialises to the line the cold tier keeps.
#[derive(Clone)]
pub struct Recorded {
    /// Place in the order of the store.
    pub position: Position,
    /// Id given by the caller.
    pub id: Ulid,
    /// Database the event belongs to.
    pub scope: Scope,
    /// Stream inside the scope.
    pub stream: StreamName,
    /// Version of the stream after this event.
    pub version: u64,
    /// What happened.
    pub kind: EventType,
    /// Retention class the event was stored under.
    pub class: Class,
    /// How loud it is.
    pub level: Level,
    /// Version of the body's form.
    pub schema: u16,
    /// Who caused it.
    pub actor: Option<String>,
    /// Same request or run.
    pub correlation_id: Option<Ulid>,
    /// Direct cause.
    pub causation_id: Option<Ulid>,
    /// Wall clock in milliseconds since 1970, for people.
    pub wall_ms: i64,
    /// Whether that clock could be trusted.
    pub quality: ClockQuality,
    /// Boot of the machine the event was recorded in.
    pub boot: BootId,
    /// Milliseconds since that boot.
    pub boottime_ms: u64,
    /// Whom the facts are about, when they are sealed.
    pub subject: Option<Subject>,
    /// True when the event committed in a transaction of its scope's database, whatever its class.
    pub synced: bool,
    /// The facts.
    pub body: Body,
}

impl Recorded {
    /// Reads the body as `T`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the body has another form, with the place and nothing of what is there;
    /// [`Error::Unopened`] when it is sealed or shredded.
    pub fn body_as<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        if !matches!(self.body, Body::Json(_)) {
            return Err(Error::Unopened { position: self.position, shredded: self.body.is_shredded() });
        }
        serde_json::from_str(self.body.get())
            .map_err(|error| Error::corrupt(format!("body of {}", self.position), Error::form(&error)))
    }

    pub(crate) fn head(&self) -> Head {
        Head { position: self.position, version: self.version, id: self.id, kind: self.kind.clone() }
    }
}

impl PartialEq for Recorded {
    fn eq(&self, other: &Self) -> bool {
        self.position == other.position
            && self.id == other.id
            && self.scope == other.scope
            && self.stream == other.stream
            && self.version == other.version
            && self.kind == other.kind
            && self.class == other.class
            && self.level == other.level
            && self.schema == other.schema
            && self.actor == other.actor
            && self.correlation_id == other.correlation_id
            && self.causation_id == other.causation_id
            && self.wall_ms == other.wall_ms
            && self.quality == other.quality
            && self.boot == other.boot
            && self.boottime_ms == other.boottime_ms
            && self.subject == other.subject
            && self.synced == other.synced
            && self.body == other.body
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({} {} {} {}@{})", self.position, self.kind, self.scope, self.stream, self.version)
    }
}

/// An event without its facts: what a conflict shows of the events its caller missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Place in the order of the store.
    pub position: Position,
    /// Version of the stream after the event.
    pub version: u64,
    /// Id of the event.
    pub id: Ulid,
    /// What happened.
    pub kind: EventType,
}
