//! What opening accepts, what it refuses, and that refusing changes nothing.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;

use common::{Dirs, KV_1, all, id, kv_newer, put, snapshot, with_router};
use nasnet_dbmanager::{
    ClockQuality, DbManager, Error, FileKind, KeyFault, MasterKeySource, Migration, NewRouter, OnOpen, RouterId,
    SchemaSet, Scope,
};

async fn refused(options: nasnet_dbmanager::Options) -> Error {
    match DbManager::open(options).await {
        Ok(_) => panic!("opening must be refused"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_fleet_keeps_what_was_written_and_leaves_no_log_behind() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let fleet = manager.fleet_id();
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    let uid = router.file_uid();
    manager.shutdown().await.unwrap();
    assert!(matches!(put(&router, 2, 20).await, Err(Error::Closed { .. })));
    drop((router, manager));

    let names: Vec<_> = snapshot(&dirs.data()).into_keys().collect();
    assert!(names.iter().all(|path| !path.to_string_lossy().contains("-wal")), "{names:?}");
    assert!(names.iter().all(|path| !path.to_string_lossy().contains(".nasnet-new")), "{names:?}");

    let manager = dirs.open().await;
    assert_eq!(manager.fleet_id(), fleet);
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(router.file_uid(), uid);
    assert_eq!(all(&router).await, [(1, 10)]);
    assert_eq!(manager.routers().await.unwrap().len(), 1);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_directory_of_another_program_is_refused_untouched() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.data()).unwrap();
    fs::write(dirs.data().join("thesis.tex"), "text").unwrap();
    let before = snapshot(dirs.root());
    let error = refused(dirs.options()).await;
    assert!(matches!(&error, Error::ForeignDirectory { found, .. } if found == "thesis.tex"), "{error}");
    assert_eq!(snapshot(dirs.root()), before);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_or_is_a_file_is_refused() {
    let dirs = Dirs::new();
    fs::write(dirs.data(), "a file").unwrap();
    assert!(matches!(refused(dirs.options()).await, Error::NotWritable { .. }));
    assert_eq!(fs::read(dirs.data()).unwrap(), b"a file");
    // Nobody, root included, makes directories there.
    let mut options = dirs.options();
    options.data_dir = "/proc/nasnet".into();
    assert!(matches!(refused(options).await, Error::NotWritable { .. }));
}

#[tokio::test]
async fn a_broken_marker_is_named_and_never_replaced() {
    let dirs = Dirs::new();
    dirs.open().await.shutdown().await.unwrap();
    fs::write(dirs.data().join("nasnet.lock"), "{").unwrap();
    let before = snapshot(&dirs.data());
    assert!(matches!(refused(dirs.options()).await, Error::BadMarker { .. }));
    assert_eq!(snapshot(&dirs.data()), before);
}

#[tokio::test]
async fn another_run_directory_is_refused_until_the_recorded_one_is_gone() {
    let dirs = Dirs::new();
    dirs.open().await.shutdown().await.unwrap();
    let elsewhere = dirs.options().run_dir(dirs.root().join("elsewhere"));
    assert!(matches!(refused(elsewhere.clone()).await, Error::RunDirMismatch { .. }));
    assert!(!dirs.root().join("elsewhere").exists());
    // A reboot clears it.
    fs::remove_dir_all(dirs.run()).unwrap();
    let manager = DbManager::open(elsewhere).await.unwrap();
    assert!(manager.run_dir().ends_with("elsewhere"));
    manager.shutdown().await.unwrap();
    assert!(matches!(refused(dirs.options()).await, Error::RunDirMismatch { .. }));
}

#[tokio::test]
async fn without_a_run_directory_the_recorded_one_is_used() {
    let dirs = Dirs::new();
    dirs.open().await.shutdown().await.unwrap();
    let mut options = dirs.options();
    options.run_dir = None;
    let manager = DbManager::open(options).await.unwrap();
    assert_eq!(manager.run_dir(), fs::canonicalize(dirs.run()).unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_readable_on_request() {
    let dirs = Dirs::new();
    let mut newer = dirs.options();
    newer.schemas = vec![kv_newer()];
    let manager = DbManager::open(newer).await.unwrap();
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    manager.shutdown().await.unwrap();
    drop((router, manager));
    let file = fs::read(dirs.router_file(&id("home"))).unwrap();

    let manager = dirs.open().await;
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(&error, Error::SchemaTooNew { set, found: 2, known: 1, .. } if set == "kv"), "{error}");
    manager.shutdown().await.unwrap();
    assert_eq!(fs::read(dirs.router_file(&id("home"))).unwrap(), file);

    let mut options = dirs.options();
    options.on_open = OnOpen::ReadOnly;
    let manager = DbManager::open(options).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&router).await, [(1, 10)]);
    assert!(matches!(put(&router, 2, 20).await, Err(Error::ReadOnly { .. })));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_newer_system_database_is_refused_with_nothing_changed() {
    let dirs = Dirs::new();
    let extra = |versions| {
        let all = [
            Migration { version: 1, name: "a", up: "CREATE TABLE extra (a INTEGER) STRICT", down: "DROP TABLE extra" },
            Migration { version: 2, name: "b", up: "ALTER TABLE extra ADD COLUMN b TEXT", down: "SELECT 1" },
        ];
        SchemaSet::new("extra", FileKind::System, all[..versions].to_vec())
    };
    DbManager::open(dirs.options().schemas([extra(2)])).await.unwrap().shutdown().await.unwrap();
    let before = snapshot(&dirs.data());
    let error = refused(dirs.options().schemas([extra(1)])).await;
    assert!(matches!(error, Error::SchemaTooNew { found: 2, known: 1, .. }), "{error}");
    assert_eq!(snapshot(&dirs.data()), before);
}

#[tokio::test]
async fn an_older_schema_is_migrated_only_when_the_options_say_so() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    drop(with_router(&manager, "home").await);
    manager.shutdown().await.unwrap();
    drop(manager);

    let mut options = dirs.options();
    options.schemas = vec![kv_newer()];
    options.on_open = OnOpen::Refuse;
    let manager = DbManager::open(options.clone()).await.unwrap();
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(error, Error::MigrationPending { found: 1, wanted: 2, .. }), "{error}");
    manager.shutdown().await.unwrap();

    options.on_open = OnOpen::Migrate;
    let manager = DbManager::open(options.clone()).await.unwrap();
    drop(manager.router(&id("home")).await.unwrap());
    manager.shutdown().await.unwrap();
    drop(manager);

    // The older program is served again once the newer one took its step back, with the text stored in the file.
    let scope = Scope::Router(id("home"));
    assert_eq!(DbManager::migrate_to(&dirs.options(), &scope, "kv", 1).await.unwrap(), 1);
    let manager = dirs.open().await;
    drop(manager.router(&id("home")).await.unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_migration_with_another_text_than_the_applied_one_is_refused() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    drop(with_router(&manager, "home").await);
    manager.shutdown().await.unwrap();
    let mut options = dirs.options();
    let edited = Migration { up: "CREATE TABLE kv (k INTEGER PRIMARY KEY) STRICT", ..KV_1 };
    options.schemas = vec![SchemaSet::new("kv", FileKind::Router, vec![edited])];
    let manager = DbManager::open(options).await.unwrap();
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(error, Error::MigrationChanged { version: 1, .. }), "{error}");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failing_migration_is_rolled_back_whole() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(router);
    for up in [
        "ALTER TABLE kv ADD COLUMN note TEXT; INSERT INTO nowhere VALUES (1)",
        "ALTER TABLE kv ADD COLUMN note TEXT; COMMIT; SELECT 1",
        "ALTER TABLE kv ADD COLUMN note TEXT; INSERT INTO child (k) VALUES (99)",
        "VACUUM",
    ] {
        let mut options = dirs.options();
        let second = Migration { version: 2, name: "bad", up, down: "SELECT 1" };
        options.schemas = vec![SchemaSet::new("kv", FileKind::Router, vec![KV_1, second])];
        let manager = DbManager::open(options).await.unwrap();
        let error = manager.router(&id("home")).await.unwrap_err();
        assert!(matches!(error, Error::MigrationFailed { version: 2, .. }), "{up}: {error}");
        manager.shutdown().await.unwrap();
        // The file is still what the first version made of it.
        let manager = dirs.open().await;
        let router = manager.router(&id("home")).await.unwrap();
        assert_eq!(all(&router).await, [(1, 10)]);
        let columns: Result<Vec<String>, Error> = router
            .read(common::CAUSE, |conn| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar("SELECT name FROM pragma_table_info('kv')").fetch_all(conn).await?)
                })
            })
            .await;
        assert_eq!(columns.unwrap(), ["k", "v"], "{up}");
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_registered_but_missing_or_empty_file_is_never_replaced_by_a_new_one() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    drop(with_router(&manager, "home").await);
    drop(with_router(&manager, "other").await);
    manager.shutdown().await.unwrap();
    drop(manager);
    let file = dirs.router_file(&id("home"));
    for empty in [false, true] {
        fs::remove_file(&file).ok();
        if empty {
            fs::write(&file, "").unwrap();
        }
        let manager = dirs.open().await;
        let error = manager.router(&id("home")).await.unwrap_err();
        assert!(matches!(&error, Error::MissingDatabase { path } if path.ends_with("router-home.db")), "{error}");
        assert_eq!(file.exists(), empty);
        // Others never notice.
        drop(manager.router(&id("other")).await.unwrap());
        manager.shutdown().await.unwrap();
    }
    fs::remove_file(dirs.data().join("system.db")).unwrap();
    assert!(matches!(refused(dirs.options()).await, Error::MissingDatabase { .. }));
    assert!(!dirs.data().join("system.db").exists());
}

