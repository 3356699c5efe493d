//! A flash budget that is used up puts off what can wait: not what was promised, and nobody asks for it with each append.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../../nasnet-dbmanager/tests/common/book.rs"]
mod book;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use book::Book;
use nasnet_dbmanager::observe::OPERATIONS;
use nasnet_dbmanager::{BudgetLevel, DbManager, FlashBudget};
use nasnet_events::{Durability, Error, EventOptions, EventStore, Expected, FlushReason};
use support::{PATIENCE, Site, TEST, append_normal, normal, router, stream};
use tokio::sync::oneshot;
use tokio::time::Instant;

async fn append_one(manager: &DbManager, store: &EventStore, name: &str) {
    store.append(&router("r1"), &stream(name), Expected::Any, vec![normal(manager)]).await.unwrap();
}

// The recorder is that of the process, so this is one test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_used_up_breaks_no_promise_and_lets_no_append_ask_for_a_flush_in_vain() {
    let book = Book::default();
    metrics::set_global_recorder(book.clone()).unwrap();
    nasnet_dbmanager::observe::describe();
    let site = Site::new();
    let mut fleet = support::options(site.dir.path());
    fleet.budget = FlashBudget { bytes_per_day: 1, burst: 0, reserve_for_critical: 0 };
    let mut options = EventOptions::default();
    options.flush_interval = Duration::from_secs(3_600);
    options.flush_bytes = 4 << 10;
    let (manager, store) = support::open_in(fleet, options).await;
    assert_eq!(manager.flash_level(), BudgetLevel::Overdrawn);
    // The first one of a process goes ahead.
    append_normal(&manager, &store, &router("r1"), 1).await;
    store.flush(FlushReason::Requested).await.unwrap();
    append_normal(&manager, &store, &router("r1"), 2_000).await;
    assert!(store.flush(FlushReason::PageFull).await.unwrap().postponed);
    assert_eq!(store.flush_due().await, Some(FlushReason::PageFull));

    let (stop, stopped) = oneshot::channel::<()>();
    let own = store.clone();
    let running = tokio::spawn(async move { own.maintain(async move { drop(stopped.await) }).await });
    let is_over = Arc::new(AtomicBool::new(false));
    let appending: Vec<_> = (0..4)
        .map(|_| {
            let (manager, store, is_over) = (manager.clone(), store.clone(), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    append_one(&manager, &store, "a").await;
                }
            })
        })
        .collect();
    // Appends go past them; a flush, which reads what it is to take, is slower than the appends that ask for it.
    let reading: Vec<_> = (0..2)
        .map(|_| {
            let (hot, is_over) = (manager.hot(), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let slow = hot.read(TEST, |_| {
                        Box::pin(async {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            Ok::<_, Error>(())
                        })
                    });
                    drop(slow.await);
                }
            })
        })
        .collect();
    // Each is promised while others come in, and none of these asks for a flush that goes ahead.
    for _ in 0..2 {
        let asked = Durability::Batched { max_delay: Duration::from_millis(300) };
        let promised = vec![normal(&manager)];
        let receipt = store.append_with(&router("r1"), &stream("p"), Expected::Any, promised, asked).await.unwrap();
        let began = Instant::now();
        while store.status().await.unwrap().flushed_through < receipt.last {
            assert!(began.elapsed() < PATIENCE, "what was promised is in tmpfs alone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for one in appending.into_iter().chain(reading) {
        one.await.unwrap();
    }

    append_normal(&manager, &store, &router("r1"), 2_000).await;
    assert!(store.flush(FlushReason::PageFull).await.unwrap().postponed);
    let flushes = || book.count(OPERATIONS, "cause=event-flush,database=hot,outcome=read");
    let before = flushes();
    assert!(before > 0);
    for _ in 0..500 {
        append_one(&manager, &store, "a").await;
    }
    assert!(flushes() - before <= 3, "{} flushes were tried in vain", flushes() - before);
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(store.status().await.unwrap().unflushed, 0);
}
