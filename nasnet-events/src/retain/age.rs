//! How old a position is, told by time in which the machine was seen to run. Pure.
//!
//! Marks say which position the order had reached after how much running time. Within a boot the time since that boot
//! counts; of the time between the last mark of one boot and the first of the next nothing counts, since only a wall clock
//! could tell how long it was, and that may have jumped. So an age is never overstated: the worst a clock can do is nothing.

use std::iter::successors;
use std::time::Duration;

use nasnet_dbmanager::{BootId, Now};

use crate::position::Position;

/// A boot that ends without notice before this counts nothing.
const FIRST_EARLY: Duration = Duration::from_secs(30 * 60);

/// Where the order stood once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AgeMark {
    /// Everything up to here had been appended.
    pub(crate) position: Position,
    /// Running time counted until then.
    pub(crate) uptime_ms: u64,
    pub(crate) boot: BootId,
    pub(crate) boottime_ms: u64,
}

/// The marks, oldest first, as seen at an instant.
#[derive(Debug, Clone)]
pub(crate) struct Ages {
    marks: Vec<AgeMark>,
    /// Running time counted until the instant.
    uptime_ms: u64,
    /// Where the order stands.
    end: Position,
}

impl Ages {
    /// Puts marks together with the present; `end` is the last position given.
    pub(crate) fn new(mut marks: Vec<AgeMark>, now: &Now, end: Position) -> Self {
        // A mark beyond the end was made for another order.
        marks.retain(|mark| mark.position <= end);
        let uptime_ms = marks.last().map_or(0, |last| {
            let since = if last.boot == now.boot { now.boottime_ms.saturating_sub(last.boottime_ms) } else { 0 };
            last.uptime_ms.saturating_add(since)
        });
        Self { marks, uptime_ms, end }
    }

    /// The mark of this instant; `None` when one was made in this boot less than `every` ago, and none of the early instants
    /// of the boot has passed since.
    pub(crate) fn next(&self, now: &Now, every: Duration) -> Option<AgeMark> {
        let is_due = match self.marks.last() {
            Some(last) if last.boot == now.boot => {
                u128::from(now.boottime_ms.saturating_sub(last.boottime_ms)) >= every.as_millis()
                    || early_instants(last.boottime_ms, every) < early_instants(now.boottime_ms, every)
            }
            _ => true,
        };
        let (position, uptime_ms) = (self.end, self.uptime_ms);
        is_due.then_some(AgeMark { position, uptime_ms, boot: now.boot, boottime_ms: now.boottime_ms })
    }

    /// The last mark, when it may go for one of now: the one before it was made in this boot as well and less than `within`
    /// ago. So early marks fill the list no faster than others.
    pub(crate) fn spare(&self, now: &Now, within: Duration) -> Option<&AgeMark> {
        let [.., before, last] = self.marks.as_slice() else { return None };
        let is_new = u128::from(now.boottime_ms.saturating_sub(before.boottime_ms)) < within.as_millis();
        (before.boot == now.boot && last.boot == now.boot && is_new).then_some(last)
    }

    /// Everything up to here is at least so old.
    pub(crate) fn through(&self, age: Duration) -> Position {
        let old = |mark: &&AgeMark| u128::from(self.uptime_ms.saturating_sub(mark.uptime_ms)) >= age.as_millis();
        let old = self.marks.iter().take_while(old);
        old.map(|mark| mark.position).max().unwrap_or(Position::START)
    }

    /// How long ago something happened in a boot, at least; `None` when nothing is known of that boot.
    pub(crate) fn since(&self, boot: BootId, boottime_ms: u64) -> Option<Duration> {
        let mark = self.marks.iter().rev().find(|mark| mark.boot == boot)?;
        let since_mark = self.uptime_ms.saturating_sub(mark.uptime_ms);
        // Either side of the mark.
        let age = since_mark.saturating_add(mark.boottime_ms).saturating_sub(boottime_ms);
        Some(Duration::from_millis(age))
    }
}

