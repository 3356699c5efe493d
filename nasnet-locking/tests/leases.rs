//! Who gets a lease, who does not and why, and how a lease ends.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{World, exclusive, key, keys, manager, soon};
use nasnet_dbmanager::Cause;
use nasnet_locking::{AcquireRequest, Error, LockInfo, LostReason, Seen};

const TTL: Duration = Duration::from_secs(300);

#[tokio::test]
async fn a_taken_key_says_who_holds_it_what_for_since_when_and_for_how_long() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let request =
        AcquireRequest::exclusive(key("router/r1/resource/a"), LockInfo::new("ann", "rotate keys").origin("ui"));
    let held = locks.acquire(request).await.unwrap();
    world.advance(Duration::from_secs(100));
    for path in ["router/r1/resource/a", "router/r1", "router/r1/resource/a/field"] {
        match locks.acquire(exclusive(path, "bob")).await {
            Err(Error::Held { key, holder, since, expires_in, .. }) => {
                assert_eq!(key.as_str(), path);
                assert_eq!((holder.info.actor.as_str(), holder.info.purpose.as_str()), ("ann", "rotate keys"));
                assert_eq!((holder.info.origin.as_str(), holder.token), ("ui", Some(held.token())));
                assert_eq!(since, common::WALL_2026_MS);
                assert_eq!(expires_in, TTL - Duration::from_secs(100));
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    assert!(locks.acquire(exclusive("router/r1/resource/b", "bob")).await.is_ok());
}

#[tokio::test]
async fn several_keys_are_taken_together_or_not_at_all() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let _b = locks.acquire(exclusive("b", "ann")).await.unwrap();
    let all = AcquireRequest::exclusive(keys(&["c", "b", "a"]), LockInfo::new("bob", "all"));
    assert!(matches!(locks.acquire(all).await, Err(Error::Held { key, .. }) if key.as_str() == "b"));
    assert!(locks.acquire(exclusive("a", "eve")).await.is_ok());
    assert!(locks.acquire(exclusive("c", "eve")).await.is_ok());
}

#[tokio::test]
async fn a_released_or_dropped_lease_frees_its_keys() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    locks.acquire(exclusive("a", "ann")).await.unwrap().release().await.unwrap();
    drop(locks.acquire(exclusive("a", "ann")).await.unwrap());
    drop(soon(&locks, "a", "bob").await);
}

#[tokio::test]
async fn a_silent_live_holder_is_waited_out_and_then_fenced() {
    let world = World::new();
    let db = world.open().await;
    let (slow, quick) = (manager(&db).await, manager(&db).await);
    let outlived = slow.acquire(exclusive("router/r1", "slow")).await.unwrap();
    world.advance(TTL - Duration::from_millis(1));
    assert!(matches!(quick.acquire(exclusive("router/r1", "quick")).await, Err(Error::Held { .. })));
    assert_eq!(outlived.remaining(), Duration::from_millis(1));
    world.advance(Duration::from_millis(1));
    assert!(matches!(outlived.renew().await, Err(Error::Lost { why: LostReason::Expired, .. })));
    let current = quick.acquire(exclusive("router/r1", "quick")).await.unwrap();
    assert!(current.token() > outlived.token());

    let router = db.router(&common::r1()).await.unwrap();
    let cause = Cause::new("test");
    let late = outlived.write_right();
    let answer = router.write(cause, move |conn| Box::pin(async move { late.check(conn).await })).await;
    assert!(
        matches!(answer, Err(Error::Fenced { seen: Seen::LeaseLost(LostReason::Ended), .. })),
        "before the successor wrote: {answer:?}"
    );
    let right = current.write_right();
    router.write(cause, move |conn| Box::pin(async move { right.check(conn).await })).await.unwrap();
    let late = outlived.write_right();
    let answer = router.write(cause, move |conn| Box::pin(async move { late.check(conn).await })).await;
    assert!(
        matches!(&answer, Err(Error::Fenced { seen: Seen::Token(seen), .. }) if *seen == current.token()),
        "after the successor wrote: {answer:?}"
    );
    assert!(matches!(outlived.release().await, Err(Error::Lost { why: LostReason::Ended, .. })));
}

#[tokio::test]
async fn a_dead_session_is_taken_over_at_once() {
    let world = World::new();
    let db = world.open().await;
    let (dead, alive) = (manager(&db).await, manager(&db).await);
    let left = dead.acquire(exclusive("router/r1", "dead")).await.unwrap();
    let file = world.run.path().join("sessions").join(dead.session().to_string());
    // What the kernel does when the process dies: the lock on the session file is gone.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"").unwrap();
    let taken = alive.acquire(exclusive("router/r1", "alive")).await.unwrap();
    assert!(taken.token() > left.token());
}

#[tokio::test]
async fn a_lease_of_another_boot_is_void() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let before = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    world.clock.reboot();
    assert_eq!(before.remaining(), Duration::ZERO);
    assert!(matches!(before.renew().await, Err(Error::Lost { why: LostReason::OtherBoot, .. })));
    let after = locks.acquire(exclusive("router/r1", "bob")).await.unwrap();
    assert!(after.token() > before.token());
}

