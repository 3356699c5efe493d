//! The metrics of the fleet as complete operations.

use super::SystemDb;
use crate::error::Error;
use crate::id::{Cause, RouterId};
use crate::system::fleet_metrics::{self, DayMetrics, LiveMetric};

const METRICS: Cause = Cause::new("fleet-metrics");

/// The metrics of the fleet; see [`fleet_metrics`].
#[derive(Debug, Clone, Copy)]
pub struct FleetMetrics<'a>(pub(super) &'a SystemDb);

impl FleetMetrics<'_> {
    /// Records values of a router, in memory.
    ///
    /// # Errors
    /// As [`fleet_metrics::record`].
    pub async fn record(&self, router: &RouterId, values: Vec<(String, i64)>) -> Result<(), Error> {
        let (router, now) = (router.clone(), self.0.now());
        self.0
            .runtime
            .write(METRICS, move |conn| {
                Box::pin(async move { fleet_metrics::record(conn, &router, &values, &now).await })
            })
            .await
    }

    /// Returns the last values, by router and metric.
    ///
    /// # Errors
    /// As [`fleet_metrics::live`].
    pub async fn live(&self) -> Result<Vec<LiveMetric>, Error> {
        self.0.runtime.read(METRICS, |conn| Box::pin(fleet_metrics::live(conn))).await
    }

    /// Forgets the values of a router that left the fleet.
    ///
    /// # Errors
    /// As [`fleet_metrics::forget`].
    pub async fn forget(&self, router: &RouterId) -> Result<(), Error> {
        let router = router.clone();
        self.0
            .runtime
            .write(METRICS, move |conn| Box::pin(async move { fleet_metrics::forget(conn, &router).await }))
            .await
    }

    /// Saves the sums of today on flash, unless they are there; returns whether that wrote anything. A fleet without
    /// any value saves nothing.
    ///
    /// # Errors
    /// As [`fleet_metrics::save_day`].
    pub async fn save_day(&self) -> Result<bool, Error> {
        let today = self.0.now().wall_ms.div_euclid(fleet_metrics::DAY_MS);
        self.save(today).await
    }

    /// As [`FleetMetrics::save_day`], for a given day.
    pub(crate) async fn save(&self, day: i64) -> Result<bool, Error> {
        let live = self.live().await?;
        if live.is_empty() {
            return Ok(false);
        }
        let day = DayMetrics { day, ..fleet_metrics::sum_up(&live, &self.0.now()) };
        self.0.write(METRICS, move |conn| Box::pin(async move { fleet_metrics::save_day(conn, &day).await })).await
    }

    /// Returns the newest days, the newest first.
    ///
    /// # Errors
    /// As [`fleet_metrics::days`].
    pub async fn days(&self, limit: u32) -> Result<Vec<DayMetrics>, Error> {
        self.0.read(METRICS, move |conn| Box::pin(async move { fleet_metrics::days(conn, limit).await })).await
    }
}
