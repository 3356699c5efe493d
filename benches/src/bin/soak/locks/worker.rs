//! One process of the campaign: tasks that take leases and write under them, with a wall clock that jumps.
//!
//! What it has done goes to stdout in lines of JSON, ten times a second: a killed worker takes at most the last tenth along.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nasnet_benches::events::Random;
use nasnet_dbmanager::{
    Cause, Clock, DbManager, FileKind, Migration, NewRouter, Now, Options, RouterDb, RouterId, SchemaSet, SystemClock,
};
use nasnet_locking::{AcquireRequest, Error, LockInfo, LockKey, LockManager, LockOptions, WriteRight};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use crate::Failure;

const CAUSE: Cause = Cause::new("soak-locks");
/// Tasks of one process.
pub(crate) const TASKS: u64 = 32;
const KEYS: u64 = 12;

/// Who is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Checks the right to write inside the transaction.
    Fenced,
    /// Control: does not check it.
    Unfenced,
    /// Control: checks it in a transaction of its own, before the one that writes.
    FencedBefore,
}

impl Mode {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Unfenced => "unfenced",
            Self::FencedBefore => "fenced-before",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Fenced, Self::Unfenced, Self::FencedBefore].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// What happened since the last report.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) counts: BTreeMap<String, u64>,
    /// Tokens in the order they were granted to one task each.
    pub(crate) tokens: Vec<u64>,
    /// Answers nobody promised.
    pub(crate) surprises: Vec<String>,
}

impl Tally {
    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.tokens.extend(other.tokens);
        self.surprises.extend(other.surprises);
    }
}

/// A line from a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// It works; its session.
    Ready(String),
    Tally(Tally),
}

/// The system's clock with a wall that jumps; the time since boot stays real.
#[derive(Debug, Default)]
struct JumpingClock(AtomicI64);

impl Clock for JumpingClock {
    fn now(&self) -> Now {
        let now = SystemClock::new().now();
        Now { wall_ms: now.wall_ms.saturating_add(self.0.load(Ordering::Relaxed)), ..now }
    }
}

impl JumpingClock {
    fn jump(&self, random: &mut Random) {
        let real = SystemClock::new().now().wall_ms;
        let day = 86_400_000;
        self.0.store(
            match random.below(5) {
                0 => -real,                    // 1970
                1 => 3_471_292_800_000 - real, // 2080
                2 => day,
                3 => -day,
                _ => 0,
            },
            Ordering::Relaxed,
        );
    }
}

/// Opens the databases of a case; every worker and the campaign itself do it alike.
pub(crate) async fn open(data: &Path, run: &Path, clock: Arc<dyn Clock>) -> Result<(DbManager, RouterId), Failure> {
    let rows = Migration {
        version: 1,
        name: "soak",
        up: "CREATE TABLE guarded (
                 number INTEGER PRIMARY KEY AUTOINCREMENT,   -- the order of commits
                 key    TEXT    NOT NULL,
                 token  INTEGER NOT NULL,
                 lost   INTEGER NOT NULL                     -- whether its lease was seen lost in the transaction
             ) STRICT",
        down: "DROP TABLE guarded",
    };
    let mut options = Options::new(data).run_dir(run).schemas(nasnet_locking::schema_sets()).schemas([SchemaSet::new(
        "soak",
        FileKind::Router,
        vec![rows],
    )]);
    options.clock = clock;
    let db = DbManager::open(options).await?;
    let id = RouterId::parse("r1")?;
    match db.create_router(NewRouter::new(id.clone()).name("soak").host("192.0.2.1")).await {
        Ok(_) | Err(nasnet_dbmanager::Error::RouterExists { .. }) => Ok((db, id)),
        Err(error) => Err(error.into()),
    }
}

struct Worker {
    db: DbManager,
    locks: LockManager,
    router: RouterDb,
    mode: Mode,
    tally: Arc<Mutex<Tally>>,
}

/// Works until stdin ends or it is killed.
pub(crate) fn child(directories: &str, mode: &str) -> Result<(), Failure> {
    let mut parts = directories.split('\n');
    let (data, run) = (parts.next().ok_or("no data directory")?, parts.next().ok_or("no run directory")?);
    let seed: u64 = parts.next().ok_or("no seed")?.parse()?;
    let mode = Mode::parse(mode).ok_or("no such mode")?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async move {
        let clock = Arc::new(JumpingClock::default());
        let (db, id) = open(data.as_ref(), run.as_ref(), Arc::clone(&clock) as Arc<dyn Clock>).await?;
        let locks = LockManager::open(&db, LockOptions::default()).await?;
        let router = db.router(&id).await?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        say(&Line::Ready(locks.session().to_string()))?;
        let worker = Arc::new(Worker { db, locks, router, mode, tally: Arc::clone(&tally) });
        for task in 0..TASKS {
            let mut random = Random::new(seed.wrapping_mul(65_537).wrapping_add(task));
            let worker = Arc::clone(&worker);
            tokio::spawn(async move { worker.work(&mut random).await });
        }
        let mut random = Random::new(seed ^ 0xC10C);
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
        let mut every = tokio::time::interval(Duration::from_millis(100));
        while !ended.is_finished() {
            every.tick().await;
            clock.jump(&mut random);
            worker.tally(|tally| tally.count("clock_jumps"));
            let done = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
            say(&Line::Tally(done))?;
        }
        // No goodbye: what ends a process must never matter.
        std::process::exit(0)
    })
}

