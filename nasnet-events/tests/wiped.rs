//! tmpfs is wiped while the store is open: one marker, nothing twice, and durable appends go on.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{Achieved, Error, EventOptions, EventStore, Expected, FlushReason, Query, StreamAppend, TailLost};
use support::{PATIENCE, Site, TEST, append_in, event, normal, on_hot, read, read_ids, router, stream, transaction};
use tokio::sync::oneshot;
use ulid::Ulid;

async fn append(manager: &DbManager, store: &EventStore, name: &str) -> Ulid {
    let event = event(manager, name);
    let id = event.id;
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    id
}

#[tokio::test]
async fn a_hot_tier_wiped_while_open_is_noticed_by_the_next_append() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let flushed = append(&manager, &store, "resource.updated").await;
    store.flush(FlushReason::Requested).await.unwrap();
    append(&manager, &store, "resource.updated").await;
    let synced = append(&manager, &store, "config.applied").await;
    append(&manager, &store, "metric.updated").await;
    site.wipe_hot();

    let event = normal(&manager);
    let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event.clone()]).await.unwrap();
    assert_eq!((receipt.first.epoch, receipt.first.seq, receipt.achieved), (2, 1, Achieved::Hot));
    // Version 4 was only in the hot tier; the stream goes on from its highest surviving version.
    assert_eq!(receipt.version, 4);
    assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 1 }]);
    assert_eq!(read_ids(&store, Query::all()).await, [flushed, synced, event.id]);
    assert_eq!(store.status().await.unwrap().epoch, 2);
    // What is appended from now on survives as ever.
    store.flush(FlushReason::Requested).await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    let (_manager, store) = site.open().await;
    assert_eq!(read_ids(&store, Query::all()).await, [flushed, synced, event.id]);
    assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 1 }], "told once");
}

#[tokio::test]
async fn a_run_directory_removed_while_open_is_noticed_by_the_next_read() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let synced = append(&manager, &store, "config.applied").await;
    append(&manager, &store, "resource.updated").await;
    std::fs::remove_dir_all(site.run()).unwrap();
    assert_eq!(read_ids(&store, Query::all()).await, [synced]);
    assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 0 }]);
    for _ in 0..3 {
        append(&manager, &store, "config.applied").await;
    }
    assert_eq!(read(&store, Query::all()).await.len(), 4);
    // Its session is there again, or another store would take its transactions for those of the dead.
    let sessions = std::fs::read_dir(site.run().join("sessions")).unwrap();
    let names: Vec<String> = sessions.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("events-0")).count(), 1, "{names:?}");
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_other_store_on_the_files_notices_as_well() {
    let site = Site::new();
    let (manager, first) = site.open().await;
    let second = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    // As another process sees it: files opened by itself.
    let other_manager = site.manager().await;
    let other = EventStore::open(&other_manager, EventOptions::default()).await.unwrap();
    let synced = append(&manager, &first, "config.applied").await;
    append(&other_manager, &other, "resource.updated").await;
    site.wipe_hot();
    let mut ids = vec![synced];
    for (manager, store) in [(&other_manager, &other), (&manager, &second), (&manager, &first)] {
        ids.push(append(manager, store, "resource.updated").await);
    }
    for store in [&first, &second, &other] {
        assert_eq!(store.losses(), [TailLost { epoch: 1, after_seq: 0 }]);
        assert_eq!(read_ids(store, Query::all()).await, ids);
        assert_eq!(store.status().await.unwrap().end.seq, 3, "one order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_appends_go_on_while_the_hot_tier_is_wiped_again_and_again() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = Vec::new();
    for scope in [Scope::System, router("r1"), router("r2")] {
        let (manager, store, stop) = (manager.clone(), store.clone(), std::sync::Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let event = event(&manager, "config.applied");
                ids.push(event.id);
                let receipt = store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
                assert_eq!(receipt.achieved, Achieved::Synced);
            }
            ids
        }));
    }
    for _ in 0..8 {
        site.wipe_hot();
        // Each wipe is noticed before the next.
        let epoch = store.status().await.unwrap().epoch;
        append(&manager, &store, "metric.updated").await;
        assert!(store.status().await.unwrap().epoch >= epoch);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut ids = Vec::new();
    for writer in writers {
        ids.extend(writer.await.unwrap());
    }
    store.resolve().await.unwrap();
    let query = Query::all().kind(support::kind("config.applied"));
    let mut found = read_ids(&store, query).await;
    found.sort();
    ids.sort();
    assert_eq!(found, ids, "every event once");
    assert_eq!(store.status().await.unwrap().unresolved, 0);
}

#[tokio::test]
async fn a_transaction_that_spans_a_wipe_commits_where_it_began() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let append_to = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let pending = transaction(&manager, &store, &scope, vec![append_to], true).await.unwrap();
    site.wipe_hot();
    let receipts = store.published(pending).await;
    assert_eq!((receipts[0].first.epoch, receipts[0].first.seq), (1, 1));
    let append_to = StreamAppend::new(stream("s"), Expected::Exact(1), vec![normal(&manager)]);
    let receipts = append_in(&manager, &store, &scope, vec![append_to]).await.unwrap();
    assert_eq!((receipts[0].first.epoch, receipts[0].version), (2, 2));
    assert_eq!(read_ids(&store, Query::all()).await.len(), 2);
}

