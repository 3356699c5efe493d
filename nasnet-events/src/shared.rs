//! What the parts of one open store share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::DbManager;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cold::ColdDir;
use crate::consumer::progress::Consumers;
use crate::decide::Turns;
use crate::durability::Promises;
use crate::epoch::TailLost;
use crate::heads::Heads;
use crate::hot::session::Session;
use crate::options::EventOptions;
use crate::position::Position;

/// State of an open store. Its locks are held for a few instructions, never across an await.
pub(crate) struct Shared {
    pub(crate) manager: DbManager,
    pub(crate) options: EventOptions,
    heads: Mutex<Heads>,
    owner: [u8; 16],
    /// Held while the store is open.
    session: Mutex<Option<Session>>,
    losses: Vec<TailLost>,
    pub(crate) cold: Option<Arc<Mutex<ColdDir>>>,
    /// Wakes the resolver.
    pub(crate) resolver: Notify,
    /// Wakes `maintain` when a page of events waits to be flushed.
    pub(crate) backlog: Notify,
    /// Wakes subscribers: the order of events has grown, or its end is resolved further.
    pub(crate) moved: watch::Sender<u64>,
    pub(crate) consumers: Consumers,
    promises: Mutex<Promises>,
    pub(crate) turns: Turns,
    /// Wakes `maintain` when a flush is due earlier than it was.
    pub(crate) promised: Notify,
    /// One flush at a time, and one archive.
    pub(crate) flushing: tokio::sync::Mutex<()>,
    pub(crate) archiving: tokio::sync::Mutex<()>,
    closing: AtomicBool,
    unclassified: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        manager: DbManager,
        options: EventOptions,
        heads: Heads,
        session: Session,
        losses: Vec<TailLost>,
    ) -> Self {
        let cold = options.cold.as_ref().map(|cold| Arc::new(Mutex::new(ColdDir::new(cold, &manager))));
        Self {
            manager,
            options,
            heads: Mutex::new(heads),
            owner: session.owner(),
            session: Mutex::new(Some(session)),
            losses,
            cold,
            resolver: Notify::new(),
            backlog: Notify::new(),
            moved: watch::Sender::new(0),
            consumers: Consumers::default(),
            promises: Mutex::new(Promises::default()),
            turns: Turns::new(),
            promised: Notify::new(),
            flushing: tokio::sync::Mutex::new(()),
            archiving: tokio::sync::Mutex::new(()),
            closing: AtomicBool::new(false),
            unclassified: AtomicU64::new(0),
        }
    }

    /// The heads. A poisoned lock is taken over: every change to them is complete before anything can panic.
    pub(crate) fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn owner(&self) -> [u8; 16] {
        self.owner
    }

    /// Ends the session: others take the store for dead and may resolve what it has left open.
    pub(crate) fn end_session(&self) {
        drop(self.session.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(crate) fn sessions_dir(&self) -> std::path::PathBuf {
        sessions_dir(&self.manager)
    }

    pub(crate) fn losses(&self) -> &[TailLost] {
        &self.losses
    }

    pub(crate) fn has_losses(&self) -> bool {
        !self.losses.is_empty()
    }

    /// Leaves a reservation to the resolver.
    pub(crate) fn abandon(&self, first_seq: u64) {
        self.heads().abandon(first_seq);
        self.resolver.notify_one();
    }

    /// Wakes `maintain` when the scopes with unflushed events fill a page each, on average.
    pub(crate) fn note_backlog(&self) {
        // Segments of 64 KiB compress about five times.
        const RATIO: u64 = 5;
        let heads = self.heads();
        let (scopes, raw) =
            heads.backlog().values().fold((0, 0), |(scopes, raw), backlog| (scopes + 1, raw + backlog.raw_bytes));
        let wanted = RATIO.saturating_mul(self.options.flush_bytes as u64).saturating_mul(scopes);
        if scopes > 0 && raw >= wanted {
            self.backlog.notify_one();
        }
    }

    /// Wakes subscribers.
    pub(crate) fn note_moved(&self) {
        self.moved.send_modify(|times| *times = times.wrapping_add(1));
    }

    fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises that everything up to `position` is on flash within `delay`.
    pub(crate) fn promise(&self, position: Position, delay: Duration) {
        self.promises().add(position, Instant::now(), delay);
        self.promised.notify_one();
    }

    /// Takes note of a flush.
    pub(crate) fn keep_promises(&self, through: Position) {
        self.promises().kept(through);
    }

    /// When a flush is due because of what was promised.
    pub(crate) fn flush_due(&self) -> Option<Instant> {
        self.promises().next()
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.resolver.notify_one();
        self.note_moved();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn count_unclassified(&self) {
        self.unclassified.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unclassified(&self) -> u64 {
        self.unclassified.load(Ordering::Relaxed)
    }
}

/// Where the sessions of this run directory keep their files.
pub(crate) fn sessions_dir(manager: &DbManager) -> std::path::PathBuf {
    manager.run_dir().join("sessions")
}
