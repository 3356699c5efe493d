//! Campaign `power-loss-events`: what a receipt called `Synced` survives a power cut at any point of appending, flushing,
//! archiving, sealing, retention and the visits of a consumer, which goes on where it was; what it called `Hot` is there,
//! or one loss is told that covers it.
//!
//! The files on flash are recorded, and cut at every point in every variant with an emptied run directory. One look in
//! sixteen begins there; the others begin with the files that the first process after the cut has made in memory before it
//! was killed, which are the same whatever the cut left. Beside that, the run directory is recorded with the files on flash
//! and kept as a killed process leaves it. States of the same bytes are looked at once and judged each. The cold directory
//! is not written through the VFS: a cut while a frame is being added leaves any part of it, which is simulated here.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::ManualClock;
use nasnet_dbmanager::vfs::fault::{CrashState, Medium, Recorder, Recording, Replay, Variant};
use nasnet_events::{Achieved, Class, Consumer, ConsumerName, FlushReason, Item, Position, Retention, Span};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::events::{self, NOW_MS, Numbers, Promises, Seen, Site, Way};
use crate::{Controls, Failure, Found, Turn};

/// Crash points with the run directory kept, which has many more: those left out between two that are tried.
const STRIDE_KEPT: u64 = 8;
/// The part of the budget that the walk with the run directory kept may use: one in so many. The other gets the rest.
const KEPT_SHARE: u32 = 4;
/// States of a record that each of the two walks looks at however little of the budget is left.
const STATES_MIN: u64 = 20;
/// One look in so many finds nothing in the run directory.
const EMPTY_EVERY: u64 = 16;
/// What is made in memory by whoever opens first.
const IN_MEMORY: [&str; 3] = ["hot.db", "runtime.db", "locks.db"];
/// One look in so many verifies the chains, and reads as the consumer.
const CLOSER_EVERY: u64 = 4;
/// One look in so many archives, and each at a frame that is there in part.
const ARCHIVES_EVERY: u64 = 2;
/// Longer than anything is kept.
const UPKEEP_AFTER: Duration = Duration::from_secs(31 * 86_400);
const KIND: u32 = 56;
const ARCHIVING: u64 = 1;
const ARCHIVED: u64 = 2;
const FLUSHED: u64 = 3;
const FOLLOWED: u64 = 4;
const FOLLOWING: u64 = 5;
/// Rows that are enough for a segment.
const ROWS: u64 = 36;
const FOLLOWER: &str = "follower";

type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// A record, and what its acknowledgements mean.
struct Story {
    flash: Recording,
    both: Recording,
    /// Everything told, in the order it was told; an acknowledgement names how many.
    told: Promises,
    /// What was in the cold directory after each archive run, the empty one first.
    colds: Vec<Tree>,
    /// The event told last when each flush, and each archive run, had ended.
    flushed: Vec<usize>,
    archived: Vec<usize>,
    /// Where the consumer stood after each of its visits, and before the first.
    followed: Vec<Position>,
    /// What the clock of the machine shows at the end.
    ran: Duration,
}

/// Records one run of a store and cuts the power at some of its crash points.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let runtime = events::runtime()?;
    let story = runtime.block_on(record(&mut turn.random, false))?;
    let mut found = Found::default();
    let random = &mut turn.random;
    let now = Instant::now();
    let cut = |every: u64, random: &mut Random| -> Result<Replay, Failure> {
        Ok(Replay {
            every: usize::try_from(every)?,
            first: usize::try_from(random.below(every))?,
            ..Replay::new(random.number())
        })
    };
    // First the one whose share is small: what it leaves goes to the other.
    let kept = Replay { variants: vec![Variant::KeepAll], ..cut(STRIDE_KEPT, random)? };
    replay(&runtime, &story, &kept, Hot::Kept, random, &mut found, Some(now + turn.left / KEPT_SHARE))?;
    let wiped = cut(1, random)?;
    replay(&runtime, &story, &wiped, Hot::Wiped, random, &mut found, Some(now + turn.left))?;
    for hot in [Hot::Wiped, Hot::Kept] {
        if !found.counts.contains_key(hot.states()) {
            found.broken.push(format!("no state was looked at with the run directory {hot:?}"));
        }
    }
    Ok(found)
}

