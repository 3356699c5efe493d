//! The metrics of the event store, through the `metrics` facade. Labels are constants: never a scope, a stream or a body.

use metrics::Unit;

use crate::hot::shed::Swept;
use crate::retain::Doomed;

/// Counter: events that left the hot tier before their class demanded more of them, by `why` (`room`, `expired`).
pub const SHED: &str = "nasnet_events_shed_total";
/// Counter: events that were to reach flash and were given up: for want of room in the hot tier, or of a router.
pub const LOST: &str = "nasnet_events_lost_total";
/// Counter: incarnations of the hot tier whose tail was found lost. How many events that were is unknown.
pub const TAILS_LOST: &str = "nasnet_events_tails_lost_total";

/// Counter: events retention removed from the warm tier, by `why` (`retention`, or `guard`: past that of a consumer).
pub const PRUNED: &str = "nasnet_events_pruned_total";

/// Counter: reads by callers, once for each `tier` they looked into (`hot`, `warm`, `cold`).
pub const READS: &str = "nasnet_events_reads_total";

/// Describes every metric of this crate to the recorder that is installed.
pub fn describe() {
    metrics::describe_counter!(SHED, Unit::Count, "events removed from the hot tier, none of them lost");
    metrics::describe_counter!(LOST, Unit::Count, "events given up before they reached flash");
    metrics::describe_counter!(PRUNED, Unit::Count, "events removed from the warm tier by retention");
    metrics::describe_counter!(READS, Unit::Count, "reads that looked into a tier");
    metrics::describe_counter!(TAILS_LOST, Unit::Count, "incarnations of the hot tier found to have lost their tail");
}

/// Counts what one committed pass removed.
pub(crate) fn removed(swept: &Swept, why: &'static str) {
    let lost = swept.lost.len() as u64;
    if swept.events > lost {
        metrics::counter!(SHED, "why" => why).increment(swept.events - lost);
    }
    if lost > 0 {
        metrics::counter!(LOST).increment(lost);
    }
}

/// Counts events of a router that exists no more.
pub(crate) fn given_up(events: u64) {
    metrics::counter!(LOST).increment(events);
}

/// Counts what one committed transaction of retention removed.
pub(crate) fn pruned(gone: &[Doomed]) {
    for (why, forced) in [("retention", false), ("guard", true)] {
        let events: u64 = gone.iter().filter(|unit| unit.forced.is_some() == forced).map(|unit| unit.events).sum();
        if events > 0 {
            metrics::counter!(PRUNED, "why" => why).increment(events);
        }
    }
}

/// Counts a read that looks into a tier for the first time.
pub(crate) fn read(tier: &'static str) {
    metrics::counter!(READS, "tier" => tier).increment(1);
}

/// Counts incarnations whose loss was recorded.
pub(crate) fn tails_lost(count: u32) {
    metrics::counter!(TAILS_LOST).increment(u64::from(count));
}
