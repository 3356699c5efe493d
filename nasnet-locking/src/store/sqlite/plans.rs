//! Every statement of a request searches an index: a long table of leases makes no request slow.

use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use super::rows::{
    ANY_TICKET, BREAK, DRAW_TICKET, EXTEND, GIVE_TICKET_UP, INDEX_KEY, LEASE, LEASE_AT, LEASE_BELOW, LEASE_OF_ANYBODY,
    LEASES, LEASES_OF_SESSION, NEXT_TOKEN, RELATED_LEASES, RELATED_TICKETS, REMOVE, REMOVE_KEY, REMOVE_TICKET, STORE,
    TAKE_TOKEN,
};

async fn plan(statement: &str) -> Vec<String> {
    let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    sqlx::raw_sql(include_str!("../../../migrations/0001_leases.up.sql")).execute(&mut conn).await.unwrap();
    let rows =
        sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"))).fetch_all(&mut conn).await.unwrap();
    rows.iter().map(|row| row.get("detail")).collect()
}

fn scans_a_table(plan: &[String]) -> bool {
    // What the statement itself has found is no table.
    let harmless = |step: &str| ["VIRTUAL TABLE", "CONSTANT", "SCAN found"].iter().any(|part| step.contains(part));
    plan.iter().any(|step| step.starts_with("SCAN") && !harmless(step))
}

#[tokio::test]
async fn no_statement_of_a_request_scans_a_table() {
    for statement in [
        LEASE_AT,
        LEASE_BELOW,
        NEXT_TOKEN,
        TAKE_TOKEN,
        RELATED_LEASES,
        RELATED_TICKETS,
        LEASE,
        LEASES_OF_SESSION,
        REMOVE,
        REMOVE_KEY,
        EXTEND,
        BREAK,
        REMOVE_TICKET,
        GIVE_TICKET_UP,
        "DELETE FROM lease WHERE session = ?1",
        "DELETE FROM ticket WHERE session = ?1",
    ] {
        let plan = plan(statement).await;
        assert!(!plan.is_empty() && !scans_a_table(&plan), "{statement}: {plan:?}");
    }
}

#[tokio::test]
async fn inserting_searches_nothing_and_one_ticket_is_enough_to_know_of_a_queue() {
    for statement in [STORE, INDEX_KEY, DRAW_TICKET] {
        assert_eq!(plan(statement).await, [""; 0], "{statement}");
    }
    assert!(ANY_TICKET.ends_with("LIMIT 1"));
}

#[tokio::test]
async fn the_range_of_descendants_is_searched_in_the_key_index() {
    for (statement, wanted) in [
        (RELATED_LEASES, &["key=?", "key>? AND key<?"][..]),
        (RELATED_TICKETS, &["key=?", "key>? AND key<?"]),
        (LEASE_AT, &["key=?"]),
        (LEASE_BELOW, &["key>? AND key<?"]),
    ] {
        let plan = plan(statement).await;
        for range in wanted {
            assert!(plan.iter().any(|step| step.contains(&format!("PRIMARY KEY ({range})"))), "{range}: {plan:?}");
        }
    }
}

#[tokio::test]
async fn what_an_operator_asks_is_seen_as_a_scan() {
    assert!(scans_a_table(&plan(LEASES).await));
    assert!(scans_a_table(&plan(LEASE_OF_ANYBODY).await));
}