/// Liars must be caught: a disk that does not sync, a store that promises before it has written, and a hot tier that lacks
/// what was written last.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    let runtime = events::runtime()?;
    let mut random = Random::new(seed);
    let few = Replay { every: 3, variants: vec![Variant::DropAll, Variant::Sectors], ..Replay::new(seed) };
    let honest = runtime.block_on(record(&mut random, false))?;
    let mut lies = Found::default();
    let lying = few.clone().medium(Medium::LiesAboutSync);
    replay(&runtime, &honest, &lying, Hot::Wiped, &mut random, &mut lies, None)?;
    let mut early = Found::default();
    let liar = runtime.block_on(record(&mut random, true))?;
    let all = Replay { every: 1, variants: vec![Variant::KeepAll], ..few };
    replay(&runtime, &liar, &all, Hot::Wiped, &mut random, &mut early, None)?;
    // Its last event is in the hot tier only.
    let mut short = Found::default();
    replay(&runtime, &liar, &all, Hot::Shortened, &mut random, &mut short, None)?;
    Ok(vec![
        ("lying disk", !lies.broken.is_empty()),
        ("hot events promised as synced", !early.broken.is_empty()),
        ("newest row of the hot tier removed", !short.broken.is_empty()),
    ])
}

/// Records a store at work; `early` calls events `Synced` that are in the hot tier only.
async fn record(random: &mut Random, early: bool) -> Result<Story, Failure> {
    let place = Place::new(Some(Path::new("/dev/shm")))?;
    let base = place.disk.path();
    // One router has more states a second; with all scopes a cut may come between two of them.
    let only = (random.below(2) > 0).then_some(1);
    let mut site = Site::new(base, place.tmpfs.path());
    if only.is_some() {
        site.routers = 1;
    }
    // Nothing waits for a snapshot.
    site.options.retention = Retention::default().full_history([""; 0]);
    let clock = ManualClock::new(NOW_MS);
    let mut numbers = Numbers::default();
    let mut told = Promises::default();
    let (mut colds, mut flushed, mut archived) = (vec![read_tree(&site.cold)?], Vec::new(), Vec::new());
    // What was before is not recorded: all tiers hold something, and closing has synced it.
    let open = events::open(&site, &clock, true).await?;
    for _ in 0..random.below(10) {
        let batch = events::append(&open, &mut numbers, Way::Append, only, random).await?;
        told.told.extend(batch.map_err(|(_, error)| error)?);
    }
    if random.below(2) == 0 {
        let many = events::append_some(&open, &mut numbers, Way::Commit, 1, ROWS, random).await?;
        told.told.extend(many.map_err(|(_, error)| error)?);
    }
    let (mut followed, mut ran) = (vec![follow(&open).await?.0], Duration::ZERO);
    open.close(true).await?;
    let flash = Recorder::start(&site.data)?;
    let both = Recorder::start(base)?;
    let ack = |kind: u64, number: usize| {
        let number = kind << KIND | number as u64;
        flash.ack(number);
        both.ack(number);
    };
    ack(0, told.told.len());
    flushed.push(told.told.len());
    ack(FLUSHED, 0);
    let open = events::open(&site, &clock, false).await?;
    colds[0] = read_tree(&site.cold)?;
    for _ in 0..6 + random.below(12) {
        match random.below(11) {
            0..=3 => {
                let batch = events::append(&open, &mut numbers, Way::Append, only, random).await?;
                told.told.extend(batch.map_err(|(_, error)| error)?);
            }
            4 | 5 => {
                let batch = events::append(&open, &mut numbers, Way::Commit, only, random).await?;
                told.told.extend(batch.map_err(|(_, error)| error)?);
            }
            6 => {
                flush(&open).await?;
                flushed.push(told.told.len());
                ack(FLUSHED, flushed.len() - 1);
            }
            7 => {
                open.store.mark_age().await?;
                clock.advance(UPKEEP_AFTER);
                ran += UPKEEP_AFTER;
                if let Some(failed) = open.store.seal().await?.failed.first() {
                    return Err(format!("sealing fails for {failed:?}").into());
                }
                let removed = open.store.retain(open.store.retention_plan().await?).await?;
                if let Some(failed) = removed.failed.first() {
                    return Err(format!("a retention fails for {failed:?}").into());
                }
            }
            8 => {
                ack(FOLLOWING, followed.len());
                followed.push(follow(&open).await?.0);
                ack(FOLLOWED, followed.len() - 1);
            }
            _ => {
                // Flushed before, so that all an archive run writes to flash is that it confirms.
                flush(&open).await?;
                flushed.push(told.told.len());
                ack(FLUSHED, flushed.len() - 1);
                ack(ARCHIVING, colds.len());
                let report = open.store.archive().await?;
                if let Some(failed) = report.failed.first() {
                    return Err(format!("archiving fails for {failed:?}").into());
                }
                colds.push(read_tree(&site.cold)?);
                archived.push(told.told.len());
                ack(ARCHIVED, colds.len() - 1);
            }
        }
        ack(0, told.told.len());
    }
    // What a liar has not written, whatever was flushed before.
    while early && told.told.last().is_none_or(|told| told.class != Class::Normal || told.is_row) {
        let batch = events::append(&open, &mut numbers, Way::Append, only, random).await?;
        told.told.extend(batch.map_err(|(_, error)| error)?);
        ack(0, told.told.len());
    }
    let (flash, both) = (flash.stop(), both.stop());
    open.close(false).await?;
    if early {
        told.lasting(&[], |told| told.class == Class::Normal);
    }
    Ok(Story { flash, both, told, colds, flushed, archived, followed, ran })
}