#[tokio::test]
async fn a_file_of_another_router_or_another_program_is_refused() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    drop(with_router(&manager, "a").await);
    drop(with_router(&manager, "b").await);
    manager.shutdown().await.unwrap();
    drop(manager);
    fs::copy(dirs.router_file(&id("a")), dirs.router_file(&id("b"))).unwrap();
    let manager = dirs.open().await;
    let error = manager.router(&id("b")).await.unwrap_err();
    assert!(matches!(error, Error::WrongDatabase { .. }), "{error}");
    manager.shutdown().await.unwrap();
    drop(manager);

    // A database with another application id, and a file that is no database at all.
    let mut bytes = fs::read(dirs.router_file(&id("a"))).unwrap();
    bytes[68..72].copy_from_slice(&7_u32.to_be_bytes());
    fs::write(dirs.router_file(&id("a")), &bytes).unwrap();
    fs::write(dirs.router_file(&id("b")), [b'x'; 8192]).unwrap();
    let manager = dirs.open().await;
    let error = manager.router(&id("a")).await.unwrap_err();
    assert!(matches!(error, Error::WrongDatabase { .. }), "{error}");
    let error = manager.router(&id("b")).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unclean_stop_is_followed_by_a_check_whose_result_counts() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    for k in 0..2000 {
        if k % 100 == 0 {
            let batch = router.write(common::CAUSE, move |conn| {
                Box::pin(async move {
                    for k in k..k + 100 {
                        common::put_in(conn, k, k).await?;
                    }
                    Ok::<_, Error>(())
                })
            });
            batch.await.unwrap();
        }
    }
    manager.shutdown().await.unwrap();
    drop((router, manager));
    // Damage in the middle of a table, and a log as a crash leaves it.
    let file = dirs.router_file(&id("home"));
    let mut bytes = fs::read(&file).unwrap();
    let page = bytes.len() / 4096 - 2;
    bytes[page * 4096..page * 4096 + 64].fill(0xff);
    fs::write(&file, bytes).unwrap();
    fs::write(file.with_extension("db-wal"), [0; 32]).unwrap();
    let manager = dirs.open().await;
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_lost_master_key_is_an_error_and_not_a_new_key() {
    let dirs = Dirs::new();
    dirs.open().await.shutdown().await.unwrap();
    fs::remove_file(dirs.data().join("master.key")).unwrap();
    let error = refused(dirs.options()).await;
    assert!(matches!(error, Error::MasterKey { fault: KeyFault::Missing, .. }), "{error}");
    assert!(!dirs.data().join("master.key").exists());
    let mut options = dirs.options();
    options.master_key = MasterKeySource::Key(std::sync::Arc::new(nasnet_dbmanager::MasterKey::from_bytes([7; 32])));
    // Another key opens nothing either, and is told apart from a missing one.
    let error = refused(options).await;
    assert!(matches!(error, Error::MasterKey { fault: KeyFault::Wrong, .. }), "{error}");
}

