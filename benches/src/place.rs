//! Where measurements run: a directory on disk and one on tmpfs.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A disk directory and a tmpfs directory that vanish with it.
#[derive(Debug)]
pub struct Place {
    /// Stands for flash.
    pub disk: TempDir,
    /// Stands for the run directory.
    pub tmpfs: TempDir,
}

impl Place {
    /// Makes both; the disk directory below `disk` or the system's temporary directory.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(disk: Option<&Path>) -> io::Result<Self> {
        let disk = disk.map_or_else(std::env::temp_dir, PathBuf::from);
        let shm = Path::new("/dev/shm");
        let tmpfs = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
        Ok(Self { disk: tempfile::tempdir_in(disk)?, tmpfs })
    }
}
