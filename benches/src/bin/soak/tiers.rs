//! Campaigns `tiers` and `clock`: random walks of an event store against a list of what its callers were told.
//!
//! Each case is one walk: appends alone and in transactions that commit or roll back, flushes, seals, archives, small
//! rows that are joined, days that pass, events that leave the hot tier, retentions, restarts, reboots that empty the
//! run directory, wall clocks that jump by 56 years or start in 1970, and media without space. After each disturbance
//! everything is read: each event once, in the order of positions, none lost but those a loss is told of. The same
//! holds for reads beside a round of moves, and for a consumer that comes back now and then. What retention removes is
//! compared with its rules, row by row and segment by segment. One walk in four has no cold tier, so that what
//! retention removes is gone, and so is what was Low a day after. One in sixteen is so long that reads take several
//! pages.

#[path = "tiers/controls.rs"]
mod controls;
#[path = "tiers/readers.rs"]
mod readers;
#[path = "tiers/retention.rs"]
mod retention;

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::ManualClock;
use nasnet_dbmanager::vfs::fault::{Armed, Fault, Operation};
use nasnet_events::{Class, Error, FlushReason, Position, RetentionPlan, RetentionReport, Span};

use crate::events::{self, APPENDED_MAX, NOW_MS, Numbers, Open, Promises, SCOPES, Seen, Site, Told, Way};
use crate::{Failure, Found, Turn};
pub(crate) use controls::{clock_control, control};
use readers::{Follower, Holes};
use retention::{Ages, DAY, Policy, Snapshots, Terms, Warm};

/// Steps of one walk.
const STEPS: u64 = 60;
/// One walk in so many begins with so many appends, more than a page of events, and with reads beside moves.
const LONG_EVERY: u64 = 16;
const LONG: u64 = 320;
const STEPS_LONG: u64 = 24;
const BESIDE_LONG: u64 = 2;
/// How long events stay in the hot tier that need not be there.
const HOT_KEEP: Duration = DAY;
const YEARS_56_MS: i64 = 56 * 365 * 86_400_000;

/// A step, and how often it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Append,
    Commit,
    RollBack,
    /// So many rows of one scope that they are sealed once they are old.
    Burst,
    Flush,
    Seal,
    Archive,
    Compact,
    /// A day passes, and what need not be there any more leaves the hot tier.
    Expire,
    /// Days pass, seen by the machine or not.
    Pass,
    Retain,
    /// A consumer reads what is new.
    Follow,
    /// Everything is read while it moves.
    Beside,
    Reopen,
    Reboot,
    Jump,
    /// The next few writes to flash, or to the run directory, find no space.
    NoSpace,
    Read,
}

const TIERS: [(Step, u64); 18] = [
    (Step::Append, 21),
    (Step::Commit, 8),
    (Step::RollBack, 3),
    (Step::Burst, 1),
    (Step::Flush, 5),
    (Step::Seal, 1),
    (Step::Archive, 4),
    (Step::Compact, 2),
    (Step::Expire, 2),
    (Step::Pass, 4),
    (Step::Retain, 3),
    (Step::Follow, 2),
    (Step::Beside, 1),
    (Step::Reopen, 2),
    (Step::Reboot, 2),
    (Step::Jump, 2),
    (Step::NoSpace, 3),
    (Step::Read, 2),
];
const CLOCK: [(Step, u64); 10] = [
    (Step::Append, 14),
    (Step::Commit, 6),
    (Step::Flush, 4),
    (Step::Archive, 4),
    (Step::Pass, 4),
    (Step::Retain, 4),
    (Step::Follow, 1),
    (Step::Reboot, 3),
    (Step::Jump, 20),
    (Step::Read, 4),
];

/// A round of moves, and what counts the reads beside each. The first comes once more at the end, for the events appended.
const MOVES: [(Step, &str); 8] = [
    (Step::Compact, "reads_beside_compact"),
    (Step::Flush, "reads_beside_flush"),
    (Step::Seal, "reads_beside_seal"),
    (Step::Archive, "reads_beside_archive"),
    (Step::Append, "reads_beside_append"),
    (Step::Expire, "reads_beside_expire"),
    (Step::Retain, "reads_beside_retain"),
    (Step::Compact, "reads_beside_compact"),
];

/// How far a round of moves has come.
#[derive(Debug, Default)]
struct Round {
    at: Cell<usize>,
    is_over: Cell<bool>,
}

