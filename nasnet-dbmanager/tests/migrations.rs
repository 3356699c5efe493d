//! Five versions of a schema: files of each upgrade, go back, fail alone and are refused when they are newer.
//!
//! `tests/fixtures/schema-v1.db` to `schema-v5.db` are router databases as each version wrote them. A new version adds
//! its own; the others stay as they are: `cargo test -p nasnet-dbmanager --test migrations -- --ignored --exact
//! write_missing_fixtures`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{CAUSE, Dirs, id};
use nasnet_dbmanager::{
    Database, DbManager, Error, FileKind, Migration, MigrationOutcome, NewRouter, OnOpen, Options, RouterId, SchemaSet,
    Scope,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

const VERSIONS: [Migration; 5] = [
    Migration {
        version: 1,
        name: "items",
        up: "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT",
        down: "DROP TABLE item",
    },
    Migration {
        version: 2,
        name: "sizes",
        up: "ALTER TABLE item ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0",
        down: "ALTER TABLE item DROP COLUMN size_bytes",
    },
    Migration {
        version: 3,
        name: "tags",
        up: "CREATE TABLE tag (item_id INTEGER NOT NULL REFERENCES item (id), tag TEXT NOT NULL,
                               PRIMARY KEY (item_id, tag)) STRICT, WITHOUT ROWID;
             INSERT INTO tag (item_id, tag) SELECT id, 'from-v' || 2 FROM item",
        down: "DROP TABLE tag",
    },
    // A table that others refer to is made anew with a narrower rule: what SQLite cannot alter.
    Migration {
        version: 4,
        name: "narrow_names",
        up: "CREATE TABLE item_new (id INTEGER PRIMARY KEY, name TEXT NOT NULL CHECK (length(name) <= 20),
                                    size_bytes INTEGER NOT NULL DEFAULT 0) STRICT;
             INSERT INTO item_new (id, name, size_bytes) SELECT id, name, size_bytes FROM item;
             DROP TABLE item;
             ALTER TABLE item_new RENAME TO item",
        down: "CREATE TABLE item_old (id INTEGER PRIMARY KEY, name TEXT NOT NULL,
                                      size_bytes INTEGER NOT NULL DEFAULT 0) STRICT;
               INSERT INTO item_old (id, name, size_bytes) SELECT id, name, size_bytes FROM item;
               DROP TABLE item;
               ALTER TABLE item_old RENAME TO item",
    },
    Migration {
        version: 5,
        name: "upper_names",
        up: "CREATE INDEX item_by_name ON item (name); UPDATE item SET name = upper(name)",
        down: "DROP INDEX item_by_name; UPDATE item SET name = lower(name)",
    },
];

fn set(version: usize) -> SchemaSet {
    SchemaSet::new("items", FileKind::Router, VERSIONS[..version].to_vec())
}

fn options(root: &Path, set: SchemaSet) -> Options {
    let mut options = common::options(root);
    options.schemas = vec![set];
    options
}

async fn open(dirs: &Dirs, version: usize) -> DbManager {
    DbManager::open(options(dirs.root(), set(version))).await.unwrap()
}

/// Looked up when the test runs: a target directory may be shared by clones.
fn fixture(version: usize) -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join(format!("tests/fixtures/schema-v{version}.db"))
}

async fn run(database: &Database, sql: &'static str) -> Result<(), Error> {
    database
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                sqlx::raw_sql(sql).execute(conn).await?;
                Ok(())
            })
        })
        .await
}

async fn items(database: &Database) -> Vec<(i64, String, i64)> {
    let rows: Result<_, Error> = database
        .read(CAUSE, |conn| {
            Box::pin(async move {
                Ok(sqlx::query_as("SELECT id, name, size_bytes FROM item ORDER BY id").fetch_all(conn).await?)
            })
        })
        .await;
    rows.unwrap()
}

