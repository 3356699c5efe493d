//! The crash explorer: every effect boundary of every scenario, with every fault, recovered with a second fault.
//!
//! A run is a scenario, a fault at one boundary of the operation and a fault at one boundary of its recovery, followed by
//! undisturbed recovery. The invariants named I1.. are those of the specification; the counts are printed.

use std::collections::{BTreeSet, VecDeque};

use super::*;
use crate::op::image::RowClass;
use crate::op::recover;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fork {
    None,
    /// The controller dies before the effect.
    Crash,
    /// The controller dies after the effect, before its answer.
    CrashAfter,
    /// The write is done, its answer is lost.
    LostReply,
    /// The write is lost.
    LostRequest,
    /// The connection could not be made.
    NotSent,
    /// The device says no.
    Reject,
    /// A read or a journal write fails once.
    Fails,
    /// Reads fail from here to the end of the run.
    ReadsGone,
    /// Somebody changes the row of a step.
    Edit(usize),
    /// Somebody removes the row of a step.
    Take(usize),
}

impl Fork {
    fn all(steps: usize) -> Vec<Self> {
        use Fork::{Crash, CrashAfter, Edit, Fails, LostReply, LostRequest, NotSent, ReadsGone, Reject, Take};
        let mut all = vec![Crash, CrashAfter, LostReply, LostRequest, NotSent, Reject, Fails, ReadsGone];
        all.extend((0..steps).flat_map(|step| [Edit(step), Take(step)]));
        all
    }
}

/// What survives a crash.
#[derive(Clone)]
struct World {
    device: ScriptedDevice,
    journal: Vec<Record>,
    volatile: Vec<Record>,
    /// Steps whose row somebody else changed, and whether the change came within the round trip of a write.
    foreign: BTreeSet<usize>,
    raced: BTreeSet<usize>,
    device_writes: u64,
}

enum End {
    Finished(OpReport),
    Crashed,
    /// The boundary lies behind the end of the run.
    NotReached(OpReport),
}

fn scenarios() -> Vec<(&'static str, Vec<Step>)> {
    let st = [("name", "lan"), ("include", "static")];
    // A rule nothing tells apart but its handle: its undo brings it back marked, since the handle will be another.
    let mut nameless = remove(1, "lan", &st);
    nameless.key.natural.clear();
    nameless.key.handle = Some(RowId("*2".into()));
    nameless.key.marker = Some(marker_of(ulid::Ulid::from(1u128)));
    nameless.backward.fields.insert("comment".into(), marker_of(ulid::Ulid::from(1u128)));
    let mut hidden = set(1, "lan", &[("key", "hmac:old")], &[("key", "hmac:new")]);
    hidden.hidden.insert("key".into());
    vec![
        ("one create", vec![add(1, "vpn")]),
        ("one change", vec![set(1, "lan", &[("include", "static")], &[("include", "all")])]),
        ("one removal", vec![remove(1, "lan", &st)]),
        ("a rename", vec![rename(1, "lan", "home")]),
        ("three creates", vec![add(1, "vpn"), add(2, "dmz"), add(3, "guest")]),
        ("create and change", vec![add(1, "vpn"), set(2, "lan", &[("include", "static")], &[("include", "all")])]),
        (
            "change of two fields",
            vec![set(
                1,
                "wan",
                &[("include", "static"), ("comment", "uplink")],
                &[("include", "all"), ("comment", "isp")],
            )],
        ),
        ("removal and create", vec![remove(1, "lan", &st), add(2, "home")]),
        (
            "change and removal",
            vec![set(1, "wan", &[("include", "static")], &[("include", "all")]), remove(2, "lan", &st)],
        ),
        ("removal of a nameless row and a create", vec![nameless, add(2, "vpn")]),
        ("a hidden secret and a create", vec![hidden, add(2, "vpn")]),
    ]
}

