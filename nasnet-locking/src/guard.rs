//! A held lease in the hands of its holder.

use std::sync::Arc;
use std::time::Duration;

use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::error::{Error, LostReason, Seen};
use crate::fence;
use crate::keeper::Watched;
use crate::key::KeySet;
use crate::lease::{Lease, Mode};
use crate::manager::Shared;
use crate::request::Renew;
use crate::token::FencingToken;

/// A lease this holder has. Dropping it releases the lease in the background; [`LeaseGuard::release`] waits for it.
///
/// It survives nothing: a killed process loses its leases at once, a paused one when their time runs out.
#[must_use = "dropping the guard releases the lease"]
#[derive(Debug)]
pub struct LeaseGuard {
    right: WriteRight,
    watched: Arc<Watched>,
    released: bool,
}

impl LeaseGuard {
    pub(crate) fn new(shared: Arc<Shared>, lease: Lease, renew: Renew) -> Self {
        let watched = Arc::new(Watched::new(&lease, renew));
        shared.keeper.watch(&watched);
        let right =
            WriteRight { shared, id: lease.id, token: lease.token, mode: lease.mode, keys: Arc::new(lease.keys) };
        Self { right, watched, released: false }
    }

    /// Returns the id of the lease.
    #[must_use]
    pub fn id(&self) -> Ulid {
        self.right.id
    }

    /// Returns the token that fences its writes.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.right.token
    }

    /// Returns what the lease covers.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.right.keys
    }

    /// Returns how the lease shares its keys.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.right.mode
    }

    /// Returns the time left unless the lease is renewed, broken or its session ends.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.watched.deadline().remaining(&self.right.shared.store.now())
    }

    /// Extends the lease to its full time to live from now and returns the time left.
    ///
    /// Renewing is idempotent: after an answer that was lost it may be repeated. It costs no flash byte.
    ///
    /// # Errors
    /// [`Error::Lost`] when the time ran out, even if nobody has taken the keys since, or when the lease was broken.
    ///
    /// # Cancel safety
    /// A dropped future may have renewed the lease.
    pub async fn renew(&self) -> Result<Duration, Error> {
        let shared = &self.right.shared;
        let deadline = shared.store.renew(self.id(), self.token()).await?.map_err(|why| self.right.lost(why))?;
        self.watched.extend(deadline);
        Ok(deadline.remaining(&shared.store.now()))
    }

    /// Gives the keys back and waits until others can have them.
    ///
    /// # Errors
    /// [`Error::Lost`] when the lease had already ended; the keys are free of it either way.
    ///
    /// # Cancel safety
    /// A dropped future leaves the release to the background.
    pub async fn release(mut self) -> Result<(), Error> {
        let shared = &self.right.shared;
        let answer = shared.store.release(self.id()).await?;
        self.released = true;
        shared.keeper.wake();
        answer.map_err(|why| self.right.lost(why))
    }

    /// Resolves when the lease is lost: its time ran out, somebody broke it, or its session ended. Another process that
    /// breaks it is noticed within 50 ms. It resolves with [`LostReason::Ended`] when the guard is released or dropped.
    ///
    /// It is a hint to stop early; the fence rejects the writes of a holder that does not listen.
    ///
    /// # Cancel safety
    /// The future may be dropped and asked for again.
    pub fn lost(&self) -> impl Future<Output = LostReason> + Send + 'static {
        let mut lost = self.watched.subscribe();
        self.right.shared.keeper.look_closely();
        async move {
            match lost.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or(LostReason::Ended),
                Err(_) => LostReason::Ended,
            }
        }
    }

    /// Checks the right to write inside the transaction it protects: call it first in the write op.
    ///
    /// See [`WriteRight::check`].
    ///
    /// # Errors
    /// As [`WriteRight::check`].
    ///
    /// # Cancel safety
    /// As [`WriteRight::check`].
    pub async fn fence(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        self.right.check(conn).await
    }

    /// Checks the right to write inside a PostgreSQL transaction: call it first.
    ///
    /// See [`WriteRight::check_postgres`].
    ///
    /// # Errors
    /// As [`WriteRight::check_postgres`].
    ///
    /// # Cancel safety
    /// As [`WriteRight::check_postgres`].
    #[cfg(feature = "postgres")]
    pub async fn fence_postgres(&self, conn: &mut sqlx::PgConnection) -> Result<(), Error> {
        self.right.check_postgres(conn).await
    }

    /// Returns the right to write as a value that can be moved into a write op; it ends with the lease.
    #[must_use]
    pub fn write_right(&self) -> WriteRight {
        self.right.clone()
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if !self.released {
            self.right.shared.keeper.release_later(self.right.id);
        }
    }
}

