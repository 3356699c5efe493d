//! Projections whose model lives in a database of the fleet: the position moves in the transaction of the model.

use sqlx::SqliteConnection;

use crate::consumer::ConsumerName;
use crate::error::Error;
use crate::event::Recorded;
use crate::position::Position;

const ADVANCE: &str = "INSERT INTO event_projections (consumer, pos) VALUES (?1, ?2) \
     ON CONFLICT (consumer) DO UPDATE SET pos = excluded.pos WHERE excluded.pos > event_projections.pos";
const GET: &str = "SELECT pos FROM event_projections WHERE consumer = ?1";

/// Decides in the caller's transaction whether an event is to be applied to the model kept in this database, and notes it as
/// applied: true exactly once for each event, whatever is delivered again, as long as events come in order and the model is
/// written in the same transaction. A transaction that rolls back takes the note with it.
///
/// # Errors
/// [`Error::Storage`]: the transaction must be rolled back.
///
/// # Cancel safety
/// Safe inside a write operation: it runs to its end.
pub async fn project_in(conn: &mut SqliteConnection, consumer: &ConsumerName, event: &Recorded) -> Result<bool, Error> {
    let done = sqlx::query(ADVANCE).bind(consumer.as_str()).bind(event.position.to_key()?).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

/// The last event a projection has applied in this database, `None` before its first. A consumer that begins
/// [`crate::StartAt::After`] it is not shown what the model holds already.
///
/// # Errors
/// [`Error::Storage`], [`Error::Corrupt`] when the row does not check.
///
/// # Cancel safety
/// Safe.
pub async fn projected_through(
    conn: &mut SqliteConnection,
    consumer: &ConsumerName,
) -> Result<Option<Position>, Error> {
    let found: Option<i64> = sqlx::query_scalar(GET).bind(consumer.as_str()).fetch_optional(conn).await?;
    let corrupt = || Error::corrupt(format!("event_projections {consumer}"), "its position is negative");
    found.map(|key| Position::from_key(key).ok_or_else(corrupt)).transpose()
}
