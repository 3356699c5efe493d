//! Normal events that wait in the hot tier to be flushed, by scope. Pure.

use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use nasnet_dbmanager::Scope;

use crate::class::Class;
use crate::event::Recorded;
use crate::hot::flushed::Flushed;

/// What an event takes beside its body, about.
const EVENT_BYTES: usize = 48;

/// Events of one scope, in the order of their numbers.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<(u64, u32)>,
    raw_bytes: u64,
}

/// The unflushed Normal events of one incarnation of the hot tier. They are known one by one, since whoever flushes, and be
/// it another process, says up to where, and not how many.
#[derive(Debug)]
pub(crate) struct Backlog {
    scopes: HashMap<Scope, Waiting>,
    /// Scopes whose database took nothing the last time: what waits for them is no reason to try again at once.
    held: HashSet<Scope>,
    /// Up to where the others are on flash, as far as this process has heard.
    flushed: Flushed,
}

impl Backlog {
    pub(crate) fn new() -> Self {
        Self { scopes: HashMap::new(), held: HashSet::new(), flushed: Flushed::default() }
    }

    /// Adds an event of the hot log if it is to be flushed; those of a scope come in the order of their numbers.
    pub(crate) fn add(&mut self, event: &Recorded) {
        if event.class != Class::Normal {
            return;
        }
        // An entry would clone the scope of every event.
        if !self.scopes.contains_key(&event.scope) {
            self.scopes.insert(event.scope.clone(), Waiting::default());
        }
        let Some(waiting) = self.scopes.get_mut(&event.scope) else { return };
        let bytes = u32::try_from(event.body.get().len() + EVENT_BYTES).unwrap_or(u32::MAX);
        waiting.events.push_back((event.position.seq, bytes));
        waiting.raw_bytes += u64::from(bytes);
    }

    /// Takes out what is on flash.
    pub(crate) fn flushed(&mut self, flushed: &Flushed) {
        self.scopes.retain(|scope, waiting| {
            let through = flushed.of(scope);
            while let Some((_, bytes)) = waiting.events.pop_front_if(|(seq, _)| *seq <= through) {
                waiting.raw_bytes -= u64::from(bytes);
            }
            !waiting.events.is_empty()
        });
        self.flushed.clone_from(flushed);
    }

    /// Whether an event of this number has reached flash by a flush.
    pub(crate) fn is_flushed(&self, scope: &Scope, class: Class, seq: u64) -> bool {
        class == Class::Normal && seq <= self.flushed.of(scope)
    }

    /// Takes an event out that is nowhere any more.
    pub(crate) fn lost(&mut self, event: &Recorded) {
        let Some(waiting) = self.scopes.get_mut(&event.scope) else { return };
        if let Ok(at) = waiting.events.binary_search_by_key(&event.position.seq, |(seq, _)| *seq)
            && let Some((_, bytes)) = waiting.events.remove(at)
        {
            waiting.raw_bytes -= u64::from(bytes);
        }
        if waiting.events.is_empty() {
            self.scopes.remove(&event.scope);
        }
    }

    /// Takes note of the scopes whose database took nothing the last time.
    pub(crate) fn hold(&mut self, held: impl IntoIterator<Item = Scope>) {
        self.held = held.into_iter().collect();
    }

    /// How many scopes wait for a flush that can be done, and for how many bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        let waiting = self.scopes.iter().filter(|(scope, _)| self.held.is_empty() || !self.held.contains(*scope));
        waiting.fold((0, 0), |(scopes, raw), (_, waiting)| (scopes + 1, raw + waiting.raw_bytes))
    }

    /// Whether something waits for a scope that is not among those.
    pub(crate) fn waits_beside(&self, is_among: impl Fn(&Scope) -> bool) -> bool {
        self.scopes.keys().any(|scope| !is_among(scope))
    }

    /// Events that wait, held or not.
    pub(crate) fn events(&self) -> u64 {
        self.scopes.values().map(|waiting| waiting.events.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;

    proptest! {
        /// Against a plain list of what waits.
        #[test]
        fn what_is_on_flash_waits_no_longer_whoever_wrote_it(
            events in arbitrary::events(1..60),
            through in 0..80_u64,
            own in 0..80_u64,
            gone in 0..60_usize,
        ) {
            let mut backlog = Backlog::new();
            let mut events = events;
            for (seq, event) in (1..).zip(&mut events) {
                event.position.seq = seq;
                backlog.add(event);
            }
            let scope = events[0].scope.clone();
            let behind = BTreeMap::from([(scope.clone(), own.min(through))]);
            backlog.flushed(&Flushed { through, behind });
            if let Some(event) = events.get(gone) {
                backlog.lost(event);
            }
            let of = |event: &&Recorded| if event.scope == scope { own.min(through) } else { through };
            let is_left = |event: &&Recorded| event.class == Class::Normal && event.position.seq > of(event);
            let lost = events.get(gone).map(|event| event.position);
            let left: Vec<&Recorded> =
                events.iter().filter(is_left).filter(|event| Some(event.position) != lost).collect();
            prop_assert_eq!(backlog.events(), left.len() as u64);
            let bytes: usize = left.iter().map(|event| event.body.get().len() + EVENT_BYTES).sum();
            prop_assert_eq!(backlog.waiting().1, bytes as u64);
            for event in events.iter().filter(|event| event.class == Class::Normal) {
                let waits = event.position.seq > of(&event);
                prop_assert_eq!(backlog.is_flushed(&event.scope, event.class, event.position.seq), !waits);
            }
            backlog.hold([scope.clone()]);
            let others = left.iter().filter(|event| event.scope != scope);
            prop_assert_eq!(backlog.waits_beside(|among| *among == scope), others.clone().count() > 0);
            let bytes: usize = others.map(|event| event.body.get().len() + EVENT_BYTES).sum();
            prop_assert_eq!(backlog.waiting().1, bytes as u64);
        }
    }
}
