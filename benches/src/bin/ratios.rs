//! Prints the ratios that are really measured here, each from one run with its peer beside it.
//!
//! A row is the median of interleaved rounds, taken once with an idle and once with a busy second core; the worse of the
//! two is printed.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the output of this program")]

#[path = "ratios/hot.rs"]
mod hot;
#[path = "ratios/p13.rs"]
mod p13;
#[path = "ratios/p14.rs"]
mod p14;
#[path = "ratios/p17.rs"]
mod p17;
#[path = "ratios/p4.rs"]
mod p4;
#[path = "ratios/p8.rs"]
mod p8;
#[path = "ratios/peers.rs"]
mod peers;
#[path = "ratios/s7.rs"]
mod s7;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use nasnet_benches::measure::{BusyCore, ROUNDS, Ratio, median, percentile};
use nasnet_benches::naive::NaiveLock;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, Options};
use nasnet_locking::{AcquireRequest, LockInfo, LockKey, LockManager, LockOptions, TOKEN_COUNTER};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Ratios against peers and floors, measured side by side")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// The program of `benches/peers`; without it the rows against event stores and key-value stores are left out.
    #[arg(long, env = "NASNET_PEERS")]
    peers: Option<PathBuf>,
    /// Events of a round of the rows about the hot tier. Fewer flatter every store.
    #[arg(long, default_value_t = 500_000)]
    events: usize,
    /// Rounds of these rows, each once with an idle and once with a busy second core.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure this row only.
    #[arg(long)]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let disk = args.disk.as_deref();
    let wanted = |id: &str| args.only.as_deref().is_none_or(|only| only.eq_ignore_ascii_case(id));
    let mut rows = Vec::new();
    let peers = args.peers.map(peers::Peers);
    if peers.is_none() {
        eprintln!("no --peers: P1, P2, P3 and P7 are left out");
    }
    rows.extend(hot::rows(peers.as_ref(), hot::Size { rounds: args.rounds, events: args.events }, wanted).await?);
    if wanted("P4") {
        rows.extend(p4::rows().await?);
    }
    if wanted("P8") || wanted("P11") {
        rows.extend(p8::rows().await?);
    }
    if wanted("P14") {
        rows.extend(p14::rows(disk).await?);
    }
    if wanted("P13") {
        rows.extend(p13::rows(disk).await?);
    }
    if wanted("P17") {
        rows.extend(p17::rows(disk).await?);
    }
    if wanted("S7") {
        rows.extend(s7::rows(disk).await?);
    }
    if wanted("P18") {
        rows.extend(lease_rows(disk).await?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        println!("{:<5} {:>10} {:>8}  {:<5} what", "id", "value", "target", "holds");
        for Ratio { id, what, value, target, holds } in &rows {
            println!("{id:<5} {value:>10.2} {target:>8.2}  {:<5} {what}", if *holds { "yes" } else { "NO" });
        }
    }
    Ok(())
}

/// P18: what a lease costs against the plainest lock that survives the process: one synced UPSERT for each acquire, one
/// synced DELETE for each release.
async fn lease_rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    const LEASES: u32 = 200;
    const UPSERTS: u32 = 50;
    let place = Place::new(disk)?;
    let mut options = Options::new(place.disk.path().join("data")).schemas(nasnet_locking::schema_sets());
    options.run_dir = Some(place.tmpfs.path().to_path_buf());
    let db = DbManager::open(options).await?;
    let locks = LockManager::open(&db, LockOptions::default()).await?;
    let mut naive = NaiveLock::synced(&place.disk.path().join("naive.db")).await?;
    let mut samples = Vec::new();

    lease(&locks, LEASES, &mut Vec::new()).await?;
    upsert(&mut naive, UPSERTS).await?;
    let mut speed = f64::INFINITY;
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(lease(&locks, LEASES, &mut samples).await? / LEASES);
            theirs.push(upsert(&mut naive, UPSERTS).await? / UPSERTS);
        }
        speed = speed.min(median(theirs).as_secs_f64() / median(ours).as_secs_f64());
    }

    // A fresh block first: the thousand that is measured fits into it.
    let reserved = db.system().counters().get(TOKEN_COUNTER).await?;
    while db.system().counters().get(TOKEN_COUNTER).await? == reserved {
        lease(&locks, 1, &mut Vec::new()).await?;
    }
    let before = db.system().written().bytes;
    lease(&locks, 1_000, &mut Vec::new()).await?;
    let flash = db.system().written().bytes - before;
    let p99 = percentile(samples, 99);
    locks.shutdown().await?;
    db.shutdown().await?;
    Ok(vec![
        Ratio::at_least(
            "P18",
            "lease acquire+release, uncontended, vs an UPSERT and a DELETE on disk (FULL)",
            speed,
            5.0,
        ),
        Ratio::at_most("P18", "flash bytes of 1,000 leases beyond the block of tokens", exact(flash), 0.0),
        Ratio::at_most("P18", "lease acquire+release, uncontended, p99 in ms", p99.as_secs_f64() * 1_000.0, 1.0),
    ])
}

/// Counts of bytes are far below the 2^53 a float holds exactly.
fn exact(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

async fn lease(locks: &LockManager, count: u32, samples: &mut Vec<Duration>) -> Result<Duration, Failure> {
    let start = Instant::now();
    for number in 0..count {
        let key = LockKey::parse(format!("bench/{}", number % 50))?;
        let began = Instant::now();
        locks.acquire(AcquireRequest::exclusive(key, LockInfo::new("bench", "measure"))).await?.release().await?;
        samples.push(began.elapsed());
    }
    Ok(start.elapsed())
}

async fn upsert(naive: &mut NaiveLock, count: u32) -> Result<Duration, Failure> {
    let start = Instant::now();
    for _ in 0..count {
        naive.acquire().await?;
        naive.release().await?;
    }
    Ok(start.elapsed())
}
