//! P13: opening a database again with its version checked, and creating many, against sqlx and its migrator.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nasnet_benches::measure::{BusyCore, ROUNDS, Ratio, median};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, FileKind, Migration, NewRouter, Options, RouterId, SchemaSet};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

use crate::Failure;

/// Databases opened in one round.
const OPENED: u32 = 40;

/// Databases created in all, spread over the rounds: a round of a thousand would measure the page cache.
const CREATED: u32 = 1_000;

/// A schema of the size a router database has: some tables, each with an index.
const TABLES: [&str; 5] = [
    "CREATE TABLE resource (id BLOB PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL) STRICT;
     CREATE INDEX resource_kind ON resource (kind, name)",
    "CREATE TABLE revision (id INTEGER PRIMARY KEY, resource BLOB NOT NULL, at_ms INTEGER NOT NULL) STRICT;
     CREATE INDEX revision_resource ON revision (resource, id)",
    "CREATE TABLE event (epoch INTEGER, seq INTEGER, kind TEXT NOT NULL, body BLOB NOT NULL,
                         PRIMARY KEY (epoch, seq)) STRICT, WITHOUT ROWID",
    "CREATE TABLE journal (id BLOB PRIMARY KEY, state TEXT NOT NULL, body BLOB NOT NULL) STRICT;
     CREATE INDEX journal_state ON journal (state)",
    "CREATE TABLE fence (key TEXT PRIMARY KEY, token INTEGER NOT NULL) STRICT, WITHOUT ROWID",
];

fn schema() -> SchemaSet {
    let migration = |(version, up): (u32, &&'static str)| Migration { version, name: "bench", up, down: "" };
    SchemaSet::new("bench", FileKind::Router, (1..).zip(&TABLES).map(migration).collect())
}

/// The peer: one file, sqlx's own migrator, the settings every database of ours has and the same durability: what is new
/// is synced before it is called created, and so is the directory that names it. It reads no setting back, takes no lock,
/// keeps no registry and checks no marks.
struct Peer {
    dir: PathBuf,
    migrator: Migrator,
}

impl Peer {
    async fn new(dir: PathBuf) -> Result<Self, Failure> {
        let migrations = dir.join("migrations");
        std::fs::create_dir_all(&migrations)?;
        for (version, up) in (1..).zip(TABLES) {
            std::fs::write(migrations.join(format!("{version:04}_bench.sql")), up)?;
        }
        Ok(Self { migrator: Migrator::new(migrations.as_path()).await?, dir })
    }

    async fn open(&self, name: &str, create: bool) -> Result<(), Failure> {
        let mut conn = SqliteConnectOptions::new()
            .filename(self.dir.join(name))
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(if create { SqliteSynchronous::Extra } else { SqliteSynchronous::Full })
            .foreign_keys(true)
            .page_size(4096)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .pragma("cache_size", "-256")
            .pragma("temp_store", "2")
            .pragma("trusted_schema", "0")
            .pragma("wal_autocheckpoint", "32")
            .pragma("journal_size_limit", "131072")
            .pragma("mmap_size", "0")
            .pragma("max_page_count", "16384")
            .connect()
            .await?;
        self.migrator.run(&mut conn).await?;
        conn.close().await?;
        if create {
            std::fs::File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }
}

pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(disk)?;
    let peer = Peer::new(place.disk.path().join("peer")).await?;
    let mut options = Options::new(place.disk.path().join("data")).schemas([schema()]);
    options.run_dir = Some(place.tmpfs.path().to_path_buf());
    // With one place, leasing the other router closes the one before: each lease is a reopening.
    options.max_open = 1;
    let manager = DbManager::open(options).await?;
    for name in ["a", "b"] {
        manager.create_router(NewRouter::new(RouterId::parse(name)?)).await?;
        peer.open(name, true).await?;
    }

    let (mut reopen, mut create) = (f64::INFINITY, f64::INFINITY);
    let mut number = 0;
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        let mut times = [const { Vec::<Duration>::new() }; 4];
        for _ in 0..ROUNDS {
            times[0].push(reopen_ours(&manager).await?);
            times[1].push(reopen_peer(&peer).await?);
            let share = CREATED / u32::try_from(2 * ROUNDS)?;
            let start = Instant::now();
            for _ in 0..share {
                number += 1;
                manager.create_router(NewRouter::new(RouterId::parse(&format!("r{number}"))?)).await?;
            }
            times[2].push(start.elapsed());
            let start = Instant::now();
            for index in 0..share {
                peer.open(&format!("p{number}-{index}"), true).await?;
            }
            times[3].push(start.elapsed());
        }
        let [ours, theirs, our_creation, their_creation] = times.map(|rounds| median(rounds).as_secs_f64());
        reopen = reopen.min(theirs / ours);
        create = create.min(their_creation / our_creation);
    }
    manager.shutdown().await?;
    Ok(vec![
        Ratio::at_least(
            "P13",
            "reopen and check the version vs sqlx connect with the same settings and migrate()",
            reopen,
            1.25,
        ),
        Ratio::at_least(
            "P13",
            "create 1,000 databases from a template vs create and migrate by sqlx, as durable",
            create,
            3.0,
        ),
    ])
}

async fn reopen_ours(manager: &DbManager) -> Result<Duration, Failure> {
    let ids = [RouterId::parse("a")?, RouterId::parse("b")?];
    let start = Instant::now();
    for _ in 0..OPENED / 2 {
        for id in &ids {
            drop(manager.router(id).await?);
        }
    }
    Ok(start.elapsed())
}

async fn reopen_peer(peer: &Peer) -> Result<Duration, Failure> {
    let start = Instant::now();
    for _ in 0..OPENED / 2 {
        for name in ["a", "b"] {
            peer.open(name, false).await?;
        }
    }
    Ok(start.elapsed())
}
