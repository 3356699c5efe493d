//! The two directories of a fleet: whose the data directory is, and which run directory belongs to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access, statfs};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::dir_lock::DirLock;
use crate::durable;
use crate::error::Error;
use crate::layout::{self, Layout, UNFINISHED};
use crate::options::Options;

/// The marker that makes a directory a data directory.
const MARKER: &str = "nasnet.lock";

/// The version of the marker's form.
const FORMAT: u32 = 1;

/// Magic numbers of file systems in memory (`statfs(2)`).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    format: u32,
    pub(crate) fleet_id: Ulid,
    run_dir: PathBuf,
    /// The uid of `system.db`, in hexadecimal.
    system_uid: String,
    /// Whether `system.db` was created; from then on it must exist.
    ready: bool,
}

impl Marker {
    pub(crate) fn system_uid(&self) -> Option<[u8; 16]> {
        u128::from_str_radix(&self.system_uid, 16).ok().map(u128::to_be_bytes)
    }
}

/// The directories of a fleet, held against other use while this value lives.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) layout: Layout,
    pub(crate) marker: Marker,
    pub(crate) run_dir_is_tmpfs: bool,
    /// The bytes of the marker if entering wrote it.
    pub(crate) marker_written: Option<u64>,
    /// Shared by all that use the data directory; alone while the marker changes.
    lock: DirLock,
    alone: bool,
}

impl Home {
    /// Finds or founds the fleet of a data directory. Refuses before it changes anything.
    pub(crate) async fn enter(
        options: &Options,
        new_id: impl Fn() -> Result<(Ulid, [u8; 16]), Error>,
    ) -> Result<Self, Error> {
        let data_dir = absolute(&options.data_dir)?;
        let requested = options.run_dir.as_deref().map(absolute).transpose()?;
        examine(&data_dir)?;
        make_dir(&data_dir)?;
        let shared = DirLock::shared(&data_dir, options.lock_timeout).await?;
        if let Some(marker) = read_marker(&data_dir)? {
            match &requested {
                // No need to wait for others to find that out.
                Some(other) if *other != marker.run_dir && marker.run_dir.exists() => {
                    return Err(mismatch(&data_dir, &marker, other));
                }
                Some(other) if *other != marker.run_dir => {}
                _ if marker.ready && prepare_run_dir(&marker.run_dir).is_ok() => {
                    return Self::at(data_dir, marker, shared, false);
                }
                _ => {}
            }
        }
        drop(shared);
        // The fleet is new, unfinished, or needs another run directory: nobody else may be using it meanwhile.
        let alone = DirLock::exclusive(&data_dir, options.lock_timeout).await;
        examine(&data_dir)?;
        let found = read_marker(&data_dir)?;
        let alone = match (alone, &found, &requested) {
            (Ok(alone), _, _) => alone,
            (Err(Error::InUse { .. }), Some(marker), Some(requested)) if marker.run_dir != *requested => {
                return Err(mismatch(&data_dir, marker, requested));
            }
            (Err(error), _, _) => return Err(error),
        };
        let marker = match found {
            None => {
                let (fleet_id, system_uid) = new_id()?;
                let run_dir = choose_run_dir(requested, fleet_id)?;
                let system_uid = format!("{:032x}", u128::from_be_bytes(system_uid));
                let marker = Marker { format: FORMAT, fleet_id, run_dir, system_uid, ready: false };
                write_marker(&data_dir, &marker)?;
                marker
            }
            Some(marker) => move_run_dir(&data_dir, marker, requested)?,
        };
        Self::at(data_dir, marker, alone, true)
    }

    /// Enters a fleet that was founded before; changes nothing.
    pub(crate) async fn enter_existing(options: &Options) -> Result<Self, Error> {
        let data_dir = absolute(&options.data_dir)?;
        examine(&data_dir)?;
        let Some(marker) = read_marker(&data_dir)?.filter(|marker| marker.ready) else {
            return Err(Error::MissingDatabase { path: data_dir.join("system.db") });
        };
        prepare_run_dir(&marker.run_dir)?;
        let shared = DirLock::shared(&data_dir, options.lock_timeout).await?;
        Self::at(data_dir, marker, shared, false)
    }

