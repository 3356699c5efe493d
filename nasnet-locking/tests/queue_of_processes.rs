//! The queue and lost leases between real processes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{exclusive, key, manager, open, options, until};
use nasnet_locking::{LockFilter, LockManager};

const CHILD: &str = "NASNET_LOCKING_QUEUE_CHILD";
const LONG: Duration = Duration::from_secs(600);
const KEY: &str = "queue";

/// A process of its own; it ends with the test, however that ends.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(data: &Path, run: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{}\n{}", data.display(), run.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut process = Self { child, input, output };
        assert_eq!(process.hear(), "ready");
        process
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Returns the next answer, past what the test harness of the child prints.
    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the child has ended");
            if let Some((_, answer)) = line.trim_end().split_once("child: ") {
                return answer.to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: `queue` acquires, tells the token and releases; `hold` acquires and tells how it lost the lease.
#[test]
fn child_process() {
    let Ok(place) = std::env::var(CHILD) else { return };
    let (data, run) = place.split_once('\n').unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let db = open(options(Path::new(data), Path::new(run))).await;
        let locks = manager(&db).await;
        println!("\nchild: ready");
        for line in std::io::stdin().lines() {
            let guard = locks.acquire(exclusive(KEY, "child").wait(LONG)).await.unwrap();
            println!("child: {}", guard.token());
            if line.unwrap() == "hold" {
                println!("child: lost, {}", guard.lost().await);
            } else {
                guard.release().await.unwrap();
            }
        }
    });
}

async fn queued(locks: &LockManager) -> usize {
    locks.inspect(&key(KEY)).await.unwrap().queue.len()
}

#[tokio::test]
async fn processes_are_served_in_the_order_they_queued_up() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let locks = manager(&db).await;
    let mut processes: Vec<Process> = (0..3).map(|_| Process::start(data.path(), run.path())).collect();
    for first in [0, 2, 1] {
        let holder = locks.acquire(exclusive(KEY, "parent").wait(LONG)).await.unwrap();
        let order: Vec<usize> = (0..3).map(|step| (first + step) % 3).collect();
        for (ahead, process) in order.iter().enumerate() {
            processes[*process].say("queue");
            until("the process is in the queue", async || queued(&locks).await == ahead + 1).await;
        }
        let held = holder.token().get();
        holder.release().await.unwrap();
        let tokens: Vec<u64> = order.iter().map(|process| processes[*process].hear().parse().unwrap()).collect();
        assert!(held < tokens[0] && tokens.is_sorted(), "{order:?} were served as {tokens:?} after {held}");
    }
}

#[tokio::test]
async fn a_killed_waiter_holds_nobody_up() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let locks = manager(&db).await;
    let holder = locks.acquire(exclusive(KEY, "parent")).await.unwrap();
    let (mut first, mut second) = (Process::start(data.path(), run.path()), Process::start(data.path(), run.path()));
    first.say("queue");
    until("the first is in the queue", async || queued(&locks).await == 1).await;
    second.say("queue");
    until("the second is in the queue", async || queued(&locks).await == 2).await;
    drop(first);
    holder.release().await.unwrap();
    assert!(second.hear().parse::<u64>().is_ok());
}

#[tokio::test]
async fn a_holder_in_another_process_is_told_that_its_lease_was_broken() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let locks = manager(&db).await;
    let mut holder = Process::start(data.path(), run.path());
    holder.say("hold");
    let token: u64 = holder.hear().parse().unwrap();
    let seen = locks.list(&LockFilter::all()).await.unwrap().remove(0).holder;
    assert_eq!(seen.token.unwrap().get(), token);
    locks.break_lock(seen.lease, seen.token.unwrap(), "ops", "stuck").await.unwrap();
    assert_eq!(holder.hear(), "lost, broken by ops: stuck");
    let next = locks.acquire(exclusive(KEY, "parent")).await.unwrap();
    assert!(next.token().get() > token + 1, "a break skips a token");
}
