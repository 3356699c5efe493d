//! Campaign `power-loss`: whatever was acknowledged survives a power cut at any point, whatever the disk kept of the rest.
//!
//! Each case records one workload, cuts the power at its crash points in every variant, opens what is left and looks.
//! Controls: a disk that lies about syncs, one that ignores those of directories, `synchronous=OFF`, and a program that
//! acknowledges before it commits; an honest program on an honest disk must pass the same checks.

#[path = "power_loss/story.rs"]
mod story;

use std::collections::BTreeSet;
use std::path::Path;

use nasnet_benches::events::Random;
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::vfs::fault::{CrashState, Medium, Recorder, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{Cause, DbManager, Error, Manifest, vfs};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::fleet::{self, Seen};
use crate::{Controls, Failure, Found, Turn};
use story::{Acked, Stage, Story, Workload};

/// Crash points left out between two that are tried; the next case of the workload tries others.
const STRIDE: u64 = 4;
const MANY: Cause = Cause::new("soak-many");

/// Runs one workload and cuts the power at some of its crash points.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let random = &mut turn.random;
    let workload = Workload::ALL[usize::try_from(turn.number % Workload::ALL.len() as u64)?];
    let runtime = fleet::runtime()?;
    let story = story::record(&runtime, workload, random, false)?;
    let replay = Replay {
        every: usize::try_from(STRIDE)?,
        first: usize::try_from(random.below(STRIDE))?,
        ..Replay::new(random.number())
    };
    let report = cut(&story, &replay)?;
    let mut found = Found { cases: report.states, ..Found::default() };
    found.count(workload.label(), report.states);
    found.count("laid_out", report.distinct);
    found.broken.extend(
        report
            .failures
            .iter()
            .map(|failure| format!("{workload:?}, point {}, {:?}: {}", failure.point, failure.variant, failure.what)),
    );
    Ok(found)
}

/// Tells whether every liar is caught, and whether their honest twin is not.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    let runtime = fleet::runtime()?;
    let failed = |report: &ReplayReport| !report.failures.is_empty();
    let few = Replay { every: 5, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(seed) };
    let honest = story::record(&runtime, Workload::Create, &mut Random::new(seed), false)?;
    let lies = cut(&honest, &few.clone().medium(Medium::LiesAboutSync))?;
    let names = cut(&honest, &few.clone().medium(Medium::NoDirectorySync))?;
    let custody = story::record(&runtime, Workload::Custody, &mut Random::new(seed), false)?;
    let moves = cut(&custody, &few.clone().medium(Medium::NoDirectorySync))?;
    let early = story::record(&runtime, Workload::Write, &mut Random::new(seed), true)?;
    let early = cut(&early, &Replay { every: 1, variants: vec![Variant::DropAll], ..few })?;
    let off = plain(&runtime, SqliteSynchronous::Off, seed)?;
    let full = plain(&runtime, SqliteSynchronous::Full, seed)?;
    Ok(vec![
        ("lying disk", failed(&lies)),
        ("no directory sync", failed(&names)),
        ("no directory sync while moving", failed(&moves)),
        ("acknowledged before the commit", failed(&early)),
        ("synchronous off", failed(&off)),
        ("honest twin passes", !failed(&full)),
    ])
}

/// What a look at a crash state saw.
#[derive(Debug)]
struct Look {
    /// `None` when the router is not registered.
    router: Option<Seen>,
    retired: bool,
    /// Whether the second router is there.
    second: bool,
    /// How many of those created together are there.
    together: usize,
    /// A value of the counter given now.
    counter: u64,
    backups: usize,
}

/// Cuts the power at the points asked for and looks at what is left.
fn cut(story: &Story, replay: &Replay) -> Result<ReplayReport, Failure> {
    let runtime = fleet::quiet_runtime()?;
    let look = |dir: &Path| -> Result<Look, String> {
        let run = TempDir::new_in("/dev/shm").map_err(|error| error.to_string())?;
        runtime.block_on(reopen(dir, &run.path().join("run"), story)).map_err(|error| error.to_string())
    };
    Ok(story.recording.replay(replay, look, |state, look| judge(story, state, look))?)
}

