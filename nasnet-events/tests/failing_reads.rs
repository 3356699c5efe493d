//! A medium that does not give back the bodies of segments: told with the file, and nothing else is affected.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::vfs::fault::{Armed, Fault, Operation};
use nasnet_dbmanager::{DbHealth, DbManager, Scope};
use nasnet_events::forward::{Forwarder, StoreSink};
use nasnet_events::{Error, EventStore, Expected, FlushReason, Item, Query, Span, prepare_cold_dir};
use support::watch::consumer;
use support::{Site, empty_hot, large, normal, read_ids, router, stream};
use ulid::Ulid;

/// A segment in an annex, one in its row, and a second in the annex; of `r1`, and one in a row of `r2`.
async fn flushed(site: &Site) -> (DbManager, EventStore, Vec<(bool, Ulid)>) {
    let mut options = support::with_cold(site);
    options.stall_after = Duration::from_secs(30);
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let mut ids = Vec::new();
    for (id, is_large) in [("r1", true), ("r1", false), ("r1", true), ("r2", false)] {
        for _ in 0..12 {
            let event = if is_large { large(&manager, "resource.updated", 400) } else { normal(&manager) };
            ids.push((is_large, event.id));
            store.append(&router(id), &stream("s"), Expected::Any, vec![event]).await.unwrap();
        }
        store.flush(FlushReason::Requested).await.unwrap();
    }
    empty_hot(&manager).await;
    (manager, store, ids)
}

fn fail_reads(site: &Site) -> Armed {
    let annex = site.data().join("routers/r1/router-r1.annex");
    Fault::fail(Operation::Read, 1, Fault::IOERR_READ).times(u64::MAX).arm(&annex).unwrap()
}

fn is_told(error: &Error) -> bool {
    let Error::Io { operation: "read", path, .. } = error else { panic!("{error}") };
    path.ends_with("router-r1.annex/flushed-00000001") && error.to_string().contains("flushed-00000001")
}

fn readable(ids: &[(bool, Ulid)]) -> Vec<Ulid> {
    ids.iter().filter(|(is_large, _)| !is_large).map(|(_, id)| *id).collect()
}

fn all(ids: &[(bool, Ulid)]) -> Vec<Ulid> {
    ids.iter().map(|(_, id)| *id).collect()
}

async fn is_well(manager: &DbManager) -> bool {
    manager.health().await.unwrap().iter().all(|database| database.health == DbHealth::Ok)
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_told_with_their_file_and_hide_nothing_else() {
    let site = Site::new();
    let (manager, store, ids) = flushed(&site).await;
    let fault = fail_reads(&site);
    let items: Vec<_> = store.read(Query::all()).collect().await;
    let found: Vec<Ulid> = items.iter().flatten().map(|event| event.id).collect();
    assert_eq!(found, readable(&ids));
    let errors: Vec<&Error> = items.iter().filter_map(|item| item.as_ref().err()).collect();
    assert!(!errors.is_empty() && errors.into_iter().all(is_told));
    assert!(fault.fired() >= 2);
    let verification = store.verify(Span::all()).await.unwrap();
    let told: Vec<_> = verification.faults.iter().filter(|fault| fault.detail.contains("flushed-00000001")).collect();
    assert_eq!(told.len(), 2, "each segment: {verification:?}");

    // What cannot be read now is not passed over: other routers are archived, this one later.
    let report = store.archive().await.unwrap();
    assert!(matches!(&report.failed[..], [(scope, error)] if *scope == router("r1") && is_told(error)), "{report:?}");
    assert_eq!(report.events, 12);
    assert!(is_well(&manager).await, "no database is set aside for it");
    // The router itself works.
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());

    drop(fault);
    let report = store.archive().await.unwrap();
    assert_eq!((report.failed.len(), report.events), (0, 37), "{report:?}");
    assert_eq!(read_ids(&store, Query::all()).await[..48], all(&ids));
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
}

#[tokio::test]
async fn the_archive_waits_for_a_failing_medium_for_a_while_and_then_passes_what_it_does_not_give_back() {
    let site = Site::new();
    let (manager, store, ids) = flushed(&site).await;
    let fault = fail_reads(&site);
    assert_eq!(readable(&ids).len(), 24);
    for _ in 0..2 {
        let report = store.archive().await.unwrap();
        assert!(matches!(&report.failed[..], [(_, error)] if is_told(error)), "{report:?}");
    }
    site.clock.advance(Duration::from_secs(30));
    let report = store.archive().await.unwrap();
    assert!(report.failed.iter().all(|(scope, error)| *scope == router("r1") && is_told(error)), "{report:?}");
    assert_eq!((report.failed.len(), report.events), (1, 12), "what can be read is archived: {report:?}");
    let archived = store.status().await.unwrap().warm.into_iter().flatten().find(|warm| warm.scope == router("r1"));
    assert!(archived.unwrap().archived_through.is_some());
    // Nothing behind it keeps the archive from looking at the last one again.
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(store.archive().await.unwrap().events, 1);
    let report = store.archive().await.unwrap();
    assert_eq!((report.failed.len(), report.events), (0, 0), "it is told as long as it is met: {report:?}");

    // What fails anew is waited for anew.
    let event = large(&manager, "resource.updated", 4_000);
    let late = event.id;
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    assert_eq!(store.archive().await.unwrap().events, 0);
    drop(fault);
    assert_eq!(store.archive().await.unwrap().events, 1);
    assert_eq!(read_ids(&store, Query::all()).await.last(), Some(&late));
}

