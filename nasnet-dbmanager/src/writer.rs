//! The writer of one database: owns the only writing connection and commits operations in groups.
//!
//! Each group is one `BEGIN IMMEDIATE` transaction. An operation that fails takes back its savepoint alone. When the
//! transaction itself is gone (full disk, I/O error, out of memory, interrupt), the operation that caused it gets its
//! own error, the others of the group get [`Error::NotApplied`], and the connection is replaced. Operations of the
//! group that had not started simply run in the next transaction.

mod group;
mod raw_group;
mod seat;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::{Row, SqliteConnection};
use tokio::sync::oneshot;
use tracing::Instrument;
use ulid::Ulid;

use crate::budget::RESERVE_FILE;
use crate::connection::{BUSY_TIMEOUT, Guarded, PAGE_BYTES, Role, Target, quick_check, run};
use crate::db_lock::FileLock;
use crate::driver::{code, during};
use crate::error::Error;
use crate::id::Cause;
use crate::keys::KeyRing;
use crate::observe::{self, Outcome};
use crate::raw::{Held, RawConn};
use crate::schema::Profile;
use crate::space::Space;
use crate::vfs::Meter;
use crate::vitals::Vitals;

pub(crate) use seat::{Seat, serve};

/// How long a statement may take to notice its deadline before the connection is given up.
const GRACE: Duration = Duration::from_millis(500);

/// How often a raw operation that finds another process writing lets other tasks run before it sleeps.
const YIELDS_BEFORE_SLEEP: u32 = 16;

/// How long it sleeps then.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// Bytes written to the log of a file in memory after which it is moved into the file, once who wrote has the answer.
const LOG_BYTES: u64 = 256 << 10;

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
pub(crate) trait Pending: Send {
    fn cause(&self) -> Cause;
    /// Replaces its result.
    fn fail(&mut self, error: Error);
    fn succeeded(&self) -> bool;
    /// How it ended, once it has.
    fn outcome(&self) -> Outcome;
    /// Hands its result to the caller, who may be gone.
    fn answer(self: Box<Self>);
}

/// One whose statements go through the driver.
pub(crate) trait Operation: Pending {
    fn key(&self) -> Option<Ulid>;
    /// Runs it once; `false` when it returned an error, which it keeps for the answer.
    fn run<'a>(&'a mut self, conn: &'a mut SqliteConnection) -> BoxFuture<'a, bool>;
}

