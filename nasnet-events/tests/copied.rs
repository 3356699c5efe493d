//! What the archive was given by a database that still holds it is not read from there again, and everything else is.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::{DbManager, RestoreMode, RouterId, Scope, Which};
use nasnet_events::{Class, Error, EventStore, Expected, FlushReason, Query, StreamName, prepare_cold_dir};
use support::{
    Site, append_normal, empty_hot, empty_warm, event, normal, on_scope, open_with_cold, options, read_ids, router,
    stream,
};
use ulid::Ulid;

/// Bytes that a read of everything reads of the archive, whose descriptions are known already.
async fn read_of_cold(store: &EventStore, query: Query, expected: &[Ulid]) -> u64 {
    let bytes = async || store.status().await.unwrap().cold_findings.bytes_read;
    let before = bytes().await;
    assert_eq!(read_ids(store, query).await, expected);
    bytes().await - before
}

async fn archive(store: &EventStore, frames: u64) {
    let report = store.archive().await.unwrap();
    assert_eq!((report.frames, report.failed.len()), (frames, 0), "{report:?}");
}

/// As the next process does, with nothing in the hot tier.
async fn reopen(site: &Site, manager: DbManager, store: EventStore) -> (DbManager, EventStore) {
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    open_with_cold(site).await
}

#[tokio::test]
async fn frames_of_events_that_are_on_flash_are_not_opened() {
    let site = Site::new();
    let (mut manager, mut store) = open_with_cold(&site).await;
    let scope = router("r1");
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.extend(append_normal(&manager, &store, &scope, 5).await);
        let durable = event(&manager, "config.applied");
        ids.push(durable.id);
        store.append(&scope, &stream("t"), Expected::Any, vec![durable]).await.unwrap();
        archive(&store, 1).await;
        (manager, store) = reopen(&site, manager, store).await;
    }
    for query in [Query::all(), Query::scope(scope.clone())] {
        assert_eq!(read_of_cold(&store, query, &ids).await, 0);
    }

    // What is damaged on flash is looked for in the archive.
    let damage = "DROP TRIGGER event_segments_are_immutable; UPDATE event_segments SET crc = crc + 1 \
                  WHERE first_pos = (SELECT MIN(first_pos) FROM event_segments)";
    on_scope(&manager, &scope, damage).await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    let (found, damaged): (Vec<_>, Vec<_>) = items.into_iter().partition(Result::is_ok);
    assert_eq!(found.into_iter().map(|event| event.unwrap().id).collect::<Vec<_>>(), ids);
    assert!(!damaged.is_empty() && damaged.iter().all(|error| matches!(error, Err(Error::Corrupt { .. }))));

    // And so is what is not there any more.
    empty_warm(&manager, &scope).await;
    assert!(read_of_cold(&store, Query::all(), &ids).await > 0);
}

#[tokio::test]
async fn low_events_are_read_from_the_archive() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let scope = router("r1");
    let (low, other) = (event(&manager, "metric.cpu"), normal(&manager));
    let ids = [low.id, other.id];
    store.append(&scope, &stream("s"), Expected::Any, vec![low]).await.unwrap();
    store.append(&scope, &stream("t"), Expected::Any, vec![other]).await.unwrap();
    assert_eq!(read_ids(&store, Query::all().class(Class::Low)).await, ids[..1]);
    archive(&store, 1).await;
    empty_hot(&manager).await;
    assert!(read_of_cold(&store, Query::all(), &ids).await > 0);
    assert_eq!(read_of_cold(&store, Query::all().class(Class::Normal), &ids[1..]).await, 0);
}

/// Low events that wait for a medium stay in rows of which the rest has left the hot tier; what was appended after them is all
/// there.
#[tokio::test]
async fn frames_of_what_the_hot_tier_holds_whole_are_not_opened_beside_those_of_what_has_left_it() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let scope = router("r1");
    let (old, fresh) = (stream("old"), stream("fresh"));
    let append = async |name: &StreamName, kinds: [&str; 2]| {
        let events = kinds.map(|kind| event(&manager, kind));
        let ids = [events[0].id, events[1].id];
        let receipt = store.append(&scope, name, Expected::Any, events.to_vec()).await.unwrap();
        (ids, receipt.last)
    };
    let (before, end) = append(&old, ["metric.cpu", "resource.updated"]).await;
    store.flush(FlushReason::Requested).await.unwrap();
    site.clock.advance(Duration::from_secs(25 * 3_600));
    // The newest row of all stays as it is.
    append_normal(&manager, &store, &router("r2"), 1).await;
    store.expire().await.unwrap();
    assert_eq!(store.status().await.unwrap().hot.events, 2, "one has left");
    archive(&store, 2).await;
    let (after, _) = append(&fresh, ["metric.cpu", "resource.updated"]).await;
    archive(&store, 1).await;

    let all = [before, after].concat();
    for (query, expected) in [(Query::scope(scope.clone()), &all[..]), (Query::scope(scope).stream(fresh), &after)] {
        let read = async |query: Query, mut expected: Vec<Ulid>| {
            let bytes = read_of_cold(&store, query.clone(), &expected).await;
            expected.reverse();
            assert_eq!(read_of_cold(&store, query.backwards(), &expected).await, bytes);
            bytes
        };
        let until = expected.iter().filter(|id| before.contains(id)).copied().collect();
        let of_old = read(query.clone().until(end), until).await;
        assert_eq!(read(query, expected.to_vec()).await, of_old);
    }
}