/// Reads what a consumer has not seen, up to where it has caught up, and acknowledges it on flash.
async fn follow(open: &events::Open) -> Result<(Position, Vec<Position>), Failure> {
    let mut subscription = open.store.subscribe(Consumer::new(ConsumerName::parse(FOLLOWER)?)).await?;
    let mut shown = Vec::new();
    while let Some(item) = subscription.next().await {
        match item? {
            Item::Event(event) => shown.push(event.position),
            Item::CaughtUp { position } => {
                subscription.ack(position).await?;
                subscription.close().await?;
                return Ok((position, shown));
            }
            _ => {}
        }
    }
    Err("the stream of a consumer ends".into())
}

async fn flush(open: &events::Open) -> Result<(), Failure> {
    let report = open.store.flush(FlushReason::Requested).await?;
    match report.failed.first() {
        None => Ok(()),
        Some(failed) => Err(format!("a flush fails for {failed:?}").into()),
    }
}

/// What becomes of the run directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hot {
    Wiped,
    Kept,
    /// Kept, but for the newest row of the hot tier.
    Shortened,
}

impl Hot {
    /// What its states are counted as.
    const fn states(self) -> &'static str {
        match self {
            Self::Wiped => "states_hot_wiped",
            Self::Kept => "states_hot_kept",
            Self::Shortened => "states_hot_shortened",
        }
    }
}

/// What was acknowledged before a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Acked {
    told: usize,
    flush: Option<usize>,
    /// The archive run under way, or the last one that ended.
    archiving: usize,
    archived: usize,
    /// The visit of the consumer under way, or the last one that ended.
    following: usize,
    followed: usize,
}

impl Acked {
    fn of(state: &CrashState) -> Self {
        let mut acked = Self { told: 0, flush: None, archiving: 0, archived: 0, following: 0, followed: 0 };
        for ack in state.acked() {
            let number = usize::try_from(ack & ((1 << KIND) - 1)).unwrap_or(0);
            match ack >> KIND {
                ARCHIVING => acked.archiving = number,
                ARCHIVED => acked.archived = number,
                FLUSHED => acked.flush = Some(number),
                FOLLOWING => acked.following = number,
                FOLLOWED => acked.followed = number,
                _ => acked.told = number,
            }
        }
        acked
    }
}

/// What a look begins with in the run directory.
#[derive(Debug, Clone, Copy)]
enum Run<'a> {
    /// What the state says.
    AsLeft,
    Empty,
    /// Nothing, and what is made there is to be copied to this place before anything is written to it.
    CopiedTo(&'a Path),
    /// What was copied.
    Made(&'a Path),
}

/// How much of a frame that was being added is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Frame {
    Whole(usize),
    Part { of: usize, seed: u64 },
}

