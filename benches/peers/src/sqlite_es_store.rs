//! sqlite-es: its repository over the pool that it builds itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_es::event_sink::EventSink;
use cqrs_es::persist::{PersistedEventRepository, SerializedEvent};
use cqrs_es::{Aggregate, DomainEvent};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlite_es::{SqliteEventRepository, default_sqlite_pool};

use crate::{Args, Batches, Event, Failure};

/// The table its documentation asks for.
const SCHEMA: &str = "CREATE TABLE events (
    aggregate_type TEXT NOT NULL,
    aggregate_id   TEXT NOT NULL,
    sequence       INTEGER CHECK (sequence >= 0) NOT NULL,
    event_type     TEXT NOT NULL,
    event_version  TEXT NOT NULL,
    payload        TEXT NOT NULL,
    metadata       TEXT NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id, sequence)
) STRICT";

/// Names the type of the aggregates; nothing is ever loaded.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Resource;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Changed;

impl DomainEvent for Changed {
    fn event_type(&self) -> String {
        "changed".to_owned()
    }

    fn event_version(&self) -> String {
        "1".to_owned()
    }
}

impl Aggregate for Resource {
    const TYPE: &'static str = "resource";
    type Command = ();
    type Event = Changed;
    type Error = std::convert::Infallible;
    type Services = ();

    async fn handle(&mut self, (): (), (): &(), _sink: &EventSink<Self>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn apply(&mut self, _event: Changed) {}
}

async fn open(dir: &Path) -> Result<SqliteEventRepository, Failure> {
    let pool = default_sqlite_pool(&format!("sqlite://{}", dir.join("events.db").display())).await;
    sqlx::query(SCHEMA).execute(&pool).await?;
    Ok(SqliteEventRepository::new(pool))
}

/// Its payload is a parsed value. A caller makes it from a structure, so the clock is not running here.
fn serialized(Event { version, sample, .. }: Event) -> Result<SerializedEvent, Failure> {
    Ok(SerializedEvent::new(
        sample.stream,
        usize::try_from(version)?,
        Resource::TYPE.to_owned(),
        sample.kind.to_owned(),
        "1".to_owned(),
        serde_json::from_str(&sample.body)?,
        Value::Object(serde_json::Map::new()),
    ))
}

pub(crate) async fn batches(args: &Args, batches: &mut Batches) -> Result<Duration, Failure> {
    let repository = open(&args.dir).await?;
    let mut spent = Duration::ZERO;
    let mut left = args.events;
    while left > 0 {
        let batch = batches.next(args.batch.min(left));
        left -= batch.len();
        let events = batch.into_iter().map(serialized).collect::<Result<Vec<_>, _>>()?;
        let start = Instant::now();
        repository.persist::<Resource>(&events, None).await?;
        spent += start.elapsed();
    }
    Ok(spent)
}

/// Each task has a generator of its own and writes its streams alone, one event a commit.
pub(crate) async fn tasks(args: &Args, batches: &mut Batches) -> Result<Duration, Failure> {
    let repository = Arc::new(open(&args.dir).await?);
    let mut shares: Vec<Vec<SerializedEvent>> = (0..args.tasks).map(|_| Vec::new()).collect();
    for event in batches.next(args.events) {
        let task = usize::try_from(crate::stream_number(&event.sample.stream))? % args.tasks;
        shares[task].push(serialized(event)?);
    }
    let start = Instant::now();
    let running: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let repository = Arc::clone(&repository);
            tokio::spawn(async move {
                for event in share {
                    repository.persist::<Resource>(&[event], None).await?;
                }
                Ok::<_, Failure>(())
            })
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(start.elapsed())
}
