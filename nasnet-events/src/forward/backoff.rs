//! How long a stream waits for its next try. Pure.

use std::time::Duration;

/// The schedule of tries of one event: 2, 4, 8 .. minutes, never more than an hour, each up to a fifth shorter so that many
/// senders do not come back together. After the last try the event becomes a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backoff {
    /// What is doubled with each try. Default one minute.
    pub unit: Duration,
    /// Longest pause. Default 60 minutes.
    pub max: Duration,
    /// Tries before an event is given up, at least 1. Default 10: about five hours.
    pub tries_max: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { unit: Duration::from_secs(60), max: Duration::from_secs(60 * 60), tries_max: 10 }
    }
}

impl Backoff {
    /// Sets the number of tries before an event is given up.
    #[must_use]
    pub const fn tries_max(mut self, tries: u32) -> Self {
        self.tries_max = tries;
        self
    }

    /// The pause after a number of tries. `seed` says which: the same for the same event and try, another for others.
    #[must_use]
    pub fn pause(&self, tries: u32, seed: u64) -> Duration {
        let doubled = 1_u32.checked_shl(tries).and_then(|factor| self.unit.checked_mul(factor));
        let longest = doubled.unwrap_or(self.max).min(self.max);
        // Up to 204 of 1,024 parts are taken away.
        let parts = 1_024 - u128::from(spread(seed) % 205);
        // Whole milliseconds, as it is stored.
        Duration::from_millis(u64::try_from(longest.as_millis() * parts / 1_024).unwrap_or(u64::MAX))
    }

    /// True when an event has had all of its tries.
    #[must_use]
    pub const fn is_over(&self, tries: u32) -> bool {
        tries >= self.tries_max
    }
}

fn spread(seed: u64) -> u16 {
    let mixed = crc32c::crc32c(&seed.to_be_bytes());
    u16::try_from(mixed >> 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_double_up_to_an_hour_and_lose_at_most_a_fifth(tries in 1..40_u32, seed: u64) {
            let minutes = 60_f64.min(2_f64.powi(i32::try_from(tries).unwrap_or(40)));
            let pause = Backoff::default().pause(tries, seed).as_secs_f64() / 60.0;
            prop_assert!(pause <= minutes + 1e-6, "{pause} of {minutes}");
            prop_assert!(pause >= minutes * 0.8 - 1e-6, "{pause} of {minutes}");
        }
    }

    #[test]
    fn pauses_of_many_senders_differ() {
        let backoff = Backoff::default();
        let pauses: std::collections::HashSet<Duration> = (0..200).map(|seed| backoff.pause(3, seed)).collect();
        assert!(pauses.len() > 80, "{}", pauses.len());
        let endless = Backoff { unit: Duration::MAX, max: Duration::MAX, ..backoff };
        assert!((0..2_000).all(|seed| endless.pause(3, seed) > Duration::from_secs(1 << 50)));
        assert!(!backoff.is_over(9));
        assert!(backoff.is_over(10));
    }
}
