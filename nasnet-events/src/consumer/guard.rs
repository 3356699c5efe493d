//! What consumers keep from being pruned.
//!
//! A guard stands at the *durable* position: what a consumer has acknowledged since lives in tmpfs, and after a power cut it
//! asks for the events again.

use std::time::Duration;

use nasnet_dbmanager::{BootId, Cause, Now};
use sqlx::SqliteConnection;

use crate::consumer::Filter;
use crate::error::Error;
use crate::position::Position;
use crate::shared::Shared;
use crate::store::EventStore;

const GUARDS: Cause = Cause::new("event-guards");

/// The position of a forwarder is that of its oldest blocked stream.
const SELECT: &str = "SELECT c.name, c.filter, \
     MIN(c.pos, COALESCE((SELECT MIN(b.pos) - 1 FROM event_blocked AS b WHERE b.consumer = c.name), c.pos)), \
     c.guard_max_age_ms, c.guard_bytes_max, c.moved_boot, c.moved_boottime_ms \
     FROM event_consumers AS c WHERE c.guard_max_age_ms IS NOT NULL ORDER BY c.name";

/// What was left out is held back as the rest is, of its scope alone.
const SELECT_LEFT: &str = "SELECT l.scope, c.name, c.filter, l.after_pos, c.guard_max_age_ms, c.guard_bytes_max, l.boot, \
     l.boottime_ms FROM event_left_out AS l JOIN event_consumers AS c ON c.name = l.consumer \
     WHERE c.guard_max_age_ms IS NOT NULL";

/// A consumer that holds events back from retention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Name of the consumer.
    pub consumer: String,
    /// Everything up to here may go, as far as this consumer is concerned.
    pub position: Position,
    /// What it wants: other events may go.
    pub filter: Filter,
    /// Longest time it may stand still.
    pub max_age: Duration,
    /// Most stored bytes it may hold back.
    pub bytes_max: u64,
    /// Boot in which the position moved last.
    pub moved_boot: BootId,
    /// Milliseconds since that boot.
    pub moved_boottime_ms: u64,
}

impl Guard {
    /// How long the guard has stood still, at least: time between two boots is not counted, since only the wall clock could
    /// tell, and that may have jumped.
    #[must_use]
    pub fn age(&self, now: &Now) -> Duration {
        let since_boot = Duration::from_millis(now.boottime_ms);
        now.age_of(self.moved_boot, self.moved_boottime_ms).unwrap_or(since_boot)
    }

    /// True when it has stood still for longer than it may.
    #[must_use]
    pub fn is_expired(&self, now: &Now) -> bool {
        self.age(now) > self.max_age
    }
}

type Found = (String, String, i64, i64, i64, Vec<u8>, i64);
type FoundLeft = (String, String, String, i64, i64, i64, Vec<u8>, i64);

fn decode((consumer, filter, pos, age, bytes, boot, boottime): Found) -> Result<Guard, Error> {
    let corrupt = |why: &str| Error::corrupt(format!("system.db event_consumers {consumer}"), why);
    Ok(Guard {
        position: Position::from_key(pos).ok_or_else(|| corrupt("its position is negative"))?,
        filter: serde_json::from_str(&filter).map_err(|error| corrupt(&error.to_string()))?,
        max_age: Duration::from_millis(age.cast_unsigned()),
        bytes_max: bytes.cast_unsigned(),
        moved_boot: BootId::from_bytes(boot.try_into().map_err(|_| corrupt("its boot is not 16 bytes long"))?),
        moved_boottime_ms: boottime.cast_unsigned(),
        consumer,
    })
}

async fn select(conn: &mut SqliteConnection) -> Result<Vec<Guard>, Error> {
    let found: Vec<Found> = sqlx::query_as(SELECT).fetch_all(&mut *conn).await?;
    let mut guards = found.into_iter().map(decode).collect::<Result<Vec<_>, Error>>()?;
    let found: Vec<FoundLeft> = sqlx::query_as(SELECT_LEFT).fetch_all(conn).await?;
    for (scope, found) in found.into_iter().map(|(scope, a, b, c, d, e, f, g)| (scope, (a, b, c, d, e, f, g))) {
        let mut guard = decode(found)?;
        let corrupt = |error| Error::corrupt(format!("system.db event_left_out {}", guard.consumer), error);
        guard.filter = guard.filter.clone().within(scope.parse().map_err(corrupt)?);
        guards.push(guard);
    }
    guards.sort_by(|a, b| (&a.consumer, a.position).cmp(&(&b.consumer, b.position)));
    Ok(guards)
}

/// The guards of all consumers of the fleet, by name.
pub(crate) async fn guards(shared: &Shared) -> Result<Vec<Guard>, Error> {
    shared.manager.system().read(GUARDS, |conn| Box::pin(select(conn))).await
}

impl EventStore {
    /// The guards of all consumers, by name: what keeps events from being pruned. One that had to leave a scope out has a
    /// second guard for it.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be read, [`Error::Corrupt`] when a consumer's row does not check.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn guards(&self) -> Result<Vec<Guard>, Error> {
        guards(self.shared()).await
    }
}
