//! One open database: a fair writer and a few readers behind a handle that is cheap to clone.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use crate::annex::Annexes;
use crate::budget::Ledger;
use crate::db_lock::FileLock;
use crate::error::Error;
use crate::id::{Cause, Class};
use crate::keys::{self, KeyOutcome};
use crate::layout;
use crate::lease::Lease;
use crate::observe::{self, OpenMark, Outcome};
use crate::open::Opened;
use crate::raw::RawConn;
use crate::reader::ReaderPool;
use crate::schema::FileKind;
use crate::vfs::{self, Written};
use crate::vitals::Vitals;
use crate::whole::Whole;
use crate::writer::{self, Checkpoint, CheckpointMode, Job, Operation, Pending, RawOperation, Seat, Writer};

/// An open database.
///
/// # Guarantees
/// - There is one writer: operations run in the order they were queued and never meet a busy database of this process.
/// - An operation is run at most once, and its answer comes after the commit. For files on flash that means after
///   the sync: what was answered survives a power cut. Files in memory survive the end of the process only.
/// - Operations queued together share one commit; the failure or panic of one takes back its own changes alone.
///
/// # Cancel safety
/// Dropping the future of a write does not cancel it: it may be committed or not. Whoever needs to know gives it a
/// key ([`Database::write_keyed`]) and asks for the key ([`Database::outcome`]). Dropping the future of a read is harmless.
///
/// # Caveats
/// An operation gets the connection inside a transaction. It must pass on every SQL error, wait for nothing but this
/// connection, and leave the transaction alone: ending it ends in [`Error::TransactionLost`].
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
    /// Keeps a router database from being closed while this handle lives.
    lease: Option<Arc<Lease>>,
}

struct Shared {
    path: PathBuf,
    /// Device and inode of the file when it was opened.
    place: Option<(u64, u64)>,
    file_uid: [u8; 16],
    /// `None` when opened for reading only.
    line: Option<Line>,
    readers: ReaderPool,
    /// Of router databases: what moves their directory moves these.
    annexes: Option<Annexes>,
    /// What bounds its writes; none for files in memory.
    ledger: Option<Arc<Ledger>>,
    vitals: Arc<Vitals>,
    open: OpenMark,
    closed: AtomicBool,
    /// Held while closing; true once closed.
    closing: tokio::sync::Mutex<bool>,
}

/// The queue of the writer, and the writer for those who find the queue empty.
struct Line {
    queue: mpsc::Sender<Job>,
    seat: Arc<Seat>,
}

/// The time limits and the queue bound of a database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) read: Duration,
    pub(crate) write: Duration,
    pub(crate) queue: usize,
}

impl Database {
    /// Starts the writer and the readers of an opened file.
    pub(crate) fn start(opened: Opened, limits: Limits, vitals: Arc<Vitals>) -> Self {
        let Opened { target, writer, lock, file_uid, .. } = opened;
        let lock: Arc<FileLock> = Arc::new(lock);
        let readers = ReaderPool::new(target.clone(), limits.read, Arc::clone(&lock), Arc::clone(&vitals));
        let path = target.path.clone();
        let ledger = target.ledger.clone();
        let annexes = (vitals.kind() == FileKind::Router).then(|| Annexes::new(target.clone()));
        let line = match writer {
            None => None,
            Some(guarded) => {
                let (sender, receiver) = mpsc::channel(limits.queue.max(1));
                let writer = Writer::new(target, guarded, limits.write, lock, Arc::clone(&vitals));
                let seat = Arc::new(Seat::new(writer));
                tokio::spawn(writer::serve(Arc::clone(&seat), receiver));
                Some(Line { queue: sender, seat })
            }
        };
        let shared = Shared {
            place: layout::place_of(&path),
            path,
            file_uid,
            line,
            readers,
            annexes,
            ledger,
            open: OpenMark::new(vitals.kind()),
            vitals,
            closed: AtomicBool::new(false),
            closing: tokio::sync::Mutex::new(false),
        };
        Self { shared: Arc::new(shared), lease: None }
    }

