//! Collects the metrics of the fleet from the databases that are open anyway.
//!
//! A router whose database is closed keeps its last values: opening every database once a minute would cycle the open
//! set and wear the medium. The values live in memory; their sums reach flash once a day and at shutdown.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use crate::clock::Now;
use crate::database::Database;
use crate::error::Error;
use crate::id::{Cause, RouterId};
use crate::layout;
use crate::manager::DbManager;
use crate::vfs::Written;

const COLLECT: Cause = Cause::new("fleet-metrics");

const DAY_MS: i64 = 86_400_000;

const HAS_TABLE: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)";

/// A number that is collected of each router database (`Options::fleet_metrics`).
///
/// Beside these, `database.bytes` and `log.bytes` are always collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetMetric {
    /// Its name.
    pub name: &'static str,
    /// The table that must exist for the statement to make sense.
    pub table: &'static str,
    /// A statement with one row and one integer; it should be found through an index.
    pub sql: &'static str,
}

/// What was collected of one router, and what its database had written then.
#[derive(Debug, Clone)]
struct Collected {
    written: Written,
    values: Vec<(String, i64)>,
}

/// Collects from time to time.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    of: HashMap<RouterId, Collected>,
    /// When it was last done, by the clock of this boot.
    done_ms: Option<u64>,
    /// The day it was last done.
    day: Option<i64>,
}

impl Collector {
    /// Collects if the last time is `every_ms` ago; returns how many databases were looked into. When a day is over, its
    /// sums are saved first.
    pub(crate) async fn collect(&mut self, manager: &DbManager, every_ms: u64, now: Now) -> Result<usize, Error> {
        if self.done_ms.is_some_and(|then| now.boottime_ms.saturating_sub(then) < every_ms) {
            return Ok(0);
        }
        let metrics = manager.system().fleet_metrics();
        let today = now.wall_ms.div_euclid(DAY_MS);
        if let Some(day) = self.day.filter(|day| *day != today)
            && !manager.system().is_read_only()
        {
            metrics.save(day).await?;
        }
        (self.done_ms, self.day) = (Some(now.boottime_ms), Some(today));
        let wanted = manager.inner.files.options().fleet_metrics.clone();
        let (mut looked, mut failed) = (0, None);
        for (id, _, database) in manager.inner.routers.open_databases() {
            let written = database.written();
            if self.of.get(&id).is_none_or(|collected| collected.written != written) {
                match look(&database, &wanted).await {
                    Ok(values) => {
                        looked += 1;
                        self.of.insert(id.clone(), Collected { written, values });
                    }
                    // Evicted in the meantime; its values stay.
                    Err(Error::Closed { .. }) => continue,
                    Err(error) => {
                        failed = failed.or(Some(error));
                        continue;
                    }
                }
            }
            if let Some(collected) = self.of.get(&id) {
                metrics.record(&id, collected.values.clone()).await?;
            }
        }
        failed.map_or(Ok(looked), Err)
    }
}

async fn look(database: &Database, wanted: &[FleetMetric]) -> Result<Vec<(String, i64)>, Error> {
    let size = |path: &std::path::Path| layout::size_of(path).map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let mut values = vec![
        ("database.bytes".to_owned(), size(database.path())?),
        ("log.bytes".to_owned(), size(&layout::wal_of(database.path()))?),
    ];
    if !wanted.is_empty() {
        let wanted = wanted.to_vec();
        let found: Vec<(String, i64)> =
            database.read(COLLECT, move |conn| Box::pin(async move { ask(conn, &wanted).await })).await?;
        values.extend(found);
    }
    Ok(values)
}

async fn ask(conn: &mut SqliteConnection, wanted: &[FleetMetric]) -> Result<Vec<(String, i64)>, Error> {
    let mut found = Vec::with_capacity(wanted.len());
    for metric in wanted {
        let exists: bool = sqlx::query_scalar(HAS_TABLE).bind(metric.table).fetch_one(&mut *conn).await?;
        if exists {
            let value: Option<i64> = sqlx::query_scalar(metric.sql).fetch_one(&mut *conn).await?;
            found.push((metric.name.to_owned(), value.unwrap_or(0)));
        }
    }
    Ok(found)
}
