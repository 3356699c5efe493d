//! Power cuts and failing operations while bodies are appended to annexes: a row never names what is not there, and nothing
//! that was flushed is lost.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::path::Path;

use futures_util::StreamExt;
use nasnet_dbmanager::vfs::fault::{Fault, Medium, Operation, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId};
use nasnet_events::{Error, EventOptions, EventStore, Expected, FlushReason, Query, Span};
use support::{Site, empty_hot, large, read_ids, router, stream};
use tokio::runtime::Runtime;
use ulid::Ulid;

const SEGMENT_EVENTS: usize = 12;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(base: &Path, run: &Path) -> Result<(DbManager, EventStore), Error> {
    let options = support::patient(
        Options::new(base.join("data")).run_dir(run.join("run")).schemas(nasnet_events::schema_sets()),
    );
    let manager = DbManager::open(options).await?;
    let store = EventStore::open(&manager, EventOptions::default()).await?;
    Ok((manager, store))
}

async fn append(manager: &DbManager, store: &EventStore, name: &str) -> Result<Vec<Ulid>, Error> {
    let mut ids = Vec::new();
    for _ in 0..SEGMENT_EVENTS {
        let event = large(manager, name, 400);
        ids.push(event.id);
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await?;
    }
    Ok(ids)
}

async fn flush(store: &EventStore) -> Result<(), Error> {
    let report = store.flush(FlushReason::Requested).await?;
    report.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Flushes after a founding that is not recorded; each mark says that one more flush is durable.
fn record(runtime: &Runtime) -> (Recording, Vec<Vec<Ulid>>) {
    let (disk, run) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    runtime.block_on(async {
        let (manager, store) = open(disk.path(), run.path()).await.unwrap();
        manager.create_router(NewRouter::new(RouterId::parse("r1").unwrap())).await.unwrap();
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
    let recorder = Recorder::start(disk.path()).unwrap();
    let mut flushed = Vec::new();
    runtime.block_on(async {
        let (manager, store) = open(disk.path(), run.path()).await.unwrap();
        for number in 1..=3 {
            flushed.push(append(&manager, &store, "resource.updated").await.unwrap());
            flush(&store).await.unwrap();
            recorder.ack(number);
        }
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
    (recorder.stop(), flushed)
}

/// What a look after a power cut saw: the events, before and after one more flush.
type Seen = Result<(Vec<Ulid>, Vec<Ulid>), String>;

fn look(runtime: &Runtime, dir: &Path) -> Seen {
    let run = tempfile::tempdir_in("/dev/shm").unwrap();
    let seen = runtime.block_on(async {
        let (manager, store) = open(dir, run.path()).await?;
        let mut before = Vec::new();
        let mut items = store.read(Query::scope(router("r1")));
        while let Some(item) = items.next().await {
            before.push(item?.id);
        }
        append(&manager, &store, "resource.updated").await?;
        flush(&store).await?;
        empty_hot(&manager).await;
        let after = read_ids(&store, Query::scope(router("r1"))).await;
        let sound = store.verify(Span::all()).await?;
        store.shutdown().await?;
        manager.shutdown().await?;
        if sound.is_sound() { Ok((before, after)) } else { Err(Error::Closed) }
    });
    seen.map_err(|error: Error| format!("{error}: {error:?}"))
}

fn broken(flushed: &[Vec<Ulid>], acked: &[u64], seen: &Seen) -> Option<String> {
    let (before, after) = match seen {
        Ok(seen) => seen,
        Err(error) => return Some(error.clone()),
    };
    let durable = usize::try_from(acked.last().copied().unwrap_or(0)).unwrap();
    let whole = (durable..=flushed.len()).any(|count| *before == flushed[..count].concat());
    match () {
        () if !whole => Some(format!("{durable} flushes acknowledged, {} events there", before.len())),
        () if after.len() != before.len() + SEGMENT_EVENTS || !after.starts_with(before) => {
            Some(format!("{} events, and {} after another flush", before.len(), after.len()))
        }
        () => None,
    }
}

fn replay(runtime: &Runtime, (recording, flushed): &(Recording, Vec<Vec<Ulid>>), replay: &Replay) -> ReplayReport {
    recording.replay(replay, |dir| look(runtime, dir), |state, seen| broken(flushed, state.acked(), seen)).unwrap()
}

#[test]
fn a_power_cut_at_any_step_of_a_flush_leaves_no_row_without_its_body() {
    let runtime = runtime();
    let recorded = record(&runtime);
    let report = replay(&runtime, &recorded, &Replay::new(7));
    assert!(report.distinct > 60, "{report:?}");
    assert!(report.failures.is_empty(), "{:#?}", report.failures.iter().take(3).collect::<Vec<_>>());
    // A disk that lies must be seen to: the check can fail.
    for medium in [Medium::LiesAboutSync, Medium::NoDirectorySync] {
        let lying = Replay { every: 3, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(7) };
        assert!(!replay(&runtime, &recorded, &lying.medium(medium)).failures.is_empty(), "{medium:?}");
    }
}

#[tokio::test]
async fn an_operation_that_fails_during_a_flush_or_a_seal_costs_a_repetition_and_nothing_else() {
    let operations = [
        (Operation::Write, Fault::IOERR_WRITE),
        (Operation::Write, Fault::FULL),
        (Operation::Sync, Fault::IOERR_FSYNC),
        (Operation::SyncDirectory, Fault::IOERR_FSYNC),
    ];
    let mut fired = 0;
    for (operation, code) in operations {
        for nth in 1..=3 {
            let site = Site::new();
            let mut options = EventOptions::default();
            options.rows_max = 8;
            let (manager, store) = site.open_with(options).await;
            let annex = site.data().join("routers/r1/router-r1.annex");
            let mut ids = append(&manager, &store, "resource.updated").await.unwrap();
            if nth == 1 {
                flush(&store).await.unwrap();
            }
            for _ in 0..3 {
                ids.extend(append(&manager, &store, "config.applied").await.unwrap());
            }
            ids.extend(append(&manager, &store, "resource.updated").await.unwrap());
            let armed = Fault::fail(operation, nth, code).times(2).arm(&site.data()).unwrap();
            let failed = flush(&store).await.is_err();
            let sealed = store.seal().await.unwrap();
            assert!(armed.fired() == 0 || failed || !sealed.failed.is_empty(), "{operation:?} {nth}");
            fired += armed.fired();
            drop(armed);
            for _ in 0..2 {
                flush(&store).await.unwrap();
                let sealed = store.seal().await.unwrap();
                assert!(sealed.failed.is_empty(), "{:?}", sealed.failed);
            }
            empty_hot(&manager).await;
            assert_eq!(read_ids(&store, Query::all()).await, ids, "{operation:?} {nth}");
            assert!(store.verify(Span::all()).await.unwrap().is_sound());
            assert!(annex.is_dir());
        }
    }
    assert!(fired >= 12, "{fired}");
}
