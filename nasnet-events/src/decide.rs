//! Decisions over the history of a stream: read, decide, append if nothing came between, else again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::{Cause, Scope};
use tokio::sync::{Mutex, MutexGuard};

use crate::durability::Durability;
use crate::error::{Conflict, Error};
use crate::event::{NewEvent, Recorded};
use crate::expected::Expected;
use crate::history::{self, Snapshot};
use crate::hot::log;
use crate::name::StreamName;
use crate::query::Query;
use crate::receipt::Receipt;
use crate::store::EventStore;

const DECIDE: Cause = Cause::new("event-decide");
/// Times a decision is made anew because others appended; each time at least one of them made progress.
const ATTEMPTS_MAX: u32 = 100;
/// The pause before another attempt doubles from the first to the last of these.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(64);
/// Streams that share a turn, as few as makes no difference.
const TURNS: usize = 64;

/// Lets the decisions of one store on one stream come one after the other, so that they conflict with those of other
/// processes only.
#[derive(Debug)]
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Turns {
    pub(crate) fn new() -> Self {
        Self((0..TURNS).map(|_| Mutex::new(())).collect())
    }

    async fn take(&self, scope: &Scope, stream: &StreamName) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        (scope.as_str(), stream.as_str()).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        match self.0.get(index) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        }
    }
}

impl EventStore {
    /// Reads the history of a stream, lets `decide` say what happens next, and appends that if nothing was appended
    /// meanwhile; otherwise reads on and decides again, after a short pause, a bounded number of times. What it appends
    /// is as durable as its classes ask for. `None` when nothing is to be appended.
    ///
    /// It decides over the whole history or not at all: where versions are missing the history is a part, and what is
    /// decided over a part would be a guess. Whoever has a snapshot decides behind it, with [`EventStore::decide_after`].
    ///
    /// `decide` may run several times and must not act by itself. Ids it chooses once, outside, make the whole call
    /// repeatable.
    ///
    /// # Errors
    /// What `decide` returns, nothing was appended; and those of [`EventStore::append`] and [`EventStore::read`], among
    /// them [`Error::Conflict`] when others were faster every time. [`Error::BeyondHorizon`] when retention has removed a
    /// part of the history and no tier that can be read now has it, [`Error::VersionGap`] when versions are missing for
    /// another reason; nothing was appended then, whatever `decide` said meanwhile.
    ///
    /// # Cancel safety
    /// A dropped call may have appended.
    pub async fn decide<E, F>(&self, scope: &Scope, stream: &StreamName, decide: F) -> Result<Option<Receipt>, E>
    where
        E: From<Error> + Send,
        F: FnMut(&[Recorded]) -> Result<Vec<NewEvent>, E> + Send,
    {
        self.decide_as(scope, stream, Snapshot::NOTHING, None, decide).await
    }

    /// Decides as [`EventStore::decide`] over the events that a snapshot does not have. For streams whose older events are
    /// removed, ended with the hot tier, or are missing for any other reason.
    ///
    /// # Errors
    /// As [`EventStore::decide`].
    ///
    /// # Cancel safety
    /// A dropped call may have appended.
    pub async fn decide_after<E, F>(
        &self,
        scope: &Scope,
        stream: &StreamName,
        snapshot: Snapshot,
        decide: F,
    ) -> Result<Option<Receipt>, E>
    where
        E: From<Error> + Send,
        F: FnMut(&[Recorded]) -> Result<Vec<NewEvent>, E> + Send,
    {
        self.decide_as(scope, stream, snapshot, None, decide).await
    }

    /// Decides as [`EventStore::decide`], and appends as durably as asked for.
    ///
    /// # Errors
    /// As [`EventStore::decide`] and [`EventStore::append_with`].
    ///
    /// # Cancel safety
    /// A dropped call may have appended.
    pub async fn decide_with<E, F>(
        &self,
        scope: &Scope,
        stream: &StreamName,
        durability: Durability,
        decide: F,
    ) -> Result<Option<Receipt>, E>
    where
        E: From<Error> + Send,
        F: FnMut(&[Recorded]) -> Result<Vec<NewEvent>, E> + Send,
    {
        self.decide_as(scope, stream, Snapshot::NOTHING, Some(durability), decide).await
    }

