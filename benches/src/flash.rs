//! How many bytes reach flash for one event, counted by the VFS under every database and by its annexes.

use std::path::Path;

use nasnet_dbmanager::{
    Annexes, Cause, Database, DbManager, FileKind, Migration, NewRouter, Options, RouterId, SchemaSet, Scope,
};
use nasnet_events::{EventOptions, EventStore, EventType, Expected, FlushReason, NewEvent, StreamAppend, StreamName};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::events::{Generator, STREAMS, Sample, stream_name};
use crate::leases::Failure;
use crate::measure::exact;
use crate::place::Place;

const STATE: Cause = Cause::new("bench-state");

/// What one way of storing events costs.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// The performance goal it belongs to, and its target for `dirty_4k_bytes_per_event`.
    pub goal: Option<(&'static str, f64)>,
    /// How events are stored.
    pub layout: &'static str,
    /// Events per commit.
    pub commit: usize,
    /// Bytes of all writes.
    pub written_bytes_per_event: f64,
    /// Distinct 4 KiB pages dirtied between syncs: what a page-granular file system has to program.
    pub dirty_4k_bytes_per_event: f64,
    /// Growth of the database and its annexes.
    pub file_bytes_per_event: f64,
}

/// Measures the plain tables everybody begins with.
///
/// # Errors
/// When a file cannot be written.
pub async fn plain_tables(disk: Option<&Path>) -> Result<Vec<Cost>, Failure> {
    let mut rows = Vec::new();
    for (layout, commit, count) in [(Layout::Seed, 1, 200), (Layout::Lean, 1, 200), (Layout::Lean, 100, 4_000)] {
        rows.push(plain(disk, layout, commit, count).await?);
    }
    Ok(rows)
}

/// Measures flushes of so many events, each size without a dictionary and with one.
///
/// # Errors
/// When a file cannot be written.
pub async fn flushes(disk: Option<&Path>, sizes: &[usize]) -> Result<Vec<Cost>, Failure> {
    let mut rows = Vec::new();
    for size in sizes {
        // Enough of them to hold their checkpoints, and several annexes.
        rows.extend(flushed(disk, *size, (20_000 / size).clamp(20, 100)).await?);
    }
    Ok(rows)
}

/// Measures frames of the cold tier.
///
/// # Errors
/// When a file cannot be written.
pub async fn cold(disk: Option<&Path>) -> Result<Cost, Failure> {
    cold_frame(disk, 5_000).await
}

/// Measures Critical events, alone and inside a state write.
///
/// # Errors
/// When a file cannot be written.
pub async fn criticals(disk: Option<&Path>) -> Result<Vec<Cost>, Failure> {
    let mut rows = vec![critical(disk, 200).await?];
    rows.extend(state_writes(disk, 200).await?);
    Ok(rows)
}

/// One router on disk with an event store over it.
struct Bench {
    _place: Place,
    db: DbManager,
    id: RouterId,
    store: EventStore,
}

impl Bench {
    async fn open(disk: Option<&Path>) -> Result<Self, Failure> {
        let place = Place::new(disk)?;
        let state = Migration {
            version: 1,
            name: "bench",
            up: "CREATE TABLE bench_state (stream TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
                CREATE TABLE bench_seed (id TEXT PRIMARY KEY, stream TEXT NOT NULL, version INTEGER NOT NULL,
                    type TEXT NOT NULL, body TEXT NOT NULL, at TEXT NOT NULL) STRICT;
                CREATE UNIQUE INDEX bench_seed_stream ON bench_seed (stream, version);
                CREATE INDEX bench_seed_type ON bench_seed (type, at);
                CREATE INDEX bench_seed_at ON bench_seed (at);
                CREATE TABLE bench_lean (pos INTEGER PRIMARY KEY, stream INTEGER NOT NULL, version INTEGER NOT NULL,
                    type INTEGER NOT NULL, wall_ms INTEGER NOT NULL, body TEXT NOT NULL, UNIQUE (stream, version)) STRICT",
            down: "DROP TABLE bench_lean; DROP TABLE bench_seed; DROP TABLE bench_state",
        };
        let mut options = Options::new(place.disk.path().join("data"))
            .schemas(nasnet_events::schema_sets())
            .schemas([SchemaSet::new("bench", FileKind::Router, vec![state])]);
        options.run_dir = Some(place.tmpfs.path().to_path_buf());
        let db = DbManager::open(options).await?;
        let id: RouterId = "bench".parse()?;
        db.create_router(NewRouter::new(id.clone()).name("bench").host("192.0.2.1")).await?;
        let cold = place.tmpfs.path().join("cold");
        nasnet_events::prepare_cold_dir(&db, &cold)?;
        let cold = nasnet_events::ColdOptions::new(cold).allow_same_device();
        let store = EventStore::open(&db, EventOptions::default().cold(cold)).await?;
        Ok(Self { _place: place, db, id, store })
    }