#[tokio::test]
#[ignore = "writes fixtures of versions that have none yet"]
async fn write_missing_fixtures() {
    for version in (1..=VERSIONS.len()).filter(|version| !fixture(*version).exists()) {
        let dirs = Dirs::new();
        let manager = open(&dirs, version).await;
        manager.create_router(NewRouter::new(id("fixture"))).await.unwrap();
        let database = manager.router(&id("fixture")).await.unwrap();
        run(&database, "INSERT INTO item (id, name) VALUES (1, 'wan'), (2, 'lan bridge')").await.unwrap();
        if version >= 2 {
            run(&database, "UPDATE item SET size_bytes = 7 WHERE id = 2").await.unwrap();
        }
        if version >= 3 {
            run(&database, "INSERT INTO tag (item_id, tag) VALUES (1, 'uplink')").await.unwrap();
        }
        drop(database);
        manager.shutdown().await.unwrap();
        std::fs::copy(dirs.router_file(&id("fixture")), fixture(version)).unwrap();
    }
}

fn of_version(version: usize) -> RouterId {
    id(&format!("v{version}"))
}

/// Puts the fixtures into a fleet, each with the marks of the router it becomes.
async fn fleet_of_fixtures(dirs: &Dirs) {
    let manager = open(dirs, 5).await;
    for version in 1..=5 {
        manager.create_router(NewRouter::new(of_version(version))).await.unwrap();
    }
    let fleet_id = manager.fleet_id().to_bytes().to_vec();
    manager.shutdown().await.unwrap();
    for version in 1..=5 {
        let file = dirs.router_file(&of_version(version));
        let uid: Vec<u8> = {
            let mut conn = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
            let uid = sqlx::query_scalar("SELECT file_uid FROM _nasnet_meta").fetch_one(&mut conn).await.unwrap();
            conn.close().await.unwrap();
            uid
        };
        std::fs::copy(fixture(version), &file).unwrap();
        let mut conn = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        sqlx::query("UPDATE _nasnet_meta SET fleet_id = ?1, router_id = ?2, file_uid = ?3")
            .bind(&fleet_id)
            .bind(of_version(version).as_str())
            .bind(uid)
            .execute(&mut conn)
            .await
            .unwrap();
        conn.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_every_version_upgrade_together_and_read_back() {
    let dirs = Dirs::new();
    fleet_of_fixtures(&dirs).await;
    let manager = open(&dirs, 5).await;
    let report = manager.migrate_all(5).await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    for version in 1..=5u32 {
        let router = id(&format!("v{version}"));
        let outcome = &report.answers().find(|(id, _)| **id == router).unwrap().1;
        match outcome {
            MigrationOutcome::Current => assert_eq!(version, 5),
            MigrationOutcome::Migrated(sets) => {
                assert_eq!((sets[0].set.as_str(), sets[0].from, sets[0].to), ("items", version, 5));
            }
            other => unreachable!("{other:?}"),
        }
        let database = manager.router(&router).await.unwrap();
        let size = if version >= 2 { 7 } else { 0 };
        // The newest version changes the names it finds; its own fixture was written after that.
        let names = if version < 5 { ["WAN", "LAN BRIDGE"] } else { ["wan", "lan bridge"] };
        assert_eq!(items(&database).await, [(1, names[0].to_owned(), 0), (2, names[1].to_owned(), size)]);
        let tags: Result<i64, Error> = database
            .read(CAUSE, |conn| {
                Box::pin(async move { Ok(sqlx::query_scalar("SELECT COUNT(*) FROM tag").fetch_one(conn).await?) })
            })
            .await;
        assert_eq!(tags.unwrap(), if version >= 3 { 1 } else { 2 });
        let record = manager.system().routers().get(&router).await.unwrap().unwrap();
        assert_eq!(record.schema_versions["items"], 5);
    }
    let before = manager.system().written().bytes;
    let again = manager.migrate_all(5).await.unwrap();
    assert!(again.answers().all(|(_, outcome)| *outcome == MigrationOutcome::Current));
    let outcomes = outcomes(&manager).await;
    assert!(outcomes.iter().all(|(_, outcome, _)| outcome == "current"), "{outcomes:?}");
    let third = manager.system().written().bytes;
    manager.migrate_all(5).await.unwrap();
    assert_eq!(manager.system().written().bytes, third, "an unchanged outcome is not written again");
    assert!(third > before);
    manager.shutdown().await.unwrap();

    // Back to the first version and up again.
    let options = options(dirs.root(), set(5));
    let scope = Scope::Router(of_version(2));
    assert_eq!(DbManager::migrate_to(&options, &scope, "items", 1).await.unwrap(), 4);
    let manager = open(&dirs, 5).await;
    let database = manager.router(&of_version(2)).await.unwrap();
    assert_eq!(items(&database).await, [(1, "WAN".to_owned(), 0), (2, "LAN BRIDGE".to_owned(), 0)]);
    manager.shutdown().await.unwrap();
}

async fn outcomes(manager: &DbManager) -> Vec<(String, String, Option<String>)> {
    let list = manager.system().read(CAUSE, |conn| Box::pin(nasnet_dbmanager::system::migration_log::list(conn)));
    let list: Result<_, Error> = list.await;
    list.unwrap().into_iter().map(|record| (record.router.to_string(), record.outcome, record.detail)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_router_that_cannot_be_migrated_stops_no_other_and_stays_as_it_was() {
    let dirs = Dirs::new();
    let manager = open(&dirs, 3).await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
        let database = manager.router(&id(name)).await.unwrap();
        run(&database, "INSERT INTO item (id, name) VALUES (1, 'wan')").await.unwrap();
        if name == "c" {
            run(&database, "UPDATE item SET name = 'longer than twenty characters'").await.unwrap();
        }
    }
    manager.shutdown().await.unwrap();
    let mut wanted = options(dirs.root(), set(5));
    wanted.on_open = OnOpen::Refuse;
    wanted.lock_timeout = Duration::from_millis(200);
    let manager = DbManager::open(wanted).await.unwrap();
    assert!(matches!(manager.router(&id("a")).await, Err(Error::MigrationPending { .. })));
    let used = dirs.lock(&id("e"), false).unwrap();
    let report = manager.migrate_all(2).await.unwrap();
    let failed: Vec<_> = report.failures().map(|(id, error)| (id.as_str(), error)).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(matches!(failed[0], ("c", Error::MigrationFailed { version: 4, .. })), "{failed:?}");
    assert!(matches!(failed[1], ("e", Error::InUse { .. })), "{failed:?}");
    assert_eq!(report.answers().count(), 4);
    let outcomes = outcomes(&manager).await;
    let of = |router: &str| outcomes.iter().find(|(id, _, _)| id == router).unwrap();
    assert_eq!(of("a").1, "migrated");
    assert_eq!(of("a").2.as_deref(), Some("items 3 to 5"));
    assert_eq!(of("c").1, "failed");
    assert!(of("c").2.as_ref().unwrap().contains("migration 4"), "{outcomes:?}");
    assert!(manager.router(&id("a")).await.is_ok());
    assert!(matches!(manager.router(&id("c")).await, Err(Error::MigrationPending { found: 3, .. })));
    manager.shutdown().await.unwrap();
    drop(used);

    let manager = open(&dirs, 3).await;
    let database = manager.router(&id("c")).await.unwrap();
    assert_eq!(items(&database).await, [(1, "longer than twenty characters".to_owned(), 0)]);
    run(&database, "UPDATE item SET name = 'short'").await.unwrap();
    let newer = manager.migrate_all(2).await.unwrap();
    let refused: Vec<_> = newer.failures().map(|(id, error)| (id.as_str(), error)).collect();
    assert_eq!(refused.len(), 4, "{refused:?}");
    for (router, error) in refused {
        assert!(matches!(error, Error::SchemaTooNew { found: 5, known: 3, .. }), "{router}: {error:?}");
    }
    drop(database);
    manager.shutdown().await.unwrap();
    let manager = open(&dirs, 5).await;
    assert!(manager.migrate_all(2).await.unwrap().is_complete(), "what was repaired migrates");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_copied_database_equals_a_built_one_but_for_its_marks() {
    let dirs = Dirs::new();
    let manager = open(&dirs, 5).await;
    manager.create_router(NewRouter::new(id("first"))).await.unwrap();
    manager.create_router(NewRouter::new(id("second"))).await.unwrap();
    let templates = dirs.run().join("templates");
    assert_eq!(std::fs::read_dir(&templates).unwrap().count(), 1, "one template and nothing unfinished");
    // Without templates the database itself is built.
    std::fs::remove_dir_all(&templates).unwrap();
    std::fs::write(&templates, b"in the way").unwrap();
    manager.create_router(NewRouter::new(id("built"))).await.unwrap();
    std::fs::remove_file(&templates).unwrap();
    manager.shutdown().await.unwrap();
    let mut seen = Vec::new();
    for name in ["first", "second", "built"] {
        let file = dirs.router_file(&id(name));
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no log beside it");
        let mut conn = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let row = sqlx::query("SELECT router_id, file_uid FROM _nasnet_meta").fetch_one(&mut conn).await.unwrap();
        assert_eq!(row.get::<&str, _>("router_id"), name);
        let mut facts = Vec::new();
        for pragma in ["user_version", "application_id", "page_size", "auto_vacuum", "journal_mode", "quick_check"] {
            let sql = AssertSqlSafe(format!("PRAGMA {pragma}"));
            let row = sqlx::query(sql).fetch_one(&mut conn).await.unwrap();
            facts.push(row.try_get_unchecked::<String, _>(0).unwrap());
        }
        let schema = sqlx::query_scalar("SELECT name || COALESCE(sql, '') FROM sqlite_schema ORDER BY name");
        facts.extend(schema.fetch_all(&mut conn).await.unwrap());
        let applied = "SELECT version || name || hex(checksum) || down_sql FROM _nasnet_items_migrations";
        facts.extend(sqlx::query_scalar::<_, String>(applied).fetch_all(&mut conn).await.unwrap());
        seen.push((row.get::<Vec<u8>, _>("file_uid"), facts));
        conn.close().await.unwrap();
    }
    assert!(seen[0].0 != seen[1].0 && seen[1].0 != seen[2].0);
    assert_eq!(seen[0].1, seen[2].1);
    assert_eq!(seen[1].1, seen[2].1);
}

#[tokio::test]
async fn a_damaged_template_is_thrown_away_and_never_used() {
    let dirs = Dirs::new();
    let manager = open(&dirs, 5).await;
    manager.create_router(NewRouter::new(id("a"))).await.unwrap();
    let templates = dirs.run().join("templates");
    let template = std::fs::read_dir(&templates).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&template).unwrap();
    bytes.truncate(6000);
    std::fs::write(&template, bytes).unwrap();
    for name in ["b", "c"] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
        let database = manager.router(&id(name)).await.unwrap();
        run(&database, "INSERT INTO item (id, name) VALUES (1, 'wan')").await.unwrap();
        assert_eq!(items(&database).await.len(), 1);
    }
    manager.shutdown().await.unwrap();
}

/// Names the directory the child opens; its presence makes the test below the child.
const CHILD_DIR: &str = "NASNET_MIGRATION_TEST_DIR";
const CHILD_WAIT_MS: &str = "NASNET_MIGRATION_TEST_WAIT_MS";

/// The first version, then one that takes a second or so.
fn slow() -> SchemaSet {
    let migration = Migration {
        version: 2,
        name: "slow",
        up: "CREATE TABLE big (i INTEGER PRIMARY KEY) STRICT;
             INSERT INTO big SELECT value FROM (
                 WITH RECURSIVE c (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM c WHERE value < 2000000)
                 SELECT value FROM c) WHERE value % 1000 = 0",
        down: "DROP TABLE big",
    };
    SchemaSet::new("items", FileKind::Router, vec![VERSIONS[0].clone(), migration])
}

async fn be_the_child(root: PathBuf, wait_ms: u64) {
    let mut options = options(&root, slow());
    options.lock_timeout = Duration::from_millis(wait_ms);
    let manager = DbManager::open(options).await.unwrap();
    let answer = match manager.router(&id("home")).await {
        Ok(database) => {
            let count: Result<i64, Error> = database
                .read(CAUSE, |conn| {
                    Box::pin(async move { Ok(sqlx::query_scalar("SELECT COUNT(*) FROM big").fetch_one(conn).await?) })
                })
                .await;
            format!("rows {}", count.unwrap())
        }
        Err(Error::InUse { .. }) => "in use".to_owned(),
        Err(error) => format!("failed {error}"),
    };
    manager.shutdown().await.unwrap();
    println!("child says: {answer}");
}

#[test]
fn a_process_that_opens_while_another_migrates_waits_or_is_told_and_never_sees_half() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD_DIR) {
        let wait_ms = std::env::var(CHILD_WAIT_MS).unwrap().parse().unwrap();
        runtime.block_on(be_the_child(root.into(), wait_ms));
        return;
    }
    let dirs = Dirs::new();
    let child = |wait_ms: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["a_process_that_opens_while_another_migrates_waits_or_is_told_and_never_sees_half", "--exact"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dirs.root())
            .env(CHILD_WAIT_MS, wait_ms)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    runtime.block_on(async {
        let manager = open(&dirs, 1).await;
        manager.create_router(NewRouter::new(id("home"))).await.unwrap();
        manager.shutdown().await.unwrap();
        let manager = DbManager::open(options(dirs.root(), slow())).await.unwrap();
        let migrating = manager.clone();
        // It cannot be over before somebody has looked: it waits for the transaction of another connection.
        let mut foreign = SqliteConnectOptions::new().filename(dirs.router_file(&id("home"))).connect().await.unwrap();
        let held = foreign.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let migration = tokio::spawn(async move { migrating.router(&id("home")).await.map(|_| ()) });
        while let Some(lock) = dirs.lock(&id("home"), false) {
            drop(lock);
            assert!(!migration.is_finished(), "it has not waited");
            tokio::task::yield_now().await;
        }
        held.rollback().await.unwrap();
        foreign.close().await.unwrap();
        let (impatient, patient) = (child("0"), child("60000"));
        let says = |child: std::process::Child| {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{text}");
            text.lines().find_map(|line| line.split_once("child says: ")).unwrap().1.to_owned()
        };
        let (impatient, patient) = tokio::task::spawn_blocking(move || (says(impatient), says(patient))).await.unwrap();
        migration.await.unwrap().unwrap();
        assert_eq!(patient, "rows 2000");
        assert!(["in use", "rows 2000"].contains(&impatient.as_str()), "{impatient}");
        manager.shutdown().await.unwrap();
    });
}

