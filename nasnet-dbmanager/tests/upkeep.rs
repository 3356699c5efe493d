//! What the fleet keeps up with by itself: its metrics, its newest id, the room of its files, the files it writes past
//! SQLite, and the databases of purged routers.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::{Dirs, all, id, put, with_router};
use nasnet_dbmanager::system::fleet_metrics::LiveMetric;
use nasnet_dbmanager::{
    Clock, DbManager, FileKind, FlashReport, FleetMetric, Housekeeper, HousekeepingOptions, LargestId, ManualClock,
    Migration, NewRouter, Options, SchemaSet, Which,
};
use ulid::Ulid;

const START: i64 = 1_750_000_000_000;
const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

fn with_clock(dirs: &Dirs) -> (Options, ManualClock) {
    let clock = ManualClock::new(START);
    let mut options = dirs.options();
    options.clock = Arc::new(clock.clone());
    options.fleet_metrics = vec![
        FleetMetric { name: "kv.rows", table: "kv", sql: "SELECT COUNT(*) FROM kv" },
        FleetMetric { name: "elsewhere", table: "no_such_table", sql: "SELECT 1" },
    ];
    (options, clock)
}

async fn live(manager: &DbManager, router: &str, name: &str) -> Option<LiveMetric> {
    let live = manager.system().fleet_metrics().live().await.unwrap();
    live.into_iter().find(|metric| metric.router == id(router) && metric.name == name)
}

