//! How many events a second do 1, 8, 64 and 256 callers append, each one at a time and waiting for it: Normal ones to the
//! hot tier, Critical ones to the database on disk?
#![allow(missing_docs)]

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nasnet_benches::events::{Generator, Sample};
use nasnet_benches::hot::{Failure, Hot};
use nasnet_benches::place::Place;
use nasnet_events::EventOptions;
use tokio::runtime::Runtime;

const CALLERS: [usize; 4] = [1, 8, 64, 256];
/// Events of one caller in one iteration.
const EACH: usize = 16;

async fn together(hot: &Arc<Hot>, shares: Vec<Vec<Sample>>) -> Result<(), Failure> {
    let tasks: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let hot = Arc::clone(hot);
            tokio::spawn(async move {
                for sample in share {
                    let stream = sample.stream.clone();
                    hot.append_to(&stream, vec![sample]).await?;
                }
                Ok::<_, Failure>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn append(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let place = Place::new(None).expect("two directories");
    let hot = Arc::new(runtime.block_on(Hot::open(&place, EventOptions::default())).expect("a store"));
    let mut generator = Generator::new(1);
    for (name, kind) in [("append_hot", None), ("append_critical", Some("config.applied"))] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        for callers in CALLERS {
            group.throughput(Throughput::Elements((callers * EACH) as u64));
            let shares: Vec<Vec<Sample>> = (0..callers)
                .map(|_| {
                    let mut share = generator.samples(EACH);
                    for sample in &mut share {
                        sample.kind = kind.unwrap_or(sample.kind);
                    }
                    share
                })
                .collect();
            group.bench_with_input(BenchmarkId::from_parameter(callers), &shares, |bencher, shares| {
                bencher.iter(|| runtime.block_on(together(&hot, shares.clone())).expect("appends"));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
