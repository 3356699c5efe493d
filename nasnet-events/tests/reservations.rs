//! Events in the transactions of others: every position ends as an event or a void, and readers never pass an open one.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use nasnet_dbmanager::Scope;
use nasnet_events::{Achieved, Error, EventStore, Expected, Query, StreamAppend};
use support::{PATIENCE, Site, TEST, append_in, event, normal, read_ids, router, stream, transaction};

/// Waits for what happens in the background, and takes part in it.
async fn until_resolved(store: &EventStore) {
    let began = Instant::now();
    loop {
        store.resolve().await.unwrap();
        if store.status().await.unwrap().unresolved == 0 {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "the reservation is never resolved");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn readers_stop_before_a_transaction_that_has_not_been_published() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let (before, inside, after) = (normal(&manager), normal(&manager), normal(&manager));
    store.append(&scope, &name, Expected::Any, vec![before.clone()]).await.unwrap();
    let append = StreamAppend::new(name.clone(), Expected::Any, vec![inside.clone()]);
    let pending = transaction(&manager, &store, &scope, vec![append], true).await.unwrap();
    let receipt = store.append(&router("r2"), &name, Expected::Any, vec![after.clone()]).await.unwrap();
    assert_eq!(receipt.first.seq, 3);
    assert_eq!(read_ids(&store, Query::all()).await, [before.id]);
    assert_eq!(read_ids(&store, Query::all().backwards()).await, [before.id]);
    assert_eq!(store.status().await.unwrap().stable.seq, 1);

    assert_eq!(store.published(pending).await[0].achieved, Achieved::Synced);
    assert_eq!(read_ids(&store, Query::all()).await, [before.id, inside.id, after.id]);
    assert_eq!(read_ids(&store, Query::all().backwards()).await, [after.id, inside.id, before.id]);
}

#[tokio::test]
async fn a_rolled_back_transaction_leaves_a_void_and_no_version() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let lost = normal(&manager);
    let append = StreamAppend::new(name.clone(), Expected::Unwritten, vec![lost.clone(), normal(&manager)]);
    transaction(&manager, &store, &scope, vec![append], false).await.unwrap_err();
    // Also while the resolver has not come to it: the database shows that the versions are free and the id is unknown.
    let again = StreamAppend::new(name.clone(), Expected::Unwritten, vec![lost.clone()]);
    let receipts = append_in(&manager, &store, &scope, vec![again]).await.unwrap();
    assert_eq!((receipts[0].version, receipts[0].deduplicated), (1, false));
    until_resolved(&store).await;
    let status = store.status().await.unwrap();
    assert_eq!((status.voids, status.stable), (2, status.end));
    assert_eq!(read_ids(&store, Query::all()).await, [lost.id]);
    let receipt = store.append(&scope, &name, Expected::Exact(1), vec![normal(&manager)]).await.unwrap();
    assert_eq!(receipt.version, 2);
}

#[tokio::test]
async fn a_dropped_receipt_of_a_committed_transaction_is_published() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let inside = normal(&manager);
    let append = StreamAppend::new(stream("s"), Expected::Any, vec![inside.clone()]);
    drop(transaction(&manager, &store, &router("r1"), vec![append], true).await.unwrap());
    until_resolved(&store).await;
    assert_eq!(read_ids(&store, Query::all()).await, [inside.id]);
    assert_eq!(store.status().await.unwrap().voids, 0);
}

