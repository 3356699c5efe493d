//! Rows that have grown old become segments, segments are written with dictionaries, and nothing reads differently.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::DbManager;
use nasnet_events::{Error, EventOptions, EventStore, Expected, FlushReason, Query, Span};
use sqlx::{ConnectOptions as _, Connection as _};
use support::{Site, empty_hot, event, kind, on_scope, read, router, stream};

const DAY: Duration = Duration::from_secs(86_400);

async fn append(manager: &DbManager, store: &EventStore, name: &str, count: usize) {
    for number in 0..count {
        let event = event(manager, name);
        let name = stream(&format!("resource/{}", number % 7));
        store.append(&router("r1"), &name, Expected::Any, vec![event]).await.unwrap();
    }
}

/// Events as alike and as different as those of routers.
async fn append_alike(manager: &DbManager, store: &EventStore, count: usize) {
    let batch = (0..count).map(|number| support::alike(manager, number));
    for chunk in batch.collect::<Vec<_>>().chunks(50) {
        store.append(&router("r1"), &stream("s"), Expected::Any, chunk.to_vec()).await.unwrap();
    }
}

#[tokio::test]
async fn old_rows_become_segments_and_read_as_before() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append(&manager, &store, "config.applied", 50).await;
    append(&manager, &store, "resource.updated", 40).await;
    append(&manager, &store, "config.applied", 50).await;
    store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!(store.seal().await.unwrap().events, 0, "nothing is old");
    site.clock.advance(DAY);
    append(&manager, &store, "config.applied", 10).await;
    let before = read(&store, Query::all()).await;
    empty_hot(&manager).await;
    assert_eq!(read(&store, Query::all()).await, before);

    let report = store.seal().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (100, 0));
    let status = store.status().await.unwrap().warm.remove(1).unwrap();
    assert_eq!((status.rows.events, status.sealed.events, status.segments.events), (10, 100, 40));
    assert!(status.sealed.bytes < 100 * 120, "{status:?}");

    assert_eq!(read(&store, Query::all()).await, before);
    let mut backwards = read(&store, Query::all().backwards()).await;
    backwards.reverse();
    assert_eq!(backwards, before);
    for query in [
        Query::all().stream(stream("resource/3")),
        Query::all().kind(kind("config.applied")),
        Query::all().after(before[20].position).until(before[120].position),
        Query::by_id(before[7].id),
    ] {
        let expected: Vec<_> = before.iter().filter(|event| query.matches(event)).cloned().collect();
        assert_eq!(read(&store, query).await, expected);
    }

    // The chain of the rows leads through the segment they are in now.
    let verification = store.verify(Span::all()).await.unwrap();
    assert!(verification.is_sound(), "{:?}", verification.faults);

    for (sql, why) in [
        ("UPDATE event_sealed SET wall_max_ms = 0", "append-only"),
        ("DELETE FROM event_sealed", "deleted by retention alone"),
    ] {
        let database = manager.scope(&router("r1")).await.unwrap();
        let refused = database
            .write(support::TEST, move |conn| {
                Box::pin(async move { Ok::<_, Error>(sqlx::query(sql).execute(conn).await?.rows_affected()) })
            })
            .await;
        support::assert_refused(&refused, why, sql);
    }

    // Versions go on, also in a store that has never seen the rows.
    store.shutdown().await.unwrap();
    let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let next = before.iter().filter(|event| event.stream == stream("resource/3")).map(|event| event.version).max();
    let event = event(&manager, "config.applied");
    let receipt = store.append(&router("r1"), &stream("resource/3"), Expected::Any, vec![event]).await.unwrap();
    assert_eq!(receipt.version, next.unwrap() + 1);
}