    async fn append(&self, sample: Sample, kind: &str) -> Result<(), Failure> {
        let body = RawValue::from_string(sample.body)?;
        let event = NewEvent::new(self.db.next_ulid(), EventType::parse(kind)?, &body)?;
        let (scope, stream) = (Scope::Router(self.id.clone()), StreamName::parse(&sample.stream)?);
        self.store.append(&scope, &stream, Expected::Any, vec![event]).await?;
        Ok(())
    }

    /// Counts what `count` events cost from here on, the final checkpoint included. What comes once in the life of a
    /// database, its schema and the names of its streams, has to be written before.
    async fn cost(
        &self,
        layout: &'static str,
        commit: usize,
        count: usize,
        work: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<Cost, Failure> {
        let router = self.db.router(&self.id).await?;
        router.checkpoint().await?;
        let (before, file_before) = (router.written(), file_bytes(&router)?);
        work().await?;
        router.checkpoint().await?;
        let (after, file_after) = (router.written(), file_bytes(&router)?);
        let per_event = |bytes: u64| exact(bytes) / exact(count as u64);
        Ok(Cost {
            goal: None,
            layout,
            commit,
            written_bytes_per_event: per_event(after.bytes - before.bytes),
            dirty_4k_bytes_per_event: per_event(after.dirty_4k_bytes - before.dirty_4k_bytes),
            file_bytes_per_event: per_event(file_after.saturating_sub(file_before)),
        })
    }
}

/// The plain tables everybody begins with.
#[derive(Debug, Clone, Copy)]
enum Layout {
    Seed,
    Lean,
}

/// Rows of a plain table, so many in one commit.
async fn plain(disk: Option<&Path>, layout: Layout, commit: usize, count: usize) -> Result<Cost, Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(5);
    // As full as a table in use, so that its indexes have the pages they have.
    bench.write_plain(layout, &mut events, 4_000, 1_000).await?;
    let name = match layout {
        Layout::Seed => "seed-style rows",
        Layout::Lean => "lean rows",
    };
    bench.cost(name, commit, count, async || bench.write_plain(layout, &mut events, count, commit).await).await
}

/// Normal events: appended to tmpfs, then flushed into one segment for every `commit` of them, without a dictionary and
/// with one.
async fn flushed(disk: Option<&Path>, commit: usize, flushes: usize) -> Result<[Cost; 2], Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(1);
    bench.name_streams().await?;
    bench.flush_some(&mut events, commit, 3).await?;
    let without = bench
        .cost("normal, flushed segment, no dictionary", commit, commit * flushes, async || {
            bench.flush_some(&mut events, commit, flushes).await
        })
        .await?;
    bench.store.train().await?;
    bench.flush_some(&mut events, commit, 1).await?;
    let with = bench
        .cost("normal, flushed segment", commit, commit * flushes, async || {
            bench.flush_some(&mut events, commit, flushes).await
        })
        .await?;
    let goal = match commit {
        100 => Some(("P9", 400.0)),
        1_000 => Some(("P9", 150.0)),
        _ => None,
    };
    Ok([without, Cost { goal, ..with }])
}

/// Frames of 1,000 events in the cold tier, which is no flash of the router: what matters is their size.
async fn cold_frame(disk: Option<&Path>, count: usize) -> Result<Cost, Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(6);
    bench.flush_some(&mut events, 1_000, count / 1_000).await?;
    let report = bench.store.archive().await?;
    let bytes = exact(report.bytes) / exact(report.events);
    Ok(Cost {
        goal: Some(("P12", 80.0)),
        layout: "cold frame",
        commit: 1_000,
        written_bytes_per_event: bytes,
        dirty_4k_bytes_per_event: exact(report.bytes.div_ceil(4_096) * 4_096) / exact(report.events),
        file_bytes_per_event: bytes,
    })
}

/// Critical events, each synced on its own.
async fn critical(disk: Option<&Path>, count: usize) -> Result<Cost, Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(2);
    bench.name_streams().await?;
    bench.append_critical(&mut events, 10).await?;
    let cost =
        bench.cost("critical, alone", 1, count, async || bench.append_critical(&mut events, count).await).await?;
    Ok(Cost { goal: Some(("P10", 14_500.0)), ..cost })
}

/// A write of state alone, the same with a Critical event in its transaction, and the difference.
async fn state_writes(disk: Option<&Path>, count: usize) -> Result<[Cost; 3], Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(3);
    bench.name_streams().await?;
    bench.write_state(Some(&mut events), 4_000).await?;
    let alone = bench.cost("a state write", 1, count, async || bench.write_state(None, count).await).await?;
    let with = bench
        .cost("a state write with a critical event", 1, count, async || {
            bench.write_state(Some(&mut events), count).await
        })
        .await?;
    let marginal = Cost {
        goal: Some(("P10", 4_096.0)),
        layout: "critical, marginal in a state write",
        commit: 1,
        written_bytes_per_event: with.written_bytes_per_event - alone.written_bytes_per_event,
        dirty_4k_bytes_per_event: with.dirty_4k_bytes_per_event - alone.dirty_4k_bytes_per_event,
        file_bytes_per_event: with.file_bytes_per_event - alone.file_bytes_per_event,
    };
    Ok([alone, with, marginal])
}

