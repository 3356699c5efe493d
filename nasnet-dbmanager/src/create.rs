//! Routers come into being in two databases: the intent in `system.db`, then the file, then the mark that it is there.
//!
//! A crash between any two steps leaves an intent, and finishing an intent twice does the same as once. Routers created
//! together share what costs: the two transactions, the template that is copied, and the sync of the directory their
//! directories are named in; and the files are brought to the medium side by side, so that the file system commits them
//! together.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::clock::Now;
use crate::database::Database;
use crate::db_lock::FileLock;
use crate::error::Error;
use crate::fleet::FleetReport;
use crate::fleet_files::FleetFiles;
use crate::id::RouterId;
use crate::layout;
use crate::manager::DbManager;
use crate::meta;
use crate::open::{self, Policy, Spec};
use crate::registry::{self, CREATE};
use crate::system::routers::{self, Lifecycle, NewRouter, RouterRecord};
use crate::template::Stamp;

/// Most routers that share an intent, a sync and a record; also what a failure of one of these can take back.
const TOGETHER: usize = 64;

/// Most files brought to the medium at once.
const SIDE_BY_SIDE: usize = 8;

type FileUid = [u8; 16];

impl DbManager {
    /// Registers a router and creates its database.
    ///
    /// # Errors
    /// [`Error::RouterExists`]; [`Error::NoSpace`], [`Error::Io`] and others of the medium, after which the id is free
    /// again.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it. A crash leaves an intent that the next open of the fleet carries out.
    pub async fn create_router(&self, new: NewRouter) -> Result<RouterRecord, Error> {
        let id = new.id().clone();
        let mut created = self.create_in_task(vec![new]).await;
        created.pop().map_or(Err(Error::RouterNotFound { id }), |(_, created)| created)
    }

    /// Registers routers and creates their databases, as for the import of a fleet: several times faster than one by one,
    /// with the same guarantees for each. Returns what became of each, in the order they were given.
    ///
    /// What is reported as created survives a power cut. One that fails is answered with its error and does not keep the
    /// others from being created; its id is free again, as after [`DbManager::create_router`].
    ///
    /// # Errors
    /// Those of [`DbManager::create_router`], for each router.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop what is under way, up to 64 routers; those after them are not registered.
    pub async fn create_routers(&self, new: impl IntoIterator<Item = NewRouter>) -> FleetReport<RouterRecord> {
        let mut new = new.into_iter();
        let mut report = FleetReport { routers: Vec::new() };
        loop {
            let some: Vec<_> = new.by_ref().take(TOGETHER).collect();
            if some.is_empty() {
                return report;
            }
            report.routers.extend(self.create_in_task(some).await);
        }
    }

    /// Creates routers in a task of its own: one that nobody waits for any more must not leave half of them.
    async fn create_in_task(&self, new: Vec<NewRouter>) -> Vec<(RouterId, Result<RouterRecord, Error>)> {
        let ids: Vec<RouterId> = new.iter().map(|new| new.id().clone()).collect();
        let manager = self.clone();
        let task = tokio::spawn(async move {
            let created = create_some(&manager.inner.system, &manager.inner.files, new, manager.now()).await;
            if let Err(error) = manager.count_routers().await {
                tracing::warn!(%error, "the room of the flash is not divided anew");
            }
            created
        });
        task.await.unwrap_or_else(|error| {
            let error = Error::Panicked { message: error.to_string() };
            ids.into_iter().map(|id| (id, Err(error.clone()))).collect()
        })
    }

    /// Divides the room of the flash anew, after the number of routers changed.
    pub(crate) async fn count_routers(&self) -> Result<(), Error> {
        self.inner.files.room().set_routers(registry::count(self.system()).await?);
        Ok(())
    }
}

/// Creates routers with one intent and one record; answers each, in the order given.
async fn create_some(
    system: &Database,
    files: &FleetFiles,
    new: Vec<NewRouter>,
    now: Now,
) -> Vec<(RouterId, Result<RouterRecord, Error>)> {
    let ids: Vec<RouterId> = new.iter().map(|new| new.id().clone()).collect();
    let intended: Result<BTreeSet<RouterId>, Error> =
        system.write(CREATE, move |conn| Box::pin(async move { routers::insert_many(conn, &new, &now).await })).await;
    let mut intended = match intended {
        Ok(intended) => intended,
        Err(error) => return ids.into_iter().map(|id| (id, Err(error.clone()))).collect(),
    };
    let mut built = build(files, &intended, now).await;
    let made = built.iter().filter_map(|(id, built)| Some((id.clone(), *built.as_ref().ok()?))).collect();
    let failed = built.iter().filter(|(_, built)| built.is_err()).map(|(id, _)| id.clone()).collect();
    let mut recorded = record(system, made, failed, now).await;
    let mut answers = Vec::with_capacity(ids.len());
    for id in ids {
        let answer = if intended.remove(&id) {
            let built = built.remove(&id).unwrap_or_else(|| Err(Error::RouterNotFound { id: id.clone() }));
            match (built, &mut recorded) {
                (Err(error), _) => Err(error),
                (Ok(_), Err(error)) => Err(error.clone()),
                (Ok(_), Ok(records)) => records.remove(&id).ok_or_else(|| Error::RouterNotFound { id: id.clone() }),
            }
        } else {
            // It may be an intent whose owner is gone.
            match registry::finish(system, files, &id, now).await {
                Ok(()) => Err(Error::RouterExists { id: id.clone() }),
                Err(error) => Err(error),
            }
        };
        answers.push((id, answer));
    }
    answers
}

