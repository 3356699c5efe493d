//! Annexes: append-only files beside a database, for bytes that would be written twice as pages of it.
//!
//! With a write-ahead log each page is written into the log and again into the file. What is large and never changed
//! goes to an annex instead, and a row says where: the row is the truth, and bytes no row names mean nothing.
//!
//! What keeps rows and bytes together:
//! - bytes are on the medium, and so is the name of their file, before [`Annexes::append`] returns and thus before the row
//!   is committed in whose operation it was called;
//! - an append goes to the end of the newest file of its family, whoever wrote what is before it, so no place is written
//!   twice while its row may exist;
//! - the newest file is never removed, so no number is given twice, and another one only when no committed row names it.
//!
//! They are in the directory of their router, so whatever moves that moves them.

pub(crate) mod carry;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backup::copy::{blocking, of_write};
use crate::connection::Target;
use crate::durable;
use crate::error::Error;
use crate::id::Class;
use crate::layout;
use crate::vfs::Meter;

/// A file that has reached this is not appended to any more.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One kind of annexes of a database: its files have a common fate, so what is removed together belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnnexFamily(&'static str);

impl AnnexFamily {
    /// Names a family.
    ///
    /// # Panics
    /// When the name has another form than `[a-z]{1,32}`; in a constant that is an error of the compiler.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= 32, "the name of a family of annexes has 1 to 32 letters");
        let bytes = name.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at].is_ascii_lowercase(), "the name of a family of annexes has lower-case letters only");
            at += 1;
        }
        Self(name)
    }

    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// Where bytes are in the annexes of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnexPlace {
    /// The number of the file, from 1.
    pub file: u32,
    /// The first byte.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

/// The annexes of one open database; clones are the same.
///
/// # Guarantees
/// What [`Annexes::append`] returned survives a power cut. Several processes may append, each inside of a write operation
/// of the database.
#[derive(Debug, Clone)]
pub struct Annexes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    target: Target,
    dir: PathBuf,
    meter: Meter,
    families: Mutex<BTreeMap<AnnexFamily, State>>,
}

/// What this process knows of a family.
#[derive(Debug, Default)]
struct State {
    /// The file whose name this process has brought to the medium.
    named: Option<u32>,
    /// An append failed: what the newest file holds at its end is not to be relied on.
    is_doubtful: bool,
    /// Written, and not known to be named by a committed row.
    unconfirmed: Option<AnnexPlace>,
    /// Files found without a row, and since when.
    unnamed: BTreeMap<u32, Instant>,
}

impl Annexes {
    pub(crate) fn new(target: Target) -> Self {
        let dir = layout::annex_of(&target.path);
        let meter = Meter::of(&target.path);
        let annexes = Self(Arc::new(Inner { target, dir, meter, families: Mutex::default() }));
        annexes.0.measure();
        annexes
    }