    pub(crate) fn with_lease(mut self, lease: Arc<Lease>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Runs an operation that writes and returns its value after the commit.
    ///
    /// # Errors
    /// What the operation returned; and converted from [`Error`]: [`Error::Overloaded`] when the queue is full,
    /// [`Error::NotApplied`], [`Error::NoSpace`], [`Error::WriteDeadline`], [`Error::HalfDone`] and [`Error::Panicked`] when
    /// it is provably not committed, [`Error::Unknown`] when the commit itself failed, [`Error::ReadOnly`],
    /// [`Error::Closed`]; the damage ([`Error::is_damage`]) that this or an earlier operation met: the handle is then of no
    /// more use.
    ///
    /// # Cancel safety
    /// Once polled, it runs to its end whether or not anybody waits.
    pub async fn write<T, E, F>(&self, cause: Cause, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.submit(cause, None, op).await
    }

    /// Runs an operation that writes, under a key that is committed with it.
    ///
    /// # Errors
    /// As [`Database::write`], and [`Error::AlreadyCommitted`] when the key is there; the operation then does not run.
    ///
    /// # Cancel safety
    /// As [`Database::write`]; [`Database::outcome`] tells what became of it.
    pub async fn write_keyed<T, E, F>(&self, cause: Cause, key: Ulid, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.submit(cause, Some(key), op).await
    }

    /// Runs a small operation that writes, on the calling thread if nobody is before it, and returns its value after the
    /// commit.
    ///
    /// It promises what [`Database::write`] does: one transaction, the order of the queue, its own changes alone taken
    /// back. Its statements cost no change of threads and are prepared once. For files in memory an operation that finds
    /// the writer idle is over when this future is first polled; the others share a commit. It must not wait for anything
    /// and should be short: it occupies a thread of the runtime. For files on flash it runs where that does not matter.
    ///
    /// # Errors
    /// As [`Database::write`].
    ///
    /// # Cancel safety
    /// As [`Database::write`]: once polled, it runs to its end.
    pub async fn write_raw<T, E, F>(&self, cause: Cause, op: F) -> Result<T, E>
    where
        F: FnOnce(&mut RawConn<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.check_budget(cause)?;
        self.check_open()?;
        let operation =
            Typed { cause, key: None, only_reads: false, op: Some(op), result: None, outcome: None, reply: None };
        self.submit_raw(operation).await
    }

    /// Runs a small operation that reads, as [`Database::write_raw`] runs one that writes: on the writer's connection,
    /// in one snapshot, after everything queued before it.
    ///
    /// It is meant for files in memory, where it costs a fraction of [`Database::read`]. On flash it would hold the writer up.
    ///
    /// # Errors
    /// As [`Database::write_raw`]; [`Error::ReadOnly`] for a statement that writes.
    ///
    /// # Cancel safety
    /// Safe: nothing changes.
    pub async fn read_raw<T, E, F>(&self, cause: Cause, op: F) -> Result<T, E>
    where
        F: FnOnce(&mut RawConn<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.check_open()?;
        let operation =
            Typed { cause, key: None, only_reads: true, op: Some(op), result: None, outcome: None, reply: None };
        self.submit_raw(operation).await
    }

    async fn submit_raw<T, E, F>(&self, mut operation: Typed<T, E, F>) -> Result<T, E>
    where
        F: FnOnce(&mut RawConn<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if self.shared.line.as_ref().is_some_and(|line| line.seat.run_now(&mut operation)) {
            return operation.into_result();
        }
        let (reply, answer) = oneshot::channel();
        operation.reply = Some(reply);
        self.enqueue(Job::Raw(Box::new(operation)))?;
        answer.await.unwrap_or_else(|_| Err(stopped().into()))
    }

    /// Tells what became of a keyed write, after everything this process queued before the question.
    ///
    /// A database remembers at least the last 1,024 keys.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub async fn outcome(&self, key: Ulid) -> Result<KeyOutcome, Error> {
        const CAUSE: Cause = Cause::new("key-outcome");
        if self.shared.line.is_none() {
            return self.read(CAUSE, move |conn| Box::pin(async move { keys::look_up(conn, key).await })).await;
        }
        // Through the writer: a write that still waits in its queue must be decided first.
        self.write(CAUSE, move |conn| Box::pin(async move { keys::look_up(conn, key).await })).await
    }

