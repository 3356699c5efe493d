//! The clock of the database server as this node knows it.

use std::sync::{Mutex, PoisonError};

use nasnet_dbmanager::{BootId, Clock, ClockQuality, Now, SystemClock};

/// Leases of a PostgreSQL store know no boots: they end with their sessions.
const NO_BOOT: BootId = BootId::from_bytes([0; 16]);

/// Estimates the server's time from its last answer and the time that has passed here since it was asked for.
///
/// The estimate is never behind the server by more than its clock was stepped since: a holder that goes by it stops early
/// rather than late. Decisions are made with the time the server tells in the transaction.
#[derive(Debug)]
pub(crate) struct ServerClock {
    local: SystemClock,
    last: Mutex<Told>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    asked: Asked,
    now_ms: u64,
}

/// The moment of a question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked(u64);

impl ServerClock {
    pub(crate) fn new() -> Self {
        let local = SystemClock;
        let now = local.now();
        let told = Told { asked: Asked(now.boottime_ms), now_ms: u64::try_from(now.wall_ms).unwrap_or(0) };
        Self { local, last: Mutex::new(told) }
    }

    pub(crate) fn asking(&self) -> Asked {
        Asked(self.local.now().boottime_ms)
    }

    /// Takes an answer, unless one to a later question is known.
    pub(crate) fn told(&self, asked: Asked, now_ms: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.0 >= last.asked.0 {
            *last = Told { asked, now_ms };
        }
    }

    pub(crate) fn now(&self) -> Now {
        let Told { asked, now_ms } = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        at(now_ms.saturating_add(self.local.now().boottime_ms.saturating_sub(asked.0)))
    }
}

/// Returns a moment of the server's clock as the rules of leases take it.
pub(crate) fn at(now_ms: u64) -> Now {
    Now {
        wall_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
        quality: ClockQuality::Synced,
        boot: NO_BOOT,
        boottime_ms: now_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_counts_from_the_question_and_keeps_the_latest_answer() {
        let clock = ServerClock::new();
        let (first, second) = (clock.asking(), clock.asking());
        clock.told(second, 5_000_000);
        clock.told(Asked(first.0 - 1), 1);
        assert!((5_000_000..5_060_000).contains(&clock.now().boottime_ms), "{:?}", clock.now());
        clock.told(Asked(second.0 - 60_000), 7);
        assert!(clock.now().boottime_ms < 5_060_000);
    }
}
