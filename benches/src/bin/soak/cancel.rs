//! Campaign `cancel`: a caller that stops waiting leaves nothing by half and nobody else in trouble.
//!
//! Each case takes one public call and drops its future at each of its awaits in turn, and then after random times. What
//! became of a write is told by its key; the same connection then serves a write and a read. What moves a router is
//! finished, or undone, when the fleet is opened the next time, and what the router holds is all there.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use nasnet_benches::place::Place;
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{
    DbManager, Error, KeyOutcome, Manifest, NewRouter, Options, RestoreMode, RouterId, Scope, Which,
};

use crate::fleet::{self, Schema, Seen};
use crate::{Controls, Failure, Found, Turn};

/// Awaits of one call that are tried, from the first on.
const POLLS_MAX: u64 = 120;
/// Drops of one case after random times.
const TIMED: u64 = 20;
/// Nothing takes longer than this.
const HANG: Duration = Duration::from_secs(120);

/// When the future is dropped.
#[derive(Debug, Clone, Copy)]
enum When {
    /// After it was polled that often.
    Polls(u64),
    /// After that time.
    Micros(u64),
}

/// Runs a future until it is to be dropped; `None` when it had not ended by then.
async fn until<F: Future>(when: When, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    match when {
        When::Micros(micros) => tokio::time::timeout(Duration::from_micros(micros), future).await.ok(),
        When::Polls(most) => {
            let mut polls = 0;
            std::future::poll_fn(move |context| {
                if polls == most {
                    return Poll::Ready(None);
                }
                polls += 1;
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    // Nothing wakes a future that is about to be dropped.
                    Poll::Pending if polls == most => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        }
    }
}

/// A public call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    WriteKeyed,
    Write,
    Read,
    Outcome,
    Checkpoint,
    Counter,
    Router,
    CreateRouter,
    Open,
    Shutdown,
    Backup,
    Restore,
    UndoRestore,
    Retire,
    Reinstate,
    MigrateAll,
}

const CALLS: [Call; 16] = [
    Call::WriteKeyed,
    Call::Write,
    Call::Read,
    Call::Outcome,
    Call::Checkpoint,
    Call::Counter,
    Call::Router,
    Call::CreateRouter,
    Call::Open,
    Call::Shutdown,
    Call::Backup,
    Call::Restore,
    Call::UndoRestore,
    Call::Retire,
    Call::Reinstate,
    Call::MigrateAll,
];

struct Bench {
    place: Place,
    db: DbManager,
    schema: Schema,
    backup: Manifest,
    /// Groups in the backup.
    backed_up: Vec<u64>,
    /// Groups that must be there.
    there: Vec<u64>,
    tried: u64,
    routers: u64,
}

fn options(place: &Place, schema: Schema) -> Options {
    let mut options = fleet::options(&place.disk.path().join("data"), &place.tmpfs.path().join("run"), schema);
    // So that asking for one router closes the database of the other.
    options.max_open = 1;
    options
}

impl Bench {
    async fn new() -> Result<Self, Failure> {
        let place = Place::new(Some("/dev/shm".as_ref()))?;
        let (db, id) = fleet::open(options(&place, Schema::Old)).await?;
        db.create_router(NewRouter::new(RouterId::parse("second")?)).await?;
        fleet::write_group(&*db.router(&id).await?, 1).await?;
        let backup = db.backup(Which::Router(id), place.disk.path().join("kept")).await?;
        Ok(Self { place, db, schema: Schema::Old, backup, backed_up: vec![1], there: vec![1], tried: 1, routers: 0 })
    }

    async fn reopen(&mut self) -> Result<(), Error> {
        self.db.shutdown().await?;
        self.db = DbManager::open(options(&self.place, self.schema)).await?;
        Ok(())
    }

    fn next(&mut self) -> u64 {
        self.tried += 1;
        self.tried
    }
}

/// Drops the futures of one call.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let call = CALLS[usize::try_from(turn.number % CALLS.len() as u64)?];
    fleet::runtime()?.block_on(async {
        let mut bench = Bench::new().await?;
        let mut found = Found::default();
        let mut awaits = 0;
        for number in 0..POLLS_MAX + TIMED {
            let when = match (awaits, number) {
                (0, polls) if polls < POLLS_MAX => When::Polls(polls),
                _ => When::Micros(turn.random.below(4_000)),
            };
            if awaits > 0 && number >= awaits + TIMED {
                break;
            }
            found.cases += 1;
            let tried = tokio::time::timeout(HANG, drop_one(&mut bench, call, when)).await;
            let broken = match tried {
                Err(_) => Some(format!("it hangs for {HANG:?}")),
                Ok(Err(error)) => Some(error.to_string()),
                Ok(Ok(Dropped { broken: Some(what), .. })) => Some(what),
                Ok(Ok(Dropped { ended, .. })) => {
                    // It came to its end: there is no later await.
                    if ended && awaits == 0 && matches!(when, When::Polls(_)) {
                        awaits = number.max(1);
                    }
                    None
                }
            };
            if let Some(what) = broken {
                found.broken.push(format!("{call:?} dropped after {when:?}: {what}"));
                break;
            }
        }
        found.count(&format!("drops_of_{call:?}").to_lowercase(), found.cases);
        tokio::time::timeout(HANG, bench.db.shutdown()).await??;
        Ok(found)
    })
}

