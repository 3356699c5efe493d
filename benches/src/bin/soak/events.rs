//! The event store under test: a fleet of two routers, and a list of everything a caller was told.
//!
//! Shared by the campaigns `tiers`, `clock`, `power-loss-events` and `yanked-media`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_benches::events::Random;
use nasnet_dbmanager::{Cause, DbManager, ManualClock, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    Achieved, Class, ClassRules, ColdOptions, Error, EventOptions, EventStore, EventType, Expected, Level, NewEvent,
    Position, Query, Receipt, Recorded, StreamAppend, StreamName, TailLost, Truncated, TruncatedBy, prepare_cold_dir,
};
use tokio::runtime::Runtime;
use ulid::Ulid;

use crate::Failure;

const CAUSE: Cause = Cause::new("soak-events");
/// A day in November 2026.
pub(crate) const NOW_MS: i64 = 1_795_000_000_000;
const UNDECIDED: &str = "SELECT COUNT(*) FROM hot_log WHERE state = 'reserved'";
/// Events of one append, but those of a burst.
pub(crate) const APPENDED_MAX: u64 = 3;
const KINDS: [&str; 3] = ["metric.updated", "resource.updated", "config.applied"];
const ROUTERS: [&str; 2] = ["r1", "r2"];
/// The system and the routers.
pub(crate) const SCOPES: u64 = 3;
pub(crate) const SCOPES_COUNT: usize = 1 + ROUTERS.len();
/// Histories that are folded, and others.
pub(crate) const STREAMS: [&str; 3] = ["resource/0", "vpn/0", "vpn/1"];
/// How often undecided transactions are looked up before reading.
const RESOLVES_MAX: u64 = 100;
/// The number of the event appended to what a power cut left.
const LAST: u64 = 1 << 40;

/// Where a store lives, and how it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) cold: PathBuf,
    /// Without its cold tier, which follows from `has_cold`.
    pub(crate) options: EventOptions,
    pub(crate) has_cold: bool,
    /// The routers it is founded with.
    pub(crate) routers: usize,
}

impl Site {
    /// A site of two routers whose directories are below two others.
    pub(crate) fn new(base: &Path, cold: &Path) -> Self {
        Self {
            data: base.join("data"),
            run: base.join("run"),
            cold: cold.to_owned(),
            options: EventOptions::default(),
            has_cold: true,
            routers: ROUTERS.len(),
        }
    }

    fn options(&self) -> EventOptions {
        match self.has_cold {
            true => self.options.clone().cold(ColdOptions::new(&self.cold).allow_same_device()),
            false => self.options.clone(),
        }
    }
}

/// An open store.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) db: DbManager,
    pub(crate) store: EventStore,
}

/// A runtime of one thread: an event store has no need of more, and cases run side by side.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Opens the store; the first time it makes the routers and marks the cold directory.
pub(crate) async fn open(site: &Site, clock: &ManualClock, found: bool) -> Result<Open, Failure> {
    let mut options = Options::new(&site.data).run_dir(&site.run).schemas(nasnet_events::schema_sets());
    options.clock = Arc::new(clock.clone());
    options.high_waters = nasnet_events::high_waters();
    // How long a read takes on a busy machine is not what is asked here.
    options.read_deadline = Duration::from_secs(30);
    let db = DbManager::open(options).await?;
    let opened = async {
        if found {
            for id in &ROUTERS[..site.routers] {
                db.create_router(NewRouter::new(RouterId::parse(id)?)).await?;
            }
            if site.has_cold {
                prepare_cold_dir(&db, &site.cold)?;
            }
        }
        Ok::<_, Failure>(EventStore::open(&db, site.options()).await?)
    };
    match opened.await {
        Ok(store) => Ok(Open { db, store }),
        Err(error) => {
            db.shutdown().await.ok();
            Err(error)
        }
    }
}

impl Open {
    /// Closes it; a clean end flushes.
    pub(crate) async fn close(self, clean: bool) -> Result<(), Failure> {
        let ended = if clean { self.store.shutdown().await } else { Ok(()) };
        drop(self.store);
        self.db.shutdown().await?;
        Ok(ended?)
    }
}

/// An event whose receipt was given.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) number: u64,
    pub(crate) position: Position,
    pub(crate) class: Class,
    pub(crate) synced: bool,
    /// The number of its scope, and of its stream.
    pub(crate) scope: u64,
    pub(crate) stream: usize,
    /// The version of its stream, and a number made of its body.
    pub(crate) version: u64,
    pub(crate) body: u64,
    /// It was appended as a row of its own.
    pub(crate) is_row: bool,
    /// Its time was over, and no cold tier has it: it may be gone where a record tells so.
    pub(crate) retained: bool,
    /// Its time in the hot tier was over, and no other tier takes it: it may be gone where a record tells so.
    pub(crate) expired: bool,
}

