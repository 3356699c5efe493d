//! After a router came back from a backup, the durable events that survive elsewhere are rows of it again.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{
    DbManager, Manifest, ManualClock, NewRouter, OnDamage, Recovery, Replayed, RestoreMode, RouterId, Scope, Which,
};
use nasnet_events::{
    ColdOptions, Error, EventOptions, EventReplay, EventStore, Expected, FlushReason, Item, Position, Query, Span,
    StreamAppend, Truncated, TruncatedBy, prepare_cold_dir,
};
use support::watch::{consumer, ids, last, until_caught_up};
use support::{Site, append_in, append_normal, empty_hot, event, on_scope, options, read_ids, router, stream};
use ulid::Ulid;

fn home() -> RouterId {
    RouterId::parse("r1").unwrap()
}

async fn open(site: &Site) -> (DbManager, EventStore) {
    open_at(site.dir.path(), site.clock.clone()).await
}

async fn open_at(dir: &Path, clock: ManualClock) -> (DbManager, EventStore) {
    let mut options = options(dir);
    options.clock = Arc::new(clock);
    options.on_damage = OnDamage::Recover;
    let cold_dir = dir.join("cold");
    let cold = ColdOptions::new(&cold_dir).allow_same_device();
    options.replays = vec![Arc::new(EventReplay::new().cold(cold.clone()))];
    let manager = DbManager::open(options).await.unwrap();
    for id in ["r1", "r2"] {
        manager.create_router(NewRouter::new(RouterId::parse(id).unwrap())).await.ok();
    }
    prepare_cold_dir(&manager, &cold_dir).unwrap();
    let store = EventStore::open(&manager, EventOptions::default().cold(cold)).await.unwrap();
    (manager, store)
}

/// Appends durable events to one stream of both routers; returns the ids of the first.
async fn append(manager: &DbManager, store: &EventStore, count: usize) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for _ in 0..count {
        for name in ["r1", "r2"] {
            let events = vec![event(manager, "resource.deleted")];
            if name == "r1" {
                ids.push(events[0].id);
            }
            let append = StreamAppend::new(stream("resource/wg0"), Expected::Any, events);
            append_in(manager, store, &router(name), vec![append]).await.unwrap();
        }
    }
    ids
}

async fn rows(manager: &DbManager, name: &str) -> Vec<Ulid> {
    let database = manager.scope(&router(name)).await.unwrap();
    let ids: Result<Vec<Vec<u8>>, Error> = database
        .read(support::TEST, |conn| {
            Box::pin(async move {
                Ok(sqlx::query_scalar("SELECT event_id FROM event_rows ORDER BY pos").fetch_all(conn).await?)
            })
        })
        .await;
    ids.unwrap().into_iter().map(|id| Ulid::from_bytes(id.try_into().unwrap())).collect()
}

async fn restore(manager: &DbManager, manifest: &Manifest) -> Replayed {
    let report = manager.restore(manifest, RestoreMode::Router(home())).await.unwrap();
    let [restored] = <[_; 1]>::try_from(report.restored).unwrap();
    let [replayed] = <[_; 1]>::try_from(restored.replayed).unwrap();
    assert_eq!((&*replayed.what, &replayed.failed), ("events", &None), "{replayed:?}");
    replayed
}

async fn lose(manager: &DbManager, site: &Site) {
    let dir = site.data().join("routers/r1");
    fs::remove_dir_all(&dir).unwrap();
    manager.quarantine(&home(), "told by a test").await.unwrap();
}