/// The check must see a group that was written although its key is said to be absent.
pub(crate) fn control(_seed: u64) -> Result<Controls, Failure> {
    let place = Place::new(Some("/dev/shm".as_ref()))?;
    fleet::runtime()?.block_on(async {
        let (db, id) = fleet::open(options(&place, Schema::Old)).await?;
        let router = db.router(&id).await?;
        // A writer that forgets the key: the rows are there and nobody can know.
        router.write(fleet::CAUSE, |conn| Box::pin(fleet::insert_group(conn, 1))).await?;
        let caught = !fleet::look(&router).await?.faults.is_empty();
        drop(router);
        db.shutdown().await?;
        Ok(vec![("write without its key", caught)])
    })
}

/// What came of one drop.
struct Dropped {
    /// The call had ended before.
    ended: bool,
    broken: Option<String>,
}

async fn drop_one(bench: &mut Bench, call: Call, when: When) -> Result<Dropped, Failure> {
    let id = fleet::router_id()?;
    let mut broken = None;
    let mut instead = None;
    let ended = match call {
        Call::WriteKeyed => {
            let (number, beside) = (bench.next(), bench.next());
            let router = bench.db.router(&id).await?;
            let neighbour = tokio::spawn({
                let router = router.clone();
                async move { fleet::write_group(&router, beside).await }
            });
            let answer = until(when, fleet::write_group(&router, number)).await;
            match (&answer, router.outcome(fleet::key(number)).await?) {
                (Some(Ok(())) | None, KeyOutcome::Committed) => bench.there.push(number),
                (None, KeyOutcome::Absent) => {}
                other => broken = Some(format!("group {number}: {other:?}")),
            }
            // The neighbour in the same commit is not harmed.
            match neighbour.await? {
                Ok(()) => bench.there.push(beside),
                Err(error) => broken = broken.or(Some(format!("its neighbour got {error}"))),
            }
            answer.is_some()
        }
        Call::Write => {
            let router = bench.db.router(&id).await?;
            let write = router.write(fleet::CAUSE, |conn| {
                Box::pin(async move {
                    sqlx::query("UPDATE soak SET body = body").execute(&mut *conn).await?;
                    sqlx::query("UPDATE soak SET part = part").execute(conn).await?;
                    Ok::<_, Error>(())
                })
            });
            until(when, write).await.is_some()
        }
        Call::Read => until(when, fleet::rows(&*bench.db.router(&id).await?)).await.is_some(),
        Call::Outcome => until(when, bench.db.router(&id).await?.outcome(fleet::key(1))).await.is_some(),
        Call::Checkpoint => until(when, bench.db.router(&id).await?.checkpoint()).await.is_some(),
        Call::Counter => until(when, bench.db.system().counters().reserve("soak", 1)).await.is_some(),
        Call::Router => {
            // The one database that may be open is that of the other.
            drop(bench.db.router(&RouterId::parse("second")?).await?);
            until(when, bench.db.router(&id)).await.is_some()
        }
        Call::CreateRouter => {
            bench.routers += 1;
            let id = RouterId::parse(&format!("made-{}", bench.routers))?;
            let new = || NewRouter::new(id.clone()).host("192.0.2.2");
            let ended = until(when, bench.db.create_router(new())).await.is_some();
            broken = created(bench, &id, new).await;
            ended
        }
        Call::Open => {
            bench.db.shutdown().await?;
            let options = options(&bench.place, bench.schema);
            let opened = until(when, DbManager::open(options.clone())).await;
            let ended = opened.is_some();
            if let Some(opened) = opened {
                opened?.shutdown().await?;
            }
            bench.db = DbManager::open(options).await?;
            ended
        }
        Call::Shutdown => {
            let router = bench.db.router(&id).await?;
            let number = bench.next();
            let write = tokio::spawn(async move { fleet::write_group(&router, number).await });
            let ended = until(when, bench.db.shutdown()).await.is_some();
            // What was queued is committed or refused, and the key tells which.
            let answer = write.await?;
            bench.reopen().await?;
            let outcome = bench.db.router(&id).await?.outcome(fleet::key(number)).await?;
            match (&answer, outcome) {
                (Ok(()) | Err(Error::Unknown { .. }), KeyOutcome::Committed) => bench.there.push(number),
                (Err(_), KeyOutcome::Absent) => {}
                other => broken = Some(format!("group {number}: {other:?}")),
            }
            ended
        }
        Call::Backup => {
            let made = bench.place.disk.path().join("made");
            let ended = until(when, bench.db.backup(Which::Router(id.clone()), &made)).await.is_some();
            for entry in std::fs::read_dir(&made).into_iter().flatten().flatten() {
                if !entry.file_name().to_string_lossy().starts_with('.') {
                    bench.db.verify_backup(&Manifest::read(entry.path())?).await?;
                }
            }
            ended
        }
        Call::Restore => {
            let restore = bench.db.restore(&bench.backup, RestoreMode::Router(id.clone()));
            let ended = ended_well(until(when, restore).await)?;
            instead = Some(bench.backed_up.clone());
            bench.reopen().await?;
            ended
        }
        Call::UndoRestore => {
            let report = bench.db.restore(&bench.backup, RestoreMode::Router(id.clone())).await?;
            let safety = report.restored.first().and_then(|restored| restored.safety.clone()).unwrap_or_default();
            let ended = ended_well(until(when, bench.db.undo_restore(&id, &safety)).await)?;
            instead = Some(bench.backed_up.clone());
            bench.reopen().await?;
            ended
        }
        Call::Retire => {
            let ended = ended_well(until(when, bench.db.retire(&id)).await)?;
            bench.reopen().await?;
            ended
        }
        Call::Reinstate => {
            bench.db.retire(&id).await?;
            let ended = ended_well(until(when, bench.db.reinstate(&id)).await)?;
            bench.reopen().await?;
            ended
        }
        Call::MigrateAll => {
            bench.db.shutdown().await?;
            if bench.schema == Schema::New {
                let scope = Scope::Router(id.clone());
                DbManager::migrate_to(&options(&bench.place, Schema::New), &scope, "soak", 1).await?;
            }
            bench.schema = Schema::New;
            bench.db = DbManager::open(options(&bench.place, Schema::New)).await?;
            until(when, bench.db.migrate_all(2)).await.is_some()
        }
    };
    if broken.is_none() {
        broken = verify(bench, instead).await?;
    }
    Ok(Dropped { ended, broken })
}

