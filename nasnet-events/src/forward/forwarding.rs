//! A queue being worked: what is sent next, and what becomes of what fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Now, Scope};

use crate::consumer::{Item, Subscription};
use crate::error::Error;
use crate::event::Recorded;
use crate::forward::pause::{OFFLINE_PAUSE, Pause};
use crate::forward::rows::{self, Changes};
use crate::forward::{Batch, BlockedStream, Delivery, Forwarder, Round, Sink};
use crate::name::StreamName;
use crate::position::Position;
use crate::read::{Cursor, Page, Tiers};

const FORWARD: Cause = Cause::new("event-forward");
/// Less than the minute after which a silent reader is replaced.
const DELIVER_MAX: Duration = Duration::from_secs(30);
/// Dead letters tried again in one round.
const REQUESTED_MAX: u32 = 64;

type StreamKey = (Scope, StreamName);

/// A forwarder at work.
#[derive(Debug)]
pub struct Forwarding<'f, S> {
    forwarder: &'f Forwarder<S>,
    subscription: Subscription,
    source: String,
    blocked: BTreeMap<StreamKey, BlockedStream>,
    /// Scopes that could not be read: nothing of them is sent past these positions until they can.
    held: BTreeMap<Scope, Held>,
    /// Files that could not be read when events were to be sent late, and since when.
    failing: BTreeMap<String, u64>,
    /// Handed out by the subscription and not dealt with, up to `through`.
    waiting: Vec<Recorded>,
    through: Position,
    pause: Pause,
    /// A round has begun. As long as it has not come to its end, what it had at hand may be neither sent nor in `waiting`, and
    /// nothing may be acknowledged.
    is_under_way: bool,
    changes: Changes,
    /// Nothing new is to be begun.
    stop: Arc<AtomicBool>,
}

/// A scope a forwarder has to leave for a while, so that the order of its streams is kept.
#[derive(Debug, Clone, Copy)]
struct Held {
    after: Position,
    /// It can be read again.
    is_back: bool,
}

/// How the events of one stream fared.
enum Fate {
    /// Delivered or given up, all of them.
    Done,
    /// The stream is blocked at its first event that is left.
    Blocked,
    /// Nothing can be sent now.
    Offline(String),
}

impl<'f, S: Sink> Forwarding<'f, S> {
    /// Claims the consumer and loads its queue.
    pub(crate) async fn open(forwarder: &'f Forwarder<S>) -> Result<Self, Error> {
        let subscription = forwarder.store.subscribe_stored(forwarder.consumer.clone()).await?;
        let blocked = forwarder.store.blocked_streams(&forwarder.consumer.name).await?;
        let blocked = blocked.into_iter().map(|one| ((one.scope.clone(), one.stream.clone()), one)).collect();
        let left_out = forwarder.store.left_out(&forwarder.consumer.name).await?;
        let held = left_out.into_iter().map(|left| (left.scope, Held { after: left.after, is_back: false })).collect();
        let source = format!("{}/{}", forwarder.store.shared().manager.fleet_id(), forwarder.consumer.name);
        let through = subscription.position();
        Ok(Self {
            forwarder,
            subscription,
            source,
            blocked,
            held,
            failing: BTreeMap::new(),
            waiting: Vec::new(),
            through,
            pause: Pause::default(),
            is_under_way: false,
            changes: Changes::default(),
            stop: Arc::default(),
        })
    }

    /// Sends what can be sent now, and returns when there is nothing left to do for the moment.
    ///
    /// # Errors
    /// [`Error::Closed`] once the store is; [`Error::ConsumerTaken`] when another process sends instead or the consumer
    /// was forgotten; [`Error::Storage`] and
    /// others when the store cannot be read or written: what was sent and not noted is sent again by the next forwarding.
    /// [`Error::RoundUnfinished`] after such a failure.
    ///
    /// # Cancel safety
    /// A dropped round cannot be continued: the next one answers [`Error::RoundUnfinished`]. Open another forwarding.
    pub async fn round(&mut self) -> Result<Round, Error> {
        let mut round = Round::default();
        if self.forwarder.store.shared().is_closing() {
            return Err(Error::Closed);
        }
        if self.is_under_way {
            return Err(Error::RoundUnfinished { consumer: self.forwarder.consumer.name.to_string() });
        }
        self.subscription.confirm().await?;
        if self.pause.is_offline(self.now().boottime_ms) {
            return Ok(round);
        }
        self.is_under_way = true;
        let sent = self.send_all(&mut round).await;
        // What was found out before a failure of the store is worth keeping.
        let written = self.write_changes().await;
        sent?;
        round.dropped += written?;
        if self.waiting.is_empty() {
            self.subscription.ack(self.through).await?;
        }
        self.is_under_way = false;
        Ok(round)
    }