fn say(line: &Line) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    out.flush()?;
    Ok(())
}

impl Worker {
    fn tally<T>(&self, count: impl FnOnce(&mut Tally) -> T) -> T {
        count(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn work(&self, random: &mut Random) {
        loop {
            self.turn(random).await;
            tokio::time::sleep(Duration::from_millis(1 + random.below(40))).await;
        }
    }

    /// One attempt, and what a holder does with a grant.
    async fn turn(&self, random: &mut Random) {
        let path = match random.below(20) {
            0 => "router/r1".to_owned(),
            _ => format!("router/r1/resource/k{}", random.below(KEYS)),
        };
        let Ok(key) = LockKey::parse(path) else { return };
        let ttl = Duration::from_millis(20 + random.below(180));
        let mut request = AcquireRequest::exclusive(key.clone(), LockInfo::new("soak", "write")).ttl(ttl);
        if random.below(10) == 0 {
            request = AcquireRequest::shared(key.clone(), LockInfo::new("soak", "read")).ttl(ttl);
        }
        if random.below(3) == 0 {
            request = request.wait(Duration::from_millis(10 + random.below(150)));
        }
        self.tally(|tally| tally.count("attempts"));
        let guard = match self.locks.acquire(request).await {
            Ok(guard) => guard,
            Err(Error::Held { .. }) => return self.tally(|tally| tally.count("held")),
            Err(error) => return self.failed("acquire", &error),
        };
        self.tally(|tally| {
            tally.count("grants");
            tally.tokens.push(guard.token().get());
        });
        if guard.mode() == nasnet_locking::Mode::Exclusive {
            for _ in 0..=random.below(2) {
                // Some holders take longer than they asked for.
                tokio::time::sleep(ttl.mul_f64([0.0, 0.1, 0.4, 1.1][usize::try_from(random.below(4)).unwrap_or(0)]))
                    .await;
                if random.below(4) == 0 {
                    let renewed = guard.renew().await;
                    self.ended("renew", renewed.map(|_| ()));
                }
                self.write(&key, guard.write_right(), random.below(3)).await;
            }
        }
        if random.below(4) == 0 {
            drop(guard);
        } else {
            let released = guard.release().await;
            self.ended("release", released);
        }
    }

    fn ended(&self, what: &str, result: Result<(), Error>) {
        match result {
            Ok(()) => self.tally(|tally| tally.count(&format!("{what}s"))),
            Err(Error::Lost { .. }) => self.tally(|tally| tally.count("told_lost")),
            Err(error) => self.failed(what, &error),
        }
    }

    async fn write(&self, key: &LockKey, right: WriteRight, linger_ms: u64) {
        if self.mode == Mode::FencedBefore {
            let right = right.clone();
            let checked: Result<(), Error> =
                self.router.write(CAUSE, move |conn| Box::pin(async move { right.check(conn).await })).await;
            if checked.is_err() {
                return self.tally(|tally| tally.count("stale_writes_rejected"));
            }
        }
        let (key, fenced) = (key.clone(), self.mode == Mode::Fenced);
        let locks_db = self.db.locks().path().to_path_buf();
        let written = self.router.write(CAUSE, move |conn| {
            Box::pin(async move {
                // The transaction has begun. This look is not the fence's: it reads the file on a connection of its own.
                let lost = is_lost(&locks_db, right.token().get()).await.map_err(db_error)?;
                if fenced {
                    right.check(conn).await?;
                }
                tokio::time::sleep(Duration::from_millis(linger_ms)).await;
                record(conn, key.as_str(), right.token().get(), lost).await.map_err(db_error)
            })
        });
        match written.await {
            Ok(()) => self.tally(|tally| tally.count("writes_committed")),
            Err(Error::Fenced { .. }) => self.tally(|tally| tally.count("stale_writes_rejected")),
            Err(error) => self.failed("write", &error),
        }
    }

    /// A database that another, stopped process keeps busy is no surprise; anything that cannot be tried again is.
    fn failed(&self, what: &str, error: &Error) {
        self.tally(|tally| {
            if error.is_retryable() {
                tally.count(&format!("{what}_to_be_retried"));
            } else {
                tally.surprises.push(format!("{what}: {error}"));
            }
        });
    }
}

fn db_error(error: sqlx::Error) -> Error {
    Error::Db(error.into())
}

/// Tells whether a lease is lost by what its row says; a lost lease never comes back.
async fn is_lost(locks_db: &Path, token: u64) -> Result<bool, sqlx::Error> {
    let mut conn = SqliteConnectOptions::new()
        .filename(locks_db)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
        .connect()
        .await?;
    let row: Option<(i64, Option<String>)> =
        sqlx::query_as("SELECT deadline_ms, broken_by FROM lease WHERE token = ?1")
            .bind(i64::try_from(token).unwrap_or(i64::MAX))
            .fetch_optional(&mut conn)
            .await?;
    sqlx::Connection::close(conn).await?;
    let now = i64::try_from(SystemClock::new().now().boottime_ms).unwrap_or(i64::MAX);
    Ok(row.is_none_or(|(deadline, broken)| broken.is_some() || now >= deadline))
}

async fn record(conn: &mut SqliteConnection, key: &str, token: u64, lost: bool) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO guarded (key, token, lost) VALUES (?1, ?2, ?3)")
        .bind(key)
        .bind(i64::try_from(token).unwrap_or(i64::MAX))
        .bind(lost)
        .execute(conn)
        .await?;
    Ok(())
}
