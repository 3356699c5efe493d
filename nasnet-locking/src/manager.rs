//! Grants leases to one session of this machine.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{DbManager, RouterId};
use ulid::Ulid;

use crate::error::Error;
use crate::guard::LeaseGuard;
use crate::keeper::Keeper;
use crate::key::{KeySet, LockKey};
use crate::lease::{Lease, Obstacle};
use crate::request::{AcquireRequest, WAIT_MAX, Wait};
use crate::session::{Session, Sessions};
use crate::store::sqlite::{Attempt, Queue, Request, SqliteStore};

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
/// fences.
#[derive(Debug, Clone)]
pub struct LockManager {
    pub(crate) shared: Arc<Shared>,
}

/// What guards and clones of a manager have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) db: DbManager,
    pub(crate) store: SqliteStore,
    pub(crate) keeper: Keeper,
    session: Mutex<Option<Session>>,
    closed: AtomicBool,
    /// Routers that were found registered.
    routers: Mutex<BTreeSet<RouterId>>,
}

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
        let sessions = Sessions::open(db.run_dir())?;
        sessions.sweep()?;
        let session = sessions.begin(db.next_ulid())?;
        let store = SqliteStore { db: db.locks().clone(), sessions, own: session.id, delay: options.lock_delay };
        store.begin_session(db.now()).await?;
        let keeper = Keeper::spawn(store.clone(), db.clone());
        let shared = Shared {
            db: db.clone(),
            store,
            keeper,
            session: Mutex::new(Some(session)),
            closed: AtomicBool::new(false),
            routers: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the session the leases of this manager live in.
    #[must_use]
    pub fn session(&self) -> Ulid {
        self.shared.store.own
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
        self.check_routers(&request.keys).await?;
        let id = self.shared.db.next_ulid();
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
        let outcome = match wait {
            Wait::No => {
                self.attempt(&request, Queue::Stay).await?.map_err(|(obstacle, _)| held(*obstacle, Duration::ZERO))
            }
            Wait::For(longest) => self.queue_up(&request, longest.min(WAIT_MAX)).await,
        };
        // A failure may hide a grant or a ticket; everything else is known.
        pending.armed = !matches!(outcome, Ok(_) | Err(Error::Held { .. }));
        Ok(LeaseGuard::new(Arc::clone(&self.shared), outcome?, renew))
    }

    /// Ends the session: every lease it holds is free when this returns, and guards that still live are fenced out.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::Db`] when `locks.db` fails; the session is over and its leases are void even then.
    ///
    /// # Cancel safety
    /// A dropped future leaves the rest to the background.
    pub async fn shutdown(&self) -> Result<(), Error> {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let result = self.shared.keeper.shutdown().await;
        self.shared.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.shared.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses keys below a router that is not registered. One that was found is not looked up again: should it be retired
    /// later, its database refuses by itself.
    async fn check_routers(&self, keys: &KeySet) -> Result<(), Error> {
        for key in keys {
            let Some(id) = router_of(key) else { continue };
            let unknown = || Error::UnknownRouter { key: key.clone() };
            let id = id.parse::<RouterId>().map_err(|_| unknown())?;
            if self.known_routers().contains(&id) {
                continue;
            }
            let record = self.shared.db.system().routers().get(&id).await?;
            if record.is_none_or(|record| record.lifecycle != Lifecycle::Active) {
                return Err(unknown());
            }
            self.known_routers().insert(id);
        }
        Ok(())
    }

    fn known_routers(&self) -> MutexGuard<'_, BTreeSet<RouterId>> {
        self.shared.routers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries once, with another block of tokens when the reserved one is used up.
    pub(crate) async fn attempt(&self, request: &Request, queue: Queue) -> Result<Result<Lease, Queued>, Error> {
        let shared = &self.shared;
        loop {
            match shared.store.attempt(request.clone(), queue, shared.db.now()).await? {
                Attempt::Granted(lease) => return Ok(Ok(*lease)),
                Attempt::Blocked { obstacle, ticket } => return Ok(Err((obstacle, ticket))),
                Attempt::NoTokens => {
                    let counters = shared.db.system().counters();
                    let first = counters.reserve(TOKEN_COUNTER, TOKEN_BLOCK).await?;
                    if let Some(handed_out) = shared.store.add_block(first, TOKEN_BLOCK).await? {
                        counters.raise(TOKEN_COUNTER, handed_out).await?;
                    }
                }
            }
        }
    }
}

/// What is in the way, and the ticket drawn.
pub(crate) type Queued = (Box<Obstacle>, Option<u64>);

/// Returns the router a key lies in.
fn router_of(key: &LockKey) -> Option<&str> {
    let mut segments = key.segments();
    (segments.next() == Some("router")).then(|| segments.next()).flatten()
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
