//! Files that are replaced with `cp` and `mv` while nobody has them open, also over what a killed process left.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Dirs, all, id, options, put, with_router};
use nasnet_dbmanager::{Cause, DbHealth, DbManager, Error, FileKind, HighWater, OnOpen, Scope};

/// Names the directory the child writes to; its presence makes a test the child.
const CHILD_DIR: &str = "NASNET_EXTERNAL_TEST_DIR";

const NEWEST: HighWater =
    HighWater { counter: "test-newest", file: FileKind::Router, table: "kv", sql: "SELECT MAX(v) FROM kv" };

fn command(program: &str, arguments: &[&str], files: [&Path; 2]) {
    assert!(Command::new(program).args(arguments).args(files).status().unwrap().success());
}

async fn health(manager: &DbManager) -> DbHealth {
    let all = manager.health().await.unwrap();
    all.into_iter().find(|one| one.scope == Scope::Router(id("home"))).unwrap().health
}

async fn adoptions(manager: &DbManager) -> usize {
    let entries = manager.system().audit_log().list(None, 100).await.unwrap();
    entries.iter().filter(|record| record.action == "router.restored_externally").count()
}

/// A closed fleet whose router has the rows 0..3, a copy of its file, and the rows 0..10 in the file itself.
async fn with_an_old_copy(dirs: &Dirs) -> PathBuf {
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    for k in 0..3 {
        put(&router, k, 500 + k).await.unwrap();
    }
    drop(router);
    manager.shutdown().await.unwrap();
    let copy = dirs.root().join("copy.db");
    command("cp", &["-p"], [&dirs.router_file(&id("home")), &copy]);
    let manager = dirs.open().await;
    let router = manager.router(&id("home")).await.unwrap();
    for k in 3..10 {
        put(&router, k, k).await.unwrap();
    }
    drop(router);
    manager.shutdown().await.unwrap();
    copy
}

#[tokio::test]
async fn a_copy_put_in_the_place_of_a_closed_file_is_adopted_and_told_once() {
    for (program, arguments) in [("cp", &[][..]), ("cp", &["-p"]), ("cp", &["--remove-destination"]), ("mv", &["-f"])] {
        let dirs = Dirs::new();
        let copy = with_an_old_copy(&dirs).await;
        command(program, arguments, [&copy, &dirs.router_file(&id("home"))]);
        let mut options = dirs.options();
        options.high_waters = vec![NEWEST];
        let manager = DbManager::open(options).await.unwrap();
        let router = manager.router(&id("home")).await.unwrap();
        assert_eq!(all(&router).await, [(0, 500), (1, 501), (2, 502)], "{program} {arguments:?}");
        assert!(matches!(health(&manager).await, DbHealth::RestoredExternally { log: None, .. }));
        assert_eq!(manager.external_restores().len(), 1);
        assert_eq!(adoptions(&manager).await, 1);
        // What the file uses is not given out again.
        assert_eq!(manager.system().counters().get("test-newest").await.unwrap(), 502);
        put(&router, 7, 7).await.unwrap();
        drop(router);
        manager.shutdown().await.unwrap();

        let manager = dirs.open().await;
        assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await.len(), 4);
        assert_eq!((health(&manager).await, adoptions(&manager).await), (DbHealth::Ok, 1));
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_copy_is_refused_and_a_migration_adopts_a_good_one() {
    let dirs = Dirs::new();
    let copy = with_an_old_copy(&dirs).await;
    let file = dirs.router_file(&id("home"));
    let mut bytes = fs::read(&copy).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let manager = dirs.open().await;
    let error = manager.router(&id("home")).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(manager.external_restores().is_empty());

    command("cp", &[], [&copy, &file]);
    assert_eq!(manager.migrate_all(2).await.unwrap().answers().count(), 1);
    assert_eq!(adoptions(&manager).await, 1);
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await.len(), 3);
    manager.shutdown().await.unwrap();
}

/// Writes some rows, moves them into the file, writes more, and waits to be killed.
async fn write_and_wait(root: &Path) {
    let manager = DbManager::open(options(root)).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    for k in 100..150 {
        put(&router, k, k).await.unwrap();
    }
    router.checkpoint().await.unwrap();
    for k in 150..155 {
        put(&router, k, k).await.unwrap();
    }
    println!("\nwritten");
    std::io::stdout().flush().unwrap();
    std::future::pending::<()>().await;
}

