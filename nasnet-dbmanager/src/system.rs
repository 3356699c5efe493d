//! The contents of `system.db`: one typed repository per table.
//!
//! Each module offers functions over `&mut SqliteConnection`, for use inside a write or read of the system database
//! together with other statements, and [`SystemDb`] offers the same as complete operations.

mod access;
pub mod api_keys;
pub mod audit;
mod column;
pub mod counters;
pub(crate) mod data_keys;
mod db;
mod expiry;
pub mod fleet_metrics;
mod last_use;
mod look_up;
pub mod marketplace;
pub mod migration_log;
mod name;
mod password;
#[cfg(test)]
mod plans;
pub mod routers;
#[cfg(test)]
mod scratch;
pub mod secrets;
pub mod sessions;
pub mod settings;
mod token;
pub mod users;

pub use access::{ApiKeys, Sessions, Users};
pub use db::{AuditLog, Counters, FleetMetrics, Marketplace, Routers, Secrets, Settings, SystemDb};
pub use token::Token;

use crate::schema::{FileKind, Migration, SchemaSet};

/// Returns the tables that belong to this crate: those of `system.db`, and those of `runtime.db`.
pub(crate) fn schema_sets() -> Vec<SchemaSet> {
    vec![schema_set(), runtime_schema_set(), crate::custody::schema_set(), crate::budget::schema_set()]
}

/// Returns the tables of `system.db`.
pub(crate) fn schema_set() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "system",
        up: include_str!("../migrations/0001_system.up.sql"),
        down: include_str!("../migrations/0001_system.down.sql"),
    };
    let second = Migration {
        version: 2,
        name: "access",
        up: include_str!("../migrations/0002_access.up.sql"),
        down: include_str!("../migrations/0002_access.down.sql"),
    };
    SchemaSet::new("system", FileKind::System, vec![first, second])
}

fn runtime_schema_set() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "system_runtime",
        up: include_str!("../migrations/0001_system_runtime.up.sql"),
        down: include_str!("../migrations/0001_system_runtime.down.sql"),
    };
    SchemaSet::new("system", FileKind::Runtime, vec![first])
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
