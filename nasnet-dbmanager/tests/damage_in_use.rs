//! Damage met in the middle of the work: the call that met it says so, nobody is served from the file again, and the
//! router comes back from what there is. The damage is real: pages of an open file are overwritten.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{CAUSE, Dirs, all, id, put, put_in, with_router};
use nasnet_dbmanager::{Database, DbHealth, DbManager, Error, OnDamage, Options, RestoredFrom, Scope, Which};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

const ROWS: i64 = 6_000;

/// A fleet of two routers, closed, whose pages are all in the files.
async fn filled(dirs: &Dirs, backup: bool) {
    let manager = dirs.open().await;
    let home = with_router(&manager, "home").await;
    let fill: Result<(), Error> = home
        .write(CAUSE, |conn| {
            Box::pin(async move {
                for k in 0..ROWS {
                    put_in(conn, k, k * 10).await?;
                }
                Ok(())
            })
        })
        .await;
    fill.unwrap();
    put(&*with_router(&manager, "other").await, 1, 1).await.unwrap();
    if backup {
        manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
        put(&home, ROWS, 1).await.unwrap();
    }
    drop(home);
    manager.shutdown().await.unwrap();
}

async fn open(dirs: &Dirs, on_damage: OnDamage) -> DbManager {
    let mut options = dirs.options();
    options.on_damage = on_damage;
    DbManager::open(options).await.unwrap()
}

/// Overwrites every page from the third on but keeps the file open to whoever has it.
fn damage_leaves(file: &Path) {
    let open = fs::OpenOptions::new().write(true).open(file).unwrap();
    let pages = open.metadata().unwrap().len() / 4096;
    assert!(pages > 20, "{pages}");
    for page in pages / 2..pages {
        open.write_all_at(&[0xa5; 300], page * 4096).unwrap();
    }
}

async fn count(db: &Database) -> Result<i64, Error> {
    db.read(CAUSE, |conn| {
        Box::pin(async move { Ok(sqlx::query_scalar("SELECT SUM(v) FROM kv").fetch_one(conn).await?) })
    })
    .await
}

async fn health(manager: &DbManager, name: &str) -> DbHealth {
    let all = manager.health().await.unwrap();
    all.into_iter().find(|health| health.scope == Scope::Router(id(name))).unwrap().health
}

