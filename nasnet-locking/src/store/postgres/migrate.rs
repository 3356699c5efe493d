//! The tables of this crate in a PostgreSQL database.

use sqlx::{Connection, PgConnection, raw_sql};

use crate::error::Error;
use crate::store::postgres::failed;

struct Step {
    version: i32,
    name: &'static str,
    up: &'static str,
}

const STEPS: [Step; 2] = [
    Step { version: 1, name: "leases", up: include_str!("../../../migrations/postgres/0001_leases.up.sql") },
    Step { version: 2, name: "fence", up: include_str!("../../../migrations/postgres/0002_fence.up.sql") },
];

/// Several nodes may start at once; the first migrates and the others wait for it.
const ONE_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock(hashtextextended('nasnet-locking migrations', 0))::text";
/// Reads the catalogue: looking the name up would be answered from a cache that another node's migration does not reach
/// while this one waits for it.
const KNOWN: &str = "
SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'nasnet_lock_migration' AND pg_table_is_visible(oid))";
const BOOKS: &str = "
CREATE TABLE nasnet_lock_migration (
    version    int         PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)";
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM nasnet_lock_migration";
const APPLIED: &str = "INSERT INTO nasnet_lock_migration (version, name) VALUES ($1, $2)";

/// Creates or migrates the tables in the first schema of the `search_path`; changes nothing when they are there.
pub(crate) async fn migrate(conn: &mut PgConnection) -> Result<(), Error> {
    let fail = || failed("migrate the lease store");
    if version(conn).await? == newest() {
        return Ok(());
    }
    let mut step = conn.begin().await.map_err(fail())?;
    sqlx::query(ONE_AT_A_TIME).execute(&mut *step).await.map_err(fail())?;
    let found = version(&mut step).await?;
    if found == 0 {
        sqlx::query(BOOKS).execute(&mut *step).await.map_err(fail())?;
    }
    for Step { version, name, up } in STEPS.iter().filter(|step| step.version > found) {
        raw_sql(*up).execute(&mut *step).await.map_err(fail())?;
        sqlx::query(APPLIED).bind(version).bind(name).execute(&mut *step).await.map_err(fail())?;
    }
    step.commit().await.map_err(fail())
}

fn newest() -> i32 {
    STEPS.last().map_or(0, |step| step.version)
}

/// Returns the version found, 0 in a database without tables of this crate.
async fn version(conn: &mut PgConnection) -> Result<i32, Error> {
    let fail = || failed("look for the tables of the lease store");
    if !sqlx::query_scalar::<_, bool>(KNOWN).fetch_one(&mut *conn).await.map_err(fail())? {
        return Ok(0);
    }
    let found: i32 = sqlx::query_scalar(VERSION).fetch_one(conn).await.map_err(fail())?;
    if found > newest() { Err(Error::NewerSchema { found, known: newest() }) } else { Ok(found) }
}
