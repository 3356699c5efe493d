//! What is wrong from the start, and what has been damaged: typed errors, and nothing hidden behind them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use futures_util::{StreamExt, TryStreamExt};
use nasnet_dbmanager::{ClockQuality, DbManager, Scope};
use nasnet_events::history::{Snapshot, Until, events_until};
use nasnet_events::{
    Achieved, Class, Error, EventStore, Expected, FlushReason, Item, NewEvent, Position, Query, Recorded, Span,
    StreamAppend, prepare_cold_dir, types,
};
use sqlx::{ConnectOptions, Connection};
use support::watch::consumer;
use support::{NOW_MS, Site, empty_hot, empty_warm, event, normal, on_scope, read, router, stream, with_cold};

async fn items(store: &nasnet_events::EventStore, query: Query) -> (Vec<Recorded>, Vec<Error>) {
    let (mut events, mut errors) = (Vec::new(), Vec::new());
    let mut items = store.read(query);
    while let Some(item) = items.next().await {
        match item {
            Ok(event) => events.push(event),
            Err(error) => errors.push(error),
        }
    }
    (events, errors)
}

#[tokio::test]
async fn unknown_types_are_normal_and_counted_one_by_one() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let batch = vec![event(&manager, "zebra.seen"), event(&manager, "resource.updated"), event(&manager, "x")];
    store.append(&router("r1"), &stream("s"), Expected::Any, batch).await.unwrap();
    assert!(read(&store, Query::all()).await.iter().all(|event| event.class == Class::Normal));
    assert_eq!(store.status().await.unwrap().unclassified, 2);
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_and_stored_whole_where_that_is_wanted() {
    let body = "x".repeat(10 << 20);
    let site = Site::new();
    let (manager, store) = site.open().await;
    let huge = |manager: &nasnet_dbmanager::DbManager, kind| NewEvent::new(manager.next_ulid(), kind, &body).unwrap();
    for kind in [types::RESOURCE_UPDATED, types::CONFIG_APPLIED] {
        let refused = store.append(&router("r1"), &stream("s"), Expected::Any, vec![huge(&manager, kind)]).await;
        let Err(Error::TooLarge { what: "event body", size, max }) = refused else { panic!("{refused:?}") };
        assert_eq!((size, max), ((10 << 20) + 2, 256 << 10));
    }
    assert!(read(&store, Query::all()).await.is_empty());

    let site = Site::new();
    let mut options = with_cold(&site);
    options.body_bytes_max = 16 << 20;
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let (scope, name) = (router("r1"), stream("s"));
    // Each of them fills a block of its own.
    let batch: Vec<_> = (0..2).map(|_| huge(&manager, types::RESOURCE_UPDATED)).collect();
    store.append(&scope, &name, Expected::Any, batch).await.unwrap();
    let durable =
        store.append(&scope, &name, Expected::Any, vec![huge(&manager, types::CONFIG_APPLIED)]).await.unwrap();
    assert_eq!(durable.achieved, Achieved::Synced);
    let flushed = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((flushed.events, flushed.failed.len()), (2, 0));
    store.archive().await.unwrap();
    for tier in ["hot", "below"] {
        let events = read(&store, Query::all().stream(name.clone())).await;
        assert_eq!(events.len(), 3, "{tier}");
        assert!(events.iter().all(|event| event.body.get().len() == (10 << 20) + 2));
        empty_hot(&manager).await;
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_damages_its_own_row_only() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for _ in 0..5 {
        store.append(&scope, &name, Expected::Any, vec![event(&manager, "config.applied")]).await.unwrap();
    }
    empty_hot(&manager).await;
    on_scope(
        &manager,
        &scope,
        "DROP TRIGGER event_rows_are_immutable;
         UPDATE event_rows SET body = CAST(x'22ff22' AS TEXT) WHERE version = 2;
         INSERT INTO event_names (text) VALUES (CAST(x'ffff' AS TEXT));
         UPDATE event_rows SET actor = (SELECT MAX(id) FROM event_names) WHERE version = 4",
    )
    .await;
    for query in [Query::all(), Query::all().backwards(), Query::scope(scope.clone()).stream(name)] {
        let (events, errors) = items(&store, query).await;
        assert_eq!(events.len(), 3);
        assert_eq!(errors.len(), 2, "{errors:?}");
        for error in errors {
            let Error::Corrupt { what, .. } = &error else { panic!("{error:?}") };
            assert!(what.starts_with("r1 event_rows row "), "{error}");
        }
    }
}

#[tokio::test]
async fn a_gap_in_the_versions_is_told_by_history_and_verify_and_never_filled() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for _ in 0..4 {
        store.append(&scope, &name, Expected::Any, vec![event(&manager, "config.applied")]).await.unwrap();
    }
    store.shutdown().await.unwrap();
    on_scope(&manager, &scope, "DROP TRIGGER event_rows_are_retained; DELETE FROM event_rows WHERE version IN (2, 3)")
        .await;
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (manager, store) = site.open().await;
    let versions: Vec<u64> = read(&store, Query::all()).await.iter().map(|event| event.version).collect();
    assert_eq!(versions, [1, 4], "a query is no history");
    let history = events_until(&store, &scope, &name, Until::Position(Position::END)).await.unwrap();
    let told: Vec<_> = history.collect().await;
    let [Ok(first), Err(gap), Ok(last)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((first.version, last.version), (1, 4), "what is behind the gap is read");
    assert!(matches!(gap, Error::VersionGap { stream, after: 1, next: 4, .. } if *stream == name), "{gap:?}");
    assert!(!store.verify(Span::all()).await.unwrap().is_sound());
    let guessed = store.decide(&scope, &name, |_| Ok::<_, Error>(vec![normal(&manager)])).await;
    assert!(matches!(&guessed, Err(Error::VersionGap { after: 1, next: 4, .. })), "{guessed:?}");
    let decided = store.decide_after(&scope, &name, Snapshot::at(last), |history| {
        assert_eq!(history.len(), 0);
        Ok::<_, Error>(vec![normal(&manager)])
    });
    assert_eq!(decided.await.unwrap().unwrap().version, 5);
}

/// The one gap the store makes by itself: the hot append is acknowledged before it is known how the transaction ends.
#[tokio::test]
async fn a_version_that_rolls_back_beneath_an_append_to_the_hot_tier_is_a_gap_that_is_told() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let inside = StreamAppend::new(name.clone(), Expected::Any, vec![normal(&manager)]);
    let (own, on_top, appended) = (store.clone(), normal(&manager), scope.clone());
    let database = manager.scope(&scope).await.unwrap();
    let rolled_back = database
        .write(support::TEST, move |conn| {
            Box::pin(async move {
                let pending = own.append_in(conn, &appended, vec![inside]).await?;
                let receipt = own.append(&appended, &stream("s"), Expected::Any, vec![on_top]).await?;
                assert_eq!((receipt.version, receipt.achieved), (2, Achieved::Hot));
                drop(pending);
                Err::<(), _>(Error::Closed)
            })
        })
        .await;
    assert!(matches!(rolled_back, Err(Error::Closed)));
    store.resolve().await.unwrap();
    let receipt =
        store.append(&scope, &name, Expected::Exact(2), vec![event(&manager, "config.applied")]).await.unwrap();
    assert_eq!(receipt.version, 3);
    let history = events_until(&store, &scope, &name, Until::Position(Position::END)).await.unwrap();
    let told: Vec<_> = history.collect().await;
    assert!(matches!(told[0], Err(Error::VersionGap { after: 0, next: 2, .. })), "{told:?}");
    assert_eq!(told.len(), 3);
    store.flush(FlushReason::Requested).await.unwrap();
    assert!(store.verify(Span::all()).await.unwrap().is_sound(), "nothing was taken from the record");
}

