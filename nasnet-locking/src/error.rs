//! The one error of this crate.

use std::fmt;
use std::time::Duration;

use ulid::Ulid;

use crate::key::{KEY_BYTES_MAX, KEY_DEPTH_MAX, LockKey};
use crate::lease::{Holder, Mode};
use crate::token::FencingToken;

/// What can go wrong when leases are taken, kept or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a lock key.
    #[error("lock key {key:?} {why}")]
    InvalidKey {
        /// The text, cut to the longest key.
        key: String,
        /// What is wrong with it.
        why: KeyFault,
    },
    /// A lease must cover something.
    #[error("a key set needs at least one key")]
    EmptyKeySet,
    /// More keys at once than a lease may cover.
    #[error("{count} keys at once, at most {max} are taken")]
    TooManyKeys {
        /// Distinct keys asked for.
        count: usize,
        /// Most keys of one set.
        max: usize,
    },
    /// The key names a router that is not registered, or is no longer active.
    #[error("lock key {key}: no such router")]
    UnknownRouter {
        /// The key.
        key: LockKey,
    },
    /// The time to live is outside its bounds.
    #[error("lease on {key}: a time to live of {ttl:?} is outside {min:?} to {max:?}")]
    InvalidTtl {
        /// First key asked for.
        key: LockKey,
        /// What was asked for.
        ttl: Duration,
        /// Shortest lease.
        min: Duration,
        /// Longest lease.
        max: Duration,
    },
    /// The keys are taken. Nothing was acquired.
    #[error("{key} is held by {holder} for another {expires_in:?}")]
    Held {
        /// The key asked for that is not free.
        key: LockKey,
        /// Who is in the way: who, what for and since when.
        holder: Box<Holder>,
        /// Wall clock of the grant in milliseconds, for people.
        since: i64,
        /// When the lease ends unless it is renewed; at most its time to live.
        expires_in: Duration,
        /// Requests that queued up earlier and are still waiting.
        ahead: usize,
        /// How long this request waited before it gave up.
        waited: Duration,
    },
    /// This write must not happen: its holder has been overtaken or has lost its lease.
    #[error("token {token} is fenced out of {key}: {seen}")]
    Fenced {
        /// The key, ancestor or descendant that carries the higher token; the first key when the lease is lost.
        key: LockKey,
        /// The token of the rejected write.
        token: FencingToken,
        /// What stands against it.
        seen: Seen,
    },
    /// The lease is no longer this holder's.
    #[error("the lease with token {token} on {key} is lost: {why}")]
    Lost {
        /// First key of the lease.
        key: LockKey,
        /// Its token.
        token: FencingToken,
        /// How it ended.
        why: LostReason,
    },
    /// A lease of this mode carries no right to write.
    #[error("the {mode} lease with token {token} on {key} carries no right to write")]
    NoWriteRight {
        /// First key of the lease.
        key: LockKey,
        /// Its token.
        token: FencingToken,
        /// Its mode.
        mode: Mode,
    },
    /// The lease to break is not the one that was looked at.
    #[error("lease {lease} with token {token} is not held any more; {now}")]
    StaleBreak {
        /// The lease named.
        lease: Ulid,
        /// The token named.
        token: FencingToken,
        /// What holds its keys now, if that could be told.
        now: StaleView,
    },
    /// The lock manager has been shut down.
    #[error("the lock manager is shut down")]
    Closed,
    /// A stored value is not what this crate wrote.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What was found.
        detail: String,
    },
    /// A session file could not be created, locked or looked at.
    #[error("session file {path}: {source}")]
    Session {
        /// The file or directory.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A statement failed.
    #[error("cannot {operation}: {source}")]
    Storage {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// Why not.
        source: nasnet_dbmanager::Error,
    },
    /// A statement failed on the PostgreSQL server, or the server could not be reached.
    #[cfg(feature = "postgres")]
    #[error("cannot {operation} in PostgreSQL: {source}")]
    Postgres {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// The tables in the PostgreSQL database were made by a newer version of this crate.
    #[cfg(feature = "postgres")]
    #[error("the lease store has version {found}, this crate knows up to {known}")]
    NewerSchema {
        /// The version found.
        found: i32,
        /// The newest version known.
        known: i32,
    },
    /// A fence holds at one isolation level alone.
    #[cfg(feature = "postgres")]
    #[error("a fence is checked under READ COMMITTED, this transaction runs under {level}")]
    Isolation {
        /// The level of the transaction.
        level: String,
    },
    /// The session with the lease store has ended: its leases and its places in queues are lost. Another one begins with
    /// the next request.
    #[error("the session with the lease store has ended")]
    SessionEnded,
    /// The database manager refused or failed.
    #[error(transparent)]
    Db(#[from] nasnet_dbmanager::Error),
}

impl Error {
    /// Tells whether the same call may succeed later without anything being repaired.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Held { .. } | Self::SessionEnded => true,
            #[cfg(feature = "postgres")]
            Self::Postgres { source, .. } => postgres_may_recover(source),
            Self::Db(source) | Self::Storage { source, .. } => source.is_retryable(),
            _ => false,
        }
    }
}

