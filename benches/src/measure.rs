//! Medians of interleaved rounds, and the rows they become.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Fewest rounds of a measurement that is published.
pub const ROUNDS: usize = 7;

/// One row of the ratio table.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// Its id in the list of performance goals.
    pub id: &'static str,
    /// What is compared with what.
    pub what: String,
    /// The measured ratio (or count, where the goal is one).
    pub value: f64,
    /// The goal.
    pub target: f64,
    /// Whether the goal is met.
    pub holds: bool,
    /// The value with an idle second core, where both were measured. The worse of the two is the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<f64>,
    /// The value with a busy one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy: Option<f64>,
}

impl Ratio {
    /// A ratio that has to reach its target.
    #[must_use]
    pub fn at_least(id: &'static str, what: impl Into<String>, value: f64, target: f64) -> Self {
        Self { id, what: what.into(), value: round(value), target, holds: value >= target, idle: None, busy: None }
    }

    /// A number that must not pass its target.
    #[must_use]
    pub fn at_most(id: &'static str, what: impl Into<String>, value: f64, target: f64) -> Self {
        Self { id, what: what.into(), value: round(value), target, holds: value <= target, idle: None, busy: None }
    }

    /// A ratio that has to reach its target with an idle and with a busy second core.
    #[must_use]
    pub fn both_at_least(id: &'static str, what: impl Into<String>, [idle, busy]: [f64; 2], target: f64) -> Self {
        Self { idle: Some(round(idle)), busy: Some(round(busy)), ..Self::at_least(id, what, idle.min(busy), target) }
    }

    /// A number that must not pass its target, with an idle or with a busy second core.
    #[must_use]
    pub fn both_at_most(id: &'static str, what: impl Into<String>, [idle, busy]: [f64; 2], target: f64) -> Self {
        Self { idle: Some(round(idle)), busy: Some(round(busy)), ..Self::at_most(id, what, idle.max(busy), target) }
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Returns the middle of the rounds, the lower one of two.
#[must_use]
pub fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort_unstable();
    rounds.get(rounds.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Returns the time under which `hundredths` of the samples stayed.
#[must_use]
pub fn percentile(mut samples: Vec<Duration>, hundredths: usize) -> Duration {
    samples.sort_unstable();
    let at = (samples.len() * hundredths / 100).min(samples.len().saturating_sub(1));
    samples.get(at).copied().unwrap_or_default()
}

/// Converts a count of bytes or events: they are far below the 2^53 a float holds exactly.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub const fn exact(count: u64) -> f64 {
    count as f64
}

/// Keeps one core busy until it is dropped.
#[derive(Debug)]
pub struct BusyCore {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl BusyCore {
    /// Starts spinning.
    #[must_use]
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for BusyCore {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread cannot panic: it only reads a flag.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let ms = |times: &[u64]| times.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(median(ms(&[9, 1, 5])), Duration::from_millis(5));
        assert_eq!(median(ms(&[4, 1, 9, 5])), Duration::from_millis(4));
        assert_eq!(median(Vec::new()), Duration::ZERO);
        assert_eq!(percentile(ms(&[1, 2, 3, 4]), 99), Duration::from_millis(4));
    }

    #[test]
    fn a_goal_holds_on_its_own_side() {
        assert!(Ratio::at_least("P", "x", 5.0, 5.0).holds && !Ratio::at_least("P", "x", 4.99, 5.0).holds);
        assert!(Ratio::at_most("P", "x", 0.0, 0.0).holds && !Ratio::at_most("P", "x", 1.0, 0.0).holds);
        let worse = |row: Ratio| (row.value, row.holds, row.idle, row.busy);
        assert_eq!(worse(Ratio::both_at_least("P", "x", [5.0, 3.0], 4.0)), (3.0, false, Some(5.0), Some(3.0)));
        assert_eq!(worse(Ratio::both_at_most("P", "x", [5.0, 3.0], 6.0)), (5.0, true, Some(5.0), Some(3.0)));
    }
}
