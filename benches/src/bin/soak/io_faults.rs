//! Campaign `io-faults`: one operation on a file fails once, whichever it is, in every public call that writes.
//!
//! The call answers with a typed error or does its work, never panics or hangs; what it said is what is in the
//! database, `Unknown` is resolved by key, and the next call works. Every N is tried until N is beyond the last operation of
//! the call.

use std::time::Duration;

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{DbManager, Error, KeyOutcome, NewRouter, RouterDb, RouterId};
use tokio::runtime::Runtime;

use crate::fleet::{self, Schema};
use crate::{Failure, Found};

/// What fails, and how.
const FAULTS: [(Operation, i32); 9] = [
    (Operation::Write, Fault::FULL),
    (Operation::Write, Fault::IOERR_WRITE),
    (Operation::Write, Fault::NOMEM),
    (Operation::Sync, Fault::IOERR_FSYNC),
    (Operation::Read, Fault::IOERR_READ),
    (Operation::Read, Fault::NOMEM),
    (Operation::Truncate, Fault::IOERR_WRITE),
    (Operation::Open, Fault::NOMEM),
    (Operation::SyncDirectory, Fault::IOERR_FSYNC),
];
/// No call takes longer than this, whatever fails.
const HANG: Duration = Duration::from_secs(30);
/// Operations of one call that are made to fail at most.
const NTH_MAX: u64 = 60;

/// A public call that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    WriteKeyed,
    Grouped,
    Checkpoint,
    Counter,
    Secret,
    Setting,
    CreateRouter,
    Reopen,
}

const CALLS: [Call; 8] = [
    Call::WriteKeyed,
    Call::Grouped,
    Call::Checkpoint,
    Call::Counter,
    Call::Secret,
    Call::Setting,
    Call::CreateRouter,
    Call::Reopen,
];

/// The fleet under test, and what it must hold.
struct Bench {
    place: Place,
    db: DbManager,
    router: RouterDb,
    /// The largest group that was ever tried.
    tried: u64,
    /// Groups that must be there.
    there: Vec<u64>,
    /// The least value the counter must have.
    counter: u64,
    /// Routers made so far.
    routers: u64,
}

impl Bench {
    async fn new() -> Result<Self, Failure> {
        let place = Place::new(Some("/dev/shm".as_ref()))?;
        let (db, router) = open(&place).await?;
        Ok(Self { place, db, router, tried: 0, there: Vec::new(), counter: 0, routers: 0 })
    }

    async fn close(self) -> Result<(), Failure> {
        drop(self.router);
        Ok(self.db.shutdown().await?)
    }
}

async fn open(place: &Place) -> Result<(DbManager, RouterDb), Error> {
    let options = fleet::options(&place.disk.path().join("data"), &place.tmpfs.path().join("run"), Schema::Old);
    let (db, id) = fleet::open(options).await?;
    match db.router(&id).await {
        Ok(router) => Ok((db, router)),
        Err(error) => {
            db.shutdown().await.ok();
            Err(error)
        }
    }
}

/// One call with one kind of fault, at every operation of the call.
pub(crate) fn case(random: &mut Random) -> Result<Found, Failure> {
    let call = CALLS[usize::try_from(random.below(CALLS.len() as u64))?];
    let (operation, code) = FAULTS[usize::try_from(random.below(FAULTS.len() as u64))?];
    let runtime = fleet::runtime()?;
    let mut found = Found::default();
    let mut bench = runtime.block_on(Bench::new())?;
    for nth in 1..=NTH_MAX {
        let (fired, broken) = strike(&runtime, &mut bench, call, Fault::fail(operation, nth, code))?;
        found.cases += fired;
        found.broken.extend(broken.map(|what| format!("{call:?}, {operation:?} {nth} fails with {code}: {what}")));
        if fired == 0 || !found.broken.is_empty() {
            break;
        }
    }
    runtime.block_on(bench.close())?;
    Ok(found)
}

/// A check that is told an untruth must say so: the fault is said not to have been noticed by the caller.
pub(crate) fn control(_seed: u64) -> Result<bool, Failure> {
    let runtime = fleet::runtime()?;
    let mut bench = runtime.block_on(Bench::new())?;
    // The group is claimed to be there although its write failed.
    let armed = Fault::fail(Operation::Write, 1, Fault::FULL).arm(bench.place.disk.path())?;
    let written = runtime.block_on(fleet::write_group(&bench.router, 1));
    let fired = armed.fired();
    drop(armed);
    bench.tried = 1;
    bench.there.push(1);
    let caught = runtime.block_on(verify(&mut bench))?.is_some();
    runtime.block_on(bench.close())?;
    Ok(caught && fired == 1 && written.is_err())
}

/// Makes one call fail; returns how often the fault struck and what is wrong afterwards.
fn strike(runtime: &Runtime, bench: &mut Bench, call: Call, fault: Fault) -> Result<(u64, Option<String>), Failure> {
    runtime.block_on(async {
        let armed = fault.arm(bench.place.disk.path())?;
        let made = tokio::time::timeout(HANG, make(bench, call)).await;
        let fired = armed.fired();
        drop(armed);
        let broken = match made {
            Err(_) => Some(format!("it hangs for {HANG:?}")),
            Ok(Err(error)) => Some(error.to_string()),
            Ok(Ok(Some(what))) => Some(what),
            Ok(Ok(None)) => verify(bench).await?,
        };
        Ok((fired, broken))
    })
}