/// One whose statements run on the calling thread.
pub(crate) trait RawOperation: Pending {
    /// Whether it leaves everything as it is.
    fn only_reads(&self) -> bool;
    /// Runs it once; `false` when it returned an error, which it keeps for the answer.
    fn run(&mut self, raw: &mut RawConn<'_>) -> bool;
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
    Raw(Box<dyn RawOperation>),
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

impl Link {
    fn put(&mut self, live: Live) -> Option<&mut Live> {
        *self = Self::Up(live);
        if let Self::Up(live) = self { Some(live) } else { None }
    }
}

/// A connection ready for operations.
struct Live {
    hands: Hands,
    keys: KeyRing,
    /// The bound on pages now set; 0 means none of the writer's own.
    pages: u64,
}

/// Who calls SQLite on the connection. It changes hands when an operation of the other kind comes.
enum Hands {
    Driver(Guarded),
    Raw(Held),
}

impl Hands {
    fn driver(self) -> Result<Guarded, Error> {
        match self {
            Self::Driver(guarded) => Ok(guarded),
            Self::Raw(held) => held.give_back(),
        }
    }

    async fn raw(self, statements_max: usize) -> Result<Held, Error> {
        match self {
            Self::Driver(guarded) => Held::take(guarded, statements_max).await,
            Self::Raw(held) => Ok(held),
        }
    }
}

impl Live {
    fn new(guarded: Guarded) -> Self {
        guarded.may_commit.store(false, Ordering::Release);
        Self { hands: Hands::Driver(guarded), keys: KeyRing::default(), pages: 0 }
    }

    async fn close(self) -> Result<(), Error> {
        self.hands.driver()?.close().await
    }
}

/// What runs the operations of one database, in groups.
pub(crate) struct Writer {
    target: Target,
    link: Link,
    /// A connection that failed and is not closed yet.
    condemned: Option<Live>,
    deadline: Duration,
    meter: Meter,
    /// What had been written to the log when it was last moved.
    log_moved: u64,
    vitals: Arc<Vitals>,
    /// Held as long as this task may touch the file.
    _lock: Arc<FileLock>,
}

impl Writer {
    pub(crate) fn new(
        target: Target,
        guarded: Guarded,
        deadline: Duration,
        lock: Arc<FileLock>,
        vitals: Arc<Vitals>,
    ) -> Self {
        let meter = Meter::of(&target.path);
        let link = Link::Up(Live::new(guarded));
        let log_moved = meter.written().wal_bytes;
        let writer = Self { target, link, condemned: None, deadline, meter, log_moved, vitals, _lock: lock };
        // What opening it wrote.
        writer.charge(&[]);
        writer
    }

    /// Charges what was written to the file since the last time.
    fn charge(&self, causes: &[Cause]) {
        if let Some(ledger) = &self.target.ledger {
            ledger.charge(self.vitals.kind(), &self.target.path, self.meter.written(), causes);
        }
    }

    fn charge_checkpoint(&self) {
        if let Some(ledger) = &self.target.ledger {
            ledger.charge_checkpoint(self.vitals.kind(), &self.target.path, self.meter.written());
        }
    }

    fn count<O: Pending + ?Sized>(&self, ended: &[Box<O>]) {
        ended.iter().for_each(|one| observe::ended(self.vitals.kind(), one.cause(), one.outcome()));
    }

    /// Runs every operation, in as many transactions as it takes, and returns them with their results.
    async fn commit_all(&mut self, mut waiting: Vec<Box<dyn Operation>>) -> Vec<Box<dyn Pending>> {
        let mut answers: Vec<Box<dyn Pending>> = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let limit = self.deadline;
            let (target, vitals) = (self.target.clone(), Arc::clone(&self.vitals));
            let end = match self.driven().await {
                Ok((guarded, keys, pages)) => {
                    let span = observe::group_span(vitals.kind(), waiting.len());
                    let group = group::transact(guarded, keys, pages, &mut waiting, limit, &target, &vitals);
                    group.instrument(span).await
                }
                Err(error) => End { ran: fail_all(&mut waiting, &error), link: After::Keep },
            };
            self.count(&waiting[..end.ran]);
            self.settle(causes(&waiting[..end.ran]), end.link).await;
            answers.extend(waiting.drain(..end.ran).map(|operation| operation as Box<dyn Pending>));
        }
        answers
    }

    /// The same for raw operations.
    async fn commit_raw(&mut self, mut waiting: Vec<Box<dyn RawOperation>>) -> Vec<Box<dyn Pending>> {
        let mut answers: Vec<Box<dyn Pending>> = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let end = match self.begin_raw(&mut waiting).await {
                Ok(()) => self.run_raw(&mut waiting).await,
                Err(link) => End { ran: waiting.len(), link },
            };
            self.count(&waiting[..end.ran]);
            self.settle(causes(&waiting[..end.ran]), end.link).await;
            answers.extend(waiting.drain(..end.ran).map(|operation| operation as Box<dyn Pending>));
        }
        answers
    }

    /// Runs one raw operation at once, if nothing has to be waited for; `false` leaves it untouched.
    pub(crate) fn run_now(&mut self, operation: &mut (dyn RawOperation + 'static)) -> bool {
        let Link::Up(Live { hands: Hands::Raw(held), pages, .. }) = &mut self.link else { return false };
        let link = match raw_group::begin(held, operation.only_reads()) {
            Ok(()) => {
                raw_group::run(held, pages, &mut [&mut *operation], self.deadline, &self.target, &self.vitals).link
            }
            Err(Error::Busy { .. }) => return false,
            Err(error) => {
                operation.fail(error.clone());
                After::failed_begin(&error, &self.vitals)
            }
        };
        observe::ended(self.vitals.kind(), operation.cause(), operation.outcome());
        self.charge(&[operation.cause()]);
        // Closing a connection has to wait; the next operation does that first.
        match link {
            After::Keep => {}
            After::Replace { check } => self.condemn(Link::Down { check }),
            After::Damaged(error) => self.condemn(Link::Damaged(error)),
        }
        true
    }

    /// Tells whether raw operations never wait for a medium, so that they may run wherever they are called.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.target.profile == Profile::Tmpfs
    }

    /// Tells whether the log of a file in memory is long enough to be moved. No commit waits for that, unless nobody came to
    /// it for long: SQLite does it itself then.
    pub(crate) fn is_log_due(&self) -> bool {
        self.is_in_memory() && self.meter.written().wal_bytes.saturating_sub(self.log_moved) >= LOG_BYTES
    }

    /// Moves what it can of the log into the file, without waiting for anybody.
    pub(crate) fn move_log(&mut self) {
        self.log_moved = self.meter.written().wal_bytes;
        let Link::Up(Live { hands: Hands::Raw(held), .. }) = &self.link else { return };
        if let Err(error) = raw_group::move_log(held) {
            self.vitals.note_damage(&error);
            // The log holds it all; the next commits try again.
            tracing::warn!(path = %self.target.path.display(), %error, "the write-ahead log cannot be moved");
        }
    }

