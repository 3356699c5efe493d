//! The tables this crate keeps in each kind of file.

use nasnet_dbmanager::{FileKind, Migration, SchemaSet};

const NAME: &str = "events";

fn warm() -> Migration {
    Migration {
        version: 1,
        name: "warm",
        up: include_str!("../migrations/scope/0001_warm.up.sql"),
        down: include_str!("../migrations/scope/0001_warm.down.sql"),
    }
}

fn epochs() -> Migration {
    Migration {
        version: 2,
        name: "epochs",
        up: include_str!("../migrations/system/0002_epochs.up.sql"),
        down: include_str!("../migrations/system/0002_epochs.down.sql"),
    }
}

fn log() -> Migration {
    Migration {
        version: 1,
        name: "log",
        up: include_str!("../migrations/hot/0001_log.up.sql"),
        down: include_str!("../migrations/hot/0001_log.down.sql"),
    }
}

/// The schema sets of the event store: the order of all events in hot.db, the warm tier in system.db and in every
/// router's database.
#[must_use]
pub fn schema_sets() -> Vec<SchemaSet> {
    vec![
        SchemaSet::new(NAME, FileKind::Hot, vec![log()]),
        SchemaSet::new(NAME, FileKind::System, vec![warm(), epochs()]),
        SchemaSet::new(NAME, FileKind::Router, vec![warm()]),
    ]
}
