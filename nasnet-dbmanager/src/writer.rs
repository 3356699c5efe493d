//! The writer of one database: a task that owns the only writing connection and commits operations in groups.
//!
//! Each group is one `BEGIN IMMEDIATE` transaction. An operation that fails takes back its savepoint alone. When the
//! transaction itself is gone (full disk, I/O error, out of memory, interrupt), the operation that caused it gets its
//! own error, the others of the group get [`Error::NotApplied`], and the connection is replaced. Operations of the
//! group that had not started simply run in the next transaction.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::{Connection, Row, Sqlite, SqliteConnection, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use ulid::Ulid;

use crate::connection::{Guarded, Role, Target, quick_check, run};
use crate::driver::{code, during, extended_code, translate};
use crate::error::Error;
use crate::file_lock::FileLock;
use crate::id::Cause;
use crate::keys::KeyRing;
use crate::space::Space;
use crate::vfs::Meter;
use crate::vitals::{self, Vitals};

/// The largest number of operations in one transaction: enough to share a sync, few enough to bound the wait.
const GROUP_MAX: usize = 64;

/// How long a statement may take to notice its deadline before the connection is given up.
const GRACE: Duration = Duration::from_millis(500);

/// An operation slower than this is logged with its cause.
const SLOW: Duration = Duration::from_millis(500);

/// How long a checkpoint waits for readers.
const CHECKPOINT_BUSY_MS: u32 = 250;

/// What a checkpoint of the write-ahead log did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whether a reader or another process kept it from finishing.
    pub busy: bool,
    /// Pages in the write-ahead log.
    pub wal_pages: u64,
    /// Pages of it that are in the database file.
    pub checkpointed_pages: u64,
}

/// An operation waiting for the writer, with its types erased.
pub(crate) trait Operation: Send {
    fn cause(&self) -> Cause;
    fn key(&self) -> Option<Ulid>;
    /// Runs it once; `false` when it returned an error, which it keeps for the answer.
    fn run<'a>(&'a mut self, conn: &'a mut SqliteConnection) -> BoxFuture<'a, bool>;
    /// Replaces its result.
    fn fail(&mut self, error: Error);
    fn succeeded(&self) -> bool;
    /// Hands its result to the caller, who may be gone.
    fn answer(self: Box<Self>);
}

/// How hard a checkpoint tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckpointMode {
    /// Moves what it can without waiting for anybody; the log keeps its length.
    Passive,
    /// Waits for readers and empties the log.
    Truncate,
}

pub(crate) enum Job {
    Write(Box<dyn Operation>),
    Checkpoint(CheckpointMode, oneshot::Sender<Result<Checkpoint, Error>>),
    Close(oneshot::Sender<Result<(), Error>>),
}

/// The connection, or why there is none.
enum Link {
    Up(Live),
    /// To be connected again; the flag asks for a check of the whole file first.
    Down {
        check: bool,
    },
    /// The file failed that check: nothing is written any more.
    Damaged(Error),
}

/// A connection ready for operations.
struct Live {
    guarded: Guarded,
    keys: KeyRing,
    /// The bound on pages now set; 0 means none of the writer's own.
    pages: u64,
}

impl Live {
    async fn new(mut guarded: Guarded) -> Result<Self, Error> {
        let keys = KeyRing::load(&mut guarded.conn).await?;
        guarded.may_commit.store(false, Ordering::Release);
        Ok(Self { guarded, keys, pages: 0 })
    }
}

/// The state of the writer task.
pub(crate) struct Writer {
    target: Target,
    link: Link,
    deadline: Duration,
    meter: Meter,
    vitals: Arc<Vitals>,
    /// Held as long as this task may touch the file.
    _lock: Arc<FileLock>,
}

impl Writer {
    pub(crate) async fn new(
        target: Target,
        guarded: Guarded,
        deadline: Duration,
        lock: Arc<FileLock>,
        vitals: Arc<Vitals>,
    ) -> Result<Self, Error> {
        let meter = Meter::of(&target.path);
        let writer = Self { target, link: Link::Up(Live::new(guarded).await?), deadline, meter, vitals, _lock: lock };
        // What opening it wrote.
        writer.charge(&[]);
        Ok(writer)
    }

    /// Charges what was written to the file since the last time.
    fn charge(&self, causes: &[Cause]) {
        if let Some(ledger) = &self.target.ledger {
            ledger.charge(&self.target.path, self.meter.written(), causes);
        }
    }

