//! Grants leases to one session.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nasnet_dbmanager::DbManager;
use tokio::sync::Notify;
use ulid::Ulid;

use crate::error::Error;
use crate::guard::LeaseGuard;
use crate::keeper::Keeper;
use crate::lease::Obstacle;
use crate::observe;
use crate::request::{AcquireRequest, WAIT_MAX, Wait};
use crate::store::embedded::Embedded;
use crate::store::{LeaseStore, Queue, Request};

/// Name of the counter in system.db that holds the end of the reserved block of tokens.
pub const TOKEN_COUNTER: &str = "fencing_token";
/// Tokens reserved at once: one flash write for this many leases.
pub const TOKEN_BLOCK: u64 = 1_024;

/// Settings of a lock manager.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LockOptions {
    /// How long keys stay closed after a lease of a live session expired or was broken; nothing by default.
    pub lock_delay: Duration,
}

/// Grants, keeps and shows leases. Clones share one session: its leases end with the last clone and guard, with
/// [`LockManager::shutdown`], or with the process.
///
/// Several processes on one machine, each with a manager over the same directories, respect each other's leases and
/// fences. So do several nodes over one PostgreSQL database, with feature `postgres`.
#[derive(Debug, Clone)]
pub struct LockManager {
    pub(crate) shared: Arc<Shared>,
}

/// What guards and clones of a manager have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) keeper: Keeper,
    /// What the session lives by; dropping it ends the session.
    life: Mutex<Option<Life>>,
    closed: AtomicBool,
}

type Life = Box<dyn Any + Send>;

impl LockManager {
    /// Opens a session in the run directory of a database manager.
    ///
    /// # Errors
    /// [`Error::Session`] when the session file cannot be made, [`Error::Storage`] or [`Error::Db`] when `locks.db` fails.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most a dead session that the next one removes.
    pub async fn open(db: &DbManager, options: LockOptions) -> Result<Self, Error> {
        let (store, session) = Embedded::begin(db, options.lock_delay).await?;
        Ok(Self::over(Arc::new(store), Box::new(session), Arc::new(Notify::new())))
    }

