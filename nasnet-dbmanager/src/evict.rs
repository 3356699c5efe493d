//! The rules of the open set: which router database makes room for another.

/// What the rules know about one entry of the open set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate<K> {
    pub(crate) id: K,
    /// Handles in use, callers waiting for the entry included.
    pub(crate) leases: usize,
    /// When it was last asked for, on a counter that only grows.
    pub(crate) used: u64,
    /// Whether it is open and not yet being closed.
    pub(crate) open: bool,
}

/// How an entry that is not in the set gets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission<K> {
    /// There is room.
    Open,
    /// This one is closed first.
    Evict(K),
    /// Every entry is in use or on its way in or out; room comes when one is returned.
    Wait,
}

/// Decides how the next database is admitted to a set of at most `max_open`.
///
/// Closing entries still count: their connections and memory are in use until the close has ended.
pub(crate) fn admit<K: Copy>(max_open: usize, set: impl Iterator<Item = Candidate<K>>) -> Admission<K> {
    let mut size = 0;
    let mut oldest: Option<Candidate<K>> = None;
    for candidate in set {
        size += 1;
        let evictable = candidate.open && candidate.leases == 0;
        if evictable && oldest.is_none_or(|o| candidate.used < o.used) {
            oldest = Some(candidate);
        }
    }
    match oldest {
        _ if size < max_open.max(1) => Admission::Open,
        Some(candidate) => Admission::Evict(candidate.id),
        None => Admission::Wait,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: u32, leases: usize, used: u64, open: bool) -> Candidate<u32> {
        Candidate { id, leases, used, open }
    }

    #[test]
    fn the_least_recently_used_unleased_entry_goes_first() {
        let set = [entry(1, 1, 1, true), entry(2, 0, 3, true), entry(3, 0, 2, true), entry(4, 0, 0, false)];
        assert_eq!(admit(4, set.into_iter()), Admission::Evict(3));
        assert_eq!(admit(5, set.into_iter()), Admission::Open);
    }

    #[test]
    fn a_bound_of_zero_still_admits_one() {
        assert_eq!(admit::<u32>(0, std::iter::empty()), Admission::Open);
    }

    proptest! {
        #[test]
        fn a_leased_entry_never_goes_and_room_is_never_refused(
            max_open in 1usize..6,
            set in proptest::collection::vec((0usize..3, any::<u64>(), any::<bool>()), 0..8),
        ) {
            let set: Vec<_> =
                set.into_iter().zip(0..).map(|((leases, used, open), id)| entry(id, leases, used, open)).collect();
            match admit(max_open, set.iter().copied()) {
                Admission::Open => prop_assert!(set.len() < max_open),
                Admission::Evict(id) => {
                    let victim = set[id as usize];
                    prop_assert!(set.len() >= max_open && victim.open && victim.leases == 0);
                    prop_assert!(set.iter().all(|c| !c.open || c.leases > 0 || c.used >= victim.used));
                }
                Admission::Wait => {
                    prop_assert!(set.len() >= max_open);
                    prop_assert!(set.iter().all(|c| !c.open || c.leases > 0));
                }
            }
        }
    }
}