fn fresh_device() -> ScriptedDevice {
    let device = device();
    device.hide("key");
    let lan = device.stored(&menu())[1].id.clone().unwrap();
    device.edit(&menu(), &lan, "key", Some("hmac:old"));
    device
}

/// Compares with what is really stored, hidden fields included.
fn truth(world: &World, step: &Step) -> RowClass {
    let rows: Vec<SeenRow> = world.device.stored(&menu()).into_iter().map(SeenRow::verbatim).collect();
    Fit::of(&step.pre, &step.post, &BTreeSet::new(), &step.key.resolve(&rows)).class()
}

use crate::op::image::Fit;

fn interfere(world: &mut World, steps: &[Step], fork: Fork, at: &Effect) {
    let (Fork::Edit(target) | Fork::Take(target)) = fork else { return };
    let rows: Vec<SeenRow> = world.device.stored(&menu()).into_iter().map(SeenRow::verbatim).collect();
    let Sight::Row { id: Some(id), .. } = steps[target].key.resolve(&rows) else { return };
    let field = if steps[target].hidden.is_empty() { "include" } else { "key" };
    if fork == Fork::Take(target) {
        world.device.take(&menu(), &id);
    } else {
        world.device.edit(&menu(), &id, field, Some("third"));
    }
    world.foreign.insert(target);
    // RouterOS has no compare-and-set: an edit after the check and before the write cannot be seen. A change of a
    // secret that the device hides cannot be seen at any time.
    let in_round_trip = match at {
        Effect::Write { step, .. } | Effect::Journal { record: Record::StepSent { step }, .. } => *step == target,
        _ => false,
    };
    if in_round_trip || !steps[target].hidden.is_empty() {
        world.raced.insert(target);
    }
}

fn drive(world: &mut World, machine: &mut Machine, first: Vec<Effect>, boundary: usize, fork: Fork) -> End {
    let steps = machine.plan().steps.clone();
    let mut queue: VecDeque<Effect> = first.into();
    let mut reached = false;
    for count in 0..10_000 {
        let effect = queue.pop_front().expect("an unfinished machine always asks for something");
        let here = count == boundary;
        reached |= here;
        let fork = if here { fork } else { Fork::None };
        if fork == Fork::Crash {
            return End::Crashed;
        }
        interfere(world, &steps, fork, &effect);
        if fork == Fork::ReadsGone {
            world.device.fail_reads(u64::MAX);
        }
        let input = match effect {
            Effect::Journal { record, durable: false } => {
                world.volatile.push(record);
                None
            }
            Effect::Journal { durable: true, .. } if fork == Fork::Fails => {
                Some(Input::JournalFailed { cause: "disk full".into() })
            }
            Effect::Journal { record, durable: true } => {
                world.journal.append(&mut world.volatile);
                world.journal.push(record);
                Some(Input::JournalDurable)
            }
            Effect::Read { step } => {
                if fork == Fork::Fails {
                    world.device.fail_reads(1);
                }
                Some(Input::Sighted { step, sight: sight(&world.device, &steps[step]) })
            }
            Effect::Write { step, direction, id } => {
                let planned = world.journal.iter().any(|record| matches!(record, Record::OpPlanned { .. }));
                assert!(planned, "I1: a device write before the plan was durable");
                assert!(
                    JournalState::of(&world.journal).is_open(),
                    "I10: a device write of an operation that has ended"
                );
                world.device_writes += 1;
                world.device.next_write(match fork {
                    Fork::LostReply => Some(Fault::LostReply),
                    Fork::LostRequest => Some(Fault::LostRequest),
                    Fork::NotSent => Some(Fault::NotSent),
                    Fork::Reject => Some(Fault::Reject(ErrorClass::InvalidValue)),
                    _ => None,
                });
                Some(Input::Written { step, outcome: write(&world.device, &steps[step], direction, id) })
            }
            Effect::SetTimer { .. } => Some(Input::Timer),
            Effect::Merge { .. } if fork == Fork::Fails => Some(Input::MergeFailed { cause: "disk full".into() }),
            Effect::Merge { .. } => {
                world.journal.append(&mut world.volatile);
                world.journal.push(Record::Merged);
                Some(Input::Merged)
            }
            Effect::Finish(report) => {
                return if reached { End::Finished(*report) } else { End::NotReached(*report) };
            }
        };
        if fork == Fork::CrashAfter {
            return End::Crashed;
        }
        if let Some(input) = input {
            queue.extend(machine.step(input));
        }
    }
    panic!("the machine does not come to an end");
}

