//! Power cuts at every point of backing up, restoring, undoing, retiring, reinstating and setting aside: the router is
//! always what it was before the step or what it is after it, and nothing acknowledged is undone.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::{CAUSE, all, id, kv, put, put_in};
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::vfs::fault::{Medium, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{
    AnnexFamily, AnnexPlace, Class, DbManager, Error, Manifest, NewRouter, Options, Preset, Recovery, RestoreMode,
    Which,
};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn options(disk: &Path, run: &Path) -> Options {
    common::patient(Options::new(disk.join("data")).run_dir(run.join("run")).schemas([kv()]).preset(Preset::Server))
}

/// Rows below 100 are in the backup, row 100 was written after it.
const BACKED_UP: i64 = 3;

/// What each row has in an annex.
const FAMILY: AnnexFamily = AnnexFamily::new("bodies");
const BODY_BYTES: u64 = 3_000;

/// Where the body of a row is: they are appended one after the other.
fn place_of(k: i64) -> AnnexPlace {
    AnnexPlace { file: 1, offset: k.min(BACKED_UP).unsigned_abs() * BODY_BYTES, bytes: BODY_BYTES }
}

fn body_of(k: i64) -> Vec<u8> {
    k.to_le_bytes().into_iter().cycle().skip(1).take(usize::try_from(BODY_BYTES).unwrap()).collect()
}

async fn put_with_body(manager: &DbManager, k: i64) {
    let router = manager.router(&id("home")).await.unwrap();
    let annexes = router.annexes().unwrap().clone();
    let place: Result<AnnexPlace, Error> = router
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                let place = annexes.append(FAMILY, Class::Normal, body_of(k).into()).await?;
                put_in(conn, k, k).await?;
                Ok(place)
            })
        })
        .await;
    assert_eq!(place.unwrap(), place_of(k));
}

fn record(runtime: &Runtime) -> Recording {
    let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let home = id("home");
    let recorder = Recorder::start(disk.path()).unwrap();
    runtime.block_on(async {
        let manager = DbManager::open(options(disk.path(), run.path())).await.unwrap();
        manager.create_router(NewRouter::new(home.clone())).await.unwrap();
        for k in 0..BACKED_UP {
            put_with_body(&manager, k).await;
        }
        recorder.ack(1);
        let manifest = manager.backup(Which::Fleet, disk.path().join("backup")).await.unwrap();
        recorder.ack(2);
        put_with_body(&manager, 100).await;
        recorder.ack(3);
        let report = manager.restore(&manifest, RestoreMode::Router(home.clone())).await.unwrap();
        recorder.ack(4);
        manager.undo_restore(&home, report.restored[0].safety.as_deref().unwrap()).await.unwrap();
        recorder.ack(5);
        manager.retire(&home).await.unwrap();
        recorder.ack(6);
        manager.reinstate(&home).await.unwrap();
        recorder.ack(7);
        manager.quarantine(&home, "told by a test").await.unwrap();
        recorder.ack(8);
        manager.recover(&home).await.unwrap();
        recorder.ack(9);
        manager.shutdown().await.unwrap();
    });
    recorder.stop()
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Unregistered,
    /// With the rows of the backup.
    Old,
    /// With the row written after it.
    New,
    Retired,
    Quarantined,
    Torn(Vec<(i64, i64)>),
}

#[derive(Debug)]
struct Seen {
    state: State,
    backups: usize,
}

fn state_of(rows: Vec<(i64, i64)>) -> State {
    let kept: Vec<_> = (0..BACKED_UP).map(|k| (k, k)).collect();
    match rows.strip_prefix(&kept[..]) {
        Some([]) => State::Old,
        Some([(100, 100)]) => State::New,
        _ => State::Torn(rows),
    }
}

async fn rows(manager: &DbManager) -> Result<State, Error> {
    let router = manager.router(&id("home")).await?;
    let rows = all(&router).await;
    for (k, _) in &rows {
        if router.annexes().ok_or(Error::NotApplied)?.read(FAMILY, place_of(*k))? != body_of(*k) {
            return Err(Error::Corrupt { detail: format!("the body of row {k} is not what was written") });
        }
    }
    let state = state_of(rows);
    // It takes writes again.
    put(&router, 7, 7).await?;
    Ok(state)
}

async fn look_at(disk: &Path, run: &Path) -> Result<Seen, Error> {
    let home = id("home");
    let manager = DbManager::open(options(disk, run)).await?;
    let lifecycle = manager.system().routers().get(&home).await?.map(|record| record.lifecycle);
    let state = match lifecycle {
        None => State::Unregistered,
        Some(Lifecycle::Retired) => {
            manager.reinstate(&home).await?;
            match rows(&manager).await? {
                State::New => State::Retired,
                other => other,
            }
        }
        Some(Lifecycle::Quarantined) => match manager.recover(&home).await? {
            Recovery::Replaced { .. } if matches!(rows(&manager).await?, State::Old | State::New) => State::Quarantined,
            other => panic!("a quarantined router does not come back: {other:?}"),
        },
        Some(_) => rows(&manager).await?,
    };
    // What has the name of a backup is one.
    let mut backups = 0;
    for entry in fs::read_dir(disk.join("backup")).into_iter().flatten() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with('.') {
            manager.verify_backup(&Manifest::read(&path)?).await?;
            backups += 1;
        }
    }
    manager.shutdown().await?;
    Ok(Seen { state, backups })
}

fn broken(acked: &[u64], seen: &Result<Seen, String>) -> Option<String> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => return Some(format!("after {acked:?}: {error}")),
    };
    let last = acked.last().copied().unwrap_or(0);
    let allowed: &[State] = match last {
        0 => return None,
        1 => &[State::Old],
        2..=4 => &[State::Old, State::New],
        5 => &[State::New, State::Retired],
        6 => &[State::Retired, State::New],
        7 => &[State::New, State::Quarantined],
        8 => &[State::Quarantined, State::Old],
        _ => &[State::Old],
    };
    if !allowed.contains(&seen.state) {
        return Some(format!("after {last}: {seen:?}, allowed is {allowed:?}"));
    }
    (last >= 2 && seen.backups == 0).then(|| format!("after {last} the backup is gone"))
}

fn replay(runtime: &Runtime, recording: &Recording, replay: &Replay) -> ReplayReport {
    let look = |dir: &Path| {
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        runtime.block_on(look_at(dir, run.path())).map_err(|error| error.to_string())
    };
    recording.replay(replay, look, |state, seen| broken(state.acked(), seen)).unwrap()
}

#[test]
fn whatever_moves_is_whole_after_a_power_cut() {
    let runtime = runtime();
    let recording = record(&runtime);
    let every = std::env::var("NASNET_CRASH_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(9);
    let report = replay(&runtime, &recording, &Replay { every, ..Replay::new(3) });
    assert!(report.states > 100, "{}", report.states);
    assert!(report.failures.is_empty(), "{} of {}: {:?}", report.failures.len(), report.states, report.failures);
}

#[test]
fn a_disk_that_forgets_names_is_caught() {
    let runtime = runtime();
    let recording = record(&runtime);
    let variants = vec![Variant::DropAll];
    let report =
        replay(&runtime, &recording, &Replay { every: 15, variants, ..Replay::new(3) }.medium(Medium::NoDirectorySync));
    assert!(!report.failures.is_empty(), "no failure in {} states", report.states);
}
