//! Layer 5, measured values. Written by the collector only; lives in memory and volatile files, is never hashed, and is
//! lossy by its declared retention.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stamp::Timestamp;

/// The last sample of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Counters and gauges by name (`rx_bytes`, `tx_bytes`, `uptime_ms`, ...).
    pub sample: BTreeMap<String, f64>,
    /// When it was taken.
    pub sampled_at: Timestamp,
    /// When it stops being worth showing, in milliseconds after it was taken.
    pub stale_after_ms: u64,
    /// For how many days rollups are kept.
    pub retention_days: u32,
}
