//! What is backed up comes back, what lies is refused, and what a restore replaces is kept.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::{CAUSE, Dirs, all, id, kv_newer, put, snapshot, with_router};
use nasnet_dbmanager::{
    DbManager, Error, FileKind, HighWater, Housekeeper, HousekeepingOptions, Manifest, NewRouter, Preset, RestoreMode,
    Scope, Which,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

async fn fill(manager: &DbManager, name: &str, rows: i64) {
    let router = with_router(manager, name).await;
    for k in 0..rows {
        put(&router, k, k * 10).await.unwrap();
    }
}

async fn content(manager: &DbManager, name: &str) -> Vec<(i64, i64)> {
    all(&manager.router(&id(name)).await.unwrap()).await
}

fn rows(range: std::ops::Range<i64>) -> Vec<(i64, i64)> {
    range.map(|k| (k, k * 10)).collect()
}

fn edit(manifest: &Manifest, from: &str, to: &str) {
    let path = manifest.dir.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

async fn restore_refused(manager: &DbManager, dir: &Path, name: &str) -> Error {
    let refused = async {
        let manifest = Manifest::read(dir)?;
        manager.restore(&manifest, RestoreMode::Router(id(name))).await.map(|_| ())
    };
    refused.await.unwrap_err()
}

#[tokio::test]
async fn a_router_comes_back_as_it_was_backed_up_and_the_restore_can_be_undone() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 20).await;
    fill(&manager, "other", 3).await;
    let home = Which::Router(id("home"));
    let manifest = manager.backup(home, dirs.root().join("backup")).await.unwrap();
    assert_eq!(manifest.files[0].rows["kv"], 20);
    assert_eq!(Manifest::read(&manifest.dir).unwrap(), manifest);
    manager.verify_backup(&manifest).await.unwrap();
    let record = manager.system().routers().get(&id("home")).await.unwrap().unwrap();
    assert_eq!(record.last_backup_ms, Some(manifest.created_ms));

    let router = manager.router(&id("home")).await.unwrap();
    let uid = router.file_uid();
    put(&router, 100, 1000).await.unwrap();
    drop(router);
    let report = manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    assert_eq!(content(&manager, "home").await, rows(0..20));
    assert_eq!(content(&manager, "other").await, rows(0..3), "another router is as it was");
    let router = manager.router(&id("home")).await.unwrap();
    assert_ne!(router.file_uid(), uid, "a restored file is another file");
    put(&router, 7, 70).await.unwrap();
    drop(router);

    // The safety copy is of the data that was there, not of the backup.
    let safety = report.restored[0].safety.clone().unwrap();
    manager.undo_restore(&id("home"), &safety).await.unwrap();
    let mut before = rows(0..20);
    before.push((100, 1000));
    assert_eq!(content(&manager, "home").await, before);
    assert_eq!(manager.router(&id("home")).await.unwrap().file_uid(), uid);
    for name in ["../routers/home", "", "nothing"] {
        assert!(matches!(manager.undo_restore(&id("home"), name).await, Err(Error::MissingDatabase { .. })), "{name}");
    }
    manager.shutdown().await.unwrap();
    drop(manager);
    assert_eq!(content(&dirs.open().await, "home").await, before);
}

