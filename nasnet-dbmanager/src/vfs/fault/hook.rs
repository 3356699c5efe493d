//! What the VFS and the file module call around each operation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use libsqlite3_sys as ffi;

use super::inject::{Effect, Operation, Set, die};
use super::record::{Entry, FileRef, Log};

/// What is set up now.
static TAPS: RwLock<Taps> = RwLock::new(Taps { faults: Vec::new(), logs: Vec::new() });
/// How many there are: most operations need not ask any further.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
/// Tells open files apart.
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

struct Taps {
    faults: Vec<Arc<Set>>,
    logs: Vec<Arc<Log>>,
}

fn change(change: impl FnOnce(&mut Taps)) {
    let mut taps = TAPS.write().unwrap_or_else(PoisonError::into_inner);
    change(&mut taps);
    ACTIVE.store(taps.faults.len() + taps.logs.len(), Ordering::Release);
}

pub(super) fn add_fault(fault: Arc<Set>) {
    change(|taps| taps.faults.push(fault));
}

pub(super) fn remove_fault(fault: &Arc<Set>) {
    change(|taps| taps.faults.retain(|other| !Arc::ptr_eq(other, fault)));
}

pub(super) fn add_log(log: Arc<Log>) {
    change(|taps| taps.logs.push(log));
}

pub(super) fn remove_log(log: &Arc<Log>) {
    change(|taps| taps.logs.retain(|other| !Arc::ptr_eq(other, log)));
}

fn strike(operation: Operation, path: &Path) -> Option<Effect> {
    if ACTIVE.load(Ordering::Acquire) == 0 {
        return None;
    }
    let taps = TAPS.read().unwrap_or_else(PoisonError::into_inner);
    // Each counts the operation, whichever of them strikes.
    taps.faults.iter().fold(None, |effect, fault| fault.strike(operation, path).or(effect))
}

/// Does what is set up for an operation; the result code it fails with, if it does.
fn meet(operation: Operation, path: &Path) -> Option<i32> {
    match strike(operation, path)? {
        Effect::Fail { code } => Some(code),
        Effect::Kill | Effect::KillHalfWritten => die(),
    }
}

/// Notes an operation that succeeded.
fn note(path: &Path, entry: impl Fn() -> Entry) {
    if ACTIVE.load(Ordering::Acquire) == 0 {
        return;
    }
    let taps = TAPS.read().unwrap_or_else(PoisonError::into_inner);
    for log in taps.logs.iter().filter(|log| log.covers(path)) {
        log.push(entry());
    }
}

/// How much each log held when a sync began: what was written later is not covered by it.
pub(crate) struct Begun(Vec<(Arc<Log>, usize)>);

fn begin(path: &Path) -> Begun {
    if ACTIVE.load(Ordering::Acquire) == 0 {
        return Begun(Vec::new());
    }
    let taps = TAPS.read().unwrap_or_else(PoisonError::into_inner);
    Begun(taps.logs.iter().filter(|log| log.covers(path)).map(|log| (Arc::clone(log), log.len())).collect())
}

impl Begun {
    fn end(self, entry: impl Fn(usize) -> Entry) {
        for (log, covers) in self.0 {
            log.push(entry(covers));
        }
    }
}

/// Returns the result code that opening a file fails with, and whether the file exists.
pub(crate) fn before_open(path: &Path) -> Result<bool, i32> {
    match meet(Operation::Open, path) {
        Some(code) => Err(code),
        None => Ok(ACTIVE.load(Ordering::Acquire) == 0 || path.exists()),
    }
}

pub(crate) fn before_delete(path: &Path) -> Option<i32> {
    meet(Operation::Delete, path)
}

pub(crate) fn deleted(path: &Path, sync_directory: bool) {
    note(path, || Entry::Unlink { path: path.to_owned() });
    if sync_directory {
        directory_synced(path);
    }
}

/// Notes that the directory of `path` was synced along with an operation on it.
fn directory_synced(path: &Path) {
    if let Some(dir) = path.parent() {
        begin(dir).end(|covers| Entry::SyncDirectory { dir: dir.to_owned(), covers });
    }
}

/// An open file of SQLite.
pub(crate) struct Watched {
    path: PathBuf,
    handle: u64,
    /// The default VFS syncs the directory of a new journal or log along with its first sync.
    syncs_directory: AtomicBool,
}

impl Watched {
    /// Takes note of a file just opened.
    pub(crate) fn opened(path: PathBuf, existed: bool, flags: i32) -> Self {
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
        note(&path, || Entry::Open { handle, path: path.clone(), created: !existed });
        let journals = ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_WAL;
        let syncs_directory = flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & journals != 0;
        Self { path, handle, syncs_directory: AtomicBool::new(syncs_directory) }
    }

    fn file(&self) -> FileRef {
        FileRef { handle: self.handle, path: self.path.clone() }
    }

    pub(crate) fn before_read(&self) -> Option<i32> {
        meet(Operation::Read, &self.path)
    }

    /// `half` writes that many bytes of the buffer.
    pub(crate) fn before_write(&self, len: usize, half: impl FnOnce(usize)) -> Option<i32> {
        match strike(Operation::Write, &self.path)? {
            Effect::Fail { code } => Some(code),
            Effect::KillHalfWritten => {
                half(len / 2);
                die()
            }
            Effect::Kill => die(),
        }
    }

