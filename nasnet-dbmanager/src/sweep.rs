//! What is done about directories that were being moved when an earlier process ended, or when a step of it failed.

use crate::clock::Now;
use crate::custody::{self, Action, Intent};
use crate::database::Database;
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::{Cause, RouterId};
use crate::manager::DbManager;
use crate::{quarantine, restore, retire};

const SWEEP: Cause = Cause::new("sweep");

/// Carries out or takes back every intent whose owner is gone. One that fails is logged and left for the next start;
/// it never keeps the others from working.
pub(crate) async fn sweep(system: &Database, files: &FleetFiles, now: Now) -> Result<(), Error> {
    if system.is_read_only() {
        return Ok(());
    }
    let intents: Vec<Intent> = system.read(SWEEP, |conn| Box::pin(custody::intents(conn))).await?;
    for intent in &intents {
        // Its owner holds this lock.
        let Some(_alone) = files.router_lock(&intent.id).try_exclusive()? else { continue };
        if let Err(error) = carry_out(system, files, intent, now).await {
            tracing::warn!(router = %intent.id, %error, "finishing it failed");
        }
    }
    Ok(())
}

/// Waits until nobody is at work on a router, and brings to its end what was begun with it and is not finished by then.
pub(crate) async fn finish_alone(system: &Database, files: &FleetFiles, id: &RouterId, now: Now) -> Result<(), Error> {
    let _alone = files.router_lock(id).exclusive(files.options().lock_timeout).await?;
    let asked = id.clone();
    let intent: Option<Intent> =
        system.read(SWEEP, move |conn| Box::pin(async move { custody::intent(conn, &asked).await })).await?;
    match intent {
        Some(intent) => carry_out(system, files, &intent, now).await,
        None => Ok(()),
    }
}

async fn carry_out(system: &Database, files: &FleetFiles, intent: &Intent, now: Now) -> Result<(), Error> {
    tracing::info!(router = %intent.id, action = ?intent.action, "finishing what was begun before");
    match intent.action {
        Action::Retire | Action::Reinstate | Action::Purge => retire::finish(system, files, intent, now).await,
        Action::Restore => restore::finish(system, files, intent, now).await.map(|_| ()),
        Action::Quarantine => quarantine::finish(system, files, intent, now).await,
    }
}

impl DbManager {
    /// Brings to its end what a failed call began with a router; tells whether there was anything. The caller has the
    /// router alone.
    pub(crate) async fn finish_begun(&self, id: &RouterId) -> Result<bool, Error> {
        let Some(intent) = self.begun(id).await? else { return Ok(false) };
        carry_out(self.system(), &self.inner.files, &intent, self.now()).await?;
        Ok(true)
    }

    /// Returns what was begun with a router and not brought to its end.
    pub(crate) async fn begun(&self, id: &RouterId) -> Result<Option<Intent>, Error> {
        let id = id.clone();
        self.system().read(SWEEP, move |conn| Box::pin(async move { custody::intent(conn, &id).await })).await
    }

    /// As [`DbManager::finish_begun`], for a router that does not open as its record says: what looks lost may only be
    /// elsewhere. Nothing is done while somebody is at work on it.
    pub(crate) async fn finish_move(&self, id: &RouterId, error: &Error) -> bool {
        let moved = matches!(
            error,
            Error::RouterNotFound { .. }
                | Error::WrongLifecycle { .. }
                | Error::MissingDatabase { .. }
                | Error::WrongDatabase { .. }
                | Error::Quarantined { .. }
        );
        if !moved || self.system().is_read_only() {
            return false;
        }
        let Ok(Some(_alone)) = self.inner.files.router_lock(id).try_exclusive() else { return false };
        self.finish_begun(id).await.unwrap_or_else(|error| {
            tracing::warn!(router = %id, %error, "what was begun with it cannot be finished");
            false
        })
    }
}
