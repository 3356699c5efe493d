//! Keeping a simulated router in a file.
//!
//! The first line names the format, its version and the SHA-256 of the second line, which holds everything else. The
//! file is written beside its place, synced and renamed: after a crash the old or the new one is there, never half.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::SimError;
use super::profile::SimProfile;
use super::sim::Sim;
use super::store::Store;

const FORMAT: &str = "nasnet-simulator";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    sha256: String,
}

#[derive(Serialize)]
struct BodyOut<'a> {
    profile: &'a SimProfile,
    store: &'a Store,
}

#[derive(Deserialize)]
struct BodyIn {
    profile: SimProfile,
    store: Store,
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sim {
    /// Writes profile and configuration to a file only its owner can read: it holds keys and passwords.
    ///
    /// # Errors
    ///
    /// [`SimError::File`] when the file cannot be written; the one that was there before is intact.
    pub fn save(&self, path: &Path) -> Result<(), SimError> {
        let failed = |operation: &'static str| {
            move |source: std::io::Error| SimError::File { operation, path: path.to_owned(), source }
        };
        let encoded = |error: serde_json::Error| failed("encoding")(error.into());
        let body = serde_json::to_string(&BodyOut { profile: &self.profile, store: &self.store }).map_err(encoded)?;
        let header = Header { format: FORMAT.to_owned(), version: VERSION, sha256: digest(&body) };
        let header = serde_json::to_string(&header).map_err(encoded)?;
        let temporary = temporary_of(path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary).map_err(failed("creation"))?;
        file.write_all(format!("{header}\n{body}\n").as_bytes()).map_err(failed("writing"))?;
        file.sync_all().map_err(failed("syncing"))?;
        fs::rename(&temporary, path).map_err(failed("renaming"))?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing the directory"))
    }

    /// Reads a saved router; `None` when there is no such file.
    ///
    /// # Errors
    ///
    /// [`SimError::Damaged`] when the file is not one or was changed, [`SimError::TooNew`] when a later version wrote
    /// it, [`SimError::File`] when it cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>, SimError> {
        let damaged = |cause: String| SimError::Damaged { path: path.to_owned(), cause };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SimError::File { operation: "reading", path: path.to_owned(), source }),
        };
        let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        let (header, body) = text.split_once('\n').ok_or_else(|| damaged("it has no header line".to_owned()))?;
        let header: Header = serde_json::from_str(header).map_err(|error| damaged(format!("header: {error}")))?;
        if header.format != FORMAT {
            return Err(damaged(format!("its format is {:?}", header.format)));
        }
        if header.version > VERSION {
            return Err(SimError::TooNew { path: path.to_owned(), found: header.version, supported: VERSION });
        }
        let body = body.strip_suffix('\n').ok_or_else(|| damaged("it is cut off".to_owned()))?;
        if digest(body) != header.sha256 {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        let body: BodyIn = serde_json::from_str(body).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Self::with_store(body.profile, body.store)))
    }
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}
