//! Damaged databases: what counts as damage, how one is set aside, and what takes its place.
//!
//! The whole directory moves, so the database and its log never part. What takes its place is, in this order, the
//! newest backup that still verifies, what can be read of the damaged tables, or an empty database; what is lost is
//! told as data. Other routers are not involved.

pub(crate) mod alarm;
pub(crate) mod salvage;
mod verdict;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

pub use self::verdict::{Moment, Verdict, verdict};

use crate::annex::carry;
use crate::backup::copy;
use crate::budget::PUT_IN_PLACE;
use crate::clock::Now;
use crate::connection::{Role, Target};
use crate::custody::{self, Action, AsideReason, Intent, SetAside};
use crate::database::Database;
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::{Cause, RouterId, Scope};
use crate::layout::{self, Layout};
use crate::lease::HoldWhen;
use crate::manager::DbManager;
use crate::manifest::Manifest;
use crate::open;
use crate::replay::Replayed;
use crate::schema::FileKind;
use crate::system::audit::{self, AuditEntry};
use crate::system::routers::Lifecycle;

const QUARANTINE: Cause = Cause::new("quarantine");

/// The directory in which a replacement is built, inside the one that was set aside.
const REBUILT: &str = "rebuilt";

/// What took the place of a damaged database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RestoredFrom {
    /// A backup.
    Backup {
        /// Its id.
        id: Ulid,
        /// When it was made, wall clock.
        created_ms: i64,
    },
    /// What could be read of the damaged file.
    Salvage,
    /// Nothing: the database is empty.
    Fresh,
    /// What an earlier restore had replaced, put back.
    Safety {
        /// The name below `safety/` it had.
        directory: String,
    },
    /// A file that somebody put in the place of the database.
    Outside,
}

/// What is missing in the database that took the place of a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LostRange {
    /// Everything written before is there; `None` when nothing is known to be.
    pub from_ms: Option<i64>,
    /// When the damage was found, wall clock.
    pub until_ms: i64,
    /// The tables, as far as they were looked at.
    pub tables: Vec<TableLoss>,
    /// What was brought back of what came after `from_ms`.
    #[serde(default)]
    pub replayed: Vec<Replayed>,
}

/// What is there of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TableLoss {
    /// The table.
    pub table: String,
    /// The rows that are there now.
    pub kept: u64,
    /// The rows the damaged file had, if it could still say.
    pub had: Option<u64>,
    /// Whether every row was reached.
    pub complete: bool,
}

/// What recovering a router did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Recovery {
    /// The database is whole: it was, or somebody else has replaced it. Nothing was changed.
    Sound,
    /// It was damaged, set aside and replaced.
    Replaced {
        /// The name below `quarantine/` of what was set aside.
        quarantine: String,
        /// What was found.
        cause: String,
        /// What took its place.
        restored_from: RestoredFrom,
        /// What is missing.
        lost: LostRange,
    },
}

/// Tells whether a router that cannot be opened for this reason can be replaced.
pub(crate) fn is_recoverable(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::Quarantined { .. })
}

/// Lets the recoveries of one router happen one after the other.
#[derive(Debug, Default)]
pub(crate) struct Recoveries(std::sync::Mutex<HashMap<RouterId, Weak<tokio::sync::Mutex<()>>>>);

impl Recoveries {
    /// Waits for the recoveries of a router that have begun.
    async fn turn(&self, id: &RouterId) -> tokio::sync::OwnedMutexGuard<()> {
        let turns = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turns| turns.strong_count() > 0);
            match all.get(id).and_then(Weak::upgrade) {
                Some(turns) => turns,
                None => {
                    let turns = Arc::new(tokio::sync::Mutex::new(()));
                    all.insert(id.clone(), Arc::downgrade(&turns));
                    turns
                }
            }
        };
        turns.lock_owned().await
    }
}