/// Whatever rolls back inside one transaction or around it, durable versions count up without a gap.
#[tokio::test]
async fn transactions_stacked_on_one_stream_leave_no_gap_whichever_of_them_rolls_back() {
    for keep in 0..8_u32 {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let (scope, name) = (router("r1"), stream("s"));
        let database = manager.scope(&scope).await.unwrap();
        // Three operations at once share a commit; each has a part of its own that is taken back.
        let operations = (0..3).map(|number| {
            let (own, appended, is_kept) = (store.clone(), scope.clone(), keep & (1 << number) != 0);
            let events = [normal(&manager), normal(&manager)]
                .map(|event| StreamAppend::new(name.clone(), Expected::Any, vec![event]));
            database.write(support::TEST, move |conn| {
                Box::pin(async move {
                    let [inner, outer] = events;
                    sqlx::query("SAVEPOINT inner").execute(&mut *conn).await?;
                    drop(own.append_in(conn, &appended, vec![inner]).await?);
                    sqlx::query("ROLLBACK TO inner").execute(&mut *conn).await?;
                    sqlx::query("RELEASE inner").execute(&mut *conn).await?;
                    let pending = own.append_in(conn, &appended, vec![outer]).await?;
                    if is_kept { Ok(pending) } else { Err(Error::Closed) }
                })
            })
        });
        let mut pending: Vec<_> = futures_util::future::join_all(operations).await.into_iter().flatten().collect();
        assert_eq!(pending.len(), keep.count_ones() as usize);
        // Published in whatever order.
        pending.reverse();
        for pending in pending {
            store.published(pending).await;
        }
        store.append(&scope, &name, Expected::Any, vec![event(&manager, "config.applied")]).await.unwrap();
        store.resolve().await.unwrap();
        let history = events_until(&store, &scope, &name, Until::Position(Position::END)).await.unwrap();
        let versions: Vec<u64> = history.map_ok(|event| event.version).try_collect().await.unwrap();
        assert_eq!(versions, (1..=u64::from(keep.count_ones()) + 1).collect::<Vec<_>>(), "{keep:03b}");
    }
}