#[tokio::test]
async fn several_streams_share_one_reservation() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let appends: Vec<StreamAppend> = (0..300)
        .map(|number| {
            StreamAppend::new(stream(&format!("resource/{number}")), Expected::Unwritten, vec![normal(&manager)])
        })
        .collect();
    let ids: Vec<_> = appends.iter().map(|append| append.events[0].id).collect();
    let receipts = append_in(&manager, &store, &scope, appends).await.unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.first.seq).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    assert_eq!(read_ids(&store, Query::scope(scope.clone())).await, ids);

    // One stream that is not as expected refuses all of them.
    let refused = normal(&manager);
    let appends = vec![
        StreamAppend::new(stream("new"), Expected::Unwritten, vec![refused.clone()]),
        StreamAppend::new(stream("resource/7"), Expected::Unwritten, vec![normal(&manager)]),
    ];
    let Err(Error::Conflict(conflict)) = append_in(&manager, &store, &scope, appends).await else { panic!() };
    assert_eq!((conflict.stream.as_str(), conflict.actual), ("resource/7", 1));
    assert_eq!(conflict.since.len(), 1);
    assert_eq!(store.status().await.unwrap().end.seq, 300);
    // Nothing of the refused ones was used up: neither positions nor the id of the first.
    let again = StreamAppend::new(stream("new"), Expected::Unwritten, vec![refused.clone()]);
    let next = store.append(&scope, &stream("new"), again.expected, again.events).await.unwrap();
    assert_eq!((next.first.seq, next.deduplicated), (301, false));
    let other = EventStore::open(&manager, nasnet_events::EventOptions::default()).await.unwrap();
    let theirs = other.append(&scope, &stream("theirs"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(theirs.first.seq, 302);
}

#[tokio::test]
async fn appends_of_one_transaction_build_on_each_other() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let (first, second) = (normal(&manager), normal(&manager));
    let (own, events) = (store.clone(), [first.clone(), second.clone()]);
    let pending = manager
        .scope(&scope)
        .await
        .unwrap()
        .write(TEST, move |conn| {
            Box::pin(async move {
                let mut pending = Vec::new();
                for (event, version) in events.into_iter().zip(0..) {
                    let append = StreamAppend::new(stream("s"), Expected::Exact(version), vec![event]);
                    pending.push(own.append_in(conn, &router("r1"), vec![append]).await?);
                }
                Ok::<_, Error>(pending)
            })
        })
        .await
        .unwrap();
    // Readers see neither until both are published, in whatever order that happens.
    let mut pending = pending.into_iter();
    let (one, two) = (pending.next().unwrap(), pending.next().unwrap());
    store.published(two).await;
    assert_eq!(read_ids(&store, Query::all()).await, []);
    store.published(one).await;
    assert_eq!(read_ids(&store, Query::all().stream(name)).await, [first.id, second.id]);
}

#[tokio::test]
async fn a_hot_append_does_not_build_on_a_transaction_that_may_fail() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let append = StreamAppend::new(name.clone(), Expected::Unwritten, vec![normal(&manager)]);
    let pending = transaction(&manager, &store, &scope, vec![append], true).await.unwrap();
    for expected in [Expected::Unwritten, Expected::Exact(0), Expected::Exact(1)] {
        let refused = store.append(&scope, &name, expected, vec![normal(&manager)]).await;
        assert!(matches!(refused, Err(Error::Conflict(_))), "{expected}");
    }
    let receipt = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(receipt.version, 2);
    store.published(pending).await;
    store.append(&scope, &name, Expected::Exact(2), vec![normal(&manager)]).await.unwrap();
}

#[tokio::test]
async fn what_a_closed_store_left_open_is_resolved_by_the_next() {
    let site = Site::new();
    let (scope, name) = (router("r1"), stream("s"));
    let (manager, store) = site.open().await;
    let append = |event| vec![StreamAppend::new(name.clone(), Expected::Any, vec![event])];
    let (kept, lost) = (normal(&manager), normal(&manager));
    let pending = transaction(&manager, &store, &scope, append(kept.clone()), true).await.unwrap();
    // A reservation whose rows never came: the row is what a process killed before its commit leaves.
    support::on_hot(
        &manager,
        "INSERT INTO hot_log (first_seq, count, state, scope, owner, reservation, body) \
         SELECT 2, count, state, scope, owner, 2, body FROM hot_log WHERE first_seq = 1",
    )
    .await;
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop(store);
    drop(pending);
    drop(manager);

    let (manager, store) = site.open().await;
    until_resolved(&store).await;
    // The copied block claims the position of the first and so does not check: it is resolved all the same.
    assert_eq!(read_ids(&store, Query::all()).await, [kept.id]);
    assert_eq!(store.status().await.unwrap().voids, 1);
    let receipt = store.append(&scope, &name, Expected::Exact(1), vec![lost]).await.unwrap();
    assert_eq!((receipt.version, receipt.first.seq), (2, 3));
    drop(manager);
}