async fn recovered(manager: &DbManager) -> Replayed {
    match manager.recover(&home()).await.unwrap() {
        Recovery::Replaced { lost, .. } => <[_; 1]>::try_from(lost.replayed).unwrap()[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_router_comes_back_from_its_backup_with_the_events_that_came_later() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = append(&manager, &store, 3).await;
    manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    ids.extend(append(&manager, &store, 4).await);
    lose(&manager, &site).await;
    let replayed = recovered(&manager).await;
    assert_eq!((replayed.replayed, replayed.refused, replayed.complete), (4, 0, true), "{replayed:?}");
    assert!(replayed.detail.contains("4 from the hot tier"), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, ids);
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, ids, "and each is read once");
    // The streams go on where they were, not where the backup was.
    ids.extend(append(&manager, &store, 2).await);
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, ids);
    assert_eq!(rows(&manager, "r2").await.len(), 9);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_hot_tier_they_come_from_the_file_that_is_replaced() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = append(&manager, &store, 3).await;
    let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    ids.extend(append(&manager, &store, 300).await);
    empty_hot(&manager).await;
    let replayed = restore(&manager, &manifest).await;
    assert_eq!((replayed.replayed, replayed.complete), (300, true), "{replayed:?}");
    assert!(replayed.detail.contains("300 from the replaced database"), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, ids);
    // Once more: what is there stays, and nothing is there twice.
    let again = restore(&manager, &manifest).await;
    assert_eq!((again.replayed, again.refused), (300, 0), "{again:?}");
    assert_eq!(rows(&manager, "r1").await, ids);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

/// What was sealed since the backup is no row any more, and its body is in an annex of the replaced database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_since_the_backup_comes_from_the_file_that_is_replaced_too() {
    for loses_annexes in [false, true] {
        let site = Site::new();
        let (manager, store) = open(&site).await;
        let mut ids = append(&manager, &store, 3).await;
        let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
        let later: Vec<_> = (0..60).map(|_| support::large(&manager, "config.applied", 400)).collect();
        ids.extend(later.iter().map(|event| event.id));
        let later = StreamAppend::new(stream("resource/wg1"), Expected::Any, later);
        append_in(&manager, &store, &router("r1"), vec![later]).await.unwrap();
        site.clock.advance(Duration::from_secs(25 * 60 * 60));
        let sealed = store.seal().await.unwrap();
        assert!(sealed.failed.is_empty() && sealed.events >= 60, "{sealed:?}");
        ids.extend(append(&manager, &store, 2).await);
        empty_hot(&manager).await;
        if loses_annexes {
            fs::remove_dir_all(site.data().join("routers/r1/router-r1.annex")).unwrap();
        }
        let replayed = restore(&manager, &manifest).await;
        if loses_annexes {
            assert!(!replayed.complete && replayed.detail.contains("may be missing"), "{replayed:?}");
            continue;
        }
        assert_eq!((replayed.replayed, replayed.complete), (62, true), "{replayed:?}");
        assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, ids);
        assert!(store.verify(nasnet_events::Span::all()).await.unwrap().is_sound());
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_neither_they_come_from_the_archive_and_what_may_be_missing_is_told() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = append(&manager, &store, 2).await;
    manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    ids.extend(append(&manager, &store, 3).await);
    store.archive().await.unwrap();
    let unarchived = append(&manager, &store, 1).await;
    empty_hot(&manager).await;
    lose(&manager, &site).await;
    let replayed = recovered(&manager).await;
    assert_eq!((replayed.replayed, replayed.complete), (3, false), "{replayed:?}");
    assert!(replayed.detail.contains("may be missing"), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, ids);
    assert!(!ids.contains(&unarchived[0]));
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_is_left_out_and_what_the_stream_has_since_is_kept() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let first = append(&manager, &store, 2).await;
    let manifest = manager.backup(Which::Router(home()), site.dir.path().join("backup")).await.unwrap();
    let later = append(&manager, &store, 3).await;
    let scope: Scope = router("r1");
    on_scope(
        &manager,
        &scope,
        "DROP TRIGGER event_rows_are_immutable; UPDATE event_rows SET wall_ms = 1 WHERE version = 4",
    )
    .await;
    empty_hot(&manager).await;
    let replayed = restore(&manager, &manifest).await;
    assert_eq!((replayed.replayed, replayed.complete), (2, false), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, [first[0], first[1], later[0], later[2]]);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_flushed_after_the_backup_is_flushed_again_while_the_hot_tier_has_it() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let scope = router("r1");
    let normal = async |count: usize| {
        let events: Vec<_> = (0..count).map(|_| event(&manager, "resource.updated")).collect();
        let ids: Vec<Ulid> = events.iter().map(|event| event.id).collect();
        store.append(&scope, &stream("s"), Expected::Any, events).await.unwrap();
        store.flush(nasnet_events::FlushReason::Requested).await.unwrap();
        ids
    };
    let mut ids = append(&manager, &store, 1).await;
    ids.extend(normal(3).await);
    manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    ids.extend(normal(4).await);
    ids.extend(normal(2).await);
    lose(&manager, &site).await;
    let replayed = recovered(&manager).await;
    assert!(replayed.complete, "{replayed:?}");
    assert_eq!(store.status().await.unwrap().flushed_behind.len(), 1);
    let report = store.flush(nasnet_events::FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (6, 0), "{report:?}");
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(scope.clone())).await, ids);

    // What the hot tier has let go is told as missing.
    lose(&manager, &site).await;
    let replayed = recovered(&manager).await;
    assert!(!replayed.complete && replayed.detail.contains("flushed ones"), "{replayed:?}");
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

