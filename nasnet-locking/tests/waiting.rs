//! The queue: first come first served, bounded, and open to whoever comes next when somebody dies or gives up.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{World, exclusive, key, manager, shared, until};
use nasnet_locking::{Error, LeaseGuard, LockManager};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(600);

fn queue_up(locks: &LockManager, path: &'static str, wait: Duration) -> JoinHandle<Result<LeaseGuard, Error>> {
    let locks = locks.clone();
    tokio::spawn(async move { locks.acquire(exclusive(path, "waiter").wait(wait)).await })
}

async fn queued(locks: &LockManager, path: &str) -> usize {
    locks.inspect(&key(path)).await.unwrap().queue.len()
}

#[tokio::test]
async fn nobody_is_overtaken() {
    let world = World::new();
    let db = world.open().await;
    // Two managers stand for two processes: they share nothing but the files.
    let managers = [manager(&db).await, manager(&db).await];
    let holder = managers[0].acquire(exclusive("a", "holder")).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 0..12 {
        let (locks, order) = (managers[number % 2].clone(), Arc::clone(&order));
        waiters.push(tokio::spawn(async move {
            let guard = locks.acquire(exclusive("a", "waiter").wait(LONG)).await.unwrap();
            order.lock().unwrap().push((number, guard.token()));
            guard.release().await.unwrap();
        }));
        until("the waiter is in the queue", async || queued(&managers[0], "a").await == number + 1).await;
    }
    holder.release().await.unwrap();
    for waiter in waiters {
        waiter.await.unwrap();
    }
    let order = order.lock().unwrap().clone();
    assert!(order.iter().map(|(number, _)| *number).eq(0..12), "{order:?}");
    assert!(order.is_sorted_by_key(|(_, token)| *token), "{order:?}");
    assert_eq!(queued(&managers[0], "a").await, 0);
}

#[tokio::test]
async fn a_request_that_does_not_wait_does_not_pass_one_that_does() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let reader = locks.acquire(shared("a", "reader")).await.unwrap();
    let writer = queue_up(&locks, "a", LONG);
    until("the writer waits", async || queued(&locks, "a").await == 1).await;
    match locks.acquire(shared("a", "late reader")).await {
        Err(Error::Held { holder, ahead, .. }) => {
            assert_eq!((holder.info.actor.as_str(), holder.token, ahead), ("waiter", None, 1));
        }
        other => panic!("{other:?}"),
    }
    assert!(locks.acquire(shared("b", "elsewhere")).await.is_ok());
    reader.release().await.unwrap();
    writer.await.unwrap().unwrap().release().await.unwrap();
    assert!(locks.acquire(shared("a", "late reader")).await.is_ok());
}

#[tokio::test]
async fn waiting_ends_with_its_time_and_says_who_was_in_the_way() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let _holder = locks.acquire(exclusive("router/r1", "holder")).await.unwrap();
    let waiter = queue_up(&locks, "router/r1/resource/a", Duration::from_secs(5));
    until("the waiter is in the queue", async || queued(&locks, "router/r1").await == 1).await;
    world.advance(Duration::from_secs(5));
    match waiter.await.unwrap() {
        Err(Error::Held { holder, waited, ahead, .. }) => {
            assert_eq!((holder.info.actor.as_str(), ahead), ("holder", 0));
            assert_eq!(waited, Duration::from_secs(5));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(queued(&locks, "router/r1").await, 0);
}

#[tokio::test]
async fn a_waiter_gets_what_an_expired_or_a_dead_holder_leaves() {
    let world = World::new();
    let db = world.open().await;
    let (dies, locks) = (manager(&db).await, manager(&db).await);
    let _silent = locks.acquire(exclusive("a", "silent").ttl(Duration::from_secs(10))).await.unwrap();
    let waiter = queue_up(&locks, "a", LONG);
    until("the waiter is in the queue", async || queued(&locks, "a").await == 1).await;
    world.advance(Duration::from_secs(10));
    assert!(waiter.await.unwrap().is_ok());

    let _left = dies.acquire(exclusive("b", "dies")).await.unwrap();
    let waiter = queue_up(&locks, "b", LONG);
    until("the waiter is in the queue", async || queued(&locks, "b").await == 1).await;
    std::fs::remove_file(world.run.path().join("sessions").join(dies.session().to_string())).unwrap();
    assert!(waiter.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_waiter_that_gives_up_or_dies_holds_up_nobody() {
    let world = World::new();
    let db = world.open().await;
    let (dies, locks) = (manager(&db).await, manager(&db).await);
    let holder = locks.acquire(exclusive("a", "holder")).await.unwrap();
    let given_up = queue_up(&locks, "a", LONG);
    until("the first waits", async || queued(&locks, "a").await == 1).await;
    let dead = queue_up(&dies, "a", LONG);
    until("the second waits", async || queued(&locks, "a").await == 2).await;
    let last = queue_up(&locks, "a", LONG);
    until("the third waits", async || queued(&locks, "a").await == 3).await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    dead.abort();
    std::fs::remove_file(world.run.path().join("sessions").join(dies.session().to_string())).unwrap();
    holder.release().await.unwrap();
    assert!(last.await.unwrap().is_ok());
}

#[tokio::test]
async fn opposite_orders_of_several_keys_cannot_deadlock() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let mut tasks = Vec::new();
    for number in 0..8 {
        let locks = locks.clone();
        let paths: [&'static str; 3] = if number % 2 == 0 { ["a", "b", "c"] } else { ["c", "b", "a"] };
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                let info = nasnet_locking::LockInfo::new("task", "several keys");
                let request = nasnet_locking::AcquireRequest::exclusive(common::keys(&paths), info).wait(LONG);
                locks.acquire(request).await.unwrap().release().await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}
