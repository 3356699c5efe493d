//! The leases of one machine: `locks.db` on tmpfs, with what must outlast it in `system.db`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nasnet_dbmanager::system::audit::AuditEntry;
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{DbManager, Now, RouterId};
use serde_json::json;
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::key::{KeySet, LockKey};
use crate::lease::{Broken, Deadline, Lease, Verdict};
use crate::manager::{TOKEN_BLOCK, TOKEN_COUNTER};
use crate::session::{Session, Sessions};
use crate::store::sqlite::{Attempt, SqliteStore};
use crate::store::{LeaseStore, Queue, Queued, Request, Table};
use crate::token::FencingToken;

/// How often other processes are looked at while somebody wants to know. A lost lease is told within 50 ms.
const TICK: Duration = Duration::from_millis(5);

/// The store of one process beside others of the same machine.
#[derive(Debug)]
pub(crate) struct Embedded {
    db: DbManager,
    leases: SqliteStore,
    /// Routers that were found registered.
    routers: Mutex<BTreeSet<RouterId>>,
}

impl Embedded {
    /// Begins a session in the run directory of a database manager.
    pub(crate) async fn begin(db: &DbManager, delay: Duration) -> Result<(Self, Session), Error> {
        let sessions = Sessions::open(db.run_dir())?;
        sessions.sweep()?;
        let session = sessions.begin(db.next_ulid())?;
        let leases = SqliteStore { db: db.locks().clone(), sessions, own: session.id, delay };
        leases.begin_session(db.now()).await?;
        Ok((Self { db: db.clone(), leases, routers: Mutex::default() }, session))
    }

    fn known_routers(&self) -> MutexGuard<'_, BTreeSet<RouterId>> {
        self.routers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl LeaseStore for Embedded {
    fn session(&self) -> Ulid {
        self.leases.own
    }

    fn fleet(&self) -> Option<Ulid> {
        Some(self.db.fleet_id())
    }

    fn now(&self) -> Now {
        self.db.now()
    }

    fn next_id(&self) -> Ulid {
        self.db.next_ulid()
    }

    fn tick(&self) -> Duration {
        TICK
    }

    /// Refuses keys below a router that is not registered. One that was found is not looked up again: should it be retired
    /// later, its database refuses by itself.
    async fn check_keys(&self, keys: &KeySet) -> Result<(), Error> {
        for key in keys {
            let Some(id) = router_of(key) else { continue };
            let unknown = || Error::UnknownRouter { key: key.clone() };
            let id = id.parse::<RouterId>().map_err(|_| unknown())?;
            if self.known_routers().contains(&id) {
                continue;
            }
            let record = self.db.system().routers().get(&id).await?;
            if record.is_none_or(|record| record.lifecycle != Lifecycle::Active) {
                return Err(unknown());
            }
            self.known_routers().insert(id);
        }
        Ok(())
    }

    /// Tries once, with another block of tokens when the reserved one is used up.
    async fn attempt(&self, request: &Request, queue: Queue) -> Result<Result<Lease, Queued>, Error> {
        loop {
            match self.leases.attempt(request.clone(), queue, self.db.now()).await? {
                Attempt::Granted(lease) => return Ok(Ok(*lease)),
                Attempt::Blocked { obstacle, ticket } => return Ok(Err((obstacle, ticket))),
                Attempt::NoTokens => {
                    let counters = self.db.system().counters();
                    let first = counters.reserve(TOKEN_COUNTER, TOKEN_BLOCK).await?;
                    if let Some(handed_out) = self.leases.add_block(first, TOKEN_BLOCK).await? {
                        counters.raise(TOKEN_COUNTER, handed_out).await?;
                    }
                }
            }
        }
    }

    async fn look(&self, request: &Request, ticket: u64) -> Result<Verdict, Error> {
        self.leases.look(request.clone(), ticket, self.db.now()).await
    }

    async fn renew(&self, id: Ulid, token: FencingToken) -> Result<Result<Deadline, LostReason>, Error> {
        self.leases.renew(id, token, self.db.now()).await
    }

    async fn release(&self, id: Ulid) -> Result<Result<(), LostReason>, Error> {
        self.leases.release(id, self.db.now()).await
    }

    async fn standing(&self, id: Ulid, token: FencingToken) -> Result<Result<(), LostReason>, Error> {
        self.leases.standing(id, token, self.db.now()).await
    }

    async fn lost(&self, held: &[Ulid]) -> Result<Vec<(Ulid, LostReason)>, Error> {
        let leases = self.leases.own_leases().await?;
        let now = self.db.now();
        let standing = |id: Ulid| match leases.iter().find(|lease| lease.id == id) {
            Some(lease) => lease.standing(&now, |_| false),
            None => Err(LostReason::Ended),
        };
        Ok(held.iter().filter_map(|id| Some((*id, standing(*id).err()?))).collect())
    }

    async fn table(&self) -> Result<Table, Error> {
        let (leases, tickets) = self.leases.all().await?;
        let now = self.db.now();
        let is_dead = self.leases.sessions.probe(self.leases.own);
        let standing = |lease: Lease| {
            let standing = lease.standing(&now, &is_dead);
            (lease, standing)
        };
        Ok(Table {
            leases: leases.into_iter().map(standing).collect(),
            tickets: tickets.into_iter().filter(|ticket| ticket.stands(&now, &is_dead)).collect(),
            now,
        })
    }

    /// The audit log of `system.db` tells who did it and why before it is done.
    async fn break_lease(
        &self,
        id: Ulid,
        token: FencingToken,
        broken: Broken,
    ) -> Result<Result<Lease, StaleView>, Error> {
        if let Some(stale) = self.leases.stale_view(id, token, self.db.now()).await? {
            tracing::debug!(lease = %id, %token, "a break came too late");
            return Ok(Err(stale));
        }
        let entry = AuditEntry::new("locking", "lock.break")
            .actor(&broken.by)
            .target(id.to_string())
            .details(json!({ "token": token, "reason": broken.reason }));
        self.db.system().audit_log().append(entry).await?;
        self.leases.break_lease(id, token, broken, self.db.now()).await
    }

    async fn end_session(&self) -> Result<(), Error> {
        self.leases.end_session().await
    }
}

/// Returns the router a key lies in.
fn router_of(key: &LockKey) -> Option<&str> {
    let mut segments = key.segments();
    (segments.next() == Some("router")).then(|| segments.next()).flatten()
}
