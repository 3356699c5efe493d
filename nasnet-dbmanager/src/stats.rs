//! What a fleet holds open and has written, for people and metrics.

use std::path::PathBuf;

use crate::id::RouterId;
use crate::vfs::Written;

/// A look at a fleet in this process.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// The bound on open router databases.
    pub max_open: usize,
    /// The databases open now, those that exist once first.
    pub open: Vec<DatabaseStats>,
    /// Bytes that all databases on flash may have together.
    pub flash_bytes_max: u64,
    /// Whether they would fit if each had the bytes it may have. With too many routers the least that each gets is more
    /// than there is.
    pub fits: bool,
}

impl Stats {
    /// Returns the number of router databases open now.
    pub fn open_routers(&self) -> usize {
        self.open.iter().filter(|database| database.router.is_some()).count()
    }

    /// Returns the bytes written to open databases on flash.
    pub fn flash_bytes(&self) -> u64 {
        self.open.iter().filter(|database| database.on_flash).map(|database| database.written.bytes).sum()
    }
}

/// One open database.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DatabaseStats {
    /// The router it belongs to, if it is one's.
    pub router: Option<RouterId>,
    /// The file.
    pub path: PathBuf,
    /// Whether it is on flash.
    pub on_flash: bool,
    /// Handles in use; 0 for databases that are always open.
    pub leases: usize,
    /// Operations waiting for its writer.
    pub queue_depth: usize,
    /// The bytes of the file and its annexes, without its log.
    pub bytes: u64,
    /// The bytes it may have now; none for files in memory. One that was larger already does not grow.
    pub bytes_max: Option<u64>,
    /// What this process wrote to it, its log included.
    pub written: Written,
}
