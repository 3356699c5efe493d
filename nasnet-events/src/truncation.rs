//! What was removed although its consumer might still have wanted it, and why.

use std::sync::Arc;

use nasnet_dbmanager::{Cause, Database, Scope};
use sqlx::SqliteConnection;

use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::truncated::{self, Closed};
use crate::observe;
use crate::position::Position;
use crate::shared::Shared;
use crate::store::EventStore;

const READ: Cause = Cause::new("event-truncations");
const SAVE: Cause = Cause::new("event-truncations").critical();

/// Records kept of one database; two become one when there are more.
const RECORDS_MAX: usize = 256;

/// A stretch of positions from which events were removed. Other events of the stretch may still be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// Everything up to here is untouched by this removal.
    pub after: Position,
    /// The last position removed.
    pub through: Position,
    /// Number of events removed between the two; under [`TruncatedBy::Restored`] there may have been more, or none.
    pub events: u64,
    /// Those of them that were to reach flash and did not.
    pub lost: u64,
    /// What removed them.
    pub by: TruncatedBy,
    /// The scope they belonged to, `None` when they were of several.
    pub scope: Option<Scope>,
}

/// Why events were removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TruncatedBy {
    /// The hot tier was full.
    Shed,
    /// Their router was retired or purged. Those that had not reached flash are lost, nothing takes them any more; the
    /// others went with its database, and are there again should it be reinstated. As long as the hot tier has them they
    /// are shown all the same.
    Retired,
    /// The database of their scope is an older one: it came from a backup, or was put in its place from outside. Counted
    /// are those that could not be brought back because others have their versions; nobody knows what else there was.
    Restored,
    /// Their time was over.
    Retention,
    /// Their time was over and a consumer that still wanted them had waited for longer than its guard allows.
    Guard {
        /// The consumer.
        consumer: String,
    },
}

const LIST: &str = "SELECT after_pos, through_pos, events, lost, by, consumer, scope FROM event_truncated \
     WHERE through_pos > ?1 ORDER BY after_pos, id";
const EXTEND: &str = "UPDATE event_truncated SET after_pos = MIN(after_pos, ?1), \
     through_pos = MAX(through_pos, ?2), events = events + ?3, lost = lost + ?7 \
     WHERE id = (SELECT MAX(id) FROM event_truncated) AND through_pos >= ?1 AND by = ?4 AND consumer IS ?5 \
     AND scope IS ?6";
/// Which removals of the hot tier are recorded here already.
const RECORDED: &str = "SELECT pos FROM event_cursors WHERE name = 'truncations'";
const RECORD: &str = "INSERT INTO event_cursors (name, pos) VALUES ('truncations', ?1) \
     ON CONFLICT (name) DO UPDATE SET pos = MAX(pos, excluded.pos)";
const IS_GIVEN_UP: &str = "SELECT COUNT(*) FROM event_truncated \
     WHERE by = 'retired' AND scope = ?3 AND after_pos <= ?1 AND through_pos >= ?2";
const IS_RESTORED: &str = "SELECT COUNT(*) FROM event_truncated \
     WHERE by = 'restored' AND after_pos <= ?1 AND through_pos >= ?2";
const RETURNED: &str = "DELETE FROM event_truncated WHERE by = 'left' AND scope = ?1";
const RETIRED: &str = "SELECT COALESCE(SUM(events), 0), COALESCE(SUM(lost), 0) FROM event_truncated \
     WHERE by IN ('left', 'retired')";
const ADD: &str = "INSERT INTO event_truncated (after_pos, through_pos, events, by, consumer, scope, lost) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const KINDS: &str = "SELECT id, by, consumer FROM event_truncated ORDER BY id";
const JOIN: &str = "UPDATE event_truncated SET after_pos = MIN(event_truncated.after_pos, older.after_pos), \
     through_pos = MAX(event_truncated.through_pos, older.through_pos), \
     events = event_truncated.events + older.events, lost = event_truncated.lost + older.lost, \
     scope = CASE WHEN event_truncated.scope IS older.scope THEN older.scope END \
     FROM (SELECT * FROM event_truncated WHERE id = ?1) AS older WHERE event_truncated.id = ?2";
