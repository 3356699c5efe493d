//! Prints how many bytes reach flash for one event, counted by the VFS under every database.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the output of this program")]

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use nasnet_benches::events::{Generator, Sample};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Database, DbManager, NewRouter, Options, RouterId, Scope};
use nasnet_events::{EventOptions, EventStore, EventType, Expected, FlushReason, NewEvent, StreamName};
use serde::Serialize;
use serde_json::value::RawValue;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Bytes that reach flash per event")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
}

/// What one way of storing events costs.
#[derive(Debug, Serialize)]
struct Cost {
    layout: &'static str,
    /// Events per commit.
    commit: usize,
    written_bytes_per_event: f64,
    /// Distinct 4 KiB pages dirtied between syncs: what a page-granular file system has to program.
    dirty_4k_bytes_per_event: f64,
    file_bytes_per_event: f64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let rows = [flushed(args.disk.as_deref(), 250, 40).await?, critical(args.disk.as_deref(), 200).await?];
    if args.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        println!("{:<32} {:>7} {:>12} {:>12} {:>12}", "layout", "commit", "written B", "dirty-4K B", "file B");
        for Cost { layout, commit, written_bytes_per_event, dirty_4k_bytes_per_event, file_bytes_per_event } in &rows {
            println!(
                "{layout:<32} {commit:>7} {written_bytes_per_event:>12.1} {dirty_4k_bytes_per_event:>12.1} \
                 {file_bytes_per_event:>12.1}"
            );
        }
    }
    Ok(())
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
        let mut options = Options::new(place.disk.path().join("data")).schemas(nasnet_events::schema_sets());
        options.run_dir = Some(place.tmpfs.path().to_path_buf());
        let db = DbManager::open(options).await?;
        let id: RouterId = "bench".parse()?;
        db.create_router(NewRouter::new(id.clone()).name("bench").host("192.0.2.1")).await?;
        let store = EventStore::open(&db, EventOptions::default()).await?;
        Ok(Self { _place: place, db, id, store })
    }

    async fn append(&self, sample: Sample, kind: &str) -> Result<(), Failure> {
        let body = RawValue::from_string(sample.body)?;
        let event = NewEvent::new(self.db.next_ulid(), EventType::parse(kind)?, &body)?;
        let (scope, stream) = (Scope::Router(self.id.clone()), StreamName::parse(&sample.stream)?);
        self.store.append(&scope, &stream, Expected::Any, vec![event]).await?;
        Ok(())
    }

    /// Counts what `count` events cost from here on, the final checkpoint included.
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
            layout,
            commit,
            written_bytes_per_event: per_event(after.bytes - before.bytes),
            dirty_4k_bytes_per_event: per_event(after.dirty_4k_bytes - before.dirty_4k_bytes),
            file_bytes_per_event: per_event(file_after.saturating_sub(file_before)),
        })
    }
}

/// Normal events: appended to tmpfs, then flushed into one segment for every `commit` of them.
async fn flushed(disk: Option<&Path>, commit: usize, flushes: usize) -> Result<Cost, Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(1);
    bench
        .cost("normal, flushed zstd segment", commit, commit * flushes, async || {
            for _ in 0..flushes {
                for sample in events.samples(commit) {
                    let kind = sample.kind;
                    bench.append(sample, kind).await?;
                }
                bench.store.flush(FlushReason::Requested).await?;
            }
            Ok(())
        })
        .await
}

/// Critical events, each synced on its own.
async fn critical(disk: Option<&Path>, count: usize) -> Result<Cost, Failure> {
    let bench = Bench::open(disk).await?;
    let mut events = Generator::new(2);
    bench
        .cost("critical, alone", 1, count, async || {
            for sample in events.samples(count) {
                bench.append(sample, "config.applied").await?;
            }
            Ok(())
        })
        .await
}

fn file_bytes(database: &Database) -> Result<u64, Failure> {
    Ok(std::fs::metadata(database.path())?.len())
}

/// Counts of bytes here are far below the 2^32 that convert without loss.
fn exact(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
