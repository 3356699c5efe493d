//! How far each scope of the hot tier is flushed: one number for all, and the scopes that are behind it.

use std::collections::BTreeMap;

use nasnet_dbmanager::Scope;
use sqlx::SqliteConnection;

use crate::error::Error;

const MARK: &str = "SELECT flushed_through FROM hot_meta WHERE one = 1";
const BEHIND: &str = "SELECT scope, through FROM hot_behind";
const ADVANCE: &str = "UPDATE hot_meta SET flushed_through = MAX(flushed_through, ?1) WHERE one = 1";
const FALL_BEHIND: &str = "INSERT INTO hot_behind (scope, through) VALUES (?1, ?2) \
     ON CONFLICT (scope) DO UPDATE SET through = MIN(through, excluded.through)";
/// Of several who move a scope, one does: the others know less than its row says by then.
const FOLLOW: &str = "UPDATE hot_behind SET through = ?3 WHERE scope = ?1 AND through = ?2";
const CATCH_UP: &str =
    "DELETE FROM hot_behind WHERE scope = ?1 AND through >= (SELECT flushed_through FROM hot_meta WHERE one = 1)";

/// Up to where the Normal events of an incarnation are on flash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Those of all scopes but the ones behind.
    pub(crate) through: u64,
    /// Scopes whose database did not take its events, or came back without some of them.
    pub(crate) behind: BTreeMap<Scope, u64>,
}

impl Flushed {
    /// Up to where the events of one scope are on flash.
    pub(crate) fn of(&self, scope: &Scope) -> u64 {
        self.behind.get(scope).copied().unwrap_or(self.through)
    }

    /// Up to where those of every scope are.
    pub(crate) fn everywhere(&self) -> u64 {
        self.behind.values().copied().fold(self.through, u64::min)
    }
}

/// How far everything is flushed, in the caller's snapshot.
pub(crate) async fn read(conn: &mut SqliteConnection) -> Result<Flushed, Error> {
    let through: i64 = sqlx::query_scalar(MARK).fetch_optional(&mut *conn).await?.unwrap_or(0);
    let found: Vec<(String, i64)> = sqlx::query_as(BEHIND).fetch_all(conn).await?;
    let behind = found.into_iter().map(|(scope, through)| {
        let scope = scope.parse::<Scope>().map_err(|error| Error::corrupt("hot.db hot_behind", error))?;
        Ok((scope, through.cast_unsigned()))
    });
    Ok(Flushed { through: through.cast_unsigned(), behind: behind.collect::<Result<_, Error>>()? })
}

/// Notes what a flush did, in the caller's transaction. Others may have flushed or fallen behind meanwhile: a scope is
/// never said to be further than it is.
pub(crate) async fn note(conn: &mut SqliteConnection, before: &Flushed, after: &Flushed) -> Result<(), Error> {
    sqlx::query(ADVANCE).bind(after.through.cast_signed()).execute(&mut *conn).await?;
    for (scope, through) in &before.behind {
        sqlx::query(FOLLOW)
            .bind(scope.as_str())
            .bind(through.cast_signed())
            .bind(after.of(scope).cast_signed())
            .execute(&mut *conn)
            .await?;
        sqlx::query(CATCH_UP).bind(scope.as_str()).execute(&mut *conn).await?;
    }
    for (scope, through) in after.behind.iter().filter(|(scope, _)| !before.behind.contains_key(*scope)) {
        fall_behind(&mut *conn, scope, *through).await?;
    }
    Ok(())
}

/// Notes that the events of a scope are on flash up to a number only, in the caller's transaction.
pub(crate) async fn fall_behind(conn: &mut SqliteConnection, scope: &Scope, through: u64) -> Result<(), Error> {
    sqlx::query(FALL_BEHIND).bind(scope.as_str()).bind(through.cast_signed()).execute(conn).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, SqliteConnection};

    use super::*;

    async fn hot() -> SqliteConnection {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql(include_str!("../../migrations/hot/0001_log.up.sql")).execute(&mut conn).await.unwrap();
        sqlx::raw_sql("INSERT INTO hot_meta (one, epoch) VALUES (1, 1)").execute(&mut conn).await.unwrap();
        conn
    }

    fn at(through: u64, behind: &[(&str, u64)]) -> Flushed {
        let behind = behind.iter().map(|(scope, through)| (scope.parse().unwrap(), *through)).collect();
        Flushed { through, behind }
    }

    #[tokio::test]
    async fn a_scope_that_is_behind_is_told_until_it_has_caught_up() {
        let mut conn = hot().await;
        let (start, held) = (at(0, &[]), at(10, &[("r1", 4)]));
        note(&mut conn, &start, &held).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), held);
        assert_eq!((held.everywhere(), held.of(&"r2".parse().unwrap())), (4, 10));
        note(&mut conn, &held, &at(20, &[("r1", 4)])).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), at(20, &[("r1", 4)]));
        note(&mut conn, &at(20, &[("r1", 4)]), &at(30, &[])).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), at(30, &[]));
    }

    #[tokio::test]
    async fn whoever_flushes_at_the_same_time_never_lets_a_scope_look_further_than_it_is() {
        let mut conn = hot().await;
        let held = at(10, &[("r1", 4)]);
        note(&mut conn, &at(0, &[]), &held).await.unwrap();
        // Two have begun here. One comes further with the others and fails with the scope again, the other catches up to
        // where it began.
        note(&mut conn, &held, &at(20, &[("r1", 4)])).await.unwrap();
        note(&mut conn, &held, &at(10, &[])).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), at(20, &[("r1", 10)]));
        // The scope comes back from a backup under somebody who flushes it.
        fall_behind(&mut conn, &"r1".parse().unwrap(), 2).await.unwrap();
        note(&mut conn, &at(20, &[("r1", 10)]), &at(25, &[])).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), at(25, &[("r1", 2)]));
        // And one that was not behind.
        fall_behind(&mut conn, &"r2".parse().unwrap(), 3).await.unwrap();
        note(&mut conn, &at(25, &[("r1", 2)]), &at(30, &[])).await.unwrap();
        assert_eq!(read(&mut conn).await.unwrap(), at(30, &[("r2", 3)]));
    }
}
