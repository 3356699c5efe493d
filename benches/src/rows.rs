//! The plain way to keep events, hop-free: rows with text keys and three indexes, one prepared INSERT in one transaction.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, params};

use crate::events::Sample;

const SCHEMA: &str = "
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE event (
    id      TEXT PRIMARY KEY,
    stream  TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    body    TEXT NOT NULL,
    UNIQUE (stream, version)
) STRICT;
CREATE INDEX event_kind ON event (kind, at_ms);
CREATE INDEX event_at ON event (at_ms);";

const INSERT: &str = "INSERT INTO event (id, stream, version, kind, at_ms, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// The key whose newest events are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Recent<'a> {
    /// Of one stream.
    Stream(&'a str),
    /// Up to a moment.
    Until(i64),
    /// Of one type.
    Kind(&'a str),
}

/// Events as rows.
#[derive(Debug)]
pub struct Rows {
    conn: Connection,
    versions: HashMap<String, i64>,
    made: i64,
}

impl Rows {
    /// Makes the table in a new file.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn open(dir: &Path) -> rusqlite::Result<Self> {
        let conn = Connection::open(dir.join("rows.db"))?;
        conn.execute_batch(SCHEMA)?;
        Ok(Self { conn, versions: HashMap::new(), made: 0 })
    }

    /// Inserts the events in one transaction.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn append(&mut self, samples: &[Sample]) -> rusqlite::Result<()> {
        let transaction = self.conn.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for Sample { stream, kind, body } in samples {
                self.made += 1;
                let version = self.versions.entry(stream.clone()).or_default();
                *version += 1;
                insert.execute(params![format!("{:026}", self.made), stream, *version, kind, self.made, body])?;
            }
        }
        transaction.commit()
    }

    /// Reads the bodies of the newest hundred.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn recent(&self, key: Recent<'_>) -> rusqlite::Result<Vec<String>> {
        let body = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        match key {
            Recent::Stream(stream) => {
                let sql = "SELECT body FROM event WHERE stream = ?1 ORDER BY version DESC LIMIT 100";
                self.conn.prepare_cached(sql)?.query_map([stream], body)?.collect()
            }
            Recent::Until(at_ms) => {
                let sql = "SELECT body FROM event WHERE at_ms <= ?1 ORDER BY at_ms DESC LIMIT 100";
                self.conn.prepare_cached(sql)?.query_map([at_ms], body)?.collect()
            }
            Recent::Kind(kind) => {
                let sql = "SELECT body FROM event WHERE kind = ?1 ORDER BY at_ms DESC LIMIT 100";
                self.conn.prepare_cached(sql)?.query_map([kind], body)?.collect()
            }
        }
    }

    /// Events inserted so far.
    #[must_use]
    pub const fn made(&self) -> i64 {
        self.made
    }
}
