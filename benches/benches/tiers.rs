//! What does it cost to move events down, to append while that is what makes room, and to read a short range of the archive?
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::TryStreamExt;
use nasnet_benches::events::Generator;
use nasnet_benches::hot::{Failure, Hot};
use nasnet_benches::place::Place;
use nasnet_events::{
    Class, ColdOptions, EventOptions, FlushReason, Keep, Position, Query, Retention, prepare_cold_dir,
};
use tokio::runtime::Runtime;

async fn with_archive(place: &Place) -> Result<Hot, Failure> {
    let cold = place.disk.path().join("cold");
    std::fs::create_dir_all(&cold)?;
    let mut options = EventOptions::default().cold(ColdOptions::new(&cold).allow_same_device());
    // Durable rows are old at once.
    options.seal_after = Duration::ZERO;
    let hot = Hot::open(place, options).await?;
    prepare_cold_dir(&hot.db, &cold)?;
    Ok(hot)
}

/// A run that only proves that it works takes fewer.
fn archived_events() -> usize {
    if std::env::args().any(|argument| argument == "--test") { 40_000 } else { 200_000 }
}

/// The longest range that is read, from the middle on.
const RANGE: u64 = 10_000;

/// Events that are in the archive and nowhere else, but for the newest, from which the order goes on.
async fn archived(place: &Place) -> Result<Hot, Failure> {
    let nothing = Retention::default().class(Class::Normal, Keep::FOR_EVER.events_max(0)).full_history([""; 0]);
    let cold = place.disk.path().join("cold");
    std::fs::create_dir_all(&cold)?;
    let mut options = EventOptions::default().cold(ColdOptions::new(&cold).allow_same_device()).retention(nothing);
    options.hot_keep = Duration::ZERO;
    let hot = Hot::open(place, options).await?;
    prepare_cold_dir(&hot.db, &cold)?;
    let mut generator = Generator::new(2);
    for round in 1..=archived_events() / 1_000 {
        hot.append(generator.samples(1_000)).await?;
        if round.is_multiple_of(20) || round == archived_events() / 1_000 {
            hot.store.flush(FlushReason::Requested).await?;
            hot.store.archive().await?;
            hot.store.expire().await?;
            hot.store.retain(hot.store.retention_plan().await?).await?;
        }
    }
    let status = hot.store.status().await?;
    let read = archived_events() as u64 / 2 + RANGE;
    let warm = status.warm.iter().flatten().filter_map(|scope| scope.segments.oldest);
    let elsewhere = warm.chain(status.hot.oldest).map(|oldest| oldest.seq).min();
    assert!(elsewhere.is_none_or(|oldest| oldest > read), "the archive alone has them: {elsewhere:?}");
    Ok(hot)
}

/// A hot tier that is full of events that are not on flash: each append has to wait until there is room.
async fn full(place: &Place, generator: &mut Generator) -> Result<Hot, Failure> {
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(4 << 20);
    let hot = Hot::open(place, options).await?;
    // About twice as much as there is room for.
    for _ in 0..60 {
        hot.append(generator.samples(1_000)).await?;
    }
    Ok(hot)
}

async fn appends(hot: &Hot, generator: &mut Generator, events: usize, rounds: u64) -> Result<Duration, Failure> {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let appends = hot.appends(generator.samples(events))?;
        let start = Instant::now();
        hot.append_each(appends).await?;
        spent += start.elapsed();
    }
    Ok(spent)
}

/// The time of the step alone; what it works on is made before.
async fn flushes(hot: &Hot, generator: &mut Generator, events: usize, rounds: u64) -> Result<Duration, Failure> {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        hot.append(generator.samples(events)).await?;
        let start = Instant::now();
        hot.store.flush(FlushReason::Requested).await?;
        spent += start.elapsed();
    }
    Ok(spent)
}

async fn archives(hot: &Hot, generator: &mut Generator, events: usize, rounds: u64) -> Result<Duration, Failure> {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        hot.append(generator.samples(events)).await?;
        hot.store.flush(FlushReason::Requested).await?;
        let start = Instant::now();
        hot.store.archive().await?;
        spent += start.elapsed();
    }
    Ok(spent)
}

async fn seals(hot: &Hot, generator: &mut Generator, events: usize, rounds: u64) -> Result<Duration, Failure> {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let mut samples = generator.samples(events);
        samples.iter_mut().for_each(|sample| sample.kind = "config.applied");
        hot.append_to("operation/bench", samples).await?;
        let start = Instant::now();
        let report = hot.store.seal().await?;
        spent += start.elapsed();
        assert_eq!((report.events, report.failed.len()), (events as u64, 0), "all of them are old enough");
    }
    Ok(spent)
}

fn tiers(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let place = Place::new(None).expect("two directories");
    let hot = runtime.block_on(with_archive(&place)).expect("a store");
    let mut generator = Generator::new(1);

    let mut group = criterion.benchmark_group("flush");
    group.sample_size(10);
    for events in [10_usize, 100, 1_000] {
        group.throughput(Throughput::Elements(events as u64));
        group.bench_with_input(BenchmarkId::from_parameter(events), &events, |bencher, &events| {
            bencher
                .iter_custom(|rounds| runtime.block_on(flushes(&hot, &mut generator, events, rounds)).expect("flush"));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("seal");
    group.sample_size(10);
    group.throughput(Throughput::Elements(500));
    group.bench_function("500", |bencher| {
        bencher.iter_custom(|rounds| runtime.block_on(seals(&hot, &mut generator, 500, rounds)).expect("seal"));
    });
    group.finish();

    let mut group = criterion.benchmark_group("archive");
    group.sample_size(10);
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1000", |bencher| {
        bencher.iter_custom(|rounds| runtime.block_on(archives(&hot, &mut generator, 1_000, rounds)).expect("archive"));
    });
    group.finish();

    let place = Place::new(None).expect("two directories");
    let hot = runtime.block_on(full(&place, &mut generator)).expect("a full hot tier");
    let mut group = criterion.benchmark_group("append_to_full_hot");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1000", |bencher| {
        bencher.iter_custom(|rounds| runtime.block_on(appends(&hot, &mut generator, 1_000, rounds)).expect("append"));
    });
    group.finish();

    let place = Place::new(None).expect("two directories");
    let hot = runtime.block_on(archived(&place)).expect("an archive");
    let mut group = criterion.benchmark_group("cold_range");
    group.sample_size(20);
    let from = Position::new(1, archived_events() as u64 / 2);
    for events in [100, RANGE] {
        group.throughput(Throughput::Elements(events));
        group.bench_with_input(BenchmarkId::from_parameter(events), &events, |bencher, &events| {
            let query = Query::scope(hot.scope.clone()).after(from).limit(events);
            bencher.iter(|| {
                let page = runtime.block_on(hot.store.read(query.clone()).try_collect::<Vec<_>>());
                assert_eq!(page.expect("a page").len() as u64, events);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tiers);
criterion_main!(benches);
