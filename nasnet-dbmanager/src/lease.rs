//! The set of open router databases: opened once however many ask, closed only when nobody holds them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::database::Database;
use crate::error::Error;
use crate::evict::{Admission, Candidate, admit};
use crate::id::RouterId;
use crate::writer::panic_message;

/// What an opening ends with, shared by all who wait for it.
type Outcome = Option<Result<Database, Error>>;

/// The open router databases of a fleet.
pub(crate) struct OpenSet {
    max_open: usize,
    lease_timeout: Duration,
    /// Named in errors.
    data_dir: PathBuf,
    state: Mutex<State>,
    /// Rung when an entry leaves the set or is returned.
    changed: Notify,
}

struct State {
    entries: HashMap<RouterId, Entry>,
    /// Grows with each use; also tells entries of one id apart.
    tick: u64,
    closed: bool,
}

struct Entry {
    born: u64,
    leases: usize,
    used: u64,
    phase: Phase,
}

enum Phase {
    Opening(watch::Receiver<Outcome>),
    Open(Database),
    Closing,
    /// Kept closed while its files are moved.
    Held,
}

/// Keeps a router database closed while it lives; whoever asks for it meanwhile waits.
pub(crate) struct Held {
    set: Arc<OpenSet>,
    id: RouterId,
    born: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.set.state();
        if state.entries.get(&self.id).is_some_and(|entry| entry.born == self.born) {
            state.entries.remove(&self.id);
        }
        drop(state);
        self.set.changed.notify_waiters();
    }
}

/// When a database that must be closed is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldWhen {
    /// Once its handles are returned, waiting for them no longer than a lease is waited for.
    Returned,
    /// Now: it is damaged, and its handles get [`Error::Closed`] from here on.
    Now,
    /// As `Now`, unless what is open is another file than the one with this uid, which was found damaged.
    Damaged([u8; 16]),
}

