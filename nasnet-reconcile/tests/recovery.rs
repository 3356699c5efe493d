//! The program dies in the middle of an operation; what is on disk and on the device decides how it ends.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use harness::{World, menu, menus, vpn};
use nasnet_dbmanager::Cause;
use nasnet_reconcile::device::testing::{Fault, ScriptedDevice};
use nasnet_reconcile::device::{
    Device, DeviceError, DeviceFacts, ErrorClass, MenuPath, Row, RowId, WriteOp, WriteOutcome,
};
use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::{ChangeSet, Error};
use tokio::sync::Notify;

/// Where the program dies.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    /// Before the n-th write reaches the device.
    Before(u64),
    /// After the n-th write, before its answer.
    After(u64),
    /// At the first read after the n-th write was answered.
    AtRead(u64),
}

/// A device whose connection goes silent at one point; the test drops the operation there.
struct Dying<'a> {
    inner: &'a ScriptedDevice,
    at: Death,
    writes: AtomicU64,
    dead: Notify,
}

impl<'a> Dying<'a> {
    fn new(inner: &'a ScriptedDevice, at: Death) -> Self {
        Self { inner, at, writes: AtomicU64::new(0), dead: Notify::new() }
    }

    async fn die(&self) {
        self.dead.notify_one();
        std::future::pending::<()>().await;
    }
}

#[async_trait]
impl Device for Dying<'_> {
    async fn facts(&self) -> Result<DeviceFacts, DeviceError> {
        self.inner.facts().await
    }

    async fn list(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError> {
        if Death::AtRead(self.writes.load(Ordering::SeqCst)) == self.at {
            self.die().await;
        }
        self.inner.list(menu).await
    }

    async fn get(&self, menu: &MenuPath, id: &RowId) -> Result<Option<Row>, DeviceError> {
        self.inner.get(menu, id).await
    }

    async fn write(&self, op: &WriteOp) -> WriteOutcome {
        let nth = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        if self.at == Death::Before(nth) {
            self.die().await;
        }
        let outcome = self.inner.write(op).await;
        if self.at == Death::After(nth) {
            self.die().await;
        }
        outcome
    }
}

/// Applies the change set until the program dies there, and starts it again.
async fn die(world: World, at: Death) -> World {
    {
        let dying = Dying::new(&world.device, at);
        let key = world.db.next_ulid();
        let set = vpn();
        tokio::select! {
            report = world.engine.apply(&world.router, &dying, &set, key) => panic!("it did not die: {report:?}"),
            () = dying.dead.notified() => {}
        }
    }
    world.restart().await
}

fn rows(world: &World) -> Vec<Vec<Row>> {
    menus().iter().map(|menu| world.device.stored(menu)).collect()
}

#[tokio::test]
async fn after_the_plan_and_before_any_write_it_is_cancelled() {
    let world = World::imported().await;
    let before = rows(&world);
    let world = die(world, Death::Before(1)).await;
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::Cancelled);
    assert_eq!(rows(&world), before);
    assert_eq!(world.engine.recover(&world.router, &world.device).await.unwrap(), None, "recovery is idempotent");
}

#[tokio::test]
async fn in_the_middle_of_applying_it_is_taken_back() {
    for at in [Death::After(1), Death::Before(2), Death::After(3)] {
        let world = World::imported().await;
        let before = rows(&world);
        let world = die(world, at).await;
        let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
        assert_eq!(report.outcome, OpOutcome::RolledBack, "{report:#?}");
        assert_eq!(rows(&world), before);
        let again = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
        assert_eq!(again.outcome, OpOutcome::Merged);
    }
}

#[tokio::test]
async fn fully_applied_it_is_confirmed_and_merged_with_the_same_secrets() {
    for at in [Death::After(4), Death::AtRead(4)] {
        let world = die(World::imported().await, at).await;
        let writes = world.device.writes();
        let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
        assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
        assert_eq!(world.device.writes(), writes, "nothing was sent again");
        let resources = world.engine.resources(&world.router).await.unwrap();
        let peer = resources.values().find(|resource| resource.name == "peer-usa").unwrap();
        assert_eq!(peer.configuration.spec.secrets().count(), 1);
        let drift = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
        assert!(!drift.has_drift(), "{drift}");
    }
}

