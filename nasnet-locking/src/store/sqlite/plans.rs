//! Every statement of a request searches an index: a long table of leases makes no request slow.

use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use super::{
    DELETE_LEASE, GRANT, GRANT_IF_ALONE, LEASE_BY_ID, LEASES, LEASES_OF_SESSION, RELATED_LEASES, RELATED_TICKETS,
};

async fn plan(statement: &str) -> Vec<String> {
    let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    sqlx::raw_sql(include_str!("../../../migrations/0001_leases.up.sql")).execute(&mut conn).await.unwrap();
    let rows =
        sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"))).fetch_all(&mut conn).await.unwrap();
    rows.iter().map(|row| row.get("detail")).collect()
}

fn scans_a_table(plan: &[String]) -> bool {
    plan.iter().any(|step| step.starts_with("SCAN") && !step.contains("VIRTUAL TABLE") && !step.contains("CONSTANT"))
}

#[tokio::test]
async fn no_statement_of_a_request_scans_a_table() {
    for statement in [
        GRANT,
        GRANT_IF_ALONE,
        RELATED_LEASES,
        RELATED_TICKETS,
        LEASE_BY_ID,
        LEASES_OF_SESSION,
        DELETE_LEASE,
        "DELETE FROM lease WHERE token = ?1",
        "DELETE FROM lease WHERE session = ?1",
        "DELETE FROM ticket WHERE number = ?1",
        "DELETE FROM ticket WHERE id = ?1",
        "DELETE FROM ticket WHERE session = ?1",
        "UPDATE lease SET deadline_ms = ?2 WHERE token = ?1",
    ] {
        let plan = plan(statement).await;
        assert!(!plan.is_empty() && !scans_a_table(&plan), "{statement}: {plan:?}");
    }
}

#[tokio::test]
async fn the_range_of_descendants_is_searched_in_the_key_index() {
    let plan = plan(GRANT_IF_ALONE).await;
    for table in ["key=?", "key>? AND key<?"] {
        assert_eq!(plan.iter().filter(|step| step.contains(&format!("PRIMARY KEY ({table})"))).count(), 2, "{plan:?}");
    }
}

#[tokio::test]
async fn listing_everything_is_seen_as_a_scan() {
    assert!(scans_a_table(&plan(LEASES).await));
}