#[tokio::test]
async fn too_many_rows_are_sealed_whatever_their_age_and_damaged_ones_stay() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.rows_max = 100;
    let (manager, store) = site.open_with(options).await;
    append(&manager, &store, "config.applied", 100).await;
    assert_eq!(store.seal().await.unwrap().events, 0);
    append(&manager, &store, "config.applied", 20).await;
    let before = read(&store, Query::all()).await;
    empty_hot(&manager).await;
    const DAMAGE: &str =
        "DROP TRIGGER event_rows_are_immutable; UPDATE event_rows SET crc = crc + 1 WHERE pos & 0xFF = 5";
    on_scope(&manager, &router("r1"), DAMAGE).await;
    let report = store.seal().await.unwrap();
    assert!(report.failed.is_empty() && report.events >= 50, "{report:?}");
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert!(items.iter().any(|item| matches!(item, Err(Error::Corrupt { .. }))));
    let found: Vec<_> = items.into_iter().filter_map(Result::ok).collect();
    let expected: Vec<_> = before.into_iter().filter(|event| event.position.seq != 5).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_dictionary_makes_segments_smaller_and_a_missing_one_hides_only_what_needs_it() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_alike(&manager, &store, 150).await;
    store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!(store.train().await.unwrap(), 0, "too few to learn from");
    append_alike(&manager, &store, 150).await;
    store.flush(FlushReason::Requested).await.unwrap();
    append_alike(&manager, &store, 60).await;
    let without = store.flush(FlushReason::Requested).await.unwrap().body_bytes;
    assert_eq!(store.train().await.unwrap(), 1);
    assert_eq!(store.train().await.unwrap(), 0, "nothing new to learn from");
    append_alike(&manager, &store, 60).await;
    let with = store.flush(FlushReason::Requested).await.unwrap().body_bytes;
    println!("60 events: {without} bytes without a dictionary, {with} with");
    assert!(with * 10 < without * 9, "{with} of {without}");
    let before = read(&store, Query::all()).await;
    empty_hot(&manager).await;
    assert_eq!(read(&store, Query::all()).await, before);

    // Never deleted while a segment needs it, never changed.
    for (sql, why) in [
        ("DELETE FROM event_dictionaries", "FOREIGN KEY"),
        ("UPDATE event_dictionaries SET events = 1", "event dictionaries are never changed"),
    ] {
        let done = manager.scope(&router("r1")).await.unwrap();
        let refused = done
            .write(support::TEST, move |conn| {
                Box::pin(async move {
                    sqlx::query(sql).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await;
        support::assert_refused(&refused, why, sql);
    }
    // Lost all the same, by a hand that keeps no rules.
    let path = manager.scope(&router("r1")).await.unwrap().path().to_owned();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).foreign_keys(false);
    let mut conn = options.connect().await.unwrap();
    sqlx::query("DELETE FROM event_dictionaries").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let items: Vec<_> = store.read(Query::scope(router("r1"))).collect().await;
    let found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).cloned().collect();
    assert_eq!(found, before[..360]);
    let missing: Vec<_> = items.iter().filter_map(|item| item.as_ref().err()).collect();
    assert!(
        matches!(missing[..], [Error::DictionaryMissing { scope, segment, .. }]
            if *scope == router("r1") && *segment == before[360].position),
        "{missing:?}"
    );
}

#[tokio::test]
async fn rows_that_are_long_are_sealed_by_their_bytes() {
    let site = Site::new();
    let mut options = EventOptions::default();
    (options.body_bytes_max, options.rows_max) = (1 << 20, 1);
    let (manager, store) = site.open_with(options).await;
    let scope = router("r1");
    let mut ids = Vec::new();
    for _ in 0..16 {
        let long = support::large(&manager, "config.applied", 600 << 10);
        ids.push(long.id);
        store.append(&scope, &stream("s"), Expected::Any, vec![long]).await.unwrap();
    }
    let report = store.seal().await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!((report.segments, report.events), (1, 13), "no more than 8 MiB of them are put together at once");
    empty_hot(&manager).await;
    assert_eq!(support::read_ids(&store, Query::scope(scope)).await, ids);
}
