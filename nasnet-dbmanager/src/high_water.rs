//! The largest numbers already in use in a file: what a counter must be raised past when `system.db` was older.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

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
