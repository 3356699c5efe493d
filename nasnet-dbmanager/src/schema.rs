//! Schemas as data: which migrations belong to which kind of file.

use crate::error::Error;

/// The kinds of database files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// `system.db`, on flash.
    System,
    /// `router-{id}.db`, on flash.
    Router,
    /// `hot.db`, in memory.
    Hot,
    /// `locks.db`, in memory.
    Locks,
    /// `runtime.db`, in memory.
    Runtime,
}

impl FileKind {
    pub(crate) const ALL: [Self; 5] = [Self::System, Self::Router, Self::Hot, Self::Locks, Self::Runtime];

    /// Returns the stored spelling, which is also the stem of the file name where the name is fixed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Router => "router",
            Self::Hot => "hot",
            Self::Locks => "locks",
            Self::Runtime => "runtime",
        }
    }

    /// Returns what the file promises about power loss.
    pub const fn profile(self) -> Profile {
        match self {
            Self::System | Self::Router => Profile::Flash,
            Self::Hot | Self::Locks | Self::Runtime => Profile::Tmpfs,
        }
    }
}

/// What a file promises about power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Every commit is on the medium before it is answered (`synchronous=FULL`).
    Flash,
    /// Nothing is synced: the file dies with the boot, and survives the process (`synchronous=OFF`).
    Tmpfs,
}

/// One step of a schema, up and down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its place in the order, from 1 without gaps.
    pub version: u32,
    /// A short name for people.
    pub name: &'static str,
    /// The SQL that applies it.
    pub up: &'static str,
    /// The SQL that takes it back; stored in the file, since an older program cannot contain it.
    pub down: &'static str,
}

/// The migrations one crate has for one kind of file.
///
/// Each set keeps its own bookkeeping table, `_nasnet_{name}_migrations`, so that crates share a file without knowing
/// each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaSet {
    /// The name of the set: lower-case letters, digits and underscores, starting with a letter.
    pub name: &'static str,
    /// The kind of file it belongs to.
    pub file: FileKind,
    /// The migrations in order.
    pub migrations: Vec<Migration>,
}

impl SchemaSet {
    /// Puts a set together.
    pub fn new(name: &'static str, file: FileKind, migrations: Vec<Migration>) -> Self {
        Self { name, file, migrations }
    }

    /// Returns the version a migrated file has; 0 for a set without migrations.
    pub fn version(&self) -> u32 {
        self.migrations.last().map_or(0, |migration| migration.version)
    }
}

/// Refuses sets whose names or versions cannot work, before any file is touched.
pub(crate) fn check_sets(sets: &[SchemaSet]) -> Result<(), Error> {
    for (index, set) in sets.iter().enumerate() {
        let bad = |detail: &str| Err(Error::BadSchemaSet { set: set.name.to_owned(), detail: detail.to_owned() });
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !set.name.starts_with(|c: char| c.is_ascii_lowercase()) || !set.name.chars().all(word) {
            return bad("its name is not a lower-case word");
        }
        if sets[..index].iter().any(|other| other.name == set.name && other.file == set.file) {
            return bad("it is given twice for one kind of file");
        }
        if !(1..).zip(&set.migrations).all(|(version, migration)| migration.version == version) {
            return bad("its versions do not run from 1 without gaps");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(version: u32) -> Migration {
        Migration { version, name: "m", up: "SELECT 1", down: "SELECT 1" }
    }

    #[test]
    fn names_that_could_not_be_table_names_are_refused() {
        for name in ["", "A", "a-b", "1a", "a;b", "_a"] {
            assert!(check_sets(&[SchemaSet::new(name, FileKind::Hot, vec![])]).is_err(), "{name}");
        }
        assert!(check_sets(&[SchemaSet::new("events_2", FileKind::Hot, vec![migration(1)])]).is_ok());
    }

    #[test]
    fn gaps_and_duplicates_are_refused() {
        let set =
            |versions: &[u32]| SchemaSet::new("a", FileKind::Hot, versions.iter().copied().map(migration).collect());
        assert!(check_sets(&[set(&[1, 2, 3])]).is_ok());
        for versions in [&[2][..], &[1, 3], &[1, 1], &[0, 1]] {
            assert!(check_sets(&[set(versions)]).is_err(), "{versions:?}");
        }
        assert!(check_sets(&[set(&[1]), set(&[1])]).is_err());
        let elsewhere = SchemaSet { file: FileKind::Router, ..set(&[1]) };
        assert!(check_sets(&[set(&[1]), elsewhere]).is_ok());
    }
}
