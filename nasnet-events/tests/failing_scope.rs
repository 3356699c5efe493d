//! One place that fails for a while holds up nobody else, and nothing of its own is skipped.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use futures_util::StreamExt;
use nasnet_dbmanager::Scope;
use nasnet_events::{Error, EventOptions, EventStore, Expected, FlushReason, Query, StreamAppend};
use support::{Site, append_normal, empty_hot, empty_warm, normal, on_scope, open_with_cold, read_ids, router, stream};

const BREAK_SEGMENTS: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
const MEND_SEGMENTS: &str = "ALTER TABLE elsewhere RENAME TO event_segments";

async fn flushed_events(store: &EventStore, scope: &Scope) -> u64 {
    let warm = store.status().await.unwrap().warm;
    warm.into_iter().flatten().find(|status| status.scope == *scope).unwrap().segments.events
}

#[tokio::test]
async fn a_router_that_takes_no_segment_keeps_no_other_from_flash() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut ids = append_normal(&manager, &store, &router("r2"), 1).await;
    // More than one step of a flush.
    for _ in 0..3 {
        ids.extend(append_normal(&manager, &store, &router("r1"), 3_000).await);
        ids.extend(append_normal(&manager, &store, &router("r2"), 1).await);
    }
    on_scope(&manager, &router("r2"), BREAK_SEGMENTS).await;
    for _ in 0..2 {
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert!(matches!(&report.failed[..], [(Some(scope), _)] if *scope == router("r2")), "{report:?}");
        assert_eq!(report.through.seq, 0, "nothing is claimed for the router that failed");
        assert_eq!(flushed_events(&store, &router("r1")).await, 9_000);
    }

    on_scope(&manager, &router("r2"), MEND_SEGMENTS).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!((report.events, report.through), (4, store.status().await.unwrap().end));
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn a_router_that_takes_no_segment_keeps_no_other_from_the_archive() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let failing = append_normal(&manager, &store, &router("r2"), 2).await;
    let others = append_normal(&manager, &store, &router("r1"), 2).await;
    on_scope(&manager, &router("r2"), BREAK_SEGMENTS).await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.is_empty()), (2, false), "{report:?}");
    on_scope(&manager, &router("r2"), MEND_SEGMENTS).await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (2, 0), "{report:?}");
    empty_hot(&manager).await;
    for scope in [router("r1"), router("r2")] {
        empty_warm(&manager, &scope).await;
    }
    assert_eq!(read_ids(&store, Query::all()).await, [failing, others].concat());
}

#[tokio::test]
async fn what_could_not_be_read_for_the_archive_is_archived_later_and_not_skipped() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let scope = router("r1");
    let mut ids = Vec::new();
    let durable = support::event(&manager, "config.applied");
    ids.push(durable.id);
    store.append(&scope, &stream("s"), Expected::Any, vec![durable]).await.unwrap();
    empty_hot(&manager).await;
    ids.extend(append_normal(&manager, &store, &scope, 1).await);

    on_scope(&manager, &scope, "ALTER TABLE event_rows RENAME TO elsewhere").await;
    let report = store.archive().await.unwrap();
    assert!(!report.failed.is_empty(), "{report:?}");
    on_scope(&manager, &scope, "ALTER TABLE elsewhere RENAME TO event_rows").await;
    let report = store.archive().await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    empty_hot(&manager).await;
    empty_warm(&manager, &scope).await;
    assert_eq!(read_ids(&store, Query::scope(scope)).await, ids);
}

#[tokio::test]
async fn a_cold_file_that_cannot_be_opened_hides_no_other() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let ids = append_normal(&manager, &store, &router("r1"), 3).await;
    store.archive().await.unwrap();
    empty_hot(&manager).await;
    empty_warm(&manager, &router("r1")).await;
    let dangling = site.cold().join("r1/events-2020-01.jsonl.zst");
    std::os::unix::fs::symlink(site.dir.path().join("nowhere"), &dangling).unwrap();
    let items: Vec<_> = store.read(Query::all()).collect().await;
    let found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect();
    assert_eq!(found, ids);
    assert!(matches!(items.iter().find_map(|item| item.as_ref().err()), Some(Error::Io { .. })), "{items:?}");
    assert_eq!(store.status().await.unwrap().cold.events, 3);
}