    fn at(data_dir: PathBuf, marker: Marker, lock: DirLock, alone: bool) -> Result<Self, Error> {
        let run_dir = marker.run_dir.clone();
        let run_dir_is_tmpfs = is_in_memory(&run_dir)?;
        if !run_dir_is_tmpfs {
            tracing::warn!(run_dir = %run_dir.display(), "run directory is not in memory: its databases will wear the medium");
        }
        let marker_written = None;
        Ok(Self { layout: Layout { data_dir, run_dir }, marker, run_dir_is_tmpfs, marker_written, lock, alone })
    }

    /// Tells whether `system.db` may have to be created.
    pub(crate) fn is_unfinished(&self) -> bool {
        !self.marker.ready
    }

    /// Records that `system.db` exists.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        let ready = Marker { ready: true, ..self.marker.clone() };
        write_marker(&self.layout.data_dir, &ready)?;
        // Founding writes it twice.
        let size = layout::size_of(&self.layout.data_dir.join(MARKER))?;
        (self.marker, self.marker_written) = (ready, Some(2 * size));
        Ok(())
    }

    /// Lets others in, once nothing is left to change.
    pub(crate) async fn share(self, options: &Options) -> Result<Self, Error> {
        if !self.alone {
            return Ok(self);
        }
        let Self { layout, marker, run_dir_is_tmpfs, marker_written, lock, .. } = self;
        drop(lock);
        let lock = DirLock::shared(&layout.data_dir, options.lock_timeout).await?;
        if read_marker(&layout.data_dir)?.as_ref() != Some(&marker) {
            return Err(Error::InUse { path: layout.data_dir });
        }
        Ok(Self { layout, marker, run_dir_is_tmpfs, marker_written, lock, alone: false })
    }
}

fn absolute(path: impl AsRef<Path>) -> Result<PathBuf, Error> {
    let path = path.as_ref();
    let absolute = std::path::absolute(path).map_err(|error| Error::io("resolve", path, error))?;
    // Two spellings of one directory are one directory, as far as it exists.
    Ok(fs::canonicalize(&absolute).unwrap_or(absolute))
}

/// Refuses a directory that is not ours or cannot be written, without changing it.
fn examine(data_dir: &Path) -> Result<(), Error> {
    let unusable = |source: io::Error| Error::NotWritable { path: data_dir.to_owned(), source: Arc::new(source) };
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(error)),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry.map_err(unusable)?.file_name();
        let name = name.to_string_lossy();
        if name == MARKER {
            foreign = None;
            break;
        }
        // A fresh file system has lost+found; the others are left by a creation that was interrupted.
        if name != "lost+found" && !name.starts_with(UNFINISHED) {
            foreign = Some(name.into_owned());
        }
    }
    if let Some(found) = foreign {
        return Err(Error::ForeignDirectory { path: data_dir.to_owned(), found });
    }
    access(data_dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| unusable(errno.into()))
}

/// Creates a directory only its owner may enter, and its parents.
fn make_dir(path: &Path) -> Result<(), Error> {
    durable::create_dir_all(path, durable::Access::Owner)
        .map_err(|source| Error::NotWritable { path: path.to_owned(), source: Arc::new(source) })
}

fn read_marker(data_dir: &Path) -> Result<Option<Marker>, Error> {
    let path = data_dir.join(MARKER);
    let bad = |detail: String| Error::BadMarker { path: path.clone(), detail };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let marker: Marker = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if marker.format != FORMAT {
        return Err(bad(format!("it has format {}, this program knows {FORMAT}", marker.format)));
    }
    if marker.system_uid().is_none() {
        return Err(bad("its system_uid is not hexadecimal".to_owned()));
    }
    Ok(Some(marker))
}