/// Frames of other scopes begin before it and end after it, too.
#[tokio::test]
async fn a_known_id_is_looked_for_in_the_archive_of_its_own_scope() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    append_normal(&manager, &store, &router("r2"), 2).await;
    let ids = append_normal(&manager, &store, &router("r1"), 1).await;
    append_normal(&manager, &store, &router("r2"), 2).await;
    archive(&store, 2).await;
    empty_hot(&manager).await;
    assert_eq!(read_of_cold(&store, Query::by_id(ids[0]), &ids).await, 0);
}

/// Puts another medium in the place of the one that is there.
fn swap(manager: &DbManager, site: &Site, out: &str, back: Option<&str>) {
    let place = |name: &str| -> PathBuf { site.dir.path().join(name) };
    fs::rename(site.cold(), place(out)).unwrap();
    match back {
        Some(back) => fs::rename(place(back), site.cold()).unwrap(),
        None => prepare_cold_dir(manager, &site.cold()).unwrap(),
    }
}

/// The events between a backup and its restore are in the archive alone; so they are when another medium was archived to in
/// between.
#[tokio::test]
async fn a_database_that_came_back_from_a_backup_does_not_hide_what_came_later() {
    for other_medium in [false, true] {
        let site = Site::new();
        let (manager, store) = open_with_cold(&site).await;
        let scope = router("r1");
        let mut ids = append_normal(&manager, &store, &scope, 3).await;
        archive(&store, 1).await;
        let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
        ids.extend(append_normal(&manager, &store, &scope, 4).await);
        archive(&store, 1).await;
        let (manager, store) = reopen(&site, manager, store).await;
        manager.restore(&manifest, RestoreMode::Router(RouterId::parse("r1").unwrap())).await.unwrap();
        let (manager, store) = reopen(&site, manager, store).await;
        assert!(read_of_cold(&store, Query::all(), &ids).await > 0);

        if other_medium {
            swap(&manager, &site, "first", None);
        }
        ids.extend(append_normal(&manager, &store, &scope, 2).await);
        archive(&store, 1).await;
        let (manager, store) = reopen(&site, manager, store).await;
        if other_medium {
            swap(&manager, &site, "second", Some("first"));
        }
        assert!(read_of_cold(&store, Query::all(), &ids).await > 0);

        // What is archived from now on is known to be here.
        let known = ids.len();
        ids.extend(append_normal(&manager, &store, &scope, 2).await);
        archive(&store, 1).await;
        let (_manager, store) = reopen(&site, manager, store).await;
        let all = support::read(&store, Query::all()).await;
        assert_eq!(all.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
        let later = Query::all().after(all[known - 1].position);
        assert_eq!(read_of_cold(&store, later, &ids[known..]).await, 0);
    }
}

/// What nobody could flush any more is in the hot tier, and gets into the archive from there.
#[tokio::test]
async fn what_never_reached_flash_is_read_from_the_archive() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let (id, scope) = (RouterId::parse("r1").unwrap(), router("r1"));
    let mut ids = append_normal(&manager, &store, &scope, 3).await;
    manager.retire(&id).await.unwrap();
    assert_eq!(store.flush(FlushReason::Requested).await.unwrap().given_up, 3);
    manager.reinstate(&id).await.unwrap();
    archive(&store, 1).await;
    ids.extend(append_normal(&manager, &store, &scope, 2).await);
    archive(&store, 1).await;
    let (_manager, store) = reopen(&site, manager, store).await;
    assert!(read_of_cold(&store, Query::scope(scope), &ids).await > 0);

    // What comes after it is here.
    let all = support::read(&store, Query::all()).await;
    assert_eq!(read_of_cold(&store, Query::all().after(all[2].position), &ids[3..]).await, 0);
}

/// The system database keeps its uid when it is restored, and the note of the archive as it was then.
#[tokio::test]
async fn a_restored_system_database_does_not_hide_what_came_later() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ids = append_normal(&manager, &store, &Scope::System, 3).await;
    archive(&store, 1).await;
    let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    ids.extend(append_normal(&manager, &store, &Scope::System, 4).await);
    archive(&store, 1).await;
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    DbManager::restore_system(&options(site.dir.path()), &manifest).await.unwrap();
    site.wipe_hot();
    let (manager, store) = open_with_cold(&site).await;
    assert!(read_of_cold(&store, Query::all(), &ids).await > 0);
    ids.extend(append_normal(&manager, &store, &Scope::System, 2).await);
    archive(&store, 1).await;
    let (_manager, store) = reopen(&site, manager, store).await;
    assert!(read_of_cold(&store, Query::all(), &ids).await > 0);
}
