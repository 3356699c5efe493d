//! Campaign `subscribers`: each consumer is shown each event once and in order, or exactly one marker that covers it.
//!
//! Two children share one store. Each appends, flushes and archives, and reads as consumers of random speed; one
//! consumer is read by whichever child gets it. A consumer writes down what it is shown before it acknowledges it, and
//! what it has acknowledged after that: it never comes back to what is before. The parent kills the children, or lets
//! them end, at random moments, wipes tmpfs now and then, and in the end compares what was written down with what is
//! stored. Then a router cannot be read for a while, and consumers of all scopes go on without it.

#[path = "subscribers/outage.rs"]
mod outage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Cause, DbManager, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    ColdOptions, Consumer, ConsumerName, Error, EventOptions, EventStore, EventType, Expected, Filter, FlushReason,
    Item, NewEvent, Position, Query, StartAt, StreamAppend, StreamName, TailLost, prepare_cold_dir,
};
use tokio::runtime::Runtime;

use crate::{Controls, Failure, Found, Turn};
use outage::Manner;

const CAUSE: Cause = Cause::new("soak-subscribers");
const KINDS: [&str; 3] = ["resource.updated", "config.applied", "metric.sampled"];
const ROUTERS: [&str; 2] = ["r1", "r2"];
/// Read by one child each, and by either.
const OWN: [[&str; 2]; 2] = [["all-a", "config-a"], ["all-b", "config-b"]];
const SHARED: &str = "all-shared";
/// How long consumers of all scopes wait for one that cannot be read, where none is expected to be.
const STALL_AFTER: Duration = Duration::from_secs(30);
/// A router that is merely slow, on a busy machine, is not to be taken for one that cannot be read.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// Lines in what a consumer writes down: tmpfs was wiped, and what it acknowledged is on flash.
const WIPED: &str = "wiped";
const SAVED: &str = "saved";
/// Attempts to catch the control.
const CONTROL_CASES: u64 = 100;

/// Who is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Honest,
    /// The control: consumers forget where they were and begin with what comes next, as a listener to a broadcast would.
    Forgetful,
    /// The control: what consumers write down as acknowledged is not.
    Unkept,
    /// The control: tmpfs is wiped by nobody, so the losses that are told of it are not believed.
    Unseen,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Honest, Self::Forgetful, Self::Unkept, Self::Unseen];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Forgetful => "forgetful",
            Self::Unkept => "unkept",
            Self::Unseen => "unseen",
        }
    }
}

/// Tells whether the check catches consumers that begin with what comes next.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    let mut controls = Vec::new();
    for (what, mode) in [
        ("a consumer that forgets", Mode::Forgetful),
        ("an acknowledgement that is not kept", Mode::Unkept),
        ("a loss without a wipe", Mode::Unseen),
    ] {
        let mut caught = false;
        for number in 0..CONTROL_CASES {
            let mut random = Random::new(seed.wrapping_add(number));
            if !run(&mut random, mode)?.broken.is_empty() {
                caught = true;
                break;
            }
        }
        controls.push((what, caught));
    }
    for (what, manner) in [
        ("a consumer that is not told what it is not shown", Manner::Deaf),
        ("a consumer that does not come back", Manner::Careless),
    ] {
        let place = Place::new(None)?;
        let mut found = Found::default();
        Runtime::new()?.block_on(async {
            found_store(&place).await?;
            outage(&place, &mut Random::new(seed), manner, &mut found).await
        })?;
        controls.push((what, !found.broken.is_empty()));
    }
    Ok(controls)
}

/// Two processes append and read, are killed and lose their tmpfs.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    run(&mut turn.random, Mode::Honest)
}

fn run(random: &mut Random, mode: Mode) -> Result<Found, Failure> {
    let place = Place::new(None)?;
    let runtime = Runtime::new()?;
    let mut found = Found::default();
    runtime.block_on(found_store(&place))?;
    let mut wipes = 0;
    for life in 0..2 + random.below(2) {
        live_and_die(&place, random, mode, life, &mut found)?;
        if random.below(3) == 0 {
            found.count("wipes", 1);
            if mode != Mode::Unseen {
                wipes += 1;
                let [.., log] = paths(&place);
                for name in OWN.iter().flatten().chain([&SHARED]) {
                    writes(&mut append_to(&log, name)?, WIPED)?;
                }
            }
            for entry in std::fs::read_dir(place.tmpfs.path())? {
                let path = entry?.path();
                if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
            }
        }
    }
    runtime.block_on(check(&place, mode, wipes, &mut found))?;
    if mode == Mode::Honest {
        runtime.block_on(outage(&place, random, Manner::Honest, &mut found))?;
    }
    Ok(found)
}

