//! The warm tier: what the database of a scope keeps on flash.

pub(crate) mod bodies;
pub(crate) mod dictionary;
pub(crate) mod lists;
pub(crate) mod names;
pub(crate) mod overlap;
pub(crate) mod rows;
pub(crate) mod segment;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nasnet_dbmanager::{Cause, DbManager, Options};
    use sqlx::Row as _;

    use super::{rows, segment};
    use crate::error::Error;

    async fn plan_of(manager: &DbManager, sql: &str) -> Vec<String> {
        let sql = format!("EXPLAIN QUERY PLAN {sql}");
        manager
            .system()
            .read(Cause::new("test"), move |conn| {
                Box::pin(async move {
                    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(conn).await?;
                    Ok::<_, Error>(found.into_iter().map(|row| row.get::<String, _>("detail")).collect())
                })
            })
            .await
            .unwrap()
    }

    async fn manager(dir: &Path) -> DbManager {
        let options = Options::new(dir.join("data")).run_dir(dir.join("run")).schemas(crate::schema_sets());
        DbManager::open(options).await.unwrap()
    }

    #[tokio::test]
    async fn no_page_of_a_query_looks_at_a_whole_table() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path()).await;
        for sql in rows::PAGES.into_iter().chain(segment::pages()) {
            let plan = plan_of(&manager, sql).await;
            let tables = ["event_rows", "event_segments", "event_sealed", "r", "s", "k", "event_names"];
            let scans = plan.iter().filter(|step| {
                let scanned = step.strip_prefix("SCAN ").map(|rest| rest.split(' ').next().unwrap_or(rest));
                scanned.is_some_and(|table| tables.contains(&table))
            });
            assert_eq!(scans.count(), 0, "{sql}: {plan:#?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plan:#?}");
        }
    }

    #[tokio::test]
    async fn only_rows_that_are_not_known_are_looked_at_for_a_version() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path()).await;
        for sql in rows::BEHIND {
            let plan = plan_of(&manager, sql).await;
            assert!(plan.iter().any(|step| step == "SEARCH r USING INTEGER PRIMARY KEY (rowid>?)"), "{plan:#?}");
        }
    }
}
