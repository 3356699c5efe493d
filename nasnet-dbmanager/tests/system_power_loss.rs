//! Power cuts at every point of restoring the system database: the present or the restored one is in place, whole, every
//! router that has a database is registered, and no counter goes back.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use common::{all, id, kv, put, with_router};
use nasnet_dbmanager::vfs::fault::{CrashState, Medium, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{DbManager, Error, NewRouter, Options, Which};
use tokio::runtime::Runtime;

const COUNTER: &str = "tokens";
/// What is acknowledged: from here on the restored database is in place; a smaller number is a value of the counter.
const RESTORED: u64 = 1 << 40;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn options(disk: &Path, run: &Path) -> Options {
    common::patient(Options::new(disk.join("data")).run_dir(run.join("run")).schemas([kv()]))
}

async fn reserve(manager: &DbManager, ack: impl Fn(u64)) {
    ack(manager.system().counters().reserve(COUNTER, 1).await.unwrap());
}

fn record(runtime: &Runtime) -> Recording {
    let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let options = options(disk.path(), run.path());
    let backup = runtime.block_on(async {
        let manager = DbManager::open(options.clone()).await.unwrap();
        put(&*with_router(&manager, "home").await, 1, 10).await.unwrap();
        let backup = manager.backup(Which::System, disk.path().join("backup")).await.unwrap();
        // What the backup does not know.
        put(&*with_router(&manager, "later").await, 2, 20).await.unwrap();
        manager.system().settings().put("test", "later", &true, 1).await.unwrap();
        manager.shutdown().await.unwrap();
        backup
    });
    let recorder = Recorder::start(disk.path()).unwrap();
    runtime.block_on(async {
        let manager = DbManager::open(options.clone()).await.unwrap();
        reserve(&manager, |value| recorder.ack(value)).await;
        manager.shutdown().await.unwrap();
        drop(manager);
        DbManager::restore_system(&options, &backup).await.unwrap();
        recorder.ack(RESTORED);
        let manager = DbManager::open(options).await.unwrap();
        reserve(&manager, |value| recorder.ack(value)).await;
        manager.shutdown().await.unwrap();
    });
    recorder.stop()
}

#[derive(Debug)]
struct Seen {
    counter: u64,
    /// The setting made after the backup is there.
    later: bool,
}

async fn look(disk: &Path, run: &Path) -> Result<Seen, Error> {
    let manager = DbManager::open(options(disk, run)).await?;
    for (name, row) in [("home", (1, 10)), ("later", (2, 20))] {
        let router = manager.router(&id(name)).await?;
        assert_eq!(all(&router).await[0], row, "{name}");
        put(&router, 100, 100).await?;
    }
    let later = manager.system().settings().get("test", "later").await?.is_some();
    let counter = manager.system().counters().reserve(COUNTER, 1).await?;
    manager.create_router(NewRouter::new(id("new"))).await?;
    manager.shutdown().await?;
    Ok(Seen { counter, later })
}

fn broken(acked: &[u64], seen: &Result<Seen, String>) -> Option<String> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => return Some(format!("after {acked:?}: {error}")),
    };
    if acked.contains(&RESTORED) && seen.later {
        return Some("the restored database was acknowledged and another one is in place".to_owned());
    }
    let given = acked.iter().copied().filter(|value| *value < RESTORED).max();
    given.filter(|given| seen.counter <= *given).map(|given| format!("{} is given after {given}", seen.counter))
}

fn cut(runtime: &Runtime, recording: &Recording, replay: &Replay) -> ReplayReport {
    let look = |dir: &Path| {
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        runtime.block_on(look(dir, run.path())).map_err(|error| error.to_string())
    };
    recording.replay(replay, look, |state: &CrashState, seen| broken(state.acked(), seen)).unwrap()
}

#[test]
fn a_system_database_is_the_present_or_the_restored_one_after_a_power_cut() {
    let runtime = runtime();
    let recording = record(&runtime);
    let every = std::env::var("NASNET_CRASH_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(2);
    let report = cut(&runtime, &recording, &Replay { every, ..Replay::new(7) });
    assert!(report.states > 100 && report.distinct > 30, "{} {}", report.states, report.distinct);
    assert!(report.failures.is_empty(), "{} of {}: {:?}", report.failures.len(), report.states, report.failures[0]);

    // Liars are caught by the same check.
    for medium in [Medium::LiesAboutSync, Medium::NoDirectorySync] {
        let few = Replay { every: 5, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(7) };
        let lied = cut(&runtime, &recording, &few.medium(medium));
        assert!(!lied.failures.is_empty(), "{medium:?}: no failure in {} states", lied.states);
    }
}
