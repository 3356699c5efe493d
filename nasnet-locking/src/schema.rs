//! The tables of this crate, by the kind of file they live in.

use nasnet_dbmanager::{FileKind, Migration, SchemaSet};

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
