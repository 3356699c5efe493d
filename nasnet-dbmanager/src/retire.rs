//! Taking routers out of the fleet and back in: their directory moves as a whole, and stays for a while.
//!
//! Each step writes its intent to `system.db`, moves the directory with one rename, and notes the new state together
//! with the end of the intent. After a crash in between, opening the fleet carries the intent out.

use crate::clock::Now;
use crate::custody::{self, Action, Intent, RetiredRouter};
use crate::database::Database;
use crate::db_lock::{DbLock, FileLock};
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::{Cause, RouterId};
use crate::layout;
use crate::lease::{Held, HoldWhen};
use crate::manager::DbManager;
use crate::system::audit::{self, AuditEntry};
use crate::system::routers::{Lifecycle, RouterRecord};

const RETIRE: Cause = Cause::new("router-retire");

/// A router that nobody has open, in this process or another, while this value lives.
pub(crate) struct Alone {
    _lock: FileLock,
    _held: Held,
}

impl DbManager {
    /// Takes a router out of the fleet. Its directory is kept and its id stays taken until it is purged.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::InUse`] while handles to it live or another
    /// process has it open, [`Error::MissingDatabase`].
    ///
    /// # Cancel safety
    /// Dropping the future, a crash, or an error of the medium half-way leaves an intent; whoever asks for the router
    /// next, or opens the fleet, carries it out.
    pub async fn retire(&self, id: &RouterId) -> Result<(), Error> {
        self.record_in(id, &[Lifecycle::Active]).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        // Somebody else has done it by now, or it was half done before and is finished.
        if self.record_in(id, &[Lifecycle::Retired]).await.is_ok() {
            return Ok(());
        }
        self.record_in(id, &[Lifecycle::Active]).await?;
        let path = self.inner.files.layout().router(id);
        if layout::size_of(&path)? == 0 {
            return Err(Error::MissingDatabase { path });
        }
        self.carry_out(id, Action::Retire).await
    }

    /// Takes a retired router back into the fleet.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::MissingDatabase`].
    ///
    /// # Cancel safety
    /// As [`DbManager::retire`].
    pub async fn reinstate(&self, id: &RouterId) -> Result<(), Error> {
        self.record_in(id, &[Lifecycle::Retired]).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        // Somebody else has done it by now, or it was half done before and is finished.
        if self.record_in(id, &[Lifecycle::Active]).await.is_ok() {
            return Ok(());
        }
        self.record_in(id, &[Lifecycle::Retired]).await?;
        let path = self.inner.files.layout().retired(id);
        if !path.is_dir() {
            return Err(Error::MissingDatabase { path });
        }
        self.carry_out(id, Action::Reinstate).await
    }

    /// Removes a retired or quarantined router for good: its directory, its record and its secrets. Its backups and
    /// what was set aside of it stay until they expire.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::InUse`].
    ///
    /// # Cancel safety
    /// As [`DbManager::retire`].
    pub async fn purge(&self, id: &RouterId) -> Result<(), Error> {
        let removable = [Lifecycle::Retired, Lifecycle::Quarantined];
        self.record_in(id, &removable).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        self.record_in(id, &removable).await?;
        self.carry_out(id, Action::Purge).await
    }

    /// Returns the retired routers, the longest retired first.
    ///
    /// # Errors
    /// Those of a read of the system database.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn retired_routers(&self) -> Result<Vec<RetiredRouter>, Error> {
        self.system().read(RETIRE, |conn| Box::pin(custody::retired(conn))).await
    }

    async fn carry_out(&self, id: &RouterId, action: Action) -> Result<(), Error> {
        let intent = Intent { id: id.clone(), action, directory: String::new(), cause: String::new() };
        self.begin(&intent).await?;
        finish(self.system(), &self.inner.files, &intent, self.now()).await
    }

    /// Writes an intent.
    pub(crate) async fn begin(&self, intent: &Intent) -> Result<(), Error> {
        let (intent, now) = (intent.clone(), self.now());
        self.system()
            .write(RETIRE, move |conn| Box::pin(async move { custody::begin(conn, &intent, &now).await }))
            .await
    }

    /// Returns the record of a router if it is in one of these states.
    pub(crate) async fn record_in(&self, id: &RouterId, states: &[Lifecycle]) -> Result<RouterRecord, Error> {
        let record = self.system().routers().get(id).await?.ok_or_else(|| Error::RouterNotFound { id: id.clone() })?;
        match states {
            _ if states.contains(&record.lifecycle) => Ok(record),
            [needed, ..] => Err(Error::WrongLifecycle { id: id.clone(), found: record.lifecycle, needed: *needed }),
            [] => Ok(record),
        }
    }

    /// Closes a router and keeps everybody else from opening it.
    pub(crate) async fn alone(&self, id: &RouterId, when: HoldWhen) -> Result<Alone, Error> {
        let lock = self.inner.files.router_lock(id);
        let held = self.inner.routers.hold(id, when, lock.database()).await?;
        self.alone_holding(id, held, &lock).await
    }

    /// Closes a router whose file was found damaged; `None` when another file is open, which is left alone.
    pub(crate) async fn alone_with(&self, id: &RouterId, damaged: [u8; 16]) -> Result<Option<Alone>, Error> {
        let lock = self.inner.files.router_lock(id);
        match self.inner.routers.try_hold(id, HoldWhen::Damaged(damaged), lock.database()).await? {
            Some(held) => self.alone_holding(id, held, &lock).await.map(Some),
            None => Ok(None),
        }
    }

    async fn alone_holding(&self, id: &RouterId, held: Held, lock: &DbLock) -> Result<Alone, Error> {
        let lock = lock.exclusive(self.inner.files.options().lock_timeout).await?;
        let alone = Alone { _lock: lock, _held: held };
        // What an earlier call left half-way comes first: the next begins where everything is in its place.
        self.finish_begun(id).await?;
        Ok(alone)
    }
}

/// Does what an intent says, as far as it is not done. The caller has the router alone.
pub(crate) async fn finish(system: &Database, files: &FleetFiles, intent: &Intent, now: Now) -> Result<(), Error> {
    let layout = files.layout();
    let (live, retired) = (layout.router_dir(&intent.id), layout.retired(&intent.id));
    let (lifecycle, action) = match intent.action {
        Action::Retire => {
            if live.is_dir() && !layout::move_dir(&live, &retired)? {
                return Err(occupied(retired));
            }
            if !retired.is_dir() {
                return Err(Error::MissingDatabase { path: retired });
            }
            (Some(Lifecycle::Retired), "router.retired")
        }
        Action::Reinstate => {
            if retired.is_dir() && !layout::move_dir(&retired, &live)? {
                return Err(occupied(live));
            }
            if !live.is_dir() {
                return Err(Error::MissingDatabase { path: live });
            }
            (Some(Lifecycle::Active), "router.reinstated")
        }
        _ => {
            layout::remove_tree(&retired)?;
            layout::remove_tree(&live)?;
            (None, "router.purged")
        }
    };
    let id = intent.id.clone();
    let entry = AuditEntry::new("storage", action).target(id.as_str());
    system
        .write(RETIRE, move |conn| {
            Box::pin(async move {
                match lifecycle {
                    Some(lifecycle) => custody::settle(conn, &id, lifecycle, None, &now).await?,
                    None => custody::forget(conn, &id).await?,
                }
                custody::end(conn, &id).await?;
                audit::append_in(conn, &entry, &now).await.map(|_| ())
            })
        })
        .await
}

fn occupied(path: std::path::PathBuf) -> Error {
    Error::WrongDatabase { path, detail: "something else has its place".to_owned() }
}
