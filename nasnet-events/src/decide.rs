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
use crate::hot::log;
use crate::name::StreamName;
use crate::position::Position;
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
    /// `decide` may run several times and must not act by itself. Ids it chooses once, outside, make the whole call
    /// repeatable.
    ///
    /// # Errors
    /// What `decide` returns, nothing was appended; and those of [`EventStore::append`] and [`EventStore::read`], among
    /// them [`Error::Conflict`] when others were faster every time.
    ///
    /// # Cancel safety
    /// A dropped call may have appended.
    pub async fn decide<E, F>(&self, scope: &Scope, stream: &StreamName, decide: F) -> Result<Option<Receipt>, E>
    where
        E: From<Error> + Send,
        F: FnMut(&[Recorded]) -> Result<Vec<NewEvent>, E> + Send,
    {
        self.decide_as(scope, stream, None, decide).await
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
        self.decide_as(scope, stream, Some(durability), decide).await
    }

    async fn decide_as<E, F>(
        &self,
        scope: &Scope,
        stream: &StreamName,
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
        // Versions up to here are no more to be read: pruned, or lost with a hot tier.
        let mut unreadable = 0;
        let mut missed: Option<Box<Conflict>> = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(self.pause(attempt)).await;
            }
            let settled = match &missed {
                Some(_) => self.is_settled(scope).await?,
                None => false,
            };
            self.read_on(scope, stream, &mut history).await?;
            let seen = history.last().map_or(0, |event| event.version);
            // Nothing more will become visible, and still the stream is further than its history.
            if let Some(conflict) = missed.take().filter(|conflict| settled && conflict.actual > seen) {
                unreadable = conflict.actual;
            }
            let events = decide(&history)?;
            if events.is_empty() {
                return Ok(None);
            }
            let expected = Expected::Exact(seen.max(unreadable));
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

    async fn read_on(&self, scope: &Scope, stream: &StreamName, history: &mut Vec<Recorded>) -> Result<(), Error> {
        let after = history.last().map_or(Position::START, |event| event.position);
        let mut events = self.read(Query::scope(scope.clone()).stream(stream.clone()).after(after));
        while let Some(event) = events.next().await {
            history.push(event?);
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