/// The right to write under a lease, detached from the guard so that a write op can own it.
#[derive(Debug, Clone)]
pub struct WriteRight {
    shared: Arc<Shared>,
    id: Ulid,
    token: FencingToken,
    mode: Mode,
    keys: Arc<KeySet>,
}

impl WriteRight {
    /// Returns the token that fences the writes.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Returns what the lease covers.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Rejects the running write unless the lease is still current and no higher token was seen on its keys, above or
    /// below them; then raises the keys to this token. An equal token writes nothing.
    ///
    /// Call it first in the write op of the database that holds the guarded rows, and read after it what the write is
    /// decided on (or pass an expected version). A write that began while the lease was current may commit after it ran
    /// out, but never after a later holder's.
    ///
    /// # Errors
    /// [`Error::Fenced`] when this write must not happen, or when the database belongs to another fleet than the lease;
    /// returning it from the op rolls the op back.
    /// [`Error::NoWriteRight`] for a shared lease. [`Error::Storage`] or [`Error::Db`] when a database fails.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the transaction to its owner; an op of [`nasnet_dbmanager::Database::write`] is rolled
    /// back.
    pub async fn check(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        self.check_mode()?;
        match self.shared.store.fleet() {
            Some(fleet) => fence::reject_overtaken_or_foreign(conn, &self.keys, self.token, fleet).await?,
            None => fence::reject_overtaken(conn, &self.keys, self.token).await?,
        }
        self.reject_lost().await?;
        fence::raise(conn, &self.keys, self.token).await
    }

    /// The same for rows of a PostgreSQL database: call it first in the transaction that writes them.
    ///
    /// The database needs table `nasnet_fence` in the `search_path` of the connection: [`LockManager::open_postgres`] makes
    /// it, [`fence::postgres::create`] makes it elsewhere. Until the transaction ends, every other check on these keys,
    /// above or below them waits; keep it short, or bound it by `idle_in_transaction_session_timeout`.
    ///
    /// [`LockManager::open_postgres`]: crate::LockManager::open_postgres
    ///
    /// # Errors
    /// As [`WriteRight::check`], and those of [`fence::postgres::check`]. The transaction must then be rolled back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the transaction to its owner, who must roll it back.
    #[cfg(feature = "postgres")]
    pub async fn check_postgres(&self, conn: &mut sqlx::PgConnection) -> Result<(), Error> {
        self.check_mode()?;
        fence::postgres::reject_overtaken(conn, &self.keys, self.token).await?;
        self.reject_lost().await?;
        fence::postgres::raise(conn, &self.keys, self.token).await
    }

    fn check_mode(&self) -> Result<(), Error> {
        if self.mode == Mode::Exclusive {
            return Ok(());
        }
        Err(Error::NoWriteRight { key: self.keys.first().clone(), token: self.token, mode: self.mode })
    }

    async fn reject_lost(&self) -> Result<(), Error> {
        let standing = self.shared.store.standing(self.id, self.token).await?;
        standing.map_err(|why| {
            let key = self.keys.first().clone();
            Error::Fenced { key, token: self.token, seen: Seen::LeaseLost(why) }
        })
    }

    fn lost(&self, why: LostReason) -> Error {
        Error::Lost { key: self.keys.first().clone(), token: self.token, why }
    }
}
