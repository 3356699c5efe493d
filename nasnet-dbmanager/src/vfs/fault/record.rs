//! The record: everything that happened to the files below a directory, in order.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hook;

/// A file: by the handle it was opened with, or by its path when that happened before the record began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileRef {
    pub(super) handle: u64,
    pub(super) path: PathBuf,
}

/// One thing that happened. `covers` is the number of entries before a sync began: only those are synced by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Open { handle: u64, path: PathBuf, created: bool },
    Write { file: FileRef, offset: u64, bytes: Vec<u8> },
    Truncate { file: FileRef, size: u64 },
    Sync { file: FileRef, covers: usize },
    SyncDirectory { dir: PathBuf, covers: usize },
    CreateDirectory { path: PathBuf },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Exchange { one: PathBuf, other: PathBuf },
    Ack { value: u64 },
}

impl Entry {
    /// Tells whether a power cut after it can find something else than one before it.
    pub(super) fn matters(&self) -> bool {
        !matches!(self, Self::Open { created: false, .. } | Self::Ack { .. })
    }
}

/// The record under way.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    entries: Mutex<Vec<Entry>>,
}

impl Log {
    pub(super) fn covers(&self, path: &Path) -> bool {
        path.starts_with(&self.dir)
    }

    pub(super) fn push(&self, entry: Entry) {
        self.lock().push(entry);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records what happens to the files below a directory until it is stopped or dropped.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Log>,
    before: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Recorder {
    /// Starts. Everything below `dir` counts as durable, and nothing there may be in use.
    ///
    /// # Errors
    /// When `dir` or a file below it cannot be read.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        let before = read_tree(&dir)?;
        let log = Arc::new(Log { dir, entries: Mutex::default() });
        hook::add_log(Arc::clone(&log));
        Ok(Self { log, before })
    }

    /// Marks that from now on the caller relies on something, named by a number of its choice.
    pub fn ack(&self, value: u64) {
        self.log.push(Entry::Ack { value });
    }

    /// Ends the record.
    #[must_use]
    pub fn stop(self) -> Recording {
        hook::remove_log(&self.log);
        let entries = std::mem::take(&mut *self.log.lock());
        Recording { dir: self.log.dir.clone(), before: self.before.clone(), entries }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        hook::remove_log(&self.log);
    }
}

/// What happened to the files below a directory.
#[derive(Debug, Clone)]
pub struct Recording {
    pub(super) dir: PathBuf,
    /// What was there before: files with their content, directories without.
    pub(super) before: BTreeMap<PathBuf, Option<Vec<u8>>>,
    pub(super) entries: Vec<Entry>,
}

impl Recording {
    /// Returns the number of points at which a power cut makes a difference.
    pub fn crash_points(&self) -> usize {
        self.entries.iter().filter(|entry| entry.matters()).count()
    }

    /// Returns the marks set by [`Recorder::ack`].
    pub fn acks(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Ack { value } => Some(*value),
            _ => None,
        })
    }
}

/// Reads a directory tree, with paths relative to it.
fn read_tree(dir: &Path) -> io::Result<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        for entry in std::fs::read_dir(dir.join(&below))? {
            let path = below.join(entry?.file_name());
            let full = dir.join(&path);
            if full.is_dir() {
                tree.insert(path.clone(), None);
                dirs.push(path);
            } else {
                tree.insert(path, Some(std::fs::read(full)?));
            }
        }
    }
    Ok(tree)
}
