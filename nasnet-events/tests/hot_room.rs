//! The hot tier is bounded: what can be spared goes first, and is counted and told.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, NewRouter, RouterId};
use nasnet_events::{
    Achieved, ColdOptions, ColdPolicy, Error, EventOptions, EventStore, Expected, FlushReason, NewEvent, Position,
    Query, StreamAppend, TruncatedBy, prepare_cold_dir,
};
use support::{Site, TEST, event, kind, normal, on_scope, read_ids, router, stream, with_cold};
use ulid::Ulid;

const MAX: u64 = 512 << 10;
const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'full'); END";

async fn open(site: &Site) -> (DbManager, EventStore) {
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(MAX);
    site.open_with(options).await
}

/// An event whose body does not get smaller by compression.
fn bulky(manager: &DbManager, name: &str) -> NewEvent {
    let ids: Vec<String> = (0..80).map(|_| manager.next_ulid().random().to_string()).collect();
    NewEvent::new(manager.next_ulid(), kind(name), &ids).unwrap()
}

async fn append(store: &EventStore, event: NewEvent) -> Ulid {
    let id = event.id;
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    id
}

#[tokio::test]
async fn low_events_go_first_and_their_removal_is_counted() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut kept = Vec::new();
    for round in 0..600 {
        append(&store, bulky(&manager, "metric.updated")).await;
        if round % 10 == 0 {
            kept.push(append(&store, normal(&manager)).await);
        }
    }
    let status = store.status().await.unwrap();
    assert!(status.shed > 0 && status.lost == 0, "{} shed, {} lost", status.shed, status.lost);
    assert!(status.hot_bytes.0 <= MAX + (64 << 10), "{} bytes", status.hot_bytes.0);
    assert_eq!(status.end.seq, 660, "every position is accounted for");
    let normal_events = Query::all().kind(kind("resource.updated"));
    assert_eq!(read_ids(&store, normal_events.clone()).await, kept);
    assert_eq!(read_ids(&store, Query::all()).await.len() as u64, 660 - status.shed);
    // By stream, which finds its way by an index in memory, also after that was built anew.
    let by_stream = || Query::scope(router("r1")).stream(stream("s"));
    assert_eq!(read_ids(&store, by_stream()).await.len() as u64, 660 - status.shed);
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    assert_eq!(read_ids(&other, by_stream()).await.len() as u64, 660 - status.shed);
}

#[tokio::test]
async fn what_is_on_flash_leaves_the_hot_tier_and_stays_readable() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        for _ in 0..50 {
            ids.push(append(&store, bulky(&manager, "resource.updated")).await);
        }
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let status = store.status().await.unwrap();
    assert_eq!((status.shed, status.lost), (0, 0), "nothing is lost that was flushed");
    assert!(status.hot_bytes.0 <= MAX + (64 << 10), "{} bytes", status.hot_bytes.0);
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    let by_stream = Query::scope(router("r1")).stream(stream("s"));
    assert_eq!(read_ids(&store, by_stream).await, ids);
    ids.reverse();
    assert_eq!(read_ids(&store, Query::all().backwards()).await, ids);
}

/// "journald: the flush dropped the runtime journal when the persistent one was full": what could not be flushed goes last,
/// the oldest first, and its loss is counted.
#[tokio::test]
async fn unflushed_events_are_lost_last_and_oldest_first_and_never_by_a_failing_flush() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = vec![append(&store, bulky(&manager, "resource.updated")).await];
    on_scope(&manager, &router("r1"), REFUSE).await;
    for _ in 0..60 {
        ids.push(append(&store, bulky(&manager, "resource.updated")).await);
    }
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!(report.failed.len(), 1);
    assert_eq!(read_ids(&store, Query::all()).await, ids, "a flush that failed removed nothing");
    for _ in 0..600 {
        ids.push(append(&store, bulky(&manager, "resource.updated")).await);
    }
    let lost = store.status().await.unwrap().lost;
    assert!(lost > 0);
    on_scope(&manager, &router("r1"), "DROP TRIGGER refuse").await;
    let left = read_ids(&store, Query::all()).await;
    assert_eq!(left, ids[usize::try_from(lost).unwrap()..], "the newest are there");
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.events, report.failed.len()), (left.len() as u64, 0));
}

