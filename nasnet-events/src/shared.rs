//! What the parts of one open store share.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, DbManager, Scope};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use ulid::Ulid;

use crate::archive::Failing;
use crate::cold::ColdDir;
use crate::consumer::progress::Consumers;
use crate::decide::Turns;
use crate::durability::PromisesByScope;
use crate::epoch::{self, Opened, TailLost};
use crate::error::Error;
use crate::event::Recorded;
use crate::flush::FlushReport;
use crate::heads::Heads;
use crate::hot::appender::APPEND;
use crate::hot::compact::SMALL_ROWS_MIN;
use crate::hot::flushed::Flushed;
use crate::hot::log::{self, View};
use crate::hot::newest::Newest;
use crate::hot::session::Session;
use crate::in_flight::InFlight;
use crate::merge::Range;
use crate::name::Subject;
use crate::options::EventOptions;
use crate::position::Position;
use crate::reads::ReadCounts;
use crate::schedule::is_page_full;
use crate::shred::DestroyedKey;
use crate::store::{blocking, lock_opening};

const FORGET: Cause = Cause::new("event-forget");
/// Until a promise that could not be kept is tried again, at most.
const PROMISE_RETRY: Duration = Duration::from_secs(60);

/// 64 MiB, or 15 % of the file system if that is less.
fn hot_bytes_wanted(run_dir: &std::path::Path) -> u64 {
    const MOST: u64 = 64 << 20;
    const PERCENT: u64 = 15;
    let Ok(facts) = rustix::fs::statvfs(run_dir) else { return MOST };
    (facts.f_blocks.saturating_mul(facts.f_frsize) / 100).saturating_mul(PERCENT).clamp(1 << 20, MOST)
}

/// Never what the database itself may have: room is looked for once in a while, and until then the file still grows.
fn hot_bytes_max(manager: &DbManager, asked: Option<u64>) -> u64 {
    let allowed = manager.hot().bytes_max(APPEND);
    let wanted = asked.unwrap_or_else(|| hot_bytes_wanted(manager.run_dir()));
    wanted.min(allowed - allowed / 16)
}

/// State of an open store. Its locks are held for a few instructions, never across an await.
pub(crate) struct Shared {
    pub(crate) manager: DbManager,
    pub(crate) options: EventOptions,
    heads: Mutex<Heads>,
    newest: Mutex<Newest>,
    owner: [u8; 16],
    /// Held while the store is open.
    session: Arc<Mutex<Option<Session>>>,
    losses: Mutex<Vec<TailLost>>,
    /// One opening of a wiped hot tier at a time.
    renewing: tokio::sync::Mutex<()>,
    pub(crate) in_flight: InFlight,
    /// Most bytes of hot.db.
    pub(crate) hot_bytes_max: u64,
    /// When the last flush went ahead, by the time since boot.
    last_flush_ms: Mutex<Option<u64>>,
    /// When the store was opened.
    opened_ms: u64,
    /// Databases of routers that stay open together.
    open_max: usize,
    /// Until when appends do not wait for a flush that makes room.
    flush_slow_until: Mutex<Option<Instant>>,
    /// Bytes appended since somebody looked how many there are.
    hot_unseen: AtomicU64,
    /// Rows appended since somebody joined small ones.
    small_rows: AtomicU64,
    /// From where on small rows were not joined yet, and in which incarnation.
    compact_from: Mutex<(u32, u64)>,
    /// Up to where no Low events are left, and in which incarnation.
    low_swept: Mutex<(u32, u64)>,
    /// Reservations that could not be resolved, and since when, by the time since boot.
    unresolvable: Mutex<HashMap<Position, u64>>,
    /// Scopes whose database could not be read, and since when.
    unreadable: Mutex<HashMap<Scope, u64>>,
    /// Scopes that could not tell a consumer what was removed from them, and since when.
    untold: Mutex<HashMap<(String, Scope), u64>>,
    pub(crate) cold: Option<Arc<Mutex<ColdDir>>>,
    /// Wakes the resolver.
    pub(crate) resolver: Notify,
    /// Wakes whoever takes new rows of the warm tier into account.
    pub(crate) grown: Notify,
    /// Wakes `maintain` when a page of events waits to be flushed.
    pub(crate) backlog: Notify,
    /// Wakes `maintain` when many small rows have come together.
    pub(crate) crowded: Notify,
    /// Wakes subscribers: the order of events has grown, or its end is resolved further.
    pub(crate) moved: watch::Sender<u64>,
    pub(crate) consumers: Consumers,
    /// Keys that were destroyed and whose traces nobody has searched for to the end, as they were stored.
    pub(crate) searching: Mutex<BTreeMap<Subject, Vec<DestroyedKey>>>,
    promises: Mutex<PromisesByScope>,
    pub(crate) turns: Turns,
    /// Held by whoever brings what the warm tier knows of a scope into memory.
    loading: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<()>>>>,
    /// Wakes `maintain` when a flush is due earlier than it was.
    pub(crate) promised: Notify,
    /// One flush at a time, and one archive.
    flushing: Arc<tokio::sync::Mutex<()>>,
    /// Wakes whoever waits for room in the hot log: a flush has got further.
    pub(crate) flushed: watch::Sender<u64>,
    /// Where all events of a scope, Low ones too, are in the cold tier, as an archive of this process has seen.
    archived: Mutex<Arc<HashMap<Scope, Range>>>,
    pub(crate) archiving: tokio::sync::Mutex<Failing>,
    /// Up to where events were looked at for dictionaries.
    trained: Mutex<HashMap<Scope, Position>>,
    closing: AtomicBool,
    unclassified: AtomicU64,
    pub(crate) reads: ReadCounts,
}