const JOINED: &str = "DELETE FROM event_truncated WHERE id = ?1";

/// Which two of too many records become one: of those of one kind the oldest two, the kinds in their order. Where each is of a
/// kind of its own, it is the two oldest. `None` while there are not too many. Pure.
pub(crate) fn surplus<K: Ord>(records: &[(i64, K)]) -> Option<(i64, i64)> {
    if records.len() <= RECORDS_MAX {
        return None;
    }
    let mut by_kind: Vec<&(i64, K)> = records.iter().collect();
    by_kind.sort_by(|(id, kind), (other_id, other)| kind.cmp(other).then(id.cmp(other_id)));
    let alike = by_kind.windows(2).find(|pair| pair[0].1 == pair[1].1).map(|pair| (pair[0].0, pair[1].0));
    alike.or_else(|| Some((records.first()?.0, records.get(1)?.0)))
}

/// Adds a record to the database of a scope, in the caller's transaction: one that continues the newest is joined to it.
pub(crate) async fn note(conn: &mut SqliteConnection, truncated: &Truncated) -> Result<(), Error> {
    let (by, consumer) = match &truncated.by {
        TruncatedBy::Shed => ("shed", None),
        TruncatedBy::Retired if truncated.lost == 0 => ("left", None),
        TruncatedBy::Retired => ("retired", None),
        TruncatedBy::Restored => ("restored", None),
        TruncatedBy::Retention => ("retention", None),
        TruncatedBy::Guard { consumer } => ("guard", Some(consumer.as_str())),
    };
    for (sql, is_extension) in [(EXTEND, true), (ADD, false)] {
        let done = sqlx::query(sql)
            .bind(truncated.after.to_key()?)
            .bind(truncated.through.to_key()?)
            .bind(truncated.events.cast_signed())
            .bind(by)
            .bind(consumer)
            .bind(truncated.scope.as_ref().map(Scope::as_str))
            .bind(truncated.lost.cast_signed())
            .execute(&mut *conn)
            .await?;
        if is_extension && done.rows_affected() > 0 {
            return Ok(());
        }
    }
    let kinds: Vec<(i64, String, Option<String>)> = sqlx::query_as(KINDS).fetch_all(&mut *conn).await?;
    let kinds: Vec<_> = kinds.into_iter().map(|(id, by, consumer)| (id, (by, consumer))).collect();
    if let Some((older, newer)) = surplus(&kinds) {
        sqlx::query(JOIN).bind(older).bind(newer).execute(&mut *conn).await?;
        sqlx::query(JOINED).bind(older).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Adds a record of what an older database lacks, in the caller's transaction, unless it has one.
pub(crate) async fn note_restored(
    conn: &mut SqliteConnection,
    after: Position,
    through: Position,
    events: u64,
) -> Result<(), Error> {
    let query = sqlx::query_scalar(IS_RESTORED).bind(after.to_key()?).bind(through.to_key()?);
    let known: i64 = query.fetch_one(&mut *conn).await?;
    if known > 0 {
        return Ok(());
    }
    note(conn, &Truncated { after, through, events, lost: 0, by: TruncatedBy::Restored, scope: None }).await
}

/// Records in system.db what a router takes along that had reached flash, in the caller's transaction; `events` is 0 when
/// that is unknown. It may have been taken back since it went the last time.
pub(crate) async fn note_left(
    conn: &mut SqliteConnection,
    scope: Scope,
    (after, through): (Position, Position),
    events: u64,
) -> Result<(), Error> {
    sqlx::query(RETURNED).bind(scope.as_str()).execute(&mut *conn).await?;
    let (by, scope) = (TruncatedBy::Retired, Some(scope));
    note(conn, &Truncated { after, through, events, lost: 0, by, scope }).await
}

/// Events that went with routers which are gone, and those of them that had not reached flash.
pub(crate) async fn retired(conn: &mut SqliteConnection) -> Result<(u64, u64), Error> {
    let found: (i64, i64) = sqlx::query_as(RETIRED).fetch_one(conn).await?;
    Ok((found.0.cast_unsigned(), found.1.cast_unsigned()))
}

/// The records of one scope's database that reach beyond `after`.
pub(crate) async fn list(conn: &mut SqliteConnection, after: Position) -> Result<Vec<Truncated>, Error> {
    type Found = (i64, i64, i64, i64, String, Option<String>, Option<String>);
    let found: Vec<Found> = sqlx::query_as(LIST).bind(after.to_key_clamped()).fetch_all(conn).await?;
    found
        .into_iter()
        .map(|(after, through, events, lost, by, consumer, scope)| {
            let corrupt = |why: &str| Error::corrupt("event_truncated", why);
            let by = match (by.as_str(), consumer) {
                ("shed", _) => TruncatedBy::Shed,
                ("retired" | "left", _) => TruncatedBy::Retired,
                ("restored", _) => TruncatedBy::Restored,
                ("retention", _) => TruncatedBy::Retention,
                ("guard", Some(consumer)) => TruncatedBy::Guard { consumer },
                _ => return Err(corrupt("unknown cause")),
            };
            Ok(Truncated {
                after: Position::from_key(after).ok_or_else(|| corrupt("negative key"))?,
                through: Position::from_key(through).ok_or_else(|| corrupt("negative key"))?,
                events: events.cast_unsigned(),
                lost: lost.cast_unsigned(),
                by,
                scope: scope
                    .map(|scope| scope.parse().map_err(|error| Error::corrupt("event_truncated scope", error)))
                    .transpose()?,
            })
        })
        .collect()
}

/// What was found out about removals.
pub(crate) struct Removals {
    /// Oldest first.
    pub(crate) found: Vec<Truncated>,
    /// The databases that could not be asked: whoever passes over them passes over what they would have told.
    pub(crate) failed: Vec<(Scope, Error)>,
}

/// What was removed above a position, of some scopes and of the hot tier, which is of all scopes.
pub(crate) async fn since_of(shared: &Shared, scopes: &[Scope], after: Position) -> Result<Removals, Error> {
    let (epoch, mut found) =
        shared.hot().await?.read(READ, move |conn| Box::pin(async move { truncated::list(conn, after).await })).await?;
    let mut failed = Vec::new();
    let system = [Scope::System];
    // Those of hot tiers that are gone, and of routers that are, are in system.db, whose events they do not concern. While the
    // hot tier in use has all that is asked for, it has what such a router took along, too.
    let is_all_hot = scopes.is_empty() && after.epoch >= epoch;
    let of_system = if scopes.contains(&Scope::System) || is_all_hot { &[][..] } else { &system[..] };
    for scope in scopes.iter().chain(of_system) {
        match list_of(shared, scope, after).await {
            Ok(listed) => {
                for mut truncated in listed {
                    match truncated.by {
                        // The hot tier in use tells its own.
                        TruncatedBy::Shed if truncated.through.epoch == epoch => continue,
                        // Without a scope they are of several.
                        TruncatedBy::Shed | TruncatedBy::Retired => {}
                        _ if of_system.contains(scope) => continue,
                        _ => {
                            truncated.scope.get_or_insert_with(|| scope.clone());
                        }
                    }
                    found.push(truncated);
                }
            }
            Err(error) => failed.push((scope.clone(), error)),
        }
    }
    found.sort_by_key(|truncated| (truncated.after, truncated.through));
    Ok(Removals { found, failed })
}

/// The records of one scope. A router that is gone has none: what it took along is in system.db.
async fn list_of(shared: &Shared, scope: &Scope, after: Position) -> Result<Vec<Truncated>, Error> {
    match shared.manager.scope(scope).await {
        Ok(database) => database.read(READ, move |conn| Box::pin(async move { list(conn, after).await })).await,
        Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Records in system.db which events of the hot tier were given up for want of room before they reached flash, before
/// a flush claims that everything up to them is safe: the record outlives the hot tier.
pub(crate) async fn save(shared: &Shared, hot: &Database) -> Result<(), Error> {
    if !hot.read(READ, |conn| Box::pin(truncated::is_any_unsaved(conn))).await? {
        return Ok(());
    }
    let closed = Arc::new(hot.write(SAVE, |conn| Box::pin(truncated::close(conn))).await?);
    let written = Arc::clone(&closed);
    shared
        .manager
        .system()
        .write(SAVE, move |conn| {
            Box::pin(async move {
                let recorded: Option<i64> = sqlx::query_scalar(RECORDED).fetch_optional(&mut *conn).await?;
                let recorded = recorded.and_then(Position::from_key).unwrap_or(Position::START);
                // A crash may have come between this record and the note of it in the hot tier.
                for Closed { truncated, mark, .. } in written.iter().filter(|closed| closed.mark > recorded) {
                    note(conn, truncated).await?;
                    sqlx::query(RECORD).bind(mark.to_key()?).execute(&mut *conn).await?;
                }
                Ok::<_, Error>(())
            })
        })
        .await?;
    hot.write(SAVE, move |conn| Box::pin(async move { truncated::set_saved(conn, &closed).await })).await
}

/// Records in system.db that events of a router that exists no more will never reach flash, and returns how many of them
/// were not recorded yet.
pub(crate) async fn give_up(shared: &Shared, scope: &Scope, events: &[Recorded]) -> Result<u64, Error> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(0) };
    let count = events.len() as u64;
    let record = Truncated {
        after: first.position.before(),
        through: last.position,
        events: count,
        lost: count,
        by: TruncatedBy::Retired,
        scope: Some(scope.clone()),
    };
    let is_new = shared
        .manager
        .system()
        .write(SAVE, move |conn| {
            Box::pin(async move {
                // A crash may have come between this record and the note in the hot tier that the flush is past them.
                let known: i64 = sqlx::query_scalar(IS_GIVEN_UP)
                    .bind(record.after.to_key()?)
                    .bind(record.through.to_key()?)
                    .bind(record.scope.as_ref().map(Scope::as_str))
                    .fetch_one(&mut *conn)
                    .await?;
                if known == 0 {
                    note(conn, &record).await?;
                }
                Ok::<_, Error>(known == 0)
            })
        })
        .await?;
    if !is_new {
        return Ok(0);
    }
    observe::given_up(count);
    tracing::warn!(%scope, events = count, "events of a router that exists no more never reached flash");
    Ok(count)
}

impl EventStore {
    /// What was removed above a position although somebody may still have wanted it, of all scopes, oldest first: events
    /// given up for want of room, and those whose time was over.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db or the registry cannot be read. A scope whose database cannot be read is left out:
    /// its events cannot be read either.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn truncated(&self, after: Position) -> Result<Vec<Truncated>, Error> {
        let scopes = epoch::scopes(&self.shared().manager).await?;
        let Removals { found, failed } = since_of(self.shared(), &scopes, after).await?;
        for (scope, error) in failed {
            tracing::warn!(%scope, %error, "what was removed from it is unknown");
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_of_one_kind_become_one_and_never_the_newest_goes(kinds in prop::collection::vec(0..300_u16, 0..300)) {
            let records: Vec<(i64, u16)> = (1..).zip(kinds).collect();
            let Some((older, newer)) = surplus(&records) else {
                prop_assert!(records.len() <= RECORDS_MAX);
                return Ok(());
            };
            prop_assert!(records.len() > RECORDS_MAX && older < newer);
            let kind = |wanted: i64| records.iter().find(|(id, _)| *id == wanted).unwrap().1;
            let of = |wanted: u16| records.iter().filter(|(_, kind)| *kind == wanted).count();
            if kind(older) == kind(newer) {
                let first = records.iter().map(|(_, kind)| *kind).filter(|kind| of(*kind) > 1).min();
                prop_assert_eq!(first, Some(kind(older)));
            } else {
                prop_assert!(records.iter().all(|(_, kind)| of(*kind) == 1));
                prop_assert_eq!((older, newer), (1, 2));
            }
        }
    }
}
