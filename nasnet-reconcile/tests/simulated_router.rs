//! The engine against the RouterOS simulator over real sockets, on a realistic configuration.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

use harness::{limits, menu, vpn};
use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId};
use nasnet_events::{EventOptions, EventStore};
use nasnet_locking::{LockManager, LockOptions};
use nasnet_reconcile::device::{Device, MenuPath};
use nasnet_reconcile::drift::DriftClass;
use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::routeros::rest::{Password, RestDevice, RestOptions};
use nasnet_reconcile::routeros::{export, kinds, menus};
use nasnet_reconcile::simulator::{Fault, FaultRule, Sim, SimProfile, SimServer};
use nasnet_reconcile::{ChangeSet, Reconciler, schema_sets};

const EXPORT: &[u8] = include_bytes!("../../examples/data/home-office.rsc");

struct Site {
    _dir: tempfile::TempDir,
    server: SimServer,
    device: RestDevice,
    db: DbManager,
    engine: Reconciler,
    router: RouterId,
}

fn observed() -> Vec<MenuPath> {
    menus::KNOWN.iter().map(|(path, _)| menu(path)).collect()
}

async fn site() -> Site {
    let mut sim = Sim::new(SimProfile::default());
    sim.seed_from_export(&export::parse(EXPORT).rows());
    let server = SimServer::start(sim, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let options = RestOptions::plain("127.0.0.1", server.address().port(), "admin", Password::new(""));
    let device = RestDevice::new(options);
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run")).schemas(schema_sets());
    let db = DbManager::open(options).await.unwrap();
    let events = EventStore::open(&db, EventOptions::default()).await.unwrap();
    let locks = LockManager::open(&db, LockOptions::default()).await.unwrap();
    let engine = Reconciler::new(&db, &events, &locks, kinds::kinds()).with_limits(limits());
    let router: RouterId = "edge".parse().unwrap();
    db.create_router(NewRouter::new(router.clone())).await.unwrap();
    Site { _dir: dir, server, device, db, engine, router }
}

impl Site {
    async fn apply(&self, set: &ChangeSet) -> nasnet_reconcile::op::OpReport {
        self.engine.apply(&self.router, &self.device, set, self.db.next_ulid()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realistic_router_is_imported_changed_watched_healed_and_imported_again() {
    let site = site().await;
    let first = site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
    assert!(first.created > 40 && first.created_opaque > 60, "{first:?}");
    assert!(first.unreadable.is_empty(), "{first:?}");
    assert_eq!(first.not_understood, 0, "{first:?}");
    let again = site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
    assert_eq!((again.created, again.created_opaque, again.refreshed), (0, 0, 0), "{again:?}");
    assert!(again.differing.is_empty() && again.missing.is_empty(), "{again:?}");

    let drift = site.engine.detect_drift(&site.router, &site.device).await.unwrap();
    assert!(!drift.has_drift(), "{drift}");
    assert_eq!(drift.in_sync, drift.checked, "{drift}");

    let report = site.apply(&vpn_for_site()).await;
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let drift = site.engine.detect_drift(&site.router, &site.device).await.unwrap();
    assert!(!drift.has_drift(), "{drift}");

    let rules = site.device.list(&menu("/ip/firewall/filter")).await.unwrap();
    let rule = rules.iter().find(|row| row.fields.get("dynamic").is_none_or(|value| value != "true")).unwrap();
    let id = rule.id.clone().unwrap();
    site.server.sim().with(|sim| {
        sim.edit(|admin| admin.set(&menu("/ip/firewall/filter"), &id, &[("disabled", "yes")])).unwrap();
    });
    let drift = site.engine.detect_drift(&site.router, &site.device).await.unwrap();
    assert_eq!(drift.drifted().count(), 1, "{drift}");
    assert_eq!(drift.drifted().next().unwrap().class, DriftClass::Changed);
    let healed = site.engine.heal(&site.router, &site.device, &drift).await.unwrap();
    assert_eq!(healed.outcome, OpOutcome::Merged, "{healed:#?}");
    assert!(!site.engine.detect_drift(&site.router, &site.device).await.unwrap().has_drift());
    let again = site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
    assert_eq!((again.created, again.created_opaque), (0, 0), "{again:?}");
}

fn vpn_for_site() -> ChangeSet {
    let mut set = vpn();
    for change in &mut set.changes {
        if let nasnet_reconcile::Change::Create { fields, .. } = change {
            for value in fields.values_mut() {
                *value = value.replace("PEER-PUBLIC", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=");
                *value = value.replace("canary-psk", "LSy5gsVGdVzYqlXMZcpdMXnLbiUKGYDXDqLGwI8nSlQ=");
                *value = value.replace("wg0", "wg-demo");
            }
        }
    }
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_of_every_step_ends_as_done_and_not_as_a_duplicate() {
    for (nth, fault) in
        [Fault::DropAfterCommit, Fault::CutBody, Fault::TruncatedJson, Fault::DropAfterCommit].into_iter().enumerate()
    {
        let nth = u32::try_from(nth).unwrap();
        let site = site().await;
        site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
        site.server.sim().with(|sim| {
            sim.inject(FaultRule::next(fault).on_method("PUT").after(nth));
        });
        let report = site.apply(&vpn_for_site()).await;
        assert_eq!(report.outcome, OpOutcome::Merged, "reply {nth} was lost: {report:#?}");
        assert_eq!(site.server.sim().with(|sim| sim.pending_faults()), 0, "the fault did not happen");
        let again = site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
        assert_eq!((again.created, again.missing.len()), (0, 0), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_managed_resource_can_be_removed_and_a_refusal_brings_all_of_them_back() {
    let site = site().await;
    site.engine.import(&site.router, &site.device, &observed()).await.unwrap();
    let rules = menu("/ip/firewall/filter");
    let order = |rows: Vec<nasnet_reconcile::device::Row>| -> Vec<(String, String)> {
        let of = |row: &nasnet_reconcile::device::Row, name: &str| row.fields.get(name).cloned().unwrap_or_default();
        rows.iter().map(|row| (of(row, "chain"), of(row, "action"))).collect()
    };
    let before = order(site.device.list(&rules).await.unwrap());
    let resources = site.engine.resources(&site.router).await.unwrap();
    let all: Vec<_> = resources.values().filter(|r| r.kind == kinds::FIREWALL_FILTER.kind()).map(|r| r.uid).collect();
    assert!(all.len() > 10);
    let set = all.iter().rev().fold(ChangeSet::new("tear down", "tester"), |set, uid| set.delete(*uid));
    let last = u32::try_from(all.len()).unwrap() - 1;
    site.server.sim().with(|sim| sim.inject(FaultRule::next(Fault::Unauthorized).on_method("DELETE").after(last)));
    let report = site.apply(&set).await;
    assert_eq!(report.outcome, OpOutcome::RolledBack, "{:#?}", report.left_over);
    assert_eq!(order(site.device.list(&rules).await.unwrap()), before, "the rules are back in their order");
    let drift = site.engine.detect_drift(&site.router, &site.device).await.unwrap();
    assert!(!drift.has_drift(), "{drift}");
}
