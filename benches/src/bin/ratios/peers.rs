//! Rounds of the peers that live in a build of their own (`benches/peers`).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::Failure;

/// The program that holds them.
#[derive(Debug, Clone)]
pub(crate) struct Peers(pub(crate) PathBuf);

#[derive(Deserialize)]
struct Round {
    events: u32,
    seconds: f64,
}

impl Peers {
    /// Runs one round on tmpfs and returns the time of one event.
    pub(crate) fn round(&self, engine: &str, batch: usize, events: usize) -> Result<Duration, Failure> {
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
        let output = Command::new(&self.0)
            .arg(engine)
            .arg("--dir")
            .arg(dir.path())
            .args(["--batch", &batch.to_string(), "--events", &events.to_string()])
            .output()?;
        if !output.status.success() {
            return Err(format!("{engine}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        // Some of them talk; the last line is ours.
        let line = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let round: Round = serde_json::from_slice(line)?;
        Ok(Duration::from_secs_f64(round.seconds / f64::from(round.events)))
    }
}
