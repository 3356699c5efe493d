//! What the stages say, what they suggest, and when a result stops counting.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use nasnet_state::layer::configuration::Intent;
use nasnet_state::layer::validation::{Stage, StageOutcome, Validation};
use nasnet_state::validate::finding::{Severity, codes};
use nasnet_state::validate::{Candidate, Request, Universe, dependency_graph, run};
use nasnet_state::{FieldSpec, FieldType, Fields, KindName, KindSchema, OPAQUE_KIND, Schemas, Timestamp};
use support::{EVERYTHING, uid};

static PORT: KindSchema = KindSchema::new(
    "test.port",
    1,
    &[
        FieldSpec::new("name", FieldType::Str).required(),
        FieldSpec::new("bridge", FieldType::Ref("interface")),
        FieldSpec::new("table", FieldType::Ref("routing-table")),
    ],
)
.natural_key(&["name"])
.provides(&["interface"]);

fn schemas() -> Schemas {
    Schemas::new([&EVERYTHING, &PORT])
}

/// A candidate as a user types it: every value is text.
fn typed(number: u128, kind: &KindSchema, name: &str, fields: &[(&str, &str)]) -> Candidate {
    let spec = fields.iter().map(|(field, text)| ((*field).into(), (*text).into())).collect();
    Candidate { uid: uid(number), kind: kind.kind(), name: name.into(), generation: 1, intent: Intent::Present, spec }
}

fn absent(candidate: Candidate) -> Candidate {
    Candidate { intent: Intent::Absent, ..candidate }
}

fn validate(candidates: &[Candidate], universe: &Universe) -> Vec<Validation> {
    run(&Request { schemas: &schemas(), candidates, universe }, Timestamp::synced(1))
}

fn findings(validation: &Validation) -> Vec<(&str, &str, Option<&str>)> {
    validation.findings().map(|found| (found.code.as_ref(), found.path.as_str(), found.suggestion.as_deref())).collect()
}

fn outcome(validation: &Validation, stage: Stage) -> &StageOutcome {
    &validation.stages.iter().find(|report| report.stage == stage).unwrap().outcome
}

#[test]
fn the_schema_stage_names_wrong_fields_and_what_was_meant() {
    let kind = typed(1, &EVERYTHING, "a", &[("mtuu", "1500"), ("running", "yes"), ("private-key", "clear")]);
    let unknown = Candidate { kind: KindName::from_static("no.such"), ..typed(2, &PORT, "b", &[]) };
    let results = validate(&[kind, unknown, typed(3, &PORT, "c", &[])], &Universe::new());
    assert_eq!(
        findings(&results[0]),
        [
            (codes::UNKNOWN_FIELD, "a.mtuu", Some("mtu")),
            (codes::UNSEALED_SECRET, "a.private-key", None),
            (codes::READ_ONLY_FIELD, "a.running", None),
        ]
    );
    assert_eq!(findings(&results[1]), [(codes::UNKNOWN_KIND, "b", None)]);
    assert_eq!(findings(&results[2]), [(codes::MISSING_FIELD, "c.name", None)]);
    for result in &results {
        assert!(!result.can_apply());
        assert_eq!(outcome(result, Stage::Schema), &StageOutcome::Fail);
        assert!(matches!(outcome(result, Stage::Dependency), StageOutcome::Skipped(_)));
    }
}

#[test]
fn a_typed_value_out_of_its_bounds_or_of_another_type_is_refused() {
    let mut candidate = typed(1, &EVERYTHING, "a", &[]);
    candidate.spec = Fields::new().with("mtu", 7_i64).with("disabled", 1_i64);
    let results = validate(&[candidate], &Universe::new());
    let wrong = |path| (codes::WRONG_TYPE, path, None);
    assert_eq!(findings(&results[0]), [wrong("a.disabled"), wrong("a.mtu")]);
}

#[test]
fn the_syntax_stage_reports_what_means_nothing_and_what_will_look_different() {
    let fields =
        [("mode", "trnk"), ("mtu", "0x5dc"), ("gateway", "10.0.0"), ("keepalive", "00:00:10"), ("comment", "0x5dc")];
    let results = validate(&[typed(1, &EVERYTHING, "a", &fields)], &Universe::new());
    assert_eq!(
        findings(&results[0]),
        [
            (codes::NOT_UNDERSTOOD, "a.gateway", None),
            (codes::RESPELLED, "a.keepalive", None),
            (codes::NOT_UNDERSTOOD, "a.mode", Some("trunk")),
            (codes::RESPELLED, "a.mtu", None),
        ]
    );
    assert_eq!(outcome(&results[0], Stage::Schema), &StageOutcome::Pass);
    assert_eq!(outcome(&results[0], Stage::Syntax), &StageOutcome::Fail);
    let respelled = validate(&[typed(1, &EVERYTHING, "a", &fields[1..2])], &Universe::new());
    assert!(respelled[0].can_apply(), "another spelling stands in nobody's way");
}

