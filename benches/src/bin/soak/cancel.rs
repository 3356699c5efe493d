//! Campaign `cancel`: a caller that stops waiting leaves nothing by half and nobody else in trouble.
//!
//! Each drop polls the future of a public call a few times, or for a random time, and drops it. What became of a write
//! is told by its key; the same connection then serves a write and a read.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, Error, KeyOutcome, NewRouter, RouterDb, RouterId};

use crate::fleet::{self, Schema};
use crate::{Failure, Found};

/// Drops of one fleet before the next is founded.
const DROPS: u64 = 60;

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

struct Bench {
    db: DbManager,
    router: RouterDb,
    tried: u64,
    routers: u64,
}

/// Drops futures of one fleet.
pub(crate) fn case(random: &mut Random) -> Result<Found, Failure> {
    let place = Place::new(Some("/dev/shm".as_ref()))?;
    fleet::runtime()?.block_on(async {
        let options = fleet::options(&place.disk.path().join("data"), &place.tmpfs.path().join("run"), Schema::Old);
        let (db, id) = fleet::open(options.clone()).await?;
        let router = db.router(&id).await?;
        let mut bench = Bench { db, router, tried: 0, routers: 0 };
        let mut found = Found::default();
        for _ in 0..DROPS {
            let when = match random.below(2) {
                0 => When::Polls(random.below(6)),
                _ => When::Micros(random.below(4_000)),
            };
            found.cases += 1;
            let call = random.below(8);
            if let Some(what) = drop_one(&mut bench, call, when).await? {
                found.broken.push(format!("call {call} dropped after {when:?}: {what}"));
                break;
            }
        }
        drop(bench.router);
        bench.db.shutdown().await?;
        // An opening that is dropped leaves a fleet that opens.
        for _ in 0..3 {
            found.cases += 1;
            let when = When::Micros(random.below(20_000));
            if let Some(Ok(db)) = until(when, DbManager::open(options.clone())).await {
                db.shutdown().await?;
            }
            match fleet::open(options.clone()).await {
                Ok((db, _)) => db.shutdown().await?,
                Err(error) => found.broken.push(format!("opening dropped after {when:?}: {error}")),
            }
        }
        Ok(found)
    })
}

/// The check must see a group that was written although its key is said to be absent.
pub(crate) fn control(_seed: u64) -> Result<bool, Failure> {
    let place = Place::new(Some("/dev/shm".as_ref()))?;
    fleet::runtime()?.block_on(async {
        let options = fleet::options(&place.disk.path().join("data"), &place.tmpfs.path().join("run"), Schema::Old);
        let (db, id) = fleet::open(options).await?;
        let router = db.router(&id).await?;
        // A writer that forgets the key: the rows are there and nobody can know.
        router.write(fleet::CAUSE, |conn| Box::pin(fleet::insert_group(conn, 1))).await?;
        let caught = !fleet::look(&router).await?.faults.is_empty();
        drop(router);
        db.shutdown().await?;
        Ok(caught)
    })
}

async fn drop_one(bench: &mut Bench, call: u64, when: When) -> Result<Option<String>, Failure> {
    let router = bench.router.clone();
    match call {
        0..=3 => {
            bench.tried += 1;
            let number = bench.tried;
            let neighbour = tokio::spawn({
                let router = router.clone();
                bench.tried += 1;
                let number = bench.tried;
                async move { fleet::write_group(&router, number).await.map(|()| number) }
            });
            let answer = until(when, fleet::write_group(&router, number)).await;
            let outcome = router.outcome(fleet::key(number)).await?;
            let wrong = match (&answer, outcome) {
                (Some(Ok(())), KeyOutcome::Committed) | (None, KeyOutcome::Committed | KeyOutcome::Absent) => None,
                (Some(Err(Error::Unknown { .. })), _) => None,
                other => Some(format!("group {number}: {other:?}")),
            };
            // The neighbour in the same commit is not harmed.
            let neighbour = neighbour.await?;
            if let (None, Err(error)) = (&wrong, neighbour) {
                return Ok(Some(format!("its neighbour got {error}")));
            }
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        4 => drop(until(when, fleet::look(&router)).await),
        5 => drop(until(when, router.checkpoint()).await),
        6 => {
            bench.routers += 1;
            let id = RouterId::parse(&format!("made-{}", bench.routers))?;
            let new = || NewRouter::new(id.clone()).host("192.0.2.2");
            drop(until(when, bench.db.create_router(new())).await);
            // It may have been left half done; asking again finishes it or creates it.
            match bench.db.create_router(new()).await {
                Ok(_) | Err(Error::RouterExists { .. }) => {}
                Err(error) => return Ok(Some(format!("{id} cannot be created afterwards: {error}"))),
            }
            // Its first creator may still be at work: asked again until it is there, for at most two seconds.
            let mut opened = bench.db.router(&id).await;
            for _ in 0..200 {
                if !matches!(opened, Err(Error::RouterNotFound { .. })) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                opened = bench.db.router(&id).await;
            }
            if let Err(error) = opened {
                return Ok(Some(format!("{id} does not open afterwards: {error}")));
            }
        }
        _ => drop(until(when, bench.db.system().counters().reserve("soak", 1)).await),
    }
    bench.tried += 1;
    let number = bench.tried;
    if let Err(error) = fleet::write_group(&bench.router, number).await {
        return Ok(Some(format!("the next write fails: {error}")));
    }
    let seen = fleet::look(&bench.router).await?;
    if !seen.has(number) {
        return Ok(Some(format!("group {number} is not there")));
    }
    Ok((!seen.faults.is_empty()).then(|| seen.faults.join("; ")))
}