struct Walk {
    place: Place,
    site: Site,
    clock: ManualClock,
    open: Open,
    numbers: Numbers,
    promises: Promises,
    found: Found,
    /// What the wall clock showed last, before any time passed.
    shown_ms: i64,
    policy: Policy,
    snapshots: Arc<Snapshots>,
    ages: Ages,
    /// For how long the machine has run, and at which of these instants each event was appended.
    ran: Duration,
    appended: Vec<Duration>,
    follower: Follower,
}

/// One walk over the tiers.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    // The long ones come early, with a cold tier and without in turns.
    let long = turn.number % LONG_EVERY == turn.number / LONG_EVERY % 4;
    walk(&mut turn.random, &TIERS, NOW_MS, turn.number % 4 != 3, long)
}

/// One walk whose clock jumps every third step.
pub(crate) fn clock_case(turn: &mut Turn) -> Result<Found, Failure> {
    let start_ms = [NOW_MS, 0, 86_400_000][usize::try_from(turn.number % 3)?];
    walk(&mut turn.random, &CLOCK, start_ms, true, false)
}

fn walk(
    random: &mut Random,
    steps: &[(Step, u64)],
    start_ms: i64,
    has_cold: bool,
    long: bool,
) -> Result<Found, Failure> {
    let runtime = events::runtime()?;
    let policy = Policy::ALL[usize::try_from(random.below(Policy::ALL.len() as u64))?];
    runtime.block_on(async {
        let mut walk = Walk::begin(start_ms, policy, has_cold).await?;
        walk.found.cases = 1;
        if long {
            let what = walk.fill(random).await?;
            walk.found.broken.extend(what.map(|what| format!("a long log: {what}")));
        }
        for number in 0..if long { STEPS_LONG } else { STEPS } {
            if !walk.found.broken.is_empty() {
                break;
            }
            let step = if long && number < BESIDE_LONG { Step::Beside } else { choose(random, steps) };
            walk.found.count("steps", 1);
            if let Some(what) = walk.take(step, random).await? {
                walk.found.broken.push(format!("step {number}, {step:?}: {what}"));
            }
        }
        if walk.found.broken.is_empty() {
            let what = walk.end().await?;
            walk.found.broken.extend(what.map(|what| format!("at the end: {what}")));
        }
        walk.open.close(false).await?;
        Ok(walk.found)
    })
}

fn choose(random: &mut Random, steps: &[(Step, u64)]) -> Step {
    let total: u64 = steps.iter().map(|(_, weight)| weight).sum();
    let mut at = random.below(total);
    for (step, weight) in steps {
        if at < *weight {
            return *step;
        }
        at -= weight;
    }
    Step::Read
}

impl Walk {
    async fn begin(start_ms: i64, policy: Policy, has_cold: bool) -> Result<Self, Failure> {
        let place = Place::new(Some(Path::new("/dev/shm")))?;
        let cold = place.disk.path().join("cold");
        let mut site = Site { run: place.tmpfs.path().join("run"), has_cold, ..Site::new(place.disk.path(), &cold) };
        let snapshots = Arc::new(Snapshots::default());
        site.options.retention = policy.retention().snapshots(Arc::clone(&snapshots) as _);
        let clock = ManualClock::new(start_ms);
        let open = events::open(&site, &clock, true).await?;
        Ok(Self {
            place,
            site,
            clock,
            open,
            numbers: Numbers::default(),
            promises: Promises::default(),
            found: Found::default(),
            shown_ms: start_ms,
            policy,
            snapshots,
            ages: Ages::default(),
            ran: Duration::ZERO,
            appended: Vec::new(),
            follower: Follower::new(),
        })
    }

    async fn check(&self) -> Option<String> {
        events::look(&self.open).await.judge(&self.promises)
    }

    /// What is on media that last is read once more without a hot tier, and by the consumer.
    async fn end(&mut self) -> Result<Option<String>, Failure> {
        if let Some(what) = self.check().await {
            return Ok(Some(what));
        }
        self.reopen(false, true).await?;
        if let Some(what) = self.check().await {
            return Ok(Some(format!("after a reboot: {what}")));
        }
        if let Some(what) = self.histories().await? {
            return Ok(Some(format!("after a reboot: {what}")));
        }
        self.follower.follow(&self.open, &self.promises, None, false).await
    }