/// Everything the callers of a store were told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Promises {
    pub(crate) told: Vec<Told>,
    /// Events whose transaction was rolled back, and those of refused calls that were not there afterwards.
    pub(crate) never: Vec<u64>,
    /// Calls that were refused. Their events may be there, but not some of them, and where is not known yet.
    pub(crate) refused: Vec<Vec<Told>>,
    /// Hot tiers up to this epoch are gone.
    pub(crate) gone: u32,
}

impl Promises {
    /// Every event told of that `which` names is on a medium that lasts, but those that had been removed by then.
    pub(crate) fn lasting(&mut self, removed: &[Truncated], which: impl Fn(&Told) -> bool) {
        let lasts = |told: &&mut Told| which(told) && !removed.iter().any(|removed| is_told_by(removed, told));
        self.told.iter_mut().filter(lasts).for_each(|told| told.synced = true);
    }

    /// Takes what is there of refused calls as told, with all the others of its call, and the rest as what never comes;
    /// returns how many calls are there.
    pub(crate) fn resolve(&mut self, seen: &Seen) -> u64 {
        let mut there = 0;
        for mut call in std::mem::take(&mut self.refused) {
            let found = call.iter().zip(0..).find_map(|(told, index)| Some((seen.facts.get(&told.number)?, index)));
            let Some((facts, index)) = found else {
                self.never.extend(call.iter().map(|told| told.number));
                continue;
            };
            // Where one is, the others are known to be. What differs is found with whatever else does.
            for (told, at) in call.iter_mut().zip(0_u64..) {
                let seq = (facts.position.seq + at).saturating_sub(index);
                told.position = Position::new(facts.position.epoch, seq);
                told.version = (facts.version + at).saturating_sub(index);
                (told.synced, told.is_row) = (facts.synced, facts.synced);
            }
            there += 1;
            self.told.extend(call);
        }
        self.told.sort_by_key(|told| told.position);
        there
    }

    /// The hot tier is wiped.
    pub(crate) fn wiped(&mut self) {
        self.gone = self.told.iter().map(|told| told.position.epoch).max().unwrap_or(0).max(self.gone);
    }
}

/// Tells whether a record of removed events may be about this one.
fn is_told_by(removed: &Truncated, told: &Told) -> bool {
    let position = told.position;
    let may_be = match removed.by {
        TruncatedBy::Shed => match told.class {
            Class::Low => true,
            Class::Normal => removed.lost > 0,
            Class::Critical => false,
        },
        TruncatedBy::Retired | TruncatedBy::Restored => false,
        TruncatedBy::Retention | TruncatedBy::Guard { .. } => {
            match &removed.scope {
                // From the hot tier.
                None => told.expired,
                Some(of) => told.retained && scope(told.scope).is_ok_and(|own| own == *of),
            }
        }
    };
    may_be && removed.after < position && position <= removed.through
}

/// How an event is appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Alone.
    Append,
    /// In a transaction that commits.
    Commit,
    /// In a transaction that is rolled back.
    RollBack,
}

/// Numbers events, so that each says in its body which one it is.
#[derive(Debug, Default)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// An event of a random kind, and its number, class and body.
    fn make(&mut self, random: &mut Random) -> Result<(Made, NewEvent), Failure> {
        self.0 += 1;
        let kind = EventType::parse(KINDS[usize::try_from(random.below(3))?])?;
        let class = ClassRules::default().classify(&kind, Level::Info);
        // As long as events of routers are, and hard to compress.
        // One now and then is so large that the body of its segment goes to an annex.
        let numbers = if random.below(8) == 0 { 300 } else { random.below(20) };
        let filler: Vec<u64> = (0..numbers).map(|_| random.number()).collect();
        let event = NewEvent::new(key(self.0), kind, &(self.0, &filler))?;
        Ok(((self.0, class, digest(&filler)), event))
    }
}

/// The number of an event, its class, and a number made of its body.
type Made = (u64, Class, u64);

fn digest(filler: &[u64]) -> u64 {
    filler.iter().fold(filler.len() as u64, |digest, number| digest.rotate_left(7) ^ number)
}

/// The type of the events of a class.
pub(crate) fn kind_of(class: Class) -> Result<EventType, Error> {
    let number = match class {
        Class::Low => 0,
        Class::Normal => 1,
        Class::Critical => 2,
    };
    EventType::parse(KINDS[number])
}

