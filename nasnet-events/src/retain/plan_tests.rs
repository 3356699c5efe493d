use nasnet_dbmanager::BootId;
use proptest::prelude::*;

use super::*;
use crate::consumer::Filter;
use crate::retain::age::AgeMark;
use crate::retain::policy::Keep;

const BOOT: BootId = BootId::from_bytes([7; 16]);
const KINDS: [&str; 4] = ["config.applied", "resource.updated", "backup.made", "metric.updated"];
const STREAMS: [&str; 3] = ["resource/1", "s/1", "log/warnings"];

fn at(seq: u64) -> Position {
    Position::new(1, seq)
}

fn names() -> HashMap<i64, String> {
    (1..).zip(KINDS.into_iter().chain(STREAMS).map(str::to_owned)).collect()
}

/// One mark each hour, at the position of the same number; the present is the last of them.
fn ages(hours: u64, end: u64) -> Ages {
    let mark = |hour: u64| AgeMark {
        position: at(hour),
        uptime_ms: hour * 3_600_000,
        boot: BOOT,
        boottime_ms: hour * 3_600_000,
    };
    Ages::new((0..=hours).map(mark).collect(), &now(hours, 0), at(end))
}

fn now(hours: u64, wall_ms: i64) -> Now {
    Now { wall_ms, quality: ClockQuality::of_wall_ms(wall_ms), boot: BOOT, boottime_ms: hours * 3_600_000 }
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3_600)
}

fn policy() -> Retention {
    let keep = |age| Keep::age(hours(age));
    Retention::default()
        .class(Class::Critical, keep(30))
        .class(Class::Normal, keep(7).bytes_max(400).events_max(25))
        .class(Class::Low, keep(1))
        .types("backup", Some(hours(20)))
}

fn unit(kind: UnitKind, first: u64, last: u64) -> Unit {
    Unit {
        kind,
        first: at(first),
        last: at(last),
        events: last - first + 1,
        bytes: 10 * (last - first + 1),
        wall_max_ms: 0,
        class: (kind != UnitKind::Sealed).then_some(Class::Normal),
        kinds: vec![2],
        streams: vec![6],
    }
}

fn guard(name: &str, position: u64, filter: Filter, moved_hour: u64) -> Guard {
    Guard {
        consumer: name.to_owned(),
        position: at(position),
        filter,
        max_age: hours(10),
        bytes_max: 150,
        moved_boot: BOOT,
        moved_boottime_ms: moved_hour * 3_600_000,
    }
}

fn units() -> impl Strategy<Value = Vec<Unit>> {
    let one = (0..3_u8, 1..4_u64, prop::collection::vec(1..5_i64, 1..3), 5..8_i64, 0..3_usize, any::<i64>());
    prop::collection::vec(one, 0..24).prop_map(|drawn| {
        let mut next = 1;
        let mut units = Vec::new();
        for (kind, events, kinds, stream, class, wall_max_ms) in drawn {
            let kind = [UnitKind::Row, UnitKind::Sealed, UnitKind::Segment][usize::from(kind)];
            let events = if kind == UnitKind::Row { 1 } else { events };
            let mut unit = unit(kind, next, next + events - 1);
            next += events;
            (unit.kinds, unit.streams, unit.wall_max_ms) = (kinds, vec![stream], wall_max_ms);
            if kind == UnitKind::Row {
                unit.kinds.truncate(1);
                unit.class = Some(Class::ALL[class]);
            }
            units.push(unit);
        }
        units
    })
}

fn guards() -> impl Strategy<Value = Vec<Guard>> {
    let filter = prop_oneof![
        3 => Just(Filter::all()),
        1 => Just(Filter::all().kind_prefix("config")),
        1 => Just(Filter::all().stream_prefix("log/")),
        1 => Just(Filter::all().class(Class::Critical)),
        1 => Just(Filter::all().scope("r9".parse().unwrap())),
    ];
    prop::collection::vec((0..60_u64, filter, 0..50_u64), 0..3).prop_map(|drawn| {
        let guard =
            |(number, (position, filter, moved)): (usize, _)| guard(&format!("c{number}"), position, filter, moved);
        drawn.into_iter().enumerate().map(guard).collect()
    })
}

