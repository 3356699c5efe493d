//! What a history says where versions are missing: that retention removed them only where it did.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::DbManager;
use nasnet_events::history::{Until, events_until};
use nasnet_events::{
    Error, EventStore, Expected, FlushReason, NewEvent, Position, Receipt, Recorded, Span, StreamAppend,
};
use support::{Site, empty_hot, event, normal, on_scope, open_with_cold, router, stream};

const DAY: Duration = Duration::from_secs(86_400);
const STREAM: &str = "vpn/1";

async fn append(store: &EventStore, event: NewEvent) -> Receipt {
    store.append(&router("r1"), &stream(STREAM), Expected::Any, vec![event]).await.unwrap()
}

/// Appends to the hot tier on top of a transaction that then rolls back: its version is never given.
async fn append_on_a_transaction_that_rolls_back(manager: &DbManager, store: &EventStore, on_top: NewEvent) {
    let inside = StreamAppend::new(stream(STREAM), Expected::Any, vec![normal(manager)]);
    let (own, database) = (store.clone(), manager.scope(&router("r1")).await.unwrap());
    let rolled_back = database
        .write(support::TEST, move |conn| {
            Box::pin(async move {
                drop(own.append_in(conn, &router("r1"), vec![inside]).await?);
                append(&own, on_top).await;
                Err::<(), _>(Error::Closed)
            })
        })
        .await;
    assert!(matches!(rolled_back, Err(Error::Closed)));
    store.resolve().await.unwrap();
}

/// Fills a segment of its own, so that those before it are not the newest.
async fn flush_another(manager: &DbManager, store: &EventStore) {
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(manager)]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
}

/// Removes Normal events, and empties the hot tier.
async fn retain(site: &Site, manager: &DbManager, store: &EventStore) -> u64 {
    store.mark_age().await.unwrap();
    site.clock.advance(10 * DAY);
    store.mark_age().await.unwrap();
    let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    empty_hot(manager).await;
    report.events
}

/// What a history tells, item by item: versions, gaps as `after..next`, and refusals.
async fn told(store: &EventStore, until: Until) -> Vec<String> {
    let item = |item: Result<Recorded, Error>| match item {
        Ok(event) => format!("{}", event.version),
        Err(Error::VersionGap { after, next, .. }) => format!("{after}..{next}"),
        Err(Error::BeyondHorizon { .. }) => "removed".to_owned(),
        Err(error) => panic!("{error}"),
    };
    match events_until(store, &router("r1"), &stream(STREAM), until).await {
        Ok(history) => history.map(item).collect().await,
        Err(error) => vec![item(Err(error))],
    }
}

const END: Until = Until::Position(Position::END);

#[tokio::test]
async fn a_version_that_was_never_given_is_no_removed_one_where_retention_has_been() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    append_on_a_transaction_that_rolls_back(&manager, &store, normal(&manager)).await;
    append(&store, normal(&manager)).await;
    store.archive().await.unwrap();
    append(&store, normal(&manager)).await;
    store.archive().await.unwrap();
    assert_eq!(retain(&site, &manager, &store).await, 2);
    // What was removed is in the archive, and the first version is nowhere because it never was.
    assert_eq!(told(&store, END).await, ["0..2", "2", "3", "4"]);
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    std::fs::rename(site.cold(), site.dir.path().join("away")).unwrap();
    assert_eq!(told(&store, END).await, ["removed"], "without the archive the rest cannot be told");
}

/// A hot tier that was lost took versions of Low events along, which the archive has.
#[tokio::test]
async fn versions_that_are_given_again_make_no_history_begin_too_late() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    append_on_a_transaction_that_rolls_back(&manager, &store, event(&manager, "metric.updated")).await;
    store.archive().await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (manager, store) = open_with_cold(&site).await;
    for version in 1..=3 {
        assert_eq!(append(&store, normal(&manager)).await.version, version);
        store.archive().await.unwrap();
    }
    assert_eq!(retain(&site, &manager, &store).await, 2);
    assert_eq!(told(&store, END).await, ["0..2", "2", "1", "2", "3"]);
    std::fs::rename(site.cold(), site.dir.path().join("away")).unwrap();
    assert_eq!(told(&store, END).await, ["removed"], "without the archive the rest cannot be told");
}

#[tokio::test]
async fn each_hole_of_a_history_is_told_as_what_it_is() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append(&store, event(&manager, "vpn.applied")).await;
    // Version 2 is rolled back, version 3 ends with the hot tier.
    append_on_a_transaction_that_rolls_back(&manager, &store, event(&manager, "metric.updated")).await;
    let ended = append(&store, event(&manager, "metric.updated")).await;
    append(&store, event(&manager, "vpn.applied")).await;
    append(&store, event(&manager, "vpn.updated")).await;
    flush_another(&manager, &store).await;
    append(&store, event(&manager, "vpn.applied")).await;
    flush_another(&manager, &store).await;
    assert_eq!(retain(&site, &manager, &store).await, 2, "version 6, and the one beside it");
    assert_eq!(told(&store, END).await, ["1", "1..5", "5", "removed", "7"]);
    // Nothing that was removed stood before the end.
    assert_eq!(told(&store, Until::Position(ended.first)).await, ["1"]);
}

#[tokio::test]
async fn what_a_damaged_segment_held_is_not_told_as_never_given() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append(&store, event(&manager, "vpn.applied")).await;
    for _ in 0..2 {
        append(&store, event(&manager, "vpn.updated")).await;
    }
    store.flush(FlushReason::Requested).await.unwrap();
    flush_another(&manager, &store).await;
    append(&store, event(&manager, "vpn.applied")).await;
    const BREAK: &str = "DROP TRIGGER event_segments_are_immutable; UPDATE event_segments SET body = x'00' \
         WHERE first_pos = (SELECT MIN(first_pos) FROM event_segments)";
    on_scope(&manager, &router("r1"), BREAK).await;
    assert_eq!(retain(&site, &manager, &store).await, 2);
    assert_eq!(told(&store, END).await, ["1", "removed", "4"]);
}
