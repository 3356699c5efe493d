//! Migrations: which are due, and each one as a transaction that is checked before it commits.

use std::ops::Deref;
use std::path::Path;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use crate::connection::{Guarded, quick_check, run};
use crate::driver::during;
use crate::error::Error;
use crate::schema::{Migration, SchemaSet};

/// One migration as a file remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) version: u32,
    pub(crate) checksum: [u8; 32],
}

/// What must happen to one set of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// The migrations after this version.
    After(u32),
}

/// Computes the checksum of a migration: both texts, so that neither changes unnoticed.
fn checksum(migration: &Migration) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(migration.up.as_bytes());
    hash.update([0]);
    hash.update(migration.down.as_bytes());
    hash.finalize().into()
}

/// Decides what is due for a set, from what the file remembers.
///
/// # Errors
/// [`Error::SchemaTooNew`] and [`Error::MigrationChanged`].
pub(crate) fn due(path: &Path, set: &SchemaSet, applied: &[Applied]) -> Result<Due, Error> {
    let found = applied.last().map_or(0, |last| last.version);
    let known = set.version();
    for (migration, applied) in set.migrations.iter().zip(applied) {
        if migration.version != applied.version || checksum(migration) != applied.checksum {
            return Err(Error::MigrationChanged {
                path: path.to_owned(),
                set: set.name.to_owned(),
                version: applied.version,
            });
        }
    }
    match found.cmp(&known) {
        std::cmp::Ordering::Greater => {
            Err(Error::SchemaTooNew { path: path.to_owned(), set: set.name.to_owned(), found, known })
        }
        std::cmp::Ordering::Equal => Ok(Due::Nothing),
        std::cmp::Ordering::Less => Ok(Due::After(found)),
    }
}

/// Folds the applied migrations of a file into 31 bits, kept in `user_version`: when they equal those of the program,
/// opening reads nothing else. Zero is left to files that were never migrated.
fn fingerprint<'a>(sets: impl IntoIterator<Item = (&'a str, Vec<Applied>)>) -> u32 {
    let mut sets: Vec<_> = sets.into_iter().filter(|(_, applied)| !applied.is_empty()).collect();
    sets.sort_by_key(|(name, _)| *name);
    if sets.is_empty() {
        return 0;
    }
    let mut hash = Sha256::new();
    for (name, applied) in sets {
        for Applied { version, checksum } in applied {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(version.to_be_bytes());
            hash.update(checksum);
        }
    }
    let digest = hash.finalize();
    (u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 1).max(1)
}

/// The schema sets of one kind of file, with their fingerprint.
#[derive(Debug)]
pub(crate) struct Sets {
    all: Vec<SchemaSet>,
    fingerprint: u32,
}

impl Sets {
    pub(crate) fn new(all: Vec<SchemaSet>) -> Self {
        Self { fingerprint: fingerprint_of_program(&all), all }
    }

    pub(crate) fn fingerprint(&self) -> u32 {
        self.fingerprint
    }
}

impl Deref for Sets {
    type Target = [SchemaSet];

    fn deref(&self) -> &[SchemaSet] {
        &self.all
    }
}

fn fingerprint_of_program(sets: &[SchemaSet]) -> u32 {
    let all = |set: &SchemaSet| {
        set.migrations.iter().map(|m| Applied { version: m.version, checksum: checksum(m) }).collect::<Vec<_>>()
    };
    fingerprint(sets.iter().map(|set| (set.name, all(set))))
}

pub(crate) fn table_of(set: &str) -> String {
    format!("_nasnet_{set}_migrations")
}

/// Lists the sets a file remembers, those this program does not know included.
async fn sets_in_file(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '_nasnet_*_migrations' ORDER BY name",
    )
    .fetch_all(conn)
    .await
    .map_err(during("list the schema sets"))?;
    let stem = |name: &String| Some(name.strip_prefix("_nasnet_")?.strip_suffix("_migrations")?.to_owned());
    Ok(names.iter().filter_map(stem).collect())
}

async fn applied(conn: &mut SqliteConnection, set: &str) -> Result<Vec<Applied>, Error> {
    let what = during("read the applied migrations");
    // A set's name is checked to be a lower-case word before any file is opened; one found in a file comes from there.
    let sql = format!("SELECT version, checksum FROM \"{}\" ORDER BY version", table_of(set));
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(conn).await.map_err(&what)?;
    let decode = |row: &sqlx::sqlite::SqliteRow| {
        let checksum: Vec<u8> = row.try_get("checksum").map_err(&what)?;
        let checksum = checksum
            .try_into()
            .map_err(|_| Error::Decode { what: "migration checksum", detail: format!("schema {set}") })?;
        Ok(Applied { version: row.try_get("version").map_err(&what)?, checksum })
    };
    rows.iter().map(decode).collect()
}