fn run(
    units: &[Unit],
    guards: &[Guard],
    (archived, snapshot, resolved): (Option<u64>, Option<u64>, u64),
    now: &Now,
) -> ScopePlan {
    let newest = units.iter().filter(|unit| unit.kind == UnitKind::Segment).map(|unit| unit.first).max();
    let facts = Facts {
        scope: "r1".parse().unwrap(),
        units: units.to_vec(),
        names: names(),
        newest,
        archived: archived.map(at),
        snapshot: snapshot.map(at),
        resolved: at(resolved),
    };
    let (policy, classes, ages) = (policy(), ClassRules::default(), ages(50, 100));
    let terms = Terms { policy: &policy, classes: &classes, ages: &ages, now };
    decide(vec![due(facts, &terms)], guards, &ages, now).remove(0)
}

/// For how long the rule keeps an event of this type in this unit, spelled out by hand.
fn keep_hours(unit: &Unit, kind: i64) -> u64 {
    if kind == 3 {
        return 20;
    }
    let class = unit
        .class
        .unwrap_or([Class::Critical, Class::Normal, Class::Normal, Class::Low][usize::try_from(kind - 1).unwrap()]);
    match class {
        Class::Critical => 30,
        Class::Normal => 7,
        Class::Low => 1,
    }
}

proptest! {
    /// What goes is old or too much, resolved, archived, in a snapshot when it is folded, and waited for by nobody whose
    /// guard counts; the newest segment stays; and of what is left, everything has a reason to stay.
    #[test]
    fn what_goes_may_go_and_what_stays_must(
        units in units(),
        guards in guards(),
        archived in prop::option::of(0..60_u64),
        snapshot in prop::option::of(0..60_u64),
        resolved in 20..60_u64,
    ) {
        let plan = run(&units, &guards, (archived, snapshot, resolved), &now(50, 0));
        let gone: HashSet<(UnitKind, Position)> = plan.doomed.iter().map(|unit| (unit.kind, unit.first)).collect();
        let newest = units.iter().filter(|unit| unit.kind == UnitKind::Segment).map(|unit| unit.first).max();
        let attributed = |unit: &Unit| unit.class.unwrap_or_else(|| {
            if unit.kinds.contains(&1) { Class::Critical } else if unit.kinds.iter().any(|kind| *kind < 4) { Class::Normal } else { Class::Low }
        });
        for unit in &units {
            let normal_after = |of: fn(&Unit) -> u64| -> u64 {
                units.iter().filter(|other| attributed(other) == Class::Normal && other.last >= unit.last).map(of).sum()
            };
            let surplus = attributed(unit) == Class::Normal
                && (normal_after(|unit| unit.events) > 25 || normal_after(|unit| unit.bytes) > 400);
            let old = unit.kinds.iter().all(|kind| {
                (surplus && *kind != 3) || unit.last.seq + keep_hours(unit, *kind) <= 50
            });
            let kept_back = unit.last.seq > resolved
                || archived.is_some_and(|through| unit.last.seq > through)
                || (unit.streams.contains(&5) && snapshot.is_none_or(|through| unit.last.seq > through))
                || (unit.kind == UnitKind::Segment && Some(unit.first) == newest);
            let is_free = old && !kept_back;
            if gone.contains(&(unit.kind, unit.first)) {
                prop_assert!(is_free, "{unit:?} goes");
            }
            let waits = |guard: &&Guard| {
                let texts = |numbers: &Vec<i64>| numbers.iter().map(|number| names()[number].clone()).collect::<Vec<_>>();
                let (kinds, streams) = (texts(&unit.kinds), texts(&unit.streams));
                guard.filter.wants_scope(&plan.scope) && unit.last > guard.position
                    && guard.filter.may_want(unit.class, kinds.iter().map(|text| Some(text.as_str())), streams.iter().map(|text| Some(text.as_str())))
            };
            let waiting: Vec<&Guard> = guards.iter().filter(waits).collect();
            if is_free && waiting.is_empty() {
                prop_assert!(gone.contains(&(unit.kind, unit.first)), "{unit:?} stays without a reason");
            }
            if gone.contains(&(unit.kind, unit.first)) {
                // A guard that is passed has stood still for too long, or holds back as much as it may besides.
                for guard in waiting {
                    let is_expired = guard.moved_boottime_ms + 10 * 3_600_000 < 50 * 3_600_000;
                    let in_plan = plan.doomed.iter().find(|doomed| doomed.first == unit.first && doomed.kind == unit.kind);
                    prop_assert!(in_plan.unwrap().forced.is_some());
                    let held_or_gone: u64 = units.iter().filter(|other| other.last >= unit.last).map(|unit| unit.bytes).sum();
                    prop_assert!(is_expired || held_or_gone > guard.bytes_max, "{guard:?} is passed for {unit:?}");
                }
            }
        }
        prop_assert_eq!(plan.events, plan.doomed.iter().map(|unit| unit.events).sum::<u64>());
        prop_assert!(plan.doomed.is_sorted_by_key(|unit| unit.last));
    }

    /// Whatever the wall clock shows, the same goes.
    #[test]
    fn a_clock_that_jumps_removes_nothing(units in units(), guards in guards(), wall_ms in any::<i64>()) {
        let steady = run(&units, &guards, (None, Some(60), 60), &now(50, 0));
        let jumped = run(&units, &guards, (None, Some(60), 60), &now(50, wall_ms));
        prop_assert_eq!(steady.doomed, jumped.doomed);
    }
}

