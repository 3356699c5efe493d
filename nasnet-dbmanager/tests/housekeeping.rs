//! What is due is done, what is not due is left alone, and the task ends when it is told to.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::{CAUSE, Dirs, all, id, put, with_router};
use nasnet_dbmanager::system::audit::{AuditEntry, AuditLimits};
use nasnet_dbmanager::{
    BackupSchedule, DbManager, Error, Housekeeper, HousekeepingOptions, ManualClock, NewRouter, RestoreMode, Which,
};

const DAY: Duration = Duration::from_secs(86_400);

async fn fleet(dirs: &Dirs) -> (DbManager, ManualClock) {
    let clock = ManualClock::new(1_750_000_000_000);
    let mut options = dirs.options();
    options.clock = Arc::new(clock.clone());
    (DbManager::open(options).await.unwrap(), clock)
}

fn wal_bytes(file: &std::path::Path) -> u64 {
    fs::metadata(format!("{}-wal", file.display())).map_or(0, |metadata| metadata.len())
}

#[tokio::test]
async fn the_log_of_an_idle_database_is_moved_once_and_that_of_a_busy_one_is_bounded() {
    let dirs = Dirs::new();
    let (manager, _) = fleet(&dirs).await;
    let router = with_router(&manager, "home").await;
    let file = dirs.router_file(&id("home"));
    put(&router, 1, 1).await.unwrap();
    let options = HousekeepingOptions { wal_bytes_max: 64 << 10, ..HousekeepingOptions::default() };
    let mut housekeeper = Housekeeper::new(&manager, options);
    assert!(!housekeeper.round().await.checkpointed.contains(&file), "it was just written to");
    let report = housekeeper.round().await;
    assert!(report.checkpointed.contains(&file), "{report:?}");
    assert!(report.failed.is_empty() && report.orphans.is_empty(), "{report:?}");
    let settled = router.written();
    for _ in 0..3 {
        let report = housekeeper.round().await;
        assert!(!report.checkpointed.contains(&file), "{report:?}");
    }
    assert_eq!(router.written(), settled, "an idle database costs nothing");

    // A reader that stays keeps the log from being emptied; that is told.
    let (reading, started) = tokio::sync::oneshot::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let reader = router.clone();
    let read = tokio::spawn(async move {
        let read: Result<(), Error> = reader
            .read(CAUSE, |conn| {
                Box::pin(async move {
                    let _: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM kv").fetch_one(conn).await?;
                    reading.send(()).ok();
                    ended.await.ok();
                    Ok(())
                })
            })
            .await;
        read
    });
    started.await.unwrap();
    for k in 0..20 {
        put(&router, k, k).await.unwrap();
    }
    assert!(wal_bytes(&file) > 64 << 10, "{}", wal_bytes(&file));
    let report = housekeeper.round().await;
    assert!(report.busy.contains(&file) && !report.checkpointed.contains(&file), "{report:?}");
    end.send(()).unwrap();
    read.await.unwrap().unwrap();
    let report = housekeeper.round().await;
    assert!(report.checkpointed.contains(&file), "{report:?}");
    assert_eq!(wal_bytes(&file), 0);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn unused_pages_are_given_back_when_idle() {
    let dirs = Dirs::new();
    let (manager, _) = fleet(&dirs).await;
    let router = with_router(&manager, "home").await;
    let fill: Result<(), Error> = router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
                     INSERT INTO kv (k, v) SELECT i, i FROM n",
                )
                .execute(&mut *conn)
                .await?;
                sqlx::query("DELETE FROM kv WHERE k > 10").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    fill.unwrap();
    let mut housekeeper = Housekeeper::new(&manager, HousekeepingOptions::default());
    let mut freed = 0;
    for _ in 0..6 {
        let report = housekeeper.round().await;
        assert!(report.failed.is_empty(), "{report:?}");
        freed += report.pages_freed;
    }
    assert!(freed >= 100, "{freed}");
    assert_eq!(all(&router).await.len(), 10);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_has_been_kept_long_enough_goes_and_nothing_before() {
    let dirs = Dirs::new();
    let (manager, clock) = fleet(&dirs).await;
    for name in ["home", "old"] {
        let router = with_router(&manager, name).await;
        put(&router, 1, 10).await.unwrap();
    }
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    manager.retire(&id("old")).await.unwrap();
    manager.create_router(NewRouter::new(id("broken"))).await.unwrap();
    manager.quarantine(&id("broken"), "told by a test").await.unwrap();
    let mut housekeeper = Housekeeper::new(&manager, HousekeepingOptions::default());
    clock.advance(29 * DAY);
    let report = housekeeper.round().await;
    assert!(report.purged.is_empty() && report.expired.is_empty() && report.failed.is_empty(), "{report:?}");
    clock.advance(DAY);
    let report = housekeeper.round().await;
    assert_eq!(report.purged, [id("old")], "{report:?}");
    assert_eq!(report.expired.len(), 1, "what replaced nothing is kept: {report:?}");
    assert!(!dirs.data().join("retired").join("old").exists());
    assert!(fs::read_dir(dirs.data().join("safety")).unwrap().next().is_none());
    assert_eq!(manager.set_aside().await.unwrap().len(), 1);
    assert!(matches!(manager.router(&id("broken")).await, Err(Error::Quarantined { .. })));
    let home = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&home).await, [(1, 10)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn backups_are_made_on_schedule_and_the_audit_log_is_kept_short() {
    let dirs = Dirs::new();
    let (manager, clock) = fleet(&dirs).await;
    with_router(&manager, "home").await;
    for _ in 0..10 {
        manager.system().audit_log().append(AuditEntry::new("test", "test.done")).await.unwrap();
    }
    let options = HousekeepingOptions {
        audit: AuditLimits { rows: 3, ..AuditLimits::default() },
        backup: Some(BackupSchedule { dir: dirs.root().join("backup"), every: DAY }),
        ..HousekeepingOptions::default()
    };
    let mut housekeeper = Housekeeper::new(&manager, options);
    let report = housekeeper.round().await;
    assert_eq!(report.audit_removed, 7, "{report:?}");
    let first = report.backup.unwrap();
    assert_eq!(housekeeper.round().await.backup, None);
    clock.advance(DAY);
    let second = housekeeper.round().await.backup.unwrap();
    assert!(second > first);
    assert_eq!(manager.backups().await.unwrap()[0].id, second);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_directory_nobody_knows_is_told_once_and_left_alone() {
    let dirs = Dirs::new();
    let (manager, _) = fleet(&dirs).await;
    with_router(&manager, "home").await;
    let stranger = dirs.data().join("routers").join("stranger");
    fs::create_dir(&stranger).unwrap();
    fs::create_dir_all(dirs.data().join("quarantine").join("home-x")).unwrap();
    let mut housekeeper = Housekeeper::new(&manager, HousekeepingOptions::default());
    let orphans = housekeeper.round().await.orphans;
    assert_eq!(orphans.len(), 2, "{orphans:?}");
    assert!(orphans.contains(&stranger));
    assert!(housekeeper.round().await.orphans.is_empty());
    assert!(stranger.exists());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_task_ends_when_told_and_with_its_manager() {
    let dirs = Dirs::new();
    let (manager, _) = fleet(&dirs).await;
    let options = HousekeepingOptions { interval: Duration::from_secs(3600), ..HousekeepingOptions::default() };
    let running = Housekeeper::new(&manager, options).start();
    running.shutdown().await;
    let options = HousekeepingOptions { interval: Duration::from_millis(1), ..HousekeepingOptions::default() };
    let running = Housekeeper::new(&manager, options).start();
    manager.shutdown().await.unwrap();
    running.shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_taken_away_while_open_is_noticed_and_let_go() {
    let dirs = Dirs::new();
    let (manager, _) = fleet(&dirs).await;
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    with_router(&manager, "other").await;
    let mut housekeeper = Housekeeper::new(&manager, HousekeepingOptions::default());
    assert!(housekeeper.round().await.displaced.is_empty());
    let file = dirs.router_file(&id("home"));
    fs::rename(&file, dirs.root().join("taken")).unwrap();
    assert!(!router.is_in_place());
    put(&router, 2, 20).await.unwrap();
    let report = housekeeper.round().await;
    assert_eq!(report.displaced, [file], "{report:?}");
    assert!(matches!(put(&router, 3, 30).await, Err(Error::Closed { .. })), "no more is written to a dead file");
    assert!(matches!(manager.router(&id("home")).await, Err(Error::MissingDatabase { .. })));
    put(&manager.router(&id("other")).await.unwrap(), 1, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}
