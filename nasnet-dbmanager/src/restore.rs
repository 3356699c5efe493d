//! Restores: a verified backup takes the place of what is there, which is kept and can be put back.
//!
//! The restored database is built and checked beside the present one. Then the two directories change places in one
//! step, so at every moment the present data is either in use or in the safety directory, byte for byte.

pub(crate) mod system;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::annex::carry;
use crate::backup;
use crate::backup::copy::{self, Scratch};
use crate::budget::{MARKER_FILES, PUT_IN_PLACE};
use crate::clock::Now;
use crate::connection::{Role, Target};
use crate::custody::{self, Action, AsideReason, Intent};
use crate::database::Database;
use crate::durable::{self, Access};
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::high_water;
use crate::id::{Cause, RouterId, Scope};
use crate::layout::{self, Layout};
use crate::lease::HoldWhen;
use crate::manager::DbManager;
use crate::manifest::Manifest;
use crate::meta;
use crate::quarantine::RestoredFrom;
use crate::replay::Replayed;
use crate::schema::FileKind;
use crate::system::audit::{self, AuditEntry};
use crate::system::routers::Lifecycle;

const RESTORE: Cause = Cause::new("restore");

/// The file in a directory that is to be swapped in; what has it lives.
const MARKER: &str = ".nasnet-swap";

/// How the cause of an intent begins that puts back what a restore replaced.
const UNDO: &str = "undo ";

/// What of a backup is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreMode {
    /// One router.
    Router(RouterId),
    /// Every router of the backup that is registered; one that fails does not stop the others.
    Routers,
}

/// What a restore did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The backup.
    pub backup: Ulid,
    /// The routers that are restored.
    pub restored: Vec<RestoredRouter>,
    /// The routers that are as they were, and why.
    pub failed: Vec<(RouterId, Error)>,
}

/// A router that was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoredRouter {
    /// The router.
    pub id: RouterId,
    /// When the backup was made, wall clock: what was written later is in the safety directory only.
    pub backup_ms: i64,
    /// The name below `safety/` of what was replaced; `None` when nothing was there.
    pub safety: Option<String>,
    /// The rows of each restored table.
    pub rows: BTreeMap<String, u64>,
    /// What was brought back of what came after the backup.
    pub replayed: Vec<Replayed>,
}

/// What the marker says: which intent it belongs to, and the uid of the database beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    directory: String,
    file_uid: String,
}

impl DbManager {
    /// Restores routers from a backup. What is there is kept in `safety/` and [`DbManager::undo_restore`] puts it back.
    ///
    /// The system database is restored while nobody has the fleet open: [`DbManager::restore_system`].
    ///
    /// # Errors
    /// With nothing changed: [`Error::BackupOfAnotherFleet`], [`Error::BadBackup`], [`Error::SchemaTooNew`],
    /// [`Error::RouterNotFound`], [`Error::WrongLifecycle`], [`Error::InUse`] while handles to the router live or
    /// another process has it open, [`Error::NoSpace`]. Under [`RestoreMode::Routers`] those of single routers are in
    /// the report.
    ///
    /// # Cancel safety
    /// Dropping the future, or a crash, leaves either database whole in its place; the next open of the fleet clears up.
    pub async fn restore(&self, manifest: &Manifest, mode: RestoreMode) -> Result<RestoreReport, Error> {
        manifest.check_fleet(self.fleet_id())?;
        let mut report = RestoreReport { backup: manifest.id, restored: Vec::new(), failed: Vec::new() };
        match mode {
            RestoreMode::Router(id) => report.restored.push(self.restore_one(manifest, &id).await?),
            RestoreMode::Routers => {
                for id in manifest.routers() {
                    match self.restore_one(manifest, &id).await {
                        Ok(restored) => report.restored.push(restored),
                        Err(error) => report.failed.push((id, error)),
                    }
                }
            }
        }
        Ok(report)
    }

