//! A scope that is behind with its flushes: it holds nobody else up, and nothing of it is taken for flushed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, RouterId, Scope};
use nasnet_events::{
    Error, EventOptions, EventStore, Expected, FlushReason, Position, Query, Span, TruncatedBy, evidence,
};
use support::{Site, append_normal, empty_hot, on_hot, on_scope, read_ids, router, stream};

const BREAK_SEGMENTS: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
const MEND_SEGMENTS: &str = "ALTER TABLE elsewhere RENAME TO event_segments";

async fn close(manager: DbManager, store: EventStore) {
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

fn id(name: &str) -> RouterId {
    RouterId::parse(name).unwrap()
}

#[tokio::test]
async fn a_retired_router_keeps_nobody_from_flash_and_what_it_takes_along_is_told() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 3).await;
    let kept = append_normal(&manager, &store, &router("r2"), 2).await;
    manager.retire(&id("r1")).await.unwrap();
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    let status = store.status().await.unwrap();
    assert_eq!((report.given_up, report.through, status.unflushed), (3, status.end, 0));
    assert_eq!(store.flush(FlushReason::Requested).await.unwrap().given_up, 0, "once");
    let told = store.truncated(Position::START).await.unwrap();
    let [removed] = &told[..] else { panic!("{told:?}") };
    assert_eq!((removed.events, removed.lost, &removed.by), (3, 3, &TruncatedBy::Retired));
    assert_eq!(removed.scope, Some(router("r1")));

    // Everything is accounted for: the end of the hot tier is clean.
    close(manager, store).await;
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(store.losses(), []);
    assert_eq!(read_ids(&store, Query::scope(router("r2"))).await, kept);
    assert_eq!(store.truncated(Position::START).await.unwrap(), told, "and told after the next boot");
}

#[tokio::test]
async fn a_router_that_is_set_aside_is_behind_alone() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    let mut kept = append_normal(&manager, &store, &router("r2"), 1).await;
    manager.quarantine(&id("r1"), "told by a test").await.unwrap();
    for _ in 0..2 {
        kept.extend(append_normal(&manager, &store, &router("r2"), 1).await);
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert!(matches!(&report.failed[..], [(Some(scope), _)] if *scope == router("r1")), "{report:?}");
        assert_eq!(report.until, store.status().await.unwrap().end, "the others are flushed");
    }
    let status = store.status().await.unwrap();
    assert_eq!(status.flushed_through.seq, 0);
    assert_eq!(status.flushed_behind, [(router("r1"), Position::new(status.epoch, 0))]);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(router("r2"))).await, kept);
}

#[tokio::test]
async fn what_a_scope_has_on_flash_goes_in_time_and_what_another_lacks_stays() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.hot_keep = Duration::from_secs(60);
    let (manager, store) = site.open_with(options).await;
    let (healthy, broken) = (router("r1"), router("r2"));
    let (mut all, mut lacking) = (Vec::new(), append_normal(&manager, &store, &broken, 1).await);
    on_scope(&manager, &broken, BREAK_SEGMENTS).await;
    for _ in 0..3 {
        all.extend(append_normal(&manager, &store, &healthy, 40).await);
        lacking.extend(append_normal(&manager, &store, &broken, 40).await);
        store.flush(FlushReason::Requested).await.unwrap();
    }
    site.clock.advance(Duration::from_secs(3_600));
    append_normal(&manager, &store, &Scope::System, 1).await;
    let before = store.status().await.unwrap().hot.bytes;
    store.expire().await.unwrap();
    let status = store.status().await.unwrap();
    assert!(status.hot.bytes < before / 3 * 2, "{} of {before} bytes are left", status.hot.bytes);
    assert_eq!((status.shed, status.lost), (0, 0));
    assert_eq!(read_ids(&store, Query::scope(healthy.clone())).await, all);

    // It is caught up with, behind what the others have flushed long since.
    on_scope(&manager, &broken, MEND_SEGMENTS).await;
    assert_eq!(read_ids(&store, Query::scope(broken.clone())).await, lacking);
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len(), report.through), (122, 0, status.end), "{report:?}");
    let status = store.status().await.unwrap();
    assert_eq!((status.flushed_behind.len(), status.unflushed), (0, 0));
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(broken)).await, lacking);
    assert_eq!(read_ids(&store, Query::scope(healthy)).await, all);
    close(manager, store).await;
}