/// A router cannot be read for a while, and nobody waits for it.
async fn outage(place: &Place, random: &mut Random, manner: Manner, found: &mut Found) -> Result<(), Failure> {
    let [data, run, cold, _] = paths(place);
    let (db, store) = open(&data, &run, &cold, Duration::ZERO).await?;
    outage::run(&db, &store, random, manner, found).await;
    store.shutdown().await?;
    db.shutdown().await?;
    Ok(())
}

fn paths(place: &Place) -> [PathBuf; 4] {
    let disk = place.disk.path();
    [disk.join("data"), place.tmpfs.path().to_owned(), disk.join("cold"), disk.join("log")]
}

async fn found_store(place: &Place) -> Result<(), Failure> {
    let [data, run, cold, log] = paths(place);
    std::fs::create_dir_all(&log)?;
    std::fs::create_dir_all(&cold)?;
    let options = Options::new(&data).run_dir(&run).schemas(nasnet_events::schema_sets());
    let db = DbManager::open(options).await?;
    for id in ROUTERS {
        db.create_router(NewRouter::new(RouterId::parse(id)?)).await?;
    }
    prepare_cold_dir(&db, &cold)?;
    db.shutdown().await?;
    Ok(())
}

async fn open(data: &Path, run: &Path, cold: &Path, stall_after: Duration) -> Result<(DbManager, EventStore), Failure> {
    let mut options = Options::new(data).run_dir(run).schemas(nasnet_events::schema_sets());
    options.read_deadline = READ_DEADLINE;
    let db = DbManager::open(options).await?;
    let mut options = EventOptions::default().cold(ColdOptions::new(cold).allow_same_device());
    options.stall_after = stall_after;
    let store = EventStore::open(&db, options).await?;
    Ok((db, store))
}

/// Two children at work for a while; then one dies, and the other goes on for a while.
fn live_and_die(place: &Place, random: &mut Random, mode: Mode, life: u64, found: &mut Found) -> Result<(), Failure> {
    let mut children = Vec::new();
    for number in 0..2_u64 {
        children.push(spawn(place, mode, number, random.number() ^ life)?);
    }
    if random.below(2) == 0 {
        children.reverse();
    }
    for child in &mut children {
        let mut said = child.stdout.take().ok_or("a child without stdout")?;
        // A byte for each item that was handled.
        let wanted = 30 + random.below(250);
        let mut heard = 0;
        let mut bytes = [0; 64];
        while heard < wanted {
            let read = said.read(&mut bytes)?;
            if read == 0 {
                return Err("a child ended by itself".into());
            }
            heard += read as u64;
        }
        if random.below(4) == 0 {
            found.count("ends", 1);
            drop(child.stdin.take());
            // It may have more to say than the pipe holds.
            std::io::copy(&mut said, &mut std::io::sink())?;
        } else {
            found.count("kills", 1);
            child.kill()?;
        }
        child.wait()?;
    }
    Ok(())
}

fn spawn(place: &Place, mode: Mode, number: u64, seed: u64) -> Result<Child, Failure> {
    let [data, run, cold, log] = paths(place).map(|path| path.display().to_string());
    let task = format!("subscribers:{}:{number}:{seed}", mode.as_str());
    let child = Command::new(std::env::current_exe()?)
        .args(["--child", &[data, run, cold, log].join("\n"), &task])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    Ok(child)
}

