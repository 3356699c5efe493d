//! Another event store as a receiver: on a stick, a disk, or a network file system.

use std::collections::{BTreeMap, BTreeSet};

use nasnet_dbmanager::{BoxFuture, Cause, Database, Scope};
use sqlx::SqliteConnection;

use crate::durability;
use crate::durable::PendingReceipt;
use crate::error::Error;
use crate::event::Recorded;
use crate::expected::Expected;
use crate::forward::{Batch, Delivery, Sink};
use crate::name::StreamName;
use crate::position::Position;
use crate::query::Query;
use crate::retain::horizon;
use crate::store::EventStore;

const RECEIVE: Cause = Cause::new("event-receive");
const RECEIVED: &str = "SELECT pos FROM event_received WHERE source = ?1 AND stream = ?2";
const RECEIVE_TO: &str = "INSERT INTO event_received (source, stream, pos) VALUES (?1, ?2, ?3) \
     ON CONFLICT (source, stream) DO UPDATE SET pos = MAX(pos, excluded.pos)";

/// Appends what it receives to one scope of another store, `Synced`, under the same ids and with the times and classes of
/// the source. The stream `s` of scope `home` becomes `home/s`; positions and versions are the receiver's own.
///
/// Exactly once: how far each stream has come is committed with its events. What comes again is looked for, in case an earlier
/// consumer of that name was not shown it; where retention has removed a part of a stream here, it was in that.
///
/// A name that is longer than 200 bytes with the scope before it is no stream's name: its events are refused.
///
/// Sealed facts stay sealed under the key of the source, which this store does not have: read them with
/// [`EventStore::read_stored`].
#[derive(Debug, Clone)]
pub struct StoreSink {
    store: EventStore,
    scope: Scope,
}

impl StoreSink {
    /// A sink that appends to a scope of a store.
    #[must_use]
    pub const fn new(store: EventStore, scope: Scope) -> Self {
        Self { store, scope }
    }

    async fn receive(&self, batch: Batch<'_>) -> Result<(), Error> {
        let database = self.store.shared().manager.scope(&self.scope).await?;
        let mut streams: BTreeMap<StreamName, Vec<Recorded>> = BTreeMap::new();
        for event in batch.events {
            let stream = StreamName::parse(&format!("{}/{}", event.scope, event.stream))?;
            streams.entry(stream).or_default().push(event.clone());
        }
        let (names, source) = (streams.keys().cloned().collect::<Vec<_>>(), batch.source.to_owned());
        let known =
            database.read(RECEIVE, |conn| Box::pin(async move { received(conn, &source, names).await })).await?;
        let mut missing = BTreeSet::new();
        for (stream, events) in &streams {
            let known = known.get(stream).copied().unwrap_or(Position::START);
            // Mostly they are here, for they come again. Not so where an earlier consumer of this name was shown less.
            for event in events.iter().filter(|event| batch.late || event.position <= known) {
                if !self.has(event, stream).await? && (batch.late || !self.has_lost(&database, stream).await?) {
                    missing.insert(event.id);
                }
            }
        }
        let (store, scope, source) = (self.store.clone(), self.scope.clone(), batch.source.to_owned());
        let late = batch.late;
        let pending = database
            .write(durability::cause_for(RECEIVE, batch.events), move |conn| {
                Box::pin(async move {
                    let is_new = |event: &Recorded, known: Position| {
                        (!late && event.position > known) || missing.contains(&event.id)
                    };
                    append(conn, &store, &scope, &source, streams, &is_new).await
                })
            })
            .await?;
        if let Some(pending) = pending {
            drop(self.store.published(pending).await);
        }
        Ok(())
    }

    /// True when retention has removed a part of the stream.
    async fn has_lost(&self, database: &Database, stream: &StreamName) -> Result<bool, Error> {
        let stream = stream.clone();
        let removed = database.read(RECEIVE, |conn| Box::pin(async move { horizon::of_stream(conn, &stream).await }));
        Ok(removed.await?.is_some())
    }

    /// True when the store holds this event, whenever it came.
    async fn has(&self, event: &Recorded, stream: &StreamName) -> Result<bool, Error> {
        use futures_util::TryStreamExt;
        let mut query = Query::scope(self.scope.clone()).stream(stream.clone());
        query.id = Some(event.id);
        Ok(self.store.read_stored(query).try_next().await?.is_some())
    }
}

/// How far streams of a source have come.
async fn received(
    conn: &mut SqliteConnection,
    source: &str,
    streams: Vec<StreamName>,
) -> Result<BTreeMap<StreamName, Position>, Error> {
    let mut known = BTreeMap::new();
    for stream in streams {
        let found: Option<i64> =
            sqlx::query_scalar(RECEIVED).bind(source).bind(stream.as_str()).fetch_optional(&mut *conn).await?;
        known.extend(found.and_then(Position::from_key).map(|position| (stream, position)));
    }
    Ok(known)
}

/// Appends what is new and notes how far each stream has come; `None` when nothing is.
async fn append(
    conn: &mut SqliteConnection,
    store: &EventStore,
    scope: &Scope,
    source: &str,
    streams: BTreeMap<StreamName, Vec<Recorded>>,
    is_new: &(dyn Fn(&Recorded, Position) -> bool + Sync),
) -> Result<Option<PendingReceipt>, Error> {
    let mut appends = Vec::new();
    let known = received(conn, source, streams.keys().cloned().collect()).await?;
    for (stream, mut events) in streams {
        let known = known.get(&stream).copied().unwrap_or(Position::START);
        events.retain(|event| is_new(event, known));
        let Some(last) = events.last().map(|event| event.position) else { continue };
        sqlx::query(RECEIVE_TO).bind(source).bind(stream.as_str()).bind(last.to_key()?).execute(&mut *conn).await?;
        for event in &mut events {
            event.position = Position::START;
            event.version = 0;
            event.scope = scope.clone();
            event.stream = stream.clone();
        }
        appends.push((Expected::Any, events, stream));
    }
    if appends.is_empty() {
        return Ok(None);
    }
    store.append_recorded(conn, scope, appends).await.map(Some)
}

impl Sink for StoreSink {
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        Box::pin(async move {
            match self.receive(batch).await {
                Ok(()) => Delivery::Delivered,
                Err(error) => verdict(&error),
            }
        })
    }
}

/// What an error of the receiving store means for a batch.
fn verdict(error: &Error) -> Delivery {
    let why = error.to_string();
    match error {
        Error::Invalid { .. } | Error::TooLarge { .. } | Error::IdReused { .. } | Error::Conflict(_) => {
            Delivery::Rejected { why }
        }
        Error::Closed | Error::Io { .. } => Delivery::Offline { why },
        Error::Storage { source } => match &**source {
            nasnet_dbmanager::Error::Closed { .. } | nasnet_dbmanager::Error::RouterNotFound { .. } => {
                Delivery::Offline { why }
            }
            _ => Delivery::Retry { why },
        },
        _ => Delivery::Retry { why },
    }
}
