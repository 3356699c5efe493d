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

/// Adds the newest mark.
pub(super) async fn add(conn: &mut SqliteConnection, mark: &AgeMark) -> Result<(), Error> {
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
