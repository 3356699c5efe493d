//! The contents of `system.db`: one typed repository per table.
//!
//! Each module offers functions over `&mut SqliteConnection`, for use inside a write or read of the system database
//! together with other statements, and [`SystemDb`] offers the same as complete operations.

pub mod audit;
mod column;
pub mod counters;
mod name;
pub mod routers;
#[cfg(test)]
mod scratch;
pub mod secrets;
pub mod settings;

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
