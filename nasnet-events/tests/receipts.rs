//! What an append answers: versions, durability, conflicts and known ids.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use futures_util::{FutureExt, TryStreamExt};
use nasnet_dbmanager::Scope;
use nasnet_events::{
    Achieved, Class, ClassRules, Error, EventOptions, Expected, FlushReason, Level, NewEvent, Query, StreamAppend,
    types,
};
use support::{Site, TEST, append_in, empty_hot, event, large, normal, on_scope, read, read_ids, router, stream};

#[tokio::test]
async fn the_class_of_the_type_decides_what_is_achieved() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    for (name, achieved) in [
        ("resource.updated", Achieved::Hot),
        ("metric.updated", Achieved::Hot),
        ("never.heard.of", Achieved::Hot),
        ("config.applied", Achieved::Synced),
        ("auth.session.revoked", Achieved::Synced),
    ] {
        for scope in [Scope::System, router("r1")] {
            // However quietly it is said.
            let quiet = event(&manager, name).level(Level::Debug);
            let receipt = store.append(&scope, &stream("s"), Expected::Any, vec![quiet]).await.unwrap();
            assert_eq!(receipt.achieved, achieved, "{name} in {scope}");
        }
    }
    assert_eq!(store.status().await.unwrap().unclassified, 2);
}

#[tokio::test]
async fn a_batch_is_as_durable_as_its_most_important_event() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let batch = vec![normal(&manager), event(&manager, "config.applied"), event(&manager, "metric.updated")];
    let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, batch).await.unwrap();
    assert_eq!((receipt.version, receipt.achieved), (3, Achieved::Synced));
    assert_eq!(receipt.last.seq - receipt.first.seq, 2);
}

#[tokio::test]
async fn a_state_change_is_synced_whatever_its_class() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let append = StreamAppend::new(stream("s"), Expected::Unwritten, vec![event(&manager, "metric.updated")]);
    let receipts = append_in(&manager, &store, &router("r1"), vec![append]).await.unwrap();
    assert_eq!(receipts[0].achieved, Achieved::Synced);
    assert_eq!(read(&store, Query::all()).await[0].class, Class::Low);
}

#[tokio::test]
async fn expectations_are_checked_and_the_conflict_tells_what_was_missed() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("resource/1"));
    let append = |expected, event: NewEvent| store.append(&scope, &name, expected, vec![event]);
    assert!(matches!(append(Expected::Exists, normal(&manager)).await, Err(Error::Conflict(_))));
    assert!(matches!(append(Expected::Exact(1), normal(&manager)).await, Err(Error::Conflict(_))));
    append(Expected::Unwritten, normal(&manager)).await.unwrap();
    let (hot, durable) = (normal(&manager), event(&manager, "config.applied"));
    append(Expected::Exact(1), hot.clone()).await.unwrap();
    append(Expected::Exact(2), durable.clone()).await.unwrap();
    append(Expected::Exists, normal(&manager)).await.unwrap();

    for stale in [normal(&manager), event(&manager, "config.applied")] {
        let Err(Error::Conflict(conflict)) = append(Expected::Exact(1), stale).await else { panic!("no conflict") };
        assert_eq!((conflict.actual, conflict.tail_lost), (4, false));
        assert_eq!(conflict.since.iter().map(|head| head.version).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(conflict.since[0].id, hot.id);
        assert_eq!(conflict.since[1].kind, types::CONFIG_APPLIED);
    }
    assert_eq!(read(&store, Query::scope(scope.clone())).await.len(), 4, "a conflict appends nothing");
}

#[tokio::test]
async fn versions_go_on_after_everything_was_closed_and_hot_is_gone() {
    let site = Site::new();
    let (scope, name) = (router("r1"), stream("resource/1"));
    let (manager, store) = site.open().await;
    store.append(&scope, &name, Expected::Unwritten, vec![event(&manager, "config.applied")]).await.unwrap();
    store.append(&scope, &name, Expected::Exact(1), vec![normal(&manager), normal(&manager)]).await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    let (manager, store) = site.open().await;
    let receipt = store.append(&scope, &name, Expected::Exact(3), vec![normal(&manager)]).await.unwrap();
    assert_eq!((receipt.version, receipt.first.epoch), (4, 1));
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    site.wipe_hot();
    let (manager, store) = site.open().await;
    let receipt = store.append(&scope, &name, Expected::Exact(4), vec![normal(&manager)]).await.unwrap();
    assert_eq!((receipt.version, receipt.first.epoch), (5, 2));
    let append = StreamAppend::new(name, Expected::Exact(5), vec![normal(&manager)]);
    assert_eq!(append_in(&manager, &store, &scope, vec![append]).await.unwrap()[0].version, 6);
}

