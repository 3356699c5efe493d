//! S7: migrating the databases of a fleet at once and one after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use nasnet_benches::measure::{Ratio, median};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{DbManager, FileKind, Migration, MigrationOutcome, NewRouter, Options, RouterId, SchemaSet};

use crate::Failure;

/// Migrated at once.
const PARALLEL: usize = 5;

/// Each round is one more version of the schema, for both fleets.
const ROUNDS: u32 = 5;

const FIRST: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, body BLOB) STRICT;
                     CREATE INDEX item_name ON item (name)";

/// What a migration usually does: a column more, filled, and an index.
const STEPS: [&str; ROUNDS as usize] = [
    "ALTER TABLE item ADD COLUMN a TEXT; UPDATE item SET a = name; CREATE INDEX item_a ON item (a)",
    "ALTER TABLE item ADD COLUMN b TEXT; UPDATE item SET b = name; CREATE INDEX item_b ON item (b)",
    "ALTER TABLE item ADD COLUMN c TEXT; UPDATE item SET c = name; CREATE INDEX item_c ON item (c)",
    "ALTER TABLE item ADD COLUMN d TEXT; UPDATE item SET d = name; CREATE INDEX item_d ON item (d)",
    "ALTER TABLE item ADD COLUMN e TEXT; UPDATE item SET e = name; CREATE INDEX item_e ON item (e)",
];

/// The schema with that many steps after the first version.
fn schema(steps: usize) -> SchemaSet {
    let texts = std::iter::once(FIRST).chain(STEPS.into_iter().take(steps));
    let migration = |(version, up)| Migration { version, name: "item", up, down: "" };
    SchemaSet::new("bench", FileKind::Router, (1..).zip(texts).map(migration).collect())
}

fn options(place: &Place, steps: usize) -> Options {
    let mut options = Options::new(place.disk.path().join("data")).schemas([schema(steps)]);
    options.run_dir = Some(place.tmpfs.path().to_path_buf());
    options
}

/// Needs both cores, so nothing else is kept busy.
pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let mut rows = Vec::new();
    for routers in [10, 1_000] {
        let (ratio, failed) = measure(routers, disk).await?;
        let what = format!("migrating {routers} router databases, {PARALLEL} at once vs one after the other");
        rows.push(Ratio::at_least("S7", what, ratio, 1.5));
        rows.push(Ratio::at_most("S7", format!("failed migrations of {routers} databases"), f64::from(failed), 0.0));
    }
    Ok(rows)
}

async fn measure(routers: u32, disk: Option<&Path>) -> Result<(f64, u32), Failure> {
    let places = [Place::new(disk)?, Place::new(disk)?];
    for place in &places {
        let manager = DbManager::open(options(place, 0)).await?;
        let new = (0..routers).map(|number| Ok(NewRouter::new(RouterId::parse(&format!("r{number}"))?)));
        let report = manager.create_routers(new.collect::<Result<Vec<_>, Failure>>()?).await;
        if let Some((id, error)) = report.failures().next() {
            return Err(format!("{id}: {error}").into());
        }
        manager.shutdown().await?;
    }
    let (mut at_once, mut in_turn) = (Vec::new(), Vec::new());
    let mut failed = 0;
    for round in 1..=ROUNDS {
        // The fleets change roles, so that neither the place nor the order of the two decides.
        let (first, second) = if round % 2 == 0 { (PARALLEL, 1) } else { (1, PARALLEL) };
        for (place, parallel) in places.iter().zip([first, second]) {
            let (took, failures) = migrate(place, usize::try_from(round)?, parallel, routers).await?;
            failed += failures;
            if parallel == 1 { in_turn.push(took) } else { at_once.push(took) }
        }
    }
    Ok((median(in_turn).as_secs_f64() / median(at_once).as_secs_f64(), failed))
}

async fn migrate(place: &Place, steps: usize, parallel: usize, routers: u32) -> Result<(Duration, u32), Failure> {
    let manager = DbManager::open(options(place, steps)).await?;
    let start = Instant::now();
    let report = manager.migrate_all(parallel).await?;
    let took = start.elapsed();
    let migrated = report.answers().filter(|(_, outcome)| matches!(outcome, MigrationOutcome::Migrated(_))).count();
    manager.shutdown().await?;
    Ok((took, routers.saturating_sub(u32::try_from(migrated)?)))
}
