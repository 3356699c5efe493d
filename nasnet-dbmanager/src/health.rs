//! How the databases of a fleet are.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::custody::AsideReason;
use crate::error::Error;
use crate::external::ExternalRestore;
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

impl DbManager {
    /// Tells how every database is: the system's first, then each router that is not retired, by id.
    ///
    /// It opens nothing: a router is [`DbHealth::Degraded`] when the last attempt to open it failed, and
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
        let mut all = vec![DatabaseHealth { scope: Scope::System, health: DbHealth::Ok }];
        for record in records {
            let damaged = aside.iter().rev().find(|a| a.router == record.id && a.reason == AsideReason::Damaged);
            let health = match (record.lifecycle, damaged, self.inner.failures.of(&record.id)) {
                (Lifecycle::Retired, _, _) => continue,
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
}
