//! The tables this crate keeps in each kind of file.

use nasnet_dbmanager::{FileKind, HighWater, Migration, SchemaSet};

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

fn consumers() -> Migration {
    Migration {
        version: 3,
        name: "consumers",
        up: include_str!("../migrations/system/0003_consumers.up.sql"),
        down: include_str!("../migrations/system/0003_consumers.down.sql"),
    }
}

fn progress() -> Migration {
    Migration {
        version: 1,
        name: "progress",
        up: include_str!("../migrations/runtime/0001_progress.up.sql"),
        down: include_str!("../migrations/runtime/0001_progress.down.sql"),
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
/// router's database, the positions of consumers in system.db and runtime.db.
#[must_use]
pub fn schema_sets() -> Vec<SchemaSet> {
    vec![
        SchemaSet::new(NAME, FileKind::Hot, vec![log()]),
        SchemaSet::new(NAME, FileKind::System, vec![warm(), epochs(), consumers()]),
        SchemaSet::new(NAME, FileKind::Runtime, vec![progress()]),
        SchemaSet::new(NAME, FileKind::Router, vec![warm()]),
    ]
}

/// Returns where epochs are in use, for `Options::high_waters`: an older `system.db` that is restored must not begin an
/// epoch that stored events already have.
#[must_use]
pub fn high_waters() -> Vec<HighWater> {
    let warm = |file, table, sql| HighWater { counter: crate::epoch::COUNTER, file, table, sql };
    [FileKind::System, FileKind::Router]
        .into_iter()
        .flat_map(|file| {
            [
                warm(file, "event_rows", "SELECT MAX(pos) >> 40 FROM event_rows"),
                warm(file, "event_segments", "SELECT MAX(last_pos) >> 40 FROM event_segments"),
                // What is left of rows and segments that were removed.
                warm(file, "event_chain", "SELECT MAX(pos) >> 40 FROM event_chain"),
                warm(file, "event_sealed", "SELECT MAX(last_pos) >> 40 FROM event_sealed"),
            ]
        })
        .collect()
}
