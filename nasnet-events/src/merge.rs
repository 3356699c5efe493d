//! Joins what several places found for one page into one ordered answer without duplicates. Pure.

use std::cmp::Reverse;
use std::collections::HashSet;

use crate::class::Class;
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

    pub(crate) fn contains(self, position: Position) -> bool {
        self.low < position && position <= self.high
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

    /// The part of a range that lies within what was looked at.
    pub(crate) fn within(&self, range: Range, order: Order) -> Range {
        match order {
            Order::Forwards => Range { high: range.high.min(self.covered), ..range },
            Order::Backwards => Range { low: range.low.max(self.covered), ..range },
        }
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
    let mut events: Vec<Recorded> = Vec::new();
    for mut slice in slices {
        errors.append(&mut slice.errors);
        slice.events.retain(|event| event.position > low && event.position <= high);
        if events.is_empty() { events = slice.events } else { events.append(&mut slice.events) }
    }
    // Stable, so copies stay in the order of their slices; nothing moves where one tier had the whole page in order.
    match order {
        Order::Forwards => events.sort_by_key(|event| event.position),
        Order::Backwards => events.sort_by_key(|event| Reverse(event.position)),
    }
    events.dedup_by_key(|event| event.position);
    (events, errors, left)
}

/// The last durable event of a page forwards that the first place alone has.
pub(crate) fn alone_in_first(range: Range, slices: &[Slice]) -> Option<Position> {
    let (first, others) = slices.split_first()?;
    let through = slices.iter().map(|slice| slice.covered).fold(range.high, Position::min);
    let elsewhere: HashSet<Position> =
        others.iter().flat_map(|slice| &slice.events).map(|event| event.position).collect();
    let page = Range { low: range.low, high: through };
    let alone = first.events.iter().filter(|event| {
        event.class != Class::Low && page.contains(event.position) && !elsewhere.contains(&event.position)
    });
    alone.map(|event| event.position).max()
}

/// Ends a page early that holds too much: the nearest events stay, at least one and at most as many, with as many bytes of
/// bodies, as the limits say. Returns how many that are; `rest` ends with the last of them.
pub(crate) fn cut(
    slices: &mut [Slice],
    rest: &mut Range,
    order: Order,
    (events_max, bytes_max): (usize, usize),
) -> (usize, usize) {
    let mut sizes: Vec<(Position, usize)> = Vec::new();
    for slice in slices.iter() {
        sizes.extend(slice.events.iter().map(|event| (event.position, event.body.get().len())));
    }
    match order {
        Order::Forwards => sizes.sort_unstable(),
        Order::Backwards => sizes.sort_unstable_by(|a, b| b.cmp(a)),
    }
    let (mut bytes, mut end) = (0_usize, None);
    for (number, (position, size)) in sizes.into_iter().enumerate() {
        bytes = bytes.saturating_add(size);
        // Copies of one event stay together.
        if number > 0 && end != Some(position) && (number >= events_max || bytes > bytes_max) {
            break;
        }
        end = Some(position);
    }
    let Some(end) = end else { return (0, 0) };
    match order {
        Order::Forwards => rest.high = rest.high.min(end),
        Order::Backwards => rest.low = rest.low.max(end.before()),
    }
    let (mut events, mut bytes) = (0, 0);
    for slice in slices {
        slice.events.retain(|event| event.position > rest.low && event.position <= rest.high);
        slice.covered = match order {
            Order::Forwards => slice.covered.min(rest.high),
            Order::Backwards => slice.covered.max(rest.low),
        };
        events += slice.events.len();
        bytes += slice.events.iter().map(|event| event.body.get().len()).sum::<usize>();
    }
    (events, bytes)
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
            limits in (1..40_usize, 1..4_000_usize),
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
            let (mut rounds, mut alone) = (0, None);
            while !range.is_empty() {
                let mut slices: Vec<Slice> = Vec::new();
                let mut rest = range;
                for (held, page) in tiers.iter().zip(&pages) {
                    let slice = look(held, rest, order, *page);
                    rest = slice.within(rest, order);
                    slices.push(slice);
                    let (events, bytes) = cut(&mut slices, &mut rest, order, limits);
                    // Three copies of one event at most stay together.
                    prop_assert!(events <= limits.0 + 2 && (events <= 3 || bytes <= limits.1 * 3));
                }
                alone = alone.max(alone_in_first(range, &slices).filter(|_| !backwards));
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
            prop_assert_eq!(&read, &events);
            let of_first = events.iter().zip(&homes).filter(|(event, home)| **home == 1 && event.class != Class::Low);
            prop_assert_eq!(alone, of_first.map(|(event, _)| event.position).max().filter(|_| !backwards));
        }
    }
}
