//! Raw operations keep every promise of the writer, on files in memory and on flash.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{CAUSE, Dirs, KV_1, all, put, with_router};
use futures_util::FutureExt;
use nasnet_dbmanager::{
    ConstraintKind, Database, DbManager, Error, FileKind, OnOpen, Options, RawConn, RawRow, RawValue, RouterDb,
    SchemaSet, vfs,
};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PUT: &str = "INSERT INTO kv (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v";
const GET: &str = "SELECT v FROM kv WHERE k = ?1";
const ENDLESS: &str = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n";

/// A manager with the small table in a file in memory and in one on flash.
struct Fleet {
    manager: DbManager,
    router: RouterDb,
}

impl Fleet {
    async fn open(dirs: &Dirs) -> Self {
        Self::with(dirs, |_| {}).await
    }

    async fn with(dirs: &Dirs, change: impl FnOnce(&mut nasnet_dbmanager::Options)) -> Self {
        let mut options = dirs.options().schemas([SchemaSet::new("kv", FileKind::Locks, vec![KV_1])]);
        change(&mut options);
        let manager = DbManager::open(options).await.unwrap();
        let router = with_router(&manager, "home").await;
        Self { manager, router }
    }

    /// The file in memory, then the one on flash.
    fn both(&self) -> [(&'static str, Database); 2] {
        [("memory", self.manager.locks().clone()), ("flash", Database::clone(&self.router))]
    }

    async fn shutdown(self) {
        drop(self.router);
        self.manager.shutdown().await.unwrap();
    }
}

fn put_in(raw: &mut RawConn<'_>, k: i64, v: i64) -> Result<(), Error> {
    raw.execute(PUT, &[k.into(), v.into()])?;
    Ok(())
}

async fn put_raw(db: &Database, k: i64, v: i64) -> Result<(), Error> {
    db.write_raw(CAUSE, move |raw| put_in(raw, k, v)).await
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

type RawOp = Box<dyn FnOnce(&mut RawConn<'_>) -> Result<(), Error> + Send>;

/// Runs operations as one group and returns their answers.
async fn as_one_group(db: &Database, ops: Vec<RawOp>) -> Vec<Result<(), Error>> {
    let (go, first) = occupy(db).await;
    let mut tasks = Vec::new();
    for op in ops {
        let queue = db.clone();
        tasks.push(tokio::spawn(async move { queue.write_raw(CAUSE, op).await }));
        queued(db, tasks.len()).await;
    }
    go.send(()).unwrap();
    first.await.unwrap().unwrap();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn an_operation_on_an_idle_file_in_memory_is_over_when_first_polled() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let db = fleet.manager.locks();
    // The connection changes hands once.
    put_raw(db, 0, 0).await.unwrap();
    for k in 1..100 {
        put_raw(db, k, k).now_or_never().expect("nothing to wait for").unwrap();
    }
    assert_eq!(all(db).await.len(), 100);
    fleet.shutdown().await;
}

#[tokio::test]
async fn a_failing_operation_takes_back_its_own_changes_alone() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let ops: [fn() -> RawOp; 3] = [
            || {
                Box::new(|raw| {
                    put_in(raw, 2, 2)?;
                    put_in(raw, 3, -1)
                })
            },
            || {
                Box::new(|raw| {
                    put_in(raw, 4, 4)?;
                    panic!("on purpose")
                })
            },
            || {
                Box::new(|raw| {
                    put_in(raw, 5, 5)?;
                    Err(Error::Random)
                })
            },
        ];
        let check = |answers: &[Result<(), Error>]| {
            assert!(
                matches!(answers[0], Err(Error::Constraint { kind: ConstraintKind::Check, .. })),
                "{on} {answers:?}"
            );
            assert!(
                matches!(&answers[1], Err(Error::Panicked { message }) if message == "on purpose"),
                "{on} {answers:?}"
            );
            assert!(matches!(answers[2], Err(Error::Random)), "{on} {answers:?}");
        };
        let mut alone = Vec::new();
        for op in ops {
            alone.push(db.write_raw(CAUSE, op()).await);
        }
        check(&alone);
        let mut group: Vec<RawOp> = vec![Box::new(|raw| put_in(raw, 1, 1))];
        group.extend(ops.map(|op| op()));
        group.push(Box::new(|raw| put_in(raw, 6, 6)));
        let answers = as_one_group(&db, group).await;
        assert!(answers[0].is_ok() && answers[4].is_ok(), "{on} {answers:?}");
        check(&answers[1..4]);
        assert_eq!(all(&db).await, [(0, 0), (1, 1), (6, 6)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn sixty_four_operations_share_one_sync_and_the_next_is_in_another_group() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let db = Database::clone(&fleet.router);
    put_raw(&db, 0, 0).await.unwrap();
    let before = db.written();
    put_raw(&db, 0, 1).await.unwrap();
    let alone = (db.written() - before).syncs;
    assert!(alone > 0);
    let before = db.written();
    // New values each time: a row that does not change is not written.
    let ops =
        |count| (0..count).map(|k| Box::new(move |raw: &mut RawConn<'_>| put_in(raw, k, k + count)) as RawOp).collect();
    let answers = as_one_group(&db, ops(64)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!((db.written() - before).syncs, alone);
    let before = db.written();
    as_one_group(&db, ops(65)).await;
    assert_eq!((db.written() - before).syncs, 2 * alone);
    fleet.shutdown().await;
}

#[tokio::test]
async fn a_full_file_fails_the_operation_that_filled_it_and_spares_the_connection() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let fill = |raw: &mut RawConn<'_>| {
        raw.query_optional("PRAGMA max_page_count = 1", &[], |_| Ok::<_, Error>(()))?;
        (100..20_000).try_for_each(|k| put_in(raw, k, k))
    };
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let alone = db.write_raw(CAUSE, fill).await;
        assert!(matches!(alone, Err(Error::NoSpace { .. })), "{on} {alone:?}");
        put_raw(&db, 1, 1).await.unwrap();
        let answers = as_one_group(
            &db,
            vec![Box::new(|raw| put_in(raw, 2, 2)), Box::new(fill), Box::new(|raw| put_in(raw, 3, 3))],
        )
        .await;
        assert!(matches!(answers[0], Err(Error::NotApplied)), "{on} {answers:?}");
        assert!(matches!(answers[1], Err(Error::NoSpace { .. })), "{on} {answers:?}");
        assert!(answers[2].is_ok(), "{on} {answers:?}");
        assert_eq!(all(&db).await, [(0, 0), (1, 1), (3, 3)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn an_operation_cannot_end_the_transaction_of_others() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        for sql in ["COMMIT", "ROLLBACK", "END"] {
            let end = move |raw: &mut RawConn<'_>| {
                put_in(raw, 2, 2)?;
                raw.execute(sql, &[]).ok();
                Ok::<_, Error>(())
            };
            put_raw(&db, 1, 1).await.unwrap();
            let alone = db.write_raw(CAUSE, end).await;
            assert!(matches!(alone, Err(Error::TransactionLost)), "{on} {sql}: {alone:?}");
            let answers = as_one_group(&db, vec![Box::new(|raw| put_in(raw, 7, 7)), Box::new(end)]).await;
            assert!(matches!(answers[0], Err(Error::NotApplied)), "{on} {sql}: {answers:?}");
            assert!(matches!(answers[1], Err(Error::TransactionLost)), "{on} {sql}: {answers:?}");
            assert_eq!(all(&db).await, [(1, 1)], "{on} {sql}");
        }
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn an_endless_statement_ends_at_the_deadline_and_the_database_lives_on() {
    let dirs = Dirs::new();
    let fleet = Fleet::with(&dirs, |options| options.write_deadline = Duration::from_secs(2)).await;
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let answer = db
            .write_raw(CAUSE, |raw| {
                put_in(raw, 1, 1)?;
                raw.query_optional(ENDLESS, &[], |row| row.get::<i64>(0)).map(drop)
            })
            .await;
        assert!(matches!(answer, Err(Error::WriteDeadline { limit_ms: 2_000 })), "{on} {answer:?}");
        put_raw(&db, 2, 2).await.unwrap();
        assert_eq!(all(&db).await, [(0, 0), (2, 2)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn a_dropped_operation_still_runs() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        let (go, first) = occupy(&db).await;
        let lost = tokio::spawn({
            let db = db.clone();
            async move { put_raw(&db, 1, 1).await }
        });
        queued(&db, 1).await;
        lost.abort();
        assert!(lost.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        put_raw(&db, 2, 2).await.unwrap();
        assert_eq!(all(&db).await, [(1, 1), (2, 2)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn operations_of_both_kinds_keep_the_order_they_were_queued_in() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        let (go, first) = occupy(&db).await;
        let mut tasks = Vec::new();
        for v in 0..40 {
            let queue = db.clone();
            tasks.push(tokio::spawn(async move {
                if v % 3 == 0 { put(&queue, 1, v).await } else { put_raw(&queue, 1, v).await }
            }));
            queued(&db, tasks.len()).await;
        }
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(all(&db).await, [(1, 39)], "{on}");
        // One after another, the connection changes hands each time.
        for v in 0..20 {
            put(&db, 2, v).await.unwrap();
            put_raw(&db, 3, v).await.unwrap();
        }
        assert_eq!(all(&db).await, [(1, 39), (2, 19), (3, 19)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_lose_no_change() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let db = db.clone();
                tokio::spawn(async move {
                    for round in 0..25 {
                        if task == 0 && round % 5 == 0 {
                            put(&db, 1000, round).await?;
                        }
                        db.write_raw(CAUSE, |raw| {
                            let value = raw.query_optional(GET, &[1.into()], |row| row.get::<i64>(0))?;
                            put_in(raw, 1, value.unwrap_or_default() + 1)
                        })
                        .await?;
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(all(&db).await, [(1, 400), (1000, 20)], "{on}");
    }
    fleet.shutdown().await;
}

/// On one thread: if waiting for another connection blocked it, that connection would never end its transaction.
#[tokio::test]
async fn waiting_for_another_process_occupies_no_thread() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(db.path());
        let mut other = options.disable_statement_logging().connect().await.unwrap();
        let tx = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let waiting = tokio::spawn({
            let db = db.clone();
            async move { put_raw(&db, 1, 1).await }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!waiting.is_finished(), "{on}");
        tx.commit().await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(all(&db).await, [(0, 0), (1, 1)], "{on}");
        other.close().await.unwrap();
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn a_raw_read_sees_what_was_queued_before_it_waits_for_nobody_and_changes_nothing() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        let get = |raw: &mut RawConn<'_>| raw.query_optional(GET, &[1.into()], |row| row.get::<i64>(0));
        let (go, first) = occupy(&db).await;
        let write = tokio::spawn({
            let db = db.clone();
            async move { put_raw(&db, 1, 7).await }
        });
        queued(&db, 1).await;
        let read = tokio::spawn({
            let db = db.clone();
            async move { db.read_raw(CAUSE, get).await }
        });
        queued(&db, 2).await;
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        write.await.unwrap().unwrap();
        assert_eq!(read.await.unwrap().unwrap(), Some(7), "{on}");

        let refused = db.read_raw(CAUSE, |raw| put_in(raw, 2, 2)).await;
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{on} {refused:?}");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(db.path());
        let mut other = options.disable_statement_logging().connect().await.unwrap();
        let tx = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
        assert_eq!(db.read_raw(CAUSE, get).await.unwrap(), Some(7), "{on}");
        tx.rollback().await.unwrap();
        other.close().await.unwrap();
        put_raw(&db, 1, 8).await.unwrap();
        assert_eq!(all(&db).await, [(1, 8)], "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn values_of_every_type_come_back_and_wrong_types_are_named() {
    const ECHO: &str = "SELECT ?1 AS given, 7 AS seven";
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let db = fleet.manager.locks();
    let done = db.write_raw(CAUSE, |raw| {
        fn echo<T: 'static>(
            raw: &mut RawConn<'_>,
            value: RawValue<'_>,
            read: impl FnOnce(&RawRow<'_>) -> Result<T, Error>,
        ) -> Result<T, Error> {
            Ok(raw.query_optional(ECHO, &[value], read)?.expect("one row"))
        }
        for number in [0, 1, -1, i64::MIN, i64::MAX] {
            assert_eq!(echo(raw, number.into(), |row| row.get::<i64>(0))?, number);
        }
        assert_eq!(echo(raw, 0.5.into(), |row| row.get::<f64>(0))?.to_bits(), 0.5_f64.to_bits());
        assert!(echo(raw, 1.into(), |row| row.get::<bool>(0))?);
        for text in ["", "a", "schön\0 gut", "x".repeat(70_000).as_str()] {
            assert_eq!(echo(raw, text.into(), |row| row.get::<String>(0))?, text);
        }
        let blob: Vec<u8> = (0..=255).collect();
        assert_eq!(echo(raw, blob.as_slice().into(), |row| row.get::<Vec<u8>>(0))?, blob);
        assert_eq!(echo(raw, [].as_slice().into(), |row| row.get::<Vec<u8>>(0))?, [0_u8; 0]);
        assert_eq!(echo(raw, (&[7; 16]).into(), |row| row.get::<[u8; 16]>(0))?, [7; 16]);
        assert_eq!(echo(raw, RawValue::Null, |row| row.get::<Option<i64>>(0))?, None);
        assert_eq!(echo(raw, Some(3).into(), |row| row.get::<Option<i64>>(0))?, Some(3));
        let wrong = [
            echo(raw, "x".into(), |row| row.get::<i64>(0)).map(drop),
            echo(raw, RawValue::Null, |row| row.get::<i64>(0)).map(drop),
            echo(raw, 1.into(), |row| row.get::<String>(0)).map(drop),
            echo(raw, 1.into(), |row| row.get::<Vec<u8>>(0)).map(drop),
            echo(raw, 2.into(), |row| row.get::<bool>(0)).map(drop),
            echo(raw, (&[7; 15]).into(), |row| row.get::<[u8; 16]>(0)).map(drop),
        ];
        for answer in wrong {
            let Err(Error::Decode { what: "column", detail }) = answer else { panic!("{answer:?}") };
            assert!(detail.starts_with("0 (given): it holds"), "{detail}");
        }
        let missing = echo(raw, 1.into(), |row| row.get::<i64>(2));
        assert!(matches!(missing, Err(Error::Decode { .. })), "{missing:?}");
        let text = raw.query_optional("SELECT CAST(x'ff' AS TEXT)", &[], |row| row.get::<String>(0));
        assert!(matches!(text, Err(Error::Decode { .. })), "{text:?}");
        // The error of a decoder comes through, and what it left open harms nothing.
        let own = raw.query_optional(ECHO, &[1.into()], |_| Err::<(), _>(Error::Random));
        assert!(matches!(own, Err(Error::Random)));
        Ok::<_, Error>(())
    });
    done.await.unwrap();
    fleet.shutdown().await;
}

#[tokio::test]
async fn statements_are_checked_and_count_what_they_change() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let db = fleet.manager.locks();
    let done = db.write_raw(CAUSE, |raw| {
        for k in 1..=3 {
            assert_eq!(raw.execute(PUT, &[k.into(), k.into()])?, 1);
        }
        assert_eq!(raw.execute("UPDATE kv SET v = v + 1 WHERE k > ?1", &[1.into()])?, 2);
        assert_eq!(raw.execute(GET, &[1.into()])?, 0);
        let returned = raw.query_all("DELETE FROM kv WHERE k > ?1 RETURNING k, v", &[1.into()], |row| {
            Ok::<_, Error>((row.get::<i64>(0)?, row.get::<i64>(1)?))
        })?;
        assert_eq!(returned, [(2, 3), (3, 4)]);
        // The first row is enough to read; the statement runs to its end.
        let first = raw.query_optional("DELETE FROM kv RETURNING k", &[], |row| row.get::<i64>(0))?;
        assert_eq!(first, Some(1));
        assert_eq!(raw.query_optional(GET, &[1.into()], |row| row.get::<i64>(0))?, None);
        for values in [&[][..], &[1.into(), 2.into()]] {
            let wrong = raw.execute(GET, values);
            assert!(matches!(wrong, Err(Error::Encode { what: "statement", .. })), "{wrong:?}");
        }
        let nonsense = raw.execute("SELEKT 1", &[]);
        assert!(matches!(&nonsense, Err(Error::Storage { .. })), "{nonsense:?}");
        Ok::<_, Error>(())
    });
    done.await.unwrap();
    fleet.shutdown().await;
}

#[tokio::test]
async fn what_is_closed_or_only_read_refuses_and_prepared_statements_never_keep_a_file_open() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let [(_, memory), (_, flash)] = fleet.both();
    for db in [&flash, &memory] {
        for sql in ["SELECT 1", "SELECT 2", "SELECT 3"] {
            db.write_raw(CAUSE, move |raw| raw.execute(sql, &[]).map(drop)).await.unwrap();
        }
        put_raw(db, 1, 1).await.unwrap();
    }
    drop(flash);
    fleet.shutdown().await;
    let closed = put_raw(&memory, 2, 2).await;
    assert!(matches!(closed, Err(Error::Closed { .. })), "{closed:?}");

    let mut options = Options::new(dirs.data()).run_dir(dirs.run());
    options.on_open = OnOpen::ReadOnly;
    let manager = DbManager::open(options.schemas([common::kv_newer()])).await.unwrap();
    let router = manager.router(&common::id("home")).await.unwrap();
    let refused = put_raw(&router, 2, 2).await;
    assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
    drop(router);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let dirs = Dirs::new();
    let fleet = Fleet::with(&dirs, |options| options.write_queue = 2).await;
    for (on, db) in fleet.both() {
        let (go, first) = occupy(&db).await;
        let held: Vec<_> = (1..=2)
            .map(|k| {
                let db = db.clone();
                tokio::spawn(async move { put_raw(&db, k, k).await })
            })
            .collect();
        queued(&db, 2).await;
        let refused = put_raw(&db, 3, 3).await;
        assert!(matches!(refused, Err(Error::Overloaded { queue: "writer" })), "{on} {refused:?}");
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        for task in held {
            task.await.unwrap().unwrap();
        }
        assert_eq!(all(&db).await.len(), 2, "{on}");
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn values_dropped_with_an_operation_are_dropped_once() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let token = Arc::new(());
        for fails in [false, true] {
            let held = Arc::clone(&token);
            let answer: Result<Arc<()>, Error> =
                db.write_raw(CAUSE, move |_| if fails { Err(Error::Random) } else { Ok(held) }).await;
            assert_eq!(answer.is_err(), fails, "{on}");
            drop(answer);
            assert_eq!(Arc::strong_count(&token), 1, "{on}");
        }
    }
    fleet.shutdown().await;
}

#[tokio::test]
async fn no_commit_waits_for_the_log_of_a_file_in_memory() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    let db = fleet.manager.locks().clone();
    let meter = vfs::Meter::of(db.path());
    let before = meter.written();
    let mut key = 0;
    while (meter.written() - before).wal_bytes < 256 << 10 {
        assert_eq!((meter.written() - before).db_bytes, 0, "after {key} commits");
        put_raw(&db, key, key).await.unwrap();
        key += 1;
    }
    // Now that nobody asks for anything, the log is moved.
    let moved = async {
        while (meter.written() - before).db_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), moved).await.unwrap();
    assert_eq!(all(&db).await.len(), usize::try_from(key).unwrap());
    fleet.shutdown().await;
}

#[cfg(feature = "fault-injection")]
#[path = "raw/faults.rs"]
mod faults;
