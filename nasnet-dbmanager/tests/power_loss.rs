//! Power cuts at every point of creating a fleet, writing to it and migrating it; and proof that the simulation sees what it
//! must see.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use common::{CAUSE, id, kv, kv_newer, put_in};
use nasnet_dbmanager::vfs;
use nasnet_dbmanager::vfs::fault::{Medium, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{DbManager, Error, NewRouter, Options, SchemaSet};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn options(data: &Path, run: &Path, set: SchemaSet) -> Options {
    common::patient(Options::new(data.join("data")).run_dir(run.join("run")).schemas([set]))
}

/// What a look at a fleet saw.
#[derive(Debug)]
struct Seen {
    registered: bool,
    rows: Vec<(i64, i64)>,
    columns: i64,
}

fn look(runtime: &Runtime, dir: &Path, set: SchemaSet) -> Result<Seen, String> {
    let run = tempfile::tempdir_in("/dev/shm").unwrap();
    runtime
        .block_on(async {
            let manager = DbManager::open(options(dir, run.path(), set)).await?;
            let registered = !manager.routers().await?.is_empty();
            let mut seen = Seen { registered, rows: Vec::new(), columns: 0 };
            if registered {
                let router = manager.router(&id("home")).await?;
                (seen.rows, seen.columns) = router
                    .read(CAUSE, |conn| {
                        Box::pin(async move {
                            let rows = sqlx::query_as("SELECT k, v FROM kv ORDER BY k").fetch_all(&mut *conn).await?;
                            let columns = sqlx::query_scalar("SELECT COUNT(*) FROM pragma_table_info('kv')")
                                .fetch_one(&mut *conn)
                                .await?;
                            let sound: String =
                                sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut *conn).await?;
                            if sound != "ok" {
                                return Err(Error::Corrupt { detail: sound });
                            }
                            Ok::<_, Error>((rows, columns))
                        })
                    })
                    .await?;
                // It takes writes again.
                router.write(CAUSE, |conn| Box::pin(put_in(conn, 1_000_000, 1))).await?;
            }
            manager.shutdown().await?;
            Ok(seen)
        })
        .map_err(|error: Error| error.to_string())
}

/// Rows come in pairs, each pair in one write; the Nth ack says that pair N is durable.
fn broken(acked: &[u64], seen: &Result<Seen, String>) -> Option<String> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => return Some(format!("does not open: {error}")),
    };
    let pairs: Vec<i64> = seen.rows.iter().filter(|(k, _)| k % 2 == 0).map(|(k, _)| k / 2).collect();
    if seen.rows.len() != pairs.len() * 2 || seen.rows.iter().any(|(k, v)| *v != k / 2) {
        return Some(format!("torn: {:?}", seen.rows));
    }
    match acked.last() {
        Some(_) if !seen.registered => Some("the router is gone".to_owned()),
        Some(last) if (pairs.len() as u64) < *last => Some(format!("{last} acknowledged, {} there", pairs.len())),
        _ => None,
    }
}

async fn write_pairs(manager: &DbManager, from: i64, to: i64, mut acked: impl FnMut(u64)) {
    let router = manager.router(&id("home")).await.unwrap();
    for pair in from..to {
        router
            .write(CAUSE, move |conn| {
                Box::pin(async move {
                    put_in(conn, pair * 2, pair).await?;
                    put_in(conn, pair * 2 + 1, pair).await
                })
            })
            .await
            .unwrap();
        acked(u64::try_from(pair).unwrap() + 1);
    }
}

/// Founds a fleet, registers a router and writes to it.
fn record_founding(runtime: &Runtime) -> Recording {
    let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let recorder = Recorder::start(disk.path()).unwrap();
    runtime.block_on(async {
        let manager = DbManager::open(options(disk.path(), run.path(), kv())).await.unwrap();
        manager.create_router(NewRouter::new(id("home"))).await.unwrap();
        recorder.ack(0);
        write_pairs(&manager, 0, 5, |pair| recorder.ack(pair)).await;
        manager.shutdown().await.unwrap();
    });
    recorder.stop()
}

fn replay_founding(runtime: &Runtime, recording: &Recording, replay: &Replay) -> ReplayReport {
    recording.replay(replay, |dir| look(runtime, dir, kv()), |state, seen| broken(state.acked(), seen)).unwrap()
}