fn blocked(plan: &ScopePlan) -> Vec<(&Blocker, u64)> {
    plan.blocked.iter().map(|blocked| (&blocked.by, blocked.events)).collect()
}

#[test]
fn a_plan_says_in_one_line_what_goes_and_what_holds_the_rest_back() {
    let mut units: Vec<Unit> = (0..5).map(|number| unit(UnitKind::Segment, number * 5 + 1, number * 5 + 5)).collect();
    units[1].streams.push(5);
    let waiting = guard("sync", 10, Filter::all(), 50);
    let plan = run(&units, &[waiting], (Some(17), None, 60), &now(50, 0));
    assert_eq!(
        plan.to_string(),
        "r1: 5 events in 1 segments and 0 rows (50 bytes) go, through 1:5; 5 events wait for consumer sync at 1:10; \
         5 events wait for the archive, confirmed through 1:17; 5 events wait for a snapshot, there is none"
    );
    assert_eq!(plan.doomed[0].mark, 0);
}

#[test]
fn a_guard_over_its_bytes_keeps_the_newest_of_what_it_held_and_one_that_stood_still_keeps_nothing() {
    let units: Vec<Unit> = (0..9).map(|number| unit(UnitKind::Segment, number * 5 + 1, number * 5 + 5)).collect();
    let plan = run(&units, &[guard("slow", 0, Filter::all(), 50)], (None, None, 60), &now(50, 0));
    // 50 bytes each, all but the newest are due by age or number, and three may be held back.
    assert_eq!(plan.through, Some(at(25)));
    assert_eq!(plan.forced, [Forced { consumer: "slow".to_owned(), events: 25 }]);
    let plan = run(&units, &[guard("dead", 0, Filter::all(), 39)], (None, None, 60), &now(50, 0));
    assert_eq!(plan.through, Some(at(40)));
    let plan = run(&units, &[guard("other", 0, Filter::all().kind_prefix("log"), 50)], (None, None, 60), &now(50, 0));
    assert_eq!((plan.through, plan.forced.len()), (Some(at(40)), 0));
}

#[test]
fn what_is_old_by_the_wall_clock_alone_waits_and_is_told() {
    // Kept for 7 hours; marks of the last hours cover the end only.
    let units = [unit(UnitKind::Row, 45, 45), unit(UnitKind::Row, 46, 46)];
    let ahead = 1_795_000_000_000 + 56 * 31_557_600_000;
    let plan = run(&units, &[], (None, None, 60), &now(50, ahead));
    assert_eq!((plan.through, blocked(&plan)), (None, vec![(&Blocker::Clock, 2)]));
    let plan = run(&units, &[], (None, None, 60), &now(50, 0));
    assert_eq!((plan.through, blocked(&plan)), (None, vec![]), "a clock in 1970 is not asked");
}
