//! What a backup says of itself. A manifest is a claim: everything in it is checked against the files before use.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::annex::carry::AnnexFile;
use crate::error::Error;
use crate::id::{RouterId, Scope};

/// The file a manifest is kept in.
pub(crate) const FILE: &str = "manifest.json";

/// The version of the form of a manifest.
pub(crate) const FORMAT: u32 = 1;

/// A manifest larger than this is not one.
const BYTES_MAX: u64 = 16 << 20;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// `system.db` and every active router, each consistent in itself.
    Fleet,
    /// `system.db` alone.
    System,
    /// One router.
    Router(RouterId),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::System => f.write_str("system"),
            Self::Router(id) => write!(f, "router-{id}"),
        }
    }
}

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, text.strip_prefix("router-")) {
            ("fleet", _) => Ok(Self::Fleet),
            ("system", _) => Ok(Self::System),
            (_, Some(id)) => RouterId::parse(id).map(Self::Router),
            _ => Err(Error::Decode { what: "kind of backup", detail: format!("unknown value {text:?}") }),
        }
    }
}

impl Serialize for Which {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Which {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One backup: a directory with a compressed file per database and `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of this form.
    pub format: u32,
    /// The id of the backup.
    pub id: Ulid,
    /// The fleet it was made from.
    pub fleet_id: Ulid,
    /// What it holds.
    pub which: Which,
    /// When it was made, wall clock.
    pub created_ms: i64,
    /// Its databases.
    pub files: Vec<BackupFile>,
    /// The databases that could not be backed up, and why.
    pub failed: Vec<FailedBackup>,
    /// Its directory; not part of what is stored, since backups are moved.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// One database of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BackupFile {
    /// Whose database it is; its file name follows from it and from nothing else.
    pub scope: Scope,
    /// The uid stored in the database, in hexadecimal.
    pub file_uid: String,
    /// The SHA-256 of the compressed file, in hexadecimal.
    pub sha256: String,
    /// The size of the compressed file.
    pub bytes: u64,
    /// The SHA-256 of the database, in hexadecimal.
    pub database_sha256: String,
    /// The size of the database.
    pub database_bytes: u64,
    /// The rows of each table.
    pub rows: BTreeMap<String, u64>,
    /// The version of each schema set.
    pub schemas: BTreeMap<String, u32>,
    /// Its annexes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annexes: Vec<AnnexFile>,
}

/// A database that is missing in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FailedBackup {
    /// Whose database it is.
    pub scope: Scope,
    /// What went wrong.
    pub detail: String,
}

impl BackupFile {
    /// Names the compressed file in the directory of the backup.
    pub(crate) fn file_name(scope: &Scope) -> String {
        match scope {
            Scope::System => "system.db.zst".to_owned(),
            Scope::Router(id) => format!("router-{id}.db.zst"),
        }
    }
}

impl Manifest {
    /// Reads the manifest of a backup; its files are not looked at yet.
    ///
    /// # Errors
    /// [`Error::BadBackup`] when there is none or it cannot be understood, [`Error::Io`].
    pub fn read(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let path = dir.join(FILE);
        let bad = |detail: String| Error::BadBackup { path: path.clone(), detail };
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(bad("it is missing".to_owned())),
            Err(error) => return Err(Error::io("examine", &path, error)),
        };
        if size > BYTES_MAX {
            return Err(bad(format!("it has {size} bytes")));
        }
        let text = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let mut manifest: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        manifest.dir = dir.to_owned();
        manifest.check_form().map_err(bad)?;
        Ok(manifest)
    }

    /// Returns the database of a scope.
    pub fn file(&self, scope: &Scope) -> Option<&BackupFile> {
        self.files.iter().find(|file| file.scope == *scope)
    }

    /// Returns the routers it holds.
    pub fn routers(&self) -> Vec<RouterId> {
        let of = |file: &BackupFile| match &file.scope {
            Scope::Router(id) => Some(id.clone()),
            Scope::System => None,
        };
        self.files.iter().filter_map(of).collect()
    }

    /// Returns the size of its files.
    pub fn bytes(&self) -> u64 {
        let annexes = |file: &BackupFile| file.annexes.iter().map(|annex| annex.bytes).sum::<u64>();
        self.files.iter().map(|file| file.bytes.saturating_add(annexes(file))).sum()
    }

    pub(crate) fn path_of(&self, scope: &Scope) -> PathBuf {
        self.dir.join(BackupFile::file_name(scope))
    }

    /// Refuses what no manifest of this crate says.
    fn check_form(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("it has format {}, this program knows {FORMAT}", self.format));
        }
        for (index, file) in self.files.iter().enumerate() {
            if self.files[..index].iter().any(|other| other.scope == file.scope) {
                return Err(format!("it names {} twice", file.scope));
            }
            for (index, annex) in file.annexes.iter().enumerate() {
                let twice = file.annexes[..index].iter().any(|other| other.name == annex.name);
                if twice || !annex.has_good_name() || file.scope == Scope::System {
                    return Err(format!("an annex of {} is none", file.scope));
                }
            }
            let annexes = file.annexes.iter().map(|annex| &annex.sha256);
            for digest in [&file.sha256, &file.database_sha256].into_iter().chain(annexes) {
                if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(format!("a digest of {} is none", file.scope));
                }
            }
            let fits = match (&self.which, &file.scope) {
                (Which::Fleet, _) | (Which::System, Scope::System) => true,
                (Which::Router(id), Scope::Router(found)) => id == found,
                _ => false,
            };
            if !fits {
                return Err(format!("it is a backup of {} and holds {}", self.which, file.scope));
            }
        }
        Ok(())
    }

    /// Refuses the backup of another fleet.
    pub(crate) fn check_fleet(&self, fleet_id: Ulid) -> Result<(), Error> {
        if self.fleet_id == fleet_id {
            return Ok(());
        }
        Err(Error::BackupOfAnotherFleet { path: self.dir.clone(), found: self.fleet_id, expected: fleet_id })
    }
}

/// Names the directory of a backup: what it holds, then an id that grows with time.
pub(crate) fn directory_name(which: &Which, id: Ulid) -> String {
    format!("{which}-{}", id.to_string().to_ascii_lowercase())
}

/// Tells whether a name is one that [`directory_name`] gives.
pub(crate) fn is_of(which: &Which, name: &str) -> bool {
    let id = name.strip_prefix(&which.to_string()).and_then(|rest| rest.strip_prefix('-'));
    id.is_some_and(|id| id.len() == 26 && Ulid::from_string(&id.to_ascii_uppercase()).is_ok())
}

/// Returns the backups among `names` that are beyond the newest `kept` of their kind.
pub(crate) fn beyond<'a>(which: &Which, names: impl IntoIterator<Item = &'a str>, kept: usize) -> Vec<&'a str> {
    let mut names: Vec<_> = names.into_iter().filter(|name| is_of(which, name)).collect();
    names.sort_unstable();
    names.truncate(names.len().saturating_sub(kept.max(1)));
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> RouterId {
        RouterId::parse(text).expect("id")
    }

    fn file(scope: Scope) -> BackupFile {
        BackupFile {
            scope,
            file_uid: "00".repeat(16),
            sha256: "a".repeat(64),
            bytes: 1,
            database_sha256: "b".repeat(64),
            database_bytes: 4096,
            rows: BTreeMap::from([("t".to_owned(), 3)]),
            schemas: BTreeMap::from([("state".to_owned(), 2)]),
            annexes: Vec::new(),
        }
    }

    fn manifest(which: Which, files: Vec<BackupFile>) -> Manifest {
        let (id, fleet_id) = (Ulid::from_parts(2, 2), Ulid::from_parts(1, 1));
        Manifest { format: FORMAT, id, fleet_id, which, created_ms: 7, files, failed: vec![], dir: PathBuf::new() }
    }

    fn read(text: &str) -> Result<Manifest, Error> {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join(FILE), text).expect("write");
        Manifest::read(dir.path()).map(|manifest| Manifest { dir: PathBuf::new(), ..manifest })
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written() {
        let whole = manifest(Which::Fleet, vec![file(Scope::System), file(Scope::Router(id("home")))]);
        assert_eq!(read(&serde_json::to_string(&whole).expect("json")).expect("read"), whole);
        for which in [Which::Fleet, Which::System, Which::Router(id("fleet"))] {
            assert_eq!(which.to_string().parse::<Which>().expect("parse"), which);
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let home = || file(Scope::Router(id("home")));
        let mut newer = manifest(Which::Fleet, vec![]);
        newer.format = FORMAT + 1;
        let mut digest = home();
        digest.sha256 = "../../etc/passwd".to_owned();
        for bad in [
            newer,
            manifest(Which::Fleet, vec![home(), home()]),
            manifest(Which::Router(id("other")), vec![home()]),
            manifest(Which::System, vec![home()]),
            manifest(Which::Fleet, vec![digest]),
        ] {
            let error = read(&serde_json::to_string(&bad).expect("json")).expect_err("refused");
            assert!(matches!(error, Error::BadBackup { .. }), "{error:?}");
        }
        for text in ["", "{", "[]", r#"{"format":1,"surprise":true}"#] {
            assert!(matches!(read(text), Err(Error::BadBackup { .. })), "{text}");
        }
    }

    #[test]
    fn a_scope_that_is_no_router_id_cannot_name_a_file() {
        let good = serde_json::to_string(&manifest(Which::Fleet, vec![file(Scope::Router(id("home")))])).expect("json");
        for evil in ["../x", "", "HOME", "a/b"] {
            assert!(read(&good.replace("\"home\"", &format!("{evil:?}"))).is_err(), "{evil}");
        }
    }

    proptest! {
        #[test]
        fn the_newest_generations_of_one_kind_stay_and_nothing_else_is_touched(
            times in prop::collection::btree_set(0_u64..1000, 0..12),
            kept in 0_usize..5,
        ) {
            let which = Which::Router(id("home"));
            let own: Vec<_> = times.iter().map(|t| directory_name(&which, Ulid::from_parts(*t, 0))).collect();
            let others = ["home".to_owned(), "router-home-old".to_owned(), directory_name(&Which::Fleet, Ulid::from_parts(0, 0)),
                directory_name(&Which::Router(id("home-a")), Ulid::from_parts(0, 0))];
            let names: Vec<_> = own.iter().chain(&others).map(String::as_str).rev().collect();
            let removed = beyond(&which, names, kept);
            let expected: Vec<_> = own.iter().take(own.len().saturating_sub(kept.max(1))).map(String::as_str).collect();
            prop_assert_eq!(removed, expected);
        }
    }
}
