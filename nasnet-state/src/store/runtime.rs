//! The runtime layer, in the volatile file. A write here never touches the version of anything else.

use sqlx::{Row, SqliteConnection, query};
use ulid::Ulid;

use crate::error::Error;
use crate::layer::runtime::Runtime;
use crate::store::hex;
use crate::store::row::{json, storage};

/// Records what was seen of one resource of a scope (a router), in place of what was seen before.
///
/// # Errors
/// [`Error::Storage`].
pub async fn record(conn: &mut SqliteConnection, scope: &str, uid: Ulid, runtime: &Runtime) -> Result<(), Error> {
    record_many(conn, scope, &[(uid, runtime.clone())]).await
}

/// Records a whole reading with one statement.
///
/// # Errors
/// [`Error::Storage`].
pub async fn record_many(conn: &mut SqliteConnection, scope: &str, seen: &[(Ulid, Runtime)]) -> Result<(), Error> {
    let rows = seen
        .iter()
        .map(|(uid, runtime)| Ok((hex(&uid.to_bytes()), json("runtime", runtime)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    query(
        "INSERT INTO resource_runtime (scope, uid, runtime)
         SELECT ?1, unhex(value ->> 0), value ->> 1 FROM json_each(?2) WHERE true
         ON CONFLICT (scope, uid) DO UPDATE SET runtime = excluded.runtime",
    )
    .bind(scope)
    .bind(json("rows", &rows)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("record runtime"))?;
    Ok(())
}

/// Returns what was seen of a resource last.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Storage`].
pub async fn get(conn: &mut SqliteConnection, scope: &str, uid: Ulid) -> Result<Option<Runtime>, Error> {
    let row = query("SELECT runtime FROM resource_runtime WHERE scope = ?1 AND uid = ?2")
        .bind(scope)
        .bind(uid.to_bytes().to_vec())
        .fetch_optional(&mut *conn)
        .await
        .map_err(storage("read runtime"))?;
    let malformed = |detail: String| Error::Malformed { uid: uid.to_string(), layer: "runtime", detail };
    row.map(|row| {
        let text: String = row.try_get("runtime").map_err(|error| malformed(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))
    })
    .transpose()
}

/// Forgets what was seen of one resource.
///
/// # Errors
/// [`Error::Storage`].
pub async fn forget(conn: &mut SqliteConnection, scope: &str, uid: Ulid) -> Result<(), Error> {
    query("DELETE FROM resource_runtime WHERE scope = ?1 AND uid = ?2")
        .bind(scope)
        .bind(uid.to_bytes().to_vec())
        .execute(&mut *conn)
        .await
        .map_err(storage("forget runtime"))?;
    Ok(())
}

/// Forgets everything that was seen of a scope.
///
/// # Errors
/// [`Error::Storage`].
pub async fn forget_scope(conn: &mut SqliteConnection, scope: &str) -> Result<(), Error> {
    query("DELETE FROM resource_runtime WHERE scope = ?1")
        .bind(scope)
        .execute(&mut *conn)
        .await
        .map_err(storage("forget runtime"))?;
    Ok(())
}
