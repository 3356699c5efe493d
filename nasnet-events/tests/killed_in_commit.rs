//! A process that is killed while its commit is synced: its frames are in the log of the database, and nobody who has the
//! log open sees them. Whoever opens the database as the first one later would. What was told in between stays true.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::path::Path;

use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{DbManager, RouterId, Scope};
use nasnet_events::{EventOptions, EventStore, Expected, Query};
use support::child::{self, Child};
use support::{event, open_in, options, read, router, stream};

async fn open(dir: &Path) -> (DbManager, EventStore) {
    open_in(options(dir), EventOptions::default()).await
}

#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(task) = child::task() else { return };
    let (role, dir) = task.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(Path::new(dir)).await;
        match role {
            "watch" => watch(&manager, &store).await,
            "die" => die_in_a_commit(&manager, &store).await,
            other => panic!("{other}"),
        }
    });
}

/// Has the database open, and looks what became of the transactions of others.
async fn watch(manager: &DbManager, store: &EventStore) {
    let _open = manager.router(&RouterId::parse("r1").unwrap()).await.unwrap();
    assert!(read(store, Query::all()).await.is_empty());
    println!("\nwatching");
    loop {
        store.resolve().await.unwrap();
        let status = store.status().await.unwrap();
        if status.end.seq > 1 && status.unresolved == 0 {
            assert_eq!((status.end.seq, status.voids), (2, 1));
            // Whoever reads goes on behind it.
            store
                .append(&Scope::System, &stream("s"), Expected::Any, vec![event(manager, "config.applied")])
                .await
                .unwrap();
            println!("\nresolved");
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
    }
}

async fn die_in_a_commit(manager: &DbManager, store: &EventStore) {
    // The log of the database has been begun: of the next commit its frames are written, and then synced.
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event(manager, "config.applied")]).await.unwrap();
    let database = manager.router(&RouterId::parse("r1").unwrap()).await.unwrap();
    let _armed = Fault::kill(Operation::Sync, 1).arm(database.path().parent().unwrap()).unwrap();
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event(manager, "config.applied")]).await.unwrap();
    panic!("it was to be killed");
}

#[test]
fn what_was_told_as_void_stays_void_when_its_frames_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The fleet is there, and nothing of its making is left in a log.
    runtime.block_on(async {
        let (manager, store) = open(dir.path()).await;
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
    let mut watching = Child::spawn(format_args!("watch {}", dir.path().display()));
    watching.until("watching");
    let mut dying = Child::spawn(format_args!("die {}", dir.path().display()));
    assert!(!dying.wait().success());
    watching.until("resolved");
    drop(watching);
    runtime.block_on(async {
        for is_wiped in [false, true] {
            if is_wiped {
                for suffix in ["", "-wal", "-shm"] {
                    drop(std::fs::remove_file(dir.path().join(format!("run/hot.db{suffix}"))));
                }
            }
            let (manager, store) = open(dir.path()).await;
            let found: Vec<u64> = read(&store, Query::all()).await.iter().map(|event| event.position.seq).collect();
            assert_eq!(found, [1, 3], "wiped: {is_wiped}");
            drop(store);
            manager.shutdown().await.unwrap();
        }
    });
}
