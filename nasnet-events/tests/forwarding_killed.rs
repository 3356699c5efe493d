//! Two processes work on one queue and are killed at any moment: the receiver gets every event once, each stream in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nasnet_dbmanager::{BoxFuture, DbManager, Scope};
use nasnet_events::forward::{Batch, Delivery, Forwarder, Sink, StoreSink};
use nasnet_events::{Error, EventOptions, EventStore, Expected, Query};
use support::watch::consumer;
use support::{event, normal, open_in, options, read, router, stream};
use tokio::runtime::Runtime;
use ulid::Ulid;

const CHILD: &str = "NASNET_EVENTS_FORWARD_CHILD";
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
    let Ok(task) = std::env::var(CHILD) else { return };
    let mut words = task.split(' ');
    let (role, from, to) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let stop = match role {
        "claim" => Stop::BeforeDelivery,
        "deliver" => Stop::AfterDelivery,
        _ => Stop::Never,
    };
    // The pipe ends with the parent, even when that is killed.
    std::thread::spawn(|| {
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(1);
    });
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

/// A child that never outlives the test, however it ends.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(dirs: &Dirs, role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{role} {} {}", dirs.from.display(), dirs.to.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads on until it says this.
    fn until(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the child has ended before {word:?}");
            if line.starts_with(word) {
                return line.trim().to_owned();
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
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
    let mut claims = Process::start(&dirs, "claim");
    claims.until("claimed");
    let mut stands_by = Process::start(&dirs, "forward");
    stands_by.until("busy");
    assert_eq!(runtime.block_on(read(&target, Query::scope(Scope::System))), []);
    claims.kill();
    stands_by.until("sent 30");
    runtime.block_on(arrived(&store, &target, 30));
    stands_by.kill();

    let mut delivers = Process::start(&dirs, "deliver");
    runtime.block_on(append(&manager, &store, 12));
    delivers.until("arrived");
    let mut stands_by = Process::start(&dirs, "forward");
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
    let mut working = [Process::start(&dirs, "forward"), Process::start(&dirs, "forward")];
    let mut count = 0;
    for kill in 0..KILLS {
        runtime.block_on(append(&manager, &store, 12));
        count += 12;
        // Whichever it is that works now: some of it has arrived, and some has not.
        runtime.block_on(at_least(&target, count + kill % 5 - 12));
        let killed = std::mem::replace(&mut working[kill % 2], Process::start(&dirs, "forward"));
        killed.kill();
    }
    runtime.block_on(arrived(&store, &target, count));
}
