//! A consumer at work: catches up from the store, then goes on live, without a gap or a repetition.
//!
//! Live is not another source: a commit says that there is something new, and it is read from where everything is read.
//! Positions decide what comes next, so nothing depends on a message that could be lost, and a slow consumer costs no memory.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use nasnet_dbmanager::{BoxFuture, Scope};
use tokio::sync::watch;

use crate::consumer::away::{Away, Back};
use crate::consumer::marker::{Placed, arrange};
use crate::consumer::progress::Progress;
use crate::consumer::rows::Identity;
use crate::consumer::{Consumer, Item, LeftOut};
use crate::epoch::{self, TailLost};
use crate::error::Error;
use crate::hot::look::is_stalled;
use crate::merge::Range;
use crate::position::Position;
use crate::read::{Cursor, Page, Tiers};
use crate::shared::Shared;
use crate::store::EventStore;
use crate::truncation::{self, Removals, Truncated};

/// How often the file of the hot tier is looked at for what other processes wrote. Commits of this process wake at once.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is read although the file looks unchanged.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How long a failed read waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The stream of a consumer's items. It ends when the store is shut down.
///
/// An error is an item of its own. A damaged place ([`Error::Corrupt`], [`Error::DictionaryMissing`]) and an event that cannot
/// be shown ([`Error::KeyMissing`], [`Error::Upcast`]) are told and passed. A file that cannot be read ([`Error::SegmentBody`],
/// [`Error::Io`]) is tried again from the same position, after a second, and passed once it has failed for
/// [`crate::EventOptions::stall_after`]. A database that cannot be read, or that cannot tell what was removed from it
/// ([`Error::Unreadable`]), is tried again for as long, then a consumer of several scopes goes on with the others
/// ([`Item::LeftOut`]) and one of that scope alone waits on.
/// Whatever else fails is tried again as long as it is asked for.
///
/// Dropping it keeps what was acknowledged and lets others read as this consumer.
pub struct Subscription {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    /// `None` while `pending` has it.
    reading: Option<Box<Reading>>,
    /// Locked by nobody: it makes the subscription shareable, which a future alone is not.
    pending: Mutex<Option<Next>>,
}

type Next = BoxFuture<'static, (Box<Reading>, Option<Result<Item, Error>>)>;

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = self.progress.mark().position;
        f.debug_struct("Subscription").field("consumer", &self.progress.name).field("position", &position).finish()
    }
}

impl EventStore {
    /// Begins to read as a consumer: behind its checkpoint, or where its definition says when it has none. One
    /// subscription at a time reads as a consumer, in all processes; that of a dead process is replaced at once, that of a
    /// living one which shows no sign of life after a minute.
    ///
    /// Each event that passes the filter is delivered at least once, in order; after a crash those behind the last
    /// checkpoint come again. With acknowledgements surviving in tmpfs, only a power cut goes back further than the last
    /// [`Subscription::ack`]: by at most 15 minutes or about 1,000 events.
    ///
    /// # Errors
    /// [`Error::ConsumerBusy`] when another subscription reads as it, [`Error::ConsumerTaken`] when it was forgotten
    /// meanwhile, [`Error::Invalid`] for a capacity of 0, [`Error::Storage`] when system.db or runtime.db cannot be written,
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Safe: at most the consumer stays taken for a minute.
    pub async fn subscribe(&self, consumer: Consumer) -> Result<Subscription, Error> {
        self.subscribe_as(consumer, false).await
    }

    /// As [`EventStore::subscribe`], with events as they are stored: sealed facts stay sealed.
    pub(crate) async fn subscribe_stored(&self, consumer: Consumer) -> Result<Subscription, Error> {
        self.subscribe_as(consumer, true).await
    }

