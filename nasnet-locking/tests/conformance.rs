//! What every store of leases must do: the same sentences on SQLite and, with feature `postgres` and a server, on
//! PostgreSQL.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::backend::{Backend, Sqlite};
use common::{exclusive, key, keys, shared, soon, until};
use nasnet_locking::{
    AcquireRequest, Error, FencingToken, LeaseGuard, LockFilter, LockInfo, LockKey, LockManager, LockOptions,
    LostReason, Seen, StaleView,
};
use tokio::task::JoinHandle;

const TTL: Duration = Duration::from_secs(300);
const LONG: Duration = Duration::from_secs(600);
/// More than any test takes by a clock that runs by itself.
const SLACK: Duration = Duration::from_secs(60);

macro_rules! on_every_store {
    ($($sentence:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence(&super::Sqlite::new().await).await;
            })+
        }

        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[tokio::test]
            async fn $sentence() {
                if let Some(store) = super::common::postgres::Postgres::new().await {
                    super::$sentence(&store).await;
                }
            })+
        }
    };
}

on_every_store! {
    a_taken_key_says_who_holds_it_what_for_since_when_and_for_how_long,
    a_lease_covers_what_is_above_and_below_it_but_not_beside_it,
    shared_leases_live_together_and_carry_no_right_to_write,
    several_keys_are_taken_together_or_not_at_all,
    a_thousand_keys_are_one_lease,
    a_released_or_dropped_lease_frees_its_keys,
    an_abandoned_acquire_leaves_nothing_behind,
    a_silent_live_holder_is_waited_out_and_then_fenced,
    a_dead_session_is_taken_over_at_once,
    renewing_is_idempotent_up_to_the_longest_hold,
    a_late_heartbeat_resurrects_nothing,
    automatic_renewal_outlives_the_time_to_live,
    tokens_grow_across_sessions_takeovers_and_breaks,
    nobody_is_overtaken,
    a_request_that_does_not_wait_does_not_pass_one_that_does,
    waiting_ends_with_its_time_and_says_who_was_in_the_way,
    a_waiter_gets_what_an_expired_or_a_dead_holder_leaves,
    a_waiter_that_gives_up_or_dies_holds_up_nobody,
    opposite_orders_of_several_keys_cannot_deadlock,
    a_broken_lease_is_fenced_and_told_to_its_holder,
    a_break_with_a_stale_view_breaks_nothing,
    a_delay_keeps_keys_closed_after_a_break_unless_the_session_is_dead,
    the_list_shows_every_session_and_can_be_narrowed,
    shutting_down_frees_every_lease_and_fences_guards_that_outlive_it,
    what_can_never_be_granted_is_refused_by_name,
    no_write_of_a_holder_that_lost_its_lease_passes,
}

async fn manager(store: &impl Backend) -> LockManager {
    store.manager(LockOptions::default()).await
}

fn queue_up(locks: &LockManager, path: &'static str, wait: Duration) -> JoinHandle<Result<LeaseGuard, Error>> {
    let locks = locks.clone();
    tokio::spawn(async move { locks.acquire(exclusive(path, "waiter").wait(wait)).await })
}

async fn queued(locks: &LockManager, path: &str) -> usize {
    locks.inspect(&key(path)).await.unwrap().queue.len()
}

fn about(found: Duration, expected: Duration) -> bool {
    found <= expected && found + SLACK > expected
}

async fn a_taken_key_says_who_holds_it_what_for_since_when_and_for_how_long(store: &impl Backend) {
    let (one, other) = (manager(store).await, manager(store).await);
    let info = LockInfo::new("ann", "rotate keys").origin("ui");
    let held = one.acquire(AcquireRequest::exclusive(key("router/r1/resource/a"), info)).await.unwrap();
    store.pass(Duration::from_secs(100)).await;
    match other.acquire(exclusive("router/r1", "bob")).await {
        Err(Error::Held { key, holder, since, expires_in, ahead, .. }) => {
            assert_eq!(key.as_str(), "router/r1");
            assert_eq!((holder.info.actor.as_str(), holder.info.purpose.as_str()), ("ann", "rotate keys"));
            assert_eq!((holder.info.origin.as_str(), holder.token), ("ui", Some(held.token())));
            assert_eq!((holder.lease, holder.session), (held.id(), one.session()));
            assert!(since > 1_700_000_000_000, "{since}");
            assert!(about(expires_in, TTL - Duration::from_secs(100)), "{expires_in:?}");
            assert_eq!(ahead, 0);
        }
        answer => panic!("{answer:?}"),
    }
}

