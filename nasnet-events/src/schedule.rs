//! When something that is done once a day or a week is due. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use nasnet_dbmanager::{ClockQuality, Now, Scope};
use tokio::time::Instant;

use crate::cold::FRAME_EVENTS_MAX;
use crate::options::ArchivePolicy;
use crate::position::Position;

const DAY_MS: i64 = 86_400_000;
/// A clock that jumps to and fro makes nothing happen more often than this.
const GAP_MIN: Duration = Duration::from_secs(3_600);
/// However many routers there are, Normal events wait no longer.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Segments of 64 KiB compress about five times.
const RATIO: u64 = 5;

/// Until an archive in which a scope failed is tried again.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// A rhythm by the wall clock, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rhythm {
    period_ms: i64,
    /// From the first instant of 1970 to one of the instants it is due.
    offset_ms: i64,
}

impl Rhythm {
    /// Every day at a minute.
    pub(crate) fn daily(minute: u16) -> Self {
        Self { period_ms: DAY_MS, offset_ms: i64::from(minute) * 60_000 }
    }

    /// Every Sunday at a minute. The first day of 1970 was a Thursday.
    pub(crate) fn weekly(minute: u16) -> Self {
        Self { period_ms: 7 * DAY_MS, offset_ms: 3 * DAY_MS + i64::from(minute) * 60_000 }
    }

    /// True when it is due: never done by this process, so that what was missed while it was down is caught up with; an
    /// instant of the rhythm has passed on a trusted clock; or a whole period has passed, whatever the clock says.
    pub(crate) fn is_due(self, last: Option<&Now>, now: &Now) -> bool {
        let Some(last) = last else { return true };
        let Some(age) = now.age_of(last.boot, last.boottime_ms) else { return true };
        let period = Duration::from_millis(self.period_ms.unsigned_abs());
        let trusted = last.quality == ClockQuality::Synced && now.quality == ClockQuality::Synced;
        let turn = |at: &Now| at.wall_ms.saturating_sub(self.offset_ms).div_euclid(self.period_ms);
        age >= period || (age >= GAP_MIN && trusted && turn(now) > turn(last))
    }
}

/// As [`Rhythm::is_due`], of what a process does not do as soon as it starts: the first time comes once it has run for a
/// while, so that a machine that never runs for a day has its turn too.
pub(crate) fn is_due_after_start(rhythm: Rhythm, last: Option<&Now>, started: &Now, now: &Now) -> bool {
    let has_run = || now.age_of(started.boot, started.boottime_ms).is_none_or(|age| age >= GAP_MIN);
    rhythm.is_due(last, now) && (last.is_some() || has_run())
}

/// Which scopes an archive is due for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    All,
    /// Those that failed the last time.
    Again(BTreeSet<Scope>),
}

/// When archives ran, and what failed. A scope that fails is tried again alone: the others keep their rhythm, and the flush
/// that comes before a run of all would wear flash with each try.
#[derive(Debug, Default)]
pub(crate) struct Archives {
    /// The last run of all scopes, and the end of the order of events then.
    last: Option<(Now, Position)>,
    failed: BTreeSet<Scope>,
    not_before: Option<Instant>,
}

impl Archives {
    /// Who is to be archived now. `end` = the end of the order of events.
    pub(crate) fn turn(&self, policy: ArchivePolicy, at: Instant, now: &Now, end: Position) -> Option<Turn> {
        if self.not_before.is_some_and(|not_before| at < not_before) {
            return None;
        }
        let last = self.last.as_ref().map(|(last, _)| last);
        let is_due = match policy {
            ArchivePolicy::WhenFrameFull => {
                // The numbers of another incarnation begin anew.
                let since = self.last.as_ref().filter(|(_, at)| at.epoch == end.epoch).map_or(0, |(_, at)| at.seq);
                end.seq.saturating_sub(since) >= FRAME_EVENTS_MAX as u64 || Rhythm::daily(0).is_due(last, now)
            }
            ArchivePolicy::Daily { minute } => Rhythm::daily(minute).is_due(last, now),
            ArchivePolicy::Weekly { minute } => Rhythm::weekly(minute).is_due(last, now),
        };
        match is_due {
            true => Some(Turn::All),
            false => (!self.failed.is_empty()).then(|| Turn::Again(self.failed.clone())),
        }
    }