    fn charge_checkpoint(&self) {
        if let Some(ledger) = &self.target.ledger {
            ledger.charge_checkpoint(&self.target.path, self.meter.written());
        }
    }

    /// Serves the queue until it is told to close or every handle is gone.
    pub(crate) async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => Some(job),
                None => queue.recv().await,
            };
            match job {
                None => break,
                Some(Job::Close(reply)) => {
                    let closed = self.close().await;
                    // Whatever slipped in behind was not run.
                    queue.close();
                    while let Some(job) = queue.recv().await {
                        self.turn_away(job);
                    }
                    // The lock goes before the answer, so that whoever waits finds the file free.
                    drop(self);
                    reply.send(closed).ok();
                    return;
                }
                Some(Job::Checkpoint(mode, reply)) => {
                    let done = self.checkpoint(mode).await;
                    self.charge_checkpoint();
                    reply.send(done).ok();
                }
                Some(Job::Write(first)) => {
                    let mut group = VecDeque::from([first]);
                    while group.len() < GROUP_MAX {
                        match queue.try_recv() {
                            Ok(Job::Write(operation)) => group.push_back(operation),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit_all(group).await;
                }
            }
        }
        if let Err(error) = self.close().await {
            tracing::warn!(path = %self.target.path.display(), %error, "closing the database failed");
        }
    }

    /// Runs every operation, in as many transactions as it takes.
    async fn commit_all(&mut self, mut waiting: VecDeque<Box<dyn Operation>>) {
        while !waiting.is_empty() {
            let limit = self.deadline;
            let (target, vitals) = (self.target.clone(), Arc::clone(&self.vitals));
            let live = match self.connected().await {
                Ok(live) => live,
                Err(error) => return refuse(waiting, &error),
            };
            let end = transact(live, &mut waiting, limit, &target, &vitals).await;
            let causes: Vec<_> = end.done.iter().map(|operation| operation.cause()).collect();
            self.charge(&causes);
            match (end.link, &target.space) {
                (After::Damaged(error), _) => {
                    self.disconnect(false).await;
                    self.link = Link::Damaged(error);
                }
                (After::Keep, space) => space.iter().for_each(|space| space.restock()),
                (After::Replace { check }, space) => {
                    self.disconnect(check).await;
                    if let Some(space) = space {
                        self.make_room(space).await;
                    }
                    self.charge_checkpoint();
                }
            }
            end.done.into_iter().for_each(Operation::answer);
        }
    }

    /// After a transaction was lost: when the medium is full, gives way with the ballast and moves the log into the
    /// file, so that its room can be used again.
    async fn make_room(&mut self, space: &Space) {
        space.relieve();
        if !space.is_tight() {
            return;
        }
        // Best effort: the next operation finds out by itself whether there is room.
        if let Ok(live) = self.connected().await {
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut live.guarded.conn).await.ok();
        }
    }

    async fn connected(&mut self) -> Result<&mut Live, Error> {
        if let Link::Down { check } = self.link {
            match self.connect(check).await {
                Ok(live) => self.link = Link::Up(live),
                Err(error) => {
                    if self.vitals.note_damage(&error) {
                        self.link = Link::Damaged(error.clone());
                    }
                    return Err(error);
                }
            }
        }
        match &mut self.link {
            Link::Up(live) => Ok(live),
            Link::Damaged(error) => Err(error.clone()),
            Link::Down { .. } => Err(Error::Closed { path: self.target.path.clone() }),
        }
    }

    async fn connect(&self, check: bool) -> Result<Live, Error> {
        let mut guarded = self.target.connect(Role::Writer).await?;
        if check && let Err(error) = quick_check(&mut guarded.conn).await {
            guarded.close().await.ok();
            return Err(error);
        }
        Live::new(guarded).await
    }

    async fn disconnect(&mut self, check: bool) {
        if let Link::Up(live) = std::mem::replace(&mut self.link, Link::Down { check })
            && let Err(error) = live.guarded.close().await
        {
            tracing::warn!(path = %self.target.path.display(), %error, "closing a failed connection failed");
        }
    }

    async fn checkpoint(&mut self, mode: CheckpointMode) -> Result<Checkpoint, Error> {
        let live = self.connected().await?;
        let conn = &mut live.guarded.conn;
        let before = crate::connection::pragma(conn, "busy_timeout").await?.unwrap_or_default();
        run(conn, format!("PRAGMA busy_timeout = {CHECKPOINT_BUSY_MS}")).await?;
        let sql = match mode {
            CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let row = sqlx::query(sql).fetch_one(&mut *conn).await;
        run(conn, format!("PRAGMA busy_timeout = {before}")).await?;
        let what = during("checkpoint");
        let row = row.map_err(&what).inspect_err(|error| {
            self.vitals.note_damage(error);
        })?;
        let pages = |index: usize| row.try_get::<i64, _>(index).map(|pages| u64::try_from(pages).unwrap_or(0));
        Ok(Checkpoint {
            busy: row.try_get::<i64, _>(0).map_err(&what)? != 0,
            wal_pages: pages(1).map_err(&what)?,
            checkpointed_pages: pages(2).map_err(&what)?,
        })
    }

    fn turn_away(&self, job: Job) {
        let error = Error::Closed { path: self.target.path.clone() };
        match job {
            Job::Write(operation) => refuse(VecDeque::from([operation]), &error),
            Job::Checkpoint(_, reply) => {
                reply.send(Err(error)).ok();
            }
            Job::Close(reply) => {
                reply.send(Ok(())).ok();
            }
        }
    }

    async fn close(&mut self) -> Result<(), Error> {
        let closed = match std::mem::replace(&mut self.link, Link::Down { check: false }) {
            Link::Up(live) => live.guarded.close().await,
            _ => Ok(()),
        };
        self.charge_checkpoint();
        closed
    }
}