async fn a_lease_covers_what_is_above_and_below_it_but_not_beside_it(store: &impl Backend) {
    let (one, other) = (manager(store).await, manager(store).await);
    let _held = one.acquire(exclusive("router/r1/resource/a", "ann")).await.unwrap();
    for (path, free) in [
        ("router/r1/resource/a", false),
        ("router/r1", false),
        ("router/r1/resource/a/field", false),
        ("router/r1/resource/b", true),
        ("router/r1/resource/ab", true),
        ("router/r1/resource/a-b", true),
    ] {
        let answer = other.acquire(exclusive(path, "bob")).await;
        assert_eq!(answer.is_ok(), free, "{path}: {answer:?}");
        if let Ok(guard) = answer {
            guard.release().await.unwrap();
        }
    }
}

async fn shared_leases_live_together_and_carry_no_right_to_write(store: &impl Backend) {
    let locks = manager(store).await;
    let one = locks.acquire(shared("router/r1", "ann")).await.unwrap();
    let two = locks.acquire(shared("router/r1/resource/a", "bob")).await.unwrap();
    let below = exclusive("router/r1/resource/b", "eve");
    assert!(matches!(locks.acquire(below.clone()).await, Err(Error::Held { .. })));
    assert!(matches!(store.write(&one.write_right(), "reader").await, Err(Error::NoWriteRight { .. })));
    two.release().await.unwrap();
    one.release().await.unwrap();
    assert!(locks.acquire(below).await.is_ok());
    assert!(store.written().await.is_empty());
}

async fn several_keys_are_taken_together_or_not_at_all(store: &impl Backend) {
    let locks = manager(store).await;
    let _b = locks.acquire(exclusive("b", "ann")).await.unwrap();
    let all = AcquireRequest::exclusive(keys(&["c", "b", "a"]), LockInfo::new("bob", "all"));
    assert!(matches!(locks.acquire(all).await, Err(Error::Held { key, .. }) if key.as_str() == "b"));
    let _a = locks.acquire(exclusive("a", "eve")).await.unwrap();
    let _c = locks.acquire(exclusive("c", "eve")).await.unwrap();
}

async fn a_thousand_keys_are_one_lease(store: &impl Backend) {
    let locks = manager(store).await;
    let many: Vec<LockKey> = (0..1_024).map(|number| key(&format!("router/r1/resource/{number}"))).collect();
    let set = nasnet_locking::KeySet::new(many).unwrap();
    let guard = locks.acquire(AcquireRequest::exclusive(set, LockInfo::new("ann", "import"))).await.unwrap();
    store.write(&guard.write_right(), "import").await.unwrap();
    assert!(matches!(locks.acquire(exclusive("router/r1/resource/1023", "bob")).await, Err(Error::Held { .. })));
    guard.release().await.unwrap();
    assert!(locks.acquire(exclusive("router/r1/resource/1023", "bob")).await.is_ok());
}

async fn a_released_or_dropped_lease_frees_its_keys(store: &impl Backend) {
    let locks = manager(store).await;
    locks.acquire(exclusive("a", "ann")).await.unwrap().release().await.unwrap();
    drop(locks.acquire(exclusive("a", "ann")).await.unwrap());
    soon(&locks, "a", "next").await.release().await.unwrap();
}

async fn an_abandoned_acquire_leaves_nothing_behind(store: &impl Backend) {
    let locks = manager(store).await;
    for polls in 1..30 {
        let mut abandoned = Box::pin(locks.acquire(exclusive("a", "gone").wait(LONG)));
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
        soon(&locks, "a", "next").await.release().await.unwrap();
    }
    assert_eq!(queued(&locks, "a").await, 0);
}