#[tokio::test]
async fn the_loss_of_a_tail_is_not_larger_than_it_is_because_a_scope_caught_up_late() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r2"), 1).await;
    on_scope(&manager, &router("r2"), BREAK_SEGMENTS).await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    store.flush(FlushReason::Requested).await.unwrap();
    on_scope(&manager, &router("r2"), MEND_SEGMENTS).await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!(report.through.seq, 3);
    append_normal(&manager, &store, &router("r1"), 1).await;
    drop(store);
    manager.shutdown().await.unwrap();
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    let losses = store.losses();
    assert_eq!(losses.iter().map(|lost| lost.after_seq).collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn what_stands_where_others_stood_in_a_number_used_twice_is_not_taken_for_flushed() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    append_normal(&manager, &store, &scope, 5).await;
    store.flush(FlushReason::Requested).await.unwrap();
    close(manager, store).await;
    site.wipe_hot();
    // As after an older system.db came back: the new hot tier gets the number of the lost one.
    let manager = site.manager().await;
    on_hot(&manager, "INSERT INTO hot_meta (one, epoch) VALUES (1, 1)").await;
    let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    append_normal(&manager, &store, &scope, 3).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    let [(Some(failed), Error::Corrupt { .. })] = &report.failed[..] else { panic!("{report:?}") };
    assert_eq!((failed, report.through.seq), (&scope, 0));
    assert_eq!(store.status().await.unwrap().unflushed, 3, "nobody says they are on flash");
}

#[tokio::test]
async fn a_number_that_events_have_is_never_given_to_another_hot_tier() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (flushed, durable) = (router("r1"), router("r2"));
    let mut ids = append_normal(&manager, &store, &flushed, 3).await;
    store.flush(FlushReason::Requested).await.unwrap();
    close(manager, store).await;
    site.wipe_hot();
    let (manager, store) = site.open().await;
    assert_eq!(store.status().await.unwrap().epoch, 2);
    let applied = support::event(&manager, "config.applied");
    ids.push(applied.id);
    store.append(&durable, &stream("s"), Expected::Any, vec![applied]).await.unwrap();
    close(manager, store).await;
    // An older system.db comes back, into a fleet whose manager was not told of the counter.
    site.wipe_hot();
    let manager = site.manager().await;
    let older = "DROP TRIGGER counters_never_shrink;
        UPDATE counters SET value = 0 WHERE name = 'event_epoch'; DELETE FROM event_epochs";
    on_scope(&manager, &Scope::System, older).await;
    let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    assert_eq!(store.status().await.unwrap().epoch, 3);
    for scope in [&flushed, &durable] {
        ids.extend(append_normal(&manager, &store, scope, 2).await);
        let applied = support::event(&manager, "config.applied");
        ids.push(applied.id);
        store.append(scope, &stream("s"), Expected::Any, vec![applied]).await.unwrap();
    }
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (4, 0), "{report:?}");
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn evidence_of_a_router_does_not_wait_for_another() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    append_normal(&manager, &store, &router("r2"), 1).await;
    manager.quarantine(&id("r1"), "told by a test").await.unwrap();
    let bundle = evidence::export(&store, Span::scope(router("r2")), Vec::new()).await.unwrap();
    assert!(store.has_issued(bundle.head()));
    assert_eq!(bundle.verify(bundle.head()).unwrap().events, 1);
    assert!(evidence::export(&store, Span::scope(router("r1")), Vec::new()).await.is_err());
}