fn key(number: u64) -> Ulid {
    Ulid(u128::from(number) << 64 | u128::from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// The scope of a number: the system, then the routers.
pub(crate) fn scope(number: u64) -> Result<Scope, Failure> {
    Ok(match number.checked_sub(1) {
        None => Scope::System,
        Some(router) => Scope::Router(RouterId::parse(ROUTERS[usize::try_from(router)?])?),
    })
}

/// What a caller was told of its events, or which were tried, at no position yet, and the error.
pub(crate) type Answer = Result<Vec<Told>, (Vec<Told>, Error)>;

/// Appends a few events to one stream of one scope.
pub(crate) async fn append(
    open: &Open,
    numbers: &mut Numbers,
    way: Way,
    only: Option<u64>,
    random: &mut Random,
) -> Result<Answer, Failure> {
    let of = only.unwrap_or_else(|| random.below(SCOPES));
    let count = 1 + random.below(APPENDED_MAX);
    append_some(open, numbers, way, of, count, random).await
}

/// Appends so many events to one stream of a scope.
pub(crate) async fn append_some(
    open: &Open,
    numbers: &mut Numbers,
    way: Way,
    of: u64,
    count: u64,
    random: &mut Random,
) -> Result<Answer, Failure> {
    let place = scope(of)?;
    let number_of_stream = usize::try_from(random.below(STREAMS.len() as u64))?;
    let stream = StreamName::parse(STREAMS[number_of_stream])?;
    let made = (0..count).map(|_| numbers.make(random)).collect::<Result<Vec<_>, _>>()?;
    let events: Vec<NewEvent> = made.iter().map(|(_, event)| event.clone()).collect();
    let answer = match way {
        Way::Append => open.store.append(&place, &stream, Expected::Any, events).await,
        Way::Commit | Way::RollBack => {
            let appends = vec![StreamAppend::new(stream, Expected::Any, events)];
            transaction(open, place, appends, way == Way::Commit).await
        }
    };
    let told = |made: Vec<(Made, NewEvent)>, receipt: Option<&Receipt>| {
        let synced = receipt.is_some_and(|receipt| receipt.achieved == Achieved::Synced);
        let (first, before) = match receipt {
            Some(receipt) => (receipt.first, receipt.version.saturating_sub(count)),
            None => (Position::START, 0),
        };
        let at = |((number, class, body), _), index: u64| Told {
            number,
            position: Position::new(first.epoch, first.seq + index),
            class,
            synced,
            scope: of,
            stream: number_of_stream,
            version: before + 1 + index,
            body,
            is_row: synced,
            retained: false,
            expired: false,
        };
        made.into_iter().zip(0..).map(|(made, index)| at(made, index)).collect()
    };
    let receipt = match answer {
        Ok(receipt) => receipt,
        Err(error) => return Ok(Err((told(made, None), error))),
    };
    Ok(Ok(told(made, Some(&receipt))))
}

/// Appends one critical event with a number above all others.
pub(crate) async fn append_last(open: &Open) -> Result<Receipt, Failure> {
    let event = NewEvent::new(key(LAST), EventType::parse(KINDS[2])?, &(LAST, [0_u64; 0]))?;
    let stream = StreamName::parse("resource/last")?;
    Ok(open.store.append(&scope(1)?, &stream, Expected::Any, vec![event]).await?)
}

async fn transaction(open: &Open, place: Scope, appends: Vec<StreamAppend>, commit: bool) -> Result<Receipt, Error> {
    let (store, own) = (open.store.clone(), place.clone());
    let database = open.db.scope(&place).await?;
    let pending = database
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                let pending = store.append_in(conn, &own, appends).await?;
                if commit { Ok(pending) } else { Err(Error::Closed) }
            })
        })
        .await?;
    let mut receipts = open.store.published(pending).await;
    receipts.pop().ok_or(Error::Closed)
}

/// Waits until no transaction is undecided, as far as that can be known.
pub(crate) async fn settle(open: &Open) -> Result<(), Error> {
    for _ in 0..RESOLVES_MAX {
        open.store.resolve().await?;
        if undecided(open).await? == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Transactions whose end is not known. The status of the store would tell too, and look at everything else for it.
async fn undecided(open: &Open) -> Result<i64, Error> {
    let hot = open.db.hot();
    hot.read(CAUSE, |conn| Box::pin(async move { Ok(sqlx::query_scalar(UNDECIDED).fetch_one(conn).await?) })).await
}

/// What an event is read as, beside its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) position: Position,
    scope: Scope,
    stream: StreamName,
    pub(crate) version: u64,
    class: Class,
    synced: bool,
    body: u64,
}

impl Facts {
    /// Tells whether it is read as its caller was told.
    fn is(&self, told: &Told) -> bool {
        let own = (self.position, self.version, self.class, self.synced, self.body);
        own == (told.position, told.version, told.class, told.is_row, told.body)
            && self.stream.as_str() == STREAMS[told.stream]
            && scope(told.scope).is_ok_and(|scope| scope == self.scope)
    }
}

/// What reading everything saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The events in the order they were read in.
    pub(crate) events: Vec<(u64, Position)>,
    /// What each was read as.
    pub(crate) facts: HashMap<u64, Facts>,
    /// What the wall clock said at each.
    pub(crate) wall_ms: Vec<i64>,
    pub(crate) losses: Vec<TailLost>,
    pub(crate) removed: Vec<Truncated>,
    /// What could not be read, and what cannot be.
    pub(crate) faults: Vec<String>,
}

