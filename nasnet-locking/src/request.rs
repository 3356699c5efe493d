//! What a caller asks for.

use std::time::Duration;

use crate::error::Error;
use crate::key::KeySet;
use crate::lease::{LockInfo, Mode};

/// Time to live of a lease unless another is asked for.
pub const TTL_DEFAULT: Duration = Duration::from_secs(300);
/// Shortest time to live.
pub const TTL_MIN: Duration = Duration::from_millis(1);
/// Longest time to live: a lease that needs longer is renewed.
pub const TTL_MAX: Duration = Duration::from_secs(3_600);
/// Longest wait; a longer one is cut to it.
pub const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// What to do when the keys are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Answer [`Error::Held`] at once.
    No,
    /// Queue up, first come first served, and answer [`Error::Held`] when the time is over.
    For(Duration),
}

/// Who keeps the lease from running out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renew {
    /// The holder, through [`crate::LeaseGuard::renew`].
    Manual,
    /// The lock manager, each time a third of the time to live has passed, until the longest hold.
    Auto,
}

/// A request for a lease.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AcquireRequest {
    /// What it covers, all or nothing.
    pub keys: KeySet,
    /// How it shares its keys.
    pub mode: Mode,
    /// Who takes it and what for.
    pub holder: LockInfo,
    /// How long it lasts unless it is renewed; [`TTL_MIN`] to [`TTL_MAX`].
    pub ttl: Duration,
    /// How long it lasts however often it is renewed.
    pub max_hold: Option<Duration>,
    /// What to do when the keys are taken.
    pub wait: Wait,
    /// Who renews.
    pub renew: Renew,
}

impl AcquireRequest {
    /// Asks for a lease that carries the right to write, for [`TTL_DEFAULT`], without waiting.
    #[must_use]
    pub fn exclusive(keys: impl Into<KeySet>, holder: LockInfo) -> Self {
        Self {
            keys: keys.into(),
            mode: Mode::Exclusive,
            holder,
            ttl: TTL_DEFAULT,
            max_hold: None,
            wait: Wait::No,
            renew: Renew::Manual,
        }
    }

    /// Asks for a lease that others may share, for [`TTL_DEFAULT`], without waiting.
    #[must_use]
    pub fn shared(keys: impl Into<KeySet>, holder: LockInfo) -> Self {
        Self { mode: Mode::Shared, ..Self::exclusive(keys, holder) }
    }

    /// Sets the time to live.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// Sets the longest hold.
    #[must_use]
    pub fn max_hold(self, max_hold: Duration) -> Self {
        Self { max_hold: Some(max_hold), ..self }
    }

    /// Queues up for at most this long.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait: Wait::For(wait), ..self }
    }

    /// Has the lock manager renew the lease.
    #[must_use]
    pub fn renew_automatically(self) -> Self {
        Self { renew: Renew::Auto, ..self }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let bounds = TTL_MIN..=TTL_MAX;
        for ttl in [Some(self.ttl), self.max_hold.map(|hold| hold.min(TTL_MAX))].into_iter().flatten() {
            if !bounds.contains(&ttl) {
                return Err(Error::InvalidTtl { key: self.keys.first().clone(), ttl, min: TTL_MIN, max: TTL_MAX });
            }
        }
        Ok(())
    }
}
