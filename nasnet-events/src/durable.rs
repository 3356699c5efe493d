//! Events that commit with the state they describe: positions are reserved in hot.db, the rows are written in the
//! caller's transaction, and after its commit the reservation is published.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use foldhash::HashMapExt as _;
use nasnet_dbmanager::{Cause, Scope};
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use crate::durability;
use crate::error::Error;
use crate::event::{Recorded, StreamAppend};
use crate::expected::Expected;
use crate::heads::Resolution;
use crate::hot::appender::{Command, Reserve, Reserved};
use crate::name::StreamName;
use crate::options::EventOptions;
use crate::plan::{DurableStream, Looked, Seen};
use crate::position::Position;
use crate::receipt::Receipt;
use crate::resolve;
use crate::sealing;
use crate::shared::Shared;
use crate::store::EventStore;
use crate::warm::rows;
use crate::window;

const APPEND: Cause = Cause::new("event-append");

/// How often a transaction that waits for its positions looks whether the hot tier was wiped.
const RENEWAL_LOOK: std::time::Duration = std::time::Duration::from_millis(20);
/// Times a durable append starts again because the hot tier was wiped under it.
const RENEWALS_MAX: u32 = 8;

/// Events that are written in a transaction which has not committed yet.
///
/// Hand it to [`EventStore::published`] after the commit. Dropping it is safe at any time: the store looks into the
/// database and publishes the events or voids their positions. Until then readers see nothing after them.
#[must_use = "readers wait for the outcome of the transaction; hand this to `published` after the commit"]
pub struct PendingReceipt {
    shared: Arc<Shared>,
    /// First position and last number, `None` when all events were known already.
    range: Option<(Position, u64)>,
    receipts: Vec<Receipt>,
}

impl PendingReceipt {
    pub(crate) const fn new(shared: Arc<Shared>, range: Option<(Position, u64)>, receipts: Vec<Receipt>) -> Self {
        Self { shared, range, receipts }
    }

    /// The receipts to come, in the order of the appends. They hold only once the transaction has committed.
    #[must_use]
    pub fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }
}

impl fmt::Debug for PendingReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReceipt").field("receipts", &self.receipts).finish_non_exhaustive()
    }
}

impl Drop for PendingReceipt {
    fn drop(&mut self) {
        if let Some((first, _)) = self.range {
            self.shared.abandon(first);
        }
    }
}

