//! What is recorded: the workloads, and what each acknowledged on the way.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::vfs::fault::{Recorder, Recording, Replay, Variant};
use nasnet_dbmanager::{DbManager, Error, NewRouter, RestoreMode, RouterId, Which};
use tokio::runtime::Runtime;

use crate::Failure;
use crate::fleet::{self, Schema};

pub(super) const COUNTER: &str = "soak";

/// What is going on when the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    /// A fleet is founded, a router created and written to, then others are created together.
    Create,
    /// An existing router is written to, alone and in groups, with checkpoints in between.
    Write,
    /// Routers are migrated, then one is written to.
    Migrate,
    /// A router is backed up, restored, put back, retired and reinstated.
    Custody,
    /// The system database is backed up and restored while a router that the backup does not know is registered.
    RestoreSystem,
    /// The power is cut again while the databases are opened after a first cut.
    Recover,
}

impl Workload {
    pub(super) const ALL: [Self; 6] =
        [Self::Create, Self::Write, Self::Migrate, Self::Custody, Self::RestoreSystem, Self::Recover];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Create => "states_create",
            Self::Write => "states_write",
            Self::Migrate => "states_migrate",
            Self::Custody => "states_backup_restore_retire",
            Self::RestoreSystem => "states_restore_system",
            Self::Recover => "states_recover",
        }
    }
}

/// Something a caller was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acked {
    Group(u64),
    /// The router itself.
    Router,
    /// The second one.
    Second,
    /// Those created together.
    Together,
    /// A backup.
    Backup,
    /// A value of the counter.
    Counter(u64),
    /// A step of what moves.
    Stage(usize),
}

const KIND: u32 = 56;

impl Acked {
    pub(super) fn number(self) -> u64 {
        let (kind, value) = match self {
            Self::Group(number) => (0, number),
            Self::Router => (1, 0),
            Self::Second => (2, 0),
            Self::Backup => (3, 0),
            Self::Counter(value) => (4, value),
            Self::Stage(at) => (5, at as u64),
            Self::Together => (6, 0),
        };
        kind << KIND | value
    }

    pub(super) fn of(number: u64) -> Self {
        let value = number & ((1 << KIND) - 1);
        match number >> KIND {
            0 => Self::Group(value),
            1 => Self::Router,
            2 => Self::Second,
            3 => Self::Backup,
            4 => Self::Counter(value),
            5 => Self::Stage(usize::try_from(value).unwrap_or(usize::MAX)),
            _ => Self::Together,
        }
    }
}

/// What the router is at a moment at which nothing is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) groups: BTreeSet<u64>,
    pub(super) retired: bool,
}

/// A record, and how to judge what a power cut leaves of it.
pub(super) struct Story {
    pub(super) recording: Recording,
    pub(super) schema: Schema,
    /// Whether routers were created together.
    pub(super) together: bool,
    /// Where groups come and go on purpose: what must be there, step by step.
    pub(super) stages: Vec<Stage>,
}

pub(super) fn second() -> Result<RouterId, Error> {
    RouterId::parse("second")
}

/// Routers created in one call.
pub(super) const TOGETHER: usize = 4;

pub(super) fn together() -> impl Iterator<Item = Result<RouterId, Error>> {
    (0..TOGETHER).map(|number| RouterId::parse(&format!("together-{number}")))
}

pub(super) fn backups(disk: &Path) -> PathBuf {
    disk.join("backups")
}

type Ack<'a> = &'a (dyn Fn(Acked) + Sync);

