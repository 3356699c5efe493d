//! One query over all tiers.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nasnet_dbmanager::{Cause, Scope};

use crate::below::Below;
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::{self, Order, View};
use crate::hot::look::{Hot, fetch, is_stalled};
use crate::merge::{Range, alone_in_first, merge};
use crate::position::Position;
use crate::present::present;
use crate::query::Query;
use crate::reads::Depth;
use crate::shared::Shared;
use crate::store::EventStore;

const READ: Cause = Cause::new("event-read");

/// Events after which a place stops looking for more.
pub(crate) const PAGE_EVENTS: usize = 512;
/// Events of hot rows that are looked at for one page when few of them are wanted. Appends wait meanwhile.
const HOT_EVENTS_MAX: u64 = 4_096;

/// Which tiers a read looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tiers {
    All,
    /// For the archive, which has to know what is on flash: that is looked into for what the hot tier has as well.
    HotAndWarm,
}

impl EventStore {
    /// Reads events in the order of the store, each once, from wherever they are.
    ///
    /// The stream reads pages in short transactions and ends at the last position that was resolved when it started; a
    /// query of some scopes waits for the transactions of these only.
    /// A damaged block, segment or frame is one item with its error; the events around it follow. A database that cannot be
    /// read is one item too, [`Error::Unreadable`] with the scope and the range that is left out; those of other scopes and
    /// what the other tiers have of it follow. To go on later, ask
    /// again with [`Query::after`] the last position seen: cursors survive the move of events between tiers. While a page is
    /// being read up to four databases are kept open.
    ///
    /// # Cancel safety
    /// Safe: dropping the stream ends the read.
    pub fn read(&self, query: Query) -> impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static {
        let cursor = Cursor::new(Arc::clone(self.shared()), query, Tiers::All).counted().opened();
        cursor.into_stream()
    }

    /// Reads events as they are stored: sealed bodies stay sealed, and none is upcast. For whoever hands events on
    /// without looking into them.
    ///
    /// # Cancel safety
    /// Safe: dropping the stream ends the read.
    pub fn read_stored(&self, query: Query) -> impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static {
        let cursor = Cursor::new(Arc::clone(self.shared()), query, Tiers::All).counted();
        cursor.into_stream()
    }

    pub(crate) async fn view(&self) -> Result<View, Error> {
        self.shared().hot().await?.read(READ, |conn| Box::pin(log::view(conn))).await
    }
}

/// A read in progress.
pub(crate) struct Cursor {
    shared: Arc<Shared>,
    query: Arc<Query>,
    tiers: Tiers,
    /// Bodies are opened and brought to their current form.
    opened: bool,
    range: Range,
    /// The end of the range is fixed by the first page.
    started: bool,
    /// Events of the hot log to look at for the next page, as the last one went.
    hot_events: u64,
    buffer: VecDeque<Result<Recorded, Error>>,
    left: Option<u64>,
    /// Damage told already, since a later page may meet it again.
    told: HashSet<String>,
    /// Scopes whose warm tier the last page was looked for in.
    below: Option<Vec<Scope>>,
    /// How far down it has looked, when that is counted.
    depth: Option<Depth>,
    /// The last event met that the hot tier alone has although it is no Low one, where that is looked for.
    in_hot_alone: Option<Position>,
    /// Where databases could not be read: told once, and not asked again before the end of that range.
    unread: Vec<(Scope, Range)>,
}

/// A page of a read that goes forwards.
pub(crate) struct Page {
    pub(crate) items: VecDeque<Result<Recorded, Error>>,
    /// It is complete up to here.
    pub(crate) through: Position,
    /// Where the read ends.
    pub(crate) end: Position,
    /// The scopes that were asked for what the hot tier does not have; `None` when it has all of the page.
    pub(crate) scopes: Option<Vec<Scope>>,
}

impl Cursor {
    pub(crate) fn new(shared: Arc<Shared>, mut query: Query, tiers: Tiers) -> Self {
        let known = query.id.and_then(|id| shared.heads().known(id)).filter(|known| !known.pending);
        if let Some(known) = known {
            query.after = query.after.max(known.position().before());
            query.until = query.until.min(known.position());
        }
        // No event stands before the first of the first epoch, so nobody needs to be asked for one.
        let range = Range { low: query.after.max(Position::new(1, 0)), high: query.until };
        let left = query.limit;
        let (buffer, told) = (VecDeque::new(), HashSet::new());
        Self {
            shared,
            query: Arc::new(query),
            tiers,
            opened: false,
            range,
            started: false,
            hot_events: 0,
            buffer,
            left,
            told,
            below: None,
            in_hot_alone: None,
            unread: Vec::new(),
            depth: None,
        }
    }

