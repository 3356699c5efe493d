//! How often Normal events are flushed, given how far the flash budget is used up. Pure.

use std::time::Duration;

use nasnet_dbmanager::BudgetLevel;

use crate::flush::FlushReason;

/// How much longer events wait once the budget is scarce: fewer, larger segments.
const STRETCH: u32 = 4;
/// How long they wait when only what is critical is admitted.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Decides whether a flush goes ahead, `since` the last one that did; `None` = this is the first. What somebody asked for,
/// was promised, or would be lost otherwise always does.
pub(crate) fn goes_ahead(level: BudgetLevel, reason: FlushReason, interval: Duration, since: Option<Duration>) -> bool {
    if !matches!(reason, FlushReason::PageFull | FlushReason::Interval) {
        return true;
    }
    let wait = match level {
        BudgetLevel::Ample => return true,
        BudgetLevel::Scarce => interval.saturating_mul(STRETCH),
        BudgetLevel::Reserved | BudgetLevel::Overdrawn => WAIT_MAX,
    };
    since.is_none_or(|since| since >= wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_get_rarer_as_the_budget_is_used_up_and_never_stop_what_was_promised() {
        let (interval, minute) = (Duration::from_secs(300), Duration::from_secs(60));
        let ahead = |level, reason, minutes| goes_ahead(level, reason, interval, Some(minute * minutes));
        for reason in [FlushReason::PageFull, FlushReason::Interval] {
            assert!(ahead(BudgetLevel::Ample, reason, 0));
            assert!(!ahead(BudgetLevel::Scarce, reason, 19));
            assert!(ahead(BudgetLevel::Scarce, reason, 20));
            for level in [BudgetLevel::Reserved, BudgetLevel::Overdrawn] {
                assert!(!ahead(level, reason, 24 * 60 - 1));
                assert!(ahead(level, reason, 24 * 60));
                assert!(goes_ahead(level, reason, interval, None));
            }
        }
        for reason in [FlushReason::Requested, FlushReason::Promised, FlushReason::Archive, FlushReason::Shutdown] {
            assert!(ahead(BudgetLevel::Overdrawn, reason, 0), "{reason:?}");
        }
    }
}
