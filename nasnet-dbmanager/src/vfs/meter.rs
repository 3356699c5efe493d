//! What is counted, and where the counts of each database live.

use std::collections::{HashMap, HashSet};
use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Size of the page flash and page cache work in.
const PAGE_BYTES: u64 = 4096;

/// Most dirty pages remembered per file. A file that is never synced (`synchronous = OFF`) settles at this many, as
/// the kernel writes them back at some time anyway.
const DIRTY_PAGES_MAX: usize = 8192;

/// What was written to a database file, its WAL, its rollback journal and its annexes since the process started.
///
/// Counts only grow; work with differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Bytes of all successful writes.
    pub bytes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Truncations.
    pub truncates: u64,
    /// 4,096 for each distinct 4 KiB page dirtied between two syncs of a file: what has to reach the medium at least.
    pub dirty_4k_bytes: u64,
    /// The part of `bytes` that went to the database file itself.
    pub db_bytes: u64,
    /// The part of `bytes` that went to the WAL.
    pub wal_bytes: u64,
    /// The part of `bytes` that went to the rollback journal.
    pub journal_bytes: u64,
    /// The part of `bytes` that went to annexes.
    pub annex_bytes: u64,
}

impl Sub for Written {
    type Output = Self;

    /// Returns what was written between an earlier reading and this one.
    fn sub(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            syncs: self.syncs.saturating_sub(earlier.syncs),
            truncates: self.truncates.saturating_sub(earlier.truncates),
            dirty_4k_bytes: self.dirty_4k_bytes.saturating_sub(earlier.dirty_4k_bytes),
            db_bytes: self.db_bytes.saturating_sub(earlier.db_bytes),
            wal_bytes: self.wal_bytes.saturating_sub(earlier.wal_bytes),
            journal_bytes: self.journal_bytes.saturating_sub(earlier.journal_bytes),
            annex_bytes: self.annex_bytes.saturating_sub(earlier.annex_bytes),
        }
    }
}

/// The file of a database that an operation goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Database,
    Wal,
    Journal,
    Annex,
}

/// The counts of one database, shared by all its open files; clones read the same counts.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    database: FileCounts,
    wal: FileCounts,
    journal: FileCounts,
    annex: FileCounts,
}

#[derive(Debug, Default)]
struct FileCounts {
    bytes: u64,
    syncs: u64,
    truncates: u64,
    settled_pages: u64,
    dirty_pages: HashSet<u64>,
}

impl Meter {
    /// Returns the meter of the database at `path`, which need not be open or exist yet.
    pub fn of(path: &Path) -> Self {
        Self::named(resolved(path))
    }

    /// Returns what was written so far.
    pub fn written(&self) -> Written {
        let counts = self.lock();
        let parts = [&counts.database, &counts.wal, &counts.journal, &counts.annex];
        let sum = |count: fn(&FileCounts) -> u64| parts.iter().map(|part| count(part)).sum();
        Written {
            bytes: sum(|part| part.bytes),
            syncs: sum(|part| part.syncs),
            truncates: sum(|part| part.truncates),
            dirty_4k_bytes: sum(FileCounts::pages) * PAGE_BYTES,
            db_bytes: counts.database.bytes,
            wal_bytes: counts.wal.bytes,
            journal_bytes: counts.journal.bytes,
            annex_bytes: counts.annex.bytes,
        }
    }

    /// Returns the meter of the database whose full path SQLite spells `path`.
    pub(super) fn named(path: PathBuf) -> Self {
        lock_registry().entry(path).or_default().clone()
    }

    pub(super) fn wrote(&self, part: Part, offset: u64, len: u64) {
        if len > 0 {
            self.lock().part(part).wrote(offset, len);
        }
    }

    /// Notes an append to an annex and its sync. Annexes are told apart by their number, so that the same page of two is
    /// two pages.
    pub(crate) fn annex_written(&self, file: u32, offset: u64, len: u64) {
        const FILE_BYTES: u64 = 1 << 31;
        self.wrote(Part::Annex, u64::from(file) * FILE_BYTES + offset % FILE_BYTES, len);
        self.synced(Part::Annex);
    }

    pub(super) fn synced(&self, part: Part) {
        let mut counts = self.lock();
        let file = counts.part(part);
        file.syncs += 1;
        file.settle();
    }

