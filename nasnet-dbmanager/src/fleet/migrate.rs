//! Bringing every router database to the schema of the program, however many of them fail.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use super::{Fleet, FleetReport};
use crate::error::Error;
use crate::id::{Cause, RouterId};
use crate::manager::{DbManager, Inner};
use crate::open::{self, Policy};
use crate::options::OnOpen;
use crate::registry;
use crate::schema::FileKind;
use crate::system::{migration_log, routers};

const RECORD: Cause = Cause::new("migration-outcome");

/// One schema set that was brought up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigratedSet {
    /// The schema set.
    pub set: String,
    /// The version it had.
    pub from: u32,
    /// The version it has.
    pub to: u32,
}

/// What migrating one database came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationOutcome {
    /// It was as the program wants it.
    Current,
    /// These sets were brought up.
    Migrated(Vec<MigratedSet>),
}

impl DbManager {
    /// Brings every router database to the schema of the program, `parallel` at once (5 is plenty), whatever
    /// `Options::on_open` says, and records the outcome of each in the system database.
    ///
    /// One that fails is rolled back, reported and left as it was: [`Error::MigrationFailed`], [`Error::SchemaTooNew`],
    /// [`Error::InUse`] and the errors of opening a file. The others are migrated all the same.
    ///
    /// # Errors
    /// Those of reading the registry and of recording the outcome.
    ///
    /// # Cancel safety
    /// Once polled, it runs to its end and records the outcome whether or not anybody waits.
    pub async fn migrate_all(&self, parallel: usize) -> Result<FleetReport<MigrationOutcome>, Error> {
        let (inner, fleet) = (Arc::clone(&self.inner), self.fleet());
        let task = tokio::spawn(migrate_fleet(inner, fleet, parallel.max(1)));
        task.await.unwrap_or_else(|error| Err(Error::Panicked { message: format!("while migrating: {error}") }))
    }
}

async fn migrate_fleet(
    inner: Arc<Inner>,
    fleet: Fleet,
    parallel: usize,
) -> Result<FleetReport<MigrationOutcome>, Error> {
    let each = |id: RouterId| {
        let inner = Arc::clone(&inner);
        async move {
            let result = migrate_one(&inner, &id).await;
            if let Err(error) = &result {
                tracing::warn!(router = %id, %error, "migrating a router database failed");
            }
            (id, result)
        }
    };
    let mut routers: Vec<_> = stream::iter(fleet.ids().await?).map(each).buffer_unordered(parallel).collect().await;
    routers.sort_by(|a, b| a.0.cmp(&b.0));
    let report = FleetReport { routers };
    if !inner.system.is_read_only() {
        record(&inner, &report).await?;
    }
    Ok(report)
}

async fn migrate_one(inner: &Arc<Inner>, id: &RouterId) -> Result<MigrationOutcome, Error> {
    let record = registry::active(&inner.system, id).await?;
    let spec = inner.files.router(id, record.file_uid);
    let policy = Policy { on_open: OnOpen::Migrate, ..inner.files.policy(inner.files.options().clock.now()) };
    let brought_up = match open::migrate(&spec, &policy).await? {
        Some(brought_up) => brought_up,
        None => {
            inner.adopt_replaced(id, &spec).await?;
            open::migrate(&spec, &policy).await?.unwrap_or_default()
        }
    };
    if brought_up.is_empty() {
        return Ok(MigrationOutcome::Current);
    }
    let set = |(set, from, to): (&'static str, u32, u32)| MigratedSet { set: set.to_owned(), from, to };
    Ok(MigrationOutcome::Migrated(brought_up.into_iter().map(set).collect()))
}

/// Records every outcome in one commit.
async fn record(inner: &Inner, report: &FleetReport<MigrationOutcome>) -> Result<(), Error> {
    let versions: BTreeMap<String, u32> = {
        let sets = inner.files.sets().iter().filter(|set| set.file == FileKind::Router);
        sets.map(|set| (set.name.to_owned(), set.version())).collect()
    };
    let now = inner.files.options().clock.now();
    let rows: Vec<_> = report.routers.iter().map(|(id, result)| (id.clone(), row(result), result.is_ok())).collect();
    inner
        .system
        .write(RECORD, move |conn| {
            Box::pin(async move {
                for (id, (outcome, detail), succeeded) in rows {
                    migration_log::record(conn, &id, outcome, detail.as_deref(), &now).await?;
                    if succeeded {
                        routers::set_schema_versions(conn, &id, &versions, &now).await?;
                    }
                }
                Ok(())
            })
        })
        .await
}

fn row(result: &Result<MigrationOutcome, Error>) -> (&'static str, Option<String>) {
    match result {
        Ok(MigrationOutcome::Current) => ("current", None),
        Ok(MigrationOutcome::Migrated(sets)) => {
            let steps: Vec<_> = sets.iter().map(|set| format!("{} {} to {}", set.set, set.from, set.to)).collect();
            ("migrated", Some(steps.join(", ")))
        }
        Err(error) => ("failed", Some(error.to_string())),
    }
}
