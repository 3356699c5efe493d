//! Where leases are kept.

pub(crate) mod sqlite;

use crate::error::Error;

/// Names the operation in which SQLite failed.
pub(crate) fn storage(operation: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Storage { operation, source: source.into() }
}
