//! Decisions over a stream: made again when somebody else was faster, and never carried out twice.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::StreamExt;
use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::history::{Snapshot, Until, events_after};
use nasnet_events::{
    Achieved, Conflict, Durability, Error, EventOptions, EventStore, Expected, FlushReason, NewEvent, Position, Query,
    Recorded,
};
use support::child::{self, Child};
use support::{Site, event, kind, normal, open_in, options, read, router, stream};

/// Takes the next number: right only when it was decided over the whole history.
fn next(manager: &DbManager, history: &[Recorded], durable: bool) -> Result<Vec<NewEvent>, Error> {
    let taken: Vec<u64> = history.iter().map(|event| event.body_as::<u64>()).collect::<Result<_, _>>()?;
    assert_eq!(taken, (1..=taken.len() as u64).collect::<Vec<_>>(), "a number is missing or taken twice");
    let name = if durable { "quota.reset" } else { "quota_hot.taken" };
    Ok(vec![NewEvent::new(manager.next_ulid(), kind(name), &(taken.len() as u64 + 1))?])
}

async fn take(manager: &DbManager, store: &EventStore, count: u64) {
    for number in 0..count {
        let own = manager.clone();
        let decide = |history: &[Recorded]| next(&own, history, number % 3 == 0);
        store.decide(&router("r1"), &stream("numbers"), decide).await.unwrap().unwrap();
    }
}

fn numbers(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.body_as().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_tasks_take_every_number_once() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (manager, store) = (manager.clone(), store.clone());
            tokio::spawn(async move { take(&manager, &store, 12).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let events = read(&store, Query::all()).await;
    assert_eq!(numbers(&events), (1..=96).collect::<Vec<_>>());
    assert_eq!(events.iter().map(|event| event.version).collect::<Vec<_>>(), (1..=96).collect::<Vec<_>>());
    assert_eq!(events.iter().filter(|event| event.synced).count(), 32);
}

async fn open(dir: &Path) -> (DbManager, EventStore) {
    open_in(options(dir), EventOptions::default()).await
}

#[test]
#[ignore = "run by the test below as a child process"]
fn child() {
    let Some(dir) = child::task() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(Path::new(&dir)).await;
        take(&manager, &store, 30).await;
    });
    println!("\ndone");
    std::process::exit(0);
}

#[test]
fn two_processes_take_every_number_once() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(dir.path()).await;
        let mut child = Child::spawn(dir.path().display());
        take(&manager, &store, 30).await;
        child.until("done");
        store.resolve().await.unwrap();
        let events = read(&store, Query::all()).await;
        assert_eq!(numbers(&events), (1..=60).collect::<Vec<_>>());
        assert_eq!(events.iter().map(|event| event.id).collect::<BTreeSet<_>>().len(), 60);
    });
}

#[tokio::test]
async fn a_decision_is_as_durable_as_asked_for_and_may_be_to_do_nothing() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let one = |_: &[Recorded]| Ok::<_, Error>(vec![normal(&manager)]);
    let receipt = store.decide_with(&scope, &name, Durability::Durable, one).await.unwrap().unwrap();
    assert_eq!((receipt.version, receipt.achieved), (1, Achieved::Synced));
    let nothing = store.decide(&scope, &name, |history| {
        assert_eq!(history.len(), 1);
        Ok::<_, Error>(Vec::new())
    });
    assert_eq!(nothing.await.unwrap(), None);
    let refused = store.decide(&scope, &name, |_| Err(Error::Closed)).await;
    assert!(matches!(refused, Err(Error::Closed)));
    assert_eq!(read(&store, Query::all()).await.len(), 1);
}

#[tokio::test]
async fn a_decision_whose_ids_are_chosen_outside_may_be_repeated() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let event = event(&manager, "config.applied");
    for round in 0..3 {
        let decide = |_: &[Recorded]| Ok::<_, Error>(vec![event.clone()]);
        let receipt = store.decide(&router("r1"), &stream("s"), decide).await.unwrap().unwrap();
        assert_eq!((receipt.version, receipt.deduplicated), (1, round > 0));
    }
}

#[tokio::test]
async fn nobody_decides_over_a_part_of_a_history_but_behind_a_snapshot_of_it() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for _ in 0..3 {
        store.append(&scope, &name, Expected::Any, vec![event(&manager, "metric.updated")]).await.unwrap();
    }
    let third = read(&store, Query::all()).await.remove(2);
    // Low events end with the hot tier; their versions are known while the process runs.
    support::empty_hot(&manager).await;
    let one = |_: &[Recorded]| Ok::<_, Error>(vec![normal(&manager)]);
    let guessed = store.decide(&scope, &name, one).await;
    assert!(matches!(&guessed, Err(Error::VersionGap { after: 0, next: 4, .. })), "{guessed:?}");
    let receipt = store.decide_after(&scope, &name, Snapshot::at(&third), one).await.unwrap().unwrap();
    assert_eq!(receipt.version, 4);
    // What is there is the part behind the gap.
    let guessed = store.decide(&scope, &name, one).await;
    assert!(matches!(&guessed, Err(Error::VersionGap { after: 0, next: 4, .. })), "{guessed:?}");
    let decided = store.decide_after(&scope, &name, Snapshot::at(&third), |history| {
        assert_eq!(history.iter().map(|event| event.version).collect::<Vec<_>>(), [4]);
        one(history)
    });
    assert_eq!(decided.await.unwrap().unwrap().version, 5);
}

