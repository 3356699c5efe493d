//! Adopt a router, watch it, heal it, look back.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

use std::time::Duration;

use harness::{World, menu, menus, vpn};
use nasnet_reconcile::device::testing::Fault;
use nasnet_reconcile::drift::DriftClass;
use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::{ChangeSet, Error, When};
use nasnet_state::OPAQUE_KIND;
use nasnet_state::diff::Verdict;

#[tokio::test]
async fn everything_becomes_a_resource_and_nothing_is_written_to_the_router() {
    let world = World::new().await;
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((report.created, report.created_opaque, report.skipped), (6, 3, 2), "{report:?}");
    assert_eq!(report.rows, 11);
    assert_eq!(world.device.writes(), 0);
    let resources = world.engine.resources(&world.router).await.unwrap();
    let ether = resources.values().find(|resource| resource.name.contains("ether1")).unwrap();
    assert_eq!(ether.kind, OPAQUE_KIND);
    assert!(!ether.configuration.spec.contains("rx-byte"), "a counter is no wish");
    let rule = resources.values().find(|resource| resource.name == "drop the rest").unwrap();
    assert!(!rule.configuration.spec.contains("bytes"));
}

#[tokio::test]
async fn importing_again_creates_nothing_twice() {
    let world = World::imported().await;
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    let before = world.engine.resources(&world.router).await.unwrap();
    let events = world.events_of("").await.len();
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((report.created, report.created_opaque, report.refreshed), (0, 0, 0), "{report:?}");
    assert_eq!(report.unchanged, before.len());
    assert!(report.differing.is_empty() && report.missing.is_empty(), "{report:?}");
    assert_eq!(world.engine.resources(&world.router).await.unwrap(), before);
    assert_eq!(world.events_of("").await.len(), events);
}

#[tokio::test]
async fn importing_again_finds_the_new_the_changed_and_the_gone() {
    let world = World::imported().await;
    world.device.put(&menu("/interface/list"), &[("name", "GUEST")]);
    let drop_rule = world.row("/ip/firewall/filter", "action", "drop").unwrap().id.unwrap();
    world.device.edit(&menu("/ip/firewall/filter"), &drop_rule, "disabled", Some("true"));
    let member = world.rows("/interface/list/member")[0].id.clone().unwrap();
    world.device.take(&menu("/interface/list/member"), &member);
    let ether = world.rows("/interface/ethernet")[0].id.clone().unwrap();
    world.device.edit(&menu("/interface/ethernet"), &ether, "rx-byte", Some("456"));
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((report.created, report.refreshed), (1, 0), "{report:?}");
    assert_eq!((report.differing.len(), report.missing.len()), (1, 1), "{report:?}");
    world.device.edit(&menu("/interface/ethernet"), &ether, "mtu", Some("9000"));
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!(report.refreshed, 1, "an opaque row follows the device");
}

#[tokio::test]
async fn rules_that_look_the_same_stay_apart() {
    let world = World::new().await;
    for _ in 0..3 {
        world.device.put(&menu("/ip/firewall/filter"), &[("chain", "forward"), ("action", "accept")]);
    }
    let first = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!(first.created, 9);
    let again = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((again.created, again.missing.len()), (0, 0), "{again:?}");
    let middle = world.rows("/ip/firewall/filter")[3].id.clone().unwrap();
    world.device.take(&menu("/ip/firewall/filter"), &middle);
    let again = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((again.created, again.missing.len()), (0, 1), "{again:?}");
}