async fn fingerprint_in_file(conn: &mut SqliteConnection) -> Result<u32, Error> {
    let mut sets = Vec::new();
    for set in sets_in_file(conn).await? {
        let applied = applied(conn, &set).await?;
        sets.push((set, applied));
    }
    Ok(fingerprint(sets.iter().map(|(name, applied)| (name.as_str(), applied.clone()))))
}

/// Returns each set that is behind, with the version found.
///
/// # Errors
/// [`Error::SchemaTooNew`] when a set is ahead, [`Error::MigrationChanged`] when an applied one has another text.
pub(crate) async fn pending(
    conn: &mut SqliteConnection,
    path: &Path,
    sets: &Sets,
) -> Result<Vec<(SchemaSet, u32)>, Error> {
    let user_version: u32 = sqlx::query_scalar("SELECT user_version FROM pragma_user_version")
        .fetch_one(&mut *conn)
        .await
        .map_err(during("read the schema version"))?;
    pending_since(conn, path, sets, user_version).await
}

/// As [`pending`], for a file whose `user_version` is known.
pub(crate) async fn pending_since(
    conn: &mut SqliteConnection,
    path: &Path,
    sets: &Sets,
    user_version: u32,
) -> Result<Vec<(SchemaSet, u32)>, Error> {
    if user_version == sets.fingerprint {
        return Ok(Vec::new());
    }
    let in_file = sets_in_file(conn).await?;
    let mut pending = Vec::new();
    for set in sets.iter() {
        let applied =
            if in_file.iter().any(|name| name == set.name) { applied(conn, set.name).await? } else { Vec::new() };
        if let Due::After(found) = due(path, set, &applied)? {
            pending.push((set.clone(), found));
        }
    }
    Ok(pending)
}

/// Brings every set to the version of the program. The caller holds the exclusive lock of the file.
pub(crate) async fn run_pending(
    guarded: &mut Guarded,
    path: &Path,
    pending: &[(SchemaSet, u32)],
    wall_ms: i64,
) -> Result<(), Error> {
    for (set, found) in pending {
        for migration in set.migrations.iter().filter(|m| m.version > *found) {
            tracing::info!(path = %path.display(), set = set.name, version = migration.version, "migrating");
            step(guarded, path, set.name, Step::Up { migration, wall_ms }).await?;
        }
    }
    Ok(())
}

/// Runs the stored down texts of a set until the file is at `version`. The caller holds the exclusive lock.
pub(crate) async fn run_down(guarded: &mut Guarded, path: &Path, set: &str, version: u32) -> Result<u32, Error> {
    let mut steps = 0;
    if !sets_in_file(&mut guarded.conn).await?.iter().any(|name| name == set) {
        return Ok(0);
    }
    while let Some(last) = applied(&mut guarded.conn, set).await?.last().map(|last| last.version) {
        if last <= version {
            break;
        }
        tracing::info!(path = %path.display(), set, version = last, "migrating down");
        step(guarded, path, set, Step::Down { version: last }).await?;
        steps += 1;
    }
    Ok(steps)
}

enum Step<'a> {
    Up { migration: &'a Migration, wall_ms: i64 },
    Down { version: u32 },
}

/// Runs one step as one transaction, with foreign keys checked at its end instead of at each statement.
async fn step(guarded: &mut Guarded, path: &Path, set: &str, step: Step<'_>) -> Result<(), Error> {
    let version = match &step {
        Step::Up { migration, .. } => migration.version,
        Step::Down { version } => *version,
    };
    // The switch has no effect inside a transaction.
    run(&mut guarded.conn, "PRAGMA foreign_keys = OFF".to_owned()).await?;
    let outcome = transaction(guarded, set, step).await;
    guarded.may_commit.store(true, std::sync::atomic::Ordering::Release);
    let restored = run(&mut guarded.conn, "PRAGMA foreign_keys = ON".to_owned()).await;
    outcome.map_err(|error| match error {
        // Not the fault of the migration: the same one may succeed later.
        Error::NoSpace { .. } | Error::Busy { .. } | Error::ReadOnly { .. } | Error::Medium { .. } => error,
        other => {
            Error::MigrationFailed { path: path.to_owned(), set: set.to_owned(), version, detail: other.to_string() }
        }
    })?;
    restored
}

