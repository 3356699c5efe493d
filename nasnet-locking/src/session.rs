//! A session: the life its leases hang on, provable to every process of the machine without pids.
//!
//! It is a file `<run>/sessions/{ulid}` under an exclusive `flock`. The kernel drops the lock when the last descriptor
//! closes, whatever ended the process and in whatever container it ran. A paused process keeps it.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use ulid::Ulid;

use crate::error::Error;

/// The directory of session files.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    dir: PathBuf,
}

impl Sessions {
    pub(crate) fn open(run_dir: &Path) -> Result<Self, Error> {
        let dir = run_dir.join("sessions");
        fs::create_dir_all(&dir).map_err(|source| Error::Session { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// Begins a session: the file appears under its name only once it is locked, so nobody can see it unlocked.
    pub(crate) fn begin(&self, id: Ulid) -> Result<Session, Error> {
        let path = self.path(id);
        let new = self.dir.join(format!(".{id}"));
        let fail = |source| Error::Session { path: new.clone(), source };
        let file = File::create_new(&new).map_err(fail)?;
        file.try_lock().map_err(|error| fail(error.into()))?;
        fs::rename(&new, &path).map_err(fail)?;
        Ok(Session { id, path, _file: file })
    }

    /// Tells whether a session has provably ended: its file is gone or nobody holds its lock.
    ///
    /// Probing takes the lock shared, so probes do not take each other for the owner. What cannot be told counts as alive.
    pub(crate) fn is_dead(&self, id: Ulid) -> bool {
        match File::open(self.path(id)) {
            Ok(file) => file.try_lock_shared().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Returns a probe that looks at each session once.
    pub(crate) fn probe(&self, own: Ulid) -> impl Fn(Ulid) -> bool + '_ {
        let seen = std::cell::RefCell::new(HashMap::from([(own, false)]));
        move |id| *seen.borrow_mut().entry(id).or_insert_with(|| self.is_dead(id))
    }

    /// Removes the files of dead sessions.
    ///
    /// The exclusive lock is held while the name is removed; a session about to begin has another name until it holds its
    /// own lock, and then this one cannot be had.
    pub(crate) fn sweep(&self) -> Result<usize, Error> {
        let fail = |source| Error::Session { path: self.dir.clone(), source };
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let named =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| Ulid::from_string(name).is_ok());
            let Some(file) = File::open(&path).ok().filter(|_| named) else { continue };
            match file.try_lock() {
                Ok(()) => removed += usize::from(fs::remove_file(&path).is_ok()),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(Error::Session { path, source }),
            }
        }
        Ok(removed)
    }

    fn path(&self, id: Ulid) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

/// A live session of this process; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Ulid,
    path: PathBuf,
    _file: File,
}

impl Drop for Session {
    fn drop(&mut self) {
        // A file left behind is only swept later: without its lock it already says "dead".
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_dead_as_soon_as_its_lock_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path()).unwrap();
        let session = sessions.begin(Ulid(1)).unwrap();
        assert!(!sessions.is_dead(Ulid(1)));
        assert!(sessions.is_dead(Ulid(2)), "never begun");
        drop(session);
        assert!(sessions.is_dead(Ulid(1)));
    }

    #[test]
    fn a_left_over_file_is_dead_and_swept_a_held_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path()).unwrap();
        let held = sessions.begin(Ulid(1)).unwrap();
        File::create(dir.path().join("sessions").join(Ulid(2).to_string())).unwrap();
        File::create(dir.path().join("sessions/not-a-session")).unwrap();
        assert!(sessions.is_dead(Ulid(2)));
        assert_eq!(sessions.sweep().unwrap(), 1);
        assert!(!sessions.is_dead(held.id));
        assert!(dir.path().join("sessions/not-a-session").exists());
    }
}
