//! What do the codecs of the three tiers cost: a block of the hot tier, a segment, a frame of the archive?
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::TryStreamExt;
use nasnet_benches::events::Generator;
use nasnet_benches::hot::{Failure, Hot};
use nasnet_benches::place::Place;
use nasnet_events::fuzzing::{decode_block, decode_frame, encode_block, encode_frame};
use nasnet_events::{EventOptions, Query, Recorded};
use tokio::runtime::Runtime;

const EVENTS: usize = 1_000;

/// Events as a store made them.
async fn recorded() -> Result<Vec<Recorded>, Failure> {
    let place = Place::new(None)?;
    let hot = Hot::open(&place, EventOptions::default()).await?;
    hot.append(Generator::new(1).samples(EVENTS)).await?;
    let events = hot.store.read(Query::all()).try_collect().await?;
    hot.close().await?;
    Ok(events)
}

type Encode = fn(&[Recorded]) -> Vec<u8>;
type Decode = fn(&[u8]) -> Vec<Recorded>;

fn codec(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let events = runtime.block_on(recorded()).expect("events");
    let block = events.get(..64).expect("a block of events");
    let codecs: [(&str, &[Recorded], Encode, Decode); 4] = [
        ("hot_plain_64", block, |events| encode_block(events, None), decode_block),
        ("hot_zstd1_64", block, |events| encode_block(events, Some(1)), decode_block),
        ("segment_zstd3_1000", &events, |events| encode_block(events, Some(3)), decode_block),
        ("frame_zstd9_1000", &events, encode_frame, decode_frame),
    ];
    for (name, events, encode, decode) in codecs {
        let bytes = encode(events);
        assert_eq!(decode(&bytes), events, "{name}");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(events.len() as u64));
        group.bench_function("encode", |bencher| bencher.iter(|| encode(events)));
        group.bench_function("decode", |bencher| bencher.iter(|| decode(&bytes)));
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
