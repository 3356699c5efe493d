//! What ends a forwarder, and what it leaves to the next one.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::sync::Arc;

use nasnet_dbmanager::{BoxFuture, DbManager};
use nasnet_events::forward::{Batch, Delivery, Forwarder, Sink};
use nasnet_events::{Error, EventStore, Position};
use support::watch::consumer;
use support::{PATIENCE, Site, TEST, append_normal, router};
use tokio::sync::watch;

/// A receiver that does something before it answers, and counts what it was sent.
struct Receiver<F> {
    answer: F,
    sent: watch::Sender<usize>,
}

impl<F: Fn() -> BoxFuture<'static, Delivery> + Send + Sync> Receiver<F> {
    fn new(answer: F) -> Arc<Self> {
        Arc::new(Self { answer, sent: watch::Sender::new(0) })
    }

    async fn has(&self, count: usize) {
        self.sent.subscribe().wait_for(|sent| *sent >= count).await.unwrap();
    }
}

impl<F: Fn() -> BoxFuture<'static, Delivery> + Send + Sync> Sink for Receiver<F> {
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        self.sent.send_modify(|sent| *sent += batch.events.len());
        (self.answer)()
    }
}

fn delivered() -> BoxFuture<'static, Delivery> {
    Box::pin(async { Delivery::Delivered })
}

async fn on_database(manager: &DbManager, database: &str, sql: &'static str) {
    let database = if database == "runtime" { manager.runtime() } else { manager.system() };
    let run = database.write(TEST, move |conn| {
        Box::pin(async move {
            sqlx::raw_sql(sql).execute(conn).await?;
            Ok::<_, Error>(())
        })
    });
    run.await.unwrap();
}

#[tokio::test]
async fn a_forwarder_ends_with_its_store() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    let receiver = Receiver::new(delivered);
    let forwarder = Forwarder::new(store.clone(), consumer("cloud"), Arc::clone(&receiver));
    let running = tokio::spawn(async move { forwarder.run(std::future::pending()).await });
    receiver.has(1).await;
    store.shutdown().await.unwrap();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_store_that_is_closed_sends_no_more_of_what_waits() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 5).await;
    let closing = store.clone();
    let receiver = Receiver::new(move || {
        let store = closing.clone();
        Box::pin(async move {
            store.shutdown().await.unwrap();
            Delivery::Delivered
        })
    });
    let forwarder = Forwarder::new(store.clone(), consumer("cloud"), receiver).batch_events(1);
    let mut forwarding = forwarder.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 1, "what was under way");
    let next = forwarding.round().await;
    assert!(matches!(next, Err(Error::Closed)), "{next:?}");
}

async fn position(store: &EventStore) -> Position {
    store.consumers().await.unwrap()[0].position
}

#[tokio::test]
async fn what_a_failed_round_had_at_hand_is_sent_by_the_next_forwarding() {
    let cases = [
        ("runtime", "ALTER TABLE event_progress RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO event_progress"),
        ("system", "ALTER TABLE event_blocked RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO event_blocked"),
    ];
    for (database, hide, show) in cases {
        let site = Site::new();
        let (manager, store) = site.open().await;
        append_normal(&manager, &store, &router("r1"), 2).await;
        append_normal(&manager, &store, &router("r2"), 2).await;
        // Fails, and with it what the store would write down next.
        let breaking = manager.clone();
        let fails_once = std::sync::atomic::AtomicBool::new(true);
        let receiver = Receiver::new(move || {
            if !fails_once.swap(false, std::sync::atomic::Ordering::Relaxed) {
                return Box::pin(async { Delivery::Retry { why: "told by a test".to_owned() } });
            }
            let manager = breaking.clone();
            Box::pin(async move {
                on_database(&manager, database, hide).await;
                Delivery::Retry { why: "told by a test".to_owned() }
            })
        });
        let forwarder = Forwarder::new(store.clone(), consumer("cloud"), receiver);
        let mut forwarding = forwarder.open().await.unwrap();
        let failed = forwarding.round().await;
        assert!(matches!(failed, Err(Error::Storage { .. })), "{database}: {failed:?}");
        on_database(&manager, database, show).await;
        let again = forwarding.round().await;
        assert!(matches!(&again, Err(Error::RoundUnfinished { consumer }) if consumer == "cloud"), "{again:?}");
        assert_eq!(position(&store).await, Position::START, "{database}: nothing was delivered");
        drop(forwarding);

        let forwarder = Forwarder::new(store.clone(), consumer("cloud"), Receiver::new(delivered));
        assert_eq!(forwarder.open().await.unwrap().round().await.unwrap().delivered, 4, "{database}");
        assert_eq!(position(&store).await.seq, 4, "{database}");
    }
}

#[tokio::test]
async fn a_round_that_was_dropped_is_not_continued() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 2).await;
    let receiver = Receiver::new(|| Box::pin(std::future::pending()));
    let forwarder = Forwarder::new(store.clone(), consumer("cloud"), Arc::clone(&receiver));
    let mut forwarding = forwarder.open().await.unwrap();
    tokio::select! {
        round = forwarding.round() => panic!("{round:?}"),
        () = receiver.has(2) => {}
    }
    let again = forwarding.round().await;
    assert!(matches!(again, Err(Error::RoundUnfinished { .. })), "{again:?}");
    assert_eq!(position(&store).await, Position::START);
}
