//! Where in the hot log the events of each stream stand. Pure, kept in memory, rebuilt at open: a block holds events of many
//! streams, so a read by stream would otherwise decode all of them.

use std::collections::BTreeSet;

use crate::heads::Slot;
use crate::hot::log::Order;

/// Sequence numbers by stream, ascending.
#[derive(Debug, Default)]
pub(crate) struct StreamIndex {
    seqs: Vec<Vec<u64>>,
    /// First numbers of rows whose events are not known: every answer names them.
    unknown: BTreeSet<u64>,
}

impl StreamIndex {
    /// Notes an event. Those of one stream come in order, but for a transaction that is told of late.
    pub(crate) fn add(&mut self, slot: Slot, seq: u64) {
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        if slot >= self.seqs.len() {
            self.seqs.resize_with(slot + 1, Vec::new);
        }
        let seqs = &mut self.seqs[slot];
        match seqs.last() {
            Some(last) if *last >= seq => {
                if let Err(at) = seqs.binary_search(&seq) {
                    seqs.insert(at, seq);
                }
            }
            _ => seqs.push(seq),
        }
    }

    /// Notes a row that cannot be decoded.
    pub(crate) fn add_unknown(&mut self, first_seq: u64) {
        self.unknown.insert(first_seq);
    }

    /// Forgets what stands below a number.
    pub(crate) fn forget_below(&mut self, floor: u64) {
        for seqs in &mut self.seqs {
            let gone = seqs.partition_point(|seq| *seq < floor);
            // Moving the rest costs its length, so a few stay behind until they are worth it.
            if gone * 2 > seqs.len() {
                seqs.drain(..gone);
                seqs.shrink_to_fit();
            }
        }
        self.unknown = self.unknown.split_off(&floor);
    }

    /// The next numbers of some streams within `from..=to`, in order, at most `limit`; and whether there are no more.
    pub(crate) fn next(&self, slots: &[Slot], (from, to): (u64, u64), order: Order, limit: usize) -> (Vec<u64>, bool) {
        if from > to {
            return (Vec::new(), true);
        }
        let mut found: Vec<u64> = self.unknown.range(from..=to).copied().collect();
        let slots = slots.iter().filter_map(|slot| self.seqs.get(usize::try_from(*slot).ok()?));
        for seqs in slots {
            let low = seqs.partition_point(|seq| *seq < from);
            let high = seqs.partition_point(|seq| *seq <= to);
            let within = &seqs[low..high.max(low)];
            match order {
                Order::Forwards => found.extend(within.iter().take(limit + 1)),
                Order::Backwards => found.extend(within.iter().rev().take(limit + 1)),
            }
        }
        found.sort_unstable();
        if order == Order::Backwards {
            found.reverse();
        }
        let all = found.len() <= limit;
        found.truncate(limit);
        (found, all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_answer_is_what_a_scan_would_find(
            placed in proptest::collection::vec(0_u32..4, 0..80),
            damaged in proptest::collection::btree_set(1_u64..80, 0..3),
            wanted in proptest::collection::btree_set(0_u32..5, 0..4),
            (a, b, floor) in (0_u64..90, 0_u64..90, 0_u64..40),
            limit in 1_usize..20,
            backwards: bool,
        ) {
            let (from, to) = (a.min(b), a.max(b));
            let mut index = StreamIndex::default();
            for (slot, seq) in placed.iter().zip(1..) {
                index.add(*slot, seq);
            }
            for seq in &damaged {
                index.add_unknown(*seq);
            }
            index.forget_below(floor);
            let mut scan: Vec<u64> = placed.iter().zip(1..).filter(|(slot, _)| wanted.contains(slot)).map(|(_, seq)| seq).collect();
            scan.extend(&damaged);
            scan.retain(|seq| *seq >= from.max(floor) && *seq <= to);
            scan.sort_unstable();
            let order = if backwards { Order::Backwards } else { Order::Forwards };
            if backwards {
                scan.reverse();
            }
            let all = scan.len() <= limit;
            scan.truncate(limit);
            let wanted: Vec<u32> = wanted.into_iter().collect();
            prop_assert_eq!(index.next(&wanted, (from.max(floor), to), order, limit), (scan, all));
        }
    }
}
