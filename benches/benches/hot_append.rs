//! How much does an append to the hot tier cost in batches of 1, 100 and 1,000, against a plain table on the same tmpfs
//! with one `execute` per event in one transaction?
#![allow(missing_docs)]

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nasnet_benches::events::{Generator, STREAMS, Sample};
use nasnet_benches::hot::Hot;
use nasnet_benches::place::Place;
use nasnet_events::EventOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::runtime::Runtime;

const SCHEMA: &str = "
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      BLOB NOT NULL UNIQUE,
    stream  TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL,
    UNIQUE (stream, version)
) STRICT";

/// The plain way: rows, one statement each.
struct Rows {
    conn: SqliteConnection,
    /// Events so far: id and version of the next.
    made: u64,
}

impl Rows {
    async fn open(dir: &Path) -> Self {
        let mut conn = SqliteConnectOptions::new()
            .filename(dir.join("rows.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Off)
            .connect()
            .await
            .expect("a database");
        sqlx::query(SCHEMA).execute(&mut conn).await.expect("a table");
        Self { conn, made: 0 }
    }

    async fn append(&mut self, stream: &str, samples: &[Sample]) {
        let mut transaction = self.conn.begin_with("BEGIN IMMEDIATE").await.expect("a transaction");
        for sample in samples {
            self.made += 1;
            sqlx::query("INSERT INTO event (id, stream, version, kind, body) VALUES (?1, ?2, ?3, ?4, ?5)")
                .bind(u128::from(self.made).to_be_bytes().to_vec())
                .bind(stream)
                .bind(i64::try_from(self.made).expect("a small number"))
                .bind(sample.kind)
                .bind(&sample.body)
                .execute(&mut *transaction)
                .await
                .expect("a row");
        }
        transaction.commit().await.expect("a commit");
    }
}

fn hot_append(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let place = Place::new(None).expect("two directories");
    // All of them are to stay in the hot tier, as they do in the table.
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(2 << 30);
    let hot = runtime.block_on(Hot::open(&place, options)).expect("a store");
    let mut rows = runtime.block_on(Rows::open(place.tmpfs.path()));
    // Each batch goes to one stream, the streams in turn, for both alike.
    let names: Vec<String> = (0..STREAMS).map(|number| format!("resource/{number:026}")).collect();
    let mut streams = names.iter().cycle();
    let mut next = move || streams.next().expect("a cycle of names has no end");
    let mut group = criterion.benchmark_group("hot_append");
    group.sample_size(20);
    for batch in [1_usize, 100, 1_000] {
        let samples = Generator::new(1).samples(batch);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_with_input(BenchmarkId::new("nasnet", batch), &samples, |bencher, samples| {
            bencher.iter(|| runtime.block_on(hot.append_to(next(), samples.clone())).expect("an append"));
        });
        group.bench_with_input(BenchmarkId::new("rows", batch), &samples, |bencher, samples| {
            bencher.iter(|| runtime.block_on(rows.append(next(), &samples.clone())));
        });
    }
    group.finish();
}

criterion_group!(benches, hot_append);
criterion_main!(benches);
