//! References that cross databases: no foreign key watches them, so they are looked for.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::Fleet;
use crate::error::Error;
use crate::id::{Cause, RouterId};

const LOOK: Cause = Cause::new("fleet-references");

/// How many values one statement looks for.
const BATCH: usize = 400;

/// What a column holds, NULL aside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KeyValue {
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// A column of every router database whose values must exist elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The table that refers.
    pub table: &'static str,
    /// Its column; NULL refers to nothing.
    pub column: &'static str,
    /// Where the values must exist.
    pub target: ReferenceTarget,
}

/// Where the values of a reference must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceTarget {
    /// In this column of `system.db`.
    System {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// In this column of any router database.
    AnyRouter {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
}

/// What looking for dangling references came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DanglingReport {
    /// Values that exist nowhere, with the router that refers to them.
    pub dangling: Vec<(RouterId, KeyValue)>,
    /// Routers that did not answer. With a target in the routers, a value that is only there counts as dangling.
    pub failed: Vec<(RouterId, Error)>,
}

impl Fleet {
    /// Finds the references whose target does not exist.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a table or column that is no plain word, and those of reading the system database.
    /// A router that fails is in the report.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn dangling(self, reference: Reference) -> Result<DanglingReport, Error> {
        let (target_table, target_column) = match reference.target {
            ReferenceTarget::System { table, column } | ReferenceTarget::AnyRouter { table, column } => (table, column),
        };
        for word in [reference.table, reference.column, target_table, target_column] {
            check(word)?;
        }
        let Reference { table, column, target } = reference;
        let manager = self.manager.clone();
        let sources = self.clone().map(move |database| async move {
            database.read(LOOK, move |conn| Box::pin(distinct(conn, table, column))).await
        });
        let sources = sources.collect().await?;
        let mut failed: BTreeMap<RouterId, Error> =
            sources.failures().map(|(id, error)| (id.clone(), error.clone())).collect();
        let wanted: BTreeSet<KeyValue> = sources.answers().flat_map(|(_, values)| values.iter().cloned()).collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut found = BTreeSet::new();
        match target {
            ReferenceTarget::System { table, column } => {
                let system = manager.system();
                let there: Vec<KeyValue> =
                    system.read(LOOK, move |conn| Box::pin(existing(conn, table, column, wanted))).await?;
                found.extend(there);
            }
            ReferenceTarget::AnyRouter { table, column } => {
                // All of them, though only some refer: the target may be in any.
                let targets = manager.fleet().map(move |database| {
                    let wanted = wanted.clone();
                    async move {
                        database.read(LOOK, move |conn| Box::pin(existing(conn, table, column, wanted))).await
                    }
                });
                let targets = targets.collect().await?;
                found.extend(targets.answers().flat_map(|(_, values)| values.iter().cloned()));
                failed.extend(targets.failures().map(|(id, error)| (id.clone(), error.clone())));
            }
        }
        let dangling = sources.answers().flat_map(|(id, values)| {
            let missing = values.iter().filter(|value| !found.contains(*value));
            missing.map(|value| (id.clone(), value.clone())).collect::<Vec<_>>()
        });
        Ok(DanglingReport { dangling: dangling.collect(), failed: failed.into_iter().collect() })
    }
}

async fn distinct(conn: &mut SqliteConnection, table: &str, column: &str) -> Result<Vec<KeyValue>, Error> {
    let sql = format!("SELECT DISTINCT \"{column}\" AS value FROM \"{table}\" WHERE \"{column}\" IS NOT NULL");
    sqlx::query(AssertSqlSafe(sql)).fetch_all(conn).await?.iter().map(value).collect()
}

/// Returns those of the wanted values that are there.
async fn existing(
    conn: &mut SqliteConnection,
    table: &str,
    column: &str,
    wanted: Vec<KeyValue>,
) -> Result<Vec<KeyValue>, Error> {
    let mut found = Vec::new();
    for batch in wanted.chunks(BATCH) {
        let marks = vec!["?"; batch.len()].join(", ");
        let sql = format!("SELECT DISTINCT \"{column}\" AS value FROM \"{table}\" WHERE \"{column}\" IN ({marks})");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for value in batch {
            query = match value {
                KeyValue::Integer(number) => query.bind(*number),
                KeyValue::Text(text) => query.bind(text.as_str()),
                KeyValue::Blob(bytes) => query.bind(bytes.as_slice()),
            };
        }
        for row in query.fetch_all(&mut *conn).await? {
            found.push(value(&row)?);
        }
    }
    Ok(found)
}

fn value(row: &sqlx::sqlite::SqliteRow) -> Result<KeyValue, Error> {
    if let Ok(number) = row.try_get("value") {
        return Ok(KeyValue::Integer(number));
    }
    if let Ok(text) = row.try_get("value") {
        return Ok(KeyValue::Text(text));
    }
    Ok(KeyValue::Blob(row.try_get("value")?))
}

/// Refuses what could end the quotes it is put in.
fn check(word: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !word.is_empty() && word.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::InvalidName { what: "table or column", input: word.chars().take(64).collect() })
}