#[tokio::test]
async fn two_thousand_rows_are_imported_in_seconds() {
    let world = World::new().await;
    for n in 0..2_000 {
        let address = format!("10.{}.{}.0/24", n / 250, n % 250);
        let comment = format!("rule {n}");
        world.device.put(
            &menu("/ip/firewall/filter"),
            &[("chain", "forward"), ("action", "accept"), ("src-address", &address), ("comment", &comment)],
        );
    }
    let started = std::time::Instant::now();
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    let first = started.elapsed();
    assert_eq!(report.created, 2_006);
    let again = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((again.created, again.unchanged), (0, 2_009));
    let watched = std::time::Instant::now();
    let drift = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(!drift.has_drift() && drift.checked == 2_006, "{drift}");
    println!("2,000 rows: import {first:?}, drift pass {:?}, all {:?}", watched.elapsed(), started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_edit_behind_our_back_is_reported_field_by_field_and_healed() {
    let world = World::imported().await;
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert!(!world.engine.detect_drift(&world.router, &world.device).await.unwrap().has_drift());

    let peer = world.rows("/interface/wireguard/peers")[0].id.clone().unwrap();
    world.device.edit(&menu("/interface/wireguard/peers"), &peer, "endpoint-port", Some("1"));
    let rule = world.row("/ip/firewall/filter", "action", "drop").unwrap().id.unwrap();
    world.device.edit(&menu("/ip/firewall/filter"), &rule, "disabled", Some("true"));
    let member = world.rows("/interface/list/member")[0].id.clone().unwrap();
    world.device.take(&menu("/interface/list/member"), &member);
    world.device.put(&menu("/interface/list"), &[("name", "STRANGER")]);

    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    let classes: Vec<DriftClass> = report.drifted().map(|drift| drift.class).collect();
    assert_eq!(classes.len(), 3, "{report}");
    assert_eq!(classes.iter().filter(|class| **class == DriftClass::RowMissing).count(), 1);
    assert_eq!(report.extra.len(), 1, "{report}");
    let port = report.drifted().find(|drift| drift.name == "peer-usa").unwrap();
    assert_eq!(port.fields.len(), 1, "{report}");
    assert_eq!(port.fields[0].field.as_str(), "endpoint-port");
    assert_eq!(port.fields[0].verdict, Verdict::DeviceDrift);
    assert_ne!(port.fields[0].base, port.fields[0].actual);
    assert_eq!(world.events_of("drift.detected").await.len(), 3);

    let healed = world.engine.heal(&world.router, &world.device, &report).await.unwrap();
    assert_eq!(healed.outcome, OpOutcome::Merged, "{healed:#?}");
    let after = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert_eq!(after.drifted().count(), 0, "{after}");
    assert_eq!(after.extra.len(), 1, "rows of others are left alone");
    assert_eq!(world.rows("/interface/wireguard/peers")[0].fields["endpoint-port"], "51820");
    assert_eq!(world.events_of("drift.healed").await.len(), 1);
}

#[tokio::test]
async fn healing_brings_back_what_was_confirmed_and_not_a_newer_draft() {
    let world = World::imported().await;
    let resources = world.engine.resources(&world.router).await.unwrap();
    let rule = resources.values().find(|resource| resource.name == "drop the rest").unwrap();
    // A draft: the wish moves on, nothing is applied.
    let db = world.db.router(&world.router).await.unwrap();
    let (uid, version) = (rule.uid, rule.versions.configuration);
    let spec = rule.configuration.spec.clone().with("log", true);
    db.write(nasnet_dbmanager::Cause::new("test"), move |conn| {
        Box::pin(async move {
            let stamp = nasnet_state::Stamp::new(nasnet_state::Timestamp::synced(0), "test");
            let write = nasnet_state::ConfigurationWrite::spec(spec);
            nasnet_state::store::write_configuration(conn, uid, version, write, &stamp).await?;
            Ok::<_, Error>(())
        })
    })
    .await
    .unwrap();
    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(!report.has_drift(), "a pending wish is not drift: {report}");
    assert_eq!(report.resources[0].class, DriftClass::PendingChange);

    let row = world.row("/ip/firewall/filter", "action", "drop").unwrap().id.unwrap();
    world.device.edit(&menu("/ip/firewall/filter"), &row, "comment", Some("scribbled over"));
    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    world.engine.heal(&world.router, &world.device, &report).await.unwrap();
    let row = world.row("/ip/firewall/filter", "action", "drop").unwrap();
    assert_eq!(row.fields["comment"], "drop the rest");
    assert!(!row.fields.contains_key("log"), "the draft was not released: {row:?}");
}

#[tokio::test]
async fn a_report_that_is_out_of_date_heals_nothing() {
    let world = World::imported().await;
    let row = world.row("/ip/firewall/filter", "action", "drop").unwrap().id.unwrap();
    world.device.edit(&menu("/ip/firewall/filter"), &row, "disabled", Some("true"));
    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    world.device.edit(&menu("/ip/firewall/filter"), &row, "comment", Some("changed again"));
    let healed = world.engine.heal(&world.router, &world.device, &report).await;
    assert!(matches!(healed, Err(Error::Stale { .. })), "{healed:?}");
    assert_eq!(world.device.writes(), 0);
}

#[tokio::test]
async fn a_missing_rule_comes_back_in_its_place() {
    let world = World::imported().await;
    let first = world.rows("/ip/firewall/filter")[0].id.clone().unwrap();
    world.device.take(&menu("/ip/firewall/filter"), &first);
    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    world.device.next_write(Some(Fault::LostReply));
    let healed = world.engine.heal(&world.router, &world.device, &report).await.unwrap();
    assert_eq!(healed.outcome, OpOutcome::Merged, "{healed:#?}");
    let rules = world.rows("/ip/firewall/filter");
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].fields["connection-state"], "established,related");
    assert!(!world.engine.detect_drift(&world.router, &world.device).await.unwrap().has_drift());
}

#[tokio::test]
async fn a_hidden_secret_is_unverifiable_and_not_drift() {
    let world = World::imported().await;
    world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    world.device.hide("preshared-key");
    world.device.hide("private-key");
    let report = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(!report.has_drift(), "{report}");
    assert_eq!(report.resources.len(), 2, "{report}");
    assert_eq!(report.resources.iter().filter(|drift| drift.class == DriftClass::Unverifiable).count(), 2, "{report}");
}

#[tokio::test]
async fn a_pass_without_drift_writes_nothing_to_flash() {
    let world = World::imported().await;
    world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    let db = world.db.router(&world.router).await.unwrap();
    let (router, system) = (db.written().bytes, world.db.system().written().bytes);
    world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert_eq!((db.written().bytes, world.db.system().written().bytes), (router, system));
}

#[tokio::test]
async fn a_resource_is_told_as_it_was_before_the_change() {
    let world = World::imported().await;
    let resources = world.engine.resources(&world.router).await.unwrap();
    let rule = resources.values().find(|resource| resource.name == "drop the rest").unwrap().clone();
    let set = ChangeSet::new("off", "t").update(rule.uid, [("disabled", "yes")]);
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    let changes = world.engine.changes(&world.router, rule.uid).await.unwrap();
    let applied = world.events_of("config.applied").await[0].position;
    let first = changes.iter().find(|(_, _, change)| change.stamp.by == "t").unwrap().0;
    let before = world.engine.history_at(&world.router, rule.uid, When::Before(first)).await.unwrap().unwrap();
    assert_eq!(before.resource, rule);
    let after = world.engine.history_at(&world.router, rule.uid, When::Position(applied)).await.unwrap().unwrap();
    assert_eq!(after.resource.deployment.unwrap().current.unwrap().record.operation, report.op_id);
    assert!(after.resource.configuration.spec.contains("disabled"));
    let nothing = world.engine.history_at(&world.router, world.db.next_ulid(), When::Now).await.unwrap();
    assert_eq!(nothing, None);
}