    /// Appends to the newest file of a family and brings it to the medium; returns where the bytes are. `class` decides, as
    /// for pages, how far the bytes of a database and its annexes may grow together.
    ///
    /// It has to be called inside of a write operation of the database, which is what orders the appends of several
    /// processes, at most once a family, and its place stored by the same operation. After the commit
    /// [`Annexes::confirm`] it; the operation of the next append asks for [`Annexes::unconfirmed`] first and retracts a place
    /// no row names.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; no place then refers to what was written.
    ///
    /// # Cancel safety
    /// Dropping the future leaves bytes that no row names.
    pub async fn append(&self, family: AnnexFamily, class: Class, bytes: Arc<[u8]>) -> Result<AnnexPlace, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.append(family, class, &bytes)).await
    }

    /// Notes that a row that names a place is committed.
    pub fn confirm(&self, family: AnnexFamily, place: AnnexPlace) {
        let mut families = self.0.families();
        if let Some(state) = families.get_mut(&family).filter(|state| state.unconfirmed == Some(place)) {
            state.unconfirmed = None;
        }
    }

    /// Returns the last place that was appended by this process and not confirmed.
    #[must_use]
    pub fn unconfirmed(&self, family: AnnexFamily) -> Option<AnnexPlace> {
        self.0.families().get(&family).and_then(|state| state.unconfirmed)
    }

    /// Gives bytes back that no row names, if nothing was appended after them. As [`Annexes::append`], it belongs inside
    /// of a write operation.
    ///
    /// # Errors
    /// [`Error::Io`]; the bytes then stay and mean nothing.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn retract(&self, family: AnnexFamily, place: AnnexPlace) -> Result<(), Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.retract(family, place)).await
    }

    /// Reads bytes back. What they are has to be checked by whoever wrote them.
    ///
    /// # Errors
    /// [`Error::Annex`] when the file is missing or too short; [`Error::Io`].
    pub fn read(&self, family: AnnexFamily, place: AnnexPlace) -> Result<Vec<u8>, Error> {
        let path = self.path(family, place.file);
        let damaged = |detail: String| Error::Annex { path: path.clone(), detail };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing".to_owned())),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let has = file.metadata().map_err(|error| Error::io("examine", &path, error))?.len();
        let end = place.offset.checked_add(place.bytes).filter(|end| *end <= has);
        let (Some(_), Ok(length)) = (end, usize::try_from(place.bytes)) else {
            let detail = format!("it has {has} bytes, {} from {} on are wanted", place.bytes, place.offset);
            return Err(damaged(detail));
        };
        let mut bytes = vec![0; length];
        durable::read_exact_at(&file, &path, &mut bytes, place.offset)
            .map_err(|error| Error::io("read", &path, error))?;
        Ok(bytes)
    }

    /// Returns the path of a file.
    #[must_use]
    pub fn path(&self, family: AnnexFamily, file: u32) -> PathBuf {
        self.0.dir.join(file_name(family, file))
    }

    /// Returns the numbers of the files that are not appended to any more: all but the newest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn closed_files(&self, family: AnnexFamily) -> Result<Vec<u32>, Error> {
        let mut files: Vec<u32> = self.0.list(family)?.into_iter().map(|(file, _)| file).collect();
        files.pop();
        Ok(files)
    }

    /// Removes those of the `closed` files that no row names, and that were found so by a call at least `kept` ago: readers
    /// of an older snapshot may still look into them. Returns the bytes freed.
    ///
    /// `closed` has to be asked for before the snapshot is taken in which `named` was looked up: whatever names a closed
    /// file was committed before it was closed.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Cancel safety
    /// Safe: doing it again does what is left.
    pub async fn remove_unnamed(
        &self,
        family: AnnexFamily,
        closed: Vec<u32>,
        named: BTreeSet<u32>,
        kept: Duration,
    ) -> Result<u64, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.remove_unnamed(family, &closed, &named, kept)).await
    }

    /// Returns the bytes of all files, as of the last append or removal by this process.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.target.annex_bytes.load(Ordering::Relaxed)
    }
}

/// Names a file in the directory of the annexes.
fn file_name(family: AnnexFamily, file: u32) -> String {
    format!("{}-{file:08}", family.0)
}

/// Splits what [`file_name`] gives.
fn parse_name(name: &str) -> Option<(&str, u32)> {
    let (family, number) = name.split_once('-')?;
    let is_family = !family.is_empty() && family.len() <= 32 && family.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_number = (8..=10).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|number| *number > 0 && is_number)?;
    is_family.then_some((family, number))
}

/// Chooses the file of the next append, given the newest and its length.
fn next_file(newest: Option<(u32, u64)>, bytes: u64, is_doubtful: bool) -> Option<u32> {
    match newest {
        None => Some(1),
        Some((file, 0)) => Some(file),
        Some((file, length)) if is_doubtful || length.saturating_add(bytes) > FILE_BYTES_MAX => file.checked_add(1),
        Some((file, _)) => Some(file),
    }
}

impl Inner {
    fn families(&self) -> MutexGuard<'_, BTreeMap<AnnexFamily, State>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the files of a family with their lengths, the oldest first.
    fn list(&self, family: AnnexFamily) -> Result<Vec<(u32, u64)>, Error> {
        let found = names_and_sizes(&self.dir)?;
        let of_family = found.iter().filter_map(|(name, bytes)| match parse_name(name)? {
            (own, file) if own == family.0 => Some((file, *bytes)),
            _ => None,
        });
        let mut files: Vec<_> = of_family.collect();
        files.sort_unstable();
        Ok(files)
    }

    /// Counts the bytes of all families.
    fn measure(&self) {
        // What cannot be listed cannot be appended to either, which is told then.
        let bytes = names_and_sizes(&self.dir).unwrap_or_default().iter().map(|(_, bytes)| bytes).sum();
        self.target.annex_bytes.store(bytes, Ordering::Relaxed);
    }

    fn check_room(&self, class: Class, bytes: u64) -> Result<(), Error> {
        let tight = self.target.space.as_ref().is_some_and(|space| space.is_tight());
        let most = self.target.bytes_for(class, tight);
        let has = layout::size_of(&self.target.path)?;
        if has.saturating_add(bytes) <= most {
            return Ok(());
        }
        let detail = format!("{} and its annexes may not grow by {bytes} bytes", self.target.path.display());
        Err(Error::NoSpace { detail })
    }