impl Shared {
    pub(crate) fn new(manager: DbManager, options: EventOptions, session: Session, opened: Opened) -> Self {
        let hot_bytes_max = hot_bytes_max(&manager, options.hot_bytes_max);
        let (opened_ms, open_max) = (manager.now().boottime_ms, manager.stats().max_open);
        let cold = options.cold.as_ref().map(|cold| Arc::new(Mutex::new(ColdDir::new(cold, &manager))));
        Self {
            manager,
            options,
            heads: Mutex::new(Heads::of_file(opened.epoch, opened.file)),
            newest: Mutex::default(),
            owner: session.owner(),
            session: Arc::new(Mutex::new(Some(session))),
            losses: Mutex::new(opened.losses),
            renewing: tokio::sync::Mutex::new(()),
            in_flight: InFlight::new(),
            hot_bytes_max,
            last_flush_ms: Mutex::new(None),
            opened_ms,
            open_max,
            flush_slow_until: Mutex::default(),
            hot_unseen: AtomicU64::new(u64::MAX / 2),
            small_rows: AtomicU64::new(SMALL_ROWS_MIN),
            compact_from: Mutex::new((0, 1)),
            low_swept: Mutex::new((0, 1)),
            unresolvable: Mutex::new(HashMap::new()),
            unreadable: Mutex::new(HashMap::new()),
            untold: Mutex::default(),
            cold,
            resolver: Notify::new(),
            grown: Notify::new(),
            backlog: Notify::new(),
            crowded: Notify::new(),
            moved: watch::Sender::new(0),
            consumers: Consumers::default(),
            searching: Mutex::default(),
            promises: Mutex::new(PromisesByScope::default()),
            turns: Turns::new(),
            loading: Mutex::default(),
            promised: Notify::new(),
            flushing: Arc::default(),
            flushed: watch::Sender::new(0),
            archived: Mutex::default(),
            archiving: tokio::sync::Mutex::default(),
            trained: Mutex::default(),
            closing: AtomicBool::new(false),
            unclassified: AtomicU64::new(0),
            reads: ReadCounts::default(),
        }
    }

