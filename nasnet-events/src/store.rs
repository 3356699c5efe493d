//! The facade: opening, appending and closing a store.

use std::fmt;
use std::sync::Arc;

use futures_util::TryStreamExt;
use nasnet_dbmanager::{DbManager, Now, Scope};
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::class::ClassRules;
use crate::durability::{self, Durability, Way};
use crate::epoch::{self, TailLost};
use crate::error::{Conflict, Error};
use crate::event::{Head, NewEvent, Recorded};
use crate::expected::Expected;
use crate::flush::FlushReason;
use crate::hot::appender::{self, Answers, Append, Command, Part};
use crate::hot::seat::Seat;
use crate::hot::session::{self, Session};
use crate::in_flight::InFlight;
use crate::name::StreamName;
use crate::options::EventOptions;
use crate::position::Position;
use crate::query::Query;
use crate::receipt::{Achieved, Receipt};
use crate::resolve;
use crate::sealing::{self, SubjectKeys};
use crate::shared::{Shared, sessions_dir};
use crate::window;

/// An event store over the databases of one fleet. Clones are the same store.
///
/// Dropping the last clone ends its tasks in the background; [`EventStore::shutdown`] also flushes and waits.
#[derive(Clone)]
pub struct EventStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    /// Bounds the queue by events rather than by calls.
    places: Arc<Semaphore>,
    tasks: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for EventStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStore").field("run_dir", &self.inner.shared.manager.run_dir()).finish_non_exhaustive()
    }
}

impl EventStore {
    /// Opens the store: names the incarnation of the hot tier, rebuilds what is kept in memory from it, and resolves the
    /// reservations of processes that died. The manager must have been opened with what [`crate::register`] adds.
    ///
    /// # Errors
    /// [`Error::Storage`] when a database cannot be used, [`Error::Io`] when the session's file
    /// cannot be made, [`Error::Corrupt`] when hot.db does not check.
    ///
    /// # Cancel safety
    /// Safe: an opening that is given up leaves at most an unused epoch number.
    pub async fn open(manager: &DbManager, options: EventOptions) -> Result<Self, Error> {
        let dir = sessions_dir(manager);
        let id = manager.next_ulid();
        let session = blocking(move || Session::open(&dir, id)).await?;
        let opening = lock_opening(manager).await?;
        let opened = epoch::open(manager, &InFlight::new()).await?;
        drop(opening);

        let queue_places = queue_places(&options);
        let shared = Arc::new(Shared::new(manager.clone(), options, session, opened));
        appender::catch_up(&shared).await?;
        let (seat, appending) = Seat::start(|queue| Box::pin(appender::run(Arc::clone(&shared), queue)));
        let resolving = resolve::run(Arc::clone(&shared), Arc::downgrade(&seat));
        let keeping_up = window::keep_up(Arc::clone(&shared));
        let tasks = vec![tokio::spawn(appending), tokio::spawn(resolving), tokio::spawn(keeping_up)];
        resolve::sweep(&shared, &seat).await;
        let places = Arc::new(Semaphore::new(queue_places));
        Ok(Self { inner: Arc::new(Inner { shared, seat, places, tasks: tokio::sync::Mutex::new(tasks) }) })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.inner.seat
    }

