//! A holder paused past its lease by SIGSTOP and resumed in the middle of its work, in another process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, exclusive, manager, open, options, r1, soon};
use nasnet_dbmanager::{Cause, Database};
use nasnet_locking::{Error, LeaseGuard};
use rustix::process::{Pid, Signal, WaitOptions};

const CAUSE: Cause = Cause::new("test");
const CHILD: &str = "NASNET_LOCKING_TEST_CHILD";
/// Long enough to write under, short enough to be waited out.
const SHORT: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(300);

/// A second process of this test binary. It answers each line of its input with one line.
struct Holder {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Holder {
    fn start(data: &Path, run: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{}\n{}", data.display(), run.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
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

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Stops the child and returns once the kernel says it is stopped.
    fn pause(&self) {
        self.signal(Signal::STOP);
        let status = rustix::process::waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(status.is_some_and(|(_, status)| status.stopped()));
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    fn end(mut self) {
        self.say("end");
        assert!(self.child.wait().unwrap().success());
    }
}

/// The other process: does what it is told until `end`.
#[test]
fn child_process() {
    let Ok(place) = std::env::var(CHILD) else { return };
    let (data, run) = place.split_once('\n').unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let db = open(options(Path::new(data), Path::new(run))).await;
        let locks = manager(&db).await;
        let router = db.router(&r1()).await.unwrap();
        let mut guard: Option<LeaseGuard> = None;
        for line in std::io::stdin().lines() {
            let answer = match line.unwrap().as_str() {
                command @ ("acquire short" | "acquire long") => {
                    let ttl = if command == "acquire short" { SHORT } else { LONG };
                    let granted = locks.acquire(exclusive("router/r1", "child").ttl(ttl)).await.unwrap();
                    guard.insert(granted).token().to_string()
                }
                "write" => match write(&router, guard.as_ref().unwrap(), "child").await {
                    Ok(()) => "written".to_owned(),
                    Err(Error::Fenced { .. }) => "fenced".to_owned(),
                    Err(other) => format!("failed: {other}"),
                },
                _ => break,
            };
            println!("child: {answer}");
        }
    });
}

/// Writes one row before the fence and one after it, all in one transaction.
async fn write(router: &Database, guard: &LeaseGuard, who: &'static str) -> Result<(), Error> {
    let right = guard.write_right();
    router
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                let insert = "INSERT INTO guarded (who, token) VALUES (?1, ?2)";
                let token = i64::try_from(right.token().get()).unwrap();
                let fail = |source: sqlx::Error| Error::Db(source.into());
                sqlx::query(insert).bind(who).bind(token).execute(&mut *conn).await.map_err(fail)?;
                right.check(conn).await?;
                sqlx::query(insert).bind(who).bind(token).execute(&mut *conn).await.map_err(fail)?;
                Ok(())
            })
        })
        .await
}

async fn guarded(router: &Database) -> Vec<String> {
    router
        .read(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query_scalar("SELECT who FROM guarded ORDER BY rowid")
                    .fetch_all(conn)
                    .await
                    .map_err(|source| Error::Db(source.into()))
            })
        })
        .await
        .unwrap()
}

async fn create_guarded(router: &Database) {
    router
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("CREATE TABLE guarded (who TEXT NOT NULL, token INTEGER NOT NULL) STRICT")
                    .execute(conn)
                    .await
                    .map_err(|source| Error::Db(source.into()))?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_holder_resumed_after_its_lease_is_fenced_in_the_middle_of_its_write() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let router = db.router(&r1()).await.unwrap();
    create_guarded(&router).await;
    let locks = manager(&db).await;

    let mut holder = Holder::start(data.path(), run.path());
    // The lease is good while it lasts, which on a busy machine may be too short a time.
    let start = Instant::now();
    let outlived: u64 = loop {
        holder.say("acquire short");
        let token = holder.hear().parse().unwrap();
        holder.say("write");
        let answer = holder.hear();
        if answer == "written" {
            break token;
        }
        assert!(answer == "fenced" && start.elapsed() < PATIENCE, "{answer}");
    };

    holder.pause();
    let guard = soon(&locks, "router/r1", "parent").await;
    assert!(guard.token().get() > outlived);
    write(&router, &guard, "parent").await.unwrap();
    holder.say("write");
    holder.signal(Signal::CONT);
    assert_eq!(holder.hear(), "fenced");

    assert_eq!(guarded(&router).await, ["child", "child", "parent", "parent"]);
    holder.end();
}

#[tokio::test]
async fn a_resumed_holder_is_fenced_even_before_its_successor_has_written() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let router = db.router(&r1()).await.unwrap();
    create_guarded(&router).await;
    let locks = manager(&db).await;

    let mut holder = Holder::start(data.path(), run.path());
    holder.say("acquire short");
    holder.hear();
    holder.pause();
    let _guard = soon(&locks, "router/r1", "parent").await;
    holder.say("write");
    holder.signal(Signal::CONT);
    assert_eq!(holder.hear(), "fenced");
    assert!(guarded(&router).await.is_empty());
    holder.end();
}

#[tokio::test]
async fn a_killed_process_loses_its_lease_at_once() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = open(options(data.path(), run.path())).await;
    let locks = manager(&db).await;
    let mut other = Holder::start(data.path(), run.path());
    other.say("acquire long");
    let token: u64 = other.hear().parse().unwrap();
    assert!(matches!(
        locks.acquire(exclusive("router/r1/resource/a", "parent")).await,
        Err(Error::Held { holder, .. }) if holder.info.actor == "child"
    ));
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    // One attempt, far inside the time to live of the lease.
    let guard = locks.acquire(exclusive("router/r1", "parent")).await.unwrap();
    assert!(guard.token().get() > token);
}
