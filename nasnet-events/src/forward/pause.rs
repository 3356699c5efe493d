//! How long a forwarder rests. Pure, with time since boot.

use std::time::Duration;

/// How often the queue is looked at when nothing calls for it.
pub(crate) const IDLE_PAUSE: Duration = Duration::from_secs(5);
/// How long nothing is tried after the sink was not there.
pub(crate) const OFFLINE_PAUSE: Duration = Duration::from_secs(60);
/// What is due does not keep the loop from resting.
const IDLE_PAUSE_MIN: Duration = Duration::from_millis(50);

/// The time in which nothing new is begun.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    until_ms: Option<u64>,
    /// It is the sink's absence: blocked streams are not tried either.
    is_offline: bool,
}

impl Pause {
    /// Begins nothing new for so long.
    pub(crate) fn begin(&mut self, now_ms: u64, longest: Duration) {
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        *self = Self { until_ms: Some(now_ms.saturating_add(longest_ms)), is_offline: false };
    }

    /// Tries nothing at all for a minute.
    pub(crate) fn go_offline(&mut self, now_ms: u64) {
        self.begin(now_ms, OFFLINE_PAUSE);
        self.is_offline = true;
    }

    /// Whatever kept everything from being sent is over.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_on(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until_ms| now_ms < until_ms)
    }

    pub(crate) fn is_offline(&self, now_ms: u64) -> bool {
        self.is_offline && self.is_on(now_ms)
    }

    /// How long there is nothing to do unless events arrive, when the first blocked stream is due in so long.
    pub(crate) fn idle_for(&self, now_ms: u64, due: Option<Duration>) -> Duration {
        let left = self.until_ms.map(|until_ms| Duration::from_millis(until_ms.saturating_sub(now_ms)));
        let due = due.filter(|_| !self.is_offline(now_ms));
        let next = due.into_iter().chain(left).min().unwrap_or(IDLE_PAUSE);
        next.clamp(IDLE_PAUSE_MIN, IDLE_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_sink_is_waited_for_whatever_is_due() {
        let mut pause = Pause::default();
        let overdue = Some(Duration::ZERO);
        assert_eq!((pause.idle_for(0, None), pause.idle_for(0, overdue)), (IDLE_PAUSE, IDLE_PAUSE_MIN));
        pause.go_offline(1_000);
        assert!(pause.is_on(60_999) && pause.is_offline(60_999));
        assert_eq!(pause.idle_for(1_000, overdue), IDLE_PAUSE);
        assert_eq!(pause.idle_for(60_000, overdue), Duration::from_secs(1));
        assert!(!pause.is_on(61_000) && !pause.is_offline(61_000));
        assert_eq!(pause.idle_for(61_000, None), IDLE_PAUSE_MIN, "the sink is asked again");
    }

    #[test]
    fn what_is_due_is_tried_while_nothing_new_is_begun() {
        let mut pause = Pause::default();
        pause.go_offline(0);
        pause.begin(0, Duration::from_secs(3));
        assert!(pause.is_on(2_999) && !pause.is_offline(2_999));
        assert_eq!(pause.idle_for(0, Some(Duration::from_secs(1))), Duration::from_secs(1));
        assert_eq!(pause.idle_for(0, Some(Duration::from_secs(9))), Duration::from_secs(3));
        pause.end();
        assert!(!pause.is_on(0));
    }
}
