//! The check for rows of a PostgreSQL database.
//!
//! SQLite has one writer, PostgreSQL many, so the check keeps others off first: a shared advisory lock on everything above
//! the keys and an exclusive one on the keys, until the transaction ends. Two checks whose keys overlap, in either
//! direction of the hierarchy, meet in one of them and run one after another; others do not.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};

use crate::error::{Error, Seen};
use crate::key::{KeySet, LockKey};
use crate::store::postgres::{failed, migrate, paths, paths_with_ancestors};
use crate::token::FencingToken;

/// More locks than this are replaced by one on everything: a server has room for some thousands in all.
const LOCKS_MAX: usize = 64;
/// The path above all keys.
const ROOT: &str = "";

/// Refused outside a transaction, where locks would not outlive their statement.
const IN_TRANSACTION: &str = "LOCK TABLE nasnet_fence IN ROW EXCLUSIVE MODE";
/// Locks are taken in the order of the paths, so two checks cannot wait for each other.
const KEEP_OFF: &str = "
SELECT current_setting('transaction_isolation'),
    CASE WHEN whole
        THEN pg_advisory_xact_lock(hashtextextended(path, 'nasnet_fence'::regclass::oid::bigint))::text
        ELSE pg_advisory_xact_lock_shared(hashtextextended(path, 'nasnet_fence'::regclass::oid::bigint))::text
    END
FROM unnest($1::text[], $2::bool[]) AS locks (path, whole)";
const HIGHEST_ABOVE: &str = "
SELECT key, token FROM (
    SELECT f.key, f.token FROM nasnet_fence AS f WHERE f.key = ANY($1::text[]) AND f.token > $3
    UNION ALL
    SELECT f.key, f.token
    FROM unnest($2::text[]) AS mine (key)
    JOIN nasnet_fence AS f ON f.key >= (mine.key || '/') COLLATE \"C\" AND f.key < (mine.key || '0') COLLATE \"C\"
    WHERE f.token > $3
) AS higher
ORDER BY token DESC, key
LIMIT 1";
const RAISE: &str = "
INSERT INTO nasnet_fence (key, token)
SELECT mine.key, $2 FROM unnest($1::text[]) AS mine (key)
WHERE NOT EXISTS (SELECT FROM nasnet_fence AS f WHERE f.key = mine.key AND f.token >= $2)
ON CONFLICT (key) DO UPDATE SET token = excluded.token WHERE excluded.token > nasnet_fence.token";

/// Creates table `nasnet_fence`, with the tables of the lease store, in the first schema of the connection's `search_path`.
/// Changes nothing when they are there. [`crate::LockManager::open_postgres`] does it too.
///
/// # Errors
/// [`Error::NewerSchema`] when a newer version of this crate has been there, [`Error::Postgres`] when the server refuses.
///
/// # Cancel safety
/// A dropped future has created everything or nothing.
pub async fn create(conn: &mut PgConnection) -> Result<(), Error> {
    migrate(conn).await
}

/// Rejects the running transaction if a higher token was seen on any of the keys, above or below them; otherwise raises the
/// keys, and only them, to this token.
///
/// Call it first in the transaction, which runs under READ COMMITTED, and read what the write is decided on after it. A
/// token equal to the stored one writes nothing. Until the transaction ends, checks on overlapping keys wait for it.
///
/// This knows tokens alone, as [`crate::fence::check`] does; [`crate::LeaseGuard::fence_postgres`] looks at the lease as
/// well.
///
/// # Errors
/// [`Error::Fenced`] naming the key and both tokens: roll back. [`Error::Isolation`] under another isolation level, whose
/// snapshot may be older than a later holder's commit. [`Error::Postgres`] when the server fails, finds a deadlock, or no
/// transaction has begun.
///
/// # Cancel safety
/// Dropping the future leaves the transaction to its owner, who must roll it back.
pub async fn check(conn: &mut PgConnection, keys: &KeySet, token: FencingToken) -> Result<(), Error> {
    reject_overtaken(conn, keys, token).await?;
    raise(conn, keys, token).await
}

