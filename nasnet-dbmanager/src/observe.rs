//! What a fleet tells about its work: metrics under stable names, spans and the log of slow operations.
//!
//! The metrics go to whatever recorder the application has installed for the `metrics` facade; this crate brings no
//! exporter. They are off until [`describe`] is called: an operation on a file in memory costs microseconds, and naming
//! a metric with its labels would be a good part of that.
//!
//! Labels are the kind of a database (`system`, `router`, `hot`, `locks`, `runtime`) and the constants of this workspace
//! (causes, outcomes). Values, ids, paths and keys never are: what is sealed stays sealed, and the number of series does
//! not grow with the fleet. Figures of one file are in [`crate::DbManager::stats`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::Unit;
use tracing::Span;

use crate::error::Error;
use crate::id::Cause;
use crate::schema::FileKind;
use crate::writer::millis;

/// Counter: bytes written to flash, by `database` (or `files` for those outside of SQLite) and `cause`.
pub const FLASH_BYTES: &str = "nasnet_db_flash_bytes_total";
/// Counter: operations that came to an end, by `database`, `cause` and `outcome` (`committed`, `read`, `failed`,
/// `not_applied`, `unknown`).
pub const OPERATIONS: &str = "nasnet_db_operations_total";
/// Histogram: seconds an operation ran, without its commit, by `database` and `cause`.
pub const OPERATION_SECONDS: &str = "nasnet_db_operation_seconds";
/// Counter: operations refused before they were queued, by `database` and `reason` (`queue_full`, `budget`).
pub const REFUSED: &str = "nasnet_db_refused_total";
/// Gauge: operations queued for writers or running there, by `database`.
pub const QUEUE_DEPTH: &str = "nasnet_db_queue_depth";
/// Gauge: databases that are open, by `database`.
pub const OPEN: &str = "nasnet_db_open";
/// Histogram: bytes a checkpoint left in the write-ahead log, by `database`.
pub const WAL_BYTES: &str = "nasnet_db_wal_bytes";

/// The label of files that are no databases.
const FILES: &str = "files";

/// An operation slower than this is logged with its cause.
const SLOW: Duration = Duration::from_millis(500);

static RECORDING: AtomicBool = AtomicBool::new(false);

/// Describes every metric of this crate to the recorder that is installed, and turns them on for this process.
///
/// Call it after installing the recorder and before opening a fleet: gauges count from here.
pub fn describe() {
    metrics::describe_counter!(FLASH_BYTES, Unit::Bytes, "bytes written to flash");
    metrics::describe_counter!(OPERATIONS, Unit::Count, "operations that came to an end");
    metrics::describe_histogram!(OPERATION_SECONDS, Unit::Seconds, "time an operation ran, without its commit");
    metrics::describe_counter!(REFUSED, Unit::Count, "operations refused before they were queued");
    metrics::describe_gauge!(QUEUE_DEPTH, Unit::Count, "operations queued for writers or running there");
    metrics::describe_gauge!(OPEN, Unit::Count, "databases that are open");
    metrics::describe_histogram!(WAL_BYTES, Unit::Bytes, "bytes a checkpoint left in the write-ahead log");
    RECORDING.store(true, Ordering::Relaxed);
}

fn is_recording() -> bool {
    RECORDING.load(Ordering::Relaxed)
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Read,
    Failed,
    NotApplied,
    Unknown,
}

impl Outcome {
    /// What an error says about the operation that gets it.
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::NotApplied => Self::NotApplied,
            Error::Unknown { .. } => Self::Unknown,
            _ => Self::Failed,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Read => "read",
            Self::Failed => "failed",
            Self::NotApplied => "not_applied",
            Self::Unknown => "unknown",
        }
    }
}

/// Counts an operation that has its result.
pub(crate) fn ended(kind: FileKind, cause: Cause, outcome: Outcome) {
    if is_recording() {
        let (database, cause, outcome) = (kind.as_str(), cause.as_str(), outcome.as_str());
        metrics::counter!(OPERATIONS, "database" => database, "cause" => cause, "outcome" => outcome).increment(1);
    }
}

/// Tells how long an operation ran, and logs it if that was long.
pub(crate) fn ran(kind: FileKind, cause: Cause, took: Duration, what: &'static str) {
    if took > SLOW {
        tracing::warn!(database = kind.as_str(), %cause, ms = millis(took), "slow {what} operation");
    }
    if is_recording() {
        let (database, cause) = (kind.as_str(), cause.as_str());
        metrics::histogram!(OPERATION_SECONDS, "database" => database, "cause" => cause).record(took.as_secs_f64());
    }
}

pub(crate) fn refused(kind: FileKind, reason: &'static str) {
    if is_recording() {
        metrics::counter!(REFUSED, "database" => kind.as_str(), "reason" => reason).increment(1);
    }
}

/// Counts what was written to flash; no kind stands for a file outside of SQLite.
pub(crate) fn wrote(kind: Option<FileKind>, cause: &'static str, bytes: u64) {
    if bytes > 0 && is_recording() {
        let database = kind.map_or(FILES, FileKind::as_str);
        metrics::counter!(FLASH_BYTES, "database" => database, "cause" => cause).increment(bytes);
    }
}

pub(crate) fn log_left(kind: FileKind, bytes: u64) {
    if is_recording() {
        metrics::histogram!(WAL_BYTES, "database" => kind.as_str()).record(as_f64(bytes));
    }
}

/// Counts jobs that joined the queue of a writer.
pub(crate) fn queued(kind: FileKind, jobs: usize) {
    if jobs > 0 && is_recording() {
        metrics::gauge!(QUEUE_DEPTH, "database" => kind.as_str()).increment(as_f64(jobs as u64));
    }
}

/// Counts jobs that left it.
pub(crate) fn unqueued(kind: FileKind, jobs: usize) {
    if jobs > 0 && is_recording() {
        metrics::gauge!(QUEUE_DEPTH, "database" => kind.as_str()).decrement(as_f64(jobs as u64));
    }
}

/// Recorders take floating point; what is lost beyond 2^53 does not matter to them.
#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Counts a database as open until it is closed or forgotten.
#[derive(Debug)]
pub(crate) struct OpenMark {
    kind: FileKind,
    counted: AtomicBool,
}

impl OpenMark {
    pub(crate) fn new(kind: FileKind) -> Self {
        let counted = is_recording();
        if counted {
            metrics::gauge!(OPEN, "database" => kind.as_str()).increment(1.0);
        }
        Self { kind, counted: AtomicBool::new(counted) }
    }

    /// Takes it back, once.
    pub(crate) fn close(&self) {
        if self.counted.swap(false, Ordering::Relaxed) {
            metrics::gauge!(OPEN, "database" => self.kind.as_str()).decrement(1.0);
        }
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        self.close();
    }
}

/// The span around the operations of one transaction.
pub(crate) fn group_span(kind: FileKind, operations: usize) -> Span {
    tracing::debug_span!("write_group", database = kind.as_str(), operations)
}

/// The span around one operation that writes.
pub(crate) fn write_span(kind: FileKind, cause: Cause) -> Span {
    tracing::debug_span!("write", database = kind.as_str(), cause = cause.as_str())
}

/// The span around one operation that reads.
pub(crate) fn read_span(kind: FileKind, cause: Cause) -> Span {
    tracing::debug_span!("read", database = kind.as_str(), cause = cause.as_str())
}
