//! The SQL of what was removed from the hot log.

use sqlx::SqliteConnection;

use crate::error::Error;
use crate::position::Position;
use crate::truncation::{RECORDS_MAX, Truncated, TruncatedBy};

const LIST: &str = "SELECT (SELECT epoch FROM hot_meta WHERE one = 1), first_seq, last_seq, events, by \
     FROM hot_truncated ORDER BY first_seq, id";
const EXTEND: &str = "UPDATE hot_truncated SET first_seq = MIN(first_seq, ?1), last_seq = MAX(last_seq, ?2), \
     events = events + ?3, lost = lost + ?4 \
     WHERE id = (SELECT MAX(id) FROM hot_truncated WHERE by = ?5 AND saved = 0 AND (lost > 0) = (?4 > 0)) \
     AND first_seq <= ?2 + 1 AND last_seq >= ?1 - 1";
const ADD: &str = "INSERT INTO hot_truncated (first_seq, last_seq, events, lost, by) VALUES (?1, ?2, ?3, ?4, ?5)";
const JOIN_OLDEST: &str = "UPDATE hot_truncated SET \
     first_seq = MIN(first_seq, (SELECT first_seq FROM hot_truncated ORDER BY id LIMIT 1)), \
     last_seq = MAX(last_seq, (SELECT last_seq FROM hot_truncated ORDER BY id LIMIT 1)), \
     events = events + (SELECT events FROM hot_truncated ORDER BY id LIMIT 1), \
     lost = lost + (SELECT lost FROM hot_truncated ORDER BY id LIMIT 1), \
     saved = MIN(saved, (SELECT saved FROM hot_truncated ORDER BY id LIMIT 1)) \
     WHERE id = (SELECT id FROM hot_truncated ORDER BY id LIMIT 1 OFFSET 1) \
     AND (SELECT COUNT(*) FROM hot_truncated) > ?1";
const DROP_OLDEST: &str = "DELETE FROM hot_truncated WHERE id = (SELECT MIN(id) FROM hot_truncated) \
     AND (SELECT COUNT(*) FROM hot_truncated) > ?1";

/// Events removed from the hot log that no other tier is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) events: u64,
    /// Those of them that were to reach flash.
    pub(crate) lost: u64,
    /// Because of their age, not for want of room.
    pub(crate) expired: bool,
}

/// Notes a removal in the caller's transaction; neighbours become one record.
pub(crate) async fn note(conn: &mut SqliteConnection, removed: &Removed) -> Result<(), Error> {
    let by = if removed.expired { "retention" } else { "shed" };
    for (sql, is_extension) in [(EXTEND, true), (ADD, false)] {
        let done = sqlx::query(sql)
            .bind(removed.first_seq.cast_signed())
            .bind(removed.last_seq.cast_signed())
            .bind(removed.events.cast_signed())
            .bind(removed.lost.cast_signed())
            .bind(by)
            .execute(&mut *conn)
            .await?;
        if is_extension && done.rows_affected() > 0 {
            return Ok(());
        }
    }
    for sql in [JOIN_OLDEST, DROP_OLDEST] {
        sqlx::query(sql).bind(RECORDS_MAX).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Removals of this incarnation that reach beyond `after`.
pub(crate) async fn list(conn: &mut SqliteConnection, after: Position) -> Result<Vec<Truncated>, Error> {
    let found: Vec<(i64, i64, i64, i64, String)> = sqlx::query_as(LIST).fetch_all(conn).await?;
    let mut all = Vec::with_capacity(found.len());
    for (epoch, first_seq, last_seq, events, by) in found {
        let epoch = u32::try_from(epoch).map_err(|error| Error::corrupt("hot.db hot_meta", error))?;
        let through = Position::new(epoch, last_seq.cast_unsigned());
        if through > after {
            all.push(Truncated {
                after: Position::new(epoch, first_seq.cast_unsigned().saturating_sub(1)),
                through,
                events: events.cast_unsigned(),
                by: if by == "shed" { TruncatedBy::Shed } else { TruncatedBy::Retention },
                scope: None,
            });
        }
    }
    Ok(all)
}