/// The first half of [`check`]: writes nothing, and keeps others off until the transaction ends.
pub(crate) async fn reject_overtaken(conn: &mut PgConnection, keys: &KeySet, token: FencingToken) -> Result<(), Error> {
    let fail = || failed("check the fence");
    keep_off(conn, keys).await?;
    let higher = sqlx::query(HIGHEST_ABOVE)
        .bind(paths_with_ancestors(keys))
        .bind(paths(keys))
        .bind(token.to_sql())
        .fetch_optional(conn)
        .await
        .map_err(fail())?;
    let Some(row) = higher else { return Ok(()) };
    let key = LockKey::parse(row.try_get::<String, _>(0).map_err(fail())?)?;
    let seen = FencingToken::from_sql(row.try_get(1).map_err(fail())?)?;
    Err(Error::Fenced { key, token, seen: Seen::Token(seen) })
}

async fn keep_off(conn: &mut PgConnection, keys: &KeySet) -> Result<(), Error> {
    let fail = || failed("lock the fence");
    sqlx::query(IN_TRANSACTION).execute(&mut *conn).await.map_err(fail())?;
    let (paths, whole): (Vec<String>, Vec<bool>) = locks(keys).into_iter().unzip();
    let rows = sqlx::query(KEEP_OFF).bind(paths).bind(whole).fetch_all(conn).await.map_err(fail())?;
    for row in rows {
        let level: String = row.try_get(0).map_err(fail())?;
        if level != "read committed" {
            return Err(Error::Isolation { level });
        }
    }
    Ok(())
}

/// Returns the paths to lock, and which of them as a whole.
fn locks(keys: &KeySet) -> BTreeMap<String, bool> {
    let mut locks: BTreeMap<String, bool> = paths_with_ancestors(keys).into_iter().map(|path| (path, false)).collect();
    locks.extend(paths(keys).into_iter().map(|path| (path, true)));
    if locks.len() >= LOCKS_MAX {
        return BTreeMap::from([(ROOT.to_owned(), true)]);
    }
    locks.insert(ROOT.to_owned(), false);
    locks
}

/// The second half of [`check`].
pub(crate) async fn raise(conn: &mut PgConnection, keys: &KeySet, token: FencingToken) -> Result<(), Error> {
    sqlx::query(RAISE).bind(paths(keys)).bind(token.to_sql()).execute(conn).await.map_err(failed("raise the fence"))?;
    Ok(())
}

/// Returns the token a key was last written under in this database, whatever lies above or below it.
///
/// # Errors
/// [`Error::Postgres`] when the server fails, [`Error::Corrupt`] when the row holds no token.
pub async fn seen(conn: &mut PgConnection, key: &LockKey) -> Result<Option<FencingToken>, Error> {
    let token: Option<i64> = sqlx::query_scalar("SELECT token FROM nasnet_fence WHERE key = $1")
        .bind(key.as_str())
        .fetch_optional(conn)
        .await
        .map_err(failed("check the fence"))?;
    token.map(FencingToken::from_sql).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(paths: impl IntoIterator<Item = String>) -> KeySet {
        KeySet::new(paths.into_iter().map(|path| LockKey::parse(path).unwrap())).unwrap()
    }

    /// Two sets meet if one of them locks as a whole what the other locks at all.
    fn meet(one: &KeySet, other: &KeySet) -> bool {
        let other = locks(other);
        locks(one).iter().any(|(path, whole)| other.get(path).is_some_and(|theirs| *whole || *theirs))
    }

    #[test]
    fn checks_meet_exactly_when_their_keys_overlap() {
        let sets = ["a", "b", "a/x", "a/x/1", "a/y", "ab"].map(|path| keys([path.to_owned()]));
        for one in &sets {
            for other in &sets {
                assert_eq!(meet(one, other), one.overlap(other).is_some(), "{one} {other}");
            }
        }
    }

    #[test]
    fn a_large_set_meets_everything() {
        let large = keys((0..100).map(|number| format!("z/{number}")));
        assert_eq!(locks(&large).len(), 1);
        assert!(meet(&large, &keys(["a".to_owned()])));
    }
}
