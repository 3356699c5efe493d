//! `hot.db`, which may be wiped or damaged while it is in use: whoever notices has it opened anew.

use std::sync::{Mutex, PoisonError};

use crate::database::Database;
use crate::error::Error;
use crate::home;
use crate::manager::{DbManager, open_single};
use crate::open;
use crate::schema::FileKind;

/// The handle in use, and the right to replace it.
#[derive(Debug)]
pub(crate) struct HotDb {
    current: Mutex<Database>,
    renewing: tokio::sync::Mutex<()>,
}

impl HotDb {
    pub(crate) fn new(database: Database) -> Self {
        Self { current: Mutex::new(database), renewing: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn current(&self) -> Database {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl DbManager {
    /// Returns `hot.db`: recent events, in memory. [`Database::is_in_place`] tells whether it was wiped since.
    pub fn hot(&self) -> Database {
        self.inner.hot.current()
    }

    /// Opens `hot.db` anew when its file is not the one that was opened, as after a wipe of the run directory, or is damaged,
    /// making a new one unless another process has. A damaged one is removed first: it lives in memory that others need, and
    /// it is never whole again. Handles to the lost file are closed in the background once what runs on them
    /// has ended; what they wrote is gone.
    ///
    /// # Errors
    /// As opening the fleet; the lost handle stays in use then.
    ///
    /// # Cancel safety
    /// Safe: whoever calls next goes on.
    pub async fn renew_hot(&self) -> Result<Database, Error> {
        let hot = &self.inner.hot;
        let _one = hot.renewing.lock().await;
        let lost = hot.current();
        if lost.is_in_place() && !lost.is_damaged() {
            return Ok(lost);
        }
        let (files, now) = (&self.inner.files, self.now());
        let spec = files.single(FileKind::Hot, None);
        let path = lost.path().display();
        if lost.is_in_place() {
            tracing::error!(%path, "hot.db is damaged; making it anew");
            let damaged = lost.clone();
            open::remove_from_memory(&spec, move || damaged.is_in_place()).await?;
        } else {
            tracing::warn!(%path, "hot.db was wiped while in use; opening it anew");
        }
        home::prepare_run_dir(self.run_dir())?;
        open::make_in_memory(&spec, &files.policy(now)).await?;
        let opened = open_single(files, FileKind::Hot, now).await?;
        *hot.current.lock().unwrap_or_else(PoisonError::into_inner) = opened.clone();
        tokio::spawn(async move {
            if let Err(error) = lost.close().await {
                tracing::warn!(%error, "closing what was hot.db failed");
            }
        });
        Ok(opened)
    }
}
