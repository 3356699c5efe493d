//! Campaign `power-loss`: whatever was acknowledged survives a power cut at any point, whatever the disk kept of the rest.
//!
//! Each case records one workload, cuts the power at its crash points in every variant, opens what is left and looks.
//! Controls: a disk that lies about syncs, one that ignores those of directories, `synchronous=OFF`, and a program that
//! acknowledges before it commits.

use std::path::Path;

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::vfs::fault::{Medium, Recorder, Recording, Replay, ReplayReport, Variant};
use nasnet_dbmanager::{Cause, Error, RestoreMode, Which, vfs};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::fleet::{self, Schema, Seen};
use crate::{Failure, Found};

/// Crash points left out between two that are tried; the next case tries others.
const STRIDE: u64 = 4;
/// Threads that look at crash states.
const WORKERS: u64 = 2;
/// Acknowledgement of the router itself; groups are numbered from 1.
const ROUTER: u64 = 0;
/// From here on the router may be out of use, until it is back.
const RETIRING: u64 = u64::MAX;
const BACK: u64 = u64::MAX - 1;
const MANY: Cause = Cause::new("soak-many");

/// What is going on when the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workload {
    /// A fleet is founded, a router created and written to.
    Found,
    /// An existing router is written to, alone and in groups, with checkpoints in between.
    Write,
    /// A router is migrated, then written to.
    Migrate,
    /// A router is backed up, restored, retired and reinstated.
    Custody,
    /// The power is cut again while the databases are opened after a first cut.
    Recover,
}

/// Runs one workload and cuts the power at some of its crash points.
pub(crate) fn case(random: &mut Random) -> Result<Found, Failure> {
    let workload = match random.below(5) {
        0 => Workload::Found,
        1 => Workload::Write,
        2 => Workload::Migrate,
        3 => Workload::Custody,
        _ => Workload::Recover,
    };
    let runtime = fleet::runtime()?;
    let (recording, schema) = record(&runtime, workload, random, false)?;
    let (first, seed) = (random.below(STRIDE), random.number());
    let mut found = Found::default();
    // Looking at a state is mostly waiting for the threads of its connections: two share the work well.
    let reports = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let recording = &recording;
                scope.spawn(move || {
                    let replay = Replay {
                        every: usize::try_from(STRIDE * WORKERS)?,
                        first: usize::try_from(first + STRIDE * worker)?,
                        ..Replay::new(seed)
                    };
                    cut(&fleet::runtime()?, recording, &replay, schema)
                })
            })
            .collect();
        workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    for report in reports {
        let report = report.map_err(|_| "a look at a crash state panicked")??;
        found.cases += report.states;
        found.broken.extend(
            report.failures.iter().map(|failure| {
                format!("{workload:?}, point {}, {:?}: {}", failure.point, failure.variant, failure.what)
            }),
        );
    }
    Ok(found)
}

/// Tells whether every liar is caught, and whether their honest twin is not.
pub(crate) fn control(seed: u64) -> Result<bool, Failure> {
    let runtime = fleet::runtime()?;
    let few = Replay { every: 5, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(seed) };
    let (honest, schema) = record(&runtime, Workload::Found, &mut Random::new(seed), false)?;
    let lies = cut(&runtime, &honest, &few.clone().medium(Medium::LiesAboutSync), schema)?;
    let names = cut(&runtime, &honest, &few.clone().medium(Medium::NoDirectorySync), schema)?;
    let (early, schema) = record(&runtime, Workload::Write, &mut Random::new(seed), true)?;
    let early = cut(&runtime, &early, &Replay { every: 1, variants: vec![Variant::DropAll], ..few }, schema)?;
    let off = plain(&runtime, SqliteSynchronous::Off, seed)?;
    let full = plain(&runtime, SqliteSynchronous::Full, seed)?;
    let failed = |report: &ReplayReport| !report.failures.is_empty();
    Ok(failed(&lies) && failed(&names) && failed(&early) && failed(&off) && !failed(&full))
}

/// Records a workload; `early` acknowledges each group before it is written.
fn record(
    runtime: &Runtime,
    workload: Workload,
    random: &mut Random,
    early: bool,
) -> Result<(Recording, Schema), Failure> {
    let place = Place::new(Some(Path::new("/dev/shm")))?;
    let (data, run) = (place.disk.path().join("data"), place.tmpfs.path().join("run"));
    let schema = if workload == Workload::Migrate { Schema::New } else { Schema::Old };
    let before = if workload == Workload::Found { 0 } else { 4 + random.below(20) };
    if before > 0 {
        runtime.block_on(work(&data, &run, Schema::Old, 1..=before, &|_| {}, false, random))?;
    }
    let recorder = Recorder::start(place.disk.path())?;
    let ack = |number| recorder.ack(number);
    for number in ROUTER..=before {
        // What was there before stays, whatever happens now.
        if before > 0 {
            ack(number);
        }
    }
    let count = 3 + random.below(8);
    if workload == Workload::Custody {
        runtime.block_on(custody(place.disk.path(), &run, before, &ack))?;
    } else {
        runtime.block_on(work(&data, &run, schema, before + 1..=before + count, &ack, early, random))?;
    }
    let recording = recorder.stop();
    drop(place);
    if workload != Workload::Recover {
        return Ok((recording, schema));
    }
    record_recovery(runtime, &recording, random)
}