#[tokio::test]
async fn a_number_that_was_never_used_is_no_loss() {
    let site = Site::new();
    // Killed after the number was written into hot.db and before it was counted; then a power cut.
    let manager = site.manager().await;
    on_hot(&manager, "INSERT INTO hot_meta (one, epoch) VALUES (1, 1)").await;
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (manager, store) = site.open().await;
    assert_eq!((store.status().await.unwrap().epoch, store.losses()), (1, vec![]));
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();

    // Killed there, and hot.db still stands: the number is counted before anything is appended.
    let manager = site.manager().await;
    on_hot(&manager, "INSERT INTO hot_meta (one, epoch) VALUES (1, 2)").await;
    let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    append_until_closed(&manager, &store).await;
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(store.status().await.unwrap().epoch, 3);
    assert_eq!(store.losses().last(), Some(&TailLost { epoch: 2, after_seq: 0 }));
}

async fn append_until_closed(manager: &DbManager, store: &EventStore) {
    tokio::time::timeout(PATIENCE, append(manager, store, "resource.updated")).await.unwrap();
}

/// Its position is of the lost hot tier, and the one that begins knows nothing of it but what its database shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_another_process_that_spans_a_wipe_comes_before_the_next_hot_tier() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let other_manager = site.manager().await;
    let other = EventStore::open(&other_manager, EventOptions::default()).await.unwrap();
    let (reserved, is_reserved) = oneshot::channel();
    let (commit, may_commit) = oneshot::channel::<()>();
    let event = normal(&manager);
    let spanning = event.id;
    let committing = tokio::spawn(async move {
        let (database, writing) = (other_manager.scope(&router("r1")).await.unwrap(), other.clone());
        let written = database.write(TEST, move |conn| {
            Box::pin(async move {
                let append = StreamAppend::new(stream("s"), Expected::Any, vec![event]);
                let pending = writing.append_in(conn, &router("r1"), vec![append]).await?;
                reserved.send(()).unwrap();
                may_commit.await.unwrap();
                Ok::<_, Error>(pending)
            })
        });
        let pending = written.await.unwrap();
        (other_manager, other.published(pending).await, other)
    });
    is_reserved.await.unwrap();
    site.wipe_hot();
    let event = normal(&manager);
    let mut ids = vec![spanning, event.id];
    let appender = store.clone();
    let mut appending =
        tokio::spawn(
            async move { appender.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap() },
        );
    // Long enough for an append that does not wait to be done, and answered with version 1.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut appending).await;
    commit.send(()).unwrap();
    let receipt = if let Ok(early) = early { early.unwrap() } else { appending.await.unwrap() };
    let (other_manager, receipts, other) = committing.await.unwrap();
    assert_eq!((receipts[0].first.epoch, receipts[0].version), (1, 1));
    assert_eq!((receipt.first.epoch, receipt.version), (2, 2));
    ids.push(append(&other_manager, &other, "resource.updated").await);
    for store in [&store, &other] {
        let found = read(store, Query::all()).await;
        assert_eq!(found.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
        assert_eq!(found.iter().map(|event| event.version).collect::<Vec<_>>(), [1, 2, 3]);
    }
}

/// It would commit the first behind readers that have gone on.
#[tokio::test]
async fn a_transaction_that_holds_positions_of_a_wiped_hot_tier_gets_no_more() {
    let site = std::sync::Arc::new(Site::new());
    let (manager, store) = site.open().await;
    let database = manager.scope(&router("r1")).await.unwrap();
    let appends = |count| (0..count).map(|_| StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]));
    let (first, second) = (appends(1).collect(), appends(1).collect());
    let (writing, wiped) = (store.clone(), std::sync::Arc::clone(&site));
    let written = database.write(TEST, move |conn| {
        Box::pin(async move {
            let _first = writing.append_in(conn, &router("r1"), first).await?;
            wiped.wipe_hot();
            let _second = writing.append_in(conn, &router("r1"), second).await?;
            Ok::<_, Error>(())
        })
    });
    let refused = written.await;
    assert!(matches!(refused, Err(Error::Renewing)), "{refused:?}");
    assert_eq!(read_ids(&store, Query::all()).await, []);
    // One that holds none goes on.
    let receipts = append_in(&manager, &store, &router("r1"), appends(1).collect()).await.unwrap();
    assert_eq!((receipts[0].first.epoch, receipts[0].version), (2, 1));
}

/// Appends that come together share a transaction: one may hold positions of the lost hot tier while another waits for some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_not_repeated_by_appends_that_share_a_transaction_during_a_wipe() {
    const WRITERS: usize = 8;
    let site = Site::new();
    let (manager, store) = site.open().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (manager, store, stop) = (manager.clone(), store.clone(), std::sync::Arc::clone(&stop));
            tokio::spawn(async move {
                let (name, mut ids) = (if number == 0 { "resource.updated" } else { "config.applied" }, Vec::new());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    ids.push(append(&manager, &store, name).await);
                }
                if number == 0 { Vec::new() } else { ids }
            })
        })
        .collect();
    for _ in 0..10 {
        let epoch = store.status().await.unwrap().epoch;
        site.wipe_hot();
        let begun = async {
            while store.status().await.unwrap().epoch == epoch {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("a new hot tier begins");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut durable = Vec::new();
    for writer in writers {
        durable.extend(writer.await.unwrap());
    }
    store.resolve().await.unwrap();
    let found = read(&store, Query::all()).await;
    let twice = found.windows(2).find(|two| two[0].version >= two[1].version);
    assert_eq!(twice.map(|two| (two[0].position, two[0].version, two[1].position, two[1].version)), None);
    let mut synced: Vec<Ulid> = found.iter().filter(|event| event.synced).map(|event| event.id).collect();
    synced.sort();
    durable.sort();
    assert_eq!(synced, durable, "every one once");
}