fn replay(
    runtime: &Runtime,
    story: &Story,
    replay: &Replay,
    hot: Hot,
    random: &mut Random,
    found: &mut Found,
    end: Option<Instant>,
) -> Result<(), Failure> {
    let recording = if hot == Hot::Wiped { &story.flash } else { &story.both };
    let mut looked: HashMap<(u64, Frame), Result<Look, String>> = HashMap::new();
    let before = found.cases;
    let mut cutting = None;
    let made = TempDir::new_in("/dev/shm")?;
    let mut is_made = false;
    for state in recording.crash_states(replay) {
        // One record has many states: those beyond the budget are for another run. A control ends with its proof.
        let enough =
            end.map_or(!found.broken.is_empty(), |end| found.cases - before >= STATES_MIN && Instant::now() > end);
        if enough {
            break;
        }
        let acked = Acked::of(&state);
        // The first point after an archive run has begun stands for all at which its frames are being written; at the
        // later ones they are whole, for only then are they confirmed. So they are where writes that were not synced are
        // kept: one of these may be what confirms them.
        let frame = if acked.archiving > acked.archived {
            let at = *cutting.get_or_insert(state.point());
            if at == state.point() && state.variant() == Variant::DropAll {
                Frame::Part { of: acked.archiving, seed: random.below(1 << 30) }
            } else {
                Frame::Whole(acked.archiving)
            }
        } else {
            cutting = None;
            Frame::Whole(acked.archived)
        };
        found.cases += 1;
        found.count(hot.states(), 1);
        if matches!(frame, Frame::Part { .. }) {
            found.count("states_frame_cut", 1);
        }
        let seen = match looked.entry((state.digest(), frame)) {
            std::collections::hash_map::Entry::Occupied(slot) => slot.into_mut(),
            std::collections::hash_map::Entry::Vacant(slot) => {
                let run = match hot {
                    Hot::Kept | Hot::Shortened => Run::AsLeft,
                    Hot::Wiped if !is_made => Run::CopiedTo(made.path()),
                    Hot::Wiped if slot.key().0.is_multiple_of(EMPTY_EVERY) => Run::Empty,
                    Hot::Wiped => Run::Made(made.path()),
                };
                found.count("laid_out", 1);
                if matches!(run, Run::Made(_)) {
                    found.count("laid_out_with_files_in_memory", 1);
                }
                let dir = TempDir::new_in("/dev/shm")?;
                lay_out(&state, story, frame, run, dir.path())?;
                if hot == Hot::Shortened {
                    runtime.block_on(shorten(dir.path()))?;
                }
                // What costs more is done to one in a few, so that there is time for more states.
                let every = |few: u64| (slot.key().0 / EMPTY_EVERY).is_multiple_of(few);
                let (closer, part) = (every(CLOSER_EVERY), matches!(frame, Frame::Part { .. }));
                let depth = Depth { archives: part || every(ARCHIVES_EVERY), closer };
                let seen = runtime.block_on(look(dir.path(), run, frame, story.ran, depth));
                let seen = seen.map_err(|error| error.to_string());
                found.count("laid_out_and_archived", u64::from(depth.archives));
                found.count("laid_out_and_verified", u64::from(closer));
                is_made |= seen.is_ok();
                slot.insert(seen)
            }
        };
        let promises = promised(story, acked, hot);
        let wrong = match seen {
            Err(error) => Some(format!("it does not open: {error}")),
            Ok(look) => look.seen.judge(&promises).or_else(|| look.judge(story, acked, &promises)),
        };
        if let Some(wrong) = wrong {
            let (point, variant) = (state.point(), state.variant());
            found.broken.push(format!("{hot:?}, point {point}, {variant:?}, {frame:?}, {acked:?}: {wrong}"));
        }
    }
    Ok(())
}

/// What a look saw.
struct Look {
    seen: Seen,
    /// What the consumer was shown, when it was asked.
    shown: Option<Vec<Position>>,
}

impl Look {
    /// The consumer goes on behind its last visit, or behind the one that was under way, and misses nothing.
    fn judge(&self, story: &Story, acked: Acked, promises: &Promises) -> Option<String> {
        let shown = self.shown.as_ref()?;
        let (least, most) = (story.followed[acked.followed], story.followed[acked.followed.max(acked.following)]);
        // What it saw of a hot tier that is gone may have been lost behind it.
        if let Some(again) = shown.iter().find(|position| **position <= least) {
            return Some(format!("the consumer behind {least} is shown {again} again"));
        }
        let wanted = self.seen.events.iter().map(|(_, position)| position).filter(|position| **position > most);
        let missed = wanted.clone().find(|position| !shown.contains(position));
        missed.map(|missed| format!("the consumer behind {most} misses {missed} of {}", promises.told.len()))
    }
}

/// What must be there after a cut.
fn promised(story: &Story, acked: Acked, hot: Hot) -> Promises {
    let mut promises = Promises { told: story.told.told[..acked.told].to_vec(), ..Promises::default() };
    let flushed = acked.flush.map_or(0, |at| story.flushed[at]);
    let archived = acked.archived.checked_sub(1).map_or(0, |at| story.archived[at]);
    for (at, told) in promises.told.iter_mut().enumerate() {
        told.synced |= at < archived || (at < flushed && told.class == Class::Normal);
    }
    if hot == Hot::Wiped {
        promises.wiped();
    }
    promises
}

