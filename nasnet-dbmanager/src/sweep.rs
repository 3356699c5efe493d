//! What opening a fleet does about directories that were being moved when an earlier process ended.

use crate::clock::Now;
use crate::custody::{self, Action, Intent};
use crate::database::Database;
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::id::Cause;
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
        tracing::info!(router = %intent.id, action = ?intent.action, "finishing what an earlier process began");
        let done = match intent.action {
            Action::Retire | Action::Reinstate | Action::Purge => retire::finish(system, files, intent, now).await,
            Action::Restore => restore::finish(system, files, intent, now).await.map(|_| ()),
            Action::Quarantine => quarantine::finish(system, files, intent, now).await,
        };
        if let Err(error) = done {
            tracing::warn!(router = %intent.id, %error, "finishing it failed");
        }
    }
    Ok(())
}
