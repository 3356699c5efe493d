//! The contents of `system.db`: one typed repository per table.
//!
//! Each module offers functions over `&mut SqliteConnection`, for use inside a write or read of the system database
//! together with other statements, and [`SystemDb`] offers the same as complete operations.

pub mod audit;
mod column;
pub mod counters;
mod db;
mod name;
pub mod routers;
#[cfg(test)]
mod scratch;
pub mod secrets;
pub mod settings;

pub use db::{AuditLog, Counters, Routers, Secrets, Settings, SystemDb};

use crate::schema::{FileKind, Migration, SchemaSet};

/// Returns the tables of `system.db` that belong to this crate.
pub(crate) fn schema_set() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "system",
        up: include_str!("../migrations/0001_system.up.sql"),
        down: include_str!("../migrations/0001_system.down.sql"),
    };
    SchemaSet::new("system", FileKind::System, vec![first])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::scratch::Scratch;

    async fn objects(scratch: &mut Scratch) -> Vec<String> {
        let query =
            sqlx::query_scalar("SELECT type || ' ' || name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY 1");
        query.fetch_all(&mut scratch.conn).await.expect("schema")
    }

    #[tokio::test]
    async fn going_down_removes_everything_and_going_up_again_brings_it_back() {
        let mut scratch = Scratch::new().await;
        let fresh = objects(&mut scratch).await;
        assert!(fresh.contains(&"trigger audit_log_keeps".to_owned()), "{fresh:?}");
        let set = schema_set();
        for migration in set.migrations.iter().rev() {
            sqlx::raw_sql(migration.down).execute(&mut scratch.conn).await.expect("down");
        }
        assert_eq!(objects(&mut scratch).await, Vec::<String>::new());
        for migration in &set.migrations {
            sqlx::raw_sql(migration.up).execute(&mut scratch.conn).await.expect("up");
        }
        assert_eq!(objects(&mut scratch).await, fresh);
    }
}
