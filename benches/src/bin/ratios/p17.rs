//! P17: sixteen tasks that read, change and write one row, through the writer and through pools of equal connections.

use std::path::Path;
use std::time::{Duration, Instant};

use nasnet_benches::measure::{BusyCore, ROUNDS, Ratio, median};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Cause, DbManager, FileKind, Migration, NewRouter, Options, RouterDb, RouterId, SchemaSet};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::Failure;

const CAUSE: Cause = Cause::new("bench");
const TASKS: u32 = 16;

/// Changes of each task in one round.
const CHANGES: u32 = 25;

const TABLE: &str = "CREATE TABLE number (id INTEGER PRIMARY KEY, value INTEGER NOT NULL) STRICT";
const ROW: &str = "INSERT INTO number (id, value) VALUES (1, 0)";
const READ: &str = "SELECT value FROM number WHERE id = 1";
const WRITE: &str = "UPDATE number SET value = ?1 WHERE id = 1";

/// What one round came to.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    worst: Duration,
    busy: u32,
    done: u32,
}

impl Round {
    fn and(self, other: Self) -> Self {
        Self { worst: self.worst.max(other.worst), busy: self.busy + other.busy, done: self.done + other.done }
    }
}

pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(disk)?;
    let set = Migration { version: 1, name: "number", up: TABLE, down: "DROP TABLE number" };
    let mut options = Options::new(place.disk.path().join("data"));
    options = options.schemas([SchemaSet::new("bench", FileKind::Router, vec![set])]);
    options.run_dir = Some(place.tmpfs.path().to_path_buf());
    let manager = DbManager::open(options).await?;
    let id = RouterId::parse("bench")?;
    manager.create_router(NewRouter::new(id.clone())).await?;
    let router = manager.router(&id).await?;
    let done: Result<(), nasnet_dbmanager::Error> = router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query(ROW).execute(conn).await?;
                Ok(())
            })
        })
        .await;
    done?;
    let pool = pool(&place.disk.path().join("pool.db")).await?;

    let (mut worst, mut ours_busy, mut deferred_busy) = ([0.0; 2], 0, 0);
    let mut expected = 0;
    for (worst, busy) in worst.iter_mut().zip([false, true]) {
        let _core = busy.then(BusyCore::start);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let round = through_the_writer(&router).await?;
            expected += round.done;
            ours_busy += round.busy;
            ours.push(round.worst);
            theirs.push(through_a_pool(&pool, "BEGIN IMMEDIATE").await?.worst);
            deferred_busy += through_a_pool(&pool, "BEGIN").await?.busy;
        }
        *worst = median(ours).as_secs_f64() / median(theirs).as_secs_f64();
    }
    let value: Result<i64, nasnet_dbmanager::Error> =
        router.read(CAUSE, |conn| Box::pin(async move { Ok(sqlx::query_scalar(READ).fetch_one(conn).await?) })).await;
    if value? != i64::from(expected) {
        return Err("the writer lost a change".into());
    }
    pool.close().await;
    drop(router);
    manager.shutdown().await?;
    Ok(vec![
        Ratio::at_most("P17", "16 read-modify-writes at once: busy errors of the writer", f64::from(ours_busy), 0.0),
        Ratio::both_at_most("P17", "their worst wait vs BEGIN IMMEDIATE on a pool", worst, 0.2),
        Ratio::at_least(
            "P17",
            "busy errors of deferred transactions on a pool (the control)",
            f64::from(deferred_busy),
            1.0,
        ),
    ])
}

async fn through_the_writer(router: &RouterDb) -> Result<Round, Failure> {
    let task = |router: RouterDb| async move {
        let mut round = Round::default();
        for _ in 0..CHANGES {
            let start = Instant::now();
            let done: Result<(), nasnet_dbmanager::Error> = router
                .write(CAUSE, |conn| {
                    Box::pin(async move {
                        let value: i64 = sqlx::query_scalar(READ).fetch_one(&mut *conn).await?;
                        sqlx::query(WRITE).bind(value + 1).execute(conn).await?;
                        Ok(())
                    })
                })
                .await;
            match done {
                Ok(()) => round.done += 1,
                Err(nasnet_dbmanager::Error::Busy { .. }) => round.busy += 1,
                Err(error) => return Err(error.into()),
            }
            round.worst = round.worst.max(start.elapsed());
        }
        Ok::<_, Failure>(round)
    };
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(task(router.clone()))).collect();
    let mut all = Round::default();
    for task in tasks {
        all = all.and(task.await??);
    }
    Ok(all)
}

async fn pool(path: &Path) -> Result<SqlitePool, Failure> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().max_connections(TASKS).min_connections(TASKS).connect_with(options).await?;
    sqlx::raw_sql(TABLE).execute(&pool).await?;
    sqlx::raw_sql(ROW).execute(&pool).await?;
    Ok(pool)
}

async fn through_a_pool(pool: &SqlitePool, begin: &'static str) -> Result<Round, Failure> {
    let task = |pool: SqlitePool| async move {
        let mut round = Round::default();
        for _ in 0..CHANGES {
            let start = Instant::now();
            match change(&pool, begin).await {
                Ok(()) => round.done += 1,
                // 5 is SQLITE_BUSY and 517 that a read transaction cannot become a writing one.
                Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("5" | "517")) => {
                    round.busy += 1;
                }
                Err(error) => return Err(error.into()),
            }
            round.worst = round.worst.max(start.elapsed());
        }
        Ok::<_, Failure>(round)
    };
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(task(pool.clone()))).collect();
    let mut all = Round::default();
    for task in tasks {
        all = all.and(task.await??);
    }
    Ok(all)
}

async fn change(pool: &SqlitePool, begin: &'static str) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin_with(begin).await?;
    let value: i64 = sqlx::query_scalar(READ).fetch_one(&mut *tx).await?;
    sqlx::query(WRITE).bind(value + 1).execute(&mut *tx).await?;
    tx.commit().await
}
