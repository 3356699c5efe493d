//! A store to measure: its hot tier on tmpfs, everything else on disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId, Scope};
use nasnet_events::{EventOptions, EventStore, EventType, Expected, NewEvent, StreamAppend, StreamName};
use serde_json::value::RawValue;

use crate::events::Sample;
use crate::place::Place;

/// What a measurement can fail with.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What one file may have: what is measured is the hot tier the options ask for, not the bound of a small router.
const DATABASE_BYTES_MAX: u64 = 4 << 30;

/// A store and everything it stands on.
#[derive(Debug)]
pub struct Hot {
    /// The databases.
    pub db: DbManager,
    /// The router whose events they are.
    pub scope: Scope,
    /// The store.
    pub store: EventStore,
}

impl Hot {
    /// Opens an empty store and the router's database: no peer makes its files while the clock is running either.
    ///
    /// # Errors
    /// When a database cannot be made.
    pub async fn open(place: &Place, options: EventOptions) -> Result<Self, Failure> {
        let mut databases = Options::new(place.disk.path().join("data"))
            .run_dir(place.tmpfs.path().join("run"))
            .schemas(nasnet_events::schema_sets());
        databases.database_bytes_max = DATABASE_BYTES_MAX;
        databases.flash_bytes_max = u64::MAX;
        let db = DbManager::open(databases).await?;
        let id: RouterId = "bench".parse()?;
        db.create_router(NewRouter::new(id.clone()).name("bench").host("192.0.2.1")).await?;
        let store = EventStore::open(&db, options).await?;
        let scope = Scope::Router(id);
        db.scope(&scope).await?;
        Ok(Self { db, scope, store })
    }

    /// Makes an event of a sample.
    ///
    /// # Errors
    /// When its type or its body is none.
    pub fn event(&self, sample: Sample) -> Result<NewEvent, Failure> {
        let body = RawValue::from_string(sample.body)?;
        Ok(NewEvent::with_body(self.db.next_ulid(), EventType::parse(sample.kind)?, body))
    }

    /// Makes appends of samples, each to its own stream.
    ///
    /// # Errors
    /// When one is none.
    pub fn appends(&self, samples: Vec<Sample>) -> Result<Vec<StreamAppend>, Failure> {
        let append = |sample: Sample| {
            let stream = StreamName::parse(&sample.stream)?;
            Ok(StreamAppend::new(stream, Expected::Any, vec![self.event(sample)?]))
        };
        samples.into_iter().map(append).collect()
    }

    /// Appends to many streams and returns when all is committed.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn append_each(&self, appends: Vec<StreamAppend>) -> Result<(), Failure> {
        for receipt in self.store.append_each(&self.scope, appends).await? {
            receipt?;
        }
        Ok(())
    }

    /// Appends samples, each to its own stream, and returns when all are committed.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn append(&self, samples: Vec<Sample>) -> Result<(), Failure> {
        self.append_each(self.appends(samples)?).await
    }

    /// Takes the time in which so many callers append one event at a time, each waiting for it.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn append_singly(self: &Arc<Self>, shares: Vec<Vec<StreamAppend>>) -> Result<Duration, Failure> {
        let start = Instant::now();
        let callers: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let hot = Arc::clone(self);
                tokio::spawn(async move {
                    for append in share {
                        hot.store.append(&hot.scope, &append.stream, append.expected, append.events).await?;
                    }
                    Ok::<_, Failure>(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        Ok(start.elapsed())
    }

    /// Appends samples to one stream.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn append_to(&self, stream: &str, samples: Vec<Sample>) -> Result<(), Failure> {
        let events = samples.into_iter().map(|sample| self.event(sample)).collect::<Result<_, _>>()?;
        self.store.append(&self.scope, &StreamName::parse(stream)?, Expected::Any, events).await?;
        Ok(())
    }

    /// Ends the store and closes the databases.
    ///
    /// # Errors
    /// When what is left cannot be flushed.
    pub async fn close(self) -> Result<(), Failure> {
        self.store.shutdown().await?;
        self.db.shutdown().await?;
        Ok(())
    }
}
