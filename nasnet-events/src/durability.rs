//! How durable an append is asked to be, and until when what it wrote must be on flash.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Scope};
use tokio::time::Instant;

use crate::class::Class;
use crate::event::Recorded;
use crate::position::Position;

/// How durable an append is asked to be. What it became is in the receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the hot tier; reaches flash when its class is flushed.
    Volatile,
    /// In the hot tier when the append returns, and on flash within this time: as far as the loop of
    /// [`crate::EventStore::maintain`] runs and the database takes it.
    Batched {
        /// The longest time in tmpfs only.
        max_delay: Duration,
    },
    /// On flash before the append returns.
    Durable,
}

/// The way an append takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the hot tier, on flash within this time if one is given.
    Hot(Option<Duration>),
    /// Through the database of the scope.
    Durable,
}

/// Decides the way of an append, `asked` being what the caller asked for.
///
/// Critical events are never less than durable. The flush takes Normal events only, so a bounded time for a Low one can
/// only be kept by writing it at once.
pub(crate) fn way(asked: Option<Durability>, events: &[Recorded]) -> Way {
    let has = |class: Class| events.iter().any(|event| event.class == class);
    match asked {
        _ if has(Class::Critical) => Way::Durable,
        None | Some(Durability::Volatile) => Way::Hot(None),
        Some(Durability::Durable) => Way::Durable,
        Some(Durability::Batched { .. }) if has(Class::Low) => Way::Durable,
        Some(Durability::Batched { max_delay }) => Way::Hot(Some(max_delay)),
    }
}

/// The cause of a transaction that writes these events: what is Critical may use the reserve of a full database or medium.
pub(crate) fn cause_for(cause: Cause, events: &[Recorded]) -> Cause {
    if events.iter().any(|event| event.class == Class::Critical) { cause.critical() } else { cause }
}

/// When the next flush is due because of what was promised. Bounded: promises close to each other share an entry, which
/// then comes due with the earliest of them.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// Everything up to the position must be on flash by the instant; both ascend.
    due: VecDeque<(Position, Instant)>,
}

/// Promises closer to each other than this part of their delay share an entry.
const SHARED_PART: u32 = 8;

impl Promises {
    /// Promises that everything up to `position` is on flash within `delay`.
    pub(crate) fn add(&mut self, position: Position, now: Instant, delay: Duration) {
        // So far away that nobody will see it.
        let Some(due) = now.checked_add(delay) else { return };
        // A flush of a later position covers an earlier one, and comes first.
        while self.due.back().is_some_and(|(covered, at)| *at >= due && *covered <= position) {
            self.due.pop_back();
        }
        match self.due.back_mut() {
            Some((covered, at)) if due.saturating_duration_since(*at) < delay / SHARED_PART => {
                *covered = position.max(*covered);
            }
            _ => self.due.push_back((position, due)),
        }
    }

    /// Forgets what a flush through `position` has kept.
    pub(crate) fn kept(&mut self, position: Position) {
        self.due.retain(|(covered, _)| *covered > position);
    }

    /// When a flush is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.front().map(|(_, at)| *at)
    }
}

/// The promises of every scope: a database that takes nothing breaks those of nobody else.
#[derive(Debug, Default)]
pub(crate) struct PromisesByScope {
    scopes: HashMap<Scope, OfScope>,
}

#[derive(Debug, Default)]
struct OfScope {
    promises: Promises,
    /// They could not be kept, so they are not due again before.
    not_before: Option<Instant>,
}

impl PromisesByScope {
    /// Promises that everything of a scope up to `position` is on flash within `delay`.
    pub(crate) fn add(&mut self, scope: &Scope, position: Position, now: Instant, delay: Duration) {
        self.scopes.entry(scope.clone()).or_default().promises.add(position, now, delay);
    }

    /// Forgets what a flush has kept, and puts off the rest of those scopes for which it says until when.
    pub(crate) fn kept(
        &mut self,
        through: impl Fn(&Scope) -> Position,
        not_before: impl Fn(&Scope) -> Option<Instant>,
    ) {
        self.scopes.retain(|scope, of| {
            of.promises.kept(through(scope));
            of.not_before = not_before(scope);
            of.promises.next().is_some()
        });
    }

    /// When a flush is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = |of: &OfScope| of.promises.next().map(|at| of.not_before.map_or(at, |not_before| at.max(not_before)));
        self.scopes.values().filter_map(due).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_promise_without_end_is_none() {
        let mut promises = Promises::default();
        promises.add(Position::new(1, 1), Instant::now(), Duration::MAX);
        assert_eq!(promises.next(), None);
    }

    proptest! {
        /// Against the plain list of all promises: the next flush is due no later than the earliest promise that is not
        /// kept, and not needlessly early.
        #[test]
        fn no_promise_comes_due_before_the_flush(steps in prop::collection::vec((1..40_u64, 1..2_000_u64, any::<bool>()), 1..80)) {
            let start = Instant::now();
            let (mut promises, mut all) = (Promises::default(), Vec::new());
            let (mut seq, mut now) = (0, start);
            for (step, delay_ms, flush) in steps {
                now += Duration::from_millis(step);
                seq += 1;
                let (position, delay) = (Position::new(1, seq), Duration::from_millis(delay_ms));
                promises.add(position, now, delay);
                all.push((position, now + delay, delay));
                let earliest = all.iter().map(|(_, due, _)| *due).min().unwrap();
                let next = promises.next().unwrap();
                prop_assert!(next <= earliest);
                prop_assert!(all.iter().any(|(_, due, delay)| due.saturating_duration_since(next) <= *delay));
                if flush {
                    let through = Position::new(1, seq.saturating_sub(step % 5));
                    promises.kept(through);
                    all.retain(|(position, _, _)| *position > through);
                }
                prop_assert_eq!(promises.next().is_none(), all.is_empty());
            }
        }

        #[test]
        fn promises_take_bounded_memory(delay_ms in 8..10_000_u64) {
            let (mut promises, start) = (Promises::default(), Instant::now());
            for seq in 1..20_000_u64 {
                let now = start + Duration::from_millis(seq * delay_ms / 10_000);
                promises.add(Position::new(1, seq), now, Duration::from_millis(delay_ms));
            }
            prop_assert!(promises.due.len() <= 32, "{}", promises.due.len());
        }
    }
    #[test]
    fn a_scope_that_takes_nothing_puts_off_its_own_promises_only() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let (held, other): (Scope, Scope) = ("r1".parse().unwrap(), "r2".parse().unwrap());
        let mut promises = PromisesByScope::default();
        promises.add(&held, Position::new(1, 1), start, second);
        promises.add(&other, Position::new(1, 2), start, second * 5);
        assert_eq!(promises.next(), Some(start + second));
        let later = start + second * 60;
        let through = |scope: &Scope| if *scope == held { Position::START } else { Position::new(1, 2) };
        promises.kept(through, |scope| (*scope == held).then_some(later));
        assert_eq!(promises.next(), Some(later), "not due again at once");
        promises.add(&other, Position::new(1, 3), start, second * 9);
        promises.add(&held, Position::new(1, 4), start, second);
        assert_eq!(promises.next(), Some(start + second * 9), "and nobody else's are put off");
        promises.kept(|_| Position::new(1, 4), |_| None);
        assert_eq!(promises.next(), None);
    }
}
