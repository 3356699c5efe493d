//! The cold directory, held open: what is checked once holds for everything done through it.
//!
//! A stick may be taken away between a look at its marker and a write. Files are therefore reached from the descriptor
//! of the directory that was checked and never by their path, which may lead to a folder on flash a moment later.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nasnet_dbmanager::DbManager;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use ulid::Ulid;

use crate::error::Error;
use crate::options::ColdOptions;

pub(crate) const MARKER: &str = ".nasnet-cold";
const LOCK: &str = ".nasnet-cold.lock";

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
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
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

pub(crate) fn absent(dir: &Path, why: impl Into<String>) -> Error {
    Error::ColdAbsent { dir: dir.to_owned(), why: why.into() }
}

/// Where the cold tier should be, and how it is told from a folder on flash.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) dir: PathBuf,
    data_dir: PathBuf,
    allow_same_device: bool,
    fleet_id: Ulid,
}

impl Site {
    pub(crate) fn new(options: &ColdOptions, manager: &DbManager) -> Self {
        Self {
            dir: options.dir.clone(),
            data_dir: manager.data_dir().to_owned(),
            allow_same_device: options.allow_same_device,
            fleet_id: manager.fleet_id(),
        }
    }

    /// Opens the directory and checks that it is the cold tier of this fleet.
    pub(crate) fn open(&self) -> Result<Fence, Error> {
        let dir = &self.dir;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|error| absent(dir, format!("it cannot be opened: {error}")))?;
        let fence = Fence { root: File::from(root), dir: dir.clone() };
        let mut marker = String::new();
        fence
            .open_file(Path::new(MARKER))
            .and_then(|mut file| file.read_to_string(&mut marker))
            .map_err(|error| absent(dir, format!("no readable {MARKER}: {error}")))?;
        if marker.trim() != self.fleet_id.to_string() {
            return Err(absent(dir, format!("it belongs to fleet {}", marker.trim())));
        }
        let here = fence.root.metadata().map_err(|error| absent(dir, error.to_string()))?.dev();
        let data = std::fs::metadata(&self.data_dir).map_err(|error| Error::io("examine", &self.data_dir, error))?;
        if here == data.dev() && !self.allow_same_device {
            return Err(absent(dir, "it is on the device of the data directory"));
        }
        Ok(fence)
    }
}

/// An open cold directory. Paths given to it are relative to it.
#[derive(Debug)]
pub(crate) struct Fence {
    root: File,
    dir: PathBuf,
}

impl Fence {
    /// The path to show to people.
    pub(crate) fn shown(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let opened: OwnedFd =
            rustix::fs::openat(&self.root, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        Ok(File::from(opened))
    }

    /// Opens a file for reading.
    pub(crate) fn open_file(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::RDONLY)
    }

    /// Opens a file to add to its end, a new one if there is none.
    pub(crate) fn open_end(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)
    }

    /// Creates a file that must not exist yet.
    pub(crate) fn create(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    /// Creates a directory unless it is there, durably.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.root.sync_all(),
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY)?.sync_all()
    }

    /// Shortens a file, durably. One of which nothing is left is removed: `zstd` takes an empty file for a damaged one.
    pub(crate) fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        if length == 0 {
            rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?;
            return self.sync_dir(path.parent().unwrap_or(Path::new(".")));
        }
        let file = self.open_with(path, OFlags::WRONLY)?;
        file.set_len(length)?;
        file.sync_all()
    }

    /// The names in a directory, in order; none when there is no such directory.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let dir = match self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in Dir::new(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Keeps other stores from writing while the file lives, `None` when one of them is writing.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let file = self.open_with(Path::new(LOCK), OFlags::RDWR | OFlags::CREATE)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// True for names this crate gives to files beside the directories of the scopes.
    pub(crate) fn is_own(name: &str) -> bool {
        name == MARKER || name == LOCK
    }
}
