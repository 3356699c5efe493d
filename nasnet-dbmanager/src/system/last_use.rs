//! When sessions and keys were last used: in memory by the minute, on flash by the day.

use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use super::{api_keys, column, sessions};
use crate::database::Database;
use crate::error::Error;
use crate::id::Cause;

const TOUCH: Cause = Cause::new("last-use");
const WRITE_BACK: Cause = Cause::new("last-use-write-back");

/// A use this soon after the last one is not noted.
pub(super) const GRAIN_MS: i64 = 60_000;

/// On flash a use means its day.
const DAY_MS: i64 = 86_400_000;

/// How many are written back in one transaction.
const BATCH: u32 = 256;

const NOTE: &str = "
    INSERT INTO last_use (kind, id, wall_ms) VALUES (?1, ?2, ?3)
    ON CONFLICT (kind, id) DO UPDATE SET wall_ms = excluded.wall_ms WHERE excluded.wall_ms > wall_ms";

const GET: &str = "SELECT wall_ms FROM last_use WHERE kind = ?1 AND id = ?2";

/// Looks at every row: the file is in memory and the work is done once an hour.
const DUE: &str = "
    SELECT kind, id, wall_ms FROM last_use
    WHERE written_ms IS NULL OR wall_ms / ?1 <> written_ms / ?1 LIMIT ?2";

const WRITTEN: &str = "UPDATE last_use SET written_ms = ?3 WHERE kind = ?1 AND id = ?2";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] =
    &[("last_use::NOTE", NOTE), ("last_use::GET", GET), ("last_use::DUE", DUE), ("last_use::WRITTEN", WRITTEN)];

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Used {
    Session(Ulid),
    ApiKey(Ulid),
}

impl Used {
    fn columns(self) -> (&'static str, Ulid) {
        match self {
            Self::Session(id) => ("session", id),
            Self::ApiKey(id) => ("api_key", id),
        }
    }
}

/// Notes a use in runtime.db.
pub(super) async fn note(runtime: &Database, used: Used, wall_ms: i64) -> Result<(), Error> {
    let (kind, id) = used.columns();
    runtime
        .write(TOUCH, move |conn| {
            Box::pin(async move {
                sqlx::query(NOTE).bind(kind).bind(column::ulid(&id)).bind(wall_ms).execute(conn).await?;
                Ok(())
            })
        })
        .await
}

/// Returns the noted use of each, in order.
pub(super) async fn noted(runtime: &Database, used: Vec<Used>) -> Result<Vec<Option<i64>>, Error> {
    runtime
        .read(TOUCH, move |conn| {
            Box::pin(async move {
                let mut noted = Vec::with_capacity(used.len());
                for used in used {
                    let (kind, id) = used.columns();
                    let query = sqlx::query_scalar(GET).bind(kind).bind(column::ulid(&id));
                    noted.push(query.fetch_optional(&mut *conn).await?);
                }
                Ok(noted)
            })
        })
        .await
}

/// Writes those whose day changed to system.db and returns how many.
pub(super) async fn write_back(system: &Database, runtime: &Database) -> Result<u64, Error> {
    let mut total = 0;
    loop {
        let due = due(runtime).await?;
        if due.is_empty() {
            return Ok(total);
        }
        total += u64::try_from(due.len()).unwrap_or(u64::MAX);
        let rows = due.clone();
        let done: Result<(), Error> = system
            .write(WRITE_BACK, move |conn| {
                Box::pin(async move {
                    for (used, wall_ms) in rows {
                        match used {
                            Used::Session(id) => sessions::set_last_seen(conn, id, wall_ms).await?,
                            Used::ApiKey(id) => api_keys::set_last_used(conn, id, wall_ms).await?,
                        }
                    }
                    Ok(())
                })
            })
            .await;
        done?;
        let done: Result<(), Error> =
            runtime.write(WRITE_BACK, move |conn| Box::pin(async move { mark(conn, due).await })).await;
        done?;
    }
}

async fn mark(conn: &mut SqliteConnection, written: Vec<(Used, i64)>) -> Result<(), Error> {
    for (used, wall_ms) in written {
        let (kind, id) = used.columns();
        sqlx::query(WRITTEN).bind(kind).bind(column::ulid(&id)).bind(wall_ms).execute(&mut *conn).await?;
    }
    Ok(())
}

async fn due(runtime: &Database) -> Result<Vec<(Used, i64)>, Error> {
    runtime
        .read(WRITE_BACK, |conn| {
            Box::pin(async move {
                let rows = sqlx::query(DUE).bind(DAY_MS).bind(BATCH).fetch_all(conn).await?;
                rows.iter()
                    .map(|row| {
                        let id = column::read_ulid("id of what was used", row.try_get("id")?)?;
                        let used = if row.try_get::<&str, _>("kind")? == "session" {
                            Used::Session(id)
                        } else {
                            Used::ApiKey(id)
                        };
                        Ok((used, row.try_get("wall_ms")?))
                    })
                    .collect()
            })
        })
        .await
}