    fn append(&self, family: AnnexFamily, class: Class, bytes: &[u8]) -> Result<AnnexPlace, Error> {
        let length = bytes.len() as u64;
        let mut families = self.families();
        let state = families.entry(family).or_default();
        self.measure();
        self.check_room(class, length)?;
        if !self.dir.is_dir() {
            layout::create_dir(&self.dir)?;
        }
        let newest = self.list(family)?.last().copied();
        let full = || Error::NoSpace { detail: format!("no number is left in {}", self.dir.display()) };
        let number = next_file(newest, length, state.is_doubtful).ok_or_else(full)?;
        let path = self.dir.join(file_name(family, number));
        let file = open_to_append(&path)?;
        let offset = file.metadata().map_err(|error| Error::io("examine", &path, error))?.len();
        let place = AnnexPlace { file: number, offset, bytes: length };
        state.unconfirmed = None;
        let written = self.write(&file, &path, offset, bytes, state.named == Some(number));
        self.meter.annex_written(number, offset, length);
        if let Err(error) = written {
            // After a failed sync nobody knows what is on the medium: later appends go to another file.
            state.is_doubtful = true;
            durable::cut(&file, &path, offset).ok();
            return Err(of_write(&path, error));
        }
        *state = State {
            named: Some(number),
            is_doubtful: false,
            unconfirmed: Some(place),
            unnamed: std::mem::take(&mut state.unnamed),
        };
        self.target.annex_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(place)
    }

    fn write(&self, file: &File, path: &Path, offset: u64, bytes: &[u8], is_named: bool) -> io::Result<()> {
        durable::append_synced(file, path, offset, bytes)?;
        // Another process may have made the file and ended before it brought the name to the medium.
        if is_named { Ok(()) } else { durable::sync_dir(&self.dir) }
    }

    fn retract(&self, family: AnnexFamily, place: AnnexPlace) -> Result<(), Error> {
        let mut families = self.families();
        let path = self.dir.join(file_name(family, place.file));
        let failed = |error| Error::io("cut", &path, error);
        if path.exists() {
            let file = open_to_append(&path)?;
            if file.metadata().map_err(failed)?.len() == place.offset.saturating_add(place.bytes) {
                durable::cut(&file, &path, place.offset).map_err(failed)?;
            }
        }
        if let Some(state) = families.get_mut(&family).filter(|state| state.unconfirmed == Some(place)) {
            state.unconfirmed = None;
        }
        self.measure();
        Ok(())
    }

    fn remove_unnamed(
        &self,
        family: AnnexFamily,
        closed: &[u32],
        named: &BTreeSet<u32>,
        kept: Duration,
    ) -> Result<u64, Error> {
        let mut families = self.families();
        let state = families.entry(family).or_default();
        let now = Instant::now();
        let unnamed: BTreeSet<u32> = closed.iter().copied().filter(|file| !named.contains(file)).collect();
        state.unnamed.retain(|file, _| unnamed.contains(file));
        let mut freed = 0;
        for file in unnamed {
            let since = *state.unnamed.entry(file).or_insert(now);
            if now.duration_since(since) < kept {
                continue;
            }
            let path = self.dir.join(file_name(family, file));
            let bytes = layout::size_of(&path)?;
            match durable::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, error)),
                _ => freed += bytes,
            }
            state.unnamed.remove(&file);
        }
        self.measure();
        Ok(freed)
    }
}

/// Opens a file for one append at a time, whichever process it is: one whose operation was given up may still be at it.
fn open_to_append(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = options.map_err(|error| of_write(path, error))?;
    file.lock().map_err(|error| Error::io("lock", path, error))?;
    Ok(file)
}

/// Lists the files of a directory that are annexes by their names; none when it is missing.
fn names_and_sizes(dir: &Path) -> Result<Vec<(String, u64)>, Error> {
    let failed = |error| Error::io("list", dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A file may be removed between the two looks.
        if let (Some(_), Ok(metadata)) = (parse_name(&name), entry.metadata()) {
            found.push((name, metadata.len()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_family_and_number_and_nothing_else_is_one() {
        let family = AnnexFamily::new("flushed");
        for number in [1, 99_999_999, u32::MAX] {
            assert_eq!(parse_name(&file_name(family, number)), Some(("flushed", number)));
        }
        for other in
            ["flushed", "flushed-1", "flushed-00000000", "-00000001", "../x-00000001", "a-99999999999", "a-+0000001"]
        {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_is_left_when_it_is_full_or_doubtful() {
        assert_eq!(next_file(None, 1, true), Some(1));
        assert_eq!(next_file(Some((3, 0)), u64::MAX, true), Some(3), "an empty file is as good as a new one");
        assert_eq!(next_file(Some((3, 10)), 10, true), Some(4));
        assert_eq!(next_file(Some((3, FILE_BYTES_MAX - 10)), 10, false), Some(3));
        assert_eq!(next_file(Some((3, FILE_BYTES_MAX - 10)), 11, false), Some(4));
        assert_eq!(next_file(Some((u32::MAX, FILE_BYTES_MAX)), 1, false), None);
    }
}
