//! A data directory, a run directory and a clock that tests set.
#![allow(dead_code, unreachable_pub)]

pub mod backend;
#[cfg(feature = "postgres")]
pub mod postgres;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{DbManager, ManualClock, NewRouter, Options, RouterId};
use nasnet_locking::{AcquireRequest, Error, KeySet, LeaseGuard, LockInfo, LockKey, LockManager, LockOptions};
use tempfile::TempDir;

pub const WALL_2026_MS: i64 = 1_780_000_000_000;

/// Far longer than anything takes, be the machine ever so slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub data: TempDir,
    pub run: TempDir,
    pub clock: ManualClock,
}

impl World {
    pub fn new() -> Self {
        Self {
            data: tempfile::tempdir().unwrap(),
            run: tempfile::tempdir().unwrap(),
            clock: ManualClock::new(WALL_2026_MS),
        }
    }

    /// Opens the databases with router `r1` registered.
    pub async fn open(&self) -> DbManager {
        let mut options = options(self.data.path(), self.run.path());
        options.clock = Arc::new(self.clock.clone());
        open(options).await
    }

    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Deletes everything on tmpfs, as a reboot does.
    pub fn wipe_run_dir(&self) {
        for entry in std::fs::read_dir(self.run.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }
}

pub fn options(data: &Path, run: &Path) -> Options {
    let mut options = Options::new(data).schemas(nasnet_locking::schema_sets());
    options.run_dir = Some(run.to_path_buf());
    // Long enough for the slowest machine.
    (options.lock_timeout, options.lease_timeout) = (PATIENCE, PATIENCE);
    (options.read_deadline, options.write_deadline) = (PATIENCE, PATIENCE);
    options
}

pub async fn open(options: Options) -> DbManager {
    let db = DbManager::open(options).await.unwrap();
    if db.routers().await.unwrap().is_empty() {
        db.create_router(NewRouter::new(r1()).name("lab").host("192.0.2.1")).await.unwrap();
    }
    db
}

pub async fn manager(db: &DbManager) -> LockManager {
    LockManager::open(db, LockOptions::default()).await.unwrap()
}

pub fn r1() -> RouterId {
    "r1".parse().unwrap()
}

pub fn key(path: &str) -> LockKey {
    LockKey::parse(path).unwrap()
}

pub fn keys(paths: &[&str]) -> KeySet {
    KeySet::new(paths.iter().map(|path| key(path))).unwrap()
}

pub fn exclusive(path: &str, actor: &str) -> AcquireRequest {
    AcquireRequest::exclusive(key(path), LockInfo::new(actor, "test"))
}

pub fn shared(path: &str, actor: &str) -> AcquireRequest {
    AcquireRequest::shared(key(path), LockInfo::new(actor, "test"))
}

/// Acquires what is released in the background, or runs out: each attempt yields to the task that does it.
pub async fn soon(locks: &LockManager, path: &str, actor: &str) -> LeaseGuard {
    let start = std::time::Instant::now();
    loop {
        match locks.acquire(exclusive(path, actor)).await {
            Ok(guard) => return guard,
            Err(error) => assert!(matches!(error, Error::Held { .. }), "{error}"),
        }
        assert!(start.elapsed() < PATIENCE, "{path} is still held");
        tokio::task::yield_now().await;
    }
}

/// Waits for a condition; fails when it does not come true in a time far beyond any delay it may have.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::task::yield_now().await;
    }
}
