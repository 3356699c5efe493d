//! How the databases of a fleet are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::custody::AsideReason;
use crate::database::Database;
use crate::error::Error;
use crate::external::{ExternalRestore, ReplacedSystem};
use crate::id::{RouterId, Scope};
use crate::manager::DbManager;
use crate::quarantine::{LostRange, RestoredFrom};
use crate::system::routers::Lifecycle;

/// How one database is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DbHealth {
    /// Nothing is known against it.
    Ok,
    /// It works in part, or not until something is done.
    Degraded {
        /// What the last attempt to open or check it said.
        why: String,
    },
    /// It works, but the file was put there by somebody else while it was closed: it is as old as that file. Said until
    /// the fleet is opened again; the audit log keeps it.
    RestoredExternally {
        /// When it was adopted, wall clock.
        at_ms: i64,
        /// The name below `safety/` of the log of the file that was there before, which was not played into this one.
        log: Option<String>,
    },
    /// Its schema is being changed.
    Migrating,
    /// It was damaged and set aside.
    Quarantined {
        /// When, wall clock.
        at_ms: i64,
        /// What was found.
        cause: String,
        /// What took its place; `None` as long as nothing did.
        restored_from: Option<RestoredFrom>,
        /// What is missing since.
        lost_range: Option<LostRange>,
    },
}

/// A database and how it is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DatabaseHealth {
    /// Whose database it is.
    pub scope: Scope,
    /// How it is.
    pub health: DbHealth,
}

/// What opening the routers said last, where it failed.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<RouterId, String>>);

impl Failures {
    /// Remembers or forgets, as an attempt to open ended.
    pub(crate) fn note<T>(&self, id: &RouterId, ended: &Result<T, Error>) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ended {
            Ok(_) => {
                failures.remove(id);
            }
            // What passes by itself, and ids that are none of ours, say nothing about a database.
            Err(error) if error.is_retryable() => {}
            Err(Error::RouterNotFound { .. } | Error::Closed { .. } | Error::Quarantined { .. }) => {}
            Err(error) => {
                failures.insert(id.clone(), error.to_string());
            }
        }
    }

    fn of(&self, id: &RouterId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// Tells what an open database suffers from.
fn trouble(database: &Database) -> Option<String> {
    let vitals = database.vitals();
    let damage = vitals.damage().map(ToString::to_string);
    let displaced = || (!database.is_in_place()).then(|| "its file was removed or replaced while open".to_owned());
    damage.or_else(|| vitals.trouble()).or_else(displaced)
}

/// The databases whose schema this process is changing.
#[derive(Debug, Default)]
pub(crate) struct Migrating(Mutex<BTreeMap<PathBuf, usize>>);

/// A change of schema that is under way while this value lives.
pub(crate) struct UnderWay {
    all: Arc<Migrating>,
    path: PathBuf,
}

impl Migrating {
    pub(crate) fn begin(self: &Arc<Self>, path: &Path) -> UnderWay {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default() += 1;
        UnderWay { all: Arc::clone(self), path: path.to_owned() }
    }

    fn has(&self, path: &Path) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(path)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.path) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                all.remove(&self.path);
            }
        }
    }
}

impl DbManager {
    /// Tells how every database is: the system's first, then each router that is not retired, by id.
    ///
    /// It opens nothing: a router is [`DbHealth::Degraded`] when the last attempt to open it failed, or while it is open
    /// and its last transaction was lost to the medium, damage was found in it, or its file is gone; it is
    /// [`DbHealth::Migrating`] while this process changes its schema, and
    /// [`DbHealth::Quarantined`] from the moment it was set aside until what was set aside expires, so that nobody
    /// overlooks what it lost.
    ///
    /// # Errors
    /// Those of a read of the system database.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn health(&self) -> Result<Vec<DatabaseHealth>, Error> {
        let records = self.system().routers().list().await?;
        let aside = self.set_aside().await?;
        let open = self.inner.routers.open_databases();
        let mut all = vec![DatabaseHealth { scope: Scope::System, health: self.system_health() }];
        for record in records {
            let damaged = aside.iter().rev().find(|a| a.router == record.id && a.reason == AsideReason::Damaged);
            let in_use = open.iter().find(|(id, ..)| *id == record.id).map(|(_, _, database)| database);
            let why = self.inner.failures.of(&record.id).or_else(|| in_use.and_then(trouble));
            let migrating = self.inner.files.migrating().has(&self.inner.files.layout().router(&record.id));
            let health = match (record.lifecycle, damaged, why) {
                (Lifecycle::Retired, _, _) => continue,
                (Lifecycle::Active, _, _) if migrating => DbHealth::Migrating,
                (Lifecycle::Active, _, Some(why)) => DbHealth::Degraded { why },
                (Lifecycle::Provisioning, _, why) => {
                    DbHealth::Degraded { why: why.unwrap_or_else(|| "its creation is not finished".to_owned()) }
                }
                (_, Some(aside), _) => DbHealth::Quarantined {
                    at_ms: aside.at_ms,
                    cause: aside.cause.clone(),
                    restored_from: aside.restored_from.clone(),
                    lost_range: aside.lost.clone(),
                },
                (Lifecycle::Quarantined, None, why) => {
                    DbHealth::Degraded { why: why.unwrap_or_else(|| "it was set aside".to_owned()) }
                }
                (Lifecycle::Active, None, None) => match self.inner.external.of(&record.id) {
                    None => DbHealth::Ok,
                    Some(ExternalRestore { at_ms, log, .. }) => DbHealth::RestoredExternally { at_ms, log },
                },
            };
            all.push(DatabaseHealth { scope: Scope::Router(record.id), health });
        }
        Ok(all)
    }

    /// The system database, and what lives in memory beside it.
    fn system_health(&self) -> DbHealth {
        let files = &self.inner.files;
        if files.migrating().has(self.system().path()) {
            return DbHealth::Migrating;
        }
        let found = files.suspects().singles().into_iter().map(|(name, why)| format!("{name}.db: {why}"));
        let single = |database: &Database| {
            let name = database.path().file_name()?.to_string_lossy().into_owned();
            Some(format!("{name}: {}", trouble(database)?))
        };
        let hot = self.hot();
        let databases = [self.system(), &hot, self.runtime(), self.locks()].map(single);
        let why: Vec<String> = found.chain(databases.into_iter().flatten()).collect();
        match (why.is_empty(), self.inner.external.of_system()) {
            (false, _) => DbHealth::Degraded { why: why.join("; ") },
            (true, Some(ReplacedSystem { at_ms, log })) => DbHealth::RestoredExternally { at_ms, log },
            (true, None) => DbHealth::Ok,
        }
    }
}
