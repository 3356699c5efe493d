//! The SQL of what was removed from the hot log.

use sqlx::SqliteConnection;

use crate::error::Error;
use crate::hot::log;
use crate::position::Position;
use crate::truncation::{Truncated, TruncatedBy, surplus};

const LIST: &str = "SELECT first_seq, last_seq, events, lost, by \
     FROM hot_truncated ORDER BY first_seq, id";
const UNSAVED: &str = "SELECT COUNT(*) FROM hot_truncated WHERE lost > 0 AND saved < 2 AND by = 'shed'";
const IS_NOTED: &str =
    "SELECT 1 FROM hot_truncated WHERE lost > 0 AND by = 'shed' AND first_seq <= ?1 AND last_seq >= ?2";
const CLOSE: &str = "UPDATE hot_truncated SET saved = 1 WHERE lost > 0 AND saved = 0 AND by = 'shed'";
const CLOSED: &str = "SELECT id, first_seq, last_seq, events, lost FROM hot_truncated \
     WHERE lost > 0 AND saved = 1 AND by = 'shed' ORDER BY id";
const SAVED: &str = "UPDATE hot_truncated SET saved = 2 WHERE saved = 1 \
     AND id = ?1 AND first_seq = ?2 AND last_seq = ?3 AND events = ?4 AND lost = ?5";
const EXTEND: &str = "UPDATE hot_truncated SET first_seq = MIN(first_seq, ?1), last_seq = MAX(last_seq, ?2), \
     events = events + ?3, lost = lost + ?4 \
     WHERE id = (SELECT MAX(id) FROM hot_truncated WHERE by = ?5 AND saved = 0 AND (lost > 0) = (?4 > 0)) \
     AND first_seq <= ?2 + 1 AND last_seq >= ?1 - 1";
const ADD: &str = "INSERT INTO hot_truncated (first_seq, last_seq, events, lost, by) VALUES (?1, ?2, ?3, ?4, ?5)";
const KINDS: &str = "SELECT id, by, lost > 0, saved FROM hot_truncated ORDER BY id";
const JOIN: &str = "UPDATE hot_truncated SET first_seq = MIN(hot_truncated.first_seq, older.first_seq), \
     last_seq = MAX(hot_truncated.last_seq, older.last_seq), events = hot_truncated.events + older.events, \
     lost = hot_truncated.lost + older.lost \
     FROM (SELECT * FROM hot_truncated WHERE id = ?1) AS older WHERE hot_truncated.id = ?2";
const JOINED: &str = "DELETE FROM hot_truncated WHERE id = ?1";

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
    let kinds: Vec<(i64, Kind)> = sqlx::query_as(KINDS)
        .fetch_all(&mut *conn)
        .await?
        .into_iter()
        .map(|(id, by, lost, saved): (i64, String, bool, i64)| (id, (saved == 1, lost, by, saved)))
        .collect();
    if let Some((older, newer)) = surplus(&kinds) {
        sqlx::query(JOIN).bind(older).bind(newer).execute(&mut *conn).await?;
        sqlx::query(JOINED).bind(older).execute(&mut *conn).await?;
    }
    Ok(())
}

/// What two records must have in common to become one, so that each event stays what it was counted as; the first to be
/// joined come first. Those that are just being recorded on flash are left alone as long as there are others.
type Kind = (bool, bool, String, i64);