/// Reads everything, forwards, once no transaction is undecided: readers stop at those.
pub(crate) async fn look(open: &Open) -> Seen {
    let mut seen = Seen { losses: open.store.losses().to_vec(), ..Seen::default() };
    if let Err(error) = settle(open).await {
        seen.faults.push(format!("resolving says {error}"));
    }
    let mut events = std::pin::pin!(open.store.read(Query::all()));
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                seen.faults.push(format!("a read says {error}"));
                continue;
            }
        };
        seen.take(&event);
    }
    match open.store.truncated(Position::START).await {
        Ok(removed) => seen.removed = removed,
        Err(error) => seen.faults.push(format!("what was removed is unknown: {error}")),
    }
    if let Some(pair) = seen.events.windows(2).find(|pair| pair[0].1 >= pair[1].1) {
        seen.faults.push(format!("read out of order: {pair:?}"));
    }
    seen
}

impl Seen {
    /// Takes an event in.
    pub(crate) fn take(&mut self, event: &Recorded) {
        match event.body_as::<(u64, Vec<u64>)>() {
            Ok((number, _)) if event.id != key(number) => {
                self.faults.push(format!("event {number} has the id of another"));
            }
            Ok((number, filler)) => {
                self.events.push((number, event.position));
                let facts = Facts {
                    position: event.position,
                    scope: event.scope.clone(),
                    stream: event.stream.clone(),
                    version: event.version,
                    class: event.class,
                    synced: event.synced,
                    body: digest(&filler),
                };
                self.facts.insert(number, facts);
                self.wall_ms.push(event.wall_ms);
            }
            Err(error) => self.faults.push(format!("the body of {} is not what was written: {error}", event.id)),
        }
    }

    /// As if an event had not been read.
    pub(crate) fn hide(&mut self, number: u64) {
        self.events.retain(|(read, _)| *read != number);
        self.facts.remove(&number);
    }

    /// Compares with what the callers were told. Events whose hot tier is gone may be missing where a loss is told of,
    /// those of class Low without a word.
    pub(crate) fn judge(&self, promises: &Promises) -> Option<String> {
        let told = &promises.told;
        if let Some(fault) = self.faults.first() {
            return Some(fault.clone());
        }
        let known: HashMap<u64, &Told> = told.iter().map(|told| (told.number, told)).collect();
        let mut last = None;
        for (number, position) in &self.events {
            if let Some(known) = known.get(number) {
                if known.position != *position {
                    return Some(format!("event {number} was promised {} and is at {position}", known.position));
                }
                let read = self.facts.get(number);
                if read.is_none_or(|read| !read.is(known)) {
                    return Some(format!("{known:?} is read as {read:?}"));
                }
            }
            if Some(*number) <= last {
                return Some(format!("event {number} comes after event {last:?}"));
            }
            if promises.never.contains(number) {
                return Some(format!("event {number} was rolled back, or refused and not there, and is there"));
            }
            last = Some(*number);
        }
        let epochs: Vec<u32> = self.losses.iter().map(|loss| loss.epoch).collect();
        if epochs.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some(format!("a loss is told twice: {:?}", self.losses));
        }
        let mut given_up = 0_u64;
        let there: HashSet<u64> = self.events.iter().map(|(number, _)| *number).collect();
        for missing in told.iter().filter(|told| !there.contains(&told.number)) {
            let loss = self.losses.iter().find(|loss| loss.epoch == missing.position.epoch);
            let excused = match missing {
                told if told.retained => self.removed.iter().any(|removed| is_told_by(removed, told)),
                Told { synced: true, .. } => false,
                Told { class: Class::Low, position, .. } if position.epoch <= promises.gone => true,
                Told { position, .. } if loss.is_some_and(|loss| position.seq > loss.after_seq) => {
                    position.epoch <= promises.gone
                }
                told => {
                    given_up += u64::from(told.class == Class::Normal);
                    self.removed.iter().any(|removed| is_told_by(removed, told))
                }
            };
            if !excused {
                return Some(format!("{missing:?} is gone, told of was {:?} and {:?}", self.losses, self.removed));
            }
        }
        let lost: u64 = self.removed.iter().map(|removed| removed.lost).sum();
        if given_up > lost {
            return Some(format!("{given_up} events are gone, told of was {:?}", self.removed));
        }
        None
    }
}
