//! Campaign `enospc`: real file systems run full, out of inodes, are remounted read-only and give up, and nothing is wedged.
//!
//! Each case mounts a small file system in a mount namespace of its own and puts a fleet on it. Full, of the database
//! alone or of a neighbour: writes fail typed and change nothing, critical ones go on from the reserve, reads, deletions
//! and opening again work, and writing resumes by itself once space is back. Without inodes: what is there goes on,
//! nothing new is made by half. Read-only or given up: writes fail typed, reads go on, and once the file system is back
//! everything acknowledged is there and writing resumes.
//!
//! btrfs is left out: there a full medium ends the process, see `docs/durability.md`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use nasnet_dbmanager::{Cause, DbManager, Error, NewRouter, RouterDb, RouterId};
use tempfile::TempDir;

use crate::fleet::{self, CAUSE, Schema, Seen};
use crate::mount::{Kind, Mounted};
use crate::{Controls, Failure, Found, Turn};

const CRITICAL: Cause = Cause::new("soak-critical").critical();
/// Critical groups a full medium must still take.
const CRITICAL_GROUPS: u64 = 20;
/// Free bytes at which the reserve is kept, and the pause between two looks for it.
const SCARCE_BYTES: u64 = 6 * 1024 * 1024;
const RESTOCK: Duration = Duration::from_millis(120);
/// Groups of one deletion.
const DELETED_GROUPS: usize = 25;

/// What happens to the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// The database fills it.
    FilledByItself,
    /// A file of somebody else fills it.
    FilledByOthers,
    /// It takes no new files.
    NoInodes,
    /// It is mounted read-only while the fleet is closed.
    ReadOnly,
    /// Its driver gives up while the fleet is open.
    Aborted,
}

impl Trouble {
    fn of(kind: Kind) -> Vec<Self> {
        let mut all = vec![Self::FilledByItself, Self::FilledByOthers, Self::ReadOnly];
        if kind == Kind::Tmpfs || kind.can_abort() {
            all.push(Self::NoInodes);
        }
        if kind.can_abort() {
            all.push(Self::Aborted);
        }
        all
    }

    const fn label(self) -> &'static str {
        match self {
            Self::FilledByItself => "filled_by_itself",
            Self::FilledByOthers => "filled_by_others",
            Self::NoInodes => "no_inodes",
            Self::ReadOnly => "read_only",
            Self::Aborted => "aborted",
        }
    }
}

/// Takes what space there is.
pub(crate) fn take_all(path: &Path) -> Result<(), Failure> {
    let mut file = std::fs::File::create(path)?;
    for bytes in [65_536, 4_096, 512] {
        let block = vec![0x5a; bytes];
        while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
    }
    Ok(())
}

