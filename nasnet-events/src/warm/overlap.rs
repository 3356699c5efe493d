//! Whether a database really has the events that its newest segment lies behind. Another process may have flushed them, or
//! this one before it died; but when a number of an incarnation is used twice, others stand in their place.

use std::collections::HashSet;

use nasnet_dbmanager::{Annexes, Scope};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::position::Position;
use crate::warm::segment::{self, Lane, Tail};

/// Segments looked at by one statement.
const SEGMENTS: u32 = 16;

const RETAINED: &str = "SELECT through_pos FROM event_retained WHERE what = 0";

/// Checks that events up to the end of the newest segment are in segments, or were removed by retention. They ascend. A
/// segment that cannot be read is believed to hold what it says.
pub(crate) async fn check(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    tail: &Tail,
    events: &[Recorded],
) -> Result<(), Error> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
    let others = |why: String| Err(Error::corrupt(format!("{scope} event_segments"), why));
    if tail.through.epoch > last.position.epoch {
        return others(format!("they reach to {}, later than {} of the hot tier in use", tail.through, last.position));
    }
    let retained: Option<i64> = sqlx::query_scalar(RETAINED).fetch_optional(&mut *conn).await?;
    let retained = retained.and_then(Position::from_key).unwrap_or(Position::START);
    let mut missing: HashSet<(Position, Ulid)> =
        events.iter().filter(|event| event.position > retained).map(|event| (event.position, event.id)).collect();
    let mut after = first.position.before().max(retained);
    while !missing.is_empty() {
        let range = (after, last.position);
        let metas = segment::metas(conn, scope, Lane::Flushed, range, Order::Forwards, SEGMENTS).await?;
        let Some(reached) = metas.last().map(|meta| meta.last) else { break };
        after = reached;
        for meta in metas {
            match segment::events(conn, annexes, scope, &meta).await {
                Ok(found) => {
                    for event in found {
                        missing.remove(&(event.position, event.id));
                    }
                }
                Err(error) if error.is_of_one_segment() => {
                    missing.retain(|(position, _)| *position < meta.first || *position > meta.last);
                }
                Err(error) => return Err(error),
            }
        }
    }
    match missing.iter().map(|(position, _)| *position).min() {
        None => Ok(()),
        Some(position) => others(format!("the event at {position} is not among them, and other events come after it")),
    }
}