/// Others have claimed that everything up to there is on flash, and it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_flushed_again_before_the_power_failed_is_told_as_lost() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let flushed = async |scope: &str| {
        let events = vec![event(&manager, "resource.updated")];
        let receipt = store.append(&router(scope), &stream("s"), Expected::Any, events).await.unwrap();
        store.flush(nasnet_events::FlushReason::Requested).await.unwrap();
        receipt.last.seq
    };
    append(&manager, &store, 1).await;
    let kept = flushed("r1").await;
    manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    flushed("r1").await;
    let claimed = flushed("r2").await;
    assert!(claimed > kept);
    lose(&manager, &site).await;
    let replayed = recovered(&manager).await;
    assert!(replayed.complete, "{replayed:?}");
    manager.shutdown().await.unwrap();
    drop((store, manager));
    site.wipe_hot();
    let (manager, store) = open(&site).await;
    assert_eq!(store.losses().last().map(|lost| lost.after_seq), Some(kept));
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_events_of_any_class_come_back_from_the_archive() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = append(&manager, &store, 1).await;
    manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    for kind in ["resource.updated", "metric.updated"] {
        let events = vec![event(&manager, kind)];
        ids.push(events[0].id);
        let append = StreamAppend::new(stream("resource/wg0"), Expected::Any, events);
        append_in(&manager, &store, &router("r1"), vec![append]).await.unwrap();
    }
    store.archive().await.unwrap();
    empty_hot(&manager).await;
    lose(&manager, &site).await;
    assert_eq!(recovered(&manager).await.replayed, 2);
    assert_eq!(rows(&manager, "r1").await, ids);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

