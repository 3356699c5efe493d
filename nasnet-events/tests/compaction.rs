//! Small rows of the hot tier are joined: less memory, and nothing else changes for anybody.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::DbManager;
use nasnet_events::{
    CompactReport, Error, EventOptions, EventStore, EventType, Expected, FlushReason, NewEvent, Query,
};
use serde_json::json;
use support::{Site, TEST, event, normal, read_ids, router, stream};
use ulid::Ulid;

/// Appends events one by one, every fifth of them Low, to two streams of two routers in turn.
async fn append_singly(manager: &DbManager, store: &EventStore, count: usize) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for index in 0..count {
        let made = event(manager, if index % 5 == 0 { "metric.updated" } else { "resource.updated" });
        ids.push(made.id);
        let (router, stream) = (router(["r1", "r2"][index % 2]), stream(["s", "t"][index / 2 % 2]));
        store.append(&router, &stream, Expected::Any, vec![made]).await.unwrap();
    }
    ids
}

async fn rows(manager: &DbManager) -> i64 {
    let hot = manager.hot();
    let count = hot.read(TEST, |conn| {
        Box::pin(
            async move { Ok::<_, Error>(sqlx::query_scalar("SELECT COUNT(*) FROM hot_log").fetch_one(conn).await?) },
        )
    });
    count.await.unwrap()
}

#[tokio::test]
async fn what_was_appended_singly_takes_a_fraction_and_reads_as_before() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = append_singly(&manager, &store, 1_000).await;
    let before = store.status().await.unwrap();
    assert_eq!(rows(&manager).await, 1_000);
    let report = store.compact().await.unwrap();
    assert_eq!(report.joined - report.rows, 1_000 - u64::try_from(rows(&manager).await).unwrap());
    assert!(rows(&manager).await <= 36, "{} rows are left", rows(&manager).await);
    let after = store.status().await.unwrap();
    assert!(after.hot_bytes.0 * 2 < before.hot_bytes.0, "{} of {} bytes", after.hot_bytes.0, before.hot_bytes.0);
    assert_eq!((after.end, after.shed, after.lost), (before.end, 0, 0));

    assert_eq!(read_ids(&store, Query::all()).await, ids);
    let of_stream: Vec<Ulid> = ids.iter().skip(2).step_by(4).copied().collect();
    let by_stream = || Query::scope(router("r1")).stream(stream("t"));
    assert_eq!(read_ids(&store, by_stream()).await, of_stream);
    let newest: Vec<Ulid> = of_stream.iter().rev().take(10).copied().collect();
    assert_eq!(read_ids(&store, by_stream().backwards().limit(10)).await, newest);
    let again = store.compact().await.unwrap();
    assert_eq!(again, CompactReport::default(), "there is nothing left to join");

    // A flush that ended in the middle of what became one row goes on behind it.
    assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
    let more = append_singly(&manager, &store, 200).await;
    store.compact().await.unwrap();
    assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
    let flushed = u64::try_from(more.len() / 5 * 4).unwrap();
    store.shutdown().await.unwrap();
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    assert_eq!(read_ids(&other, Query::all()).await, [ids, more].concat());
    let held = other.status().await.unwrap();
    let in_segments: u64 = held.warm.iter().map(|scope| scope.as_ref().unwrap().segments.events).sum();
    assert_eq!(in_segments, 800 + flushed, "each is in one segment, and in one only");
}

/// Another process that knew the first half of what became one row takes the other half into account, and never gives a
/// position again.
#[tokio::test]
async fn a_store_that_knows_half_of_a_row_learns_the_rest() {
    let site = Site::new();
    let (manager, ours) = site.open().await;
    let mut ids = append_singly(&manager, &ours, 20).await;
    let theirs = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    ids.extend(append_singly(&manager, &theirs, 1).await);
    for _ in 0..3 {
        ids.extend(append_singly(&manager, &ours, 70).await);
        assert!(ours.compact().await.unwrap().joined > 0);
        ids.extend(append_singly(&manager, &theirs, 1).await);
    }
    for store in [&ours, &theirs] {
        assert_eq!(read_ids(store, Query::all()).await, ids);
        let by_stream = Query::scope(router("r1")).stream(stream("s"));
        let expected: Vec<Ulid> = read_ids(&ours, Query::scope(router("r1"))).await;
        let other = Query::scope(router("r1")).stream(stream("t"));
        assert_eq!(read_ids(store, by_stream).await.len() + read_ids(store, other).await.len(), expected.len());
    }
}

#[tokio::test]
async fn a_damaged_row_is_left_alone() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = append_singly(&manager, &store, 90).await;
    manager
        .hot()
        .write(TEST, |conn| {
            Box::pin(async move {
                let flip = "UPDATE hot_log SET body = CAST(substr(body, 1, 20) || x'00' || substr(body, 22) AS BLOB) \
                     WHERE first_seq = 40";
                sqlx::query(flip).execute(conn).await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
    store.compact().await.unwrap();
    let whole: Vec<Ulid> = ids.iter().enumerate().filter(|(index, _)| *index != 39).map(|(_, id)| *id).collect();
    assert_eq!(read_ids(&store, Query::all()).await, ids, "who appended it has it still");
    let (mut read, mut damaged) = (Vec::new(), 0);
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let mut events = other.read(Query::all());
    while let Some(found) = events.next().await {
        match found {
            Ok(event) => read.push(event.id),
            Err(Error::Corrupt { .. }) => damaged += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((read, damaged), (whole, 1));
}

#[tokio::test]
async fn the_loop_joins_small_rows_without_being_asked() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let looped = store.clone();
    let task = tokio::spawn(async move { looped.maintain(async move { drop(stopped.await) }).await });
    let mut ids = Vec::new();
    let joined = async {
        loop {
            let made = normal(&manager);
            ids.push(made.id);
            store.append(&router("r1"), &stream("s"), Expected::Any, vec![made]).await.unwrap();
            if ids.len() > 300 && rows(&manager).await < 100 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), joined).await.expect("the loop joins rows");
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

/// Rows that are too long to be joined to one like them, those too long to be joined to their neighbours, and long events.
#[tokio::test]
async fn what_has_no_neighbour_to_be_joined_to_is_compressed_all_the_same() {
    for (batches, sizes, bytes) in [(40, [20, 20], 200), (40, [16, 20], 470), (10, [1, 1], 9_000)] {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let (mut raw, mut ids) = (0, Vec::new());
        for (batch, size) in (0..batches).zip(sizes.into_iter().cycle()) {
            let event = |number: u64| {
                let body = json!({ "batch": batch, "number": number, "comment": "uplink office ".repeat(bytes / 14) });
                raw += body.to_string().len() as u64;
                NewEvent::new(manager.next_ulid(), EventType::parse("resource.updated").unwrap(), &body).unwrap()
            };
            let events: Vec<NewEvent> = (0..size).map(event).collect();
            ids.extend(events.iter().map(|event| event.id));
            store.append(&router("r1"), &stream("s"), Expected::Any, events).await.unwrap();
        }
        store.compact().await.unwrap();
        let held = store.status().await.unwrap().hot.bytes;
        assert!(held * 4 < raw, "{held} bytes for {raw} in batches of {sizes:?}");
        assert_eq!(read_ids(&store, Query::all()).await, ids);
    }
}
