//! P12, second half: what a query for a day reads of three months in the archive.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nasnet_benches::events::{Generator, Sample};
use nasnet_benches::measure::{Ratio, exact, median};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, ManualClock, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    Class, ColdOptions, EventOptions, EventStore, EventType, Expected, FlushReason, Keep, NewEvent, Query, Recorded,
    Retention, StreamAppend, StreamName, prepare_cold_dir,
};
use serde_json::value::RawValue;

use crate::Failure;

const EVENTS: u64 = 1_000_000;
const BATCH: u64 = 1_000;
const DAYS: u64 = 90;
const DAY_MS: i64 = 86_400_000;
const BEGINS_MS: i64 = 1_795_000_000_000;
/// Batches between two rounds of archiving and of removing what is archived.
const ARCHIVED: u64 = 20;
/// Queries that are timed, each for another day.
const QUERIES: i64 = 5;

struct Open {
    db: DbManager,
    store: EventStore,
    scope: Scope,
}

impl Open {
    async fn at(place: &Place, clock: &ManualClock) -> Result<Self, Failure> {
        let mut databases = Options::new(place.disk.path().join("data"))
            .run_dir(place.tmpfs.path().join("run"))
            .schemas(nasnet_events::schema_sets());
        databases.clock = Arc::new(clock.clone());
        let db = DbManager::open(databases).await?;
        let id: RouterId = "bench".parse()?;
        if db.routers().await?.is_empty() {
            db.create_router(NewRouter::new(id.clone())).await?;
        }
        let cold = place.disk.path().join("cold");
        prepare_cold_dir(&db, &cold)?;
        // Nothing but the archive is left of what is older than a day.
        let brief = Retention::default().class(Class::Normal, Keep::days(1)).full_history([""; 0]);
        let mut options = EventOptions::default().cold(ColdOptions::new(cold).allow_same_device()).retention(brief);
        options.hot_keep = Duration::from_secs(60 * 60);
        let store = EventStore::open(&db, options).await?;
        Ok(Self { db, store, scope: Scope::Router(id) })
    }

    async fn append(&self, samples: Vec<Sample>) -> Result<(), Failure> {
        let append = |sample: Sample| {
            let body = RawValue::from_string(sample.body)?;
            let event = NewEvent::with_body(self.db.next_ulid(), EventType::parse(sample.kind)?, body);
            Ok::<_, Failure>(StreamAppend::new(StreamName::parse(&sample.stream)?, Expected::Any, vec![event]))
        };
        let appends = samples.into_iter().map(append).collect::<Result<Vec<_>, _>>()?;
        for receipt in self.store.append_each(&self.scope, appends).await? {
            receipt?;
        }
        Ok(())
    }

    async fn move_down(&self) -> Result<(), Failure> {
        self.store.flush(FlushReason::Requested).await?;
        self.store.archive().await?;
        self.store.expire().await?;
        self.store.mark_age().await?;
        self.store.retain(self.store.retention_plan().await?).await?;
        Ok(())
    }

    async fn close(self) -> Result<(), Failure> {
        self.store.shutdown().await?;
        drop(self.store);
        self.db.shutdown().await?;
        Ok(())
    }

    async fn day(&self, day: i64) -> Result<(usize, Duration), Failure> {
        let from_ms = BEGINS_MS + day * DAY_MS;
        let query = Query::scope(self.scope.clone()).wall_ms(from_ms..=from_ms + DAY_MS - 1);
        let start = Instant::now();
        let found: Vec<Recorded> = self.store.read(query).try_collect().await?;
        Ok((found.len(), start.elapsed()))
    }
}

pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(disk)?;
    let clock = ManualClock::new(BEGINS_MS);
    let open = Open::at(&place, &clock).await?;
    let step = Duration::from_secs(DAYS * 86_400 / (EVENTS / BATCH));
    let mut generator = Generator::new(8);
    for batch in 1..=EVENTS / BATCH {
        open.append(generator.samples(usize::try_from(BATCH)?)).await?;
        clock.advance(step);
        if batch.is_multiple_of(ARCHIVED) {
            open.move_down().await?;
        }
    }
    open.close().await?;

    // Opened anew, so that the index is read too.
    let open = Open::at(&place, &clock).await?;
    let (found, first) = open.day(45).await?;
    let cold = open.store.status().await?;
    let (read, whole) = (cold.cold_findings.bytes_read, cold.cold.bytes);
    if cold.cold.events < EVENTS * 9 / 10 || found == 0 {
        return Err(format!("{found} events found, {} archived", cold.cold.events).into());
    }
    let mut times = Vec::new();
    for day in 0..QUERIES {
        times.push(open.day(10 + day * 15).await?.1);
    }
    open.close().await?;
    let percent = 100.0 * exact(read) / exact(whole);
    let what = format!("percent of {EVENTS} archived events' bytes read for {found} of one day, index included");
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    let time = format!("ms of such a query ({:.0} ms with the index to be read), context", ms(first));
    Ok(vec![Ratio::at_most("P12", what, percent, 2.0), Ratio::at_most("P12", time, ms(median(times)), 1_000.0)])
}
