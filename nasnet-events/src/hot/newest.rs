//! The newest events of the hot log as they were appended: most reads want these, and to take them out of their rows again
//! would cost more than the rest of such a read. Pure; a copy of what the log holds, so that losing it costs time only.

use std::collections::VecDeque;

use crate::event::Recorded;

/// The most that is kept.
const EVENTS_MAX: usize = 1_024;
const BYTES_MAX: usize = 1 << 20;

/// What an event takes beside its body.
const EVENT_BYTES: usize = size_of::<Recorded>();

/// Events that this store appended to the hot tier, in ascending order and not always one after the other: those of open
/// transactions and of other stores are not among them.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    epoch: u32,
    /// As they came, none of them empty: to move each event by itself would cost as much as to keep it.
    appends: VecDeque<Vec<Recorded>>,
    events: usize,
    bytes: usize,
}

fn bytes_of(event: &Recorded) -> usize {
    EVENT_BYTES + event.body.get().len()
}

impl Newest {
    /// Adds events of one incarnation that follow those that are here, and lets go of the oldest.
    pub(crate) fn add(&mut self, epoch: u32, mut events: Vec<Recorded>) {
        if epoch != self.epoch {
            *self = Self { epoch, ..Self::default() };
        }
        let (mut kept, mut bytes) = (0, 0);
        for own in events.iter().rev().map(bytes_of) {
            if kept == EVENTS_MAX || bytes + own > BYTES_MAX {
                break;
            }
            (kept, bytes) = (kept + 1, bytes + own);
        }
        if kept < events.len() {
            // Whatever is here stands before those that are left out.
            *self = Self { epoch, ..Self::default() };
            events.drain(..events.len() - kept);
        }
        if events.is_empty() {
            return;
        }
        self.events += kept;
        self.bytes += bytes;
        self.appends.push_back(events);
        while self.events > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.appends.pop_front() else { break };
            self.events -= oldest.len();
            self.bytes -= oldest.iter().map(bytes_of).sum::<usize>();
        }
    }

    /// Numbers of the oldest and the newest of them.
    pub(crate) fn ends(&self, epoch: u32) -> Option<(u64, u64)> {
        let (first, last) = (self.appends.front()?.first()?, self.appends.back()?.last()?);
        (epoch == self.epoch).then_some((first.position.seq, last.position.seq))
    }

    /// All events of a row that holds `count` numbers from `first_seq` on, `None` unless every one of them is here.
    pub(crate) fn of_row(&self, epoch: u32, first_seq: u64, count: u64) -> Option<impl Iterator<Item = &Recorded>> {
        if epoch != self.epoch {
            return None;
        }
        let beyond = count.checked_sub(1)?;
        let is_before = |events: &Vec<Recorded>| events.last().is_none_or(|last| last.position.seq < first_seq);
        let from = self.appends.partition_point(is_before);
        let later = self.appends.range(from..).flatten().skip_while(move |event| event.position.seq < first_seq);
        let row = later.take(usize::try_from(count).ok()?);
        // Numbers ascend, so nothing is missing between the first and the last of as many.
        let whole = row.clone().next()?.position.seq == first_seq
            && row.clone().nth(usize::try_from(beyond).ok()?)?.position.seq - first_seq == beyond;
        whole.then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;
    use crate::arbitrary;
    use crate::position::Position;

    fn numbered(mut events: Vec<Recorded>, seqs: &[u64]) -> Vec<Recorded> {
        for (event, seq) in events.iter_mut().zip(seqs) {
            event.position = Position::new(1, *seq);
        }
        events.truncate(seqs.len());
        events
    }

    proptest! {
        /// Against the plain list: a row is answered with exactly its events, or not at all.
        #[test]
        fn a_row_is_whole_or_absent(
            events in arbitrary::events(30..31),
            gaps in proptest::collection::vec(1_u64..3, 30),
            (first, count) in (0_u64..70, 0_u64..12),
            split in 0_usize..30,
        ) {
            let seqs: Vec<u64> = gaps.iter().scan(0, |seq, gap| { *seq += gap; Some(*seq) }).collect();
            let events = numbered(events, &seqs);
            let mut newest = Newest::default();
            newest.add(1, events[..split].to_vec());
            newest.add(1, events[split..].to_vec());
            let wanted: Vec<&Recorded> = events.iter().filter(|event| (first..first + count).contains(&event.position.seq)).collect();
            let found = newest.of_row(1, first, count).map(Iterator::collect::<Vec<_>>);
            let whole = count > 0 && wanted.len() as u64 == count;
            prop_assert_eq!(found, whole.then_some(wanted));
            prop_assert!(newest.of_row(2, first, count).is_none());
            prop_assert_eq!(newest.ends(1), Some((seqs[0], seqs[29])));
        }
    }

    #[test]
    fn the_oldest_leave_and_another_incarnation_takes_the_place() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let one = arbitrary::events(1..2).new_tree(&mut runner).unwrap().current().remove(0);
        let events = |from: u64, count: u64| {
            let one = one.clone();
            let at = move |seq| Recorded { position: Position::new(1, seq), ..one.clone() };
            (from..from + count).map(at).collect::<Vec<_>>()
        };
        let mut newest = Newest::default();
        newest.add(1, events(1, 1_000));
        newest.add(1, events(1_001, 1_000));
        let (first, last) = newest.ends(1).unwrap();
        assert!(first > 2_000 - EVENTS_MAX as u64 && last == 2_000, "{first} to {last}");
        assert!(newest.of_row(1, first - 1, 2).is_none());
        assert_eq!(newest.of_row(1, last, 1).unwrap().count(), 1);
        newest.add(2, events(1, 1));
        assert_eq!((newest.ends(1), newest.ends(2)), (None, Some((1, 1))));

        let long = serde_json::value::to_raw_value(&"x".repeat(BYTES_MAX / 4)).unwrap();
        let long = Recorded { body: crate::body::Body::Json(long), ..one.clone() };
        let at = |seq| Recorded { position: Position::new(2, seq), ..long.clone() };
        newest.add(2, (2..10).map(at).collect::<Vec<_>>());
        assert_eq!(newest.ends(2), Some((7, 9)), "long ones take the place of many");
        newest.add(
            2,
            events(10, EVENTS_MAX as u64 + 5)
                .into_iter()
                .map(|event| Recorded { position: Position::new(2, event.position.seq), ..event })
                .collect(),
        );
        let first = newest.ends(2).unwrap().0;
        assert_eq!(
            (first, newest.appends.len()),
            (15, 1),
            "of one that is too large the end stays, and nothing before it"
        );
        newest.add(2, (2_000..2_010).map(at).collect());
        assert_eq!((newest.ends(2), newest.events), (Some((2_007, 2_009)), 3));
    }
}
