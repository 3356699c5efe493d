//! Campaign `io-faults`: one operation on a file fails once, whichever it is, in every public call that writes.
//!
//! The call answers with a typed error or does its work, never panics or hangs; what it said is what is in the
//! database, `Unknown` is resolved by key, and the next call works. Every N is tried until N is beyond the last operation of
//! the call; of long calls some of them, and others in the next case.

#[path = "io_faults/calls.rs"]
mod calls;

use std::path::PathBuf;
use std::time::Duration;

use nasnet_benches::place::Place;
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{DbManager, Error, Manifest, Options, RestoreMode, RouterDb, Which};
use tokio::runtime::Runtime;

use crate::fleet::{self, Schema};
use crate::{Controls, Failure, Found, Turn};
use calls::Call;

/// What fails, and how.
const FAULTS: [(Operation, i32); 14] = [
    (Operation::Write, Fault::FULL),
    (Operation::Write, Fault::IOERR_WRITE),
    (Operation::Write, Fault::NOMEM),
    (Operation::Write, Fault::INTERRUPT),
    (Operation::Sync, Fault::IOERR_FSYNC),
    (Operation::Read, Fault::IOERR_READ),
    (Operation::Read, Fault::NOMEM),
    (Operation::Read, Fault::INTERRUPT),
    (Operation::Truncate, Fault::IOERR_WRITE),
    (Operation::Open, Fault::NOMEM),
    (Operation::Open, Fault::FULL),
    (Operation::SyncDirectory, Fault::IOERR_FSYNC),
    (Operation::Rename, Fault::IOERR_WRITE),
    (Operation::Delete, Fault::IOERR_WRITE),
];
/// No call takes longer than this, whatever fails.
const HANG: Duration = Duration::from_secs(120);
/// Operations of one call that are made to fail in one case.
const NTH_MAX: u64 = 60;
/// Room of a database: an operation that wants more fails by itself.
const DATABASE_BYTES: u64 = 1024 * 1024;

/// The fleet under test, and what it must hold.
struct Bench {
    place: Place,
    db: DbManager,
    schema: Schema,
    /// Backups of the router and of the system database, and the groups in the former.
    backup: Manifest,
    system_backup: Manifest,
    backed_up: Vec<u64>,
    /// What the last restore replaced.
    safety: Option<String>,
    /// The largest group that was ever tried.
    tried: u64,
    /// Groups that must be there.
    there: Vec<u64>,
    /// What may be there instead, after a call that failed.
    instead: Option<Vec<u64>>,
    /// The least value the counter must have.
    counter: u64,
    /// Routers made so far.
    routers: u64,
}

fn options(place: &Place, schema: Schema) -> Options {
    let mut options = fleet::options(&place.disk.path().join("data"), &place.tmpfs.path().join("run"), schema);
    options.database_bytes_max = DATABASE_BYTES;
    options
}

impl Bench {
    async fn new() -> Result<Self, Failure> {
        let place = Place::new(Some("/dev/shm".as_ref()))?;
        let (db, id) = fleet::open(options(&place, Schema::Old)).await?;
        fleet::write_group(&*db.router(&id).await?, 1).await?;
        let kept = place.disk.path().join("kept");
        let backup = db.backup(Which::Router(id), &kept).await?;
        let system_backup = db.backup(Which::System, &kept).await?;
        Ok(Self {
            place,
            db,
            schema: Schema::Old,
            backup,
            system_backup,
            backed_up: vec![1],
            safety: None,
            tried: 1,
            there: vec![1],
            instead: None,
            counter: 0,
            routers: 0,
        })
    }

    fn options(&self) -> Options {
        options(&self.place, self.schema)
    }

    /// Where the calls under test put their backups.
    fn made(&self) -> PathBuf {
        self.place.disk.path().join("made")
    }

    async fn router(&self) -> Result<RouterDb, Error> {
        self.db.router(&fleet::router_id()?).await
    }