#[tokio::test]
async fn settings_are_in_force_on_writers_and_readers() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    let wanted = [
        ("journal_mode", "wal", "wal"),
        ("synchronous", "2", "0"),
        ("foreign_keys", "1", "1"),
        ("page_size", "4096", "4096"),
        ("auto_vacuum", "2", "2"),
        ("temp_store", "2", "2"),
        ("trusted_schema", "0", "0"),
        ("wal_autocheckpoint", "32", "128"),
        ("cache_size", "-256", "-256"),
    ];
    for (name, flash, tmpfs) in wanted {
        assert_eq!(pragma(&router, name, false).await, flash, "{name}");
        assert_eq!(pragma(manager.system(), name, false).await, flash, "{name}");
        assert_eq!(pragma(&manager.hot(), name, false).await, tmpfs, "{name}");
    }
    assert_eq!(pragma(&router, "query_only", true).await, "1");
    assert_eq!(pragma(&router, "query_only", false).await, "0");
    let written: Result<(), Error> = router.read(common::CAUSE, |conn| Box::pin(common::put_in(conn, 1, 1))).await;
    assert!(matches!(written, Err(Error::ReadOnly { .. })), "{written:?}");
    manager.shutdown().await.unwrap();
}

async fn pragma(db: &nasnet_dbmanager::Database, name: &'static str, reader: bool) -> String {
    let value: Result<String, Error> = if reader {
        db.read(common::CAUSE, move |conn| Box::pin(pragma_of(conn, name))).await
    } else {
        db.write(common::CAUSE, move |conn| Box::pin(pragma_of(conn, name))).await
    };
    value.unwrap()
}