#[tokio::test]
async fn what_was_archived_before_a_file_that_cannot_be_read_is_confirmed() {
    let site = Site::new();
    let mut options = support::with_cold(&site);
    options.stall_after = Duration::from_secs(30);
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    for name in ["resource.updated"; 3] {
        let events = (0..800).map(|_| support::event(&manager, name)).collect();
        store.append(&router("r1"), &stream("s"), Expected::Any, events).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
        empty_hot(&manager).await;
    }
    let annex = site.data().join("routers/r1/router-r1.annex");
    let files = std::fs::read_dir(&annex).unwrap().count();
    assert_eq!(files, 1);
    // The third body alone.
    let fault = Fault::fail(Operation::Read, 3, Fault::IOERR_READ).times(u64::MAX).arm(&annex).unwrap();
    let report = store.archive().await.unwrap();
    assert_eq!((report.failed.len(), report.frames > 0), (1, true), "{report:?}");
    drop(fault);
    let archived = store.status().await.unwrap().warm.into_iter().flatten().find(|warm| warm.scope == router("r1"));
    let events = support::read(&store, Query::all()).await;
    let last = &events[usize::try_from(report.events).unwrap() - 1];
    assert_eq!(archived.unwrap().archived_through, Some(last.position));
}

#[tokio::test]
async fn a_consumer_waits_for_a_failing_medium_for_a_while_and_then_is_told_what_it_misses() {
    let site = Site::new();
    let (_manager, store, ids) = flushed(&site).await;
    let fault = fail_reads(&site);
    let mut waiting = store.subscribe(consumer("waiting")).await.unwrap();
    assert!(is_told(&waiting.next().await.unwrap().unwrap_err()));
    let mut passing = store.subscribe(consumer("passing")).await.unwrap();
    assert!(is_told(&passing.next().await.unwrap().unwrap_err()));
    site.clock.advance(Duration::from_secs(30));
    let (mut shown, mut told) = (Vec::new(), 0);
    loop {
        match passing.next().await.unwrap() {
            Ok(Item::CaughtUp { .. }) => break,
            Ok(item) => shown.push(item.event().unwrap().id),
            Err(error) => told += usize::from(is_told(&error)),
        }
    }
    assert_eq!(shown, readable(&ids));
    assert!(told > 0);

    drop(fault);
    let shown = support::watch::until_caught_up(&mut waiting).await;
    assert_eq!(support::watch::ids(&shown), all(&ids), "nothing is missed when it was for a moment");
}

#[tokio::test]
async fn a_forwarder_counts_as_missed_what_it_has_passed_and_not_what_it_tries_again() {
    let (site, elsewhere) = (Site::new(), Site::new());
    let (_manager, store, ids) = flushed(&site).await;
    let (_target_manager, target) = elsewhere.open().await;
    let forwarder =
        |name: &str| Forwarder::new(store.clone(), consumer(name), StoreSink::new(target.clone(), router("r1")));
    let fault = fail_reads(&site);
    let (waiting, passing) = (forwarder("waiting"), forwarder("passing"));
    let (mut waiting, mut passing) = (waiting.open().await.unwrap(), passing.open().await.unwrap());
    for forwarding in [&mut waiting, &mut passing] {
        for _ in 0..2 {
            let round = forwarding.round().await.unwrap();
            assert_eq!((round.missed, round.delivered), (0, 0), "{round:?}");
        }
    }
    site.clock.advance(Duration::from_secs(30));
    let round = passing.round().await.unwrap();
    assert_eq!(round.delivered, 24, "{round:?}");
    assert!(round.missed > 0);
    let round = passing.round().await.unwrap();
    assert_eq!((round.missed, round.delivered), (0, 0), "once: {round:?}");

    drop(fault);
    let round = waiting.round().await.unwrap();
    assert_eq!((round.missed, round.delivered), (0, 48), "{round:?}");
    let mut arrived = read_ids(&target, Query::all()).await;
    arrived.sort();
    let mut sent = all(&ids);
    sent.sort();
    assert_eq!(arrived, sent);
}

/// Of the system itself nothing is in annexes.
#[tokio::test]
async fn appends_and_reads_of_others_go_on_through_a_failing_medium() {
    let site = Site::new();
    let (manager, store, _) = flushed(&site).await;
    let fault = fail_reads(&site);
    for scope in [Scope::System, router("r2")] {
        let event = normal(&manager);
        let id = event.id;
        store.append(&scope, &stream("t"), Expected::Unwritten, vec![event]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
        empty_hot(&manager).await;
        assert_eq!(read_ids(&store, Query::scope(scope).stream(stream("t"))).await, [id]);
    }
    assert_eq!(fault.fired(), 0);
}
