//! One statement over many router databases: they are attached, read-only and a few at a time, below one connection.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, SqlSafeStr, SqlStr, SqliteConnection};

use crate::connection::{Guarded, run};
use crate::driver::during;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::id::RouterId;
use crate::manager::{DbManager, RouterDb};
use crate::vfs;

/// SQLite attaches ten databases; two places are left for what a statement itself may need.
const CHUNK: usize = 8;

/// What a statement over attached databases came to.
#[non_exhaustive]
pub struct AttachedRows {
    /// The rows of all chunks, one chunk after the other: an aggregate has one row for each chunk.
    pub rows: Vec<SqliteRow>,
    /// The routers whose data is in the rows.
    pub answered: Vec<RouterId>,
    /// The routers that could not be asked, with the reason. Nothing of them is in the rows.
    pub failed: Vec<(RouterId, Error)>,
}

impl fmt::Debug for AttachedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedRows")
            .field("rows", &self.rows.len())
            .field("answered", &self.answered)
            .field("failed", &self.failed)
            .finish()
    }
}

impl Fleet {
    /// Runs one reading statement over many router databases; without `ids`, over those of the fleet.
    ///
    /// The databases are attached eight at a time as `r0` to `r7`, and each of their tables `t` can be read as the view
    /// `fleet_t`, all its rows after a column `router_id`. A view has the columns its table has in every database of
    /// the chunk; a column of that name in the table itself is left out.
    ///
    /// Ordering, grouping and limits are those of each chunk. A router that cannot be opened, is damaged or locked is
    /// reported; the others of its chunk are asked again without it.
    ///
    /// # Errors
    /// Those of the statement itself, such as a table that does not exist, and of reading the registry.
    ///
    /// # Cancel safety
    /// Safe: a chunk under way ends in the background, at `Options::read_deadline` at the latest.
    pub async fn attached(
        &self,
        ids: impl IntoIterator<Item = RouterId>,
        sql: impl SqlSafeStr,
    ) -> Result<AttachedRows, Error> {
        let given: Vec<RouterId> = ids.into_iter().collect();
        let ids = if given.is_empty() { self.ids().await? } else { given };
        let sql = sql.into_sql_str();
        let deadline = self.manager.inner.files.options().read_deadline;
        let places = self.manager.inner.files.options().max_open.clamp(1, CHUNK);
        let mut waiting: VecDeque<RouterId> = ids.into();
        let mut all = AttachedRows { rows: Vec::new(), answered: Vec::new(), failed: Vec::new() };
        while !waiting.is_empty() {
            let leased = self.lease_chunk(&mut waiting, places, &mut all.failed).await;
            let asked = ask(&sql, leased.clone(), deadline).await;
            match asked {
                Ok(rows) => all.take(&leased, rows),
                Err(error) if leased.len() > 1 && is_of_one_database(&error) => {
                    // Alone, each answers or fails for itself.
                    for database in leased {
                        match ask(&sql, vec![database.clone()], deadline).await {
                            Ok(rows) => all.take(&[database], rows),
                            Err(error) if is_of_one_database(&error) => {
                                all.failed.push((database.id().clone(), error));
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) if is_of_one_database(&error) => {
                    all.failed.extend(leased.first().map(|database| (database.id().clone(), error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Leases the next databases. When no place is free, those it has are asked first: two callers who each hold some
    /// must not wait for each other.
    async fn lease_chunk(
        &self,
        waiting: &mut VecDeque<RouterId>,
        places: usize,
        failed: &mut Vec<(RouterId, Error)>,
    ) -> Vec<RouterDb> {
        let manager: &DbManager = &self.manager;
        let mut leased: Vec<RouterDb> = Vec::with_capacity(places);
        while leased.len() < places {
            let Some(id) = waiting.pop_front() else { break };
            match manager.router(&id).await {
                Ok(database) => leased.push(database),
                Err(Error::AllLeased { .. }) if !leased.is_empty() => {
                    waiting.push_front(id);
                    break;
                }
                Err(error) => failed.push((id, error)),
            }
        }
        leased
    }
}

impl AttachedRows {
    fn take(&mut self, databases: &[RouterDb], rows: Vec<SqliteRow>) {
        self.rows.extend(rows);
        self.answered.extend(databases.iter().map(|database| database.id().clone()));
    }
}

/// Tells an error of one database from one that every database would give, such as a misspelt statement.
fn is_of_one_database(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. }
            | Error::Medium { .. }
            | Error::Busy { .. }
            | Error::ReadDeadline { .. }
            | Error::Interrupted
            | Error::ReadOnly { .. }
            | Error::Closed { .. }
    )
}

/// Asks one chunk, in a task that holds its leases to the end: a connection is not dropped within a statement.
async fn ask(sql: &SqlStr, databases: Vec<RouterDb>, deadline: Duration) -> Result<Vec<SqliteRow>, Error> {
    if databases.is_empty() {
        return Ok(Vec::new());
    }
    let sql = sql.clone();
    let task = tokio::spawn(async move {
        let mut guarded = connect().await?;
        guarded.deadline.set(deadline);
        let rows = read(&mut guarded.conn, sql, &databases).await;
        let late = guarded.deadline.passed();
        guarded.close().await?;
        match rows {
            Err(Error::Interrupted) if late => {
                Err(Error::ReadDeadline { limit_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) })
            }
            rows => rows,
        }
    });
    task.await.map_err(|error| Error::Panicked { message: format!("while reading attached databases: {error}") })?
}

/// Connects to an empty database in memory, below which the others are attached.
async fn connect() -> Result<Guarded, Error> {
    vfs::register()?;
    let options = SqliteConnectOptions::new().filename(":memory:").vfs(vfs::NAME).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("open a database in memory"))?;
    run(&mut conn, "PRAGMA temp_store = 2; PRAGMA trusted_schema = 0; PRAGMA cache_size = -64".to_owned()).await?;
    Guarded::new(conn).await
}

async fn read(conn: &mut SqliteConnection, sql: SqlStr, databases: &[RouterDb]) -> Result<Vec<SqliteRow>, Error> {
    for (number, database) in databases.iter().enumerate() {
        sqlx::query(AssertSqlSafe(format!("ATTACH ?1 AS r{number}")))
            .bind(uri(database.path()))
            .execute(&mut *conn)
            .await
            .map_err(during("attach a router database"))?;
        run(conn, format!("PRAGMA r{number}.cache_size = -64")).await?;
    }
    let views = views(conn, databases).await?;
    // Views are written to the temporary database, so they come before the switch.
    run(conn, views).await?;
    run(conn, "PRAGMA query_only = 1; BEGIN".to_owned()).await?;
    let rows = sqlx::query(sql).fetch_all(&mut *conn).await.map_err(during("read the attached databases"));
    run(conn, "ROLLBACK".to_owned()).await.ok();
    rows
}

/// Names a file in the one way that opens it read-only.
fn uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?mode=ro&vfs=");
    uri.push_str(vfs::NAME);
    uri
}

/// Writes the statements that make one view of each table.
async fn views(conn: &mut SqliteConnection, databases: &[RouterDb]) -> Result<String, Error> {
    let what = during("read the schema of an attached database");
    let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for number in 0..databases.len() {
        let sql = format!(
            "SELECT s.name, c.name FROM r{number}.sqlite_schema s, pragma_table_xinfo(s.name, 'r{number}') c
             WHERE s.type = 'table' AND s.name NOT GLOB 'sqlite_*' AND s.name NOT GLOB '_nasnet_*' AND c.hidden <> 1
             ORDER BY s.name, c.cid"
        );
        let columns: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *conn).await.map_err(&what)?;
        let mut of_this: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (table, column) in columns {
            of_this.entry(table).or_default().push(column);
        }
        for (table, columns) in of_this {
            tables.entry(table).or_default().push(columns);
        }
    }
    let mut sql = String::new();
    for (table, columns) in tables.into_iter().filter(|(_, columns)| columns.len() == databases.len()) {
        let shared: Vec<_> = columns[0]
            .iter()
            .filter(|column| *column != "router_id" && columns.iter().all(|others| others.contains(column)))
            .map(|column| format!(", {}", quoted(column)))
            .collect();
        let shared = shared.concat();
        let parts: Vec<_> = databases
            .iter()
            .enumerate()
            .map(|(number, database)| {
                // A router id holds no quote.
                format!("SELECT '{}' AS router_id{shared} FROM r{number}.{}", database.id(), quoted(&table))
            })
            .collect();
        let name = quoted(&format!("fleet_{table}"));
        sql.push_str(&format!("CREATE TEMP VIEW {name} AS {};\n", parts.join(" UNION ALL ")));
    }
    Ok(sql)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_holds_cannot_change_how_it_is_opened() {
        let odd = uri(Path::new("/a b/c?mode=rw#x%/é.db"));
        assert_eq!(odd, "file:/a%20b/c%3fmode%3drw%23x%25/%c3%a9.db?mode=ro&vfs=nasnet");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
