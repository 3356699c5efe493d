//! Power cuts and failing operations while events are removed: each is there or told of, never both gone.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::path::Path;

use futures_util::TryStreamExt;
use nasnet_dbmanager::vfs::fault::{Fault, Medium, Operation, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId};
use nasnet_events::{Error, EventStore, Expected, FlushReason, Position, Query, RetentionReport, Span};
use support::{Site, empty_hot, event, keep_nothing, read_ids, router, stream};
use tokio::runtime::Runtime;

/// Events of one round: some flushed together, then some rows.
const FLUSHED: u64 = 3;
const ROUND: u64 = 5;
const ROUNDS: u64 = 3;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(base: &Path, run: &Path) -> Result<(DbManager, EventStore), Error> {
    let options = support::patient(
        Options::new(base.join("data")).run_dir(run.join("run")).schemas(nasnet_events::schema_sets()),
    );
    let manager = DbManager::open(options).await?;
    let store = EventStore::open(&manager, keep_nothing()).await?;
    Ok((manager, store))
}

/// Appends a round to one stream: its versions say how many events there have been.
async fn append_round(manager: &DbManager, store: &EventStore) -> Result<u64, Error> {
    let mut version = 0;
    for number in 0..ROUND {
        let name = if number < FLUSHED { "alert.raised" } else { "config.applied" };
        let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event(manager, name)]).await?;
        version = receipt.version;
        if number + 1 == FLUSHED {
            let report = store.flush(FlushReason::Requested).await?;
            report.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))?;
        }
    }
    Ok(version)
}

async fn retain(store: &EventStore) -> Result<RetentionReport, Error> {
    store.mark_age().await?;
    store.retain(store.retention_plan().await?).await
}

/// Events told of as removed.
async fn told(store: &EventStore) -> Result<u64, Error> {
    Ok(store.truncated(Position::START).await?.iter().map(|removed| removed.events).sum())
}

/// Each mark is the number of events that are durable, or have been removed, by then.
fn record(runtime: &Runtime) -> (Recording, Vec<(u64, u64)>) {
    let (disk, run) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    runtime.block_on(async {
        let (manager, store) = open(disk.path(), run.path()).await.unwrap();
        manager.create_router(NewRouter::new(RouterId::parse("r1").unwrap())).await.unwrap();
        append_round(&manager, &store).await.unwrap();
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
    let recorder = Recorder::start(disk.path()).unwrap();
    // By mark: events appended, events removed.
    let mut marks = vec![(ROUND, 0)];
    runtime.block_on(async {
        let (manager, store) = open(disk.path(), run.path()).await.unwrap();
        for _ in 0..ROUNDS {
            let version = append_round(&manager, &store).await.unwrap();
            marks.push((version, marks.last().unwrap().1));
            recorder.ack(marks.len() as u64 - 1);
            let report = retain(&store).await.unwrap();
            assert!(report.events > 0 && report.failed.is_empty(), "{report:?}");
            marks.push((version, marks.last().unwrap().1 + report.events));
            recorder.ack(marks.len() as u64 - 1);
        }
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
    (recorder.stop(), marks)
}

/// What is there after a power cut: events, those told of, and the version the next one gets.
type Seen = Result<(u64, u64, u64), String>;

fn look(runtime: &Runtime, dir: &Path) -> Seen {
    let run = tempfile::tempdir_in("/dev/shm").unwrap();
    let seen = runtime.block_on(async {
        let (manager, store) = open(dir, run.path()).await?;
        let left: Vec<_> = store.read(Query::scope(router("r1"))).try_collect().await?;
        let left = left.len() as u64;
        let told = told(&store).await?;
        let sound = store.verify(Span::all()).await?.is_sound();
        let next = vec![event(&manager, "config.applied")];
        let next = store.append(&router("r1"), &stream("s"), Expected::Any, next).await?.version;
        // And retention goes on.
        let failed = retain(&store).await?.failed.len();
        store.shutdown().await?;
        manager.shutdown().await?;
        if sound && failed == 0 { Ok((left, told, next)) } else { Err(Error::Closed) }
    });
    seen.map_err(|error: Error| format!("{error}: {error:?}"))
}

fn broken(marks: &[(u64, u64)], acked: &[u64], seen: &Seen) -> Option<String> {
    let (left, told, next) = match seen {
        Ok(seen) => *seen,
        Err(error) => return Some(error.clone()),
    };
    let (appended, removed) = marks[usize::try_from(acked.last().copied().unwrap_or(0)).unwrap()];
    match () {
        () if left + told + 1 != next => Some(format!("{left} events, {told} told of, the next gets version {next}")),
        () if left + told < appended => Some(format!("{appended} were durable, {left} are there, {told} told of")),
        () if told < removed => Some(format!("{removed} were removed, {told} are told of")),
        () => None,
    }
}

fn replay(runtime: &Runtime, (recording, marks): &(Recording, Vec<(u64, u64)>), replay: &Replay) -> ReplayReport {
    recording.replay(replay, |dir| look(runtime, dir), |state, seen| broken(marks, state.acked(), seen)).unwrap()
}

#[test]
fn a_power_cut_while_events_are_removed_leaves_each_there_or_told_of() {
    let runtime = runtime();
    let recorded = record(&runtime);
    let report = replay(&runtime, &recorded, &Replay { every: 2, ..Replay::new(11) });
    assert!(report.distinct > 40, "{report:?}");
    println!("{} states", report.distinct);
    assert!(report.failures.is_empty(), "{:#?}", report.failures.iter().take(3).collect::<Vec<_>>());
    // A disk that lies must be seen to: the check can fail.
    let lying = Replay { every: 4, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(11) };
    assert!(!replay(&runtime, &recorded, &lying.medium(Medium::LiesAboutSync)).failures.is_empty());
}

#[tokio::test]
async fn an_operation_that_fails_while_events_are_removed_costs_a_repetition_and_nothing_else() {
    let mut fired = 0;
    for (operation, code) in
        [(Operation::Write, Fault::IOERR_WRITE), (Operation::Write, Fault::FULL), (Operation::Sync, Fault::IOERR_FSYNC)]
    {
        for nth in [1, 2, 4] {
            let site = Site::new();
            let (manager, store) = site.open_with(keep_nothing()).await;
            for _ in 0..3 {
                append_round(&manager, &store).await.unwrap();
            }
            store.mark_age().await.unwrap();
            let plan = store.retention_plan().await.unwrap();
            let armed = Fault::fail(operation, nth, code).arm(&site.data()).unwrap();
            let report = store.retain(plan).await.unwrap();
            assert!(armed.fired() == 0 || !report.failed.is_empty() || report.events > 0, "{operation:?} {nth}");
            fired += armed.fired();
            drop(armed);
            for _ in 0..2 {
                let report = retain(&store).await.unwrap();
                assert!(report.failed.is_empty(), "{operation:?} {nth}: {:?}", report.failed);
            }
            empty_hot(&manager).await;
            let left = read_ids(&store, Query::all()).await.len() as u64;
            assert_eq!((left, told(&store).await.unwrap()), (FLUSHED, 3 * ROUND - FLUSHED), "{operation:?} {nth}");
            assert!(store.verify(Span::all()).await.unwrap().is_sound());
        }
    }
    assert!(fired >= 5, "{fired}");
}
