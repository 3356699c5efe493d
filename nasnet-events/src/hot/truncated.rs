//! The SQL of what was removed from the hot log.

use sqlx::SqliteConnection;

use crate::error::Error;
use crate::hot::log;
use crate::position::Position;
use crate::truncation::{RECORDS_MAX, Truncated, TruncatedBy};

const LIST: &str = "SELECT first_seq, last_seq, events, lost, by \
     FROM hot_truncated ORDER BY first_seq, id";
const UNSAVED: &str = "SELECT id, first_seq, last_seq, events, lost FROM hot_truncated \
     WHERE lost > 0 AND saved = 0 AND by = 'shed' ORDER BY id";
const SAVED: &str = "UPDATE hot_truncated SET saved = 1 WHERE id <= ?1 AND lost > 0";
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

/// The incarnation, and its removals that reach beyond `after`.
pub(crate) async fn list(conn: &mut SqliteConnection, after: Position) -> Result<(u32, Vec<Truncated>), Error> {
    let view = log::view(conn).await?;
    let found: Vec<(i64, i64, i64, i64, String)> = sqlx::query_as(LIST).fetch_all(conn).await?;
    let all = found.into_iter().map(|(first_seq, last_seq, events, lost, by)| {
        let by = if by == "shed" { TruncatedBy::Shed } else { TruncatedBy::Retention };
        truncated(view.epoch, (first_seq, last_seq), (events, lost), by)
    });
    Ok((view.epoch, all.filter(|removed| removed.through > after).collect()))
}

fn truncated(epoch: u32, (first, last): (i64, i64), (events, lost): (i64, i64), by: TruncatedBy) -> Truncated {
    Truncated {
        after: Position::new(epoch, first.cast_unsigned().saturating_sub(1)),
        through: Position::new(epoch, last.cast_unsigned()),
        events: events.cast_unsigned(),
        lost: lost.cast_unsigned(),
        by,
        scope: None,
    }
}

/// Removals of events that were to reach flash, not yet recorded where they outlive this file, and the last one's id.
pub(crate) async fn unsaved(conn: &mut SqliteConnection) -> Result<(i64, Vec<Truncated>), Error> {
    let found: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(UNSAVED).fetch_all(&mut *conn).await?;
    let Some(&(newest, ..)) = found.last() else { return Ok((0, Vec::new())) };
    let epoch = log::view(conn).await?.epoch;
    let all = found.into_iter().map(|(_, first_seq, last_seq, events, lost)| {
        truncated(epoch, (first_seq, last_seq), (events, lost), TruncatedBy::Shed)
    });
    Ok((newest, all.collect()))
}

/// Notes that removals up to an id are recorded on flash; what comes later does not join them.
pub(crate) async fn set_saved(conn: &mut SqliteConnection, newest: i64) -> Result<(), Error> {
    sqlx::query(SAVED).bind(newest).execute(conn).await?;
    Ok(())
}

const TOTALS: &str = "SELECT COALESCE(SUM(CASE WHEN by = 'shed' THEN events END), 0), \
     COALESCE(SUM(CASE WHEN by = 'retention' THEN events END), 0), COALESCE(SUM(lost), 0) FROM hot_truncated";

/// Events removed for want of room, because of their age, and those among them that were to reach flash.
pub(crate) async fn totals(conn: &mut SqliteConnection) -> Result<[u64; 3], Error> {
    let found: (i64, i64, i64) = sqlx::query_as(TOTALS).fetch_one(conn).await?;
    Ok([found.0, found.1, found.2].map(i64::cast_unsigned))
}
