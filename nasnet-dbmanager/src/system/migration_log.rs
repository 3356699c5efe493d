//! What became of each router's database the last time the fleet was migrated.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::clock::Now;
use crate::error::Error;
use crate::id::RouterId;

// A database that was current before and is again is not written again.
const RECORD: &str = "
    INSERT INTO migration_outcomes (router_id, outcome, detail, wall_ms)
    SELECT id, ?2, ?3, ?4 FROM routers WHERE id = ?1
    ON CONFLICT (router_id) DO UPDATE
    SET outcome = excluded.outcome, detail = excluded.detail, wall_ms = excluded.wall_ms
    WHERE (outcome, detail) IS NOT (excluded.outcome, excluded.detail)";

/// Reads the whole table: one row for each router of the fleet is what is asked for.
const LIST: &str = "SELECT router_id, outcome, detail, wall_ms FROM migration_outcomes ORDER BY router_id";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[("migration_log::RECORD", RECORD), ("migration_log::LIST", LIST)];

/// The newest word on the database of one router.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationRecord {
    /// The router.
    pub router: RouterId,
    /// `current`, `migrated` or `failed`.
    pub outcome: String,
    /// What failed, or which versions it has now.
    pub detail: Option<String>,
    /// When, wall clock.
    pub wall_ms: i64,
}

pub(crate) async fn record(
    conn: &mut SqliteConnection,
    router: &RouterId,
    outcome: &str,
    detail: Option<&str>,
    now: &Now,
) -> Result<(), Error> {
    sqlx::query(RECORD).bind(router.as_str()).bind(outcome).bind(detail).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Returns the newest word on each router's database, by router.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn list(conn: &mut SqliteConnection) -> Result<Vec<MigrationRecord>, Error> {
    sqlx::query(LIST).fetch_all(conn).await?.iter().map(decode).collect()
}

fn decode(row: &SqliteRow) -> Result<MigrationRecord, Error> {
    Ok(MigrationRecord {
        router: RouterId::parse(row.try_get::<&str, _>("router_id")?)?,
        outcome: row.try_get("outcome")?,
        detail: row.try_get("detail")?,
        wall_ms: row.try_get("wall_ms")?,
    })
}