/// Keeps one entry from being closed while it lives.
pub(crate) struct Lease {
    set: Arc<OpenSet>,
    id: RouterId,
    born: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set.release(&self.id, self.born);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the next step towards a lease is.
enum Step {
    Have(Database, Lease),
    Await(watch::Receiver<Outcome>, Lease),
    Start(watch::Sender<Outcome>, Lease),
    Close(RouterId, u64, Database),
    /// Something is being closed, which ends by itself.
    Closing,
    /// Somebody must return a lease.
    Full,
}

enum HoldStep {
    Have(Held),
    Close(Held, Database),
    Wait,
    /// Another file than the one to be closed is open.
    Other,
}

impl OpenSet {
    pub(crate) fn new(max_open: usize, lease_timeout: Duration, data_dir: PathBuf) -> Self {
        let state = State { entries: HashMap::new(), tick: 0, closed: false };
        Self { max_open: max_open.max(1), lease_timeout, data_dir, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Leases a database, opening it with `open` if it is not open.
    ///
    /// # Cancel safety
    /// Safe: the opening goes on in its own task and its result stays in the set.
    pub(crate) async fn lease<F, O>(self: &Arc<Self>, id: &RouterId, open: F) -> Result<Database, Error>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Database, Error>> + Send + 'static,
    {
        let end = Instant::now() + self.lease_timeout;
        let (lease, mut outcome) = loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listening starts before looking, or a change between the two would be missed.
            changed.as_mut().enable();
            match self.step(id)? {
                Step::Have(database, lease) => return Ok(database.with_lease(Arc::new(lease))),
                Step::Await(outcome, lease) => break (lease, outcome),
                Step::Start(sender, lease) => {
                    let outcome = sender.subscribe();
                    tokio::spawn(Arc::clone(self).open(id.clone(), lease.born, sender, open()));
                    break (lease, outcome);
                }
                Step::Close(victim, born, database) => {
                    tokio::spawn(Arc::clone(self).close(victim, born, database));
                    changed.await;
                }
                Step::Closing => changed.await,
                Step::Full => {
                    if tokio::time::timeout_at(end, changed).await.is_err() {
                        return Err(Error::AllLeased { max_open: self.max_open });
                    }
                }
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| (*outcome).clone());
        match outcome {
            Ok(Some(Ok(database))) => Ok(database.with_lease(Arc::new(lease))),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Err(self.shut()),
        }
    }

    /// Opens an entry and tells everybody who waits for it.
    async fn open<O>(self: Arc<Self>, id: RouterId, born: u64, sender: watch::Sender<Outcome>, open: O)
    where
        O: Future<Output = Result<Database, Error>> + Send + 'static,
    {
        // A panic becomes an error and never leaves an entry that opens for ever.
        let result = AssertUnwindSafe(open).catch_unwind().await.unwrap_or_else(|panic| {
            Err(Error::Panicked { message: format!("while opening router {id}: {}", panic_message(panic.as_ref())) })
        });
        {
            let mut state = self.state();
            if let Some(entry) = state.entries.get_mut(&id).filter(|entry| entry.born == born) {
                match &result {
                    Ok(database) => entry.phase = Phase::Open(database.clone()),
                    Err(_) => {
                        state.entries.remove(&id);
                    }
                }
            }
        }
        sender.send_replace(Some(result));
        self.changed.notify_waiters();
    }

    async fn close(self: Arc<Self>, id: RouterId, born: u64, database: Database) {
        if let Err(error) = database.close().await {
            tracing::warn!(router = %id, %error, "closing a router database failed");
        }
        drop(database);
        {
            let mut state = self.state();
            if state.entries.get(&id).is_some_and(|entry| entry.born == born) {
                state.entries.remove(&id);
            }
        }
        self.changed.notify_waiters();
    }

    fn step(self: &Arc<Self>, id: &RouterId) -> Result<Step, Error> {
        let mut state = self.state();
        if state.closed {
            return Err(self.shut());
        }
        state.tick += 1;
        let tick = state.tick;
        let lease = |born| Lease { set: Arc::clone(self), id: id.clone(), born };
        if let Some(entry) = state.entries.get_mut(id) {
            let step = match &entry.phase {
                Phase::Closing | Phase::Held => return Ok(Step::Closing),
                Phase::Open(database) => Step::Have(database.clone(), lease(entry.born)),
                Phase::Opening(outcome) => Step::Await(outcome.clone(), lease(entry.born)),
            };
            entry.leases += 1;
            entry.used = tick;
            return Ok(step);
        }
        let using = state.entries.iter().filter(|(_, entry)| !matches!(entry.phase, Phase::Held));
        let candidates = using.map(|(id, entry)| Candidate {
            id,
            leases: entry.leases,
            used: entry.used,
            open: matches!(entry.phase, Phase::Open(_)),
        });
        match admit(self.max_open, candidates) {
            Admission::Open => {
                let (sender, outcome) = watch::channel(None);
                let entry = Entry { born: tick, leases: 1, used: tick, phase: Phase::Opening(outcome) };
                state.entries.insert(id.clone(), entry);
                Ok(Step::Start(sender, lease(tick)))
            }
            Admission::Evict(victim) => {
                let victim = victim.clone();
                Ok(state.begin_close(&victim).map_or(Step::Closing, |(born, db)| Step::Close(victim, born, db)))
            }
            Admission::Wait if state.entries.values().any(|entry| matches!(entry.phase, Phase::Closing)) => {
                Ok(Step::Closing)
            }
            Admission::Wait => Ok(Step::Full),
        }
    }

    fn release(&self, id: &RouterId, born: u64) {
        let mut state = self.state();
        if let Some(entry) = state.entries.get_mut(id).filter(|entry| entry.born == born) {
            entry.leases = entry.leases.saturating_sub(1);
            if entry.leases == 0 {
                drop(state);
                self.changed.notify_waiters();
            }
        }
    }

    /// Closes a router database and keeps it closed.
    ///
    /// # Errors
    /// [`Error::InUse`] when a handle was not returned in time; the database then stays open.
    pub(crate) async fn hold(self: &Arc<Self>, id: &RouterId, when: HoldWhen, lock: &Path) -> Result<Held, Error> {
        self.try_hold(id, when, lock).await?.ok_or_else(|| Error::InUse { path: lock.to_owned() })
    }

    /// As [`OpenSet::hold`]; `None` when another file than the one to be closed is open, which is left alone.
    pub(crate) async fn try_hold(
        self: &Arc<Self>,
        id: &RouterId,
        when: HoldWhen,
        lock: &Path,
    ) -> Result<Option<Held>, Error> {
        let end = Instant::now() + self.lease_timeout;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.step_to_hold(id, when)? {
                HoldStep::Have(held) => return Ok(Some(held)),
                HoldStep::Other => return Ok(None),
                HoldStep::Close(held, database) => {
                    // In a task of its own, so that a caller who stops waiting does not stop it half-way.
                    let closing = tokio::spawn(async move {
                        let closed = database.close().await;
                        drop(database);
                        if let Err(error) = closed {
                            tracing::warn!(router = %held.id, %error, "closing a router database failed");
                        }
                        held
                    });
                    return closing.await.map(Some).map_err(|_| self.shut());
                }
                HoldStep::Wait => {
                    if tokio::time::timeout_at(end, changed).await.is_err() {
                        return Err(Error::InUse { path: lock.to_owned() });
                    }
                }
            }
        }
    }

    fn step_to_hold(self: &Arc<Self>, id: &RouterId, when: HoldWhen) -> Result<HoldStep, Error> {
        let mut state = self.state();
        if state.closed {
            return Err(self.shut());
        }
        state.tick += 1;
        let tick = state.tick;
        let Some(entry) = state.entries.get_mut(id) else {
            let entry = Entry { born: tick, leases: 0, used: tick, phase: Phase::Held };
            state.entries.insert(id.clone(), entry);
            return Ok(HoldStep::Have(Held { set: Arc::clone(self), id: id.clone(), born: tick }));
        };
        if let (HoldWhen::Damaged(uid), Phase::Open(database)) = (when, &entry.phase)
            && database.file_uid() != uid
        {
            return Ok(HoldStep::Other);
        }
        let free = entry.leases == 0 || when != HoldWhen::Returned;
        if !free || !matches!(entry.phase, Phase::Open(_)) {
            return Ok(HoldStep::Wait);
        }
        let held = Held { set: Arc::clone(self), id: id.clone(), born: entry.born };
        match std::mem::replace(&mut entry.phase, Phase::Held) {
            Phase::Open(database) => Ok(HoldStep::Close(held, database)),
            _ => Ok(HoldStep::Wait),
        }
    }

    /// Returns the databases open now.
    pub(crate) fn open_databases(&self) -> Vec<(RouterId, usize, Database)> {
        let state = self.state();
        let open = |(id, entry): (&RouterId, &Entry)| match &entry.phase {
            Phase::Open(database) => Some((id.clone(), entry.leases, database.clone())),
            _ => None,
        };
        state.entries.iter().filter_map(open).collect()
    }

    /// Refuses new leases, waits for what is being opened and closes everything, leased or not.
    pub(crate) async fn shut_down(self: &Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (open, rest) = {
                let mut state = self.state();
                state.closed = true;
                let ids: Vec<_> = state.entries.keys().cloned().collect();
                let open: Vec<_> =
                    ids.into_iter().filter_map(|id| state.begin_close(&id).map(|(born, db)| (id, born, db))).collect();
                (open, state.entries.len())
            };
            if rest == 0 {
                return;
            }
            // In tasks of their own, so that a caller who stops waiting does not stop them.
            for (id, born, database) in open {
                tokio::spawn(Arc::clone(self).close(id, born, database));
            }
            changed.await;
        }
    }

    fn shut(&self) -> Error {
        Error::Closed { path: self.data_dir.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin_close(&mut self, id: &RouterId) -> Option<(u64, Database)> {
        let entry = self.entries.get_mut(id)?;
        if !matches!(entry.phase, Phase::Open(_)) {
            return None;
        }
        match std::mem::replace(&mut entry.phase, Phase::Closing) {
            Phase::Open(database) => Some((entry.born, database)),
            _ => None,
        }
    }
}
