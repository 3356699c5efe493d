//! What holders are told and operators can do: lost, renewed and broken leases.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{World, exclusive, key, manager, until};
use nasnet_dbmanager::Cause;
use nasnet_locking::{Error, LockFilter, LockManager, LockOptions, LostReason, Seen, StaleView};

const TTL: Duration = Duration::from_secs(300);

#[tokio::test]
async fn a_broken_lease_is_fenced_told_to_its_holder_and_audited() {
    let world = World::new();
    let db = world.open().await;
    let (holder, operator) = (manager(&db).await, manager(&db).await);
    let guard = holder.acquire(exclusive("router/r1", "stuck")).await.unwrap();
    let lost = tokio::spawn(guard.lost());
    let seen = &operator.list(&LockFilter::all().actor("stuck")).await.unwrap()[0];
    let broken =
        operator.break_lock(seen.holder.lease, seen.holder.token.unwrap(), "ops", "maintenance").await.unwrap();
    assert_eq!(broken.holder.info.actor, "stuck");

    let why = LostReason::Broken { by: "ops".into(), reason: "maintenance".into() };
    assert_eq!(lost.await.unwrap(), why);
    assert!(matches!(guard.renew().await, Err(Error::Lost { why: told, .. }) if told == why));
    let router = db.router(&common::r1()).await.unwrap();
    let right = guard.write_right();
    let answer = router.write(Cause::new("test"), move |conn| Box::pin(async move { right.check(conn).await })).await;
    assert!(matches!(&answer, Err(Error::Fenced { seen: Seen::LeaseLost(told), .. }) if *told == why), "{answer:?}");

    let audited = db.system().audit_log().list(None, 1).await.unwrap().remove(0);
    assert_eq!((audited.action.as_str(), audited.actor.as_deref()), ("lock.break", Some("ops")));
    assert_eq!(audited.target, Some(guard.id().to_string()));
    let next = operator.acquire(exclusive("router/r1", "ops")).await.unwrap();
    assert!(next.token() > guard.token());
}

#[tokio::test]
async fn a_break_with_a_stale_view_breaks_nothing() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let first = locks.acquire(exclusive("a", "first")).await.unwrap();
    let (old, old_token) = (first.id(), first.token());
    first.release().await.unwrap();
    let current = locks.acquire(exclusive("a", "current")).await.unwrap();
    let gone = locks.break_lock(old, old_token, "ops", "late").await;
    assert!(matches!(gone, Err(Error::StaleBreak { now: StaleView::Gone, .. })), "{gone:?}");
    let other = locks.break_lock(current.id(), old_token, "ops", "mixed up").await;
    assert!(
        matches!(other, Err(Error::StaleBreak { now: StaleView::OtherToken(token), .. }) if token == current.token()),
        "{other:?}"
    );
    assert!(current.renew().await.is_ok());
    assert!(db.system().audit_log().list(None, 10).await.unwrap().iter().all(|entry| entry.action != "lock.break"));
}

#[tokio::test]
async fn lost_resolves_on_expiry_shutdown_and_release() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let expires = locks.acquire(exclusive("a", "ann")).await.unwrap();
    let lost = tokio::spawn(expires.lost());
    world.advance(TTL);
    assert_eq!(lost.await.unwrap(), LostReason::Expired);
    assert_eq!(expires.lost().await, LostReason::Expired, "asked again");

    let released = locks.acquire(exclusive("b", "ann")).await.unwrap();
    let lost = tokio::spawn(released.lost());
    released.release().await.unwrap();
    assert_eq!(lost.await.unwrap(), LostReason::Ended);

    let outlives = locks.acquire(exclusive("c", "ann")).await.unwrap();
    let lost = tokio::spawn(outlives.lost());
    locks.shutdown().await.unwrap();
    assert_eq!(lost.await.unwrap(), LostReason::SessionEnded);
}

#[tokio::test]
async fn automatic_renewal_keeps_a_lease_until_its_longest_hold() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let guard = locks.acquire(exclusive("a", "ann").max_hold(TTL * 3).renew_automatically()).await.unwrap();
    for _ in 0..6 {
        world.advance(TTL / 3);
        until("the lease is renewed", async || guard.remaining() > TTL * 2 / 3).await;
    }
    let lost = tokio::spawn(guard.lost());
    world.advance(TTL);
    assert_eq!(lost.await.unwrap(), LostReason::Expired);
    assert!(locks.acquire(exclusive("a", "bob")).await.is_ok());
}

#[tokio::test]
async fn a_delay_keeps_keys_closed_after_a_break_unless_the_session_is_dead() {
    let world = World::new();
    let db = world.open().await;
    let mut options = LockOptions::default();
    options.lock_delay = Duration::from_secs(10);
    let (holder, locks) =
        (LockManager::open(&db, options.clone()).await.unwrap(), LockManager::open(&db, options).await.unwrap());
    let guard = holder.acquire(exclusive("a", "ann")).await.unwrap();
    locks.break_lock(guard.id(), guard.token(), "ops", "test").await.unwrap();
    match locks.acquire(exclusive("a", "bob")).await {
        Err(Error::Held { expires_in, .. }) => assert_eq!(expires_in, Duration::from_secs(10)),
        other => panic!("{other:?}"),
    }
    let view = &locks.inspect(&key("a")).await.unwrap().leases[0];
    assert!(matches!(view.ended, Some(LostReason::Broken { .. })));
    world.advance(Duration::from_secs(10));
    assert!(locks.acquire(exclusive("a", "bob")).await.is_ok());
}

#[tokio::test]
async fn the_list_shows_every_session_and_can_be_narrowed() {
    let world = World::new();
    let db = world.open().await;
    let (one, two) = (manager(&db).await, manager(&db).await);
    let a = one.acquire(exclusive("router/r1/resource/a", "ann")).await.unwrap();
    let b = two.acquire(exclusive("router/r1/resource/b", "bob")).await.unwrap();
    let tokens = async |filter: LockFilter| {
        let list = one.list(&filter).await.unwrap();
        list.iter().map(|view| view.holder.token.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(tokens(LockFilter::all()).await, [a.token(), b.token()]);
    assert_eq!(tokens(LockFilter::all().key(key("router/r1"))).await, [a.token(), b.token()]);
    assert_eq!(tokens(LockFilter::all().key(key("router/r1/resource/b"))).await, [b.token()]);
    assert_eq!(tokens(LockFilter::all().actor("ann")).await, [a.token()]);
    assert!(tokens(LockFilter::all().key(key("router/r2"))).await.is_empty());
}