#[tokio::test]
async fn after_a_day_of_uptime_flushed_and_low_events_leave_the_hot_tier_whatever_the_wall_clock_says() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let low = append(&store, event(&manager, "metric.updated")).await;
    let flushed = append(&store, event(&manager, "resource.updated")).await;
    let durable = append(&store, event(&manager, "config.applied")).await;
    store.flush(FlushReason::Requested).await.unwrap();
    let unflushed = append(&store, event(&manager, "resource.updated")).await;
    for wall_ms in [0, support::NOW_MS + 56 * 31_557_600_000] {
        site.clock.set_wall_ms(wall_ms);
        assert_eq!(store.expire().await.unwrap(), 0, "the clock jumped, no time has passed");
    }
    site.clock.set_wall_ms(support::NOW_MS);
    assert_eq!(read_ids(&store, Query::all()).await, [low, flushed, durable, unflushed]);
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    let young = append(&store, event(&manager, "metric.updated")).await;
    assert_eq!(store.expire().await.unwrap(), 1);
    assert_eq!(read_ids(&store, Query::all()).await, [flushed, durable, unflushed, young]);
    let status = store.status().await.unwrap();
    assert_eq!((status.expired, status.shed, status.lost), (1, 0, 0));
    assert_eq!(status.hot.oldest.unwrap().seq, 4, "what is on flash has left the front of the log");
    assert_eq!(status.hot.events, 2, "what has left is not counted");
}

#[tokio::test]
async fn what_a_run_directory_that_outlives_a_reboot_holds_gets_old_as_well() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append(&store, event(&manager, "metric.updated")).await;
    append(&store, event(&manager, "resource.updated")).await;
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.clock.reboot();
    let (manager, store) = site.open().await;
    let young = append(&store, event(&manager, "metric.updated")).await;
    site.clock.advance(Duration::from_secs(23 * 60 * 60));
    assert_eq!(store.expire().await.unwrap(), 0, "this boot has not lasted for a day");
    site.clock.advance(Duration::from_secs(2 * 60 * 60));
    append(&store, event(&manager, "metric.updated")).await;
    assert_eq!(store.expire().await.unwrap(), 2);
    let left = store.status().await.unwrap();
    assert_eq!((left.hot.events, left.lost), (1, 0));
    assert!(!read_ids(&store, Query::all()).await.contains(&young));
}

#[tokio::test]
async fn versions_of_what_has_ended_are_given_by_nobody_again() {
    for archived in [false, true] {
        let site = Site::new();
        let options = || if archived { with_cold(&site) } else { EventOptions::default() };
        let (manager, store) = site.open_with(options()).await;
        if archived {
            prepare_cold_dir(&manager, &site.cold()).unwrap();
        }
        let (scope, name) = (router("r1"), stream("low"));
        let low = || vec![event(&manager, "metric.updated")];
        // It is open all the time, and does not look.
        let idle = EventStore::open(&manager, options()).await.unwrap();
        for version in 0..3 {
            store.append(&scope, &name, Expected::Exact(version), low()).await.unwrap();
        }
        if archived {
            assert!(store.archive().await.unwrap().complete);
        }
        append(&store, normal(&manager)).await;
        site.clock.advance(Duration::from_secs(25 * 60 * 60));
        append(&store, event(&manager, "metric.updated")).await;
        store.expire().await.unwrap();
        let query = Query::scope(scope.clone()).stream(name.clone());
        assert_eq!(read_ids(&store, query).await.len(), if archived { 3 } else { 0 });

        let later = EventStore::open(&manager, options()).await.unwrap();
        for (other, version) in [(&idle, 4), (&later, 5), (&store, 6)] {
            let fresh = other.append(&scope, &name, Expected::Unwritten, low()).await;
            assert!(matches!(&fresh, Err(Error::Conflict(conflict)) if conflict.actual == version - 1), "{fresh:?}");
            let receipt = other.append(&scope, &name, Expected::Exact(version - 1), low()).await.unwrap();
            assert_eq!(receipt.version, version);
        }
    }
}

