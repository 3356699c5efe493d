//! The directory of the cold tier: is it there, what is in it, and how frames are added to it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nasnet_dbmanager::{DbManager, Scope};
use ulid::Ulid;

use crate::chain::Digest;
use crate::cold::frame;
use crate::cold::index::{Index, Place};
use crate::cold::month::FileName;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::merge::{Range, Slice};
use crate::options::ColdOptions;
use crate::position::Position;
use crate::query::Query;
use crate::read::PAGE_EVENTS;

const MARKER: &str = ".nasnet-cold";

/// Makes a directory usable as the cold tier of this fleet: creates it when it is missing and writes its marker.
/// An act of an administrator, once per medium, so that an empty mount point is never taken for one.
///
/// # Errors
/// [`Error::ColdAbsent`] when the directory belongs to another fleet, [`Error::Io`] when it cannot be written.
pub fn prepare_cold_dir(manager: &DbManager, dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
    let path = dir.join(MARKER);
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == manager.fleet_id().to_string() => return Ok(()),
        Ok(found) => return Err(absent(dir, format!("it belongs to fleet {}", found.trim()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", path, error)),
    }
    let write = || {
        let mut file = File::create_new(&path)?;
        writeln!(file, "{}", manager.fleet_id())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| Error::io("write", &path, error))
}

fn absent(dir: &Path, why: impl Into<String>) -> Error {
    Error::ColdAbsent { dir: dir.to_owned(), why: why.into() }
}

/// Whether the cold tier can be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColdState {
    /// There is none.
    Off,
    /// It is not there, and why. A normal state: archiving catches up when it returns.
    Absent(String),
    /// It is there.
    Present,
}

/// Sums over the cold tier.
#[derive(Debug, Default)]
pub(crate) struct ColdTotals {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) first: Option<Position>,
    pub(crate) last: Option<Position>,
}

/// What an append to the cold tier added.
#[derive(Debug, Default)]
pub(crate) struct Archived {
    pub(crate) frames: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

/// The directory, and what is known of its files.
#[derive(Debug)]
pub(crate) struct ColdDir {
    dir: PathBuf,
    data_dir: PathBuf,
    allow_same_device: bool,
    fleet_id: Ulid,
    indexes: HashMap<PathBuf, Index>,
}

impl ColdDir {
    pub(crate) fn new(options: &ColdOptions, manager: &DbManager) -> Self {
        Self {
            dir: options.dir.clone(),
            data_dir: manager.data_dir().to_owned(),
            allow_same_device: options.allow_same_device,
            fleet_id: manager.fleet_id(),
            indexes: HashMap::new(),
        }
    }