/// Makes the call and notes what it must have done; returns what is wrong with its answer.
async fn make(bench: &mut Bench, call: Call) -> Result<Option<String>, Failure> {
    match call {
        Call::WriteKeyed => {
            bench.tried += 1;
            let number = bench.tried;
            let answer = fleet::write_group(&bench.router, number).await;
            Ok(settle(bench, number, answer).await)
        }
        Call::Grouped => {
            let numbers: Vec<_> = (bench.tried + 1..=bench.tried + 4).collect();
            bench.tried += 4;
            let writes: Vec<_> = numbers
                .iter()
                .map(|number| {
                    let (router, number) = (bench.router.clone(), *number);
                    tokio::spawn(async move { fleet::write_group(&router, number).await })
                })
                .collect();
            for (number, write) in numbers.into_iter().zip(writes) {
                let answer = write.await?;
                if let Some(what) = settle(bench, number, answer).await {
                    return Ok(Some(what));
                }
            }
            Ok(None)
        }
        Call::Checkpoint => Ok(untyped(bench.router.checkpoint().await.err())),
        Call::Counter => {
            let answer = bench.db.system().counters().reserve("soak", 10).await;
            match answer {
                Ok(first) if first <= bench.counter => {
                    Ok(Some(format!("counter gave {first} again, after {}", bench.counter)))
                }
                Ok(first) => {
                    bench.counter = first + 9;
                    Ok(None)
                }
                Err(error) => Ok(untyped(Some(error))),
            }
        }
        Call::Secret => {
            let id = fleet::router_id()?;
            let error = bench.db.system().secrets().put(&id, "password", b"secret").await.err();
            Ok(untyped(error))
        }
        Call::Setting => {
            let value = serde_json::json!({ "tried": bench.tried });
            Ok(untyped(bench.db.system().settings().put("soak", "tried", &value, 1).await.err()))
        }
        Call::CreateRouter => {
            bench.routers += 1;
            let id = RouterId::parse(&format!("made-{}", bench.routers))?;
            let answer = bench.db.create_router(NewRouter::new(id.clone()).host("192.0.2.2")).await;
            let answered = answer.is_ok();
            let wrong = untyped(answer.err());
            if wrong.is_some() {
                return Ok(wrong);
            }
            // Whatever it answered, the same id works or is taken.
            match bench.db.create_router(NewRouter::new(id.clone()).host("192.0.2.2")).await {
                Ok(_) if answered => return Ok(Some(format!("{id} was created twice"))),
                Ok(_) | Err(Error::RouterExists { .. }) => {}
                // The fault may strike only now.
                Err(error) => return Ok(untyped(Some(error))),
            }
            Ok(None)
        }
        Call::Reopen => {
            bench.router.checkpoint().await.ok();
            bench.db.shutdown().await.ok();
            let opened = open(&bench.place).await;
            let (answer, (db, router)) = match opened {
                Ok(opened) => (None, opened),
                // The fault struck once; opening again must work.
                Err(error) => (Some(error), open(&bench.place).await?),
            };
            bench.db = db;
            bench.router = router;
            Ok(untyped(answer))
        }
    }
}

/// Notes what the answer of a keyed write means, asking for the key when it does not say.
async fn settle(bench: &mut Bench, number: u64, answer: Result<(), Error>) -> Option<String> {
    match answer {
        Ok(()) => bench.there.push(number),
        Err(Error::Unknown { .. }) => {
            // The fault may strike again on the way; it strikes only once.
            let first = bench.router.outcome(fleet::key(number)).await;
            let outcome = match first {
                Err(_) => bench.router.outcome(fleet::key(number)).await,
                first => first,
            };
            match outcome {
                Ok(KeyOutcome::Committed) => bench.there.push(number),
                Ok(KeyOutcome::Absent) => {}
                other => return Some(format!("the outcome of group {number} stays unknown: {other:?}")),
            }
        }
        Err(error) => return untyped(Some(error)),
    }
    None
}

/// Says so when an error is not one a caller can act on.
fn untyped(error: Option<Error>) -> Option<String> {
    match error {
        Some(error @ (Error::Panicked { .. } | Error::Corrupt { .. } | Error::TransactionLost)) => {
            Some(format!("answered {error:?}"))
        }
        _ => None,
    }
}

/// Compares what is there with what must be, and works once more.
async fn verify(bench: &mut Bench) -> Result<Option<String>, Failure> {
    bench.tried += 1;
    let number = bench.tried;
    if let Err(error) = fleet::write_group(&bench.router, number).await {
        return Ok(Some(format!("the next write fails: {error}")));
    }
    bench.there.push(number);
    let seen = match fleet::look(&bench.router).await {
        Ok(seen) => seen,
        Err(error) => return Ok(Some(format!("the next read fails: {error}"))),
    };
    if !seen.faults.is_empty() {
        return Ok(Some(seen.faults.join("; ")));
    }
    if !seen.groups.keys().eq(bench.there.iter()) {
        let there: Vec<_> = seen.groups.keys().filter(|number| !bench.there.contains(number)).collect();
        let lost: Vec<_> = bench.there.iter().filter(|number| !seen.has(**number)).collect();
        return Ok(Some(format!("there against what was said: {there:?}; lost: {lost:?}")));
    }
    match bench.db.system().counters().reserve("soak", 1).await {
        Ok(value) if value > bench.counter => bench.counter = value,
        other => return Ok(Some(format!("the counter gives {other:?} after {}", bench.counter))),
    }
    // Few rows keep the checks fast.
    if bench.there.len() > 60 {
        let limit = i64::try_from(bench.there[40])?;
        bench
            .router
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
