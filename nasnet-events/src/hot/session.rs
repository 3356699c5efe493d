//! Who holds a reservation, and whether it still lives: a file in tmpfs that its owner keeps locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ulid::Ulid;

use crate::error::Error;

const PREFIX: &str = "events-";
const SUFFIX: &str = ".lock";

/// One open store. The lock ends with the process, however it ends.
#[derive(Debug)]
pub(crate) struct Session {
    id: Ulid,
    path: PathBuf,
    locked: File,
}

fn path_of(dir: &Path, id: Ulid) -> PathBuf {
    dir.join(format!("{PREFIX}{id}{SUFFIX}"))
}

/// Creates and locks a session's file.
fn locked(path: &Path) -> Result<File, Error> {
    // A sweep by another store may remove the file between its creation and its locking.
    for _ in 0..16 {
        let options = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = options.map_err(|error| Error::io("create", path, error))?;
        file.lock().map_err(|error| Error::io("lock", path, error))?;
        if is_named(&file, path) {
            return Ok(file);
        }
    }
    Err(Error::io("lock", path, std::io::Error::other("the file keeps being removed")))
}

/// True when the open file is still the one with this name.
fn is_named(file: &File, path: &Path) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(found), Ok(ours)) => (found.dev(), found.ino()) == (ours.dev(), ours.ino()),
        _ => false,
    }
}

impl Session {
    /// Creates and locks the session's file.
    pub(crate) fn open(dir: &Path, id: Ulid) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
        let path = path_of(dir, id);
        let locked = locked(&path)?;
        Ok(Self { id, path, locked })
    }

    /// Makes the file again when it was wiped: without it others would take the store for dead.
    pub(crate) fn renew(&mut self, dir: &Path) -> Result<(), Error> {
        if !is_named(&self.locked, &self.path) {
            std::fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
            self.locked = locked(&self.path)?;
        }
        Ok(())
    }

    /// The owner column of this session's reservations.
    pub(crate) const fn owner(&self) -> [u8; 16] {
        self.id.to_bytes()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Best effort: a file left behind is unlocked and so counts as dead.
        drop(std::fs::remove_file(&self.path));
    }
}

/// The locked file of a dead session, `None` while its owner lives or when there is no file.
fn lock_of_dead(path: &Path) -> Result<Option<File>, std::io::Error> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// True while the owner's process has its store open. A file that cannot be examined counts as alive: whoever is wrong
/// about that only waits longer.
pub(crate) fn is_alive(dir: &Path, owner: [u8; 16]) -> bool {
    match lock_of_dead(&path_of(dir, Ulid::from_bytes(owner))) {
        Ok(dead) => dead.is_none(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Ids of the other sessions that live, removing the files of the dead.
pub(crate) fn others_alive(dir: &Path, own: [u8; 16]) -> Vec<Ulid> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ids = names.filter_map(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse::<Ulid>().ok());
    let others = ids.filter(|id| id.to_bytes() != own);
    others
        .filter(|id| {
            let path = path_of(dir, *id);
            // Removed while locked, so that a store which is just starting sees that its file is gone and makes another.
            match lock_of_dead(&path) {
                Ok(Some(_locked)) => {
                    drop(std::fs::remove_file(&path));
                    false
                }
                Ok(None) => true,
                Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_alive_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Ulid::from_parts(1, 1), Ulid::from_parts(1, 2));
        let session = Session::open(dir.path(), a).unwrap();
        assert!(is_alive(dir.path(), a.to_bytes()));
        assert!(!is_alive(dir.path(), b.to_bytes()));
        assert_eq!(others_alive(dir.path(), b.to_bytes()), [a]);
        drop(session);
        assert!(!is_alive(dir.path(), a.to_bytes()));
    }

    #[test]
    fn the_file_of_a_killed_process_counts_as_dead_and_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (own, killed) = (Ulid::from_parts(1, 1), Ulid::from_parts(1, 2));
        std::fs::write(path_of(dir.path(), killed), "").unwrap();
        assert_eq!(others_alive(dir.path(), own.to_bytes()), []);
        assert!(!path_of(dir.path(), killed).exists());
    }
}
