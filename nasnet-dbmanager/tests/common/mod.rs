//! A fleet in a temporary directory, with one small table per router.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "fault-injection")]
use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{
    Cause, Database, DbManager, Error, FileKind, Migration, NewRouter, Options, RouterId, SchemaSet,
};
use sqlx::SqliteConnection;

pub const CAUSE: Cause = Cause::new("test");

/// Far longer than anything takes, be the machine ever so slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Dirs {
    root: tempfile::TempDir,
}

impl Dirs {
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    pub fn run(&self) -> PathBuf {
        self.root().join("run")
    }

    pub fn options(&self) -> Options {
        options(self.root())
    }

    pub async fn open(&self) -> DbManager {
        DbManager::open(self.options()).await.unwrap()
    }

    /// Takes the lock of a router database as another process would; `None` while that is impossible.
    pub fn lock(&self, id: &RouterId, alone: bool) -> Option<ForeignLock> {
        ForeignLock::take(&self.run().join("locks").join("databases"), &format!("router-{id}"), alone)
    }

    pub fn router_file(&self, id: &RouterId) -> PathBuf {
        self.data().join("routers").join(id.as_str()).join(format!("router-{id}.db"))
    }
}

/// A lock on the record of a database, held through a descriptor of its own.
pub struct ForeignLock(#[allow(dead_code)] std::fs::File);

impl ForeignLock {
    fn take(path: &Path, name: &str, alone: bool) -> Option<Self> {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let record =
            text.lines().position(|line| line.get(..80).is_some_and(|found| found.trim_end() == name)).unwrap() * 256;
        let range = nix::libc::flock {
            l_type: if alone { nix::libc::F_WRLCK } else { nix::libc::F_RDLCK } as i16,
            l_whence: nix::libc::SEEK_SET as i16,
            l_start: record as nix::libc::off_t,
            l_len: 1,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&range)).is_ok().then_some(Self(file))
    }
}

pub fn options(root: &Path) -> Options {
    patient(Options::new(root.join("data")).run_dir(root.join("run")).schemas([kv()]))
}

/// Waits long enough for the slowest machine; the tests that wait in vain set their own.
pub fn patient(mut options: Options) -> Options {
    (options.lock_timeout, options.lease_timeout) = (PATIENCE, PATIENCE);
    (options.read_deadline, options.write_deadline) = (PATIENCE, PATIENCE);
    options
}

/// What may fail while an operation commits, and what SQLite is told.
#[cfg(feature = "fault-injection")]
pub const COMMIT_FAULTS: [(Operation, i32); 5] = [
    (Operation::Write, Fault::FULL),
    (Operation::Write, Fault::IOERR_WRITE),
    (Operation::Write, Fault::NOMEM),
    (Operation::Sync, Fault::IOERR_FSYNC),
    (Operation::Read, Fault::IOERR_READ),
];

pub const KV_1: Migration = Migration {
    version: 1,
    name: "kv",
    up: "CREATE TABLE kv (k INTEGER PRIMARY KEY, v INTEGER NOT NULL CHECK (v >= 0)) STRICT;
         CREATE TABLE child (k INTEGER PRIMARY KEY REFERENCES kv (k) DEFERRABLE INITIALLY DEFERRED) STRICT",
    down: "DROP TABLE child; DROP TABLE kv",
};

pub const KV_2: Migration = Migration {
    version: 2,
    name: "note",
    up: "ALTER TABLE kv ADD COLUMN note TEXT",
    down: "ALTER TABLE kv DROP COLUMN note",
};

pub fn kv() -> SchemaSet {
    SchemaSet::new("kv", FileKind::Router, vec![KV_1])
}

pub fn kv_newer() -> SchemaSet {
    SchemaSet::new("kv", FileKind::Router, vec![KV_1, KV_2])
}

pub fn id(text: &str) -> RouterId {
    RouterId::parse(text).unwrap()
}

pub async fn with_router(manager: &DbManager, name: &str) -> nasnet_dbmanager::RouterDb {
    manager.create_router(NewRouter::new(id(name))).await.unwrap();
    manager.router(&id(name)).await.unwrap()
}

pub async fn put_in(conn: &mut SqliteConnection, k: i64, v: i64) -> Result<(), Error> {
    sqlx::query("INSERT INTO kv (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v")
        .bind(k)
        .bind(v)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn put(db: &Database, k: i64, v: i64) -> Result<(), Error> {
    db.write(CAUSE, move |conn| Box::pin(put_in(conn, k, v))).await
}

pub async fn all(db: &Database) -> Vec<(i64, i64)> {
    let rows: Result<Vec<(i64, i64)>, Error> = db
        .read(CAUSE, |conn| {
            Box::pin(async move { Ok(sqlx::query_as("SELECT k, v FROM kv ORDER BY k").fetch_all(conn).await?) })
        })
        .await;
    rows.unwrap()
}

/// Every file below a directory with its content, to show that nothing changed.
pub fn snapshot(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.insert(path.clone(), Vec::new());
                dirs.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}