#[tokio::test]
async fn ids_that_are_no_ids_and_routers_that_are_gone_change_nothing() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    manager.create_router(NewRouter::new(id("home"))).await.unwrap();
    let long = "a".repeat(300);
    for text in
        ["../x", "", &long, "Home", "HOME", "höme", "ho\u{200b}me", "home/", "home\0", "系统", "système", " home"]
    {
        let refused = text.parse::<RouterId>();
        assert!(matches!(refused, Err(Error::InvalidRouterId { ref input, .. }) if input == text), "{text:?}");
        assert!(text.parse::<Scope>().is_err(), "{text:?}");
        assert!(serde_json::from_value::<RouterId>(text.into()).is_err(), "{text:?}");
    }
    assert!("system".parse::<RouterId>().is_err());
    manager.shutdown().await.unwrap();

    let file = dirs.router_file(&id("home"));
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    let manager = dirs.open().await;
    let before = common::snapshot(&dirs.data().join("routers"));
    assert!(matches!(manager.router(&id("home")).await, Err(Error::MissingDatabase { ref path }) if *path == file));
    let report = manager.migrate_all(5).await.unwrap();
    assert!(matches!(report.failures().next(), Some((_, Error::MissingDatabase { .. }))), "{report:?}");
    let attached = manager.fleet().attached([], "SELECT 1").await.unwrap();
    assert!(matches!(attached.failed[..], [(_, Error::MissingDatabase { .. })]), "{attached:?}");
    assert_eq!(common::snapshot(&dirs.data().join("routers")), before, "nothing was made in its place");
    manager.shutdown().await.unwrap();
}