    pub(super) fn truncated(&self, part: Part) {
        self.lock().part(part).truncates += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn part(&mut self, part: Part) -> &mut FileCounts {
        match part {
            Part::Database => &mut self.database,
            Part::Wal => &mut self.wal,
            Part::Journal => &mut self.journal,
            Part::Annex => &mut self.annex,
        }
    }
}

impl FileCounts {
    fn wrote(&mut self, offset: u64, len: u64) {
        self.bytes += len;
        for page in offset / PAGE_BYTES..=(offset + len - 1) / PAGE_BYTES {
            if self.dirty_pages.len() == DIRTY_PAGES_MAX && !self.dirty_pages.contains(&page) {
                self.settle();
            }
            self.dirty_pages.insert(page);
        }
    }

    /// Books the dirty pages as written.
    fn settle(&mut self) {
        self.settled_pages += self.dirty_pages.len() as u64;
        self.dirty_pages.clear();
    }

    fn pages(&self) -> u64 {
        self.settled_pages + self.dirty_pages.len() as u64
    }
}

/// Returns what was written to the database at `path` so far; nothing when it was never opened through this VFS.
pub fn written(path: &Path) -> Written {
    let meter = lock_registry().get(&resolved(path)).cloned();
    meter.map(|meter| meter.written()).unwrap_or_default()
}

/// Drops the counts of a database whose file is gone for good, such as one that was built under a temporary name.
pub fn forget(path: &Path) {
    lock_registry().remove(&resolved(path));
}

fn lock_registry() -> MutexGuard<'static, HashMap<PathBuf, Meter>> {
    static REGISTRY: OnceLock<Mutex<HashMap<PathBuf, Meter>>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spells a path as SQLite does: absolute and without symbolic links, also when the file itself does not exist.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(full) = path.canonicalize() {
        return full;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_bytes(meter: &Meter) -> u64 {
        meter.written().dirty_4k_bytes
    }

    #[test]
    fn a_page_counts_once_between_syncs_and_again_after_one() {
        let meter = Meter::default();
        meter.wrote(Part::Wal, 0, 32);
        meter.wrote(Part::Wal, 32, 24);
        assert_eq!(page_bytes(&meter), 4096);
        meter.synced(Part::Wal);
        assert_eq!(page_bytes(&meter), 4096);
        meter.wrote(Part::Wal, 100, 1);
        assert_eq!(page_bytes(&meter), 2 * 4096);
    }

    #[test]
    fn a_write_dirties_every_page_it_touches() {
        let meter = Meter::default();
        meter.wrote(Part::Database, 4095, 2);
        assert_eq!(page_bytes(&meter), 2 * 4096);
        meter.wrote(Part::Database, 8192, 4096);
        assert_eq!(page_bytes(&meter), 3 * 4096);
        meter.wrote(Part::Database, 0, 0);
        assert_eq!((page_bytes(&meter), meter.written().bytes), (3 * 4096, 4098));
    }

    #[test]
    fn the_same_page_number_of_two_files_is_two_pages() {
        let meter = Meter::default();
        meter.wrote(Part::Database, 0, 1);
        meter.wrote(Part::Journal, 0, 1);
        meter.synced(Part::Journal);
        meter.wrote(Part::Database, 0, 1);
        assert_eq!(page_bytes(&meter), 2 * 4096);
    }

    #[test]
    fn a_file_that_is_never_synced_uses_bounded_memory_and_loses_no_count() {
        let meter = Meter::default();
        let pages = DIRTY_PAGES_MAX as u64 * 3 + 5;
        for page in 0..pages {
            meter.wrote(Part::Database, page * PAGE_BYTES, 10);
        }
        assert_eq!(page_bytes(&meter), pages * PAGE_BYTES);
        assert!(meter.lock().database.dirty_pages.len() <= DIRTY_PAGES_MAX);
    }

    #[test]
    fn a_path_means_the_same_before_and_after_its_file_exists() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.db");
        Meter::of(&path).wrote(Part::Database, 0, 7);
        std::fs::write(&path, b"x").expect("write");
        assert_eq!(written(&path).bytes, 7);
        let link = directory.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert_eq!(written(&link).bytes, 7);
        forget(&path);
        assert_eq!(written(&path), Written::default());
    }
}
