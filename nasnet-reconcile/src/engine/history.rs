//! What a resource was before.

use futures_util::TryStreamExt;
use nasnet_dbmanager::{RouterId, Scope};
use nasnet_events::Position;
use nasnet_events::history::{Until, events_until};
use nasnet_state::history::{self, ResourceAt};
use nasnet_state::{ChangeEvent, Error as StateError};
use ulid::Ulid;

use super::Reconciler;
use crate::error::Error;
use crate::merge::resource_stream;

/// Up to when changes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Up to and including a position of the event store.
    Position(Position),
    /// Before a position: what the event there changed is left out.
    Before(Position),
    /// Up to a moment of the wall clock. Order is by position; the first later event ends the reading.
    WallMs(i64),
    /// All of them.
    Now,
}

impl Reconciler {
    /// Tells what a resource was, by folding its events from whatever tier they are in. `None` if it did not exist yet.
    ///
    /// # Errors
    /// [`Error::Events`], also when the history goes back beyond the horizon of retention; [`Error::State`] when the events
    /// do not continue each other. A guess is never returned.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn history_at(
        &self,
        router: &RouterId,
        uid: Ulid,
        when: When,
    ) -> Result<Option<ResourceAt<Position>>, Error> {
        let changes = self.changes(router, uid).await?;
        let counts = |position: &Position, wall_ms: i64| match when {
            When::Position(bound) => *position <= bound,
            When::Before(bound) => *position < bound,
            When::WallMs(bound) => wall_ms <= bound,
            When::Now => true,
        };
        let changes = changes.into_iter().take_while(|(position, wall_ms, _)| counts(position, *wall_ms));
        Ok(history::fold(changes.map(|(position, _, change)| (position, change)))?)
    }

    /// Returns every change of a resource with its position and the wall clock's reading, oldest first.
    ///
    /// # Errors
    /// [`Error::Events`] when an event cannot be read, or retention has removed a part of the history
    /// ([`nasnet_events::Error::BeyondHorizon`]); [`Error::State`] when one is not a change.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changes(&self, router: &RouterId, uid: Ulid) -> Result<Vec<(Position, i64, ChangeEvent)>, Error> {
        let (scope, stream) = (Scope::Router(router.clone()), resource_stream(uid)?);
        let recorded = events_until(&self.events, &scope, &stream, Until::Position(Position::END)).await?;
        let recorded: Vec<_> = recorded.try_collect().await?;
        let mut changes = Vec::with_capacity(recorded.len());
        for event in recorded {
            let change: ChangeEvent = event.body_as().map_err(|error| StateError::BrokenHistory {
                uid,
                detail: format!("the event at {} is not a change: {error}", event.position),
            })?;
            changes.push((event.position, event.wall_ms, change));
        }
        Ok(changes)
    }
}
