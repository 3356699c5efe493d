//! ULIDs that only ever grow.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::clock::Now;

/// Bits of a ULID below its timestamp.
const RANDOM_BITS: u32 = 80;

/// The largest timestamp a ULID can hold.
const MS_MAX: u64 = (1 << 48) - 1;

/// Makes strictly increasing ULIDs, whatever the clock does.
///
/// When the clock stands still or has gone back, the next id is the last one plus one: the timestamp stays at the
/// highest millisecond seen, and moves on by itself should the random part overflow. Seeded with the persisted
/// high-water, the order holds across restarts too: the first id then lies in a later millisecond, with a random part of
/// its own, so that two processes that start from one high-water do not give out the same ids.
#[derive(Debug)]
pub struct UlidGen {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Ulid,
    /// Whether the random part of `last` was drawn by this generator; counting up from somebody else's would meet them.
    own: bool,
}

impl UlidGen {
    /// Makes a generator whose ids are all greater than `high_water`.
    pub fn new(high_water: Option<Ulid>) -> Self {
        Self { state: Mutex::new(State { last: high_water.unwrap_or(Ulid::nil()), own: false }) }
    }

    /// Returns the next id.
    pub fn next(&self, now: &Now) -> Ulid {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let clock_ms = u64::try_from(now.wall_ms).unwrap_or(0).min(MS_MAX);
        let last_ms = state.last.timestamp_ms();
        let ms = if state.own { clock_ms } else { clock_ms.max((last_ms + 1).min(MS_MAX)) };
        state.last = if ms > last_ms {
            state.own = true;
            Ulid((u128::from(ms) << RANDOM_BITS) | random_part(now, state.last))
        } else {
            // The carry out of the random part lands in the timestamp.
            Ulid(state.last.0.saturating_add(1))
        };
        state.last
    }

    /// Makes every later id greater than one that was found in use.
    pub fn observe(&self, found: Ulid) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if found > state.last {
            *state = State { last: found, own: false };
        }
    }

    /// Returns the last id given out, or the high-water the generator started with.
    pub fn high_water(&self) -> Ulid {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last
    }
}

/// Draws the part below the timestamp; its top bit is left clear, so that even the last millisecond has room to count.
fn random_part(now: &Now, last: Ulid) -> u128 {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes[6..]).is_err() {
        // Order is what must hold. Without system randomness, what tells processes and moments apart has to do.
        let digest = Sha256::new()
            .chain_update(now.boot.as_bytes())
            .chain_update(now.boottime_ms.to_be_bytes())
            .chain_update(std::process::id().to_be_bytes())
            .chain_update(last.to_bytes())
            .finalize();
        bytes[6..].copy_from_slice(&digest[..10]);
    }
    bytes[6] &= 0x7f;
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, ManualClock};

    #[test]
    fn two_processes_that_start_behind_one_high_water_share_no_id() {
        let now = ManualClock::new(0).now();
        let high_water = Some(Ulid::from_parts(1_800_000_000_000, u128::MAX));
        let (one, other) = (UlidGen::new(high_water), UlidGen::new(high_water));
        let ids: HashSet<Ulid> = (0..1_000).flat_map(|_| [one.next(&now), other.next(&now)]).collect();
        assert_eq!(ids.len(), 2_000);
        assert!(ids.iter().all(|id| Some(*id) > high_water));
    }

    const YEARS_56_MS: i64 = 56 * 365 * 86_400_000;

    proptest! {
        #[test]
        fn ids_grow_under_a_clock_that_jumps_56_years_either_way(
            start in 0..2 * YEARS_56_MS,
            jumps in prop::collection::vec((-YEARS_56_MS..=YEARS_56_MS, 1_usize..4), 1..60),
            restart_at in 0_usize..60,
        ) {
            let clock = ManualClock::new(start);
            let mut generator = UlidGen::new(None);
            let mut last = Ulid::nil();
            for (index, (jump, ids)) in jumps.into_iter().enumerate() {
                clock.set_wall_ms(clock.now().wall_ms + jump);
                if index == restart_at {
                    generator = UlidGen::new(Some(last));
                }
                for _ in 0..ids {
                    let next = generator.next(&clock.now());
                    prop_assert!(next > last, "{next} came after {last}");
                    prop_assert!(i64::try_from(next.timestamp_ms()).expect("48 bits") >= clock.now().wall_ms);
                    last = next;
                }
            }
        }

        #[test]
        fn the_millisecond_moves_on_when_the_random_part_overflows(ms in 1_u64..MS_MAX) {
            let generator = UlidGen::new(Some(Ulid::from_parts(ms, (1 << RANDOM_BITS) - 1)));
            generator.state.lock().unwrap().own = true;
            let next = generator.next(&ManualClock::new(0).now());
            prop_assert_eq!((next.timestamp_ms(), next.random()), (ms + 1, 0));
        }
    }

    #[test]
    fn two_generators_do_not_meet_in_the_same_millisecond() {
        let now = ManualClock::new(1_800_000_000_000).now();
        assert_ne!(UlidGen::new(None).next(&now), UlidGen::new(None).next(&now));
    }

    #[test]
    fn threads_sharing_a_generator_never_get_the_same_id() {
        let generator = Arc::new(UlidGen::new(None));
        let now = ManualClock::new(1_800_000_000_000).now();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let generator = Arc::clone(&generator);
                std::thread::spawn(move || (0..500).map(|_| generator.next(&now)).collect::<Vec<_>>())
            })
            .collect();
        let ids: HashSet<Ulid> = threads.into_iter().flat_map(|thread| thread.join().expect("thread")).collect();
        assert_eq!(ids.len(), 8 * 500);
    }
}
