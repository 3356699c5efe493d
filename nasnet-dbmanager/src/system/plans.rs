//! No query of `system.db` reads a whole table, but for those named here with their reason.

use sqlx::{AssertSqlSafe, Row};

use super::scratch::Scratch;
use super::{
    api_keys, audit, counters, data_keys, fleet_metrics, last_use, marketplace, migration_log, routers, secrets,
    sessions, settings, users,
};

/// Whole tables are read by design: the fleet is what is listed, or retention compares every row with its limits.
const SCANS: [&str; 12] = [
    "routers::LIST",
    "routers::COUNT",
    "migration_log::LIST",
    "sessions::PRUNE",
    "last_use::DUE",
    "fleet_metrics::LIVE",
    "audit::EXCESS",
    "data_keys::LIST",
    "custody::INTENTS",
    "custody::LIST_RETIRED",
    "custody::LIST_ASIDE",
    "custody::LIST_BACKUPS",
];

const STATEMENTS: &[&[(&str, &str)]] = &[
    api_keys::STATEMENTS,
    audit::STATEMENTS,
    counters::STATEMENTS,
    crate::budget::STATEMENTS,
    crate::custody::STATEMENTS,
    data_keys::STATEMENTS,
    fleet_metrics::STATEMENTS,
    last_use::STATEMENTS,
    marketplace::STATEMENTS,
    migration_log::STATEMENTS,
    routers::STATEMENTS,
    secrets::STATEMENTS,
    sessions::STATEMENTS,
    settings::STATEMENTS,
    users::STATEMENTS,
];

/// Returns the steps of a plan that visit a whole table. A step along the order of a key ends at the limit of its
/// statement, which each of those has.
fn scans(plan: &[String], sql: &str) -> Vec<String> {
    let bounded = sql.contains("ORDER BY") && sql.contains("LIMIT") && !sql.contains("OVER");
    let whole = |step: &&String| {
        // The one row of the retention mark, a constant and what the caller passes are no tables to search.
        let excused = ["audit_retention", "CONSTANT", "VIRTUAL TABLE INDEX"];
        step.starts_with("SCAN") && !excused.iter().any(|excuse| step.contains(excuse))
    };
    plan.iter()
        .filter(whole)
        .filter(|_| !bounded || plan.iter().any(|step| step.contains("TEMP B-TREE")))
        .cloned()
        .collect()
}

#[tokio::test]
async fn every_statement_prepares_and_none_but_the_named_ones_reads_a_whole_table() {
    let mut scratch = Scratch::new().await;
    for migration in super::schema_sets().into_iter().skip(1).flat_map(|set| set.migrations) {
        sqlx::raw_sql(migration.up).execute(&mut scratch.conn).await.expect("runtime tables");
    }
    let mut seen = Vec::new();
    for (name, sql) in STATEMENTS.iter().copied().flatten() {
        let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
        let rows = rows.fetch_all(&mut scratch.conn).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let scans = scans(&plan, sql);
        assert_eq!(SCANS.contains(name), !scans.is_empty(), "{name}: {plan:?}");
        seen.push(*name);
    }
    for name in SCANS {
        assert!(seen.contains(&name), "{name} is excused but does not exist");
    }
    assert!(seen.len() > 50, "{}", seen.len());
}

#[tokio::test]
async fn a_scan_is_noticed() {
    let mut scratch = Scratch::new().await;
    let sql = "SELECT name FROM users WHERE role = ?1";
    let rows = sqlx::query("EXPLAIN QUERY PLAN SELECT name FROM users WHERE role = ?1");
    let rows = rows.fetch_all(&mut scratch.conn).await.expect("plan");
    let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
    assert_eq!(scans(&plan, sql).len(), 1, "{plan:?}");
}