    async fn decide_as<E, F>(
        &self,
        scope: &Scope,
        stream: &StreamName,
        snapshot: Snapshot,
        durability: Option<Durability>,
        mut decide: F,
    ) -> Result<Option<Receipt>, E>
    where
        E: From<Error> + Send,
        F: FnMut(&[Recorded]) -> Result<Vec<NewEvent>, E> + Send,
    {
        let shared = self.shared();
        let _turn = shared.turns.take(scope, stream).await;
        let mut history: Vec<Recorded> = Vec::new();
        let mut missed: Option<Box<Conflict>> = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(self.pause(attempt)).await;
            }
            let settled = match &missed {
                Some(_) => self.is_settled(scope).await?,
                None => false,
            };
            self.read_on(scope, stream, snapshot, &mut history).await?;
            let seen = history.last().map_or(snapshot, Snapshot::at).version;
            // Nothing more will become visible, and still the stream is further than its history.
            if let Some(conflict) = missed.take().filter(|conflict| settled && conflict.actual > seen) {
                let next = conflict.actual.saturating_add(1);
                return Err(history::hole_of(self, scope, stream, seen, next).await.into());
            }
            let events = decide(&history)?;
            if events.is_empty() {
                // No version is expected, so nothing else tells that later events were removed.
                return match history::removed_after(self, scope, stream, seen).await? {
                    Some(error) => Err(error.into()),
                    None => Ok(None),
                };
            }
            let expected = Expected::Exact(seen);
            match self.append_as(scope, stream, expected, events, durability).await {
                Ok(receipt) => return Ok(Some(receipt)),
                Err(Error::Conflict(conflict)) if attempt + 1 < ATTEMPTS_MAX => {
                    // Only what was appended is worth another look: a stream below its history stays there.
                    if conflict.actual < seen {
                        return Err(Error::Conflict(conflict).into());
                    }
                    missed = Some(conflict);
                }
                Err(Error::Unresolved { .. }) if attempt + 1 < ATTEMPTS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Overloaded { queue: 0 }.into())
    }

    async fn read_on(
        &self,
        scope: &Scope,
        stream: &StreamName,
        snapshot: Snapshot,
        history: &mut Vec<Recorded>,
    ) -> Result<(), Error> {
        let mut last = history.last().map_or(snapshot, Snapshot::at);
        let mut events = self.read(Query::scope(scope.clone()).stream(stream.clone()).after(last.position));
        while let Some(event) = events.next().await {
            let event = event?;
            if history.is_empty() {
                history::check_snapshot(self, scope, stream, snapshot, event.version).await?;
            }
            if event.version > last.version.saturating_add(1) {
                return Err(history::hole_of(self, scope, stream, last.version, event.version).await);
            }
            last = Snapshot::at(&event);
            history.push(event);
        }
        Ok(())
    }

    /// True when every event of the scope that was appended is visible.
    async fn is_settled(&self, scope: &Scope) -> Result<bool, Error> {
        let own = [scope.clone()];
        let hot = self.shared().hot().await?;
        let unresolved = hot.read_raw(DECIDE, move |conn| log::unresolved_of(conn, &own)).await?;
        Ok(unresolved.is_none())
    }

    /// Grows with the attempts; its random part keeps several processes from meeting again and again.
    fn pause(&self, attempt: u32) -> Duration {
        let longest = PAUSE_MIN.saturating_mul(1 << attempt.min(10)).min(PAUSE_MAX);
        let random = u32::try_from(self.shared().manager.next_ulid().random() % 1_000).unwrap_or(0);
        longest / 2 + longest / 2 * random / 1_000
    }
}
