//! Metrics of the fleet: the last value of each router in memory, their sums once a day on flash.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{column, name};
use crate::clock::Now;
use crate::error::Error;
use crate::id::RouterId;

pub(super) const DAY_MS: i64 = 86_400_000;

/// How many days are kept.
const DAYS_MAX: i64 = 400;

const RECORD: &str = "
    INSERT INTO fleet_metrics_live (router_id, name, value, as_of_ms) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (router_id, name) DO UPDATE SET value = excluded.value, as_of_ms = excluded.as_of_ms";

/// Reads every value: that is what is asked for, and the file is in memory.
const LIVE: &str = "
    SELECT router_id, name, value, as_of_ms FROM fleet_metrics_live ORDER BY router_id, name";

const FORGET: &str = "DELETE FROM fleet_metrics_live WHERE router_id = ?1";

const SAVE_DAY: &str = "
    INSERT INTO fleet_metrics (day, routers, totals, as_of_ms) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (day) DO UPDATE
    SET routers = excluded.routers, totals = excluded.totals, as_of_ms = excluded.as_of_ms
    WHERE (routers, totals) IS NOT (excluded.routers, excluded.totals)";

const PRUNE: &str = "DELETE FROM fleet_metrics WHERE day <= ?1";

const DAYS: &str = "SELECT day, routers, totals, as_of_ms FROM fleet_metrics ORDER BY day DESC LIMIT ?1";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("fleet_metrics::RECORD", RECORD),
    ("fleet_metrics::LIVE", LIVE),
    ("fleet_metrics::FORGET", FORGET),
    ("fleet_metrics::SAVE_DAY", SAVE_DAY),
    ("fleet_metrics::PRUNE", PRUNE),
    ("fleet_metrics::DAYS", DAYS),
];

/// The last value of one metric of one router.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveMetric {
    /// The router.
    pub router: RouterId,
    /// The metric.
    pub name: String,
    /// Its value.
    pub value: i64,
    /// When it was taken, wall clock: routers whose databases are closed keep an old one.
    pub as_of_ms: i64,
}

/// The sums of one day.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DayMetrics {
    /// Days since 1970-01-01, UTC.
    pub day: i64,
    /// How many routers had a value.
    pub routers: u64,
    /// The sum over these routers, by metric.
    pub totals: BTreeMap<String, i64>,
    /// When they were summed up, wall clock.
    pub as_of_ms: i64,
}

/// Records values of a router in runtime.db.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn record(
    runtime: &mut SqliteConnection,
    router: &RouterId,
    values: &[(String, i64)],
    now: &Now,
) -> Result<(), Error> {
    for (metric, value) in values {
        name::check("metric", metric)?;
        let query = sqlx::query(RECORD).bind(router.as_str()).bind(metric).bind(value).bind(now.wall_ms);
        query.execute(&mut *runtime).await?;
    }
    Ok(())
}

/// Returns the last values in runtime.db, by router and metric.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn live(runtime: &mut SqliteConnection) -> Result<Vec<LiveMetric>, Error> {
    sqlx::query(LIVE).fetch_all(runtime).await?.iter().map(decode_live).collect()
}

/// Forgets the values of a router that left the fleet.
///
/// # Errors
/// An error of the database.
pub async fn forget(runtime: &mut SqliteConnection, router: &RouterId) -> Result<(), Error> {
    sqlx::query(FORGET).bind(router.as_str()).execute(runtime).await?;
    Ok(())
}

/// Adds up the values of a fleet; pure.
pub fn sum_up(live: &[LiveMetric], now: &Now) -> DayMetrics {
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    for metric in live {
        let total = totals.entry(metric.name.clone()).or_default();
        *total = total.saturating_add(metric.value);
    }
    let routers: std::collections::BTreeSet<_> = live.iter().map(|metric| &metric.router).collect();
    DayMetrics {
        day: now.wall_ms.div_euclid(DAY_MS),
        routers: u64::try_from(routers.len()).unwrap_or(u64::MAX),
        totals,
        as_of_ms: now.wall_ms,
    }
}

/// Stores the row of a day in system.db, replacing an earlier one; unchanged sums are not written. Returns whether they
/// were.
///
/// # Errors
/// An error of the database.
pub async fn save_day(conn: &mut SqliteConnection, day: &DayMetrics) -> Result<bool, Error> {
    let totals: serde_json::Map<_, _> = day.totals.iter().map(|(name, sum)| (name.clone(), (*sum).into())).collect();
    let done = sqlx::query(SAVE_DAY)
        .bind(day.day)
        .bind(column::signed("number of routers", day.routers)?)
        .bind(serde_json::Value::Object(totals).to_string())
        .bind(day.as_of_ms)
        .execute(&mut *conn)
        .await?;
    let written = done.rows_affected() > 0;
    if written {
        sqlx::query(PRUNE).bind(day.day - DAYS_MAX).execute(conn).await?;
    }
    Ok(written)
}

/// Returns the newest days, the newest first.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn days(conn: &mut SqliteConnection, limit: u32) -> Result<Vec<DayMetrics>, Error> {
    sqlx::query(DAYS).bind(limit).fetch_all(conn).await?.iter().map(decode_day).collect()
}

fn decode_live(row: &SqliteRow) -> Result<LiveMetric, Error> {
    Ok(LiveMetric {
        router: RouterId::parse(row.try_get::<&str, _>("router_id")?)?,
        name: row.try_get("name")?,
        value: row.try_get("value")?,
        as_of_ms: row.try_get("as_of_ms")?,
    })
}

fn decode_day(row: &SqliteRow) -> Result<DayMetrics, Error> {
    Ok(DayMetrics {
        day: row.try_get("day")?,
        routers: column::unsigned("number of routers", row.try_get("routers")?)?,
        totals: column::json("metric totals", row.try_get("totals")?)?,
        as_of_ms: row.try_get("as_of_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::scratch::{Scratch, now};

    fn metric(router: &str, name: &str, value: i64) -> LiveMetric {
        LiveMetric { router: RouterId::parse(router).expect("id"), name: name.to_owned(), value, as_of_ms: 5 }
    }

    #[tokio::test]
    async fn a_day_is_one_row_and_an_unchanged_one_is_not_written_again() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        let live = [metric("r1", "resources", 3), metric("r1", "file_bytes", 10), metric("r2", "resources", 4)];
        let day = sum_up(&live, &now());
        assert_eq!((day.routers, day.totals["resources"], day.totals["file_bytes"]), (2, 7, 10));
        assert!(save_day(conn, &day).await.expect("save"));
        let later = DayMetrics { as_of_ms: day.as_of_ms + 1, ..day.clone() };
        assert!(!save_day(conn, &later).await.expect("save"), "the same sums later that day");
        assert_eq!(days(conn, 9).await.expect("days"), std::slice::from_ref(&day));
        let far = DayMetrics { day: day.day + DAYS_MAX, ..day.clone() };
        assert!(save_day(conn, &far).await.expect("save"));
        assert_eq!(days(conn, 9).await.expect("days"), [far], "days beyond the bound are gone");
    }

    #[test]
    fn sums_that_do_not_fit_stay_at_the_bound() {
        let live = [metric("r1", "a", i64::MAX), metric("r2", "a", 1)];
        assert_eq!(sum_up(&live, &now()).totals["a"], i64::MAX);
    }
}