fn refuse(waiting: VecDeque<Box<dyn Operation>>, error: &Error) {
    for mut operation in waiting {
        operation.fail(error.clone());
        operation.answer();
    }
}

/// What becomes of the connection after a transaction.
enum After {
    Keep,
    Replace {
        check: bool,
    },
    /// The file is damaged: nothing more is written to it.
    Damaged(Error),
}

/// The operations that have their result, and what becomes of the connection.
struct End {
    done: Vec<Box<dyn Operation>>,
    link: After,
}

/// Runs operations from the front of `waiting` in one transaction, until all are done or the transaction is gone.
async fn transact(
    live: &mut Live,
    waiting: &mut VecDeque<Box<dyn Operation>>,
    limit: Duration,
    target: &Target,
    vitals: &Vitals,
) -> End {
    let Live { guarded, keys, pages } = live;
    let Guarded { conn, deadline, may_commit, rolled_back } = guarded;
    let mut tx = match conn.begin_with("BEGIN IMMEDIATE").await {
        Ok(tx) => tx,
        Err(error) => {
            let error = translate("begin a write", error);
            vitals.note_trouble(&error);
            let link = match &error {
                Error::Busy { .. } => After::Keep,
                _ if vitals.note_damage(&error) => After::Damaged(error.clone()),
                _ => After::Replace { check: false },
            };
            let mut done: Vec<_> = waiting.drain(..).collect();
            done.iter_mut().for_each(|operation| operation.fail(error.clone()));
            return End { done, link };
        }
    };
    rolled_back.store(false, Ordering::Release);
    let grouped = waiting.len() > 1;
    let tight = target.space.as_ref().is_some_and(|space| space.is_tight());
    let mut done: Vec<Box<dyn Operation>> = Vec::with_capacity(waiting.len());
    while let Some(mut operation) = waiting.pop_front() {
        let started = Instant::now();
        deadline.set(limit);
        let allowed = target.pages_for(operation.cause().class(), tight);
        if allowed != *pages
            && let Ok(()) = target.limit_pages(&mut tx, allowed).await
        {
            *pages = allowed;
        }
        let (ran, said) = run_one(&mut tx, keys, operation.as_mut(), grouped, limit).await;
        let damaged = said.as_ref().is_some_and(|error| vitals.note_damage(error));
        if deadline.passed() && !matches!(ran, Ran::Done) {
            operation.fail(Error::WriteDeadline { limit_ms: millis(limit) });
        }
        // What the others wrote would go with the file.
        let gone = damaged || matches!(ran, Ran::TransactionGone) || rolled_back.load(Ordering::Acquire);
        if started.elapsed() > SLOW {
            tracing::warn!(cause = %operation.cause(), ms = millis(started.elapsed()), "slow write operation");
        }
        if gone {
            if operation.succeeded() {
                operation.fail(Error::TransactionLost);
            }
            for other in done.iter_mut().filter(|other| other.succeeded()) {
                other.fail(Error::NotApplied);
            }
            done.push(operation);
            drop(tx);
            let link = match said {
                Some(error) if damaged => After::Damaged(error),
                said => {
                    said.iter().for_each(|error| vitals.note_trouble(error));
                    After::Replace { check: false }
                }
            };
            return End { done, link };
        }
        deadline.clear();
        done.push(operation);
    }
    if !done.iter().any(|operation| operation.succeeded()) {
        let link = if tx.rollback().await.is_ok() { After::Keep } else { After::Replace { check: false } };
        return End { done, link };
    }
    may_commit.store(true, Ordering::Release);
    let committed = tx.commit().await;
    may_commit.store(false, Ordering::Release);
    match committed {
        Ok(()) => {
            vitals.note_commit();
            End { done, link: After::Keep }
        }
        Err(error) => {
            let (verdict, link) = judge_commit(error, done.len() == 1);
            vitals.note_trouble(&verdict);
            for operation in done.iter_mut().filter(|operation| operation.succeeded()) {
                operation.fail(verdict.clone());
            }
            End { done, link }
        }
    }
}

