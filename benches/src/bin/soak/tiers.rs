//! Campaigns `tiers` and `clock`: random walks of an event store against a list of what its callers were told.
//!
//! Each case is one walk: appends alone and in transactions that commit or roll back, flushes, archives, restarts, reboots
//! that empty the run directory, wall clocks that jump by 56 years or start in 1970, and media without space. After each
//! disturbance everything is read: each event once, in the order of positions, none lost but those a loss is told of.

use std::path::Path;
use std::time::Duration;

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::ManualClock;
use nasnet_dbmanager::vfs::fault::{Armed, Fault, Operation};
use nasnet_events::{Class, Error, FlushReason, Position};

use crate::events::{self, NOW_MS, Numbers, Open, Promises, Site, Way};
use crate::{Controls, Failure, Found, Turn};

/// Steps of one walk.
const STEPS: u64 = 60;
const YEARS_56_MS: i64 = 56 * 365 * 86_400_000;

/// A step, and how often it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Append,
    Commit,
    RollBack,
    Flush,
    Archive,
    Reopen,
    Reboot,
    Jump,
    /// The next few writes to flash, or to the run directory, find no space.
    NoSpace,
    Read,
}

const TIERS: [(Step, u64); 10] = [
    (Step::Append, 22),
    (Step::Commit, 8),
    (Step::RollBack, 3),
    (Step::Flush, 6),
    (Step::Archive, 5),
    (Step::Reopen, 3),
    (Step::Reboot, 2),
    (Step::Jump, 3),
    (Step::NoSpace, 4),
    (Step::Read, 4),
];
const CLOCK: [(Step, u64); 7] = [
    (Step::Append, 14),
    (Step::Commit, 6),
    (Step::Flush, 5),
    (Step::Archive, 5),
    (Step::Reboot, 3),
    (Step::Jump, 20),
    (Step::Read, 7),
];

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
}

/// One walk over the tiers.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    walk(&mut turn.random, &TIERS, NOW_MS)
}

/// One walk whose clock jumps every third step.
pub(crate) fn clock_case(turn: &mut Turn) -> Result<Found, Failure> {
    let start_ms = [NOW_MS, 0, 86_400_000][usize::try_from(turn.number % 3)?];
    walk(&mut turn.random, &CLOCK, start_ms)
}

fn walk(random: &mut Random, steps: &[(Step, u64)], start_ms: i64) -> Result<Found, Failure> {
    let runtime = events::runtime()?;
    runtime.block_on(async {
        let mut walk = Walk::begin(start_ms).await?;
        walk.found.cases = 1;
        for number in 0..STEPS {
            let step = choose(random, steps);
            walk.found.count("steps", 1);
            if let Some(what) = walk.take(step, random).await? {
                walk.found.broken.push(format!("step {number}, {step:?}: {what}"));
                break;
            }
        }
        if walk.found.broken.is_empty() {
            let what = walk.check().await;
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
    async fn begin(start_ms: i64) -> Result<Self, Failure> {
        let place = Place::new(Some(Path::new("/dev/shm")))?;
        let cold = place.disk.path().join("cold");
        let site = Site { run: place.tmpfs.path().join("run"), ..Site::new(place.disk.path(), &cold) };
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
        })
    }

    async fn check(&self) -> Option<String> {
        events::look(&self.open).await.judge(&self.promises)
    }

    async fn take(&mut self, step: Step, random: &mut Random) -> Result<Option<String>, Failure> {
        self.clock.advance(Duration::from_millis(random.below(5_000)));
        match step {
            Step::Append => return self.append(Way::Append, random, false).await,
            Step::Commit => return self.append(Way::Commit, random, false).await,
            Step::RollBack => return self.append(Way::RollBack, random, false).await,
            Step::Flush => return self.flush(false).await,
            Step::Archive => return self.archive(false).await,
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
            Step::Read => {}
        }
        Ok(self.check().await)
    }

    async fn append(&mut self, way: Way, random: &mut Random, troubled: bool) -> Result<Option<String>, Failure> {
        let answer = events::append(&self.open, &mut self.numbers, way, None, random).await?;
        match answer {
            Ok(told) if way == Way::RollBack => return Ok(Some(format!("a rolled back transaction gave {told:?}"))),
            Ok(told) => self.promises.told.extend(told),
            Err((numbers, Error::Closed)) if way == Way::RollBack => self.promises.never.extend(numbers),
            // What was refused may be there, but never by half.
            Err((_, error)) if troubled && acceptable(&error) => self.found.count("refused", 1),
            Err((numbers, error)) => return Ok(Some(format!("appending {numbers:?} says {error:?}"))),
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
            wrong = match random.below(5) {
                0 => self.flush(true).await?,
                1 => self.archive(true).await?,
                2 => self.append(Way::Commit, random, true).await?,
                _ => self.append(Way::Append, random, true).await?,
            };
            if wrong.is_some() {
                break;
            }
        }
        self.found.count("writes_without_space", armed.fired());
        drop(armed);
        Ok(match wrong {
            None => self.check().await,
            wrong => wrong,
        })
    }
}

/// What a caller may be told when there is no space.
fn acceptable(error: &Error) -> bool {
    !matches!(error, Error::Corrupt { .. } | Error::Conflict(_) | Error::IdReused { .. } | Error::Invalid { .. })
}

/// A lost tail that is not told of, and events that are read by the wall clock, must be noticed.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    events::runtime()?.block_on(async {
        let mut random = Random::new(seed);
        let mut walk = Walk::begin(NOW_MS).await?;
        for _ in 0..20 {
            walk.append(Way::Append, &mut random, false).await?;
        }
        walk.reopen(false, true).await?;
        let mut seen = events::look(&walk.open).await;
        let honest = seen.judge(&walk.promises).is_none();
        seen.losses.clear();
        let swallowed = seen.judge(&walk.promises).is_some();
        walk.open.close(false).await?;
        drop(walk.place);
        Ok(vec![("loss that is not told", swallowed), ("honest twin passes", honest)])
    })
}

/// Events that are read by the wall clock must be noticed.
pub(crate) fn clock_control(seed: u64) -> Result<Controls, Failure> {
    events::runtime()?.block_on(async {
        let mut random = Random::new(seed);
        let mut walk = Walk::begin(NOW_MS).await?;
        walk.append(Way::Append, &mut random, false).await?;
        walk.clock.set_wall_ms(NOW_MS - YEARS_56_MS);
        walk.append(Way::Append, &mut random, false).await?;
        let mut seen = events::look(&walk.open).await;
        let honest = seen.judge(&walk.promises).is_none();
        let mut by_clock: Vec<_> = seen.wall_ms.iter().copied().zip(seen.events.iter().copied()).collect();
        by_clock.sort_by_key(|(wall_ms, _)| *wall_ms);
        seen.events = by_clock.into_iter().map(|(_, event)| event).collect();
        let noticed = seen.judge(&walk.promises).is_some();
        walk.open.close(false).await?;
        Ok(vec![("order by the wall clock", noticed), ("honest twin passes", honest)])
    })
}
