//! A real `system.db` in a temporary directory, for tests of single repositories.

use std::path::PathBuf;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use tempfile::TempDir;

use crate::clock::{Clock, ManualClock, Now};
use crate::id::RouterId;
use crate::system::routers::{self, NewRouter};
use crate::vfs;

pub(super) struct Scratch {
    pub(super) conn: SqliteConnection,
    pub(super) directory: TempDir,
}

impl Scratch {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let mut conn = connect(directory.path().join("system.db")).await;
        for migration in super::schema_set().migrations {
            sqlx::raw_sql(migration.up).execute(&mut conn).await.expect("migration");
        }
        Self { conn, directory }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("system.db")
    }

    pub(super) async fn with_router(id: &str) -> (Self, RouterId) {
        let mut scratch = Self::new().await;
        let id = RouterId::parse(id).expect("id");
        routers::insert(&mut scratch.conn, &NewRouter::new(id.clone()), &now()).await.expect("router");
        (scratch, id)
    }

    /// Runs a statement that is expected to be refused, and returns what SQLite says.
    pub(super) async fn refusal(&mut self, sql: &'static str) -> String {
        sqlx::query(sql).execute(&mut self.conn).await.expect_err(sql).to_string()
    }
}

pub(super) async fn connect(path: PathBuf) -> SqliteConnection {
    vfs::register().expect("vfs");
    let options = SqliteConnectOptions::new().filename(path).vfs(vfs::NAME).create_if_missing(true);
    options.journal_mode(SqliteJournalMode::Wal).foreign_keys(true).connect().await.expect("connect")
}

pub(super) fn now() -> Now {
    ManualClock::new(1_800_000_000_000).now()
}
