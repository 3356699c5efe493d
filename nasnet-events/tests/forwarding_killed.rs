//! Two processes work on one queue and are killed at any moment: the receiver gets every event once, each stream in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nasnet_dbmanager::{BoxFuture, DbManager, Scope};
use nasnet_events::forward::{Batch, Delivery, Forwarder, Sink, StoreSink};
use nasnet_events::{Error, EventOptions, EventStore, Expected, Query};
use support::child::{self, Child};
use support::watch::consumer;
use support::{event, normal, open_in, options, read, router, stream};
use tokio::runtime::Runtime;
use ulid::Ulid;

/// Far longer than it takes.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
const STREAMS: [&str; 3] = ["a", "b", "c"];

async fn open(dir: &Path) -> (DbManager, EventStore) {
    open_in(options(dir), EventOptions::default()).await
}

/// Where a delivery stops for ever, so that the process can be killed there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Never,
    BeforeDelivery,
    AfterDelivery,
}

struct Stopping {
    sink: StoreSink,
    stop: Stop,
}

impl Sink for Stopping {
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        Box::pin(async move {
            if self.stop == Stop::BeforeDelivery {
                println!("\nclaimed");
                std::future::pending::<()>().await;
            }
            let delivered = self.sink.deliver(batch).await;
            if self.stop == Stop::AfterDelivery {
                println!("\narrived");
                std::future::pending::<()>().await;
            }
            delivered
        })
    }
}

/// Runs as the child: forwards for ever, and says what it is at.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(task) = child::task() else { return };
    let mut words = task.split(' ');
    let (role, from, to) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let stop = match role {
        "claim" => Stop::BeforeDelivery,
        "deliver" => Stop::AfterDelivery,
        _ => Stop::Never,
    };
    runtime().block_on(async {
        let ((_source, store), (_target, target)) = (open(Path::new(from)).await, open(Path::new(to)).await);
        let sink = Stopping { sink: StoreSink::new(target, Scope::System), stop };
        let forwarder = Forwarder::new(store, consumer("stick"), sink).batch_events(5);
        loop {
            let mut forwarding = match forwarder.open().await {
                Ok(forwarding) => forwarding,
                Err(Error::ConsumerBusy { .. }) => {
                    println!("\nbusy");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            loop {
                let round = forwarding.round().await.unwrap();
                println!("\nsent {}", round.delivered);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn start(dirs: &Dirs, role: &str) -> Child {
    Child::spawn(format_args!("{role} {} {}", dirs.from.display(), dirs.to.display()))
}

struct Dirs {
    _base: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Dirs {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let (from, to) = (base.path().join("from"), base.path().join("to"));
        for dir in [&from, &to] {
            std::fs::create_dir(dir).unwrap();
        }
        Self { _base: base, from, to }
    }
}

/// Every second one is durable before it is in the hot tier.
async fn append(manager: &DbManager, store: &EventStore, count: usize) {
    for number in 0..count {
        let event = if number % 2 == 0 { normal(manager) } else { event(manager, "config.applied") };
        let name = stream(STREAMS[number % STREAMS.len()]);
        store.append(&router("r1"), &name, Expected::Any, vec![event]).await.unwrap();
    }
}

async fn of_stream(store: &EventStore, scope: Scope, name: &str) -> Vec<Ulid> {
    let found = read(store, Query::scope(scope).stream(stream(name))).await;
    assert!(found.iter().map(|event| event.version).eq(1..=found.len() as u64), "{name}");
    found.into_iter().map(|event| event.id).collect()
}

/// Waits until so much has arrived. What is lost fails here, and keeps nobody waiting.
async fn at_least(target: &EventStore, count: usize) {
    let waits = async {
        loop {
            let arrived = read(target, Query::scope(Scope::System)).await.len();
            if arrived >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let arrived = tokio::time::timeout(ARRIVES_WITHIN, waits).await;
    assert!(arrived.is_ok(), "fewer than {count} events arrived in {ARRIVES_WITHIN:?}");
}

/// Waits until as much has arrived as was sent, and compares.
async fn arrived(store: &EventStore, target: &EventStore, count: usize) {
    at_least(target, count).await;
    let mut all = 0;
    for name in STREAMS {
        let sent = of_stream(store, router("r1"), name).await;
        all += sent.len();
        assert!(of_stream(target, Scope::System, &format!("r1/{name}")).await == sent, "the order of {name}");
    }
    assert_eq!((all, read(target, Query::scope(Scope::System)).await.len()), (count, count), "each once");
}

#[test]
fn a_process_killed_between_claim_and_delivery_or_note_is_followed_by_another_that_sends_the_same() {
    let dirs = Dirs::new();
    let runtime = runtime();
    let ((manager, store), (_target_manager, target)) =
        runtime.block_on(async { (open(&dirs.from).await, open(&dirs.to).await) });
    runtime.block_on(append(&manager, &store, 30));
    let mut claims = start(&dirs, "claim");
    claims.until("claimed");
    let mut stands_by = start(&dirs, "forward");
    stands_by.until("busy");
    assert_eq!(runtime.block_on(read(&target, Query::scope(Scope::System))), []);
    claims.kill();
    stands_by.until("sent 30");
    runtime.block_on(arrived(&store, &target, 30));
    stands_by.kill();

    let mut delivers = start(&dirs, "deliver");
    runtime.block_on(append(&manager, &store, 12));
    delivers.until("arrived");
    let mut stands_by = start(&dirs, "forward");
    stands_by.until("busy");
    delivers.kill();
    // Nobody noted that the first batch had arrived: it comes again.
    stands_by.until("sent 12");
    runtime.block_on(arrived(&store, &target, 42));
}

#[test]
fn two_processes_that_are_killed_in_turn_lose_and_reorder_nothing() {
    const KILLS: usize = 10;
    let dirs = Dirs::new();
    let runtime = runtime();
    let ((manager, store), (_target_manager, target)) =
        runtime.block_on(async { (open(&dirs.from).await, open(&dirs.to).await) });
    let mut working = [start(&dirs, "forward"), start(&dirs, "forward")];
    let mut count = 0;
    for kill in 0..KILLS {
        runtime.block_on(append(&manager, &store, 12));
        count += 12;
        // Whichever it is that works now: some of it has arrived, and some has not.
        runtime.block_on(at_least(&target, count + kill % 5 - 12));
        let mut killed = std::mem::replace(&mut working[kill % 2], start(&dirs, "forward"));
        killed.kill();
    }
    runtime.block_on(arrived(&store, &target, count));
}
