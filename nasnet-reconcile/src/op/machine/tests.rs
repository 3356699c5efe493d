//! Single stories of the step machine on a device in memory.

use std::collections::BTreeSet;

use super::*;
use crate::device::testing::{Fault, ScriptedDevice};
use crate::device::{ErrorClass, MenuPath, WriteOutcome};
use crate::op::image::{Image, RowImage};
use crate::op::plan::{self, PlanHead, RowChange};
use crate::op::row_key::{RowKey, SeenRow, mark_comment, marker_of};
use crate::op::secret::Vault;
use crate::op::step::{Action, Intent, Step, Wire};

pub(crate) fn menu() -> MenuPath {
    "/interface/list".parse().unwrap()
}

fn image(fields: &[(&str, &str)]) -> Image {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn step(uid: u128, action: Action, natural: &[&str], pre: RowImage, post: RowImage) -> Step {
    let marker = (action == Action::Add).then(|| marker_of(ulid::Ulid::from(uid)));
    let wire = |to: &RowImage, from: &RowImage| {
        let mut wire = Wire::default();
        for (name, value) in to.touched().into_iter().flatten() {
            match value {
                Some(value) => _ = wire.fields.insert(name.clone(), value.clone()),
                None => wire.unset.push(name.clone()),
            }
        }
        for name in from.touched().into_iter().flatten().map(|(name, _)| name) {
            let known = wire.fields.contains_key(name) || wire.unset.contains(name);
            if !known && to.touched().is_some() {
                wire.unset.push(name.clone());
            }
        }
        wire
    };
    let mut forward = wire(&post, &pre);
    if let Some(marker) = &marker {
        let comment = forward.fields.get("comment").cloned().unwrap_or_default();
        forward.fields.insert("comment".into(), mark_comment(&comment, marker));
    }
    let backward = wire(&pre, &post);
    Step {
        index: 0,
        uid: ulid::Ulid::from(uid),
        kind: "list".into(),
        name: natural[0].into(),
        why: "asked for".into(),
        key: RowKey {
            menu: menu(),
            marker,
            natural: natural.iter().map(|name| image(&[("name", name)])).collect(),
            handle: None,
        },
        action,
        intent: Intent::Configure,
        expected_version: None,
        pre,
        post,
        hidden: BTreeSet::new(),
        asked: Wire::default(),
        forward,
        backward,
        place_before: None,
        undo_place_before: None,
        requires: vec![],
    }
}

pub(crate) fn add(uid: u128, name: &str) -> Step {
    step(uid, Action::Add, &[name], RowImage::Absent, RowImage::whole(&image(&[("name", name), ("include", "all")])))
}

pub(crate) fn set(uid: u128, name: &str, from: &[(&str, &str)], to: &[(&str, &str)]) -> Step {
    step(uid, Action::Set, &[name], RowImage::whole(&image(from)), RowImage::whole(&image(to)))
}

pub(crate) fn rename(uid: u128, from: &str, to: &str) -> Step {
    let side = |name| RowImage::whole(&image(&[("name", name)]));
    step(uid, Action::Set, &[from, to], side(from), side(to))
}

pub(crate) fn remove(uid: u128, name: &str, fields: &[(&str, &str)]) -> Step {
    step(uid, Action::Remove, &[name], RowImage::whole(&image(fields)), RowImage::Absent)
}

pub(crate) fn plan(steps: Vec<Step>) -> Plan {
    let changes = steps.into_iter().map(|step| RowChange {
        step,
        provides_before: BTreeSet::new(),
        provides_after: BTreeSet::new(),
        needs_before: BTreeSet::new(),
        needs_after: BTreeSet::new(),
    });
    let head = PlanHead {
        op_id: ulid::Ulid::from(9u128),
        router: "edge".into(),
        serial: "S1".into(),
        reason: "test".into(),
        actor: None,
    };
    plan::build(head, changes.collect()).unwrap()
}

/// The device with the rows the stories start from.
pub(crate) fn device() -> ScriptedDevice {
    let device = ScriptedDevice::new("S1");
    device.unique(&menu(), "name");
    device.put(&menu(), &[("name", "wan"), ("include", "static"), ("comment", "uplink")]);
    device.put(&menu(), &[("name", "lan"), ("include", "static")]);
    device
}

pub(crate) fn sight(device: &ScriptedDevice, step: &Step) -> Sight {
    match device.list_now(&step.key.menu) {
        Ok(rows) => step.key.resolve(&rows.into_iter().map(SeenRow::verbatim).collect::<Vec<_>>()),
        Err(error) => Sight::Unreadable { cause: error.to_string() },
    }
}

pub(crate) fn write(device: &ScriptedDevice, step: &Step, direction: Direction, id: Option<RowId>) -> Outcome {
    let Some(op) = step.write_op(direction, id, &Vault::default()) else {
        return Outcome::NotSent { cause: "no handle".into() };
    };
    match device.write_now(&op) {
        WriteOutcome::Done { row } => {
            let echo = row.map(|row| {
                let seen = SeenRow::verbatim(row);
                Sight::Row { id: seen.id, image: seen.image }
            });
            Outcome::Done { echo }
        }
        WriteOutcome::Rejected { class, detail } => Outcome::Rejected { class, detail },
        WriteOutcome::NotSent(error) => Outcome::NotSent { cause: error.to_string() },
        WriteOutcome::Unknown { hint } => Outcome::Unknown { hint },
    }
}

/// Runs to the end without faults of its own; `before` sees every effect first and may interfere with the device.
fn run(mut machine: Machine, first: Vec<Effect>, device: &ScriptedDevice, mut before: impl FnMut(&Effect)) -> OpReport {
    let mut queue: std::collections::VecDeque<Effect> = first.into();
    loop {
        let effect = queue.pop_front().expect("a machine that is not finished always asks for something");
        before(&effect);
        let input = match effect {
            Effect::Journal { durable: false, .. } => continue,
            Effect::Journal { durable: true, .. } => Input::JournalDurable,
            Effect::Read { step } => Input::Sighted { step, sight: sight(device, &machine.plan().steps[step]) },
            Effect::Write { step, direction, id } => {
                let outcome = write(device, &machine.plan().steps[step], direction, id);
                Input::Written { step, outcome }
            }
            Effect::SetTimer { .. } => Input::Timer,
            Effect::Merge { .. } => Input::Merged,
            Effect::Finish(report) => return *report,
        };
        queue.extend(machine.step(input));
    }
}

fn start(steps: Vec<Step>, device: &ScriptedDevice, before: impl FnMut(&Effect)) -> OpReport {
    let mut machine = Machine::new(plan(steps), Limits::default());
    let first = machine.step(Input::Start);
    run(machine, first, device, before)
}

fn named(device: &ScriptedDevice, name: &str) -> Option<crate::device::Row> {
    device.stored(&menu()).into_iter().find(|row| row.fields.get("name").is_some_and(|found| found == name))
}

#[test]
fn a_change_is_applied_confirmed_and_merged_in_order() {
    let device = device();
    let mut order = Vec::new();
    let report =
        start(vec![add(1, "vpn"), set(2, "lan", &[("include", "static")], &[("include", "all")])], &device, |e| {
            order.push(match e {
                Effect::Journal { record, .. } => record.name(),
                Effect::Write { .. } => "write",
                Effect::Merge { .. } => "merge",
                _ => return,
            });
        });
    assert_eq!(report.outcome, OpOutcome::Merged);
    assert!(!report.open);
    assert_eq!(
        order,
        [
            "op_planned",
            "step_sent",
            "write",
            "step_outcome",
            "step_sent",
            "write",
            "step_outcome",
            "applied",
            "confirm_intent",
            "confirmed",
            "merge"
        ]
    );
    assert_eq!(named(&device, "lan").unwrap().fields["include"], "all");
    assert!(report.steps.iter().all(|step| step.after.is_some()), "the rows as read back are in the report");
}

#[test]
fn a_lost_reply_ends_as_done_and_not_as_a_duplicate() {
    let device = device();
    device.next_write(Some(Fault::LostReply));
    let report = start(vec![add(1, "vpn")], &device, |_| {});
    assert_eq!(report.outcome, OpOutcome::Merged);
    assert_eq!(device.writes(), 1, "the create was sent once");
    assert_eq!(device.stored(&menu()).iter().filter(|row| row.fields["name"] == "vpn").count(), 1);
}

#[test]
fn a_lost_request_is_sent_again_only_after_reading() {
    let device = device();
    device.next_write(Some(Fault::LostRequest));
    let mut trace = Vec::new();
    let report = start(vec![add(1, "vpn")], &device, |effect| match effect {
        Effect::Write { .. } => trace.push("write"),
        Effect::Read { .. } => trace.push("read"),
        _ => {}
    });
    assert_eq!(report.outcome, OpOutcome::Merged);
    assert_eq!(trace, ["read", "write", "read", "read", "write", "read"]);
}

#[test]
fn a_device_that_is_never_reached_cancels_without_an_undo() {
    let device = device();
    for _ in 0..5 {
        device.next_write(Some(Fault::NotSent));
    }
    let report = start(vec![add(1, "vpn")], &device, |_| {});
    assert_eq!(report.outcome, OpOutcome::Cancelled);
    assert_eq!(device.writes(), 5);
}

#[test]
fn a_refused_step_takes_back_the_steps_before_it() {
    let device = device();
    let before = device.stored(&menu());
    device.next_write(None);
    device.next_write(Some(Fault::Reject(ErrorClass::InvalidValue)));
    let report =
        start(vec![set(1, "lan", &[("include", "static")], &[("include", "all")]), add(2, "vpn")], &device, |_| {});
    assert_eq!(report.outcome, OpOutcome::RolledBack);
    assert_eq!(report.steps[0].state, StepState::Undone);
    assert_eq!(report.steps[1].state, StepState::Rejected);
    assert_eq!(device.stored(&menu()), before);
}

#[test]
fn a_busy_device_is_asked_again() {
    let device = device();
    device.next_write(Some(Fault::Reject(ErrorClass::Busy)));
    assert_eq!(start(vec![add(1, "vpn")], &device, |_| {}).outcome, OpOutcome::Merged);
}

#[test]
fn a_device_that_stores_something_else_is_not_confirmed() {
    let device = device();
    device.next_write(Some(Fault::Store { field: "include".into(), value: "none".into() }));
    let report = start(vec![add(1, "vpn")], &device, |_| {});
    // The row is ours by its marker, but its value is not: it is left alone and said so.
    assert_eq!(report.outcome, OpOutcome::RollbackPartial);
    assert!(report.requires_manual_intervention);
    assert_eq!(report.left_over.len(), 1);
}

#[test]
fn undo_never_overwrites_the_value_of_a_third_party() {
    let device = device();
    let lan = named(&device, "lan").unwrap().id.unwrap();
    device.next_write(None);
    device.next_write(Some(Fault::Reject(ErrorClass::InvalidValue)));
    let mut edited = false;
    let handle = device.clone();
    let report =
        start(vec![set(1, "lan", &[("include", "static")], &[("include", "all")]), add(2, "vpn")], &device, |effect| {
            if matches!(effect, Effect::Journal { record: Record::UndoIntent { .. }, .. }) && !edited {
                edited = handle.edit(&menu(), &lan, "include", Some("dynamic"));
            }
        });
    assert!(edited);
    assert_eq!(report.outcome, OpOutcome::RollbackPartial);
    assert_eq!(report.steps[0].state, StepState::UndoConflict);
    assert_eq!(named(&device, "lan").unwrap().fields["include"], "dynamic");
    let RowImage::Present(expected) = &report.left_over[0].expected else { panic!("a set expects its row") };
    assert_eq!(expected["include"].as_deref(), Some("static"));
}

#[test]
fn a_read_back_that_fails_never_takes_a_good_change_back() {
    let device = device();
    let handle = device.clone();
    let mut failed = false;
    let report = start(vec![add(1, "vpn")], &device, |effect| {
        // Everything is applied; from here on the device cannot be read.
        if matches!(effect, Effect::Journal { record: Record::StepOutcome { .. }, .. }) && !failed {
            failed = true;
            handle.fail_reads(1_000);
        }
    });
    assert_eq!(report.outcome, OpOutcome::Indeterminate);
    assert!(report.open, "the journal keeps it for recovery");
    device.fail_reads(0);
    let records = [Record::OpPlanned { plan: Box::new(plan(vec![add(1, "vpn")])) }];
    let (machine, first) = Machine::recover(plan(vec![add(1, "vpn")]), &records, Limits::default());
    assert_eq!(run(machine, first, &device, |_| {}).outcome, OpOutcome::Merged);
    assert_eq!(device.writes(), 1);
}

#[test]
fn an_undo_that_fails_is_reported_as_such() {
    let device = device();
    device.next_write(None);
    device.next_write(Some(Fault::Reject(ErrorClass::InvalidValue)));
    for _ in 0..10 {
        device.next_write(Some(Fault::Reject(ErrorClass::NotPermitted)));
    }
    let report = start(vec![add(1, "vpn"), add(2, "dmz")], &device, |_| {});
    assert_eq!(report.outcome, OpOutcome::RollbackPartial);
    assert_eq!(report.steps[0].state, StepState::UndoFailed);
    assert!(report.requires_manual_intervention);
    assert!(named(&device, "vpn").is_some(), "the report does not claim more than the device shows");
}

#[test]
fn what_a_left_row_refers_to_is_left_as_well() {
    let device = device();
    let mut peer = add(2, "peer");
    peer.requires = vec![0];
    let mut steps = plan(vec![add(1, "vpn"), peer, add(3, "dmz")]).steps;
    steps[1].requires = vec![0];
    let mut plan = plan(vec![add(1, "vpn"), add(2, "peer"), add(3, "dmz")]);
    plan.steps = steps;
    for fault in [None, None, Some(Fault::Reject(ErrorClass::InvalidValue))] {
        device.next_write(fault);
    }
    let mut machine = Machine::new(plan, Limits::default());
    let first = machine.step(Input::Start);
    let handle = device.clone();
    let mut edited = false;
    let report = run(machine, first, &device, |effect| {
        if matches!(effect, Effect::Journal { record: Record::UndoIntent { .. }, .. }) && !edited {
            let id = named(&handle, "peer").unwrap().id.unwrap();
            edited = handle.edit(&menu(), &id, "include", Some("dynamic"));
        }
    });
    assert_eq!(report.left_over.len(), 2);
    assert!(named(&device, "vpn").is_some(), "the peer of somebody else still refers to it");
}

#[test]
fn a_row_that_changed_since_the_plan_stops_the_operation_before_its_write() {
    let device = device();
    let lan = named(&device, "lan").unwrap().id.unwrap();
    device.edit(&menu(), &lan, "include", Some("dynamic"));
    let report = start(vec![set(1, "lan", &[("include", "static")], &[("include", "all")])], &device, |_| {});
    assert_eq!(report.outcome, OpOutcome::Cancelled);
    assert_eq!(report.steps[0].state, StepState::ExternalChange);
    assert_eq!(device.writes(), 0);
}

#[test]
fn an_edit_between_write_and_confirmation_is_never_confirmed() {
    let device = device();
    let handle = device.clone();
    let mut edited = false;
    let report = start(vec![add(1, "vpn"), add(2, "dmz")], &device, |effect| {
        if matches!(effect, Effect::Write { step: 1, .. }) && !edited {
            let id = named(&handle, "vpn").unwrap().id.unwrap();
            edited = handle.edit(&menu(), &id, "include", Some("dynamic"));
        }
    });
    assert_eq!(report.outcome, OpOutcome::RollbackPartial);
    assert_eq!(named(&device, "vpn").unwrap().fields["include"], "dynamic");
    assert!(named(&device, "dmz").is_none(), "the other row was taken back");
}

#[test]
fn cancelling_before_the_first_write_leaves_the_device_alone() {
    let device = device();
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    let first = machine.step(Input::Start);
    assert!(machine.step(Input::Cancel).is_empty());
    assert_eq!(run(machine, first, &device, |_| {}).outcome, OpOutcome::Cancelled);
    assert_eq!(device.writes(), 0);
}

#[test]
fn cancelling_after_the_commit_point_is_too_late() {
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    let device = device();
    let mut queue: Vec<Effect> = machine.step(Input::Start);
    loop {
        let effect = queue.remove(0);
        let input = match effect {
            Effect::Journal { durable: false, .. } => continue,
            Effect::Journal { record, durable: true } => {
                if matches!(record, Record::ConfirmIntent { .. }) {
                    assert!(machine.step(Input::Cancel).is_empty());
                }
                Input::JournalDurable
            }
            Effect::Read { step } => Input::Sighted { step, sight: sight(&device, &machine.plan().steps[step]) },
            Effect::Write { step, direction, id } => {
                let outcome = write(&device, &machine.plan().steps[step], direction, id);
                Input::Written { step, outcome }
            }
            Effect::SetTimer { .. } => Input::Timer,
            Effect::Merge { .. } => Input::Merged,
            Effect::Finish(report) => {
                assert_eq!(report.outcome, OpOutcome::Merged);
                return;
            }
        };
        queue.extend(machine.step(input));
    }
}

#[test]
fn a_plan_that_cannot_be_stored_writes_nothing() {
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    machine.step(Input::Start);
    let effects = machine.step(Input::JournalFailed { cause: "disk full".into() });
    let [Effect::Finish(report)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(report.outcome, OpOutcome::Cancelled);
    assert!(!report.open);
}

#[test]
fn w19_a_merge_that_cannot_be_stored_keeps_the_change_and_the_operation_open() {
    let device = device();
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    let mut queue: Vec<Effect> = machine.step(Input::Start);
    let report = loop {
        let input = match queue.remove(0) {
            Effect::Journal { durable: false, .. } => continue,
            Effect::Journal { durable: true, .. } => Input::JournalDurable,
            Effect::Read { step } => Input::Sighted { step, sight: sight(&device, &machine.plan().steps[step]) },
            Effect::Write { step, direction, id } => {
                let outcome = write(&device, &machine.plan().steps[step], direction, id);
                Input::Written { step, outcome }
            }
            Effect::SetTimer { .. } => Input::Timer,
            Effect::Merge { .. } => Input::MergeFailed { cause: "disk full".into() },
            Effect::Finish(report) => break report,
        };
        queue.extend(machine.step(input));
    };
    assert_eq!(report.outcome, OpOutcome::ConfirmedNotMerged);
    assert!(report.open);
    assert!(named(&device, "vpn").is_some());
}

#[test]
fn w22_another_device_stops_all_writing() {
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    machine.step(Input::Start);
    machine.step(Input::JournalDurable);
    let effects = machine.step(Input::WrongDevice { expected: "S1".into(), found: "S2".into() });
    let Some(Effect::Finish(report)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(report.outcome, OpOutcome::Indeterminate);
    assert!(report.requires_manual_intervention && report.open);
    assert!(machine.step(Input::Timer).is_empty(), "nothing follows the end");
}

#[test]
fn an_empty_plan_is_no_change() {
    assert_eq!(start(vec![], &device(), |_| {}).outcome, OpOutcome::NoChange);
}

#[test]
fn answers_that_nobody_waits_for_are_ignored() {
    let mut machine = Machine::new(plan(vec![add(1, "vpn")]), Limits::default());
    machine.step(Input::Start);
    for late in [Input::Timer, Input::Merged, Input::Sighted { step: 0, sight: Sight::Absent }] {
        assert!(machine.step(late).is_empty());
    }
    assert_eq!(machine.step(Input::JournalDurable), [Effect::Read { step: 0 }]);
}

mod explorer;