/// Replaces the marker as a whole. The caller holds the data directory alone.
fn write_marker(data_dir: &Path, marker: &Marker) -> Result<(), Error> {
    let path = data_dir.join(MARKER);
    let new = data_dir.join(format!("{UNFINISHED}marker"));
    let text = serde_json::to_vec_pretty(marker)
        .map_err(|error| Error::BadMarker { path: path.clone(), detail: error.to_string() })?;
    let written = durable::write_file(&new, &text, durable::Access::Umask).and_then(|()| durable::rename(&new, &path));
    written.map_err(|error| Error::io("write", &path, error))?;
    layout::sync(data_dir)
}

fn mismatch(data_dir: &Path, marker: &Marker, requested: &Path) -> Error {
    Error::RunDirMismatch {
        data_dir: data_dir.to_owned(),
        recorded: marker.run_dir.clone(),
        requested: requested.to_owned(),
    }
}

/// Gives the fleet another run directory, which is possible once the recorded one is gone (a reboot clears it): while
/// it exists, it may hold events that are nowhere else.
fn move_run_dir(data_dir: &Path, marker: Marker, requested: Option<PathBuf>) -> Result<Marker, Error> {
    match requested {
        Some(requested) if requested != marker.run_dir => {
            if marker.run_dir.exists() {
                return Err(mismatch(data_dir, &marker, &requested));
            }
            let run_dir = choose_run_dir(Some(requested), marker.fleet_id)?;
            let moved = Marker { run_dir, ..marker };
            write_marker(data_dir, &moved)?;
            Ok(moved)
        }
        Some(requested) => prepare_run_dir(&requested).map(|()| marker),
        None if prepare_run_dir(&marker.run_dir).is_ok() => Ok(marker),
        None => {
            let run_dir = choose_run_dir(None, marker.fleet_id)?;
            tracing::warn!(recorded = %marker.run_dir.display(), now = %run_dir.display(), "run directory moved");
            let moved = Marker { run_dir, ..marker };
            write_marker(data_dir, &moved)?;
            Ok(moved)
        }
    }
}

/// Takes the requested run directory, or a folder of the fleet in the first place that takes it.
fn choose_run_dir(requested: Option<PathBuf>, fleet_id: Ulid) -> Result<PathBuf, Error> {
    if let Some(dir) = requested {
        prepare_run_dir(&dir)?;
        return absolute(&dir);
    }
    let folder = format!("nasnet-{}", fleet_id.to_string().to_ascii_lowercase());
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    for base in session.into_iter().chain([PathBuf::from("/dev/shm")]) {
        let dir = base.join(&folder);
        if base.is_dir() && prepare_run_dir(&dir).is_ok() {
            return absolute(&dir);
        }
    }
    let dir = std::env::temp_dir().join(&folder);
    prepare_run_dir(&dir)?;
    absolute(&dir)
}

/// Creates what is missing of a run directory.
pub(crate) fn prepare_run_dir(run_dir: &Path) -> Result<(), Error> {
    for dir in [run_dir, &run_dir.join("locks"), &run_dir.join("sessions")] {
        make_dir(dir)?;
        access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| Error::NotWritable { path: dir.to_owned(), source: Arc::new(errno.into()) })?;
    }
    Ok(())
}

/// Asks the kernel whether a directory is on a file system in memory.
fn is_in_memory(dir: &Path) -> Result<bool, Error> {
    let facts = statfs(dir).map_err(|errno| Error::io("examine the file system of", dir, errno.into()))?;
    // The width and sign of the field differ between architectures; the magic number is its low 32 bits.
    #[allow(clippy::useless_conversion, reason = "the field is narrower on 32-bit machines")]
    let magic = u64::from_ne_bytes(i64::from(facts.f_type).to_ne_bytes()) & 0xffff_ffff;
    Ok(IN_MEMORY.contains(&magic))
}
