//! What the events of each stretch of the hot log have in common, so that a read for something rare passes over the stretches
//! that hold none of it. Pure, kept in memory, rebuilt at open; stretches are of numbers and not of rows, which are joined.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use crate::event::{Level, Recorded};
use crate::hot::log::Order;
use crate::query::Query;

/// Numbers of one stretch.
const STRETCH: u64 = 64;
/// Stretches of one answer at most: nobody fetches more rows at once.
const RUN_MAX: usize = 64;

/// Who is among some values, for certain only when the answer is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Among<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Among<WORDS> {
    const NONE: Self = Self([0; WORDS]);
    const ANY: Self = Self([u64::MAX; WORDS]);

    /// The bits of one value. Two of them: with as many values as a stretch has numbers one in twenty is taken for
    /// another in eight words.
    fn bits(hash: u64) -> [(usize, u64); 2] {
        let bit = |hash: u64| {
            let word = usize::try_from((hash >> 6) % (WORDS as u64)).unwrap_or(0);
            (word, 1 << (hash & 63))
        };
        [bit(hash), bit(hash >> 32)]
    }

    fn add(&mut self, hash: u64) {
        for (word, bit) in Self::bits(hash) {
            self.0[word] |= bit;
        }
    }

    fn may_hold(&self, hash: u64) -> bool {
        Self::bits(hash).iter().all(|(word, bit)| self.0[*word] & bit != 0)
    }
}

/// What one stretch may hold.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    wall_ms: (i64, i64),
    /// A bit for each.
    classes: u8,
    levels: u8,
    scopes: Among<1>,
    kinds: Among<1>,
    actors: Among<1>,
    correlations: Among<8>,
}

impl Stretch {
    const NOTHING: Self = Self {
        wall_ms: (i64::MAX, i64::MIN),
        classes: 0,
        levels: 0,
        scopes: Among::NONE,
        kinds: Among::NONE,
        actors: Among::NONE,
        correlations: Among::NONE,
    };
    const ANYTHING: Self = Self {
        wall_ms: (i64::MIN, i64::MAX),
        classes: u8::MAX,
        levels: u8::MAX,
        scopes: Among::ANY,
        kinds: Among::ANY,
        actors: Among::ANY,
        correlations: Among::ANY,
    };

    fn add(&mut self, event: &Recorded) {
        self.wall_ms = (self.wall_ms.0.min(event.wall_ms), self.wall_ms.1.max(event.wall_ms));
        self.classes |= event.class.bit();
        self.levels |= level_bit(event.level);
        self.scopes.add(hash(event.scope.as_str().as_bytes()));
        self.kinds.add(hash(event.kind.as_str().as_bytes()));
        if let Some(actor) = &event.actor {
            self.actors.add(hash(actor.as_bytes()));
        }
        if let Some(id) = event.correlation_id {
            self.correlations.add(hash(&id.to_bytes()));
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    FixedState::default().hash_one(bytes)
}

const fn level_bit(level: Level) -> u8 {
    1 << level as u8
}

/// The conditions of a query that a stretch can answer.
#[derive(Debug)]
pub(crate) struct Wanted {
    wall_ms: Option<(i64, i64)>,
    classes: u8,
    levels: u8,
    scopes: Option<Vec<u64>>,
    kind: Option<u64>,
    actor: Option<u64>,
    correlation: Option<u64>,
}

impl Wanted {
    /// What a query wants, `None` when that is every event as far as a stretch can tell.
    pub(crate) fn of(query: &Query) -> Option<Self> {
        let Query { wall_ms, classes, level_min, scopes, kind, actor, correlation_id, .. } = query;
        let names = scopes.is_some() || kind.is_some() || actor.is_some() || correlation_id.is_some();
        let is_some = names || wall_ms.is_some() || classes.is_some() || *level_min > Level::Debug;
        is_some.then(|| Self::new(query))
    }

    fn new(query: &Query) -> Self {
        let levels = Level::ALL.into_iter().filter(|level| *level >= query.level_min);
        let scopes = query.scopes.as_ref();
        Self {
            wall_ms: query.wall_ms.as_ref().map(|range| (*range.start(), *range.end())),
            classes: query.class_bits(),
            levels: levels.fold(0, |bits, level| bits | level_bit(level)),
            scopes: scopes.map(|scopes| scopes.iter().map(|scope| hash(scope.as_str().as_bytes())).collect()),
            kind: query.kind.as_ref().map(|kind| hash(kind.as_str().as_bytes())),
            actor: query.actor.as_ref().map(|actor| hash(actor.as_bytes())),
            correlation: query.correlation_id.map(|id| hash(&id.to_bytes())),
        }
    }

    fn may_be_in(&self, stretch: &Stretch) -> bool {
        self.wall_ms.is_none_or(|(from, to)| from <= stretch.wall_ms.1 && to >= stretch.wall_ms.0)
            && self.classes & stretch.classes != 0
            && self.levels & stretch.levels != 0
            && self.kind.is_none_or(|kind| stretch.kinds.may_hold(kind))
            && self.actor.is_none_or(|actor| stretch.actors.may_hold(actor))
            && self.correlation.is_none_or(|id| stretch.correlations.may_hold(id))
            && self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| stretch.scopes.may_hold(*scope)))
    }
}

/// What every stretch from some number on may hold.
#[derive(Debug, Default)]
pub(crate) struct Summaries {
    /// Number of the first stretch.
    first: u64,
    stretches: VecDeque<Stretch>,
}

impl Summaries {
    /// Notes an event.
    pub(crate) fn add(&mut self, event: &Recorded) {
        if let Some(stretch) = self.stretch(event.position.seq) {
            stretch.add(event);
        }
    }