#[tokio::test]
async fn in_the_middle_of_an_undo_the_undo_is_finished() {
    let world = World::imported().await;
    let before = rows(&world);
    for fault in [None, None, Some(Fault::Reject(ErrorClass::InvalidValue))] {
        world.device.next_write(fault);
    }
    let world = die(world, Death::After(4)).await;
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::RolledBack, "{report:#?}");
    assert_eq!(rows(&world), before);
}

#[tokio::test]
async fn a_third_partys_edit_meanwhile_is_left_alone_and_reported() {
    let world = World::imported().await;
    let world = die(world, Death::After(2)).await;
    let wg = world.row("/interface/wireguard", "name", "wg0").unwrap().id.unwrap();
    world.device.edit(&menu("/interface/wireguard"), &wg, "comment", Some("mine now"));
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::RollbackPartial, "{report:#?}");
    assert!(report.requires_manual_intervention);
    assert_eq!(report.left_over.len(), 1);
    assert_eq!(world.row("/interface/wireguard", "name", "wg0").unwrap().fields["comment"], "mine now");
}

#[tokio::test]
async fn an_open_operation_keeps_others_out_until_it_is_recovered() {
    let world = die(World::imported().await, Death::After(1)).await;
    let other = ChangeSet::new("other", "t").create(
        nasnet_reconcile::routeros::kinds::INTERFACE_LIST.kind(),
        "WAN",
        [("name", "WAN")],
    );
    let refused = world.engine.apply(&world.router, &world.device, &other, world.db.next_ulid()).await;
    assert!(matches!(refused, Err(Error::OperationOpen { .. })), "{refused:?}");
    world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    world.engine.apply(&world.router, &world.device, &other, world.db.next_ulid()).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_device_keeps_the_operation_open() {
    let world = die(World::imported().await, Death::After(2)).await;
    world.device.fail_reads(1_000);
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!((report.outcome, report.open), (OpOutcome::Indeterminate, true));
    world.device.fail_reads(0);
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::RolledBack);
}

#[tokio::test]
async fn another_device_is_not_recovered() {
    let world = die(World::imported().await, Death::After(2)).await;
    let writes = world.device.writes();
    world.device.replace_by("SERIAL2");
    assert!(matches!(world.engine.recover(&world.router, &world.device).await, Err(Error::WrongDevice { .. })));
    assert_eq!(world.device.writes(), writes);
    world.device.replace_by("SERIAL1");
    assert_eq!(
        world.engine.recover(&world.router, &world.device).await.unwrap().unwrap().outcome,
        OpOutcome::RolledBack
    );
}

/// The database refuses the merge: the router keeps the change, and the merge is repeated after a restart.
#[tokio::test]
async fn a_merge_that_cannot_be_stored_never_takes_the_router_back() {
    const TEST: Cause = Cause::new("test");
    async fn run(world: &World, sql: &'static str) {
        let db = world.db.router(&world.router).await.unwrap();
        db.write(TEST, move |conn| {
            Box::pin(async move {
                sqlx::query(sql).execute(conn).await?;
                Ok::<_, nasnet_dbmanager::Error>(())
            })
        })
        .await
        .unwrap();
    }
    let world = World::imported().await;
    let state = world.engine.resources(&world.router).await.unwrap();
    let trigger = "CREATE TRIGGER no_merge BEFORE INSERT ON resource_deployment BEGIN SELECT RAISE(ABORT, 'full'); END";
    run(&world, trigger).await;
    let report = world.engine.apply(&world.router, &world.device, &vpn(), world.db.next_ulid()).await.unwrap();
    assert_eq!((report.outcome, report.open), (OpOutcome::ConfirmedNotMerged, true));
    assert_eq!(world.engine.resources(&world.router).await.unwrap(), state, "all or nothing");
    assert_eq!(world.rows("/interface/wireguard").len(), 1);
    run(&world, "DROP TRIGGER no_merge").await;
    let world = world.restart().await;
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged);
    let resources = world.engine.resources(&world.router).await.unwrap();
    let wg = resources.values().find(|resource| resource.name == "wg0").unwrap();
    let generated = &wg.deployment.as_ref().unwrap().current.as_ref().unwrap().record.generated;
    assert!(generated.secrets().count() == 1, "the key the device made survived the restart sealed");
    assert_eq!(world.events_of("config.applied").await.len(), 1);
}
