//! The one error type of the crate.

use std::path::PathBuf;
use std::sync::Arc;

use nasnet_dbmanager::Scope;
use ulid::Ulid;

use crate::event::Head;
use crate::expected::Expected;
use crate::head::Lane;
use crate::name::{EventType, StreamName, Subject};
use crate::position::Position;
use crate::receipt::Achieved;

/// What can go wrong, one variant for each thing a caller does differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name, position or option that is not well formed.
    #[error("invalid {what} {value:?}: {why}")]
    Invalid {
        /// The kind of value.
        what: &'static str,
        /// The value as given.
        value: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The stream is not where the caller expected it to be; nothing was appended.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// The append queue is full; nothing was appended.
    #[error("append queue is full with {queue} events")]
    Overloaded {
        /// Events the queue holds.
        queue: usize,
    },
    /// An event or a batch is larger than the store accepts.
    #[error("{what} is {size}, the maximum is {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The largest size accepted.
        max: usize,
    },
    /// The id is known already, for another event or for a part of this batch only.
    #[error("event id {id} is used already")]
    IdReused {
        /// The id.
        id: Ulid,
    },
    /// The id belongs to an append whose transaction has not ended yet; ask again.
    #[error("event id {id} belongs to an append that is not resolved yet")]
    Unresolved {
        /// The id.
        id: Ulid,
    },
    /// A durable append is not on flash; `reached` says where it is.
    #[error("append is not durable, reached {}", reached.map_or("nothing", Achieved::as_str))]
    NotDurable {
        /// The durability reached, `None` when the event is stored nowhere or that is not known.
        reached: Option<Achieved>,
        /// Why it is not on flash.
        #[source]
        source: Option<Box<Error>>,
    },
    /// Stored bytes do not check; `what` names database and row, or file and offset.
    #[error("corrupt {what}: {why}")]
    Corrupt {
        /// Database and row, or file and offset.
        what: String,
        /// What is wrong with them.
        why: String,
    },
    /// The facts of an event are sealed or shredded.
    #[error("facts of the event at {position} are {}", if *.shredded { "shredded" } else { "sealed" })]
    Unopened {
        /// The event.
        position: Position,
        /// True when they are gone for ever.
        shredded: bool,
    },
    /// The key a sealed event needs is not known here, and no shredding of it is recorded: this `system.db` is not the
    /// one the event was written with, or an older copy of it.
    #[error("key of the event at {position} about {subject} is missing")]
    KeyMissing {
        /// The event.
        position: Position,
        /// Whom it is about.
        subject: Subject,
    },
    /// The key of a subject is destroyed, but not every trace of it is known to be gone; ask again.
    #[error("traces of the key of {subject} may be left: {why}")]
    ShredUnfinished {
        /// The subject.
        subject: Subject,
        /// What is left to do.
        why: String,
    },
    /// Events cannot be shown to belong to the record.
    #[error("{lane} of {scope} are not proven: {why}")]
    Unproven {
        /// The scope.
        scope: Scope,
        /// The chain.
        lane: Lane,
        /// What is missing.
        why: String,
    },
    /// The body of an event cannot be brought to the current form; it is stored as it was.
    #[error("{kind} at {position} cannot be upcast from schema {schema}: {why}")]
    Upcast {
        /// The event.
        position: Position,
        /// Its type.
        kind: EventType,
        /// The schema the failing step starts from.
        schema: u16,
        /// What the step says.
        why: String,
    },
    /// A segment was compressed with a dictionary that is not there or damaged; other segments are not affected.
    #[error("segment {segment} of {scope} needs dictionary {dictionary}, which is missing")]
    DictionaryMissing {
        /// The scope.
        scope: Scope,
        /// The segment's first position.
        segment: crate::position::Position,
        /// The dictionary.
        dictionary: crate::warm::dictionary::DictionaryId,
    },
    /// The body of a segment is not in the annex its row names; other segments are not affected.
    #[error("segment {segment} of {scope} has no body in {}: {why}", path.display())]
    SegmentBody {
        /// The scope.
        scope: Scope,
        /// The segment's first position.
        segment: Position,
        /// The annex.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The database of a scope cannot be read now; the events of other scopes are not affected.
    #[error("events of {scope} after {after} up to {through} cannot be read: {source}")]
    Unreadable {
        /// The scope.
        scope: Scope,
        /// What is up to here was read.
        after: Position,
        /// What is behind here is read again.
        through: Position,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Retention has removed a part of the stream's history, and no tier that can be read now has it.
    #[error("history of {stream} of {scope} is complete only behind {oldest}")]
    BeyondHorizon {
        /// The scope.
        scope: Scope,
        /// The stream.
        stream: StreamName,
        /// Everything of the stream after here is there.
        oldest: Position,
    },
    /// Versions of a stream are missing from its history, and retention did not remove them: events of class Low that ended
    /// with their hot tier, the lost tail of one, an append to the hot tier that stood on a transaction which then rolled
    /// back, or damage, of which [`crate::EventStore::verify`] tells.
    #[error("history of {stream} of {scope} goes on from version {after} with {next}")]
    VersionGap {
        /// The scope.
        scope: Scope,
        /// The stream.
        stream: StreamName,
        /// The version before the gap, 0 when it is at the beginning.
        after: u64,
        /// The version behind it.
        next: u64,
    },
    /// The cold directory is not usable now.
    #[error("cold tier {} is absent: {why}", dir.display())]
    ColdAbsent {
        /// The directory.
        dir: PathBuf,
        /// Why it is taken as absent.
        why: String,
    },
    /// A file of the store cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The database manager refused or failed, or a statement did.
    #[error("storage: {source}")]
    Storage {
        /// The manager's error.
        #[source]
        source: Arc<nasnet_dbmanager::Error>,
    },
    /// The hot tier was wiped and is being opened anew; nothing was appended. A transaction gets this that holds what the
    /// opening needs, or positions of the lost hot tier.
    #[error("the hot tier was lost and is being opened anew")]
    Renewing,
    /// Another subscription reads as this consumer.
    #[error("consumer {consumer} is read by another subscription")]
    ConsumerBusy {
        /// The consumer.
        consumer: String,
    },
    /// This subscription gave no sign of life for too long, and another reads as its consumer now; or the consumer was
    /// forgotten.
    #[error("consumer {consumer} was taken over by another subscription or forgotten")]
    ConsumerTaken {
        /// The consumer.
        consumer: String,
    },
    /// An earlier round of this forwarding failed or was dropped, with events at hand that may not have been sent: open
    /// another, which begins behind the checkpoint.
    #[error("a round of the forwarding as {consumer} did not end: open another")]
    RoundUnfinished {
        /// The consumer.
        consumer: String,
    },
    /// The store is shut down.
    #[error("event store is closed")]
    Closed,
}

/// A failed expectation, with what the caller missed.
#[derive(Debug, Clone)]
pub struct Conflict {
    /// Scope of the stream.
    pub scope: Scope,
    /// The stream.
    pub stream: StreamName,
    /// What the caller expected.
    pub expected: Expected,
    /// The version the stream is at.
    pub actual: u64,
    /// Heads of the events appended since the expected version, oldest first, at most
    /// [`Conflict::SINCE_MAX`] of the newest. Events whose transaction is still open are not in it.
    pub since: Vec<Head>,
    /// True when the expected version is above the actual one and an earlier incarnation of the hot tier lost its tail:
    /// the event the caller remembers may have been in it.
    pub tail_lost: bool,
}

impl Conflict {
    /// The most heads a conflict carries.
    pub const SINCE_MAX: usize = 16;
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "stream {} of {} is at version {}, expected {}",
            self.stream, self.scope, self.actual, self.expected
        )?;
        if self.tail_lost {
            f.write_str(" (a tail was lost)")?;
        }
        Ok(())
    }
}