/// Takes what space there is beyond a few megabytes.
fn take_some(path: &Path, dir: &Path) -> Result<(), Failure> {
    let mut file = std::fs::File::create(path)?;
    let block = vec![0x5a; 65_536];
    let free = || rustix::fs::statvfs(dir).map(|facts| facts.f_bavail * facts.f_frsize);
    while free()? > SCARCE_BYTES {
        file.write_all(&block)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Takes what inodes there are.
fn take_inodes(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)?;
    for number in 0..5_000 {
        if std::fs::File::create(dir.join(number.to_string())).is_err() {
            return Ok(());
        }
    }
    Err("it never runs out of inodes".into())
}

/// The fleet on the small file system, and what it must hold.
struct Bench {
    db: DbManager,
    router: RouterDb,
    there: Vec<u64>,
    /// Groups whose writes answered that the outcome is unknown.
    open: Vec<u64>,
    tried: u64,
}

impl Bench {
    /// Writes a group; `false` when there was no space for it.
    async fn write(&mut self, cause: Cause) -> Result<bool, String> {
        self.tried += 1;
        let number = self.tried;
        let written = self
            .router
            .write_keyed(cause, fleet::key(number), move |conn| Box::pin(fleet::insert_group(conn, number)))
            .await;
        match written {
            Ok(()) => {
                self.there.push(number);
                Ok(true)
            }
            Err(Error::NoSpace { .. }) => Ok(false),
            Err(error) => Err(format!("a write answers {error:?} instead of no space")),
        }
    }

    /// Writes until there is no space.
    async fn fill(&mut self, cause: Cause) -> Result<(), String> {
        for _ in 0..20_000 {
            if !self.write(cause).await? {
                return Ok(());
            }
        }
        Err("it never runs full".to_owned())
    }

    async fn delete_oldest(&mut self, groups: usize) -> Result<(), String> {
        let groups = groups.min(self.there.len());
        let Some(last) = self.there.get(groups.saturating_sub(1)).copied() else { return Ok(()) };
        let limit = i64::try_from(last).unwrap_or(i64::MAX);
        self.router
            .write(CAUSE, move |conn| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM soak WHERE number <= ?1").bind(limit).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await
            .map_err(|error| format!("a deletion fails: {error}"))?;
        self.there.drain(..groups);
        Ok(())
    }

    /// Opens the fleet again and finds everything there.
    async fn open_again(&mut self, data: &Path, run: &Path) -> Result<(), String> {
        let (db, router) = open(data, run).await.map_err(|error| format!("opening again: {error}"))?;
        self.db = db;
        self.router = router;
        if self.open.is_empty() {
            self.verify().await.map_err(|what| format!("opened again: {what}"))?;
        }
        Ok(())
    }

    /// Writes again, as soon as the medium takes it.
    async fn resume(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            if self.write(CAUSE).await? {
                return self.verify().await.map_err(|what| format!("resumed: {what}"));
            }
        }
        Err("writing does not resume".to_owned())
    }

    async fn verify(&self) -> Result<(), String> {
        let Seen { groups, faults } =
            fleet::look(&self.router).await.map_err(|error| format!("a read fails: {error}"))?;
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
        if !groups.keys().eq(self.there.iter()) {
            return Err(format!("{} groups are there instead of {}", groups.len(), self.there.len()));
        }
        Ok(())
    }
}

async fn open(data: &Path, run: &Path) -> Result<(DbManager, RouterDb), Error> {
    let (db, id) = fleet::open(fleet::options(data, run, Schema::Old)).await?;
    let router = db.router(&id).await?;
    Ok((db, router))
}

/// Troubles one file system.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let kinds: Vec<Kind> = Kind::available().iter().copied().filter(|kind| *kind != Kind::Btrfs).collect();
    let round = turn.number / kinds.len() as u64;
    let kind = kinds[usize::try_from(turn.number % kinds.len() as u64)?];
    let troubles = Trouble::of(kind);
    // Another trouble for the next kind: one round meets most of them.
    let trouble = troubles[usize::try_from((turn.number + round) % troubles.len() as u64)?];
    let before = turn.random.below(60).max(10);
    let small = match trouble {
        Trouble::NoInodes => Mounted::with_inodes(kind, 200)?,
        _ => Mounted::new(kind)?,
    };
    let run = TempDir::new_in("/dev/shm")?;
    let broken = fleet::runtime()?.block_on(live(&small, &run.path().join("run"), trouble, before))?;
    let mut found = Found { cases: 1, ..Found::default() };
    found.count(&format!("on_{kind:?}").to_lowercase(), 1);
    found.count(trouble.label(), 1);
    found.broken.extend(broken.map(|what| format!("{kind:?}, {trouble:?}: {what}")));
    Ok(found)
}

async fn live(small: &Mounted, run: &Path, trouble: Trouble, before: u64) -> Result<Option<String>, Failure> {
    let (db, router) = open(&small.path().join("data"), run).await?;
    let mut bench = Bench { db, router, there: Vec::new(), open: Vec::new(), tried: 0 };
    for _ in 0..before {
        bench.write(CAUSE).await?;
    }
    let broken = match trouble {
        Trouble::FilledByItself | Trouble::FilledByOthers => run_full(&mut bench, small, run, trouble).await,
        Trouble::NoInodes => run_out_of_inodes(&mut bench, small, run).await,
        Trouble::ReadOnly => go_read_only(&mut bench, small, run).await,
        Trouble::Aborted => give_up(&mut bench, small, run).await,
    };
    drop(bench.router);
    bench.db.shutdown().await.ok();
    Ok(broken.err())
}

