//! The file operations of this crate outside of SQLite, each through one function.
//!
//! They are the only ones on files that must survive a power cut; with the feature `fault-injection` each reports to
//! the recorder and can be made to fail.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

#[cfg(feature = "fault-injection")]
use crate::vfs::fault::hook::plain as watch;

#[cfg(not(feature = "fault-injection"))]
mod watch {
    //! Nobody watches: every operation is just done.
    use std::io;
    use std::path::Path;

    pub(super) fn write(_: &Path, _: &[u8], done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        done()
    }

    pub(super) fn append(_: &Path, _: u64, bytes: &[u8], done: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        done(bytes)
    }

    pub(super) fn cut(_: &Path, _: u64, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        done()
    }

    pub(super) fn rename<T>(_: &Path, _: &Path, done: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        done()
    }

    pub(super) fn link(_: &Path, _: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        done()
    }

    pub(super) fn exchange(_: &Path, _: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        done()
    }

    macro_rules! just_done {
        ($($name:ident),*) => {
            $(pub(super) fn $name(_: &Path, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
                done()
            })*
        };
    }
    just_done!(read, sync_file, sync_dir, create_dir, remove);
}

/// Who may enter a directory or read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nobody.
    Owner,
    /// Whoever the umask of the process lets.
    Umask,
}

/// Reads a piece of a file.
pub(crate) fn read_exact_at(file: &File, path: &Path, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    watch::read(path, || file.read_exact_at(bytes, offset))
}

/// Writes a whole file, replacing its content, and syncs it. Its name is durable once its directory is synced.
pub(crate) fn write_file(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mode = if access == Access::Owner { 0o600 } else { 0o666 };
    watch::write(path, bytes, || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(bytes)
    })?;
    sync_file(path)
}

/// A file that is written piece by piece under a name of its own, and gets its name once all of it is on the medium.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    part: PathBuf,
    to: PathBuf,
    written: u64,
    finished: bool,
}

impl NewFile {
    /// Begins a file that only its owner may read; nothing may have its name.
    pub(crate) fn create(to: &Path) -> io::Result<Self> {
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        Ok(Self { file, part, to: to.to_owned(), written: 0, finished: false })
    }

    /// Brings what was written to the medium and gives it its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        sync_file(&self.part)?;
        rename_new(&self.part, &self.to)?;
        self.finished = true;
        sync_dir(self.to.parent().unwrap_or(Path::new(".")))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        watch::append(&self.part, self.written, bytes, |bytes| self.file.write_all(bytes))?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: it has the name of nothing.
            remove_file(&self.part).ok();
        }
    }
}

/// Writes at the end of an open file and brings content and length to the medium.
pub(crate) fn append_synced(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    watch::append(path, offset, bytes, |bytes| file.write_all_at(bytes, offset))?;
    watch::sync_file(path, || file.sync_data())
}

/// Cuts an open file.
pub(crate) fn cut(file: &File, path: &Path, size: u64) -> io::Result<()> {
    watch::cut(path, size, || file.set_len(size))
}

/// Brings the content and length of a file to the medium.
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    watch::sync_file(path, || File::open(path)?.sync_all())
}

/// Brings the names in a directory to the medium.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    watch::sync_dir(path, || File::open(path)?.sync_all())
}

/// Creates a directory for everybody the umask lets. Its name is durable once the directory it is in is synced.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    watch::create_dir(path, || DirBuilder::new().create(path))
}

/// Creates a directory and its missing parents, and syncs the directories they are named in.
pub(crate) fn create_dir_all(path: &Path, access: Access) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir_all(parent, access)?;
    }
    let mode = if access == Access::Owner { 0o700 } else { 0o777 };
    match watch::create_dir(path, || DirBuilder::new().mode(mode).create(path)) {
        // Another process was faster, or there is a file, which the next step will find out.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    match sync_dir(parent.unwrap_or(Path::new("."))) {
        // A directory that may be searched but not read; somebody else made it, and keeps it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Renames, replacing what has the name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    watch::rename(from, to, || fs::rename(from, to))
}

/// Renames without ever replacing.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    watch::rename(from, to, || Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?))
}

/// Lets two names change places in one step.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    watch::exchange(one, other, || Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?))
}

/// Gives a file a second name, which must not exist yet.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    watch::link(from, to, || fs::hard_link(from, to))
}

/// Removes a file.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    watch::remove(path, || fs::remove_file(path))
}

/// Removes a directory tree.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { remove_file(&entry.path())? }
    }
    watch::remove(path, || fs::remove_dir(path))
}
