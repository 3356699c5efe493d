//! The tables of this crate, by the kind of file they live in.

use nasnet_dbmanager::{FileKind, HighWater, Migration, SchemaSet};

use crate::manager::TOKEN_COUNTER;

/// Returns the schema sets to hand to [`nasnet_dbmanager::Options`]: leases in `locks.db`, fences in the system and the
/// router databases.
#[must_use]
pub fn schema_sets() -> Vec<SchemaSet> {
    let fence = || {
        vec![Migration {
            version: 1,
            name: "fence",
            up: include_str!("../migrations/0001_fence.up.sql"),
            down: include_str!("../migrations/0001_fence.down.sql"),
        }]
    };
    let leases = vec![Migration {
        version: 1,
        name: "leases",
        up: include_str!("../migrations/0001_leases.up.sql"),
        down: include_str!("../migrations/0001_leases.down.sql"),
    }];
    vec![
        SchemaSet::new("locking", FileKind::Locks, leases),
        SchemaSet::new("locking", FileKind::System, fence()),
        SchemaSet::new("locking", FileKind::Router, fence()),
    ]
}

/// Returns where fencing tokens are in use, for `Options::high_waters`: a restored database must never see a token of
/// its future handed out again.
#[must_use]
pub fn high_waters() -> Vec<HighWater> {
    let fence = |file| HighWater { counter: TOKEN_COUNTER, file, table: "fence", sql: "SELECT MAX(token) FROM fence" };
    vec![fence(FileKind::System), fence(FileKind::Router)]
}
