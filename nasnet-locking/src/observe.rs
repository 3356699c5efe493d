//! The metrics of leases, through the `metrics` facade. Labels are constants: never a key or a holder.

use std::time::Duration;

use metrics::Unit;

use crate::error::Error;

/// Counter: requests for leases that were decided, by `outcome` (`granted`, `held`, `failed`).
pub const ACQUIRES: &str = "nasnet_lock_acquires_total";
/// Histogram: seconds from a request for a lease to its decision, by `outcome`.
pub const WAIT_SECONDS: &str = "nasnet_lock_wait_seconds";

/// Describes every metric of this crate to the recorder that is installed.
pub fn describe() {
    metrics::describe_counter!(ACQUIRES, Unit::Count, "requests for leases that were decided");
    metrics::describe_histogram!(WAIT_SECONDS, Unit::Seconds, "time from a request for a lease to its decision");
}

/// Counts a request that was decided. One whose caller went away is not.
pub(crate) fn decided<T>(result: &Result<T, Error>, waited: Duration) {
    let outcome = match result {
        Ok(_) => "granted",
        Err(Error::Held { .. }) => "held",
        Err(_) => "failed",
    };
    metrics::counter!(ACQUIRES, "outcome" => outcome).increment(1);
    metrics::histogram!(WAIT_SECONDS, "outcome" => outcome).record(waited.as_secs_f64());
}
