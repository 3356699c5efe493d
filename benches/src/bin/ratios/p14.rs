//! P14: what one more open router database costs, taken from fifty of them.

use std::path::Path;

use nasnet_benches::footprint::measure;
use nasnet_benches::measure::Ratio;

use crate::Failure;

const DATABASES: u32 = 50;

/// Comes first of all rows: memory that another measurement freed would hide what the databases take.
pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let cost = measure(DATABASES, disk).await?;
    let each = |value: u64| u32::try_from(value).map(|value| f64::from(value) / f64::from(DATABASES));
    Ok(vec![
        Ratio::at_most("P14", "resident MiB of one more open router database", each(cost.rss_kib)? / 1024.0, 1.0),
        Ratio::at_most("P14", "threads of one more open router database", each(cost.threads)?, 2.0),
        Ratio::at_most("P14", "descriptors of one more open router database", each(cost.fds)?, 5.0),
    ])
}
