//! S1, S2: single events, each acknowledged after its commit to the hot tier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nasnet_benches::events::Generator;
use nasnet_benches::hot::Hot;
use nasnet_benches::measure::{BusyCore, Ratio, percentile};
use nasnet_benches::place::Place;
use nasnet_events::EventOptions;

use crate::Failure;

/// Appends of the one caller.
const ALONE: usize = 20_000;
/// Callers at a time, as many tasks as the peer of P3 has, and the events of each.
const CALLERS: usize = 8;
const EACH: usize = 5_000;

/// The worse of an idle and a busy second core.
pub(crate) async fn rows() -> Result<Vec<Ratio>, Failure> {
    let (mut slowest_ms, mut a_second) = ([0.0; 2], [0.0; 2]);
    for (at, busy) in [false, true].into_iter().enumerate() {
        let _core = busy.then(BusyCore::start);
        slowest_ms[at] = alone().await?.as_secs_f64() * 1_000.0;
        a_second[at] = together().await?;
    }
    let what = format!("events a second from {CALLERS} callers of one event each");
    Ok(vec![
        Ratio::both_at_most("S1", "one acknowledged hot append, p99 in ms", slowest_ms, 1.0),
        Ratio::both_at_least("S2", what, a_second, 10_000.0),
    ])
}

async fn alone() -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let hot = Hot::open(&place, EventOptions::default()).await?;
    let mut times = Vec::with_capacity(ALONE);
    for append in hot.appends(Generator::new(2).samples(ALONE))? {
        let start = Instant::now();
        hot.store.append(&hot.scope, &append.stream, append.expected, append.events).await?;
        times.push(start.elapsed());
    }
    hot.close().await?;
    Ok(percentile(times, 99))
}

async fn together() -> Result<f64, Failure> {
    let place = Place::new(None)?;
    let hot = Arc::new(Hot::open(&place, EventOptions::default()).await?);
    let mut generator = Generator::new(3);
    let shares = (0..CALLERS).map(|_| hot.appends(generator.samples(EACH))).collect::<Result<Vec<_>, _>>()?;
    Ok(f64::from(u32::try_from(CALLERS * EACH)?) / hot.append_singly(shares).await?.as_secs_f64())
}
