//! Where leases are kept: one table for everybody who must respect them.
//!
//! A store loads rows, asks the rules of [`crate::lease`] and writes what they answer, in one step that no other request
//! sees half done. There are two: [`embedded`] for the processes of one machine and [`postgres`] for several nodes; both
//! pass `tests/conformance.rs`.

pub(crate) mod embedded;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod row;
pub(crate) mod sqlite;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use nasnet_dbmanager::Now;
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::key::KeySet;
use crate::lease::{self, Broken, Deadline, Lease, LockInfo, Mode, Obstacle, Ticket, Verdict, millis};
use crate::token::FencingToken;

/// A request with everything the store needs to grant it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: Ulid,
    pub(crate) keys: KeySet,
    pub(crate) mode: Mode,
    pub(crate) info: LockInfo,
    pub(crate) ttl: Duration,
    pub(crate) max_hold: Option<Duration>,
}

impl Request {
    /// Returns the lease that granting it makes.
    pub(crate) fn granted(&self, token: FencingToken, session: Ulid, now: &Now) -> Lease {
        let hold_until_ms = self.max_hold.map(|hold| now.boottime_ms.saturating_add(millis(hold)));
        Lease {
            id: self.id,
            token,
            session,
            keys: self.keys.clone(),
            mode: self.mode,
            info: self.info.clone(),
            since_ms: now.wall_ms,
            ttl: self.ttl,
            deadline: Deadline { boot: now.boot, boottime_ms: lease::reach_ms(now, self.ttl, hold_until_ms) },
            hold_until_ms,
            broken: None,
        }
    }
}

/// Where a request that cannot be granted goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Queue {
    /// Nowhere.
    Stay,
    /// To the end of the queue, until the deadline.
    Join(Deadline),
    /// It keeps the place it has.
    Keep(u64),
}

/// What is in the way of a request, and the ticket it has.
pub(crate) type Queued = (Box<Obstacle>, Option<u64>);

/// Everything in a store, and how each lease stands.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) leases: Vec<(Lease, Result<(), LostReason>)>,
    /// Those somebody waits behind.
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) now: Now,
}

/// One session's view of a table of leases.
///
/// Outer errors are failures; inner ones are answers. No call is undone by dropping its future: it is done as a whole or
/// not at all, and what is asked later by the same store is done after it.
#[async_trait]
pub(crate) trait LeaseStore: fmt::Debug + Send + Sync {
    /// Returns the session this store acts for.
    fn session(&self) -> Ulid;

    /// Returns the fleet whose databases its tokens count in; none when it serves several.
    fn fleet(&self) -> Option<Ulid>;

    /// Returns the time on the clock that leases of this store end by.
    fn now(&self) -> Now;

    /// Returns an id no lease of this store has had.
    fn next_id(&self) -> Ulid;

    /// Returns how often to look at what nobody tells about.
    fn tick(&self) -> Duration;

    /// Refuses keys that can never be granted.
    async fn check_keys(&self, keys: &KeySet) -> Result<(), Error>;

    /// Grants a request under a token higher than every one before, or tells what is in the way.
    async fn attempt(&self, request: &Request, queue: Queue) -> Result<Result<Lease, Queued>, Error>;

    /// Looks at what is in the way of a waiting request without changing anything.
    async fn look(&self, request: &Request, ticket: u64) -> Result<Verdict, Error>;

    /// Extends a lease to its full time to live from now, or tells how it was lost.
    async fn renew(&self, id: Ulid, token: FencingToken) -> Result<Result<Deadline, LostReason>, Error>;

    /// Removes a lease, or the ticket of a request that gave up, and tells whether the lease still stood.
    async fn release(&self, id: Ulid) -> Result<Result<(), LostReason>, Error>;

    /// Tells whether a lease still stands.
    async fn standing(&self, id: Ulid, token: FencingToken) -> Result<Result<(), LostReason>, Error>;

    /// Tells which of these leases do not stand any more.
    async fn lost(&self, held: &[Ulid]) -> Result<Vec<(Ulid, LostReason)>, Error>;

    /// Loads everything.
    async fn table(&self) -> Result<Table, Error>;

    /// Breaks a lease if it is the one that was looked at, with a durable record of who did it and why.
    async fn break_lease(
        &self,
        id: Ulid,
        token: FencingToken,
        broken: Broken,
    ) -> Result<Result<Lease, StaleView>, Error>;

    /// Removes everything the session has.
    async fn end_session(&self) -> Result<(), Error>;
}

/// Names the operation in which SQLite failed.
pub(crate) fn storage(operation: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Storage { operation, source: source.into() }
}
