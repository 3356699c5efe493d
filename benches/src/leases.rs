//! Leases and the locks one would use instead, for the programs that measure them side by side.

use std::path::Path;
use std::time::{Duration, Instant};

use nasnet_dbmanager::{DbManager, Options};
use nasnet_locking::{AcquireRequest, LockInfo, LockKey, LockManager};

pub use crate::hot::Failure;
use crate::naive::NaiveLock;

/// Opens databases with the tables of leases.
///
/// # Errors
/// When a directory or a database cannot be opened.
pub async fn open(data: &Path, run: &Path) -> Result<DbManager, Failure> {
    Ok(DbManager::open(Options::new(data).run_dir(run).schemas(nasnet_locking::schema_sets())).await?)
}

/// An exclusive lease on one key.
///
/// # Errors
/// When the path is not a key.
pub fn request(path: &str) -> Result<AcquireRequest, Failure> {
    Ok(AcquireRequest::exclusive(LockKey::parse(path)?, LockInfo::new("bench", "measure")))
}

/// How long each acquire and each release took.
#[derive(Debug, Default)]
pub struct Pairs {
    /// The first halves.
    pub acquires: Vec<Duration>,
    /// The second halves.
    pub releases: Vec<Duration>,
    /// Both together.
    pub pairs: Vec<Duration>,
}

/// Acquires and releases leases on 50 keys in turn.
///
/// # Errors
/// When a lease fails.
pub async fn lease(locks: &LockManager, count: u32, samples: &mut Pairs) -> Result<Duration, Failure> {
    let start = Instant::now();
    for number in 0..count {
        let request = request(&format!("bench/{}", number % 50))?;
        let began = Instant::now();
        let guard = locks.acquire(request).await?;
        let held = Instant::now();
        guard.release().await?;
        samples.acquires.push(held - began);
        samples.releases.push(held.elapsed());
        samples.pairs.push(began.elapsed());
    }
    Ok(start.elapsed())
}

/// Takes a row by an UPSERT and deletes it for the release, each one statement that commits itself.
///
/// # Errors
/// When SQLite fails.
pub async fn upsert(naive: &mut NaiveLock, count: u32, samples: &mut Vec<Duration>) -> Result<Duration, Failure> {
    let start = Instant::now();
    for _ in 0..count {
        let began = Instant::now();
        naive.acquire().await?;
        naive.release().await?;
        samples.push(began.elapsed());
    }
    Ok(start.elapsed())
}

/// Advisory locks of PostgreSQL over one connection.
#[derive(Debug)]
pub struct Advisory {
    #[cfg(feature = "postgres")]
    conn: sqlx::PgConnection,
    #[cfg(not(feature = "postgres"))]
    _never: std::convert::Infallible,
}

impl Advisory {
    /// Connects to the server that `NASNET_TEST_POSTGRES` names; none without it, or without feature `postgres`.
    ///
    /// # Errors
    /// When the server does not answer.
    #[cfg(feature = "postgres")]
    pub async fn connect() -> Result<Option<Self>, Failure> {
        use sqlx::Connection;
        match std::env::var("NASNET_TEST_POSTGRES").ok().filter(|url| !url.is_empty()) {
            Some(url) => Ok(Some(Self { conn: sqlx::PgConnection::connect(&url).await? })),
            None => Ok(None),
        }
    }

    /// Connects to the server that `NASNET_TEST_POSTGRES` names; none without it, or without feature `postgres`.
    ///
    /// # Errors
    /// When the server does not answer.
    #[cfg(not(feature = "postgres"))]
    #[expect(clippy::unused_async, reason = "it connects with feature `postgres`")]
    pub async fn connect() -> Result<Option<Self>, Failure> {
        Ok(None)
    }

    /// Takes and gives back one of 50 locks at a time.
    ///
    /// # Errors
    /// When the server fails.
    #[cfg(feature = "postgres")]
    pub async fn pairs(&mut self, count: u32, samples: &mut Vec<Duration>) -> Result<Duration, Failure> {
        let start = Instant::now();
        for number in 0..i64::from(count) {
            let began = Instant::now();
            sqlx::query("SELECT pg_advisory_lock($1)").bind(number % 50).execute(&mut self.conn).await?;
            sqlx::query("SELECT pg_advisory_unlock($1)").bind(number % 50).execute(&mut self.conn).await?;
            samples.push(began.elapsed());
        }
        Ok(start.elapsed())
    }

    /// Takes and gives back one of 50 locks at a time.
    ///
    /// # Errors
    /// When the server fails.
    #[cfg(not(feature = "postgres"))]
    #[expect(clippy::unused_async, reason = "it asks the server with feature `postgres`")]
    pub async fn pairs(&mut self, _count: u32, _samples: &mut Vec<Duration>) -> Result<Duration, Failure> {
        match self._never {}
    }
}