#[tokio::test]
async fn what_retention_removed_is_told_to_who_decides_also_when_nothing_is_to_be_done() {
    let site = Site::new();
    let (manager, store) = site.open_with(support::keep_nothing()).await;
    let (scope, name) = (router("r1"), stream("s"));
    for name in [&name, &name, &stream("newest")] {
        store.append(&scope, name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let second = read(&store, Query::all()).await.remove(1);
    store.mark_age().await.unwrap();
    site.clock.advance(std::time::Duration::from_secs(60));
    store.mark_age().await.unwrap();
    assert_eq!(store.retain(store.retention_plan().await.unwrap()).await.unwrap().events, 2);
    support::empty_hot(&manager).await;
    for count in [0, 1] {
        let decide = |_: &[Recorded]| Ok::<_, Error>((0..count).map(|_| normal(&manager)).collect());
        let guessed = store.decide(&scope, &name, decide).await;
        assert!(
            matches!(&guessed, Err(Error::BeyondHorizon { oldest, .. }) if *oldest >= second.position),
            "{guessed:?}"
        );
        let decided = store.decide_after(&scope, &name, Snapshot::at(&second), decide).await.unwrap();
        assert_eq!(decided.map(|receipt| receipt.version), (count == 1).then_some(3));
    }
}

#[tokio::test]
async fn expectations_at_their_edges() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = Scope::System;
    let conflict = |result: Result<nasnet_events::Receipt, Error>| -> Conflict {
        let Err(Error::Conflict(conflict)) = result else { panic!("{result:?}") };
        *conflict
    };
    let name = stream("edges");
    for durable in [false, true] {
        let own = |_: ()| event(&manager, if durable { "config.applied" } else { "resource.updated" });
        let name = stream(if durable { "durable" } else { "hot" });
        for expected in [Expected::Exists, Expected::Exact(1), Expected::Exact(u64::MAX)] {
            let found = conflict(store.append(&scope, &name, expected, vec![own(())]).await);
            assert_eq!((found.actual, found.since.len(), found.tail_lost), (0, 0, false), "{expected:?}");
        }
        // Exactly nothing is an unwritten stream.
        store.append(&scope, &name, Expected::Exact(0), vec![own(()), own(())]).await.unwrap();
        let found = conflict(store.append(&scope, &name, Expected::Unwritten, vec![own(())]).await);
        assert_eq!(found.since.iter().map(|head| head.version).collect::<Vec<_>>(), [1, 2]);
        let found = conflict(store.append(&scope, &name, Expected::Exact(3), vec![own(())]).await);
        assert_eq!((found.actual, found.since.len(), found.tail_lost), (2, 0, false));
        store.append(&scope, &name, Expected::Exists, vec![own(())]).await.unwrap();
    }
    // A conflict carries the newest heads and says no more than it knows.
    let many = (0..40).map(|_| normal(&manager)).collect();
    store.append(&scope, &name, Expected::Any, many).await.unwrap();
    let found = conflict(store.append(&scope, &name, Expected::Exact(2), vec![normal(&manager)]).await);
    assert_eq!(found.since.iter().map(|head| head.version).collect::<Vec<_>>(), (25..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_version_from_a_lost_tail_is_told_as_such() {
    let site = Site::new();
    let (scope, name) = (router("r1"), stream("s"));
    let (manager, store) = site.open().await;
    store.append(&scope, &name, Expected::Any, vec![normal(&manager), normal(&manager)]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let lost = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (manager, store) = site.open().await;
    for asked in [Durability::Volatile, Durability::Durable] {
        let stale = store.append_with(&scope, &name, Expected::Exact(3), vec![normal(&manager)], asked).await;
        let Err(Error::Conflict(conflict)) = stale else { panic!("{stale:?}") };
        assert_eq!((conflict.actual, conflict.tail_lost), (2, true));
    }
    // It goes on from what survived.
    let receipt = store.append(&scope, &name, Expected::Exact(2), vec![normal(&manager)]).await.unwrap();
    assert_eq!(receipt.version, 3);
    // Who has folded what was lost has not folded what is there under its version.
    let lost = Snapshot { position: lost.first, version: lost.version };
    let decided = store.decide_after(&scope, &name, lost, |_| Ok::<_, Error>(vec![normal(&manager)])).await;
    assert!(matches!(decided, Err(Error::VersionGap { after: 3, next: 3, .. })), "{decided:?}");
    let mut events = events_after(&store, &scope, &name, lost, Until::Position(Position::END)).await.unwrap();
    let first = events.next().await.unwrap();
    assert!(matches!(first, Err(Error::VersionGap { after: 3, next: 3, .. })), "{first:?}");
    assert_eq!(events.next().await.unwrap().unwrap().version, 3);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn an_id_is_found_outside_of_the_window_with_a_hint() {
    let site = Site::new();
    let (scope, name) = (router("r1"), stream("s"));
    let (manager, store) = site.open().await;
    let mut receipts = Vec::new();
    for _ in 0..20 {
        let event = normal(&manager);
        let id = event.id;
        site.clock.advance(std::time::Duration::from_secs(60));
        receipts.push((id, store.append(&scope, &name, Expected::Any, vec![event]).await.unwrap().first));
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let times: Vec<i64> = read(&store, Query::all()).await.iter().map(|event| event.wall_ms).collect();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    for (index, (id, position)) in receipts.iter().enumerate() {
        let hints = [
            Query::by_id(*id),
            Query::by_id(*id).until(*position),
            Query::by_id(*id).wall_ms(times[index] - 1..=times[index] + 1),
        ];
        for query in hints {
            assert_eq!(support::read_ids(&store, query).await, [*id]);
        }
        assert!(support::read_ids(&store, Query::by_id(*id).after(*position)).await.is_empty());
    }
}
