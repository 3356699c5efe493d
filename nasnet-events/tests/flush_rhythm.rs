//! When the loop flushes: not because of what is on flash already, in time whatever else wakes it, and what was promised
//! for one scope whatever becomes of another.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{Durability, Error, EventOptions, EventStore, Expected, FlushPolicy, FlushReason, Receipt};
use support::{PATIENCE, Site, TEST, event, normal, on_scope, router, stream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The loop of a store, until it is told to stop.
struct Running {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn of(store: &EventStore) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let own = store.clone();
        Self { stop, running: tokio::spawn(async move { own.maintain(async move { drop(stopped.await) }).await }) }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
    }
}

fn every(interval: Duration) -> EventOptions {
    let mut options = EventOptions::default();
    options.flush_interval = interval;
    options.flush_bytes = 4 << 10;
    options
}

const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'full'); END";
const HOUR: Duration = Duration::from_secs(3_600);

async fn append(manager: &DbManager, store: &EventStore, scope: &Scope, count: usize) -> Receipt {
    let events = (0..count).map(|_| normal(manager)).collect();
    store.append(scope, &stream("s"), Expected::Any, events).await.unwrap()
}

async fn promised(manager: &DbManager, store: &EventStore, scope: &Scope) -> Receipt {
    let asked = Durability::Batched { max_delay: Duration::from_millis(300) };
    store.append_with(scope, &stream("s"), Expected::Any, vec![normal(manager)], asked).await.unwrap()
}

/// Segments of a scope, and events in them.
async fn segments(store: &EventStore, scope: &Scope) -> (u64, u64) {
    let warm = store.status().await.unwrap().warm;
    let status = warm.into_iter().flatten().find(|status| status.scope == *scope).unwrap();
    (status.segment_count, status.segments.events)
}

