//! The rules of appending: which positions and versions a batch gets, and what is refused. Pure.

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use nasnet_dbmanager::Scope;
use ulid::Ulid;

use crate::event::Recorded;
use crate::expected::Expected;
use crate::heads::{Heads, Known, Reservation, Slot, content_of};
use crate::ids::Ids;
use crate::name::StreamName;
use crate::position::Position;
use crate::receipt::{Achieved, Receipt};

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
    /// There is no event to append.
    Empty,
}

/// Gives positions and versions to a batch of appends, without changing what is known until the batch is committed.
pub(crate) struct Plan<'a> {
    heads: &'a mut Heads,
    next_seq: u64,
    tops: HashMap<Slot, u64>,
    pending_tops: HashMap<Slot, u64>,
    ids: Ids,
    placed: Vec<(Slot, u64)>,
    /// What the ids of the reservation that is being planned stood for before.
    replaced: Vec<(Ulid, Option<Known>)>,
}

/// What the scope's database shows of an id whose transaction had not ended when it was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Where it had been reserved.
    pub(crate) position: Position,
    /// Whether its row is there; otherwise that transaction has failed.
    pub(crate) there: bool,
}

pub(crate) type Looked = HashMap<Ulid, Seen>;

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
        let next_seq = heads.next_seq();
        Self {
            heads,
            next_seq,
            tops: HashMap::new(),
            pending_tops: HashMap::new(),
            ids: Ids::default(),
            placed: Vec::new(),
            replaced: Vec::new(),
        }
    }

    /// Number of a stream.
    pub(crate) fn slot(&mut self, scope: &Scope, stream: &StreamName) -> Slot {
        self.heads.slot(scope, stream)
    }

    /// Plans an append to the hot tier, all events being of the stream with this number. On success they carry position and
    /// version, unless they are known.
    pub(crate) fn append(
        &mut self,
        slot: Slot,
        expected: Expected,
        events: &mut [Recorded],
    ) -> Result<Receipt, Refusal> {
        let Some(first) = events.first() else { return Err(Refusal::Empty) };
        if let Some(receipt) = self.deduplicated(slot, events, None)? {
            return Ok(receipt);
        }
        let (committed, top) = self.heads.versions(slot);
        let base = committed.max(self.tops.get(&slot).copied().unwrap_or(0));
        let top = top.max(base).max(self.pending_tops.get(&slot).copied().unwrap_or(0));
        // Whatever becomes of an open transaction on this stream, the expectation must have been right.
        for version in [base, top] {
            if !expected.holds_at(version) {
                return Err(Refusal::Conflict { stream: first.stream.clone(), actual: version });
            }
        }
        let receipt = self.place(slot, top, events, Achieved::Hot, false)?;
        self.tops.insert(slot, receipt.version);
        Ok(receipt)
    }

    /// Plans a reservation for a transaction that holds the write lock of the scope's database and has looked there for the
    /// ids whose transactions had not ended. A stream whose events are known already has a receipt that says so, and keeps
    /// them: it may be planned again.
    pub(crate) fn reserve(
        &mut self,
        scope: &Scope,
        owner: [u8; 16],
        streams: &mut [DurableStream],
        looked: &Looked,
    ) -> Result<(Vec<Receipt>, Option<Reservation>), Refusal> {
        let (next_seq, placed) = (self.next_seq, self.placed.len());
        self.replaced.clear();
        let result = self.reserve_all(scope, owner, streams, looked);
        if result.is_err() {
            // All streams or none: what the first ones got would be a gap in the log.
            self.next_seq = next_seq;
            self.placed.truncate(placed);
            for (id, known) in self.replaced.drain(..).rev() {
                match known {
                    Some(known) => drop(self.ids.insert(id, known)),
                    None => self.ids.remove(id),
                }
            }
        }
        result
    }

    fn reserve_all(
        &mut self,
        scope: &Scope,
        owner: [u8; 16],
        streams: &mut [DurableStream],
        looked: &Looked,
    ) -> Result<(Vec<Receipt>, Option<Reservation>), Refusal> {
        let first_seq = self.next_seq;
        let mut receipts = Vec::with_capacity(streams.len());
        let mut reserved: HashMap<Slot, u64> = HashMap::new();
        let mut ids = Vec::new();
        for append in streams {
            let slot = self.heads.slot(scope, &append.stream);
            if let Some(receipt) = self.deduplicated(slot, &append.events, Some(looked))? {
                if receipt.achieved == Achieved::Hot {
                    return Err(Refusal::OnlyHot);
                }
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
        let first = Position::new(self.heads.epoch(), self.next_seq);
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
                content: content_of(event),
                durable: achieved == Achieved::Synced,
                pending,
                ..Known::new(event.position, version, slot)
            };
            let before = self.ids.insert(event.id, known);
            if pending {
                self.replaced.push((event.id, before));
            }
            self.placed.push((slot, event.position.seq));
        }
        Ok(Receipt { first, last, version, achieved, deduplicated: false })
    }

    /// The receipt of an append whose events are all known, `None` when none is. An id whose transaction has not ended counts
    /// as known only if the caller has looked for it in the scope's database and found it at that very position: it may have
    /// been reserved after the look, by an earlier attempt that nobody waits for any more.
    fn deduplicated(
        &self,
        slot: Slot,
        events: &[Recorded],
        looked: Option<&Looked>,
    ) -> Result<Option<Receipt>, Refusal> {
        let mut seen = HashSet::new();
        let mut hits: Vec<(Ulid, Known)> = Vec::new();
        for event in events {
            if events.len() > 1 && !seen.insert(event.id) {
                return Err(Refusal::IdReused(event.id));
            }
            let known = self.ids.get(event.id).or_else(|| self.heads.known(event.id));
            if let Some(known) = known {
                let seen =
                    looked.and_then(|looked| looked.get(&event.id)).filter(|seen| seen.position == known.position());
                match seen {
                    _ if !known.pending => {}
                    Some(Seen { there: true, .. }) => {}
                    Some(Seen { there: false, .. }) => continue,
                    // Of the very transaction that is being planned.
                    None if self.replaced.iter().any(|(id, _)| *id == event.id) => {
                        return Err(Refusal::IdReused(event.id));
                    }
                    None => return Err(Refusal::Unresolved(event.id)),
                }
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
        // Whoever needs it on flash is told of the flush that brought it there; anybody else has the same receipt again.
        let (epoch, backlog) = (self.heads.epoch(), self.heads.backlog());
        let is_flushed = |known: &Known, event: &Recorded| {
            looked.is_some() && known.epoch == epoch && backlog.is_flushed(&event.scope, event.class, known.seq)
        };
        let durable = hits.iter().zip(events).all(|((_, known), event)| known.durable || is_flushed(known, event));
        Ok(Some(Receipt {
            first: first.position(),
            last: last.position(),
            version: last.version,
            achieved: if durable { Achieved::Synced } else { Achieved::Hot },
            deduplicated: true,
        }))
    }

    /// What the batch changes, to be made known after its commit.
    pub(crate) fn into_changes(self) -> Changes {
        Changes { next_seq: self.next_seq, tops: self.tops, ids: self.ids, placed: self.placed }
    }
}

/// The outcome of a plan.
pub(crate) struct Changes {
    pub(crate) next_seq: u64,
    pub(crate) tops: HashMap<Slot, u64>,
    pub(crate) ids: Ids,
    /// Stream and sequence number of each event, ascending.
    pub(crate) placed: Vec<(Slot, u64)>,
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};

    use super::*;
    use crate::arbitrary;
    use crate::chain::Digest;
    use crate::heads::Resolution;
    use crate::loaded::RowsKnown;
    use crate::warm::rows::RowHead;

    const OWNER: [u8; 16] = [1; 16];

    /// Distinct events that are not placed yet.
    fn events(count: usize) -> Vec<Recorded> {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let drawn = arbitrary::events(count..count + 1).new_tree(&mut runner).map(|tree| tree.current());
        let mut drawn = drawn.expect("events can be drawn");
        drawn.iter_mut().for_each(|event| event.stream = name());
        drawn
    }

    fn name() -> StreamName {
        StreamName::parse("s").expect("a name")
    }

    fn append(heads: &mut Heads, expected: Expected, events: &mut [Recorded]) -> Result<Receipt, Refusal> {
        let mut plan = Plan::new(heads);
        let slot = plan.slot(&Scope::System, &name());
        let result = plan.append(slot, expected, events);
        let changes = plan.into_changes();
        heads.commit(changes, std::iter::empty(), Vec::new());
        result
    }

    fn reserve(heads: &mut Heads, warm_version: u64, events: Vec<Recorded>) -> Result<Vec<Receipt>, Refusal> {
        let mut plan = Plan::new(heads);
        let mut streams = [DurableStream { stream: name(), expected: Expected::Any, warm_version, events }];
        let result = plan.reserve(&Scope::System, OWNER, &mut streams, &Looked::new());
        let changes = plan.into_changes();
        let (receipts, reservation) = result?;
        heads.commit(changes, std::iter::empty(), reservation.into_iter().collect());
        Ok(receipts)
    }

    #[test]
    fn what_is_not_committed_is_not_known() {
        let mut heads = Heads::new(1);
        let mut drawn = events(2);
        let mut plan = Plan::new(&mut heads);
        let slot = plan.slot(&Scope::System, &name());
        let planned = plan.append(slot, Expected::Unwritten, &mut drawn);
        assert_eq!(planned.map(|receipt| receipt.version), Ok(2));
        assert_eq!(heads.next_seq(), 1);
        let again = append(&mut heads, Expected::Unwritten, &mut drawn);
        assert_eq!(again.map(|receipt| (receipt.version, receipt.deduplicated)), Ok((2, false)));
    }

    #[test]
    fn a_version_of_a_failed_transaction_is_given_again_by_the_next_one() {
        let mut heads = Heads::new(1);
        let drawn = events(3);
        let version = |receipts: Result<Vec<Receipt>, Refusal>| receipts.map(|receipts| receipts[0].version);
        assert_eq!(version(reserve(&mut heads, 0, drawn[..1].to_vec())), Ok(1));
        // The next transaction sees no row of the first, which therefore has failed.
        assert_eq!(version(reserve(&mut heads, 0, drawn[1..2].to_vec())), Ok(1));
        heads.resolve(1, Resolution::Void);
        heads.resolve(2, Resolution::Published);
        assert_eq!(version(reserve(&mut heads, 1, drawn[2..].to_vec())), Ok(2));
        assert_eq!(heads.next_seq(), 4, "a position is never given again");
    }

    #[test]
    fn rows_count_as_known_up_to_the_first_whose_transaction_may_not_have_ended() {
        let mut heads = Heads::new(1);
        let drawn = events(3);
        for event in &drawn {
            assert!(reserve(&mut heads, 0, vec![event.clone()]).is_ok());
        }
        let row = |seq: u64| RowHead {
            position: Position::new(1, seq),
            stream: StreamName::parse(&format!("row/{seq}")).expect("a name"),
            version: 10 + seq,
            id: None,
            digest: Some(Digest([u8::try_from(seq).expect("a small number"); 32])),
        };
        let look = |heads: &mut Heads| {
            let known = heads.rows_known(&Scope::System);
            let known = heads.note_rows(&Scope::System, known, (known.through.seq + 1..=3).map(row).collect());
            heads.set_loaded(&Scope::System, known);
            let tops = (1..=3).map(|seq| {
                let slot = heads.slot(&Scope::System, &row(seq).stream);
                heads.versions(slot).0
            });
            (tops.collect::<Vec<_>>(), known.through)
        };
        heads.resolve(1, Resolution::Published);
        heads.resolve(3, Resolution::Published);
        assert_eq!(look(&mut heads), (vec![11, 0, 13], Position::new(1, 1)));
        heads.resolve(2, Resolution::Published);
        assert_eq!(look(&mut heads), (vec![11, 12, 13], Position::new(1, 3)));
        // Rows of a lost incarnation, whose transaction ended after it, are nobody's here. Those that are ahead of this one, as
        // a backup may bring them, stay in sight: what is appended comes before them.
        let mut next = Heads::new(2);
        assert_eq!(next.note_rows(&Scope::System, RowsKnown::NONE, vec![row(2)]).through, Position::new(1, 2));
        let ahead = RowHead { position: Position::new(3, 1), ..row(3) };
        assert_eq!(next.note_rows(&Scope::System, RowsKnown::NONE, vec![row(2), ahead]).through, Position::new(1, 2));
    }

    #[test]
    fn an_id_reserved_after_the_look_is_not_taken_for_one_that_was_found() {
        let mut heads = Heads::new(1);
        let drawn = events(1);
        // An attempt nobody waits for is reserved between the look of the next one and its reservation.
        assert!(reserve(&mut heads, 0, drawn.clone()).is_ok());
        assert_eq!(reserve(&mut heads, 0, drawn.clone()), Err(Refusal::Unresolved(drawn[0].id)));
        // Two in one batch.
        let mut heads = Heads::new(1);
        let mut plan = Plan::new(&mut heads);
        let stream =
            || DurableStream { stream: name(), expected: Expected::Any, warm_version: 0, events: drawn.clone() };
        assert!(plan.reserve(&Scope::System, OWNER, &mut [stream()], &Looked::new()).is_ok());
        let second = plan.reserve(&Scope::System, OWNER, &mut [stream()], &Looked::new());
        assert_eq!(second.map(|_| ()), Err(Refusal::Unresolved(drawn[0].id)));
    }

    fn stream(name: &str, expected: Expected, events: &[Recorded]) -> DurableStream {
        let stream = StreamName::parse(name).expect("a name");
        DurableStream { stream, expected, warm_version: 0, events: events.to_vec() }
    }

    #[test]
    fn a_refused_reservation_uses_up_nothing_whatever_its_first_streams_were_given() {
        let mut heads = Heads::new(1);
        let drawn = events(4);
        assert!(reserve(&mut heads, 0, drawn[..1].to_vec()).is_ok());
        heads.resolve(1, Resolution::Published);
        let mut plan = Plan::new(&mut heads);
        let mut streams =
            [stream("new", Expected::Unwritten, &drawn[1..3]), stream("s", Expected::Unwritten, &drawn[3..])];
        let refused = plan.reserve(&Scope::System, OWNER, &mut streams, &Looked::new());
        assert_eq!(refused.map(|_| ()), Err(Refusal::Conflict { stream: name(), actual: 1 }));
        // The rest of the batch goes where it would have gone, and what was refused can be tried again in it.
        let again = plan.reserve(&Scope::System, OWNER, &mut streams[..1], &Looked::new());
        let (receipts, reservation) = again.expect("positions");
        assert_eq!((receipts[0].first.seq, receipts[0].deduplicated), (2, false));
        assert_eq!(reservation.map(|held| (held.first_seq, held.count)), Some((2, 2)));
        let changes = plan.into_changes();
        assert_eq!(changes.next_seq, 4);
        assert_eq!((changes.placed.len(), changes.ids.len()), (2, 2));
        assert!(changes.ids.get(drawn[3].id).is_none());
    }

    #[test]
    fn what_is_known_already_gets_the_same_answer_when_its_batch_is_planned_again() {
        let mut heads = Heads::new(1);
        let drawn = events(1);
        assert!(reserve(&mut heads, 0, drawn.clone()).is_ok());
        heads.resolve(1, Resolution::Published);
        let mut streams = [stream("s", Expected::Unwritten, &drawn)];
        for _ in 0..2 {
            let mut plan = Plan::new(&mut heads);
            let again = plan.reserve(&Scope::System, OWNER, &mut streams, &Looked::new());
            let (receipts, reservation) = again.expect("a receipt");
            assert_eq!((receipts[0].first.seq, receipts[0].version, receipts[0].deduplicated), (1, 1, true));
            assert!(reservation.is_none());
        }
    }

    #[test]
    fn a_hot_append_stays_clear_of_open_transactions() {
        let mut heads = Heads::new(1);
        let mut drawn = events(2);
        let reserved = drawn.split_off(1);
        assert!(reserve(&mut heads, 0, reserved).is_ok());
        let conflict = |actual| Err(Refusal::Conflict { stream: name(), actual });
        assert_eq!(append(&mut heads, Expected::Exact(0), &mut drawn), conflict(1));
        assert_eq!(append(&mut heads, Expected::Exact(1), &mut drawn), conflict(0));
        assert_eq!(append(&mut heads, Expected::Any, &mut drawn).map(|receipt| receipt.version), Ok(2));
    }

    #[test]
    fn the_last_position_of_an_epoch_is_refused_and_not_wrapped() {
        let mut heads = Heads::new(1);
        heads.advance_to(Position::END.seq);
        let mut drawn = events(2);
        assert_eq!(append(&mut heads, Expected::Any, &mut drawn), Err(Refusal::OutOfPositions));
        assert!(append(&mut heads, Expected::Any, &mut drawn[..1]).is_ok());
    }

    #[test]
    fn ids_beyond_the_window_are_forgotten() {
        let mut heads = Heads::new(1);
        let durable = events(2);
        let durable: Vec<Ulid> = {
            let ids = durable.iter().map(|event| event.id).collect();
            reserve(&mut heads, 0, durable).expect("positions");
            heads.resolve(1, Resolution::Published);
            ids
        };
        let mut hot = events(902).split_off(2);
        append(&mut heads, Expected::Any, &mut hot).expect("appended");
        assert_eq!(heads.ids_known(), 902);

        heads.forget_gone(802, &[]);
        assert!(hot[..799].iter().all(|event| heads.known(event.id).is_none()), "they have left the hot log");
        assert!(hot[799..].iter().all(|event| heads.known(event.id).is_some()), "the hot log still has them");
        assert!(durable.iter().all(|id| heads.known(*id).is_some()), "their rows are not sealed");

        heads.note_sealed(&durable);
        let mut more = events(1_502).split_off(902);
        append(&mut heads, Expected::Any, &mut more).expect("appended");
        heads.forget_gone(702, &[(703, 1_501)]);
        assert!(durable.iter().all(|id| heads.known(*id).is_none()), "sealed, and no longer in the hot log");
        assert_eq!(heads.ids_known(), 1);
    }
}
