//! Faults that happen: which operation, which of them, and what happens then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libsqlite3_sys as ffi;

use super::hook;

/// A kind of operation on a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening a database, log or journal.
    Open,
    /// Reading from one, or a piece of an annex.
    Read,
    /// Writing to a file.
    Write,
    /// Cutting a file.
    Truncate,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDirectory,
    /// Removing a file.
    Delete,
    /// Renaming or linking.
    Rename,
}

/// What happens instead of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Fail { code: i32 },
    Kill,
    KillHalfWritten,
}

/// A fault to come, for files below one directory.
#[derive(Debug, Clone)]
pub struct Fault {
    operation: Operation,
    nth: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// No free space (`SQLITE_FULL`).
    pub const FULL: i32 = ffi::SQLITE_FULL;
    /// A read that fails.
    pub const IOERR_READ: i32 = ffi::SQLITE_IOERR_READ;
    /// A write that fails.
    pub const IOERR_WRITE: i32 = ffi::SQLITE_IOERR_WRITE;
    /// A sync that fails.
    pub const IOERR_FSYNC: i32 = ffi::SQLITE_IOERR_FSYNC;
    /// No memory.
    pub const NOMEM: i32 = ffi::SQLITE_NOMEM;
    /// The statement is interrupted.
    pub const INTERRUPT: i32 = ffi::SQLITE_INTERRUPT;

    /// Fails the `nth` operation of a kind, counted from 1 and from the moment it is armed, with a result code of
    /// SQLite. Operations outside of SQLite fail with the matching error of the operating system.
    #[must_use]
    pub fn fail(operation: Operation, nth: u64, code: i32) -> Self {
        Self { operation, nth, times: 1, effect: Effect::Fail { code } }
    }

    /// Kills the process instead of the `nth` operation of a kind, as `SIGKILL` would.
    #[must_use]
    pub fn kill(operation: Operation, nth: u64) -> Self {
        Self { operation, nth, times: 1, effect: Effect::Kill }
    }

    /// Kills the process in the middle of the `nth` write.
    #[must_use]
    pub fn kill_half_written(nth: u64) -> Self {
        Self { operation: Operation::Write, nth, times: 1, effect: Effect::KillHalfWritten }
    }

    /// Lets it happen that many times in a row; `u64::MAX` means until it is disarmed.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Arms it for the files below `dir`, until the returned value is dropped.
    ///
    /// # Errors
    /// When `dir` does not exist.
    pub fn arm(self, dir: &Path) -> io::Result<Armed> {
        let set =
            Arc::new(Set { dir: dir.canonicalize()?, fault: self, seen: AtomicU64::new(0), fired: AtomicU64::new(0) });
        hook::add_fault(Arc::clone(&set));
        Ok(Armed { set })
    }
}

/// A fault waiting for its operation; dropping it disarms it.
#[derive(Debug)]
pub struct Armed {
    set: Arc<Set>,
}

impl Armed {
    /// Returns how many operations of the kind there were.
    pub fn seen(&self) -> u64 {
        self.set.seen.load(Ordering::Acquire)
    }

    /// Returns how many of them it hit.
    pub fn fired(&self) -> u64 {
        self.set.fired.load(Ordering::Acquire)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        hook::remove_fault(&self.set);
    }
}

/// An armed fault as the hooks see it.
#[derive(Debug)]
pub(super) struct Set {
    dir: PathBuf,
    fault: Fault,
    seen: AtomicU64,
    fired: AtomicU64,
}

impl Set {
    /// Counts an operation and tells what happens to it.
    pub(super) fn strike(&self, operation: Operation, path: &Path) -> Option<Effect> {
        if operation != self.fault.operation || !path.starts_with(&self.dir) {
            return None;
        }
        let number = self.seen.fetch_add(1, Ordering::AcqRel) + 1;
        let last = self.fault.nth.saturating_add(self.fault.times);
        if number < self.fault.nth || number >= last {
            return None;
        }
        self.fired.fetch_add(1, Ordering::AcqRel);
        Some(self.fault.effect)
    }
}

/// Ends the process at once: no destructor runs, nothing is flushed.
pub(super) fn die() -> ! {
    // The default action of SIGKILL cannot be caught; abort is what remains if the kernel should refuse.
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fault: Fault) -> Set {
        Set { dir: PathBuf::from("/a"), fault, seen: AtomicU64::new(0), fired: AtomicU64::new(0) }
    }

    #[test]
    fn it_strikes_the_nth_of_its_kind_below_its_directory_and_no_other() {
        let set = set(Fault::fail(Operation::Write, 2, Fault::FULL).times(2));
        let write = |path: &str| set.strike(Operation::Write, Path::new(path));
        assert_eq!(set.strike(Operation::Sync, Path::new("/a/f")), None);
        assert_eq!(write("/b/f"), None);
        assert_eq!(write("/a/f"), None);
        assert_eq!(write("/a/f"), Some(Effect::Fail { code: 13 }));
        assert_eq!(write("/a/g"), Some(Effect::Fail { code: 13 }));
        assert_eq!(write("/a/f"), None);
        assert_eq!((set.seen.load(Ordering::Relaxed), set.fired.load(Ordering::Relaxed)), (4, 2));
    }
}