#[tokio::test]
async fn the_search_for_what_can_go_ends_in_an_empty_hot_tier() {
    let site = Site::new();
    let (_manager, store) = site.open().await;
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    let expired = tokio::time::timeout(Duration::from_secs(60), store.expire()).await.unwrap();
    assert_eq!(expired.unwrap(), 0);
}

#[tokio::test]
async fn what_can_be_flushed_is_not_given_up_for_want_of_room() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut ids = Vec::new();
    for _ in 0..600 {
        ids.push(append(&store, bulky(&manager, "resource.updated")).await);
    }
    let status = store.status().await.unwrap();
    assert_eq!((status.shed, status.lost), (0, 0));
    assert!(status.flushed_through.seq > 0, "nobody asked for a flush");
    assert!(status.hot_bytes.0 <= MAX + (64 << 10), "{} bytes", status.hot_bytes.0);
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

/// Whoever appends waits for it.
#[tokio::test]
async fn for_want_of_room_no_more_is_flushed_than_makes_some() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let mut status = store.status().await.unwrap();
    while status.flushed_through.seq == 0 {
        append(&store, bulky(&manager, "resource.updated")).await;
        status = store.status().await.unwrap();
    }
    assert!(status.flushed_through.seq < status.end.seq / 2, "{} of {}", status.flushed_through, status.end);
    assert_eq!((status.shed, status.lost), (0, 0));
}