#[tokio::test]
async fn the_system_scope_has_transactions_too() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let append = StreamAppend::new(stream("user/anna"), Expected::Any, vec![event(&manager, "auth.password.changed")]);
    let receipts = append_in(&manager, &store, &Scope::System, vec![append]).await.unwrap();
    assert_eq!(receipts[0].version, 1);
    assert_eq!(read_ids(&store, Query::scope(Scope::System)).await.len(), 1);
    assert_eq!(read_ids(&store, Query::scope(router("r1"))).await.len(), 0);
}

#[tokio::test]
async fn an_answer_that_nobody_takes_gives_its_positions_back() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let first = normal(&manager);
    store.append(&scope, &name, Expected::Any, vec![first.clone()]).await.unwrap();
    let (own, own_scope, inside, beside) = (store.clone(), scope.clone(), normal(&manager), normal(&manager));
    let append = StreamAppend::new(name.clone(), Expected::Any, vec![inside]);
    let beside_id = beside.id;
    let given_up: Result<(), Error> = manager
        .scope(&scope)
        .await
        .unwrap()
        .write(TEST, move |conn| {
            Box::pin(async move {
                let mut waiting = Box::pin(own.append_in(conn, &own_scope, vec![append]));
                let reserved = async { while own.status().await.unwrap().unresolved == 0 {} };
                tokio::select! {
                    biased;
                    () = reserved => {}
                    pending = &mut waiting => drop(pending?),
                }
                // The appender answers in turn: this answer comes after the one that nobody takes.
                own.append(&router("r2"), &stream("t"), Expected::Any, vec![beside]).await?;
                drop(waiting);
                Err(Error::Closed)
            })
        })
        .await;
    assert!(matches!(given_up, Err(Error::Closed)), "{given_up:?}");
    until_resolved(&store).await;
    assert_eq!(read_ids(&store, Query::all()).await, [first.id, beside_id]);
}

/// Three events take several statements, and each of their steps is a place to be dropped at.
#[tokio::test]
async fn an_append_that_is_dropped_between_its_statements_is_there_whole_or_not_at_all() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (mut refused, mut done) = (0, false);
    for steps in (1..100_000).step_by(17) {
        let name = stream(&format!("s/{steps}"));
        let append = StreamAppend::new(name.clone(), Expected::Any, (0..3).map(|_| normal(&manager)).collect());
        let own = store.clone();
        let written: Result<bool, Error> = manager
            .scope(&router("r1"))
            .await
            .unwrap()
            .write(TEST, move |conn| {
                Box::pin(async move {
                    // SQLite stands still at the given step until the append is dropped there.
                    let (at, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
                    let (reached, dropped) = (Arc::clone(&at), Arc::clone(&gone));
                    let mut left = steps;
                    conn.lock_handle().await.unwrap().set_progress_handler(1, move || {
                        left -= i32::from(left > 0);
                        reached.fetch_or(left == 0, Ordering::SeqCst);
                        while left == 0 && !dropped.load(Ordering::SeqCst) {
                            std::thread::yield_now();
                        }
                        true
                    });
                    let scope = router("r1");
                    let mut appending = Box::pin(own.append_in(conn, &scope, vec![append]));
                    let result = std::future::poll_fn(|cx| match appending.as_mut().poll(cx) {
                        Poll::Pending if at.load(Ordering::SeqCst) => Poll::Ready(None),
                        Poll::Pending => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                        Poll::Ready(result) => Poll::Ready(Some(result)),
                    })
                    .await;
                    drop(appending);
                    gone.store(true, Ordering::SeqCst);
                    conn.lock_handle().await.unwrap().remove_progress_handler();
                    result.transpose().map(|pending| pending.is_some())
                })
            })
            .await;
        until_resolved(&store).await;
        let there = read_ids(&store, Query::all().stream(name)).await.len();
        match written {
            Ok(true) => {
                assert_eq!(there, 3);
                done = true;
                break;
            }
            Ok(false) => assert!([0, 3].contains(&there), "{there} after {steps} steps"),
            Err(error) => {
                let Error::Storage { source } = &error else { panic!("{error:?}") };
                assert!(matches!(**source, nasnet_dbmanager::Error::HalfDone), "{error:?}");
                assert_eq!(there, 0, "after {steps} steps");
                refused += 1;
            }
        }
    }
    assert!(done && refused > 9, "{done}, {refused} were dropped between two statements");
}