async fn a_silent_live_holder_is_waited_out_and_then_fenced(store: &impl Backend) {
    let (slow, quick) = (manager(store).await, manager(store).await);
    let outlived = slow.acquire(exclusive("router/r1", "slow")).await.unwrap();
    store.write(&outlived.write_right(), "slow").await.unwrap();
    store.pass(TTL - SLACK).await;
    assert!(matches!(quick.acquire(exclusive("router/r1", "quick")).await, Err(Error::Held { .. })));
    store.pass(SLACK).await;
    assert!(matches!(outlived.renew().await, Err(Error::Lost { why: LostReason::Expired, .. })));
    let answer = store.write(&outlived.write_right(), "expired").await;
    assert!(
        matches!(answer, Err(Error::Fenced { seen: Seen::LeaseLost(LostReason::Expired), .. })),
        "before it was taken over: {answer:?}"
    );
    let current = quick.acquire(exclusive("router/r1", "quick")).await.unwrap();
    assert!(current.token() > outlived.token());
    let answer = store.write(&outlived.write_right(), "overtaken").await;
    assert!(
        matches!(answer, Err(Error::Fenced { seen: Seen::LeaseLost(LostReason::Ended), .. })),
        "before the successor wrote: {answer:?}"
    );
    store.write(&current.write_right(), "quick").await.unwrap();
    let answer = store.write(&outlived.write_right(), "late").await;
    assert!(
        matches!(&answer, Err(Error::Fenced { seen: Seen::Token(seen), .. }) if *seen == current.token()),
        "after the successor wrote: {answer:?}"
    );
    assert!(matches!(outlived.release().await, Err(Error::Lost { why: LostReason::Ended, .. })));
    assert!(current.renew().await.is_ok(), "a late release takes nothing from the successor");
    let who: Vec<String> = store.written().await.into_iter().map(|(who, _)| who).collect();
    assert_eq!(who, ["slow", "quick"]);
}

async fn a_dead_session_is_taken_over_at_once(store: &impl Backend) {
    let (dies, lives) = (manager(store).await, manager(store).await);
    let left = dies.acquire(exclusive("router/r1", "dies")).await.unwrap();
    store.kill(&dies).await;
    let taken = lives.acquire(exclusive("router/r1", "lives")).await.unwrap();
    assert!(taken.token() > left.token());
    assert!(matches!(store.write(&left.write_right(), "dead").await, Err(Error::Fenced { .. })));
}

async fn renewing_is_idempotent_up_to_the_longest_hold(store: &impl Backend) {
    let locks = manager(store).await;
    let guard = locks.acquire(exclusive("a", "ann").max_hold(TTL + TTL / 2)).await.unwrap();
    store.pass(TTL / 2).await;
    for _ in 0..3 {
        let left = guard.renew().await.unwrap();
        assert!(about(left, TTL), "an answer that was lost may be asked for again: {left:?}");
    }
    store.pass(TTL - SLACK).await;
    let left = guard.renew().await.unwrap();
    assert!(about(left, SLACK), "the longest hold is the end: {left:?}");
    store.pass(SLACK).await;
    assert!(matches!(guard.renew().await, Err(Error::Lost { why: LostReason::Expired, .. })));
}

async fn a_late_heartbeat_resurrects_nothing(store: &impl Backend) {
    let (late, locks) = (manager(store).await, manager(store).await);
    let guard = late.acquire(exclusive("router/r1", "late")).await.unwrap();
    store.pass(TTL).await;
    assert!(matches!(guard.renew().await, Err(Error::Lost { why: LostReason::Expired, .. })));
    assert!(matches!(guard.renew().await, Err(Error::Lost { .. })), "asking again changes nothing");
    let next = locks.acquire(exclusive("router/r1", "next")).await.unwrap();
    assert!(matches!(guard.renew().await, Err(Error::Lost { why: LostReason::Ended, .. })));
    assert!(next.renew().await.is_ok());
    let right = next.write_right();
    next.release().await.unwrap();
    assert!(matches!(store.write(&right, "released").await, Err(Error::Fenced { .. })));
    assert!(matches!(guard.renew().await, Err(Error::Lost { .. })), "nor when the keys are free again");
}