async fn close(manager: DbManager, store: EventStore) {
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

/// Appends Normal events to one router and flushes them.
async fn flushed(manager: &DbManager, store: &EventStore, count: usize) -> Vec<Ulid> {
    let ids = append_normal(manager, store, &router("r1"), count).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    ids
}

fn told(items: &[Item]) -> Vec<Truncated> {
    let removed = |item: &Item| match item {
        Item::Truncated { removed, .. } => Some(removed.clone()),
        _ => None,
    };
    items.iter().filter_map(removed).collect()
}

/// What the consumer `late` has not seen yet, which it acknowledges.
async fn caught_up(store: &EventStore) -> Vec<Item> {
    let mut subscription = store.subscribe(consumer("late")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    if !items.is_empty() {
        subscription.ack(last(&items)).await.unwrap();
    }
    subscription.close().await.unwrap();
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_a_restore_is_there_when_it_is_undone() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut all = append(&manager, &store, 2).await;
    let mut normal = flushed(&manager, &store, 2).await;
    let manifest = manager.backup(Which::Router(home()), site.dir.path().join("backup")).await.unwrap();
    all.extend(append(&manager, &store, 3).await);
    normal.extend(flushed(&manager, &store, 3).await);
    let report = manager.restore(&manifest, RestoreMode::Router(home())).await.unwrap();
    let safety = report.restored[0].safety.clone().unwrap();
    all.extend(append(&manager, &store, 4).await);
    normal.extend(flushed(&manager, &store, 4).await);
    let replayed = manager.undo_restore(&home(), &safety).await.unwrap();
    let [replayed] = &replayed[..] else { panic!("{replayed:?}") };
    assert_eq!((replayed.replayed, replayed.refused, replayed.complete), (4, 0, true), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, all);
    assert_eq!(store.status().await.unwrap().flushed_behind.len(), 1);
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (4, 0), "{report:?}");
    // And what has left the hot tier is brought back from the database that is replaced, the other way round, too.
    all.extend(append(&manager, &store, 1).await);
    empty_hot(&manager).await;
    let replayed = manager.undo_restore(&home(), &safety).await.unwrap();
    assert!(replayed[0].detail.contains("1 from the replaced database"), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, all);
    manager.undo_restore(&home(), &safety).await.unwrap();
    let mut found = read_ids(&store, Query::scope(router("r1"))).await;
    all.extend(normal);
    found.sort();
    all.sort();
    assert_eq!(found, all, "each once");
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    assert_eq!(store.truncated(Position::START).await.unwrap(), []);
    close(manager, store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_any_more_when_a_restore_is_undone_is_told_once() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    append(&manager, &store, 2).await;
    let manifest = manager.backup(Which::Router(home()), site.dir.path().join("backup")).await.unwrap();
    let report = manager.restore(&manifest, RestoreMode::Router(home())).await.unwrap();
    let safety = report.restored[0].safety.clone().unwrap();
    caught_up(&store).await;
    flushed(&manager, &store, 3).await;
    empty_hot(&manager).await;
    let replayed = manager.undo_restore(&home(), &safety).await.unwrap();
    assert!(!replayed[0].complete && replayed[0].detail.contains("flushed ones"), "{replayed:?}");
    let seen = append(&manager, &store, 1).await;
    let items = caught_up(&store).await;
    assert_eq!(told(&items).iter().map(|told| &told.by).collect::<Vec<_>>(), [&TruncatedBy::Restored], "{items:?}");
    assert_eq!(ids(&items)[..1], seen);
    assert_eq!(caught_up(&store).await.len(), 0);
    close(manager, store).await;
}

/// Closes the fleet, and opens it with an older file of the router in the place of the one it had; `later` is what was
/// done in between.
async fn adopted<T>(
    site: &Site,
    (manager, store): (DbManager, EventStore),
    later: impl AsyncFnOnce(&DbManager, &EventStore) -> T,
) -> (DbManager, EventStore, T) {
    close(manager, store).await;
    let (file, copy) = (site.data().join("routers/r1/router-r1.db"), site.dir.path().join("copy.db"));
    fs::copy(&file, &copy).unwrap();
    let (manager, store) = open(site).await;
    let done = later(&manager, &store).await;
    // As it is when the process ends at once.
    drop(store);
    manager.shutdown().await.unwrap();
    fs::rename(&copy, &file).unwrap();
    let (manager, store) = open(site).await;
    (manager, store, done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_put_in_place_from_outside_gets_what_the_hot_tier_has_of_what_it_lacks() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut all = append(&manager, &store, 2).await;
    all.extend(flushed(&manager, &store, 2).await);
    caught_up(&store).await;
    let (manager, store, (durable, normal)) = adopted(&site, (manager, store), async |manager, store| {
        (append(manager, store, 3).await, flushed(manager, store, 4).await)
    })
    .await;
    manager.router(&home()).await.unwrap();
    let [adopted] = &manager.external_restores()[..] else { panic!() };
    let [replayed] = &adopted.replayed[..] else { panic!("{adopted:?}") };
    assert_eq!((replayed.replayed, replayed.complete), (3, true), "{replayed:?}");
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (4, 0), "{report:?}");
    assert_eq!(rows(&manager, "r1").await, [&all[..2], &durable].concat());
    empty_hot(&manager).await;
    all.extend(durable);
    all.extend(normal);
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, all);
    let items = caught_up(&store).await;
    let own: Vec<Ulid> = ids(&items).into_iter().filter(|id| all.contains(id)).collect();
    assert_eq!((&own[..], told(&items).len()), (&all[4..], 0), "{items:?}");
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    close(manager, store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_put_in_place_from_outside_lacks_for_good_is_told_once() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let all = append(&manager, &store, 2).await;
    caught_up(&store).await;
    let (manager, store, ()) = adopted(&site, (manager, store), async |manager, store| {
        append(manager, store, 3).await;
        flushed(manager, store, 4).await;
        empty_hot(manager).await;
    })
    .await;
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, all);
    let [adopted] = &manager.external_restores()[..] else { panic!() };
    assert!(!adopted.replayed[0].complete, "{adopted:?}");
    let later = append(&manager, &store, 1).await;
    let items = caught_up(&store).await;
    let [removed] = &told(&items)[..] else { panic!("{items:?}") };
    assert_eq!((&removed.by, &removed.scope, removed.events), (&TruncatedBy::Restored, &Some(router("r1")), 0));
    let own: Vec<Ulid> = read_ids(&store, Query::scope(router("r1"))).await;
    assert_eq!(own, [all, later].concat());
    assert_eq!(caught_up(&store).await.len(), 0);
    assert_eq!(store.truncated(Position::START).await.unwrap(), std::slice::from_ref(removed));
    close(manager, store).await;
}

/// The flush itself is the first to open it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_meets_a_file_put_in_place_from_outside_passes_over_nothing() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut all = flushed(&manager, &store, 2).await;
    let (manager, store, later) = adopted(&site, (manager, store), async |manager, store| {
        let mut later = flushed(manager, store, 4).await;
        later.extend(append_normal(manager, store, &router("r1"), 3).await);
        later
    })
    .await;
    all.extend(later);
    let report = store.flush(FlushReason::Requested).await.unwrap();
    let [(Some(scope), error)] = &report.failed[..] else { panic!("{report:?}") };
    assert!(*scope == router("r1") && error.is_retryable() && report.events == 0, "{report:?}");
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (7, 0), "{report:?}");
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, all);
    close(manager, store).await;
}