/// Records a workload; `early` acknowledges each group before it is written.
pub(super) fn record(
    runtime: &Runtime,
    workload: Workload,
    random: &mut Random,
    early: bool,
) -> Result<Story, Failure> {
    let place = Place::new(Some(Path::new("/dev/shm")))?;
    let (disk, run) = (place.disk.path(), place.tmpfs.path().join("run"));
    let data = disk.join("data");
    let schema = if workload == Workload::Migrate { Schema::New } else { Schema::Old };
    let before = if workload == Workload::Create { 0 } else { 4 + random.below(20) };
    if before > 0 {
        runtime.block_on(async {
            work(&data, &run, Schema::Old, 1..=before, &|_| {}, false, random).await?;
            if workload == Workload::Migrate {
                create_second(&data, &run).await?;
            }
            Ok::<_, Error>(())
        })?;
    }
    let recorder = Recorder::start(disk)?;
    let ack = |acked: Acked| recorder.ack(acked.number());
    if before > 0 {
        // What was there before stays, whatever happens now.
        ack(Acked::Router);
        (1..=before).for_each(|number| ack(Acked::Group(number)));
    }
    let groups = before + 1..=before + 3 + random.below(8);
    let mut stages = Vec::new();
    runtime.block_on(async {
        match workload {
            Workload::Custody => stages = custody(disk, &run, before, &ack).await?,
            Workload::RestoreSystem => restore_system(disk, &run, before, &ack).await?,
            Workload::Migrate => {
                ack(Acked::Second);
                if random.below(2) == 0 {
                    migrate_all(&data, &run).await?;
                }
                work(&data, &run, schema, groups, &ack, early, random).await?;
            }
            _ => work(&data, &run, schema, groups, &ack, early, random).await?,
        }
        if workload == Workload::Create && !early {
            create_together(&data, &run).await?;
            ack(Acked::Together);
        }
        Ok::<_, Failure>(())
    })?;
    let recording = recorder.stop();
    // The power cut takes the run directory away.
    drop(place);
    if workload != Workload::Recover {
        return Ok(Story { recording, schema, together: workload == Workload::Create, stages });
    }
    record_recovery(runtime, &recording, random)
}

async fn create_second(data: &Path, run: &Path) -> Result<(), Error> {
    let (db, _) = fleet::open(fleet::options(data, run, Schema::Old)).await?;
    db.create_router(NewRouter::new(second()?)).await?;
    fleet::write_group(&*db.router(&second()?).await?, 1).await?;
    db.shutdown().await
}

async fn create_together(data: &Path, run: &Path) -> Result<(), Failure> {
    let db = DbManager::open(fleet::options(data, run, Schema::Old)).await?;
    let new = together().map(|id| id.map(NewRouter::new)).collect::<Result<Vec<_>, _>>()?;
    let report = db.create_routers(new).await;
    db.shutdown().await?;
    match report.failures().next() {
        Some((id, error)) => Err(format!("{id}: {error}").into()),
        None => Ok(()),
    }
}

async fn migrate_all(data: &Path, run: &Path) -> Result<(), Failure> {
    let db = DbManager::open(fleet::options(data, run, Schema::New)).await?;
    let report = db.migrate_all(2).await?;
    db.shutdown().await?;
    if report.is_complete() { Ok(()) } else { Err("a migration failed".into()) }
}

/// Backs a router up, restores it, puts back what that replaced, retires it and takes it back.
async fn custody(disk: &Path, run: &Path, last: u64, ack: Ack<'_>) -> Result<Vec<Stage>, Failure> {
    let (db, id) = fleet::open(fleet::options(&disk.join("data"), run, Schema::Old)).await?;
    let write = async |number| fleet::write_group(&*db.router(&id).await?, number).await;
    let mut now = Stage { groups: (1..=last).collect(), retired: false };
    let mut stages = vec![now.clone()];
    let mut step = |now: &Stage| {
        stages.push(now.clone());
        ack(Acked::Stage(stages.len() - 1));
    };
    ack(Acked::Stage(0));
    let backup = db.backup(Which::Router(id.clone()), backups(disk)).await?;
    ack(Acked::Backup);
    write(last + 1).await?;
    now.groups.insert(last + 1);
    step(&now);
    let report = db.restore(&backup, RestoreMode::Router(id.clone())).await?;
    step(&Stage { groups: (1..=last).collect(), retired: false });
    let safety = report.restored.first().and_then(|restored| restored.safety.clone()).ok_or("nothing was kept")?;
    db.undo_restore(&id, &safety).await?;
    step(&now);
    write(last + 2).await?;
    now.groups.insert(last + 2);
    step(&now);
    db.retire(&id).await?;
    step(&Stage { retired: true, ..now.clone() });
    db.reinstate(&id).await?;
    step(&now);
    write(last + 3).await?;
    now.groups.insert(last + 3);
    step(&now);
    db.shutdown().await?;
    Ok(stages)
}

