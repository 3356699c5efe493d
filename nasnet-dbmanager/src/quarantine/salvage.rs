//! Reads what can be read of a damaged database, table by table, into a new one.

use std::fs;

use sqlx::{AssertSqlSafe, Row, SqliteConnection};
use ulid::Ulid;

use super::TableLoss;
use crate::backup::copy::{Scratch, quoted, tables};
use crate::clock::Now;
use crate::connection::{Role, Target, run};
use crate::driver::during;
use crate::error::Error;
use crate::layout::{self, Layout};

/// Rows copied by one statement; fewer are lost beside a damaged page when it is smaller.
const CHUNK: u64 = 64;

/// Copies every row that can be reached of `damaged` to the new database at `target`, and tells what there is of each
/// table. The damaged files themselves are not opened: SQLite would change them.
pub(super) async fn salvage(
    damaged: &std::path::Path,
    target: &Target,
    layout: &Layout,
    now: Now,
) -> Result<Vec<TableLoss>, Error> {
    let scratch = Scratch::new(&layout.run_dir);
    fs::copy(damaged, scratch.path()).map_err(|error| Error::io("copy", damaged, error))?;
    let wal = layout::wal_of(damaged);
    if layout::size_of(&wal)? > 0 {
        fs::copy(&wal, layout::wal_of(scratch.path())).map_err(|error| Error::io("copy", &wal, error))?;
    }
    let mut guarded = target.connect(Role::Writer).await?;
    let copied = copy_all(&mut guarded.conn, &scratch, now).await;
    let closed = guarded.close().await;
    let copied = copied?;
    closed?;
    layout::sync(&target.path)?;
    target.path.parent().map_or(Ok(()), layout::sync)?;
    Ok(copied)
}

async fn copy_all(conn: &mut SqliteConnection, scratch: &Scratch, now: Now) -> Result<Vec<TableLoss>, Error> {
    // Nothing refers to the new file yet, so one sync at the end is enough.
    run(conn, "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF".to_owned()).await?;
    sqlx::query("ATTACH DATABASE ?1 AS damaged")
        .bind(scratch.path().to_string_lossy())
        .execute(&mut *conn)
        .await
        .map_err(during("open the damaged database"))?;
    // The rows passed the triggers when they were first written.
    let triggers: Vec<(String, String)> =
        sqlx::query_as("SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND sql IS NOT NULL")
            .fetch_all(&mut *conn)
            .await
            .map_err(during("read the schema"))?;
    for (name, _) in &triggers {
        run(conn, format!("DROP TRIGGER main.{}", quoted(name))).await?;
    }
    let mut losses = Vec::new();
    for table in tables(conn).await? {
        // The new file has its own marks and its own bookkeeping.
        let own = table == "_nasnet_meta" || (table.starts_with("_nasnet_") && table.ends_with("_migrations"));
        if !own && let Some(loss) = copy_table(conn, &table).await? {
            losses.push(loss);
        }
    }
    remove_dangling(conn, &mut losses).await?;
    for (_, sql) in &triggers {
        run(conn, sql.clone()).await?;
    }
    // Keys that were lost may belong to writes that were kept: whoever asks for an older one is told that nobody knows.
    let newest = Ulid::from_parts(u64::try_from(now.wall_ms).unwrap_or(0), u128::MAX);
    sqlx::query("UPDATE main._nasnet_meta SET keys_forgotten = ?1")
        .bind(&newest.to_bytes()[..])
        .execute(&mut *conn)
        .await
        .map_err(during("mark the database"))?;
    losses.retain(|loss| !loss.table.starts_with("_nasnet_"));
    run(conn, "DETACH DATABASE damaged".to_owned()).await?;
    Ok(losses)
}

/// Copies one table from its start, and where that ends early from its end; `None` when the damaged file has no such
/// table.
async fn copy_table(conn: &mut SqliteConnection, table: &str) -> Result<Option<TableLoss>, Error> {
    let columns = shared_columns(conn, table).await?;
    if columns.is_empty() {
        return Ok(None);
    }
    let (name, columns) = (quoted(table), columns.join(", "));
    let had: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM damaged.{name}")))
        .fetch_one(&mut *conn)
        .await
        .ok();
    let forwards = format!("INSERT OR IGNORE INTO main.{name} ({columns}) SELECT {columns} FROM damaged.{name}");
    let mut complete = copy_chunks(conn, &forwards).await?;
    if !complete {
        let order = reverse_order(conn, table).await?;
        complete = copy_chunks(conn, &format!("{forwards} ORDER BY {order}")).await?;
    }
    let kept: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM main.{name}")))
        .fetch_one(&mut *conn)
        .await
        .map_err(during("count rows"))?;
    let had = had.and_then(|had| u64::try_from(had).ok());
    let kept = u64::try_from(kept).unwrap_or(0);
    Ok(Some(TableLoss { table: table.to_owned(), kept, had, complete: complete && had.is_none_or(|had| had <= kept) }))
}

