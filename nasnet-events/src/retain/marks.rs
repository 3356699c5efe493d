//! The SQL of the marks that ages are told by, in system.db.

use nasnet_dbmanager::BootId;
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::position::Position;
use crate::retain::age::AgeMark;

const LIST: &str = "SELECT pos, uptime_ms, boot, boottime_ms FROM event_ages ORDER BY number";
const ADD: &str = "INSERT INTO event_ages (pos, uptime_ms, boot, boottime_ms) VALUES (?1, ?2, ?3, ?4)";
/// When there are too many, every second one of the older half goes: the older something is, the less an hour matters.
const THIN: &str = "DELETE FROM event_ages WHERE (SELECT COUNT(*) FROM event_ages) > ?1 AND number IN \
     (SELECT number FROM (SELECT number, ROW_NUMBER() OVER (ORDER BY number) AS place FROM event_ages) \
     WHERE place <= ?1 / 2 AND place % 2 = 0)";
const REMOVE: &str = "DELETE FROM event_ages WHERE pos = ?1 AND boot = ?2 AND boottime_ms = ?3";
const MARKS_MAX: i64 = 256;

/// All marks, oldest first.
pub(super) async fn list(conn: &mut SqliteConnection) -> Result<Vec<AgeMark>, Error> {
    let found: Vec<(i64, i64, Vec<u8>, i64)> = sqlx::query_as(LIST).fetch_all(conn).await?;
    let mark = |(pos, uptime_ms, boot, boottime_ms): (i64, i64, Vec<u8>, i64)| {
        Some(AgeMark {
            position: Position::from_key(pos)?,
            uptime_ms: uptime_ms.cast_unsigned(),
            boot: BootId::from_bytes(boot.try_into().ok()?),
            boottime_ms: boottime_ms.cast_unsigned(),
        })
    };
    found
        .into_iter()
        .map(|found| mark(found).ok_or_else(|| Error::corrupt("system.db event_ages", "a mark is malformed")))
        .collect()
}

/// Adds the newest mark, in the place of another if one is given.
pub(super) async fn add(conn: &mut SqliteConnection, mark: &AgeMark, instead: Option<&AgeMark>) -> Result<(), Error> {
    if let Some(spare) = instead {
        sqlx::query(REMOVE)
            .bind(spare.position.to_key()?)
            .bind(spare.boot.as_bytes().as_slice())
            .bind(spare.boottime_ms.cast_signed())
            .execute(&mut *conn)
            .await?;
    }
    sqlx::query(ADD)
        .bind(mark.position.to_key()?)
        .bind(mark.uptime_ms.cast_signed())
        .bind(mark.boot.as_bytes().as_slice())
        .bind(mark.boottime_ms.cast_signed())
        .execute(&mut *conn)
        .await?;
    sqlx::query(THIN).bind(MARKS_MAX).execute(conn).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::name::{EventType, StreamName};
    use crate::options::EventOptions;
    use crate::place::Place;
    use crate::retain::age::Ages;
    use crate::store::EventStore;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn events_reach_thirty_days_on_a_machine_that_is_cut_off_every_five_hours() {
        let place = Place::new().await;
        let store = EventStore::open(&place.manager, EventOptions::default()).await.unwrap();
        let (stream, kind) = (StreamName::parse("s").unwrap(), EventType::parse("metric.updated").unwrap());
        for _ in 0..300 {
            let event = NewEvent::new(place.manager.next_ulid(), kind.clone(), &1).unwrap();
            store.append(&nasnet_dbmanager::Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
            for half_hours in [1, 1, 2, 4, 2] {
                store.mark_age_after(6 * HOUR).await.unwrap();
                place.clock.advance(HOUR / 2 * half_hours);
            }
            place.clock.reboot();
        }
        let cause = nasnet_dbmanager::Cause::new("test");
        let marks = place.manager.system().read(cause, |conn| Box::pin(list(conn))).await.unwrap();
        assert!(marks.len() <= 256, "{}", marks.len());
        let end = store.status().await.unwrap().end;
        let old = Ages::new(marks, &place.manager.now(), end).through(30 * 24 * HOUR);
        // Four hours of each boot count, and of the older marks every eighth or so is left.
        assert!((60..=121).contains(&old.seq), "{old} of {end}");
    }
}
