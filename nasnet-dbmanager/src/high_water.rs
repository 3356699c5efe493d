//! The largest numbers already in use in a file: what a counter must be raised past when `system.db` was older.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use ulid::Ulid;

use crate::driver::during;
use crate::error::Error;
use crate::schema::FileKind;

/// How to find the largest number of a counter that a file uses.
///
/// A crate that takes numbers from a counter gives one for each kind of file it stores them in
/// (`Options::high_waters`). Restoring raises the counter past what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighWater {
    /// The counter.
    pub counter: &'static str,
    /// The kind of file.
    pub file: FileKind,
    /// The table that must exist for the statement to make sense.
    pub table: &'static str,
    /// A statement with one row and one integer, or NULL when there is none.
    pub sql: &'static str,
}

/// Returns what is found in a file that nobody else writes.
pub(crate) async fn in_file(all: &[HighWater], path: &Path, kind: FileKind) -> Result<Vec<(&'static str, u64)>, Error> {
    let mut found = Vec::new();
    let of_kind: Vec<_> = all.iter().filter(|high_water| high_water.file == kind).collect();
    if of_kind.is_empty() {
        return Ok(found);
    }
    let what = during("look for numbers in use");
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    let mut conn = options.connect().await.map_err(&what)?;
    let searched = async {
        for high_water in of_kind {
            let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)")
                .bind(high_water.table)
                .fetch_one(&mut conn)
                .await
                .map_err(&what)?;
            if exists {
                let number: Option<i64> =
                    sqlx::query_scalar(high_water.sql).fetch_one(&mut conn).await.map_err(&what)?;
                found.push((high_water.counter, u64::try_from(number.unwrap_or(0)).unwrap_or(0)));
            }
        }
        Ok::<_, Error>(())
    }
    .await;
    conn.close().await.map_err(&what)?;
    searched.map(|()| found)
}

/// How to find the largest ULID a file uses.
///
/// The ids of a fleet never go back. The newest one is saved with the ledger of the day and at shutdown; what was given
/// out after the last saving, before a power cut, is found again in the files (`Options::largest_ids`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargestId {
    /// The kind of file.
    pub file: FileKind,
    /// The table that must exist for the statement to make sense.
    pub table: &'static str,
    /// A statement with one row and one 16-byte value, or NULL when there is none; it must be found through an index,
    /// since it runs whenever a file is opened.
    pub sql: &'static str,
}

/// What this crate stores under ids of its own.
pub(crate) const OWN_IDS: [LargestId; 3] = [
    LargestId { file: FileKind::System, table: "users", sql: "SELECT MAX(id) FROM users" },
    LargestId { file: FileKind::System, table: "sessions", sql: "SELECT MAX(id) FROM sessions" },
    LargestId { file: FileKind::System, table: "api_keys", sql: "SELECT MAX(id) FROM api_keys" },
];

/// Ids of later moments are no ids of ours: one damaged or made-up id must not carry the order away for ever.
const BELIEVABLE_MS: u64 = 7_258_118_400_000; // The year 2200.

/// Returns the largest believable id of a kind of file.
pub(crate) async fn largest_id(
    all: &[LargestId],
    conn: &mut SqliteConnection,
    kind: FileKind,
) -> Result<Option<Ulid>, Error> {
    let what = during("look for the newest id");
    let mut largest = None;
    for id in all.iter().chain(&OWN_IDS).filter(|id| id.file == kind) {
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)")
            .bind(id.table)
            .fetch_one(&mut *conn)
            .await
            .map_err(&what)?;
        if !exists {
            continue;
        }
        let found: Option<Vec<u8>> =
            sqlx::query_scalar(id.sql).fetch_optional(&mut *conn).await.map_err(&what)?.flatten();
        let found = found.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(Ulid::from_bytes);
        largest = largest.max(found.filter(|id| id.timestamp_ms() < BELIEVABLE_MS));
    }
    Ok(largest)
}