    async fn subscribe_as(&self, consumer: Consumer, as_stored: bool) -> Result<Subscription, Error> {
        let shared = Arc::clone(self.shared());
        if shared.is_closing() {
            return Err(Error::Closed);
        }
        if consumer.capacity == 0 {
            return Err(Error::Invalid { what: "capacity", value: "0".to_owned(), why: "nothing could be delivered" });
        }
        let name = consumer.name.as_str().to_owned();
        let _turn = shared.consumers.turn(&name).await;
        let (progress, mark) = self.begin_to_read(&consumer).await?;
        let away = Away::load(&shared, progress.identity(), mark.position).await?;
        shared.consumers.add(&progress);
        let reading = Reading {
            wake: shared.moved.subscribe(),
            hot_wal: shared.manager.hot().path().with_extension("db-wal"),
            shared: Arc::clone(&shared),
            progress: Arc::clone(&progress),
            consumer,
            as_stored,
            read_to: mark.position,
            told: mark.told,
            cursor: None,
            ready: VecDeque::new(),
            gathered: Vec::new(),
            first_ms: 0,
            is_live: false,
            is_fresh: false,
            failed: false,
            failing: BTreeMap::new(),
            away,
            losses: (0, Vec::new()),
            removed: Vec::new(),
        };
        Ok(Subscription { shared, progress, reading: Some(Box::new(reading)), pending: Mutex::new(None) })
    }
}

impl Subscription {
    /// Acknowledges that everything up to a position is handled: it is not delivered again. Written to tmpfs before this
    /// returns, so it survives the process; to flash, with all other consumers that moved, when 15 minutes or 1,000 events
    /// have passed and at shutdown. While the flash budget is used up it stays in tmpfs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a position that was not delivered, [`Error::ConsumerTaken`] when this subscription was silent
    /// for too long and another reads as the consumer now, or the consumer was forgotten, [`Error::Storage`] when a database
    /// cannot be written.
    ///
    /// # Cancel safety
    /// Safe: it may have been written or not.
    pub async fn ack(&self, position: Position) -> Result<(), Error> {
        self.progress.ack(&self.shared, position).await
    }

    /// Everything up to here is handled.
    #[must_use]
    pub fn position(&self) -> Position {
        self.progress.mark().position
    }

    /// Confirms that this subscription still reads as its consumer. Whoever works on one item for longer than half a minute
    /// calls this meanwhile, or another process may take over.
    ///
    /// # Errors
    /// [`Error::ConsumerTaken`] when another does or the consumer was forgotten, [`Error::Storage`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn confirm(&self) -> Result<(), Error> {
        self.progress.write(&self.shared).await
    }

    /// The consumer it reads as.
    pub(crate) fn identity(&self) -> Identity {
        self.progress.identity()
    }

    /// What may be handed out now, without waiting: at most about a batch, nothing when there is nothing or its delivery
    /// window is open. An error among the items is of a place that was passed for good.
    ///
    /// # Errors
    /// What keeps it from going on: nothing was passed, and the next call tries again.
    pub(crate) async fn take(&mut self) -> Result<Vec<Result<Item, Error>>, Error> {
        match &mut self.reading {
            Some(reading) => reading.take().await,
            // A stream that is being polled hands out its items itself.
            None => Ok(Vec::new()),
        }
    }

    /// Waits until there may be more to take, at most as long as said.
    pub(crate) async fn more(&mut self, longest: Duration) {
        if let Some(reading) = &mut self.reading {
            let stamp = reading.stamp();
            drop(tokio::time::timeout(longest, reading.wait(stamp)).await);
        }
    }

    /// Writes the position to flash now, with those of all consumers of this store, and lets others read as this consumer.
    ///
    /// # Errors
    /// [`Error::Storage`] when a database cannot be written; what was acknowledged is in tmpfs all the same.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn close(self) -> Result<(), Error> {
        let saved = self.shared.consumers.save(&self.shared, true).await;
        self.progress.release(&self.shared).await?;
        saved
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.progress.close();
        // Best effort: without a runtime the claim ends with the process or with the minute.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (shared, progress) = (Arc::clone(&self.shared), Arc::clone(&self.progress));
            runtime.spawn(async move { drop(progress.release(&shared).await) });
        }
    }
}

impl Stream for Subscription {
    type Item = Result<Item, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let pending = this.pending.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut reading) = this.reading.take() {
            *pending = Some(Box::pin(async move {
                let next = reading.next().await;
                (reading, next)
            }));
        }
        let Some(next) = pending else { return Poll::Ready(None) };
        match next.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((reading, next)) => {
                *pending = None;
                this.reading = Some(reading);
                Poll::Ready(next)
            }
        }
    }
}

