//! Advisory locks on directories, for what has no lock file of its own.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::db_lock::poll;
use crate::error::Error;

/// A lock on a directory that lasts as long as this value, or until the process ends however it ends.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
    path: PathBuf,
}

impl DirLock {
    /// Takes the lock alone, waiting at most `limit`.
    pub(crate) async fn exclusive(dir: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::open(dir)?;
        poll(limit, dir, || lock.attempt(File::try_lock)).await?;
        Ok(lock)
    }

    /// Takes the lock beside other shared holders, waiting at most `limit` for an exclusive one.
    pub(crate) async fn shared(dir: &Path, limit: Duration) -> Result<Self, Error> {
        let lock = Self::open(dir)?;
        poll(limit, dir, || lock.attempt(File::try_lock_shared)).await?;
        Ok(lock)
    }

    fn open(dir: &Path) -> Result<Self, Error> {
        let file = File::open(dir).map_err(|error| Error::io("open directory", dir, error))?;
        Ok(Self { file, path: dir.to_owned() })
    }

    fn attempt(&self, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Option<()>, Error> {
        match lock(&self.file) {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
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
        let shared = DirLock::shared(dir.path(), Duration::ZERO).await.expect("shared");
        let also = DirLock::shared(dir.path(), Duration::ZERO).await.expect("shared twice");
        assert!(matches!(DirLock::exclusive(dir.path(), Duration::ZERO).await, Err(Error::InUse { .. })));
        drop((shared, also));
        let alone = DirLock::exclusive(dir.path(), Duration::ZERO).await.expect("free");
        assert!(matches!(DirLock::shared(dir.path(), Duration::ZERO).await, Err(Error::InUse { .. })));
        drop(alone);
    }
}