impl Bench {
    /// Writes one event of each stream, so that no name is new to the database any more.
    async fn name_streams(&self) -> Result<(), Failure> {
        let mut events = Generator::new(9);
        for number in 0..STREAMS {
            let sample = Sample { stream: stream_name(number), ..events.sample() };
            let kind = sample.kind;
            self.append(sample, kind).await?;
        }
        self.append_critical(&mut events, 1).await?;
        self.store.flush(FlushReason::Requested).await?;
        Ok(())
    }

    /// Writes `count` rows of a plain table, `commit` in each transaction.
    async fn write_plain(
        &self,
        layout: Layout,
        events: &mut Generator,
        count: usize,
        commit: usize,
    ) -> Result<(), Failure> {
        let router = self.db.router(&self.id).await?;
        for _ in 0..count / commit {
            let samples = events.samples(commit);
            let samples: Vec<_> = samples.into_iter().map(|sample| (self.db.next_ulid().to_string(), sample)).collect();
            router
                .write(STATE, move |conn| {
                    Box::pin(async move {
                        for (id, sample) in samples {
                            let query = match layout {
                                Layout::Seed => sqlx::query(
                                    "INSERT INTO bench_seed (id, stream, version, type, body, at) SELECT ?1, ?2,
                                     (SELECT COALESCE(MAX(version), 0) + 1 FROM bench_seed WHERE stream = ?2), ?3, ?4,
                                     '2026-11-21T12:00:00.' || ?1",
                                ),
                                Layout::Lean => sqlx::query(
                                    "INSERT INTO bench_lean (stream, version, type, wall_ms, body) SELECT
                                     CAST(substr(?2, 10) AS INTEGER), (SELECT COALESCE(MAX(version), 0) + 1
                                     FROM bench_lean WHERE stream = CAST(substr(?2, 10) AS INTEGER)),
                                     length(?3) + 0 * length(?1), 1795000000000, ?4",
                                ),
                            };
                            query
                                .bind(id)
                                .bind(sample.stream)
                                .bind(sample.kind)
                                .bind(sample.body)
                                .execute(&mut *conn)
                                .await
                                .map_err(nasnet_dbmanager::Error::from)?;
                        }
                        Ok::<_, nasnet_dbmanager::Error>(())
                    })
                })
                .await?;
        }
        Ok(())
    }

    async fn flush_some(&self, events: &mut Generator, commit: usize, flushes: usize) -> Result<(), Failure> {
        for _ in 0..flushes {
            for sample in events.samples(commit) {
                let kind = sample.kind;
                self.append(sample, kind).await?;
            }
            self.store.flush(FlushReason::Requested).await?;
        }
        Ok(())
    }

    async fn append_critical(&self, events: &mut Generator, count: usize) -> Result<(), Failure> {
        for sample in events.samples(count) {
            self.append(sample, "config.applied").await?;
        }
        Ok(())
    }

    /// Rewrites one of 2,000 rows of the size of a resource in each transaction.
    async fn write_state(&self, mut events: Option<&mut Generator>, count: usize) -> Result<(), Failure> {
        let router = self.db.router(&self.id).await?;
        let scope = Scope::Router(self.id.clone());
        let mut bodies = Generator::new(4);
        for _ in 0..count {
            let state = bodies.sample();
            let append = match events.as_deref_mut() {
                None => None,
                Some(events) => {
                    let sample = events.sample();
                    let body = RawValue::from_string(sample.body)?;
                    let event = NewEvent::new(self.db.next_ulid(), EventType::parse("config.applied")?, &body)?;
                    Some(StreamAppend::new(StreamName::parse(&sample.stream)?, Expected::Any, vec![event]))
                }
            };
            let (store, scope) = (self.store.clone(), scope.clone());
            let pending = router
                .write(STATE, move |conn| {
                    Box::pin(async move {
                        sqlx::query(
                            "INSERT INTO bench_state (stream, body) VALUES (?1, ?2)
                             ON CONFLICT (stream) DO UPDATE SET body = excluded.body",
                        )
                        .bind(state.stream)
                        .bind(state.body)
                        .execute(&mut *conn)
                        .await
                        .map_err(nasnet_dbmanager::Error::from)?;
                        match append {
                            Some(append) => {
                                Ok::<_, nasnet_events::Error>(Some(store.append_in(conn, &scope, vec![append]).await?))
                            }
                            None => Ok(None),
                        }
                    })
                })
                .await?;
            if let Some(pending) = pending {
                self.store.published(pending).await;
            }
        }
        Ok(())
    }
}

fn file_bytes(database: &Database) -> Result<u64, Failure> {
    let annexes = database.annexes().map_or(0, Annexes::bytes);
    Ok(std::fs::metadata(database.path())?.len() + annexes)
}