/// Appends and reads until it is killed or its input ends.
pub(crate) fn child(directories: &str, task: &str) -> Result<(), Failure> {
    let directories: Vec<PathBuf> = directories.split('\n').map(PathBuf::from).collect();
    let [data, run, cold, log] = directories.try_into().map_err(|_| "four directories are needed")?;
    let [mode, number, seed] = task.split(':').collect::<Vec<_>>().try_into().map_err(|_| "a task has three parts")?;
    let mode = Mode::ALL.into_iter().find(|known| known.as_str() == mode).ok_or("there is no such mode")?;
    let (number, seed): (usize, u64) = (number.parse()?, seed.parse()?);
    Runtime::new()?.block_on(async {
        let (db, store) = open(&data, &run, &cold, STALL_AFTER).await?;
        let log = Arc::new(log);
        let mut work = tokio::task::JoinSet::new();
        work.spawn(produce(db.clone(), store.clone(), Random::new(seed), Arc::clone(&log), number));
        let own = OWN.get(number).ok_or("there are two children")?;
        for (name, salt) in own.iter().chain([&SHARED]).zip(1..) {
            let random = Random::new(seed.wrapping_add(salt));
            work.spawn(consume(store.clone(), random, Arc::clone(&log), (*name).to_owned(), mode));
        }
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        // A thread of its own: the runtime would wait for it when something fails.
        std::thread::spawn(move || {
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            drop(end);
        });
        tokio::select! {
            _ = ended => {}
            Some(done) = work.join_next() => done??,
        }
        work.shutdown().await;
        store.shutdown().await?;
        for name in own {
            writes(&mut append_to(&log, name)?, SAVED)?;
        }
        db.shutdown().await?;
        Ok(())
    })
}

fn append_to(log: &Path, name: &str) -> Result<File, Failure> {
    Ok(OpenOptions::new().create(true).append(true).open(log.join(name))?)
}

fn writes(file: &mut File, line: &str) -> Result<(), Failure> {
    // One write a line: a killed process leaves whole lines.
    Ok(file.write_all(format!("{line}\n").as_bytes())?)
}

async fn produce(
    db: DbManager,
    store: EventStore,
    mut random: Random,
    log: Arc<PathBuf>,
    number: usize,
) -> Result<(), Failure> {
    let mut file = append_to(&log, &format!("produced-{number}"))?;
    loop {
        let scope = match random.below(3) {
            0 => Scope::System,
            router => Scope::Router(RouterId::parse(ROUTERS[usize::try_from(router - 1)?])?),
        };
        let stream = StreamName::parse(&format!("s{}", random.below(5)))?;
        let kind = KINDS[[0, 0, 0, 0, 1, 2, 2][usize::try_from(random.below(7))?]];
        let count = 1 + random.below(4);
        let events = (0..count).map(|_| NewEvent::new(db.next_ulid(), EventType::parse(kind)?, &count));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        match random.below(30) {
            0 => drop(store.flush(FlushReason::Requested).await?),
            1 => match store.archive().await {
                // The other child is at it.
                Ok(_) | Err(Error::ColdAbsent { .. }) => {}
                Err(error) => return Err(error.into()),
            },
            // A transaction that ends without a word, and one that rolls back.
            roll @ 2..=4 => {
                let (own, inner) = (store.clone(), scope.clone());
                let append = StreamAppend::new(stream, Expected::Any, events);
                let database = db.scope(&scope).await?;
                let done = database.write(CAUSE, move |conn| {
                    Box::pin(async move {
                        let pending = own.append_in(conn, &inner, vec![append]).await?;
                        if roll == 2 { Err(Error::Closed) } else { Ok(pending) }
                    })
                });
                if let (Ok(pending), 3) = (done.await, roll) {
                    drop(store.published(pending).await);
                }
            }
            _ => match store.append(&scope, &stream, Expected::Any, events).await {
                Ok(receipt) => {
                    for seq in receipt.first.seq..=receipt.last.seq {
                        writes(&mut file, &format!("{} {kind}", Position::new(receipt.first.epoch, seq)))?;
                    }
                }
                // A machine under load keeps a lock for too long; nothing was promised.
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.into()),
            },
        }
        if random.below(8) == 0 {
            tokio::time::sleep(Duration::from_micros(random.below(3_000))).await;
        }
    }
}

fn definition(name: &str) -> Result<Consumer, Error> {
    let consumer = Consumer::new(ConsumerName::parse(name)?).capacity(16);
    Ok(if name.starts_with("config") { consumer.filter(Filter::all().kind_prefix("config")) } else { consumer })
}