    /// Runs an operation that reads, in one snapshot.
    ///
    /// # Errors
    /// What the operation returned; and converted from [`Error`]: [`Error::ReadDeadline`], [`Error::Panicked`],
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Safe: the read ends in the background, at its deadline at the latest.
    pub async fn read<T, E, F>(&self, cause: Cause, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.check_open()?;
        let database = self.clone();
        let task = tokio::spawn(async move {
            // The whole handle moves in: its lease lasts until the read has ended, even when the caller is gone.
            let database = database;
            database.shared.readers.run(cause, op).await
        });
        task.await.unwrap_or_else(|error| {
            tracing::warn!(path = %self.path().display(), %cause, %error, "a read did not end");
            Err(Error::Closed { path: self.shared.path.clone() }.into())
        })
    }

    /// Moves the write-ahead log into the database file and empties it.
    ///
    /// # Errors
    /// As [`Database::write`]. A log that readers keep in use is not an error but [`Checkpoint::busy`].
    pub async fn checkpoint(&self) -> Result<Checkpoint, Error> {
        self.checkpoint_by(CheckpointMode::Truncate).await
    }

    /// Moves what it can of the write-ahead log into the database file without waiting for readers.
    pub(crate) async fn checkpoint_passive(&self) -> Result<Checkpoint, Error> {
        self.checkpoint_by(CheckpointMode::Passive).await
    }

    async fn checkpoint_by(&self, mode: CheckpointMode) -> Result<Checkpoint, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Checkpoint(mode, reply))?;
        answer.await.map_err(|_| Error::Closed { path: self.shared.path.clone() })?
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Tells whether the file that is open is still the one with its name. What is written to one that is not is lost
    /// when it is closed.
    pub fn is_in_place(&self) -> bool {
        self.shared.place.is_some() && layout::place_of(&self.shared.path) == self.shared.place
    }

    /// Begins work of several statements in the write that is running on this database: unless it is
    /// [finished](Whole::finish), that write fails with [`Error::HalfDone`]. For use inside of [`Database::write`] alone.
    pub fn whole(&self) -> Whole {
        Whole::begin(&self.shared.vitals)
    }

    /// Tells whether damage was found in the file since it was opened. What is not damaged may still be read; nothing more
    /// is written to it once the writer has met the damage.
    pub fn is_damaged(&self) -> bool {
        self.shared.vitals.is_damaged()
    }

    /// Returns the uid stored in the file when it was created.
    pub fn file_uid(&self) -> [u8; 16] {
        self.shared.file_uid
    }

    /// Returns the annexes of a router database; `None` for others.
    pub fn annexes(&self) -> Option<&Annexes> {
        self.shared.annexes.as_ref()
    }

    /// Returns the bytes the file may grow to for operations of a cause, as long as the medium has room: see
    /// [`Options::database_bytes_max`](crate::Options::database_bytes_max).
    pub fn bytes_max(&self, cause: Cause) -> u64 {
        self.shared.readers.bytes_for(cause.class())
    }

    /// Returns what this process has written to the file, its log and its annexes included.
    pub fn written(&self) -> Written {
        vfs::written(&self.shared.path)
    }

    /// Tells whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.shared.line.is_none()
    }

    /// Returns how many operations wait for the writer.
    pub fn queue_depth(&self) -> usize {
        self.shared.line.as_ref().map_or(0, |line| line.queue.max_capacity() - line.queue.capacity())
    }

    /// Refuses what is low once the budget is scarce.
    fn check_budget(&self, cause: Cause) -> Result<(), Error> {
        let Some(ledger) = self.shared.ledger.as_ref().filter(|_| cause.class() == Class::Low) else {
            return Ok(());
        };
        let level = ledger.level();
        if level.admits(Class::Low) {
            return Ok(());
        }
        observe::refused(self.shared.vitals.kind(), "budget");
        Err(Error::OverBudget { cause: cause.as_str(), level })
    }

    async fn submit<T, E, F>(&self, cause: Cause, key: Option<Ulid>, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.check_budget(cause)?;
        let (reply, answer) = oneshot::channel();
        let operation =
            Typed { cause, key, only_reads: false, op: Some(op), result: None, outcome: None, reply: Some(reply) };
        self.enqueue(Job::Write(Box::new(operation)))?;
        answer.await.unwrap_or_else(|_| Err(stopped().into()))
    }

    fn enqueue(&self, job: Job) -> Result<(), Error> {
        self.check_open()?;
        let Some(line) = &self.shared.line else {
            return Err(Error::ReadOnly { detail: "it was opened for reading only".to_owned() });
        };
        line.seat.join();
        line.queue.try_send(job).map_err(|refused| {
            line.seat.leave(1);
            match refused {
                mpsc::error::TrySendError::Full(_) => {
                    observe::refused(self.shared.vitals.kind(), "queue_full");
                    Error::Overloaded { queue: "writer" }
                }
                mpsc::error::TrySendError::Closed(_) => Error::Closed { path: self.shared.path.clone() },
            }
        })
    }

    /// Tells whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Returns how it is.
    pub(crate) fn vitals(&self) -> &Vitals {
        &self.shared.vitals
    }

    fn check_open(&self) -> Result<(), Error> {
        if let Some(damage) = self.shared.vitals.damage() {
            return Err(damage.clone());
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { path: self.shared.path.clone() });
        }
        Ok(())
    }

    /// Finishes what is queued, refuses the rest and closes every connection. Later calls wait for the same end.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.shared.closed.store(true, Ordering::Release);
        let mut done = self.shared.closing.lock().await;
        if *done {
            return Ok(());
        }
        self.shared.readers.close().await;
        let mut result = Ok(());
        if let Some(line) = &self.shared.line {
            let (reply, answer) = oneshot::channel();
            line.seat.join();
            // A writer that is gone has closed its connection.
            if line.queue.send(Job::Close(reply)).await.is_ok() {
                result = answer.await.unwrap_or(Ok(()));
            }
        }
        self.shared.open.close();
        *done = true;
        result
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

