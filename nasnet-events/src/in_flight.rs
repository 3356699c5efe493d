//! Transactions that hold positions of a hot tier which is lost under them. What they commit should be there before the next
//! incarnation begins: readers go on behind it, and versions are given again that nothing on flash has.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Scope};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::Error;
use crate::position::Position;

const LANDED: Cause = Cause::new("event-landed");

/// How long they are waited for, all together.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// What a database is given at least to answer that none is open.
const ANSWER: Duration = Duration::from_millis(20);

/// Those of one open store.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// First positions of what is reserved, until it is published or given up.
    held: Mutex<BTreeMap<Position, Scope>>,
    /// Scopes of those that wait for positions, and so for whoever begins the next incarnation.
    waiting: watch::Sender<Vec<Scope>>,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default(), waiting: watch::Sender::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Position, Scope>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a transaction on a scope holds a reservation.
    pub(crate) fn take_off(&self, first: Position, scope: &Scope) {
        self.held().insert(first, scope.clone());
    }

    /// Notes that it has ended, or that nobody can tell.
    pub(crate) fn land(&self, first: Position) {
        self.held().remove(&first);
    }

    /// Forgets those of incarnations that are over.
    pub(crate) fn retain(&self, epoch: u32) {
        self.held().retain(|first, _| first.epoch == epoch);
    }

    /// Whether a transaction on a scope holds a reservation, be it the one that asks or one it is committed with.
    pub(crate) fn holds(&self, scope: &Scope) -> bool {
        self.held().values().any(|held| held == scope)
    }

    /// Notes that the transaction that is open on a scope waits for positions, as long as the answer lives.
    pub(crate) fn wait_in<'a>(&'a self, scope: &'a Scope) -> Waiting<'a> {
        self.waiting.send_modify(|waiting| waiting.push(scope.clone()));
        Waiting { waiting: &self.waiting, scope }
    }

    /// Waits until none is open on a database that began before, in whatever process: each holds its write lock. Not for one
    /// of this store that waits for positions, unless it may hold others: then it gives up. Returns how long it waited.
    pub(crate) async fn all_landed(&self, database: &Database, scope: &Scope, patience: Duration) -> Duration {
        let since = Instant::now();
        let mut waiting = self.waiting.subscribe();
        let landed = async {
            tokio::select! {
                landed = database.write(LANDED, |_| Box::pin(async { Ok::<_, Error>(()) })) => landed,
                _ = waiting.wait_for(|waiting| waiting.contains(scope) && !self.holds(scope)) => Ok(()),
            }
        };
        match tokio::time::timeout(patience.max(ANSWER), landed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, %scope, "it is not known whether transactions are open"),
            Err(_) => tracing::warn!(%scope, "a transaction goes on that may hold positions of a lost hot tier"),
        }
        since.elapsed()
    }
}

/// A transaction that waits for positions.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    waiting: &'a watch::Sender<Vec<Scope>>,
    scope: &'a Scope,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiting.send_modify(|waiting| {
            if let Some(at) = waiting.iter().position(|scope| scope == self.scope) {
                waiting.swap_remove(at);
            }
        });
    }
}
