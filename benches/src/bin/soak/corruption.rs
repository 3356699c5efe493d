//! Campaign `corruption`: closed databases and their logs with flipped bits and missing ends.
//!
//! One router of two is damaged while the fleet is closed: the file of its database, or the log a process left that
//! did not close it. Then the fleet is opened and every row is read. Each row carries a CRC-32C of its content and the
//! rows of a table are numbered without a gap, so damage to what they cover is seen whatever SQLite says. Promises:
//! no panic, no hang, no row that differs from what was written and passes its check, an answer within a second, the
//! other router untouched. Damage that nothing answers to is counted as undetectable: flips in unused bytes, and a
//! log cut between two transactions, which cannot be told from one that ended there but for the high water mark.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{
    Cause, DbManager, Error, FileKind, Migration, NewRouter, Options, Recovery, RestoredFrom, RouterId, SchemaSet,
    Scope, Which,
};

use crate::{Controls, Failure, Found, Turn};

const CAUSE: Cause = Cause::new("soak");
/// Rows of one database: enough for interior pages.
const ROWS: i64 = 240;
/// Transactions that are in the log when its process ends.
const LOGGED: i64 = 12;
/// The time within which damage must be answered to. Unoptimised and beside other work it takes longer, but never as long as
/// SQLite waits for a lock.
const ANSWER: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });
/// After which a case counts as hanging.
const HANG: Duration = Duration::from_secs(120);
/// How often damaged databases are not only read but recovered.
const RECOVER_EVERY: u64 = 8;
/// Damages tried on one original.
const DAMAGES: u64 = 40;

fn schema() -> SchemaSet {
    let rows = Migration {
        version: 1,
        name: "checked",
        up: "CREATE TABLE checked (
                 number INTEGER PRIMARY KEY,
                 body   BLOB    NOT NULL,
                 crc    INTEGER NOT NULL
             ) STRICT;
             CREATE INDEX checked_by_crc ON checked (crc)",
        down: "DROP TABLE checked",
    };
    SchemaSet::new("checked", FileKind::Router, vec![rows])
}

fn options(data: &Path, run: &Path) -> Options {
    Options::new(data).run_dir(run).schemas([schema()])
}

fn id(name: &str) -> Result<RouterId, Error> {
    RouterId::parse(name)
}

/// The body of a row: different for each.
fn body(number: i64) -> Vec<u8> {
    let mut random = Random::new(number.unsigned_abs().wrapping_mul(77));
    (0..8 + random.below(24)).flat_map(|_| random.number().to_be_bytes()).collect()
}

/// CRC-32C, bit by bit: slow, short and beyond doubt.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

fn checksum(number: i64, body: &[u8]) -> i64 {
    let covered: Vec<u8> = number.to_be_bytes().iter().chain(body).copied().collect();
    i64::from(crc32c(&covered))
}

async fn insert(router: &nasnet_dbmanager::Database, numbers: std::ops::Range<i64>) -> Result<(), Error> {
    router
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                for number in numbers {
                    let body = body(number);
                    sqlx::query("INSERT INTO checked (number, body, crc) VALUES (?1, ?2, ?3)")
                        .bind(number)
                        .bind(&body)
                        .bind(checksum(number, &body))
                        .execute(&mut *conn)
                        .await?;
                }
                Ok(())
            })
        })
        .await
}

/// A fleet as it is before it is damaged.
struct Original {
    place: Place,
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// The high water mark, which users keep in a second file: rows that were answered.
    rows: i64,
}

impl Original {
    fn data(&self) -> PathBuf {
        self.place.disk.path().join("data")
    }

    fn backup(&self) -> PathBuf {
        self.place.disk.path().join("backup")
    }

    fn run(&self) -> &Path {
        self.place.tmpfs.path()
    }

    fn victim(&self) -> PathBuf {
        self.data().join("routers/victim/router-victim.db")
    }

    /// Builds a fleet; with `log` the end of the data is in a log that was never moved into the file.
    async fn build(log: bool, backup: bool) -> Result<Self, Failure> {
        // Closed files are damaged here, so no medium is needed, and its syncs would take most of the time.
        let memory = Path::new("/dev/shm");
        let place = Place::new(memory.is_dir().then_some(memory))?;
        let (data, run) = (place.disk.path().join("data"), place.tmpfs.path().to_owned());
        let db = DbManager::open(options(&data, &run)).await?;
        for name in ["victim", "witness"] {
            db.create_router(NewRouter::new(id(name)?)).await?;
            insert(&*db.router(&id(name)?).await?, 0..ROWS).await?;
        }
        if backup {
            db.backup(Which::Router(id("victim")?), place.disk.path().join("backup")).await?;
        }
        let victim = db.router(&id("victim")?).await?;
        victim.checkpoint().await?;
        let mut rows = ROWS;
        if log {
            for _ in 0..LOGGED {
                insert(&victim, rows..rows + 2).await?;
                rows += 2;
            }
        }
        // What a killed process leaves: the files as they are now. Closing would move the log into the file.
        let file = data.join("routers/victim/router-victim.db");
        let wal = PathBuf::from(format!("{}-wal", file.display()));
        let as_killed = if log { Some((fs::read(&file)?, fs::read(&wal)?)) } else { None };
        drop(victim);
        db.shutdown().await?;
        drop(db);
        if let Some((file_bytes, wal_bytes)) = as_killed {
            fs::write(&file, file_bytes)?;
            fs::write(&wal, wal_bytes)?;
        }
        let mut original = Self { place, files: BTreeMap::new(), rows };
        original.files = read_tree(&original.data())?;
        if backup {
            original.files.extend(read_tree(&original.backup())?);
        }
        Ok(original)
    }