#[tokio::test]
async fn renewing_extends_the_lease_and_a_late_heartbeat_resurrects_nothing() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let guard = locks.acquire(exclusive("a", "ann").max_hold(TTL + TTL / 2)).await.unwrap();
    world.advance(TTL / 2);
    assert_eq!(guard.renew().await.unwrap(), TTL);
    assert_eq!(guard.renew().await.unwrap(), TTL, "a repeated renewal changes nothing");
    world.advance(TTL - Duration::from_millis(1));
    assert_eq!(guard.renew().await.unwrap(), Duration::from_millis(1), "the longest hold is the end");

    let right = guard.write_right();
    guard.release().await.unwrap();
    let router = db.router(&common::r1()).await.unwrap();
    let answer = router.write(Cause::new("test"), move |conn| Box::pin(async move { right.check(conn).await })).await;
    assert!(matches!(answer, Err(Error::Fenced { seen: Seen::LeaseLost(LostReason::Ended), .. })), "{answer:?}");
}

#[tokio::test]
async fn a_shared_lease_is_shared_but_carries_no_right_to_write() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let one = locks.acquire(common::shared("router/r1", "ann")).await.unwrap();
    let _two = locks.acquire(common::shared("router/r1/resource/a", "bob")).await.unwrap();
    assert!(matches!(locks.acquire(exclusive("router/r1/resource/b", "eve")).await, Err(Error::Held { .. })));
    let router = db.router(&common::r1()).await.unwrap();
    let right = one.write_right();
    let answer = router.write(Cause::new("test"), move |conn| Box::pin(async move { right.check(conn).await })).await;
    assert!(matches!(answer, Err(Error::NoWriteRight { .. })), "{answer:?}");
}

#[tokio::test]
async fn what_can_never_be_granted_is_refused_by_name() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    for ttl in [Duration::ZERO, Duration::from_secs(3_601), Duration::from_secs(365 * 86_400)] {
        assert!(matches!(
            locks.acquire(exclusive("router/r1", "ann").ttl(ttl)).await,
            Err(Error::InvalidTtl { ttl: refused, .. }) if refused == ttl
        ));
    }
    assert!(locks.acquire(exclusive("router/r1", "ann").ttl(Duration::from_secs(3_600))).await.is_ok());
    for path in ["router/nowhere", "router/nowhere/resource/a", "router/UPPER"] {
        let answer = locks.acquire(exclusive(path, "ann")).await;
        assert!(matches!(&answer, Err(Error::UnknownRouter { key }) if key.as_str() == path), "{answer:?}");
    }
}

#[tokio::test]
async fn shutting_down_frees_every_lease_and_fences_guards_that_outlive_it() {
    let world = World::new();
    let db = world.open().await;
    let (first, second) = (manager(&db).await, manager(&db).await);
    let guard = first.acquire(exclusive("router/r1", "ann")).await.unwrap();
    let right = guard.write_right();
    first.shutdown().await.unwrap();
    first.shutdown().await.unwrap();
    assert!(matches!(first.acquire(exclusive("router/r1", "ann")).await, Err(Error::Closed)));
    let router = db.router(&common::r1()).await.unwrap();
    let answer = router.write(Cause::new("test"), move |conn| Box::pin(async move { right.check(conn).await })).await;
    assert!(matches!(answer, Err(Error::Fenced { .. })), "{answer:?}");
    assert!(second.acquire(exclusive("router/r1", "bob")).await.is_ok());
    drop(guard);
}

#[tokio::test]
async fn an_abandoned_acquire_leaves_nothing_behind() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    for polls in 1..40 {
        let mut abandoned = Box::pin(locks.acquire(exclusive("router/r1", "gone")));
        for _ in 0..polls {
            let polled = std::future::poll_fn(|context| {
                std::task::Poll::Ready(std::future::Future::poll(abandoned.as_mut(), context).is_ready())
            });
            if polled.await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(abandoned);
        soon(&locks, "router/r1", "next").await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_of_another_fleet_is_fenced_out_whatever_its_token() {
    let (ours, theirs) = (World::new(), World::new());
    let (our_db, their_db) = (ours.open().await, theirs.open().await);
    let (our_locks, their_locks) = (manager(&our_db).await, manager(&their_db).await);
    // Their tokens are ahead of ours.
    for _ in 0..3 {
        their_locks.acquire(exclusive("router/r1", "eve")).await.unwrap().release().await.unwrap();
    }
    let stranger = their_locks.acquire(exclusive("router/r1", "eve")).await.unwrap();
    let guard = our_locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    assert!(stranger.token() > guard.token());
    let router = our_db.router(&common::r1()).await.unwrap();
    let fenced = |right: nasnet_locking::WriteRight| {
        let router = router.clone();
        async move {
            let answer: Result<(), Error> = router
                .write(nasnet_dbmanager::Cause::new("test"), move |conn| {
                    Box::pin(async move { right.check(conn).await })
                })
                .await;
            answer
        }
    };
    let (lease, database) = (their_db.fleet_id(), our_db.fleet_id());
    match fenced(stranger.write_right()).await {
        Err(Error::Fenced { key, token, seen }) => {
            assert_eq!(key, common::key("router/r1"));
            assert_eq!(token, stranger.token());
            assert_eq!(seen, Seen::AnotherFleet { lease, database });
        }
        other => panic!("{other:?}"),
    }
    fenced(guard.write_right()).await.unwrap();
    // Nothing of the stranger stayed behind: the next holder here may write.
    guard.release().await.unwrap();
    let next = our_locks.acquire(exclusive("router/r1", "bob")).await.unwrap();
    fenced(next.write_right()).await.unwrap();
}