/// Lost connections, servers that start or stop, deadlocks and time limits.
#[cfg(feature = "postgres")]
fn postgres_may_recover(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(answer) => answer.code().is_some_and(|code| {
            code.starts_with("08")
                || ["40001", "40P01", "55P03", "53300", "57014", "57P01", "57P02", "57P03", "25P03"].contains(&&*code)
        }),
        _ => false,
    }
}

/// What makes a text no lock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyFault {
    /// A segment is empty: the text is empty, begins or ends with `/`, or has two in a row.
    EmptySegment,
    /// A character that no segment may have.
    Character(char),
    /// More than [`KEY_BYTES_MAX`] bytes.
    TooLong,
    /// More than [`KEY_DEPTH_MAX`] segments.
    TooDeep,
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptySegment => f.write_str("has an empty segment"),
            Self::Character(found) => write!(f, "has {found:?} in a segment"),
            Self::TooLong => write!(f, "is longer than {KEY_BYTES_MAX} bytes"),
            Self::TooDeep => write!(f, "has more than {KEY_DEPTH_MAX} segments"),
        }
    }
}

/// What a fence saw.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// A write under this higher token has committed in the same database.
    Token(FencingToken),
    /// The lease is no longer current, even if no later holder has written yet.
    LeaseLost(LostReason),
    /// The database belongs to another fleet, whose tokens count for themselves.
    AnotherFleet {
        /// The fleet that granted the lease.
        lease: Ulid,
        /// The fleet of the database.
        database: Ulid,
    },
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(token) => write!(f, "token {token} was seen"),
            Self::LeaseLost(why) => write!(f, "the lease is lost, {why}"),
            Self::AnotherFleet { lease, database } => {
                write!(f, "the lease was granted in fleet {lease}, the database is of fleet {database}")
            }
        }
    }
}

/// How a lease ended for its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// Its time ran out, or its longest hold.
    Expired,
    /// It is not known any more: released before, or taken over after its time ran out.
    Ended,
    /// Somebody broke it.
    Broken {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The machine has been booted since.
    OtherBoot,
    /// The session that held it has ended.
    SessionEnded,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("its time ran out"),
            Self::Ended => f.write_str("it was released, or taken over after its time ran out"),
            Self::Broken { by, reason } => write!(f, "broken by {by}: {reason}"),
            Self::OtherBoot => f.write_str("the machine has been booted since"),
            Self::SessionEnded => f.write_str("its session has ended"),
        }
    }
}

/// What a failed break found instead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StaleView {
    /// The lease is gone and not known any more.
    Gone,
    /// The lease exists under another token.
    OtherToken(FencingToken),
}

impl fmt::Display for StaleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it has ended"),
            Self::OtherToken(token) => write!(f, "its token is {token}"),
        }
    }
}