    /// Whether the directory can be used now: asked anew each time, for a stick comes and goes.
    pub(crate) fn state(&self) -> ColdState {
        match self.check() {
            Ok(()) => ColdState::Present,
            Err(Error::ColdAbsent { why, .. }) => ColdState::Absent(why),
            Err(error) => ColdState::Absent(error.to_string()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let marker = std::fs::read_to_string(self.dir.join(MARKER))
            .map_err(|error| absent(&self.dir, format!("no readable {MARKER}: {error}")))?;
        if marker.trim() != self.fleet_id.to_string() {
            return Err(absent(&self.dir, format!("it belongs to fleet {}", marker.trim())));
        }
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
        let here = device(&self.dir).map_err(|error| absent(&self.dir, error.to_string()))?;
        let data = device(&self.data_dir).map_err(|error| Error::io("examine", &self.data_dir, error))?;
        if here == data && !self.allow_same_device {
            return Err(absent(&self.dir, "it is on the device of the data directory"));
        }
        Ok(())
    }

    fn scope_dir(&self, scope: &Scope) -> PathBuf {
        self.dir.join(scope.as_str())
    }

    /// Files of a scope in the order of their frames.
    fn files(&self, scope: &Scope) -> Result<Vec<(FileName, PathBuf)>, Error> {
        let dir = self.scope_dir(scope);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", dir, error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("read", &dir, error))?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<FileName>().ok());
            files.extend(name.map(|name| (name, entry.path())));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Scopes that have files, also those of routers that are gone.
    pub(crate) fn scopes(&self) -> Result<Vec<Scope>, Error> {
        let entries = std::fs::read_dir(&self.dir).map_err(|error| Error::io("read", &self.dir, error))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut scopes: Vec<Scope> = names.filter_map(|name| name.parse().ok()).collect();
        scopes.sort_unstable();
        Ok(scopes)
    }

    fn index(&mut self, path: &Path) -> Result<(&mut Index, File), Error> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let index = self.indexes.entry(path.to_owned()).or_default();
        index.refresh(path, &file)?;
        Ok((index, file))
    }

    /// Sums over all files that can be read; reading events tells of the others.
    pub(crate) fn totals(&mut self) -> Result<ColdTotals, Error> {
        self.check()?;
        let mut totals = ColdTotals::default();
        for scope in self.scopes()? {
            for (_, path) in self.files(&scope)? {
                let Ok((index, _)) = self.index(&path) else { continue };
                totals.bytes += index.whole_bytes;
                for place in &index.frames {
                    let Place { header, .. } = place;
                    totals.events += header.events;
                    totals.first = Some(totals.first.map_or(header.first, |first| first.min(header.first)));
                    totals.last = totals.last.max(Some(header.last));
                }
            }
        }
        Ok(totals)
    }

    /// Events of a page. Frames outside of the range, the time or the types are not read.
    pub(crate) fn read(&mut self, query: &Query, range: Range) -> Result<Slice, Error> {
        self.check()?;
        let order = query.order;
        let scopes = match &query.scopes {
            Some(scopes) => scopes.clone(),
            None => self.scopes()?,
        };
        let mut slice = Slice::whole(range, order);
        let mut wanted: Vec<(PathBuf, Place)> = Vec::new();
        for scope in scopes {
            for (_, path) in self.files(&scope)? {
                let index = match self.index(&path) {
                    Ok((index, _)) => index,
                    // One file that cannot be read hides no other.
                    Err(error) => {
                        slice.errors.push(error);
                        continue;
                    }
                };
                for (from, to) in &index.damaged {
                    let what = format!("{} at byte {from}", path.display());
                    slice.errors.push(Error::corrupt(what, format!("{} bytes are no frame", to - from)));
                }
                let meets = |place: &&Place| {
                    let header = &place.header;
                    header.last > range.low
                        && header.first <= range.high
                        && query.wants_span(header.wall_ms)
                        && header.kinds.iter().any(|kind| query.wants_kind(kind))
                };
                wanted.extend(index.frames.iter().filter(meets).map(|place| (path.clone(), place.clone())));
            }
        }
        match order {
            Order::Forwards => wanted.sort_by_key(|(_, place)| place.header.first),
            Order::Backwards => wanted.sort_by_key(|(_, place)| std::cmp::Reverse(place.header.last)),
        }
        let mut wanted = wanted.into_iter().peekable();
        while let Some((path, place)) = wanted.next() {
            let file = File::open(&path).map_err(|error| Error::io("open", &path, error));
            match file.and_then(|file| place.open(&path, &file)) {
                Ok(events) => slice.events.extend(events.into_iter().filter(|event| query.matches(event))),
                Err(error) => slice.errors.push(error),
            }
            // Frames of several scopes overlap: everything before the next one begins is complete.
            if slice.events.len() >= PAGE_EVENTS
                && let Some((_, next)) = wanted.peek()
            {
                let near = match order {
                    Order::Forwards => next.header.first.before(),
                    Order::Backwards => next.header.last,
                };
                let progress = near > range.low && near < range.high;
                if progress {
                    slice.covered = near;
                    break;
                }
            }
        }
        Ok(slice)
    }

    /// The last position a scope has in the cold tier, after cutting what a torn write left. `confirmed` frames have
    /// been read back once: they are never cut, damaged or not.
    pub(crate) fn mount(&mut self, scope: &Scope, confirmed: Position) -> Result<Option<Position>, Error> {
        self.check()?;
        let mut last = None;
        for (_, path) in self.files(scope)? {
            let (index, file) = self.index(&path)?;
            while let Some(place) = index.frames.last()
                && place.header.last > confirmed
                && matches!(place.open(&path, &file), Err(Error::Corrupt { .. }))
            {
                index.drop_last();
            }
            if index.torn_bytes > 0 {
                tracing::warn!(file = %path.display(), bytes = index.torn_bytes, "a torn frame is cut off");
                cut(&path, index.whole_bytes)?;
                index.torn_bytes = 0;
            }
            let newest = index.frames.iter().map(|place| place.header.last).max();
            last = last.max(newest);
        }
        Ok(last)
    }

    /// Where the chain of a scope's archived events stands.
    pub(crate) fn chained(&mut self, scope: &Scope) -> Result<Digest, Error> {
        for (_, path) in self.files(scope)?.into_iter().rev() {
            if let Some(place) = self.index(&path)?.0.frames.last() {
                return Ok(place.header.chain.1);
            }
        }
        Ok(Digest::GENESIS)
    }

    /// Adds a frame, syncs it, reads it back from the medium and compares.
    pub(crate) fn append(&mut self, scope: &Scope, events: &[Recorded]) -> Result<Archived, Error> {
        self.check()?;
        let dir = self.scope_dir(scope);
        let newest = self.files(scope)?.pop().map(|(name, _)| name);
        let path = dir.join(FileName::of(events, newest).to_string());
        let before = self.chained(scope)?;
        let (header, bytes) = frame::encode(events, before)
            .map_err(|error| Error::corrupt(format!("frame for {}", path.display()), error))?;
        if !dir.exists() {
            std::fs::create_dir(&dir)
                .and_then(|()| sync_dir(&self.dir))
                .map_err(|error| Error::io("create", &dir, error))?;
        }
        let is_new = !path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        let offset = file.metadata().map_err(|error| Error::io("examine", &path, error))?.len();
        let mut write = || {
            file.write_all(&bytes)?;
            file.sync_all()?;
            if is_new { sync_dir(&dir) } else { Ok(()) }
        };
        if let Err(error) = write() {
            // Best effort: what stays behind is a torn tail, and the next mount cuts it.
            drop(cut(&path, offset));
            return Err(Error::io("append to", path, error));
        }
        drop_from_cache(&file);
        let (index, file) = self.index(&path)?;
        let stored = index.frames.last().filter(|place| place.offset == offset && place.header == header).cloned();
        let verified = match stored {
            Some(place) => place.open(&path, &file)?.len() == events.len(),
            None => false,
        };
        if !verified {
            drop(cut(&path, offset));
            return Err(Error::corrupt(format!("{} at byte {offset}", path.display()), "the frame does not read back"));
        }
        Ok(Archived { frames: 1, events: header.events, bytes: bytes.len() as u64 })
    }
}

/// Asks the system to read the file from its medium the next time. Only a hint.
fn drop_from_cache(file: &File) {
    #[cfg(target_os = "linux")]
    let _only_a_hint = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn cut(path: &Path, length: u64) -> Result<(), Error> {
    let cut = || {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(length)?;
        file.sync_all()
    };
    cut().map_err(|error| Error::io("cut", path, error))
}