fn recovery(world: &mut World, plan: &Plan, boundary: usize, fork: Fork) -> End {
    world.volatile.clear();
    if boundary == usize::MAX {
        world.device.fail_reads(0);
    }
    let (mut machine, first) = Machine::recover(plan.clone(), &world.journal, Limits::default());
    drive(world, &mut machine, first, boundary, fork)
}

fn check(label: &str, world: &mut World, plan: &Plan, last: Option<&OpReport>) {
    let state = JournalState::of(&world.journal);
    assert!(!state.is_open(), "{label}: the operation is still open after an undisturbed recovery");
    let left: BTreeSet<usize> = world
        .journal
        .iter()
        .filter_map(|record| match record {
            Record::RollbackPartial { left } => Some(left.iter().map(|left| left.step)),
            _ => None,
        })
        .flatten()
        .collect();
    for step in &plan.steps {
        let class = truth(world, step);
        let foreign = world.foreign.contains(&step.index);
        match state {
            JournalState::Merged => {
                assert!(
                    class == RowClass::Post || foreign,
                    "{label}: I3/I5 step {} is {class:?} after a merge",
                    step.index
                );
            }
            JournalState::RolledBack | JournalState::Cancelled | JournalState::None => {
                assert!(
                    class == RowClass::Pre || foreign,
                    "{label}: I3 step {} is {class:?} after {state:?}",
                    step.index
                );
            }
            // What a device hides cannot be known to be back: then it is reported.
            _ if left.contains(&step.index) => {
                let known = step.hidden.is_empty();
                assert!(
                    class != RowClass::Pre || foreign || !known,
                    "{label}: I3 step {} is reported but not left",
                    step.index
                );
            }
            _ => assert!(
                class == RowClass::Pre || foreign,
                "{label}: I3 step {} is {class:?} and not reported",
                step.index
            ),
        }
        if foreign
            && !world.raced.contains(&step.index)
            && class == RowClass::Other
            && state == JournalState::RollbackPartial
        {
            assert!(left.contains(&step.index), "{label}: I3 a row of somebody else is left and not reported");
        }
    }
    // I7: a third party's value is still there, unless it came within the round trip of a write.
    for target in world.foreign.difference(&world.raced) {
        let step = &plan.steps[*target];
        let third =
            world.device.stored(&menu()).iter().any(|row| row.fields.get("include").is_some_and(|v| v == "third"));
        let rows: Vec<SeenRow> = world.device.stored(&menu()).into_iter().map(SeenRow::verbatim).collect();
        let absent = step.key.resolve(&rows) == Sight::Absent;
        assert!(third || absent || taken(label), "{label}: I7 the value of a third party was overwritten");
        if taken(label) && step.action != Action::Remove {
            assert!(absent, "{label}: I7 a row somebody removed was brought back");
        }
    }
    if let Some(report) = last {
        assert!(!report.open, "{label}: a closed operation is reported open");
    }
    // I8: recovering again changes nothing.
    let (rows, writes) = (world.device.stored(&menu()), world.device_writes);
    assert!(matches!(recovery(world, plan, usize::MAX, Fork::None), End::NotReached(_)), "{label}: I8");
    assert_eq!(
        (world.device.stored(&menu()), world.device_writes),
        (rows, writes),
        "{label}: I8 recovery is not idempotent"
    );
    let classes = vec![RowClass::Other; plan.steps.len()];
    let again = recover::decide(state, &classes, true);
    assert!(matches!(again, recover::Decision::Ended | recover::Decision::Forget));
}