    async fn open(&mut self) -> Result<(), Error> {
        let (db, _) = fleet::open(self.options()).await?;
        self.db = db;
        // A migration runs when the router is opened.
        match self.router().await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.db.shutdown().await.ok();
                Err(error)
            }
        }
    }

    /// Brings the fleet to where the call can begin; nothing fails yet.
    async fn prepare(&mut self, call: Call) -> Result<(), Failure> {
        let id = fleet::router_id()?;
        match call {
            Call::Migrate | Call::MigrateAll => {
                self.db.shutdown().await?;
                if self.schema == Schema::New {
                    let scope = nasnet_dbmanager::Scope::Router(id);
                    DbManager::migrate_to(&self.options(), &scope, "soak", 1).await?;
                }
                self.schema = Schema::New;
                if call == Call::MigrateAll {
                    self.db = DbManager::open(self.options()).await?;
                }
            }
            Call::Reinstate => self.db.retire(&id).await?,
            Call::RestoreSystem => self.db.shutdown().await?,
            Call::UndoRestore => {
                let report = self.db.restore(&self.backup, RestoreMode::Router(id)).await?;
                self.safety = report.restored.first().and_then(|restored| restored.safety.clone());
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the router back if it is retired: then, or when it never was, it opens.
    async fn settle_custody(&mut self) -> Result<Option<String>, Failure> {
        let id = fleet::router_id()?;
        for _ in 0..2 {
            match self.db.system().routers().get(&id).await? {
                Some(record) if record.lifecycle == Lifecycle::Retired => match self.db.reinstate(&id).await {
                    // What was half done is finished first; that may be all.
                    Ok(()) | Err(Error::WrongLifecycle { .. }) => {}
                    Err(error) => return Ok(Some(format!("a retired router cannot be taken back: {error}"))),
                },
                Some(_) => break,
                None => return Ok(Some("the router is not registered any more".to_owned())),
            }
        }
        let opened = match self.router().await {
            // Asking for it finished its retirement.
            Err(Error::RouterNotFound { .. }) => {
                self.db.reinstate(&id).await?;
                self.router().await
            }
            opened => opened,
        };
        Ok(opened.err().map(|error| format!("the router does not open: {error}")))
    }
}

/// One call with one kind of fault, at every operation of the call.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let (calls, faults) = (Call::ALL.len() as u64, FAULTS.len() as u64);
    // Neighbours differ in both, and all pairs are met in turn.
    let call = Call::ALL[usize::try_from(turn.number % calls)?];
    let (operation, code) = FAULTS[usize::try_from((turn.number + turn.number / calls) % faults)?];
    let runtime = fleet::runtime()?;
    let mut found = Found::default();
    let mut bench = runtime.block_on(Bench::new())?;
    // How many there are to fail: some of them when there are many.
    let (seen, _, broken) = strike(&runtime, &mut bench, call, Fault::fail(operation, u64::MAX, code))?;
    found.broken.extend(broken.map(|what| format!("{call:?}, nothing fails: {what}")));
    let stride = seen.div_ceil(NTH_MAX).max(1);
    let mut nth = 1 + turn.random.below(stride);
    while found.broken.is_empty() {
        let (_, fired, broken) = strike(&runtime, &mut bench, call, Fault::fail(operation, nth, code))?;
        found.cases += fired;
        found.count(&format!("faults_in_{call:?}").to_lowercase(), fired);
        found.broken.extend(broken.map(|what| format!("{call:?}, {operation:?} {nth} fails with {code}: {what}")));
        if fired == 0 || nth > seen + NTH_MAX {
            break;
        }
        nth += stride;
    }
    runtime.block_on(bench.db.shutdown())?;
    Ok(found)
}

/// A check that is told an untruth must say so: the fault is said not to have been noticed by the caller.
pub(crate) fn control(_seed: u64) -> Result<Controls, Failure> {
    let runtime = fleet::runtime()?;
    let mut bench = runtime.block_on(Bench::new())?;
    // The group is claimed to be there although its write failed.
    let armed = Fault::fail(Operation::Write, 1, Fault::FULL).arm(bench.place.disk.path())?;
    let written = runtime.block_on(async { fleet::write_group(&*bench.router().await?, 2).await });
    let fired = armed.fired();
    drop(armed);
    bench.tried = 2;
    bench.there.push(2);
    let caught = runtime.block_on(verify(&mut bench))?.is_some();
    runtime.block_on(bench.db.shutdown())?;
    Ok(vec![("failed write taken for done", caught && fired == 1 && written.is_err())])
}

/// Makes one call fail; returns how many operations there were, how many failed and what is wrong afterwards.
fn strike(
    runtime: &Runtime,
    bench: &mut Bench,
    call: Call,
    fault: Fault,
) -> Result<(u64, u64, Option<String>), Failure> {
    runtime.block_on(async {
        bench.prepare(call).await?;
        let armed = fault.arm(bench.place.disk.path())?;
        let made = tokio::time::timeout(HANG, calls::make(bench, call)).await;
        let (seen, fired) = (armed.seen(), armed.fired());
        drop(armed);
        let mut broken = match made {
            Err(_) => Some(format!("it hangs for {HANG:?}")),
            Ok(Err(error)) => Some(error.to_string()),
            Ok(Ok(what)) => what,
        };
        if broken.is_none() && call.is_custody() {
            broken = bench.settle_custody().await?;
        }
        if broken.is_none() {
            broken = verify(bench).await?;
        }
        Ok((seen, fired, broken))
    })
}

/// Compares what is there with what must be, and works once more.
async fn verify(bench: &mut Bench) -> Result<Option<String>, Failure> {
    bench.tried += 1;
    let number = bench.tried;
    let router = match bench.router().await {
        Ok(router) => router,
        Err(error) => return Ok(Some(format!("the router does not open: {error}"))),
    };
    if let Err(error) = fleet::write_group(&router, number).await {
        return Ok(Some(format!("the next write fails: {error}")));
    }
    let seen = match fleet::look(&router).await {
        Ok(seen) => seen,
        Err(error) => return Ok(Some(format!("the next read fails: {error}"))),
    };
    if !seen.faults.is_empty() {
        return Ok(Some(seen.faults.join("; ")));
    }
    let is = |there: &[u64]| seen.groups.keys().eq(there.iter().chain([&number]));
    if let Some(instead) = bench.instead.take().filter(|instead| is(instead)) {
        bench.there = instead;
    }
    if !is(&bench.there) {
        let there: Vec<_> = seen.groups.keys().filter(|number| !bench.there.contains(number)).collect();
        let lost: Vec<_> = bench.there.iter().filter(|number| !seen.has(**number)).collect();
        return Ok(Some(format!("there against what was said: {there:?}; lost: {lost:?}")));
    }
    bench.there.push(number);
    match bench.db.system().counters().reserve("soak", 1).await {
        Ok(value) if value > bench.counter => bench.counter = value,
        other => return Ok(Some(format!("the counter gives {other:?} after {}", bench.counter))),
    }
    // Few rows keep the checks fast.
    if bench.there.len() > 60 {
        let limit = i64::try_from(bench.there[40])?;
        router
            .write(fleet::CAUSE, move |conn| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM soak WHERE number <= ?1").bind(limit).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await?;
        bench.there.drain(..=40);
    }
    Ok(None)
}