/// Writes some rows, writes more while a reader is at work, moves what that allows, and waits to be killed.
async fn write_beside_a_reader_and_wait(root: &Path) {
    let manager = DbManager::open(options(root)).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    // More than a page of them, so that the reader lets something be moved.
    let many = router.write(Cause::new("test"), |conn| {
        Box::pin(async move {
            let sql = "WITH n (k) AS (SELECT 100 UNION ALL SELECT k + 1 FROM n WHERE k < 2099) \
                 INSERT INTO kv (k, v) SELECT k, k FROM n";
            sqlx::query(sql).execute(conn).await?;
            Ok::<_, Error>(())
        })
    });
    many.await.unwrap();
    let (began, begun) = tokio::sync::oneshot::channel();
    let reading = router.read(Cause::new("test"), move |conn| {
        Box::pin(async move {
            sqlx::query("SELECT COUNT(*) FROM kv").execute(conn).await?;
            began.send(()).unwrap();
            std::future::pending::<Result<(), Error>>().await
        })
    });
    let writing = async {
        begun.await.unwrap();
        for k in 2100..2105 {
            put(&router, k, k).await.unwrap();
        }
        assert!(router.checkpoint().await.unwrap().busy, "the reader holds it up");
        println!("\nwritten");
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    };
    tokio::join!(reading, writing).0.unwrap();
}

#[test]
fn the_log_of_a_killed_process_that_a_reader_kept_from_being_moved_is_its_own() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD_DIR) {
        runtime.block_on(write_beside_a_reader_and_wait(Path::new(&root)));
    }
    let dirs = Dirs::new();
    runtime.block_on(with_an_old_copy(&dirs));
    killed_after_writing(&dirs, "the_log_of_a_killed_process_that_a_reader_kept_from_being_moved_is_its_own");
    runtime.block_on(async {
        let manager = dirs.open().await;
        let router = manager.router(&id("home")).await.unwrap();
        assert_eq!(all(&router).await.len(), 10 + 2_005);
        assert_eq!((health(&manager).await, adoptions(&manager).await), (DbHealth::Ok, 0));
        drop(router);
        manager.shutdown().await.unwrap();
    });
}

fn killed_after_writing(dirs: &Dirs, test: &str) {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dirs.root())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "written"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_log_of_a_killed_process_is_never_played_into_a_file_put_in_the_place_of_its_own() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD_DIR) {
        runtime.block_on(write_and_wait(Path::new(&root)));
    }
    const THIS: &str = "the_log_of_a_killed_process_is_never_played_into_a_file_put_in_the_place_of_its_own";
    let ways = [
        None,
        Some(("cp", &[][..])),
        Some(("cp", &["-p"])),
        Some(("cp", &["--remove-destination"])),
        Some(("mv", &["-f"])),
    ];
    for way in ways {
        let dirs = Dirs::new();
        let copy = runtime.block_on(with_an_old_copy(&dirs));
        killed_after_writing(&dirs, THIS);
        let file = dirs.router_file(&id("home"));
        let log = file.with_extension("db-wal");
        let left = fs::read(&log).unwrap();
        assert!(left.len() > 4096, "there is a log to be played");
        if let Some((program, arguments)) = way {
            command(program, arguments, [&copy, &file]);
        }
        runtime.block_on(async {
            let manager = dirs.open().await;
            let router = manager.router(&id("home")).await.unwrap();
            let rows = all(&router).await;
            if way.is_none() {
                // The control: what was acknowledged before the kill is there.
                assert_eq!(rows.len(), 10 + 55);
                assert_eq!((health(&manager).await, adoptions(&manager).await), (DbHealth::Ok, 0));
            } else {
                assert_eq!(rows, [(0, 500), (1, 501), (2, 502)], "{way:?}");
                let DbHealth::RestoredExternally { log: Some(name), .. } = health(&manager).await else {
                    panic!("{way:?}: {:?}", health(&manager).await)
                };
                let kept = dirs.data().join("safety").join(&name).join("router-home.db-wal.stale");
                assert!(fs::read(kept).unwrap() == left, "{way:?}");
                assert!(manager.set_aside().await.unwrap().iter().any(|aside| aside.directory == name));
            }
            put(&router, 1, 1).await.unwrap();
            drop(router);
            manager.shutdown().await.unwrap();
        });
    }
}

async fn reserve(manager: &DbManager) -> u64 {
    manager.system().counters().reserve("tokens", 1).await.unwrap()
}

async fn system_adoptions(manager: &DbManager) -> usize {
    let entries = manager.system().audit_log().list(None, 100).await.unwrap();
    entries.iter().filter(|record| record.action == "system.restored_externally").count()
}