    pub(crate) fn wrote(&self, offset: u64, bytes: &[u8]) {
        note(&self.path, || Entry::Write { file: self.file(), offset, bytes: bytes.to_vec() });
    }

    pub(crate) fn before_truncate(&self) -> Option<i32> {
        meet(Operation::Truncate, &self.path)
    }

    pub(crate) fn truncated(&self, size: u64) {
        note(&self.path, || Entry::Truncate { file: self.file(), size });
    }

    pub(crate) fn before_sync(&self) -> Result<Begun, i32> {
        match meet(Operation::Sync, &self.path) {
            Some(code) => Err(code),
            None => Ok(begin(&self.path)),
        }
    }

    pub(crate) fn synced(&self, begun: Begun) {
        begun.end(|covers| Entry::Sync { file: self.file(), covers });
        if self.syncs_directory.swap(false, Ordering::AcqRel) {
            directory_synced(&self.path);
        }
    }
}

/// Operations outside of SQLite: they take paths, and fail as the operating system would.
pub(crate) mod plain {
    use super::*;

    fn full(path: &Path) -> PathBuf {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (parent.canonicalize(), path.file_name()) {
            (Ok(parent), Some(name)) => parent.join(name),
            _ => path.to_owned(),
        }
    }

    fn error(code: i32) -> io::Error {
        let kind = match code & 0xff {
            ffi::SQLITE_FULL => io::ErrorKind::StorageFull,
            ffi::SQLITE_NOMEM => io::ErrorKind::OutOfMemory,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, format!("injected fault {code}"))
    }

    fn checked(operation: Operation, path: &Path) -> io::Result<()> {
        meet(operation, path).map_or(Ok(()), |code| Err(error(code)))
    }

    pub(crate) fn read(path: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if ACTIVE.load(Ordering::Acquire) > 0 {
            checked(Operation::Read, &full(path))?;
        }
        done()
    }

    pub(crate) fn write(path: &Path, bytes: &[u8], done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::Write, &path)?;
        let created = !path.exists();
        done()?;
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
        let file = || FileRef { handle, path: path.clone() };
        note(&path, || Entry::Open { handle, path: path.clone(), created });
        note(&path, || Entry::Truncate { file: file(), size: 0 });
        note(&path, || Entry::Write { file: file(), offset: 0, bytes: bytes.to_vec() });
        Ok(())
    }

    /// A piece at the end of a file.
    pub(crate) fn append(
        path: &Path,
        offset: u64,
        bytes: &[u8],
        done: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = full(path);
        match strike(Operation::Write, &path) {
            None => {}
            Some(Effect::Fail { code }) => return Err(error(code)),
            Some(Effect::Kill) => die(),
            Some(Effect::KillHalfWritten) => {
                // Whether even that succeeds makes no difference to a process about to end.
                let _ = done(&bytes[..bytes.len() / 2]);
                die()
            }
        }
        done(bytes)?;
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
        let file = || FileRef { handle, path: path.clone() };
        note(&path, || Entry::Open { handle, path: path.clone(), created: offset == 0 });
        note(&path, || Entry::Write { file: file(), offset, bytes: bytes.to_vec() });
        Ok(())
    }

    pub(crate) fn cut(path: &Path, size: u64, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::Truncate, &path)?;
        done()?;
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
        note(&path, || Entry::Open { handle, path: path.clone(), created: false });
        note(&path, || Entry::Truncate { file: FileRef { handle, path: path.clone() }, size });
        Ok(())
    }

    pub(crate) fn sync_file(path: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::Sync, &path)?;
        let begun = begin(&path);
        done()?;
        begun.end(|covers| Entry::Sync { file: FileRef { handle: 0, path: path.clone() }, covers });
        Ok(())
    }

    pub(crate) fn sync_dir(path: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::SyncDirectory, &path)?;
        let begun = begin(&path);
        done()?;
        begun.end(|covers| Entry::SyncDirectory { dir: path.clone(), covers });
        Ok(())
    }

    pub(crate) fn create_dir(path: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::Write, &path)?;
        done()?;
        note(&path, || Entry::CreateDirectory { path: path.clone() });
        Ok(())
    }

    pub(crate) fn remove(path: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = full(path);
        checked(Operation::Delete, &path)?;
        done()?;
        note(&path, || Entry::Unlink { path: path.clone() });
        Ok(())
    }

    pub(crate) fn rename<T>(from: &Path, to: &Path, done: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let (from, to) = (full(from), full(to));
        checked(Operation::Rename, &to)?;
        let done = done()?;
        note(&to, || Entry::Rename { from: from.clone(), to: to.clone() });
        Ok(done)
    }

    pub(crate) fn exchange(one: &Path, other: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let (one, other) = (full(one), full(other));
        checked(Operation::Rename, &one)?;
        done()?;
        note(&one, || Entry::Exchange { one: one.clone(), other: other.clone() });
        Ok(())
    }

    pub(crate) fn link(from: &Path, to: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let (from, to) = (full(from), full(to));
        checked(Operation::Rename, &to)?;
        done()?;
        note(&to, || Entry::Link { from: from.clone(), to: to.clone() });
        Ok(())
    }
}
