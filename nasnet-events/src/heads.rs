//! What the store knows in memory: the next position, the version of every stream, the ids of the idempotency window and
//! the reservations that are not resolved. Pure: no I/O and no clock. Rebuilt at open.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;

use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt as _};
use nasnet_dbmanager::Scope;
use ulid::Ulid;

use crate::backlog::Backlog;
use crate::event::Recorded;
use crate::hot::index::StreamIndex;
use crate::hot::log::Order;
use crate::hot::summary::{Summaries, Wanted};
use crate::ids::Ids;
use crate::loaded::{Loaded, RowsKnown};
use crate::name::StreamName;
use crate::plan::Changes;
use crate::position::Position;
use crate::sealing;
use crate::warm::rows::RowHead;

/// How many ids there are before those beyond the window are looked for.
const IDS_SWEPT_MIN: usize = 256;

/// Number of a stream in [`Heads`].
pub(crate) type Slot = u32;

/// Where a known event id stands. There is one for each event of the idempotency window, so it is laid out to take no more
/// than it must.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) epoch: u32,
    pub(crate) seq: u64,
    pub(crate) version: u64,
    pub(crate) slot: Slot,
    /// Of type and body, where they were at hand: the same id with another content is no repetition.
    pub(crate) content: Option<NonZeroU32>,
    /// In the database of its scope, not only in hot.db.
    pub(crate) durable: bool,
    /// In a reservation that is not resolved.
    pub(crate) pending: bool,
    /// A row of its scope's database no more, but part of a segment.
    pub(crate) sealed: bool,
}

impl Known {
    /// Of an event in the hot tier alone.
    pub(crate) const fn new(position: Position, version: u64, slot: Slot) -> Self {
        let Position { epoch, seq } = position;
        Self { epoch, seq, version, slot, content: None, durable: false, pending: false, sealed: false }
    }

    pub(crate) const fn position(&self) -> Position {
        Position::new(self.epoch, self.seq)
    }
}

/// A hash of what an event says, the same as long as the process lives.
pub(crate) fn content_of(event: &Recorded) -> Option<NonZeroU32> {
    let body = event.body.get();
    let body = if event.body.is_sealed() { sealing::repeatable(body) } else { body };
    let hash = FixedState::default().hash_one((event.kind.as_str(), body));
    NonZeroU32::new(u32::try_from(hash >> 32).unwrap_or(0) | 1)
}

#[derive(Debug, Default)]
struct StreamState {
    /// Highest version whose event is visible or will be without any doubt.
    committed: u64,
    /// Highest version in each unresolved reservation, by its first sequence number.
    pending: Vec<(u64, u64)>,
}

impl StreamState {
    fn top(&self) -> u64 {
        self.pending.iter().map(|(_, top)| *top).fold(self.committed, u64::max)
    }
}

/// A run of positions given to a transaction that has not ended yet.
#[derive(Debug, Clone)]
pub(crate) struct Reservation {
    pub(crate) first_seq: u64,
    pub(crate) count: u64,
    pub(crate) scope: Scope,
    /// Session that resolves it.
    pub(crate) owner: [u8; 16],
    /// Its receipt was dropped: nobody but the resolver will end it.
    pub(crate) abandoned: bool,
    pub(crate) tops: Vec<(Slot, u64)>,
    pub(crate) ids: Vec<Ulid>,
}

impl Reservation {
    /// Sequence number of its last event.
    pub(crate) const fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }
}

/// What a reserved row of the hot log says about its reservation.
#[derive(Debug, Clone)]
pub(crate) struct ReservedBy {
    pub(crate) first_seq: u64,
    pub(crate) scope: Scope,
    pub(crate) owner: [u8; 16],
}

/// How a row of the hot log ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The transaction committed.
    Published,
    /// It did not, and never will.
    Void,
}

#[derive(Debug)]
pub(crate) struct Heads {
    epoch: u32,
    /// Uid of the hot.db these are the heads of.
    file: [u8; 16],
    /// The log has been read since these heads were made.
    caught_up: bool,
    next_seq: u64,
    index: HashMap<Scope, HashMap<StreamName, Slot>>,
    streams: Vec<StreamState>,
    loaded: Loaded,
    ids: Ids,
    /// How many of them were left when those beyond the window were last taken out.
    ids_kept: usize,
    reservations: BTreeMap<u64, Reservation>,
    backlog: Backlog,
    by_stream: StreamIndex,
    summaries: Summaries,
}

impl Heads {
    #[cfg(test)]
    pub(crate) fn new(epoch: u32) -> Self {
        Self::of_file(epoch, [0; 16])
    }