    /// Notes numbers of which nobody knows what stands there.
    pub(crate) fn add_unknown(&mut self, from: u64, to: u64) {
        for number in from / STRETCH..=to / STRETCH {
            if let Some(stretch) = self.stretch(number.saturating_mul(STRETCH)) {
                *stretch = Stretch::ANYTHING;
            }
        }
    }

    /// The stretch of a number, made if it is new; `None` below the first one, where everything is possible.
    fn stretch(&mut self, seq: u64) -> Option<&mut Stretch> {
        let number = seq / STRETCH;
        if self.stretches.is_empty() {
            self.first = number;
        }
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        if at >= self.stretches.len() {
            self.stretches.resize(at + 1, Stretch::NOTHING);
        }
        self.stretches.get_mut(at)
    }

    /// Forgets what stands below a number.
    pub(crate) fn forget_below(&mut self, floor: u64) {
        while self.first < floor / STRETCH && self.stretches.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// The nearest run of numbers within `from..=to` that may hold what is wanted; only numbers below `end` are known.
    pub(crate) fn next(&self, wanted: &Wanted, (from, to): (u64, u64), end: u64, order: Order) -> Option<(u64, u64)> {
        if from > to {
            return None;
        }
        let (low, high) = (from / STRETCH, to / STRETCH);
        let starts = |number: u64| number.saturating_mul(STRETCH).max(from);
        let ends = |number: u64| number.saturating_mul(STRETCH).saturating_add(STRETCH - 1).min(to);
        let may = |number: u64| {
            let known = number.checked_sub(self.first).and_then(|at| self.stretches.get(usize::try_from(at).ok()?));
            ends(number) >= end || known.is_none_or(|stretch| wanted.may_be_in(stretch))
        };
        match order {
            Order::Forwards => {
                let first = (low..=high).find(|number| may(*number))?;
                let last = (first..=high).take(RUN_MAX).take_while(|number| may(*number)).last().unwrap_or(first);
                Some((starts(first), ends(last)))
            }
            Order::Backwards => {
                let last = (low..=high).rev().find(|number| may(*number))?;
                let first = (low..=last).rev().take(RUN_MAX).take_while(|number| may(*number)).last().unwrap_or(last);
                Some((starts(first), ends(last)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::*;
    use crate::arbitrary;
    use crate::position::Position;

    fn query_for(event: &Recorded, which: u8) -> Query {
        let query = Query::all();
        match which % 7 {
            0 => query.wall_ms(event.wall_ms..=event.wall_ms),
            1 => query.class(event.class),
            2 => query.level_min(event.level),
            3 => Query::scope(event.scope.clone()),
            4 => query.kind(event.kind.clone()),
            5 => event.actor.iter().fold(query, |query, actor| query.actor(actor)),
            _ => event.correlation_id.iter().fold(query, |query, id| query.correlation_id(*id)),
        }
    }

    proptest! {
        #[test]
        fn no_event_that_is_wanted_is_passed_over(
            events in arbitrary::events(1..60),
            step in 1_u64..40,
            (floor, unknown) in (0_u64..600, 0_u64..2_000),
            about: prop::sample::Index,
            which: u8,
            (a, b) in (1_u64..2_500, 1_u64..2_500),
            backwards: bool,
        ) {
            let mut summaries = Summaries::default();
            let mut placed = events;
            for (event, number) in placed.iter_mut().zip(1..) {
                event.position = Position::new(1, number * step);
                summaries.add(event);
            }
            let end = placed.last().unwrap().position.seq + 1;
            let unknown = unknown.min(end - 1);
            summaries.add_unknown(unknown, unknown);
            summaries.forget_below(floor);
            let query = query_for(about.get(&placed), which);
            let wanted = Wanted::new(&query);
            let order = if backwards { Order::Backwards } else { Order::Forwards };
            let (mut from, mut to) = (a.min(b), a.max(b));
            let matching = |seq: &u64| {
                let is_event = placed.iter().any(|event| event.position.seq == *seq && query.matches(event));
                is_event || *seq == unknown || *seq >= end
            };
            let mut left: Vec<u64> = (from..=to).filter(matching).collect();
            while let Some((first, last)) = summaries.next(&wanted, (from, to), end, order) {
                prop_assert!(from <= first && first <= last && last <= to);
                left.retain(|seq| !(first..=last).contains(seq));
                match order {
                    Order::Forwards => from = last + 1,
                    Order::Backwards => to = first - 1,
                }
            }
            prop_assert_eq!(left, Vec::<u64>::new());
        }
    }

    #[test]
    fn what_is_rare_is_found_in_one_stretch() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let one = arbitrary::events(1..2).new_tree(&mut runner).unwrap().current().remove(0);
        let mut summaries = Summaries::default();
        for seq in 1..=6_400_u64 {
            let (wall_ms, run) = (seq.cast_signed() * 1_000, ulid::Ulid::from(u128::from(seq / 100)));
            let event = Recorded { position: Position::new(1, seq), wall_ms, correlation_id: Some(run), ..one.clone() };
            summaries.add(&event);
        }
        let next = |query: Query, order| summaries.next(&Wanted::new(&query), (1, 6_400), 6_401, order);
        let moment = Query::all().wall_ms(0..=1_000_000);
        assert_eq!(next(moment, Order::Backwards), Some((1, 1_023)));
        let run = Query::all().correlation_id(ulid::Ulid::from(30_u128));
        assert_eq!(next(run, Order::Backwards), Some((2_944, 3_135)));
        let never = Wanted::new(&Query::all().wall_ms(-5..=-1));
        assert_eq!(summaries.next(&never, (1, 6_400), 6_401, Order::Forwards), None);
        assert_eq!(summaries.next(&never, (1, 6_500), 6_401, Order::Forwards), Some((6_400, 6_500)), "not known yet");
    }
}
