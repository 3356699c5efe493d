//! What ends a forwarder.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::BoxFuture;
use nasnet_events::Error;
use nasnet_events::forward::{Batch, Delivery, Forwarder, Sink};
use support::watch::consumer;
use support::{Site, append_normal, router};
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
    tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap().unwrap();
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
