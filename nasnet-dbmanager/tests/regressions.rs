//! Bugs of other managers that must not come back here; `docs/regressions.md` lists them all.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{CAUSE, Dirs, all, id, put, snapshot, with_router};
use nasnet_dbmanager::system::routers::RouterStatus;
use nasnet_dbmanager::{Database, Error, NewRouter, RestoreMode, RouterId, Which};

#[tokio::test]
async fn every_status_the_program_knows_can_be_stored() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    drop(with_router(&manager, "home").await);
    for status in [RouterStatus::Online, RouterStatus::Offline, RouterStatus::Degraded, RouterStatus::Unknown] {
        manager.system().routers().set_status(&id("home"), status).await.unwrap();
        assert_eq!(manager.system().routers().get(&id("home")).await.unwrap().unwrap().status, status);
    }
    manager.shutdown().await.unwrap();
}

async fn tables(database: &Database) -> Vec<String> {
    let read: Result<Vec<String>, Error> = database
        .read(CAUSE, |conn| {
            Box::pin(async move {
                let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '%nasnet%'";
                Ok(sqlx::query_scalar(sql).fetch_all(conn).await?)
            })
        })
        .await;
    read.unwrap()
}

#[tokio::test]
async fn each_kind_of_file_has_its_own_tables_and_no_others() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let home = with_router(&manager, "home").await;
    let (system, router) = (tables(manager.system()).await, tables(&home).await);
    assert!(system.contains(&"routers".to_owned()) && router.contains(&"kv".to_owned()));
    assert!(system.iter().all(|table| !router.contains(table)), "{system:?} {router:?}");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn no_id_leads_out_of_its_directory_or_makes_a_file() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let before: Vec<_> = snapshot(dirs.root()).into_keys().collect();
    for text in ["../x", "", "..", "a/b", "Home", "ho me", "höme", "system", &"a".repeat(300), "a\0b", "-a"] {
        assert!(matches!(RouterId::parse(text), Err(Error::InvalidRouterId { .. })), "{text:?}");
    }
    assert!(matches!(manager.router(&id("nobody")).await, Err(Error::RouterNotFound { .. })));
    let after: Vec<_> = snapshot(dirs.root()).into_keys().collect();
    assert_eq!(before, after);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_while_databases_are_being_opened_leaves_none_open() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for number in 0..6 {
        manager.create_router(NewRouter::new(id(&format!("r{number}")))).await.unwrap();
    }
    let opening: Vec<_> = (0..6)
        .map(|number| {
            let manager = manager.clone();
            tokio::spawn(async move { manager.router(&id(&format!("r{number}"))).await })
        })
        .collect();
    tokio::task::yield_now().await;
    manager.shutdown().await.unwrap();
    for opened in opening {
        match opened.await.unwrap() {
            Ok(handle) => assert!(matches!(put(&handle, 1, 1).await, Err(Error::Closed { .. }))),
            Err(error) => assert!(matches!(error, Error::Closed { .. }), "{error}"),
        }
    }
    assert_eq!(manager.stats().open_routers(), 0);
    assert!(snapshot(&dirs.data()).keys().all(|path| !path.to_string_lossy().ends_with("-wal")), "a log is left");
}

#[tokio::test]
async fn nobody_else_can_enter_the_data_directory() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for dir in [dirs.data(), dirs.run()] {
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o077, 0, "{}", dir.display());
    }
    let manifest = manager.backup(Which::System, dirs.root().join("backup")).await.unwrap();
    for entry in fs::read_dir(&manifest.dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", entry.path().display());
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_backup_goes_to_a_directory_with_any_name() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let home = with_router(&manager, "home").await;
    put(&home, 1, 2).await.unwrap();
    drop(home);
    let dir = dirs.root().join("it's; DROP TABLE kv -- \"sdb1\" %s");
    let manifest = manager.backup(Which::Fleet, &dir).await.unwrap();
    manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await, [(1, 2)]);
    manager.shutdown().await.unwrap();
}