    /// Damages a backup, if there is one, so that the chain has to go on.
    fn damage_backup(&self, random: &mut Random) -> Result<(), Failure> {
        let backups: Vec<&PathBuf> = self.files.keys().filter(|path| path.starts_with(self.backup())).collect();
        if let Some(path) = backups.get(usize::try_from(random.below(backups.len().max(1) as u64))?) {
            damage(path, random)?;
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Failure> {
        for dir in [self.data(), self.backup()] {
            if dir.exists() {
                fs::remove_dir_all(dir)?;
            }
        }
        for (path, bytes) in &self.files {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, bytes)?;
            // The master key is refused when others may read it.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
        for entry in fs::read_dir(self.run())? {
            let path = entry?.path();
            if path.is_file() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn read_tree(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, Failure> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(read_tree(&path)?);
        } else {
            files.insert(path.clone(), fs::read(path)?);
        }
    }
    Ok(files)
}

/// Damages one file and says how.
fn damage(file: &Path, random: &mut Random) -> Result<String, Failure> {
    let mut bytes = fs::read(file)?;
    let size = u64::try_from(bytes.len())?;
    let at = usize::try_from(random.below(size))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let how = match random.below(8) {
        0 => {
            bytes.truncate(at);
            format!("{name} cut to {at} bytes")
        }
        1 => {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
            format!("{name}: zeroes from {page}")
        }
        2 => {
            let end = (at + 512).min(bytes.len());
            for byte in &mut bytes[at..end] {
                *byte = u8::try_from(random.below(256))?;
            }
            format!("{name}: garbage from {at}")
        }
        // Most of what happens is a single bit; some of it where it hurts.
        3 => {
            let at = at % 100;
            bytes[at] ^= 1 << random.below(8);
            format!("{name}: a bit of header byte {at}")
        }
        4 => {
            let at = (at / 4096 * 4096 + at % 16).min(bytes.len() - 1);
            bytes[at] ^= 1 << random.below(8);
            format!("{name}: a bit of page header byte {at}")
        }
        _ => {
            bytes[at] ^= 1 << random.below(8);
            format!("{name}: a bit of byte {at}")
        }
    };
    fs::write(file, bytes)?;
    Ok(how)
}

/// What reading a damaged database said.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// SQLite or this crate said so.
    Typed(String),
    /// The checks of the rows said so.
    Checked,
    /// Everything is as it was written.
    Whole,
    /// A row is not what was written, and its check passes.
    Wrong(String),
}

/// Reads every row. `checking` off is the control: it believes what it reads.
async fn look(db: &DbManager, rows: i64, checking: bool) -> Result<Seen, Failure> {
    let read = async {
        let router = db.router(&id("victim")?).await?;
        let rows: Vec<(i64, Vec<u8>, i64)> = router
            .read(CAUSE, |conn| {
                Box::pin(async move {
                    let all = sqlx::query_as("SELECT number, body, crc FROM checked NOT INDEXED ORDER BY number");
                    Ok::<_, Error>(all.fetch_all(conn).await?)
                })
            })
            .await?;
        Ok::<_, Error>(rows)
    };
    let found = match read.await {
        Ok(found) => found,
        Err(error) => return Ok(Seen::Typed(error.to_string())),
    };
    let mut checked = false;
    for (index, (number, bytes, crc)) in found.iter().enumerate() {
        if *number != i64::try_from(index)? || checksum(*number, bytes) != *crc {
            checked = true;
        } else if *bytes != body(*number) {
            return Ok(Seen::Wrong(format!("row {number} passes its check and was never written")));
        }
    }
    if i64::try_from(found.len())? != rows {
        checked = true;
    }
    if checked && !checking {
        return Ok(Seen::Wrong("a row is not what was written".to_owned()));
    }
    if checked {
        return Ok(Seen::Checked);
    }
    // The rows are all there; whether anything else is damaged is for SQLite to say.
    match db.check(&Scope::Router(id("victim")?)).await {
        Ok(()) => Ok(Seen::Whole),
        Err(error) => Ok(Seen::Typed(error.to_string())),
    }
}

/// Opens the damaged fleet, looks at both routers, and sometimes recovers.
async fn try_damage(original: &Original, recover: bool, checking: bool, found: &mut Found) -> Result<(), Failure> {
    let db = DbManager::open(options(&original.data(), original.run())).await?;
    let start = Instant::now();
    let seen = look(&db, original.rows, checking).await?;
    let took = start.elapsed();
    if took > ANSWER {
        found.broken.push(format!("the answer took {} ms: {seen:?}", took.as_millis()));
    }
    match &seen {
        Seen::Wrong(what) => found.broken.push(what.clone()),
        Seen::Whole => found.count("undetectable", 1),
        Seen::Typed(_) => found.count("detected_typed", 1),
        Seen::Checked => found.count("detected_by_checksum", 1),
    }
    // The other router works, for writing too.
    let witness = db.router(&id("witness")?).await?;
    insert(&witness, ROWS..ROWS + 1).await?;
    let count: i64 = witness
        .read(CAUSE, |conn| {
            Box::pin(async move {
                Ok::<_, Error>(sqlx::query_scalar("SELECT count(*) FROM checked").fetch_one(conn).await?)
            })
        })
        .await?;
    if count != ROWS + 1 {
        found.broken.push(format!("the other router has {count} rows"));
    }
    drop(witness);
    if recover && matches!(seen, Seen::Typed(_)) {
        recover_and_check(&db, &seen, found).await?;
    }
    Ok(db.shutdown().await?)
}

/// Goes through the restore chain and uses what comes out.
async fn recover_and_check(db: &DbManager, seen: &Seen, found: &mut Found) -> Result<(), Failure> {
    let victim = id("victim")?;
    let replaced = match db.recover(&victim).await {
        Ok(Recovery::Replaced { lost, restored_from, .. }) => Some((lost, restored_from)),
        Ok(_) => None,
        // Marks that differ are not damage: whose file it is, only a person can say. Setting it aside is explicit.
        Err(error) => {
            db.quarantine(&victim, &error.to_string()).await?;
            match db.recover(&victim).await? {
                Recovery::Replaced { lost, restored_from, .. } => Some((lost, restored_from)),
                other => {
                    found.broken.push(format!("after {seen:?} a quarantined router is {other:?}"));
                    None
                }
            }
        }
    };
    let Some((lost, restored_from)) = replaced else {
        found.count("chain_found_it_sound", 1);
        return Ok(());
    };
    let end = match restored_from {
        RestoredFrom::Backup { .. } => "chain_ended_in_backup",
        RestoredFrom::Salvage => "chain_ended_in_salvage",
        _ => "chain_ended_in_empty_database",
    };
    found.count(end, 1);
    let router = db.router(&victim).await?;
    insert(&router, 1_000_000..1_000_001).await?;
    let rows: Vec<(i64, Vec<u8>, i64)> = router
        .read(CAUSE, |conn| {
            Box::pin(async move {
                Ok::<_, Error>(sqlx::query_as("SELECT number, body, crc FROM checked").fetch_all(conn).await?)
            })
        })
        .await?;
    for (number, bytes, crc) in &rows {
        if *bytes != body(*number) && checksum(*number, bytes) == *crc {
            found.broken.push(format!("row {number} was invented by the recovery"));
        }
    }
    let told = lost.tables.iter().find(|table| table.table == "checked").map_or(0, |table| table.kept);
    if told + 1 != u64::try_from(rows.len())? {
        found.broken.push(format!("{} rows are there, the report says {told}", rows.len() - 1));
    }
    drop(router);
    db.check(&Scope::Router(victim)).await?;
    Ok(())
}

fn run(random: &mut Random, damages: u64, checking: bool) -> Result<Found, Failure> {
    let runtime = crate::fleet::runtime()?;
    let (log, backup) = (random.below(2) == 0, random.below(2) == 0);
    let original = runtime.block_on(Original::build(log, backup))?;
    let mut found = Found::default();
    for number in 0..damages {
        original.reset()?;
        let victim = original.victim();
        let wal = PathBuf::from(format!("{}-wal", victim.display()));
        let file = if log && random.below(3) > 0 { wal } else { victim };
        let how = damage(&file, random)?;
        found.cases += 1;
        let known = found.broken.len();
        let recover = number % RECOVER_EVERY == 0;
        if recover && random.below(3) == 0 {
            original.damage_backup(random)?;
        }
        let found = &mut found;
        let tried = async { tokio::time::timeout(HANG, try_damage(&original, recover, checking, found)).await };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(tried)));
        match ended {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => found.broken.push(error.to_string()),
            Ok(Err(_)) => {
                found.broken.push(format!("{how}: it hangs"));
                break;
            }
            Err(_) => found.broken.push("it panics".to_owned()),
        }
        found.broken[known..].iter_mut().for_each(|what| *what = format!("{how}: {what}"));
    }
    Ok(found)
}

/// Tells whether the campaign notices a reader that believes everything.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    for number in 0..8 {
        let found = run(&mut Random::new(seed.wrapping_add(number)), DAMAGES, false)?;
        if found.broken.iter().any(|what| what.contains("not what was written")) {
            return Ok(vec![("reader that believes everything", true)]);
        }
    }
    Ok(vec![("reader that believes everything", false)])
}

/// Damages one fleet many times.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    run(&mut turn.random, DAMAGES, true)
}