    /// A round during which `shutdown` may complete: then what is being delivered is waited for and noted, nothing new is
    /// begun, and the answer says that it was the last.
    pub(crate) async fn round_until(
        &mut self,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> (Result<Round, Error>, bool) {
        let stop = Arc::clone(&self.stop);
        let mut round = pin!(self.round());
        tokio::select! {
            round = &mut round => (round, false),
            () = shutdown => {
                stop.store(true, Ordering::Release);
                (round.await, true)
            }
        }
    }

    async fn send_all(&mut self, round: &mut Round) -> Result<(), Error> {
        if !self.send_requested(round).await? || !self.send_due(round).await? {
            return Ok(());
        }
        while !self.pause.is_on(self.now().boottime_ms) && !self.is_stopping() {
            let is_at_work = !self.waiting.is_empty() || self.take_more(round).await?;
            if !self.send_returned(round).await? || !is_at_work {
                return Ok(());
            }
            self.send_waiting(round).await?;
            if self.waiting.is_empty() {
                // Before the position moves past them, so that nothing is forgotten.
                round.dropped += self.write_changes().await?;
                self.subscription.ack(self.through).await?;
            }
        }
        Ok(())
    }

    /// Takes the next items from the subscription; false when there are none now.
    async fn take_more(&mut self, round: &mut Round) -> Result<bool, Error> {
        let items = match self.subscription.take().await {
            Ok(items) => items,
            Err(error) if error.is_of_one_place() => {
                tracing::warn!(%error, "a place that cannot be read is waited for");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let is_any = !items.is_empty();
        for item in items {
            match item {
                Ok(Item::Event(event)) => {
                    self.through = self.through.max(event.position);
                    self.waiting.push(event);
                }
                Ok(item) => {
                    self.through = self.through.max(item.position());
                    match &item {
                        Item::LeftOut { left, .. } => {
                            let held = self.held.entry(left.scope.clone());
                            held.or_insert(Held { after: left.after, is_back: false }).is_back = false;
                        }
                        Item::Returned { left, removed, .. } => {
                            round.missed += removed.len() as u64;
                            if let Some(held) = self.held.get_mut(&left.scope) {
                                held.is_back = true;
                            }
                        }
                        _ => {}
                    }
                    round.missed += u64::from(matches!(item, Item::TailLost { .. } | Item::Truncated { .. }));
                }
                Err(error) if error.is_of_one_place() => {
                    tracing::error!(%error, "a place that cannot be read is not forwarded");
                    round.missed += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_any)
    }

    /// Sends the events at hand, those of blocked streams aside.
    async fn send_waiting(&mut self, round: &mut Round) -> Result<(), Error> {
        let (blocked, held) = (&self.blocked, &self.held);
        self.waiting.retain(|event| {
            !blocked.contains_key(&key_of(event))
                && held.get(&event.scope).is_none_or(|held| event.position <= held.after)
        });
        if self.waiting.is_empty() {
            return Ok(());
        }
        let whole = std::mem::take(&mut self.waiting);
        match self.deliver(&whole, false).await? {
            Delivery::Delivered => {
                round.delivered += whole.len() as u64;
                return Ok(());
            }
            Delivery::Offline { why } => {
                self.waiting = whole;
                self.go_offline(round, why);
                return Ok(());
            }
            Delivery::Retry { .. } | Delivery::Rejected { .. } => {}
        }
        let mut streams: BTreeMap<StreamKey, Vec<Recorded>> = BTreeMap::new();
        for event in whole {
            streams.entry(key_of(&event)).or_default().push(event);
        }
        let (mut all_blocked, count) = (true, streams.len());
        let mut left = streams.into_iter();
        while let Some((key, events)) = left.next() {
            match self.send_stream(&key, events.clone(), 0, round).await? {
                Fate::Done => all_blocked = false,
                Fate::Blocked => {}
                Fate::Offline(why) => {
                    // Some of them may have been delivered: they come again.
                    self.waiting = events;
                    self.waiting.extend(left.flat_map(|(_, events)| events));
                    self.waiting.sort_by_key(|event| event.position);
                    self.go_offline(round, why);
                    return Ok(());
                }
            }
        }
        if all_blocked && count > 1 {
            let now = self.now();
            let first = self.first_due(&now).unwrap_or(OFFLINE_PAUSE);
            self.pause.begin(now.boottime_ms, first);
        }
        Ok(())
    }

    /// Sends events of one stream in order. The first goes alone when it has failed before, so that one bad event does not
    /// take others with it.
    async fn send_stream(
        &mut self,
        key: &StreamKey,
        events: Vec<Recorded>,
        mut tries: u32,
        round: &mut Round,
    ) -> Result<Fate, Error> {
        let mut rest = events.as_slice();
        let mut alone = tries > 0;
        while let Some(first) = rest.first() {
            let (batch, behind) = rest.split_at(if alone { 1 } else { rest.len() });
            let (why, is_over) = match self.deliver(batch, false).await? {
                Delivery::Delivered => {
                    round.delivered += batch.len() as u64;
                    (rest, tries) = (behind, 0);
                    continue;
                }
                Delivery::Offline { why } => {
                    // Nothing in front of it comes again, and the try does not count.
                    if let Some(blocked) = self.blocked.get_mut(key) {
                        blocked.position = first.position;
                        blocked.tries = blocked.tries.min(tries.max(1));
                    }
                    return Ok(Fate::Offline(why));
                }
                Delivery::Rejected { .. } if batch.len() > 1 => {
                    alone = true;
                    continue;
                }
                Delivery::Retry { .. } if batch.len() > 1 && !alone => {
                    alone = true;
                    continue;
                }
                Delivery::Rejected { why } => (why, true),
                Delivery::Retry { why } => (why, self.forwarder.backoff.is_over(tries + 1)),
            };
            round.failed += 1;
            tries += 1;
            if is_over {
                self.changes.dead.push((first.clone(), tries, why));
                round.given_up += 1;
                (rest, tries) = (behind, 0);
                continue;
            }
            self.block(key, first.position, tries, why);
            return Ok(Fate::Blocked);
        }
        Ok(Fate::Done)
    }

    fn block(&mut self, key: &StreamKey, position: Position, tries: u32, why: String) {
        let now = self.now();
        let seed = position.to_key_clamped().cast_unsigned()
            ^ (u64::from(tries) << 56)
            ^ u64::from(crc32c::crc32c(self.source.as_bytes()));
        let blocked = BlockedStream {
            scope: key.0.clone(),
            stream: key.1.clone(),
            position,
            tries,
            why,
            boot: now.boot,
            boottime_ms: now.boottime_ms,
            pause: self.forwarder.backoff.pause(tries, seed),
        };
        self.changes.blocked.retain(|other| (&other.scope, &other.stream) != (&key.0, &key.1));
        self.changes.blocked.push(blocked.clone());
        self.blocked.insert(key.clone(), blocked);
    }

    /// Tries the blocked streams whose pause is over, with everything that has come behind the failed event. False when the
    /// sink is offline.
    async fn send_due(&mut self, round: &mut Round) -> Result<bool, Error> {
        let now = self.now();
        let mut due: Vec<BlockedStream> =
            self.awaited().filter(|blocked| blocked.due_in(&now).is_zero()).cloned().collect();
        due.sort_by_key(|blocked| blocked.position);
        for blocked in due {
            if self.is_stopping() {
                break;
            }
            let key = (blocked.scope.clone(), blocked.stream.clone());
            // What waits of the stream is sent with it: some of it may have been put aside already.
            let until = self.through;
            let filter = &self.forwarder.consumer.filter;
            let query =
                filter.query().only(&blocked.scope, &blocked.stream).after(blocked.position.before()).until(until);
            let shared = Arc::clone(self.forwarder.store.shared());
            let mut cursor = Cursor::new(shared, query, Tiers::All);
            let mut tries = blocked.tries;
            // After a power cut the consumer may stand before the event that failed: then it comes by itself.
            let (mut is_awaited, damaged) = (blocked.position <= until, round.missed);
            let fate = loop {
                let Some(page) = cursor.next_page().await? else {
                    if is_awaited && round.missed == damaged {
                        self.miss(&blocked, round);
                    }
                    break Fate::Done;
                };
                let Some(events) = self.whole_page(page, round)? else {
                    // The pause begins anew, without a try.
                    self.block(&key, blocked.position, blocked.tries, blocked.why.clone());
                    break Fate::Blocked;
                };
                // The tries are those of the failed event; should it be gone, the next one starts anew.
                if let (true, Some(first)) = (is_awaited, events.first()) {
                    is_awaited = false;
                    if first.position != blocked.position {
                        tries = 0;
                        if round.missed == damaged {
                            self.miss(&blocked, round);
                        }
                    }
                }
                let mut fate = Fate::Done;
                for part in events.chunks(self.forwarder.consumer.capacity.max(1)) {
                    fate = self.send_stream(&key, part.to_vec(), tries, round).await?;
                    tries = 0;
                    if !matches!(fate, Fate::Done) {
                        break;
                    }
                }
                if !matches!(fate, Fate::Done) {
                    break fate;
                }
            };
            match fate {
                Fate::Blocked => {}
                Fate::Done => {
                    self.blocked.remove(&key);
                    self.changes.blocked.retain(|other| (&other.scope, &other.stream) != (&key.0, &key.1));
                    self.waiting.retain(|event| key_of(event) != key);
                    self.changes.unblocked.push(key);
                    self.pause.end();
                }
                Fate::Offline(why) => {
                    self.go_offline(round, why);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Tells that the event a stream was blocked at is gone: it waited for longer than retention waits for the consumer. The
    /// consumer was shown it, so no marker comes.
    fn miss(&self, blocked: &BlockedStream, round: &mut Round) {
        let consumer = &self.forwarder.consumer.name;
        let BlockedStream { scope, stream, position, tries, .. } = blocked;
        tracing::error!(%consumer, %scope, %stream, %position, tries, "an event was removed before it could be forwarded");
        round.missed += 1;
    }

    /// Sends what was left out of the scopes that can be read again, with everything that has come behind it. False when the
    /// sink is offline.
    async fn send_returned(&mut self, round: &mut Round) -> Result<bool, Error> {
        let back: Vec<(Scope, Position)> = self
            .held
            .iter()
            .filter(|(_, held)| held.is_back)
            .map(|(scope, held)| (scope.clone(), held.after))
            .collect();
        'scopes: for (scope, after) in back {
            let through = self.through;
            let query =
                self.forwarder.consumer.filter.clone().within(scope.clone()).query().after(after).until(through);
            let mut cursor = Cursor::new(Arc::clone(self.forwarder.store.shared()), query, Tiers::All);
            while let Some(page) = cursor.next_page().await? {
                if self.is_stopping() {
                    return Ok(false);
                }
                let Some(events) = self.whole_page(page, round)? else { continue 'scopes };
                let mut streams: BTreeMap<StreamKey, Vec<Recorded>> = BTreeMap::new();
                for event in events {
                    streams.entry(key_of(&event)).or_default().push(event);
                }
                for (key, events) in streams {
                    // A blocked stream is sent from the event that failed, when that is due.
                    if self.blocked.contains_key(&key) {
                        continue;
                    }
                    if let Fate::Offline(why) = self.send_stream(&key, events, 0, round).await? {
                        self.go_offline(round, why);
                        return Ok(false);
                    }
                }
            }
            self.held.remove(&scope);
            self.waiting.retain(|event| event.scope != scope);
            self.changes.settled.push((scope, through));
        }
        Ok(true)
    }

    /// The events of a page, `None` when something could not be read that may be readable later: then none of it can be sent
    /// in order.
    fn whole_page(&mut self, page: Page, round: &mut Round) -> Result<Option<Vec<Recorded>>, Error> {
        let now_ms = self.now().boottime_ms;
        let patience = self.forwarder.store.shared().stall_after_ms();
        let (mut events, mut missed) = (Vec::with_capacity(page.items.len()), 0);
        for item in page.items {
            match item {
                Ok(event) => events.push(event),
                Err(error) if error.is_damage() => missed += 1,
                Err(error @ (Error::SegmentBody { .. } | Error::Io { .. })) => {
                    let since_ms = *self.failing.entry(error.to_string()).or_insert(now_ms);
                    if now_ms.saturating_sub(since_ms) < patience {
                        return Ok(None);
                    }
                    missed += 1;
                }
                Err(Error::Unreadable { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        if missed == 0 {
            self.failing.clear();
        }
        round.missed += missed;
        Ok(Some(events))
    }

    /// Tries dead letters somebody asked for, each alone. False when the sink is offline.
    async fn send_requested(&mut self, round: &mut Round) -> Result<bool, Error> {
        let name = self.forwarder.consumer.name.as_str().to_owned();
        let system = self.forwarder.store.shared().manager.system();
        let requested = system
            .read(FORWARD, move |conn| Box::pin(async move { rows::requested(conn, &name, REQUESTED_MAX).await }))
            .await?;
        for letter in requested {
            if self.is_stopping() {
                break;
            }
            match self.deliver(std::slice::from_ref(&letter.event), true).await? {
                Delivery::Delivered => {
                    round.delivered += 1;
                    self.changes.risen.push(letter.event.position);
                }
                Delivery::Retry { why } | Delivery::Rejected { why } => {
                    round.failed += 1;
                    self.changes.dead.push((letter.event, letter.tries.saturating_add(1), why));
                }
                Delivery::Offline { why } => {
                    self.go_offline(round, why);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn deliver(&mut self, events: &[Recorded], late: bool) -> Result<Delivery, Error> {
        // Whoever was silent for too long must not send beside the one that took over.
        self.subscription.confirm().await?;
        let mut ids = 0;
        for event in events {
            ids = crc32c::crc32c_append(ids, &event.id.to_bytes());
        }
        let (first, last) = (events.first(), events.last());
        let key = match (first, last) {
            (Some(first), Some(last)) => {
                format!("{}/{}-{}/{}/{ids:08x}", self.source, first.position, last.position, events.len())
            }
            _ => return Ok(Delivery::Delivered),
        };
        let batch = Batch { source: &self.source, key: &key, events, late };
        let delivered = tokio::time::timeout(DELIVER_MAX, self.forwarder.sink.deliver(batch)).await;
        Ok(delivered.unwrap_or_else(|_| Delivery::Retry { why: "no answer in 30 seconds".to_owned() }))
    }

    /// Writes what was found out since the last time.
    async fn write_changes(&mut self) -> Result<u64, Error> {
        if self.changes.is_empty() {
            return Ok(0);
        }
        // A sink may have taken its time: another may send by now. Whatever else fails keeps nothing from being noted.
        if let Err(taken @ Error::ConsumerTaken { .. }) = self.subscription.confirm().await {
            return Err(taken);
        }
        let (changes, consumer) = (std::mem::take(&mut self.changes), self.subscription.identity());
        let (max, now) = (self.forwarder.dead_letters_max, self.now());
        let system = self.forwarder.store.shared().manager.system();
        system
            .write(FORWARD, move |conn| Box::pin(async move { rows::write(conn, &consumer, &changes, max, now).await }))
            .await
    }

    /// Writes the checkpoint to flash and lets another process send.
    ///
    /// # Errors
    /// Those of [`Subscription::close`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn close(self) -> Result<(), Error> {
        self.subscription.close().await
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.forwarder.store.shared().is_closing()
    }

    fn now(&self) -> Now {
        self.forwarder.store.shared().manager.now()
    }

    fn go_offline(&mut self, round: &mut Round, why: String) {
        round.offline = Some(why);
        self.pause.go_offline(self.now().boottime_ms);
    }

    /// Blocked streams that are tried when they are due. Those of a scope that is held come after what was left out of it.
    fn awaited(&self) -> impl Iterator<Item = &BlockedStream> {
        self.blocked.values().filter(|blocked| !self.held.contains_key(&blocked.scope))
    }

    fn first_due(&self, now: &Now) -> Option<Duration> {
        self.awaited().map(|blocked| blocked.due_in(now)).min()
    }

    /// Waits until there may be something to do.
    pub(crate) async fn more(&mut self, longest: Duration) {
        self.subscription.more(longest).await;
    }

    /// How long there is nothing to do unless events arrive.
    pub(crate) fn idle_for(&self) -> Duration {
        let now = self.now();
        self.pause.idle_for(now.boottime_ms, self.first_due(&now))
    }
}

fn key_of(event: &Recorded) -> StreamKey {
    (event.scope.clone(), event.stream.clone())
}
