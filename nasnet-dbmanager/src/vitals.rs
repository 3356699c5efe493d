//! What an open database finds out about itself while it is used, and who is told.
//!
//! The writer or a reader that meets damage notes it before it answers the call that met it. From then on every handle
//! is refused, and whoever asks for the router next waits until it is set aside ([`Suspects`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sqlx::SqliteConnection;
use tokio::sync::Notify;

use crate::driver::translate;
use crate::error::Error;
use crate::id::RouterId;
use crate::schema::FileKind;

/// The state of health of one open database, shared by its writer, its readers and its handles.
#[derive(Debug)]
pub(crate) struct Vitals {
    kind: FileKind,
    router: Option<RouterId>,
    file_uid: [u8; 16],
    suspects: Arc<Suspects>,
    damage: OnceLock<Error>,
    /// Why the last transaction was lost; none once another is committed.
    trouble: Mutex<Option<String>>,
    /// Work of the operation that is running of which all or nothing may be committed, and which is not done.
    half_done: AtomicU32,
}

impl Vitals {
    pub(crate) fn new(
        kind: FileKind,
        router: Option<RouterId>,
        file_uid: [u8; 16],
        suspects: Arc<Suspects>,
    ) -> Arc<Self> {
        let (damage, trouble) = (OnceLock::new(), Mutex::new(None));
        Arc::new(Self { kind, router, file_uid, suspects, damage, trouble, half_done: AtomicU32::new(0) })
    }

    pub(crate) fn begin_whole(&self) {
        self.half_done.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn finish_whole(&self) {
        self.half_done.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).ok();
    }

    /// Whether the operation that has ended left work half done; the next one begins with none.
    pub(crate) fn take_half_done(&self) -> bool {
        self.half_done.swap(0, Ordering::AcqRel) != 0
    }

    /// Returns the kind of the database.
    pub(crate) fn kind(&self) -> FileKind {
        self.kind
    }

    /// Returns the damage found, if any.
    pub(crate) fn damage(&self) -> Option<&Error> {
        // A file that exists once cannot be replaced while the fleet is open; parts of it may still be readable.
        self.router.as_ref().and_then(|_| self.damage.get())
    }

    /// Tells whether damage was found, also in a file that exists once.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damage.get().is_some()
    }

    /// Notes an error if it says that the file is damaged; tells whether it did.
    pub(crate) fn note_damage(&self, error: &Error) -> bool {
        if !error.is_damage() {
            return false;
        }
        if self.damage.set(error.clone()).is_ok() {
            let router = self.router.as_ref().map(RouterId::as_str);
            tracing::error!(router, database = self.kind.as_str(), %error, "damage found while in use");
            match &self.router {
                Some(id) => self.suspects.suspect(id, self.file_uid, error),
                None => self.suspects.note_single(self.kind, error),
            }
        }
        true
    }

    /// Notes why a transaction was lost, when that concerns the whole database.
    pub(crate) fn note_trouble(&self, error: &Error) {
        if matches!(
            error,
            Error::NoSpace { .. } | Error::ReadOnly { .. } | Error::Medium { .. } | Error::Unknown { .. }
        ) {
            *self.lock() = Some(error.to_string());
        }
    }

    /// Notes that a transaction was committed.
    pub(crate) fn note_commit(&self) {
        self.lock().take();
    }

    /// Returns why the last transaction was lost.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A router whose open file was found damaged and has not been dealt with.
#[derive(Debug, Clone)]
pub(crate) struct Suspect {
    pub(crate) file_uid: [u8; 16],
    pub(crate) error: Error,
}

/// The databases of a fleet in which damage was found while they were in use.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    routers: Mutex<BTreeMap<RouterId, Suspect>>,
    singles: Mutex<BTreeMap<&'static str, String>>,
    /// Rung when a router becomes one.
    pub(crate) found: Notify,
}

impl Suspects {
    fn suspect(&self, id: &RouterId, file_uid: [u8; 16], error: &Error) {
        let suspect = Suspect { file_uid, error: error.clone() };
        self.routers.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), suspect);
        self.found.notify_one();
    }

    fn note_single(&self, kind: FileKind, error: &Error) {
        let mut singles = self.singles.lock().unwrap_or_else(PoisonError::into_inner);
        singles.insert(kind.as_str(), error.to_string());
    }

    pub(crate) fn get(&self, id: &RouterId) -> Option<Suspect> {
        self.routers.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub(crate) fn routers(&self) -> Vec<RouterId> {
        self.routers.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Forgets a router once the file that was found damaged is out of use.
    pub(crate) fn clear(&self, id: &RouterId, file_uid: [u8; 16]) {
        let mut routers = self.routers.lock().unwrap_or_else(PoisonError::into_inner);
        if routers.get(id).is_some_and(|suspect| suspect.file_uid == file_uid) {
            routers.remove(id);
        }
    }

    /// Returns what was found in the databases that exist once, by name.
    pub(crate) fn singles(&self) -> Vec<(&'static str, String)> {
        let singles = self.singles.lock().unwrap_or_else(PoisonError::into_inner);
        singles.iter().map(|(name, why)| (*name, why.clone())).collect()
    }
}

/// Returns what SQLite said last on this connection, if it was an error: operations return errors of their own types,
/// in which that of SQLite may be hidden.
pub(crate) async fn last_error(conn: &mut SqliteConnection) -> Option<Error> {
    let error = conn.lock_handle().await.ok()?.last_error()?;
    Some(translate("run a statement", sqlx::Error::Database(Box::new(error))))
}
