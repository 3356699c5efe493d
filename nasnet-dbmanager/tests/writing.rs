//! What the one writer of a database promises to the operations it runs.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{CAUSE, Dirs, all, put, put_in, with_router};
use nasnet_dbmanager::{ConstraintKind, Database, DbManager, Error, KeyOutcome, RouterDb};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

async fn fleet(dirs: &Dirs) -> (DbManager, RouterDb) {
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    (manager, router)
}

/// Occupies the writer until told to go on, so that what is queued meanwhile forms one group.
async fn occupy(db: &Database) -> (oneshot::Sender<()>, JoinHandle<Result<(), Error>>) {
    let (go, wait) = oneshot::channel::<()>();
    let (started, running) = oneshot::channel();
    let db = db.clone();
    let task = tokio::spawn(async move {
        db.write(CAUSE, move |_| {
            Box::pin(async move {
                started.send(()).ok();
                wait.await.ok();
                Ok(())
            })
        })
        .await
    });
    running.await.unwrap();
    (go, task)
}

async fn queued(db: &Database, count: usize) {
    while db.queue_depth() < count {
        tokio::task::yield_now().await;
    }
}

/// Queues the operations behind an occupied writer, in order, and lets them run as one group.
async fn as_one_group(
    db: &Database,
    ops: Vec<JoinHandle<Result<(), Error>>>,
    go: oneshot::Sender<()>,
) -> Vec<Result<(), Error>> {
    queued(db, ops.len()).await;
    go.send(()).unwrap();
    let mut results = Vec::new();
    for op in ops {
        results.push(op.await.unwrap());
    }
    results
}

macro_rules! spawn_op {
    ($db:expr, |$conn:ident| $body:expr) => {{
        let db = Database::clone(&$db);
        let depth = db.queue_depth();
        let task = tokio::spawn({
            let db = db.clone();
            async move { db.write(CAUSE, move |$conn| Box::pin(async move { $body })).await }
        });
        queued(&db, depth + 1).await;
        task
    }};
}