    /// Puts back what a restore replaced; what the restore brought is kept in its stead, under the same name. Returns
    /// what was brought back of what came after that restore (`Options::replays`).
    ///
    /// # Errors
    /// [`Error::MissingDatabase`] when the safety directory is gone, [`Error::Corrupt`] and [`Error::WrongDatabase`]
    /// when what is in it cannot be used, and those of [`DbManager::restore`].
    ///
    /// # Cancel safety
    /// As [`DbManager::restore`].
    pub async fn undo_restore(&self, id: &RouterId, safety: &str) -> Result<Vec<Replayed>, Error> {
        let restorable = [Lifecycle::Active, Lifecycle::Quarantined];
        self.may_be_in(id, &restorable).await?;
        let files = &self.inner.files;
        let place = files.layout().safety(safety);
        let path = place.join(Layout::router_file_name(id));
        // A name from outside must not lead anywhere else.
        let named = Path::new(safety).file_name().is_some_and(|name| name == safety);
        if !named || layout::size_of(&path)? == 0 {
            return Err(Error::MissingDatabase { path });
        }
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        self.record_in(id, &restorable).await?;
        let spec = files.router(id, None);
        let mut guarded = Target { path: path.clone(), ..spec.target.clone() }.connect(Role::Writer).await?;
        let file_uid = meta::verify(&mut guarded.conn, &path, &spec.identity).await;
        guarded.close().await?;
        let intent = self.swap_intent(id, safety, format!("{UNDO}{safety}"));
        self.begin(&intent).await?;
        let built = async {
            let uid = file_uid?;
            let from = RestoredFrom::Safety { directory: safety.to_owned() };
            // It only adds to what is there: when nothing comes of the swap, the next one finds it done.
            Ok((uid, self.replay_onto(id, &path, &from, &files.layout().router(id)).await?))
        }
        .await;
        let swapped = built.and_then(|(uid, replayed)| swap(files, &intent, uid).map(|()| replayed));
        let finished = finish(self.system(), files, &intent, self.now()).await;
        let replayed = swapped?;
        finished.map(|_| replayed)
    }

    async fn restore_one(&self, manifest: &Manifest, id: &RouterId) -> Result<RestoredRouter, Error> {
        let scope = Scope::Router(id.clone());
        let file = manifest.file(&scope).ok_or_else(|| Error::BadBackup {
            path: manifest.dir.clone(),
            detail: format!("it does not hold router {id}"),
        })?;
        let restorable = [Lifecycle::Active, Lifecycle::Quarantined];
        self.may_be_in(id, &restorable).await?;
        self.verify_file(manifest, file).await?;
        let _alone = self.alone(id, HoldWhen::Returned).await?;
        self.record_in(id, &restorable).await?;
        let files = &self.inner.files;
        let intent = self.swap_intent(id, &self.aside_name(id), format!("backup {}", manifest.id));
        self.begin(&intent).await?;
        let place = files.layout().safety(&intent.directory);
        let built = async {
            let uid = self.build(manifest, id, &place).await?;
            let from = RestoredFrom::Backup { id: manifest.id, created_ms: manifest.created_ms };
            let path = place.join(Layout::router_file_name(id));
            Ok((uid, self.replay_onto(id, &path, &from, &files.layout().router(id)).await?))
        }
        .await;
        let swapped = built.and_then(|(uid, replayed)| swap(files, &intent, uid).map(|()| replayed));
        // Whether it is swapped or not, this leaves one of the two whole and no intent.
        let finished = finish(self.system(), files, &intent, self.now()).await;
        let replayed = swapped?;
        let safety = finished?.then(|| intent.directory.clone());
        let (id, rows) = (id.clone(), file.rows.clone());
        Ok(RestoredRouter { id, backup_ms: manifest.created_ms, safety, rows, replayed })
    }

    /// Builds the directory of a router from a backup, raises the counters past what is in it, and returns the uid of
    /// the new database.
    pub(crate) async fn build(&self, manifest: &Manifest, id: &RouterId, place: &Path) -> Result<[u8; 16], Error> {
        let scope = Scope::Router(id.clone());
        let spec = self.spec_of(&scope);
        let file = manifest.file(&scope).ok_or_else(|| Error::BadBackup {
            path: manifest.dir.clone(),
            detail: format!("it does not hold router {id}"),
        })?;
        layout::remove_tree(place)?;
        let scratch = Scratch::new(self.run_dir());
        backup::unpack_checked(&manifest.path_of(&scope), scratch.path(), file, &spec).await?;
        layout::create_dir(place)?;
        let path = place.join(Layout::router_file_name(id));
        copy::put(scratch.path(), &path).await?;
        let uid = meta::new_file_uid()?;
        copy::make_usable(&path, uid).await?;
        self.inner.files.charge_file(PUT_IN_PLACE, &path, layout::size_of(&path)?);
        let (from, annexes, beside) = (manifest.dir.clone(), file.annexes.clone(), path.clone());
        let bytes = copy::blocking(move || carry::put(&from, &scope, &annexes, &beside)).await?;
        self.inner.files.charge_file(PUT_IN_PLACE, &path, bytes);
        self.raise_past(&path, FileKind::Router).await?;
        layout::sync(place)?;
        Ok(uid)
    }