fn stopped() -> Error {
    Error::Unknown { detail: "the writer stopped".to_owned() }
}

/// An operation with its types, waiting or done.
struct Typed<T, E, F> {
    cause: Cause,
    key: Option<Ulid>,
    only_reads: bool,
    op: Option<F>,
    result: Option<Result<T, E>>,
    /// What the result is, where its type hides it.
    outcome: Option<Outcome>,
    /// Where the answer goes; none for one that runs on the thread of its caller.
    reply: Option<oneshot::Sender<Result<T, E>>>,
}

impl<T, E, F> Typed<T, E, F>
where
    E: From<Error>,
{
    fn into_result(self) -> Result<T, E> {
        self.result.unwrap_or_else(|| Err(Error::NotApplied.into()))
    }

    fn keep(&mut self, result: Result<T, E>) -> bool {
        let succeeded = result.is_ok();
        self.outcome = Some(match (succeeded, self.only_reads) {
            (false, _) => Outcome::Failed,
            (true, false) => Outcome::Committed,
            (true, true) => Outcome::Read,
        });
        self.result = Some(result);
        succeeded
    }
}

impl<T, E, F> Pending for Typed<T, E, F>
where
    F: Send,
    T: Send,
    E: From<Error> + Send,
{
    fn cause(&self) -> Cause {
        self.cause
    }

    fn fail(&mut self, error: Error) {
        self.outcome = Some(Outcome::of(&error));
        self.result = Some(Err(error.into()));
    }

    fn outcome(&self) -> Outcome {
        self.outcome.unwrap_or(Outcome::NotApplied)
    }

    fn succeeded(&self) -> bool {
        matches!(self.result, Some(Ok(_)))
    }

    fn answer(mut self: Box<Self>) {
        // A caller that no longer waits can ask for its key.
        if let Some(reply) = self.reply.take() {
            reply.send(self.into_result()).ok();
        }
    }
}

impl<T, E, F> Operation for Typed<T, E, F>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn key(&self) -> Option<Ulid> {
        self.key
    }

    fn run<'a>(&'a mut self, conn: &'a mut SqliteConnection) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Some(op) = self.op.take() else { return false };
            let result = op(conn).await;
            self.keep(result)
        })
    }
}

impl<T, E, F> RawOperation for Typed<T, E, F>
where
    F: FnOnce(&mut RawConn<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn only_reads(&self) -> bool {
        self.only_reads
    }

    fn run(&mut self, raw: &mut RawConn<'_>) -> bool {
        let Some(op) = self.op.take() else { return false };
        let result = op(raw);
        self.keep(result)
    }
}
