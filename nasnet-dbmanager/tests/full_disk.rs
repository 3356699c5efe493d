//! A database at its bound refuses to grow, goes on with everything else, and takes what is critical.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{CAUSE, Dirs, id, with_router};
use nasnet_dbmanager::{Cause, Database, Error};

const CRITICAL: Cause = Cause::new("test-critical").critical();

async fn insert(db: &Database, cause: Cause, rows: i64) -> Result<(), Error> {
    db.write(cause, move |conn| {
        Box::pin(async move {
            for _ in 0..rows {
                sqlx::query("INSERT INTO kv (v) VALUES (1)").execute(&mut *conn).await?;
            }
            Ok(())
        })
    })
    .await
}

async fn delete(db: &Database, upto: i64) -> Result<(), Error> {
    db.write(CAUSE, move |conn| {
        Box::pin(async move {
            sqlx::query("DELETE FROM kv WHERE k <= ?1").bind(upto).execute(conn).await?;
            Ok(())
        })
    })
    .await
}

async fn count(db: &Database) -> i64 {
    let count: Result<i64, Error> = db
        .read(CAUSE, |conn| {
            Box::pin(async move { Ok(sqlx::query_scalar("SELECT COUNT(*) FROM kv").fetch_one(conn).await?) })
        })
        .await;
    count.unwrap()
}

async fn fill(db: &Database, cause: Cause) -> Error {
    loop {
        if let Err(error) = insert(db, cause, 200).await {
            return error;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_bound_a_database_deletes_reads_reopens_and_takes_critical_writes() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.database_bytes_max = 512 * 1024;
    let manager = nasnet_dbmanager::DbManager::open(options.clone()).await.unwrap();
    let router = with_router(&manager, "home").await;

    let error = fill(&router, CAUSE).await;
    assert!(matches!(error, Error::NoSpace { .. }) && error.is_retryable(), "{error}");
    let full = count(&router).await;
    assert!(full > 1000);
    let bytes = std::fs::metadata(router.path()).unwrap().len();
    assert!(bytes <= 512 * 1024 * 85 / 100, "{bytes}");

    // The reserve is for what is critical, and has an end too.
    insert(&router, CRITICAL, 200).await.unwrap();
    let refused = insert(&router, CAUSE, 2_000).await;
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    assert!(matches!(fill(&router, CRITICAL).await, Error::NoSpace { .. }));
    let critical = count(&router).await - full;
    assert!(critical >= 1000, "{critical}");

    // Opening again and deleting work at the bound, and make room.
    drop(router);
    manager.shutdown().await.unwrap();
    let manager = nasnet_dbmanager::DbManager::open(options).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(count(&router).await, full + critical);
    delete(&router, full).await.unwrap();
    assert_eq!(count(&router).await, critical);
    for _ in 0..5 {
        insert(&router, CAUSE, 200).await.unwrap();
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_does_not_fit_harms_none_that_shares_its_commit_for_good() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.database_bytes_max = 512 * 1024;
    let manager = nasnet_dbmanager::DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    fill(&router, CAUSE).await;
    delete(&router, 200).await.unwrap();
    // One needs far more than there is, its neighbours next to nothing.
    let before = count(&router).await;
    let writes: Vec<_> = (0..8)
        .map(|number| {
            let router = router.clone();
            tokio::spawn(async move { insert(&router, CAUSE, if number == 3 { 100_000 } else { 1 }).await })
        })
        .collect();
    let mut fitted = 0;
    for (number, write) in writes.into_iter().enumerate() {
        match write.await.unwrap() {
            Ok(()) => fitted += 1,
            Err(Error::NoSpace { .. }) => assert_eq!(number, 3),
            Err(error) => {
                assert!(matches!(error, Error::NotApplied), "{error}");
                assert!(error.is_retryable());
            }
        }
    }
    assert_eq!(count(&router).await, before + fitted);
    insert(&router, CAUSE, 1).await.unwrap();
    manager.shutdown().await.unwrap();
}