#[tokio::test]
async fn operations_queued_together_share_one_sync() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    put(&router, 0, 0).await.unwrap();
    let before = router.written();
    put(&router, 0, 1).await.unwrap();
    let alone = (router.written() - before).syncs;
    assert!(alone > 0);
    let (go, first) = occupy(&router).await;
    let mut ops = Vec::new();
    for k in 1..=20 {
        ops.push(spawn_op!(router, |conn| put_in(conn, k, k).await));
    }
    let before = router.written();
    let results = as_one_group(&router, ops, go).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!((router.written() - before).syncs, alone);
    first.await.unwrap().unwrap();
    assert_eq!(all(&router).await.len(), 21);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failing_operation_takes_back_its_own_changes_alone() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let (go, first) = occupy(&router).await;
    let ops = vec![
        spawn_op!(router, |conn| put_in(conn, 1, 1).await),
        spawn_op!(router, |conn| {
            put_in(conn, 2, 2).await?;
            put_in(conn, 3, -1).await
        }),
        spawn_op!(router, |conn| {
            put_in(conn, 4, 4).await?;
            panic!("on purpose")
        }),
        spawn_op!(router, |conn| {
            put_in(conn, 5, 5).await?;
            Err(Error::Random)
        }),
        spawn_op!(router, |conn| put_in(conn, 6, 6).await),
    ];
    let results = as_one_group(&router, ops, go).await;
    assert!(results[0].is_ok() && results[4].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(Error::Constraint { kind: ConstraintKind::Check, .. })), "{results:?}");
    assert!(matches!(&results[2], Err(Error::Panicked { message }) if message == "on purpose"), "{results:?}");
    assert!(matches!(results[3], Err(Error::Random)), "{results:?}");
    first.await.unwrap().unwrap();
    assert_eq!(all(&router).await, [(1, 1), (6, 6)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_full_file_fails_the_operation_that_filled_it_and_spares_the_connection() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let (go, first) = occupy(&router).await;
    let ops = vec![
        spawn_op!(router, |conn| put_in(conn, 1, 1).await),
        // A real SQLITE_FULL, which takes the whole transaction down.
        spawn_op!(router, |conn| {
            sqlx::query("PRAGMA max_page_count = 1").execute(&mut *conn).await?;
            for k in 100..20_000 {
                put_in(conn, k, k).await?;
            }
            Ok(())
        }),
        spawn_op!(router, |conn| put_in(conn, 3, 3).await),
    ];
    let results = as_one_group(&router, ops, go).await;
    assert!(matches!(results[0], Err(Error::NotApplied)), "{results:?}");
    assert!(results[0].as_ref().unwrap_err().is_retryable());
    assert!(matches!(results[1], Err(Error::NoSpace { .. })), "{results:?}");
    // It had not started and runs on the new connection, whose page limit is the default again.
    assert!(results[2].is_ok(), "{results:?}");
    first.await.unwrap().unwrap();
    assert_eq!(all(&router).await, [(3, 3)]);
    put(&router, 4, 4).await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_operation_cannot_commit_or_end_the_transaction_of_others() {
    for sql in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN IMMEDIATE", "END"] {
        for grouped in [false, true] {
            let dirs = Dirs::new();
            let (manager, router) = fleet(&dirs).await;
            let (go, first) = occupy(&router).await;
            let mut ops = Vec::new();
            if grouped {
                ops.push(spawn_op!(router, |conn| put_in(conn, 1, 1).await));
            }
            ops.push(spawn_op!(router, |conn| {
                put_in(conn, 2, 2).await?;
                sqlx::raw_sql(sql).execute(&mut *conn).await.ok();
                Ok(())
            }));
            let results = as_one_group(&router, ops, go).await;
            assert!(matches!(results.last().unwrap(), Err(Error::TransactionLost)), "{sql}: {results:?}");
            if grouped {
                assert!(matches!(results[0], Err(Error::NotApplied)), "{sql}: {results:?}");
            }
            first.await.unwrap().unwrap();
            assert_eq!(all(&router).await, [], "{sql}");
            put(&router, 3, 3).await.unwrap();
            manager.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_deferred_constraint_is_the_error_of_a_lone_operation() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let result: Result<(), Error> = router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("INSERT INTO child (k) VALUES (77)").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    assert!(matches!(result, Err(Error::Constraint { kind: ConstraintKind::ForeignKey, .. })), "{result:?}");
    put(&router, 1, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_operation_may_nest_savepoints_and_drop_them() {
    use sqlx::Connection;
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let result: Result<(), Error> = router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                put_in(conn, 1, 1).await?;
                let mut inner = conn.begin().await?;
                put_in(&mut inner, 2, 2).await?;
                drop(inner);
                let mut inner = conn.begin().await?;
                put_in(&mut inner, 3, 3).await?;
                inner.commit().await?;
                Ok(())
            })
        })
        .await;
    result.unwrap();
    assert_eq!(all(&router).await, [(1, 1), (3, 3)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dropped_write_still_runs_and_its_key_tells() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let (go, first) = occupy(&router).await;
    let key = manager.next_ulid();
    let lost = {
        let router = router.clone();
        tokio::spawn(async move { router.write_keyed(CAUSE, key, |conn| Box::pin(put_in(conn, 1, 1))).await })
    };
    queued(&router, 1).await;
    lost.abort();
    assert!(lost.await.unwrap_err().is_cancelled());
    // The question waits behind the write it asks about.
    let question = {
        let router = router.clone();
        tokio::spawn(async move { router.outcome(key).await })
    };
    queued(&router, 2).await;
    go.send(()).unwrap();
    assert_eq!(question.await.unwrap().unwrap(), KeyOutcome::Committed);
    first.await.unwrap().unwrap();
    assert_eq!(all(&router).await, [(1, 1)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_key_commits_once_and_a_failed_write_leaves_none() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let (good, bad) = (manager.next_ulid(), manager.next_ulid());
    let runs = Arc::new(AtomicUsize::new(0));
    for attempt in 0..2 {
        let counted = Arc::clone(&runs);
        let result: Result<(), Error> = router
            .write_keyed(CAUSE, good, move |conn| {
                Box::pin(async move {
                    counted.fetch_add(1, Ordering::SeqCst);
                    put_in(conn, 1, 1).await
                })
            })
            .await;
        match attempt {
            0 => result.unwrap(),
            _ => assert!(matches!(result, Err(Error::AlreadyCommitted { key }) if key == good)),
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let failed: Result<(), Error> = router.write_keyed(CAUSE, bad, |conn| Box::pin(put_in(conn, 2, -2))).await;
    assert!(failed.is_err());
    assert_eq!(router.outcome(good).await.unwrap(), KeyOutcome::Committed);
    assert_eq!(router.outcome(bad).await.unwrap(), KeyOutcome::Absent);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn keys_are_forgotten_oldest_first_and_said_to_be() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let mut keys = Vec::new();
    let never = manager.next_ulid();
    for _ in 0..1_300 {
        let key = manager.next_ulid();
        keys.push(key);
    }
    for chunk in keys.chunks(50) {
        let writes =
            chunk.iter().map(|key| router.write_keyed(CAUSE, *key, |_| Box::pin(async { Ok::<_, Error>(()) })));
        for result in futures_util::future::join_all(writes).await {
            result.unwrap();
        }
    }
    for key in &keys[keys.len() - 1024..] {
        assert_eq!(router.outcome(*key).await.unwrap(), KeyOutcome::Committed);
    }
    assert_eq!(router.outcome(keys[0]).await.unwrap(), KeyOutcome::Forgotten);
    assert_eq!(router.outcome(never).await.unwrap(), KeyOutcome::Forgotten);
    assert_eq!(router.outcome(manager.next_ulid()).await.unwrap(), KeyOutcome::Absent);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.write_queue = 2;
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    let (go, first) = occupy(&router).await;
    let a = spawn_op!(router, |conn| put_in(conn, 1, 1).await);
    let b = spawn_op!(router, |conn| put_in(conn, 2, 2).await);
    let refused = put(&router, 3, 3).await;
    assert!(matches!(refused, Err(Error::Overloaded { queue: "writer" })), "{refused:?}");
    let results = as_one_group(&router, vec![a, b], go).await;
    assert!(results.iter().all(Result::is_ok));
    first.await.unwrap().unwrap();
    assert_eq!(all(&router).await.len(), 2);
    manager.shutdown().await.unwrap();
}

const ENDLESS: &str = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n";

#[tokio::test]
async fn an_endless_statement_ends_at_the_deadline_and_the_database_lives_on() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.read_deadline = Duration::from_secs(2);
    options.write_deadline = Duration::from_secs(2);
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    let read: Result<i64, Error> = router
        .read(CAUSE, |conn| Box::pin(async move { Ok(sqlx::query_scalar(ENDLESS).fetch_one(conn).await?) }))
        .await;
    assert!(matches!(read, Err(Error::ReadDeadline { limit_ms: 2_000 })), "{read:?}");
    let write: Result<(), Error> = router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                put_in(conn, 1, 1).await?;
                sqlx::query(ENDLESS).fetch_one(conn).await?;
                Ok(())
            })
        })
        .await;
    assert!(matches!(write, Err(Error::WriteDeadline { limit_ms: 2_000 })), "{write:?}");
    // One that waits for something that never comes.
    let stuck: Result<(), Error> = router.write(CAUSE, |_| Box::pin(async { std::future::pending().await })).await;
    assert!(matches!(stuck, Err(Error::WriteDeadline { .. })), "{stuck:?}");
    put(&router, 2, 2).await.unwrap();
    assert_eq!(all(&router).await, [(2, 2)]);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dropped_or_panicking_read_never_harms_the_next() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    put(&router, 1, 1).await.unwrap();
    for _ in 0..10 {
        let (started, running) = oneshot::channel();
        let reading = {
            let router = router.clone();
            tokio::spawn(async move {
                router
                    .read(CAUSE, |conn| {
                        Box::pin(async move {
                            started.send(()).ok();
                            Ok::<i64, Error>(sqlx::query_scalar("SELECT COUNT(*) FROM kv").fetch_one(conn).await?)
                        })
                    })
                    .await
            })
        };
        running.await.unwrap();
        reading.abort();
        let panicked: Result<(), Error> = router.read(CAUSE, |_| Box::pin(async { panic!("on purpose") })).await;
        assert!(matches!(panicked, Err(Error::Panicked { .. })), "{panicked:?}");
        assert_eq!(all(&router).await, [(1, 1)]);
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_read_sees_one_state_however_many_statements_it_runs() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let (ask, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    let (go, wait) = oneshot::channel::<()>();
    let reading = {
        let router = router.clone();
        tokio::spawn(async move {
            router
                .read(CAUSE, |conn| {
                    Box::pin(async move {
                        let count = "SELECT COUNT(*) FROM kv";
                        let before: i64 = sqlx::query_scalar(count).fetch_one(&mut *conn).await?;
                        ask.send(()).await.ok();
                        wait.await.ok();
                        let after: i64 = sqlx::query_scalar(count).fetch_one(&mut *conn).await?;
                        Ok::<_, Error>((before, after))
                    })
                })
                .await
        })
    };
    asked.recv().await.unwrap();
    put(&router, 1, 1).await.unwrap();
    go.send(()).unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), (0, 0));
    assert_eq!(all(&router).await.len(), 1);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_empties_the_log() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    put(&router, 1, 1).await.unwrap();
    let done = router.checkpoint().await.unwrap();
    assert!(!done.busy);
    let wal = router.path().with_extension("db-wal");
    assert_eq!(std::fs::metadata(wal).unwrap().len(), 0);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn sixteen_writers_never_meet_a_busy_database() {
    let dirs = Dirs::new();
    let (manager, router) = fleet(&dirs).await;
    let writers = (0..16).map(|writer| {
        let router = router.clone();
        tokio::spawn(async move {
            for n in 0..25 {
                put(&router, writer * 100 + n, n).await?;
            }
            Ok::<_, Error>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(all(&router).await.len(), 400);
    manager.shutdown().await.unwrap();
}
