//! What a fleet counts, and that no value gets into a label.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "common/book.rs"]
mod book;
mod common;

use std::sync::OnceLock;
use std::time::Duration;

use book::Book;
use common::{Dirs, put, with_router};
use nasnet_dbmanager::{BudgetLevel, Cause, DbManager, Error, FlashBudget, RouterDb, observe};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The recorder of this process. Tests run side by side, so each counts under causes of its own.
fn book() -> &'static Book {
    static BOOK: OnceLock<Book> = OnceLock::new();
    BOOK.get_or_init(|| {
        let book = Book::default();
        metrics::set_global_recorder(book.clone()).unwrap();
        observe::describe();
        book
    })
}

const SECRET: &str = "correct-horse-battery-staple";

#[tokio::test]
async fn a_write_a_failed_one_and_a_checkpoint_are_counted_without_any_value() {
    const GOOD: Cause = Cause::new("counted-write");
    const BAD: Cause = Cause::new("counted-failure");
    const READ: Cause = Cause::new("counted-read");
    let (book, dirs) = (book(), Dirs::new());
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    assert!(book.sum(observe::OPEN, "database=router") >= 1.0, "{:?}", book.sums);

    router
        .write(GOOD, |conn| {
            Box::pin(async move {
                sqlx::query("CREATE TABLE kept (value TEXT) STRICT").execute(&mut *conn).await.unwrap();
                sqlx::query("INSERT INTO kept (value) VALUES (?1)").bind(SECRET).execute(conn).await.unwrap();
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
    let refused: Result<(), Error> = router
        .write(BAD, |_| Box::pin(async { Err(Error::NotFound { what: "thing", name: SECRET.to_owned() }) }))
        .await;
    assert!(refused.is_err());
    let found: String = router
        .read(READ, |conn| {
            Box::pin(async move {
                let sql = "SELECT value FROM kept WHERE value = ?1";
                Ok::<_, Error>(sqlx::query_scalar(sql).bind(SECRET).fetch_one(conn).await.unwrap())
            })
        })
        .await
        .unwrap();
    assert_eq!(found, SECRET);
    let before = book.sum(observe::WAL_BYTES, "database=router");
    assert!(!router.checkpoint().await.unwrap().busy);

    let one = |cause: &str, outcome: &str| {
        book.sum(observe::OPERATIONS, &format!("cause={cause},database=router,outcome={outcome}"))
    };
    assert_eq!((one("counted-write", "committed"), one("counted-write", "failed")), (1.0, 0.0));
    assert_eq!((one("counted-failure", "committed"), one("counted-failure", "failed")), (0.0, 1.0));
    assert_eq!(one("counted-read", "read"), 1.0);
    for cause in ["counted-write", "counted-failure", "counted-read"] {
        assert_eq!(book.sum(observe::OPERATION_SECONDS, &format!("cause={cause},database=router")), 1.0, "{cause}");
    }
    assert!(book.sum(observe::WAL_BYTES, "database=router") > before);
    assert!(book.sum(observe::FLASH_BYTES, "cause=counted-write,database=router") >= 4096.0);
    assert_eq!(book.sum(observe::FLASH_BYTES, "cause=counted-failure,database=router"), 0.0);
    assert!(book.sum(observe::FLASH_BYTES, "cause=checkpoint,database=router") >= 4096.0);

    let id = router.id().to_string();
    drop(router);
    manager.shutdown().await.unwrap();
    let sums = book.sums.lock().unwrap();
    for series in sums.keys() {
        assert!(!series.contains(SECRET) && !series.contains(&id), "{series}");
        assert!(!series.contains(dirs.root().to_str().unwrap()), "{series}");
    }
    let described = book.described.lock().unwrap();
    for series in sums.keys() {
        assert!(described.iter().any(|name| series.starts_with(&format!("{name}{{"))), "{series} is not described");
    }
    let page = include_str!("../../docs/metrics.md");
    for name in described.iter() {
        assert!(page.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
    }
}

#[tokio::test]
async fn raw_operations_on_the_thread_of_their_caller_are_counted_and_never_queued() {
    const CAUSE: Cause = Cause::new("counted-raw");
    let (book, dirs) = (book(), Dirs::new());
    let manager = dirs.open().await;
    let hot = manager.hot();
    hot.write_raw(CAUSE, |_| Ok::<_, Error>(())).await.unwrap();
    hot.write_raw(CAUSE, |_| Err::<(), _>(Error::NotApplied)).await.unwrap_err();
    hot.read_raw(CAUSE, |_| Ok::<_, Error>(())).await.unwrap();
    let one =
        |outcome: &str| book.sum(observe::OPERATIONS, &format!("cause=counted-raw,database=hot,outcome={outcome}"));
    assert_eq!((one("committed"), one("failed"), one("read")), (1.0, 1.0, 1.0));
    assert_eq!(book.sum(observe::OPERATION_SECONDS, "cause=counted-raw,database=hot"), 3.0);
    drop(hot);
    manager.shutdown().await.unwrap();
    drop(manager);
    // Tasks that end with the fleet let go of its queues a moment later.
    tokio::time::timeout(common::PATIENCE, async {
        while book.sum(observe::QUEUE_DEPTH, "database=hot") != 0.0 || book.sum(observe::OPEN, "database=hot") != 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Holds the writer of a router until told to go on.
async fn occupy(router: &RouterDb) -> (oneshot::Sender<()>, JoinHandle<Result<(), Error>>) {
    let (go, wait) = oneshot::channel::<()>();
    let (begun, holding) = oneshot::channel::<()>();
    let router = router.clone();
    let task = tokio::spawn(async move {
        router
            .write(Cause::new("occupied"), |_| {
                Box::pin(async move {
                    begun.send(()).ok();
                    wait.await.ok();
                    Ok(())
                })
            })
            .await
    });
    holding.await.unwrap();
    (go, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_before_it_is_queued_is_counted_by_its_reason() {
    const LOW: Cause = Cause::new("refused-low").low();
    let (book, dirs) = (book(), Dirs::new());
    let mut options = dirs.options();
    options.write_queue = 1;
    options.budget = FlashBudget { bytes_per_day: 100_000, burst: 0, reserve_for_critical: 50_000 };
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    let refused = |reason: &str| book.sum(observe::REFUSED, &format!("database=router,reason={reason}"));
    let (go, first) = occupy(&router).await;
    let queued = {
        let router = router.clone();
        tokio::spawn(async move { put(&router, 1, 1).await })
    };
    while router.queue_depth() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(refused("queue_full"), 0.0);
    assert!(matches!(put(&router, 2, 2).await, Err(Error::Overloaded { .. })));
    assert_eq!(refused("queue_full"), 1.0);
    go.send(()).unwrap();
    first.await.unwrap().unwrap();
    queued.await.unwrap().unwrap();

    assert_eq!(refused("budget"), 0.0);
    let mut k = 0;
    while manager.flash_level() == BudgetLevel::Ample {
        k += 1;
        put(&router, k, k).await.unwrap();
    }
    let low: Result<(), Error> = router.write(LOW, |conn| Box::pin(common::put_in(conn, 0, 0))).await;
    assert!(matches!(low, Err(Error::OverBudget { .. })), "{low:?}");
    assert_eq!(refused("budget"), 1.0);
    for outcome in ["committed", "failed"] {
        let ended = format!("cause=refused-low,database=router,outcome={outcome}");
        assert_eq!(book.sum(observe::OPERATIONS, &ended), 0.0, "it was never an operation");
    }
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_another_takes_down_is_counted_apart_from_the_one_that_failed() {
    const VICTIM: Cause = Cause::new("taken-down");
    const CULPRIT: Cause = Cause::new("takes-down");
    let (book, dirs) = (book(), Dirs::new());
    let mut options = dirs.options();
    options.write_deadline = Duration::from_secs(4);
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    let (go, first) = occupy(&router).await;
    let queue = |cause: Cause, sql: &'static str| -> JoinHandle<Result<(), Error>> {
        let queued = router.clone();
        tokio::spawn(async move {
            queued
                .write(cause, move |conn| {
                    Box::pin(async move {
                        sqlx::query(sql).execute(conn).await?;
                        Ok(())
                    })
                })
                .await
        })
    };
    let until_queued = async |depth: usize| {
        while router.queue_depth() < depth {
            tokio::task::yield_now().await;
        }
    };
    let victim = queue(VICTIM, "INSERT INTO kv (k, v) VALUES (1, 1)");
    until_queued(1).await;
    // Reaches its deadline, which rolls the transaction of all back.
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                   INSERT INTO kv (k, v) SELECT i, i FROM n WHERE i < 0";
    let culprit = queue(CULPRIT, endless);
    until_queued(2).await;
    go.send(()).unwrap();
    first.await.unwrap().unwrap();
    let answers = (victim.await.unwrap(), culprit.await.unwrap());
    assert!(matches!(answers, (Err(Error::NotApplied), Err(Error::WriteDeadline { .. }))), "{answers:?}");
    let one = |cause: &str, outcome: &str| {
        book.sum(observe::OPERATIONS, &format!("cause={cause},database=router,outcome={outcome}"))
    };
    assert_eq!((one("taken-down", "not_applied"), one("taken-down", "failed")), (1.0, 0.0));
    assert_eq!((one("takes-down", "failed"), one("takes-down", "not_applied")), (1.0, 0.0));
    assert_eq!(one("taken-down", "committed"), 0.0);
    manager.shutdown().await.unwrap();
}

#[cfg(feature = "fault-injection")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_nobody_knows_the_end_of_is_counted_as_unknown() {
    use nasnet_dbmanager::vfs::fault::{Fault, Operation};

    const CAUSE: Cause = Cause::new("counted-unknown");
    let (book, dirs) = (book(), Dirs::new());
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    let armed = Fault::fail(Operation::Sync, 1, Fault::IOERR_FSYNC).arm(dirs.root()).unwrap();
    let answer: Result<(), Error> = router.write(CAUSE, |conn| Box::pin(common::put_in(conn, 1, 1))).await;
    drop(armed);
    assert!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
    let one = |outcome: &str| {
        book.sum(observe::OPERATIONS, &format!("cause=counted-unknown,database=router,outcome={outcome}"))
    };
    assert_eq!((one("unknown"), one("committed"), one("failed")), (1.0, 0.0, 0.0));
    manager.shutdown().await.unwrap();
}