async fn touch_all(db: &Database) -> Result<(), Error> {
    db.write(CAUSE, |conn| {
        Box::pin(async move {
            sqlx::query("UPDATE kv SET v = v + 1").execute(conn).await?;
            Ok(())
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_meets_damage_fails_typed_and_the_router_comes_back_from_its_backup() {
    let dirs = Dirs::new();
    filled(&dirs, true).await;
    let manager = open(&dirs, OnDamage::Recover).await;
    let (home, other) = (manager.router(&id("home")).await.unwrap(), manager.router(&id("other")).await.unwrap());
    let idle = home.clone();
    damage_leaves(&dirs.router_file(&id("home")));
    let error = count(&home).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
    // Handles that live on are refused, whether they read or write: no row of the damaged file is served any more.
    for error in [count(&idle).await.unwrap_err(), put(&idle, 1, 1).await.unwrap_err()] {
        assert!(error.is_damage() || matches!(error, Error::Closed { .. }), "{error}");
    }
    put(&other, 2, 2).await.unwrap();
    assert_eq!(health(&manager, "other").await, DbHealth::Ok);
    // Whoever asks now gets the replacement, without calling `recover`, and whatever the old handles do.
    let again = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&again).await.len(), usize::try_from(ROWS).unwrap());
    put(&again, 1, 42).await.unwrap();
    assert!(count(&idle).await.is_err(), "an old handle never reads from the replacement's place");
    let DbHealth::Quarantined { restored_from, cause, .. } = health(&manager, "home").await else { panic!() };
    assert!(matches!(restored_from, Some(RestoredFrom::Backup { .. })), "{restored_from:?}");
    assert!(!cause.is_empty());
    assert_eq!(manager.set_aside().await.unwrap().len(), 1);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_meets_damage_takes_nobody_along_who_is_told_to_be_committed() {
    let dirs = Dirs::new();
    filled(&dirs, false).await;
    let manager = open(&dirs, OnDamage::Refuse).await;
    let home = manager.router(&id("home")).await.unwrap();
    damage_leaves(&dirs.router_file(&id("home")));
    // All of them share one transaction or come after it.
    let (before, broken, after) = tokio::join!(put(&home, ROWS + 1, 1), touch_all(&home), put(&home, ROWS + 2, 1));
    assert!(broken.as_ref().is_err_and(Error::is_damage), "{broken:?}");
    for other in [before, after] {
        let fine = matches!(&other, Err(Error::NotApplied)) || other.as_ref().is_err_and(Error::is_damage);
        assert!(fine, "{other:?}");
    }
    // Refusing means that a person replaces it; until then it is set aside and nobody gets at it.
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(error, Error::Quarantined { .. }), "{error}");
    assert!(matches!(health(&manager, "home").await, DbHealth::Quarantined { restored_from: None, .. }));
    put(&manager.router(&id("other")).await.unwrap(), 3, 3).await.unwrap();
    manager.recover(&id("home")).await.unwrap();
    let again = manager.router(&id("home")).await.unwrap();
    assert!(all(&again).await.iter().all(|(k, v)| *v == k * 10), "what was salvaged is old, never half changed");
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cut_short_under_an_open_handle_is_replaced() {
    let dirs = Dirs::new();
    filled(&dirs, true).await;
    let manager = open(&dirs, OnDamage::Recover).await;
    let home = manager.router(&id("home")).await.unwrap();
    let file = dirs.router_file(&id("home"));
    let half = fs::metadata(&file).unwrap().len() / 2 / 4096 * 4096;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half + 1000).unwrap();
    let error = count(&home).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
    let again = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&again).await.len(), usize::try_from(ROWS).unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_hidden_in_the_type_of_the_caller_is_noticed_all_the_same() {
    #[derive(Debug)]
    struct Own;
    impl From<Error> for Own {
        fn from(_: Error) -> Self {
            Self
        }
    }
    let dirs = Dirs::new();
    filled(&dirs, true).await;
    let manager = open(&dirs, OnDamage::Recover).await;
    let home = manager.router(&id("home")).await.unwrap();
    damage_leaves(&dirs.router_file(&id("home")));
    let read: Result<i64, Own> = home
        .read(CAUSE, |conn| {
            Box::pin(async move { sqlx::query_scalar("SELECT SUM(v) FROM kv").fetch_one(conn).await.map_err(|_| Own) })
        })
        .await;
    assert!(read.is_err());
    assert!(count(&home).await.is_err());
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await.len(), usize::try_from(ROWS).unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn errors_that_are_no_damage_set_nothing_aside() {
    let dirs = Dirs::new();
    filled(&dirs, false).await;
    let manager = open(&dirs, OnDamage::Recover).await;
    let home = manager.router(&id("home")).await.unwrap();
    assert!(matches!(put(&home, 1, -1).await, Err(Error::Constraint { .. })));
    let refused: Result<(), Error> = home
        .read(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("SELECT nothing FROM nowhere").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    assert!(refused.is_err());
    put(&home, 1, 1).await.unwrap();
    assert_eq!(health(&manager, "home").await, DbHealth::Ok);
    assert!(manager.set_aside().await.unwrap().is_empty());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_removed_under_an_open_handle_is_told() {
    let dirs = Dirs::new();
    filled(&dirs, false).await;
    let manager = open(&dirs, OnDamage::Refuse).await;
    let _home = manager.router(&id("home")).await.unwrap();
    fs::remove_file(dirs.router_file(&id("home"))).unwrap();
    assert!(matches!(health(&manager, "home").await, DbHealth::Degraded { .. }));
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_under_way_is_told_and_so_is_its_end() {
    let dirs = Dirs::new();
    filled(&dirs, false).await;
    let options = Options { schemas: vec![common::kv_newer()], ..dirs.options() };
    let manager = DbManager::open(options).await.unwrap();
    assert_eq!(health(&manager, "other").await, DbHealth::Ok);
    // It waits for the transaction of another connection until somebody was told of it.
    let mut foreign = SqliteConnectOptions::new().filename(dirs.router_file(&id("home"))).connect().await.unwrap();
    let held = foreign.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let opening = tokio::spawn({
        let manager = manager.clone();
        async move { manager.router(&id("home")).await.map(|_| ()) }
    });
    while health(&manager, "home").await != DbHealth::Migrating {
        assert!(!opening.is_finished(), "nobody was told");
        tokio::task::yield_now().await;
    }
    assert_eq!(health(&manager, "other").await, DbHealth::Ok);
    held.rollback().await.unwrap();
    foreign.close().await.unwrap();
    opening.await.unwrap().unwrap();
    assert_eq!(health(&manager, "home").await, DbHealth::Ok);
    manager.shutdown().await.unwrap();
}