async fn consume(
    store: EventStore,
    mut random: Random,
    log: Arc<PathBuf>,
    name: String,
    mode: Mode,
) -> Result<(), Failure> {
    let mut consumer = definition(&name)?;
    if random.below(3) == 0 {
        consumer = consumer.batch(Consumer::CRITICAL);
    }
    // The other process may be reading as the one they share: forgetting that takes it away from it.
    if mode == Mode::Forgetful && name != SHARED {
        store.forget_consumer(&consumer.name).await?;
        consumer = consumer.from(StartAt::Now);
    }
    loop {
        let mut subscription = match store.subscribe(consumer.clone()).await {
            Ok(subscription) => subscription,
            Err(Error::ConsumerBusy { .. }) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut file = append_to(&log, &name)?;
        writes(&mut file, &format!("session {}", subscription.position()))?;
        let mut until_ack = random.below(20);
        // Now and then it is dropped and begins again by itself.
        for _ in 0..20 + random.below(400) {
            let Some(item) = subscription.next().await else { return Ok(()) };
            let item = item?;
            if let Some(line) = line_of(&item) {
                writes(&mut file, &line)?;
                std::io::stdout().write_all(b".")?;
                std::io::stdout().flush()?;
            }
            if until_ack == 0 {
                if mode != Mode::Unkept {
                    subscription.ack(item.position()).await?;
                }
                writes(&mut file, &format!("ack {}", item.position()))?;
                until_ack = random.below(20);
            }
            until_ack = until_ack.saturating_sub(1);
            if random.below(40) == 0 {
                tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
            }
        }
    }
}

fn line_of(item: &Item) -> Option<String> {
    match item {
        Item::Event(event) => Some(format!("event {} {}", event.position, event.kind)),
        Item::TailLost { lost, .. } => Some(format!("lost {}:{}", lost.epoch, lost.after_seq)),
        Item::Truncated { removed, .. } => Some(format!("removed {} {}", removed.after, removed.through)),
        _ => None,
    }
}

/// What a consumer wrote down.
#[derive(Debug, Default)]
struct Seen {
    events: BTreeSet<Position>,
    lost: BTreeMap<u32, u64>,
    removed: Vec<(Position, Position)>,
    items: u64,
    /// Sessions that had to begin at or behind an acknowledgement, and those of them for which it was on flash alone.
    held: u64,
    held_by_flash: u64,
}

/// Reads what a consumer wrote down, and says where it was shown something out of order or twice, or came back to something it
/// had acknowledged.
fn replay(name: &str, text: &str, broken: &mut Vec<String>) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let mut last = Position::START;
    let mut markers = BTreeSet::new();
    // What was acknowledged, as far as it is not lost with tmpfs, and as far as it is on flash.
    let (mut acked, mut saved) = (Position::START, Position::START);
    let mut is_wiped = false;
    // A line without its end was cut short by a kill.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match line {
            WIPED => {
                (acked, is_wiped) = (saved, true);
                continue;
            }
            SAVED => {
                saved = acked;
                continue;
            }
            _ => {}
        }
        let (word, rest) = line.split_once(' ').ok_or("a line has two words")?;
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        let position: Position = first.parse()?;
        match word {
            "ack" => {
                (acked, is_wiped) = (acked.max(position), false);
                continue;
            }
            "session" => {
                if position < acked {
                    broken.push(format!("{name}: a session begins at {position}, and {acked} was acknowledged"));
                }
                seen.held += u64::from(acked > Position::START);
                seen.held_by_flash += u64::from(acked > Position::START && is_wiped);
                last = position;
                markers.clear();
                continue;
            }
            "event" => {
                if position <= last {
                    broken.push(format!("{name}: event {position} was shown after {last}"));
                }
                last = last.max(position);
                seen.events.insert(position);
            }
            "lost" => {
                let place = Position::new(position.epoch + 1, 0);
                if place <= last {
                    broken.push(format!("{name}: the loss of epoch {} was shown after {last}", position.epoch));
                }
                last = last.max(place);
                seen.lost.insert(position.epoch, position.seq);
            }
            "removed" => {
                if !markers.insert(rest.to_owned()) {
                    broken.push(format!("{name}: the removal {rest} was shown twice"));
                }
                seen.removed.push((position, second.parse()?));
            }
            _ => return Err(format!("{name}: unknown line {line:?}").into()),
        }
        seen.items += 1;
    }
    Ok(seen)
}

