//! The names of directories and files on disk, and the few steps that make a file appear whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable::{self, Access};
use crate::error::Error;
use crate::id::RouterId;
use crate::schema::FileKind;

/// Prefix of names that only an unfinished creation leaves behind.
pub(crate) const UNFINISHED: &str = ".nasnet-new-";

/// Where everything of one fleet lives.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
}

impl Layout {
    /// Names the file of a kind that exists once.
    pub(crate) fn single(&self, kind: FileKind) -> PathBuf {
        let dir = if kind == FileKind::System { &self.data_dir } else { &self.run_dir };
        dir.join(format!("{}.db", kind.as_str()))
    }

    /// Names the directory of the files new router databases are copied from.
    pub(crate) fn templates(&self) -> PathBuf {
        self.run_dir.join("templates")
    }

    pub(crate) fn routers(&self) -> PathBuf {
        self.data_dir.join("routers")
    }

    pub(crate) fn router_dir(&self, id: &RouterId) -> PathBuf {
        self.routers().join(id.as_str())
    }

    /// Names the directory a retired router is kept in.
    pub(crate) fn retired(&self, id: &RouterId) -> PathBuf {
        self.data_dir.join("retired").join(id.as_str())
    }

    /// Names a directory of what a restore replaced.
    pub(crate) fn safety(&self, name: &str) -> PathBuf {
        self.data_dir.join("safety").join(name)
    }

    /// Names a directory of a damaged database.
    pub(crate) fn quarantine(&self, name: &str) -> PathBuf {
        self.data_dir.join("quarantine").join(name)
    }

    pub(crate) fn router_file_name(id: &RouterId) -> String {
        format!("router-{id}.db")
    }

    pub(crate) fn router(&self, id: &RouterId) -> PathBuf {
        self.router_dir(id).join(Self::router_file_name(id))
    }

    /// Names the file of the locks of databases: it lives beside nothing else, and never is a database itself, since
    /// closing any descriptor of a database file drops the locks SQLite holds on it.
    pub(crate) fn locks(&self) -> PathBuf {
        self.run_dir.join("locks").join("databases")
    }
}

/// Names the write-ahead log of a database file.
pub(crate) fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// Names the directory of the annexes of a database file.
pub(crate) fn annex_of(path: &Path) -> PathBuf {
    path.with_extension("annex")
}

/// Refuses a database that is to be moved without its log: closing does not say that its checkpoint failed.
pub(crate) fn without_log(path: &Path) -> Result<(), Error> {
    if size_of(&wal_of(path))? == 0 {
        return Ok(());
    }
    let detail = format!("a log is left beside the new {}", path.display());
    Err(Error::Medium { code: crate::driver::code::IOERR, detail })
}

/// Returns the size of a file, 0 when it is missing.
pub(crate) fn size_of(path: &Path) -> Result<u64, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("examine", path, error)),
    }
}

/// Creates a directory and its parents, durably.
pub(crate) fn create_dir(path: &Path) -> Result<(), Error> {
    durable::create_dir_all(path, Access::Umask)
        .map_err(|source| Error::NotWritable { path: path.to_owned(), source: std::sync::Arc::new(source) })
}

/// Removes a directory tree that may not exist.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match durable::remove_tree(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Brings the content and length of a file, or the entries of a directory, to the medium.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    let synced = if path.is_dir() { durable::sync_dir(path) } else { durable::sync_file(path) };
    synced.map_err(|error| Error::io("sync", path, error))
}

/// Moves a directory into one that may have to be made, and brings both ends to the medium; `false` when the target
/// exists.
pub(crate) fn move_dir(from: &Path, to: &Path) -> Result<bool, Error> {
    let (Some(source), Some(parent)) = (from.parent(), to.parent()) else { return Ok(false) };
    create_dir(parent)?;
    let moved = rename_new(from, to)?;
    sync(parent)?;
    sync(source)?;
    Ok(moved)
}

/// Makes two files or directories change places, in one step.
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<(), Error> {
    durable::exchange(one, other).map_err(|error| Error::io("exchange", one, error))
}

/// Returns device and inode of a file, `None` when it is missing.
pub(crate) fn place_of(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Adds up the sizes of the files below a directory.
pub(crate) fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// Renames without ever replacing; `false` when the target exists.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool, Error> {
    match durable::rename_new(from, to) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(false)
        }
        Err(error) => Err(Error::io("rename", from, error)),
    }
}