#[test]
fn references_resolve_in_the_change_around_it_or_not_at_all() {
    let mut universe = Universe::new();
    universe.provide(KindName::from_static("interface"), "ether1");
    universe.add(&schemas(), uid(9), &PORT.kind(), "bridge1", &Fields::new());
    let candidates = [
        typed(1, &PORT, "a", &[("name", "a"), ("bridge", "ether1")]),
        typed(2, &PORT, "b", &[("name", "b"), ("bridge", "bridge1")]),
        typed(3, &PORT, "c", &[("name", "c"), ("bridge", "a")]),
        typed(4, &PORT, "d", &[("name", "d"), ("bridge", "bridge2")]),
        typed(5, &PORT, "e", &[("name", "e"), ("table", "main")]),
    ];
    let results = validate(&candidates, &universe);
    for result in &results[..3] {
        assert!(result.can_apply() && findings(result).is_empty(), "{result:?}");
    }
    assert_eq!(findings(&results[3]), [(codes::UNRESOLVED_REFERENCE, "d.bridge", Some("bridge1"))]);
    assert!(!results[3].can_apply());
    assert_eq!(findings(&results[4]), [(codes::UNCHECKED_REFERENCE, "e.table", None)]);
    assert_eq!(results[4].findings().next().unwrap().severity, Severity::Warning);
    assert!(results[4].can_apply(), "what nobody can look up is not refused");
}

#[test]
fn a_circle_is_reported_at_each_member_with_its_path() {
    let port = |number, name: &str, bridge: &str| typed(number, &PORT, name, &[("name", name), ("bridge", bridge)]);
    let candidates = [port(1, "a", "b"), port(2, "b", "a"), port(3, "c", "a"), port(4, "self", "self")];
    let results = validate(&candidates, &Universe::new());
    let message = |at: usize| results[at].errors().map(|finding| finding.message.clone()).collect::<Vec<_>>();
    assert_eq!(message(0), ["dependency cycle: test.port a -> test.port b -> test.port a"]);
    assert_eq!(message(1), ["dependency cycle: test.port b -> test.port a -> test.port b"]);
    assert_eq!(message(2), Vec::<String>::new());
    assert_eq!(message(3), ["dependency cycle: test.port self -> test.port self"]);
}

#[test]
fn nothing_goes_while_something_that_stays_needs_it() {
    let bridge = typed(1, &PORT, "bridge1", &[("name", "bridge1")]);
    let member = typed(2, &PORT, "m", &[("name", "m"), ("bridge", "bridge1")]);
    let mut universe = Universe::new();
    for candidate in [&bridge, &member] {
        let fields = PORT.normalise(&candidate.spec);
        universe.add(&schemas(), candidate.uid, &candidate.kind, &candidate.name, &fields);
    }
    let alone = validate(&[absent(bridge.clone())], &universe);
    assert_eq!(findings(&alone[0]), [(codes::STILL_IN_USE, "bridge1", None)]);
    let touched = validate(&[absent(bridge.clone()), member.clone()], &universe);
    assert_eq!(findings(&touched[1]), [(codes::STILL_IN_USE, "m.bridge", None)]);
    let both = validate(&[absent(bridge.clone()), absent(member)], &universe);
    assert!(both.iter().all(Validation::can_apply), "{both:?}");
    let replaced = typed(3, &PORT, "bridge1", &[("name", "bridge1")]);
    let swapped = validate(&[absent(bridge), replaced], &universe);
    assert!(swapped[1].can_apply(), "{swapped:?}");
}

#[test]
fn one_name_cannot_be_claimed_twice() {
    let results =
        validate(&[typed(1, &PORT, "a", &[("name", "a")]), typed(2, &PORT, "a", &[("name", "a")])], &Universe::new());
    assert!(results[0].can_apply());
    assert_eq!(findings(&results[1]), [(codes::NAME_TWICE, "a", None)]);
}

#[test]
fn an_opaque_row_passes_with_any_field() {
    let row = Candidate { kind: OPAQUE_KIND, ..typed(1, KindSchema::opaque(), "x", &[("anything", "at all")]) };
    assert!(validate(&[row], &Universe::new())[0].can_apply());
}

#[test]
fn a_result_goes_stale_when_an_input_changes_and_only_then() {
    let mut universe = Universe::new();
    universe.provide(KindName::from_static("interface"), "ether1");
    let a = typed(1, &PORT, "a", &[("name", "a"), ("bridge", "b")]);
    let b = typed(2, &PORT, "b", &[("name", "b"), ("bridge", "ether1")]);
    let inputs = |candidates: &[Candidate], universe: &Universe| validate(candidates, universe)[0].inputs;
    let before = validate(&[a.clone(), b.clone()], &universe)[0].clone();

    let later = run(
        &Request { schemas: &schemas(), candidates: &[a.clone(), b.clone()], universe: &universe },
        Timestamp::synced(99),
    );
    assert!(!before.is_stale(later[0].inputs), "the clock is no input");
    universe.provide(KindName::from_static("interface"), "unrelated");
    assert!(!before.is_stale(inputs(&[a.clone(), b.clone()], &universe)));

    let other_b = Candidate { spec: b.spec.clone().with("bridge", "ether2"), ..b.clone() };
    let other_a = Candidate { generation: 2, ..a.clone() };
    assert!(before.is_stale(inputs(&[a.clone(), other_b], &universe)), "what it refers to changed");
    assert!(before.is_stale(inputs(&[other_a, b.clone()], &universe)), "its generation changed");
    assert!(before.is_stale(inputs(&[a.clone(), absent(b.clone())], &universe)), "what it refers to goes");
    assert!(before.is_stale(inputs(&[a, b], &Universe::new())), "a name it depends on is gone");
}

#[test]
fn the_order_of_creation_puts_what_is_referred_to_first() {
    let port = |number, name: &str, bridge: &str| typed(number, &PORT, name, &[("name", name), ("bridge", bridge)]);
    let candidates = [port(1, "c", "b"), port(2, "b", "a"), typed(3, &PORT, "a", &[("name", "a")])];
    assert_eq!(dependency_graph(&schemas(), &candidates).order().unwrap(), [2, 1, 0]);
}
