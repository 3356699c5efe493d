//! The durability an append asks for, and what it gets.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::Scope;
use nasnet_events::{Achieved, Class, Durability, Error, EventOptions, Expected, Query};
use support::{PATIENCE, Site, event, normal, read, read_ids, router, stream};

#[tokio::test]
async fn what_was_asked_for_is_achieved_or_more() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let batched = Durability::Batched { max_delay: Duration::from_secs(60) };
    for (name, asked, achieved) in [
        ("resource.updated", Durability::Volatile, Achieved::Hot),
        ("resource.updated", batched, Achieved::Hot),
        ("resource.updated", Durability::Durable, Achieved::Synced),
        ("metric.updated", Durability::Volatile, Achieved::Hot),
        // A flush takes no Low events: the time can only be kept by writing at once.
        ("metric.updated", batched, Achieved::Synced),
        ("metric.updated", Durability::Durable, Achieved::Synced),
        // Nobody makes a Critical event less than durable.
        ("config.applied", Durability::Volatile, Achieved::Synced),
        ("config.applied", batched, Achieved::Synced),
    ] {
        for scope in [Scope::System, router("r1")] {
            let events = vec![event(&manager, name)];
            let receipt = store.append_with(&scope, &stream("s"), Expected::Any, events, asked).await.unwrap();
            assert_eq!(receipt.achieved, achieved, "{name} asked {asked:?}");
        }
    }
    // What says it is on flash is there without tmpfs; the class is what it was.
    let synced = read(&store, Query::all()).await.into_iter().filter(|event| event.synced).count();
    assert_eq!(synced, 10);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    let events = read(&store, Query::all()).await;
    assert_eq!(events.iter().filter(|event| event.synced).count(), 10);
    assert_eq!(events.iter().filter(|event| event.class == Class::Low).count(), 4);
}

#[tokio::test]
async fn a_durable_normal_event_is_not_flushed_a_second_time() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let durable = normal(&manager);
    let id = durable.id;
    store.append_with(&scope, &name, Expected::Any, vec![durable], Durability::Durable).await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(store.flush(nasnet_events::FlushReason::Requested).await.unwrap().events, 1);
    support::empty_hot(&manager).await;
    let ids = read_ids(&store, Query::all()).await;
    assert_eq!((ids.len(), ids[0]), (2, id));
}

#[tokio::test]
async fn a_durable_append_that_does_not_reach_flash_says_so() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let gone = router("unknown");
    let events = vec![normal(&manager)];
    let refused = store.append_with(&gone, &stream("s"), Expected::Any, events, Durability::Durable).await;
    let Err(Error::NotDurable { reached: None, source: Some(_) }) = refused else { panic!("{refused:?}") };

    // The database takes nothing: its table is away.
    let scope = router("r1");
    let event = normal(&manager);
    support::on_scope(&manager, &scope, "ALTER TABLE event_rows RENAME TO away").await;
    let refused =
        store.append_with(&scope, &stream("s"), Expected::Any, vec![event.clone()], Durability::Durable).await;
    assert!(matches!(&refused, Err(Error::NotDurable { reached: None, .. })), "{refused:?}");
    support::on_scope(&manager, &scope, "ALTER TABLE away RENAME TO event_rows").await;
    // Only in tmpfs: asking for more is told what was reached.
    store.append(&scope, &stream("s"), Expected::Any, vec![event.clone()]).await.unwrap();
    let refused = store.append_with(&scope, &stream("s"), Expected::Any, vec![event], Durability::Durable).await;
    assert!(matches!(&refused, Err(Error::NotDurable { reached: Some(Achieved::Hot), .. })), "{refused:?}");
    assert_eq!(read(&store, Query::all()).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promised_time_is_kept_by_the_loop() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.flush_interval = Duration::from_secs(3_600);
    let (manager, store) = site.open_with(options).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let own = store.clone();
    let running = tokio::spawn(async move { own.maintain(async move { drop(stopped.await) }).await });
    let (scope, name) = (router("r1"), stream("s"));
    // Without a promise it waits for the hour.
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    let asked = tokio::time::Instant::now();
    let promise = Durability::Batched { max_delay: Duration::from_millis(300) };
    let receipt = store.append_with(&scope, &name, Expected::Any, vec![normal(&manager)], promise).await.unwrap();
    assert_eq!(receipt.achieved, Achieved::Hot);
    let kept_after = loop {
        if store.status().await.unwrap().flushed_through >= receipt.last {
            break asked.elapsed();
        }
        assert!(asked.elapsed() < PATIENCE, "the promise was broken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(kept_after >= Duration::from_millis(250), "flushed at once, after {kept_after:?}");
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}