    /// Takes note of a turn that came to its end, which was begun with the order of events at `end`.
    pub(crate) fn done(&mut self, turn: &Turn, at: Instant, now: Now, end: Position, failed: BTreeSet<Scope>) {
        if *turn == Turn::All {
            self.last = Some((now, end));
        }
        self.not_before = (!failed.is_empty()).then(|| at + RETRY);
        self.failed = failed;
    }

    /// Takes note that nothing could be done.
    pub(crate) fn put_off(&mut self, until: Instant) {
        self.not_before = Some(until);
    }
}

/// How long Normal events may wait when more routers than databases stay open have to be flushed: a flush of all of them
/// opens and closes databases in turn, so it comes less often, up to once an hour.
pub(crate) fn stretched(interval: Duration, routers: usize, open_max: usize) -> Duration {
    interval.saturating_mul(rounds(routers, open_max)).min(WAIT_MAX.max(interval))
}

/// True when Normal events of so many scopes, `raw_bytes` in all, are worth a flush before they have waited for the interval:
/// each scope writes `flush_bytes` on average, and more when the databases have to be opened and closed in turn.
pub(crate) fn is_page_full(scopes: usize, raw_bytes: u64, flush_bytes: usize, open_max: usize) -> bool {
    let each = (flush_bytes as u64).saturating_mul(RATIO).saturating_mul(u64::from(rounds(scopes, open_max)));
    scopes > 0 && raw_bytes >= each.saturating_mul(scopes as u64)
}

