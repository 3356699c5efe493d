//! A day of a fleet: ten routers polled every five seconds, lived through with a clock that is moved by hand.
//!
//! What [`nasnet_events::EventStore::maintain`] does by the clock is done here by the same calls at the same times of that
//! day: a flush when the store says that one is due, the dictionaries once, what is old forgotten and small rows joined every
//! minute.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use nasnet_dbmanager::{DbManager, ManualClock, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    ColdOptions, EventOptions, EventStore, EventType, Expected, FlushReason, Level, NewEvent, StreamName,
    prepare_cold_dir,
};
use serde_json::value::RawValue;
use ulid::Ulid;

use crate::events::{Generator, Random, stream_name};
use crate::hot::Failure;
use crate::place::Place;

/// Routers of the fleet.
pub const ROUTERS: u64 = 10;
/// Time between two polls of a router, each of which gives one event.
pub const POLL: Duration = Duration::from_secs(5);
/// Events of a day.
pub const EVENTS: u64 = DAY.as_secs() / POLL.as_secs() * ROUTERS;
/// The instant the day begins, in 2026.
pub const BEGINS_MS: i64 = 1_795_000_000_000;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Polls between two looks at what is old and at rows that are small.
const EXPIRE_POLLS: u64 = 12;
/// Events of each router from which its first dictionary is trained, before the day.
const TRAINED_POLLS: u64 = 1_080;
/// Polls of one run, which share a correlation id and an actor.
const RUN_POLLS: u64 = 12;

/// Resources of each router, each a stream.
pub const RESOURCES: u64 = 200;

/// Returns the stream of one resource of one router.
///
/// # Errors
/// Never: the name is one.
pub fn stream_of(router: u64, resource: u64) -> Result<StreamName, Failure> {
    Ok(StreamName::parse(&stream_name(resource * ROUTERS + router))?)
}

/// People and programs that cause events.
pub const ACTORS: [&str; 4] = ["anna", "bernd", "scheduler", "api"];

/// A store in which a day can be lived.
#[derive(Debug)]
pub struct Day {
    /// The databases.
    pub db: DbManager,
    /// The store.
    pub store: EventStore,
    /// The clock of both.
    pub clock: ManualClock,
    /// The routers.
    pub scopes: Vec<Scope>,
    generator: Generator,
    random: Random,
    polls: u64,
    flushes: u64,
    run: Ulid,
    _place: Place,
}

/// What a day wrote to flash: the databases of the routers and system.db, after the checkpoint at its end.
#[derive(Debug, Clone, Copy)]
pub struct Lived {
    /// Bytes of the distinct 4 KiB pages dirtied between syncs.
    pub dirty_4k_bytes: u64,
    /// The part of them that is system.db's.
    pub system_4k_bytes: u64,
    /// Bytes of all writes.
    pub written_bytes: u64,
    /// Flushes, each of all routers.
    pub flushes: u64,
}

impl Day {
    /// Opens a store at the beginning of a day whose routers have a dictionary from the day before.
    ///
    /// # Errors
    /// When a database cannot be made.
    pub async fn begin(disk: Option<&Path>) -> Result<Self, Failure> {
        let place = Place::new(disk)?;
        let clock = ManualClock::new(BEGINS_MS - i64::try_from((POLL * u32::try_from(TRAINED_POLLS)?).as_millis())?);
        let mut databases = Options::new(place.disk.path().join("data"))
            .run_dir(place.tmpfs.path().join("run"))
            .schemas(nasnet_events::schema_sets());
        databases.clock = Arc::new(clock.clone());
        let db = DbManager::open(databases).await?;
        let mut scopes = Vec::new();
        for number in 0..ROUTERS {
            let id = RouterId::parse(&format!("r{number}"))?;
            db.create_router(NewRouter::new(id.clone())).await?;
            scopes.push(Scope::Router(id));
        }
        let cold = place.tmpfs.path().join("cold");
        prepare_cold_dir(&db, &cold)?;
        let options = EventOptions::default().cold(ColdOptions::new(cold).allow_same_device());
        let store = EventStore::open(&db, options).await?;
        let run = db.next_ulid();
        let (generator, random) = (Generator::new(11), Random::new(12));
        let (polls, flushes) = (0, 0);
        let mut day = Self { db, store, clock, scopes, generator, random, polls, flushes, run, _place: place };
        day.poll(TRAINED_POLLS).await?;
        day.store.flush(FlushReason::Requested).await?;
        day.store.train().await?;
        Ok(day)
    }

    /// Lives through a day.
    ///
    /// # Errors
    /// When something cannot be written.
    pub async fn live(&mut self) -> Result<Lived, Failure> {
        let before = self.written().await?;
        self.poll(DAY.as_secs() / POLL.as_secs()).await?;
        self.store.archive().await?;
        let after = self.written().await?;
        Ok(Lived {
            dirty_4k_bytes: after.dirty_4k_bytes - before.dirty_4k_bytes,
            system_4k_bytes: after.system_4k_bytes - before.system_4k_bytes,
            written_bytes: after.written_bytes - before.written_bytes,
            flushes: after.flushes - before.flushes,
        })
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

    async fn poll(&mut self, polls: u64) -> Result<(), Failure> {
        for _ in 0..polls {
            self.clock.advance(POLL);
            self.polls += 1;
            if self.polls.is_multiple_of(RUN_POLLS) {
                self.run = self.db.next_ulid();
            }
            let scopes = self.scopes.clone();
            let made = scopes.iter().zip(0..).map(|(scope, router)| Ok((scope, self.event(router)?)));
            let made = made.collect::<Result<Vec<_>, Failure>>()?;
            try_join_all(made.into_iter().map(async |(scope, (stream, event))| {
                self.store.append(scope, &stream, Expected::Any, vec![event]).await
            }))
            .await?;
            if let Some(reason) = self.store.flush_due().await {
                let report = self.store.flush(reason).await?;
                self.flushes += 1;
                if let Some((scope, error)) = report.failed.first() {
                    return Err(format!("{scope:?}: {error}").into());
                }
            }
            if self.polls.is_multiple_of(EXPIRE_POLLS) {
                self.store.compact().await?;
                self.store.expire().await?;
            }
        }
        Ok(())
    }

    fn event(&mut self, router: u64) -> Result<(StreamName, NewEvent), Failure> {
        let sample = self.generator.sample();
        let actor = ACTORS[usize::try_from(self.polls / RUN_POLLS)? % ACTORS.len()];
        let body = RawValue::from_string(sample.body)?;
        // One in forty, as lines of the router's log.
        let kind = if self.random.below(40) == 0 { "log.line" } else { sample.kind };
        let event = NewEvent::with_body(self.db.next_ulid(), EventType::parse(kind)?, body)
            .actor(actor)
            .correlation_id(self.run);
        // One in forty, as interfaces that flap.
        let level = if self.random.below(40) == 0 { Level::Warning } else { Level::Info };
        Ok((stream_of(router, self.random.below(RESOURCES))?, event.level(level)))
    }

    async fn written(&self) -> Result<Lived, Failure> {
        let mut lived = Lived { dirty_4k_bytes: 0, system_4k_bytes: 0, written_bytes: 0, flushes: self.flushes };
        for scope in self.scopes.iter().chain([&Scope::System]) {
            let database = self.db.scope(scope).await?;
            database.checkpoint().await?;
            let written = database.written();
            lived.dirty_4k_bytes += written.dirty_4k_bytes;
            lived.written_bytes += written.bytes;
            if *scope == Scope::System {
                lived.system_4k_bytes = written.dirty_4k_bytes;
            }
        }
        Ok(lived)
    }
}
