//! P18: what a lease costs against the locks one would use instead, and against the least SQLite takes for two commits.

use std::path::Path;
use std::time::{Duration, Instant};

use nasnet_benches::leases::{Advisory, Failure, Pairs, lease, open, upsert};
use nasnet_benches::measure::{BusyCore, ROUNDS, Ratio, exact, median, percentile};
use nasnet_benches::naive::{Floor, NaiveLock};
use nasnet_benches::place::Place;
use nasnet_locking::{LockManager, LockOptions, TOKEN_COUNTER};

/// Pairs of each in one round: short enough to fit between two other programs, long enough to hold its checkpoints.
const PAIRS: u32 = 20;
const SHORT_ROUNDS: usize = ROUNDS * 10;

/// What each took in the rounds of one state of the second core, for one pair.
#[derive(Default)]
struct Rounds {
    ours: Vec<Duration>,
    on_disk: Vec<Duration>,
    on_tmpfs: Vec<Duration>,
    advisory: Vec<Duration>,
    floor: Vec<Duration>,
}

/// The worse of an idle and a busy second core.
#[derive(Debug, Clone, Copy)]
struct Worst(f64);

impl Worst {
    fn faster(&mut self, theirs: &[Duration], ours: &[Duration]) {
        self.0 = self.0.min(ratio(theirs, ours));
    }

    fn slower(&mut self, ours: &[Duration], theirs: &[Duration]) {
        self.0 = self.0.max(ratio(ours, theirs));
    }
}

fn ratio(above: &[Duration], below: &[Duration]) -> f64 {
    median(above.to_vec()).as_secs_f64() / median(below.to_vec()).as_secs_f64()
}

pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(disk)?;
    let db = open(&place.disk.path().join("data"), place.tmpfs.path()).await?;
    let locks = LockManager::open(&db, LockOptions::default()).await?;
    let mut on_disk = NaiveLock::synced(&place.disk.path().join("naive.db")).await?;
    let mut on_tmpfs = NaiveLock::unsynced(&place.tmpfs.path().join("naive.db")).await?;
    let mut floor = Floor::open(&place.tmpfs.path().join("floor.db"))?;
    let mut advisory = Advisory::connect().await?;

    let (mut warm, mut samples) = (Pairs::default(), Pairs::default());
    lease(&locks, 10 * PAIRS, &mut warm).await?;
    upsert(&mut on_disk, PAIRS, &mut warm.pairs).await?;
    upsert(&mut on_tmpfs, PAIRS, &mut warm.pairs).await?;
    let (mut disk_speed, mut tmpfs_speed, mut advisory_speed, mut above_floor) =
        (Worst(f64::INFINITY), Worst(f64::INFINITY), Worst(f64::INFINITY), Worst(0.0));
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        let mut rounds = Rounds::default();
        for _ in 0..SHORT_ROUNDS {
            rounds.ours.push(lease(&locks, PAIRS, &mut samples).await? / PAIRS);
            rounds.on_disk.push(upsert(&mut on_disk, PAIRS, &mut warm.pairs).await? / PAIRS);
            rounds.on_tmpfs.push(upsert(&mut on_tmpfs, PAIRS, &mut warm.pairs).await? / PAIRS);
            if let Some(advisory) = &mut advisory {
                rounds.advisory.push(advisory.pairs(PAIRS, &mut warm.pairs).await? / PAIRS);
            }
            let began = Instant::now();
            (0..PAIRS).try_for_each(|_| floor.pair())?;
            rounds.floor.push(began.elapsed() / PAIRS);
        }
        disk_speed.faster(&rounds.on_disk, &rounds.ours);
        tmpfs_speed.faster(&rounds.on_tmpfs, &rounds.ours);
        advisory_speed.faster(&rounds.advisory, &rounds.ours);
        above_floor.slower(&rounds.ours, &rounds.floor);
    }

    // A fresh block first: the thousand that is measured fits into it.
    let reserved = db.system().counters().get(TOKEN_COUNTER).await?;
    while db.system().counters().get(TOKEN_COUNTER).await? == reserved {
        lease(&locks, 1, &mut warm).await?;
    }
    let before = db.system().written().bytes;
    lease(&locks, 1_000, &mut warm).await?;
    let flash = db.system().written().bytes - before;
    let p99 = percentile(samples.pairs, 99);
    locks.shutdown().await?;
    db.shutdown().await?;
    let mut rows = vec![
        Ratio::at_least(
            "P18",
            "lease acquire+release, uncontended, vs an UPSERT and a DELETE on disk (FULL)",
            disk_speed.0,
            5.0,
        ),
        Ratio::at_most("P18", "flash bytes of 1,000 leases beyond the block of tokens", exact(flash), 0.0),
        Ratio::at_most("P18", "lease acquire+release, uncontended, p99 in ms", p99.as_secs_f64() * 1_000.0, 1.0),
        Ratio::at_least("P18", "the same vs an UPSERT and a DELETE on tmpfs (OFF)", tmpfs_speed.0, 1.0),
        Ratio::at_most("P18", "its cost in commit pairs of raw SQLite on tmpfs (the floor)", above_floor.0, 4.0),
    ];
    if advisory.is_some() {
        let what = "the same vs an advisory lock of PostgreSQL taken and given back over one connection";
        rows.push(Ratio::at_least("P18", what, advisory_speed.0, 1.0));
    }
    Ok(rows)
}