    /// The heads. A poisoned lock is taken over: every change to them is complete before anything can panic.
    pub(crate) fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest events of the hot log.
    pub(crate) fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The hot tiers that were lost, oldest first.
    pub(crate) fn losses(&self) -> Vec<TailLost> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn has_losses(&self) -> bool {
        !self.losses.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells whether a handle is to the hot.db whose heads are known, and that file is still there and not damaged.
    pub(crate) fn is_current(&self, hot: &Database) -> bool {
        hot.file_uid() == self.heads().file() && hot.is_in_place() && !hot.is_damaged()
    }

    /// The hot tier. When it was wiped or is damaged it is opened anew first: a new incarnation begins, and what the lost
    /// one leaves is recorded.
    pub(crate) async fn hot(&self) -> Result<Database, Error> {
        let hot = self.manager.hot();
        if self.is_current(&hot) { Ok(hot) } else { self.renew().await }
    }

    async fn renew(&self) -> Result<Database, Error> {
        let _one = self.renewing.lock().await;
        let mut hot = self.manager.hot();
        if !hot.is_in_place() || hot.is_damaged() {
            hot = self.manager.renew_hot().await?;
        }
        if hot.file_uid() != self.heads().file() {
            self.renew_session().await?;
            let opening = lock_opening(&self.manager).await?;
            let opened = epoch::open(&self.manager, &self.in_flight).await?;
            drop(opening);
            tracing::warn!(epoch = opened.epoch, "the hot tier was lost while in use; a new one begins");
            let mut heads = self.heads();
            *self.losses.lock().unwrap_or_else(PoisonError::into_inner) = opened.losses;
            *heads = Heads::of_file(opened.epoch, opened.file);
            self.in_flight.retain(opened.epoch);
        }
        Ok(hot)
    }

    /// In place: whoever leaves before it is done leaves the session where it is.
    async fn renew_session(&self) -> Result<(), Error> {
        let (session, dir) = (Arc::clone(&self.session), self.sessions_dir());
        blocking(move || {
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            session.as_mut().map_or(Ok(()), |session| session.renew(&dir))
        })
        .await
    }

    /// Counts bytes that are about to be appended; true once so many came together that somebody has to look.
    pub(crate) fn is_room_unknown(&self, bytes: u64, step: u64) -> bool {
        let unseen = self.hot_unseen.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let is_unknown = unseen > step;
        if is_unknown {
            self.hot_unseen.store(0, Ordering::Relaxed);
        }
        is_unknown
    }

    pub(crate) fn last_flush_ms(&self) -> Option<u64> {
        *self.last_flush_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the last flush that went ahead, or since the store was opened.
    pub(crate) fn unflushed_for(&self) -> Duration {
        let since = self.last_flush_ms().unwrap_or(self.opened_ms);
        Duration::from_millis(self.manager.now().boottime_ms.saturating_sub(since))
    }

    pub(crate) const fn open_max(&self) -> usize {
        self.open_max
    }

    pub(crate) fn set_last_flush_ms(&self, boottime_ms: u64) {
        *self.last_flush_ms.lock().unwrap_or_else(PoisonError::into_inner) = Some(boottime_ms);
    }

    /// Counts rows that were appended with room for more events.
    pub(crate) fn note_small_rows(&self, rows: u64) {
        let before = self.small_rows.fetch_add(rows, Ordering::Relaxed);
        if before < SMALL_ROWS_MIN && before + rows >= SMALL_ROWS_MIN {
            self.crowded.notify_one();
        }
    }

    /// Tells whether so many small rows came together that joining them pays.
    pub(crate) fn has_small_rows(&self) -> bool {
        self.small_rows.load(Ordering::Relaxed) >= SMALL_ROWS_MIN
    }

    pub(crate) fn note_compacted(&self) {
        self.small_rows.store(0, Ordering::Relaxed);
    }

    pub(crate) fn compact_from(&self, epoch: u32) -> u64 {
        from_in(&self.compact_from, epoch)
    }

    pub(crate) fn set_compact_from(&self, epoch: u32, from: u64) {
        *self.compact_from.lock().unwrap_or_else(PoisonError::into_inner) = (epoch, from);
    }

    /// From where on Low events may be left in the hot log.
    pub(crate) fn low_swept(&self, epoch: u32) -> u64 {
        from_in(&self.low_swept, epoch)
    }

    pub(crate) fn set_low_swept(&self, epoch: u32, from: u64) {
        *self.low_swept.lock().unwrap_or_else(PoisonError::into_inner) = (epoch, from);
    }

    /// Forgets what has left the hot log.
    pub(crate) async fn forget_left(&self, hot: &Database, view: &View) -> Result<(), Error> {
        let is_crowded = {
            let mut heads = self.heads();
            if let Some(floor) = view.floor.filter(|_| heads.epoch() == view.epoch) {
                heads.forget_below(floor);
            }
            heads.is_crowded()
        };
        if is_crowded {
            let (view, emptied) = hot
                .read(FORGET, |conn| {
                    Box::pin(async move { Ok::<_, Error>((log::view(conn).await?, log::emptied(conn).await?)) })
                })
                .await?;
            let mut heads = self.heads();
            if let Some(floor) = view.floor.filter(|_| heads.epoch() == view.epoch) {
                heads.forget_gone(floor, &emptied);
            }
        }
        Ok(())
    }

    /// Takes events that are lost out of what is still to be flushed.
    pub(crate) fn forget_backlog(&self, epoch: u32, lost: &[Recorded]) {
        let mut heads = self.heads();
        if heads.epoch() == epoch {
            for event in lost {
                heads.backlog_mut().lost(event);
            }
        }
    }

    /// Forgets the ids of events that are nowhere any more: the same id again is a new event.
    pub(crate) fn forget_given_up(&self, epoch: u32, ids: &[Ulid]) {
        let mut heads = self.heads();
        if heads.epoch() == epoch {
            heads.forget_given_up(ids);
        }
    }

    /// Whether a flush for want of room has just taken too long.
    pub(crate) fn is_flush_slow(&self) -> bool {
        let until = *self.flush_slow_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn note_slow_flush(&self, lasts: Duration) {
        *self.flush_slow_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + lasts);
    }

    /// Takes out of what is still to be flushed what is on flash, whoever wrote it.
    pub(crate) fn note_flushed(&self, epoch: u32, flushed: &Flushed) {
        let mut heads = self.heads();
        if heads.epoch() == epoch {
            heads.backlog_mut().flushed(flushed);
        }
    }

    /// Notes that a reservation cannot be resolved; true once that has lasted for so long that others must not wait.
    pub(crate) fn is_stalled(&self, first: Position) -> bool {
        let now_ms = self.manager.now().boottime_ms;
        let mut unresolvable = self.unresolvable.lock().unwrap_or_else(PoisonError::into_inner);
        unresolvable.retain(|known, _| known.epoch == first.epoch);
        let since_ms = *unresolvable.entry(first).or_insert(now_ms);
        now_ms.saturating_sub(since_ms) >= self.stall_after_ms()
    }

    /// Notes that the database of a scope cannot be read; true once that has lasted for so long that others must not wait.
    pub(crate) fn is_unreadable_for_long(&self, scope: &Scope) -> bool {
        self.has_failed_for_long(&self.unreadable, scope.clone())
    }

    /// Notes that the database of a scope can be read.
    pub(crate) fn note_readable(&self, scope: &Scope) {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
    }

    /// Notes that a scope cannot tell a consumer what was removed from it; true once that has lasted for so long that others
    /// must not wait, however often the consumer began anew. Another one may be behind what cannot be told.
    pub(crate) fn is_untold_for_long(&self, consumer: &str, scope: &Scope) -> bool {
        self.has_failed_for_long(&self.untold, (consumer.to_owned(), scope.clone()))
    }

    /// Notes that a scope has told a consumer what was removed from it.
    pub(crate) fn note_told(&self, consumer: &str, scope: &Scope) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.retain(|(name, failing), _| name != consumer || failing != scope);
    }

    fn has_failed_for_long<K: Eq + Hash>(&self, failing: &Mutex<HashMap<K, u64>>, key: K) -> bool {
        let now_ms = self.manager.now().boottime_ms;
        let mut failing = failing.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = *failing.entry(key).or_insert(now_ms);
        now_ms.saturating_sub(since_ms) >= self.stall_after_ms()
    }

    /// How long others wait for what fails, in milliseconds.
    pub(crate) fn stall_after_ms(&self) -> u64 {
        u64::try_from(self.options.stall_after.as_millis()).unwrap_or(u64::MAX)
    }

    /// Leaves a reservation to the resolver.
    pub(crate) fn abandon(&self, first: Position) {
        self.in_flight.land(first);
        let mut heads = self.heads();
        if heads.epoch() == first.epoch {
            heads.abandon(first.seq);
            self.resolver.notify_one();
        }
    }

    /// True when the scopes with unflushed events whose database takes them have enough of them, on average.
    pub(crate) fn is_page_full(&self) -> bool {
        let (scopes, raw_bytes) = self.heads().backlog().waiting();
        is_page_full(scopes, raw_bytes, self.options.flush_bytes, self.open_max)
    }

    /// Wakes `maintain` when they do.
    pub(crate) fn note_backlog(&self) {
        if self.is_page_full() {
            self.backlog.notify_one();
        }
    }

    /// Wakes subscribers.
    pub(crate) fn note_moved(&self) {
        self.moved.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// One for all who want to load a scope now.
    pub(crate) fn loading(&self, scope: &Scope) -> Arc<tokio::sync::Mutex<()>> {
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(loading.entry(scope.clone()).or_default())
    }

    pub(crate) fn note_loaded(&self, scope: &Scope) {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
    }

    fn promises(&self) -> MutexGuard<'_, PromisesByScope> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises that everything of a scope up to `position` is on flash within `delay`.
    pub(crate) fn promise(&self, scope: &Scope, position: Position, delay: Duration) {
        self.promises().add(scope, position, Instant::now(), delay);
        self.promised.notify_one();
    }

    /// Takes note of a flush: what it could not keep is tried again after a while.
    pub(crate) fn keep_promises(&self, epoch: u32, flushed: &Flushed, report: &FlushReport) {
        let not_before =
            Instant::now() + self.options.flush_interval.clamp(EventOptions::FLUSH_INTERVAL_MIN, PROMISE_RETRY);
        let postponed = |scope: &Scope| report.has_failed(scope).then_some(not_before);
        self.promises().kept(|scope| Position::new(epoch, flushed.of(scope)), postponed);
    }

    /// Puts off what is due: nothing could be flushed at all.
    pub(crate) fn postpone_promises(&self) {
        let not_before =
            Instant::now() + self.options.flush_interval.clamp(EventOptions::FLUSH_INTERVAL_MIN, PROMISE_RETRY);
        self.promises().kept(|_| Position::START, |_| Some(not_before));
    }

    /// Takes note of the scopes that took nothing.
    pub(crate) fn hold(&self, epoch: u32, report: &FlushReport) {
        let mut heads = self.heads();
        if heads.epoch() == epoch {
            heads.backlog_mut().hold(report.failed_scopes().cloned());
        }
    }

    /// Waits until nobody else of this store flushes or seals.
    pub(crate) async fn flush_turn(&self) -> FlushTurn {
        Arc::new(Arc::clone(&self.flushing).lock_owned().await)
    }

    /// When a flush is due because of what was promised.
    pub(crate) fn flush_due(&self) -> Option<Instant> {
        self.promises().next()
    }

    /// What the hot tier may let go although it is Low: the archive has it.
    pub(crate) fn archived(&self) -> Arc<HashMap<Scope, Range>> {
        Arc::clone(&self.archived.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note_archived(&self, scope: &Scope, range: Range) {
        let mut archived = self.archived.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut archived).insert(scope.clone(), range);
    }

    pub(crate) fn trained_through(&self, scope: &Scope) -> Position {
        let trained = self.trained.lock().unwrap_or_else(PoisonError::into_inner);
        trained.get(scope).copied().unwrap_or(Position::START)
    }

    pub(crate) fn note_trained(&self, scope: &Scope, through: Position) {
        self.trained.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.clone(), through);
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.resolver.notify_one();
        self.grown.notify_one();
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

/// The right to flush or seal. Each write on the way holds a part of it: a write runs to its end, also when whoever waited for
/// it has gone.
pub(crate) type FlushTurn = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// A number of an incarnation; in another one it is the first.
fn from_in(known: &Mutex<(u32, u64)>, epoch: u32) -> u64 {
    let (known, from) = *known.lock().unwrap_or_else(PoisonError::into_inner);
    if known == epoch { from } else { 1 }
}

/// Where the sessions of this run directory keep their files.
pub(crate) fn sessions_dir(manager: &DbManager) -> std::path::PathBuf {
    manager.run_dir().join("sessions")
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::task::{Context, Waker};

    use super::*;
    use crate::hot::session;
    use crate::place::Place;
    use crate::store::EventStore;

    #[tokio::test]
    async fn a_session_whose_renewal_nobody_waits_for_lives_on() {
        let place = Place::new().await;
        let store = EventStore::open(&place.manager, EventOptions::default()).await.unwrap();
        let (shared, dir) = (store.shared(), store.shared().sessions_dir());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(!session::is_alive(&dir, shared.owner()));
        {
            let mut renewing = std::pin::pin!(shared.renew_session());
            drop(renewing.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        }
        shared.renew_session().await.unwrap();
        assert!(session::is_alive(&dir, shared.owner()));
    }
}
