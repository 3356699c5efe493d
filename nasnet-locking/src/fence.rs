//! The check that stops a holder that has been overtaken, inside the very transaction it protects.
//!
//! Table `fence` lives in every database that is guarded ([`crate::schema_sets`]) and holds the highest token that has
//! committed there, by key. SQLite's single writer makes check and write one step: a process that slept through its lease
//! and wakes in the middle of its write meets the row of the holder that came after it.

#[cfg(feature = "postgres")]
pub mod postgres;

use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use crate::error::{Error, Seen};
use crate::key::{KeySet, LockKey};
use crate::store::row::ulid;
use crate::store::storage;
use crate::token::FencingToken;

macro_rules! highest_above {
    () => {
        "
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
LIMIT 1"
    };
}

const HIGHEST_ABOVE: &str = highest_above!();

/// The same with the fleet the database belongs to: always one row.
const HIGHEST_ABOVE_AND_FLEET: &str = concat!(
    "SELECT higher.key, higher.token, mark.fleet_id FROM _nasnet_meta AS mark LEFT JOIN (",
    highest_above!(),
    ") AS higher ON true"
);

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
    Err(overtaken(row.try_get(0), row.try_get(1), token)?)
}

/// The same for a database of `nasnet-dbmanager`, which is known to belong to a fleet: a token says nothing in another one.
pub(crate) async fn reject_overtaken_or_foreign(
    conn: &mut SqliteConnection,
    keys: &KeySet,
    token: FencingToken,
    fleet: Ulid,
) -> Result<(), Error> {
    let fail = || storage("check the fence");
    let row = sqlx::query(HIGHEST_ABOVE_AND_FLEET)
        .bind(to_json(&keys.with_ancestors())?)
        .bind(to_json(keys.as_slice())?)
        .bind(token.to_sql())
        .fetch_one(conn)
        .await
        .map_err(fail())?;
    let database = ulid(row.try_get(2).map_err(fail())?)?;
    if database != fleet {
        let seen = Seen::AnotherFleet { lease: fleet, database };
        return Err(Error::Fenced { key: keys.first().clone(), token, seen });
    }
    if row.try_get::<Option<i64>, _>(1).map_err(fail())?.is_none() {
        return Ok(());
    }
    Err(overtaken(row.try_get(0), row.try_get(1), token)?)
}

/// Names what stands against a write.
fn overtaken(key: sqlx::Result<String>, seen: sqlx::Result<i64>, token: FencingToken) -> Result<Error, Error> {
    let key = LockKey::parse(key.map_err(storage("check the fence"))?)?;
    let seen = FencingToken::from_sql(seen.map_err(storage("check the fence"))?)?;
    Ok(Error::Fenced { key, token, seen: Seen::Token(seen) })
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
        let mark = "CREATE TABLE _nasnet_meta (one INTEGER PRIMARY KEY, fleet_id BLOB)";
        sqlx::raw_sql(mark).execute(&mut conn).await.unwrap();
        for statement in [HIGHEST_ABOVE, HIGHEST_ABOVE_AND_FLEET] {
            let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")))
                .fetch_all(&mut conn)
                .await
                .unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            let searches = plan.iter().filter(|step| step.starts_with("SEARCH f USING PRIMARY KEY")).count();
            assert_eq!(searches, 2, "{plan:?}");
            assert!(!plan.iter().any(|step| step.starts_with("SCAN f")), "{plan:?}");
        }
    }
}
