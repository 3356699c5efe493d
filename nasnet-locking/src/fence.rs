//! The check that stops a holder that has been overtaken, inside the very transaction it protects.
//!
//! Table `fence` lives in every database that is guarded ([`crate::schema_sets`]) and holds the highest token that has
//! committed there, by key. SQLite's single writer makes check and write one step: a process that slept through its lease
//! and wakes in the middle of its write meets the row of the holder that came after it.

#[cfg(feature = "postgres")]
pub mod postgres;

use sqlx::{Row, SqliteConnection};

use crate::error::{Error, Seen};
use crate::key::{KeySet, LockKey};
use crate::store::storage;
use crate::token::FencingToken;

const HIGHEST_ABOVE: &str = "
SELECT key, token FROM (
    SELECT f.key, f.token
    FROM json_each(?1) AS above CROSS JOIN fence AS f ON f.key = above.value
    WHERE f.token > ?3
    UNION ALL
    SELECT f.key, f.token
    FROM json_each(?2) AS mine CROSS JOIN fence AS f ON f.key >= mine.value || '/' AND f.key < mine.value || '0'
    WHERE f.token > ?3
)
ORDER BY token DESC, key
LIMIT 1";

const RAISE: &str = "
INSERT INTO fence (key, token)
SELECT value, ?2 FROM json_each(?1) WHERE true
ON CONFLICT (key) DO UPDATE SET token = excluded.token WHERE excluded.token > fence.token";

/// Rejects the running write if a higher token was seen on any of the keys, above or below them; otherwise raises the
/// keys, and only them, to this token.
///
/// Call it first in the write transaction, and read what the write is decided on after it. A token equal to the stored
/// one writes nothing. Keys of other databases do no harm but guard nothing: each database is checked with the keys that
/// belong to it.
///
/// This knows tokens alone: it cannot tell that a lease ran out before its successor has written.
/// [`crate::LeaseGuard::fence`] looks at the lease as well.
///
/// # Errors
/// [`Error::Fenced`] naming the key and both tokens; the transaction must then be rolled back, which returning the error
/// from a write op does. [`Error::Storage`] when SQLite fails.
///
/// # Cancel safety
/// Dropping the future leaves the transaction to its owner; an op of [`nasnet_dbmanager::Database::write`] is rolled back.
pub async fn check(conn: &mut SqliteConnection, keys: &KeySet, token: FencingToken) -> Result<(), Error> {
    reject_overtaken(conn, keys, token).await?;
    raise(conn, keys, token).await
}

/// The first half of [`check`]: writes nothing.
pub(crate) async fn reject_overtaken(
    conn: &mut SqliteConnection,
    keys: &KeySet,
    token: FencingToken,
) -> Result<(), Error> {
    let higher = sqlx::query(HIGHEST_ABOVE)
        .bind(to_json(&keys.with_ancestors())?)
        .bind(to_json(keys.as_slice())?)
        .bind(token.to_sql())
        .fetch_optional(conn)
        .await
        .map_err(storage("check the fence"))?;
    let Some(row) = higher else { return Ok(()) };
    let key = LockKey::parse(row.try_get::<String, _>(0).map_err(storage("check the fence"))?)?;
    let seen = FencingToken::from_sql(row.try_get(1).map_err(storage("check the fence"))?)?;
    Err(Error::Fenced { key, token, seen: Seen::Token(seen) })
}

/// The second half of [`check`].
pub(crate) async fn raise(conn: &mut SqliteConnection, keys: &KeySet, token: FencingToken) -> Result<(), Error> {
    sqlx::query(RAISE)
        .bind(to_json(keys.as_slice())?)
        .bind(token.to_sql())
        .execute(conn)
        .await
        .map_err(storage("raise the fence"))?;
    Ok(())
}

/// Returns the token a key was last written under in this database, whatever lies above or below it.
///
/// # Errors
/// [`Error::Storage`] when SQLite fails, [`Error::Corrupt`] when the row holds no token.
pub async fn seen(conn: &mut SqliteConnection, key: &LockKey) -> Result<Option<FencingToken>, Error> {
    let token: Option<i64> = sqlx::query_scalar("SELECT token FROM fence WHERE key = ?1")
        .bind(key.as_str())
        .fetch_optional(conn)
        .await
        .map_err(storage("check the fence"))?;
    token.map(FencingToken::from_sql).transpose()
}

pub(crate) fn to_json<T: serde::Serialize>(paths: &[T]) -> Result<String, Error> {
    serde_json::to_string(paths).map_err(|error| Error::Corrupt { what: "key list", detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection};

    use super::*;

    #[tokio::test]
    async fn the_check_searches_the_key_index_and_never_scans() {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql(include_str!("../migrations/0001_fence.up.sql")).execute(&mut conn).await.unwrap();
        let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {HIGHEST_ABOVE}")))
            .fetch_all(&mut conn)
            .await
            .unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert_eq!(plan.iter().filter(|step| step.starts_with("SEARCH f USING PRIMARY KEY")).count(), 2, "{plan:?}");
        assert!(!plan.iter().any(|step| step.starts_with("SCAN f")), "{plan:?}");
    }
}