/// The archive comes back with older events of the same versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_version_another_has_is_told_as_removed() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut all = append(&manager, &store, 2).await;
    let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    all.extend(append(&manager, &store, 3).await);
    store.archive().await.unwrap();
    let away = site.dir.path().join("away");
    fs::rename(site.cold(), &away).unwrap();
    empty_hot(&manager).await;
    lose(&manager, &site).await;
    assert_eq!(recovered(&manager).await.replayed, 0);
    close(manager, store).await;
    let (manager, store) = open(&site).await;
    caught_up(&store).await;
    let again = append(&manager, &store, 1).await;
    empty_hot(&manager).await;
    fs::remove_dir_all(site.cold()).unwrap();
    fs::rename(&away, site.cold()).unwrap();
    let replayed = restore(&manager, &manifest).await;
    assert_eq!((replayed.replayed, replayed.refused), (3, 1), "{replayed:?}");
    assert_eq!(rows(&manager, "r1").await, all);
    let removed = told(&caught_up(&store).await);
    let [removed] = &removed[..] else { panic!("{removed:?}") };
    assert_eq!((removed.events, &removed.by), (1, &TruncatedBy::Restored));
    assert!(!read_ids(&store, Query::scope(router("r1"))).await.contains(&again[0]));
    close(manager, store).await;
}

