//! A router database against a map: whatever is done to both, they stay equal.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{CAUSE, Dirs, all, id, put, put_in};
use nasnet_dbmanager::{DbManager, Error, KeyOutcome, NewRouter};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Put(i64, i64),
    Delete(i64),
    /// Changes rows and then fails.
    Fail(i64),
    /// Changes rows and then panics.
    Panic(i64),
    Keyed(i64, i64),
    /// Fails under a key.
    KeyedFail(i64),
    /// Repeats the key of an earlier write.
    KeyAgain(usize),
    /// Several at once; the negative ones violate a constraint.
    Group(Vec<(i64, i64)>),
    Checkpoint,
    Reopen,
    /// Leaves the file without a shutdown.
    Abandon,
}

fn op() -> impl Strategy<Value = Op> {
    let k = || 0i64..8;
    prop_oneof![
        4 => (k(), 0i64..100).prop_map(|(k, v)| Op::Put(k, v)),
        2 => k().prop_map(Op::Delete),
        1 => k().prop_map(Op::Fail),
        1 => k().prop_map(Op::Panic),
        2 => (k(), 0i64..100).prop_map(|(k, v)| Op::Keyed(k, v)),
        1 => k().prop_map(Op::KeyedFail),
        1 => (0usize..10).prop_map(Op::KeyAgain),
        2 => prop::collection::vec((k(), -20i64..100), 1..10).prop_map(Op::Group),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
        1 => Just(Op::Abandon),
    ]
}

async fn run(ops: Vec<Op>) {
    let dirs = Dirs::new();
    let mut model = BTreeMap::new();
    let mut keys = Vec::new();
    let mut manager = dirs.open().await;
    manager.create_router(NewRouter::new(id("home"))).await.unwrap();
    let mut db = manager.router(&id("home")).await.unwrap();
    for op in ops {
        match op {
            Op::Put(k, v) => {
                put(&db, k, v).await.unwrap();
                model.insert(k, v);
            }
            Op::Delete(k) => {
                let deleted: Result<u64, Error> = db
                    .write(CAUSE, move |conn| {
                        Box::pin(async move {
                            let done = sqlx::query("DELETE FROM kv WHERE k = ?1").bind(k).execute(conn).await?;
                            Ok(done.rows_affected())
                        })
                    })
                    .await;
                assert_eq!(deleted.unwrap() == 1, model.remove(&k).is_some());
            }
            Op::Fail(k) => {
                let failed: Result<(), Error> = db
                    .write(CAUSE, move |conn| {
                        Box::pin(async move {
                            sqlx::query("DELETE FROM kv").execute(&mut *conn).await?;
                            put_in(conn, k, -1).await
                        })
                    })
                    .await;
                assert!(matches!(failed, Err(Error::Constraint { .. })), "{failed:?}");
            }
            Op::Panic(k) => {
                let failed: Result<(), Error> = db
                    .write(CAUSE, move |conn| {
                        Box::pin(async move {
                            put_in(conn, k, 1).await?;
                            std::panic::resume_unwind(Box::new("quietly"));
                        })
                    })
                    .await;
                assert!(matches!(failed, Err(Error::Panicked { .. })), "{failed:?}");
            }
            Op::Keyed(k, v) => {
                let key = manager.next_ulid();
                let done: Result<(), Error> =
                    db.write_keyed(CAUSE, key, move |conn| Box::pin(put_in(conn, k, v))).await;
                done.unwrap();
                model.insert(k, v);
                keys.push((key, KeyOutcome::Committed));
            }
            Op::KeyedFail(k) => {
                let key = manager.next_ulid();
                let done: Result<(), Error> =
                    db.write_keyed(CAUSE, key, move |conn| Box::pin(put_in(conn, k, -1))).await;
                assert!(done.is_err());
                keys.push((key, KeyOutcome::Absent));
            }
            Op::KeyAgain(index) => {
                let committed: Vec<_> = keys.iter().filter(|(_, o)| *o == KeyOutcome::Committed).collect();
                if let Some((key, _)) = committed.get(index) {
                    let done: Result<(), Error> =
                        db.write_keyed(CAUSE, *key, |conn| Box::pin(put_in(conn, 0, 0))).await;
                    assert!(matches!(done, Err(Error::AlreadyCommitted { .. })), "{done:?}");
                }
            }
            Op::Group(puts) => {
                let results = futures_util::future::join_all(puts.iter().map(|(k, v)| put(&db, *k, *v))).await;
                for ((k, v), result) in puts.into_iter().zip(results) {
                    assert_eq!(result.is_ok(), v >= 0, "{result:?}");
                    if v >= 0 {
                        model.insert(k, v);
                    }
                }
            }
            Op::Checkpoint => assert!(!db.checkpoint().await.unwrap().busy),
            Op::Reopen => {
                drop(db);
                manager.shutdown().await.unwrap();
                (manager, db) = reopen(&dirs).await;
            }
            Op::Abandon => {
                let (next, opened) = reopen(&dirs).await;
                (manager, db) = (next, opened);
            }
        }
        assert_eq!(all(&db).await, model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
        for (key, outcome) in &keys {
            assert_eq!(db.outcome(*key).await.unwrap(), *outcome);
        }
    }
    drop(db);
    manager.shutdown().await.unwrap();
}

async fn reopen(dirs: &Dirs) -> (DbManager, nasnet_dbmanager::RouterDb) {
    let manager = dirs.open().await;
    let db = manager.router(&id("home")).await.unwrap();
    (manager, db)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_database_equals_a_map(ops in prop::collection::vec(op(), 1..30)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(ops));
    }
}
