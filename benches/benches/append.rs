//! How many events a second do 1, 8, 64 and 256 callers append, each one at a time and waiting for it: Normal ones to the
//! hot tier, Critical ones to the database on disk?
#![allow(missing_docs)]

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use nasnet_benches::events::{Generator, Sample};
use nasnet_benches::hot::Hot;
use nasnet_benches::place::Place;
use nasnet_events::EventOptions;
use tokio::runtime::Runtime;

const CALLERS: [usize; 4] = [1, 8, 64, 256];
/// Events of one caller in one iteration. Each Critical one is synced, so of those there are fewer.
const EACH: [usize; 2] = [16, 2];

fn append(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut generator = Generator::new(1);
    for ((name, kind), each) in
        [("append_hot", None), ("append_critical", Some("config.applied"))].into_iter().zip(EACH)
    {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        for callers in CALLERS {
            // All of them are to stay in the hot tier: what appends wait for is not to be its flush.
            let place = Place::new(None).expect("two directories");
            let mut options = EventOptions::default();
            options.hot_bytes_max = Some(2 << 30);
            let hot = Arc::new(runtime.block_on(Hot::open(&place, options)).expect("a store"));
            group.throughput(Throughput::Elements((callers * each) as u64));
            // What goes in is made before the clock runs.
            let mut share = || {
                let samples = generator.samples(each).into_iter();
                let samples = samples.map(|sample| Sample { kind: kind.unwrap_or(sample.kind), ..sample });
                hot.appends(samples.collect()).expect("appends")
            };
            group.bench_function(BenchmarkId::from_parameter(callers), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut round = || {
                        let shares = (0..callers).map(|_| share()).collect();
                        runtime.block_on(hot.append_singly(shares)).expect("every append")
                    };
                    (0..rounds).map(|_| round()).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