#[tokio::test]
async fn a_known_id_is_answered_with_the_same_receipt() {
    let site = Site::new();
    let (scope, name) = (router("r1"), stream("s"));
    let (manager, store) = site.open().await;
    let (hot, durable) = (normal(&manager), event(&manager, "config.applied"));
    let first = store.append(&scope, &name, Expected::Any, vec![hot.clone()]).await.unwrap();
    let second = store.append(&scope, &name, Expected::Any, vec![durable.clone()]).await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    let (manager, store) = site.open().await;
    for (receipt, event) in [(first, hot.clone()), (second, durable.clone())] {
        let again = store.append(&scope, &name, Expected::Exact(99), vec![event]).await.unwrap();
        assert!(again.deduplicated);
        assert_eq!(nasnet_events::Receipt { deduplicated: false, ..again }, receipt);
    }
    let known = StreamAppend::new(name.clone(), Expected::Any, vec![durable.clone()]);
    let again = append_in(&manager, &store, &scope, vec![known]).await.unwrap();
    assert!(again[0].deduplicated);
    assert_eq!(read(&store, Query::all()).await.len(), 2);
    assert_eq!(read_ids(&store, Query::by_id(durable.id)).await, [durable.id]);

    // An id stands for one append: neither part of a batch nor another stream may use it.
    let mixed = vec![hot.clone(), normal(&manager)];
    assert!(matches!(store.append(&scope, &name, Expected::Any, mixed).await, Err(Error::IdReused { .. })));
    let elsewhere = store.append(&scope, &stream("other"), Expected::Any, vec![hot.clone()]).await;
    assert!(matches!(elsewhere, Err(Error::IdReused { .. })));
    let mut other = hot.clone();
    other.body = normal(&manager).body;
    let other = store.append(&scope, &name, Expected::Any, vec![other]).await;
    assert!(matches!(other, Err(Error::IdReused { .. })), "another content is no repetition: {other:?}");
    let twice = store.append(&scope, &name, Expected::Any, vec![normal(&manager); 2]).await;
    assert!(matches!(twice, Err(Error::IdReused { .. })));

    // What is needed on flash is not waved through because tmpfs knows it.
    let hot = normal(&manager);
    store.append(&scope, &name, Expected::Any, vec![hot.clone()]).await.unwrap();
    let upgraded = StreamAppend::new(name.clone(), Expected::Any, vec![hot.clone()]);
    let refused = append_in(&manager, &store, &scope, vec![upgraded.clone()]).await;
    assert!(matches!(refused, Err(Error::NotDurable { reached: Some(Achieved::Hot), .. })), "{refused:?}");
    let low = event(&manager, "metric.updated");
    let low = StreamAppend::new(stream("low"), Expected::Any, vec![low]);
    store.append(&scope, &low.stream, low.expected, low.events.clone()).await.unwrap();
    // A flush brings it there, and leaves Low ones where they are.
    store.flush(nasnet_events::FlushReason::Requested).await.unwrap();
    let there = append_in(&manager, &store, &scope, vec![upgraded]).await.unwrap();
    assert_eq!((there[0].achieved, there[0].deduplicated), (Achieved::Synced, true));
    let refused = append_in(&manager, &store, &scope, vec![low]).await;
    assert!(matches!(refused, Err(Error::NotDurable { reached: Some(Achieved::Hot), .. })), "{refused:?}");
    let other = nasnet_events::EventStore::open(&manager, nasnet_events::EventOptions::default()).await.unwrap();
    let durable = nasnet_events::Durability::Durable;
    let again = other.append_with(&scope, &name, Expected::Any, vec![hot], durable).await.unwrap();
    assert_eq!((again.achieved, again.deduplicated), (Achieved::Synced, true), "another process knows it as well");
}

