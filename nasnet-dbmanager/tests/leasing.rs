//! How router databases are opened, shared and closed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::future::Future;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use common::{Dirs, PATIENCE, all, id, put};
use nasnet_dbmanager::{DbManager, Error, NewRouter, Options, RouterDb, Scope};

async fn fleet(dirs: &Dirs, routers: &[&str], max_open: usize) -> DbManager {
    let mut options = dirs.options();
    options.max_open = max_open;
    open(options, routers).await
}

/// A fleet with room for one open database, where nobody waits long for it.
async fn impatient(dirs: &Dirs, routers: &[&str]) -> DbManager {
    let mut options = dirs.options();
    options.max_open = 1;
    options.lease_timeout = Duration::from_millis(20);
    open(options, routers).await
}

async fn open(options: Options, routers: &[&str]) -> DbManager {
    let manager = DbManager::open(options).await.unwrap();
    for name in routers {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
    }
    manager
}

fn leases(manager: &DbManager) -> Vec<(String, usize)> {
    let open = manager.stats().open;
    open.iter().filter_map(|db| Some((db.router.as_ref()?.to_string(), db.leases))).collect()
}

/// A lease of a router, which another is about to make room for.
async fn soon(manager: &DbManager, name: &str) -> RouterDb {
    let began = Instant::now();
    loop {
        match manager.router(&id(name)).await {
            Ok(router) => return router,
            Err(error) => assert!(matches!(error, Error::AllLeased { .. }), "{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "there is no room for {name}");
    }
}

/// Waits for a lease of a router that another task asks for.
async fn until_open(manager: &DbManager, count: usize) {
    while manager.stats().open_routers() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn callers_at_once_share_one_database() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs, &["home"], 2).await;
    let home = id("home");
    let callers = (0..100).map(|_| manager.router(&home));
    let handles: Vec<RouterDb> =
        futures_util::future::join_all(callers).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(leases(&manager), [("home".to_owned(), 100)]);
    let clone = handles[0].clone();
    drop(handles);
    assert_eq!(leases(&manager), [("home".to_owned(), 1)]);
    drop(clone);
    assert_eq!(leases(&manager), [("home".to_owned(), 0)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_leased_database_is_never_closed_to_make_room() {
    let dirs = Dirs::new();
    let names = ["a", "b", "c", "d", "e"];
    let manager = fleet(&dirs, &names, 2).await;
    let kept = manager.router(&id("a")).await.unwrap();
    for round in 0..3 {
        for name in &names[1..] {
            let router = manager.router(&id(name)).await.unwrap();
            put(&router, round, round).await.unwrap();
            put(&kept, round, round).await.unwrap();
            assert!(manager.stats().open_routers() <= 2);
        }
    }
    // A clone of the database inside the handle is a lease as well.
    let inside = nasnet_dbmanager::Database::clone(&kept);
    drop(kept);
    for name in &names[1..] {
        drop(manager.router(&id(name)).await.unwrap());
    }
    put(&inside, 9, 9).await.unwrap();
    for name in &names[1..] {
        assert_eq!(all(&manager.router(&id(name)).await.unwrap()).await.len(), 3);
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_least_recently_used_database_makes_room() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs, &["a", "b", "c"], 2).await;
    drop(manager.router(&id("a")).await.unwrap());
    drop(manager.router(&id("b")).await.unwrap());
    drop(manager.router(&id("a")).await.unwrap());
    drop(manager.router(&id("c")).await.unwrap());
    let open: Vec<_> = leases(&manager).into_iter().map(|(name, _)| name).collect();
    assert_eq!(open, ["a", "c"]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn when_all_are_in_use_the_next_waits_and_is_told() {
    let dirs = Dirs::new();
    let manager = impatient(&dirs, &["a", "b"]).await;
    let held = soon(&manager, "a").await;
    let error = manager.router(&id("b")).await.unwrap_err();
    assert!(matches!(error, Error::AllLeased { max_open: 1 }) && error.is_retryable(), "{error}");
    // The same router needs no second place.
    drop(manager.router(&id("a")).await.unwrap());
    drop(held);
    manager.shutdown().await.unwrap();
    drop(manager);

    let manager = fleet(&dirs, &[], 1).await;
    let held = manager.router(&id("a")).await.unwrap();
    let b = id("b");
    let (waited, ()) = tokio::join!(manager.router(&b), async { drop(held) });
    assert_eq!(waited.unwrap().id(), &id("b"));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unanswered_read_keeps_its_database_open() {
    let dirs = Dirs::new();
    let manager = impatient(&dirs, &["a", "b"]).await;
    let router = soon(&manager, "a").await;
    let (started, running) = tokio::sync::oneshot::channel();
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let reading = tokio::spawn(async move {
        router
            .read(common::CAUSE, |_| {
                Box::pin(async move {
                    started.send(()).ok();
                    wait.await.ok();
                    Ok::<_, Error>(())
                })
            })
            .await
    });
    running.await.unwrap();
    reading.abort();
    reading.await.unwrap_err();
    assert!(matches!(manager.router(&id("b")).await, Err(Error::AllLeased { .. })));
    go.send(()).unwrap();
    drop(soon(&manager, "b").await);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn opening_one_router_never_blocks_another() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lock_timeout = Duration::from_secs(60);
    let manager = DbManager::open(options).await.unwrap();
    for name in ["slow", "quick"] {
        manager.create_router(NewRouter::new(id(name))).await.unwrap();
    }
    // Another process has the first one alone, so its opening hangs.
    let lock = dirs.lock(&id("slow"), true).unwrap();
    let slow = {
        let manager = manager.clone();
        tokio::spawn(async move { manager.router(&id("slow")).await })
    };
    let quick = manager.router(&id("quick")).await.unwrap();
    put(&quick, 1, 1).await.unwrap();
    assert!(!slow.is_finished());
    drop(lock);
    put(&slow.await.unwrap().unwrap(), 1, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_opening_nobody_waits_for_any_more_ends_well() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lock_timeout = Duration::from_secs(60);
    let manager = DbManager::open(options).await.unwrap();
    manager.create_router(NewRouter::new(id("home"))).await.unwrap();
    let lock = dirs.lock(&id("home"), true).unwrap();
    let (home, again) = (id("home"), id("home"));
    let mut waiting = Box::pin(manager.router(&home));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(waiting);
    drop(lock);
    until_open(&manager, 1).await;
    assert_eq!(leases(&manager), [("home".to_owned(), 0)]);
    put(&manager.router(&again).await.unwrap(), 1, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_opening_is_told_to_all_and_can_be_tried_again() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs, &["home"], 2).await;
    let home = id("home");
    let (file, aside) = (dirs.router_file(&home), dirs.root().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let callers = (0..20).map(|_| manager.router(&home));
    for result in futures_util::future::join_all(callers).await {
        assert!(matches!(result, Err(Error::MissingDatabase { .. })));
    }
    assert_eq!(leases(&manager), []);
    std::fs::rename(&aside, &file).unwrap();
    drop(manager.router(&home).await.unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_scope_leads_to_its_database_and_shutdown_ends_all_of_them() {
    let dirs = Dirs::new();
    let manager = fleet(&dirs, &["home"], 2).await;
    let system = manager.scope(&Scope::System).await.unwrap();
    assert_eq!(system.path(), manager.system().path());
    let home = manager.scope(&Scope::Router(id("home"))).await.unwrap();
    put(&home, 1, 1).await.unwrap();
    assert_eq!(leases(&manager), [("home".to_owned(), 1)]);
    assert!(matches!(manager.scope(&Scope::Router(id("nobody"))).await, Err(Error::RouterNotFound { .. })));
    manager.shutdown().await.unwrap();
    assert!(matches!(put(&home, 2, 2).await, Err(Error::Closed { .. })));
    assert!(matches!(manager.router(&id("home")).await, Err(Error::Closed { .. })));
    manager.shutdown().await.unwrap();
}
