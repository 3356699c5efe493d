//! What the store says when tmpfs was wiped.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use nasnet_events::{Error, Expected, FlushReason, Query, TailLost};
use support::{Site, event, normal, read_ids, router, stream};

#[tokio::test]
async fn a_wiped_hot_tier_is_a_reported_loss_and_a_new_epoch() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let (flushed, synced, hot) = (normal(&manager), event(&manager, "config.applied"), normal(&manager));
    store.append(&scope, &name, Expected::Any, vec![flushed.clone()]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![synced.clone()]).await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![hot.clone()]).await.unwrap();
    assert_eq!(read_ids(&store, Query::all()).await, [flushed.id, synced.id, hot.id]);
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);

    site.wipe_hot();
    let (manager, store) = site.open().await;
    assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 1 }]);
    assert_eq!(read_ids(&store, Query::all()).await, [flushed.id, synced.id]);
    // The caller saw version 3, which is gone: the conflict says why.
    let Err(Error::Conflict(conflict)) = store.append(&scope, &name, Expected::Exact(3), vec![normal(&manager)]).await
    else {
        panic!()
    };
    assert_eq!((conflict.actual, conflict.tail_lost), (2, true));
    let receipt = store.append(&scope, &name, Expected::Exact(2), vec![normal(&manager)]).await.unwrap();
    assert_eq!((receipt.version, receipt.first.epoch, receipt.first.seq), (3, 2, 1));
    assert_eq!(read_ids(&store, Query::all()).await.len(), 3);
}

#[tokio::test]
async fn a_clean_end_is_no_loss_unless_the_store_went_on_afterwards() {
    let site = Site::new();
    for epoch in 1..=2 {
        let (manager, store) = site.open().await;
        assert_eq!(store.status().await.unwrap().epoch, epoch);
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
        drop((manager, store));
        site.wipe_hot();
    }
    let (manager, store) = site.open().await;
    assert_eq!(store.losses(), []);
    assert_eq!(read_ids(&store, Query::all()).await.len(), 2);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    // Closed cleanly, opened again on the same hot.db, and then lost.
    let (manager, store) = site.open().await;
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(store.losses(), [TailLost { epoch: 3, after_seq: 0 }]);
}

#[tokio::test]
async fn a_clean_end_needs_that_nobody_else_has_the_store_open() {
    let site = Site::new();
    let (manager, first) = site.open().await;
    let second = nasnet_events::EventStore::open(&manager, nasnet_events::EventOptions::default()).await.unwrap();
    first.shutdown().await.unwrap();
    second.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    drop((first, second));
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 0 }]);
}