/// What a retired router had on flash is as gone for consumers as what had not got there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_retired_router_has_on_flash_is_told_to_whoever_has_not_seen_it() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    flushed(&manager, &store, 2).await;
    caught_up(&store).await;
    append(&manager, &store, 2).await;
    flushed(&manager, &store, 3).await;
    append_normal(&manager, &store, &router("r1"), 4).await;
    append(&manager, &store, 1).await;
    manager.retire(&home()).await.unwrap();
    assert_eq!(store.flush(FlushReason::Requested).await.unwrap().given_up, 4);
    empty_hot(&manager).await;
    let items = caught_up(&store).await;
    assert_eq!(ids(&items).len(), 3, "those of the other router");
    let removed: Vec<(u64, u64)> = told(&items).iter().map(|told| (told.events, told.lost)).collect();
    assert_eq!(removed, [(4, 4), (8, 0)], "{items:?}");
    assert!(told(&items).iter().all(|told| told.by == TruncatedBy::Retired && told.scope == Some(router("r1"))));
    assert_eq!(caught_up(&store).await.len(), 0);
    assert_eq!(store.status().await.unwrap().retired, (12, 4));

    // It comes back and goes again: what it takes along is counted once.
    manager.reinstate(&home()).await.unwrap();
    manager.retire(&home()).await.unwrap();
    assert_eq!(store.status().await.unwrap().retired, (12, 4));
    manager.purge(&home()).await.unwrap();
    assert_eq!(store.status().await.unwrap().retired, (12, 4));
    close(manager, store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_router_may_have_had_is_told_when_it_is_purged() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    caught_up(&store).await;
    flushed(&manager, &store, 3).await;
    empty_hot(&manager).await;
    manager.quarantine(&home(), "told by a test").await.unwrap();
    manager.purge(&home()).await.unwrap();
    let items = caught_up(&store).await;
    let [removed] = &told(&items)[..] else { panic!("{items:?}") };
    assert_eq!((removed.events, &removed.by, &removed.scope), (0, &TruncatedBy::Retired, &Some(router("r1"))));
    assert_eq!(caught_up(&store).await.len(), 0);
    close(manager, store).await;
}

/// Another router with the id of one that is gone, in a store that stays open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_is_made_anew_begins_anew_and_takes_nothing_over() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (versions, scope) = (stream("resource/wg0"), router("r1"));
    let normal = async |count: usize| {
        let events: Vec<_> = (0..count).map(|_| event(&manager, "resource.updated")).collect();
        let ids: Vec<Ulid> = events.iter().map(|event| event.id).collect();
        let receipt = store.append(&scope, &stream("s"), Expected::Any, events).await.unwrap();
        (ids, receipt.version)
    };
    for (cycle, is_durable_first) in [true, false].into_iter().enumerate() {
        append(&manager, &store, 2).await;
        normal(3).await;
        manager.retire(&home()).await.unwrap();
        manager.purge(&home()).await.unwrap();
        manager.create_router(NewRouter::new(home())).await.unwrap();
        let mut all = Vec::new();
        if is_durable_first {
            let events = vec![event(&manager, "resource.deleted")];
            all.push(events[0].id);
            let append = StreamAppend::new(versions.clone(), Expected::Unwritten, events);
            append_in(&manager, &store, &scope, vec![append]).await.unwrap();
        }
        let (ids, given) = normal(2).await;
        all.extend(ids);
        assert_eq!(given, 2);
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert_eq!((report.given_up, report.events, report.failed.len()), (3, 2, 0), "{report:?}");
        assert_eq!(store.status().await.unwrap().retired.1, 3 * (cycle as u64 + 1));
        empty_hot(&manager).await;
        assert_eq!(read_ids(&store, Query::scope(scope.clone())).await, all);
        assert!(store.verify(Span::all()).await.unwrap().is_sound());
        manager.retire(&home()).await.unwrap();
        manager.purge(&home()).await.unwrap();
        manager.create_router(NewRouter::new(home())).await.unwrap();
    }
    close(manager, store).await;
}

/// Processes that are killed while they undo a restore.
#[cfg(feature = "fault-injection")]
mod killed {
    use nasnet_dbmanager::vfs::fault::{Fault, Operation};
    use support::child::{self, Child};