/// Waits until a scope has so many events in segments; returns how many segments these are.
async fn until_flushed(store: &EventStore, scope: &Scope, events: u64) -> u64 {
    let asked = Instant::now();
    loop {
        let (segments, found) = segments(store, scope).await;
        if found >= events {
            return segments;
        }
        assert!(asked.elapsed() < PATIENCE, "{found} of {events} events are on flash");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_flushed_before_a_restart_makes_nobody_flush_each_append() {
    let site = Site::new();
    let scope = router("r1");
    let (manager, store) = site.open_with(every(HOUR)).await;
    append(&manager, &store, &scope, 600).await;
    store.flush(FlushReason::Requested).await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    let (manager, store) = site.open_with(every(HOUR)).await;
    let running = Running::of(&store);
    append(&manager, &store, &scope, 1).await;
    append(&manager, &store, &scope, 1).await;
    promised(&manager, &store, &scope).await;
    assert_eq!(until_flushed(&store, &scope, 603).await, 2, "they share one segment");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_flushed_makes_nobody_flush_each_append() {
    let site = Site::new();
    let scope = router("r1");
    let mut options = every(HOUR);
    // Nothing but what was promised.
    options.flush_bytes = 64 << 10;
    let (manager, store) = site.open_with(options.clone()).await;
    append(&manager, &store, &scope, 2_500).await;
    let other_manager = site.manager().await;
    let other = EventStore::open(&other_manager, options).await.unwrap();
    other.flush(FlushReason::Requested).await.unwrap();

    let running = Running::of(&store);
    // The first one may have to look before it knows.
    promised(&manager, &store, &scope).await;
    let before = until_flushed(&store, &scope, 2_501).await;
    append(&manager, &store, &scope, 1).await;
    append(&manager, &store, &scope, 1).await;
    promised(&manager, &store, &scope).await;
    assert_eq!(until_flushed(&store, &scope, 2_504).await, before + 1, "they share one segment");
    running.end().await;
    assert_eq!(store.status().await.unwrap().unflushed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interval_passes_however_often_small_appends_wake_the_loop() {
    let site = Site::new();
    let (manager, store) = site.open_with(every(Duration::from_secs(1))).await;
    let running = Running::of(&store);
    // The loop is woken by small rows only once it has joined some, so the first time does not count.
    for _ in 0..2 {
        let receipt = append(&manager, &store, &router("r1"), 1).await;
        let asked = Instant::now();
        // Each is a row of its own, and many of them are to be joined.
        while store.status().await.unwrap().flushed_through < receipt.last {
            assert!(asked.elapsed() < PATIENCE, "the interval never passed");
            for _ in 0..128 {
                let low = vec![event(&manager, "metric.updated")];
                store.append(&router("r1"), &stream("m"), Expected::Any, low).await.unwrap();
            }
        }
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_takes_nothing_breaks_no_promise_made_for_another() {
    let site = Site::new();
    let (manager, store) = site.open_with(every(HOUR)).await;
    let (healthy, broken) = (router("r1"), router("r2"));
    promised(&manager, &store, &broken).await;
    on_scope(&manager, &broken, "ALTER TABLE event_segments RENAME TO elsewhere").await;
    let running = Running::of(&store);
    promised(&manager, &store, &broken).await;
    promised(&manager, &store, &healthy).await;
    until_flushed(&store, &healthy, 1).await;
    promised(&manager, &store, &healthy).await;
    until_flushed(&store, &healthy, 2).await;
    // Nor does what waits for it ask for a flush with each append of the others.
    append(&manager, &store, &broken, 1_500).await;
    promised(&manager, &store, &healthy).await;
    let before = until_flushed(&store, &healthy, 3).await;
    append(&manager, &store, &healthy, 1).await;
    append(&manager, &store, &healthy, 1).await;
    promised(&manager, &store, &healthy).await;
    assert_eq!(until_flushed(&store, &healthy, 6).await, before + 1, "they share one segment");
    on_scope(&manager, &broken, "ALTER TABLE elsewhere RENAME TO event_segments").await;
    running.end().await;
    assert_eq!(segments(&store, &broken).await.1, 1_502);
}

/// Until the next night they would be in tmpfs alone.
#[tokio::test]
async fn a_daily_flush_that_could_not_be_done_is_done_as_soon_as_it_can() {
    let site = Site::new();
    let mut options = every(Duration::from_millis(50));
    options.flush = FlushPolicy::NIGHTLY;
    let (manager, store) = site.open_with(options).await;
    append(&manager, &store, &router("r1"), 3).await;
    on_scope(&manager, &router("r1"), REFUSE).await;
    let running = Running::of(&store);
    let asked = Instant::now();
    while store.status().await.unwrap().flushed_behind.is_empty() {
        assert!(asked.elapsed() < PATIENCE, "the first flush is due at once");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    on_scope(&manager, &router("r1"), "DROP TRIGGER refuse").await;
    assert_eq!(until_flushed(&store, &router("r1"), 3).await, 1);
    // The next one is due the next night.
    append(&manager, &store, &router("r1"), 1).await;
    let before = store.status().await.unwrap().flushed_through;
    append(&manager, &store, &router("r2"), 1).await;
    assert_eq!(store.flush_due().await, None);
    assert_eq!(store.status().await.unwrap().flushed_through, before);
    running.end().await;
}

/// Who seals or removes files counts on nothing being flushed meanwhile.
#[tokio::test]
async fn a_flush_that_nobody_waits_for_keeps_its_turn_until_its_write_has_ended() {
    let site = Site::new();
    let (manager, store) = site.open_with(every(HOUR)).await;
    append(&manager, &store, &router("r1"), 3).await;
    let (release, released) = oneshot::channel::<()>();
    let (entered, inside) = oneshot::channel::<()>();
    let database = manager.scope(&router("r1")).await.unwrap();
    let held = tokio::spawn(async move {
        let hold = database.write(TEST, move |_| {
            Box::pin(async move {
                entered.send(()).unwrap();
                drop(released.await);
                Ok::<_, Error>(())
            })
        });
        hold.await
    });
    inside.await.unwrap();
    // Its write waits behind the other, and is done afterwards whatever becomes of the flush.
    let asked = Instant::now();
    let mut patience = Duration::from_millis(50);
    loop {
        // Given up before its write was asked for, it keeps no turn: the next is waited for longer.
        let flush = tokio::time::timeout(patience, store.flush(FlushReason::Requested));
        assert!(flush.await.is_err(), "nothing can be written yet");
        patience *= 2;
        // Long enough that it is not the machine that is slow.
        if tokio::time::timeout(Duration::from_secs(2), store.seal()).await.is_err() {
            break;
        }
        assert!(asked.elapsed() < PATIENCE, "others go ahead although a flush is under way");
    }
    release.send(()).unwrap();
    held.await.unwrap().unwrap();
    store.seal().await.unwrap();
    assert_eq!(segments(&store, &router("r1")).await, (1, 3));
}
