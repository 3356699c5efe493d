//! Who knows of snapshots of what is folded from events.

use std::fmt;

use nasnet_dbmanager::{BoxFuture, Scope};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::position::Position;

/// Tells up to where events are not needed for folding any more, because a snapshot at or after them exists.
///
/// It is asked inside the transaction that removes events, on the database of the scope: snapshots that live there
/// cannot vanish in between.
pub trait SnapshotHorizon: Send + Sync + fmt::Debug {
    /// The position up to which every folded stream of the scope ([`crate::Retention::full_history`]) has a snapshot at or
    /// after its events; `None` = there is no snapshot yet.
    fn snapshot_through<'c>(
        &'c self,
        conn: &'c mut SqliteConnection,
        scope: &'c Scope,
    ) -> BoxFuture<'c, Result<Option<Position>, Error>>;
}