/// A closed fleet, an old copy of its system database, and the largest value of a counter given since.
async fn with_an_old_system(dirs: &Dirs) -> (PathBuf, u64) {
    let file = dirs.data().join("system.db");
    let manager = dirs.open().await;
    put(&*with_router(&manager, "home").await, 1, 10).await.unwrap();
    reserve(&manager).await;
    manager.shutdown().await.unwrap();
    let copy = dirs.root().join("copy.db");
    command("cp", &["-p"], [&file, &copy]);
    let manager = dirs.open().await;
    put(&*with_router(&manager, "later").await, 2, 20).await.unwrap();
    let given = reserve(&manager).await;
    manager.shutdown().await.unwrap();
    (copy, given)
}

async fn is_caught_up(dirs: &Dirs, given: u64, log: bool) {
    let manager = dirs.open().await;
    let health = manager.health().await.unwrap().remove(0).health;
    assert!(matches!(&health, DbHealth::RestoredExternally { log: found, .. } if found.is_some() == log), "{health:?}");
    let next = reserve(&manager).await;
    assert!(next > given, "{next} is given after {given}");
    // What the copy does not know is registered again.
    assert_eq!(all(&manager.router(&id("later")).await.unwrap()).await, [(2, 20)]);
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await[0], (1, 10));
    assert_eq!(system_adoptions(&manager).await, 1);
    manager.shutdown().await.unwrap();
    drop(manager);
    let manager = dirs.open().await;
    assert_eq!(manager.health().await.unwrap().remove(0).health, DbHealth::Ok);
    assert_eq!(system_adoptions(&manager).await, 1, "told once");
    assert!(reserve(&manager).await > next);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_old_copy_of_the_system_database_is_adopted_and_gives_no_number_out_again() {
    for (program, arguments) in [("cp", &[][..]), ("cp", &["-p"]), ("mv", &["-f"])] {
        let dirs = Dirs::new();
        let (copy, given) = with_an_old_system(&dirs).await;
        command(program, arguments, [&copy, &dirs.data().join("system.db")]);
        // Whoever only reads does not adopt it, and does not keep it from being adopted.
        let mut reading = dirs.options();
        reading.on_open = OnOpen::ReadOnly;
        DbManager::open(reading).await.unwrap().shutdown().await.unwrap();
        is_caught_up(&dirs, given, false).await;
    }
}

#[tokio::test]
async fn a_damaged_copy_of_the_system_database_is_refused_until_a_good_one_is_there() {
    let dirs = Dirs::new();
    let (copy, given) = with_an_old_system(&dirs).await;
    let file = dirs.data().join("system.db");
    let mut bytes = fs::read(&copy).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&file, &bytes).unwrap();
    for _ in 0..2 {
        let error = DbManager::open(dirs.options()).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "nothing is changed");
    }
    command("cp", &[], [&copy, &file]);
    is_caught_up(&dirs, given, false).await;
}

#[test]
fn the_log_of_a_killed_process_is_never_played_into_a_system_database_put_in_place() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD_DIR) {
        runtime.block_on(async {
            let manager = DbManager::open(options(Path::new(&root))).await.unwrap();
            for _ in 0..30 {
                reserve(&manager).await;
            }
            println!("\nwritten");
            std::io::stdout().flush().unwrap();
            std::future::pending::<()>().await;
        });
    }
    const THIS: &str = "the_log_of_a_killed_process_is_never_played_into_a_system_database_put_in_place";
    for way in [None, Some(("cp", &[][..])), Some(("cp", &["-p"])), Some(("mv", &["-f"]))] {
        let dirs = Dirs::new();
        let (copy, given) = runtime.block_on(with_an_old_system(&dirs));
        killed_after_writing(&dirs, THIS);
        let file = dirs.data().join("system.db");
        let log = fs::read(file.with_extension("db-wal")).unwrap();
        assert!(log.len() > 4096, "there is a log to be played");
        match way {
            Some((program, arguments)) => {
                command(program, arguments, [&copy, &file]);
                runtime.block_on(is_caught_up(&dirs, given + 30, true));
                let kept = fs::read_dir(dirs.data().join("safety")).unwrap().next().unwrap().unwrap();
                assert!(fs::read(kept.path().join("system.db-wal.stale")).unwrap() == log, "{way:?}");
            }
            // The control: what a killed process left is its own.
            None => runtime.block_on(async {
                let manager = dirs.open().await;
                assert_eq!((reserve(&manager).await, system_adoptions(&manager).await), (given + 31, 0));
                manager.shutdown().await.unwrap();
            }),
        }
    }
}
