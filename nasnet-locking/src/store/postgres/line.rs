//! One connection that does one thing after another.

use std::sync::Arc;

use nasnet_dbmanager::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row, raw_sql};
use tokio::sync::Mutex;

use crate::error::Error;
use crate::store::postgres::clock::ServerClock;
use crate::store::postgres::failed;

/// What a transaction begins with: alone on the lease table, and told the time after that.
///
/// READ COMMITTED is asked for by name: each statement must see what the one before waited for.
const BEGIN_ALONE: &str = "
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(hashtextextended('nasnet-locking', 'nasnet_lock_lease'::regclass::oid::bigint))::text;
SELECT nasnet_lock_now_ms()";
/// One snapshot.
const BEGIN_READING: &str = "
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT nasnet_lock_now_ms()";

/// A node that is paused in the middle must not keep the table from the others, nor wait for ever. A token is told when the
/// step of its sequence is on disk: that costs one flush for 32 leases, since their tables are unlogged.
const SETTINGS: &str = "
SET synchronous_commit = on;
SET idle_in_transaction_session_timeout = '2s';
SET statement_timeout = '30s';
SET idle_session_timeout = 0";

/// A connection, opened when it is needed and again after a failure.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    connect: PgConnectOptions,
    begin: &'static str,
    clock: Arc<ServerClock>,
    conn: Arc<Mutex<Option<PgConnection>>>,
}

impl Line {
    /// A line for transactions that change leases, one at a time among all nodes.
    pub(crate) fn alone(connect: PgConnectOptions, clock: Arc<ServerClock>) -> Self {
        Self { connect, begin: BEGIN_ALONE, clock, conn: Arc::default() }
    }

    /// A line for looking.
    pub(crate) fn reading(connect: PgConnectOptions, clock: Arc<ServerClock>) -> Self {
        Self { connect, begin: BEGIN_READING, clock, conn: Arc::default() }
    }

    /// Runs one transaction, told the time in milliseconds; an error rolls it back.
    ///
    /// What was begun goes on when the future is dropped, and what is asked for later waits for its end.
    pub(crate) async fn run<T, F>(&self, op: F) -> Result<T, Error>
    where
        F: for<'c> FnOnce(&'c mut PgConnection, u64) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let mut place = Arc::clone(&self.conn).lock_owned().await;
        let line = self.clone();
        let run = async move {
            let (mut conn, now_ms) = line.begin(place.take()).await?;
            let value = op(&mut conn, now_ms).await?;
            raw_sql("COMMIT").execute(&mut conn).await.map_err(failed("commit"))?;
            // A connection in an unknown state is not used again: dropping it rolls back.
            *place = Some(conn);
            Ok(value)
        };
        match tokio::spawn(run).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down.
                Err(_) => Err(Error::Closed),
            },
        }
    }

    /// Begins a transaction; on a connection that broke while nobody used it, on another one.
    async fn begin(&self, used: Option<PgConnection>) -> Result<(PgConnection, u64), Error> {
        if let Some(mut conn) = used
            && let Ok(now_ms) = self.start(&mut conn).await
        {
            return Ok((conn, now_ms));
        }
        let mut conn = self.connect.connect().await.map_err(failed("connect to the lease store"))?;
        raw_sql(SETTINGS).execute(&mut conn).await.map_err(failed("set up a connection"))?;
        let now_ms = self.start(&mut conn).await?;
        Ok((conn, now_ms))
    }

    async fn start(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        let asked = self.clock.asking();
        let rows = raw_sql(self.begin).fetch_all(conn).await.map_err(failed("begin"))?;
        let now_ms = rows.last().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get::<i64, _>(0));
        let now_ms = u64::try_from(now_ms.map_err(failed("read the clock"))?).unwrap_or(0);
        self.clock.told(asked, now_ms);
        Ok(now_ms)
    }
}
