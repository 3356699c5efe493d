//! What an operator sees and can do: who holds what and why, and breaking a lease that stands in the way.

use std::time::Duration;

use serde::Serialize;
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::key::{KeySet, LockKey};
use crate::lease::{Broken, Holder, LOCK_INFO_CHARS_MAX, Lease, Ticket};
use crate::manager::LockManager;
use crate::store::Table;
use crate::token::FencingToken;

/// Which leases to list.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LockFilter {
    /// Those that overlap this key.
    pub key: Option<LockKey>,
    /// Those of this actor.
    pub actor: Option<String>,
}

impl LockFilter {
    /// Lists everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Lists what covers this key or lies above or below it.
    #[must_use]
    pub fn key(self, key: LockKey) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Lists what this actor holds.
    #[must_use]
    pub fn actor(self, actor: impl Into<String>) -> Self {
        Self { actor: Some(actor.into()), ..self }
    }

    fn takes(&self, keys: &KeySet, actor: &str) -> bool {
        self.key.as_ref().is_none_or(|key| keys.overlap(&KeySet::from(key.clone())).is_some())
            && self.actor.as_ref().is_none_or(|wanted| wanted == actor)
    }
}

/// A lease as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockView {
    /// Who holds it, what for and since when.
    pub holder: Holder,
    /// What it covers.
    pub keys: KeySet,
    /// The time left unless it is renewed.
    pub expires_in: Duration,
    /// How it ended, if it has and nobody took its keys since.
    #[serde(skip)]
    pub ended: Option<LostReason>,
}

/// Everything about one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The leases that overlap it.
    pub leases: Vec<LockView>,
    /// Who waits for it or for something above or below it, first come first.
    pub queue: Vec<Holder>,
}

/// A lease that has been broken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokenLease {
    /// Who lost it.
    pub holder: Holder,
    /// What it covered.
    pub keys: KeySet,
}

impl LockManager {
    /// Lists the leases of all sessions, in the order they were granted.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::Db`] when the store of leases cannot be read.
    ///
    /// # Cancel safety
    /// Reads only.
    pub async fn list(&self, filter: &LockFilter) -> Result<Vec<LockView>, Error> {
        Ok(self.look(filter).await?.leases)
    }

    /// Shows who holds and who waits for a key, one above or one below it.
    ///
    /// # Errors
    /// As [`LockManager::list`].
    ///
    /// # Cancel safety
    /// Reads only.
    pub async fn inspect(&self, key: &LockKey) -> Result<Inspection, Error> {
        self.look(&LockFilter::all().key(key.clone())).await
    }

    async fn look(&self, filter: &LockFilter) -> Result<Inspection, Error> {
        let Table { leases, tickets, now } = self.shared.store.table().await?;
        let view = |(lease, standing): (Lease, Result<(), LostReason>)| LockView {
            holder: lease.holder(),
            expires_in: lease.deadline.remaining(&now),
            ended: standing.err(),
            keys: lease.keys,
        };
        let wanted = |(lease, _): &(Lease, _)| filter.takes(&lease.keys, &lease.info.actor);
        Ok(Inspection {
            leases: leases.into_iter().filter(wanted).map(view).collect(),
            queue: tickets
                .iter()
                .filter(|ticket| filter.takes(&ticket.keys, &ticket.info.actor))
                .map(Ticket::holder)
                .collect(),
        })
    }

    /// Takes a lease from its holder: its fences reject from now on, its `lost()` resolves, and the audit log of
    /// `system.db` tells who did it and why before it is done. A PostgreSQL store keeps that in table
    /// `nasnet_lock_break`, written in the same transaction.
    ///
    /// The lease is named with the token it was seen with, so that nobody breaks a lease they did not look at.
    ///
    /// # Errors
    /// [`Error::StaleBreak`] when the lease has ended or carries another token; [`Error::Storage`] or [`Error::Db`] when a
    /// database fails.
    ///
    /// # Cancel safety
    /// A dropped future may have broken the lease; the audit log then says so.
    pub async fn break_lock(
        &self,
        lease: Ulid,
        token: FencingToken,
        by: &str,
        reason: &str,
    ) -> Result<BrokenLease, Error> {
        let broken = Broken { by: cut(by), reason: cut(reason) };
        let answer = self.shared.store.break_lease(lease, token, broken).await?;
        let lease = answer.map_err(|now| Error::StaleBreak { lease, token, now })?;
        self.shared.keeper.wake();
        Ok(BrokenLease { holder: lease.holder(), keys: lease.keys })
    }
}

fn cut(text: &str) -> String {
    text.chars().take(LOCK_INFO_CHARS_MAX).collect()
}

impl StaleView {
    pub(crate) fn of(lease: Option<&Lease>, token: FencingToken) -> Self {
        match lease {
            Some(lease) if lease.token != token => Self::OtherToken(lease.token),
            _ => Self::Gone,
        }
    }
}
