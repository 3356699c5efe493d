//! Taking routers out of the fleet and back in: their directory moves as a whole, and stays for a while.
//!
//! Each step writes its intent to `system.db`, moves the directory with one rename, and notes the new state together
//! with the end of the intent. After a crash in between, opening the fleet carries the intent out.

use std::path::{Path, PathBuf};

use crate::annex::carry::HeldAnnexes;
use crate::backup::copy::{self, Scratch};
use crate::budget::RETIRED_FILES;
use crate::clock::Now;
use crate::connection::Target;
use crate::custody::{self, Action, Intent, RetiredRouter};
use crate::database::Database;
use crate::db_lock::{DbLock, FileLock};
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::{Cause, RouterId};
use crate::layout::{self, Layout, UNFINISHED};
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
        self.may_be_in(id, &[Lifecycle::Active]).await?;
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
        // Before it is begun: should it come to nothing, too much is told and not too little.
        self.take_leave(id, Some(&path), Lifecycle::Active).await;
        self.carry_out(id, Action::Retire, String::new()).await
    }

    /// Takes a retired router back into the fleet.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::MissingDatabase`].
    ///
    /// # Cancel safety
    /// As [`DbManager::retire`].
    pub async fn reinstate(&self, id: &RouterId) -> Result<(), Error> {
        self.may_be_in(id, &[Lifecycle::Retired]).await?;
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
        self.carry_out(id, Action::Reinstate, String::new()).await
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
        self.may_be_in(id, &removable).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        let lifecycle = self.record_in(id, &removable).await?.lifecycle;
        self.take_leave(id, None, lifecycle).await;
        self.carry_out(id, Action::Purge, String::new()).await?;
        self.forget_purged(id).await
    }

    /// Purges a retired router as [`DbManager::purge`] does, after its database was compressed into a file of `dir` that
    /// was read back; returns the file. `zstd -d` gives the database back; its annexes lie in a directory beside it that has
    /// the same name but for its end, `.annex`.
    ///
    /// Its secrets cannot be opened any more: they are purged, and so is the key of what its database holds sealed.
    ///
    /// # Errors
    /// With nothing removed: [`Error::MissingDatabase`], [`Error::Corrupt`], [`Error::NoSpace`], [`Error::NotWritable`],
    /// [`Error::BadBackup`] when what was written does not read back, and those of [`DbManager::purge`].
    ///
    /// # Cancel safety
    /// As [`DbManager::retire`]; a file that is being written has another name.
    pub async fn purge_to(&self, id: &RouterId, dir: &Path) -> Result<PathBuf, Error> {
        self.may_be_in(id, &[Lifecycle::Retired]).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        self.record_in(id, &[Lifecycle::Retired]).await?;
        let archived = self.archive_retired(id, dir).await?;
        self.take_leave(id, None, Lifecycle::Retired).await;
        self.carry_out(id, Action::Purge, archived.display().to_string()).await?;
        self.forget_purged(id).await?;
        Ok(archived)
    }

    /// What is kept of a purged router outside of its record.
    async fn forget_purged(&self, id: &RouterId) -> Result<(), Error> {
        self.system().fleet_metrics().forget(id).await?;
        self.count_routers().await
    }

    /// Writes the database of a retired router as a compressed file, and reads it back. The caller has it alone.
    async fn archive_retired(&self, id: &RouterId, dir: &Path) -> Result<PathBuf, Error> {
        layout::create_dir(dir)?;
        let spec = self.inner.files.router(id, None);
        let path = self.inner.files.layout().retired(id).join(Layout::router_file_name(id));
        if layout::size_of(&path)? == 0 {
            return Err(Error::MissingDatabase { path });
        }
        let (copied, read_back) = (Scratch::new(self.run_dir()), Scratch::new(self.run_dir()));
        let annexes = HeldAnnexes::of(&path)?;
        copy::vacuum_into(&Target { path, ..spec.target.clone() }, copied.path()).await?;
        copy::inspect(copied.path(), &spec.identity).await?;
        let name = format!("router-{}.db.zst", self.aside_name(id));
        let (to, unfinished) = (dir.join(&name), dir.join(format!("{UNFINISHED}{name}")));
        let (from, out) = (copied.path().to_owned(), unfinished.clone());
        let packed = copy::blocking(move || copy::pack(&from, &out)).await?;
        let (from, out, bytes) = (unfinished.clone(), read_back.path().to_owned(), packed.database_bytes);
        let found = copy::blocking(move || copy::unpack(&from, &out, bytes)).await?;
        if found != packed {
            layout::remove_tree(&unfinished).ok();
            return Err(Error::BadBackup { path: unfinished, detail: "it does not read back as written".to_owned() });
        }
        // First, so that whoever finds the database finds them.
        let beside = to.clone();
        let annexes = copy::blocking(move || annexes.archive(&beside)).await?;
        if !layout::rename_new(&unfinished, &to)? {
            return Err(Error::BadBackup { path: to, detail: "something else has its name".to_owned() });
        }
        layout::sync(dir)?;
        self.inner.files.charge_file(RETIRED_FILES, &to, packed.bytes.saturating_add(annexes));
        Ok(to)
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

    async fn carry_out(&self, id: &RouterId, action: Action, cause: String) -> Result<(), Error> {
        let intent = Intent { id: id.clone(), action, directory: String::new(), cause };
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

    /// Refuses what the record of a router rules out before the router is closed for it. While something is begun with
    /// the router, its record is not the last word: whoever has the router alone finishes that first, and looks again.
    pub(crate) async fn may_be_in(&self, id: &RouterId, states: &[Lifecycle]) -> Result<(), Error> {
        match self.record_in(id, states).await {
            Err(Error::WrongLifecycle { .. }) if self.begun(id).await?.is_some() => Ok(()),
            found => found.map(drop),
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
        // A step that fails after its move leaves a directory in place that its record says is elsewhere, or is another
        // file: whoever opens it next has to ask for the record, which is what leads to finishing the rest.
        self.inner.known.forget(id);
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
    let mut entry = AuditEntry::new("storage", action).target(id.as_str());
    if !intent.cause.is_empty() {
        entry = entry.details(serde_json::json!({ "archived": intent.cause }));
    }
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
