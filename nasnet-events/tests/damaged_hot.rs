//! A hot.db with a damaged page, met while it is used: whoever meets it is told, what is lost is told once, and appends go on.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::os::unix::fs::FileExt;

use futures_util::StreamExt;
use nasnet_dbmanager::DbManager;
use nasnet_events::{EventStore, Expected, FlushReason, Item, Query, TailLost};
use support::watch::{consumer, next, until_caught_up};
use support::{Site, event, large, normal, read_ids, router, stream};

const PAGE: usize = 4096;

/// Appends so much that not all of it is in the caches of the connections; returns the last number.
async fn fill(manager: &DbManager, store: &EventStore) -> u64 {
    let mut last = 0;
    for _ in 0..64 {
        let events = (0..16).map(|_| large(manager, "resource.updated", 1_000)).collect();
        last = store.append(&router("r1"), &stream("s"), Expected::Any, events).await.unwrap().last.seq;
    }
    last
}

/// Overwrites pages in the middle of the file.
async fn damage(manager: &DbManager) {
    let hot = manager.hot();
    hot.checkpoint().await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(hot.path()).unwrap();
    let page_bytes = PAGE as u64;
    let pages = file.metadata().unwrap().len() / page_bytes;
    for page in pages / 8..pages * 7 / 8 {
        file.write_all_at(&[0xFF; PAGE], page * page_bytes).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_page_that_a_read_meets_is_told_and_appends_go_on_in_a_new_incarnation() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let kept = store
        .append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager), event(&manager, "metric.updated")])
        .await
        .unwrap();
    let durable = event(&manager, "config.applied");
    let durable_id = durable.id;
    store.append(&router("r2"), &stream("s"), Expected::Any, vec![durable]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await.len(), 3);
    let last = fill(&manager, &store).await;
    damage(&manager).await;

    let items: Vec<_> = store.read(Query::all()).collect().await;
    let error = items.iter().find_map(|item| item.as_ref().err()).unwrap();
    assert!(error.to_string().contains("damaged") || error.to_string().contains("malformed"), "{error}");

    // The next call begins the new incarnation by itself.
    let after = normal(&manager);
    let after_id = after.id;
    let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![after]).await.unwrap();
    assert_eq!((receipt.first.epoch, receipt.first.seq), (2, 1));
    let [TailLost { epoch: 1, after_seq }] = store.losses()[..] else { panic!("{:?}", store.losses()) };
    assert!(after_seq >= kept.last.seq && after_seq < last, "{after_seq}");
    let found = read_ids(&store, Query::all()).await;
    assert!(found.contains(&durable_id) && found.contains(&after_id), "what is on flash is there: {found:?}");
    let mut losses = 0;
    loop {
        match next(&mut subscription).await {
            Item::TailLost { lost, .. } => losses += u32::from(lost.epoch == 1),
            Item::Event(event) if event.id == after_id => break,
            _ => {}
        }
    }
    assert_eq!(losses, 1);
    // The file in its place is whole: the store opens again, and nothing more is lost.
    drop(subscription);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((store, manager));
    let (_manager, store) = site.open().await;
    assert_eq!((store.losses().len(), read_ids(&store, Query::all()).await), (1, found));
}

#[tokio::test]
async fn an_append_that_meets_the_damage_goes_to_the_new_incarnation() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    fill(&manager, &store).await;
    damage(&manager).await;
    // Appends touch the newest pages alone, flushes and reads the others; whichever meets it first, appends go on.
    let mut epochs = Vec::new();
    for _ in 0..40 {
        drop(store.flush(FlushReason::Requested).await);
        let event = normal(&manager);
        let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
        epochs.push(receipt.first.epoch);
    }
    assert_eq!(epochs.last(), Some(&2), "{epochs:?}");
    assert_eq!(store.losses().len(), 1);
    assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
}
