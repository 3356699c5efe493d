//! Streams that cannot be sent now. Pure.

use std::time::Duration;

use nasnet_dbmanager::{BootId, Now, Scope};

use crate::name::StreamName;
use crate::position::Position;

/// A stream a forwarder has to leave for a while: nothing of it is sent past the event at `position`, so that its order is
/// kept. Others go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedStream {
    /// Scope of the stream.
    pub scope: Scope,
    /// The stream.
    pub stream: StreamName,
    /// The event that failed.
    pub position: Position,
    /// Times it was tried.
    pub tries: u32,
    /// Why it failed the last time.
    pub why: String,
    /// The last try, by boot and the time since.
    pub boot: BootId,
    /// Milliseconds since that boot.
    pub boottime_ms: u64,
    /// How long it waits since then.
    pub pause: Duration,
}

impl BlockedStream {
    /// Time until the next try. After a reboot the whole pause counts from its start: how long the machine was off only the
    /// wall clock could tell, and that may have jumped.
    #[must_use]
    pub fn due_in(&self, now: &Now) -> Duration {
        let passed = now.age_of(self.boot, self.boottime_ms);
        self.pause.saturating_sub(passed.unwrap_or(Duration::from_millis(now.boottime_ms)))
    }
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{Clock, ManualClock};

    use super::*;

    #[test]
    fn a_pause_is_measured_by_the_time_since_boot() {
        let clock = ManualClock::new(0);
        let now = clock.now();
        let blocked = BlockedStream {
            scope: Scope::System,
            stream: StreamName::parse("s").unwrap(),
            position: Position::new(1, 1),
            tries: 1,
            why: String::new(),
            boot: now.boot,
            boottime_ms: now.boottime_ms,
            pause: Duration::from_secs(120),
        };
        clock.set_wall_ms(i64::MAX / 2);
        assert_eq!(blocked.due_in(&clock.now()), Duration::from_secs(120));
        clock.advance(Duration::from_secs(50));
        assert_eq!(blocked.due_in(&clock.now()), Duration::from_secs(70));
        clock.reboot();
        assert_eq!(blocked.due_in(&clock.now()), Duration::from_secs(120));
        clock.advance(Duration::from_secs(121));
        assert!(blocked.due_in(&clock.now()).is_zero());
    }
}