#[test]
fn a_power_cut_while_founding_and_writing_loses_nothing_acknowledged() {
    let runtime = runtime();
    let recording = record_founding(&runtime);
    assert_eq!(recording.acks().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let replay = Replay { every: 3, ..Replay::new(1) };
    let report = replay_founding(&runtime, &recording, &replay);
    assert!(report.states > 150 && report.distinct > 50, "{} {}", report.states, report.distinct);
    assert!(report.failures.is_empty(), "{} of {}: {:?}", report.failures.len(), report.states, &report.failures[0]);
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    let runtime = runtime();
    let recording = record_founding(&runtime);
    let replay = Replay { every: 7, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(1) };
    let lying = replay_founding(&runtime, &recording, &replay.clone().medium(Medium::LiesAboutSync));
    assert!(!lying.failures.is_empty(), "no failure in {} states", lying.states);
    let names_lost = replay_founding(&runtime, &recording, &replay.medium(Medium::NoDirectorySync));
    assert!(!names_lost.failures.is_empty(), "no failure in {} states", names_lost.states);
}

#[test]
fn acknowledging_before_the_commit_is_caught() {
    let runtime = runtime();
    let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let recorder = Recorder::start(disk.path()).unwrap();
    runtime.block_on(async {
        let manager = DbManager::open(options(disk.path(), run.path(), kv())).await.unwrap();
        manager.create_router(NewRouter::new(id("home"))).await.unwrap();
        for pair in 0..3_i64 {
            recorder.ack(u64::try_from(pair).unwrap() + 1);
            write_pairs(&manager, pair, pair + 1, |_| {}).await;
        }
        manager.shutdown().await.unwrap();
    });
    let recording = recorder.stop();
    drop(run);
    let replay = Replay { variants: vec![Variant::DropAll], ..Replay::new(1) };
    let report = replay_founding(&runtime, &recording, &replay);
    assert!(report.failures.iter().any(|failure| failure.what.contains("acknowledged")), "{report:?}");
}

#[test]
fn a_power_cut_while_migrating_leaves_the_old_or_the_new_schema_and_every_row() {
    let runtime = runtime();
    let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    runtime.block_on(async {
        let manager = DbManager::open(options(disk.path(), run.path(), kv())).await.unwrap();
        manager.create_router(NewRouter::new(id("home"))).await.unwrap();
        write_pairs(&manager, 0, 20, |_| {}).await;
        manager.shutdown().await.unwrap();
    });
    let recorder = Recorder::start(disk.path()).unwrap();
    recorder.ack(20);
    runtime.block_on(async {
        let manager = DbManager::open(options(disk.path(), run.path(), kv_newer())).await.unwrap();
        drop(manager.router(&id("home")).await.unwrap());
        manager.shutdown().await.unwrap();
    });
    let recording = recorder.stop();
    drop(run);
    let report = recording
        .replay(
            &Replay::new(3),
            |dir| look(&runtime, dir, kv_newer()),
            |state, seen| {
                broken(state.acked(), seen).or_else(|| match seen {
                    Ok(Seen { columns: 3, .. }) => None,
                    other => Some(format!("not migrated when opened again: {other:?}")),
                })
            },
        )
        .unwrap();
    assert!(report.states > 20, "{}", report.states);
    assert!(report.failures.is_empty(), "{} of {}: {:?}", report.failures.len(), report.states, &report.failures[0]);
}

async fn plain(path: &Path, synchronous: SqliteSynchronous) -> Result<SqliteConnection, sqlx::Error> {
    vfs::register().unwrap();
    SqliteConnectOptions::new()
        .filename(path)
        .vfs(vfs::NAME)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .connect()
        .await
}

/// A plain database without this crate's care for its creation: prepared first, then recorded.
fn plain_failures(runtime: &Runtime, synchronous: SqliteSynchronous) -> (u64, usize) {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("plain.db");
    runtime.block_on(async {
        let mut conn = plain(&path, synchronous).await.unwrap();
        sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY)").execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    });
    let recorder = Recorder::start(disk.path()).unwrap();
    runtime.block_on(async {
        let mut conn = plain(&path, synchronous).await.unwrap();
        for number in 1..=10_i64 {
            sqlx::query("INSERT INTO t VALUES (?1)").bind(number).execute(&mut conn).await.unwrap();
            recorder.ack(u64::try_from(number).unwrap());
        }
        conn.close().await.unwrap();
    });
    let recording = recorder.stop();
    let look = |dir: &Path| {
        runtime.block_on(async {
            let mut conn = plain(&dir.join("plain.db"), synchronous).await.map_err(|error| error.to_string())?;
            let count: Result<i64, _> = sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(&mut conn).await;
            conn.close().await.map_err(|error| error.to_string())?;
            count.map_err(|error| error.to_string())
        })
    };
    let report = recording
        .replay(&Replay::new(1), look, |state, seen: &Result<i64, String>| match seen {
            Ok(count) if *count >= i64::try_from(state.acked().len()).unwrap() => None,
            other => Some(format!("{other:?} of {}", state.acked().len())),
        })
        .unwrap();
    (report.states, report.failures.len())
}

#[test]
fn synchronous_off_is_caught_and_full_is_not() {
    let runtime = runtime();
    let (states, failures) = plain_failures(&runtime, SqliteSynchronous::Full);
    assert!(states > 50);
    assert_eq!(failures, 0);
    let (_, failures) = plain_failures(&runtime, SqliteSynchronous::Off);
    assert!(failures > 0);
}
