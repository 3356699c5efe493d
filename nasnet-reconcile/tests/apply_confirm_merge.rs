//! One change set through apply, confirm and merge, with everything that can go wrong on the way.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

use harness::{World, menu, vpn};
use nasnet_reconcile::device::testing::Fault;
use nasnet_reconcile::device::{ErrorClass, RawFields};
use nasnet_reconcile::op::{OpOutcome, StepState};
use nasnet_reconcile::routeros::kinds;
use nasnet_reconcile::{Change, ChangeSet, Error, When};
use nasnet_state::{FieldValue, Resource};

fn named<'a>(resources: &'a std::collections::BTreeMap<ulid::Ulid, Resource>, name: &str) -> &'a Resource {
    resources.values().find(|resource| resource.name == name).expect(name)
}

#[tokio::test]
async fn a_change_set_is_confirmed_by_the_device_and_merged_with_its_generated_fields() {
    let world = World::imported().await;
    let plan = world.engine.plan(&world.router, &world.device, &vpn()).await.unwrap();
    assert_eq!(plan.steps[0].kind, "vpn.wireguard", "what is referred to comes first:\n{plan}");
    assert_eq!(world.device.writes(), 0);

    let report = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    assert_eq!(report.count(StepState::Done), 4);
    assert_eq!(world.device.writes(), 4);

    let resources = world.engine.resources(&world.router).await.unwrap();
    let wg = named(&resources, "wg0");
    let current = wg.deployment.as_ref().unwrap().current.as_ref().unwrap();
    assert_eq!(current.record.operation, report.op_id);
    assert!(current.record.generated.text("public-key").unwrap().starts_with("pub-of-"));
    assert!(matches!(current.record.generated.get("private-key"), Some(FieldValue::Secret(_))));
    assert!(current.record.rows[0].id.is_some());
    assert_eq!(
        current.record.last_applied.text("comment"),
        Some("to the office"),
        "the marker is not part of the value"
    );
    let row = world.row("/interface/wireguard", "name", "wg0").unwrap();
    assert!(row.fields["comment"].starts_with("to the office nn:"), "{row:?}");

    let applied = world.events_of("resource.deployed").await;
    let correlated = applied.iter().filter(|event| event.correlation_id == Some(report.op_id)).count();
    assert_eq!(correlated, 4, "of {} events", applied.len());
    assert_eq!(world.events_of("config.applied").await.len(), 1);
}

#[tokio::test]
async fn state_equals_the_fold_of_its_events() {
    let world = World::imported().await;
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    for (uid, resource) in world.engine.resources(&world.router).await.unwrap() {
        let folded = world.engine.history_at(&world.router, uid, When::Now).await.unwrap().unwrap();
        assert_eq!(folded.resource, resource);
    }
}

