//! What the store knows in memory: the next position, the version of every stream, the ids of the idempotency window and
//! the reservations that are not resolved. Pure: no I/O and no clock. Rebuilt at open.

use std::collections::{BTreeMap, HashMap, HashSet};

use nasnet_dbmanager::Scope;
use ulid::Ulid;

use crate::class::Class;
use crate::event::Recorded;
use crate::expected::Expected;
use crate::name::StreamName;
use crate::position::Position;
use crate::receipt::{Achieved, Receipt};

/// Number of a stream in [`Heads`].
type Slot = u32;

/// Where a known event id stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) position: Position,
    version: u64,
    slot: Slot,
    /// Of type and body, where they were at hand: the same id with another content is no repetition.
    content: Option<u32>,
    /// In the database of its scope, not only in hot.db.
    durable: bool,
    /// In a reservation that is not resolved.
    pub(crate) pending: bool,
}

fn content_of(event: &Recorded) -> Option<u32> {
    Some(crc32c::crc32c_append(crc32c::crc32c(event.kind.as_str().as_bytes()), event.body.get().as_bytes()))
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
    tops: Vec<(Slot, u64)>,
    ids: Vec<Ulid>,
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

/// Why an append is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Conflict {
        stream: StreamName,
        actual: u64,
    },
    IdReused(Ulid),
    Unresolved(Ulid),
    /// The events exist but only in tmpfs, and the caller needs them on flash.
    OnlyHot,
    OutOfPositions,
}

/// Unflushed Normal events of a scope.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backlog {
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Heads {
    epoch: u32,
    next_seq: u64,
    index: HashMap<Scope, HashMap<StreamName, Slot>>,
    streams: Vec<StreamState>,
    loaded: HashSet<Scope>,
    ids: HashMap<Ulid, Known>,
    reservations: BTreeMap<u64, Reservation>,
    backlog: HashMap<Scope, Backlog>,
}

impl Heads {
    pub(crate) fn new(epoch: u32) -> Self {
        Self {
            epoch,
            next_seq: 1,
            index: HashMap::new(),
            streams: Vec::new(),
            loaded: HashSet::new(),
            ids: HashMap::new(),
            reservations: BTreeMap::new(),
            backlog: HashMap::new(),
        }
    }

