//! A schema of its own on the PostgreSQL server that `NASNET_TEST_POSTGRES` names.

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nasnet_locking::{Error, LockManager, LockOptions, WriteRight, fence};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use super::backend::Backend;

pub const URL: &str = "NASNET_TEST_POSTGRES";

/// Returns the server's address. Without one the tests are skipped, loudly, or fail where a server is promised.
pub fn url() -> Option<String> {
    static SAID: Once = Once::new();
    if let Ok(url) = std::env::var(URL) {
        return Some(url);
    }
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    assert!(
        !(is("CI", "true") && is("NASNET_REQUIRE_POSTGRES", "1")),
        "{URL} is not set: run this through .ci/postgres"
    );
    // Straight to the terminal: what passing tests print is kept from it.
    SAID.call_once(|| {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: the PostgreSQL tests need a server in {URL}; `just test-postgres` starts one"
        );
    });
    None
}

/// Tables of one test, and a clock it can move: the function the store asks for the time adds what a table says.
pub struct Postgres {
    pub connect: PgConnectOptions,
}

impl Postgres {
    pub async fn new() -> Option<Self> {
        static SCHEMAS: AtomicU32 = AtomicU32::new(0);
        let schema = format!("test_{}_{}", std::process::id(), SCHEMAS.fetch_add(1, Ordering::Relaxed));
        let server: PgConnectOptions = url()?.parse().unwrap();
        let mut conn = server.connect().await.unwrap();
        let create = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut conn).await.unwrap();
        let this = Self::in_schema(&schema);
        let mut conn = this.connect().await;
        fence::postgres::create(&mut conn).await.unwrap();
        sqlx::raw_sql(
            "CREATE TABLE guarded (number bigint GENERATED ALWAYS AS IDENTITY, who text NOT NULL, token bigint NOT NULL);
             CREATE TABLE test_clock (ahead_ms bigint NOT NULL);
             INSERT INTO test_clock VALUES (0);
             CREATE OR REPLACE FUNCTION nasnet_lock_now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
                 SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ahead_ms FROM test_clock $$",
        )
        .execute(&mut conn)
        .await
        .unwrap();
        Some(this)
    }

    /// Names a schema that exists.
    pub fn in_schema(schema: &str) -> Self {
        let server: PgConnectOptions = url().unwrap().parse().unwrap();
        Self { connect: server.options([("search_path", schema)]).application_name(schema) }
    }

    pub async fn connect(&self) -> PgConnection {
        self.connect.connect().await.unwrap()
    }

    pub async fn schema(&self) -> String {
        sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut self.connect().await).await.unwrap()
    }

    /// Steps the clock of the server, in either direction.
    pub async fn step_clock(&self, by_ms: i64) {
        let step = "UPDATE test_clock SET ahead_ms = ahead_ms + $1";
        sqlx::query(step).bind(by_ms).execute(&mut self.connect().await).await.unwrap();
    }

    pub async fn open(&self) -> LockManager {
        LockManager::open_postgres(&self.connect, LockOptions::default()).await.unwrap()
    }
}

/// Writes a row after the fence, in one transaction.
pub async fn write(conn: &mut PgConnection, right: &WriteRight, who: &str) -> Result<(), Error> {
    let failed = |operation| move |source| Error::Postgres { operation, source };
    let mut step = conn.begin().await.map_err(failed("begin"))?;
    right.check_postgres(&mut step).await?;
    sqlx::query("INSERT INTO guarded (who, token) VALUES ($1, $2)")
        .bind(who)
        .bind(i64::try_from(right.token().get()).unwrap())
        .execute(&mut *step)
        .await
        .map_err(failed("write"))?;
    step.commit().await.map_err(failed("commit"))
}

impl Backend for Postgres {
    async fn manager(&self, options: LockOptions) -> LockManager {
        LockManager::open_postgres(&self.connect, options).await.unwrap()
    }

    async fn pass(&self, by: Duration) {
        self.step_clock(i64::try_from(by.as_millis()).unwrap()).await;
    }

    async fn kill(&self, locks: &LockManager) {
        let low: [u8; 8] = locks.session().to_bytes()[8..].try_into().unwrap();
        let ended: Vec<bool> = sqlx::query_scalar(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks
             WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock'
               AND ((classid::bigint << 32) | objid::bigint) = $1",
        )
        .bind(i64::from_be_bytes(low))
        .fetch_all(&mut self.connect().await)
        .await
        .unwrap();
        assert_eq!(ended, [true], "one connection holds the session, and it ends");
    }

    async fn write(&self, right: &WriteRight, who: &'static str) -> Result<(), Error> {
        write(&mut self.connect().await, right, who).await
    }

    async fn written(&self) -> Vec<(String, i64)> {
        let all = "SELECT who, token FROM guarded ORDER BY number";
        sqlx::query_as(all).fetch_all(&mut self.connect().await).await.unwrap()
    }
}