#[tokio::test]
async fn what_one_scope_cannot_flush_is_not_given_up_while_another_can() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    on_scope(&manager, &router("r1"), REFUSE).await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(append(&store, bulky(&manager, "resource.updated")).await);
    }
    for _ in 0..600 {
        let event = bulky(&manager, "resource.updated");
        ids.push(event.id);
        store.append(&router("r2"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    let status = store.status().await.unwrap();
    assert_eq!((status.shed, status.lost), (0, 0));
    assert!(status.hot_bytes.0 <= MAX + (64 << 10), "{} bytes", status.hot_bytes.0);
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

/// A flush claims that everything up to a position is safe. What was given up before it is told of nevertheless, also after
/// the hot tier that had the record is gone.
#[tokio::test]
async fn what_was_given_up_is_told_of_after_the_hot_tier_is_gone() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    append(&store, bulky(&manager, "resource.updated")).await;
    on_scope(&manager, &router("r1"), REFUSE).await;
    while store.status().await.unwrap().lost == 0 {
        append(&store, bulky(&manager, "resource.updated")).await;
    }
    on_scope(&manager, &router("r1"), "DROP TRIGGER refuse").await;
    let lost = store.status().await.unwrap().lost;
    let before = store.truncated(Position::START).await.unwrap();
    assert_eq!(
        before.iter().map(|removed| (removed.lost, &removed.by)).collect::<Vec<_>>(),
        [(lost, &TruncatedBy::Shed)]
    );
    let left = read_ids(&store, Query::all()).await;
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();

    let (_manager, store) = open(&site).await;
    assert_eq!(store.losses(), [], "the end was clean");
    assert_eq!(read_ids(&store, Query::all()).await, left);
    assert_eq!(store.truncated(Position::START).await.unwrap(), before);
    let end = before[0].through;
    assert_eq!(store.truncated(end).await.unwrap(), []);
}

/// The bound of the events gives room back, that of the database only refuses: asking for more than the database may have
/// must not make the second the one that is met.
#[tokio::test]
async fn the_hot_tier_stays_below_what_its_database_may_have() {
    const DATABASE_MAX: u64 = 1 << 20;
    let site = Site::new();
    let mut bounded = support::options(site.dir.path());
    bounded.database_bytes_max = DATABASE_MAX;
    let manager = DbManager::open(bounded).await.unwrap();
    manager.create_router(NewRouter::new(RouterId::parse("r1").unwrap())).await.unwrap();
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(1 << 30);
    let store = EventStore::open(&manager, options).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..1_200 {
        ids.push(append(&store, bulky(&manager, "resource.updated")).await);
    }
    let status = store.status().await.unwrap();
    assert!(status.hot_bytes.1 < DATABASE_MAX, "{} bytes are allowed", status.hot_bytes.1);
    assert!(status.hot_bytes.0 <= DATABASE_MAX, "{} bytes", status.hot_bytes.0);
    assert_eq!((status.shed, status.lost), (0, 0), "what had to give way was flushed");
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn a_transaction_that_fills_the_hot_tier_gets_its_positions_all_the_same() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    append(&store, normal(&manager)).await;
    let (own, fleet) = (store.clone(), manager.clone());
    let database = manager.scope(&router("r1")).await.unwrap();
    let written: Result<_, Error> = database
        .write(TEST, move |conn| {
            Box::pin(async move {
                // What they need room for can only be flushed to the database that this transaction holds.
                while own.status().await?.hot_bytes.0 < MAX {
                    append(&own, bulky(&fleet, "resource.updated")).await;
                }
                for _ in 0..8 {
                    append(&own, bulky(&fleet, "resource.updated")).await;
                }
                let critical = StreamAppend::new(stream("c"), Expected::Any, vec![event(&fleet, "config.applied")]);
                own.append_in(conn, &router("r1"), vec![critical]).await
            })
        })
        .await;
    assert_eq!(store.published(written.unwrap()).await[0].achieved, Achieved::Synced);
    assert_eq!(store.status().await.unwrap().lost, 0, "there is room enough until the flush can go on");
}

#[tokio::test]
async fn what_was_given_up_can_be_appended_again() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let first = bulky(&manager, "metric.updated");
    append(&store, first.clone()).await;
    while store.status().await.unwrap().shed == 0 {
        append(&store, bulky(&manager, "metric.updated")).await;
    }
    let again = store.append(&router("r1"), &stream("s"), Expected::Any, vec![first]).await.unwrap();
    assert!(!again.deduplicated, "it is nowhere any more");
}

/// What the archive has taken leaves the hot tier like what is on flash, and nobody is told that it was removed.
#[tokio::test]
async fn low_events_that_are_archived_leave_the_hot_tier_after_a_day_and_are_missed_by_nobody() {
    let site = Site::new();
    let (manager, store) = support::open_with_cold(&site).await;
    let mut ids = vec![append(&store, event(&manager, "metric.updated")).await];
    ids.push(append(&store, event(&manager, "resource.updated")).await);
    store.archive().await.unwrap();
    let behind = append(&store, event(&manager, "metric.updated")).await;
    ids.push(behind);
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    ids.push(append(&store, event(&manager, "metric.updated")).await);
    assert_eq!(store.expire().await.unwrap(), 0, "none of them has ended");
    let status = store.status().await.unwrap();
    assert_eq!((status.shed, status.expired, status.lost), (0, 0, 0));
    assert_eq!(store.truncated(nasnet_events::Position::START).await.unwrap(), []);
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    let blocks = async || -> i64 {
        const BLOCKS: &str = "SELECT COUNT(*) FROM hot_log WHERE body IS NOT NULL";
        let hot = manager.hot();
        let read = hot.read(support::TEST, |conn| {
            Box::pin(async move { Ok::<_, nasnet_events::Error>(sqlx::query_scalar(BLOCKS).fetch_one(conn).await?) })
        });
        read.await.unwrap()
    };
    assert_eq!(blocks().await, 2, "what the archive has not taken yet, and what is young");
    store.archive().await.unwrap();
    store.expire().await.unwrap();
    assert_eq!(blocks().await, 1);
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

/// Another store, or this one after a restart, finds rows that events were taken out of: of which streams they were it
/// does not know.
#[tokio::test]
async fn pages_of_a_stream_miss_nothing_that_left_the_middle_of_a_row_for_flash() {
    let site = Site::new();
    let (manager, store) = support::open_with_cold(&site).await;
    let mut ids = Vec::new();
    let appends = (0..40).map(|number| {
        // Low ones stay until the archive has them, and hold the row.
        let (name, kind) = if number % 4 == 1 { ("s", "resource.updated") } else { ("low", "metric.updated") };
        let event = event(&manager, kind);
        if name == "s" {
            ids.push(event.id);
        }
        StreamAppend::new(stream(name), Expected::Any, vec![event])
    });
    let appends = appends.collect();
    store.append_each(&router("r1"), appends).await.unwrap().into_iter().for_each(|done| assert!(done.is_ok()));
    store.flush(FlushReason::Requested).await.unwrap();
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    ids.push(append(&store, normal(&manager)).await);
    assert_eq!(store.expire().await.unwrap(), 0, "they are on flash");
    let other = EventStore::open(&manager, support::with_cold(&site)).await.unwrap();
    for backwards in [false, true] {
        for limit in [1, 3, 100] {
            let (mut found, mut cursor) = (Vec::new(), None::<Position>);
            loop {
                let mut query = Query::scope(router("r1")).stream(stream("s")).limit(limit);
                if backwards {
                    query = query.backwards();
                }
                query = match cursor {
                    Some(at) if backwards => query.until(Position::new(at.epoch, at.seq - 1)),
                    Some(at) => query.after(at),
                    None => query,
                };
                let page = support::read(&other, query).await;
                let Some(last) = page.last() else { break };
                cursor = Some(last.position);
                found.extend(page.iter().map(|event| event.id));
            }
            if backwards {
                found.reverse();
            }
            assert_eq!(found, ids, "pages of {limit}, backwards: {backwards}");
        }
    }
    assert_eq!(read_ids(&store, Query::all().after(Position::new(1, u64::MAX))).await, []);
}

/// What another policy passed over is behind what is archived, and in no archive.
#[tokio::test]
async fn low_events_that_the_policy_kept_from_the_archive_are_not_taken_for_archived_under_another() {
    let site = Site::new();
    let cold = ColdOptions::new(site.cold()).allow_same_device().policy(ColdPolicy::WarmOnly);
    let (manager, store) = site.open_with(EventOptions::default().cold(cold)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let mut ids = vec![append(&store, event(&manager, "metric.updated")).await];
    ids.push(append(&store, event(&manager, "resource.updated")).await);
    assert_eq!(store.archive().await.unwrap().events, 1);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    let mut later = Vec::new();
    for _ in 0..2 {
        let (manager, store) = site.open_with(support::with_cold(&site)).await;
        store.archive().await.unwrap();
        let archived = append(&store, event(&manager, "metric.updated")).await;
        store.archive().await.unwrap();
        later.push(archived);
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    }
    let (manager, store) = site.open_with(support::with_cold(&site)).await;
    store.archive().await.unwrap();
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    append(&store, event(&manager, "metric.updated")).await;
    assert_eq!(store.expire().await.unwrap(), 0);
    let found = read_ids(&store, Query::all()).await;
    assert!(ids.iter().chain(&later).all(|id| found.contains(id)), "each is in some tier");
    std::fs::rename(site.cold(), site.dir.path().join("away")).unwrap();
    let hot = read_ids(&store, Query::all()).await;
    assert!(hot.contains(&ids[0]), "it is nowhere else");
    assert!(later.iter().all(|id| !hot.contains(id)), "those that are archived have left, whoever archived them");
}