#[tokio::test]
async fn malformed_appends_are_refused_before_anything_is_written() {
    let site = Site::new();
    let mut options = EventOptions::default().classes(ClassRules::empty());
    options.body_bytes_max = 32;
    let (manager, store) = site.open_with(options).await;
    let (scope, name) = (router("r1"), stream("s"));
    let empty = store.append(&scope, &name, Expected::Any, Vec::new()).await;
    assert!(matches!(empty, Err(Error::Invalid { .. })));
    let large = NewEvent::new(manager.next_ulid(), types::RESOURCE_UPDATED, &"x".repeat(40)).unwrap();
    assert!(matches!(store.append(&scope, &name, Expected::Any, vec![large]).await, Err(Error::TooLarge { .. })));
    let small = NewEvent::new(manager.next_ulid(), types::CONFIG_APPLIED, &1).unwrap();
    let nowhere = store.append(&router("unknown"), &name, Expected::Any, vec![small]).await;
    assert!(matches!(nowhere, Err(Error::Storage { .. })), "{nowhere:?}");
    assert!(read(&store, Query::all()).await.is_empty());
}

#[tokio::test]
async fn a_body_is_kept_on_one_line() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut event = normal(&manager);
    event.body = serde_json::value::RawValue::from_string("{\r\n  \"a\\n\": 1\n}".to_owned()).unwrap();
    store.append(&Scope::System, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    let stored = &read(&store, Query::all()).await[0];
    assert!(!stored.body.get().contains('\n'));
    assert_eq!(stored.body_as::<serde_json::Value>().unwrap(), serde_json::json!({ "a\n": 1 }));
}

#[tokio::test]
async fn a_closed_store_refuses() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    store.shutdown().await.unwrap();
    let closed = store.append(&Scope::System, &stream("s"), Expected::Any, vec![normal(&manager)]).await;
    assert!(matches!(closed, Err(Error::Closed)));
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_event_by_its_id_is_read_from_its_own_database_alone() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let event = normal(&manager);
    for (scope, event) in [(router("r1"), event.clone()), (router("r2"), normal(&manager))] {
        store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r2"), "ALTER TABLE event_segments RENAME TO away").await;
    assert!(store.read(Query::all()).try_collect::<Vec<_>>().await.is_err());
    let found: Vec<_> = store.read(Query::by_id(event.id)).try_collect().await.unwrap();
    assert_eq!(found.iter().map(|event| event.scope.clone()).collect::<Vec<_>>(), [router("r1")]);
}

#[tokio::test]
async fn a_shutdown_that_is_dropped_is_finished_by_the_next() {
    // Dropped after so many polls, until one gets through.
    for polls in (0..).step_by(4) {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
        let mut left = polls;
        let done = {
            let mut shutdown = pin!(store.shutdown());
            poll_fn(|context| match shutdown.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => {
                    left -= 1;
                    Poll::Pending
                }
            })
            .await
        };
        store.shutdown().await.unwrap();
        drop(store);
        manager.shutdown().await.unwrap();
        drop(manager);
        site.wipe_hot();
        let (_manager, store) = site.open().await;
        assert_eq!(store.losses(), [], "after {polls} polls");
        let found = read(&store, Query::all()).await;
        assert_eq!(
            found.iter().map(|event| event.position).collect::<Vec<_>>(),
            [receipt.first],
            "after {polls} polls"
        );
        if let Some(done) = done {
            done.unwrap();
            assert!(polls > 3, "{polls} polls");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_writes_and_get_every_position_once() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let callers = (0..64).map(|caller| {
        let (manager, store) = (manager.clone(), store.clone());
        tokio::spawn(async move {
            let name = stream(&format!("s/{}", caller % 8));
            let mut receipts = Vec::new();
            for _ in 0..10 {
                let batch = vec![normal(&manager), normal(&manager)];
                receipts.push(store.append(&router("r1"), &name, Expected::Any, batch).await.unwrap());
            }
            receipts
        })
    });
    let mut receipts = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        receipts.extend(caller.await.unwrap());
    }
    let mut seqs: Vec<u64> = receipts.iter().flat_map(|receipt| receipt.first.seq..=receipt.last.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=1_280).collect::<Vec<_>>());
    let events = read(&store, Query::all()).await;
    assert_eq!(events.len(), 1_280);
    for number in 0..8 {
        let versions = read(&store, Query::all().stream(stream(&format!("s/{number}")))).await;
        assert_eq!(versions.iter().map(|event| event.version).collect::<Vec<_>>(), (1..=160).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_single_caller_has_its_receipt_without_waiting_for_a_task() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for _ in 0..20 {
        store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for version in 21..=30 {
        let append = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]);
        assert_eq!(append.now_or_never().expect("done in one poll").unwrap().version, version);
    }
}

