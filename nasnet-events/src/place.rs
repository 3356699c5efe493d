//! Where a unit test keeps its databases.

use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{DbManager, ManualClock, Options};

/// Databases in a directory of their own, and a clock that stands still until it is told otherwise.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: ManualClock,
    pub(crate) manager: DbManager,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(1_795_000_000_000);
        let mut options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
        options = options.schemas(crate::schema_sets());
        options.clock = Arc::new(clock.clone());
        // Long enough for the slowest machine.
        options.read_deadline = Duration::from_secs(60);
        options.write_deadline = Duration::from_secs(60);
        let manager = DbManager::open(options).await.unwrap();
        Self { dir, clock, manager }
    }
}
