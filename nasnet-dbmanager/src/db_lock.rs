//! The locks of databases between processes: shared while one is open, exclusive to create, migrate or move it.
//!
//! All of them are ranges of one file, so that an open database costs no descriptor for its lock. A record of that
//! file names a database, and the first byte of the record is its lock. These are locks of the open file
//! description (`F_OFD_SETLK`): the kernel drops them with the process, and two managers of one process exclude each
//! other, which plain POSIX locks would not do. Inside one manager the kernel sees a single description, so who has
//! what is counted here.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tokio::time::Instant;

use crate::error::Error;

/// How often a held lock is asked for again; the kernel has no bounded wait for these locks.
const POLL: Duration = Duration::from_millis(10);

/// The bytes of a record: a name and a note, both filled up with spaces, and a line feed.
const RECORD: usize = 256;

/// The part of it that is the name.
const NAME: usize = 80;

/// The first record: what the file is. Its lock is held while a record is added.
const HEADER: &str = "nasnet-locks 1";

/// Asks again and again until there is an answer or `limit` is over.
///
/// # Errors
/// [`Error::InUse`] with `path`.
pub(crate) async fn poll<T>(
    limit: Duration,
    path: &Path,
    mut attempt: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let end = Instant::now() + limit;
    loop {
        if let Some(taken) = attempt()? {
            return Ok(taken);
        }
        if Instant::now() >= end {
            return Err(Error::InUse { path: path.to_owned() });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The file of all locks of a fleet, as one manager has it open.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Opened when first needed.
    file: Option<File>,
    places: Places,
    held: HashMap<Arc<str>, Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Shared(usize),
    Alone,
}

impl LockFile {
    pub(crate) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, state: Mutex::default() })
    }

    /// Names the lock of a database.
    pub(crate) fn lock_of(self: &Arc<Self>, name: &str, database: PathBuf) -> DbLock {
        DbLock { file: Arc::clone(self), name: name.into(), database }
    }

    fn attempt(&self, name: &Arc<str>, alone: bool) -> Result<bool, Error> {
        let mut state = self.state();
        match state.held.get_mut(name) {
            Some(Held::Shared(holders)) if !alone => {
                *holders += 1;
                return Ok(true);
            }
            Some(_) => return Ok(false),
            None => {}
        }
        let taken = state.attempt(&self.path, name, alone);
        taken.map_err(|error| Error::io("lock", &self.path, error))
    }

    fn release(&self, name: &str, parting: Option<&Parting>) {
        let mut state = self.state();
        match state.held.get_mut(name) {
            Some(Held::Shared(holders)) if *holders > 1 => *holders -= 1,
            _ => {
                let held = state.held.remove(name);
                if let (Some(file), Some(place)) = (&state.file, state.places.known.get(name))
                    && let Err(error) = let_go(file, *place, held, parting)
                {
                    tracing::warn!(path = %self.path.display(), name, %error, "letting go of a lock failed");
                }
            }
        }
    }

    fn note(&self, name: &str, note: &str) -> Result<(), Error> {
        let state = self.state();
        let (Some(file), Some(place)) = (&state.file, state.places.known.get(name)) else { return Ok(()) };
        write_note(file, *place, note).map_err(|error| Error::io("write", &self.path, error))
    }

    fn noted(&self, name: &str) -> Result<String, Error> {
        let state = self.state();
        let (Some(file), Some(place)) = (&state.file, state.places.known.get(name)) else { return Ok(String::new()) };
        let mut note = [0; RECORD - NAME];
        file.read_exact_at(&mut note, *place + NAME as u64).map_err(|error| Error::io("read", &self.path, error))?;
        Ok(String::from_utf8_lossy(&note).trim_end().to_owned())
    }

    fn downgrade(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        let (Some(file), Some(place)) = (&state.file, state.places.known.get(name)) else { return Ok(()) };
        // The kernel changes the kind in one step: nobody comes in between.
        set(file, *place, Kind::Shared).map_err(|error| Error::io("lock", &self.path, error))?;
        if let Some(held) = state.held.get_mut(name) {
            *held = Held::Shared(1);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn attempt(&mut self, path: &Path, name: &Arc<str>, alone: bool) -> io::Result<bool> {
        let file = match self.file.take() {
            Some(file) if file.metadata()?.nlink() > 0 => file,
            // Somebody removed it: whoever comes later locks another one. What is held here must be held there.
            Some(removed) => match self.held_again(path)? {
                Some(file) => file,
                None => {
                    self.file = Some(removed);
                    return Ok(false);
                }
            },
            None => open(path)?,
        };
        let file = self.file.insert(file);
        let kind = if alone { Kind::Alone } else { Kind::Shared };
        let taken = match place_of(file, &mut self.places, name)? {
            Some(place) => set(file, place, kind)?,
            None => false,
        };
        if taken {
            self.held.insert(Arc::clone(name), if alone { Held::Alone } else { Held::Shared(1) });
        }
        Ok(taken)
    }

    /// Opens the lock file anew and takes everything held; `None` when that is not possible now.
    fn held_again(&mut self, path: &Path) -> io::Result<Option<File>> {
        let file = open(path)?;
        let mut places = Places::default();
        for (name, held) in &self.held {
            let kind = if *held == Held::Alone { Kind::Alone } else { Kind::Shared };
            match place_of(&file, &mut places, name)? {
                Some(place) if set(&file, place, kind)? => {}
                _ => return Ok(None),
            }
        }
        self.places = places;
        Ok(Some(file))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Shared,
    Alone,
}

/// Changes the lock of one byte, without waiting; `false` when somebody else's is in the way.
fn set(file: &File, place: u64, kind: Kind) -> io::Result<bool> {
    let kind = match kind {
        Kind::None => libc::F_UNLCK,
        Kind::Shared => libc::F_RDLCK,
        Kind::Alone => libc::F_WRLCK,
    };
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let range = libc::flock {
        l_type: i16::try_from(kind).map_err(invalid)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(invalid)?,
        l_start: libc::off_t::try_from(place).map_err(invalid)?,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a lock up. The last to do so notes how it leaves the database; whoever had it alone may have made it another.
fn let_go(file: &File, place: u64, held: Option<Held>, parting: Option<&Parting>) -> io::Result<()> {
    match (held, parting) {
        (Some(Held::Alone), _) => write_note(file, place, "")?,
        (_, Some(parting)) if set(file, place, Kind::Alone)? => {
            if let Some(note) = (parting.note)(&parting.database) {
                write_note(file, place, &note)?;
            }
        }
        _ => {}
    }
    set(file, place, Kind::None).map(|_| ())
}

fn write_note(file: &File, place: u64, note: &str) -> io::Result<()> {
    let mut bytes = [b' '; RECORD - NAME];
    for (to, from) in bytes.iter_mut().zip(note.bytes()) {
        *to = from;
    }
    bytes[RECORD - NAME - 1] = b'\n';
    file.write_all_at(&bytes, place + NAME as u64)
}

/// Where the locks of databases are in the file.
#[derive(Debug, Default)]
struct Places {
    known: HashMap<Arc<str>, u64>,
    /// Up to here the file is read: a record never changes its place or its name.
    read: u64,
}

impl Places {
    /// Looks for a name, reading what was added to the file since; returns its place and the place after the last record.
    fn find(&mut self, file: &File, name: &str) -> io::Result<(Option<u64>, u64)> {
        let len = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(len.saturating_sub(self.read)).unwrap_or(0)];
        let read = file.read_at(&mut bytes, self.read)?;
        bytes.truncate(read);
        let (start, mut is_whole) = (self.read, true);
        for (at, found) in (start..).step_by(RECORD).zip(bytes.chunks(RECORD)) {
            // One that is being added, or was when its process ended, is looked at again.
            match found.get(..NAME).filter(|_| found.len() == RECORD && found.ends_with(b"\n")) {
                Some(name) => {
                    self.known.entry(String::from_utf8_lossy(name).trim_end().into()).or_insert(at);
                }
                None => is_whole = false,
            }
            if is_whole {
                self.read = at + RECORD as u64;
            }
        }
        Ok((self.known.get(name).copied(), len.next_multiple_of(RECORD as u64)))
    }
}

/// Finds the record of a name, adding it when there is none; `None` while somebody else adds one.
fn place_of(file: &File, places: &mut Places, name: &Arc<str>) -> io::Result<Option<u64>> {
    if let Some(place) = places.known.get(name) {
        return Ok(Some(*place));
    }
    if let (Some(place), _) = places.find(file, name)? {
        return Ok(Some(place));
    }
    if !set(file, 0, Kind::Alone)? {
        return Ok(None);
    }
    let added = add(file, places, name);
    set(file, 0, Kind::None)?;
    added.map(Some)
}

fn add(file: &File, places: &mut Places, name: &Arc<str>) -> io::Result<u64> {
    // Another process may have added it since it was looked for.
    let (found, end) = places.find(file, name)?;
    if let Some(place) = found {
        return Ok(place);
    }
    let place = if end == 0 {
        file.write_all_at(&record(HEADER), 0)?;
        RECORD as u64
    } else {
        end
    };
    file.write_all_at(&record(name), place)?;
    places.known.insert(Arc::clone(name), place);
    Ok(place)
}

fn record(name: &str) -> [u8; RECORD] {
    let mut record = [b' '; RECORD];
    for (to, from) in record.iter_mut().take(NAME).zip(name.bytes()) {
        *to = from;
    }
    record[RECORD - 1] = b'\n';
    record
}

/// The lock of one database, not taken.
#[derive(Debug, Clone)]
pub(crate) struct DbLock {
    file: Arc<LockFile>,
    name: Arc<str>,
    /// Named in errors.
    database: PathBuf,
}

impl DbLock {
    /// Takes the lock alone, waiting at most `limit`.
    ///
    /// # Errors
    /// [`Error::InUse`].
    pub(crate) async fn exclusive(&self, limit: Duration) -> Result<FileLock, Error> {
        let lock = poll(limit, &self.database, || self.try_exclusive()).await?;
        // What is noted of the database need not be true any more, however this ends.
        lock.note("")?;
        Ok(lock)
    }

    /// Takes the lock beside other shared holders, waiting at most `limit` for an exclusive one.
    ///
    /// # Errors
    /// [`Error::InUse`].
    pub(crate) async fn shared(&self, limit: Duration) -> Result<FileLock, Error> {
        poll(limit, &self.database, || self.attempt(false)).await
    }

    /// Takes the lock alone if nobody has it.
    pub(crate) fn try_exclusive(&self) -> Result<Option<FileLock>, Error> {
        self.attempt(true)
    }

    fn attempt(&self, alone: bool) -> Result<Option<FileLock>, Error> {
        let taken = self.file.attempt(&self.name, alone)?;
        Ok(taken.then(|| FileLock { file: Arc::clone(&self.file), name: Arc::clone(&self.name), parting: None }))
    }

    /// Returns the database this is the lock of.
    pub(crate) fn database(&self) -> &Path {
        &self.database
    }
}

/// A lock that lasts as long as this value, or until the process ends however it ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: Arc<LockFile>,
    name: Arc<str>,
    parting: Option<Parting>,
}

/// What the last to let go of a database notes.
#[derive(Debug)]
struct Parting {
    database: PathBuf,
    note: fn(&Path) -> Option<String>,
}

impl FileLock {
    /// Lets others in beside this holder, who had it alone; nobody has it alone in between.
    pub(crate) fn downgrade(self) -> Result<Self, Error> {
        self.file.downgrade(&self.name)?;
        Ok(self)
    }

    /// Notes something beside the lock, for whoever takes it next; it lasts as long as the boot.
    pub(crate) fn note(&self, note: &str) -> Result<(), Error> {
        self.file.note(&self.name, note)
    }

    /// Returns the file of the notes, whose date is that of the last note.
    pub(crate) fn notes(&self) -> &Path {
        &self.file.path
    }

    /// Returns what was noted last.
    pub(crate) fn noted(&self) -> Result<String, Error> {
        self.file.noted(&self.name)
    }

    /// Has something noted when this is the last to let go of the database, of all processes.
    #[must_use]
    pub(crate) fn noting_at_the_end(mut self, database: &Path, note: fn(&Path) -> Option<String>) -> Self {
        self.parting = Some(Parting { database: database.to_owned(), note });
        self
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        self.file.release(&self.name, self.parting.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_managers(dir: &Path) -> [DbLock; 2] {
        [(); 2].map(|()| LockFile::new(dir.join("databases")).lock_of("router-a", dir.join("a.db")))
    }

    fn is_free(lock: &DbLock) -> bool {
        lock.try_exclusive().expect("try").is_some()
    }

    #[tokio::test]
    async fn an_exclusive_lock_waits_no_longer_than_told_and_names_the_database() {
        let dir = tempfile::tempdir().expect("directory");
        let [mine, other] = two_managers(dir.path());
        for (holder, asker) in [(&mine, &mine), (&mine, &other), (&other, &mine)] {
            let shared = holder.shared(Duration::ZERO).await.expect("shared");
            let also = asker.shared(Duration::ZERO).await.expect("shared twice");
            let refused = asker.exclusive(Duration::ZERO).await;
            assert!(matches!(refused, Err(Error::InUse { path }) if path == dir.path().join("a.db")));
            drop(shared);
            assert!(!is_free(holder));
            drop(also);
            let alone = asker.exclusive(Duration::ZERO).await.expect("free");
            assert!(matches!(holder.shared(Duration::ZERO).await, Err(Error::InUse { .. })));
            drop(alone);
            assert!(is_free(holder));
        }
    }

    #[tokio::test]
    async fn letting_others_in_leaves_no_gap_for_one_who_wants_it_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let [mine, other] = two_managers(dir.path());
        let lock = mine.try_exclusive().expect("try").expect("free").downgrade().expect("downgrade");
        assert!(!is_free(&other) && !is_free(&mine));
        drop(other.shared(Duration::ZERO).await.expect("beside it"));
        drop(lock);
        assert!(is_free(&other));
    }

    #[tokio::test]
    async fn the_last_to_let_go_leaves_a_note_and_whoever_had_it_alone_leaves_none() {
        let dir = tempfile::tempdir().expect("directory");
        let [mine, other] = two_managers(dir.path());
        let noted = |lock: &DbLock| lock.try_exclusive().expect("try").map(|lock| lock.noted().expect("note"));
        let first = mine.shared(Duration::ZERO).await.expect("shared");
        let first = first.noting_at_the_end(Path::new("a"), |_| Some("first".to_owned()));
        let last = other.shared(Duration::ZERO).await.expect("shared");
        let last = last.noting_at_the_end(Path::new("a"), |path| Some(format!("last of {}", path.display())));
        drop(first);
        assert_eq!(last.noted().expect("note"), "");
        drop(last);
        let look = mine.try_exclusive().expect("try").expect("free").downgrade().expect("downgrade");
        assert_eq!(look.noted().expect("note"), "last of a");
        drop(look);
        assert_eq!(noted(&other).expect("free"), "last of a");
        // Having it alone has blotted it out.
        assert_eq!(noted(&other).expect("free"), "");
    }

    #[tokio::test]
    async fn names_have_locks_of_their_own_even_those_that_begin_alike() {
        let dir = tempfile::tempdir().expect("directory");
        let (mine, other) = (LockFile::new(dir.path().join("locks")), LockFile::new(dir.path().join("locks")));
        let name = |number: usize| format!("router-{}{number}", "a".repeat(number % 60));
        let names: Vec<String> = (0..300).map(name).collect();
        let held: Vec<_> = names.iter().map(|name| mine.lock_of(name, dir.path().join(name)).try_exclusive()).collect();
        assert!(held.iter().all(|held| matches!(held, Ok(Some(_)))));
        for name in &names {
            assert!(!is_free(&other.lock_of(name, dir.path().join(name))), "{name}");
        }
        assert!(is_free(&other.lock_of("router-b", dir.path().join("b"))));
        drop(held);
        assert!(names.iter().all(|name| is_free(&other.lock_of(name, dir.path().join(name)))));
    }

    #[tokio::test]
    async fn what_is_held_stays_held_when_the_file_of_locks_is_removed() {
        let dir = tempfile::tempdir().expect("directory");
        let [mine, other] = two_managers(dir.path());
        let held = mine.shared(Duration::ZERO).await.expect("shared");
        std::fs::remove_file(dir.path().join("databases")).expect("remove");
        // The next to take any lock notices, and carries over what it has.
        let another = mine.file.lock_of("router-b", dir.path().join("b.db"));
        drop(another.try_exclusive().expect("try").expect("free"));
        assert!(!is_free(&other));
        drop(held);
        assert!(is_free(&other));
    }
}