fn lay_out(state: &CrashState, story: &Story, frame: Frame, run: Run<'_>, dir: &Path) -> Result<(), Failure> {
    match run {
        Run::AsLeft => state.materialise(dir)?,
        Run::Empty | Run::CopiedTo(_) | Run::Made(_) => {
            fs::create_dir(dir.join("data"))?;
            state.materialise(&dir.join("data"))?;
        }
    }
    if let Run::Made(made) = run {
        fs::create_dir(dir.join("run"))?;
        for name in IN_MEMORY {
            fs::copy(made.join(name), dir.join("run").join(name))?;
        }
    }
    let cold = dir.join("cold");
    let (whole, next) = match frame {
        Frame::Whole(at) => (&story.colds[at], None),
        Frame::Part { of, seed } => (&story.colds[of - 1], Some((&story.colds[of], Random::new(seed)))),
    };
    fs::create_dir_all(&cold)?;
    for (path, bytes) in whole {
        write(&cold.join(path), bytes)?;
    }
    let Some((next, mut random)) = next else { return Ok(()) };
    for (path, bytes) in next {
        let kept = whole.get(path).map_or(0, Vec::len);
        if kept == bytes.len() || random.below(4) == 0 {
            continue;
        }
        let added = usize::try_from(random.below((bytes.len() - kept) as u64 + 1))?;
        let mut part = bytes[..kept + added].to_vec();
        // Sectors that did not make it, though the file is as long as it should be.
        if random.below(3) == 0 {
            part.resize(bytes.len(), 0);
        }
        write(&cold.join(path), &part)?;
    }
    Ok(())
}

/// Removes the newest row of the hot tier: what a killed process has written would never be there.
async fn shorten(dir: &Path) -> Result<(), Failure> {
    let mut conn = SqliteConnectOptions::new().filename(dir.join("run").join("hot.db")).connect().await?;
    let newest = "DELETE FROM hot_log WHERE first_seq = (SELECT MAX(first_seq) FROM hot_log)";
    sqlx::query(newest).execute(&mut conn).await?;
    Ok(conn.close().await?)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(path, bytes)?)
}

fn read_tree(dir: &Path) -> Result<Tree, Failure> {
    let mut tree = Tree::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let path = below.join(entry?.file_name());
            if dir.join(&path).is_dir() {
                dirs.push(path);
            } else {
                tree.insert(path.clone(), fs::read(dir.join(&path))?);
            }
        }
    }
    Ok(tree)
}

/// What is done in a look beside opening, appending and reading.
#[derive(Debug, Clone, Copy)]
struct Depth {
    archives: bool,
    /// Verifies the chains, and reads as the consumer.
    closer: bool,
}

/// Opens what is left, reads everything, then archives, appends and reads again.
async fn look(dir: &Path, run: Run<'_>, frame: Frame, ran: Duration, depth: Depth) -> Result<Look, Failure> {
    let clock = ManualClock::new(NOW_MS);
    clock.advance(ran);
    if !matches!(run, Run::AsLeft) {
        clock.reboot();
    }
    let site = Site::new(dir, &dir.join("cold"));
    let open = events::open(&site, &clock, false).await?;
    if let Run::CopiedTo(made) = run {
        // What was written since is in their logs. Not by this process: it would let go of the locks on them.
        let files = IN_MEMORY.map(|name| site.run.join(name));
        if !Command::new("cp").args(files).arg(made).status()?.success() {
            return Err("the files in memory cannot be copied".into());
        }
    }
    let mut seen = events::look(&open).await;
    if matches!(frame, Frame::Part { .. }) {
        // A torn frame is told of until an archive run has cut it; it hides nothing, and is gone afterwards.
        seen.faults.retain(|fault| !fault.contains(".jsonl.zst"));
    }
    let after = async {
        if depth.archives {
            let report = open.store.archive().await?;
            if let Some(failed) = report.failed.first() {
                return Err(format!("archiving fails afterwards for {failed:?}").into());
            }
        }
        let receipt = events::append_last(&open).await?;
        if receipt.achieved != Achieved::Synced {
            return Err(format!("a critical event is only {:?}", receipt.achieved).into());
        }
        Ok::<_, Failure>(events::look(&open).await)
    };
    match after.await {
        Err(error) => seen.faults.push(error.to_string()),
        Ok(again) => {
            seen.faults.extend(again.faults);
            // One more, and everything that was there before.
            if again.events.len() != seen.events.len() + 1 || !again.events.starts_with(&seen.events) {
                let (then, now) = (seen.events.len(), again.events.len());
                seen.faults.push(format!("{then} events were read, and {now} after archiving and one more"));
            }
        }
    }
    let mut shown = None;
    if depth.closer {
        shown = Some(follow(&open).await?.1);
        let verified = open.store.verify(Span::all()).await?;
        seen.faults.extend(verified.faults.first().map(|fault| format!("verifying finds {fault:?}")));
    }
    open.close(false).await?;
    Ok(Look { seen, shown })
}