#[tokio::test]
async fn a_fleet_is_backed_up_while_in_use_and_one_damaged_router_does_not_stop_it() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for name in ["a", "b", "c"] {
        fill(&manager, name, 5).await;
    }
    manager.shutdown().await.unwrap();
    drop(manager);
    fs::write(dirs.router_file(&id("b")), b"not a database, however one looks at it").unwrap();
    let manager = dirs.open().await;
    let in_use = manager.router(&id("a")).await.unwrap();
    let manifest = manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    put(&in_use, 50, 500).await.unwrap();
    assert_eq!(manifest.routers(), [id("a"), id("c")]);
    assert_eq!(manifest.failed.len(), 1);
    assert_eq!(manifest.failed[0].scope, Scope::Router(id("b")));
    drop(in_use);
    let report = manager.restore(&manifest, RestoreMode::Routers).await.unwrap();
    assert_eq!(report.restored.len(), 2);
    assert_eq!(content(&manager, "a").await, rows(0..5));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_restore_waits_for_handles_and_then_refuses() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lease_timeout = std::time::Duration::from_millis(20);
    let manager = DbManager::open(options).await.unwrap();
    fill(&manager, "home", 2).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    let error = manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    put(&router, 9, 90).await.unwrap();
    drop(router);
    manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    assert_eq!(content(&manager, "home").await, rows(0..2));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_backup_of_another_fleet_or_a_newer_schema_is_refused_and_nothing_changes() {
    let (dirs, foreign) = (Dirs::new(), Dirs::new());
    let manager = dirs.open().await;
    fill(&manager, "home", 4).await;
    let other = foreign.open().await;
    fill(&other, "home", 9).await;
    let theirs = other.backup(Which::Fleet, foreign.root().join("backup")).await.unwrap();
    other.shutdown().await.unwrap();
    let error = restore_refused(&manager, &theirs.dir, "home").await;
    assert!(matches!(error, Error::BackupOfAnotherFleet { found, .. } if found == theirs.fleet_id), "{error}");
    assert!(matches!(manager.verify_backup(&theirs).await, Err(Error::BackupOfAnotherFleet { .. })));
    // A manifest that claims to be ours does not make the databases ours.
    edit(&theirs, &theirs.fleet_id.to_string(), &manager.fleet_id().to_string());
    let error = restore_refused(&manager, &theirs.dir, "home").await;
    assert!(matches!(error, Error::WrongDatabase { .. }), "{error}");
    manager.shutdown().await.unwrap();
    drop(manager);

    let mut newer = dirs.options();
    newer.schemas = vec![kv_newer()];
    let manager = DbManager::open(newer).await.unwrap();
    fill(&manager, "new", 1).await;
    let manifest = manager.backup(Which::Router(id("new")), dirs.root().join("newer")).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    let manager = dirs.open().await;
    let before = snapshot(&dirs.data().join("routers"));
    let error = restore_refused(&manager, &manifest.dir, "new").await;
    assert!(matches!(error, Error::SchemaTooNew { found: 2, known: 1, .. }), "{error}");
    assert_eq!(snapshot(&dirs.data().join("routers")), before);
    assert_eq!(content(&manager, "home").await, rows(0..4));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_lies_is_refused_and_nothing_changes() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 6).await;
    fill(&manager, "work", 2).await;
    let backup = dirs.root().join("backup");
    let lies: [(&str, &str); 6] = [
        ("\"kv\": 6", "\"kv\": 7"),
        ("\"kv\": 1", "\"kv\": 0"),
        ("\"scope\": \"home\"", "\"scope\": \"work\""),
        ("\"sha256\": \"", "\"sha256\": \"0"),
        ("\"database_sha256\": \"", "\"database_sha256\": \"0"),
        ("\"file_uid\": \"", "\"file_uid\": \"0"),
    ];
    let routers = snapshot(&dirs.data().join("routers"));
    for (from, to) in lies {
        let manifest = manager.backup(Which::Router(id("home")), &backup).await.unwrap();
        edit(&manifest, from, to);
        let name = if to.contains("work") { "work" } else { "home" };
        let error = restore_refused(&manager, &manifest.dir, name).await;
        assert!(matches!(error, Error::BadBackup { .. }), "{to}: {error}");
    }
    // The files lie: each byte is covered.
    let manifest = manager.backup(Which::Router(id("home")), &backup).await.unwrap();
    let file = manifest.dir.join("router-home.db.zst");
    let whole = fs::read(&file).unwrap();
    for at in [0, 5, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(matches!(manager.verify_backup(&manifest).await, Err(Error::BadBackup { .. })), "byte {at}");
    }
    fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    assert!(matches!(manager.verify_backup(&manifest).await, Err(Error::BadBackup { .. })));
    fs::remove_file(&file).unwrap();
    let error = restore_refused(&manager, &manifest.dir, "home").await;
    assert!(matches!(&error, Error::BadBackup { path, .. } if *path == file), "{error}");
    assert!(matches!(restore_refused(&manager, &backup.join("none"), "home").await, Error::BadBackup { .. }));
    let after = snapshot(&dirs.data().join("routers"));
    let databases = |files: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>| {
        files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "db"))
            .map(|(p, b)| (p.clone(), b.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(databases(&after), databases(&routers));
    assert_eq!(content(&manager, "home").await, rows(0..6));
    assert!(manager.set_aside().await.unwrap().is_empty());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn only_the_newest_generations_of_a_kind_stay() {
    let dirs = Dirs::new();
    let manager = DbManager::open(dirs.options().preset(Preset::Server)).await.unwrap();
    fill(&manager, "home", 1).await;
    let backup = dirs.root().join("backup");
    let fleet = manager.backup(Which::Fleet, &backup).await.unwrap();
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(manager.backup(Which::Router(id("home")), &backup).await.unwrap());
    }
    fs::create_dir(backup.join("router-home-of-somebody")).unwrap();
    manager.backup(Which::Router(id("home")), &backup).await.unwrap();
    for manifest in &made[..3] {
        assert!(!manifest.dir.exists());
    }
    assert!(made[3].dir.exists() && fleet.dir.exists());
    assert!(backup.join("router-home-of-somebody").exists());
    assert_eq!(manager.backups().await.unwrap().len(), 3);
    manager.shutdown().await.unwrap();
    drop(manager);

    // On the medium of the databases themselves a small device keeps the newest alone.
    let manager = dirs.open().await;
    manager.backup(Which::Router(id("home")), &backup).await.unwrap();
    assert!(!made[3].dir.exists());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_system_database_comes_back_and_its_counters_never_go_back() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.high_waters =
        vec![HighWater { counter: "token", file: FileKind::Router, table: "kv", sql: "SELECT MAX(v) FROM kv" }];
    let manager = DbManager::open(options.clone()).await.unwrap();
    fill(&manager, "home", 2).await;
    manager.system().counters().reserve("epoch", 10).await.unwrap();
    let manifest = manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    manager.system().counters().reserve("epoch", 5_000).await.unwrap();
    fill(&manager, "later", 3).await;
    put(&manager.router(&id("later")).await.unwrap(), 1, 777_777).await.unwrap();

    let error = DbManager::restore_system(
        &{
            let mut impatient = options.clone();
            impatient.lock_timeout = std::time::Duration::from_millis(20);
            impatient
        },
        &manifest,
    )
    .await
    .unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    manager.shutdown().await.unwrap();
    drop(manager);

    let restored = DbManager::restore_system(&options, &manifest).await.unwrap();
    assert!(restored.counters["epoch"] > 5_010, "{restored:?}");
    assert!(restored.counters["token"] > 777_777, "{restored:?}");
    assert_eq!((restored.adopted, restored.missing), (vec![id("later")], vec![]));
    assert!(restored.safety.unwrap().join("system.db").exists());
    let manager = DbManager::open(options.clone()).await.unwrap();
    assert!(manager.system().counters().reserve("epoch", 1).await.unwrap() > 5_010);
    assert_eq!(content(&manager, "later").await.len(), 3);
    assert_eq!(content(&manager, "home").await, rows(0..2));
    manager.shutdown().await.unwrap();
    drop(manager);

    // The same when nothing of the present file can be read.
    fs::write(dirs.data().join("system.db"), vec![7; 5000]).unwrap();
    assert!(DbManager::open(options.clone()).await.is_err());
    let restored = DbManager::restore_system(&options, &manifest).await.unwrap();
    assert!(restored.counters["epoch"] > 10 && restored.counters["token"] > 777_777);
    let manager = DbManager::open(options).await.unwrap();
    assert_eq!(manager.routers().await.unwrap().len(), 2);
    // Restoring a router moves the counters too.
    let manifest = manager.backup(Which::Router(id("later")), dirs.root().join("later")).await.unwrap();
    let router = manager.router(&id("later")).await.unwrap();
    put(&router, 1, 1).await.unwrap();
    drop(router);
    let counters = || manager.system().counters();
    counters().reserve("unrelated", 1).await.unwrap();
    manager.restore(&manifest, RestoreMode::Router(id("later"))).await.unwrap();
    assert!(counters().get("token").await.unwrap() >= 777_777);
    assert_eq!(counters().get("unrelated").await.unwrap(), 1);
    let round = Housekeeper::new(&manager, HousekeepingOptions::default()).round().await;
    assert!(round.orphans.is_empty() && round.failed.is_empty(), "{round:?}");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_restore_is_cleared_up_at_the_next_open() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 3).await;
    // What a crash leaves before the swap: an intent and a directory half built.
    let half = dirs.data().join("safety").join("home-half");
    manager.system().write(CAUSE, |conn| Box::pin(async move {
        sqlx::query("INSERT INTO router_intents (router_id, action, directory, cause, begun_ms) VALUES ('home', 'restore', 'home-half', 'backup x', 1)")
            .execute(conn).await?;
        Ok::<_, Error>(())
    })).await.unwrap();
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("router-home.db"), "half").unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    let manager = dirs.open().await;
    assert!(!half.exists());
    assert_eq!(content(&manager, "home").await, rows(0..3));

    // And after it: the marker in the place of the router says that the swap happened.
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    put(&router, 50, 500).await.unwrap();
    let old_uid = u128::from_be_bytes(router.file_uid());
    drop(router);
    let report = manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    let safety = report.restored[0].safety.clone().unwrap();
    let new_uid = u128::from_be_bytes(manager.router(&id("home")).await.unwrap().file_uid());
    let (name, old) = (safety.clone(), old_uid.to_be_bytes());
    manager.system().write(CAUSE, move |conn| Box::pin(async move {
        sqlx::query("INSERT INTO router_intents (router_id, action, directory, cause, begun_ms) VALUES ('home', 'restore', ?1, 'backup x', 1)")
            .bind(name).execute(&mut *conn).await?;
        sqlx::query("UPDATE routers SET file_uid = ?1 WHERE id = 'home'").bind(&old[..]).execute(&mut *conn).await?;
        sqlx::query("DELETE FROM set_aside").execute(conn).await?;
        Ok::<_, Error>(())
    })).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    let marker = format!("{{\"directory\":\"{safety}\",\"file_uid\":\"{new_uid:032x}\"}}");
    fs::write(dirs.data().join("routers").join("home").join(".nasnet-swap"), marker).unwrap();
    let manager = dirs.open().await;
    assert_eq!(content(&manager, "home").await, rows(0..3));
    assert_eq!(manager.set_aside().await.unwrap().len(), 1);
    manager.undo_restore(&id("home"), &safety).await.unwrap();
    assert_eq!(content(&manager, "home").await.last(), Some(&(50, 500)));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_restored_router_needs_a_place_in_the_registry() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 3).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    manager.retire(&id("home")).await.unwrap();
    let error = restore_refused(&manager, &manifest.dir, "home").await;
    assert!(matches!(error, Error::WrongLifecycle { .. }), "{error}");
    manager.purge(&id("home")).await.unwrap();
    assert!(matches!(restore_refused(&manager, &manifest.dir, "home").await, Error::RouterNotFound { .. }));
    manager.create_router(NewRouter::new(id("home"))).await.unwrap();
    manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    assert_eq!(content(&manager, "home").await, rows(0..3));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dump_makes_the_same_database_anywhere() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::raw_sql(
                    "CREATE TABLE odd (\"a b\" TEXT, real REAL, bytes BLOB, any ANY) STRICT;
                     CREATE TABLE pairs (k TEXT, v INTEGER, PRIMARY KEY (k, v)) STRICT, WITHOUT ROWID;
                     CREATE INDEX odd_text ON odd (\"a b\");
                     CREATE TRIGGER odd_stays BEFORE DELETE ON odd BEGIN SELECT RAISE(ABORT, 'no'); END;
                     INSERT INTO odd VALUES ('it''s', 0.1, x'00ff', NULL), ('nul' || char(0) || 'after', 1e300, x'', 7),
                         ('', -0.0, NULL, 'text'), (NULL, 3.0, x'01', 9223372036854775807), ('línea\n\r', 1.5, NULL, 2.5);
                     INSERT INTO pairs VALUES ('a', 1), ('a', 2), ('b', 1)",
                )
                .execute(conn)
                .await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
    put(&router, 1, 10).await.unwrap();
    let to = dirs.root().join("home.sql");
    let written = manager.dump_sql(&Scope::Router(id("home")), &to).await.unwrap();
    assert!(written >= 9, "{written}");
    assert!(manager.dump_sql(&Scope::Router(id("home")), &to).await.is_err(), "a file is never replaced");

    let text = fs::read_to_string(&to).unwrap();
    let copy = dirs.root().join("copy.db");
    let mut from = SqliteConnectOptions::new().filename(router.path()).connect().await.unwrap();
    let mut into = SqliteConnectOptions::new().filename(&copy).create_if_missing(true).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut into).await.unwrap();
    for query in [
        "SELECT group_concat(quote(\"a b\") || hex(\"a b\") || quote(real) || typeof(any) || quote(bytes) || quote(any), '|') FROM odd",
        "SELECT group_concat(k || v, '|') FROM pairs",
        "SELECT group_concat(k || v, '|') FROM kv",
        "SELECT group_concat(hex(file_uid)) FROM _nasnet_meta",
        "SELECT group_concat(name || sql, '|') FROM (SELECT name, sql FROM sqlite_schema ORDER BY name)",
        "SELECT user_version || '' FROM pragma_user_version",
        "SELECT application_id || '' FROM pragma_application_id",
    ] {
        let one: String = sqlx::query_scalar(query).fetch_one(&mut from).await.unwrap();
        let other: String = sqlx::query_scalar(query).fetch_one(&mut into).await.unwrap();
        assert_eq!(one, other, "{query}");
    }
    into.close().await.unwrap();
    from.close().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_backup_with_an_older_schema_is_migrated_when_it_is_opened() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 3).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    let mut newer = dirs.options();
    newer.schemas = vec![kv_newer()];
    let manager = DbManager::open(newer).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    let note = "UPDATE kv SET note = 'new'";
    let written: Result<(), Error> = router
        .write(CAUSE, move |conn| Box::pin(async move { Ok(sqlx::query(note).execute(conn).await.map(|_| ())?) }))
        .await;
    written.unwrap();
    drop(router);
    manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    assert_eq!(content(&manager, "home").await, rows(0..3));
    let router = manager.router(&id("home")).await.unwrap();
    let notes: Result<i64, Error> = router
        .read(CAUSE, |conn| {
            Box::pin(async move { Ok(sqlx::query_scalar("SELECT count(note) FROM kv").fetch_one(conn).await?) })
        })
        .await;
    assert_eq!(notes.unwrap(), 0);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_router_that_another_process_has_open_is_not_replaced_and_one_being_restored_is_not_opened() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lock_timeout = std::time::Duration::from_millis(50);
    let manager = DbManager::open(options.clone()).await.unwrap();
    fill(&manager, "home", 3).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    // Locks are per open file, so a second manager stands for a second process.
    let other = DbManager::open(options).await.unwrap();
    let held = other.router(&id("home")).await.unwrap();
    for result in [
        manager.restore(&manifest, RestoreMode::Router(id("home"))).await.map(|_| ()),
        manager.retire(&id("home")).await,
        manager.quarantine(&id("home"), "told by a test").await,
    ] {
        assert!(matches!(result, Err(Error::InUse { .. })), "{result:?}");
    }
    put(&held, 9, 90).await.unwrap();
    assert_eq!(all(&held).await.len(), 4);
    drop(held);
    other.shutdown().await.unwrap();

    manager.shutdown().await.unwrap();
    drop(manager);
    let mut options = dirs.options();
    options.lock_timeout = std::time::Duration::from_millis(50);
    let manager = DbManager::open(options).await.unwrap();
    let lock = dirs.lock(&id("home"), true).unwrap();
    assert!(matches!(manager.router(&id("home")).await, Err(Error::InUse { .. })));
    drop(lock);
    assert_eq!(content(&manager, "home").await.len(), 4);
    manager.shutdown().await.unwrap();
}
