//! What is known by id. Pure.

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use ulid::Ulid;

use crate::heads::Known;

/// Known events by id. Ids are made in the order of time, so most come in ascending order: those are a list, which costs a
/// third of a table, and only what comes late is in one.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// Ascending; `None` = forgotten since.
    list: Vec<(Ulid, Option<Known>)>,
    /// How many of the list are forgotten.
    holes: usize,
    /// Those that came after a larger one. One after the other in memory: a table of whole entries would be written all
    /// over, and moved when it grows.
    late: IndexMap<Ulid, Known, RandomState>,
    /// None here is larger.
    largest: Option<Ulid>,
}

impl Ids {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len() - self.holes + self.late.len()
    }

    fn at(&self, id: Ulid) -> Option<usize> {
        self.list.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    /// What is known of an id.
    pub(crate) fn get(&self, id: Ulid) -> Option<Known> {
        if Some(id) > self.largest {
            return None;
        }
        match self.at(id) {
            Some(at) => self.list[at].1,
            None => self.late.get(&id).copied(),
        }
    }

    /// What is known of an id, to be changed.
    pub(crate) fn get_mut(&mut self, id: Ulid) -> Option<&mut Known> {
        match self.at(id) {
            Some(at) => self.list[at].1.as_mut(),
            None => self.late.get_mut(&id),
        }
    }

    /// Makes an id known; returns what was known of it.
    pub(crate) fn insert(&mut self, id: Ulid, known: Known) -> Option<Known> {
        if Some(id) > self.largest {
            self.largest = Some(id);
            self.list.push((id, Some(known)));
            return None;
        }
        match self.at(id) {
            Some(at) => {
                let before = self.list[at].1.replace(known);
                self.holes -= usize::from(before.is_none());
                before
            }
            None => self.late.insert(id, known),
        }
    }

    /// Forgets an id.
    pub(crate) fn remove(&mut self, id: Ulid) {
        match self.at(id) {
            Some(at) => self.holes += usize::from(self.list[at].1.take().is_some()),
            None => drop(self.late.swap_remove(&id)),
        }
    }

    /// Forgets all but some, and gives back the memory.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Known) -> bool) {
        self.list.retain(|(_, known)| known.as_ref().is_some_and(&keep));
        self.holes = 0;
        self.late.retain(|_, known| keep(known));
        // One from a clock that was far ahead would make all that follow late.
        self.largest = self.list.last().map(|(id, _)| *id).max(self.late.keys().max().copied());
        self.list.shrink_to(self.list.len().saturating_mul(2));
        self.late.shrink_to(self.late.len().saturating_mul(2));
    }

    /// Makes everything known that others know.
    pub(crate) fn absorb(&mut self, others: Self) {
        // Holes would stay for good.
        if others.holes == 0 && others.list.first().is_some_and(|(first, _)| Some(*first) > self.largest) {
            self.largest = others.largest;
            self.list.extend(others.list);
        } else {
            for (id, known) in others.list {
                if let Some(known) = known {
                    self.insert(id, known);
                }
            }
        }
        for (id, known) in others.late {
            self.insert(id, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::position::Position;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64),
        Remove(u64),
        Change(u64),
        Retain(u64),
        /// What another knows, and has forgotten of it.
        Absorb(Vec<u64>, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..60_u64).prop_map(Step::Insert),
            3 => (0..60_u64).prop_map(Step::Remove),
            1 => (0..60_u64).prop_map(Step::Change),
            1 => (1..4_u64).prop_map(Step::Retain),
            2 => (0..60_u64, prop::collection::vec(0..9_u64, 0..9), 0..60_u64)
                .prop_map(|(from, ids, forgotten)| Step::Absorb(ids.into_iter().map(|id| from + id).collect(), forgotten)),
        ]
    }

    fn known(version: u64) -> Known {
        Known::new(Position::new(1, version), version, 0)
    }

    #[test]
    fn an_id_takes_no_more_memory_than_it_must() {
        assert_eq!(size_of::<(Ulid, Option<Known>)>(), 48);
    }

    proptest! {
        /// Against a plain map.
        #[test]
        fn what_is_known_is_found_in_whatever_order_it_came(steps in prop::collection::vec(step(), 0..200)) {
            let (mut ids, mut model) = (Ids::default(), BTreeMap::new());
            let id = |number: u64| Ulid::from(u128::from(number));
            for (version, step) in (1..).zip(steps) {
                match step {
                    Step::Insert(number) => {
                        let before = ids.insert(id(number), known(version)).map(|known| known.version);
                        prop_assert_eq!(before, model.insert(number, version));
                    }
                    Step::Remove(number) => {
                        ids.remove(id(number));
                        model.remove(&number);
                    }
                    Step::Change(number) => {
                        let changed = ids.get_mut(id(number)).map(|known| known.version = version);
                        prop_assert_eq!(changed.is_some(), model.contains_key(&number));
                        model.entry(number).and_modify(|known| *known = version);
                    }
                    Step::Retain(modulus) => {
                        ids.retain(|known| known.version.is_multiple_of(modulus));
                        model.retain(|_, version| version.is_multiple_of(modulus));
                    }
                    Step::Absorb(numbers, forgotten) => {
                        let mut others = Ids::default();
                        for number in &numbers {
                            others.insert(id(*number), known(version));
                        }
                        others.remove(id(forgotten));
                        ids.absorb(others);
                        model.extend(numbers.into_iter().filter(|number| *number != forgotten).map(|number| (number, version)));
                    }
                }
                prop_assert_eq!(ids.len(), model.len());
                for number in 0..70 {
                    prop_assert_eq!(ids.get(id(number)).map(|known| known.version), model.get(&number).copied());
                }
            }
        }
    }
}