/// Compares what is left with what was acknowledged before the cut.
fn judge(story: &Story, state: &CrashState, look: &Result<Look, String>) -> Option<String> {
    let look = match look {
        Ok(look) => look,
        Err(error) => return Some(format!("it does not open: {error}")),
    };
    let acked: Vec<Acked> = state.acked().iter().map(|value| Acked::of(*value)).collect();
    if let Some(seen) = &look.router
        && !seen.faults.is_empty()
    {
        return Some(seen.faults.join("; "));
    }
    for acked in &acked {
        let lost = match acked {
            Acked::Counter(value) => look.counter <= *value,
            Acked::Second => !look.second,
            Acked::Together => look.together < story::TOGETHER,
            Acked::Backup => look.backups == 0,
            Acked::Router => look.router.is_none(),
            Acked::Group(number) if story.stages.is_empty() => {
                !look.router.as_ref().is_some_and(|seen| seen.has(*number))
            }
            Acked::Group(_) | Acked::Stage(_) => false,
        };
        if lost {
            return Some(format!("{acked:?} was acknowledged and is gone: the counter gives {}", look.counter));
        }
    }
    // What moves is as it was before the step under way, or as it is after it.
    let at = acked.iter().rev().find_map(|acked| if let Acked::Stage(at) = acked { Some(*at) } else { None })?;
    let groups: BTreeSet<u64> = look.router.as_ref()?.groups.keys().copied().collect();
    let now = Stage { groups, retired: look.retired };
    let allowed = &story.stages[at.min(story.stages.len())..(at + 2).min(story.stages.len())];
    (!allowed.contains(&now)).then(|| format!("after stage {at} it is {now:?}, allowed is {allowed:?}"))
}

/// Opens what a power cut left, reads everything and writes once more.
async fn reopen(dir: &Path, run: &Path, story: &Story) -> Result<Look, Error> {
    let db = DbManager::open(fleet::options(&dir.join("data"), run, story.schema)).await?;
    let id = fleet::router_id()?;
    let retired =
        matches!(db.system().routers().get(&id).await?, Some(record) if record.lifecycle == Lifecycle::Retired);
    if retired {
        db.reinstate(&id).await?;
    }
    let router = match db.router(&id).await {
        Ok(router) => {
            let seen = fleet::look(&router).await?;
            let next = seen.last() + 1_000_000;
            router.write(MANY, move |conn| Box::pin(fleet::insert_group(conn, next))).await?;
            Some(seen)
        }
        Err(Error::RouterNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let second = match db.router(&story::second()?).await {
        Ok(router) => {
            fleet::write_group(&router, 1_000_000).await?;
            true
        }
        Err(Error::RouterNotFound { .. }) => false,
        Err(error) => return Err(error),
    };
    let mut together = 0;
    for id in story::together().take(if story.together { story::TOGETHER } else { 0 }) {
        match db.router(&id?).await {
            Ok(router) => {
                fleet::write_group(&router, 1).await?;
                together += 1;
            }
            Err(Error::RouterNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let counter = db.system().counters().reserve(story::COUNTER, 1).await?;
    // What has the name of a backup is one.
    let mut backups = 0;
    for entry in std::fs::read_dir(story::backups(dir)).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with('.') {
            db.verify_backup(&Manifest::read(entry.path())?).await?;
            backups += 1;
        }
    }
    db.shutdown().await?;
    Ok(Look { router, retired, second, together, counter, backups })
}

async fn connect(path: &Path, synchronous: SqliteSynchronous) -> Result<SqliteConnection, Failure> {
    vfs::register()?;
    let options = SqliteConnectOptions::new().filename(path).vfs(vfs::NAME).create_if_missing(true);
    Ok(options.journal_mode(SqliteJournalMode::Wal).synchronous(synchronous).connect().await?)
}

/// A plain database, written with the given setting: OFF must be caught, FULL must not.
fn plain(runtime: &Runtime, synchronous: SqliteSynchronous, seed: u64) -> Result<ReplayReport, Failure> {
    let disk = TempDir::new_in("/dev/shm")?;
    let path = disk.path().join("plain.db");
    runtime.block_on(async {
        let mut conn = connect(&path, synchronous).await?;
        sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY)").execute(&mut conn).await?;
        Ok::<_, Failure>(conn.close().await?)
    })?;
    let recorder = Recorder::start(disk.path())?;
    runtime.block_on(async {
        let mut conn = connect(&path, synchronous).await?;
        for number in 1..=10_i64 {
            sqlx::query("INSERT INTO t VALUES (?1)").bind(number).execute(&mut conn).await?;
            recorder.ack(number.unsigned_abs());
        }
        Ok::<_, Failure>(conn.close().await?)
    })?;
    let look = |dir: &Path| {
        runtime.block_on(async {
            let mut conn = connect(&dir.join("plain.db"), synchronous).await?;
            let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(&mut conn).await?;
            conn.close().await?;
            Ok::<_, Failure>(count.unsigned_abs())
        })
    };
    let report = recorder.stop().replay(&Replay::new(seed), look, |state, seen| match seen {
        Ok(count) if *count >= state.acked().len() as u64 => None,
        other => Some(format!("{other:?} of {}", state.acked().len())),
    })?;
    Ok(report)
}
