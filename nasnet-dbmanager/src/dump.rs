//! A database as SQL text that any SQLite reads: for looking at, for other programs, for the day nothing else works.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use crate::backup::copy::{Scratch, quoted, tables, vacuum_into};
use crate::connection::pragma;
use crate::driver::during;
use crate::error::Error;
use crate::id::Scope;
use crate::layout;
use crate::manager::DbManager;

impl DbManager {
    /// Writes the database of a scope to a new file as SQL text, as of one moment; returns the number of rows.
    ///
    /// Secrets are in it as they are stored: sealed. What its rows name in annexes is not in it: that is what backups are for.
    ///
    /// # Errors
    /// [`Error::Io`] when the file exists or cannot be written, and those of [`DbManager::scope`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave a file whose name ends in `.part`; what has the right name is complete.
    pub async fn dump_sql(&self, scope: &Scope, to: impl AsRef<Path>) -> Result<u64, Error> {
        let to = to.as_ref();
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = std::path::PathBuf::from(part);
        let _database = self.scope(scope).await?;
        let scratch = Scratch::new(self.run_dir());
        vacuum_into(&self.spec_of(scope).target, scratch.path()).await?;
        let written = write_dump(scratch.path(), &part).await;
        let moved = match written {
            Ok(rows) if layout::rename_new(&part, to)? => Ok(rows),
            Ok(_) => Err(Error::io("write", to, std::io::ErrorKind::AlreadyExists.into())),
            Err(error) => Err(error),
        };
        if moved.is_err() {
            std::fs::remove_file(&part).ok();
        }
        if moved.is_ok()
            && let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty())
        {
            layout::sync(parent)?;
        }
        moved
    }
}

async fn write_dump(copy: &Path, part: &Path) -> Result<u64, Error> {
    use sqlx::{ConnectOptions, Connection};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(copy).read_only(true).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("open the copy"))?;
    let file = File::create(part).map_err(|error| Error::io("write", part, error))?;
    let mut out = BufWriter::new(file);
    let dumped = dump(&mut conn, &mut out, part).await;
    conn.close().await.map_err(during("close the copy"))?;
    let rows = dumped?;
    let mut finish = || {
        out.flush()?;
        out.get_ref().sync_all()
    };
    finish().map_err(|error: std::io::Error| Error::io("write", part, error))?;
    Ok(rows)
}

async fn dump(conn: &mut SqliteConnection, out: &mut impl Write, path: &Path) -> Result<u64, Error> {
    let what = during("read the database");
    let failed = |error: std::io::Error| Error::io("write", path, error);
    writeln!(out, "PRAGMA foreign_keys = OFF;\nBEGIN;").map_err(failed)?;
    for name in ["application_id", "user_version"] {
        let value = pragma(conn, name).await?.unwrap_or_default();
        writeln!(out, "PRAGMA {name} = {value};").map_err(failed)?;
    }
    // Indexes and triggers come last: they would slow the rows down, or refuse them.
    let objects: Vec<(String, String)> = sqlx::query_as(
        "SELECT type, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*' ORDER BY rowid",
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(&what)?;
    for (_, sql) in objects.iter().filter(|(kind, _)| kind == "table") {
        writeln!(out, "{sql};").map_err(failed)?;
    }
    let mut count = 0;
    for table in tables(conn).await? {
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?1) ORDER BY cid")
            .bind(&table)
            .fetch_all(&mut *conn)
            .await
            .map_err(&what)?;
        let names: Vec<_> = columns.iter().map(|name| quoted(name)).collect();
        let values: Vec<_> = names.iter().map(|name| literal(name)).collect();
        let sql = format!("SELECT {} FROM {}", values.join(" || ',' || "), quoted(&table));
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *conn);
        while let Some(row) = rows.try_next().await.map_err(&what)? {
            let values: &str = row.try_get(0).map_err(&what)?;
            writeln!(out, "INSERT INTO {} ({}) VALUES ({values});", quoted(&table), names.join(",")).map_err(failed)?;
            count += 1;
        }
    }
    for (_, sql) in objects.iter().filter(|(kind, _)| kind != "table") {
        writeln!(out, "{sql};").map_err(failed)?;
    }
    writeln!(out, "COMMIT;").map_err(failed)?;
    Ok(count)
}

/// The expression that writes a column as a literal. `quote` ends a text at its first NUL, so such texts go as bytes.
fn literal(column: &str) -> String {
    format!(
        "CASE WHEN typeof({column}) = 'text' AND instr({column}, char(0)) > 0 \
         THEN 'CAST(x''' || hex({column}) || ''' AS TEXT)' ELSE quote({column}) END"
    )
}
