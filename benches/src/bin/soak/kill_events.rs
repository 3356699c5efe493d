//! Campaign `kill`: what was acknowledged is there after SIGKILL, and nothing is there by half.
//!
//! The child writes groups of rows to a router database, each group one keyed write op, then appends an event, Critical and
//! Normal in turn, and says `ack N` once both have answered. The parent kills it at a random moment, often while it still opens its databases, opens the same
//! directories and looks.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{
    Cause, DbManager, Error, FileKind, KeyOutcome, Migration, NewRouter, Options, RouterId, SchemaSet, Scope,
};
use nasnet_events::{EventOptions, EventStore, EventType, Expected, NewEvent, Query, StreamName};
use sqlx::SqliteConnection;
use tokio::runtime::Runtime;
use ulid::Ulid;

use crate::{Controls, Failure, Found, Turn};

const STREAM: &str = "soak/kill";
/// Critical and Normal: an acknowledged event of either survives the process.
const KINDS: [&str; 2] = ["config.applied", "interface.status_changed"];
const CAUSE: Cause = Cause::new("soak-kill");
/// Rows of one group: they are there together or not at all.
const GROUP: i64 = 3;
/// Groups a child writes at most; it is killed long before.
const GROUPS_MAX: u64 = 100_000;
/// Attempts to catch the control, which cheats only for the length of one commit.
const CONTROL_CASES: u64 = 300;

/// Who is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Acknowledges what is committed.
    Honest,
    /// The control: acknowledges before it commits.
    AckFirst,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::AckFirst => "ack-first",
        }
    }
}

/// Tells whether the check catches a program that acknowledges too early.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    for number in 0..CONTROL_CASES {
        let mut random = Random::new(seed.wrapping_add(number));
        if !lives(&mut random, Mode::AckFirst)?.broken.is_empty() {
            return Ok(vec![("acknowledged before the commit", true)]);
        }
    }
    Ok(vec![("acknowledged before the commit", false)])
}

/// Runs one directory through several lives of an honest child.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    lives(&mut turn.random, Mode::Honest)
}

/// Runs one directory through several lives of the child and returns every broken promise.
fn lives(random: &mut Random, mode: Mode) -> Result<Found, Failure> {
    let place = Place::new(None)?;
    let runtime = Runtime::new()?;
    let mut case = Found::default();
    let (mut acknowledged, mut appended) = (0, 0);
    for life in 0..=random.below(3) {
        let heard = live_and_die(&place, random, mode, acknowledged)?;
        case.count("kills", 1);
        case.cases += heard.unwrap_or(0).saturating_sub(acknowledged);
        acknowledged = heard.unwrap_or(acknowledged);
        appended = heard.unwrap_or(appended);
        match runtime.block_on(check(&place, acknowledged, appended)) {
            Ok((found, last)) => {
                case.broken.extend(found.into_iter().map(|what| format!("life {life}: {what}")));
                // What was committed but not acknowledged counts from now on.
                acknowledged = acknowledged.max(last);
            }
            Err(error) => case.broken.push(format!("life {life}: the databases do not open: {error}")),
        }
        if !case.broken.is_empty() {
            break;
        }
    }
    Ok(case)
}

/// Starts a child, kills it and returns the last group it acknowledged.
fn live_and_die(place: &Place, random: &mut Random, mode: Mode, written: u64) -> Result<Option<u64>, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--child", &directories(place), &format!("events:{}", mode.as_str())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("a child without stdout")?;
    let (mut lines, mut last) = (BufReader::new(output).lines(), None);
    if mode == Mode::Honest && random.below(4) == 0 {
        // Before the first acknowledgement: most of these kills meet a database that is being made or opened.
        pass(Duration::from_micros(random.below(60_000)));
    } else {
        let target = written + 1 + random.below(60);
        while last.is_none_or(|group| group < target) {
            let Some(line) = lines.next().transpose()? else { break };
            last = line.strip_prefix("ack ").and_then(|number| number.parse().ok()).or(last);
        }
        if mode == Mode::Honest {
            pass(Duration::from_micros(random.below(3_000)));
        }
    }
    child.kill()?;
    child.wait()?;
    // What the child still said before it died is acknowledged too.
    for line in lines {
        last = line?.strip_prefix("ack ").and_then(|number| number.parse().ok()).or(last);
    }
    Ok(last)
}

fn pass(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::yield_now();
    }
}

fn directories(place: &Place) -> String {
    format!("{}\n{}", place.disk.path().join("data").display(), place.tmpfs.path().display())
}