impl DbManager {
    /// Looks at the whole database of a router and, if it is damaged or missing, sets it aside and replaces it.
    ///
    /// A router that was set aside before and not replaced is replaced now.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`]; those of opening it that are not damage, such as
    /// [`Error::InUse`] and [`Error::SchemaTooNew`]; [`Error::NoSpace`] and others of the medium while building the
    /// replacement: the router then stays quarantined, and calling again goes on.
    ///
    /// # Cancel safety
    /// As [`DbManager::quarantine`].
    pub async fn recover(&self, id: &RouterId) -> Result<Recovery, Error> {
        let _turn = self.inner.recoveries.turn(id).await;
        self.recover_in_turn(id).await
    }

    /// Leases a router that could not be opened, replacing it unless somebody else just did.
    ///
    /// # Cancel safety
    /// Safe: what has begun goes on in its own task.
    pub(crate) async fn lease_recovered(&self, id: &RouterId) -> Result<Database, Error> {
        let (manager, id) = (self.clone(), id.clone());
        let recovering = tokio::spawn(async move {
            let _turn = manager.inner.recoveries.turn(&id).await;
            match manager.lease(&id).await {
                Err(error) if is_recoverable(&error) => {}
                leased => return leased,
            }
            manager.recover_in_turn(&id).await?;
            manager.lease(&id).await
        });
        recovering.await.map_err(|error| Error::Panicked { message: format!("while recovering a router: {error}") })?
    }