    /// Opens a session in a PostgreSQL database, which several nodes may do; creates or migrates its tables first.
    ///
    /// Tables, sequence and fence are named `nasnet_*` and live in the first schema of the connection's `search_path`.
    /// Three connections are held, each for itself: a pooler that shares them between transactions would end the session.
    /// They are encrypted only if the program enables a TLS feature of `sqlx`. No router is looked up for keys below `router/`: the registry of routers is another
    /// database.
    ///
    /// Time is the database server's, as `clock_timestamp()` tells it, and no node's: leases of all nodes end by one clock,
    /// and stepping it shortens or prolongs leases but never lets a fenced write pass. The session lives as long as the
    /// connection that holds its advisory lock. When the server notices that the connection is gone, at once for a process
    /// that died and within some ten seconds for a machine that did, its leases are open to others; a manager that lost its
    /// connection has lost its leases and begins another session with the next [`LockManager::acquire`].
    ///
    /// ```no_run
    /// use nasnet_locking::{AcquireRequest, LockInfo, LockKey, LockManager, LockOptions};
    /// use sqlx::{Connection, PgConnection};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let url = "postgres://nasnet@db.internal/fleet";
    /// let locks = LockManager::open_postgres(&url.parse()?, LockOptions::default()).await?;
    /// let key = LockKey::parse("router/r1")?;
    /// let guard = locks.acquire(AcquireRequest::exclusive(key, LockInfo::new("ann", "upgrade"))).await?;
    ///
    /// let mut conn = PgConnection::connect(url).await?;
    /// let mut write = conn.begin().await?;
    /// guard.fence_postgres(&mut write).await?;
    /// // ... the guarded rows ...
    /// write.commit().await?;
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Postgres`] when the database cannot be reached or refuses, [`Error::NewerSchema`] when a newer version of
    /// this crate has been there.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most a dead session that the next one removes.
    #[cfg(feature = "postgres")]
    pub async fn open_postgres(
        connect: &sqlx::postgres::PgConnectOptions,
        options: LockOptions,
    ) -> Result<Self, Error> {
        let freed = Arc::new(Notify::new());
        let (store, session) =
            crate::store::postgres::PostgresStore::begin(connect, options.lock_delay, Arc::clone(&freed)).await?;
        Ok(Self::over(Arc::new(store), Box::new(session), freed))
    }

    /// `freed` is notified when keys may have become free.
    fn over(store: Arc<dyn LeaseStore>, life: Life, freed: Arc<Notify>) -> Self {
        let keeper = Keeper::spawn(Arc::clone(&store), freed);
        let shared = Shared { store, keeper, life: Mutex::new(Some(life)), closed: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the session the leases of this manager live in.
    #[must_use]
    pub fn session(&self) -> Ulid {
        self.shared.store.session()
    }

    /// Takes a lease on all keys of the request or on none, in one step.
    ///
    /// A lease of a dead session or an earlier boot is taken over at once, one of a live but silent session when its time
    /// has run out. Costs no flash byte, but for one block of tokens every [`TOKEN_BLOCK`] leases.
    ///
    /// # Errors
    /// [`Error::Held`] when a key, one above or one below it is taken: who holds it, what for, since when and for how
    /// long. [`Error::InvalidTtl`], [`Error::UnknownRouter`] for what can never be granted; [`Error::Closed`] after
    /// [`LockManager::shutdown`]; [`Error::Storage`] or [`Error::Db`] when a database fails.
    ///
    /// # Cancel safety
    /// A dropped future holds nothing: what it may have acquired is released in the background.
    pub async fn acquire(&self, request: AcquireRequest) -> Result<LeaseGuard, Error> {
        request.check()?;
        self.check_open()?;
        self.shared.store.check_keys(&request.keys).await?;
        let id = self.shared.store.next_id();
        let (renew, wait) = (request.renew, request.wait);
        let request = Request {
            id,
            keys: request.keys,
            mode: request.mode,
            info: request.holder.cut(),
            ttl: request.ttl,
            max_hold: request.max_hold,
        };
        let mut pending = Pending { shared: &self.shared, id, armed: true };
        let began = Instant::now();
        let outcome = match wait {
            Wait::No => match self.shared.store.attempt(&request, Queue::Stay).await {
                Ok(answer) => answer.map_err(|(obstacle, _)| held(*obstacle, Duration::ZERO)),
                Err(error) => Err(error),
            },
            Wait::For(longest) => self.queue_up(&request, longest.min(WAIT_MAX)).await,
        };
        observe::decided(&outcome, began.elapsed());
        // A failure may hide a grant or a ticket; everything else is known.
        pending.armed = !matches!(outcome, Ok(_) | Err(Error::Held { .. }));
        Ok(LeaseGuard::new(Arc::clone(&self.shared), outcome?, renew))
    }

    /// Ends the session: every lease it holds is free when this returns, and guards that still live are fenced out.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::Db`] when the store of leases fails; the session is over and its leases are void even then.
    ///
    /// # Cancel safety
    /// A dropped future leaves the rest to the background.
    pub async fn shutdown(&self) -> Result<(), Error> {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let result = self.shared.keeper.shutdown().await;
        self.shared.life.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.shared.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }
}

pub(crate) fn held(obstacle: Obstacle, waited: Duration) -> Error {
    let Obstacle { key, holder, expires_in, ahead } = obstacle;
    Error::Held { key, since: holder.since_ms, holder: Box::new(holder), expires_in, ahead, waited }
}

/// Takes back what a dropped [`LockManager::acquire`] may have got: its release is queued behind its grant.
struct Pending<'a> {
    shared: &'a Shared,
    id: Ulid,
    armed: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.keeper.release_later(self.id);
        }
    }
}