#[tokio::test]
async fn a_missing_dictionary_is_named_with_the_segment_by_all_who_read_and_hides_nothing_else() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    append_with_dictionary(&manager, &store, &scope).await;
    let all = read(&store, Query::all()).await;
    empty_hot(&manager).await;
    let name = lose_dictionary(&manager, &scope).await;
    let damaged = [all[300].position, all[360].position];
    let readable: Vec<_> = all[..300].iter().chain(&all[420..]).map(|event| event.id).collect();
    let check = |errors: &[Error]| {
        for (error, first) in errors.iter().zip(damaged) {
            assert!(
                matches!(error, Error::DictionaryMissing { scope, segment, dictionary }
                if *scope == router("r1") && *segment == first && dictionary.to_string() == name),
                "{error:?}"
            );
        }
        assert_eq!(errors.len(), 2, "{errors:?}");
    };
    let (events, errors) = items(&store, Query::all()).await;
    assert!(events.iter().map(|event| event.id).eq(readable.iter().copied()), "{} events", events.len());
    check(&errors);

    // A consumer is told and goes on.
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let (mut shown, mut told) = (Vec::new(), Vec::new());
    loop {
        match subscription.next().await.unwrap() {
            Ok(Item::CaughtUp { .. }) => break,
            Ok(item) => shown.push(item.event().unwrap().id),
            Err(error) => told.push(error),
        }
    }
    assert!(shown == readable, "{} events", shown.len());
    check(&told);

    let verification = store.verify(Span::all()).await.unwrap();
    let faults: Vec<_> = verification.faults.iter().filter(|fault| fault.detail.contains(&name)).collect();
    assert_eq!(faults.iter().filter_map(|fault| fault.position).collect::<Vec<_>>(), damaged, "{verification:?}");
    let exported = nasnet_events::evidence::export(&store, Span::all(), Vec::new()).await;
    assert!(exported.as_ref().is_err_and(|error| error.to_string().contains(&name)), "{exported:?}");

    // An instant is found among the events of the scope, whatever lies between.
    let other = stream("other");
    store.append(&scope, &other, Expected::Any, vec![normal(&manager)]).await.unwrap();
    let history = events_until(&store, &scope, &other, Until::WallMs(NOW_MS - 1)).await.unwrap();
    assert!(history.try_collect::<Vec<_>>().await.unwrap().is_empty());
    let history = events_until(&store, &scope, &other, Until::WallMs(i64::MAX)).await.unwrap();
    assert_eq!(history.try_collect::<Vec<_>>().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_needs_a_missing_dictionary_is_read_and_proven_from_the_archive() {
    let site = Site::new();
    let (manager, store) = support::open_with_cold(&site).await;
    let scope = router("r1");
    append_with_dictionary(&manager, &store, &scope).await;
    store.archive().await.unwrap();
    let all = read(&store, Query::all()).await;
    empty_hot(&manager).await;
    lose_dictionary(&manager, &scope).await;
    let (events, errors) = items(&store, Query::all()).await;
    assert_eq!((events.len(), errors.len()), (all.len(), 2), "{errors:?}");
    let bundle = nasnet_events::evidence::export(&store, Span::all(), Vec::new()).await.unwrap();
    assert_eq!(bundle.events().len(), all.len());
}

/// A segment without a dictionary, one with it, and a row.
async fn append_with_dictionary(manager: &DbManager, store: &EventStore, scope: &Scope) {
    for (round, count) in [(0, 300), (1, 60), (2, 60)] {
        let events = (0..count).map(|number| support::alike(manager, number)).collect();
        store.append(scope, &stream("s"), Expected::Any, events).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
        assert_eq!(store.train().await.unwrap(), u64::from(round == 0));
    }
    store.append(scope, &stream("s"), Expected::Any, vec![event(manager, "config.applied")]).await.unwrap();
}

/// Removes it by a hand that keeps no rules; its name.
async fn lose_dictionary(manager: &DbManager, scope: &Scope) -> String {
    let path = manager.scope(scope).await.unwrap().path().to_owned();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).foreign_keys(false);
    let mut conn = options.connect().await.unwrap();
    let id: i64 = sqlx::query_scalar("SELECT id FROM event_dictionaries").fetch_one(&mut conn).await.unwrap();
    sqlx::query("DELETE FROM event_dictionaries").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    format!("{id:08x}")
}

