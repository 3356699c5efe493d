//! The fleet as a whole: 37 routers, some of which cannot answer.
#![allow(clippy::unwrap_used, clippy::cast_possible_wrap, missing_docs)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{CAUSE, Dirs, ForeignLock};
use nasnet_dbmanager::system::routers::{self, Lifecycle};
use nasnet_dbmanager::{DbManager, Error, KeyValue, NewRouter, Options, Reference, ReferenceTarget, RouterId};
use sqlx::Row;

const ROUTERS: usize = 37;
const DAMAGED: &str = "r05";
const LOCKED: &str = "r11";
const RETIRED: &str = "r23";

fn id(text: &str) -> RouterId {
    RouterId::parse(text).unwrap()
}

fn ids() -> Vec<RouterId> {
    (0..ROUTERS).map(|number| id(&format!("r{number:02}"))).collect()
}

fn options(dirs: &Dirs) -> Options {
    let mut options = dirs.options();
    options.lock_timeout = Duration::from_millis(200);
    options
}

/// A fleet where each router holds one row that names it.
async fn fleet(dirs: &Dirs) -> DbManager {
    let manager = DbManager::open(options(dirs)).await.unwrap();
    for (number, id) in ids().into_iter().enumerate() {
        manager.create_router(NewRouter::new(id.clone())).await.unwrap();
        common::put(&manager.router(&id).await.unwrap(), number as i64, 100 + number as i64).await.unwrap();
    }
    manager
}

/// Makes three routers unable to answer; the lock lasts as long as the returned file.
async fn hurt(dirs: &Dirs, manager: DbManager) -> (DbManager, ForeignLock) {
    manager.shutdown().await.unwrap();
    damage(&dirs.router_file(&id(DAMAGED)));
    let lock = dirs.lock(&id(LOCKED), true).unwrap();
    let manager = DbManager::open(options(dirs)).await.unwrap();
    let retired: Result<bool, Error> = manager
        .system()
        .write(CAUSE, |conn| {
            Box::pin(async move {
                let now = nasnet_dbmanager::Clock::now(&nasnet_dbmanager::SystemClock::new());
                routers::move_lifecycle(conn, &id(RETIRED), Lifecycle::Active, Lifecycle::Retired, &now).await
            })
        })
        .await;
    assert!(retired.unwrap());
    (manager, lock)
}

/// Overwrites everything after the first page: the file still opens.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xa5);
    std::fs::write(path, bytes).unwrap();
}