    /// Begins a transaction for raw operations. SQLite must not sleep on a thread of the runtime: while another process
    /// writes, this waits instead.
    async fn begin_raw(&mut self, waiting: &mut [Box<dyn RawOperation>]) -> Result<(), After> {
        let patience = Instant::now() + BUSY_TIMEOUT;
        let (only_read, mut yields) = (waiting.iter().all(|operation| operation.only_reads()), 0);
        loop {
            let begun = match self.raw().await {
                Ok(held) => raw_group::begin(held, only_read),
                Err(error) => {
                    fail_all(waiting, &error);
                    return Err(After::Keep);
                }
            };
            match begun {
                Ok(()) => return Ok(()),
                Err(Error::Busy { .. }) if Instant::now() < patience => {}
                Err(error) => {
                    fail_all(waiting, &error);
                    return Err(After::failed_begin(&error, &self.vitals));
                }
            }
            if yields < YIELDS_BEFORE_SLEEP {
                yields += 1;
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
        }
    }

    /// Runs raw operations in the transaction that has begun: here, or where waiting for a sync holds nobody up.
    async fn run_raw(&mut self, waiting: &mut Vec<Box<dyn RawOperation>>) -> End {
        let limit = self.deadline;
        if self.is_in_memory() {
            let Link::Up(Live { hands: Hands::Raw(held), pages, .. }) = &mut self.link else {
                return End { ran: fail_all(waiting, &self.closed()), link: After::Keep };
            };
            return raw_group::run(held, pages, waiting, limit, &self.target, &self.vitals);
        }
        let link = std::mem::replace(&mut self.link, Link::Down { check: true });
        let (target, vitals) = (self.target.clone(), Arc::clone(&self.vitals));
        let mut operations = std::mem::take(waiting);
        let ran = tokio::task::spawn_blocking(move || {
            let Link::Up(Live { hands: Hands::Raw(held), keys, mut pages }) = link else {
                return (link, End { ran: 0, link: After::Keep }, operations);
            };
            let end = raw_group::run(&held, &mut pages, &mut operations, limit, &target, &vitals);
            (Link::Up(Live { hands: Hands::Raw(held), keys, pages }), end, operations)
        });
        // The thread never panics, since operations that do are caught; a runtime that ends takes everything along.
        let Ok((link, end, operations)) = ran.await else { return End { ran: 0, link: After::Keep } };
        self.link = link;
        *waiting = operations;
        end
    }

    /// Charges what a transaction has written and does what it asks for.
    async fn settle(&mut self, causes: Vec<Cause>, link: After) {
        self.charge(&causes);
        match (link, self.target.space.clone()) {
            (After::Damaged(error), _) => {
                self.condemn(Link::Damaged(error));
                self.bury().await;
            }
            (After::Keep, space) => {
                let bytes = space.map_or(0, |space| space.restock());
                if let Some(ledger) = self.target.ledger.as_ref().filter(|_| bytes > 0) {
                    ledger.charge_file(RESERVE_FILE, bytes);
                }
            }
            (After::Replace { check }, space) => {
                self.disconnect(check).await;
                if let Some(space) = space {
                    self.make_room(&space).await;
                }
                self.charge_checkpoint();
            }
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
        if let Ok((guarded, ..)) = self.driven().await {
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut guarded.conn).await.ok();
        }
    }

    /// Returns the connection in the hands of the driver.
    async fn driven(&mut self) -> Result<(&mut Guarded, &mut KeyRing, &mut u64), Error> {
        let live = self.connected().await?;
        let hands = Hands::Driver(live.hands.driver()?);
        match self.link.put(Live { hands, ..live }) {
            Some(Live { hands: Hands::Driver(guarded), keys, pages }) => Ok((guarded, keys, pages)),
            _ => Err(Error::NotApplied),
        }
    }

    /// Returns the connection for raw statements.
    async fn raw(&mut self) -> Result<&Held, Error> {
        let live = self.connected().await?;
        let hands = Hands::Raw(live.hands.raw(self.target.tuning.statements_cached).await?);
        match self.link.put(Live { hands, ..live }) {
            Some(Live { hands: Hands::Raw(held), .. }) => Ok(held),
            _ => Err(Error::NotApplied),
        }
    }

    /// Takes the connection out, a new one if need be. Whoever does not put it back has closed it.
    async fn connected(&mut self) -> Result<Live, Error> {
        self.bury().await;
        match std::mem::replace(&mut self.link, Link::Down { check: false }) {
            Link::Up(live) => Ok(live),
            Link::Damaged(error) => {
                self.link = Link::Damaged(error.clone());
                Err(error)
            }
            Link::Down { check } => {
                self.link = Link::Down { check };
                match connect(&self.target, check).await {
                    Ok(live) => {
                        self.link = Link::Down { check: false };
                        Ok(live)
                    }
                    Err(error) => {
                        if self.vitals.note_damage(&error) {
                            self.link = Link::Damaged(error.clone());
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    fn closed(&self) -> Error {
        Error::Closed { path: self.target.path.clone() }
    }

    async fn disconnect(&mut self, check: bool) {
        self.condemn(Link::Down { check });
        self.bury().await;
    }

    /// Gives the connection up without closing it yet.
    fn condemn(&mut self, instead: Link) {
        if let Link::Up(live) = std::mem::replace(&mut self.link, instead) {
            self.condemned = Some(live);
        }
    }

    /// Closes a connection that failed.
    async fn bury(&mut self) {
        if let Some(live) = self.condemned.take()
            && let Err(error) = live.close().await
        {
            tracing::warn!(path = %self.target.path.display(), %error, "closing a failed connection failed");
        }
    }

    async fn checkpoint(&mut self, mode: CheckpointMode) -> Result<Checkpoint, Error> {
        let (guarded, ..) = self.driven().await?;
        let conn = &mut guarded.conn;
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
        let done = Checkpoint {
            busy: row.try_get::<i64, _>(0).map_err(&what)? != 0,
            wal_pages: pages(1).map_err(&what)?,
            checkpointed_pages: pages(2).map_err(&what)?,
        };
        observe::log_left(self.vitals.kind(), done.wal_pages.saturating_mul(PAGE_BYTES.into()));
        Ok(done)
    }

    fn turn_away(&self, job: Job) {
        let error = self.closed();
        match job {
            Job::Write(mut operation) => {
                operation.fail(error);
                operation.answer();
            }
            Job::Raw(mut operation) => {
                operation.fail(error);
                operation.answer();
            }
            Job::Checkpoint(_, reply) => {
                reply.send(Err(error)).ok();
            }
            Job::Close(reply) => {
                reply.send(Ok(())).ok();
            }
        }
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.bury().await;
        let closed = match std::mem::replace(&mut self.link, Link::Down { check: false }) {
            Link::Up(live) => live.close().await,
            _ => Ok(()),
        };
        self.charge_checkpoint();
        closed
    }
}

async fn connect(target: &Target, check: bool) -> Result<Live, Error> {
    let mut guarded = target.connect(Role::Writer).await?;
    if check && let Err(error) = quick_check(&mut guarded.conn).await {
        guarded.close().await.ok();
        return Err(error);
    }
    Ok(Live::new(guarded))
}

fn causes<O: Pending + ?Sized>(operations: &[Box<O>]) -> Vec<Cause> {
    operations.iter().map(|operation| operation.cause()).collect()
}

fn fail_all<O: Pending + ?Sized>(operations: &mut [Box<O>], error: &Error) -> usize {
    operations.iter_mut().for_each(|operation| operation.fail(error.clone()));
    operations.len()
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

impl After {
    /// What a transaction that could not begin asks for.
    fn failed_begin(error: &Error, vitals: &Vitals) -> Self {
        vitals.note_trouble(error);
        match error {
            Error::Busy { .. } => Self::Keep,
            _ if vitals.note_damage(error) => Self::Damaged(error.clone()),
            _ => Self::Replace { check: false },
        }
    }

    /// What a lost transaction asks for, given what SQLite said last.
    fn lost(said: Option<Error>, vitals: &Vitals) -> Self {
        match said {
            Some(error) if vitals.note_damage(&error) => Self::Damaged(error),
            said => {
                said.iter().for_each(|error| vitals.note_trouble(error));
                Self::Replace { check: false }
            }
        }
    }
}

/// How many operations, counted from the front, have their result, and what becomes of the connection.
struct End {
    ran: usize,
    link: After,
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

/// Decides what a failed COMMIT means.
///
/// A full medium means that the commit frame was not written, and a deferred constraint that it was not even tried;
/// after anything else it may be in the file or not.
fn judge_commit(code: Option<i32>, error: Error, alone: bool) -> (Error, After) {
    match code.map(|extended| extended & 0xff) {
        Some(code::FULL) => (error, After::Replace { check: false }),
        Some(code::CONSTRAINT) if alone => (error, After::Replace { check: false }),
        Some(code::CONSTRAINT) => (Error::NotApplied, After::Replace { check: false }),
        _ => (Error::Unknown { detail: error.to_string() }, After::Replace { check: true }),
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
