//! How long does a read of the newest hundred events take among a million, by stream, time, type and id, over all tiers?
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::TryStreamExt;
use nasnet_benches::events::{Generator, stream_name};
use nasnet_benches::hot::{Failure, Hot};
use nasnet_benches::place::Place;
use nasnet_events::{EventOptions, FlushReason, Query, Recorded, StreamName};
use tokio::runtime::Runtime;

/// A run that only proves that it works takes fewer.
fn events() -> usize {
    if std::env::args().any(|argument| argument == "--test") { 20_000 } else { 1_000_000 }
}

/// Half of the events are flushed to segments, so that every read merges two tiers.
async fn filled(place: &Place) -> Result<Hot, Failure> {
    let hot = Hot::open(place, EventOptions::default()).await?;
    let mut generator = Generator::new(1);
    for round in 0..events() / 1_000 {
        hot.append(generator.samples(1_000)).await?;
        if round == events() / 2_000 {
            hot.store.flush(FlushReason::Requested).await?;
        }
    }
    Ok(hot)
}

async fn page(hot: &Hot, query: Query) -> Result<Vec<Recorded>, Failure> {
    Ok(hot.store.read(query).try_collect().await?)
}

fn read(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let place = Place::new(None).expect("two directories");
    let hot = runtime.block_on(filled(&place)).expect("a filled store");
    let newest = || Query::scope(hot.scope.clone()).backwards().limit(100);
    let stream = StreamName::parse(&stream_name(7)).expect("a stream");
    let last = runtime.block_on(page(&hot, newest())).expect("events");
    let middle_ms = last.last().map_or(0, |event| event.wall_ms);
    let id = last.first().map(|event| event.id).expect("an event");

    let mut group = criterion.benchmark_group("read_newest_100");
    group.sample_size(20);
    let queries = [
        ("stream", newest().stream(stream)),
        ("time", newest().wall_ms(0..=middle_ms)),
        ("type", newest().kind_prefix("route.changed")),
        ("id", Query::by_id(id)),
    ];
    for (name, query) in queries {
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(page(&hot, query.clone())).expect("a page"));
        });
    }
    group.finish();
}

criterion_group!(benches, read);
criterion_main!(benches);
