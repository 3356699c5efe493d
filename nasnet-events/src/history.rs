//! What was known at some time: the events of a stream up to a position or an instant, for folding.

use futures_core::Stream;
use futures_util::StreamExt;
use nasnet_dbmanager::{BootId, ClockQuality, Scope};

use crate::error::Error;
use crate::event::Recorded;
use crate::name::StreamName;
use crate::position::Position;
use crate::query::Query;
use crate::store::EventStore;

/// Up to where a history goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Up to a position, which is included.
    Position(Position),
    /// Up to an instant of the wall clock in milliseconds, which is included: through the last event whose clock was
    /// trusted and had not passed it, and through the events of the same boot after that which had not by the time since
    /// the boot. Events before the first trusted clock belong to whatever comes after them.
    WallMs(i64),
}

/// Reads the events of a stream up to a position or an instant, oldest first.
///
/// # Errors
/// [`Error::Storage`] when the place of an instant cannot be found.
///
/// # Cancel safety
/// Safe.
pub async fn events_until(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    until: Until,
) -> Result<impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static, Error> {
    let query = Query::scope(scope.clone()).stream(stream.clone());
    let last = match until {
        Until::Position(position) => position,
        Until::WallMs(wall_ms) => place_of(store, query.clone(), wall_ms).await?,
    };
    Ok(store.read(query.until(last)))
}

/// An event whose clock was not trusted.
struct Untrusted {
    position: Position,
    boot: BootId,
    boottime_ms: u64,
}

/// The position of the last event of a history up to an instant.
async fn place_of(store: &EventStore, query: Query, wall_ms: i64) -> Result<Position, Error> {
    let mut newest_first = store.read_stored(query.backwards());
    // Those after the event that was looked at last, newest first, up to the next trusted clock.
    let mut later: Vec<Untrusted> = Vec::new();
    while let Some(item) = newest_first.next().await {
        let event = match item {
            Ok(event) => event,
            // The reading of the history tells of it.
            Err(Error::Corrupt { .. } | Error::Unreadable { .. }) => continue,
            Err(error) => return Err(error),
        };
        if event.quality != ClockQuality::Synced {
            later.push(Untrusted { position: event.position, boot: event.boot, boottime_ms: event.boottime_ms });
        } else if event.wall_ms > wall_ms {
            later.clear();
        } else {
            return Ok(through(&event, &later, wall_ms));
        }
    }
    Ok(Position::START)
}

/// How far the untrusted events after `trusted` still belong to the history, by the time since their common boot.
fn through(trusted: &Recorded, later: &[Untrusted], wall_ms: i64) -> Position {
    let mut last = trusted.position;
    for event in later.iter().rev() {
        let since = i64::try_from(event.boottime_ms.saturating_sub(trusted.boottime_ms)).unwrap_or(i64::MAX);
        if event.boot != trusted.boot || trusted.wall_ms.saturating_add(since) > wall_ms {
            break;
        }
        last = event.position;
    }
    last
}
