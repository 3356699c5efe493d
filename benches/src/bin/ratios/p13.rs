//! P13: opening a database again with its version checked, and creating many, against sqlx and its migrator.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use nasnet_benches::measure::{BusyCore, ROUNDS, Ratio, median};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, FileKind, Migration, NewRouter, Options, RouterId, SchemaSet};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

use crate::Failure;

/// Databases opened in one round.
const OPENED: u32 = 40;

/// Databases created in each way, spread over the rounds: a round of a thousand would measure the page cache.
const CREATED: u32 = 1_000;

/// How many the peer creates at a time, where it does.
const SIDE_BY_SIDE: usize = 8;

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
/// is synced before it is called created, and so is the directory that names it, once for each call of either side. It
/// needs one directory for all files, where ours has one for each, synced too. It reads no setting back, takes no lock,
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
        Ok(())
    }

    /// Creates databases one after the other; the directory that names them is synced once for all of them.
    async fn create(&self, names: &[String]) -> Result<(), Failure> {
        for name in names {
            self.open(name, true).await?;
        }
        self.sync()
    }

    /// The same, so many at a time.
    async fn create_side_by_side(&self, names: &[String]) -> Result<(), Failure> {
        let mut creating = stream::iter(names.iter().map(|name| self.open(name, true))).buffer_unordered(SIDE_BY_SIDE);
        while let Some(created) = creating.next().await {
            created?;
        }
        self.sync()
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(std::fs::File::open(&self.dir)?.sync_all()?)
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
        peer.create(&[name.to_owned()]).await?;
    }

    let mut worst = [f64::INFINITY; 4];
    let share = CREATED / u32::try_from(2 * ROUNDS)?;
    let mut round = 0;
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        let mut times = [const { Vec::<Duration>::new() }; 6];
        for _ in 0..ROUNDS {
            round += 1;
            let names = |of: &str| (0..share).map(|index| format!("{of}{round}-{index}")).collect::<Vec<_>>();
            times[0].push(reopen_ours(&manager).await?);
            times[1].push(reopen_peer(&peer).await?);
            let start = Instant::now();
            create_ours_together(&manager, &names("together")).await?;
            times[2].push(start.elapsed());
            let start = Instant::now();
            peer.create(&names("one")).await?;
            times[3].push(start.elapsed());
            let start = Instant::now();
            peer.create_side_by_side(&names("side")).await?;
            times[4].push(start.elapsed());
            let start = Instant::now();
            create_ours(&manager, &names("each")).await?;
            times[5].push(start.elapsed());
        }
        let [ours, theirs, together, one, side, each] = times.map(|rounds| median(rounds).as_secs_f64());
        for (worst, found) in worst.iter_mut().zip([theirs / ours, one / together, side / together, one / each]) {
            *worst = worst.min(found);
        }
    }
    manager.shutdown().await?;
    let [reopen, create, beside, each] = worst;
    let row = |what, value, target| Ratio::at_least("P13", what, value, target);
    Ok(vec![
        row("reopen and check the version vs sqlx connect with the same settings and migrate()", reopen, 1.25),
        row("create 1,000 databases, 71 in a call, vs create and migrate by sqlx, as durable", create, 3.0),
        row("the same vs sqlx creating 8 at a time", beside, 3.0),
        row("the same, a call for each, vs sqlx one after the other", each, 1.0),
    ])
}

async fn create_ours_together(manager: &DbManager, names: &[String]) -> Result<(), Failure> {
    let new = names.iter().map(|name| Ok(NewRouter::new(RouterId::parse(name)?)));
    let report = manager.create_routers(new.collect::<Result<Vec<_>, Failure>>()?).await;
    match report.failures().next() {
        Some((id, error)) => Err(format!("{id}: {error}").into()),
        None => Ok(()),
    }
}

async fn create_ours(manager: &DbManager, names: &[String]) -> Result<(), Failure> {
    for name in names {
        manager.create_router(NewRouter::new(RouterId::parse(name)?)).await?;
    }
    Ok(())
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