    /// Raises the counters past the numbers found in a file.
    pub(crate) async fn raise_past(&self, path: &Path, kind: FileKind) -> Result<(), Error> {
        for (counter, found) in high_water::in_file(&self.inner.files.options().high_waters, path, kind).await? {
            self.system().counters().raise(counter, found).await?;
        }
        Ok(())
    }

    /// Makes the name of a directory that is set aside.
    pub(crate) fn aside_name(&self, id: &RouterId) -> String {
        format!("{id}-{}", self.next_ulid().to_string().to_ascii_lowercase())
    }

    fn swap_intent(&self, id: &RouterId, directory: &str, cause: String) -> Intent {
        Intent { id: id.clone(), action: Action::Restore, directory: directory.to_owned(), cause }
    }
}

/// Makes the built directory and the present one change places. The caller has the router alone.
fn swap(files: &FleetFiles, intent: &Intent, file_uid: [u8; 16]) -> Result<(), Error> {
    let layout = files.layout();
    let (live, place) = (layout.router_dir(&intent.id), layout.safety(&intent.directory));
    let marker =
        Marker { directory: intent.directory.clone(), file_uid: format!("{:032x}", u128::from_be_bytes(file_uid)) };
    files.charge_file(MARKER_FILES, &place, write_marker(&place, &marker)?);
    if live.is_dir() {
        layout::exchange(&place, &live)?;
    } else if !layout::rename_new(&place, &live)? {
        return Err(Error::WrongDatabase { path: live, detail: "something else has its place".to_owned() });
    }
    layout::sync(&layout.routers())?;
    place.parent().map_or(Ok(()), layout::sync)
}

fn write_marker(place: &Path, marker: &Marker) -> Result<u64, Error> {
    let path = place.join(MARKER);
    let text =
        serde_json::to_vec(marker).map_err(|error| Error::Encode { what: "swap marker", detail: error.to_string() })?;
    durable::write_file(&path, &text, Access::Owner).map_err(|error| Error::io("write", &path, error))?;
    layout::sync(place)?;
    Ok(text.len() as u64)
}

/// Notes a swap that happened, or clears up one that did not; tells whether something was replaced. The caller has the
/// router alone.
pub(crate) async fn finish(system: &Database, files: &FleetFiles, intent: &Intent, now: Now) -> Result<bool, Error> {
    let layout = files.layout();
    let (live, place) = (layout.router_dir(&intent.id), layout.safety(&intent.directory));
    let undoing = intent.cause.starts_with(UNDO);
    let marker = fs::read(live.join(MARKER)).ok().and_then(|text| serde_json::from_slice::<Marker>(&text).ok());
    let uid = marker
        .filter(|marker| marker.directory == intent.directory)
        .and_then(|marker| u128::from_str_radix(&marker.file_uid, 16).ok())
        .map(u128::to_be_bytes);
    let replaced = uid.is_some() && place.is_dir();
    if uid.is_none() && !undoing {
        layout::remove_tree(&place)?;
    }
    let bytes = layout::tree_bytes(&place);
    let noted = intent.clone();
    system
        .write(RESTORE, move |conn| {
            Box::pin(async move {
                if let Some(uid) = uid {
                    custody::settle(conn, &noted.id, Lifecycle::Active, Some(uid), &now).await?;
                    if replaced {
                        custody::set_aside(conn, &noted, AsideReason::Replaced, bytes, &now).await?;
                    }
                    let entry = AuditEntry::new("storage", "router.restored")
                        .target(noted.id.as_str())
                        .details(serde_json::json!({ "from": noted.cause, "safety": noted.directory }));
                    audit::append_in(conn, &entry, &now).await?;
                }
                custody::end(conn, &noted.id).await
            })
        })
        .await?;
    // It names an intent that is over, so whenever it goes is early enough.
    for marker in [live.join(MARKER), place.join(MARKER)].iter().filter(|marker| marker.exists()) {
        durable::remove_file(marker).map_err(|error| Error::io("remove", marker, error))?;
    }
    Ok(replaced)
}
