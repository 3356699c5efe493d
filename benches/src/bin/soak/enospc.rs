//! Campaign `enospc`: real file systems run full, and nothing is wedged.
//!
//! Each case mounts a tmpfs of 2 MB or an ext4 image of 8 MB in a mount namespace of its own, puts a fleet on it and
//! writes until there is no space: the database alone, or a neighbour that takes everything. Then writes fail typed
//! and change nothing, critical ones go on from the reserve, reads, deletions and opening again work, and writing
//! resumes by itself once space is back.
//!
//! It needs the right to mount. Where that is missing, it fails if `CI` is `true` and says aloud that it was skipped if not.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nasnet_benches::events::Random;
use nasnet_dbmanager::{Cause, DbManager, Error, RouterDb};
use tempfile::TempDir;

use crate::fleet::{self, CAUSE, Schema, Seen};
use crate::{Failure, Found};

/// Says that this process has a mount namespace of its own.
const INSIDE: &str = "NASNET_SOAK_NAMESPACE";
const CRITICAL: Cause = Cause::new("soak-critical").critical();
/// Critical groups a full medium must still take.
const CRITICAL_GROUPS: u64 = 20;

/// Goes into a mount namespace of its own, so that no mount outlives the process; `false` when the campaign is skipped.
pub(crate) fn enter() -> Result<bool, Failure> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let can = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"]).output();
    if can.is_ok_and(|output| output.status.success()) {
        let error = Command::new("unshare")
            .arg("-m")
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        return Err(error.into());
    }
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        return Err("campaign enospc cannot mount anything here, and must run in CI".into());
    }
    #[expect(clippy::print_stderr, reason = "a skipped campaign says so")]
    {
        eprintln!("SKIPPED: campaign enospc needs the right to mount (run it as root)");
    }
    Ok(false)
}

/// What fills the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filler {
    /// The database itself.
    Own,
    /// A file of somebody else.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tmpfs,
    Ext4,
}

/// A small file system.
struct Small {
    dir: TempDir,
    _image: TempDir,
}

impl Small {
    fn mount(kind: Kind) -> Result<Self, Failure> {
        let (dir, image) = (TempDir::new()?, TempDir::new()?);
        match kind {
            Kind::Tmpfs => run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(dir.path()))?,
            Kind::Ext4 => {
                let file = image.path().join("image");
                std::fs::File::create(&file)?.set_len(8 * 1024 * 1024)?;
                run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file))?;
                run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(dir.path()))?;
            }
        }
        Ok(Self { dir, _image: image })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Whatever cannot be unmounted goes with the namespace.
        Command::new("umount").arg("-l").arg(self.dir.path()).status().ok();
    }
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Takes what space there is.
fn take_all(path: &Path) -> Result<(), Failure> {
    let mut file = std::fs::File::create(path)?;
    for bytes in [65_536, 4_096, 512] {
        let block = vec![0x5a; bytes];
        while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
    }
    Ok(())
}

/// The fleet on the small file system, and what it must hold.
struct Bench {
    db: DbManager,
    router: RouterDb,
    there: Vec<u64>,
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

/// Runs one file system full.
pub(crate) fn case(random: &mut Random) -> Result<Found, Failure> {
    let kind = if random.below(2) == 0 { Kind::Tmpfs } else { Kind::Ext4 };
    let filler = if random.below(2) == 0 { Filler::Own } else { Filler::Other };
    let before = random.below(60);
    let small = Small::mount(kind)?;
    let run = TempDir::new_in("/dev/shm")?;
    let broken = fleet::runtime()?.block_on(live(&small, &run.path().join("run"), filler, before))?;
    Ok(Found {
        cases: 1,
        broken: broken.map(|what| format!("{kind:?} filled by {filler:?}: {what}")).into_iter().collect(),
        ..Found::default()
    })
}

async fn live(small: &Small, run: &Path, filler: Filler, before: u64) -> Result<Option<String>, Failure> {
    let data = small.data();
    let (db, router) = open(&data, run).await?;
    let mut bench = Bench { db, router, there: Vec::new(), tried: 0 };
    let broken = run_full(&mut bench, small, run, filler, before).await.err();
    drop(bench.router);
    bench.db.shutdown().await.ok();
    Ok(broken)
}

async fn run_full(bench: &mut Bench, small: &Small, run: &Path, filler: Filler, before: u64) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let other = small.dir.path().join("other");
    for _ in 0..before.max(10) {
        bench.write(CAUSE).await?;
    }
    if filler == Filler::Other {
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
    let (db, router) = open(&small.data(), run).await.map_err(|error| failed("opening on a full medium", &error))?;
    bench.db = db;
    bench.router = router;
    bench.verify().await.map_err(|what| format!("opened again: {what}"))?;
    // Deleting works, again and again, until what was deleted carries new rows.
    let half = bench.there.len() / 2;
    for _ in 0..4 {
        bench.delete_oldest(half.div_ceil(4)).await?;
    }
    bench.verify().await.map_err(|what| format!("after deleting: {what}"))?;
    if filler == Filler::Other {
        std::fs::remove_file(&other).map_err(|error| failed("making space", &error))?;
    }
    for attempt in 0..3 {
        if bench.write(CAUSE).await? {
            break;
        }
        if attempt == 2 {
            return Err("writing does not resume".to_owned());
        }
    }
    bench.verify().await.map_err(|what| format!("resumed: {what}"))
}

/// What SQLite does by itself on a full medium must be seen: it cannot even delete.
pub(crate) fn control(_seed: u64) -> Result<bool, Failure> {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions, Connection};

    let small = Small::mount(Kind::Tmpfs)?;
    fleet::runtime()?.block_on(async {
        let path = small.dir.path().join("plain.db");
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut conn = options.journal_mode(SqliteJournalMode::Wal).connect().await?;
        sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)").execute(&mut conn).await?;
        let insert = "INSERT INTO t (body) VALUES (randomblob(3000))";
        while sqlx::query(insert).execute(&mut conn).await.is_ok() {}
        let wedged = sqlx::query("DELETE FROM t").execute(&mut conn).await.is_err();
        conn.close().await.ok();
        Ok(wedged)
    })
}
