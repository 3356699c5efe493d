//! P9, P10, P12: bytes that reach flash, as `flash_bytes` counts them. They depend on no clock and no second core.

use std::path::Path;

use nasnet_benches::flash;
use nasnet_benches::measure::Ratio;

use crate::Failure;

pub(crate) async fn rows(disk: Option<&Path>, wanted: impl Fn(&str) -> bool) -> Result<Vec<Ratio>, Failure> {
    let mut costs = Vec::new();
    if wanted("P9") {
        costs.extend(flash::flushes(disk, &[100, 1_000]).await?);
    }
    if wanted("P10") {
        costs.extend(flash::criticals(disk).await?);
    }
    if wanted("P12") {
        costs.push(flash::cold(disk).await?);
    }
    let row = |cost: &flash::Cost| {
        let (id, target) = cost.goal?;
        let what = format!("dirty 4 KiB page bytes per event: {}, {} a commit", cost.layout, cost.commit);
        Some(Ratio::at_most(id, what, cost.dirty_4k_bytes_per_event, target))
    };
    Ok(costs.iter().filter_map(row).collect())
}
