//! How long does a read of a hundred events take among a million, by stream, time, type and id: of the newest, and across
//! the border between the hot tier and those below it?
#![allow(missing_docs)]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::TryStreamExt;
use nasnet_benches::events::{Generator, STREAMS, stream_name};
use nasnet_benches::hot::{Failure, Hot};
use nasnet_benches::place::Place;
use nasnet_events::{ColdOptions, EventOptions, FlushReason, Position, Query, Recorded, StreamName, prepare_cold_dir};
use tokio::runtime::Runtime;

const KIND: &str = "route.changed";
/// Types the generator makes, in equal parts.
const KINDS: u64 = 6;

/// A run that only proves that it works takes fewer.
fn events() -> usize {
    if std::env::args().any(|argument| argument == "--test") { 20_000 } else { 1_000_000 }
}

/// The first quarter is in the archive and in segments, the second in segments, the last half in the hot tier.
async fn filled(place: &Place) -> Result<Hot, Failure> {
    let cold = place.disk.path().join("cold");
    std::fs::create_dir_all(&cold)?;
    let mut options = EventOptions::default().cold(ColdOptions::new(&cold).allow_same_device());
    // What is flushed may leave the hot tier at once, and what is not has room.
    options.hot_keep = Duration::ZERO;
    options.hot_bytes_max = Some(1 << 30);
    let hot = Hot::open(place, options).await?;
    prepare_cold_dir(&hot.db, &cold)?;
    let mut generator = Generator::new(1);
    let rounds = events() / 1_000;
    for round in 1..=rounds {
        hot.append(generator.samples(1_000)).await?;
        if round == rounds / 4 {
            hot.store.flush(FlushReason::Requested).await?;
            hot.store.archive().await?;
        }
        if round == rounds / 2 {
            hot.store.flush(FlushReason::Requested).await?;
            hot.store.expire().await?;
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
    let get = |query: Query| runtime.block_on(page(&hot, query)).expect("a page");
    let status = runtime.block_on(hot.store.status()).expect("a status");
    let floor = status.hot.oldest.expect("events in the hot tier");
    assert!(floor.seq > 1 && status.cold.events > 0, "every tier has a part: {floor}, {}", status.cold.events);
    let stream = StreamName::parse(&stream_name(7)).expect("a stream");

    let newest = || Query::scope(hot.scope.clone()).backwards().limit(100);
    let last = get(newest());
    let middle_ms = last.last().map_or(0, |event| event.wall_ms);
    let id = last.first().map(|event| event.id).expect("an event");
    let mut group = criterion.benchmark_group("read_newest_100");
    group.sample_size(20);
    let queries = [
        ("stream", newest().stream(stream.clone())),
        ("time", newest().wall_ms(0..=middle_ms)),
        ("type", newest().kind_prefix(KIND)),
        ("id", Query::by_id(id)),
    ];
    for (name, query) in queries {
        group.bench_function(name, |bencher| bencher.iter(|| get(query.clone())));
    }
    group.finish();

    // Begins so far below the border that half of the hundred lie on either side of it.
    let before = |events: u64| Position::new(floor.epoch, floor.seq.saturating_sub(events).max(1));
    let across = |one_in: u64| Query::scope(hot.scope.clone()).after(before(50 * one_in)).limit(100);
    let below = get(across(1)).into_iter().next().expect("an event below the border");
    let mut group = criterion.benchmark_group("read_merged_100");
    group.sample_size(20);
    let queries = [
        ("stream", across(STREAMS).stream(stream)),
        ("time", Query::scope(hot.scope.clone()).wall_ms(below.wall_ms..=i64::MAX).limit(100)),
        ("type", across(KINDS).kind_prefix(KIND)),
        // Outside of the window in which ids are known, with the hint that is then needed.
        ("id", Query::by_id(below.id).after(before(51)).until(floor)),
    ];
    for (name, query) in queries {
        let found = get(query.clone());
        assert!(found.iter().any(|event| event.position < floor), "{name} reaches below the border");
        assert!(name == "id" || events() < 1_000_000 || found.len() == 100, "{name}: {} found", found.len());
        group.bench_function(name, |bencher| bencher.iter(|| get(query.clone())));
    }
    group.finish();
}

criterion_group!(benches, read);
criterion_main!(benches);