async fn open(data: &Path, run: &Path) -> Result<(DbManager, RouterId), Error> {
    let rows = Migration {
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
    let rows = SchemaSet::new("soak", FileKind::Router, vec![rows]);
    let options = Options::new(data).run_dir(run).schemas([rows]).schemas(nasnet_events::schema_sets());
    let db = DbManager::open(options).await?;
    let id = RouterId::parse("soak")?;
    match db.create_router(NewRouter::new(id.clone()).name("soak").host("192.0.2.1")).await {
        Ok(_) | Err(Error::RouterExists { .. }) => Ok((db, id)),
        Err(error) => Err(error),
    }
}

/// The body of a row: different for each, so that a torn or misplaced one is seen.
fn body(number: u64, part: i64) -> Vec<u8> {
    let mut random = Random::new(number.wrapping_mul(31).wrapping_add(part.unsigned_abs()));
    (0..50).flat_map(|_| random.number().to_be_bytes()).collect()
}

fn key(number: u64) -> Ulid {
    Ulid(u128::from(number) << 64 | u128::from(number))
}

/// The event of a group; its id is the key of the group.
fn event(number: u64) -> Result<NewEvent, Failure> {
    let kind = KINDS[usize::try_from(number % 2)?];
    Ok(NewEvent::new(key(number), EventType::parse(kind)?, &number)?)
}

/// Writes groups until it is killed.
pub(crate) fn child(directories: &str, mode: &str) -> Result<(), Failure> {
    let (data, run) = directories.split_once('\n').ok_or("two directories are needed")?;
    Runtime::new()?.block_on(async {
        let (db, id) = open(data.as_ref(), run.as_ref()).await?;
        let router = db.router(&id).await?;
        let last: i64 = router
            .read(CAUSE, |conn| {
                Box::pin(async move {
                    Ok::<_, Error>(sqlx::query_scalar("SELECT ifnull(max(number), 0) FROM soak").fetch_one(conn).await?)
                })
            })
            .await?;
        let first = u64::try_from(last)? + 1;
        let store = EventStore::open(&db, EventOptions::default()).await?;
        let (scope, stream) = (Scope::Router(id.clone()), StreamName::parse(STREAM)?);
        if last > 0 {
            // The life before may have ended between a group and its event; if it did not, the id says so.
            store.append(&scope, &stream, Expected::Any, vec![event(first - 1)?]).await?;
        }
        for number in first..first + GROUPS_MAX {
            if mode == Mode::AckFirst.as_str() {
                acknowledge(number)?;
            }
            router.write_keyed(CAUSE, key(number), move |conn| Box::pin(write_group(conn, number))).await?;
            store.append(&scope, &stream, Expected::Any, vec![event(number)?]).await?;
            if mode == Mode::Honest.as_str() {
                acknowledge(number)?;
            }
        }
        Ok(())
    })
}

fn acknowledge(number: u64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {number}")?;
    out.flush()
}

async fn write_group(conn: &mut SqliteConnection, number: u64) -> Result<(), Error> {
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

/// Looks at what a killed child left; returns the broken promises and the last group that is there.
async fn check(place: &Place, acknowledged: u64, appended: u64) -> Result<(Vec<String>, u64), Failure> {
    let (db, id) = open(&place.disk.path().join("data"), place.tmpfs.path()).await?;
    let router = db.router(&id).await?;
    let (rows, sound): (Vec<(i64, i64, Vec<u8>)>, String) = router
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
    let mut broken = Vec::new();
    if sound != "ok" {
        broken.push(format!("integrity_check says {sound:?}"));
    }
    let mut groups: BTreeMap<u64, i64> = BTreeMap::new();
    for (number, part, bytes) in rows {
        let number = u64::try_from(number)?;
        if bytes != body(number, part) {
            broken.push(format!("group {number} part {part} is not what was written"));
        }
        *groups.entry(number).or_default() += 1;
    }
    for (number, parts) in &groups {
        if *parts != GROUP {
            broken.push(format!("group {number} is torn: {parts} of {GROUP} rows"));
        }
    }
    let last = groups.last_key_value().map_or(0, |(number, _)| *number);
    for number in 1..=acknowledged {
        if !groups.contains_key(&number) {
            broken.push(format!("group {number} was acknowledged and is gone"));
        }
    }
    // The keys of the last writes agree with the rows, for what was never acknowledged too.
    for number in last.saturating_sub(20).max(1)..=last + 1 {
        let (there, outcome) = (groups.contains_key(&number), router.outcome(key(number)).await?);
        if there != (outcome == KeyOutcome::Committed) {
            broken.push(format!("group {number}: there is {there}, its key says {outcome:?}"));
        }
    }
    broken.extend(check_events(&db, &id, appended).await?);
    drop(router);
    db.shutdown().await?;
    Ok((broken, last))
}

/// Every acknowledged event is read back once, in order, as it was written.
async fn check_events(db: &DbManager, id: &RouterId, appended: u64) -> Result<Vec<String>, Failure> {
    let store = EventStore::open(db, EventOptions::default()).await?;
    let mut events = store.read(Query::scope(Scope::Router(id.clone())).stream(StreamName::parse(STREAM)?));
    let (mut broken, mut found) = (Vec::new(), BTreeMap::<u64, u64>::new());
    let mut version = 0;
    while let Some(recorded) = events.try_next().await? {
        let number: u64 = recorded.body_as()?;
        if recorded.id != key(number) {
            broken.push(format!("event {number} has the id of another"));
        }
        if recorded.version <= version {
            broken.push(format!("event {number} has version {} after {version}", recorded.version));
        }
        version = recorded.version;
        *found.entry(number).or_default() += 1;
    }
    for number in 1..=appended {
        match found.get(&number) {
            Some(1) => {}
            Some(times) => broken.push(format!("event {number} is there {times} times")),
            None => broken.push(format!("event {number} was acknowledged and is gone")),
        }
    }
    drop(events);
    store.shutdown().await?;
    Ok(broken)
}