    async fn recover_in_turn(&self, id: &RouterId) -> Result<Recovery, Error> {
        let record = self.record_in(id, &[Lifecycle::Active, Lifecycle::Quarantined]).await?;
        if record.lifecycle == Lifecycle::Active {
            match self.check(&Scope::Router(id.clone())).await {
                Ok(()) => return Ok(Recovery::Sound),
                Err(error) if error.is_damage() => {
                    self.set_damaged_aside(id, &error.to_string(), record.file_uid).await?
                }
                // Somebody else found it first.
                Err(Error::Quarantined { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.replace(id).await
    }

    /// Runs `PRAGMA integrity_check` on a database.
    ///
    /// # Errors
    /// [`Error::Corrupt`], and those of [`DbManager::router`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn check(&self, scope: &Scope) -> Result<(), Error> {
        let database = match scope {
            Scope::System => Database::clone(self.system()),
            Scope::Router(id) => self.lease(id).await?,
        };
        // A connection of its own: a whole file takes longer than a read may.
        let mut guarded = self.spec_of(scope).target.connect(Role::Writer).await?;
        let checked = copy::integrity_check(&mut guarded.conn).await;
        let closed = guarded.close().await;
        drop(database);
        checked.and(closed)
    }

    /// Sets the database of a router aside, whatever its state. Handles to it get [`Error::Closed`] from here on.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::InUse`] while another process has it open.
    ///
    /// # Cancel safety
    /// Dropping the future, or a crash, leaves an intent that the next open of the fleet carries out.
    pub async fn quarantine(&self, id: &RouterId, cause: &str) -> Result<(), Error> {
        self.may_be_in(id, &[Lifecycle::Active]).await?;
        let _alone = self.alone(id, HoldWhen::Now).await?;
        self.record_in(id, &[Lifecycle::Active]).await?;
        self.begin_quarantine(id, cause).await
    }

    /// As [`DbManager::quarantine`], for the file in which damage was found: when somebody else has replaced it in the
    /// meantime, what is there now is left alone.
    async fn set_damaged_aside(&self, id: &RouterId, cause: &str, file_uid: Option<[u8; 16]>) -> Result<(), Error> {
        if self.is_replaced(id, file_uid).await? {
            return Ok(());
        }
        // Handles to what has taken its place meanwhile must stay open, so only the file that was judged is closed.
        let alone = match file_uid {
            Some(uid) => self.alone_with(id, uid).await,
            None => self.alone(id, HoldWhen::Now).await.map(Some),
        };
        if self.is_replaced(id, file_uid).await? {
            return Ok(());
        }
        // What keeps it from being had alone may have been another process replacing it, but then it is replaced.
        let Some(_alone) = alone? else { return Err(self.in_use(id)) };
        self.begin_quarantine(id, cause).await
    }

    fn in_use(&self, id: &RouterId) -> Error {
        Error::InUse { path: self.inner.files.layout().router(id) }
    }

    async fn is_replaced(&self, id: &RouterId, file_uid: Option<[u8; 16]>) -> Result<bool, Error> {
        let record = self.record_in(id, &[Lifecycle::Active, Lifecycle::Quarantined]).await?;
        Ok(record.lifecycle == Lifecycle::Quarantined || record.file_uid != file_uid)
    }

    async fn begin_quarantine(&self, id: &RouterId, cause: &str) -> Result<(), Error> {
        tracing::error!(router = %id, cause, "setting a damaged database aside");
        let (id, directory, cause) = (id.clone(), self.aside_name(id), cause.to_owned());
        let intent = Intent { id, action: Action::Quarantine, directory, cause };
        self.begin(&intent).await?;
        finish(self.system(), &self.inner.files, &intent, self.now()).await
    }

    /// Returns what was set aside, the oldest first.
    ///
    /// # Errors
    /// Those of a read of the system database.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn set_aside(&self) -> Result<Vec<SetAside>, Error> {
        self.system().read(QUARANTINE, |conn| Box::pin(custody::list_aside(conn))).await
    }

    /// Puts something in the place of a quarantined router.
    async fn replace(&self, id: &RouterId) -> Result<Recovery, Error> {
        let states = [Lifecycle::Quarantined, Lifecycle::Active];
        if self.record_in(id, &states).await?.lifecycle == Lifecycle::Active {
            return Ok(Recovery::Sound);
        }
        let alone = self.alone(id, HoldWhen::Returned).await;
        // Another process that has replaced it may have it open already.
        if self.record_in(id, &states).await?.lifecycle == Lifecycle::Active {
            return Ok(Recovery::Sound);
        }
        let _alone = alone?;
        let layout = self.inner.files.layout();
        let aside = self.set_aside().await?.into_iter().rev();
        let aside = aside.into_iter().find(|aside| aside.router == *id && aside.reason == AsideReason::Damaged);
        let aside = aside.ok_or_else(|| Error::MissingDatabase { path: layout.router(id) })?;
        let place = layout.quarantine(&aside.directory).join(REBUILT);
        let (uid, restored_from, mut lost) = self.build_replacement(id, &aside, &place).await?;
        let name = Layout::router_file_name(id);
        let damaged = layout.quarantine(&aside.directory).join(&name);
        lost.replayed = self.replay_onto(id, &place.join(&name), &restored_from, &damaged).await?;
        let live = layout.router_dir(id);
        // A replacement whose owner ended before it was noted; what it was built from is still there.
        layout::remove_tree(&live)?;
        if !layout::move_dir(&place, &live)? {
            return Err(Error::WrongDatabase { path: live, detail: "something else has its place".to_owned() });
        }
        self.note_replacement(id, uid, &aside.directory, &restored_from, &lost).await?;
        Ok(Recovery::Replaced { quarantine: aside.directory, cause: aside.cause, restored_from, lost })
    }

    async fn note_replacement(
        &self,
        id: &RouterId,
        uid: [u8; 16],
        directory: &str,
        from: &RestoredFrom,
        lost: &LostRange,
    ) -> Result<(), Error> {
        let entry = AuditEntry::new("storage", "router.replaced")
            .target(id.as_str())
            .details(serde_json::json!({ "from": from, "quarantine": directory }));
        let (id, directory, from, lost, now) =
            (id.clone(), directory.to_owned(), from.clone(), lost.clone(), self.now());
        self.system()
            .write(QUARANTINE, move |conn| {
                Box::pin(async move {
                    custody::settle(conn, &id, Lifecycle::Active, Some(uid), &now).await?;
                    custody::note_replacement(conn, &directory, &from, &lost).await?;
                    audit::append_in(conn, &entry, &now).await.map(|_| ())
                })
            })
            .await
    }

    async fn build_replacement(
        &self,
        id: &RouterId,
        aside: &SetAside,
        place: &std::path::Path,
    ) -> Result<([u8; 16], RestoredFrom, LostRange), Error> {
        let lost = |from_ms, tables| LostRange { from_ms, until_ms: aside.at_ms, tables, replayed: Vec::new() };
        let scope = Scope::Router(id.clone());
        for known in self.backups().await? {
            // A medium that is away, or a backup that no longer verifies, is the next one's chance.
            let Ok(manifest) = Manifest::read(&known.path) else { continue };
            let Some(file) = manifest.file(&scope).filter(|_| manifest.fleet_id == self.fleet_id()) else { continue };
            match self.build(&manifest, id, place).await {
                Ok(uid) => {
                    let table = |(table, kept): (&String, &u64)| TableLoss {
                        table: table.clone(),
                        kept: *kept,
                        had: None,
                        complete: false,
                    };
                    let tables = file.rows.iter().filter(|(table, _)| !table.starts_with("_nasnet_")).map(table);
                    let from = RestoredFrom::Backup { id: manifest.id, created_ms: manifest.created_ms };
                    return Ok((uid, from, lost(Some(manifest.created_ms), tables.collect())));
                }
                Err(error @ (Error::NoSpace { .. } | Error::NotWritable { .. })) => return Err(error),
                Err(error) => tracing::warn!(router = %id, backup = %known.id, %error, "a backup is not usable"),
            }
        }
        let files = &self.inner.files;
        layout::remove_tree(place)?;
        let mut spec = files.router(id, None);
        spec.target = Target { path: place.join(Layout::router_file_name(id)), ..spec.target };
        let uid = open::create_alone(&spec, &files.policy(self.now())).await?;
        let damaged = files.layout().quarantine(&aside.directory).join(Layout::router_file_name(id));
        let (from, beside) = (damaged.clone(), spec.target.path.clone());
        match copy::blocking(move || carry::rescue(&from, &beside)).await {
            Ok(bytes) => files.charge_file(PUT_IN_PLACE, &spec.target.path, bytes),
            Err(error @ Error::NoSpace { .. }) => return Err(error),
            Err(error) => tracing::warn!(router = %id, %error, "the annexes of a damaged database are lost in part"),
        }
        let salvaged = salvage::salvage(&damaged, &spec.target, files.layout(), self.now()).await;
        let tables = match salvaged {
            Ok(tables) => tables,
            Err(error @ Error::NoSpace { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(router = %id, %error, "nothing can be read of the damaged database");
                Vec::new()
            }
        };
        if tables.iter().any(|table| table.kept > 0) {
            self.raise_past(&spec.target.path, FileKind::Router).await?;
            return Ok((uid, RestoredFrom::Salvage, lost(None, tables)));
        }
        Ok((uid, RestoredFrom::Fresh, lost(None, tables)))
    }
}

/// Moves a damaged directory to its place in quarantine and notes it. The caller has the router alone.
pub(crate) async fn finish(system: &Database, files: &FleetFiles, intent: &Intent, now: Now) -> Result<(), Error> {
    let layout = files.layout();
    let (live, place) = (layout.router_dir(&intent.id), layout.quarantine(&intent.directory));
    if live.is_dir() {
        if !layout::move_dir(&live, &place)? {
            return Err(Error::WrongDatabase { path: place, detail: "something else has its place".to_owned() });
        }
    } else {
        // A directory that is gone leaves no evidence, but what takes its place is built here.
        layout::create_dir(&place)?;
    }
    let (noted, bytes) = (intent.clone(), layout::tree_bytes(&place));
    system
        .write(QUARANTINE, move |conn| {
            Box::pin(async move {
                custody::settle(conn, &noted.id, Lifecycle::Quarantined, None, &now).await?;
                custody::set_aside(conn, &noted, AsideReason::Damaged, bytes, &now).await?;
                custody::end(conn, &noted.id).await?;
                let entry = AuditEntry::new("storage", "router.quarantined")
                    .target(noted.id.as_str())
                    .details(serde_json::json!({ "cause": noted.cause, "quarantine": noted.directory }));
                audit::append_in(conn, &entry, &now).await.map(|_| ())
            })
        })
        .await
}