#[tokio::test]
async fn a_lost_reply_ends_as_done_and_not_as_a_duplicate() {
    let world = World::imported().await;
    world.device.next_write(None);
    world.device.next_write(Some(Fault::LostReply));
    let report = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged);
    assert_eq!(world.device.writes(), 4, "nothing was sent twice");
    for path in ["/interface/wireguard", "/interface/wireguard/peers"] {
        assert_eq!(world.rows(path).len(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_refused_step_takes_everything_back_and_leaves_the_state_alone() {
    let world = World::imported().await;
    let before: Vec<_> = harness::menus().iter().map(|menu| world.device.stored(menu)).collect();
    let state = world.engine.resources(&world.router).await.unwrap();
    for fault in [None, None, None, Some(Fault::Reject(ErrorClass::InvalidValue))] {
        world.device.next_write(fault);
    }
    let report = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::RolledBack, "{report:#?}");
    assert_eq!(report.count(StepState::Undone), 3);
    let after: Vec<_> = harness::menus().iter().map(|menu| world.device.stored(menu)).collect();
    assert_eq!(after, before);
    assert_eq!(world.engine.resources(&world.router).await.unwrap(), state);
    assert_eq!(world.events_of("config.rolled_back").await.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_work_is_refused_before_anything_is_locked_or_written() {
    let world = World::imported().await;
    let cases = [
        ("unknown field", ChangeSet::new("x", "t").create(kinds::VLAN.kind(), "v", [("name", "v"), ("vlan", "5")])),
        (
            "not a value",
            ChangeSet::new("x", "t").create(
                kinds::VLAN.kind(),
                "v",
                [("name", "v"), ("interface", "bridge"), ("vlan-id", "9999")],
            ),
        ),
        (
            "unresolved reference",
            ChangeSet::new("x", "t").create(kinds::VLAN.kind(), "v", [("name", "v"), ("interface", "nowhere")]),
        ),
        ("missing field", ChangeSet::new("x", "t").create(kinds::VLAN.kind(), "v", [("name", "v")])),
        ("no such resource", ChangeSet::new("x", "t").delete(world.db.next_ulid())),
    ];
    let reads = world.device.reads();
    for (what, set) in cases {
        match world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await {
            Err(Error::Refused { findings }) => assert!(!findings.is_empty(), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!((world.device.reads(), world.device.writes()), (reads, 0));
}

#[tokio::test]
async fn what_others_still_refer_to_is_not_removed() {
    let world = World::imported().await;
    let resources = world.engine.resources(&world.router).await.unwrap();
    let bridge = named(&resources, "bridge").uid;
    let set = ChangeSet::new("tidy up", "t").delete(bridge);
    let result = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await;
    let Err(Error::Refused { findings }) = result else { panic!("{result:?}") };
    assert!(findings.iter().any(|finding| finding.message.contains("refers")), "{findings:?}");
}

#[tokio::test]
async fn a_row_nobody_manages_is_not_created_a_second_time() {
    let world = World::imported().await;
    world.device.put(&menu("/interface/list"), &[("name", "WAN")]);
    let set = ChangeSet::new("x", "t").create(kinds::INTERFACE_LIST.kind(), "WAN", [("name", "WAN")]);
    let result = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await;
    assert!(matches!(result, Err(Error::Refused { .. })), "{result:?}");
    assert_eq!(world.device.writes(), 0);
}

#[tokio::test]
async fn fields_are_changed_and_taken_back_on_the_device_and_in_the_wish() {
    let world = World::imported().await;
    let resources = world.engine.resources(&world.router).await.unwrap();
    let rule = named(&resources, "drop the rest").uid;
    let set = ChangeSet::new("off for a moment", "t").update(rule, [("disabled", "yes"), ("comment", "")]);
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let row = world.row("/ip/firewall/filter", "action", "drop").unwrap();
    assert_eq!((row.fields["disabled"].as_str(), row.fields["comment"].as_str()), ("yes", ""), "{row:?}");
    let after = world.engine.resources(&world.router).await.unwrap();
    let spec = &after[&rule].configuration.spec;
    assert_eq!(spec.get("disabled"), Some(&FieldValue::Bool(true)));
    assert!(!spec.contains("comment"));

    let set = ChangeSet::new("on again", "t").update(rule, [("disabled", "no")]);
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let after = world.engine.resources(&world.router).await.unwrap();
    let spec = &after[&rule].configuration.spec;
    assert_eq!(spec.get("disabled"), Some(&FieldValue::Bool(false)), "what somebody wrote stays a wish");

    let unset = vec!["disabled".to_owned()];
    let change = Change::Update { uid: rule, set: RawFields::new(), unset, expected_version: None };
    let set = ChangeSet::new("never mind", "t").with(change);
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let after = world.engine.resources(&world.router).await.unwrap();
    assert!(!after[&rule].configuration.spec.contains("disabled"), "what was taken back is no wish any more");
    let drift = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(!drift.has_drift() && drift.resources.is_empty(), "{drift}");
}

#[tokio::test]
async fn a_removal_goes_in_reverse_and_its_undo_brings_rows_back_with_secrets_and_place() {
    let world = World::imported().await;
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    let resources = world.engine.resources(&world.router).await.unwrap();
    let first_rule = named(&resources, "keep what is known").uid;
    let peer = named(&resources, "peer-usa").uid;
    let set = ChangeSet::new("x", "t").delete(first_rule).delete(peer);
    world.device.next_write(None);
    world.device.next_write(Some(Fault::Reject(ErrorClass::NotPermitted)));
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::RolledBack, "{report:#?}");
    let back = &world.rows("/ip/firewall/filter")[0];
    assert!(back.fields["comment"].starts_with("keep what is known nn:"), "back in its place, and marked: {back:?}");
    let drift = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(!drift.has_drift(), "{drift}");
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged);
    assert!(world.rows("/interface/wireguard/peers").is_empty());
    assert!(!world.engine.resources(&world.router).await.unwrap().contains_key(&peer));
}

#[tokio::test]
async fn a_rule_is_placed_before_another() {
    let world = World::imported().await;
    let resources = world.engine.resources(&world.router).await.unwrap();
    let last = named(&resources, "drop the rest").uid;
    let fields = [("chain", "input"), ("action", "accept"), ("protocol", "icmp")];
    let set = ChangeSet::new("ping", "t").create_before(last, kinds::FIREWALL_FILTER.kind(), "allow-ping", fields);
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let order: Vec<String> = world.rows("/ip/firewall/filter").iter().map(|row| row.fields["action"].clone()).collect();
    assert_eq!(order, ["accept", "accept", "drop"]);
}

#[tokio::test]
async fn the_same_key_answers_with_the_same_operation() {
    let world = World::imported().await;
    let key = world.db.next_ulid();
    let first = world.engine.apply(&world.router, &world.device, &vpn(), key).await.unwrap();
    let again = world.engine.apply(&world.router, &world.device, &vpn(), key).await.unwrap();
    assert_eq!((again.op_id, again.outcome), (first.op_id, OpOutcome::Merged));
    assert_eq!(again.count(StepState::Done), 4);
    assert_eq!(world.device.writes(), 4);
    let other = ChangeSet::new("other", "t").create(kinds::INTERFACE_LIST.kind(), "WAN", [("name", "WAN")]);
    let reused = world.engine.apply(&world.router, &world.device, &other, key).await;
    assert!(matches!(reused, Err(Error::KeyReused { .. })), "{reused:?}");
}

#[tokio::test]
async fn another_device_at_the_address_stops_everything() {
    let world = World::imported().await;
    world.device.replace_by("SERIAL2");
    let result = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await;
    assert!(matches!(result, Err(Error::WrongDevice { .. })), "{result:?}");
    assert!(matches!(world.engine.detect_drift(&world.router, &world.device).await, Err(Error::WrongDevice { .. })));
    assert_eq!(world.device.writes(), 0);
}

#[tokio::test]
async fn who_does_not_hold_the_router_writes_nothing() {
    use nasnet_locking::{AcquireRequest, LockInfo, LockKey};
    let world = World::imported().await;
    let request = AcquireRequest::exclusive(LockKey::router(&world.router), LockInfo::new("somebody", "working"));
    let held = world.locks.acquire(request).await.unwrap();
    let result = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await;
    assert!(matches!(&result, Err(Error::Lock(error)) if error.is_retryable()), "{result:?}");
    assert_eq!(world.device.writes(), 0);
    held.release().await.unwrap();
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
}

#[tokio::test]
async fn what_the_merge_could_never_store_is_refused_before_the_device_is_touched() {
    let world = World::imported().await;
    let list = |uid| Change::Create {
        uid: Some(uid),
        kind: kinds::INTERFACE_LIST.kind(),
        name: "WAN".to_owned(),
        fields: [("name".to_owned(), "WAN".to_owned())].into(),
        before: None,
    };
    let uid = world.db.next_ulid();
    let create = ChangeSet::new("x", "t").with(list(uid));
    world.engine.apply(&world.router, &world.device, &create, world.db.next_ulid()).await.unwrap();
    let delete = ChangeSet::new("x", "t").delete(uid);
    world.engine.apply(&world.router, &world.device, &delete, world.db.next_ulid()).await.unwrap();
    let writes = world.device.writes();
    let again = world.engine.apply(&world.router, &world.device, &create, world.db.next_ulid()).await;
    assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
    assert_eq!(world.device.writes(), writes);
}

#[tokio::test]
async fn the_futures_can_be_spawned() {
    fn spawnable<T: Send>(future: T) -> T {
        future
    }
    let world = World::imported().await;
    let (set, key) = (vpn(), world.db.next_ulid());
    spawnable(world.engine.apply(&world.router, &world.device, &set, key)).await.unwrap();
    let report = spawnable(world.engine.detect_drift(&world.router, &world.device)).await.unwrap();
    spawnable(world.engine.heal(&world.router, &world.device, &report)).await.unwrap();
    spawnable(world.engine.recover(&world.router, &world.device)).await.unwrap();
    spawnable(world.engine.import(&world.router, &world.device, &harness::menus())).await.unwrap();
    spawnable(world.engine.history_at(&world.router, key, When::Now)).await.unwrap();
}

#[tokio::test]
async fn no_secret_reaches_a_file_an_event_or_a_report_in_clear() {
    let world = World::imported().await;
    world.device.next_write(None);
    world.device.next_write(None);
    world.device.next_write(Some(Fault::Reject(ErrorClass::InvalidValue)));
    let failed = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    let report = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert_eq!((failed.outcome, report.outcome), (OpOutcome::RolledBack, OpOutcome::Merged));
    let plan = world.engine.plan(&world.router, &world.device, &ChangeSet::new("x", "t")).await.unwrap();
    let canaries = ["canary-psk", "canary-password", "GENERATED-PRIVATE"];
    let mut shown = format!("{failed:?}{report:?}{plan}{:?}", vpn());
    shown.push_str(&serde_json::to_string(&report).unwrap());
    for event in world.events_of("").await {
        shown.push_str(event.body.get());
    }
    for canary in canaries {
        assert!(!shown.contains(canary), "{canary} was shown");
        for (path, bytes) in world.all_bytes() {
            let found = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
            assert!(!found, "{canary} is in {}", path.display());
        }
    }
}