/// Copies in chunks until the end or the first row that cannot be read; tells whether the end was reached.
async fn copy_chunks(conn: &mut SqliteConnection, statement: &str) -> Result<bool, Error> {
    let (mut offset, mut chunk) = (0, CHUNK);
    loop {
        // What is counted are the rows read, not the ones that were new.
        let before = total_reached(conn, statement, offset, chunk).await;
        match before {
            Ok(0) => return Ok(true),
            Ok(read) => offset += read,
            Err(error @ Error::NoSpace { .. }) => return Err(error),
            Err(_) if chunk > 1 => chunk = 1,
            Err(_) => return Ok(false),
        }
    }
}

async fn total_reached(conn: &mut SqliteConnection, statement: &str, offset: u64, chunk: u64) -> Result<u64, Error> {
    let select = statement.split_once(" SELECT ").map_or(statement, |(_, select)| select);
    let count = format!("SELECT count(*) FROM (SELECT {select} LIMIT {chunk} OFFSET {offset})");
    let what = during("read the damaged database");
    let insert = format!("{statement} LIMIT {chunk} OFFSET {offset}");
    sqlx::query(AssertSqlSafe(insert)).execute(&mut *conn).await.map_err(&what)?;
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *conn).await.map_err(&what)?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Returns the columns both files have, quoted.
async fn shared_columns(conn: &mut SqliteConnection, table: &str) -> Result<Vec<String>, Error> {
    let names: Result<Vec<String>, _> = sqlx::query_scalar(
        "SELECT name FROM pragma_table_info(?1, 'main')
         WHERE name IN (SELECT name FROM pragma_table_info(?1, 'damaged')) ORDER BY cid",
    )
    .bind(table)
    .fetch_all(conn)
    .await;
    names.map(|names| names.iter().map(|name| quoted(name)).collect()).map_err(during("read the damaged schema"))
}

/// Returns the order that reads a table from its end.
async fn reverse_order(conn: &mut SqliteConnection, table: &str) -> Result<String, Error> {
    let what = during("read the schema");
    let without_rowid: bool =
        sqlx::query_scalar("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1")
            .bind(table)
            .fetch_one(&mut *conn)
            .await
            .map_err(&what)?;
    if !without_rowid {
        return Ok("rowid DESC".to_owned());
    }
    let rows = sqlx::query("SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 ORDER BY pk")
        .bind(table)
        .fetch_all(conn)
        .await
        .map_err(&what)?;
    let column = |row: &sqlx::sqlite::SqliteRow| Ok(format!("{} DESC", quoted(row.try_get::<&str, _>(0)?)));
    let columns: Result<Vec<_>, sqlx::Error> = rows.iter().map(column).collect();
    Ok(columns.map_err(&what)?.join(", "))
}

/// Removes rows whose reference is among the lost ones: no later migration would accept them.
async fn remove_dangling(conn: &mut SqliteConnection, losses: &mut [TableLoss]) -> Result<(), Error> {
    let what = during("check foreign keys");
    loop {
        let dangling: Vec<(String, Option<i64>)> =
            sqlx::query_as("SELECT DISTINCT \"table\", rowid FROM pragma_foreign_key_check LIMIT 1000")
                .fetch_all(&mut *conn)
                .await
                .map_err(&what)?;
        let mut removed = 0;
        for (table, rowid) in dangling {
            // Rows of tables without rowids cannot be told apart here; they stay and are found by the next check.
            let Some(rowid) = rowid else { continue };
            let sql = format!("DELETE FROM main.{} WHERE rowid = ?1", quoted(&table));
            let done = sqlx::query(AssertSqlSafe(sql)).bind(rowid).execute(&mut *conn).await.map_err(&what)?;
            removed += done.rows_affected();
            if let Some(loss) = losses.iter_mut().find(|loss| loss.table == table) {
                loss.kept = loss.kept.saturating_sub(done.rows_affected());
                loss.complete = false;
            }
        }
        if removed == 0 {
            return Ok(());
        }
    }
}