/// Backs a router up, restores it, retires it and takes it back; what it holds stays the same all the time.
async fn custody(disk: &Path, run: &Path, last: u64, ack: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
    let (db, id) = fleet::open(fleet::options(&disk.join("data"), run, Schema::Old)).await?;
    let backup = db.backup(Which::Router(id.clone()), disk.join("backups")).await?;
    db.restore(&backup, RestoreMode::Router(id.clone())).await?;
    let router = db.router(&id).await?;
    fleet::write_group(&router, last + 1).await?;
    ack(last + 1);
    drop(router);
    ack(RETIRING);
    db.retire(&id).await?;
    db.reinstate(&id).await?;
    ack(BACK);
    let router = db.router(&id).await?;
    fleet::write_group(&router, last + 2).await?;
    ack(last + 2);
    drop(router);
    db.shutdown().await
}

/// Cuts the power once at a random point and records what opening does then.
fn record_recovery(runtime: &Runtime, first: &Recording, random: &mut Random) -> Result<(Recording, Schema), Failure> {
    let place = Place::new(Some(Path::new("/dev/shm")))?;
    let replay = Replay {
        first: usize::try_from(random.below(first.crash_points() as u64))?,
        every: usize::MAX,
        variants: vec![Variant::ALL[usize::try_from(random.below(5))?]],
        ..Replay::new(random.number())
    };
    let state = first.crash_states(&replay).next().ok_or("a record without a crash point")?;
    state.materialise(place.disk.path())?;
    let recorder = Recorder::start(place.disk.path())?;
    for number in state.acked() {
        recorder.ack(*number);
    }
    let (data, run) = (place.disk.path().join("data"), place.tmpfs.path().join("run"));
    runtime.block_on(async {
        let (db, id) = fleet::open(fleet::options(&data, &run, Schema::Old)).await?;
        let router = db.router(&id).await?;
        recorder.ack(ROUTER);
        let seen = fleet::look(&router).await?;
        for number in seen.groups.keys() {
            recorder.ack(*number);
        }
        let next = seen.last() + 1;
        fleet::write_group(&router, next).await?;
        recorder.ack(next);
        drop(router);
        db.shutdown().await
    })?;
    Ok((recorder.stop(), Schema::Old))
}

/// Opens the fleet and writes the groups of a range.
async fn work(
    data: &Path,
    run: &Path,
    schema: Schema,
    groups: std::ops::RangeInclusive<u64>,
    ack: &(dyn Fn(u64) + Sync),
    early: bool,
    random: &mut Random,
) -> Result<(), Error> {
    let (db, id) = fleet::open(fleet::options(data, run, schema)).await?;
    let router = db.router(&id).await?;
    ack(ROUTER);
    let mut next = *groups.start();
    while next <= *groups.end() {
        let together = (1 + random.below(3)).min(groups.end() - next + 1);
        let numbers: Vec<_> = (next..next + together).collect();
        next += together;
        if early {
            numbers.iter().for_each(|number| ack(*number));
        }
        // Queued together, they share a commit.
        let writes: Vec<_> = numbers
            .iter()
            .map(|number| {
                let (router, number) = (router.clone(), *number);
                tokio::spawn(async move { fleet::write_group(&router, number).await.map(|()| number) })
            })
            .collect();
        for write in writes {
            let number = write.await.map_err(|error| Error::Panicked { message: error.to_string() })??;
            if !early {
                ack(number);
            }
        }
        if random.below(4) == 0 {
            router.checkpoint().await?;
        }
        // A write to another database in between.
        if random.below(4) == 0 {
            db.system().counters().reserve("soak", 1).await?;
        }
    }
    drop(router);
    db.shutdown().await
}

/// Cuts the power at the points asked for and looks at what is left.
fn cut(runtime: &Runtime, recording: &Recording, replay: &Replay, schema: Schema) -> Result<ReplayReport, Failure> {
    let look = |dir: &Path| -> Result<Option<Seen>, String> {
        let run = TempDir::new_in("/dev/shm").map_err(|error| error.to_string())?;
        runtime.block_on(reopen(&dir.join("data"), &run.path().join("run"), schema)).map_err(|error| error.to_string())
    };
    let judge = |state: &vfs::fault::CrashState, seen: &Result<Option<Seen>, String>| match seen {
        Err(error) => Some(format!("it does not open: {error}")),
        Ok(None) if state.acked().is_empty() => None,
        Ok(None) if state.acked().contains(&RETIRING) && !state.acked().contains(&BACK) => None,
        Ok(None) => Some("the router was acknowledged and is gone".to_owned()),
        Ok(Some(seen)) if !seen.faults.is_empty() => Some(seen.faults.join("; ")),
        Ok(Some(seen)) => {
            let group = |number: &&u64| ![ROUTER, RETIRING, BACK].contains(*number);
            let lost = state.acked().iter().filter(group).find(|number| !seen.has(**number))?;
            Some(format!("group {lost} was acknowledged and is gone"))
        }
    };
    Ok(recording.replay(replay, look, judge)?)
}

/// Opens what a power cut left, reads everything and writes once more.
async fn reopen(data: &Path, run: &Path, schema: Schema) -> Result<Option<Seen>, Error> {
    let db = nasnet_dbmanager::DbManager::open(fleet::options(data, run, schema)).await?;
    let seen = match db.router(&fleet::router_id()?).await {
        Ok(router) => {
            let seen = fleet::look(&router).await?;
            let next = seen.last() + 1_000_000;
            router.write(MANY, move |conn| Box::pin(fleet::insert_group(conn, next))).await?;
            Some(seen)
        }
        Err(Error::RouterNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    db.shutdown().await?;
    Ok(seen)
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
