//! A process that is killed in the middle of its work: what it had acknowledged is there.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::collections::HashSet;
use std::path::Path;

use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{EventStore, Expected, FlushReason, Item, Query, Span, StreamAppend, TruncatedBy};
use support::child::{self, Child};
use support::{TEST, event, keep_nothing, normal, open_in, options, read, router, stream};
use ulid::Ulid;

async fn open(dir: &Path) -> (DbManager, EventStore) {
    open_in(options(dir), keep_nothing()).await
}

fn spawn(dir: &Path, role: &str) -> Child {
    Child::spawn(format_args!("{role} {}", dir.display()))
}

/// Runs as the child: appends for ever, and prints what was acknowledged.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(task) = child::task() else { return };
    let (role, dir) = task.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(Path::new(dir)).await;
        match role {
            "append" => append_for_ever(&manager, &store).await,
            "reserve" => reserve_and_hang(&manager, &store).await,
            "count" => append_a_hundred(&manager, &store).await,
            "retain" => retain_for_ever(&manager, &store).await,
            other => panic!("{other}"),
        }
    });
}

async fn append_for_ever(manager: &DbManager, store: &EventStore) {
    let worker = |name: &'static str, kind: &'static str| {
        let (manager, store) = (manager.clone(), store.clone());
        tokio::spawn(async move {
            let word = if kind == "config.applied" { "synced" } else { "hot" };
            loop {
                let event = event(&manager, kind);
                let id = event.id;
                store.append(&router("r1"), &stream(name), Expected::Any, vec![event]).await.unwrap();
                println!("\n{word} {id}");
            }
        })
    };
    let workers = [worker("a", "config.applied"), worker("b", "resource.updated"), worker("a", "resource.updated")];
    loop {
        store.flush(FlushReason::Requested).await.unwrap();
        // The transaction of others, every second one without its receipt being handed in.
        let (own, inside) = (store.clone(), normal(manager));
        let id = inside.id;
        let append = StreamAppend::new(stream("c"), Expected::Any, vec![inside]);
        let database = manager.scope(&router("r1")).await.unwrap();
        let pending = database
            .write(TEST, move |conn| Box::pin(async move { own.append_in(conn, &router("r1"), vec![append]).await }))
            .await
            .unwrap();
        println!("\nsynced {id}");
        if id.random() % 2 == 0 {
            store.published(pending).await;
        }
        assert!(workers.iter().all(|worker| !worker.is_finished()));
    }
}

/// Reserves positions inside a transaction that never ends.
async fn reserve_and_hang(manager: &DbManager, store: &EventStore) {
    let (own, inside) = (store.clone(), normal(manager));
    let append = StreamAppend::new(stream("s"), Expected::Any, vec![inside]);
    let database = manager.scope(&router("r1")).await.unwrap();
    let hung = database
        .write(TEST, move |conn| {
            Box::pin(async move {
                let pending = own.append_in(conn, &router("r1"), vec![append]).await?;
                println!("\nreserved");
                std::future::pending::<()>().await;
                Ok::<_, nasnet_events::Error>(pending)
            })
        })
        .await;
    drop(hung);
    std::future::pending::<()>().await;
}

async fn append_a_hundred(manager: &DbManager, store: &EventStore) {
    for number in 0..100 {
        let event = event(manager, if number % 10 == 0 { "config.applied" } else { "resource.updated" });
        store.append(&router("r1"), &stream("shared"), Expected::Any, vec![event]).await.unwrap();
    }
    println!("\ndone");
    // Before the test harness prints to a parent that has read enough.
    std::process::exit(0);
}

/// Keeps nothing of what is older than the last mark, so that each round removes most of what there is.
async fn retain_for_ever(manager: &DbManager, store: &EventStore) {
    let everything = || async {
        store.mark_age().await.unwrap();
        let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
        println!("\nremoved {}", report.events);
    };
    loop {
        for number in 0..20 {
            let event = event(manager, if number % 2 == 0 { "config.applied" } else { "alert.raised" });
            let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
            if number % 5 == 4 {
                store.flush(FlushReason::Requested).await.unwrap();
            }
            println!("\nversion {}", receipt.version);
        }
        everything().await;
    }
}

