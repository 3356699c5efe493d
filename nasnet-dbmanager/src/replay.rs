//! What happened after the backup that took a router's place: whoever stores events brings back what survives elsewhere.
//!
//! This crate knows nothing of events, so it offers the place and the moment: the new database, finished but not yet in
//! use, and a copy of the one it replaces. A replay that fails keeps no router from coming back; it is told.

use std::fmt;
use std::fs;
use std::path::Path;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, SqliteConnection};

use crate::annex::Annexes;
use crate::backup::copy::Scratch;
use crate::connection::{Role, Target};
use crate::driver::during;
use crate::error::Error;
use crate::id::{RouterId, Scope};
use crate::layout;
use crate::manager::DbManager;
use crate::quarantine::RestoredFrom;
use crate::schema::FileKind;
use crate::system::routers::Lifecycle;

/// The error of a [`Replay`].
pub type ReplayError = Box<dyn std::error::Error + Send + Sync>;

/// Brings back what a database lacks that took the place of another (`Options::replays`).
pub trait Replay: fmt::Debug + Send + Sync {
    /// Adds to the new database what it lacks, in the transaction its connection is in. Doing it twice must do no more
    /// than once: after a crash everything is built anew.
    ///
    /// # Errors
    /// Whatever went wrong; the transaction is then rolled back, the error told in [`Replayed::failed`], and the router
    /// comes back without.
    fn replay<'a>(&'a self, restored: Restored<'a>) -> BoxFuture<'a, Result<Replayed, ReplayError>>;

    /// Notes elsewhere what a router takes along that is about to be retired or purged. Doing it twice must do no more
    /// than once.
    ///
    /// # Errors
    /// Whatever went wrong; it is logged, and the router goes all the same.
    fn leave<'a>(&'a self, _leaving: Leaving<'a>) -> BoxFuture<'a, Result<(), ReplayError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A router that is about to leave the fleet.
#[derive(Debug)]
#[non_exhaustive]
pub struct Leaving<'a> {
    /// The fleet. The router itself cannot be leased meanwhile.
    pub manager: &'a DbManager,
    /// The router.
    pub router: &'a RouterId,
    /// Its database, to be read; `None` when it is retired already, was set aside as damaged, or cannot be opened.
    pub conn: Option<&'a mut SqliteConnection>,
    /// It was told before that it is retired.
    pub was_retired: bool,
    /// It goes for good: one that has its id later is another.
    pub is_purged: bool,
}

/// A database that is about to take the place of another.
#[derive(Debug)]
#[non_exhaustive]
pub struct Restored<'a> {
    /// The fleet. The router itself cannot be leased meanwhile.
    pub manager: &'a DbManager,
    /// The router.
    pub router: &'a RouterId,
    /// What the database is made from.
    pub from: &'a RestoredFrom,
    /// The database, inside a transaction.
    pub conn: &'a mut SqliteConnection,
    /// A copy of the database that is replaced, its log included; it may be damaged. `None` when nothing is left of it.
    pub replaced: Option<&'a Path>,
    /// The annexes of the database that is replaced, to be read; some of them may be missing.
    pub replaced_annexes: &'a Annexes,
}

