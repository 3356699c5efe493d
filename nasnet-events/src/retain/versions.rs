//! Which versions of a stream retention removed. Pure.

use std::ops::RangeInclusive;

use crate::varint::{self, Malformed, Reader};

/// Stretches kept of one stream. Beyond that the two that are closest become one: a gap between them would be told as
/// removed.
const STRETCHES_MAX: usize = 1_024;

/// A set of versions, kept as stretches that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Versions(Vec<(u64, u64)>);

impl Versions {
    /// The highest one.
    pub(crate) fn top(&self) -> Option<u64> {
        self.0.last().map(|(_, last)| *last)
    }

    /// Adds a stretch; an empty one adds nothing.
    pub(crate) fn add(&mut self, stretch: RangeInclusive<u64>) {
        let (mut first, mut last) = stretch.into_inner();
        if first > last {
            return;
        }
        // Those that overlap it or touch it become one with it.
        let from = self.0.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        if let Some((begin, _)) = self.0.get(from).filter(|_| from < to) {
            first = first.min(*begin);
            last = last.max(self.0[to - 1].1);
        }
        self.0.splice(from..to, [(first, last)]);
    }

    /// Adds all of another set.
    pub(crate) fn add_all(&mut self, others: &Self) {
        for (first, last) in &others.0 {
            self.add(*first..=*last);
        }
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, version: u64) {
        let at = self.0.partition_point(|(_, last)| *last < version);
        let Some((first, last)) = self.0.get(at).copied().filter(|(first, _)| *first <= version) else { return };
        let below = (first < version).then(|| (first, version - 1));
        let above = (version < last).then(|| (version + 1, last));
        self.0.splice(at..=at, below.into_iter().chain(above));
    }

    /// True when one of them lies between the two, which do not count.
    pub(crate) fn any_between(&self, after: u64, before: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last <= after);
        self.0.get(at).is_some_and(|(first, _)| (*first).max(after.saturating_add(1)) < before)
    }

    /// The set as it is stored: of each stretch the distance from the one before, and its length.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut kept = self.clone();
        while kept.0.len() > STRETCHES_MAX {
            kept.join_closest();
        }
        let (mut bytes, mut before) = (Vec::new(), 0);
        for (first, last) in kept.0 {
            varint::put(&mut bytes, first - before);
            varint::put(&mut bytes, last - first);
            before = last;
        }
        bytes
    }

    fn join_closest(&mut self) {
        let distance = |at: &usize| self.0[*at].0 - self.0[*at - 1].1;
        let Some(at) = (1..self.0.len()).min_by_key(distance) else { return };
        let (_, last) = self.0.remove(at);
        self.0[at - 1].1 = last;
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let too_large = Malformed("version too large");
        let mut reader = Reader::new(bytes);
        let (mut stretches, mut before) = (Vec::new(), 0_u64);
        while !reader.is_empty() {
            let distance = reader.varint()?;
            if distance == 0 && !stretches.is_empty() {
                return Err(Malformed("stretches of versions overlap"));
            }
            let first = before.checked_add(distance).ok_or(too_large)?;
            let last = first.checked_add(reader.varint()?).ok_or(too_large)?;
            stretches.push((first, last));
            before = last;
        }
        Ok(Self(stretches))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn some() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((1..80_u64, 0..6_u64), 0..24)
    }

    fn set(added: &[(u64, u64)]) -> (Versions, BTreeSet<u64>) {
        let (mut versions, mut model) = (Versions::default(), BTreeSet::new());
        for (first, more) in added {
            versions.add(*first..=first + more);
            model.extend(*first..=first + more);
        }
        (versions, model)
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_added(added in some(), more in some(), after in 0..90_u64, before in 0..90_u64) {
            let (mut versions, mut model) = set(&added);
            let (others, of_others) = set(&more);
            versions.add_all(&others);
            model.extend(of_others);
            prop_assert_eq!(versions.top(), model.last().copied());
            let between = model.iter().any(|version| *version > after && *version < before);
            prop_assert_eq!(versions.any_between(after, before), between);
            let apart = versions.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0);
            prop_assert!(apart, "{:?}", versions);
            prop_assert_eq!(&Versions::parse(&versions.encode()).unwrap(), &versions);
            for version in [after, before] {
                versions.remove(version);
                model.remove(&version);
            }
            let left: BTreeSet<u64> = versions.0.iter().flat_map(|(first, last)| *first..=*last).collect();
            prop_assert_eq!(left, model);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(Versions::parse(&bytes));
        }
    }

    #[test]
    fn too_many_stretches_become_fewer_and_leave_no_version_out() {
        let mut versions = Versions::default();
        for number in 0..2_000_u64 {
            // Every third distance is short.
            let first = 1 + number * 10 - if number % 3 == 1 { 5 } else { 0 };
            versions.add(first..=first);
        }
        let stored = Versions::parse(&versions.encode()).unwrap();
        assert_eq!((stored.0.len(), stored.top()), (STRETCHES_MAX, versions.top()));
        for (first, _) in &versions.0 {
            assert!(stored.any_between(first - 1, first + 1));
        }
        assert!(!stored.any_between(1, 6) || stored.0[0] == (1, 6), "{:?}", &stored.0[..3]);
    }

    #[test]
    fn a_prefix_takes_two_bytes() {
        let mut versions = Versions::default();
        versions.add(1..=60);
        versions.add(61..=100);
        assert_eq!(versions.encode(), [1, 99]);
    }
}
