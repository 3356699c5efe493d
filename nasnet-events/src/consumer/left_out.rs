//! What a consumer of several scopes was not shown because the database of one could not be read.

use nasnet_dbmanager::{Cause, Now, Scope};
use sqlx::SqliteConnection;

use crate::consumer::rows::Identity;
use crate::consumer::{ConsumerName, Filter};
use crate::error::Error;
use crate::position::Position;
use crate::query::Query;
use crate::store::EventStore;

const LEFT_OUT: Cause = Cause::new("event-left-out");

const LIST: &str =
    "SELECT scope, after_pos, through_pos, why FROM event_left_out WHERE consumer = ?1 ORDER BY after_pos, scope";
const ADD: &str = "INSERT INTO event_left_out (consumer, scope, after_pos, through_pos, why, boot, boottime_ms) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
     ON CONFLICT (consumer, scope) DO UPDATE SET after_pos = MIN(after_pos, excluded.after_pos), \
     through_pos = MAX(through_pos, excluded.through_pos), why = excluded.why";
const FORGET_READ: &str = "DELETE FROM event_left_out WHERE consumer = ?1 AND after_pos >= ?2";
const CUT: &str = "UPDATE event_left_out SET through_pos = ?2 WHERE consumer = ?1 AND through_pos > ?2";
const SETTLE: &str = "DELETE FROM event_left_out WHERE consumer = ?1 AND scope = ?2 AND through_pos <= ?3";
const SETTLE_PART: &str = "UPDATE event_left_out SET after_pos = ?3 \
     WHERE consumer = ?1 AND scope = ?2 AND after_pos < ?3 AND through_pos > ?3";

/// A part of one scope that a consumer was not shown: its database could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The scope.
    pub scope: Scope,
    /// What is up to here was shown.
    pub after: Position,
    /// What is behind here was shown, or is still to be. When the database could be read for a while in between, events of
    /// that while were shown too.
    pub through: Position,
    /// Why it could not be read.
    pub why: String,
}

impl LeftOut {
    /// What a consumer of these events reads to have them.
    pub fn query(&self, filter: &Filter) -> Query {
        filter.clone().within(self.scope.clone()).query().after(self.after).until(self.through)
    }
}

/// What a consumer was not shown, oldest first.
pub(crate) async fn list(conn: &mut SqliteConnection, consumer: &str) -> Result<Vec<LeftOut>, Error> {
    let found: Vec<(String, i64, i64, String)> = sqlx::query_as(LIST).bind(consumer).fetch_all(conn).await?;
    let left_out = |(scope, after, through, why): (String, i64, i64, String)| {
        let corrupt = |why: String| Error::corrupt(format!("system.db event_left_out {consumer} {scope}"), why);
        let position = |key| Position::from_key(key).ok_or_else(|| corrupt("a position is negative".to_owned()));
        let (after, through) = (position(after)?, position(through)?);
        Ok(LeftOut { scope: scope.parse().map_err(|error| corrupt(format!("{error}")))?, after, through, why })
    };
    found.into_iter().map(left_out).collect()
}

/// Records what is about to be told. One row for each scope: a second outage extends the first.
pub(crate) async fn add(
    conn: &mut SqliteConnection,
    consumer: &Identity,
    left_out: &[LeftOut],
    now: Now,
) -> Result<(), Error> {
    // One that was forgotten has nothing to come back to.
    consumer.check(conn).await?;
    for left in left_out {
        sqlx::query(ADD)
            .bind(&consumer.name)
            .bind(left.scope.as_str())
            .bind(left.after.to_key()?)
            .bind(left.through.to_key_clamped())
            .bind(&left.why)
            .bind(now.boot.as_bytes().as_slice())
            .bind(now.boottime_ms.cast_signed())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Takes back what is behind the position a consumer begins at: that is read again.
pub(crate) async fn begin_at(
    conn: &mut SqliteConnection,
    consumer: &Identity,
    position: Position,
) -> Result<(), Error> {
    consumer.check(conn).await?;
    for sql in [FORGET_READ, CUT] {
        sqlx::query(sql).bind(&consumer.name).bind(position.to_key_clamped()).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Forgets what was left out of a scope up to a position.
pub(crate) async fn settle(
    conn: &mut SqliteConnection,
    consumer: &str,
    scope: &Scope,
    through: Position,
) -> Result<(), Error> {
    for sql in [SETTLE, SETTLE_PART] {
        sqlx::query(sql).bind(consumer).bind(scope.as_str()).bind(through.to_key_clamped()).execute(&mut *conn).await?;
    }
    Ok(())
}

impl EventStore {
    /// Lists what a consumer was not shown because the database of a scope could not be read, and did not settle. It
    /// survives what the consumer's checkpoint survives.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be read, [`Error::Corrupt`] when a row does not check.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn left_out(&self, consumer: &ConsumerName) -> Result<Vec<LeftOut>, Error> {
        let name = consumer.as_str().to_owned();
        let system = self.shared().manager.system();
        system.read(LEFT_OUT, move |conn| Box::pin(async move { list(conn, &name).await })).await
    }

    /// Forgets what a consumer was not shown: it has read it with [`LeftOut::query`], or does not want it. What was left out
    /// of that scope since stays listed.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be written.
    ///
    /// # Cancel safety
    /// Safe to call again.
    pub async fn settle(&self, consumer: &ConsumerName, left: &LeftOut) -> Result<(), Error> {
        let (name, left) = (consumer.as_str().to_owned(), left.clone());
        let system = self.shared().manager.system();
        system
            .write(LEFT_OUT, move |conn| Box::pin(async move { settle(conn, &name, &left.scope, left.through).await }))
            .await
    }
}