    use super::*;

    const KINDS: [Operation; 4] = [Operation::Write, Operation::Sync, Operation::SyncDirectory, Operation::Rename];

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    pub(super) fn undo() {
        let Some(task) = child::task() else { return };
        let [kind, nth, safety, dir] = <[&str; 4]>::try_from(task.splitn(4, ' ').collect::<Vec<_>>()).unwrap();
        runtime().block_on(async {
            let (manager, _store) = open_at(Path::new(dir), ManualClock::new(support::NOW_MS)).await;
            let kind = KINDS[kind.parse::<usize>().unwrap()];
            let _armed = Fault::kill(kind, nth.parse().unwrap()).arm(Path::new(dir)).unwrap();
            manager.undo_restore(&home(), safety).await.unwrap();
        });
    }

    /// Undone or not, the router in use has everything, and so does the one it may be exchanged with next.
    #[test]
    fn a_restore_is_undone_or_not_and_nothing_is_lost_or_twice() {
        let (site, runtime) = (Site::new(), runtime());
        let (mut all, safety) = runtime.block_on(async {
            let (manager, store) = open(&site).await;
            let mut all = append(&manager, &store, 2).await;
            let manifest = manager.backup(Which::Router(home()), site.dir.path().join("backup")).await.unwrap();
            all.extend(append(&manager, &store, 2).await);
            all.extend(flushed(&manager, &store, 2).await);
            let report = manager.restore(&manifest, RestoreMode::Router(home())).await.unwrap();
            drop(store);
            manager.shutdown().await.unwrap();
            (all, report.restored[0].safety.clone().unwrap())
        });
        let (mut killed, mut undone) = (0, 0);
        for (number, _) in KINDS.iter().enumerate() {
            for nth in std::iter::successors(Some(1_u32), |nth| Some(nth + nth / 4 + 1)) {
                runtime.block_on(async {
                    let (manager, store) = open(&site).await;
                    all.extend(append(&manager, &store, 1).await);
                    all.extend(flushed(&manager, &store, 1).await);
                    drop(store);
                    manager.shutdown().await.unwrap();
                });
                let dir = site.dir.path().display();
                let is_done = Child::spawn(format_args!("{number} {nth} {safety} {dir}")).wait().success();
                runtime.block_on(async {
                    let (manager, store) = open(&site).await;
                    let report = store.flush(FlushReason::Requested).await.unwrap();
                    assert!(report.failed.is_empty(), "{number} {nth}: {report:?}");
                    let database = manager.router(&home()).await.unwrap();
                    let durable: Result<i64, Error> = database
                        .read(support::TEST, |conn| {
                            Box::pin(async move {
                                const COUNT: &str = "SELECT (SELECT COUNT(*) FROM event_rows) + \
                                     (SELECT SUM(events) FROM event_segments)";
                                Ok(sqlx::query_scalar(COUNT).fetch_one(conn).await?)
                            })
                        })
                        .await;
                    assert_eq!(usize::try_from(durable.unwrap()).unwrap(), all.len(), "{number} {nth}");
                    assert_eq!(store.truncated(Position::START).await.unwrap(), []);
                    drop((database, store));
                    manager.shutdown().await.unwrap();
                });
                (killed, undone) = (killed + u32::from(!is_done), undone + u32::from(is_done));
                if is_done {
                    break;
                }
            }
        }
        assert!(killed > 10 && undone == 4, "{killed} {undone}");
        runtime.block_on(async {
            let (manager, store) = open(&site).await;
            empty_hot(&manager).await;
            assert_eq!(read_ids(&store, Query::scope(router("r1"))).await, all);
            assert!(store.verify(Span::all()).await.unwrap().is_sound());
            close(manager, store).await;
        });
    }
}

#[cfg(feature = "fault-injection")]
#[test]
#[ignore = "run by another test as a child process"]
fn child() {
    killed::undo();
}