/// What a subscription reads, and what it has read.
struct Reading {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    consumer: Consumer,
    as_stored: bool,
    wake: watch::Receiver<u64>,
    hot_wal: PathBuf,
    /// Everything up to here is in `ready` or `gathered`, or was handed out, or is not wanted.
    read_to: Position,
    told: Position,
    cursor: Option<Cursor>,
    /// What may be handed out.
    ready: VecDeque<Result<Placed, Error>>,
    /// What waits for its delivery window, and since when.
    gathered: Vec<Result<Placed, Error>>,
    first_ms: u64,
    is_live: bool,
    /// Something was read, and the file's times cannot tell yet whether there is more.
    is_fresh: bool,
    failed: bool,
    /// What keeps this page from being passed, and since when.
    failing: BTreeMap<String, u64>,
    away: Away,
    /// Losses known when the hot tier was of this epoch.
    losses: (u32, Vec<TailLost>),
    /// What was removed from the tiers below the hot one, when they were read last.
    removed: Vec<Truncated>,
}

impl Reading {
    /// The next item. Dropping the future loses nothing: state changes only between two waits.
    async fn next(&mut self) -> Option<Result<Item, Error>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next.map(|placed| self.hand_out(placed)));
            }
            if self.shared.is_closing() {
                return None;
            }
            if std::mem::take(&mut self.failed) {
                tokio::time::sleep(RETRY_AFTER).await;
            }
            if let Err(error) = self.step().await {
                self.failed = true;
                self.cursor = None;
                return Some(Err(error));
            }
        }
    }

    /// The next items without waiting for any.
    async fn take(&mut self) -> Result<Vec<Result<Item, Error>>, Error> {
        self.wake.mark_unchanged();
        self.look_for_returned().await?;
        let mut at_end = false;
        while self.ready.is_empty() && !at_end && self.gathered.len() < self.consumer.capacity {
            match self.read().await {
                Ok(end) => at_end = end,
                Err(error) => {
                    self.cursor = None;
                    return Err(error);
                }
            }
        }
        if !self.is_live || self.gathered.len() >= self.consumer.capacity || self.window_left().is_zero() {
            self.ready.extend(self.gathered.drain(..));
        }
        self.is_live |= at_end;
        let count = self.ready.len().min(self.consumer.capacity);
        let taken = self.ready.drain(..count).collect::<Vec<_>>();
        Ok(taken.into_iter().map(|next| next.map(|placed| self.hand_out(placed))).collect())
    }

    fn hand_out(&self, placed: Placed) -> Item {
        self.progress.hand_out(&placed);
        placed.item
    }

    /// Reads a page, or waits until there is something to read.
    async fn step(&mut self) -> Result<(), Error> {
        // Before the read, so that a commit during it is not missed.
        self.wake.mark_unchanged();
        let stamp = self.stamp();
        self.look_for_returned().await?;
        let at_end = if self.gathered.len() < self.consumer.capacity { self.read().await? } else { false };
        if !self.is_live || self.gathered.len() >= self.consumer.capacity || self.window_left().is_zero() {
            self.ready.extend(self.gathered.drain(..));
        }
        if !at_end || !self.ready.is_empty() {
            if at_end && !self.is_live {
                self.catch_up();
            }
            return Ok(());
        }
        if !self.is_live {
            self.catch_up();
            return Ok(());
        }
        self.progress.keep(&self.shared).await?;
        self.wait(stamp).await;
        Ok(())
    }

    fn catch_up(&mut self) {
        self.is_live = true;
        let item = Item::CaughtUp { position: self.read_to };
        self.ready.push_back(Ok(Placed { item, tells: None }));
    }

    /// Reads one page; true when it reaches the last position readers may see.
    async fn read(&mut self) -> Result<bool, Error> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => {
                let query = self.consumer.filter.query().after(self.read_to);
                let cursor = Cursor::new(Arc::clone(&self.shared), query, Tiers::All).without(self.away.skipped());
                if self.as_stored { cursor } else { cursor.opened() }
            }
        };
        let is_first = !cursor.is_started();
        let Some(page) = cursor.next_page().await? else { return Ok(true) };
        if is_first && self.is_live {
            self.note_lag(&page);
        }
        let (at_end, through) = (page.through >= page.end, page.through.max(self.read_to));
        self.absorb(page).await?;
        self.read_to = through;
        if !at_end {
            self.cursor = Some(cursor);
        }
        // Whoever reads past much that is not wanted is alive all the time, and need not begin again.
        if self.ready.is_empty() && self.gathered.is_empty() {
            self.progress.look(self.read_to);
        }
        self.progress.keep(&self.shared).await?;
        Ok(at_end)
    }

    /// Tells a consumer that was live how far it is behind.
    fn note_lag(&mut self, page: &Page) {
        let capacity = self.consumer.capacity as u64;
        let behind =
            page.end.seq.saturating_sub(if page.end.epoch == self.read_to.epoch { self.read_to.seq } else { 0 });
        if page.end > self.read_to && behind > capacity {
            self.is_live = false;
            let item = Item::Lagged { after: self.read_to, through: page.end };
            self.gathered.push(Ok(Placed { item, tells: None }));
        }
    }

    /// Takes a page in, with the markers that belong to it. They are looked up after the page was read: what was removed
    /// before that is told, and what is removed later was read.
    async fn absorb(&mut self, page: Page) -> Result<(), Error> {
        let mut events = Vec::with_capacity(page.items.len());
        let (mut damaged, mut left_out) = (Vec::new(), Vec::new());
        for item in page.items {
            match item {
                Ok(event) => events.push(event),
                Err(error) if error.is_damage() => damaged.push(error),
                Err(error @ (Error::SegmentBody { .. } | Error::Io { .. }))
                    if self.has_failed_for_long(error.to_string()) =>
                {
                    damaged.push(error);
                }
                Err(error @ Error::Unreadable { .. }) if self.may_leave_out(&error) => left_out.extend(left_of(error)),
                // It may be there the next time: nothing of this page has been handed out.
                Err(error) => return Err(error),
            }
        }
        let through = page.through.max(self.read_to);
        // What may fail comes first: a range is left out durably and in memory only where the item that tells of it follows
        // for certain. Afterwards its scope is passed in silence.
        self.look_for_losses(page.end.epoch).await?;
        let removed = self.removed(page.scopes, (through, page.end), &mut left_out).await?;
        if !left_out.is_empty() {
            self.away.leave_out(&self.shared, self.progress.identity(), &left_out).await?;
        }
        self.failing.clear();
        events.retain(|event| !self.away.skips(event));
        self.is_fresh |= through > self.read_to;
        let range = (self.read_to, through);
        let arranged = arrange(range, self.told, &self.consumer.filter, events, &self.losses.1, &removed, &left_out);
        if self.gathered.is_empty() && !arranged.is_empty() {
            self.first_ms = self.first_seen_ms(&arranged);
        }
        self.gathered.extend(arranged.into_iter().map(Ok));
        self.told = self.told.max(through);
        self.away.pass(through);
        self.gathered.extend(damaged.into_iter().map(Err));
        Ok(())
    }

    /// True once something of this page could not be read for so long that the rest must not wait.
    fn has_failed_for_long(&mut self, what: String) -> bool {
        let now_ms = self.shared.manager.now().boottime_ms;
        let since_ms = *self.failing.entry(what).or_insert(now_ms);
        now_ms.saturating_sub(since_ms) >= self.shared.stall_after_ms()
    }

    /// True when there are other scopes to go on with, and they have waited.
    fn may_leave_out(&self, error: &Error) -> bool {
        let Error::Unreadable { scope, .. } = error else { return false };
        !self.consumer.filter.is_of_one_scope() && (is_stalled(error) || self.shared.is_unreadable_for_long(scope))
    }

    /// Tells of scopes that were left out and can be read again.
    async fn look_for_returned(&mut self) -> Result<(), Error> {
        for Back { left, removed, retired } in self.away.look(&self.shared, &self.progress.name).await? {
            self.shared.note_told(&self.progress.name, &left.scope);
            let item = Item::Returned { left, removed, retired, position: self.read_to };
            self.gathered.push(Ok(Placed { item, tells: None }));
        }
        Ok(())
    }

    /// What was removed above `read_to`. The databases below the hot tier are asked only when the page comes from them. The
    /// page waits for one that cannot be asked, or is passed without it.
    async fn removed(
        &mut self,
        scopes: Option<Vec<Scope>>,
        page: (Position, Position),
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Vec<Truncated>, Error> {
        let asked = scopes.as_deref().unwrap_or_default();
        let Removals { found: mut removed, failed } = truncation::since_of(&self.shared, asked, self.read_to).await?;
        for scope in asked.iter().filter(|asked| !failed.iter().any(|(scope, _)| scope == *asked)) {
            self.shared.note_told(&self.progress.name, scope);
        }
        for (scope, error) in failed {
            left_out.extend(self.pass_untold(scope, error, page, left_out)?);
        }
        if scopes.is_some() {
            self.removed.clone_from(&removed);
            return Ok(removed);
        }
        let newer = |known: &Truncated, new: &Truncated| {
            (known.after, &known.by, &known.scope) == (new.after, &new.by, &new.scope)
        };
        let known = self.removed.iter().filter(|known| !removed.iter().any(|new| newer(known, new)));
        let known: Vec<Truncated> = known.cloned().collect();
        removed.extend(known);
        Ok(removed)
    }

    /// Decides what becomes of a scope that cannot tell what was removed from it: behind this page nobody asks for that any
    /// more. Its events count as unread with the rest, unless they do already.
    fn pass_untold(
        &self,
        scope: Scope,
        error: Error,
        (through, end): (Position, Position),
        left_out: &[LeftOut],
    ) -> Result<Option<LeftOut>, Error> {
        let page = Range { low: self.read_to.max(Position::new(1, 0)), high: through };
        let is_out = |left: &LeftOut| left.scope == scope && left.after <= page.low && page.high <= left.through;
        if left_out.iter().any(is_out) || self.away.covers(&scope, page) {
            return Ok(None);
        }
        let is_long = self.shared.is_untold_for_long(&self.progress.name, &scope);
        // That of the system tells what became of other scopes, too.
        let must_wait = scope == Scope::System || self.consumer.filter.is_of_one_scope() || !is_long;
        // To the end of what is being read, so that it is told once and not of every page.
        let error = Error::Unreadable { scope, after: page.low, through: end, source: Box::new(error) };
        if must_wait { Err(error) } else { Ok(left_of(error)) }
    }

    /// Losses are recorded before the epoch behind them begins.
    async fn look_for_losses(&mut self, epoch: u32) -> Result<(), Error> {
        if self.losses.0 != epoch {
            self.losses = (epoch, epoch::recorded_losses(&self.shared.manager).await?);
        }
        Ok(())
    }

    /// Since when the first event of a batch has waited.
    fn first_seen_ms(&self, batch: &[Placed]) -> u64 {
        let now = self.shared.manager.now();
        let first = batch.iter().find_map(|placed| placed.item.event());
        let appended = first.filter(|event| event.boot == now.boot).map(|event| event.boottime_ms);
        appended.unwrap_or(now.boottime_ms).min(now.boottime_ms)
    }

    /// Time until what is gathered is delivered; none left when it is due, the whole window when nothing is gathered.
    fn window_left(&self) -> Duration {
        let window = self.consumer.batch;
        if self.gathered.is_empty() {
            return window;
        }
        let passed = self.shared.manager.now().boottime_ms.saturating_sub(self.first_ms);
        window.saturating_sub(Duration::from_millis(passed))
    }

    /// Waits for a commit of this process, a change of the file by another, or the end of the delivery window.
    async fn wait(&mut self, stamp: Stamp) {
        let mut waited = Duration::ZERO;
        loop {
            let left = if self.gathered.is_empty() { LOOK_EVERY } else { self.window_left() };
            if left.is_zero() || self.shared.is_closing() {
                return;
            }
            let pause = left.min(LOOK_EVERY);
            tokio::select! {
                // Who gathers for a while looks at what there is now and then, not at every commit.
                _ = self.wake.changed(), if self.consumer.batch.is_zero() => return,
                () = tokio::time::sleep(pause) => {}
            }
            waited += pause;
            if std::mem::take(&mut self.is_fresh) || self.stamp() != stamp || waited >= READ_EVERY {
                return;
            }
        }
    }

    /// What the file system says of the hot tier's log. Its times have a grain, so after something was read it is read once
    /// more whatever they say.
    fn stamp(&self) -> Stamp {
        let found = std::fs::metadata(&self.hot_wal).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    }
}

fn left_of(error: Error) -> Option<LeftOut> {
    let Error::Unreadable { scope, after, through, source } = error else { return None };
    Some(LeftOut { scope, after, through, why: source.to_string() })
}

type Stamp = Option<(u64, u64, i64, i64)>;
