//! Room on the file system of the data directory: how growth stops before it is used up, and what is kept for then.
//!
//! SQLite cannot even delete on a full medium: the log of the deletion needs room. So two things are kept back. Growth
//! stops while there is still room for a full log of each kind ([`Space::is_tight`]): then only critical operations
//! get new pages, while deletions, updates in place and checkpoints go on. And where others fill the same file
//! system, a ballast file is removed to make room, and written again once there is plenty.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::statvfs;

use crate::durable::{self, Access};

/// The name of the ballast file.
pub(crate) const BALLAST: &str = ".reserve";

/// The ballast is written only when less than this many times its size is free: a roomy disk needs none yet.
const SCARCE: u64 = 16;

/// How long after the ballast was removed or could not be written the next attempt comes.
const PAUSE: Duration = Duration::from_millis(200);

/// The room of one data directory.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    /// Growth stops below this many free bytes.
    low_water: u64,
    ballast_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` until looked for.
    has_ballast: Option<bool>,
    not_before: Option<Instant>,
}

impl Space {
    pub(crate) fn new(dir: &Path, log_bytes: u64, ballast_bytes: u64) -> Self {
        let state = Mutex::new(State { has_ballast: None, not_before: None });
        Self { dir: dir.to_owned(), low_water: log_bytes * 2, ballast_bytes, state }
    }

    fn free(&self) -> u64 {
        // A file system that does not say has room; what it refuses is still an error of its own.
        statvfs(&self.dir).map_or(u64::MAX, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// Tells whether only critical operations may take new pages.
    pub(crate) fn is_tight(&self) -> bool {
        self.free() < self.low_water
    }

    /// Removes the ballast when there is no room; returns whether it did.
    pub(crate) fn relieve(&self) -> bool {
        if self.free() >= self.low_water / 4 {
            return false;
        }
        let mut state = self.state();
        state.not_before = Some(Instant::now() + PAUSE);
        let path = self.dir.join(BALLAST);
        let removed = durable::remove_file(&path).is_ok();
        state.has_ballast = Some(false);
        if removed {
            tracing::warn!(dir = %self.dir.display(), "no space left: the reserve is in use");
        }
        removed
    }

    /// Writes the ballast when it is missing, room is scarce and there is enough of it; returns the bytes written.
    pub(crate) fn restock(&self) -> u64 {
        if self.ballast_bytes == 0 {
            return 0;
        }
        let mut state = self.state();
        if state.has_ballast == Some(true) || state.not_before.is_some_and(|at| Instant::now() < at) {
            return 0;
        }
        let path = self.dir.join(BALLAST);
        if state.has_ballast.is_none() && std::fs::metadata(&path).is_ok_and(|found| found.len() == self.ballast_bytes)
        {
            state.has_ballast = Some(true);
            return 0;
        }
        let free = self.free();
        let enough = self.ballast_bytes + 2 * self.low_water;
        if free < enough || free > self.ballast_bytes.saturating_mul(SCARCE) {
            state.not_before = Some(Instant::now() + PAUSE);
            return 0;
        }
        let written = durable::write_file(&path, &incompressible(self.ballast_bytes), Access::Owner);
        state.has_ballast = Some(written.is_ok());
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "the reserve could not be written");
            durable::remove_file(&path).ok();
            state.not_before = Some(Instant::now() + PAUSE);
            return 0;
        }
        self.ballast_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a compressing file system cannot make smaller.
fn incompressible(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut out: Vec<u8> = words.collect();
    out.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roomy_disk_gets_no_ballast_and_a_full_one_loses_it() {
        let dir = tempfile::tempdir().expect("directory");
        let ballast = dir.path().join(BALLAST);
        let roomy = Space::new(dir.path(), 4096, 10_000);
        assert!(!roomy.is_tight());
        roomy.restock();
        assert!(!ballast.exists());
        let free = roomy.free();
        std::fs::write(&ballast, b"x").expect("write");
        let full = Space::new(dir.path(), free * 3, 10);
        assert!(full.is_tight());
        assert!(full.relieve());
        assert!(!full.relieve(), "there is nothing left to remove");
        assert!(!ballast.exists());
    }

    #[test]
    fn the_ballast_does_not_compress_to_nothing() {
        let bytes = incompressible(10_001);
        assert_eq!(bytes.len(), 10_001);
        assert!(zstd::bulk::compress(&bytes, 3).expect("compress").len() > 9_900);
    }
}