/// Marks routers whose files are in place as active, takes back the intents of the others, and returns the records.
async fn record(
    system: &Database,
    made: Vec<(RouterId, FileUid)>,
    failed: Vec<RouterId>,
    now: Now,
) -> Result<BTreeMap<RouterId, RouterRecord>, Error> {
    let ids: Vec<RouterId> = made.iter().map(|(id, _)| id.clone()).collect();
    let recorded: Result<(), Error> = system
        .write(CREATE, move |conn| {
            Box::pin(async move {
                // Whether this call or a sweep of another process makes one active is the same to the caller.
                routers::activate_many(conn, &made, &now).await?;
                // Nothing was built, so the id must not stay taken.
                for id in &failed {
                    routers::abandon(conn, id).await?;
                }
                Ok(())
            })
        })
        .await;
    if let Err(error) = recorded {
        tracing::warn!(%error, "routers are left half created; the next start finishes them");
        return Err(error);
    }
    let records: Vec<RouterRecord> =
        system.read(CREATE, move |conn| Box::pin(async move { routers::get_many(conn, &ids).await })).await?;
    let active = records.into_iter().filter(|record| record.lifecycle == Lifecycle::Active);
    Ok(active.map(|record| (record.id.clone(), record)).collect())
}

/// A file that is being brought to the medium, or was; the lock stays with whoever is at work, even if nobody waits.
struct Placed {
    id: RouterId,
    _lock: Option<FileLock>,
    result: Result<FileUid, Error>,
}

/// Builds the databases of routers and brings them and their names to the medium.
async fn build(files: &FleetFiles, ids: &BTreeSet<RouterId>, now: Now) -> BTreeMap<RouterId, Result<FileUid, Error>> {
    let policy = files.policy(now);
    let mut stamp = None;
    let mut placing = FuturesUnordered::new();
    let mut placed = Vec::with_capacity(ids.len());
    for id in ids {
        let spec = files.router(id, None);
        match prepare(&spec, &policy, &mut stamp).await {
            Ok((lock, Content::Bytes(uid, bytes))) => {
                if placing.len() >= SIDE_BY_SIDE {
                    placed.extend(placing.next().await);
                }
                let work = {
                    let id = id.clone();
                    tokio::task::spawn_blocking(move || {
                        let result = open::place(&spec, &bytes).map(|()| uid);
                        Placed { id, _lock: Some(lock), result }
                    })
                };
                let id = id.clone();
                placing.push(async move {
                    work.await.unwrap_or_else(|error| {
                        let result = Err(Error::Panicked { message: error.to_string() });
                        Placed { id, _lock: None, result }
                    })
                });
            }
            Ok((lock, Content::There(uid))) => {
                placed.push(Placed { id: id.clone(), _lock: Some(lock), result: Ok(uid) });
            }
            Err(error) => placed.push(Placed { id: id.clone(), _lock: None, result: Err(error) }),
        }
    }
    if let Some(stamp) = stamp {
        stamp.put_away().await;
    }
    while let Some(done) = placing.next().await {
        placed.push(done);
    }
    // The files are on the medium; this brings their names there, before anything says that they exist.
    let named = if placed.iter().any(|placed| placed.result.is_ok()) {
        layout::sync(&files.layout().routers())
    } else {
        Ok(())
    };
    placed.into_iter().map(|placed| (placed.id, placed.result.and_then(|uid| named.clone().map(|()| uid)))).collect()
}

/// What the database of a router is to hold.
enum Content {
    Bytes(FileUid, Vec<u8>),
    /// It is in place.
    There(FileUid),
}

/// Takes the lock of a router and makes the bytes of its database.
async fn prepare(spec: &Spec, policy: &Policy, stamp: &mut Option<Stamp>) -> Result<(FileLock, Content), Error> {
    let lock = spec.lock.exclusive(policy.lock_timeout).await?;
    if !spec.is_missing()? {
        let uid = open::create_alone(spec, policy).await?;
        return Ok((lock, Content::There(uid)));
    }
    let uid = meta::new_file_uid()?;
    let stamped = async {
        let ready = match stamp.take() {
            Some(ready) => ready,
            None => Stamp::ready(spec, policy).await?,
        };
        stamp.insert(ready).bytes(spec, policy, uid).await
    }
    .await;
    match stamped {
        Ok(bytes) => Ok((lock, Content::Bytes(uid, bytes))),
        Err(error) => {
            if let Some(unusable) = stamp.take() {
                unusable.put_away().await;
            }
            // A template that cannot be used is no reason to have no database.
            tracing::debug!(path = %spec.path().display(), %error, "no template; building the database itself");
            let uid = open::create_alone(spec, policy).await?;
            Ok((lock, Content::There(uid)))
        }
    }
}
