//! Transactions that hold positions of a hot tier which is lost under them. What they commit should be there before the next
//! incarnation begins: readers go on behind it, and versions are given again that nothing on flash has.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Scope};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::error::Error;
use crate::position::Position;

/// It writes nothing, so a full medium and a budget that is used up let it pass.
const LANDED: Cause = Cause::new("event-landed").critical();

/// How long they are waited for, all together.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Those of one open store.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// First positions of what is reserved for them.
    held: Mutex<BTreeSet<Position>>,
    landed: Notify,
    /// Scopes of those that wait for positions, and so for whoever waits here.
    waiting: watch::Sender<Vec<Scope>>,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default(), landed: Notify::new(), waiting: watch::Sender::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<Position>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a transaction holds a reservation.
    pub(crate) fn take_off(&self, first: Position) {
        self.held().insert(first);
    }

    /// Notes that it has ended, or that nobody can tell.
    pub(crate) fn land(&self, first: Position) {
        if self.held().remove(&first) {
            self.landed.notify_waiters();
            self.landed.notify_one();
        }
    }

    /// Forgets those of incarnations that are over.
    pub(crate) fn retain(&self, epoch: u32) {
        self.held().retain(|first| first.epoch == epoch);
    }

    /// Notes that the transaction that is open on a scope waits for positions, as long as the answer lives.
    pub(crate) fn wait_in<'a>(&'a self, scope: &'a Scope) -> Waiting<'a> {
        self.waiting.send_modify(|waiting| waiting.push(scope.clone()));
        Waiting { waiting: &self.waiting, scope }
    }

    /// Waits for those of this store.
    pub(crate) async fn own_landed(&self) {
        let landed = async {
            while !self.held().is_empty() {
                self.landed.notified().await;
            }
        };
        drop(tokio::time::timeout(PATIENCE, landed).await);
    }

    /// Waits until none is open on a database that began before, in whatever process: they hold its write lock. One of this
    /// store that waits for positions has none of the lost hot tier that were not waited for already. Takes what it waited
    /// off the patience there is.
    pub(crate) async fn all_landed(&self, database: &Database, scope: &Scope, patience: &mut Duration) {
        let since = Instant::now();
        let mut waiting = self.waiting.subscribe();
        let landed = async {
            tokio::select! {
                landed = database.write(LANDED, |_| Box::pin(async { Ok::<_, Error>(()) })) => landed,
                _ = waiting.wait_for(|waiting| waiting.contains(scope)) => Ok(()),
            }
        };
        match tokio::time::timeout(*patience, landed).await {
            Ok(Ok(())) => {}
            // Nothing is committed there either.
            Ok(Err(error)) => tracing::debug!(%error, %scope, "its transactions are not waited for"),
            Err(_) => tracing::warn!(%scope, "a transaction goes on that may hold positions of a lost hot tier"),
        }
        *patience = patience.saturating_sub(since.elapsed());
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