    /// Does not ask the databases of these scopes in these ranges.
    pub(crate) fn without(mut self, unread: Vec<(Scope, Range)>) -> Self {
        self.unread = unread;
        self
    }

    /// Counts as a read by a caller.
    const fn counted(mut self) -> Self {
        self.depth = Some(Depth::Nowhere);
        self
    }

    /// Gives events as callers see them, not as they are stored.
    pub(crate) const fn opened(mut self) -> Self {
        self.opened = true;
        self
    }

    /// The next event or error, `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Recorded, Error>> {
        loop {
            if self.left == Some(0) {
                return None;
            }
            if let Some(item) = self.buffer.pop_front() {
                if let (Ok(_), Some(left)) = (&item, &mut self.left) {
                    *left -= 1;
                }
                return Some(item);
            }
            if self.range.is_empty() {
                return None;
            }
            if let Err(error) = self.page().await {
                // Where to go on is not known, so this read ends here.
                self.range.high = self.range.low;
                return Some(Err(error));
            }
        }
    }

    /// The events one by one. A page is handed over whole: waiting for each event anew would cost more than it does.
    fn into_stream(self) -> BoxStream<'static, Result<Recorded, Error>> {
        let pages = futures_util::stream::unfold(Box::new(self), |mut cursor| async move {
            let first = cursor.next().await?;
            Some((futures_util::stream::iter(cursor.rest_of_page(first)), cursor))
        });
        pages.flatten().boxed()
    }

    /// An item and those of its page that follow, as many as are asked for.
    fn rest_of_page(&mut self, first: Result<Recorded, Error>) -> VecDeque<Result<Recorded, Error>> {
        let mut items = std::mem::take(&mut self.buffer);
        if let Some(left) = &mut self.left {
            let wanted = items.iter().take_while(|item| {
                let is_asked = *left > 0;
                *left -= u64::from(is_asked && item.is_ok());
                is_asked
            });
            let wanted = wanted.count();
            items.truncate(wanted);
        }
        items.push_front(first);
        items
    }

    /// The last event met in a read for the archive that is not on flash although it should be.
    pub(crate) const fn in_hot_alone(&self) -> Option<Position> {
        self.in_hot_alone
    }

    /// True once the end of the read is fixed.
    pub(crate) const fn is_started(&self) -> bool {
        self.started
    }

    /// Reads the next page whole, `None` at the end. After an error the same page can be asked for again.
    pub(crate) async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if self.range.is_empty() {
            return Ok(None);
        }
        self.page().await?;
        let items = std::mem::take(&mut self.buffer);
        Ok(Some(Page { items, through: self.range.low, end: self.range.high, scopes: self.below.take() }))
    }

    /// Reads one page, from the hot log or from the tiers below it.
    ///
    /// The hot log is looked at first. It is complete from its floor on, so a page is either above the floor and its
    /// own, or below and that of the other tiers; an event that leaves the hot log meanwhile is in the next tier
    /// already, because a tier gives events up only after the next one has confirmed them.
    async fn page(&mut self) -> Result<(), Error> {
        let order = self.query.order;
        self.shared.reads.note(&mut self.depth, Depth::Hot);
        let hot = self.look_at_hot().await?;
        if !self.started {
            self.started = true;
            self.range = hot.range;
            if hot.unresolved {
                // Whoever holds the end back may be dead.
                self.shared.resolver.notify_one();
            }
        }
        // What stands in the place of an open transaction is nowhere else to be shown.
        let damaged = hot.slice.as_ref().is_some_and(|slice| slice.errors.iter().any(|error| !is_stalled(error)));
        let beyond_hot = hot.slice.is_none() || damaged || hot.has_holes || self.tiers == Tiers::HotAndWarm;
        let (mut part, is_hot) = (hot.part, hot.slice.is_some());
        let slices = if beyond_hot && !part.is_empty() {
            self.shared.reads.note(&mut self.depth, Depth::Warm);
            let mut scopes = self.wanted_scopes().await?;
            scopes.retain(|scope| !self.passes(scope, &mut part));
            let mut below = Below::new(&self.shared, &self.query, part, hot.slice);
            let cold = self.shared.cold.as_ref().filter(|_| self.tiers == Tiers::All);
            below.look_at_warm(&scopes, cold.is_some()).await;
            if let Some(cold) = cold {
                self.shared.reads.note(&mut self.depth, Depth::Cold);
                below.look_at_cold(cold).await;
            }
            let slices = below.into_slices();
            self.below = Some(scopes);
            slices
        } else {
            hot.slice.into_iter().collect()
        };
        if is_hot && self.tiers == Tiers::HotAndWarm {
            self.in_hot_alone = self.in_hot_alone.max(alone_in_first(part, &slices));
        }
        let (events, mut errors, left) = merge(part, order, slices);
        self.note_unread(&mut errors, is_hot, left);
        match order {
            Order::Forwards => self.range.low = left.low.max(self.range.low),
            Order::Backwards => self.range.high = left.high.min(self.range.high),
        }
        let told = &mut self.told;
        self.buffer.extend(errors.into_iter().filter(|error| told.insert(error.to_string())).map(Err));
        let mut events: Vec<Result<Recorded, Error>> = events.into_iter().map(Ok).collect();
        if self.opened {
            present(&self.shared, &mut events).await?;
        }
        self.buffer.extend(events);
        Ok(())
    }

    async fn look_at_hot(&mut self) -> Result<Hot, Error> {
        let left = self.left.map_or(PAGE_EVENTS, |left| usize::try_from(left).unwrap_or(PAGE_EVENTS).min(PAGE_EVENTS));
        // A few first: whoever wants the newest hundred should not wait for two thousand.
        let events = self.hot_events.max(left as u64);
        loop {
            let (query, range, started) = (Arc::clone(&self.query), self.range, self.started);
            let shared = Arc::clone(&self.shared);
            let hot = shared.hot().await?;
            let looked =
                hot.read_raw(READ, move |conn| fetch(conn, &shared, &query, range, started, (left, events))).await;
            match looked {
                Ok(fetched) => {
                    let found = fetched.into_hot(&self.query, left);
                    let few = found.slice.as_ref().is_some_and(|slice| slice.events.len() < left);
                    // Where little is wanted of what is there, more is looked at together.
                    self.hot_events = if few { (events * 2).min(HOT_EVENTS_MAX) } else { 0 };
                    return Ok(found);
                }
                // A hot tier that was wiped under the read is looked at again, as it is now.
                // One that is damaged is replaced too, but what it held is not told as if it had never been.
                Err(error) if hot.is_damaged() || self.shared.is_current(&hot) => return Err(error),
                Err(_) => {}
            }
        }
    }

    async fn wanted_scopes(&mut self) -> Result<Vec<Scope>, Error> {
        if let Some(scopes) = &self.query.scopes {
            return Ok(scopes.clone());
        }
        // Where the scope of a known id is known as well, nobody else needs to be asked, nor their archives.
        if let Some(scope) = self.query.id.and_then(|id| self.shared.heads().scope_of(id)) {
            Arc::make_mut(&mut self.query).scopes = Some(vec![scope.clone()]);
            return Ok(vec![scope]);
        }
        epoch::scopes(&self.shared.manager).await
    }

    /// True when the near end of a page is where the database of a scope is not asked. The page then ends with that range.
    fn passes(&self, scope: &Scope, part: &mut Range) -> bool {
        let order = self.query.order;
        let near = |range: &Range| match order {
            Order::Forwards => range.low <= part.low && part.low < range.high,
            Order::Backwards => range.low < part.high && part.high <= range.high,
        };
        let Some((_, range)) = self.unread.iter().find(|(unread, range)| unread == scope && near(range)) else {
            return false;
        };
        match order {
            Order::Forwards => part.high = part.high.min(range.high),
            Order::Backwards => part.low = part.low.max(range.low),
        }
        true
    }

    /// Takes note of the databases a page could not ask. Below the hot tier they are not asked again; a page of the hot tier
    /// that misses some events says so of its own range only, and leaves to the next what it did not come to.
    fn note_unread(&mut self, errors: &mut Vec<Error>, is_hot: bool, left: Range) {
        let order = self.query.order;
        errors.retain_mut(|error| {
            let stalled = is_stalled(error);
            let Error::Unreadable { scope, after, through, .. } = error else { return true };
            if stalled {
                return match order {
                    Order::Forwards => *after < left.low,
                    Order::Backwards => *through > left.high,
                };
            }
            match order {
                Order::Forwards if is_hot => *through = left.low,
                Order::Backwards if is_hot => *after = left.high,
                _ => {}
            }
            self.unread.push((scope.clone(), Range { low: *after, high: *through }));
            true
        });
    }
}