async fn automatic_renewal_outlives_the_time_to_live(store: &impl Backend) {
    let (keeps, locks) = (manager(store).await, manager(store).await);
    let ttl = TTL;
    let guard = keeps.acquire(exclusive("a", "ann").ttl(ttl).renew_automatically()).await.unwrap();
    // Whoever listens has the manager look often, and so notice that the clock of a server was moved.
    let _lost = guard.lost();
    let seen = async || locks.inspect(&key("a")).await.unwrap().leases.remove(0).expires_in;
    for _ in 0..4 {
        store.pass(ttl / 2).await;
        until("the lease is renewed", async || seen().await > ttl * 2 / 3).await;
    }
    assert!(matches!(locks.acquire(exclusive("a", "bob")).await, Err(Error::Held { .. })));
    guard.release().await.unwrap();
}

async fn tokens_grow_across_sessions_takeovers_and_breaks(store: &impl Backend) {
    let mut tokens: Vec<FencingToken> = Vec::new();
    for round in 0..4 {
        let locks = manager(store).await;
        let guard = locks.acquire(exclusive("a", "ann")).await.unwrap();
        tokens.push(guard.token());
        match round {
            0 => guard.release().await.unwrap(),
            1 => {
                locks.break_lock(guard.id(), guard.token(), "ops", "test").await.unwrap();
                tokens.push(locks.acquire(exclusive("b", "ann")).await.unwrap().token());
            }
            2 => store.kill(&locks).await,
            _ => store.pass(TTL).await,
        }
        let _ = locks.shutdown().await;
    }
    let locks = manager(store).await;
    tokens.push(locks.acquire(exclusive("a", "last")).await.unwrap().token());
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

async fn nobody_is_overtaken(store: &impl Backend) {
    let managers = [manager(store).await, manager(store).await];
    let holder = managers[0].acquire(exclusive("a", "holder")).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 0..10 {
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
    assert!(order.iter().map(|(number, _)| *number).eq(0..10), "{order:?}");
    assert!(order.is_sorted_by_key(|(_, token)| *token), "{order:?}");
    assert_eq!(queued(&managers[0], "a").await, 0);
}

async fn a_request_that_does_not_wait_does_not_pass_one_that_does(store: &impl Backend) {
    let locks = manager(store).await;
    let reader = locks.acquire(shared("a", "reader")).await.unwrap();
    let writer = queue_up(&locks, "a", LONG);
    until("the writer waits", async || queued(&locks, "a").await == 1).await;
    match locks.acquire(shared("a", "late reader")).await {
        Err(Error::Held { holder, ahead, .. }) => {
            assert_eq!((holder.info.actor.as_str(), holder.token, ahead), ("waiter", None, 1));
        }
        answer => panic!("{answer:?}"),
    }
    assert!(locks.acquire(shared("b", "elsewhere")).await.is_ok());
    reader.release().await.unwrap();
    writer.await.unwrap().unwrap().release().await.unwrap();
    assert!(locks.acquire(shared("a", "late reader")).await.is_ok());
}

async fn waiting_ends_with_its_time_and_says_who_was_in_the_way(store: &impl Backend) {
    let locks = manager(store).await;
    let _holder = locks.acquire(exclusive("router/r1", "holder")).await.unwrap();
    let longest = Duration::from_secs(60);
    let waiter = queue_up(&locks, "router/r1/resource/a", longest);
    until("the waiter is in the queue", async || queued(&locks, "router/r1").await == 1).await;
    store.pass(longest).await;
    match waiter.await.unwrap() {
        Err(Error::Held { holder, waited, ahead, .. }) => {
            assert_eq!((holder.info.actor.as_str(), ahead), ("holder", 0));
            assert_eq!(waited, longest);
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(queued(&locks, "router/r1").await, 0);
}

async fn a_waiter_gets_what_an_expired_or_a_dead_holder_leaves(store: &impl Backend) {
    let (dies, locks) = (manager(store).await, manager(store).await);
    let _silent = locks.acquire(exclusive("a", "silent").ttl(SLACK)).await.unwrap();
    let waiter = queue_up(&locks, "a", LONG);
    until("the waiter is in the queue", async || queued(&locks, "a").await == 1).await;
    store.pass(SLACK).await;
    assert!(waiter.await.unwrap().is_ok());

    let _left = dies.acquire(exclusive("b", "dies")).await.unwrap();
    let waiter = queue_up(&locks, "b", LONG);
    until("the waiter is in the queue", async || queued(&locks, "b").await == 1).await;
    store.kill(&dies).await;
    assert!(waiter.await.unwrap().is_ok());
}

async fn a_waiter_that_gives_up_or_dies_holds_up_nobody(store: &impl Backend) {
    let (dies, locks) = (manager(store).await, manager(store).await);
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
    store.kill(&dies).await;
    holder.release().await.unwrap();
    assert!(last.await.unwrap().is_ok());
}

async fn opposite_orders_of_several_keys_cannot_deadlock(store: &impl Backend) {
    let locks = manager(store).await;
    let mut tasks = Vec::new();
    for number in 0..6 {
        let locks = locks.clone();
        let paths: [&'static str; 3] = if number % 2 == 0 { ["a", "b", "c"] } else { ["c", "b", "a"] };
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                let info = LockInfo::new("task", "several keys");
                let request = AcquireRequest::exclusive(keys(&paths), info).wait(LONG);
                locks.acquire(request).await.unwrap().release().await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn a_broken_lease_is_fenced_and_told_to_its_holder(store: &impl Backend) {
    let (holder, operator) = (manager(store).await, manager(store).await);
    let guard = holder.acquire(exclusive("router/r1", "stuck")).await.unwrap();
    let lost = tokio::spawn(guard.lost());
    let waiter = queue_up(&operator, "router/r1", LONG);
    until("somebody waits", async || queued(&operator, "router/r1").await == 1).await;
    let seen = &operator.list(&LockFilter::all().actor("stuck")).await.unwrap()[0];
    let broken =
        operator.break_lock(seen.holder.lease, seen.holder.token.unwrap(), "ops", "maintenance").await.unwrap();
    assert_eq!((broken.holder.info.actor.as_str(), &broken.keys), ("stuck", guard.keys()));

    let next = waiter.await.unwrap().unwrap();
    assert!(next.token() > guard.token());
    // The waiter may have taken the keys before the holder looked.
    let why = lost.await.unwrap();
    assert!(matches!(&why, LostReason::Broken { by, .. } if by == "ops") || why == LostReason::Ended, "{why:?}");
    assert!(matches!(guard.renew().await, Err(Error::Lost { .. })));
    assert!(matches!(store.write(&guard.write_right(), "stuck").await, Err(Error::Fenced { .. })));
    let again = operator.break_lock(guard.id(), guard.token(), "ops", "again").await;
    assert!(matches!(again, Err(Error::StaleBreak { .. })), "{again:?}");
}

async fn a_break_with_a_stale_view_breaks_nothing(store: &impl Backend) {
    let locks = manager(store).await;
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
}

async fn a_delay_keeps_keys_closed_after_a_break_unless_the_session_is_dead(store: &impl Backend) {
    let mut options = LockOptions::default();
    options.lock_delay = SLACK;
    let (holder, locks) = (store.manager(options.clone()).await, store.manager(options).await);
    let broken =
        [holder.acquire(exclusive("a", "ann")).await.unwrap(), holder.acquire(exclusive("b", "ann")).await.unwrap()];
    for guard in &broken {
        locks.break_lock(guard.id(), guard.token(), "ops", "test").await.unwrap();
    }
    match locks.acquire(exclusive("a", "bob")).await {
        Err(Error::Held { expires_in, .. }) => assert!(about(expires_in, SLACK), "{expires_in:?}"),
        answer => panic!("{answer:?}"),
    }
    let view = &locks.inspect(&key("a")).await.unwrap().leases[0];
    assert!(matches!(view.ended, Some(LostReason::Broken { .. })));
    store.pass(SLACK / 2).await;
    assert!(matches!(locks.acquire(exclusive("a", "bob")).await, Err(Error::Held { .. })));
    store.pass(SLACK / 2).await;
    assert!(locks.acquire(exclusive("a", "bob")).await.is_ok());
    let late = holder.acquire(exclusive("c", "ann")).await.unwrap();
    locks.break_lock(late.id(), late.token(), "ops", "test").await.unwrap();
    store.kill(&holder).await;
    assert!(locks.acquire(exclusive("c", "bob")).await.is_ok());
}

async fn the_list_shows_every_session_and_can_be_narrowed(store: &impl Backend) {
    let (one, two) = (manager(store).await, manager(store).await);
    let a = one.acquire(exclusive("router/r1/resource/a", "ann")).await.unwrap();
    let b = two.acquire(shared("router/r1/resource/b", "bob")).await.unwrap();
    let tokens = async |filter: LockFilter| {
        let list = one.list(&filter).await.unwrap();
        list.iter().map(|view| view.holder.token.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(tokens(LockFilter::all()).await, [a.token(), b.token()]);
    assert_eq!(tokens(LockFilter::all().key(key("router/r1"))).await, [a.token(), b.token()]);
    assert_eq!(tokens(LockFilter::all().key(key("router/r1/resource/b"))).await, [b.token()]);
    assert_eq!(tokens(LockFilter::all().actor("ann")).await, [a.token()]);
    assert!(tokens(LockFilter::all().key(key("router/r2"))).await.is_empty());
    let view = one.inspect(&key("router/r1/resource/b")).await.unwrap().leases.remove(0);
    assert_eq!((view.holder.session, view.holder.mode, view.ended), (two.session(), b.mode(), None));
    assert!(about(view.expires_in, TTL), "{:?}", view.expires_in);
}

async fn shutting_down_frees_every_lease_and_fences_guards_that_outlive_it(store: &impl Backend) {
    let (first, second) = (manager(store).await, manager(store).await);
    let guard = first.acquire(exclusive("router/r1", "ann")).await.unwrap();
    let lost = tokio::spawn(guard.lost());
    first.shutdown().await.unwrap();
    first.shutdown().await.unwrap();
    assert_eq!(lost.await.unwrap(), LostReason::SessionEnded);
    assert!(matches!(first.acquire(exclusive("router/r1", "ann")).await, Err(Error::Closed)));
    assert!(matches!(store.write(&guard.write_right(), "late").await, Err(Error::Fenced { .. })));
    assert!(second.acquire(exclusive("router/r1", "bob")).await.is_ok());
    drop(guard);
}

async fn what_can_never_be_granted_is_refused_by_name(store: &impl Backend) {
    let locks = manager(store).await;
    for ttl in [Duration::ZERO, Duration::from_secs(3_601), Duration::from_secs(365 * 86_400)] {
        assert!(matches!(
            locks.acquire(exclusive("router/r1", "ann").ttl(ttl)).await,
            Err(Error::InvalidTtl { ttl: refused, .. }) if refused == ttl
        ));
    }
    assert!(locks.list(&LockFilter::all()).await.unwrap().is_empty());
}

async fn no_write_of_a_holder_that_lost_its_lease_passes(store: &impl Backend) {
    let managers = [manager(store).await, manager(store).await, manager(store).await];
    let guards = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..6 {
        let (locks, guards) = (managers[number % 3].clone(), Arc::clone(&guards));
        tasks.push(tokio::spawn(async move {
            for _ in 0..4 {
                let guard = locks.acquire(exclusive("router/r1", "racer").wait(LONG)).await.unwrap();
                guards.lock().unwrap().push(guard.write_right());
                locks.break_lock(guard.id(), guard.token(), "ops", "race").await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let last = managers[0].acquire(exclusive("router/r1", "last")).await.unwrap();
    store.write(&last.write_right(), "last").await.unwrap();
    let rights = std::mem::take(&mut *guards.lock().unwrap());
    assert_eq!(rights.len(), 24);
    for right in rights {
        assert!(right.token() < last.token());
        assert!(matches!(store.write(&right, "stale").await, Err(Error::Fenced { .. })));
    }
    assert_eq!(store.written().await.len(), 1);
}