fn taken(label: &str) -> bool {
    label.contains("Take")
}

fn world() -> World {
    World {
        device: fresh_device(),
        journal: vec![],
        volatile: vec![],
        foreign: BTreeSet::new(),
        raced: BTreeSet::new(),
        device_writes: 0,
    }
}

#[test]
fn every_crash_point_with_every_fault_ends_in_old_values_new_values_or_an_exact_report() {
    let (mut runs, mut crashes, mut ends) = (0u64, 0u64, std::collections::BTreeMap::new());
    let scenarios = scenarios();
    for (name, steps) in &scenarios {
        let plan = plan(steps.clone());
        for fork in Fork::all(steps.len()) {
            for boundary in 0.. {
                let mut begin = || {
                    let mut world = world();
                    let mut machine = Machine::new(plan.clone(), Limits::default());
                    let first = machine.step(Input::Start);
                    let end = drive(&mut world, &mut machine, first, boundary, fork);
                    runs += 1;
                    (world, end)
                };
                let (mut once, end) = begin();
                if let End::NotReached(report) = &end {
                    assert!(!report.open, "{name}: undisturbed runs end closed");
                    break;
                }
                let label = format!("{name}, {fork:?} at {boundary}");
                crashes += u64::from(matches!(end, End::Crashed));
                let open = match &end {
                    End::Finished(report) => report.open || JournalState::of(&once.journal).is_open(),
                    _ => true,
                };
                if !open {
                    let End::Finished(report) = end else { unreachable!("an operation that is not open has finished") };
                    check(&label, &mut once, &plan, Some(&report));
                    *ends.entry(format!("{:?}", JournalState::of(&once.journal))).or_insert(0u64) += 1;
                    continue;
                }
                // The second fault: every boundary of the recovery, until it is not reached any more.
                for second_fork in
                    [Fork::Crash, Fork::CrashAfter, Fork::LostReply, Fork::Reject, Fork::Fails, Fork::Edit(0)]
                {
                    for second in 0.. {
                        let (mut world, _) = begin();
                        world.device.fail_reads(0);
                        let end = recovery(&mut world, &plan, second, second_fork);
                        let label = format!("{label}, then {second_fork:?} at {second}");
                        let last = matches!(end, End::NotReached(_));
                        recovery(&mut world, &plan, usize::MAX, Fork::None);
                        check(&label, &mut world, &plan, None);
                        *ends.entry(format!("{:?}", JournalState::of(&world.journal))).or_insert(0u64) += 1;
                        if last {
                            break;
                        }
                    }
                }
            }
        }
    }
    println!("crash explorer: {} scenarios, {runs} runs, {crashes} crashes, ends {ends:?}", scenarios.len());
    assert!(runs > 3_000, "only {runs} runs: the explorer does not explore");
    for end in ["Merged", "RolledBack", "RollbackPartial", "Cancelled", "None"] {
        assert!(ends.contains_key(end), "no run ended in {end}: {ends:?}");
    }
}

/// The control: an engine that sends a create again without reading must be caught.
#[test]
fn the_explorer_catches_an_undo_that_does_not_look() {
    let plan = plan(vec![set(1, "lan", &[("include", "static")], &[("include", "all")]), add(2, "vpn")]);
    let mut world = world();
    world.journal.push(Record::OpPlanned { plan: Box::new(plan.clone()) });
    let lan = world.device.stored(&menu())[1].id.clone().unwrap();
    world.device.edit(&menu(), &lan, "include", Some("third"));
    world.foreign.insert(0);
    // The blind undo.
    world.device.edit(&menu(), &lan, "include", Some("static"));
    world.journal.push(Record::RolledBack);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check("control", &mut world, &plan, None)));
    assert!(caught.is_err(), "a third party's value was overwritten and nobody noticed");
}