    async fn histories(&self) -> Result<Option<String>, Failure> {
        let some_refused = self.found.counts.contains_key("refused");
        let holes = Holes {
            some_failed: some_refused || !self.promises.never.is_empty(),
            some_unknown: some_refused && !self.site.has_cold,
        };
        readers::histories(&self.open, &self.promises, holes).await
    }

    /// Time passes on both clocks.
    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.ran += time;
    }

    fn told(&mut self, told: Vec<Told>) {
        self.promises.told.extend(told);
        self.appended.resize(self.promises.told.len(), self.ran);
    }

    async fn mark_age(&mut self) -> Result<(), Failure> {
        self.open.store.mark_age().await?;
        self.ages.mark(self.promises.told.len(), &self.open.db.now());
        Ok(())
    }

    async fn take(&mut self, step: Step, random: &mut Random) -> Result<Option<String>, Failure> {
        self.pass(Duration::from_millis(random.below(5_000)));
        match step {
            Step::Append => return self.append(Way::Append, random, false).await,
            Step::Commit => return self.append(Way::Commit, random, false).await,
            Step::RollBack => return self.append(Way::RollBack, random, false).await,
            Step::Burst => return self.burst(random).await,
            Step::Flush => return self.flush(false).await,
            Step::Seal => return self.seal().await,
            Step::Archive => return self.archive(false).await,
            Step::Compact => self.compact().await?,
            Step::Expire => {
                if random.below(2) == 0 {
                    self.mark_age().await?;
                }
                return self.expire().await;
            }
            Step::Pass => {
                self.days(random).await?;
                return Ok(None);
            }
            Step::Retain => return self.retain(random, false).await,
            Step::Follow => {
                let part = if random.below(3) == 0 { Some(1 + usize::try_from(random.below(4))?) } else { None };
                self.found.count("consumer_readings", 1);
                return self.follower.follow(&self.open, &self.promises, part, false).await;
            }
            Step::Beside => return self.beside(random).await,
            Step::Reopen => self.reopen(random.below(2) == 0, false).await?,
            Step::Reboot => {
                self.reopen(random.below(3) == 0, true).await?;
                self.found.count("reboots", 1);
            }
            Step::Jump => {
                let jumps = [-YEARS_56_MS, YEARS_56_MS, -3_600_000, 86_400_000 * 40];
                let to = match random.below(6) {
                    0 => 0,
                    1 => NOW_MS,
                    _ => self.shown_ms + jumps[usize::try_from(random.below(4))?],
                };
                // Before 1970 no clock of a router goes.
                self.shown_ms = to.max(0);
                self.clock.set_wall_ms(self.shown_ms);
                self.found.count("clock_jumps", 1);
            }
            Step::NoSpace => return self.without_space(random).await,
            Step::Read => {
                if let Some(what) = self.histories().await? {
                    return Ok(Some(what));
                }
            }
        }
        Ok(self.check().await)
    }

    async fn append(&mut self, way: Way, random: &mut Random, troubled: bool) -> Result<Option<String>, Failure> {
        let answer = events::append(&self.open, &mut self.numbers, way, None, random).await?;
        match answer {
            Ok(told) if way == Way::RollBack => return Ok(Some(format!("a rolled back transaction gave {told:?}"))),
            Ok(told) => self.told(told),
            Err((tried, Error::Closed)) if way == Way::RollBack => {
                self.promises.never.extend(tried.iter().map(|tried| tried.number));
            }
            // What was refused may be there, but never by half.
            Err((tried, error)) if troubled && acceptable(&error) => {
                self.found.count("refused", 1);
                self.promises.refused.push(tried);
            }
            Err((tried, error)) => return Ok(Some(format!("appending {tried:?} says {error:?}"))),
        }
        Ok(None)
    }

    async fn burst(&mut self, random: &mut Random) -> Result<Option<String>, Failure> {
        let (of, count) = (random.below(SCOPES), 36 + random.below(20));
        match events::append_some(&self.open, &mut self.numbers, Way::Commit, of, count, random).await? {
            Ok(told) => self.told(told),
            Err((_, error)) => return Ok(Some(format!("appending many says {error:?}"))),
        }
        Ok(None)
    }

    /// Days pass. Those before a mark make what is marked older, and those behind the last one of a boot are not counted.
    async fn days(&mut self, random: &mut Random) -> Result<(), Failure> {
        if random.below(4) > 0 {
            self.mark_age().await?;
        }
        let most = [DAY / 2, 4 * DAY, 12 * DAY][usize::try_from(random.below(3))?];
        self.pass(Duration::from_secs(random.below(most.as_secs())));
        self.found.count("days_passed", 1);
        Ok(())
    }

    /// More events than a read takes in one page, most of them in rows of their own of the hot log.
    async fn fill(&mut self, random: &mut Random) -> Result<Option<String>, Failure> {
        for number in 0..LONG {
            let wrong = match number % 80 {
                79 => self.burst(random).await?,
                _ => self.append(Way::Append, random, false).await?,
            };
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        self.found.count("long_walks", 1);
        Ok(None)
    }

    async fn compact(&mut self) -> Result<(), Failure> {
        let report = self.open.store.compact().await?;
        self.found.count("rows_joined", report.joined);
        Ok(())
    }

    /// A day passes, and what has been in the hot tier for that long leaves it: what is elsewhere, and, where no cold tier
    /// takes them, Low events for good.
    async fn expire(&mut self) -> Result<Option<String>, Failure> {
        self.pass(HOT_KEEP + Duration::from_secs(3_600));
        let before = events::look(&self.open).await;
        let ended = self.open.store.expire().await?;
        let after = events::look(&self.open).await;
        // Its row stays, since it says where the order goes on.
        let newest = before.events.iter().map(|(number, _)| *number).max().unwrap_or(0).saturating_sub(APPENDED_MAX);
        let (has_cold, mut gone) = (self.site.has_cold, 0);
        for (told, appended) in self.promises.told.iter_mut().zip(&self.appended) {
            if !before.facts.contains_key(&told.number) {
                continue;
            }
            let is_over = told.class == Class::Low && !told.synced && !has_cold && self.ran - *appended >= HOT_KEEP;
            let is_gone = !after.facts.contains_key(&told.number);
            // It was in the hot tier alone since retention removed it.
            if is_gone && told.retained {
                continue;
            }
            if is_gone && !is_over {
                return Ok(Some(format!("{told:?} is gone {:?} after it came", self.ran - *appended)));
            }
            if !is_gone && is_over && told.number <= newest {
                return Ok(Some(format!("{told:?} is there {:?} after it came", self.ran - *appended)));
            }
            told.expired |= is_over;
            gone += u64::from(is_gone);
        }
        self.found.count("expired_events", gone);
        if ended != gone {
            return Ok(Some(format!("{gone} events have ended, told were {ended}")));
        }
        Ok(after.judge(&self.promises))
    }

    async fn seal(&mut self) -> Result<Option<String>, Failure> {
        let report = self.open.store.seal().await?;
        self.found.count("sealed_events", report.events);
        Ok(report.failed.first().map(|failed| format!("sealing fails for {failed:?}")))
    }

    /// Removes what may go, and compares it with the rules.
    async fn retain(&mut self, random: &mut Random, troubled: bool) -> Result<Option<String>, Failure> {
        self.move_snapshots(random);
        let before = match self.warm().await {
            Err(_) if troubled => return Ok(None),
            before => before?,
        };
        let (plan, report) = match self.retain_by_plan(random.below(2) == 0).await {
            Err(error) if troubled && acceptable(&error) => (None, None),
            Err(error) => return Ok(Some(format!("a retention says {error:?}"))),
            Ok((plan, dry, report)) => {
                let tried = dry.iter().flat_map(|dry| &dry.failed);
                match plan.failed.iter().chain(&report.failed).chain(tried).next() {
                    Some((_, error)) if troubled && acceptable(error) => (None, None),
                    Some(failed) => return Ok(Some(format!("a retention fails for {failed:?}"))),
                    None => {
                        let says = dry.map(|dry| dry.to_string().replace("would go", "removed"));
                        if says.as_ref().is_some_and(|says| *says != report.to_string()) {
                            return Ok(Some(format!("a dry run says {says:?}, the same plan then {report}")));
                        }
                        (Some(plan), Some(report))
                    }
                }
            }
        };
        self.compare(&before, plan.as_ref(), report.as_ref(), troubled).await
    }

    async fn warm(&self) -> Result<Warm, Failure> {
        events::settle(&self.open).await?;
        Warm::look(&self.open).await
    }

    /// Plans, tries the plan out if asked, and carries another one out that was made after that.
    async fn retain_by_plan(
        &self,
        try_out: bool,
    ) -> Result<(RetentionPlan, Option<RetentionReport>, RetentionReport), Error> {
        let store = &self.open.store;
        let dry = match try_out {
            true => Some(store.retain(store.retention_plan().await?.dry_run()).await?),
            false => None,
        };
        let plan = store.retention_plan().await?;
        let report = store.retain(store.retention_plan().await?).await?;
        Ok((plan, dry, report))
    }

    async fn compare(
        &mut self,
        before: &Warm,
        plan: Option<&RetentionPlan>,
        report: Option<&RetentionReport>,
        troubled: bool,
    ) -> Result<Option<String>, Failure> {
        let (after, guards) = match (self.warm().await, self.open.store.guards().await) {
            (Err(_), _) | (_, Err(_)) if troubled => return Ok(None),
            (after, guards) => (after?, guards?),
        };
        // An append does not wait for long for a flush that makes room. Its segments come when they can.
        let after = if troubled { after.without_new_segments(before) } else { after };
        let there_for = |number: usize| self.ran - self.appended[number];
        let terms = Terms {
            policy: self.policy,
            ages: &self.ages,
            told: &self.promises.told,
            there_for: &there_for,
            snapshots: &self.snapshots,
            has_cold: self.site.has_cold,
            guard: guards.into_iter().next(),
            now: self.open.db.now(),
        };
        if let Some(wrong) = terms.judge(before, &after, plan, report)? {
            return Ok(Some(wrong));
        }
        let gone = before.units.difference(&after.units);
        let members: Vec<usize> = gone.flat_map(|unit| before.members(unit, &self.promises.told)).collect();
        self.found.count("retentions", 1);
        self.found.count("retained_events", members.len() as u64);
        self.found.count("retained_past_a_guard", report.map_or(0, |report| report.forced.len() as u64));
        for number in members {
            self.promises.told[number].retained = !self.site.has_cold;
        }
        if troubled {
            return Ok(None);
        }
        let verified = self.open.store.verify(Span::all()).await?;
        if let Some(fault) = verified.faults.first() {
            return Ok(Some(format!("after a retention there is {fault:?}")));
        }
        Ok(self.check().await)
    }

    /// Snapshots are made of what there is, or of a part of it, or not yet.
    fn move_snapshots(&self, random: &mut Random) {
        let told = &self.promises.told;
        let some = |random: &mut Random| usize::try_from(random.below(told.len() as u64)).ok();
        match random.below(4) {
            0 if !told.is_empty() => self.snapshots.set(some(random).map(|at| told[at].position)),
            1 => {}
            _ => self.snapshots.set(told.last().map(|told| told.position)),
        }
    }

    /// A round of moves, and reads of everything beside it.
    async fn beside(&mut self, random: &mut Random) -> Result<Option<String>, Failure> {
        let (open, round) = (self.open.clone(), Round::default());
        let told = self.promises.told.len();
        let moves = async {
            let moved = self.moves(random, &round).await;
            round.is_over.set(true);
            moved
        };
        let (moved, all) = tokio::join!(moves, readers::read_beside(open, &round));
        if let Some(wrong) = moved? {
            return Ok(Some(wrong));
        }
        self.found.count("reads_beside_moves", all.len() as u64);
        for (_, moves) in &all {
            for number in moves.clone() {
                self.found.count(MOVES[number].1, 1);
            }
        }
        // What was there when they began; what retention has removed since may be there or not.
        let mut promises = self.promises.clone();
        promises.told.truncate(told);
        let wrong = |(seen, moves): &(Seen, RangeInclusive<usize>)| {
            let moves = || MOVES[moves.clone()].iter().map(|(step, _)| *step).collect::<Vec<_>>();
            seen.judge(&promises).map(|wrong| format!("beside {:?}: {wrong}", moves()))
        };
        Ok(all.iter().find_map(wrong))
    }

    async fn moves(&mut self, random: &mut Random, round: &Round) -> Result<Option<String>, Failure> {
        self.days(random).await?;
        for (number, (step, _)) in MOVES.iter().enumerate() {
            round.at.set(number);
            let wrong = match step {
                Step::Compact => {
                    self.compact().await?;
                    None
                }
                Step::Flush => self.flush(false).await?,
                Step::Seal => self.seal().await?,
                Step::Archive => self.archive(false).await?,
                Step::Expire => self.expire().await?,
                Step::Retain => self.retain(random, false).await?,
                _ => self.append(Way::Append, random, false).await?,
            };
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        Ok(None)
    }

    async fn flush(&mut self, troubled: bool) -> Result<Option<String>, Failure> {
        let gone = self.promises.gone;
        let report = match self.open.store.flush(FlushReason::Requested).await {
            Ok(report) => report,
            Err(error) if troubled && acceptable(&error) => return Ok(None),
            Err(error) => return Ok(Some(format!("a flush says {error:?}"))),
        };
        match report.failed.first() {
            // What was lost before cannot come back.
            None => {
                let removed = self.open.store.truncated(Position::START).await?;
                self.promises.lasting(&removed, |told| {
                    told.class == Class::Normal && told.position <= report.through && told.position.epoch > gone
                });
            }
            Some((_, error)) if troubled && acceptable(error) => {}
            Some(failed) => return Ok(Some(format!("a flush fails for {failed:?}"))),
        }
        Ok(None)
    }

    async fn archive(&mut self, troubled: bool) -> Result<Option<String>, Failure> {
        if !self.site.has_cold {
            return self.flush(troubled).await;
        }
        let gone = self.promises.gone;
        let report = match self.open.store.archive().await {
            Ok(report) => report,
            Err(error) if troubled && acceptable(&error) => return Ok(None),
            Err(error) => return Ok(Some(format!("archiving says {error:?}"))),
        };
        match report.failed.first() {
            // What was lost before cannot come back.
            None => {
                let removed = self.open.store.truncated(Position::START).await?;
                self.promises.lasting(&removed, |told| told.position <= report.through && told.position.epoch > gone);
            }
            Some((_, error)) if troubled && acceptable(error) => {}
            Some(failed) => return Ok(Some(format!("archiving fails for {failed:?}"))),
        }
        Ok(None)
    }

    async fn reopen(&mut self, clean: bool, wipe: bool) -> Result<(), Failure> {
        if clean {
            self.open.store.shutdown().await?;
            let gone = self.promises.gone;
            let removed = self.open.store.truncated(Position::START).await?;
            self.promises.lasting(&removed, |told| told.class == Class::Normal && told.position.epoch > gone);
        }
        self.open.db.shutdown().await?;
        if wipe {
            std::fs::remove_dir_all(&self.site.run)?;
            self.clock.reboot();
            self.promises.wiped();
        }
        self.open = events::open(&self.site, &self.clock, false).await?;
        Ok(())
    }

    /// A few calls while writes find no space, in the run directory or on flash; then everything goes on by itself.
    async fn without_space(&mut self, random: &mut Random) -> Result<Option<String>, Failure> {
        let armed: Armed = {
            let dir = if random.below(2) == 0 { &self.site.data } else { &self.site.run };
            Fault::fail(Operation::Write, 1 + random.below(3), Fault::FULL).times(1 + random.below(5)).arm(dir)?
        };
        let mut wrong = None;
        for _ in 0..4 {
            wrong = match random.below(6) {
                0 => self.flush(true).await?,
                1 => self.archive(true).await?,
                2 => self.retain(random, true).await?,
                3 => self.append(Way::Commit, random, true).await?,
                _ => self.append(Way::Append, random, true).await?,
            };
            if wrong.is_some() {
                break;
            }
        }
        self.found.count("writes_without_space", armed.fired());
        drop(armed);
        if wrong.is_some() {
            return Ok(wrong);
        }
        let seen = events::look(&self.open).await;
        self.resolve(&seen);
        Ok(seen.judge(&self.promises))
    }

    /// What is there of refused calls is known from now on.
    fn resolve(&mut self, seen: &Seen) {
        let (refused, there) =
            (self.promises.refused.iter().filter(|call| call.len() > 1).count(), self.promises.resolve(seen));
        self.found.count("refused_several", refused as u64);
        self.found.count("refused_and_there", there);
        self.appended.resize(self.promises.told.len(), self.ran);
    }
}

/// What a caller may be told when there is no space.
fn acceptable(error: &Error) -> bool {
    !matches!(error, Error::Corrupt { .. } | Error::Conflict(_) | Error::IdReused { .. } | Error::Invalid { .. })
}