async fn sum(database: nasnet_dbmanager::RouterDb) -> Result<i64, Error> {
    database
        .read(CAUSE, |conn| {
            Box::pin(async move { Ok(sqlx::query_scalar("SELECT SUM(v) FROM kv").fetch_one(conn).await?) })
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fan_out_over_37_routers_answers_for_all_that_can() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs).await;
    let (manager, _lock) = hurt(&dirs, manager).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let report = manager.fleet().of(ids()).map(|database| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let result = sum(database).await;
            running.fetch_sub(1, Ordering::SeqCst);
            result
        }
    });
    let report = report.concurrency(3).collect().await.unwrap();
    assert!(most.load(Ordering::SeqCst) <= 3);
    assert_eq!(report.routers.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids());
    assert!(!report.is_complete());
    let failed: HashMap<_, _> = report.failures().map(|(id, error)| (id.as_str(), error)).collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(matches!(failed[DAMAGED], Error::Corrupt { .. }), "{failed:?}");
    assert!(matches!(failed[LOCKED], Error::InUse { .. }), "{failed:?}");
    assert!(!matches!(failed[RETIRED], Error::Corrupt { .. } | Error::InUse { .. }), "{failed:?}");
    for (id, answer) in report.answers() {
        assert_eq!(format!("r{:02}", answer - 100), id.as_str());
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_statement_reads_37_routers_in_chunks_and_names_those_that_fail() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs).await;
    let every = manager.fleet().attached(ids(), "SELECT router_id, k, v FROM fleet_kv ORDER BY k").await.unwrap();
    assert_eq!((every.rows.len(), every.answered.len(), every.failed.len()), (ROUTERS, ROUTERS, 0));
    let (manager, _lock) = hurt(&dirs, manager).await;
    let all = manager.fleet().attached(ids(), "SELECT router_id, k, v FROM fleet_kv ORDER BY k").await.unwrap();
    let mut seen: Vec<(String, i64)> = all.rows.iter().map(|row| (row.get("router_id"), row.get("v"))).collect();
    seen.sort();
    let hurt = [DAMAGED, LOCKED, RETIRED];
    let mut failed: Vec<_> = all.failed.iter().map(|(id, _)| id.as_str()).collect();
    failed.sort_unstable();
    assert_eq!(failed, hurt, "{all:?}");
    let expected: Vec<_> = (0..ROUTERS)
        .map(|number| (format!("r{number:02}"), 100 + number as i64))
        .filter(|(id, _)| !hurt.contains(&id.as_str()))
        .collect();
    assert_eq!(seen, expected);

    // An aggregate is of each chunk: the caller adds them up.
    let sums = manager.fleet().attached(ids(), "SELECT SUM(v) AS v, COUNT(*) AS n FROM fleet_kv").await.unwrap();
    let total: i64 = sums.rows.iter().map(|row| row.get::<i64, _>("v")).sum();
    assert_eq!(total, expected.iter().map(|(_, v)| v).sum::<i64>());
    assert!(sums.rows.len() >= expected.len() / 8);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_databases_cannot_be_written_and_a_wrong_statement_is_one_error() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for name in ["a", "b"] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
        common::put(&manager.router(&id(name)).await.unwrap(), 1, 1).await.unwrap();
    }
    let fleet = manager.fleet();
    for sql in [
        "INSERT INTO r0.kv (k, v) VALUES (9, 9)",
        "PRAGMA query_only = 0; DELETE FROM r0.kv",
        "UPDATE r1.kv SET v = 7",
        "DROP TABLE r0.kv",
    ] {
        let written = fleet.attached([id("a"), id("b")], sqlx::AssertSqlSafe(sql)).await;
        let refused = written.as_ref().map_or(true, |rows| rows.rows.is_empty() && rows.failed.len() == 2);
        assert!(refused, "{sql}: {written:?}");
    }
    for name in ["a", "b"] {
        assert_eq!(common::all(&manager.router(&id(name)).await.unwrap()).await, [(1, 1)]);
    }
    let wrong = fleet.attached([], "SELECT nothing FROM fleet_kv").await;
    assert!(matches!(wrong, Err(Error::Storage { .. })), "{wrong:?}");
    let hidden = fleet.attached([], "SELECT router_id FROM fleet__nasnet_meta").await;
    assert!(hidden.is_err(), "the marks of the files are no data");
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_keeps_its_databases_open_and_two_chunks_do_not_starve_each_other() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs).await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let manager = manager.clone();
        tasks.push(tokio::spawn(async move {
            manager.fleet().attached([], "SELECT v FROM fleet_kv").await.map(|rows| (rows.rows.len(), rows.failed))
        }));
    }
    for task in tasks {
        let (rows, failed) = task.await.unwrap().unwrap();
        assert_eq!(rows, ROUTERS, "{failed:?}");
    }
    assert!(manager.stats().open.iter().all(|database| database.leases == 0));
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_asks_each_router_once_keeps_the_order_and_gives_each_key_its_error() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for name in ["a", "b"] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
        let database = manager.router(&id(name)).await.unwrap();
        for k in 0..600 {
            common::put(&database, k, if name == "a" { k } else { 1000 + k }).await.unwrap();
        }
    }
    let (calls, largest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, widest) = (Arc::clone(&calls), Arc::clone(&largest));
    let loader = manager.loader(CAUSE, move |conn, keys: Vec<i64>| {
        counted.fetch_add(1, Ordering::SeqCst);
        widest.fetch_max(keys.len(), Ordering::SeqCst);
        Box::pin(async move {
            let marks = vec!["?"; keys.len()].join(", ");
            let sql = sqlx::AssertSqlSafe(format!("SELECT k, v FROM kv WHERE k IN ({marks})"));
            let query = keys.iter().fold(sqlx::query_as::<_, (i64, i64)>(sql), |query, key| query.bind(*key));
            Ok(query.fetch_all(conn).await?.into_iter().collect::<HashMap<i64, i64>>())
        })
    });
    let keys = [("b", 3), ("gone", 1), ("a", 2), ("b", 3), ("a", 9999), ("gone", 2), ("b", 1)];
    let answers = loader.load(keys.iter().map(|(router, key)| (id(router), *key)).collect()).await;
    let plain: Vec<_> = answers.iter().map(|answer| answer.as_ref().ok().copied()).collect();
    assert_eq!(plain, [Some(Some(1003)), None, Some(Some(2)), Some(Some(1003)), Some(None), None, Some(Some(1001))]);
    assert!(matches!(answers[1], Err(Error::RouterNotFound { .. })));
    assert_eq!(calls.load(Ordering::SeqCst), 2, "one read for each router that is there");
    let many = loader.load((0..600).map(|key| (id("a"), key)).collect::<Vec<_>>()).await;
    assert!(many.iter().enumerate().all(|(key, answer)| *answer.as_ref().unwrap() == Some(key as i64)));
    assert_eq!(largest.load(Ordering::SeqCst), 500);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_that_lead_nowhere_are_found_across_databases() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for (name, rows) in [("a", &[(1, 10), (2, 20)][..]), ("b", &[(10, 1), (30, 99)][..])] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
        let database = manager.router(&id(name)).await.unwrap();
        for (k, v) in rows {
            common::put(&database, *k, *v).await.unwrap();
        }
    }
    // Every v must be the k of some router.
    let reference =
        Reference { table: "kv", column: "v", target: ReferenceTarget::AnyRouter { table: "kv", column: "k" } };
    let report = manager.fleet().dangling(reference).await.unwrap();
    assert!(report.failed.is_empty());
    let mut dangling = report.dangling;
    dangling.sort();
    assert_eq!(dangling, [(id("a"), KeyValue::Integer(20)), (id("b"), KeyValue::Integer(99))]);
    let reference = Reference { target: ReferenceTarget::System { table: "audit_log", column: "id" }, ..reference };
    assert_eq!(manager.fleet().dangling(reference).await.unwrap().dangling.len(), 4);
    let odd = Reference { table: "kv\" --", ..reference };
    assert!(matches!(manager.fleet().dangling(odd).await, Err(Error::InvalidName { .. })));
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_databases_than_keep_readers_are_read_again_and_again_and_close_clean() {
    let dirs = Dirs::new();
    fleet(&dirs).await.shutdown().await.unwrap();
    let mut options = options(&dirs);
    options.max_open = ROUTERS;
    let manager = DbManager::open(options).await.unwrap();
    for _ in 0..3 {
        let report = manager.fleet().map(sum).concurrency(8).collect().await.unwrap();
        assert_eq!(report.answers().count(), ROUTERS);
    }
    manager.shutdown().await.unwrap();
    for id in ids() {
        let mut wal = dirs.router_file(&id).into_os_string();
        wal.push("-wal");
        assert!(!Path::new(&wal).exists(), "{id} was not closed by its last connection");
    }
}