/// How many of the early instants of a boot have passed after so much of it: half an hour, then each time twice as late,
/// until marks come every so often. However a boot ends, about half of it has been counted.
fn early_instants(boottime_ms: u64, every: Duration) -> usize {
    let instants = successors(Some(FIRST_EARLY), |at| at.checked_mul(2));
    instants.take_while(|at| *at < every.saturating_mul(2) && at.as_millis() <= u128::from(boottime_ms)).count()
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::ClockQuality;
    use proptest::prelude::*;

    use super::*;

    fn boot(number: u8) -> BootId {
        BootId::from_bytes([number; 16])
    }

    fn now(boot_number: u8, boottime_ms: u64, wall_ms: i64) -> Now {
        Now { wall_ms, quality: ClockQuality::of_wall_ms(wall_ms), boot: boot(boot_number), boottime_ms }
    }

    proptest! {
        /// However a machine boots, runs, and sets its clock: what is said to be old is old by true time, whatever the
        /// clock shows, and it gets old while the machine runs.
        #[test]
        fn an_age_is_never_overstated(
            steps in prop::collection::vec((0..4_u8, 1..50_000_u64, any::<i64>()), 1..60),
            age_ms in 0..200_000_u64,
        ) {
            let (mut true_ms, mut boot_number, mut booted_ms, mut end) = (0_u64, 1_u8, 0_u64, Position::START);
            let mut marks: Vec<AgeMark> = Vec::new();
            // Of each position, when it was given in truth.
            let mut given = Vec::new();
            let mut counted = 0_u64;
            for (what, by, wall_ms) in steps {
                true_ms += by;
                let at = now(boot_number, true_ms - booted_ms, wall_ms);
                match what {
                    0 => {
                        boot_number = boot_number.wrapping_add(1);
                        booted_ms = true_ms;
                    }
                    1 => {
                        end = Position::new(1, end.seq + 1);
                        given.push((end, true_ms));
                    }
                    _ => {
                        let ages = Ages::new(marks.clone(), &at, end);
                        let last = marks.last().copied();
                        marks.extend(ages.next(&at, Duration::ZERO));
                        if let Some(last) = last.filter(|last| last.boot == at.boot) {
                            counted += at.boottime_ms - last.boottime_ms;
                        }
                    }
                }
                let at = now(boot_number, true_ms - booted_ms, wall_ms);
                let ages = Ages::new(marks.clone(), &at, end);
                prop_assert!(ages.uptime_ms >= counted && ages.uptime_ms <= true_ms);
                let through = ages.through(Duration::from_millis(age_ms));
                for (position, given_ms) in &given {
                    if *position <= through {
                        prop_assert!(true_ms - given_ms >= age_ms, "{position} is {} old", true_ms - given_ms);
                    }
                }
                for mark in &marks {
                    let since = ages.since(mark.boot, mark.boottime_ms).unwrap();
                    prop_assert!(since.as_millis() <= u128::from(true_ms));
                }
            }
        }
    }

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;

    fn hours(hours: u64) -> Duration {
        Duration::from_millis(hours * HOUR)
    }

    /// One boot that is looked at every ten minutes and ends without notice; returns how many marks were written.
    fn run(marks: &mut Vec<AgeMark>, boot_number: u8, lasts_ms: u64) -> usize {
        let every = hours(6);
        let mut written = 0;
        for minute in (1..lasts_ms / MINUTE).step_by(10) {
            let at = now(boot_number, minute * MINUTE, 0);
            let ages = Ages::new(marks.clone(), &at, Position::new(1, u64::from(boot_number)));
            let Some(mark) = ages.next(&at, every) else { continue };
            if let Some(spare) = ages.spare(&at, every) {
                assert_eq!(marks.pop().as_ref(), Some(spare));
            }
            marks.push(mark);
            written += 1;
        }
        written
    }

    #[test]
    fn a_machine_that_is_cut_off_after_a_few_hours_each_day_gets_old() {
        let mut marks = Vec::new();
        for boot_number in 1..=60 {
            assert_eq!(run(&mut marks, boot_number, 5 * HOUR), 5);
        }
        assert_eq!(marks.len(), 120, "the first and the last of each");
        let ages = Ages::new(marks, &now(60, 5 * HOUR, 0), Position::new(1, 60));
        let through = ages.through(hours(7 * 24));
        assert!((10..20).contains(&through.seq), "{through}: about four hours of each boot count");
    }

    #[test]
    fn however_a_boot_ends_about_half_of_it_counts() {
        for minutes in (50..40 * 60).step_by(7) {
            let mut marks = Vec::new();
            run(&mut marks, 1, minutes * MINUTE);
            let counted_ms = marks.last().unwrap().uptime_ms;
            assert!(counted_ms >= (minutes - 11) * MINUTE / 2, "{} of {minutes} minutes", counted_ms / MINUTE);
        }
    }

    #[test]
    fn a_long_boot_costs_a_handful_of_marks_more() {
        let (mut marks, days) = (Vec::new(), 30);
        let written = run(&mut marks, 1, days * 24 * HOUR);
        let every_six_hours = usize::try_from(days).unwrap() * 4;
        assert!(written <= every_six_hours + 6, "{written}");
        assert!(marks.len() <= every_six_hours + 2, "{}", marks.len());
        assert!(marks.windows(2).all(|two| two[1].uptime_ms - two[0].uptime_ms <= (6 * 60 + 10) * MINUTE));
    }

    #[test]
    fn what_happened_in_an_earlier_boot_gets_old_while_this_one_runs() {
        let mut marks = Vec::new();
        for (boot_number, boottime_ms) in [(1, 0), (1, 6 * HOUR), (2, 1_000), (2, 6 * HOUR + 1_000)] {
            let at = now(boot_number, boottime_ms, 0);
            let end = Position::new(1, marks.len() as u64 + 1);
            marks.extend(Ages::new(marks.clone(), &at, end).next(&at, Duration::ZERO));
        }
        let ages = Ages::new(marks.clone(), &now(2, 8 * HOUR + 1_000, i64::MAX), Position::new(1, 9));
        assert_eq!(ages.uptime_ms, 14 * HOUR);
        assert_eq!(ages.through(hours(14)), Position::new(1, 1));
        assert_eq!(ages.through(hours(8)), Position::new(1, 3));
        assert_eq!(ages.through(hours(2)), Position::new(1, 4));
        assert_eq!(ages.through(hours(15)), Position::START);
        assert_eq!(ages.since(boot(1), 5 * HOUR), Some(hours(9)));
        assert_eq!(ages.since(boot(2), 7 * HOUR + 1_000), Some(hours(1)));
        assert_eq!(ages.since(boot(3), 0), None);
        assert!(ages.next(&now(2, 7 * HOUR, 0), hours(6)).is_none());
        assert!(ages.next(&now(3, 0, 0), hours(6)).is_some(), "each boot is marked");
        // A machine that has run for years without us, to which the files were moved.
        let moved = Ages::new(marks, &now(7, 90_000 * HOUR, 0), Position::new(1, 9));
        assert_eq!(moved.through(hours(13)), Position::START);
    }
}