impl EventStore {
    /// Writes events in the caller's transaction on the database of `scope`: they are there if and only if it commits,
    /// whatever their class. Call it inside a write operation of that database, let its errors fail the operation, and
    /// hand the receipt to [`EventStore::published`] after the commit. Several streams share one reservation; either
    /// all of them are appended or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] (in a transaction on system.db without what was missed: to look for it there may have to wait for
    /// that very transaction), [`Error::IdReused`], [`Error::NotDurable`] (an event is known from the hot tier only),
    /// [`Error::TooLarge`], [`Error::Invalid`]: nothing was reserved. [`Error::Renewing`] (the hot tier was lost and a
    /// new one begins: readers would not see what commits at a position of the old one; try again),
    /// [`Error::Storage`]: the transaction must be rolled back.
    ///
    /// # Cancel safety
    /// A dropped call leaves a reservation that is voided, or published when the transaction commits nevertheless; one that is
    /// dropped between the statements of many events fails its transaction ([`nasnet_dbmanager::Error::HalfDone`]).
    pub async fn append_in(
        &self,
        conn: &mut SqliteConnection,
        scope: &Scope,
        appends: Vec<StreamAppend>,
    ) -> Result<PendingReceipt, Error> {
        let count: usize = appends.iter().map(|append| append.events.len()).sum();
        if count > EventOptions::BATCH_EVENTS_MAX {
            let max = EventOptions::BATCH_EVENTS_MAX;
            return Err(Error::TooLarge { what: "number of events in an append", size: count, max });
        }
        let new = appends.iter().flat_map(|append| &append.events);
        let keys = sealing::for_append_in(self.shared(), conn, scope, new).await?;
        let now = self.shared().manager.now();
        let streams = appends
            .into_iter()
            .map(|append| {
                let mut events = Vec::with_capacity(append.events.len());
                self.record(scope, &append.stream, append.events, &keys, &now, &mut events)?;
                Ok((append.expected, events, append.stream))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        match self.append_recorded(conn, scope, streams).await {
            Err(Error::Conflict(conflict)) if *scope != Scope::System => {
                Err(Error::Conflict(self.with_missed(conflict).await))
            }
            appended => appended,
        }
    }

    pub(crate) async fn append_recorded(
        &self,
        conn: &mut SqliteConnection,
        scope: &Scope,
        mut appends: Vec<(Expected, Vec<Recorded>, StreamName)>,
    ) -> Result<PendingReceipt, Error> {
        let shared = self.shared();
        // Opening the hot tier anew writes system.db, which this transaction may hold.
        if *scope == Scope::System && !shared.is_current(&shared.manager.hot()) {
            shared.resolver.notify_one();
            return Err(Error::Renewing);
        }
        for (_, events, _) in &mut appends {
            events.iter_mut().for_each(|event| event.synced = true);
        }
        // What is committed, through a reader: this transaction may have written rows already, and it may fail.
        window::load(shared, scope).await?;
        let wanted: BTreeSet<&str> = appends.iter().map(|(_, _, stream)| stream.as_str()).collect();
        let known = shared.heads().rows_known(scope);
        let versions = rows::versions(conn, &wanted, known).await?;
        let looked = self.look_for(conn, &appends).await?;
        let streams = appends
            .into_iter()
            .map(|(expected, events, stream)| {
                let warm_version = versions.get(stream.as_str()).copied().unwrap_or(0);
                DurableStream { stream, expected, warm_version, events }
            })
            .collect();
        let (reply, answer) = oneshot::channel();
        let reserve = Reserve { scope: scope.clone(), streams, looked, reply };
        let waiting = shared.in_flight.wait_in(scope);
        self.seat().send(Command::Reserve(reserve))?;
        let mut answer = answer;
        let answered = loop {
            match tokio::time::timeout(RENEWAL_LOOK, &mut answer).await {
                Ok(answered) => break answered,
                // The appender may be waiting for system.db, or for a transaction that holds positions of the lost hot tier:
                // for this one, or for one that is committed with it.
                Err(_)
                    if (*scope == Scope::System || shared.in_flight.holds(scope))
                        && !shared.is_current(&shared.manager.hot()) =>
                {
                    return Err(Error::Renewing);
                }
                Err(_) => {}
            }
        };
        drop(waiting);
        let reserved = answered.map_err(|_| Error::Closed)??;
        // A failure drops the receipt, and the resolver voids the reservation.
        let Reserved { streams, pending } = reserved;
        let events: Vec<&Recorded> = streams.iter().flat_map(|append| &append.events).collect();
        // Dropped between two statements this would leave some of them in a transaction that commits.
        let several = !events.is_empty() && !rows::is_one_statement(events.len());
        let whole = if several { Some(shared.manager.scope(scope).await?.whole()) } else { None };
        rows::insert(conn, &events).await?;
        if let Some(whole) = whole {
            whole.finish();
        }
        // Readers wait for a reservation of a lost hot tier for a moment only: what commits much later would be behind them.
        let hot = shared.manager.hot();
        if pending.range.is_some_and(|(first, _)| first.epoch != shared.heads().epoch()) || !shared.is_current(&hot) {
            return Err(Error::Renewing);
        }
        Ok(pending)
    }

    /// Looks for the ids whose transactions have not ended: this one holds the database's write lock, so what it does not see
    /// has failed.
    async fn look_for(
        &self,
        conn: &mut SqliteConnection,
        appends: &[(Expected, Vec<Recorded>, StreamName)],
    ) -> Result<Looked, Error> {
        let pending: Vec<_> = {
            let heads = self.shared().heads();
            let ids = appends.iter().flat_map(|(_, events, _)| events).map(|event| event.id);
            ids.filter_map(|id| Some((id, heads.known(id).filter(|known| known.pending)?.position()))).collect()
        };
        let mut looked = Looked::new();
        for (id, position) in pending {
            let there = rows::count(conn, position, position).await? > 0;
            looked.insert(id, Seen { position, there });
        }
        Ok(looked)
    }

    /// Publishes events whose transaction has committed and returns their receipts, in the order of the appends.
    ///
    /// This cannot fail: the events are on flash. Should the hot tier not take the news now, the store tries again by
    /// itself, and readers see the events later. Calling it before the commit would show events that may never be.
    ///
    /// # Cancel safety
    /// Safe: a dropped call is finished in the background.
    pub async fn published(&self, mut pending: PendingReceipt) -> Vec<Receipt> {
        let receipts = std::mem::take(&mut pending.receipts);
        let Some((first, last_seq)) = pending.range else { return receipts };
        self.shared().in_flight.land(first);
        match resolve::end(self.seat(), first, last_seq, Resolution::Published).await {
            // Nothing is left to the resolver.
            Ok(()) => {
                pending.range = None;
                if self.shared().heads().has_grown() {
                    self.shared().grown.notify_one();
                }
            }
            Err(error) => tracing::warn!(%error, %first, "events on flash are published later"),
        }
        receipts
    }

    /// Appends in a transaction of its own.
    pub(crate) async fn append_durable(
        &self,
        scope: &Scope,
        stream: &StreamName,
        expected: Expected,
        events: Vec<Recorded>,
    ) -> Result<Receipt, Error> {
        let not_durable = |error: Error| match error {
            Error::Storage { .. } | Error::Corrupt { .. } | Error::Io { .. } => {
                Error::NotDurable { reached: None, source: Some(Box::new(error)) }
            }
            refused => refused,
        };
        let database = self.shared().manager.scope(scope).await.map_err(|error| not_durable(error.into()))?;
        let cause = durability::cause_for(APPEND, &events);
        let mut tries = 0;
        let pending = loop {
            // A hot tier that was wiped is opened anew here, where no transaction is open.
            self.shared().hot().await.map_err(not_durable)?;
            let (store, own_scope) = (self.clone(), scope.clone());
            let append = vec![(expected, events.clone(), stream.clone())];
            let written = database
                .write(cause, move |conn| {
                    Box::pin(async move { store.append_recorded(conn, &own_scope, append).await })
                })
                .await;
            tries += 1;
            match written {
                Err(Error::Renewing) if tries < RENEWALS_MAX => {}
                // An attempt of this call that was given up has been reserved after all.
                Err(Error::Unresolved { .. }) if tries > 1 && tries < RENEWALS_MAX => self.resolve().await?,
                written => break written.map_err(not_durable),
            }
        };
        let pending = match pending {
            Err(Error::Conflict(conflict)) => return Err(Error::Conflict(self.with_missed(conflict).await)),
            pending => pending?,
        };
        let receipts = self.published(pending).await;
        receipts.into_iter().next().ok_or(Error::Closed)
    }
}