/// Notes rows that cannot be read and never reach flash, in the caller's transaction. Whatever they held counts as lost: of
/// which class it was nobody can tell.
pub(crate) async fn note_damaged(conn: &mut SqliteConnection, rows: &[(u64, u64)]) -> Result<(), Error> {
    for (first_seq, last_seq) in rows.iter().copied() {
        let covering = sqlx::query(IS_NOTED).bind(first_seq.cast_signed()).bind(last_seq.cast_signed());
        // A crash may have come between this note and that of how far the flush had got.
        if covering.fetch_optional(&mut *conn).await?.is_none() {
            let events = last_seq - first_seq + 1;
            note(&mut *conn, &Removed { first_seq, last_seq, events, lost: events, expired: false }).await?;
        }
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

/// A removal of events that were to reach flash, which is about to be recorded where it outlives this file.
pub(crate) struct Closed {
    key: (i64, i64, i64, i64, i64),
    pub(crate) truncated: Truncated,
    /// Those recorded before it have lower ones: the number of the record, in its incarnation.
    pub(crate) mark: Position,
}

/// True when some removals of events that were to reach flash are not recorded there.
pub(crate) async fn is_any_unsaved(conn: &mut SqliteConnection) -> Result<bool, Error> {
    let found: i64 = sqlx::query_scalar(UNSAVED).fetch_one(conn).await?;
    Ok(found > 0)
}

/// The removals that are not recorded on flash yet, in the caller's transaction: from now on later ones do not join them, so
/// that what is recorded is all of what is noted as recorded.
pub(crate) async fn close(conn: &mut SqliteConnection) -> Result<Vec<Closed>, Error> {
    sqlx::query(CLOSE).execute(&mut *conn).await?;
    let found: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(CLOSED).fetch_all(&mut *conn).await?;
    let epoch = log::view(conn).await?.epoch;
    let all = found.into_iter().map(|key| {
        let (id, first_seq, last_seq, events, lost) = key;
        Closed {
            key,
            truncated: truncated(epoch, (first_seq, last_seq), (events, lost), TruncatedBy::Shed),
            mark: Position::new(epoch, id.cast_unsigned()),
        }
    });
    Ok(all.collect())
}

/// Notes that removals are recorded on flash. One that was joined with another meanwhile is recorded again.
pub(crate) async fn set_saved(conn: &mut SqliteConnection, saved: &[Closed]) -> Result<(), Error> {
    for Closed { key: (id, first_seq, last_seq, events, lost), .. } in saved {
        sqlx::query(SAVED).bind(id).bind(first_seq).bind(last_seq).bind(events).bind(lost).execute(&mut *conn).await?;
    }
    Ok(())
}

const TOTALS: &str = "SELECT COALESCE(SUM(CASE WHEN by = 'shed' THEN events END), 0), \
     COALESCE(SUM(CASE WHEN by = 'retention' THEN events END), 0), COALESCE(SUM(lost), 0) FROM hot_truncated";

/// Events removed for want of room, because of their age, and those among them that were to reach flash.
pub(crate) async fn totals(conn: &mut SqliteConnection) -> Result<[u64; 3], Error> {
    let found: (i64, i64, i64) = sqlx::query_as(TOTALS).fetch_one(conn).await?;
    Ok([found.0, found.1, found.2].map(i64::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{Cause, DbManager, Options};

    use super::*;

    async fn on_hot<T: Send + 'static>(
        manager: &DbManager,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> nasnet_dbmanager::BoxFuture<'c, Result<T, Error>>
        + Send
        + 'static,
    ) -> T {
        manager.hot().write(Cause::new("test"), work).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_removed_while_removals_are_being_recorded_is_recorded_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
        let manager = DbManager::open(options.schemas(crate::schema_sets())).await.unwrap();
        let store = crate::EventStore::open(&manager, crate::EventOptions::default()).await.unwrap();
        let lost = |first_seq, last_seq| {
            let events = last_seq - first_seq + 1;
            Removed { first_seq, last_seq, events, lost: events, expired: false }
        };
        for removed in [lost(1, 3), lost(4, 5)] {
            on_hot(&manager, move |conn| Box::pin(async move { note(conn, &removed).await })).await;
        }
        let first = on_hot(&manager, |conn| Box::pin(close(conn))).await;
        let [closed] = &first[..] else { panic!("neighbours are one record") };
        assert_eq!((closed.truncated.through.seq, closed.truncated.lost), (5, 5));
        // The next neighbour comes before the record is on flash.
        on_hot(&manager, move |conn| Box::pin(async move { note(conn, &lost(6, 9)).await })).await;
        on_hot(&manager, move |conn| Box::pin(async move { set_saved(conn, &first).await })).await;
        assert!(on_hot(&manager, |conn| Box::pin(is_any_unsaved(conn))).await);
        let second = on_hot(&manager, |conn| Box::pin(close(conn))).await;
        let told: Vec<(u64, u64)> =
            second.iter().map(|closed| (closed.truncated.through.seq, closed.truncated.lost)).collect();
        assert_eq!(told, [(9, 4)], "all of what was lost, and each event once");
        on_hot(&manager, move |conn| Box::pin(async move { set_saved(conn, &second).await })).await;
        assert!(!on_hot(&manager, |conn| Box::pin(is_any_unsaved(conn))).await);
        store.shutdown().await.unwrap();
    }

    /// Many removals of what may go anyway do not change what is told of a loss, here and on flash.
    #[tokio::test]
    async fn a_loss_stays_what_it_was_however_many_removals_follow() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
        let manager = DbManager::open(options.schemas(crate::schema_sets())).await.unwrap();
        let store = crate::EventStore::open(&manager, crate::EventOptions::default()).await.unwrap();
        let removed = |seq: u64, lost: u64, expired: bool| Removed {
            first_seq: seq,
            last_seq: seq + 9,
            events: 10,
            lost,
            expired,
        };
        let save = async || crate::truncation::save(store.shared(), &manager.hot()).await.unwrap();
        // The first is on flash before the others come, the second is not.
        on_hot(&manager, move |conn| Box::pin(async move { note(conn, &removed(1, 10, false)).await })).await;
        save().await;
        on_hot(&manager, move |conn| Box::pin(async move { note(conn, &removed(101, 10, false)).await })).await;
        on_hot(&manager, move |conn| {
            Box::pin(async move {
                for number in 2..600 {
                    note(&mut *conn, &removed(number * 100 + 1, 0, number % 2 == 0)).await?;
                }
                Ok(())
            })
        })
        .await;
        for number in 600..640 {
            save().await;
            let seq = number * 100 + 1;
            on_hot(&manager, move |conn| Box::pin(async move { note(conn, &removed(seq, 0, false)).await })).await;
        }
        let counted = on_hot(&manager, |conn| Box::pin(totals(conn))).await;
        assert_eq!(counted, [20 + 10 * (299 + 40), 10 * 299, 20], "shed, expired and lost");
        let (_, here) = on_hot(&manager, |conn| Box::pin(list(conn, Position::START))).await;
        assert_eq!(here.len(), 256);
        let ends = |told: &[Truncated]| -> Vec<(u64, u64, u64)> {
            let losses = told.iter().filter(|told| told.lost > 0);
            losses.map(|told| (told.after.seq, told.through.seq, told.lost)).collect()
        };
        assert_eq!(ends(&here), [(0, 10, 10), (100, 110, 10)]);
        let on_flash = manager.system().write(Cause::new("test"), |conn| {
            Box::pin(async move { crate::truncation::list(conn, Position::START).await })
        });
        assert_eq!(ends(&on_flash.await.unwrap()), [(0, 10, 10), (100, 110, 10)], "each once");
        store.shutdown().await.unwrap();
    }
}
