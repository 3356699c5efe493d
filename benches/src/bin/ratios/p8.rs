//! P8 and P11: the newest hundred of a million events in the hot tier, by key, against rows with indexes; and what an
//! event weighs there.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nasnet_benches::events::{Generator, Random, STREAMS, stream_name};
use nasnet_benches::hot::Hot;
use nasnet_benches::measure::{BusyCore, Ratio, exact, percentile};
use nasnet_benches::place::Place;
use nasnet_benches::rows::{Recent, Rows};
use nasnet_events::{EventOptions, Query, StreamName};

use crate::Failure;

const EVENTS: usize = 1_000_000;
const BATCH: usize = 1_000;
/// Queries of each kind in a round.
const QUERIES: usize = 60;
const ROUNDS: usize = 5;
const KINDS: [&str; 3] = ["resource.updated", "route.changed", "dhcp.lease_assigned"];
/// Slowest answer by stream that is accepted whatever the peer does.
const STREAM_MS_MAX: f64 = 10.0;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum By {
    Stream,
    Time,
    Kind,
}

pub(crate) async fn rows() -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(None)?;
    // All of them are to stay in the hot tier.
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(1 << 30);
    let hot = Hot::open(&place, options).await?;
    let mut plain = Rows::open(place.tmpfs.path())?;
    let mut generator = Generator::new(1);
    for _ in 0..EVENTS / BATCH {
        let samples = generator.samples(BATCH);
        plain.append(&samples)?;
        hot.append(samples).await?;
    }
    let held = hot.store.status().await?.hot;
    let weight = exact(held.bytes) / exact(held.events.max(1));

    let mut table = Vec::new();
    for (by, name, target) in [(By::Stream, "stream", 10.0), (By::Time, "time", 2.0), (By::Kind, "type", 2.0)] {
        let (mut ratios, mut slowest) = ([0.0; 2], [0.0; 2]);
        for (at, busy) in [false, true].into_iter().enumerate() {
            let _core = busy.then(BusyCore::start);
            let mut random = Random::new(7);
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                for _ in 0..QUERIES {
                    ours.push(ask(&hot, by, &mut random).await?);
                    theirs.push(ask_rows(&plain, by, &mut random)?);
                }
            }
            let (ours, theirs) = (percentile(ours, 99), percentile(theirs, 99));
            ratios[at] = ours.as_secs_f64() / theirs.as_secs_f64();
            slowest[at] = ours.as_secs_f64() * 1_000.0;
        }
        let what = format!("newest 100 of 1,000,000 by {name}, p99 vs rusqlite on rows");
        table.push(Ratio::both_at_most("P8", what, ratios, target));
        if matches!(by, By::Stream) {
            let what = "newest 100 of 1,000,000 by stream, p99 in ms";
            table.push(Ratio::both_at_most("P8", what, slowest, STREAM_MS_MAX));
        }
    }
    table.push(Ratio::at_most("P11", "bytes of tmpfs for an event of 470 bytes", weight, 140.0));
    hot.close().await?;
    Ok(table)
}

async fn ask(hot: &Hot, by: By, random: &mut Random) -> Result<Duration, Failure> {
    let query = Query::scope(hot.scope.clone()).backwards().limit(100);
    let query = match by {
        By::Stream => query.stream(StreamName::parse(&stream_name(random.below(STREAMS)))?),
        By::Time => query,
        By::Kind => query.kind_prefix(KINDS[usize::try_from(random.below(3))?]),
    };
    let start = Instant::now();
    let found: Vec<_> = hot.store.read(query).try_collect().await?;
    let spent = start.elapsed();
    if found.len() == 100 { Ok(spent) } else { Err(format!("{} events instead of 100", found.len()).into()) }
}

fn ask_rows(plain: &Rows, by: By, random: &mut Random) -> Result<Duration, Failure> {
    let stream = stream_name(random.below(STREAMS));
    let key = match by {
        By::Stream => Recent::Stream(&stream),
        By::Time => Recent::Until(plain.made()),
        By::Kind => Recent::Kind(KINDS[usize::try_from(random.below(3))?]),
    };
    let start = Instant::now();
    let found = plain.recent(key)?;
    let spent = start.elapsed();
    if found.len() == 100 { Ok(spent) } else { Err(format!("{} rows instead of 100", found.len()).into()) }
}