async fn pragma_of(conn: &mut sqlx::SqliteConnection, name: &str) -> Result<String, Error> {
    use sqlx::Row;
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA {name}"))).fetch_one(conn).await?;
    Ok(row.try_get_unchecked::<String, _>(0)?)
}

#[tokio::test]
async fn two_managers_share_one_data_directory() {
    let dirs = Dirs::new();
    let (daemon, cli) = tokio::join!(DbManager::open(dirs.options()), DbManager::open(dirs.options()));
    let (daemon, cli) = (daemon.unwrap(), cli.unwrap());
    assert_eq!(daemon.fleet_id(), cli.fleet_id());
    let router = with_router(&daemon, "home").await;
    put(&router, 1, 10).await.unwrap();
    let same = cli.router(&id("home")).await.unwrap();
    put(&same, 2, 20).await.unwrap();
    assert_eq!(all(&router).await, [(1, 10), (2, 20)]);
    assert!(matches!(cli.create_router(NewRouter::new(id("home"))).await, Err(Error::RouterExists { .. })));

    // While one has it open, the other cannot migrate it.
    let mut newer = dirs.options();
    newer.schemas = vec![kv_newer()];
    newer.lock_timeout = std::time::Duration::from_millis(100);
    let third = DbManager::open(newer).await.unwrap();
    assert!(matches!(third.router(&id("home")).await, Err(Error::InUse { .. })));
    drop((router, same));
    daemon.shutdown().await.unwrap();
    cli.shutdown().await.unwrap();
    drop(third.router(&id("home")).await.unwrap());
    third.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_creation_is_finished_by_the_next_open() {
    use nasnet_dbmanager::system::routers;
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for name in ["a", "b"] {
        let (new, now) = (NewRouter::new(id(name)), manager.now());
        assert_eq!(now.quality, ClockQuality::Synced);
        let intent: Result<(), Error> = manager
            .system()
            .write(common::CAUSE, move |conn| Box::pin(async move { routers::insert(conn, &new, &now).await }))
            .await;
        intent.unwrap();
    }
    assert!(matches!(manager.router(&id("a")).await, Err(Error::RouterNotFound { .. })));
    manager.shutdown().await.unwrap();
    drop(manager);
    // The first died before it built anything, the second in the middle of building.
    let half = dirs.data().join("routers").join(".nasnet-new-b");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("router-b.db"), "half").unwrap();
    fs::create_dir_all(dirs.data().join("routers").join(".nasnet-new-c")).unwrap();

    let manager = dirs.open().await;
    assert_eq!(manager.routers().await.unwrap().len(), 2);
    for name in ["a", "b"] {
        let router = manager.router(&id(name)).await.unwrap();
        put(&router, 1, 1).await.unwrap();
    }
    assert!(snapshot(&dirs.data()).into_keys().all(|path| !path.to_string_lossy().contains(".nasnet-new")));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_id_is_never_taken_twice() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let create = || manager.create_router(NewRouter::new(RouterId::parse("home").unwrap()).name("Home").port(8728));
    let (first, second) = tokio::join!(create(), create());
    let created = [&first, &second].into_iter().flatten().count();
    assert_eq!(created, 1, "{first:?} {second:?}");
    let record = first.or(second).unwrap();
    assert_eq!((record.name.as_str(), record.port), ("Home", Some(8728)));
    drop(manager.router(&id("home")).await.unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_newer_file_that_was_not_closed_properly_is_refused_and_left_as_it_is() {
    let dirs = Dirs::new();
    let mut newer = dirs.options();
    newer.schemas = vec![kv_newer()];
    let manager = DbManager::open(newer.clone()).await.unwrap();
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    // What a kill leaves: the log holds the row.
    let file = dirs.router_file(&id("home"));
    let log = file.with_extension("db-wal");
    let left = [&file, &log].map(|path| (path.clone(), fs::read(path).unwrap()));
    assert!(!left[1].1.is_empty());
    drop(router);
    manager.shutdown().await.unwrap();
    for (path, bytes) in &left {
        fs::write(path, bytes).unwrap();
    }

    for on_open in [OnOpen::Migrate, OnOpen::Refuse] {
        let mut older = dirs.options();
        older.on_open = on_open;
        let manager = DbManager::open(older).await.unwrap();
        let error = manager.router(&id("home")).await.unwrap_err();
        assert!(matches!(&error, Error::SchemaTooNew { set, .. } if set == "kv"), "{error}");
        manager.shutdown().await.unwrap();
        for (path, bytes) in &left {
            assert!(fs::read(path).unwrap() == *bytes, "{} changed", path.display());
        }
    }
    let manager = DbManager::open(newer).await.unwrap();
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await, [(1, 10)]);
    manager.shutdown().await.unwrap();
}