/// Lets every consumer catch up, then compares.
async fn check(place: &Place, mode: Mode, wipes: usize, found: &mut Found) -> Result<(), Failure> {
    let [data, run, cold, log] = paths(place);
    let (db, store) = open(&data, &run, &cold, STALL_AFTER).await?;
    store.resolve().await?;
    let stored: Vec<(Position, String)> =
        store.read(Query::all()).map_ok(|event| (event.position, event.kind.to_string())).try_collect().await?;
    let epoch = store.status().await?.epoch;
    let losses: BTreeMap<u32, u64> =
        store.losses().iter().map(|TailLost { epoch, after_seq }| (*epoch, *after_seq)).collect();
    if losses.len() > wipes {
        found.broken.push(format!("{wipes} times tmpfs was wiped, lost are {losses:?}"));
    }
    let mut produced: BTreeMap<Position, String> = BTreeMap::new();
    for number in 0..2 {
        let text = std::fs::read_to_string(log.join(format!("produced-{number}"))).unwrap_or_default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (position, kind) = line.split_once(' ').ok_or("a line has two words")?;
            if produced.insert(position.parse()?, kind.to_owned()).is_some() {
                found.broken.push(format!("position {position} was given twice"));
            }
        }
    }
    let there: BTreeSet<Position> = stored.iter().map(|(position, _)| *position).collect();
    for (position, kind) in &produced {
        let tail = losses.get(&position.epoch).is_some_and(|after| position.seq > *after) && kind == KINDS[0];
        let ended = kind == KINDS[2] && position.epoch < epoch;
        if !there.contains(position) && !tail && !ended {
            found.broken.push(format!("{kind} at {position} was acknowledged and is gone"));
        }
    }
    for name in OWN.iter().flatten().chain([&SHARED]) {
        if matches!(mode, Mode::Honest | Mode::Unkept) {
            finish(&store, name, &log).await?;
        }
        let text = std::fs::read_to_string(log.join(name)).unwrap_or_default();
        let seen = replay(name, &text, &mut found.broken)?;
        found.cases += seen.items;
        let wanted = |kind: &str| !name.starts_with("config") || kind.starts_with("config");
        let removed = |at: Position| seen.removed.iter().any(|(after, through)| at > *after && at <= *through);
        for (position, kind) in stored.iter().filter(|(_, kind)| wanted(kind)) {
            if !seen.events.contains(position) && !removed(*position) {
                found.broken.push(format!("{name}: {kind} at {position} is stored and was never shown"));
            }
        }
        for (position, kind) in produced.iter().filter(|(_, kind)| wanted(kind)) {
            let ended = kind == KINDS[2] && position.epoch < epoch;
            let told = seen.lost.get(&position.epoch).is_some_and(|after| position.seq > *after);
            if !seen.events.contains(position) && !told && !ended && !removed(*position) {
                found.broken.push(format!("{name}: {kind} at {position} was never shown and no marker covers it"));
            }
        }
        if seen.lost != losses && mode == Mode::Honest {
            found.broken.push(format!("{name}: was told of {:?}, lost are {losses:?}", seen.lost));
        }
        found.count("sessions behind an acknowledgement", seen.held);
        found.count("sessions behind one on flash alone", seen.held_by_flash);
        found.count("losses told", seen.lost.len() as u64);
    }
    store.shutdown().await?;
    db.shutdown().await?;
    Ok(())
}

/// Reads as a consumer until it has caught up.
async fn finish(store: &EventStore, name: &str, log: &Path) -> Result<(), Failure> {
    let mut file = append_to(log, name)?;
    let mut subscription = store.subscribe(definition(name)?).await?;
    writes(&mut file, &format!("session {}", subscription.position()))?;
    while let Some(item) = subscription.next().await {
        match item? {
            Item::CaughtUp { .. } => break,
            item => {
                if let Some(line) = line_of(&item) {
                    writes(&mut file, &line)?;
                }
            }
        }
    }
    subscription.close().await?;
    Ok(())
}
