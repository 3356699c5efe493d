//! The locks one would use instead.

use std::path::Path;
use std::time::Instant;

use nasnet_benches::measure::ROUNDS;
use nasnet_benches::naive::NaiveLock;

use crate::{Failure, Row};

/// Whether this program was built with a client of PostgreSQL.
pub(crate) const POSTGRES: bool = cfg!(feature = "postgres");

/// The PostgreSQL server to measure against.
pub(crate) fn server() -> Option<String> {
    std::env::var("NASNET_TEST_POSTGRES").ok().filter(|url| !url.is_empty())
}

/// A row taken by an UPSERT and deleted for the release, each one statement that commits itself.
pub(crate) async fn sqlite(path: &Path, what: &'static str, busy: bool, rows: &mut Vec<Row>) -> Result<(), Failure> {
    let mut lock =
        if what.ends_with("OFF") { NaiveLock::unsynced(path).await? } else { NaiveLock::synced(path).await? };
    let mut samples = Vec::new();
    for _ in 0..ROUNDS * 50 {
        let began = Instant::now();
        lock.acquire().await?;
        lock.release().await?;
        samples.push(began.elapsed());
    }
    rows.push(Row::new(what, busy, samples));
    Ok(())
}

#[cfg(feature = "postgres")]
pub(crate) async fn postgres(busy: bool, rows: &mut Vec<Row>) -> Result<(), Failure> {
    use sqlx::Connection;
    let Some(url) = server() else { return Ok(()) };
    let mut conn = sqlx::PgConnection::connect(&url).await?;
    let mut samples = Vec::new();
    for number in 0..i64::try_from(ROUNDS)? * 50 {
        let began = Instant::now();
        sqlx::query("SELECT pg_advisory_lock($1)").bind(number % 50).execute(&mut conn).await?;
        sqlx::query("SELECT pg_advisory_unlock($1)").bind(number % 50).execute(&mut conn).await?;
        samples.push(began.elapsed());
    }
    conn.close().await?;
    rows.push(Row::new("postgresql advisory lock, one connection", busy, samples));
    Ok(())
}

#[cfg(not(feature = "postgres"))]
pub(crate) async fn postgres(_busy: bool, _rows: &mut Vec<Row>) -> Result<(), Failure> {
    Ok(())
}