    pub(crate) const fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    fn slot(&mut self, scope: &Scope, stream: &StreamName) -> Slot {
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

    fn versions(&self, slot: Slot) -> (u64, u64) {
        let state = self.streams.get(usize::try_from(slot).unwrap_or(usize::MAX));
        state.map_or((0, 0), |state| (state.committed, state.top()))
    }

    /// Whether the warm tier of a scope has been taken into account.
    pub(crate) fn is_loaded(&self, scope: &Scope) -> bool {
        self.loaded.contains(scope)
    }

    pub(crate) fn set_loaded(&mut self, scope: &Scope) {
        self.loaded.insert(scope.clone());
    }

    /// Takes note of a version found in the warm tier.
    pub(crate) fn note_version(&mut self, scope: &Scope, stream: &StreamName, version: u64) {
        let slot = self.slot(scope, stream);
        if let Some(state) = self.state(slot) {
            state.committed = state.committed.max(version);
        }
    }

    /// Takes note of a durable row found in the warm tier. A row of an unresolved reservation may be uncommitted when the
    /// caller reads inside a transaction, so it is left to its resolution.
    pub(crate) fn note_row(&mut self, scope: &Scope, stream: &StreamName, position: Position, version: u64, id: Ulid) {
        if position.epoch == self.epoch && self.reservation_at(position.seq).is_some() {
            return;
        }
        self.note_version(scope, stream, version);
        let slot = self.slot(scope, stream);
        self.ids.entry(id).or_insert(Known { position, version, slot, content: None, durable: true, pending: false });
    }

    fn reservation_at(&self, seq: u64) -> Option<&Reservation> {
        let (_, reservation) = self.reservations.range(..=seq).next_back()?;
        (seq <= reservation.last_seq()).then_some(reservation)
    }

    pub(crate) fn known(&self, id: Ulid) -> Option<Known> {
        self.ids.get(&id).copied()
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
            let known = Known {
                position: event.position,
                version: event.version,
                slot,
                content: content_of(event),
                durable,
                pending: false,
            };
            self.ids.insert(event.id, known);
            if !durable {
                self.add_backlog(event);
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
        for event in events {
            let slot = self.slot(&event.scope, &event.stream);
            reservation.tops.push((slot, event.version));
            reservation.ids.push(event.id);
            let known = Known {
                position: event.position,
                version: event.version,
                slot,
                content: content_of(event),
                durable: true,
                pending: true,
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
        let range = reservation.first_seq..=reservation.last_seq();
        for id in &reservation.ids {
            let Some(known) = self.ids.get_mut(id) else { continue };
            // The id may have been appended again after its first transaction failed.
            if known.position.epoch != self.epoch || !range.contains(&known.position.seq) {
                continue;
            }
            match resolution {
                Resolution::Published => known.pending = false,
                Resolution::Void => {
                    self.ids.remove(id);
                }
            }
        }
    }

    /// Moves the end of the log past rows that stand in it already.
    pub(crate) fn advance_to(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    fn add_backlog(&mut self, event: &Recorded) {
        if event.class == Class::Normal {
            let backlog = self.backlog.entry(event.scope.clone()).or_default();
            backlog.events += 1;
            backlog.raw_bytes += (event.body.get().len() + 48) as u64;
        }
    }

    /// Unflushed Normal events by scope.
    pub(crate) const fn backlog(&self) -> &HashMap<Scope, Backlog> {
        &self.backlog
    }

    /// Takes flushed events out of the backlog.
    pub(crate) fn flushed(&mut self, scope: &Scope, events: &[Recorded]) {
        if let Some(backlog) = self.backlog.get_mut(scope) {
            for event in events {
                backlog.events = backlog.events.saturating_sub(1);
                backlog.raw_bytes = backlog.raw_bytes.saturating_sub((event.body.get().len() + 48) as u64);
            }
            if backlog.events == 0 {
                self.backlog.remove(scope);
            }
        }
    }
}

/// Gives positions and versions to a batch of appends, without changing what is known until the batch is committed.
pub(crate) struct Plan<'a> {
    heads: &'a mut Heads,
    next_seq: u64,
    tops: HashMap<Slot, u64>,
    pending_tops: HashMap<Slot, u64>,
    ids: HashMap<Ulid, Known>,
}

/// One stream of a durable append.
pub(crate) struct DurableStream {
    pub(crate) stream: StreamName,
    pub(crate) expected: Expected,
    /// Highest version the scope's own database shows inside the caller's transaction.
    pub(crate) warm_version: u64,
    pub(crate) events: Vec<Recorded>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(heads: &'a mut Heads) -> Self {
        let next_seq = heads.next_seq;
        Self { heads, next_seq, tops: HashMap::new(), pending_tops: HashMap::new(), ids: HashMap::new() }
    }

    /// Plans an append to the hot tier. On success the events carry position and version, unless they are known.
    pub(crate) fn append(
        &mut self,
        scope: &Scope,
        stream: &StreamName,
        expected: Expected,
        events: &mut [Recorded],
    ) -> Result<Receipt, Refusal> {
        let slot = self.heads.slot(scope, stream);
        if let Some(receipt) = self.deduplicated(slot, events, None)? {
            return Ok(receipt);
        }
        let (committed, top) = self.heads.versions(slot);
        let base = committed.max(self.tops.get(&slot).copied().unwrap_or(0));
        let top = top.max(base).max(self.pending_tops.get(&slot).copied().unwrap_or(0));
        // Whatever becomes of an open transaction on this stream, the expectation must have been right.
        for version in [base, top] {
            if !expected.holds_at(version) {
                return Err(Refusal::Conflict { stream: stream.clone(), actual: version });
            }
        }
        let receipt = self.place(slot, top, events, Achieved::Hot, false)?;
        self.tops.insert(slot, receipt.version);
        Ok(receipt)
    }

    /// Plans a reservation for a transaction that holds the write lock of the scope's database. Ids in `dead` belong to
    /// transactions known to have failed. The events of a stream that are known already are taken out of it.
    pub(crate) fn reserve(
        &mut self,
        scope: &Scope,
        owner: [u8; 16],
        streams: &mut [DurableStream],
        dead: &HashSet<Ulid>,
    ) -> Result<(Vec<Receipt>, Option<Reservation>), Refusal> {
        let first_seq = self.next_seq;
        let mut receipts = Vec::with_capacity(streams.len());
        let mut reserved: HashMap<Slot, u64> = HashMap::new();
        let mut ids = Vec::new();
        for append in streams {
            let slot = self.heads.slot(scope, &append.stream);
            if let Some(receipt) = self.deduplicated(slot, &append.events, Some(dead))? {
                if receipt.achieved == Achieved::Hot {
                    return Err(Refusal::OnlyHot);
                }
                append.events.clear();
                receipts.push(receipt);
                continue;
            }
            // The transaction holds the database's write lock, so any other open reservation of this scope that the
            // database does not show has failed: `committed` and `warm_version` are the whole truth.
            let known = [
                self.heads.versions(slot).0,
                append.warm_version,
                self.tops.get(&slot).copied().unwrap_or(0),
                reserved.get(&slot).copied().unwrap_or(0),
            ];
            let base = known.into_iter().fold(0, u64::max);
            if !append.expected.holds_at(base) {
                return Err(Refusal::Conflict { stream: append.stream.clone(), actual: base });
            }
            let receipt = self.place(slot, base, &mut append.events, Achieved::Synced, true)?;
            reserved.insert(slot, receipt.version);
            ids.extend(append.events.iter().map(|event| event.id));
            receipts.push(receipt);
        }
        let count = self.next_seq - first_seq;
        if count == 0 {
            return Ok((receipts, None));
        }
        for (slot, top) in &reserved {
            let pending = self.pending_tops.entry(*slot).or_default();
            *pending = (*pending).max(*top);
        }
        let tops = reserved.into_iter().collect();
        let scope = scope.clone();
        Ok((receipts, Some(Reservation { first_seq, count, scope, owner, abandoned: false, tops, ids })))
    }

    fn place(
        &mut self,
        slot: Slot,
        base: u64,
        events: &mut [Recorded],
        achieved: Achieved,
        pending: bool,
    ) -> Result<Receipt, Refusal> {
        let first = Position::new(self.heads.epoch, self.next_seq);
        let count = events.len() as u64;
        let last = Position::new(first.epoch, first.seq.saturating_add(count).saturating_sub(1));
        if last.to_key().is_err() || base.checked_add(count).is_none() {
            return Err(Refusal::OutOfPositions);
        }
        let mut version = base;
        for event in events {
            version += 1;
            event.version = version;
            event.position = Position::new(first.epoch, self.next_seq);
            self.next_seq += 1;
            let known = Known {
                position: event.position,
                version,
                slot,
                content: content_of(event),
                durable: achieved == Achieved::Synced,
                pending,
            };
            self.ids.insert(event.id, known);
        }
        Ok(Receipt { first, last, version, achieved, deduplicated: false })
    }

    /// The receipt of an append whose events are all known, `None` when none is. With `dead` the caller has looked into
    /// the scope's database: unresolved ids that are not dead are there.
    fn deduplicated(
        &self,
        slot: Slot,
        events: &[Recorded],
        dead: Option<&HashSet<Ulid>>,
    ) -> Result<Option<Receipt>, Refusal> {
        let mut seen = HashSet::with_capacity(events.len());
        let mut hits: Vec<(Ulid, Known)> = Vec::new();
        for event in events {
            if !seen.insert(event.id) {
                return Err(Refusal::IdReused(event.id));
            }
            let planned = self.ids.get(&event.id).copied();
            let is_dead = dead.is_some_and(|dead| dead.contains(&event.id));
            let known = planned.or_else(|| self.heads.known(event.id).filter(|_| !is_dead));
            if let Some(known) = known {
                if known.content.is_some_and(|content| Some(content) != content_of(event)) {
                    return Err(Refusal::IdReused(event.id));
                }
                hits.push((event.id, known));
            }
        }
        let (Some((first_id, first)), Some((_, last))) = (hits.first(), hits.last()) else { return Ok(None) };
        let in_order = hits.windows(2).all(|pair| pair[0].1.version + 1 == pair[1].1.version);
        if hits.len() != events.len() || !in_order || hits.iter().any(|(_, known)| known.slot != slot) {
            return Err(Refusal::IdReused(*first_id));
        }
        if let (None, Some((id, _))) = (dead, hits.iter().find(|(_, known)| known.pending)) {
            return Err(Refusal::Unresolved(*id));
        }
        let durable = hits.iter().all(|(_, known)| known.durable);
        Ok(Some(Receipt {
            first: first.position,
            last: last.position,
            version: last.version,
            achieved: if durable { Achieved::Synced } else { Achieved::Hot },
            deduplicated: true,
        }))
    }

    /// What the batch changes, to be made known after its commit.
    pub(crate) fn into_changes(self) -> Changes {
        Changes { next_seq: self.next_seq, tops: self.tops, ids: self.ids }
    }
}

/// The outcome of a plan.
pub(crate) struct Changes {
    next_seq: u64,
    tops: HashMap<Slot, u64>,
    ids: HashMap<Ulid, Known>,
}

impl Heads {
    /// Makes a committed batch known: its hot events and its reservations.
    pub(crate) fn commit<'a>(
        &mut self,
        changes: Changes,
        blocks: impl Iterator<Item = &'a Recorded>,
        reservations: Vec<Reservation>,
    ) {
        self.advance_to(changes.next_seq);
        self.ids.extend(changes.ids);
        for (slot, top) in changes.tops {
            if let Some(state) = self.state(slot) {
                state.committed = state.committed.max(top);
            }
        }
        for event in blocks {
            self.add_backlog(event);
        }
        for reservation in reservations {
            self.hold(reservation);
        }
    }
}