#[tokio::test]
async fn metrics_are_collected_from_open_databases_and_reach_flash_once_a_day() {
    let dirs = Dirs::new();
    let (mut options, clock) = with_clock(&dirs);
    options.max_open = 1;
    let manager = DbManager::open(options).await.unwrap();
    // Only one of the two has a place in the open set.
    put(&*with_router(&manager, "closed").await, 1, 1).await.unwrap();
    let open = with_router(&manager, "open").await;
    put(&open, 1, 1).await.unwrap();
    put(&open, 2, 1).await.unwrap();
    let mut housekeeper = Housekeeper::new(&manager, HousekeepingOptions::default());
    let report = housekeeper.round().await;
    assert!(report.failed.is_empty() && report.collected == 1, "{report:?}");
    assert_eq!(live(&manager, "open", "kv.rows").await.unwrap().value, 2);
    assert!(live(&manager, "open", "database.bytes").await.unwrap().value > 4096);
    assert!(live(&manager, "open", "elsewhere").await.is_none(), "a table that is not there has no number");
    assert!(live(&manager, "closed", "kv.rows").await.is_none(), "nothing is opened for it");

    // Until the logs are moved once, housekeeping writes by itself.
    for _ in 0..3 {
        clock.advance(MINUTE);
        housekeeper.round().await;
    }
    let (system, router) = (manager.system().written(), open.written());
    for _ in 0..30 {
        clock.advance(MINUTE);
        let report = housekeeper.round().await;
        assert_eq!((report.collected, report.failed.len()), (0, 0), "nothing changed: {report:?}");
    }
    assert_eq!(manager.system().written(), system, "half an hour of metrics costs no flash");
    assert_eq!(open.written(), router);
    assert_eq!(live(&manager, "open", "kv.rows").await.unwrap().as_of_ms, clock.now().wall_ms);
    assert!(manager.system().fleet_metrics().days(9).await.unwrap().is_empty());

    // Closed now, it keeps its last values, and the other gets its own.
    let closed_at = clock.now().wall_ms;
    drop(open);
    drop(manager.router(&id("closed")).await.unwrap());
    clock.advance(MINUTE);
    housekeeper.round().await;
    assert_eq!(live(&manager, "open", "kv.rows").await.unwrap().as_of_ms, closed_at);
    assert_eq!(live(&manager, "closed", "kv.rows").await.unwrap().value, 1);

    // The day that ends leaves one row, and so does shutting down.
    clock.advance(DAY);
    housekeeper.round().await;
    let days = manager.system().fleet_metrics().days(9).await.unwrap();
    assert_eq!((days.len(), days[0].day, days[0].routers), (1, START / 86_400_000, 2));
    assert_eq!(days[0].totals["kv.rows"], 3);
    manager.shutdown().await.unwrap();
    let manager = dirs.open().await;
    assert_eq!(manager.system().fleet_metrics().days(9).await.unwrap().len(), 2);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_purged_router_has_no_metrics() {
    let dirs = Dirs::new();
    let (options, _) = with_clock(&dirs);
    let manager = DbManager::open(options).await.unwrap();
    drop(with_router(&manager, "home").await);
    Housekeeper::new(&manager, HousekeepingOptions::default()).round().await;
    assert!(live(&manager, "home", "kv.rows").await.is_some());
    manager.retire(&id("home")).await.unwrap();
    manager.purge(&id("home")).await.unwrap();
    assert!(live(&manager, "home", "kv.rows").await.is_none());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_purged_router_is_archived_first_and_stays_while_the_archive_is_away() {
    let dirs = Dirs::new();
    let (options, clock) = with_clock(&dirs);
    let manager = DbManager::open(options).await.unwrap();
    let home = with_router(&manager, "home").await;
    put(&home, 7, 70).await.unwrap();
    drop(home);
    manager.retire(&id("home")).await.unwrap();
    clock.advance(31 * DAY);
    // A file where the directory should be: the stick is away.
    let archive = dirs.root().join("archive");
    fs::write(&archive, b"").unwrap();
    let options = HousekeepingOptions { retired_archive: Some(archive.clone()), ..HousekeepingOptions::default() };
    let mut housekeeper = Housekeeper::new(&manager, options);
    let report = housekeeper.round().await;
    assert!(report.purged.is_empty() && report.failed.len() == 1, "{report:?}");
    assert_eq!(manager.retired_routers().await.unwrap().len(), 1);

    fs::remove_file(&archive).unwrap();
    let report = housekeeper.round().await;
    assert_eq!((report.purged.len(), report.archived.len(), report.failed.len()), (1, 1, 0), "{report:?}");
    let packed = fs::read(&report.archived[0]).unwrap();
    let database = dirs.root().join("unpacked.db");
    fs::write(&database, zstd::decode_all(&packed[..]).unwrap()).unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&database);
    let mut conn = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT k, v FROM kv").fetch_all(&mut conn).await.unwrap();
    assert_eq!(rows, [(7, 70)]);
    assert!(manager.retired_routers().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 1, "nothing unfinished is left");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_bounds_of_all_files_fit_the_flash_and_follow_the_number_of_routers() {
    const MIB: u64 = 1 << 20;
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.flash_bytes_max = 90 * MIB;
    let manager = DbManager::open(options).await.unwrap();
    let home = with_router(&manager, "r0").await;
    let bound = |manager: &DbManager| {
        let stats = manager.stats();
        let sum: u64 = stats.open.iter().filter_map(|database| database.bytes_max).sum();
        let routers: Vec<_> = stats.open.iter().filter(|database| database.router.is_some()).collect();
        assert!(routers[0].bytes > 0);
        (routers[0].bytes_max.unwrap(), sum, stats.fits)
    };
    assert_eq!(bound(&manager), (64 * MIB, 74 * MIB, true));
    for number in 1..8 {
        manager.create_router(NewRouter::new(id(&format!("r{number}")))).await.unwrap();
    }
    assert_eq!(bound(&manager).0, 10 * MIB, "an open database follows");
    for number in 8..60 {
        manager.create_router(NewRouter::new(id(&format!("r{number}")))).await.unwrap();
    }
    let (each, _, fits) = bound(&manager);
    assert_eq!((each, fits), (2 * MIB, false), "the floor, and it is told");
    // It is the bound that is enforced.
    let fill: Result<(), nasnet_dbmanager::Error> = home
        .write(common::CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("CREATE TABLE bulk (b BLOB)").execute(&mut *conn).await?;
                sqlx::query("INSERT INTO bulk VALUES (zeroblob(3000000))").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    assert!(matches!(fill, Err(nasnet_dbmanager::Error::NoSpace { .. })), "{fill:?}");
    put(&home, 1, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}

fn charged(report: &FlashReport, cause: &str) -> u64 {
    report.charges.iter().filter(|charge| charge.cause == cause).map(|charge| charge.bytes).sum()
}

#[tokio::test]
async fn files_outside_of_sqlite_are_charged_to_the_budget() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    put(&*with_router(&manager, "home").await, 1, 1).await.unwrap();
    let report = manager.flash_report().await.unwrap();
    assert!(charged(&report, "marker-files") > 0 && charged(&report, "put-in-place") > 4096, "{report:?}");
    assert_eq!(charged(&report, "backup-files"), 0);
    let manifest = manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    let report = manager.flash_report().await.unwrap();
    let in_files: u64 =
        fs::read_dir(&manifest.dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(charged(&report, "backup-files"), in_files);
    manager.retire(&id("home")).await.unwrap();
    let archived = manager.purge_to(&id("home"), &dirs.root().join("archive")).await.unwrap();
    let report = manager.flash_report().await.unwrap();
    assert_eq!(charged(&report, "retired-files"), fs::metadata(archived).unwrap().len());
    manager.shutdown().await.unwrap();
}

fn with_ids() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "ids",
        up: "CREATE TABLE ids (id BLOB NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID",
        down: "DROP TABLE ids",
    };
    SchemaSet::new("ids", FileKind::Router, vec![first])
}

#[tokio::test]
async fn after_a_power_cut_and_with_the_clock_back_new_ids_are_greater_than_those_that_survived() {
    let dirs = Dirs::new();
    let open = |wall_ms| {
        let mut options = dirs.options();
        options.schemas = vec![with_ids()];
        options.clock = Arc::new(ManualClock::new(wall_ms));
        options.largest_ids = vec![LargestId { file: FileKind::Router, table: "ids", sql: "SELECT MAX(id) FROM ids" }];
        DbManager::open(options)
    };
    let manager = open(START).await.unwrap();
    let home = with_router(&manager, "home").await;
    let newest = Ulid::from_parts(u64::try_from(START).unwrap() + 3_000_000, 5);
    let damaged = Ulid::from_parts((1 << 48) - 1, 5);
    for id in [newest, damaged] {
        let stored: Result<(), nasnet_dbmanager::Error> = home
            .write(common::CAUSE, move |conn| {
                Box::pin(async move {
                    sqlx::query("INSERT INTO ids VALUES (?1)").bind(&id.to_bytes()[..]).execute(conn).await?;
                    Ok(())
                })
            })
            .await;
        stored.unwrap();
        if id == newest {
            drop(manager.router(&crate::common::id("home")).await.unwrap());
        }
    }
    drop(home);
    manager.shutdown().await.unwrap();
    // An id of the year 10889 is nobody's; with it in the way the generator goes by what is saved.
    let manager = open(START - 1).await.unwrap();
    drop(manager.router(&id("home")).await.unwrap());
    assert!(manager.next_ulid() < newest);
    let home = manager.router(&id("home")).await.unwrap();
    let removed: Result<(), nasnet_dbmanager::Error> = home
        .write(common::CAUSE, move |conn| {
            Box::pin(async move {
                sqlx::query("DELETE FROM ids WHERE id = ?1").bind(&damaged.to_bytes()[..]).execute(conn).await?;
                Ok(())
            })
        })
        .await;
    removed.unwrap();
    drop(home);
    manager.shutdown().await.unwrap();
    let manager = open(START - 1).await.unwrap();
    drop(manager.router(&id("home")).await.unwrap());
    assert!(manager.next_ulid() > newest);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_newest_id_is_saved_while_running_and_not_for_each_id() {
    let dirs = Dirs::new();
    let (options, clock) = with_clock(&dirs);
    let manager = DbManager::open(options).await.unwrap();
    let saved = manager.system().counters().get("ulid_high_water_ms").await.unwrap();
    let before = manager.system().written();
    for _ in 0..10_000 {
        manager.next_ulid();
    }
    assert_eq!(manager.system().written(), before, "an id costs no flash");
    clock.advance(2 * DAY);
    let newest = manager.next_ulid().timestamp_ms();
    let waited = tokio::time::timeout(common::PATIENCE, async {
        while manager.system().counters().get("ulid_high_water_ms").await.unwrap() < newest {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.unwrap();
    assert!(newest > saved);
    assert!(all(&*with_router(&manager, "home").await).await.is_empty());
    manager.shutdown().await.unwrap();
}
