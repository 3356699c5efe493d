//! Advisory locks between processes: shared while a database is open, exclusive to create or migrate it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// How often a held lock is asked for again; the kernel has no bounded wait for these locks.
const POLL: Duration = Duration::from_millis(10);

/// A lock that lasts as long as this value, or until the process ends however it ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Opens the lock file without locking it.
    fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| Error::io("open lock file", path, error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Locks a directory itself, for what has no lock file yet.
    pub(crate) async fn exclusive_on_dir(dir: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::of_dir(dir)?;
        lock.wait(limit, File::try_lock).await?;
        Ok(lock)
    }

    /// Locks a directory itself, beside other shared holders.
    pub(crate) async fn shared_on_dir(dir: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::of_dir(dir)?;
        lock.wait(limit, File::try_lock_shared).await?;
        Ok(lock)
    }

    fn of_dir(dir: &Path) -> Result<Self, Error> {
        let file = File::open(dir).map_err(|error| Error::io("open directory", dir, error))?;
        Ok(Self { file, path: dir.to_owned() })
    }

    /// Takes the lock alone, waiting at most `limit`.
    pub(crate) async fn exclusive(path: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::open(path)?;
        lock.wait(limit, File::try_lock).await?;
        Ok(lock)
    }

    /// Takes the lock beside other shared holders, waiting at most `limit` for an exclusive one.
    pub(crate) async fn shared(path: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::open(path)?;
        lock.wait(limit, File::try_lock_shared).await?;
        Ok(lock)
    }

    /// Takes the lock alone if nobody has it.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>, Error> {
        let lock = Self::open(path)?;
        Ok(lock.attempt(File::try_lock)?.then_some(lock))
    }

    async fn wait(&self, limit: Duration, lock: fn(&File) -> Result<(), TryLockError>) -> Result<(), Error> {
        let end = Instant::now() + limit;
        while !self.attempt(lock)? {
            if Instant::now() >= end {
                return Err(Error::InUse { path: self.path.clone() });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn attempt(&self, lock: fn(&File) -> Result<(), TryLockError>) -> Result<bool, Error> {
        match lock(&self.file) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &self.path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_exclusive_lock_waits_no_longer_than_told() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.lock");
        let shared = FileLock::shared(&path, Duration::ZERO).await.expect("shared");
        let also = FileLock::shared(&path, Duration::ZERO).await.expect("shared twice");
        assert!(matches!(FileLock::exclusive(&path, Duration::ZERO).await, Err(Error::InUse { .. })));
        assert!(FileLock::try_exclusive(&path).expect("try").is_none());
        drop(shared);
        drop(also);
        let alone = FileLock::try_exclusive(&path).expect("try").expect("free");
        assert!(matches!(FileLock::shared(&path, Duration::ZERO).await, Err(Error::InUse { .. })));
        drop(alone);
    }
}
