//! The task of a lock manager: releases what guards dropped, renews what is to be renewed, tells holders what they lost
//! and wakes who waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nasnet_dbmanager::Now;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use ulid::Ulid;

use crate::error::{Error, LostReason};
use crate::lease::{Deadline, Lease};
use crate::request::Renew;
use crate::store::LeaseStore;
use crate::token::FencingToken;

/// What the keeper knows of one guard.
#[derive(Debug)]
pub(crate) struct Watched {
    id: Ulid,
    token: FencingToken,
    ttl: Duration,
    renew: Renew,
    deadline: Mutex<Deadline>,
    lost: watch::Sender<Option<LostReason>>,
}

impl Watched {
    pub(crate) fn new(lease: &Lease, renew: Renew) -> Self {
        Self {
            id: lease.id,
            token: lease.token,
            ttl: lease.ttl,
            renew,
            deadline: Mutex::new(lease.deadline),
            lost: watch::Sender::new(None),
        }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        *lock(&self.deadline)
    }

    pub(crate) fn extend(&self, deadline: Deadline) {
        *lock(&self.deadline) = deadline;
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<LostReason>> {
        self.lost.subscribe()
    }

    fn is_listened_to(&self) -> bool {
        self.lost.receiver_count() > 0 && self.lost.borrow().is_none()
    }

    fn renews(&self) -> bool {
        self.renew == Renew::Auto && self.lost.borrow().is_none()
    }

    fn is_due(&self, now: &Now) -> bool {
        self.renews() && self.deadline().remaining(now) <= self.ttl * 2 / 3
    }

    fn tell(&self, why: LostReason) {
        self.lost.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(why);
            first
        });
    }
}

enum Message {
    Release(Ulid),
    LookClosely,
    Shutdown(oneshot::Sender<Result<(), Error>>),
}

/// The handle of the task. The task ends with [`Keeper::shutdown`] or with the last handle.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// At most one message for each lease that ends and each listener that comes.
    messages: mpsc::UnboundedSender<Message>,
    guards: Guards,
    freed: Arc<Notify>,
}

type Guards = Arc<Mutex<HashMap<Ulid, Weak<Watched>>>>;

impl Keeper {
    pub(crate) fn spawn(store: Arc<dyn LeaseStore>, freed: Arc<Notify>) -> Self {
        let (messages, received) = mpsc::unbounded_channel();
        let guards = Guards::default();
        let task =
            Task { store, guards: Arc::clone(&guards), freed: Arc::clone(&freed), failing: AtomicBool::new(false) };
        tokio::spawn(task.run(received));
        Self { messages, guards, freed }
    }

    pub(crate) fn watch(&self, guard: &Arc<Watched>) {
        lock(&self.guards).insert(guard.id, Arc::downgrade(guard));
        if guard.renews() {
            self.look_closely();
        }
    }

    /// Releases a lease nobody waits for. A keeper that is gone took the session, and with it the lease, along.
    pub(crate) fn release_later(&self, id: Ulid) {
        let _ = self.messages.send(Message::Release(id));
    }

    pub(crate) fn look_closely(&self) {
        let _ = self.messages.send(Message::LookClosely);
    }

    /// Wakes everybody in this process who waits for keys.
    pub(crate) fn wake(&self) {
        self.freed.notify_waiters();
    }

    /// Resolves when keys may have become free in this process.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let (answer, done) = oneshot::channel();
        match self.messages.send(Message::Shutdown(answer)) {
            Ok(()) => done.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }
}

struct Task {
    store: Arc<dyn LeaseStore>,
    guards: Guards,
    freed: Arc<Notify>,
    /// The store could not be asked last time: said once, not every tick.
    failing: AtomicBool,
}

impl Task {
    async fn run(self, mut messages: mpsc::UnboundedReceiver<Message>) {
        let mut close = false;
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                () = tokio::time::sleep(self.store.tick()), if close => {
                    close = self.tick().await;
                    continue;
                }
            };
            match message {
                Some(Message::Release(lease)) => {
                    self.release(lease).await;
                    // What is released one after another must not starve the renewals.
                    close = close && self.tick().await;
                }
                Some(Message::LookClosely) => close = true,
                Some(Message::Shutdown(answer)) => {
                    let result = self.store.end_session().await;
                    for guard in self.live() {
                        guard.tell(LostReason::SessionEnded);
                    }
                    self.freed.notify_waiters();
                    let _ = answer.send(result);
                    return;
                }
                None => return,
            }
        }
    }

    async fn release(&self, lease: Ulid) {
        lock(&self.guards).remove(&lease);
        // A lease that stays ends with its time or with the session.
        if let Err(error) = self.store.release(lease).await {
            tracing::warn!(%lease, %error, "a dropped lease could not be released");
        }
        self.freed.notify_waiters();
    }

    /// Looks at every guard once and tells whether it has to be done again.
    async fn tick(&self) -> bool {
        let guards = self.live();
        for guard in guards.iter().filter(|guard| guard.is_due(&self.store.now())) {
            match self.store.renew(guard.id, guard.token).await {
                Ok(Ok(deadline)) => guard.extend(deadline),
                Ok(Err(why)) => guard.tell(why),
                // Renewing is idempotent: the next tick tries again as long as there is time.
                Err(error) => self.warn_once(&error, "a lease could not be renewed"),
            }
        }
        if guards.iter().any(|guard| guard.is_listened_to()) {
            self.tell_lost(&guards).await;
        }
        guards.iter().any(|guard| guard.is_listened_to() || guard.renews())
    }

    async fn tell_lost(&self, guards: &[Arc<Watched>]) {
        let listening: Vec<&Arc<Watched>> = guards.iter().filter(|guard| guard.is_listened_to()).collect();
        let held: Vec<Ulid> = listening.iter().map(|guard| guard.id).collect();
        let lost = match self.store.lost(&held).await {
            Ok(lost) => {
                self.failing.store(false, Ordering::Relaxed);
                Some(lost)
            }
            Err(error) => {
                self.warn_once(&error, "the leases held could not be looked at");
                None
            }
        };
        let now = self.store.now();
        for guard in listening {
            let expired = guard.deadline().remaining(&now).is_zero();
            let why = match &lost {
                Some(lost) => lost.iter().find(|(id, _)| *id == guard.id).map(|(_, why)| why.clone()),
                None => expired.then_some(LostReason::Expired),
            };
            match why {
                // A lease that was taken over is gone: what its holder missed is that its time was over.
                Some(LostReason::Ended) if expired => guard.tell(LostReason::Expired),
                Some(why) => guard.tell(why),
                None => {}
            }
        }
    }

    fn warn_once(&self, error: &Error, what: &str) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "{what}");
        }
    }

    fn live(&self) -> Vec<Arc<Watched>> {
        let mut guards = lock(&self.guards);
        guards.retain(|_, guard| guard.strong_count() > 0);
        guards.values().filter_map(Weak::upgrade).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