/// Says so when an error is not one that a caller can act on.
fn typed(what: &str, error: &Error) -> Result<(), String> {
    match error {
        Error::NoSpace { .. }
        | Error::ReadOnly { .. }
        | Error::NotWritable { .. }
        | Error::Medium { .. }
        | Error::Io { .. }
        | Error::Unknown { .. }
        | Error::NotApplied => Ok(()),
        error => Err(format!("{what} answers {error:?}")),
    }
}

async fn run_out_of_inodes(bench: &mut Bench, small: &Mounted, run: &Path) -> Result<(), String> {
    let (data, others) = (small.path().join("data"), small.path().join("others"));
    take_inodes(&others).map_err(|error| error.to_string())?;
    // What is there goes on.
    for _ in 0..10 {
        if !bench.write(CAUSE).await? {
            return Err("a write that needs no file finds no space".to_owned());
        }
    }
    bench.verify().await.map_err(|what| format!("without inodes: {what}"))?;
    let new = || -> Result<NewRouter, String> {
        Ok(NewRouter::new(RouterId::parse("new").map_err(|error| error.to_string())?).host("192.0.2.3"))
    };
    match bench.db.create_router(new()?).await {
        Ok(_) => return Err("a router is created without inodes".to_owned()),
        Err(error) => typed("creating a router", &error)?,
    }
    bench.db.shutdown().await.map_err(|error| format!("closing without inodes: {error}"))?;
    // Closing removed the logs: whoever takes their inodes keeps the database from opening, but never from opening later.
    take_inodes(&others).map_err(|error| error.to_string())?;
    match open(&data, run).await {
        Ok((db, router)) => {
            drop(router);
            db.shutdown().await.ok();
        }
        Err(error) => typed("opening without inodes", &error)?,
    }
    std::fs::remove_dir_all(&others).map_err(|error| error.to_string())?;
    bench.open_again(&data, run).await?;
    bench.db.create_router(new()?).await.map_err(|error| format!("creating a router afterwards: {error}"))?;
    bench.resume().await
}

async fn go_read_only(bench: &mut Bench, small: &Mounted, run: &Path) -> Result<(), String> {
    let data = small.path().join("data");
    bench.db.shutdown().await.map_err(|error| format!("closing: {error}"))?;
    small.remount("ro").map_err(|error| error.to_string())?;
    match open(&data, run).await {
        Ok((db, router)) => {
            // It may open; then it does not pretend to write.
            let written = fleet::write_group(&router, u64::from(u32::MAX)).await;
            drop(router);
            db.shutdown().await.ok();
            match written {
                Ok(()) => return Err("a read-only file system takes a write".to_owned()),
                Err(error) => typed("a write to a read-only file system", &error)?,
            }
        }
        Err(error) => typed("opening on a read-only file system", &error)?,
    }
    small.remount("rw").map_err(|error| error.to_string())?;
    bench.open_again(&data, run).await?;
    bench.resume().await
}