async fn transaction(guarded: &mut Guarded, set: &str, step: Step<'_>) -> Result<(), Error> {
    use std::sync::atomic::Ordering;

    let Guarded { conn, may_commit, rolled_back, .. } = guarded;
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(during("begin the migration"))?;
    rolled_back.store(false, Ordering::Release);
    may_commit.store(false, Ordering::Release);
    let table = table_of(set);
    match step {
        Step::Up { migration, wall_ms } => {
            run(&mut tx, bookkeeping(&table)).await?;
            sqlx::raw_sql(migration.up).execute(&mut *tx).await.map_err(during("run the up text"))?;
            let sql = format!(
                "INSERT INTO \"{table}\" (version, name, checksum, down_sql, applied_wall_ms) VALUES (?1, ?2, ?3, ?4, ?5)"
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(migration.version)
                .bind(migration.name)
                .bind(&checksum(migration)[..])
                .bind(migration.down)
                .bind(wall_ms)
                .execute(&mut *tx)
                .await
                .map_err(during("note the migration"))?;
        }
        Step::Down { version } => {
            let sql = format!("DELETE FROM \"{table}\" WHERE version = ?1 RETURNING down_sql");
            let down: String = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(version)
                .fetch_one(&mut *tx)
                .await
                .map_err(during("read the down text"))?;
            // The text was given by the program that applied the migration and lies in a verified file.
            sqlx::raw_sql(AssertSqlSafe(down)).execute(&mut *tx).await.map_err(during("run the down text"))?;
        }
    }
    check_foreign_keys(&mut tx).await?;
    quick_check(&mut tx).await?;
    let fingerprint = fingerprint_in_file(&mut tx).await?;
    run(&mut tx, format!("PRAGMA user_version = {fingerprint}")).await?;
    // A text that ends its transaction would commit half a migration; the closed gate turned that into a rollback.
    if rolled_back.load(Ordering::Acquire) {
        return Err(Error::TransactionLost);
    }
    may_commit.store(true, Ordering::Release);
    tx.commit().await.map_err(during("commit the migration"))
}

fn bookkeeping(table: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS \"{table}\" (
            version         INTEGER PRIMARY KEY CHECK (version > 0),
            name            TEXT NOT NULL,
            checksum        BLOB NOT NULL CHECK (length(checksum) = 32),
            down_sql        TEXT NOT NULL,
            applied_wall_ms INTEGER NOT NULL
        ) STRICT"
    )
}

async fn check_foreign_keys(conn: &mut SqliteConnection) -> Result<(), Error> {
    let dangling: Vec<String> = sqlx::query_scalar("SELECT DISTINCT \"table\" FROM pragma_foreign_key_check")
        .fetch_all(conn)
        .await
        .map_err(during("check foreign keys"))?;
    if dangling.is_empty() {
        return Ok(());
    }
    Err(Error::Constraint {
        kind: crate::error::ConstraintKind::ForeignKey,
        detail: format!("dangling references in {}", dangling.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::FileKind;

    fn migration(version: u32, up: &'static str) -> Migration {
        Migration { version, name: "m", up, down: "" }
    }

    fn noted(set: &SchemaSet) -> Vec<Applied> {
        set.migrations.iter().map(|m| Applied { version: m.version, checksum: checksum(m) }).collect()
    }

    #[test]
    fn older_equal_newer_and_changed_files_are_told_apart() {
        let one = SchemaSet::new("a", FileKind::Hot, vec![migration(1, "x")]);
        let two = SchemaSet::new("a", FileKind::Hot, vec![migration(1, "x"), migration(2, "y")]);
        let path = Path::new("f");
        assert_eq!(due(path, &two, &[]).expect("due"), Due::After(0));
        assert_eq!(due(path, &two, &noted(&one)).expect("due"), Due::After(1));
        assert_eq!(due(path, &two, &noted(&two)).expect("due"), Due::Nothing);
        assert!(matches!(due(path, &one, &noted(&two)), Err(Error::SchemaTooNew { found: 2, known: 1, .. })));
        let changed = SchemaSet::new("a", FileKind::Hot, vec![migration(1, "z")]);
        assert!(matches!(due(path, &changed, &noted(&one)), Err(Error::MigrationChanged { version: 1, .. })));
    }

    #[test]
    fn the_fingerprint_depends_on_sets_versions_and_texts_but_not_on_their_order() {
        let a = SchemaSet::new("a", FileKind::Hot, vec![migration(1, "x")]);
        let b = SchemaSet::new("b", FileKind::Hot, vec![migration(1, "x"), migration(2, "y")]);
        let empty = SchemaSet::new("c", FileKind::Hot, vec![]);
        let both = fingerprint_of_program(&[a.clone(), b.clone()]);
        assert_eq!(both, fingerprint_of_program(&[b.clone(), empty.clone(), a.clone()]));
        assert_ne!(both, fingerprint_of_program(std::slice::from_ref(&a)));
        let edited = SchemaSet::new("a", FileKind::Hot, vec![migration(1, "z")]);
        assert_ne!(both, fingerprint_of_program(&[edited, b]));
        assert_eq!(fingerprint_of_program(&[empty]), 0);
        assert!(i32::try_from(both).is_ok());
    }
}
