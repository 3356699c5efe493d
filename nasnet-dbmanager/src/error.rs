//! The one error type of the crate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ulid::Ulid;

use crate::id::RouterId;
use crate::system::routers::Lifecycle;

/// What went wrong; each variant is something a caller does differently.
///
/// It is cheap to clone, since one failed open or commit can be the answer to many callers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a router id.
    #[error("invalid router id {input:?}: {reason}")]
    InvalidRouterId {
        /// The refused text.
        input: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name chosen by the caller has another form than `[a-z][a-z0-9._-]{0,63}`.
    #[error("invalid name of a {what}: {input:?}")]
    InvalidName {
        /// What it names.
        what: &'static str,
        /// The refused name, cut to its first 64 characters.
        input: String,
    },
    /// The master key cannot be used.
    #[error("master key from {origin}: {fault}")]
    MasterKey {
        /// The path or the environment variable.
        origin: String,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// A sealed value does not open.
    #[error("sealed value refused: {reason}")]
    Sealed {
        /// Why, without a word of the value.
        reason: &'static str,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system")]
    Random,
    /// SQLite does not take the metered VFS.
    #[error("sqlite refuses the metered vfs with code {code}")]
    Vfs {
        /// The result code.
        code: i32,
    },
    /// An annex does not hold what a row says is there; the rows and the other annexes are not affected.
    #[error("annex {}: {detail}", path.display())]
    Annex {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A value cannot be stored.
    #[error("{what} cannot be stored: {detail}")]
    Encode {
        /// The kind of value.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// What the caller names does not exist.
    #[error("{what} {name} does not exist")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// What the caller wants to create exists.
    #[error("{what} {name} exists")]
    Exists {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A counter has no larger number to give.
    #[error("counter {name} is exhausted")]
    CounterExhausted {
        /// The counter.
        name: String,
    },
    /// A stored value has a form that is never written.
    #[error("stored {what} cannot be read: {detail}")]
    Decode {
        /// The kind of value.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },

    /// The data directory holds files of something else.
    #[error("{} is not a nasnet data directory: it holds {found:?} and no nasnet.lock", path.display())]
    ForeignDirectory {
        /// The data directory.
        path: PathBuf,
        /// One of the names found in it.
        found: String,
    },
    /// The marker file of the data directory cannot be understood.
    #[error("{} is not a marker of a nasnet data directory: {detail}", path.display())]
    BadMarker {
        /// The marker file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A directory cannot be created or written to.
    #[error("directory {} is not writable: {source}", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The data directory is used with another run directory.
    #[error(
        "data directory {} belongs to run directory {}, not {}",
        data_dir.display(), recorded.display(), requested.display()
    )]
    RunDirMismatch {
        /// The data directory.
        data_dir: PathBuf,
        /// The run directory its marker names.
        recorded: PathBuf,
        /// The run directory asked for.
        requested: PathBuf,
    },
    /// The linked SQLite is older than the first release without the WAL-reset corruption.
    #[error("sqlite {found} is too old: {required} or newer is needed")]
    VersionTooOld {
        /// The linked version.
        found: String,
        /// The oldest accepted version.
        required: &'static str,
    },
    /// A database that must exist is missing or empty; nothing was created in its place.
    #[error("database {} is registered but missing or empty", path.display())]
    MissingDatabase {
        /// The database file.
        path: PathBuf,
    },
    /// The file is a database, but not the one that belongs here.
    #[error("{} is not the database expected here: {detail}", path.display())]
    WrongDatabase {
        /// The database file.
        path: PathBuf,
        /// Which mark differs.
        detail: String,
    },
    /// The database was written by a newer program.
    #[error("{}: schema {set} is at version {found}, this program knows up to {known}", path.display())]
    SchemaTooNew {
        /// The database file.
        path: PathBuf,
        /// The schema set.
        set: String,
        /// The version in the file.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// The database needs a migration and the options refuse to run it.
    #[error("{}: schema {set} is at version {found} and {wanted} is needed", path.display())]
    MigrationPending {
        /// The database file.
        path: PathBuf,
        /// The schema set.
        set: String,
        /// The version in the file.
        found: u32,
        /// The version this program needs.
        wanted: u32,
    },
    /// A migration already applied has another text than the one of this program.
    #[error("{}: migration {version} of schema {set} differs from the one applied", path.display())]
    MigrationChanged {
        /// The database file.
        path: PathBuf,
        /// The schema set.
        set: String,
        /// The version of the migration.
        version: u32,
    },
    /// A migration failed and was rolled back.
    #[error("{}: migration {version} of schema {set} failed: {detail}", path.display())]
    MigrationFailed {
        /// The database file.
        path: PathBuf,
        /// The schema set.
        set: String,
        /// The version of the migration.
        version: u32,
        /// What failed.
        detail: String,
    },
    /// The schema sets given contradict each other.
    #[error("schema set {set} is unusable: {detail}")]
    BadSchemaSet {
        /// The schema set.
        set: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A setting did not take effect on a connection.
    #[error("{}: pragma {name} is {got} instead of {wanted}", path.display())]
    PragmaNotApplied {
        /// The database file.
        path: PathBuf,
        /// The pragma.
        name: &'static str,
        /// The value asked for.
        wanted: String,
        /// The value read back.
        got: String,
    },
    /// The database is damaged.
    #[error("database is damaged: {detail}")]
    Corrupt {
        /// What was found.
        detail: String,
    },

    /// No active router has this id.
    #[error("router {id} is not registered")]
    RouterNotFound {
        /// The router.
        id: RouterId,
    },
    /// A router with this id exists.
    #[error("router {id} exists")]
    RouterExists {
        /// The router.
        id: RouterId,
    },
    /// Every open router database is in use and none was returned in time.
    #[error("all {max_open} open router databases are in use")]
    AllLeased {
        /// The bound on open router databases.
        max_open: usize,
    },
    /// The router is not in the state of its life that the call needs.
    #[error("router {id} is {found}, not {needed}")]
    WrongLifecycle {
        /// The router.
        id: RouterId,
        /// Its state.
        found: Lifecycle,
        /// The state needed.
        needed: Lifecycle,
    },
    /// The database of the router is damaged and set aside; [`DbManager::recover`](crate::DbManager::recover) replaces it.
    #[error("router {id} is quarantined")]
    Quarantined {
        /// The router.
        id: RouterId,
    },
    /// The backup was made from another fleet.
    #[error("backup {} is of fleet {found}, not of {expected}", path.display())]
    BackupOfAnotherFleet {
        /// The directory of the backup.
        path: PathBuf,
        /// The fleet it names.
        found: Ulid,
        /// This fleet.
        expected: Ulid,
    },
    /// The backup is not what its manifest says, or the manifest cannot be understood.
    #[error("backup {} is refused: {detail}", path.display())]
    BadBackup {
        /// The directory of the backup, or the file of it that is refused.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// Another process uses the database in a way that excludes this one, or this one has handles to it.
    #[error("{} is in use", path.display())]
    InUse {
        /// The database, or the directory that is in use as a whole.
        path: PathBuf,
    },
    /// The database or the manager was closed.
    #[error("{} is closed", path.display())]
    Closed {
        /// The database file or data directory.
        path: PathBuf,
    },

    /// A bounded queue is full; nothing was done.
    #[error("queue {queue} is full")]
    Overloaded {
        /// The queue.
        queue: &'static str,
    },
    /// Another operation of the same transaction took it down; this one is provably not committed.
    #[error("not applied: another operation took its transaction down")]
    NotApplied,
    /// The commit failed in a way that leaves open whether it reached the file; ask for the key.
    #[error("outcome unknown: the commit failed: {detail}")]
    Unknown {
        /// What the commit answered.
        detail: String,
    },
    /// The operation ended its transaction itself or hid the error that did; it is not committed.
    #[error("the operation lost its transaction")]
    TransactionLost,
    /// The operation dropped work of which all or nothing may be committed before it was done; its changes were rolled back.
    #[error("the operation left work half done")]
    HalfDone,
    /// The operation panicked; its changes were rolled back.
    #[error("the operation panicked: {message}")]
    Panicked {
        /// The message of the panic.
        message: String,
    },
    /// A write took longer than its deadline; its changes were rolled back.
    #[error("the write exceeded its deadline of {limit_ms} ms")]
    WriteDeadline {
        /// The deadline.
        limit_ms: u64,
    },
    /// A read took longer than its deadline.
    #[error("the read exceeded its deadline of {limit_ms} ms")]
    ReadDeadline {
        /// The deadline.
        limit_ms: u64,
    },
    /// A keyed write with this key is committed; the operation did not run again.
    #[error("the write with key {key} is committed")]
    AlreadyCommitted {
        /// The key.
        key: Ulid,
    },

    /// The flash budget is used up for writes of this class; nothing was done.
    #[error("flash budget: {cause} is not admitted while the budget is {level:?}")]
    OverBudget {
        /// The cause of the write.
        cause: &'static str,
        /// How far the budget is used up.
        level: crate::budget::BudgetLevel,
    },
    /// The medium or the size limit of the database is full.
    #[error("no space left for the database: {detail}")]
    NoSpace {
        /// What SQLite said.
        detail: String,
    },
    /// The database cannot be written.
    #[error("database is read-only: {detail}")]
    ReadOnly {
        /// Why.
        detail: String,
    },
    /// Another connection holds the lock.
    #[error("database is busy: {detail}")]
    Busy {
        /// What SQLite said.
        detail: String,
    },
    /// The medium failed under the database.
    #[error("input/output error {code} of the database: {detail}")]
    Medium {
        /// The extended result code.
        code: i32,
        /// What SQLite said.
        detail: String,
    },
    /// A constraint of the schema refused a value.
    #[error("{kind} constraint violated: {detail}")]
    Constraint {
        /// Which kind.
        kind: ConstraintKind,
        /// What SQLite said; it names tables and columns, never values.
        detail: String,
    },
    /// The statement was interrupted.
    #[error("the statement was interrupted")]
    Interrupted,
    /// Another error of the database driver.
    #[error("cannot {operation}: {source}")]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The error of the driver.
        source: Arc<sqlx::Error>,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Tells whether the same call may succeed later without anything being changed first.
    ///
    /// Each retryable error guarantees that the call had no effect. [`Error::Unknown`] is not one of them: ask
    /// [`Database::outcome`](crate::Database::outcome) first.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::AllLeased { .. }
                | Self::InUse { .. }
                | Self::Overloaded { .. }
                | Self::NotApplied
                | Self::WriteDeadline { .. }
                | Self::ReadDeadline { .. }
                | Self::NoSpace { .. }
                | Self::OverBudget { .. }
                | Self::Busy { .. }
                | Self::Interrupted
        )
    }
}

/// Which kind of constraint refused a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConstraintKind {
    /// A UNIQUE index or a primary key.
    Unique,
    /// A foreign key.
    ForeignKey,
    /// NOT NULL.
    NotNull,
    /// CHECK.
    Check,
    /// A trigger that refuses.
    Trigger,
    /// Any other, such as the type of a STRICT table.
    Other,
}

impl std::fmt::Display for ConstraintKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unique => "unique",
            Self::ForeignKey => "foreign key",
            Self::NotNull => "not null",
            Self::Check => "check",
            Self::Trigger => "trigger",
            Self::Other => "other",
        })
    }
}

/// What is wrong with a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// There is none.
    #[error("it is not set")]
    Missing,
    /// The path is not a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file has another length.
    #[error("it holds {actual} bytes instead of 32")]
    Length {
        /// The length found.
        actual: u64,
    },
    /// The group or others may use the file.
    #[error("its mode is {mode:04o}; only its owner may have access (0600)")]
    Permissions {
        /// The permission bits found.
        mode: u32,
    },
    /// It is another one than the one that protects the keys of this fleet.
    #[error("it is not the key of this fleet")]
    Wrong,
    /// The text is neither hexadecimal nor base64 of 32 bytes.
    #[error("it is neither 64 hexadecimal digits nor base64 of 32 bytes")]
    Encoding,
}
