//! How far down the reads of callers had to look.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::observe;

/// Reads by callers of this process, counted once for each tier they looked into. Every read looks at the hot tier first,
/// so `hot` is all of them, and `hot - warm` those that it served alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// Reads that looked at the hot tier.
    pub hot: u64,
    /// Those that went on to the warm tier.
    pub warm: u64,
    /// Those that went on to the cold tier, when there is one. It is looked into together with the warm one.
    pub cold: u64,
}

/// How far down one read has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    Nowhere,
    Hot,
    Warm,
    Cold,
}

#[derive(Debug, Default)]
pub(crate) struct ReadCounts([AtomicU64; 3]);

impl ReadCounts {
    /// Counts the tiers a read has come down to, each once.
    pub(crate) fn note(&self, seen: &mut Depth, now: Depth) {
        let tiers = [(Depth::Hot, "hot"), (Depth::Warm, "warm"), (Depth::Cold, "cold")];
        for ((depth, tier), count) in tiers.into_iter().zip(&self.0) {
            if depth > *seen && depth <= now {
                count.fetch_add(1, Ordering::Relaxed);
                observe::read(tier);
            }
        }
        *seen = now.max(*seen);
    }

    pub(crate) fn totals(&self) -> Reads {
        let [hot, warm, cold] = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Reads { hot, warm, cold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_counts_once_for_each_tier_however_many_pages_it_has() {
        let counts = ReadCounts::default();
        let mut seen = Depth::Nowhere;
        for now in [Depth::Hot, Depth::Hot, Depth::Warm, Depth::Cold, Depth::Hot, Depth::Warm] {
            counts.note(&mut seen, now);
        }
        counts.note(&mut Depth::Nowhere.clone(), Depth::Hot);
        assert_eq!(counts.totals(), Reads { hot: 2, warm: 1, cold: 1 });
    }
}
