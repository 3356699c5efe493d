//! Which routers there are: their records, the files remembered of them, and the intents to create one that an earlier
//! process left.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Now;
use crate::custody;
use crate::database::Database;
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::{Cause, RouterId};
use crate::layout::{self, UNFINISHED};
use crate::open;
use crate::system::counters;
use crate::system::routers::{self, Lifecycle, RouterRecord};

pub(crate) const CREATE: Cause = Cause::new("router-create");
const RAISE: Cause = Cause::new("counter-raise");
const LOOK_UP: Cause = Cause::new("router-look-up");

/// Most routers whose files are remembered.
const KNOWN_MAX: usize = 4096;

/// The files of routers opened before, so that opening one again need not ask `system.db`.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<RouterId, [u8; 16]>>);

impl Known {
    pub(crate) fn get(&self, id: &RouterId) -> Option<[u8; 16]> {
        self.files().get(id).copied()
    }

    pub(crate) fn remember(&self, id: &RouterId, file_uid: [u8; 16]) {
        let mut files = self.files();
        if files.len() >= KNOWN_MAX {
            files.clear();
        }
        files.insert(id.clone(), file_uid);
    }

    pub(crate) fn forget(&self, id: &RouterId) {
        self.files().remove(id);
    }

    fn files(&self) -> MutexGuard<'_, HashMap<RouterId, [u8; 16]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the record of a router that must have a database.
pub(crate) async fn active(system: &Database, id: &RouterId) -> Result<RouterRecord, Error> {
    judge(id, get(system, id).await?)
}

fn judge(id: &RouterId, record: Option<RouterRecord>) -> Result<RouterRecord, Error> {
    match record {
        Some(record) if record.lifecycle == Lifecycle::Active => Ok(record),
        Some(record) if record.lifecycle == Lifecycle::Quarantined => Err(Error::Quarantined { id: id.clone() }),
        _ => Err(Error::RouterNotFound { id: id.clone() }),
    }
}

/// As [`active`]; also tells whether something was begun with the router that is not at its end.
pub(crate) async fn active_or_moving(system: &Database, id: &RouterId) -> Result<(RouterRecord, bool), Error> {
    let asked = id.clone();
    let (record, intent) = system
        .read(LOOK_UP, move |conn| {
            Box::pin(async move {
                Ok::<_, Error>((routers::get(conn, &asked).await?, custody::intent(conn, &asked).await?))
            })
        })
        .await?;
    Ok((judge(id, record)?, intent.is_some()))
}

async fn get(system: &Database, id: &RouterId) -> Result<Option<RouterRecord>, Error> {
    let id = id.clone();
    system.read(LOOK_UP, move |conn| Box::pin(async move { routers::get(conn, &id).await })).await
}

/// Lists all routers, in whatever state.
pub(crate) async fn list(system: &Database) -> Result<Vec<RouterRecord>, Error> {
    system.read(LOOK_UP, |conn| Box::pin(async move { routers::list(conn).await })).await
}

/// Lists the active routers.
pub(crate) async fn list_active(system: &Database) -> Result<Vec<RouterRecord>, Error> {
    let all: Vec<RouterRecord> =
        system.read(LOOK_UP, |conn| Box::pin(async move { routers::list(conn).await })).await?;
    Ok(all.into_iter().filter(|record| record.lifecycle == Lifecycle::Active).collect())
}

/// Reads a counter.
pub(crate) async fn counter(system: &Database, name: &'static str) -> Result<u64, Error> {
    system.read(LOOK_UP, move |conn| Box::pin(async move { counters::get(conn, name).await })).await
}

/// Raises a counter.
pub(crate) async fn raise_counter(system: &Database, name: &'static str, at_least: u64) -> Result<(), Error> {
    system.write(RAISE, move |conn| Box::pin(async move { counters::raise(conn, name, at_least).await })).await
}

/// Returns how many routers there are, in whatever state.
pub(crate) async fn count(system: &Database) -> Result<usize, Error> {
    system.read(LOOK_UP, |conn| Box::pin(async move { routers::count(conn).await })).await
}

async fn activate(system: &Database, id: &RouterId, uid: [u8; 16], now: Now) -> Result<(), Error> {
    let id = id.clone();
    // Whether this call or a sweep of another process made it active is the same to the caller.
    system
        .write(CREATE, move |conn| Box::pin(async move { routers::activate(conn, &id, &uid, &now).await.map(|_| ()) }))
        .await
}

/// Finishes one intent, unless its owner is at work.
pub(crate) async fn finish(system: &Database, files: &FleetFiles, id: &RouterId, now: Now) -> Result<(), Error> {
    match get(system, id).await? {
        Some(record) if record.lifecycle == Lifecycle::Provisioning => {}
        _ => return Ok(()),
    }
    if let Some(uid) = open::try_create(&files.router(id, None), &files.policy(now)).await? {
        activate(system, id, uid, now).await?;
    }
    Ok(())
}

/// Finishes what an earlier process left: intents are carried out and half-built files removed. One that fails is
/// logged and left for the next start; it never keeps the others from working.
pub(crate) async fn sweep(system: &Database, files: &FleetFiles, now: Now) -> Result<(), Error> {
    let all: Vec<RouterRecord> =
        system.read(LOOK_UP, |conn| Box::pin(async move { routers::list(conn).await })).await?;
    if system.is_read_only() {
        return Ok(());
    }
    for record in all.iter().filter(|record| record.lifecycle == Lifecycle::Provisioning) {
        if let Err(error) = finish(system, files, &record.id, now).await {
            tracing::warn!(router = %record.id, %error, "finishing the creation of a router failed");
        }
    }
    remove_leftovers(files)
}

fn remove_leftovers(files: &FleetFiles) -> Result<(), Error> {
    let routers = files.layout().routers();
    let entries = std::fs::read_dir(&routers).map_err(|error| Error::io("list", &routers, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", &routers, error))?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED)) else { continue };
        let Ok(id) = RouterId::parse(id) else { continue };
        // Its builder holds this lock.
        if let Some(_alone) = files.router_lock(&id).try_exclusive()? {
            layout::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
