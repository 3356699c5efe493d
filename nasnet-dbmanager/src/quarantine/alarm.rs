//! Damage that is met while a router database is in use: its handles are refused at once, the file is looked at as a
//! whole once nobody has it open, and set aside if it is damaged indeed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::copy;
use crate::connection::Role;
use crate::error::Error;
use crate::id::{RouterId, Scope};
use crate::manager::{DbManager, Inner};
use crate::options::OnDamage;
use crate::system::routers::Lifecycle;
use crate::vitals::Suspect;

/// How long after a router could not be set aside the next attempt comes by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Deals with damage as it is found, as long as the fleet is open.
pub(crate) async fn watch(inner: Weak<Inner>) {
    let Some(suspects) = inner.upgrade().map(|inner| Arc::clone(inner.files.suspects())) else { return };
    loop {
        // Closing the fleet rings too; one that is dropped does not, and another process may have let go meanwhile.
        tokio::time::timeout(LOOK_AGAIN, suspects.found.notified()).await.ok();
        let Some(inner) = inner.upgrade() else { return };
        if inner.system.is_closed() {
            return;
        }
        let manager = DbManager { inner };
        for id in suspects.routers() {
            if let Err(error) = manager.settle_suspicion(&id).await {
                tracing::warn!(router = %id, %error, "a damaged router is not set aside yet");
                continue;
            }
            let recovers = manager.inner.files.options().on_damage == OnDamage::Recover;
            // Replaced before somebody asks for it; if that fails, whoever asks tries again and gets the error.
            if recovers && let Err(error) = manager.lease_recovered(&id).await {
                tracing::warn!(router = %id, %error, "a damaged router is not replaced yet");
            }
        }
    }
}

impl DbManager {
    /// Sets a router aside in whose open file damage was found. `Ok` when the suspicion is dealt with: it is set aside,
    /// was replaced, or turned out to be sound.
    ///
    /// # Cancel safety
    /// Safe: what has begun goes on in its own task.
    pub(crate) async fn settle_suspicion(&self, id: &RouterId) -> Result<(), Error> {
        let Some(suspect) = self.inner.files.suspects().get(id) else { return Ok(()) };
        if self.system().is_read_only() {
            return Err(suspect.error);
        }
        let (manager, id) = (self.clone(), id.clone());
        let settling = tokio::spawn(async move {
            let settled = manager.set_suspect_aside(&id, &suspect).await;
            match &settled {
                Ok(()) => manager.inner.files.suspects().clear(&id, suspect.file_uid),
                Err(_) => manager.inner.failures.note(&id, &Err::<(), _>(suspect.error.clone())),
            }
            settled
        });
        settling.await.map_err(|error| Error::Panicked { message: format!("while setting a router aside: {error}") })?
    }

    async fn set_suspect_aside(&self, id: &RouterId, suspect: &Suspect) -> Result<(), Error> {
        // Only the file that was judged is closed: another may have taken its place.
        let Some(_alone) = self.alone_with(id, suspect.file_uid).await? else { return Ok(()) };
        let Some(record) = self.system().routers().get(id).await? else { return Ok(()) };
        if record.lifecycle != Lifecycle::Active || record.file_uid != Some(suspect.file_uid) {
            return Ok(());
        }
        let mut guarded = match self.spec_of(&Scope::Router(id.clone())).target.connect(Role::Writer).await {
            Ok(guarded) => guarded,
            Err(error) if error.is_damage() => return self.begin_quarantine(id, &error.to_string()).await,
            Err(error) => return Err(error),
        };
        let checked = copy::integrity_check(&mut guarded.conn).await;
        guarded.close().await.ok();
        match checked {
            Ok(()) => {
                tracing::warn!(router = %id, error = %suspect.error, "the file is sound: the damage was in memory");
                Ok(())
            }
            Err(error) if error.is_damage() => self.begin_quarantine(id, &error.to_string()).await,
            Err(error) => Err(error),
        }
    }
}
