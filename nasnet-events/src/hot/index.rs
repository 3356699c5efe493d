//! Where in the hot log the events of each stream stand. Pure, kept in memory, rebuilt at open: a block holds events of many
//! streams, so a read by stream would otherwise decode all of them.

use std::collections::BTreeMap;

use crate::heads::Slot;
use crate::hot::log::Order;

/// Sequence numbers by stream, ascending.
#[derive(Debug, Default)]
pub(crate) struct StreamIndex {
    seqs: Vec<Vec<u64>>,
    /// First and last numbers of rows of which it is not known what they hold or have held: every answer names them.
    unknown: BTreeMap<u64, u64>,
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

    /// Notes a row that cannot be decoded, or that events were taken out of.
    pub(crate) fn add_unknown(&mut self, first_seq: u64, last_seq: u64) {
        self.unknown.insert(first_seq, last_seq);
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
        self.unknown.retain(|_, last| *last >= floor);
    }

    /// Forgets numbers.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(u64) -> bool) {
        for seqs in &mut self.seqs {
            seqs.retain(|seq| !is_gone(*seq));
            seqs.shrink_to_fit();
        }
    }

    /// The next numbers of some streams within `from..=to`, in order, at most `limit`; and, when there are more, up to where
    /// they are all named. An unknown row is named by the first number of it that is asked for, and named whole.
    pub(crate) fn next(
        &self,
        slots: &[Slot],
        (from, to): (u64, u64),
        order: Order,
        limit: usize,
    ) -> (Vec<u64>, Option<u64>) {
        if from > to {
            return (Vec::new(), None);
        }
        // Each number with the other end of what it names.
        let unknown = self.unknown.range(..=to).filter(|(_, last)| **last >= from);
        let mut found: Vec<(u64, u64)> = unknown
            .map(|(first, last)| match order {
                Order::Forwards => ((*first).max(from), (*last).min(to)),
                Order::Backwards => ((*last).min(to), (*first).max(from)),
            })
            .collect();
        let slots = slots.iter().filter_map(|slot| self.seqs.get(usize::try_from(*slot).ok()?));
        for seqs in slots {
            let low = seqs.partition_point(|seq| *seq < from);
            let high = seqs.partition_point(|seq| *seq <= to);
            let within = &seqs[low..high.max(low)];
            match order {
                Order::Forwards => found.extend(within.iter().take(limit + 1).map(|seq| (*seq, *seq))),
                Order::Backwards => found.extend(within.iter().rev().take(limit + 1).map(|seq| (*seq, *seq))),
            }
        }
        found.sort_unstable();
        if order == Order::Backwards {
            found.reverse();
        }
        let all = found.len() <= limit;
        found.truncate(limit);
        let end = found.last().filter(|_| !all).map(|(_, end)| *end);
        (found.into_iter().map(|(seq, _)| seq).collect(), end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Read page by page, as a reader does: each page goes on behind what the one before has named.
        #[test]
        fn pages_name_every_number_and_every_unknown_row_of_a_range(
            placed in proptest::collection::vec(0_u32..4, 0..80),
            damaged in proptest::collection::btree_map(1_u64..80, 0_u64..20, 0..4),
            wanted in proptest::collection::btree_set(0_u32..5, 0..4),
            (a, b, floor) in (0_u64..90, 0_u64..90, 0_u64..40),
            limit in 1_usize..20,
            backwards: bool,
        ) {
            let (from, to) = (a.min(b).max(floor), a.max(b));
            let mut index = StreamIndex::default();
            for (slot, seq) in placed.iter().zip(1..) {
                index.add(*slot, seq);
            }
            // Rows do not overlap.
            let mut rows: Vec<(u64, u64)> = Vec::new();
            for (first, more) in damaged {
                if rows.last().is_none_or(|(_, last)| *last < first) {
                    rows.push((first, first + more));
                    index.add_unknown(first, first + more);
                }
            }
            index.forget_below(floor);
            let slots: Vec<u32> = wanted.iter().copied().collect();
            let order = if backwards { Order::Backwards } else { Order::Forwards };
            let (mut low, mut high) = (from, to);
            let mut covered = Vec::new();
            while low <= high {
                let (seqs, end) = index.next(&slots, (low, high), order, limit);
                prop_assert!(seqs.len() <= limit);
                prop_assert!(seqs.iter().all(|seq| (low..=high).contains(seq)));
                let (page_low, page_high) = match (end, order) {
                    (Some(end), Order::Forwards) => (low, end),
                    (Some(end), Order::Backwards) => (end, high),
                    (None, _) => (low, high),
                };
                prop_assert!(page_low >= low && page_high <= high);
                for (first, last) in &rows {
                    let touches = *first <= page_high && *last >= page_low;
                    let is_named = seqs.iter().any(|seq| (first..=last).contains(&seq));
                    prop_assert!(!touches || is_named, "{first}..={last} in {page_low}..={page_high}");
                }
                covered.extend(seqs.into_iter().filter(|seq| (page_low..=page_high).contains(seq)));
                match (end, order) {
                    (None, _) => break,
                    (Some(end), Order::Forwards) => low = end + 1,
                    (Some(end), Order::Backwards) => high = match end.checked_sub(1) { Some(high) => high, None => break },
                }
            }
            let in_row = |seq: &u64| rows.iter().any(|(first, last)| (first..=last).contains(&seq));
            let known = placed.iter().zip(1..).filter(|(slot, _)| wanted.contains(slot)).map(|(_, seq)| seq);
            let mut known: Vec<u64> = known.filter(|seq| (from..=to).contains(seq)).collect();
            if backwards {
                known.reverse();
            }
            // What stands in an unknown row is named with it.
            known.retain(|seq| !in_row(seq));
            covered.retain(|seq| !in_row(seq));
            prop_assert_eq!(covered, known);
        }
    }
}
