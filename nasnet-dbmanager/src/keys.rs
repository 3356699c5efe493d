//! Keys of writes: how a caller who lost the answer finds out what became of its write.
//!
//! The key is a row in the same transaction as the write. At least the last [`KEYS_KEPT`] keys of a database are kept;
//! the largest key ever dropped is remembered, so that "never seen" and "no longer known" are told apart.

use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use crate::driver::during;
use crate::error::Error;

/// How many keys a database remembers at least.
pub(crate) const KEYS_KEPT: i64 = 1024;

/// How many keys may gather beyond those before the oldest are dropped, so that dropping is not paid for each write.
pub(crate) const KEYS_SLACK: u32 = 128;

/// What became of a keyed write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOutcome {
    /// It is committed.
    Committed,
    /// It is not committed, and nothing that was queued before this question will commit it.
    Absent,
    /// The key is too old to tell.
    Forgotten,
}

const INSERT: &str = "INSERT INTO _nasnet_keys (key, seq) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING";
const NEWEST: &str = "SELECT COALESCE(MAX(seq), 0) FROM _nasnet_keys";
const OLDEST_TO_DROP: &str = "SELECT seq FROM _nasnet_keys ORDER BY seq DESC LIMIT 1 OFFSET ?1";
const REMEMBER: &str = "
    UPDATE _nasnet_meta SET keys_forgotten = MAX(
        COALESCE(keys_forgotten, x''), (SELECT MAX(key) FROM _nasnet_keys WHERE seq <= ?1))";
const DROP: &str = "DELETE FROM _nasnet_keys WHERE seq <= ?1";
const LOOK_UP: &str = "
    SELECT EXISTS (SELECT 1 FROM _nasnet_keys WHERE key = ?1), keys_forgotten >= ?1 FROM _nasnet_meta";

/// Gives keys their order within one writer.
#[derive(Debug, Default)]
pub(crate) struct KeyRing {
    /// `None` until the first key is written: finding the newest reads them all.
    next_seq: Option<i64>,
    since_trim: u32,
}

impl KeyRing {
    async fn next_seq(&self, conn: &mut SqliteConnection) -> Result<i64, Error> {
        if let Some(seq) = self.next_seq {
            return Ok(seq);
        }
        let newest: i64 = sqlx::query_scalar(NEWEST).fetch_one(conn).await.map_err(during("read the write keys"))?;
        Ok(newest + 1)
    }

    /// Writes a key, in the transaction of the write it names.
    ///
    /// # Errors
    /// [`Error::AlreadyCommitted`] when the key is there.
    pub(crate) async fn record(&mut self, conn: &mut SqliteConnection, key: Ulid) -> Result<(), Error> {
        let bytes = key.to_bytes();
        let seq = self.next_seq(&mut *conn).await?;
        let done = sqlx::query(INSERT)
            .bind(&bytes[..])
            .bind(seq)
            .execute(&mut *conn)
            .await
            .map_err(during("record the write key"))?;
        if done.rows_affected() == 0 {
            return Err(Error::AlreadyCommitted { key });
        }
        self.next_seq = Some(seq + 1);
        self.since_trim += 1;
        if self.since_trim >= KEYS_SLACK {
            self.since_trim = 0;
            trim(conn).await?;
        }
        Ok(())
    }
}

async fn trim(conn: &mut SqliteConnection) -> Result<(), Error> {
    let what = "drop old write keys";
    let limit: Option<i64> =
        sqlx::query_scalar(OLDEST_TO_DROP).bind(KEYS_KEPT).fetch_optional(&mut *conn).await.map_err(during(what))?;
    if let Some(limit) = limit {
        sqlx::query(REMEMBER).bind(limit).execute(&mut *conn).await.map_err(during(what))?;
        sqlx::query(DROP).bind(limit).execute(&mut *conn).await.map_err(during(what))?;
    }
    Ok(())
}

/// Looks a key up.
pub(crate) async fn look_up(conn: &mut SqliteConnection, key: Ulid) -> Result<KeyOutcome, Error> {
    let what = during("look up a write key");
    let row = sqlx::query(LOOK_UP).bind(&key.to_bytes()[..]).fetch_one(conn).await.map_err(&what)?;
    let present: bool = row.try_get(0).map_err(&what)?;
    let dropped: Option<bool> = row.try_get(1).map_err(&what)?;
    Ok(match (present, dropped) {
        (true, _) => KeyOutcome::Committed,
        (false, Some(true)) => KeyOutcome::Forgotten,
        (false, _) => KeyOutcome::Absent,
    })
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions};

    use super::*;
    use crate::id::RouterId;
    use crate::meta::{self, Identity};
    use crate::schema::FileKind;

    /// Those that follow the order of arrival, which has no index: one would be a page more for each keyed write, and
    /// they run once for each writer or once in `KEYS_SLACK` writes, over `KEYS_KEPT + KEYS_SLACK` rows at most.
    const SCANS: [(&str, &str); 4] =
        [("NEWEST", NEWEST), ("OLDEST_TO_DROP", OLDEST_TO_DROP), ("REMEMBER", REMEMBER), ("DROP", DROP)];

    async fn marked() -> SqliteConnection {
        let mut conn = SqliteConnectOptions::new().in_memory(true).connect().await.expect("connect");
        let router_id = Some(RouterId::parse("home").expect("id"));
        let identity = Identity { kind: FileKind::Router, fleet_id: Ulid(1), router_id, file_uid: None };
        meta::write(&mut conn, &identity, [1; 16]).await.expect("marks");
        conn
    }

    async fn scans(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).fetch_all(conn).await.expect("plan");
        let steps = plan.iter().map(|row| row.get::<String, _>("detail"));
        // Finding the largest by going through all of them is called a search too.
        steps.filter(|step| step.contains("_nasnet_keys") && !step.contains("(key=?)")).collect()
    }

    #[tokio::test]
    async fn recording_a_key_and_asking_for_it_never_read_the_whole_ring() {
        let mut conn = marked().await;
        for sql in [INSERT, LOOK_UP] {
            assert!(scans(&mut conn, sql).await.is_empty(), "{sql}");
        }
        for (name, sql) in SCANS {
            assert!(!scans(&mut conn, sql).await.is_empty(), "{name} needs no excuse any more");
        }
    }

    #[tokio::test]
    async fn what_is_read_as_a_whole_is_bounded() {
        let mut conn = marked().await;
        let mut ring = KeyRing::default();
        let most = KEYS_KEPT + i64::from(KEYS_SLACK);
        for number in 1..=u128::from(most.unsigned_abs()) + 300 {
            ring.record(&mut conn, Ulid(number)).await.expect("record");
        }
        let rows: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM _nasnet_keys").fetch_one(&mut conn).await.expect("count");
        assert!((KEYS_KEPT..=most).contains(&rows), "{rows}");
        assert_eq!(look_up(&mut conn, Ulid(1)).await.expect("look up"), KeyOutcome::Forgotten);
    }
}