#[tokio::test]
async fn the_loop_writes_no_segment_for_every_append_while_a_router_takes_none() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r2"), 2_000).await;
    on_scope(&manager, &router("r2"), BREAK_SEGMENTS).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let own = store.clone();
    let worker = tokio::spawn(async move {
        own.maintain(async {
            drop(stopped.await);
        })
        .await
    });
    for _ in 0..100 {
        append_normal(&manager, &store, &router("r1"), 1).await;
        // Takes longer than a flush, so that the loop has its turn.
        store.status().await.unwrap();
    }
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    on_scope(&manager, &router("r2"), MEND_SEGMENTS).await;
    let warm = store.status().await.unwrap().warm;
    let status = warm.into_iter().flatten().find(|status| status.scope == router("r1")).unwrap();
    assert_eq!(status.segments.events, 100);
    assert!(status.segment_count < 10, "{} segments", status.segment_count);
}

#[tokio::test]
async fn an_open_transaction_of_one_router_hides_no_event_of_another() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let append_to_r2 = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let pending = support::transaction(&manager, &store, &router("r2"), vec![append_to_r2], true).await.unwrap();
    let ids = append_normal(&manager, &store, &router("r1"), 2).await;
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, ids);
    assert_eq!(read_ids(&store, Query::scopes([router("r1"), router("r2")])).await, []);
    assert_eq!(read_ids(&store, Query::all()).await, []);
    store.published(pending).await;
    assert_eq!(read_ids(&store, Query::all()).await.len(), 3);
}

/// "Gaps that stall subscribers": a reservation nobody can resolve must not hide the events of everybody else for ever.
#[tokio::test]
async fn gaps_that_stall_subscribers_a_broken_router_keeps_no_other_from_being_read() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.stall_after = std::time::Duration::ZERO;
    let (manager, store) = site.open_with(options).await;
    let append_to_r2 = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let pending = support::transaction(&manager, &store, &router("r2"), vec![append_to_r2], true).await.unwrap();
    // The database breaks before anybody hears of the commit.
    on_scope(&manager, &router("r2"), "ALTER TABLE event_rows RENAME TO elsewhere").await;
    drop(pending);
    let ids = append_normal(&manager, &store, &router("r1"), 2).await;
    store.resolve().await.unwrap();

    let items: Vec<_> = store.read(Query::all()).collect().await;
    let found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect();
    assert_eq!(found, ids);
    let gap = items.iter().find_map(|item| item.as_ref().err()).unwrap();
    assert!(matches!(gap, Error::Unreadable { scope, .. } if *scope == router("r2")), "{gap:?}");
    assert_eq!(store.status().await.unwrap().unresolved, 1);
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.through), (2, store.status().await.unwrap().end));

    on_scope(&manager, &router("r2"), "ALTER TABLE elsewhere RENAME TO event_rows").await;
    store.resolve().await.unwrap();
    assert_eq!(read_ids(&store, Query::all()).await.len(), 3, "nothing of the broken router is lost");
    assert_eq!(store.status().await.unwrap().unresolved, 0);
}

#[tokio::test]
async fn an_unresolved_transaction_of_one_router_keeps_no_other_from_flash_or_archive() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let append_to_r2 = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let pending = support::transaction(&manager, &store, &router("r2"), vec![append_to_r2], true).await.unwrap();
    append_normal(&manager, &store, &router("r1"), 3).await;
    let later = append_normal(&manager, &store, &router("r2"), 1).await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.through.seq), (3, 0), "of r2 nothing past its open transaction");
    assert_eq!(flushed_events(&store, &router("r1")).await, 3);
    store.published(pending).await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (2, 0));
    assert_eq!(read_ids(&store, Query::scope(router("r2"))).await[1..], later);
}