/// Decides what a failed COMMIT means.
///
/// A full medium means that the commit frame was not written, and a deferred constraint that it was not even tried;
/// after anything else it may be in the file or not.
fn judge_commit(error: sqlx::Error, alone: bool) -> (Error, After) {
    match extended_code(&error).map(|extended| extended & 0xff) {
        Some(code::FULL) => (translate("commit", error), After::Replace { check: false }),
        Some(code::CONSTRAINT) if alone => (translate("commit", error), After::Replace { check: false }),
        Some(code::CONSTRAINT) => (Error::NotApplied, After::Replace { check: false }),
        _ => (Error::Unknown { detail: error.to_string() }, After::Replace { check: true }),
    }
}

/// How one operation ended.
enum Ran {
    /// It returned a value.
    Done,
    /// It failed and its changes are taken back.
    Undone,
    /// It took the transaction with it.
    TransactionGone,
}

/// Runs one operation behind its savepoint; also tells what SQLite said last when it failed.
async fn run_one(
    tx: &mut Transaction<'_, Sqlite>,
    keys: &mut KeyRing,
    operation: &mut dyn Operation,
    grouped: bool,
    limit: Duration,
) -> (Ran, Option<Error>) {
    if grouped && let Err(error) = sqlx::query("SAVEPOINT nasnet_op").execute(&mut **tx).await {
        let error = translate("begin a write", error);
        operation.fail(error.clone());
        return (Ran::TransactionGone, Some(error));
    }
    let succeeded = match guarded_run(tx, keys, operation, limit).await {
        Some(succeeded) => succeeded,
        None => return (Ran::TransactionGone, None),
    };
    // Before anything else is run on the connection, which would forget it.
    let said = if succeeded { None } else { vitals::last_error(tx).await };
    if !grouped {
        return (if succeeded { Ran::Done } else { Ran::Undone }, said);
    }
    let end = if succeeded { "RELEASE nasnet_op" } else { "ROLLBACK TO nasnet_op; RELEASE nasnet_op" };
    match sqlx::raw_sql(end).execute(&mut **tx).await {
        Ok(_) if succeeded => (Ran::Done, None),
        Ok(_) => (Ran::Undone, said),
        Err(error) => (Ran::TransactionGone, said.or_else(|| Some(translate("end an operation", error)))),
    }
}

/// Runs an operation so that neither its panic nor its silence harms anybody else; `None` when it had to be given up
/// in the middle of a statement.
async fn guarded_run(
    tx: &mut Transaction<'_, Sqlite>,
    keys: &mut KeyRing,
    operation: &mut dyn Operation,
    limit: Duration,
) -> Option<bool> {
    if let Some(key) = operation.key()
        && let Err(error) = keys.record(tx, key).await
    {
        operation.fail(error);
        return Some(false);
    }
    let running = AssertUnwindSafe(async { operation.run(tx).await }).catch_unwind();
    match within(limit + GRACE, running).await {
        Some(Ok(succeeded)) => Some(succeeded),
        Some(Err(panic)) => {
            operation.fail(Error::Panicked { message: panic_message(panic.as_ref()) });
            Some(false)
        }
        None => {
            operation.fail(Error::WriteDeadline { limit_ms: millis(limit) });
            None
        }
    }
}

/// Runs a future for at most `limit`; `None` when it did not end.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
