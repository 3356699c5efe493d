//! Appends the events of the ratio table to one peer and prints how long that took, making the events not counted.
//!
//! One run is one round of one engine: the program that prints the table starts it in turn with its own store.
#![forbid(unsafe_code)]

#[path = "../../src/events.rs"]
mod events;
mod fjall_store;
mod redb_store;
mod sqlite_es_store;
mod umadb_store;

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use events::{Generator, Sample};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    /// cqrs-es over SQLite, its own pool and settings.
    SqliteEs,
    /// Single events by concurrent tasks over the same.
    SqliteEsTasks,
    /// A log-structured store with two index keyspaces.
    Fjall,
    /// A B-tree store with two index tables, no sync.
    Redb,
    /// An event store with its tag index.
    Umadb,
}

#[derive(Parser)]
#[command(about = "One round of one peer of the ratio table")]
struct Args {
    engine: Engine,
    /// An empty directory, on tmpfs for the hot rows.
    #[arg(long)]
    dir: PathBuf,
    /// Events in one commit.
    #[arg(long, default_value_t = 1_000)]
    batch: usize,
    /// Events in all.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Callers at a time, for engines that have several.
    #[arg(long, default_value_t = 8)]
    tasks: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// An event with the version it has in its stream.
struct Event {
    seq: u64,
    version: u64,
    sample: Sample,
}

/// Makes batches of events, each with the next version of its stream.
struct Batches {
    generator: Generator,
    versions: HashMap<String, u64>,
    seq: u64,
}

impl Batches {
    fn new(seed: u64) -> Self {
        Self { generator: Generator::new(seed), versions: HashMap::new(), seq: 0 }
    }

    fn next(&mut self, count: usize) -> Vec<Event> {
        let event = |sample: Sample| {
            self.seq += 1;
            let version = self.versions.entry(sample.stream.clone()).or_default();
            *version += 1;
            Event { seq: self.seq, version: *version, sample }
        };
        self.generator.samples(count).into_iter().map(event).collect()
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut batches = Batches::new(args.seed);
    let spent = match args.engine {
        Engine::SqliteEs => sqlite_es_store::batches(&args, &mut batches).await?,
        Engine::SqliteEsTasks => sqlite_es_store::tasks(&args, &mut batches).await?,
        Engine::Fjall => in_batches(&args, &mut batches, fjall_store::Store::open(&args.dir)?)?,
        Engine::Redb => in_batches(&args, &mut batches, redb_store::Store::open(&args.dir)?)?,
        Engine::Umadb => in_batches(&args, &mut batches, umadb_store::Store::open(&args.dir)?)?,
    };
    println!("{}", serde_json::json!({ "events": args.events, "seconds": spent.as_secs_f64() }));
    Ok(())
}

/// A peer that is called, not awaited.
trait Append {
    /// Appends one batch and returns the time from the first byte given to the commit.
    fn append(&mut self, batch: Vec<Event>) -> Result<Duration, Failure>;
}

fn in_batches(args: &Args, batches: &mut Batches, mut store: impl Append) -> Result<Duration, Failure> {
    let mut spent = Duration::ZERO;
    let mut left = args.events;
    while left > 0 {
        let batch = batches.next(args.batch.min(left));
        left -= batch.len();
        spent += store.append(batch)?;
    }
    Ok(spent)
}

/// The number of a stream, from its name.
fn stream_number(name: &str) -> u64 {
    name.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
