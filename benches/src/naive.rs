//! The plainest lock that survives the process: a row in SQLite; and the least that SQLite takes for two commits.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};

/// A row per key, taken by an UPSERT and deleted to release it; each is one statement that commits itself, on one
/// connection that is held for life.
#[derive(Debug)]
pub struct NaiveLock {
    conn: SqliteConnection,
    /// Each row gets a value it did not have: SQLite writes nothing for one that does not change.
    taken: i64,
}

impl NaiveLock {
    /// Opens it as a file on flash is opened: WAL, `synchronous = FULL`.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn synced(path: &Path) -> Result<Self, sqlx::Error> {
        Self::open(path, SqliteSynchronous::Full).await
    }

    /// Opens it as a file on tmpfs is opened: WAL, `synchronous = OFF`.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn unsynced(path: &Path) -> Result<Self, sqlx::Error> {
        Self::open(path, SqliteSynchronous::Off).await
    }

    async fn open(path: &Path, synchronous: SqliteSynchronous) -> Result<Self, sqlx::Error> {
        let mut conn = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .disable_statement_logging()
            .connect()
            .await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS lock (key TEXT PRIMARY KEY, holder TEXT NOT NULL, expires_ms INTEGER NOT NULL)
             STRICT",
        )
        .execute(&mut conn)
        .await?;
        Ok(Self { conn, taken: 0 })
    }

    /// Takes the next of 50 keys.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn acquire(&mut self) -> Result<(), sqlx::Error> {
        self.taken += 1;
        sqlx::query(
            "INSERT INTO lock (key, holder, expires_ms) VALUES (?1, 'bench', ?2)
             ON CONFLICT (key) DO UPDATE SET holder = excluded.holder, expires_ms = excluded.expires_ms",
        )
        .bind(format!("bench/{}", self.taken % 50))
        .bind(self.taken)
        .execute(&mut self.conn)
        .await?;
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn release(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM lock WHERE key = ?1")
            .bind(format!("bench/{}", self.taken % 50))
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }
}

/// Two commits of SQLite on the calling thread, prepared and unsynced: what no lock kept in a file of SQLite can beat.
#[derive(Debug)]
pub struct Floor {
    conn: rusqlite::Connection,
    taken: i64,
}

impl Floor {
    /// Opens a file as one on tmpfs is opened: WAL, `synchronous = OFF`.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let conn = rusqlite::Connection::open(path)?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY;
             PRAGMA wal_autocheckpoint = 32;
             CREATE TABLE lock (key INTEGER PRIMARY KEY, holder TEXT NOT NULL) STRICT",
        )?;
        Ok(Self { conn, taken: 0 })
    }

    /// Inserts a row and commits, deletes it and commits.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn pair(&mut self) -> rusqlite::Result<()> {
        self.taken += 1;
        for sql in ["INSERT INTO lock (key, holder) VALUES (?1, 'bench')", "DELETE FROM lock WHERE key = ?1"] {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.conn.prepare_cached(sql)?.execute([self.taken])?;
            self.conn.prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(())
    }
}
