//! The facade: opening, appending and closing a store.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use nasnet_dbmanager::{DbManager, Now, Scope};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::durability::{self, Durability, Way};
use crate::epoch::{self, TailLost};
use crate::error::{Conflict, Error};
use crate::event::{Head, NewEvent, Recorded};
use crate::expected::Expected;
use crate::flush::FlushReason;
use crate::hot::appender::{self, Append, Command, Reply};
use crate::hot::session::{self, Session};
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
    queue: mpsc::UnboundedSender<Command>,
    /// Bounds the queue by events rather than by calls.
    places: Arc<Semaphore>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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
    /// reservations of processes that died. The manager must have been opened with [`crate::schema_sets`].
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Sqlite`] when a database cannot be used, [`Error::Io`] when the session's file
    /// cannot be made, [`Error::Corrupt`] when hot.db does not check.
    ///
    /// # Cancel safety
    /// Safe: an opening that is given up leaves at most an unused epoch number.
    pub async fn open(manager: &DbManager, options: EventOptions) -> Result<Self, Error> {
        let dir = sessions_dir(manager);
        let id = manager.next_ulid();
        let session = blocking(move || Session::open(&dir, id)).await?;
        let opening = lock_opening(manager).await?;
        let opened = epoch::open(manager).await?;
        drop(opening);

        let queue_places = options.queue_events_max.clamp(EventOptions::BATCH_EVENTS_MAX, Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared::new(manager.clone(), options, session, opened));
        appender::catch_up(&shared).await?;
        let (queue, commands) = mpsc::unbounded_channel();
        let tasks = vec![
            tokio::spawn(appender::run(Arc::clone(&shared), commands)),
            tokio::spawn(resolve::run(Arc::clone(&shared), queue.downgrade())),
        ];
        resolve::sweep(&shared, &queue).await;
        let places = Arc::new(Semaphore::new(queue_places));
        Ok(Self { inner: Arc::new(Inner { shared, queue, places, tasks: Mutex::new(tasks) }) })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn queue(&self) -> &mpsc::UnboundedSender<Command> {
        &self.inner.queue
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
        let events = self.record(scope, stream, events, &keys, &self.shared().manager.now())?;
        let Way::Hot(max_delay) = durability::way(durability, &events) else {
            return self.append_durable(scope, stream, expected, events).await;
        };
        window::load(self.shared(), scope).await?;
        let permit = self.places(events.len())?;
        let (reply, answer) = oneshot::channel();
        let reply = Reply::Alone { to: reply, _permit: permit };
        let append = Append { scope: scope.clone(), stream: stream.clone(), expected, events, reply };
        self.queue().send(Command::Append(append)).map_err(|_| Error::Closed)?;
        let result = answer.await.map_err(|_| Error::Closed)?;
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

    /// Takes places in the queue for so many events.
    pub(crate) fn places(&self, events: usize) -> Result<OwnedSemaphorePermit, Error> {
        let count = u32::try_from(events).unwrap_or(u32::MAX);
        Arc::clone(&self.inner.places).try_acquire_many_owned(count).map_err(|_| {
            let waiting = self.shared().options.queue_events_max.saturating_sub(self.inner.places.available_permits());
            Error::Overloaded { queue: waiting }
        })
    }

    /// Checks events and stamps them with class and time; positions and versions come later.
    pub(crate) fn record(
        &self,
        scope: &Scope,
        stream: &StreamName,
        events: Vec<NewEvent>,
        keys: &SubjectKeys,
        now: &Now,
    ) -> Result<Vec<Recorded>, Error> {
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
            let class = rules.explicit(&event.kind, event.level).unwrap_or_else(|| {
                shared.count_unclassified();
                rules.classify(&event.kind, event.level)
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
        events.into_iter().map(record).collect()
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
        resolve::catch_up(self.queue()).await?;
        resolve::sweep(self.shared(), self.queue()).await;
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
        resolve::sweep(shared, self.queue()).await;
        let flushed = self.flush(FlushReason::Shutdown).await;
        let checkpoints = shared.consumers.save(shared, true).await;
        // Already gone when this is the second call.
        drop(self.queue().send(Command::Stop));
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            drop(task.await);
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
        let alone = move || session::others_alive(&dir, own).is_empty();
        if !blocking(alone.clone()).await {
            return Ok(());
        }
        let end = self.view().await?;
        if through != Position::new(end.epoch, end.end) {
            return Ok(());
        }
        epoch::record_clean_end(&shared.manager, through).await?;
        // A store that was opened meanwhile has looked for the record before it was written.
        if blocking(alone).await { Ok(()) } else { epoch::withdraw_clean_end(&shared.manager, through.epoch).await }
    }
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
