//! Joins what several places found for one page into one ordered answer without duplicates. Pure.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::position::Position;

/// A range of positions still to be read: after `low`, up to `high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) low: Position,
    pub(crate) high: Position,
}

impl Range {
    pub(crate) fn is_empty(self) -> bool {
        self.low >= self.high
    }
}

/// What one place found in a range, and how far it looked.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) events: Vec<Recorded>,
    pub(crate) errors: Vec<Error>,
    /// Forwards: everything up to here was looked at. Backwards: everything after here.
    pub(crate) covered: Position,
}

impl Slice {
    /// A place that has looked at the whole range.
    pub(crate) const fn whole(range: Range, order: Order) -> Self {
        Self { events: Vec::new(), errors: Vec::new(), covered: end_of(range, order) }
    }

    /// Notes that a stretch `first..=last` was looked at and nothing nearer was left out.
    pub(crate) fn stop_at(&mut self, first: Position, last: Position, order: Order) {
        self.covered = match order {
            Order::Forwards => last,
            Order::Backwards => first.before(),
        };
    }
}

/// Where a range ends when read in this order.
pub(crate) const fn end_of(range: Range, order: Order) -> Position {
    match order {
        Order::Forwards => range.high,
        Order::Backwards => range.low,
    }
}

/// The events every place has looked for, in order and once each, and the range that is left.
///
/// Of two copies of an event the first slice's is taken, so the caller puts the nearest tier first.
pub(crate) fn merge(range: Range, order: Order, slices: Vec<Slice>) -> (Vec<Recorded>, Vec<Error>, Range) {
    let covered = slices.iter().map(|slice| slice.covered);
    let (low, high, left) = match order {
        Order::Forwards => {
            let cut = covered.fold(range.high, Position::min).max(range.low);
            (range.low, cut, Range { low: cut, high: range.high })
        }
        Order::Backwards => {
            let cut = covered.fold(range.low, Position::max).min(range.high);
            (cut, range.high, Range { low: range.low, high: cut })
        }
    };
    let mut errors = Vec::new();
    let mut merged: BTreeMap<Position, Recorded> = BTreeMap::new();
    for slice in slices {
        errors.extend(slice.errors);
        for event in slice.events {
            if event.position > low && event.position <= high {
                merged.entry(event.position).or_insert(event);
            }
        }
    }
    let events = match order {
        Order::Forwards => merged.into_values().collect(),
        Order::Backwards => merged.into_values().rev().collect(),
    };
    (events, errors, left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;

    /// Reads `held` the way a tier does: at most `page` events, and says how far it got.
    fn look(held: &[Recorded], range: Range, order: Order, page: usize) -> Slice {
        let inside = held.iter().filter(|event| event.position > range.low && event.position <= range.high);
        let mut found: Vec<Recorded> = inside.cloned().collect();
        if order == Order::Backwards {
            found.reverse();
        }
        let mut slice = Slice::whole(range, order);
        if found.len() > page {
            found.truncate(page);
            if let Some(last) = found.last() {
                slice.stop_at(last.position, last.position, order);
            }
        }
        slice.events = found;
        slice
    }

    proptest! {
        #[test]
        fn pages_of_overlapping_tiers_join_to_every_event_once(
            events in arbitrary::events(0..30),
            homes in prop::collection::vec(1..8_u8, 30),
            pages in prop::collection::vec(1..6_usize, 3),
            backwards: bool,
        ) {
            // Every event is in at least one of three tiers.
            let tier = |bit: u8| -> Vec<Recorded> {
                events.iter().zip(&homes).filter(|(_, home)| **home & bit != 0).map(|(event, _)| event.clone()).collect()
            };
            let tiers = [tier(1), tier(2), tier(4)];
            let order = if backwards { Order::Backwards } else { Order::Forwards };
            let mut range = Range { low: Position::START, high: Position::END };
            let mut read = Vec::new();
            let mut rounds = 0;
            while !range.is_empty() {
                let slices = tiers.iter().zip(&pages).map(|(held, page)| look(held, range, order, *page)).collect();
                let (events, _, left) = merge(range, order, slices);
                prop_assert_ne!(left, range, "a page must make progress");
                read.extend(events);
                range = left;
                rounds += 1;
                prop_assert!(rounds < 100);
            }
            if backwards {
                read.reverse();
            }
            prop_assert_eq!(read, events);
        }
    }
}
