//! Values, devices and callers that mean no good, or do the unexpected at the worst moment.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod harness;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use harness::{World, menu, menus, vpn};
use nasnet_reconcile::device::testing::ScriptedDevice;
use nasnet_reconcile::device::{
    Device, DeviceError, DeviceFacts, ErrorClass, MenuPath, Row, RowId, WriteOp, WriteOutcome,
};
use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::routeros::kinds;
use nasnet_reconcile::{ChangeSet, Error};

/// How a device answers the writes of one menu.
#[derive(Clone, Copy)]
enum Answer {
    /// It never answers the read after so many writes.
    SilentAfter(u64),
    /// It refuses and repeats what it was sent.
    RefuseAndRepeat,
    /// It loses the request and says what it was.
    LoseAndRepeat,
}

struct Odd<'a> {
    inner: &'a ScriptedDevice,
    answer: Answer,
    silent: tokio::sync::Notify,
}

impl<'a> Odd<'a> {
    fn new(inner: &'a ScriptedDevice, answer: Answer) -> Self {
        Self { inner, answer, silent: tokio::sync::Notify::new() }
    }
}

#[async_trait]
impl Device for Odd<'_> {
    async fn facts(&self) -> Result<DeviceFacts, DeviceError> {
        self.inner.facts().await
    }

    async fn list(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError> {
        if matches!(self.answer, Answer::SilentAfter(writes) if self.inner.writes() == writes) {
            self.silent.notify_one();
            std::future::pending::<()>().await;
        }
        self.inner.list(menu).await
    }

    async fn get(&self, menu: &MenuPath, id: &RowId) -> Result<Option<Row>, DeviceError> {
        self.inner.get(menu, id).await
    }

    async fn write(&self, op: &WriteOp) -> WriteOutcome {
        match (self.answer, op) {
            (Answer::RefuseAndRepeat, WriteOp::Add { fields, .. }) if fields.contains_key("preshared-key") => {
                let detail = format!("invalid value {} for argument", fields["preshared-key"]);
                WriteOutcome::Rejected { class: ErrorClass::InvalidValue, detail }
            }
            (Answer::LoseAndRepeat, WriteOp::Add { fields, .. }) if fields.contains_key("preshared-key") => {
                WriteOutcome::Unknown { hint: format!("no answer to {fields:?}") }
            }
            _ => self.inner.write(op).await,
        }
    }
}

#[tokio::test]
async fn an_import_never_adopts_the_rows_of_an_open_operation() {
    let world = World::imported().await;
    let key = world.db.next_ulid();
    {
        let odd = Odd::new(&world.device, Answer::SilentAfter(4));
        let set = vpn();
        tokio::select! {
            report = world.engine.apply(&world.router, &odd, &set, key) => panic!("it did not stop: {report:?}"),
            () = odd.silent.notified() => {}
        }
    }
    let world = world.restart().await;
    let refused = world.engine.import(&world.router, &world.device, &menus()).await;
    assert!(matches!(refused, Err(Error::OperationOpen { .. })), "{refused:?}");
    let report = world.engine.recover(&world.router, &world.device).await.unwrap().unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged, "{report:#?}");
    let resources = world.engine.resources(&world.router).await.unwrap();
    assert_eq!(resources.values().filter(|resource| resource.kind == kinds::WIREGUARD.kind()).count(), 1);
    let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
    assert_eq!((report.created, report.created_opaque), (0, 0));
}

#[tokio::test]
async fn what_no_event_can_hold_is_refused_before_the_device_is_touched() {
    let long = "x".repeat(300 << 10);
    let world = World::imported().await;
    let list = |reason: &str, actor: &str, comment: &str| {
        ChangeSet::new(reason, actor).create(
            kinds::INTERFACE_LIST.kind(),
            "WAN",
            [("name", "WAN"), ("comment", comment)],
        )
    };
    for set in [list(&long, "t", "c"), list("r", &long, "c"), list("r", "t", &long)] {
        let writes = world.device.writes();
        let refused = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{:?}", refused.map(|report| report.outcome));
        assert_eq!(world.device.writes(), writes);
    }
    let applied = world.engine.apply(&world.router, &world.device, &list("r", "t", "c"), world.db.next_ulid()).await;
    assert_eq!(applied.unwrap().outcome, OpOutcome::Merged);
}

#[tokio::test]
async fn a_secret_the_device_repeats_is_written_nowhere() {
    for answer in [Answer::RefuseAndRepeat, Answer::LoseAndRepeat] {
        let world = World::imported().await;
        let odd = Odd::new(&world.device, answer);
        let report = world.engine.apply(&world.router, &odd, &vpn(), world.db.next_ulid()).await.unwrap();
        assert_eq!(report.outcome, OpOutcome::RolledBack, "{report:#?}");
        assert!(!format!("{report:?}").contains("canary-psk"), "{report:#?}");
        for event in world.events_of("").await {
            assert!(!event.body.get().contains("canary"), "{}", event.body);
        }
        for (path, bytes) in world.all_bytes() {
            assert!(!bytes.windows(10).any(|window| window == b"canary-psk"), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_value_that_looks_like_a_fingerprint_is_a_value() {
    let world = World::imported().await;
    let set = ChangeSet::new("r", "t").create(
        kinds::INTERFACE_LIST.kind(),
        "WAN",
        [("name", "WAN"), ("comment", "hmac:0123456789")],
    );
    let report = world.engine.apply(&world.router, &world.device, &set, world.db.next_ulid()).await.unwrap();
    assert_eq!(report.outcome, OpOutcome::Merged);
    let resources = world.engine.resources(&world.router).await.unwrap();
    let list = resources.values().find(|resource| resource.name == "WAN").unwrap();
    let record = &list.deployment.as_ref().unwrap().current.as_ref().unwrap().record;
    assert_eq!(record.last_applied.text("comment"), Some("hmac:0123456789"));
    let row = world.row("/interface/list", "name", "WAN").unwrap().id.unwrap();
    world.device.edit(&menu("/interface/list"), &row, "comment", Some("other"));
    let drift = world.engine.detect_drift(&world.router, &world.device).await.unwrap();
    assert!(drift.has_drift(), "{drift}");
}

/// Polls a future so many times; then it is left alone until the rest is asked for.
struct Polled<F> {
    inner: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for Polled<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let polled = self.inner.as_mut().poll(cx).map(Some);
        if polled.is_pending() && self.left == 0 {
            return Poll::Ready(None);
        }
        polled
    }
}

#[tokio::test]
async fn a_key_asked_for_twice_at_once_is_one_operation_wherever_the_second_call_stands() {
    for polls in 1..12 {
        let world = World::imported().await;
        let (set, key) = (vpn(), world.db.next_ulid());
        let second = Box::pin(world.engine.apply(&world.router, &world.device, &set, key));
        let mut second = Polled { inner: second, left: polls };
        if let Some(done) = (&mut second).await {
            assert_eq!(done.unwrap().outcome, OpOutcome::Merged);
            continue;
        }
        let first = match world.engine.apply(&world.router, &world.device, &set, key).await {
            // The one that was begun before holds the router already.
            Err(Error::Lock(_) | Error::OperationOpen { .. }) => {
                assert_eq!(second.inner.await.unwrap().outcome, OpOutcome::Merged);
                continue;
            }
            first => first.unwrap(),
        };
        let again = second.inner.await.unwrap_or_else(|error| panic!("after {polls} polls: {error}"));
        assert_eq!((again.op_id, again.outcome), (first.op_id, OpOutcome::Merged), "after {polls} polls");
    }
}
