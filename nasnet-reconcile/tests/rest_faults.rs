//! What the adapter says when the network or the router misbehaves, and what the router did meanwhile.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::Duration;

use nasnet_reconcile::device::{Device, DeviceError, MenuPath, RawFields, WriteOp, WriteOutcome};
use nasnet_reconcile::routeros::rest::{Password, RestDevice, RestOptions};
use nasnet_reconcile::simulator::{Fault, FaultRule, Sim, SimProfile, SimServer};

/// Far longer than an answer takes, be the machine ever so slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where an answer never comes; longer than one that comes.
const IN_VAIN: Duration = Duration::from_secs(2);

fn bridges() -> MenuPath {
    "/interface/bridge".parse().unwrap()
}

fn add(name: &str) -> WriteOp {
    let fields = RawFields::from([("name".to_owned(), name.to_owned())]);
    WriteOp::Add { menu: bridges(), fields }
}

async fn start() -> SimServer {
    SimServer::start(Sim::new(SimProfile::default()), "127.0.0.1:0".parse().unwrap()).await.unwrap()
}

fn device(server: &SimServer, timeout: Duration) -> RestDevice {
    let mut options = RestOptions::plain("127.0.0.1", server.address().port(), "admin", Password::new(""));
    options.request_timeout = timeout;
    RestDevice::new(options)
}

/// Writes through a fault; returns the outcome, and whether the router kept the row.
async fn write_through(fault: Fault) -> (WriteOutcome, bool) {
    let server = start().await;
    let in_vain = matches!(fault, Fault::NeverAnswer | Fault::DelayReply { .. });
    let device = device(&server, if in_vain { IN_VAIN } else { PATIENCE });
    assert!(device.list(&bridges()).await.unwrap().is_empty(), "the connection is warm");
    server.sim().with(|sim| sim.inject(FaultRule::next(fault).on_method("PUT").on_menu(bridges())));
    let outcome = device.write(&add("b")).await;
    let (kept, logged) = server.sim().with(|sim| {
        assert_eq!(sim.pending_faults(), 0, "the fault happened");
        let kept = sim.edit(|admin| Ok(!admin.rows(&bridges()).is_empty())).unwrap();
        (kept, sim.log().last().cloned().unwrap())
    });
    assert_eq!((logged.committed, logged.fault), (kept, Some(fault.id())));
    assert_eq!(
        device.list(&bridges()).await.unwrap().len(),
        usize::from(kept),
        "the next read works and sees the truth"
    );
    server.shutdown().await;
    (outcome, kept)
}

fn is_unknown(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Unknown { .. })
}

#[tokio::test]
async fn a_lost_reply_is_unknown_and_the_row_is_there() {
    let (outcome, kept) = write_through(Fault::DropAfterCommit).await;
    assert!(is_unknown(&outcome) && kept, "{outcome:?}");
}

#[tokio::test]
async fn a_connection_that_dies_before_the_commit_is_unknown_and_the_row_is_not_there() {
    let (outcome, kept) = write_through(Fault::DropBeforeCommit).await;
    assert!(is_unknown(&outcome) && !kept, "{outcome:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_unknown() {
    for fault in [Fault::CutBody, Fault::TruncatedJson] {
        let (outcome, kept) = write_through(fault).await;
        assert!(is_unknown(&outcome) && kept, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_or_never_is_unknown() {
    for fault in [Fault::NeverAnswer, Fault::DelayReply { by_ms: 60_000 }] {
        let (outcome, kept) = write_through(fault).await;
        assert!(is_unknown(&outcome) && kept, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_page_of_html_is_no_trustworthy_answer() {
    let (outcome, kept) = write_through(Fault::ServiceUnavailable).await;
    assert!(is_unknown(&outcome) && !kept, "{outcome:?}");
}

#[tokio::test]
async fn a_refused_login_is_a_rejection() {
    let (outcome, kept) = write_through(Fault::Unauthorized).await;
    assert!(matches!(outcome, WriteOutcome::Rejected { .. }) && !kept, "{outcome:?}");
}

#[tokio::test]
async fn a_refused_connection_is_not_sent() {
    let mut server = start().await;
    server.refuse_connections().await;
    let device = device(&server, PATIENCE);
    let outcome = device.write(&add("b")).await;
    assert!(matches!(outcome, WriteOutcome::NotSent(DeviceError::Unreachable { .. })), "{outcome:?}");
    assert!(matches!(device.list(&bridges()).await, Err(DeviceError::Unreachable { .. })));
    server.accept_connections().await.unwrap();
    assert!(matches!(device.write(&add("b")).await, WriteOutcome::Done { .. }));
    server.shutdown().await;
}

#[tokio::test]
async fn a_connection_closed_by_the_router_is_replaced() {
    let mut server = start().await;
    let device = device(&server, PATIENCE);
    assert!(device.list(&bridges()).await.unwrap().is_empty());
    server.refuse_connections().await;
    server.accept_connections().await.unwrap();
    assert!(device.list(&bridges()).await.unwrap().is_empty(), "the read goes out on a new connection");
    server.shutdown().await;
}

#[tokio::test]
async fn a_dropped_write_does_not_poison_the_next_request() {
    let server = start().await;
    let device = device(&server, PATIENCE);
    device.list(&bridges()).await.unwrap();
    server.sim().with(|sim| sim.inject(FaultRule::next(Fault::NeverAnswer).on_method("PUT")));
    let write = add("b");
    tokio::select! {
        biased;
        outcome = device.write(&write) => panic!("answered: {outcome:?}"),
        () = committed(&server) => {}
    }
    let rows = device.list(&bridges()).await.unwrap();
    assert_eq!(rows.len(), 1, "the list is the answer to the list, not to the dropped write");
    server.shutdown().await;
}

async fn committed(server: &SimServer) {
    while !server.sim().with(|sim| sim.log().iter().any(|entry| entry.committed)) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_read_through_a_fault_is_an_error_and_never_an_empty_list() {
    let server = start().await;
    let device = device(&server, IN_VAIN);
    server.sim().with(|sim| sim.edit(|admin| admin.add(&bridges(), &[("name", "b")])).map(|_| ())).unwrap();
    for fault in [Fault::CutBody, Fault::TruncatedJson, Fault::ServiceUnavailable, Fault::NeverAnswer] {
        // Twice, because a read that lost its connection is asked again.
        server.sim().with(|sim| sim.inject(FaultRule::next(fault).on_method("GET").times(2)));
        let error = device.list(&bridges()).await.unwrap_err();
        assert!(matches!(error, DeviceError::NoAnswer { .. } | DeviceError::Malformed { .. }), "{fault:?}: {error:?}");
        server.sim().with(Sim::clear_faults);
    }
    assert_eq!(device.list(&bridges()).await.unwrap().len(), 1);
    server.shutdown().await;
}

#[tokio::test]
async fn a_fault_meets_the_request_it_is_scripted_for() {
    let server = start().await;
    let device = device(&server, PATIENCE);
    let pool: MenuPath = "/ip/pool".parse().unwrap();
    server.sim().with(|sim| sim.inject(FaultRule::next(Fault::Unauthorized).on_menu(bridges()).after(1)));
    assert!(device.list(&pool).await.is_ok());
    assert!(device.list(&bridges()).await.is_ok());
    assert!(device.list(&pool).await.is_ok());
    assert!(device.list(&bridges()).await.is_err());
    assert!(device.list(&bridges()).await.is_ok());
    server.shutdown().await;
}
