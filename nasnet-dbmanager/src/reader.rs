//! The readers of one database: a few connections that cannot write, each read in one snapshot and before a deadline.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use crate::connection::{Guarded, Role, Target};
use crate::db_lock::FileLock;
use crate::driver::during;
use crate::error::Error;
use crate::id::{Cause, Class};
use crate::idle::Idle;
use crate::observe::{self, Outcome};
use crate::vitals::{self, Vitals};
use crate::writer::{millis, panic_message, within};

/// How long a statement may take to notice its deadline before the connection is given up.
const GRACE: Duration = Duration::from_millis(500);

/// A bounded set of reading connections, opened when first needed.
#[derive(Debug)]
pub(crate) struct ReaderPool {
    target: Target,
    permits: Arc<Semaphore>,
    size: u32,
    idle: Arc<Idle>,
    limit: Duration,
    vitals: Arc<Vitals>,
    /// Held as long as a reader may touch the file, and let go by closing even when handles live on.
    lock: Mutex<Option<Arc<FileLock>>>,
}

impl ReaderPool {
    pub(crate) fn new(target: Target, limit: Duration, lock: Arc<FileLock>, vitals: Arc<Vitals>) -> Self {
        let size = u32::try_from(target.tuning.readers.max(1)).unwrap_or(u32::MAX);
        let permits = Arc::new(Semaphore::new(target.tuning.readers.max(1)));
        let idle = Idle::new(Arc::clone(&permits));
        Self { idle, permits, target, size, limit, vitals, lock: Mutex::new(Some(lock)) }
    }

    /// Returns the bytes the file may grow to for operations of a class while the medium has room.
    pub(crate) fn bytes_for(&self, class: Class) -> u64 {
        self.target.bytes_for(class, false)
    }

    /// Runs one read. The caller spawns it: a connection must not be dropped in the middle of a statement.
    pub(crate) async fn run<T, E, F>(&self, cause: Cause, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>,
        E: From<Error>,
    {
        let (kind, started) = (self.vitals.kind(), Instant::now());
        let result = self.run_one(op).instrument(observe::read_span(kind, cause)).await;
        observe::ran(kind, cause, started.elapsed(), "read");
        observe::ended(kind, cause, if result.is_ok() { Outcome::Read } else { Outcome::Failed });
        result
    }

    async fn run_one<T, E, F>(&self, op: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>,
        E: From<Error>,
    {
        let end = Instant::now() + self.limit;
        let late = || Error::ReadDeadline { limit_ms: millis(self.limit) };
        let closed = || Error::Closed { path: self.target.path.clone() };
        let _permit = within(self.limit, self.permits.acquire()).await.ok_or_else(late)?.map_err(|_| closed())?;
        let mut guarded = self.take().await?;
        let left = end.saturating_duration_since(Instant::now());
        guarded.deadline.set(left);
        let ran =
            within(left + GRACE, AssertUnwindSafe(read(&mut guarded.conn, op, &self.vitals)).catch_unwind()).await;
        let passed = guarded.deadline.passed();
        let (result, clean) = match ran {
            Some(Ok((result, clean))) => (result, clean),
            Some(Err(panic)) => (Err(Error::Panicked { message: panic_message(panic.as_ref()) }.into()), false),
            None => (Err(late().into()), false),
        };
        if clean {
            guarded.deadline.clear();
            self.idle.keep(guarded, self.target.tuning.reader_keepers);
        } else if let Err(error) = guarded.close().await {
            tracing::warn!(path = %self.target.path.display(), %error, "closing a reader failed");
        }
        match result {
            Err(_) if passed => Err(late().into()),
            result => result,
        }
    }

    async fn take(&self) -> Result<Guarded, Error> {
        match self.idle.take() {
            Some(guarded) => Ok(guarded),
            None => {
                let connected = self.target.connect(Role::Reader).await;
                connected.inspect_err(|error| {
                    self.vitals.note_damage(error);
                })
            }
        }
    }

    /// Waits for running reads, refuses new ones and closes the connections.
    pub(crate) async fn close(&self) {
        if let Ok(all) = self.permits.acquire_many(self.size).await {
            self.permits.close();
            drop(all);
        }
        for guarded in self.idle.take_all() {
            if let Err(error) = guarded.close().await {
                tracing::warn!(path = %self.target.path.display(), %error, "closing a reader failed");
            }
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Runs a read in one deferred transaction, so that all its statements see the same state; also tells whether the
/// connection is fit for another.
async fn read<T, E, F>(conn: &mut SqliteConnection, op: F, vitals: &Vitals) -> (Result<T, E>, bool)
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>,
    E: From<Error>,
{
    let mut tx = match conn.begin().await {
        Ok(tx) => tx,
        Err(error) => {
            let error = during("begin a read")(error);
            vitals.note_damage(&error);
            return (Err(error.into()), false);
        }
    };
    let result = op(&mut tx).await;
    if result.is_err()
        && let Some(error) = vitals::last_error(&mut tx).await
    {
        vitals.note_damage(&error);
    }
    let clean = tx.rollback().await.is_ok();
    (result, clean)
}
