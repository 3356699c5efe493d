//! Annexes on their way into a backup, out of one, or beside a database that takes the place of another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{names_and_sizes, parse_name};
use crate::backup::copy::{self, hex, of_write};
use crate::durable::{self, Access};
use crate::error::Error;
use crate::id::Scope;
use crate::layout;

/// One annex of a backed-up database: what its file held when it was copied, which may be more than the database names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AnnexFile {
    /// Its name beside the database.
    pub name: String,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

impl AnnexFile {
    /// Tells whether the name is one an annex can have.
    pub(crate) fn has_good_name(&self) -> bool {
        parse_name(&self.name).is_some()
    }

    /// Names the file in the directory of a backup.
    pub(crate) fn file_name(&self, scope: &Scope) -> String {
        in_backup(scope, &self.name)
    }
}

fn in_backup(scope: &Scope, name: &str) -> String {
    match scope {
        Scope::System => format!("system.annex-{name}"),
        Scope::Router(id) => format!("router-{id}.annex-{name}"),
    }
}

/// The annexes of a database, open: one that is removed meanwhile can still be read.
#[derive(Debug)]
pub(crate) struct HeldAnnexes {
    dir: PathBuf,
    files: BTreeMap<String, File>,
}

impl HeldAnnexes {
    /// Opens the annexes of a database. A snapshot taken after that names no file that was removed before.
    pub(crate) fn of(database: &Path) -> Result<Self, Error> {
        let mut held = Self { dir: layout::annex_of(database), files: BTreeMap::new() };
        held.add_new()?;
        Ok(held)
    }

    /// Opens those that came meanwhile. Whatever a snapshot names that was taken before is among them.
    pub(crate) fn add_new(&mut self) -> Result<(), Error> {
        for (name, _) in names_and_sizes(&self.dir)? {
            if self.files.contains_key(&name) {
                continue;
            }
            let path = self.dir.join(&name);
            match File::open(&path) {
                Ok(file) => {
                    self.files.insert(name, file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("open", &path, error)),
            }
        }
        Ok(())
    }

    /// Copies them into the directory of a backup.
    pub(crate) fn copy_to(self, workshop: &Path, scope: &Scope) -> Result<Vec<AnnexFile>, Error> {
        self.copy(|name| workshop.join(in_backup(scope, name)))
    }

    /// Copies them into a directory beside an archived database (`x.db.zst`, `x.annex/`) and reads them back; returns their
    /// bytes.
    pub(crate) fn archive(self, archived: &Path) -> Result<u64, Error> {
        if self.files.is_empty() {
            return Ok(0);
        }
        let dir = archived.with_extension("").with_extension("annex");
        layout::create_dir(&dir)?;
        let copied = self.copy(|name| dir.join(name))?;
        for annex in &copied {
            let path = dir.join(&annex.name);
            if copy::digest(&path)? != (annex.sha256.clone(), annex.bytes) {
                return Err(Error::BadBackup { path, detail: "it does not read back as written".to_owned() });
            }
        }
        layout::sync(&dir)?;
        Ok(copied.iter().map(|annex| annex.bytes).sum())
    }

    fn copy(self, to: impl Fn(&str) -> PathBuf) -> Result<Vec<AnnexFile>, Error> {
        let mut copied = Vec::new();
        for (name, mut file) in self.files {
            let path = self.dir.join(&name);
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(|error| Error::io("read", &path, error))?;
            let to = to(&name);
            durable::write_file(&to, &bytes, Access::Owner).map_err(|error| of_write(&to, error))?;
            let sha256 = hex(Sha256::new_with_prefix(&bytes));
            copied.push(AnnexFile { name, sha256, bytes: bytes.len() as u64 });
        }
        Ok(copied)
    }
}

/// Compares the annexes in the directory of a backup with what its manifest says.
pub(crate) fn verify(dir: &Path, scope: &Scope, annexes: &[AnnexFile]) -> Result<(), Error> {
    for annex in annexes {
        let path = dir.join(annex.file_name(scope));
        let bad = |detail: String| Error::BadBackup { path: path.clone(), detail };
        if !path.exists() {
            return Err(bad("it is missing".to_owned()));
        }
        let (sha256, bytes) = copy::digest(&path)?;
        if (&sha256, bytes) != (&annex.sha256, annex.bytes) {
            return Err(bad(format!("it has {bytes} bytes and digest {sha256}, its manifest says otherwise")));
        }
    }
    Ok(())
}

/// Puts the annexes of a backup beside a database that is being built; returns their bytes.
pub(crate) fn put(from: &Path, scope: &Scope, annexes: &[AnnexFile], database: &Path) -> Result<u64, Error> {
    let sources = annexes.iter().map(|annex| (from.join(annex.file_name(scope)), annex.name.clone()));
    let bytes = write_all(sources.collect(), database)?;
    // What was checked before may have been changed since.
    let dir = layout::annex_of(database);
    for annex in annexes {
        let (sha256, found) = copy::digest(&dir.join(&annex.name))?;
        if (&sha256, found) != (&annex.sha256, annex.bytes) {
            let path = from.join(annex.file_name(scope));
            return Err(Error::BadBackup { path, detail: "it changed while it was copied".to_owned() });
        }
    }
    Ok(bytes)
}

/// Copies the annexes of a damaged database beside the one that is to take its place; returns their bytes. Rows that can
/// still be read name them.
pub(crate) fn rescue(damaged: &Path, database: &Path) -> Result<u64, Error> {
    let dir = layout::annex_of(damaged);
    let sources = names_and_sizes(&dir)?.into_iter().map(|(name, _)| (dir.join(&name), name));
    write_all(sources.collect(), database)
}

fn write_all(sources: Vec<(PathBuf, String)>, database: &Path) -> Result<u64, Error> {
    let mut total = 0;
    if sources.is_empty() {
        return Ok(total);
    }
    let dir = layout::annex_of(database);
    layout::create_dir(&dir)?;
    for (path, name) in sources {
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let to = dir.join(&name);
        durable::write_file(&to, &bytes, Access::Owner).map_err(|error| of_write(&to, error))?;
        total += bytes.len() as u64;
    }
    layout::sync(&dir)?;
    Ok(total)
}
