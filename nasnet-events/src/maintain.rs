//! The loop that flushes in time.

use std::future::Future;
use std::pin::pin;

use crate::error::Error;
use crate::flush::{FlushReason, FlushReport};
use crate::shared::Shared;
use crate::store::EventStore;

impl EventStore {
    /// Flushes whenever a page of events waits or they have waited long enough, until `shutdown` completes; then flushes
    /// once more. While a database takes nothing, only the time counts. The caller owns the loop: spawn it, and await it
    /// after completing `shutdown`.
    ///
    /// # Errors
    /// Those of the last flush. Earlier ones, and the scopes that failed, are logged and tried again.
    ///
    /// # Cancel safety
    /// Safe: a dropped loop leaves events in the hot tier, and the next flush takes them.
    pub async fn maintain(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        let interval = self.shared().options.flush_interval;
        // The backlog of a database that takes nothing would ask for a flush at every append, and each would write a small
        // segment of the others.
        let mut held_up = false;
        loop {
            let reason = tokio::select! {
                () = &mut shutdown => break,
                () = self.shared().backlog.notified(), if !held_up => FlushReason::PageFull,
                () = tokio::time::sleep(interval) => FlushReason::Interval,
                () = due(self.shared()), if !held_up => FlushReason::Promised,
            };
            match self.flush(reason).await {
                Ok(report) => {
                    held_up = !report.failed.is_empty();
                    tell(&report);
                }
                Err(error) => tracing::warn!(%error, "flush failed"),
            }
        }
        tell(&self.flush(FlushReason::Shutdown).await?);
        Ok(())
    }
}

/// Waits until a flush is due because of what was promised.
async fn due(shared: &Shared) {
    loop {
        let moved = shared.promised.notified();
        match shared.flush_due() {
            None => moved.await,
            Some(at) => tokio::select! {
                () = moved => {}
                () = tokio::time::sleep_until(at) => return,
            },
        }
    }
}

/// Logs what a flush could not do.
pub(crate) fn tell(report: &FlushReport) {
    for (scope, error) in &report.failed {
        tracing::warn!(scope = scope.as_ref().map(|scope| scope.as_str()), %error, "flush failed");
    }
}