/// How often the set of open databases is gone through by a flush.
fn rounds(scopes: usize, open_max: usize) -> u32 {
    u32::try_from(scopes.div_ceil(open_max.max(1)).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::BootId;

    use super::*;

    /// A Monday, 00:00.
    const MONDAY_MS: i64 = 1_795_392_000_000;
    const HOUR: u64 = 3_600_000;

    fn at(hours: u64, wall_ms: i64) -> Now {
        let quality = ClockQuality::of_wall_ms(wall_ms);
        Now { wall_ms, quality, boot: BootId::from_bytes([1; 16]), boottime_ms: hours * HOUR }
    }

    fn later(hours: u64) -> Now {
        at(hours, MONDAY_MS + (hours * HOUR).cast_signed())
    }

    #[test]
    fn a_day_and_a_week_end_at_their_minute_and_what_was_missed_is_caught_up_with() {
        let (daily, weekly) = (Rhythm::daily(120), Rhythm::weekly(120));
        assert!(daily.is_due(None, &later(0)) && weekly.is_due(None, &later(0)));
        let due = |rhythm: Rhythm, last: u64, now: u64| rhythm.is_due(Some(&later(last)), &later(now));
        assert!(!due(daily, 0, 1) && due(daily, 0, 2) && !due(daily, 2, 25) && due(daily, 3, 26));
        assert!(due(daily, 0, 72), "three missed days are one run");
        let sunday = 6 * 24;
        assert!(!due(weekly, 0, sunday + 1) && due(weekly, 0, sunday + 2));
    }

    #[test]
    fn a_jumping_clock_neither_stops_nor_speeds_it_up() {
        let daily = Rhythm::daily(120);
        let years = 56 * 365 * 86_400_000;
        let last = later(3);
        assert!(!daily.is_due(Some(&last), &at(3, MONDAY_MS + years)), "not again within the hour");
        assert!(!daily.is_due(Some(&last), &at(26, MONDAY_MS - years)), "back in 1970 only age counts");
        assert!(daily.is_due(Some(&last), &at(27, MONDAY_MS - years)));
        let rebooted = Now { boot: BootId::from_bytes([2; 16]), ..later(4) };
        assert!(daily.is_due(Some(&last), &rebooted));
    }

    #[test]
    fn what_can_wait_is_done_after_an_hour_and_then_in_its_rhythm() {
        let (daily, started) = (Rhythm::daily(180), later(0));
        assert!(!is_due_after_start(daily, None, &started, &started));
        assert!(!is_due_after_start(daily, None, &started, &at(0, MONDAY_MS + 4 * HOUR.cast_signed())));
        assert!(is_due_after_start(daily, None, &started, &later(1)));
        let last = later(1);
        assert!(!is_due_after_start(daily, Some(&last), &started, &later(2)));
        assert!(is_due_after_start(daily, Some(&last), &started, &later(3)));
    }

    #[test]
    fn more_routers_than_stay_open_stretch_the_interval_to_an_hour_at_most() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(stretched(minutes(5), 0, 8), minutes(5));
        assert_eq!(stretched(minutes(5), 8, 8), minutes(5));
        assert_eq!(stretched(minutes(5), 20, 8), minutes(15));
        assert_eq!(stretched(minutes(5), 1_000, 8), minutes(60));
        assert_eq!(stretched(minutes(90), 1_000, 8), minutes(90));
    }

    #[test]
    fn a_scope_that_fails_is_archived_again_alone_and_leaves_the_others_their_rhythm() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let (daily, end) = (ArchivePolicy::Daily { minute: 120 }, Position::new(1, 9));
        let failed = BTreeSet::from(["r1".parse::<Scope>().unwrap()]);
        let mut archives = Archives::default();
        assert_eq!(archives.turn(daily, start, &later(0), end), Some(Turn::All));
        archives.done(&Turn::All, start, later(0), end, failed.clone());
        assert_eq!(archives.turn(daily, start + minute * 9, &later(0), end), None);
        let again = Turn::Again(failed.clone());
        for tries in 1..5 {
            let at = start + minute * 10 * tries;
            assert_eq!(archives.turn(daily, at, &later(0), end), Some(again.clone()), "try {tries}");
            archives.done(&again, at, later(0), end, failed.clone());
        }
        let day = start + minute * 60 * 24;
        assert_eq!(archives.turn(daily, day, &later(24), end), Some(Turn::All), "all when their time has come");
        archives.done(&Turn::All, day, later(24), end, BTreeSet::new());
        assert_eq!(archives.turn(daily, day + minute * 60, &later(25), end), None);
    }

    #[test]
    fn a_frame_is_full_in_a_new_incarnation_as_well() {
        let (start, full) = (Instant::now(), FRAME_EVENTS_MAX as u64);
        let mut archives = Archives::default();
        archives.done(&Turn::All, start, later(0), Position::new(1, 50_000), BTreeSet::new());
        let turn = |end| archives.turn(ArchivePolicy::WhenFrameFull, start, &later(1), end);
        assert_eq!(turn(Position::new(1, 50_000 + full - 1)), None);
        assert_eq!(turn(Position::new(1, 50_000 + full)), Some(Turn::All));
        assert_eq!(turn(Position::new(2, full - 1)), None);
        assert_eq!(turn(Position::new(2, full)), Some(Turn::All), "not only past the numbers of the lost one");
    }

    #[test]
    fn a_flush_before_its_time_is_worth_more_where_databases_take_turns_to_be_open() {
        const PAGE: usize = 4_096;
        assert!(!is_page_full(0, u64::MAX, PAGE, 8), "nothing waits");
        let full = |scopes: u64, rounds: u64| 5 * 4_096 * scopes * rounds;
        for (scopes, rounds) in [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3)] {
            let count = usize::try_from(scopes).unwrap();
            assert!(is_page_full(count, full(scopes, rounds), PAGE, 8), "{scopes}");
            assert!(!is_page_full(count, full(scopes, rounds) - 1, PAGE, 8), "{scopes}");
        }
    }
}
