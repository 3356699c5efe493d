//! Leaving the fleet and coming back, and every crash in between.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;

use common::{CAUSE, Dirs, all, id, put, with_router};
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{DbManager, Error, NewRouter, OnDamage, RestoreMode, RouterRecord, Which};

async fn record(manager: &DbManager, name: &str) -> Option<RouterRecord> {
    manager.system().routers().get(&id(name)).await.unwrap()
}

async fn intend(manager: &DbManager, action: &'static str, directory: &'static str) {
    manager
        .system()
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO router_intents (router_id, action, directory, cause, begun_ms)
                     VALUES ('home', ?1, ?2, 'test', 1)",
                )
                .bind(action)
                .bind(directory)
                .execute(conn)
                .await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_retired_router_comes_back_with_its_data_and_a_purged_one_does_not() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    put(&router, 1, 10).await.unwrap();
    drop(router);
    assert!(matches!(manager.purge(&id("home")).await, Err(Error::WrongLifecycle { .. })), "an active one is safe");
    assert!(matches!(manager.reinstate(&id("home")).await, Err(Error::WrongLifecycle { .. })));
    assert!(matches!(manager.retire(&id("nobody")).await, Err(Error::RouterNotFound { .. })));

    manager.retire(&id("home")).await.unwrap();
    assert!(matches!(manager.router(&id("home")).await, Err(Error::RouterNotFound { .. })));
    assert!(matches!(manager.create_router(NewRouter::new(id("home"))).await, Err(Error::RouterExists { .. })));
    assert!(matches!(manager.retire(&id("home")).await, Err(Error::WrongLifecycle { .. })));
    assert_eq!(manager.retired_routers().await.unwrap().len(), 1);
    assert!(!dirs.router_file(&id("home")).exists());
    manager.shutdown().await.unwrap();
    drop(manager);

    let manager = dirs.open().await;
    manager.reinstate(&id("home")).await.unwrap();
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await, [(1, 10)]);
    assert!(manager.retired_routers().await.unwrap().is_empty());
    manager.retire(&id("home")).await.unwrap();
    manager.purge(&id("home")).await.unwrap();
    assert_eq!(record(&manager, "home").await, None);
    assert!(!dirs.data().join("retired").join("home").exists());
    let router = with_router(&manager, "home").await;
    assert!(all(&router).await.is_empty(), "the id is free and nothing is left");
    drop(router);
    let actions: Vec<_> =
        manager.system().audit_log().list(None, 10).await.unwrap().into_iter().map(|r| r.action).collect();
    assert_eq!(actions, ["router.purged", "router.retired", "router.reinstated", "router.retired"]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_router_in_use_is_not_retired() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lease_timeout = std::time::Duration::from_millis(20);
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    assert!(matches!(manager.retire(&id("home")).await, Err(Error::InUse { .. })));
    put(&router, 1, 10).await.unwrap();
    drop(router);
    manager.shutdown().await.unwrap();
    drop(manager);

    let mut options = dirs.options();
    options.lease_timeout = std::time::Duration::from_secs(60);
    let manager = DbManager::open(options).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    // While one waits for the last handle, nobody else is kept from another router.
    let waiting = {
        let manager = manager.clone();
        tokio::spawn(async move { manager.retire(&id("home")).await })
    };
    with_router(&manager, "other").await;
    drop(router);
    waiting.await.unwrap().unwrap();
    assert_eq!(record(&manager, "home").await.unwrap().lifecycle, Lifecycle::Retired);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn whatever_step_a_crash_comes_after_the_next_open_ends_in_the_new_state() {
    // The rename is the only step between the intent and its end.
    for (action, renamed) in [("retire", false), ("retire", true), ("reinstate", false), ("reinstate", true)] {
        let dirs = Dirs::new();
        let manager = dirs.open().await;
        let router = with_router(&manager, "home").await;
        put(&router, 1, 10).await.unwrap();
        drop(router);
        let (live, kept) = (dirs.data().join("routers").join("home"), dirs.data().join("retired").join("home"));
        if action == "reinstate" {
            manager.retire(&id("home")).await.unwrap();
        }
        intend(&manager, action, "").await;
        manager.shutdown().await.unwrap();
        drop(manager);
        if renamed {
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            if action == "retire" { fs::rename(&live, &kept).unwrap() } else { fs::rename(&kept, &live).unwrap() }
        }
        for _ in 0..2 {
            let manager = dirs.open().await;
            let lifecycle = record(&manager, "home").await.unwrap().lifecycle;
            let expected = if action == "retire" { Lifecycle::Retired } else { Lifecycle::Active };
            assert_eq!((lifecycle, live.is_dir(), kept.is_dir()), (expected, action != "retire", action == "retire"));
            manager.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_interrupted_purge_or_quarantine_is_carried_out() {
    for half_done in [false, true] {
        let dirs = Dirs::new();
        let manager = dirs.open().await;
        with_router(&manager, "home").await;
        manager.retire(&id("home")).await.unwrap();
        intend(&manager, "purge", "").await;
        manager.shutdown().await.unwrap();
        drop(manager);
        if half_done {
            fs::remove_file(dirs.data().join("retired/home/router-home.db")).unwrap();
        }
        let manager = dirs.open().await;
        assert_eq!(record(&manager, "home").await, None);
        with_router(&manager, "home").await;
        intend(&manager, "quarantine", "home-1").await;
        manager.shutdown().await.unwrap();
        drop(manager);
        if half_done {
            fs::create_dir_all(dirs.data().join("quarantine")).unwrap();
            fs::rename(dirs.data().join("routers/home"), dirs.data().join("quarantine/home-1")).unwrap();
        }
        let manager = dirs.open().await;
        assert!(matches!(manager.router(&id("home")).await, Err(Error::Quarantined { .. })));
        assert_eq!(manager.set_aside().await.unwrap()[0].directory, "home-1");
        assert!(dirs.data().join("quarantine/home-1/router-home.db").exists());
        manager.recover(&id("home")).await.unwrap();
        manager.router(&id("home")).await.unwrap();
        manager.shutdown().await.unwrap();
    }
}

/// Retires a router whose new place is taken, which fails after the intent is written and before the directory moves.
async fn retire_in_vain(dirs: &Dirs, manager: &DbManager) {
    let obstacle = dirs.data().join("retired/home");
    fs::create_dir_all(obstacle.join("something")).unwrap();
    let refused = manager.retire(&id("home")).await;
    assert!(matches!(&refused, Err(Error::WrongDatabase { path, .. }) if *path == obstacle), "{refused:?}");
    assert!(dirs.router_file(&id("home")).exists());
}

#[tokio::test]
async fn a_retire_that_failed_before_its_rename_is_finished_for_whoever_asks_next() {
    for on_damage in [OnDamage::Refuse, OnDamage::Recover] {
        let dirs = Dirs::new();
        let mut options = dirs.options();
        options.on_damage = on_damage;
        let manager = DbManager::open(options).await.unwrap();
        put(&*with_router(&manager, "home").await, 1, 10).await.unwrap();
        retire_in_vain(&dirs, &manager).await;
        // As long as it cannot be finished, nobody writes to a router that is about to leave, and it is not replaced.
        let refused = manager.router(&id("home")).await;
        assert!(matches!(refused, Err(Error::WrongDatabase { .. })), "{refused:?}");
        assert!(dirs.router_file(&id("home")).exists() && manager.set_aside().await.unwrap().is_empty());
        fs::remove_dir_all(dirs.data().join("retired")).unwrap();
        let gone = manager.router(&id("home")).await;
        assert!(matches!(gone, Err(Error::RouterNotFound { .. })), "{gone:?}");
        assert_eq!(record(&manager, "home").await.unwrap().lifecycle, Lifecycle::Retired);
        manager.reinstate(&id("home")).await.unwrap();
        assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await, [(1, 10)]);
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_another_process_did_to_a_router_is_noticed_by_one_that_knew_it() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.max_open = 1;
    // Each has its own locks, registry connection and memory, as two processes have.
    let (one, other) = (DbManager::open(options.clone()).await.unwrap(), DbManager::open(options).await.unwrap());
    put(&*with_router(&one, "home").await, 1, 10).await.unwrap();
    with_router(&one, "away").await;
    let backup = one.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    // Known to the one, and closed by it again.
    let know = async || {
        drop(one.router(&id("home")).await.unwrap());
        drop(one.router(&id("away")).await.unwrap());
    };
    let close = async || drop(other.router(&id("away")).await.unwrap());
    for round in 0..2_i64 {
        know().await;
        // Retired, and retired half-way with the file where it was.
        if round == 0 {
            other.retire(&id("home")).await.unwrap();
        } else {
            retire_in_vain(&dirs, &other).await;
            fs::remove_dir_all(dirs.data().join("retired")).unwrap();
        }
        let gone = one.router(&id("home")).await;
        assert!(matches!(gone, Err(Error::RouterNotFound { .. })), "{round}: {gone:?}");
        assert_eq!(record(&one, "home").await.unwrap().lifecycle, Lifecycle::Retired, "{round}");
        other.reinstate(&id("home")).await.unwrap();
        know().await;
        // Restored: another file with another uid.
        put(&other.router(&id("home")).await.unwrap(), 2 + round, 20).await.unwrap();
        other.restore(&backup, RestoreMode::Router(id("home"))).await.unwrap();
        close().await;
        assert_eq!(all(&one.router(&id("home")).await.unwrap()).await, [(1, 10)], "{round}");
        know().await;
        // Set aside, while the one that knew it would find a file.
        other.quarantine(&id("home"), "told by a test").await.unwrap();
        let refused = one.router(&id("home")).await;
        assert!(matches!(refused, Err(Error::Quarantined { .. })), "{round}: {refused:?}");
        other.recover(&id("home")).await.unwrap();
        close().await;
        assert_eq!(all(&one.router(&id("home")).await.unwrap()).await, [(1, 10)], "{round}");
    }
    one.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}
