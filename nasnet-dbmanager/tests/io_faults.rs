//! One operation on a file fails: who is told what, and what is in the file then.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use common::{CAUSE, Dirs, all, id, put, put_in, with_router};
use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{AsideReason, DbManager, Error, KeyOutcome, NewRouter, OnDamage, RestoreMode, RouterDb, Which};
use ulid::Ulid;

fn key(number: u128) -> Ulid {
    Ulid(number)
}

async fn put_keyed(router: &RouterDb, k: i64) -> Result<(), Error> {
    router.write_keyed(CAUSE, key(k.unsigned_abs().into()), move |conn| Box::pin(put_in(conn, k, k))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_a_commit_is_unknown_and_the_key_tells() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    put_keyed(&router, 1).await.unwrap();
    let armed = Fault::fail(Operation::Sync, 1, Fault::IOERR_FSYNC).arm(dirs.root()).unwrap();
    let answer = put_keyed(&router, 2).await;
    assert_eq!(armed.fired(), 1);
    drop(armed);
    assert!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
    assert!(!answer.unwrap_err().is_retryable());
    // The writer connects and checks again by itself.
    put_keyed(&router, 3).await.unwrap();
    let there = all(&router).await;
    let expected = match router.outcome(key(2)).await.unwrap() {
        KeyOutcome::Committed => vec![(1, 1), (2, 2), (3, 3)],
        KeyOutcome::Absent => vec![(1, 1), (3, 3)],
        other => unreachable!("{other:?}"),
    };
    assert_eq!(there, expected);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_that_fails_is_typed_and_nothing_but_it_is_lost() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    let (mut k, mut expected, mut struck) = (0, Vec::new(), 0);
    for (operation, code) in common::COMMIT_FAULTS {
        for nth in 1..20 {
            k += 1;
            let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
            let answer = put_keyed(&router, k).await;
            let fired = armed.fired();
            drop(armed);
            struck += fired;
            let committed = match &answer {
                Ok(()) => true,
                Err(Error::Unknown { .. }) => {
                    router.outcome(key(k.unsigned_abs().into())).await.unwrap() == KeyOutcome::Committed
                }
                Err(Error::NoSpace { .. }) => {
                    assert_eq!(code, Fault::FULL);
                    false
                }
                Err(Error::Medium { code: found, .. }) => {
                    assert_eq!(*found, code);
                    false
                }
                Err(Error::Storage { .. }) => {
                    assert_eq!(code, Fault::NOMEM);
                    false
                }
                Err(other) => unreachable!("{operation:?} {nth} {code}: {other:?}"),
            };
            if committed {
                expected.push((k, k));
            }
            k += 1;
            put(&router, k, k).await.unwrap();
            expected.push((k, k));
            assert_eq!(all(&router).await, expected, "{operation:?} {nth} {code}");
            if fired == 0 {
                break;
            }
        }
    }
    assert!(struck >= 8, "{struck}");
    manager.shutdown().await.unwrap();
}

/// Queues operations behind one that holds the writer, so that they share a transaction; the second of them is hit.
async fn group(router: &RouterDb, hit: Hit, dirs: &Dirs) -> Vec<Result<(), Error>> {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let (begun, holding) = tokio::sync::oneshot::channel::<()>();
    let holder = tokio::spawn({
        let router = router.clone();
        async move {
            router
                .write(CAUSE, |conn| {
                    Box::pin(async move {
                        begun.send(()).ok();
                        wait.await.ok();
                        put_in(conn, 0, 0).await
                    })
                })
                .await
        }
    });
    // In a transaction of its own before the others come.
    holding.await.unwrap();
    let mut members = Vec::new();
    for number in 1..=3 {
        let queued = router.clone();
        let root = dirs.root().to_owned();
        members.push(tokio::spawn(async move {
            queued
                .write(CAUSE, move |conn| {
                    Box::pin(async move {
                        if number != 2 {
                            return put_in(conn, number, number).await;
                        }
                        match hit {
                            Hit::Fault(code) => {
                                // Far more than the cache holds, so that it must be written before the commit.
                                let _armed = Fault::fail(Operation::Write, 3, code).arm(&root).unwrap();
                                let sql = "WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
                                           INSERT INTO kv (k, v) SELECT i, i FROM n";
                                sqlx::query(sql).execute(conn).await?;
                            }
                            Hit::Interrupt => {
                                let sql = "WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n)
                                           INSERT INTO kv (k, v) SELECT i, i FROM n WHERE i < 0";
                                sqlx::query(sql).execute(conn).await?;
                            }
                        }
                        Ok(())
                    })
                })
                .await
        }));
        // Each is in the queue before the next.
        while router.queue_depth() < usize::try_from(number).unwrap() {
            tokio::task::yield_now().await;
        }
    }
    go.send(()).unwrap();
    holder.await.unwrap().unwrap();
    let mut answers = Vec::new();
    for member in members {
        answers.push(member.await.unwrap());
    }
    answers
}

#[derive(Debug, Clone, Copy)]
enum Hit {
    Fault(i32),
    Interrupt,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_of_a_group_that_loses_the_transaction_is_told_apart_from_its_neighbours() {
    for hit in [Hit::Fault(Fault::FULL), Hit::Fault(Fault::IOERR_WRITE), Hit::Interrupt] {
        let dirs = Dirs::new();
        let mut options = dirs.options();
        if matches!(hit, Hit::Interrupt) {
            // Reached by what never ends alone.
            options.write_deadline = Duration::from_secs(4);
        }
        let manager = DbManager::open(options).await.unwrap();
        let router = with_router(&manager, "home").await;
        let answers = group(&router, hit, &dirs).await;
        // The first was rolled back with the one that was hit; the last had not begun and ran in the next transaction.
        assert!(matches!(answers[0], Err(Error::NotApplied)), "{hit:?}: {answers:?}");
        let own = match hit {
            Hit::Fault(Fault::FULL) => matches!(answers[1], Err(Error::NoSpace { .. })),
            Hit::Fault(_) => matches!(answers[1], Err(Error::Medium { code: Fault::IOERR_WRITE, .. })),
            Hit::Interrupt => matches!(answers[1], Err(Error::WriteDeadline { .. })),
        };
        assert!(own, "{hit:?}: {answers:?}");
        assert!(answers[2].is_ok(), "{hit:?}: {answers:?}");
        assert_eq!(all(&router).await, [(0, 0), (3, 3)], "{hit:?}");
        put(&router, 4, 4).await.unwrap();
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_could_not_be_created_can_be_created_then() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let mut struck = 0;
    for (operation, code) in [(Operation::Rename, Fault::FULL), (Operation::SyncDirectory, Fault::IOERR_FSYNC)] {
        for nth in 1..10 {
            let name = id(&format!("r-{code}-{nth}"));
            let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
            let answer = manager.create_router(NewRouter::new(name.clone())).await;
            let fired = armed.fired();
            drop(armed);
            struck += fired;
            if let Err(error) = &answer {
                assert!(matches!(error, Error::Io { .. } | Error::NotWritable { .. }), "{error:?}");
                let again = manager.create_router(NewRouter::new(name.clone())).await;
                assert!(matches!(again, Ok(_) | Err(Error::RouterExists { .. })), "{again:?}");
            }
            put(&manager.router(&name).await.unwrap(), 1, 1).await.unwrap();
            if fired == 0 {
                break;
            }
        }
    }
    assert!(struck >= 3, "{struck}");
    manager.shutdown().await.unwrap();
}

/// Fails the Nth operation of a call, for every N, until the call has no more.
const MOVES: [(Operation, i32); 5] = [
    (Operation::Write, Fault::IOERR_WRITE),
    (Operation::Sync, Fault::IOERR_FSYNC),
    (Operation::SyncDirectory, Fault::IOERR_FSYNC),
    (Operation::Rename, Fault::FULL),
    (Operation::Read, Fault::INTERRUPT),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_failed_half_way_is_finished_for_whoever_asks_next() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    // Taken for lost, a router that is only elsewhere would be replaced by an empty one.
    options.on_damage = OnDamage::Recover;
    let manager = DbManager::open(options).await.unwrap();
    let home = id("home");
    put(&*with_router(&manager, "home").await, 1, 1).await.unwrap();
    let manifest = manager.backup(Which::Router(home.clone()), dirs.root().join("backup")).await.unwrap();
    put(&manager.router(&home).await.unwrap(), 2, 2).await.unwrap();
    let mut failed = 0;
    for step in ["retire", "reinstate", "restore and undo"] {
        for (operation, code) in MOVES {
            for nth in 1..80 {
                if step == "reinstate" {
                    manager.retire(&home).await.unwrap();
                }
                let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
                let answer = match step {
                    "retire" => manager.retire(&home).await,
                    "reinstate" => manager.reinstate(&home).await,
                    _ => match manager.restore(&manifest, RestoreMode::Router(home.clone())).await {
                        Ok(report) => {
                            let safety = report.restored[0].safety.as_deref().unwrap();
                            manager.undo_restore(&home, safety).await.map(|_| ())
                        }
                        Err(error) => Err(error),
                    },
                };
                let fired = armed.fired();
                drop(armed);
                failed += u64::from(answer.is_err());
                // Whoever retires what is half-way back has it retired, whether or not its record says so already.
                if step == "reinstate" && answer.is_err() && nth % 2 == 0 {
                    let again = manager.retire(&home).await;
                    assert!(
                        matches!(again, Ok(()) | Err(Error::WrongLifecycle { .. })),
                        "{operation:?} {nth}: {again:?}"
                    );
                    let asked = manager.router(&home).await.map(drop);
                    assert!(matches!(asked, Err(Error::RouterNotFound { .. })), "{operation:?} {nth}: {asked:?}");
                }
                // Asking for it is all it takes, but for a router that is retired by now.
                let router = match manager.router(&home).await {
                    Err(Error::RouterNotFound { .. } | Error::WrongLifecycle { .. }) => {
                        manager.reinstate(&home).await.unwrap();
                        manager.router(&home).await
                    }
                    router => router,
                };
                let router = router.unwrap();
                let listed = manager.routers().await.unwrap();
                assert!(listed.iter().any(|record| record.id == home), "{step}, {operation:?} {nth}: {answer:?}");
                let rows = all(&router).await;
                drop(router);
                let whole = rows == [(1, 1), (2, 2)] || (step == "restore and undo" && rows == [(1, 1)]);
                assert!(whole, "{step}, {operation:?} {nth} fails with {code}, {answer:?}: {rows:?}");
                if rows.len() == 1 {
                    put(&manager.router(&home).await.unwrap(), 2, 2).await.unwrap();
                }
                if fired == 0 {
                    break;
                }
            }
        }
    }
    assert!(failed > 30, "{failed}");
    assert!(manager.set_aside().await.unwrap().iter().all(|aside| aside.reason == AsideReason::Replaced));
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_database_that_cannot_be_read_for_a_moment_is_not_replaced_with_older_counters() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let manifest = manager.backup(Which::System, dirs.root().join("backup")).await.unwrap();
    let mut given = manager.system().counters().reserve("later", 1).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    let mut failed = 0;
    for (operation, code) in [(Operation::Open, Fault::NOMEM), (Operation::Read, Fault::NOMEM)] {
        for nth in 1..200 {
            let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
            let answer = DbManager::restore_system(&dirs.options(), &manifest).await;
            let fired = armed.fired();
            drop(armed);
            failed += u64::from(answer.is_err());
            let manager = dirs.open().await;
            let next = manager.system().counters().reserve("later", 1).await.unwrap();
            assert!(next > given, "{operation:?} {nth}: {next} is given after {given}, {answer:?}");
            given = next;
            manager.shutdown().await.unwrap();
            if fired == 0 {
                break;
            }
        }
    }
    assert!(failed > 5, "{failed}");
}
