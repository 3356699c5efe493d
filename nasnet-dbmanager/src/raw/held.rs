//! The handle of a connection, taken from the thread of the driver and used on the calling one.
//!
//! The whole unsafe code of the raw path is in this file. Its two claims:
//! - nobody else calls SQLite on the handle meanwhile, which the lock of the driver guarantees;
//! - no statement of ours outlives the moment the driver gets the handle back, which the order of the fields guarantees.
#![expect(unsafe_code, reason = "the lock of the driver borrows the connection it is kept beside")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;
use sqlx::sqlite::LockedSqliteHandle;

use crate::connection::{BUSY_TIMEOUT, Deadline, Guarded};
use crate::driver::{during, translate_raw};
use crate::error::Error;

/// A connection whose statements run on the calling thread.
///
/// While it is held SQLite never sleeps: a busy database is reported at once.
pub(crate) struct Held {
    // The fields are dropped in this order. First the statements are finalised, then the thread of the driver may touch
    // the handle again, then the connection is closed.
    conn: Connection,
    _lock: LockedSqliteHandle<'static>,
    owner: Owner,
    pub(crate) deadline: Arc<Deadline>,
    pub(crate) may_commit: Arc<AtomicBool>,
    pub(crate) rolled_back: Arc<AtomicBool>,
}

impl Held {
    /// Takes the handle; it costs one change of threads.
    ///
    /// # Errors
    /// [`Error::Storage`] when the thread of the driver has ended; the connection is closed then.
    pub(crate) async fn take(guarded: Guarded, statements_max: usize) -> Result<Self, Error> {
        let (deadline, may_commit, rolled_back) =
            (Arc::clone(&guarded.deadline), Arc::clone(&guarded.may_commit), Arc::clone(&guarded.rolled_back));
        let mut owner = Owner(NonNull::from(Box::leak(Box::new(guarded))));
        // SAFETY: the pointer comes from a box that only `owner` frees. The reference has no bound on its lifetime, but
        // what borrows from it (the future, then the lock) is dropped before `owner` is: here by the order of the
        // variables, later by the order of the fields. Nothing else makes a reference to the connection until then.
        let guarded: &'static mut Guarded = unsafe { owner.0.as_mut() };
        let mut lock = guarded.conn.lock_handle().await.map_err(during("take the connection"))?;
        // SAFETY: the handle is open, since the connection is, and stays so until `owner` is dropped. As long as `lock`
        // lives the driver promises to make no call on it, and `conn`, the only other user, is dropped before `lock`.
        // `from_handle` does not take ownership: dropping `conn` finalises its statements and leaves the handle open.
        let conn = unsafe { Connection::from_handle(lock.as_raw_handle().as_ptr()) };
        let conn = conn.map_err(|error| translate_raw("take the connection", error))?;
        conn.set_prepared_statement_cache_capacity(statements_max);
        conn.busy_timeout(Duration::ZERO).map_err(|error| translate_raw("configure the database", error))?;
        Ok(Self { conn, _lock: lock, owner, deadline, may_commit, rolled_back })
    }

    /// Gives the handle back to the driver.
    ///
    /// # Errors
    /// When SQLite does not take the time it has to wait for others again; the connection is closed then.
    pub(crate) fn give_back(self) -> Result<Guarded, Error> {
        let Self { conn, _lock: lock, owner, .. } = self;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(|error| translate_raw("configure the database", error))?;
        drop(conn);
        drop(lock);
        Ok(*owner.into_box())
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }
}

/// The connection on the heap, where it keeps its place while the lock borrows it.
struct Owner(NonNull<Guarded>);

// SAFETY: it owns the connection as a `Box<Guarded>` does, and `Guarded` is `Send` (checked below).
unsafe impl Send for Owner {}

const fn is_send<T: Send>() {}
const _: () = is_send::<Guarded>();

impl Owner {
    fn into_box(self) -> Box<Guarded> {
        let owner = std::mem::ManuallyDrop::new(self);
        // SAFETY: the pointer came from `Box::leak`, and since `owner` is not dropped nobody frees it a second time.
        unsafe { Box::from_raw(owner.0.as_ptr()) }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` and is freed only here; `into_box` never lets this run.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
