//! Routers that were purged: what the hot tier has of them belongs to no database, also where another has their id now.

use nasnet_dbmanager::Scope;
use sqlx::SqliteConnection;

use crate::error::Error;

/// A hole in the order: whoever appends next meets it, and looks who was purged.
const HOLE: &str = "INSERT INTO hot_log (first_seq, count, state, scope, reservation) \
     SELECT next, 1, 'void', ?1, next FROM (SELECT COALESCE(MAX(first_seq + count), 1) AS next FROM hot_log) \
     RETURNING first_seq";
const NOTE: &str = "INSERT INTO hot_purged (scope, through) VALUES (?1, ?2) \
     ON CONFLICT (scope) DO UPDATE SET through = excluded.through";
/// Versions begin anew.
const FORGET: &str = "DELETE FROM hot_tops WHERE scope = ?1";
const LIST: &str = "SELECT scope, through FROM hot_purged WHERE through >= ?1 ORDER BY through";
const THROUGH: &str = "SELECT through FROM hot_purged WHERE scope = ?1";

/// Notes that a router is purged, in the caller's transaction.
pub(crate) async fn note(conn: &mut SqliteConnection, scope: &Scope) -> Result<(), Error> {
    let through: i64 = sqlx::query_scalar(HOLE).bind(scope.as_str()).fetch_one(&mut *conn).await?;
    sqlx::query(NOTE).bind(scope.as_str()).bind(through).execute(&mut *conn).await?;
    sqlx::query(FORGET).bind(scope.as_str()).execute(conn).await?;
    Ok(())
}

/// The numbers from one on at which routers were purged, ascending.
pub(crate) async fn list(conn: &mut SqliteConnection, from: u64) -> Result<Vec<(Scope, u64)>, Error> {
    let found: Vec<(String, i64)> = sqlx::query_as(LIST).bind(from.cast_signed()).fetch_all(conn).await?;
    let purged = found.into_iter().map(|(scope, through)| {
        let scope = scope.parse::<Scope>().map_err(|error| Error::corrupt("hot.db hot_purged", error))?;
        Ok((scope, through.cast_unsigned()))
    });
    purged.collect()
}

/// Up to where what the hot tier has of a scope is not of its database.
pub(crate) async fn through(conn: &mut SqliteConnection, scope: &Scope) -> Result<u64, Error> {
    let found: Option<i64> = sqlx::query_scalar(THROUGH).bind(scope.as_str()).fetch_optional(conn).await?;
    Ok(found.map_or(0, i64::cast_unsigned))
}
