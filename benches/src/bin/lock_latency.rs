//! Prints what leases cost and how fairly they are handed on, beside the locks one would use instead.
//!
//! Every row is measured in the same run: leases alone and with 32 waiters, the hand-over between processes, a row per lock
//! in SQLite on disk and on tmpfs, and, where `NASNET_TEST_POSTGRES` names a server and the feature `postgres` is on, an
//! advisory lock of PostgreSQL.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the output of this program")]

#[path = "lock_latency/handover.rs"]
mod handover;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use nasnet_benches::leases::{Advisory, Pairs, lease, upsert};
pub(crate) use nasnet_benches::leases::{Failure, open, request};
use nasnet_benches::measure::{BusyCore, ROUNDS, percentile};
use nasnet_benches::naive::NaiveLock;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Cause, DbManager};
use nasnet_locking::{LockKey, LockManager, LockOptions};
use serde::Serialize;

const WAITERS: usize = 32;
/// Pairs of each other lock.
const PEERS: u32 = 350;
const LONG: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Latency and fairness of leases, beside other locks")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Be the second process of the hand-over; started by the measurement itself.
    #[arg(long, hide = true, num_args = 2, value_names = ["DATA", "RUN"])]
    child: Option<Vec<PathBuf>>,
}

/// One measured thing.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: &'static str,
    core: &'static str,
    samples: usize,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Row {
    pub(crate) fn new(what: &'static str, busy: bool, samples: Vec<Duration>) -> Self {
        let us = |hundredths| percentile(samples.clone(), hundredths).as_secs_f64() * 1e6;
        Self {
            what,
            core: if busy { "busy" } else { "idle" },
            samples: samples.len(),
            p50_us: us(50),
            p99_us: us(99),
            max_us: us(100),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    /// Waiters that were granted before one that had queued up earlier.
    overtaken: usize,
    /// Grants that this was counted over.
    queued_grants: usize,
    /// Whether PostgreSQL took part.
    postgres: bool,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if let Some([data, run]) = args.child.as_deref() {
        return handover::child(data, run).await;
    }
    let place = Place::new(args.disk.as_deref())?;
    let (data, run) = (place.disk.path().join("data"), place.tmpfs.path());
    let db = open(&data, run).await?;
    let locks = LockManager::open(&db, LockOptions::default()).await?;
    let mut on_disk = NaiveLock::synced(&place.disk.path().join("naive.db")).await?;
    let mut on_tmpfs = NaiveLock::unsynced(&run.join("naive.db")).await?;
    let mut advisory = Advisory::connect().await?;
    let mut rows = Vec::new();
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        uncontended(&db, &locks, busy, &mut rows).await?;
        for (what, naive) in
            [("sqlite row lock on disk, FULL", &mut on_disk), ("sqlite row lock on tmpfs, OFF", &mut on_tmpfs)]
        {
            let mut samples = Vec::new();
            upsert(naive, PEERS, &mut samples).await?;
            rows.push(Row::new(what, busy, samples));
        }
        if let Some(advisory) = &mut advisory {
            let mut samples = Vec::new();
            advisory.pairs(PEERS, &mut samples).await?;
            rows.push(Row::new("postgresql advisory lock, one connection", busy, samples));
        }
    }
    let second = LockManager::open(&db, LockOptions::default()).await?;
    let (mut overtaken, mut queued_grants) = (0, 0);
    for (what, other) in [
        ("lease, from one of 32 waiters to the next", &locks),
        ("lease, from one of 32 waiters to the next of another session", &second),
    ] {
        let (samples, passed) = contended(&locks, other).await?;
        overtaken += passed;
        queued_grants += samples.len();
        rows.push(Row::new(what, false, samples));
    }
    second.shutdown().await?;
    rows.extend(handover::measure(&db, &locks, &data, run).await?);
    locks.shutdown().await?;
    db.shutdown().await?;
    let report = Report { rows, overtaken, queued_grants, postgres: advisory.is_some() };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("{:<62} {:<5} {:>7} {:>10} {:>10} {:>10}", "what", "core", "samples", "p50 us", "p99 us", "max us");
    for Row { what, core, samples, p50_us, p99_us, max_us } in &report.rows {
        println!("{what:<62} {core:<5} {samples:>7} {p50_us:>10.1} {p99_us:>10.1} {max_us:>10.1}");
    }
    println!("waiters overtaken: {} of {}", report.overtaken, report.queued_grants);
    Ok(())
}

/// A lease alone, its two halves, and what the writer of the database costs by itself.
async fn uncontended(db: &DbManager, locks: &LockManager, busy: bool, rows: &mut Vec<Row>) -> Result<(), Failure> {
    const CAUSE: Cause = Cause::new("bench");
    let (mut samples, mut empty, mut raw) = (Pairs::default(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        lease(locks, 200, &mut samples).await?;
        for _ in 0..200 {
            let began = Instant::now();
            db.locks().write(CAUSE, |_| Box::pin(async { Ok::<_, nasnet_dbmanager::Error>(()) })).await?;
            empty.push(began.elapsed());
        }
        for _ in 0..200 {
            let began = Instant::now();
            db.locks().write_raw(CAUSE, |_| Ok::<_, nasnet_dbmanager::Error>(())).await?;
            raw.push(began.elapsed());
        }
    }
    rows.push(Row::new("lease, acquire+release", busy, samples.pairs));
    rows.push(Row::new("lease, acquire", busy, samples.acquires));
    rows.push(Row::new("lease, release", busy, samples.releases));
    rows.push(Row::new("an empty write op on locks.db", busy, empty));
    rows.push(Row::new("an empty raw op on locks.db", busy, raw));
    Ok(())
}

/// 32 waiters on one key, half of them of `second`, queued up one after another; each passes it on at once. A sample is one
/// whole turn: the release of one waiter and the grant of the next.
async fn contended(locks: &LockManager, second: &LockManager) -> Result<(Vec<Duration>, usize), Failure> {
    let key = LockKey::parse("bench/queue")?;
    let (mut samples, mut overtaken) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let holder = locks.acquire(request("bench/queue")?).await?;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..WAITERS {
            let manager = if number % 2 == 0 { locks.clone() } else { second.clone() };
            let order = Arc::clone(&order);
            waiters.push(tokio::spawn(async move {
                let guard = manager.acquire(request("bench/queue")?.wait(LONG)).await?;
                order.lock().unwrap_or_else(PoisonError::into_inner).push((number, Instant::now()));
                guard.release().await?;
                Ok::<_, Failure>(())
            }));
            while locks.inspect(&key).await?.queue.len() <= number {
                tokio::task::yield_now().await;
            }
        }
        let mut before = Instant::now();
        holder.release().await?;
        for waiter in waiters {
            waiter.await??;
        }
        let order = order.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (at, (number, granted)) in order.iter().enumerate() {
            overtaken += usize::from(order[..at].iter().any(|(earlier, _)| earlier > number));
            samples.push(granted.duration_since(before));
            before = *granted;
        }
    }
    Ok((samples, overtaken))
}