#[tokio::test]
async fn large_bodies_fill_the_queue_sooner() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    let many = || (0..100).map(|_| large(&manager, "resource.updated", 200 << 10)).collect::<Vec<_>>();
    let (first, second) = tokio::join!(
        store.append(&scope, &name, Expected::Any, many()),
        store.append(&scope, &name, Expected::Any, many()),
    );
    first.unwrap();
    assert!(matches!(second, Err(Error::Overloaded { queue }) if queue >= 10_000), "{second:?}");
}

#[tokio::test]
async fn a_full_queue_is_a_typed_refusal() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.queue_events_max = EventOptions::BATCH_EVENTS_MAX;
    let (manager, store) = site.open_with(options).await;
    let (scope, name) = (router("r1"), stream("s"));
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    // As long as somebody else writes to the hot tier, what is queued stays there.
    let ((busy, is_busy), (done, is_done)) = (tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel::<()>());
    let hot = manager.hot();
    let writing = hot.write(TEST, |_| {
        Box::pin(async move {
            busy.send(()).unwrap();
            is_done.await.unwrap();
            Ok::<_, Error>(())
        })
    });
    let full: Vec<NewEvent> = (0..EventOptions::BATCH_EVENTS_MAX).map(|_| normal(&manager)).collect();
    let appending = async {
        is_busy.await.unwrap();
        tokio::join!(store.append(&scope, &name, Expected::Any, full), async {
            let second = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await;
            done.send(()).unwrap();
            second
        })
    };
    let (written, (first, second)) = tokio::join!(writing, appending);
    written.unwrap();
    assert_eq!(first.unwrap().last.seq, 1 + EventOptions::BATCH_EVENTS_MAX as u64);
    let refused = second.unwrap_err();
    assert!(matches!(refused, Error::Overloaded { .. }) && refused.is_retryable(), "{refused:?}");
    store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
}

#[tokio::test]
async fn many_streams_are_appended_at_once_and_each_is_refused_by_itself() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    store.append(&scope, &stream("b"), Expected::Unwritten, vec![normal(&manager)]).await.unwrap();
    let appends = vec![
        StreamAppend::new(stream("a"), Expected::Unwritten, vec![normal(&manager), normal(&manager)]),
        StreamAppend::new(stream("b"), Expected::Unwritten, vec![normal(&manager)]),
        StreamAppend::new(stream("c"), Expected::Any, vec![event(&manager, "config.applied")]),
        StreamAppend::new(stream("d"), Expected::Any, Vec::new()),
        StreamAppend::new(stream("a"), Expected::Exact(2), vec![normal(&manager)]),
    ];
    let results = store.append_each(&scope, appends).await.unwrap();
    assert_eq!(results.len(), 5);
    let [a, b, c, d, again] = <[_; 5]>::try_from(results).unwrap();
    assert_eq!(a.map(|receipt| (receipt.version, receipt.achieved)).unwrap(), (2, Achieved::Hot));
    assert!(matches!(b, Err(Error::Conflict(conflict)) if conflict.actual == 1 && conflict.since.len() == 1));
    assert_eq!(c.unwrap().achieved, Achieved::Synced);
    assert!(matches!(d, Err(Error::Invalid { .. })));
    assert_eq!(again.unwrap().version, 3);
    assert_eq!(read(&store, Query::scope(scope)).await.len(), 5);
}

#[tokio::test]
async fn appends_to_one_stream_come_in_the_order_in_which_they_are_given_however_durable() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let kinds = ["metric.updated", "config.applied", "resource.updated", "config.applied"];
    let append = |(before, kind)| StreamAppend::new(name.clone(), Expected::Exact(before), vec![event(&manager, kind)]);
    let results = store.append_each(&scope, (0..).zip(kinds).map(append).collect()).await.unwrap();
    let versions: Vec<u64> = results.into_iter().map(|receipt| receipt.unwrap().version).collect();
    assert_eq!(versions, [1, 2, 3, 4]);
    let read = read(&store, Query::scope(scope)).await;
    assert_eq!(read.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), kinds);
}

#[tokio::test]
async fn an_id_that_comes_twice_in_one_transaction_is_refused_for_good() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    for names in [["s", "t"], ["s", "s"]] {
        let event = normal(&manager);
        let append = |name: &str| StreamAppend::new(stream(name), Expected::Any, vec![event.clone()]);
        let appends = names.map(append).to_vec();
        let refused = support::append_in(&manager, &store, &router("r1"), appends).await.unwrap_err();
        assert!(matches!(refused, Error::IdReused { id } if id == event.id) && !refused.is_retryable(), "{refused:?}");
    }
}