/// What a replay did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Replayed {
    /// What is stored: `events`.
    pub what: String,
    /// How much was brought back.
    pub replayed: u64,
    /// How much was found and not brought back, because something else has its place.
    pub refused: u64,
    /// Whether everything that was written after the backup is there again.
    pub complete: bool,
    /// From where to where, in the terms of whoever stores it; and what may be missing.
    pub detail: String,
    /// Why nothing was brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl DbManager {
    /// Lets everybody who can bring something back do so. The new database is at `path` and in nobody's use.
    pub(crate) async fn replay_onto(
        &self,
        id: &RouterId,
        path: &Path,
        from: &RestoredFrom,
        replaced: &Path,
    ) -> Result<Vec<Replayed>, Error> {
        let all = self.run_replays(id, path, from, Some(replaced)).await?;
        if all.is_empty() {
            return Ok(all);
        }
        if layout::size_of(&layout::wal_of(path))? != 0 {
            return Err(Error::Corrupt { detail: format!("a log is left beside {}", path.display()) });
        }
        self.raise_past(path, FileKind::Router).await?;
        layout::sync(path)?;
        path.parent().map_or(Ok(()), layout::sync)?;
        Ok(all)
    }

    /// As [`DbManager::replay_onto`], also for a database that somebody may have open.
    pub(crate) async fn run_replays(
        &self,
        id: &RouterId,
        path: &Path,
        from: &RestoredFrom,
        replaced: Option<&Path>,
    ) -> Result<Vec<Replayed>, Error> {
        let replays = self.inner.files.options().replays.clone();
        let mut all = Vec::with_capacity(replays.len());
        if replays.is_empty() {
            return Ok(all);
        }
        let scratch = replaced.and_then(|replaced| copy_of(replaced, self.run_dir()));
        let target = Target { path: path.to_owned(), ..self.spec_of(&Scope::Router(id.clone())).target };
        // Nothing is beside a file that is not there.
        let beside = replaced.map_or_else(|| self.run_dir().join("replaced"), Path::to_owned);
        let replaced_annexes = Annexes::new(Target { path: beside, ..target.clone() });
        for replay in replays {
            let mut guarded = target.connect(Role::Writer).await?;
            let replaced = scratch.as_ref().map(Scratch::path);
            let replayed = async {
                let mut tx = guarded.conn.begin_with("BEGIN IMMEDIATE").await.map_err(during("begin a replay"))?;
                let replaced_annexes = &replaced_annexes;
                let restored = Restored { manager: self, router: id, from, conn: &mut tx, replaced, replaced_annexes };
                match replay.replay(restored).await {
                    Ok(replayed) => tx.commit().await.map_err(during("commit a replay")).map(|()| replayed),
                    Err(error) => {
                        tracing::warn!(router = %id, %error, "bringing back what came after the backup failed");
                        tx.rollback().await.map_err(during("roll a replay back"))?;
                        let failed = Some(error.to_string());
                        Ok(Replayed { what: format!("{replay:?}"), failed, ..Replayed::default() })
                    }
                }
            }
            .await;
            // Closing the last connection moves the log into the file and removes it.
            let closed = guarded.close().await;
            all.push(replayed?);
            closed?;
        }
        Ok(all)
    }
}

impl DbManager {
    /// Has everybody note what a router takes along. The caller has it alone.
    pub(crate) async fn take_leave(&self, id: &RouterId, path: Option<&Path>, from: Lifecycle) {
        let replays = &self.inner.files.options().replays;
        if replays.is_empty() {
            return;
        }
        let mut open = None;
        if let Some(path) = path {
            let target = Target { path: path.to_owned(), ..self.spec_of(&Scope::Router(id.clone())).target };
            match target.connect(Role::Writer).await {
                Ok(guarded) => open = Some(guarded),
                Err(error) => tracing::warn!(router = %id, %error, "a router leaves that cannot be opened"),
            }
        }
        for replay in replays {
            let conn = open.as_mut().map(|guarded| &mut guarded.conn);
            let (was_retired, is_purged) = (from == Lifecycle::Retired, from != Lifecycle::Active);
            let leaving = Leaving { manager: self, router: id, conn, was_retired, is_purged };
            if let Err(error) = replay.leave(leaving).await {
                tracing::warn!(router = %id, %error, "what a router takes along is not noted");
            }
        }
        if let Some(guarded) = open
            && let Err(error) = guarded.close().await
        {
            tracing::warn!(router = %id, %error, "closing the database of a router that leaves failed");
        }
    }
}

/// Copies what is replaced, as far as it can be read: opening the evidence itself would change it.
fn copy_of(replaced: &Path, run_dir: &Path) -> Option<Scratch> {
    if layout::size_of(replaced).ok()? == 0 {
        return None;
    }
    let scratch = Scratch::new(run_dir);
    let wal = layout::wal_of(replaced);
    let copied = fs::copy(replaced, scratch.path()).and_then(|_| {
        let logged = fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0);
        if logged { fs::copy(&wal, layout::wal_of(scratch.path())).map(|_| ()) } else { Ok(()) }
    });
    match copied {
        Ok(()) => Some(scratch),
        Err(error) => {
            tracing::warn!(path = %replaced.display(), %error, "what is replaced cannot be copied to be read");
            None
        }
    }
}