/// Restores the system database from a backup that is older than a router and a value of the counter.
async fn restore_system(disk: &Path, run: &Path, last: u64, ack: Ack<'_>) -> Result<(), Failure> {
    let options = fleet::options(&disk.join("data"), run, Schema::Old);
    let (db, id) = fleet::open(options.clone()).await?;
    let reserve = async |db: &DbManager| {
        let value = db.system().counters().reserve(COUNTER, 1).await?;
        ack(Acked::Counter(value));
        Ok::<_, Error>(())
    };
    reserve(&db).await?;
    let backup = db.backup(Which::System, backups(disk)).await?;
    ack(Acked::Backup);
    reserve(&db).await?;
    db.create_router(NewRouter::new(second()?)).await?;
    ack(Acked::Second);
    fleet::write_group(&*db.router(&id).await?, last + 1).await?;
    ack(Acked::Group(last + 1));
    db.shutdown().await?;
    drop(db);
    DbManager::restore_system(&options, &backup).await?;
    let (db, id) = fleet::open(options).await?;
    reserve(&db).await?;
    fleet::write_group(&*db.router(&id).await?, last + 2).await?;
    ack(Acked::Group(last + 2));
    Ok(db.shutdown().await?)
}

/// Cuts the power once at a random point and records what opening does then.
fn record_recovery(runtime: &Runtime, first: &Recording, random: &mut Random) -> Result<Story, Failure> {
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
    let ack = |acked: Acked| recorder.ack(acked.number());
    let (data, run) = (place.disk.path().join("data"), place.tmpfs.path().join("run"));
    runtime.block_on(async {
        let (db, id) = fleet::open(fleet::options(&data, &run, Schema::Old)).await?;
        let router = db.router(&id).await?;
        ack(Acked::Router);
        let seen = fleet::look(&router).await?;
        for number in seen.groups.keys() {
            ack(Acked::Group(*number));
        }
        let next = seen.last() + 1;
        fleet::write_group(&router, next).await?;
        ack(Acked::Group(next));
        drop(router);
        db.shutdown().await
    })?;
    Ok(Story { recording: recorder.stop(), schema: Schema::Old, together: false, stages: Vec::new() })
}

/// Opens the fleet and writes the groups of a range.
async fn work(
    data: &Path,
    run: &Path,
    schema: Schema,
    groups: RangeInclusive<u64>,
    ack: Ack<'_>,
    early: bool,
    random: &mut Random,
) -> Result<(), Error> {
    let (db, id) = fleet::open(fleet::options(data, run, schema)).await?;
    let router = db.router(&id).await?;
    ack(Acked::Router);
    let mut next = *groups.start();
    while next <= *groups.end() {
        let together = (1 + random.below(3)).min(groups.end() - next + 1);
        let numbers: Vec<_> = (next..next + together).collect();
        next += together;
        if early {
            numbers.iter().for_each(|number| ack(Acked::Group(*number)));
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
                ack(Acked::Group(number));
            }
        }
        if random.below(4) == 0 {
            router.checkpoint().await?;
        }
        // A write to another database in between.
        if random.below(4) == 0 {
            let value = db.system().counters().reserve(COUNTER, 1).await?;
            ack(Acked::Counter(value));
        }
    }
    drop(router);
    db.shutdown().await
}