impl Error {
    /// True when the same call may succeed later without a change by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. }
            | Self::Unresolved { .. }
            | Self::Renewing
            | Self::ColdAbsent { .. }
            | Self::ConsumerBusy { .. }
            | Self::ShredUnfinished { .. } => true,
            Self::Storage { source } => source.is_retryable(),
            Self::Unreadable { source, .. } => source.is_retryable(),
            Self::NotDurable { reached: None, source: Some(source) } => source.is_retryable(),
            _ => false,
        }
    }

    /// True for a damaged place that no waiting mends: it is told in its place and passed.
    pub(crate) const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. }
                | Self::DictionaryMissing { .. }
                | Self::Unopened { .. }
                | Self::KeyMissing { .. }
                | Self::Upcast { .. }
        )
    }

    /// True for what is wrong with one place of the record, which whoever has waited long enough passes.
    pub(crate) const fn is_of_one_place(&self) -> bool {
        self.is_damage() || matches!(self, Self::SegmentBody { .. } | Self::Io { .. })
    }

    /// True when other segments can be read nevertheless.
    pub(crate) fn is_of_one_segment(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. } | Self::DictionaryMissing { .. } | Self::SegmentBody { .. } | Self::Io { .. }
        )
    }

    pub(crate) fn corrupt(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Corrupt { what: what.into(), why: why.to_string() }
    }

    /// What is wrong with the form of some JSON, and where. What serde says besides quotes what it found there: facts, which
    /// belong into no log.
    pub(crate) fn form(error: &serde_json::Error) -> String {
        let wrong = match error.classify() {
            serde_json::error::Category::Io => "it cannot be read or written",
            serde_json::error::Category::Syntax => "it is no JSON",
            serde_json::error::Category::Data => "it has another form",
            serde_json::error::Category::Eof => "it ends too early",
        };
        format!("{wrong}, line {} column {}", error.line(), error.column())
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source: Arc::new(source) }
    }

    /// The same failure for each of several callers that shared one write.
    pub(crate) fn shared(&self) -> Self {
        match self {
            Self::Storage { source } => Self::Storage { source: Arc::clone(source) },
            Self::Io { operation, path, source } => {
                Self::Io { operation, path: path.clone(), source: Arc::clone(source) }
            }
            Self::Invalid { what, value, why } => Self::Invalid { what, value: value.clone(), why },
            Self::Corrupt { what, why } => Self::Corrupt { what: what.clone(), why: why.clone() },
            Self::TooLarge { what, size, max } => Self::TooLarge { what, size: *size, max: *max },
            Self::Overloaded { queue } => Self::Overloaded { queue: *queue },
            Self::Closed => Self::Closed,
            Self::Renewing => Self::Renewing,
            other => Self::Corrupt { what: "hot.db".to_owned(), why: other.to_string() },
        }
    }
}

impl From<nasnet_dbmanager::Error> for Error {
    fn from(source: nasnet_dbmanager::Error) -> Self {
        Self::Storage { source: Arc::new(source) }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        nasnet_dbmanager::Error::from(source).into()
    }
}
