//! The tables of this crate and of those below, put together for the database manager.

use nasnet_dbmanager::{FileKind, HighWater, LargestId, Migration, SchemaSet};
use nasnet_state::MigrationText;

/// Returns the schema sets of the whole engine: resources, events, locks and the journal.
///
/// Pass them to [`Options::schemas`](nasnet_dbmanager::Options::schemas) before opening.
pub fn schema_sets() -> Vec<SchemaSet> {
    let journal = Migration {
        version: 1,
        name: "journal",
        up: include_str!("../migrations/0001_journal.up.sql"),
        down: include_str!("../migrations/0001_journal.down.sql"),
    };
    let mut sets = vec![
        SchemaSet::new("state", FileKind::Router, adapted(nasnet_state::MIGRATIONS)),
        SchemaSet::new("state", FileKind::Runtime, adapted(nasnet_state::RUNTIME_MIGRATIONS)),
        SchemaSet::new("reconcile", FileKind::Router, vec![journal]),
    ];
    sets.extend(nasnet_events::schema_sets());
    sets.extend(nasnet_locking::schema_sets());
    sets
}

/// Returns where the numbers of the counters are in use, for
/// [`Options::high_waters`](nasnet_dbmanager::Options::high_waters): restoring raises the counters past them.
pub fn high_waters() -> Vec<HighWater> {
    [nasnet_events::high_waters(), nasnet_locking::high_waters()].concat()
}

/// Returns where the newest ids are found, for
/// [`Options::largest_ids`](nasnet_dbmanager::Options::largest_ids): ids given out after an unclean stop are greater.
pub fn largest_ids() -> Vec<LargestId> {
    let of = |table, sql| LargestId { file: FileKind::Router, table, sql };
    let mut all = vec![of("resource", "SELECT MAX(uid) FROM resource")];
    all.extend(nasnet_events::largest_ids());
    all
}

fn adapted(migrations: &[MigrationText]) -> Vec<Migration> {
    let adapt =
        |text: &MigrationText| Migration { version: text.version, name: text.name, up: text.up, down: text.down };
    migrations.iter().map(adapt).collect()
}