#[tokio::test]
async fn a_clock_in_1970_changes_no_order_and_loses_nothing() {
    let site = Site::new();
    site.clock.set_wall_ms(0);
    site.clock.set_quality(ClockQuality::Unsynced);
    let (manager, store) = site.open_with(with_cold(&site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let (scope, name) = (router("r1"), stream("s"));
    let mut ids = Vec::new();
    for round in 0..3 {
        for kind in ["config.applied", "resource.updated"] {
            let event = event(&manager, kind);
            ids.push(event.id);
            store.append(&scope, &name, Expected::Any, vec![event]).await.unwrap();
        }
        match round {
            0 => site.clock.set_wall_ms(NOW_MS),
            _ => site.clock.set_wall_ms(-NOW_MS),
        }
        store.archive().await.unwrap();
    }
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids never go back");
    let found: Vec<_> = read(&store, Query::all()).await.iter().map(|event| event.id).collect();
    assert_eq!(found, ids);
    empty_hot(&manager).await;
    let found: Vec<_> = read(&store, Query::all()).await.iter().map(|event| event.id).collect();
    assert_eq!(found, ids);
    assert!(store.verify(nasnet_events::Span::all()).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_foreign_file_in_the_cold_directory_is_left_alone_and_hides_nothing() {
    let site = Site::new();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let (scope, name) = (router("r1"), stream("s"));
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    store.archive().await.unwrap();
    let foreign = [("r1/notes.txt", "mine"), ("r1/events-2026-01.jsonl.zst", "no frame at all"), ("photo.jpg", "jpeg")];
    for (path, text) in foreign {
        std::fs::write(site.cold().join(path), text).unwrap();
    }
    std::fs::create_dir_all(site.cold().join("Holiday Pictures/2019")).unwrap();
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (1, 0));
    for (path, text) in foreign {
        assert_eq!(std::fs::read_to_string(site.cold().join(path)).unwrap(), text);
    }
    empty_hot(&manager).await;
    empty_warm(&manager, &scope).await;
    let (events, _) = items(&store, Query::all()).await;
    assert_eq!(events.len(), 2, "the archive is read around it");
    let verification = store.verify(nasnet_events::Span::all()).await.unwrap();
    let frames = verification.lanes.iter().find(|lane| lane.scope == scope && lane.lane == nasnet_events::Lane::Frames);
    assert_eq!(frames.unwrap().events, 2);
}

#[tokio::test]
async fn one_flipped_bit_of_a_segment_is_one_error_and_the_segments_around_it_are_read() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (Scope::System, stream("s"));
    for _ in 0..3 {
        let batch = (0..4).map(|_| normal(&manager)).collect();
        store.append(&scope, &name, Expected::Any, batch).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    empty_hot(&manager).await;
    on_scope(
        &manager,
        &scope,
        "DROP TRIGGER event_segments_are_immutable;
         UPDATE event_segments SET body = CAST(substr(body, 1, 30) || char((unicode(substr(body, 31, 1)) + 1) % 128)
             || substr(body, 32) AS BLOB)
         WHERE first_pos = (SELECT first_pos FROM event_segments ORDER BY first_pos LIMIT 1 OFFSET 1)",
    )
    .await;
    let (events, errors) = items(&store, Query::all()).await;
    assert_eq!((events.len(), errors.len()), (8, 1), "{errors:?}");
    assert!(matches!(&errors[0], Error::Corrupt { what, .. } if what.contains("event_segments")), "{errors:?}");
}

#[tokio::test]
async fn a_segment_whose_list_of_streams_is_damaged_stops_no_append() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for _ in 0..2 {
        let batch = (0..4).map(|_| normal(&manager)).collect();
        store.append(&scope, &name, Expected::Any, batch).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let reopen = async |manager: DbManager, store: EventStore| {
        drop(store);
        manager.shutdown().await.unwrap();
        drop(manager);
        site.wipe_hot();
        site.open().await
    };
    on_scope(
        &manager,
        &scope,
        "DROP TRIGGER event_segments_are_immutable;
         UPDATE event_segments SET streams = CAST(substr(streams, 1, length(streams) - 1) || x'7f' AS BLOB)
         WHERE first_pos = (SELECT MAX(first_pos) FROM event_segments)",
    )
    .await;
    let (manager, store) = reopen(manager, store).await;
    // The body of the segment tells which versions were given.
    let receipt = store.append(&scope, &name, Expected::Exact(8), vec![normal(&manager)]).await.unwrap();
    assert_eq!(receipt.version, 9);

    on_scope(
        &manager,
        &scope,
        "UPDATE event_segments SET body = CAST(x'7f' || substr(body, 2) AS BLOB)
         WHERE streams = (SELECT streams FROM event_segments ORDER BY first_pos LIMIT 1 OFFSET 1)",
    )
    .await;
    let (manager, store) = reopen(manager, store).await;
    let refused = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { what, .. } if what.contains("r1 event_segments row")), "{refused:?}");
    // Other routers are none the worse for it.
    store.append(&router("r2"), &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
}

#[tokio::test]
async fn an_actor_is_a_short_name_on_one_line() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let by = |actor: String| vec![normal(&manager).actor(actor)];
    let (scope, name) = (router("r1"), stream("s"));
    let refused = store.append(&scope, &name, Expected::Any, by("x".repeat(1 << 20))).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { what: "actor", size: 1_048_576, max: 255 }), "{refused:?}");
    for text in ["a\0b", "two\nlines"] {
        let refused = store.append(&scope, &name, Expected::Any, by(text.to_owned())).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { what: "actor", .. }), "{refused:?}");
    }
    store.append(&scope, &name, Expected::Any, by("\u{e9}".repeat(127))).await.unwrap();
    assert_eq!(read(&store, Query::all()).await.len(), 1);
}

#[tokio::test]
async fn what_can_never_fit_into_the_queue_is_not_to_be_tried_again() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let append =
        |count: usize| StreamAppend::new(stream("s"), Expected::Any, (0..count).map(|_| normal(&manager)).collect());
    let refused = store.append_each(&router("r1"), vec![append(16_000), append(400)]).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }) && !refused.is_retryable(), "{refused:?}");
}