    /// Appends events to one stream, as durably as the most important of them asks for: a batch with a Critical event
    /// is on flash before this returns ([`crate::Achieved::Synced`]), any other is in the hot tier
    /// ([`crate::Achieved::Hot`]) and reaches flash with a flush.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::IdReused`], [`Error::Unresolved`], [`Error::Overloaded`], [`Error::TooLarge`] and
    /// [`Error::Invalid`]: nothing was appended. [`Error::NotDurable`]: a Critical batch is not known to be on flash.
    /// [`Error::Storage`]: the hot tier failed and the outcome may be unknown; the same ids may be appended again.
    ///
    /// # Cancel safety
    /// A dropped call may have appended; appending the same ids again answers with the same receipt.
    pub async fn append(
        &self,
        scope: &Scope,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Receipt, Error> {
        self.append_as(scope, stream, expected, events, None).await
    }

    /// Appends events to one stream, as durably as asked for; more never hurts, so a batch with a Critical event is on
    /// flash all the same, and so is a Low one that must be there in time, since flushes leave Low events out.
    ///
    /// # Errors
    /// As [`EventStore::append`]; [`Error::NotDurable`] also for any class when [`Durability::Durable`] was asked for.
    ///
    /// # Cancel safety
    /// As [`EventStore::append`].
    pub async fn append_with(
        &self,
        scope: &Scope,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
        durability: Durability,
    ) -> Result<Receipt, Error> {
        self.append_as(scope, stream, expected, events, Some(durability)).await
    }

    pub(crate) async fn append_as(
        &self,
        scope: &Scope,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
        durability: Option<Durability>,
    ) -> Result<Receipt, Error> {
        let keys = sealing::for_append(self.shared(), &events).await?;
        let mut recorded = Vec::with_capacity(events.len());
        self.record(scope, stream, events, &keys, &self.shared().manager.now(), &mut recorded)?;
        let Way::Hot(max_delay) = durability::way(durability, &recorded) else {
            return self.append_durable(scope, stream, expected, recorded).await;
        };
        window::load(self.shared(), scope).await?;
        let part = Part { expected, count: recorded.len() };
        let places = self.places(recorded.iter().map(|event| event.body.get().len()))?;
        let answers = self.append_hot(scope, smallvec![part], recorded, places).await?;
        let result = answers.into_iter().next().unwrap_or(Err(Error::Closed));
        match result {
            Err(Error::Conflict(conflict)) => Err(Error::Conflict(self.with_missed(conflict).await)),
            Ok(receipt) => {
                if let (Some(delay), Achieved::Hot) = (max_delay, receipt.achieved) {
                    self.shared().promise(scope, receipt.last, delay);
                }
                Ok(receipt)
            }
            other => other,
        }
    }

    /// Has the appender write events of one scope to the hot tier.
    pub(crate) async fn append_hot(
        &self,
        scope: &Scope,
        parts: SmallVec<[Part; 1]>,
        events: Vec<Recorded>,
        places: OwnedSemaphorePermit,
    ) -> Result<Answers, Error> {
        let (reply, answers) = oneshot::channel();
        let append = Append { scope: scope.clone(), parts, events, reply, places };
        self.seat().send(Command::Append(append))?;
        answers.await.map_err(|_| Error::Closed)
    }

    /// Takes places in the queue for events with bodies of so many bytes.
    pub(crate) fn places(&self, bodies: impl Iterator<Item = usize>) -> Result<OwnedSemaphorePermit, Error> {
        let wanted = bodies.map(|bytes| bytes.div_ceil(EventOptions::PLACE_BYTES).max(1)).sum();
        let max = queue_places(&self.shared().options);
        if wanted > max {
            // It would never fit, so it is not for the caller to try again.
            return Err(Error::TooLarge { what: "append in places of the queue", size: wanted, max });
        }
        let count = u32::try_from(wanted).unwrap_or(u32::MAX);
        Arc::clone(&self.inner.places).try_acquire_many_owned(count).map_err(|_| {
            let waiting = max.saturating_sub(self.inner.places.available_permits());
            Error::Overloaded { queue: waiting }
        })
    }

    /// Checks events and stamps them with class and time; positions and versions come later. They are added to `recorded`,
    /// all or none.
    pub(crate) fn record(
        &self,
        scope: &Scope,
        stream: &StreamName,
        events: Vec<NewEvent>,
        keys: &SubjectKeys,
        now: &Now,
        recorded: &mut Vec<Recorded>,
    ) -> Result<(), Error> {
        let shared = self.shared();
        if shared.is_closing() {
            return Err(Error::Closed);
        }
        if events.is_empty() {
            return Err(Error::Invalid { what: "append", value: stream.to_string(), why: "it holds no event" });
        }
        if events.len() > EventOptions::BATCH_EVENTS_MAX {
            let max = EventOptions::BATCH_EVENTS_MAX;
            return Err(Error::TooLarge { what: "number of events in an append", size: events.len(), max });
        }
        let rules = &shared.options.classes;
        let record = |mut event: NewEvent| {
            let max = shared.options.body_bytes_max.min(EventOptions::BODY_BYTES_LIMIT);
            let size = event.body.get().len();
            if size > max {
                return Err(Error::TooLarge { what: "event body", size, max });
            }
            if let Some(actor) = &event.actor {
                check_actor(actor)?;
            }
            let class = rules.explicit(&event.kind, event.level).unwrap_or_else(|| {
                shared.count_unclassified();
                ClassRules::DEFAULT
            });
            event.body = one_line(event.body)?;
            let sealed = keys.seal(scope, stream, &event)?;
            Ok(Recorded {
                position: Position::START,
                id: event.id,
                scope: scope.clone(),
                stream: stream.clone(),
                version: 0,
                kind: event.kind,
                class,
                level: event.level,
                schema: event.schema,
                actor: event.actor,
                correlation_id: event.correlation_id,
                causation_id: event.causation_id,
                wall_ms: now.wall_ms,
                quality: now.quality,
                boot: now.boot,
                boottime_ms: now.boottime_ms,
                subject: event.subject,
                synced: false,
                body: sealed.unwrap_or(Body::Json(event.body)),
            })
        };
        let before = recorded.len();
        for event in events {
            match record(event) {
                Ok(event) => recorded.push(event),
                Err(error) => {
                    recorded.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Adds the heads the caller missed to a conflict. Failing to read them does not hide the conflict.
    pub(crate) async fn with_missed(&self, mut conflict: Box<Conflict>) -> Box<Conflict> {
        let seen = conflict.expected.seen_version(conflict.actual);
        if seen < conflict.actual {
            let query = Query::scope(conflict.scope.clone()).stream(conflict.stream.clone()).backwards();
            let newest = self.read_stored(query.limit(Conflict::SINCE_MAX as u64)).try_collect::<Vec<_>>().await;
            let heads = newest.unwrap_or_default().into_iter().filter(|event| event.version > seen);
            conflict.since = heads.map(|event| event.head()).collect::<Vec<Head>>();
            conflict.since.reverse();
        }
        conflict
    }

    /// Takes into account what other processes appended and resolves the reservations they left behind. Called by
    /// itself where it matters; useful after another process is known to have died.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read, [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn resolve(&self) -> Result<(), Error> {
        resolve::catch_up(self.seat()).await?;
        resolve::sweep(self.shared(), self.seat()).await;
        Ok(())
    }

    /// The hot tiers that were lost before everything in them was safe, oldest first.
    #[must_use]
    pub fn losses(&self) -> Vec<TailLost> {
        self.shared().losses()
    }

    /// Flushes, records the clean end of the hot tier when no other process uses it, and ends the store's tasks.
    /// Appends fail with [`Error::Closed`] from now on.
    ///
    /// # Errors
    /// Those of the flush; the tasks have ended nevertheless.
    ///
    /// # Cancel safety
    /// Safe to call again.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let shared = self.shared();
        shared.close();
        resolve::sweep(shared, self.seat()).await;
        let flushed = self.flush(FlushReason::Shutdown).await;
        let checkpoints = shared.consumers.save(shared, true).await;
        // Already gone when this is the second call.
        drop(self.seat().send(Command::Stop));
        {
            // A call that is dropped leaves them here for the next one: the session must not end before them.
            let mut tasks = self.inner.tasks.lock().await;
            while let Some(task) = tasks.last_mut() {
                drop(task.await);
                tasks.pop();
            }
        }
        shared.end_session();
        checkpoints?;
        let report = flushed?;
        crate::maintain::tell(&report);
        if report.failed.is_empty() { self.record_clean_end(report.through).await } else { Ok(()) }
    }

    /// Records that the hot tier holds nothing that is not safe, unless another store may still add to it.
    async fn record_clean_end(&self, through: Position) -> Result<(), Error> {
        let shared = self.shared();
        let (dir, own) = (shared.sessions_dir(), shared.owner());
        // A store that is opened has its session first and waits here then: either it is seen, or it sees the record.
        let _opening = lock_opening(&shared.manager).await?;
        if !blocking(move || session::others_alive(&dir, own).is_empty()).await {
            return Ok(());
        }
        let end = self.view().await?;
        if through != Position::new(end.epoch, end.end) {
            return Ok(());
        }
        epoch::record_clean_end(&shared.manager, through).await
    }
}

/// Places in the queue of appends: the largest append allowed fits when nothing else waits.
fn queue_places(options: &EventOptions) -> usize {
    options.queue_events_max.clamp(EventOptions::BATCH_EVENTS_MAX, Semaphore::MAX_PERMITS >> 1)
}

/// An actor is a short name on one line: it is repeated in indexes, logs and the archive.
fn check_actor(actor: &str) -> Result<(), Error> {
    let max = EventOptions::ACTOR_BYTES_MAX;
    if actor.len() > max {
        return Err(Error::TooLarge { what: "actor", size: actor.len(), max });
    }
    if actor.chars().any(char::is_control) {
        let why = "control characters are not allowed";
        return Err(Error::Invalid { what: "actor", value: actor.escape_debug().to_string(), why });
    }
    Ok(())
}

/// Keeps a body on one line, as the cold tier needs it. JSON has no line breaks inside its tokens.
fn one_line(body: Box<RawValue>) -> Result<Box<RawValue>, Error> {
    // By bytes: this looks at every body, and a search by characters takes several times as long.
    if memchr::memchr2(b'\n', b'\r', body.get().as_bytes()).is_none() {
        return Ok(body);
    }
    RawValue::from_string(body.get().replace(['\n', '\r'], " ")).map_err(|error| Error::Invalid {
        what: "event body",
        value: error.to_string(),
        why: "it is not JSON",
    })
}

/// Runs file-system work beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Keeps two stores from naming the same new incarnation. Given back when dropped.
pub(crate) async fn lock_opening(manager: &DbManager) -> Result<std::fs::File, Error> {
    let path = sessions_dir(manager).join("events-opening.lock");
    blocking(move || {
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(|error| Error::io("create", &path, error))?;
        file.lock().map_err(|error| Error::io("lock", &path, error))?;
        Ok(file)
    })
    .await
}