async fn give_up(bench: &mut Bench, small: &Mounted, run: &Path) -> Result<(), String> {
    let data = small.path().join("data");
    small.abort().map_err(|error| error.to_string())?;
    for _ in 0..5 {
        bench.tried += 1;
        let number = bench.tried;
        match fleet::write_group(&bench.router, number).await {
            Ok(()) => return Err("a write answers well after the file system gave up".to_owned()),
            Err(error) => {
                typed("a write", &error)?;
                // Whether it got there is told once the file system is back.
                if matches!(error, Error::Unknown { .. }) {
                    bench.open.push(number);
                }
            }
        }
        let seen = fleet::rows(&bench.router).await.map_err(|error| format!("a read fails: {error}"))?;
        if let Some(lost) = bench.there.iter().find(|number| !seen.has(**number)) {
            return Err(format!("group {lost} is not read any more"));
        }
    }
    // Closing cannot move the log; it must come to an end all the same.
    let closed = tokio::time::timeout(Duration::from_secs(120), bench.db.shutdown()).await;
    if closed.is_err() {
        return Err("closing hangs".to_owned());
    }
    // The manager itself holds the data directory: another takes its place.
    let spare = TempDir::new_in("/dev/shm").map_err(|error| error.to_string())?;
    let (db, router) =
        open(&spare.path().join("data"), &spare.path().join("run")).await.map_err(|error| error.to_string())?;
    bench.db = db;
    bench.router = router;
    let left = small.open_files().map_err(|error| error.to_string())?;
    if !left.is_empty() {
        return Err(format!("closing leaves {left:?} open"));
    }
    bench.db.shutdown().await.ok();
    small
        .unmount()
        .and_then(|()| small.repair())
        .and_then(|()| small.mount("rw"))
        .map_err(|error| error.to_string())?;
    bench.open_again(&data, run).await?;
    let seen = fleet::look(&bench.router).await.map_err(|error| format!("a read fails: {error}"))?;
    bench.there.extend(bench.open.drain(..).filter(|number| seen.has(*number)));
    bench.resume().await
}

async fn run_full(bench: &mut Bench, small: &Mounted, run: &Path, trouble: Trouble) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let other = small.path().join("other");
    if trouble == Trouble::FilledByOthers {
        // Not all at once: the reserve is kept once room is scarce, and that is seen when something is written.
        take_some(&small.path().join("first"), small.path()).map_err(|error| failed("filling", &error))?;
        for _ in 0..4 {
            bench.write(CAUSE).await?;
            tokio::time::sleep(RESTOCK).await;
        }
        take_all(&other).map_err(|error| failed("filling", &error))?;
    }
    bench.fill(CAUSE).await?;
    bench.verify().await.map_err(|what| format!("full: {what}"))?;
    // What is critical goes on for a while.
    let mut taken = 0;
    // The first may meet the medium as it was before the reserve was given up.
    for _ in 0..CRITICAL_GROUPS + 2 {
        taken += u64::from(bench.write(CRITICAL).await?);
    }
    if taken < CRITICAL_GROUPS {
        return Err(format!("only {taken} critical groups were taken"));
    }
    bench.verify().await.map_err(|what| format!("after critical writes: {what}"))?;
    // Opening again works on the full medium.
    bench.db.shutdown().await.map_err(|error| failed("closing on a full medium", &error))?;
    bench.open_again(&small.path().join("data"), run).await?;
    // Deleting works, again and again, until what was deleted carries new rows. Each deletion has to fit the log that
    // is kept back.
    for _ in 0..bench.there.len() / 2 / DELETED_GROUPS {
        bench.delete_oldest(DELETED_GROUPS).await?;
    }
    bench.verify().await.map_err(|what| format!("after deleting: {what}"))?;
    if trouble == Trouble::FilledByOthers {
        std::fs::remove_file(&other).map_err(|error| failed("making space", &error))?;
    }
    bench.resume().await
}

/// What SQLite does by itself on a full medium must be seen: it cannot even delete.
pub(crate) fn control(_seed: u64) -> Result<Controls, Failure> {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions, Connection};

    let small = Mounted::new(Kind::Tmpfs)?;
    fleet::runtime()?.block_on(async {
        let path = small.path().join("plain.db");
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut conn = options.journal_mode(SqliteJournalMode::Wal).connect().await?;
        sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)").execute(&mut conn).await?;
        let insert = "INSERT INTO t (body) VALUES (randomblob(3000))";
        while sqlx::query(insert).execute(&mut conn).await.is_ok() {}
        let wedged = sqlx::query("DELETE FROM t").execute(&mut conn).await.is_err();
        conn.close().await.ok();
        Ok(vec![("plain sqlite wedges", wedged)])
    })
}