/// Words of the child's lines that begin with one of ours; the test harness prints lines of its own.
fn lines(child: &mut Child) -> impl Iterator<Item = (String, String)> {
    child.lines().filter_map(|line| {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        ["hot", "synced", "reserved", "done", "version", "removed"]
            .contains(&word)
            .then(|| (word.to_owned(), rest.to_owned()))
    })
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (round, kill_after) in [40, 150, 333].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn(dir.path(), "append");
        let mut acked: Vec<(bool, Ulid)> = Vec::new();
        for (word, id) in lines(&mut child).take(kill_after) {
            acked.push((word == "synced", id.parse().unwrap()));
        }
        child.kill();
        // What was printed before the signal arrived counts as well; a line cut short does not.
        acked.extend(lines(&mut child).filter_map(|(word, id)| Some((word == "synced", id.parse().ok()?))));

        // Killed, tmpfs survives: everything. Then without tmpfs: what was on flash.
        for wiped in [false, true] {
            if wiped {
                for suffix in ["", "-wal", "-shm"] {
                    drop(std::fs::remove_file(dir.path().join(format!("run/hot.db{suffix}"))));
                }
            }
            runtime.block_on(async {
                let (manager, store) = open(dir.path()).await;
                store.resolve().await.unwrap();
                let status = store.status().await.unwrap();
                assert_eq!((status.unresolved, status.stable), (0, status.end));
                let events = read(&store, Query::all()).await;
                let found: HashSet<Ulid> = events.iter().map(|event| event.id).collect();
                assert_eq!(found.len(), events.len(), "an event is read twice");
                assert!(events.windows(2).all(|pair| pair[0].position < pair[1].position));
                for (synced, id) in acked.iter().filter(|(synced, _)| *synced || !wiped) {
                    assert!(found.contains(id), "round {round}, wiped: {wiped}, synced: {synced}: {id} is lost");
                }
                for name in ["a", "b", "c"] {
                    let versions = read(&store, Query::all().stream(stream(name))).await;
                    assert!(versions.windows(2).all(|pair| pair[0].version < pair[1].version), "{name}");
                }
                if !wiped {
                    assert_eq!(status.end.seq, events.len() as u64 + status.voids, "a position is unaccounted for");
                }
                drop(store);
                manager.shutdown().await.unwrap();
            });
        }
    }
}

#[test]
fn a_process_that_is_killed_while_it_removes_events_has_told_what_it_removed_and_nothing_else_is_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut removed_in_all = 0;
    // The last kills come right after a round of appends, while events are removed.
    for kill_after in [41, 62, 80, 83, 101] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn(dir.path(), "retain");
        let mut told: Vec<(String, String)> = lines(&mut child).take(kill_after).collect();
        child.kill();
        told.extend(lines(&mut child));
        let of = |wanted: &str| -> Vec<u64> {
            told.iter().filter(|(word, _)| word == wanted).filter_map(|(_, number)| number.parse().ok()).collect()
        };
        let (last_version, removed) =
            (of("version").into_iter().max().unwrap(), of("removed").into_iter().sum::<u64>());
        runtime.block_on(async {
            let (manager, store) = open(dir.path()).await;
            store.resolve().await.unwrap();
            assert!(store.verify(Span::all()).await.unwrap().is_sound());
            support::empty_hot(&manager).await;
            let left = read(&store, Query::all()).await;
            assert!(left.windows(2).all(|pair| pair[0].version < pair[1].version));
            // The hot tier had everything; without it, what is flushed or a row is there, or the record tells of it.
            let items = support::watch::shown(&store, "late").await;
            let recorded: u64 = items
                .iter()
                .filter_map(|item| match item {
                    Item::Truncated { removed, .. } if removed.by == TruncatedBy::Retention => Some(removed.events),
                    _ => None,
                })
                .sum();
            assert!(recorded >= removed, "{removed} were reported, {recorded} are recorded");
            let flushed = store.status().await.unwrap().warm.iter().flatten().map(|warm| warm.flushed_through).max();
            assert!(flushed.is_some());
            let accounted = left.len() as u64 + recorded;
            // Told of after the flush, so that at most two Normal ones wait for the next.
            assert!(accounted + 2 >= last_version, "{accounted} of {last_version} events are accounted for");
            let next = store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
            assert!(next.version > last_version, "a version is given again");
            assert!(
                next.version <= accounted + 4,
                "{accounted} events are accounted for, the next has {}",
                next.version
            );
            removed_in_all += recorded;
        });
    }
    assert!(removed_in_all > 0);
}

#[test]
fn what_a_killed_process_had_reserved_stops_readers_only_until_someone_looks() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(dir.path()).await;
        let mut child = spawn(dir.path(), "reserve");
        assert_eq!(lines(&mut child).next().unwrap().0, "reserved");
        let name = stream("other");
        let mine = store.append(&Scope::System, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        assert_eq!(mine.first.seq, 2, "both processes take from one order");
        store.resolve().await.unwrap();
        assert!(read(&store, Query::all()).await.is_empty(), "its owner lives: nobody else may end it");

        child.kill();
        store.resolve().await.unwrap();
        let status = store.status().await.unwrap();
        assert_eq!((status.voids, status.unresolved), (1, 0));
        assert_eq!(read(&store, Query::all()).await.len(), 1);
    });
}

#[test]
fn two_processes_append_in_one_order() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(dir.path()).await;
        let mut children = [spawn(dir.path(), "count"), spawn(dir.path(), "count")];
        let name = stream("shared");
        for _ in 0..100 {
            store.append(&router("r1"), &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        }
        for child in &mut children {
            assert_eq!(lines(child).next().unwrap().0, "done");
        }
        store.resolve().await.unwrap();
        let events = read(&store, Query::all()).await;
        let status = store.status().await.unwrap();
        assert_eq!(events.len(), 300);
        assert_eq!(status.end.seq, 300 + status.voids);
        assert!(events.windows(2).all(|pair| pair[0].position < pair[1].position));
        let versions: HashSet<u64> = events.iter().map(|event| event.version).collect();
        assert_eq!(versions.len(), 300, "a version was given twice");
        // And the flush takes what all of them appended.
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert_eq!(report.events, 280);
    });
}
