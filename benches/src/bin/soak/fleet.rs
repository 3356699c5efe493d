//! The fleet under test: one router whose database holds numbered groups of rows, and what must be true of them.

use std::collections::BTreeMap;
use std::path::Path;

use nasnet_benches::events::Random;
use nasnet_dbmanager::{
    Cause, Database, DbManager, Error, FileKind, KeyOutcome, Migration, NewRouter, Options, RouterId, SchemaSet,
};
use sqlx::SqliteConnection;
use tokio::runtime::Runtime;
use ulid::Ulid;

use crate::Failure;

pub(crate) const CAUSE: Cause = Cause::new("soak");
/// Rows of one group: they are there together or not at all.
pub(crate) const GROUP: i64 = 3;

const ROWS: Migration = Migration {
    version: 1,
    name: "soak",
    up: "CREATE TABLE soak (
             number INTEGER NOT NULL,
             part   INTEGER NOT NULL,
             body   BLOB    NOT NULL,
             PRIMARY KEY (number, part)
         ) STRICT, WITHOUT ROWID",
    down: "DROP TABLE soak",
};
/// Rewrites every row, so that it takes many pages.
const NOTE: Migration = Migration {
    version: 2,
    name: "note",
    up: "ALTER TABLE soak ADD COLUMN note TEXT; UPDATE soak SET note = 'group ' || number",
    down: "ALTER TABLE soak DROP COLUMN note",
};

/// Which schema the program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    Old,
    New,
}

pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A runtime of one thread, for what is done alone and one thing after the other: fewer threads to wake.
pub(crate) fn quiet_runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

pub(crate) fn options(data: &Path, run: &Path, schema: Schema) -> Options {
    let migrations = match schema {
        Schema::Old => vec![ROWS],
        Schema::New => vec![ROWS, NOTE],
    };
    Options::new(data).run_dir(run).schemas([SchemaSet::new("soak", FileKind::Router, migrations)])
}

pub(crate) fn router_id() -> Result<RouterId, Error> {
    RouterId::parse("soak")
}

/// Opens the fleet and makes sure that its router exists.
pub(crate) async fn open(options: Options) -> Result<(DbManager, RouterId), Error> {
    let db = DbManager::open(options).await?;
    let id = router_id()?;
    match db.create_router(NewRouter::new(id.clone()).name("soak").host("192.0.2.1")).await {
        Ok(_) | Err(Error::RouterExists { .. }) => Ok((db, id)),
        Err(error) => {
            db.shutdown().await.ok();
            Err(error)
        }
    }
}

/// The body of a row: different for each, so that a torn or misplaced one is seen.
fn body(number: u64, part: i64) -> Vec<u8> {
    let mut random = Random::new(number.wrapping_mul(31).wrapping_add(part.unsigned_abs()));
    (0..50).flat_map(|_| random.number().to_be_bytes()).collect()
}

pub(crate) fn key(number: u64) -> Ulid {
    Ulid(u128::from(number) << 64 | u128::from(number))
}

/// Inserts a group.
pub(crate) async fn insert_group(conn: &mut SqliteConnection, number: u64) -> Result<(), Error> {
    for part in 0..GROUP {
        sqlx::query("INSERT INTO soak (number, part, body) VALUES (?1, ?2, ?3)")
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(part)
            .bind(body(number, part))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Writes a group under its key.
pub(crate) async fn write_group(db: &Database, number: u64) -> Result<(), Error> {
    db.write_keyed(CAUSE, key(number), move |conn| Box::pin(insert_group(conn, number))).await
}

/// What a look at a router database saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Groups, with how many of their rows are there.
    pub(crate) groups: BTreeMap<u64, i64>,
    /// What cannot be true of any honest database.
    pub(crate) faults: Vec<String>,
}

impl Seen {
    pub(crate) fn has(&self, number: u64) -> bool {
        self.groups.contains_key(&number)
    }

    pub(crate) fn last(&self) -> u64 {
        self.groups.last_key_value().map_or(0, |(number, _)| *number)
    }
}

/// Reads every row and checks what can be checked without knowing what was acknowledged; writes nothing.
pub(crate) async fn rows(db: &Database) -> Result<Seen, Error> {
    type Row = (i64, i64, Vec<u8>);
    let (rows, sound): (Vec<Row>, String) = db
        .read(CAUSE, |conn| {
            Box::pin(async move {
                let rows = sqlx::query_as("SELECT number, part, body FROM soak ORDER BY number, part")
                    .fetch_all(&mut *conn)
                    .await?;
                let sound = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(conn).await?;
                Ok::<_, Error>((rows, sound))
            })
        })
        .await?;
    let mut seen = Seen::default();
    if sound != "ok" {
        seen.faults.push(format!("integrity_check says {sound:?}"));
    }
    for (number, part, bytes) in rows {
        let number = number.unsigned_abs();
        if bytes != body(number, part) {
            seen.faults.push(format!("group {number} part {part} is not what was written"));
        }
        *seen.groups.entry(number).or_default() += 1;
    }
    for (number, parts) in &seen.groups {
        if *parts != GROUP {
            seen.faults.push(format!("group {number} is torn: {parts} of {GROUP} rows"));
        }
    }
    Ok(seen)
}

/// Reads every row, and asks for the keys of the last writes: they agree with the rows, for what was never acknowledged
/// too.
pub(crate) async fn look(db: &Database) -> Result<Seen, Error> {
    let mut seen = rows(db).await?;
    let last = seen.last();
    for number in last.saturating_sub(10).max(1)..=last + 1 {
        let (there, outcome) = (seen.has(number), db.outcome(key(number)).await?);
        if there != (outcome == KeyOutcome::Committed) {
            seen.faults.push(format!("group {number}: there is {there}, its key says {outcome:?}"));
        }
    }
    Ok(seen)
}
