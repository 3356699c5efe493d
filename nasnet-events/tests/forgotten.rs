//! A consumer that was forgotten stays forgotten, whoever still reads as it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};

use nasnet_dbmanager::{BoxFuture, DbManager, Scope};
use nasnet_events::forward::{Batch, Delivery, Forwarder, Sink, StoreSink};
use nasnet_events::{ConsumerName, Error, EventOptions, EventStore, Position};
use support::watch::{consumer, ids, next, shown, until_caught_up};
use support::{Site, TEST, append_normal, router};

fn name() -> ConsumerName {
    ConsumerName::parse("c").unwrap()
}

fn is_taken(done: &Result<(), Error>) -> bool {
    matches!(done, Err(Error::ConsumerTaken { consumer }) if consumer == "c")
}

async fn wipe_progress(manager: &DbManager) {
    let wiped = manager.runtime().write(TEST, |conn| {
        Box::pin(async move {
            sqlx::raw_sql("DELETE FROM event_progress").execute(conn).await?;
            Ok::<_, Error>(())
        })
    });
    wiped.await.unwrap();
}

/// By the store that reads as it, and by another.
#[tokio::test]
async fn one_that_is_read_is_forgotten_and_begins_anew() {
    for is_other in [false, true] {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let forgetting = if is_other { &other } else { &store };
        let all = append_normal(&manager, &store, &router("r1"), 3).await;
        let mut subscription = store.subscribe(consumer("c")).await.unwrap();
        let mut positions = Vec::new();
        for _ in 0..3 {
            positions.push(next(&mut subscription).await.position());
        }
        subscription.ack(positions[1]).await.unwrap();

        assert!(forgetting.forget_consumer(&name()).await.unwrap());
        for done in [subscription.confirm().await, subscription.ack(positions[2]).await] {
            assert!(is_taken(&done), "{done:?}");
        }
        assert_eq!(store.consumers().await.unwrap(), []);
        let items = shown(forgetting, "c").await;
        assert_eq!(ids(&items), all, "from the beginning");
        let done = subscription.ack(positions[2]).await;
        assert!(is_taken(&done), "{done:?}");

        // Nor does it come back with what the store of the old subscription writes last.
        subscription.close().await.unwrap();
        store.shutdown().await.unwrap();
        let listed = other.consumers().await.unwrap();
        assert_eq!((listed[0].position, listed[0].saved), (Position::START, Position::START));
    }
}

#[tokio::test]
async fn a_forwarder_of_a_forgotten_consumer_sends_nothing_until_it_is_opened_anew() {
    let (here, there) = (Site::new(), Site::new());
    let (_target_manager, target) = there.open().await;
    let (manager, store) = here.open().await;
    append_normal(&manager, &store, &router("r1"), 2).await;
    let forwarder = Forwarder::new(store.clone(), consumer("c"), StoreSink::new(target.clone(), Scope::System));
    let mut forwarding = forwarder.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 2);
    store.forget_consumer(&name()).await.unwrap();
    append_normal(&manager, &store, &router("r1"), 1).await;
    let refused = forwarding.round().await;
    assert!(matches!(refused, Err(Error::ConsumerTaken { .. })), "{refused:?}");
    drop(forwarding);
    assert_eq!(forwarder.open().await.unwrap().round().await.unwrap().delivered, 3);
}

/// Rejects what it is given, at last after another process has forgotten its consumer and, perhaps, made it anew.
struct Forgetting {
    other: EventStore,
    is_made_anew: bool,
    asked: AtomicU32,
}

impl Sink for Forgetting {
    fn deliver<'a>(&'a self, _: Batch<'a>) -> BoxFuture<'a, Delivery> {
        Box::pin(async {
            // First come all streams together, then each by itself.
            if self.asked.fetch_add(1, Ordering::Relaxed) == 1 {
                assert!(self.other.forget_consumer(&name()).await.unwrap());
                if self.is_made_anew {
                    drop(self.other.subscribe(consumer("c")).await.unwrap());
                }
            }
            Delivery::Rejected { why: "no".to_owned() }
        })
    }
}

#[tokio::test]
async fn what_a_forwarder_finds_out_is_not_noted_for_a_consumer_made_anew_meanwhile() {
    for is_made_anew in [false, true] {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        append_normal(&manager, &store, &router("r1"), 1).await;
        let sink = Forgetting { other: other.clone(), is_made_anew, asked: AtomicU32::new(0) };
        let forwarder = Forwarder::new(store.clone(), consumer("c"), sink);
        let refused = forwarder.open().await.unwrap().round().await;
        assert!(matches!(refused, Err(Error::ConsumerTaken { .. })), "{refused:?}");
        assert_eq!(other.dead_letters(&name()).await.unwrap(), []);
        assert_eq!(other.consumers().await.unwrap().len(), usize::from(is_made_anew));
    }
}

#[tokio::test]
async fn one_whose_progress_was_lost_with_tmpfs_goes_on_where_it_is() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 3).await;
    let mut subscription = store.subscribe(consumer("c")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    subscription.ack(items[0].position()).await.unwrap();
    wipe_progress(&manager).await;
    subscription.ack(items[1].position()).await.unwrap();
    assert_eq!(store.consumers().await.unwrap()[0].position, items[1].position());
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    assert!(matches!(other.subscribe(consumer("c")).await, Err(Error::ConsumerBusy { .. })));
}

/// A store that has not heard of it yet keeps what it knows to itself.
#[tokio::test]
async fn one_made_anew_by_another_store_is_not_moved_by_the_reader_of_the_old_one() {
    for is_wiped in [false, true] {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let all = append_normal(&manager, &store, &router("r1"), 3).await;
        let mut subscription = store.subscribe(consumer("c")).await.unwrap();
        let items = until_caught_up(&mut subscription).await;
        subscription.ack(items[2].position()).await.unwrap();
        assert!(other.forget_consumer(&name()).await.unwrap());
        let anew = other.subscribe(consumer("c")).await.unwrap();
        if is_wiped {
            wipe_progress(&manager).await;
            let done = subscription.confirm().await;
            assert!(is_taken(&done), "{done:?}");
        }
        // It writes to flash where its consumers stand.
        store.shutdown().await.unwrap();
        let listed = other.consumers().await.unwrap();
        assert_eq!(listed[0].saved, Position::START);
        drop(anew);
        assert_eq!(ids(&shown(&other, "c").await), all);
    }
}