/// Whether it ended; an error of its own is not what a drop may bring about.
fn ended_well<T>(answer: Option<Result<T, Error>>) -> Result<bool, Error> {
    answer.transpose().map(|answer| answer.is_some())
}

/// A router whose creation was dropped is created, or finished, when asked again.
async fn created(bench: &Bench, id: &RouterId, new: impl Fn() -> NewRouter) -> Option<String> {
    match bench.db.create_router(new()).await {
        Ok(_) | Err(Error::RouterExists { .. }) => {}
        Err(error) => return Some(format!("{id} cannot be created afterwards: {error}")),
    }
    // Its first creator may still be at work: asked again until it is there.
    let begun = Instant::now();
    let mut opened = bench.db.router(id).await;
    while matches!(opened, Err(Error::RouterNotFound { .. })) && begun.elapsed() < HANG / 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        opened = bench.db.router(id).await;
    }
    opened.err().map(|error| format!("{id} does not open afterwards: {error}"))
}

/// Everything is there and everything works.
async fn verify(bench: &mut Bench, instead: Option<Vec<u64>>) -> Result<Option<String>, Failure> {
    let id = fleet::router_id()?;
    let lifecycle = bench.db.system().routers().get(&id).await?.map(|record| record.lifecycle);
    if lifecycle == Some(Lifecycle::Retired) {
        bench.db.reinstate(&id).await?;
    }
    let router = match bench.db.router(&id).await {
        Ok(router) => router,
        Err(error) => return Ok(Some(format!("the router does not open: {error}"))),
    };
    let number = bench.next();
    if let Err(error) = fleet::write_group(&router, number).await {
        return Ok(Some(format!("the next write fails: {error}")));
    }
    let Seen { groups, faults } = fleet::look(&router).await?;
    if !faults.is_empty() {
        return Ok(Some(faults.join("; ")));
    }
    let is = |there: &[u64]| groups.keys().eq(there.iter().chain([&number]));
    if let Some(instead) = instead.filter(|instead| is(instead)) {
        bench.there = instead;
    }
    bench.there.sort_unstable();
    if !is(&bench.there) {
        return Ok(Some(format!("there is {:?} instead of {:?}", groups.keys(), bench.there)));
    }
    bench.there.push(number);
    // Another database of the fleet is in no trouble either.
    bench.db.system().counters().reserve("soak", 1).await?;
    Ok(None)
}