    pub(crate) fn of_file(epoch: u32, file: [u8; 16]) -> Self {
        Self {
            epoch,
            file,
            caught_up: false,
            next_seq: 1,
            index: HashMap::new(),
            streams: Vec::new(),
            loaded: Loaded::default(),
            ids: Ids::default(),
            ids_kept: 0,
            reservations: BTreeMap::new(),
            backlog: Backlog::new(),
            by_stream: StreamIndex::default(),
            summaries: Summaries::default(),
        }
    }

    pub(crate) const fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) const fn file(&self) -> [u8; 16] {
        self.file
    }

    pub(crate) const fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    pub(crate) const fn set_caught_up(&mut self, caught_up: bool) {
        self.caught_up = caught_up;
    }

    pub(crate) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(crate) fn slot(&mut self, scope: &Scope, stream: &StreamName) -> Slot {
        if let Some(slot) = self.index.get(scope).and_then(|streams| streams.get(stream)) {
            return *slot;
        }
        let slot = Slot::try_from(self.streams.len()).unwrap_or(Slot::MAX);
        self.streams.push(StreamState::default());
        self.index.entry(scope.clone()).or_default().insert(stream.clone(), slot);
        slot
    }

    fn state(&mut self, slot: Slot) -> Option<&mut StreamState> {
        self.streams.get_mut(usize::try_from(slot).unwrap_or(usize::MAX))
    }

    /// Highest version for certain, and highest version with what open transactions may add.
    pub(crate) fn versions(&self, slot: Slot) -> (u64, u64) {
        let state = self.streams.get(usize::try_from(slot).unwrap_or(usize::MAX));
        state.map_or((0, 0), |state| (state.committed, state.top()))
    }

    /// Whether the warm tier of a scope has been taken into account.
    pub(crate) fn is_loaded(&self, scope: &Scope) -> bool {
        self.loaded.contains(scope)
    }

    /// Up to where the durable rows of a scope are taken into account.
    pub(crate) fn rows_known(&self, scope: &Scope) -> RowsKnown {
        self.loaded.rows(scope)
    }

    pub(crate) const fn has_grown(&self) -> bool {
        self.loaded.has_grown()
    }

    pub(crate) fn take_grown(&mut self) -> Vec<Scope> {
        self.loaded.take_grown()
    }

    /// Takes note of a version found in the warm tier.
    pub(crate) fn note_version(&mut self, scope: &Scope, stream: &StreamName, version: u64) {
        let slot = self.slot(scope, stream);
        if let Some(state) = self.state(slot) {
            state.committed = state.committed.max(version);
        }
    }

    /// Takes note that a scope is loaded, and of its rows up to where they are taken into account.
    pub(crate) fn set_loaded(&mut self, scope: &Scope, known: RowsKnown) {
        self.loaded.insert(scope, known);
    }

    /// Takes note of a later look at the rows of a scope.
    pub(crate) fn set_looked(&mut self, scope: &Scope, known: RowsKnown) {
        self.loaded.update(scope, known);
    }

    /// Takes all committed rows of a scope behind those that are known into account, in the order of their positions, and
    /// tells up to where there is none left. A row of an unresolved reservation is left to its resolution; and whatever is
    /// appended from here on comes behind no row that is ahead of this incarnation.
    pub(crate) fn note_rows(&mut self, scope: &Scope, mut known: RowsKnown, rows: Vec<RowHead>) -> RowsKnown {
        let end = Position::new(self.epoch, self.next_seq);
        let mut all = true;
        for row in rows {
            let pending = row.position.epoch == self.epoch && self.reservation_at(row.position.seq).is_some();
            all &= !pending && row.position < end;
            if let (true, Some(digest)) = (all, row.digest) {
                known = RowsKnown { through: row.position, digest };
            }
            if pending {
                continue;
            }
            self.note_version(scope, &row.stream, row.version);
            if let Some(id) = row.id.filter(|id| self.known(*id).is_none()) {
                let slot = self.slot(scope, &row.stream);
                let known = Known { durable: true, ..Known::new(row.position, row.version, slot) };
                self.ids.insert(id, known);
            }
        }
        known
    }

    fn reservation_at(&self, seq: u64) -> Option<&Reservation> {
        let (_, reservation) = self.reservations.range(..=seq).next_back()?;
        (seq <= reservation.last_seq()).then_some(reservation)
    }

    pub(crate) fn known(&self, id: Ulid) -> Option<Known> {
        self.ids.get(id)
    }

    /// The scope of an event whose id is known and that is not in an open transaction.
    pub(crate) fn scope_of(&self, id: Ulid) -> Option<Scope> {
        let known = self.known(id).filter(|known| !known.pending)?;
        let found = self.index.iter().find(|(_, streams)| streams.values().any(|slot| *slot == known.slot));
        found.map(|(scope, _)| scope.clone())
    }

    /// Forgets a router that was purged: another may have its id.
    pub(crate) fn forget_scope(&mut self, scope: &Scope) {
        let slots: Vec<Slot> = self.index.remove(scope).into_iter().flat_map(HashMap::into_values).collect();
        self.loaded.remove(scope);
        self.ids.retain(|known| !slots.contains(&known.slot));
    }

    /// As after the store was opened anew and the window has moved on.
    #[cfg(test)]
    pub(crate) fn forget_ids(&mut self) {
        self.ids = Ids::default();
    }

    #[cfg(test)]
    pub(crate) fn ids_known(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values()
    }

    /// Marks a reservation whose receipt was dropped.
    pub(crate) fn abandon(&mut self, first_seq: u64) {
        if let Some(reservation) = self.reservations.get_mut(&first_seq) {
            reservation.abandoned = true;
        }
    }

    /// Takes a block that stands in the hot log already into account.
    pub(crate) fn note_block(&mut self, events: &[Recorded], durable: bool) {
        for event in events {
            self.note_version(&event.scope, &event.stream, event.version);
            let slot = self.slot(&event.scope, &event.stream);
            let known =
                Known { content: content_of(event), durable, ..Known::new(event.position, event.version, slot) };
            self.ids.insert(event.id, known);
            self.by_stream.add(slot, event.position.seq);
            self.summaries.add(event);
            if durable {
                self.loaded.note_published(&event.scope, 1);
            } else {
                self.backlog.add(event);
            }
        }
    }

    /// Takes a row of a reservation that stands in the hot log into account; rows of one reservation join. The events of
    /// a damaged row are not known, but the reservation must be resolved all the same.
    pub(crate) fn note_reserved(&mut self, reserved: &ReservedBy, abandoned: bool, count: u64, events: &[Recorded]) {
        let mut reservation = self.reservations.remove(&reserved.first_seq).unwrap_or_else(|| Reservation {
            first_seq: reserved.first_seq,
            count: 0,
            scope: reserved.scope.clone(),
            owner: reserved.owner,
            abandoned,
            tops: Vec::new(),
            ids: Vec::new(),
        });
        reservation.count += count;
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            // What stands in the place of its events while its end is not known is for every reader.
            self.summaries.add_unknown(first.position.seq, last.position.seq);
        }
        for event in events {
            let slot = self.slot(&event.scope, &event.stream);
            reservation.tops.push((slot, event.version));
            reservation.ids.push(event.id);
            self.by_stream.add(slot, event.position.seq);
            let known = Known {
                content: content_of(event),
                durable: true,
                pending: true,
                ..Known::new(event.position, event.version, slot)
            };
            self.ids.insert(event.id, known);
        }
        self.hold(reservation);
    }

    fn hold(&mut self, reservation: Reservation) {
        for (slot, top) in reservation.tops.clone() {
            if let Some(state) = self.state(slot) {
                state.pending.retain(|(first_seq, known)| *first_seq != reservation.first_seq || *known > top);
                if !state.pending.iter().any(|(first_seq, _)| *first_seq == reservation.first_seq) {
                    state.pending.push((reservation.first_seq, top));
                }
            }
        }
        self.reservations.insert(reservation.first_seq, reservation);
    }

    /// Ends a reservation.
    pub(crate) fn resolve(&mut self, first_seq: u64, resolution: Resolution) {
        let Some(reservation) = self.reservations.remove(&first_seq) else { return };
        for (slot, top) in &reservation.tops {
            if let Some(state) = self.state(*slot) {
                state.pending.retain(|(first_seq, _)| *first_seq != reservation.first_seq);
                if resolution == Resolution::Published {
                    state.committed = state.committed.max(*top);
                }
            }
        }
        if resolution == Resolution::Published {
            self.loaded.note_published(&reservation.scope, reservation.count);
        }
        let range = reservation.first_seq..=reservation.last_seq();
        for id in &reservation.ids {
            let Some(known) = self.ids.get_mut(*id) else { continue };
            // The id may have been appended again after its first transaction failed.
            if known.epoch != self.epoch || !range.contains(&known.seq) {
                continue;
            }
            match resolution {
                Resolution::Published => known.pending = false,
                Resolution::Void => {
                    self.ids.remove(*id);
                }
            }
        }
    }

    /// Takes a row into account whose events cannot be decoded.
    pub(crate) fn note_unknown(&mut self, first_seq: u64, last_seq: u64) {
        self.by_stream.add_unknown(first_seq, last_seq);
        self.summaries.add_unknown(first_seq, last_seq);
    }

    /// Forgets where events below the start of the hot log stood.
    pub(crate) fn forget_below(&mut self, floor: u64) {
        self.by_stream.forget_below(floor);
        self.summaries.forget_below(floor);
    }

    /// Whether so many ids are known that some may be beyond the window: looking at all of them costs its time, so they grow
    /// to the double first.
    pub(crate) fn is_crowded(&self) -> bool {
        self.ids.len() >= IDS_SWEPT_MIN.max(self.ids_kept.saturating_mul(2))
    }

    /// Forgets the ids that are beyond the window, and where their events stood: what stays at the start of the log, and be it
    /// for long, keeps nothing that has left the rows behind it. `emptied` are first and last numbers, ascending.
    pub(crate) fn forget_gone(&mut self, floor: u64, emptied: &[(u64, u64)]) {
        let epoch = self.epoch;
        let is_gone = |seq: u64| {
            let after = emptied.partition_point(|(first, _)| *first <= seq);
            seq < floor || after.checked_sub(1).is_some_and(|at| emptied[at].1 >= seq)
        };
        self.ids.retain(|known| {
            let is_hot = known.epoch == epoch && !is_gone(known.seq);
            known.pending || is_hot || (known.durable && !known.sealed)
        });
        self.by_stream.forget(is_gone);
        self.ids_kept = self.ids.len();
    }

    /// Forgets the ids of what cannot be read any more: it never reaches flash, so the same id again is a new event.
    pub(crate) fn forget_lost(&mut self, epoch: u32, rows: &[(u64, u64)]) {
        let is_lost = |seq: u64| rows.iter().any(|(first, last)| (*first..=*last).contains(&seq));
        self.ids.retain(|known| known.durable || known.epoch != epoch || !is_lost(known.seq));
    }

    /// Forgets ids of events that were given up.
    pub(crate) fn forget_given_up(&mut self, ids: &[Ulid]) {
        for id in ids {
            self.ids.remove(*id);
        }
    }

    /// Takes note that durable rows were sealed: their ids are beyond the window once they have left the hot log.
    pub(crate) fn note_sealed(&mut self, ids: &[Ulid]) {
        for id in ids {
            if let Some(known) = self.ids.get_mut(*id) {
                known.sealed = true;
            }
        }
    }

    /// Where the next events of a stream stand in the hot log, in the given scopes or in all; see [`StreamIndex::next`].
    /// Only numbers below [`Heads::next_seq`] are known.
    pub(crate) fn next_of_stream(
        &self,
        scopes: Option<&[Scope]>,
        stream: &StreamName,
        range: (u64, u64),
        order: Order,
        limit: usize,
    ) -> (Vec<u64>, Option<u64>) {
        let slot = |scope: &Scope| self.index.get(scope).and_then(|streams| streams.get(stream)).copied();
        let slots: Vec<Slot> = match scopes {
            Some(scopes) => scopes.iter().filter_map(slot).collect(),
            None => self.index.keys().filter_map(slot).collect(),
        };
        self.by_stream.next(&slots, range, order, limit)
    }

    /// The nearest numbers of a range of the hot log that may hold what is wanted; `None` when none does.
    pub(crate) fn next_wanted(
        &self,
        epoch: u32,
        wanted: &Wanted,
        range: (u64, u64),
        order: Order,
    ) -> Option<(u64, u64)> {
        // What is known of another incarnation tells nothing of this one.
        if epoch == self.epoch { self.summaries.next(wanted, range, self.next_seq, order) } else { Some(range) }
    }

    /// Moves the end of the log past rows that stand in it already.
    pub(crate) fn advance_to(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    /// Ends the log where it was found to end.
    pub(crate) fn end_at(&mut self, next_seq: u64) {
        debug_assert!(self.next_seq <= next_seq.max(1), "positions were given that stand nowhere");
        self.next_seq = next_seq.max(1);
    }

    /// Normal events that are not on flash yet.
    pub(crate) const fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    pub(crate) const fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// Makes a committed batch known: its hot events and its reservations.
    pub(crate) fn commit<'a>(
        &mut self,
        changes: Changes,
        blocks: impl Iterator<Item = &'a Recorded>,
        reservations: Vec<Reservation>,
    ) {
        self.advance_to(changes.next_seq);
        self.ids.absorb(changes.ids);
        for (slot, seq) in changes.placed {
            self.by_stream.add(slot, seq);
        }
        for (slot, top) in changes.tops {
            if let Some(state) = self.state(slot) {
                state.committed = state.committed.max(top);
            }
        }
        for event in blocks {
            self.backlog.add(event);
            self.summaries.add(event);
        }
        for reservation in reservations {
            self.summaries.add_unknown(reservation.first_seq, reservation.last_seq());
            self.hold(reservation);
        }
    }
}
