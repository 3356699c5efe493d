//! The fence between two processes, what a lost connection does, and a clock that is stepped: on a PostgreSQL server.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::backend::Backend;
use common::postgres::{Postgres, write};
use common::{PATIENCE, exclusive, key, keys, until};
use nasnet_locking::{Error, FencingToken, LeaseGuard, LockFilter, LostReason, Seen, fence};
use rustix::process::{Pid, Signal, WaitOptions};
use sqlx::{Connection, PgConnection};

const CHILD: &str = "NASNET_LOCKING_TEST_NODE";
const TTL: Duration = Duration::from_secs(300);

/// Another node: a second process of this test binary that answers each line of its input with one line.
struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    async fn start(store: &Postgres) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture", "--test-threads=1"])
            .env(CHILD, store.schema().await)
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
            if let Some((_, answer)) = line.trim_end().split_once("node: ") {
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

/// The other process: does what it is told until `end`. `begin` writes a row before the fence, `finish` goes on after it.
#[test]
fn node_process() {
    let Ok(schema) = std::env::var(CHILD) else { return };
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let store = Postgres::in_schema(&schema);
        let locks = store.open().await;
        let mut conn = store.connect().await;
        let mut guard: Option<LeaseGuard> = None;
        for line in std::io::stdin().lines() {
            let answer = match line.unwrap().as_str() {
                "acquire" => {
                    let granted = locks.acquire(exclusive("router/r1", "node").ttl(TTL)).await.unwrap();
                    guard.insert(granted).token().to_string()
                }
                "begin" => {
                    insert(&mut conn, "BEGIN").await;
                    "begun".to_owned()
                }
                "finish" => match guard.as_ref().unwrap().fence_postgres(&mut conn).await {
                    Ok(()) => {
                        insert(&mut conn, "COMMIT").await;
                        "written".to_owned()
                    }
                    Err(Error::Fenced { seen, .. }) => {
                        sqlx::query("ROLLBACK").execute(&mut conn).await.unwrap();
                        format!("fenced: {seen}")
                    }
                    Err(other) => format!("failed: {other}"),
                },
                _ => break,
            };
            println!("node: {answer}");
        }
    });
}

/// Writes a row in the transaction this statement begins or ends.
async fn insert(conn: &mut PgConnection, statement: &'static str) {
    let row = "INSERT INTO guarded (who, token) VALUES ('node', 1)";
    for sql in if statement == "BEGIN" { [statement, row] } else { [row, statement] } {
        sqlx::query(sql).execute(&mut *conn).await.unwrap();
    }
}

async fn who_wrote(store: &Postgres) -> Vec<String> {
    store.written().await.into_iter().map(|(who, _)| who).collect()
}

#[tokio::test]
async fn a_node_resumed_after_its_lease_is_fenced_in_the_middle_of_its_transaction() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    let mut node = Node::start(&store).await;
    node.say("acquire");
    let outlived: u64 = node.hear().parse().unwrap();
    node.say("begin");
    assert_eq!(node.hear(), "begun");
    node.say("finish");
    assert_eq!(node.hear(), "written", "the lease is good while it lasts");

    for successor_writes in [false, true] {
        node.say("begin");
        assert_eq!(node.hear(), "begun");
        node.pause();
        if !successor_writes {
            assert!(matches!(locks.acquire(exclusive("router/r1", "other")).await, Err(Error::Held { .. })));
            store.pass(TTL).await;
        }
        let guard = locks.acquire(exclusive("router/r1", "other")).await.unwrap();
        assert!(guard.token().get() > outlived);
        if successor_writes {
            write(&mut store.connect().await, &guard.write_right(), "other").await.unwrap();
        }
        node.say("finish");
        node.signal(Signal::CONT);
        let answer = node.hear();
        assert!(answer.starts_with("fenced: "), "{answer}");
        assert_eq!(answer.contains(&format!("token {}", guard.token())), successor_writes, "{answer}");
        guard.release().await.unwrap();
    }
    assert_eq!(who_wrote(&store).await, ["node", "node", "other"]);
    node.end();
}

#[tokio::test]
async fn a_killed_node_loses_its_lease_at_once() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    let mut node = Node::start(&store).await;
    node.say("acquire");
    let token: u64 = node.hear().parse().unwrap();
    let answer = locks.acquire(exclusive("router/r1/resource/a", "other")).await;
    assert!(matches!(answer, Err(Error::Held { holder, .. }) if holder.info.actor == "node"));
    node.child.kill().unwrap();
    node.child.wait().unwrap();
    // The server hears of the death through the socket: far sooner than the lease runs out.
    let guard = locks.acquire(exclusive("router/r1", "other").wait(PATIENCE)).await.unwrap();
    assert!(guard.token().get() > token);
}

#[tokio::test]
async fn a_lost_connection_ends_the_session_and_the_next_request_begins_another() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    let guard = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    let (first, lost) = (locks.session(), tokio::spawn(guard.lost()));
    store.kill(&locks).await;
    assert_eq!(lost.await.unwrap(), LostReason::SessionEnded);
    let right = guard.write_right();
    let answer = write(&mut store.connect().await, &right, "ann").await;
    assert!(
        matches!(&answer, Err(Error::Fenced { seen: Seen::LeaseLost(LostReason::SessionEnded), .. })),
        "{answer:?}"
    );
    assert!(matches!(guard.renew().await, Err(Error::Lost { why: LostReason::SessionEnded, .. })));
    let next = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    assert!(next.token() > guard.token() && locks.session() != first);
    write(&mut store.connect().await, &next.write_right(), "next").await.unwrap();
}

#[tokio::test]
async fn every_connection_may_break_while_nobody_uses_it() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    locks.acquire(exclusive("a", "ann")).await.unwrap().release().await.unwrap();
    assert!(locks.list(&LockFilter::all()).await.unwrap().is_empty());
    let mut conn = store.connect().await;
    // What a restart of the server does to this node.
    let ended: Vec<bool> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity
         WHERE pid <> pg_backend_pid() AND application_name = $1",
    )
    .bind(store.schema().await)
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let ended = ended.into_iter().filter(|ended| *ended).count();
    assert!(ended >= 3, "the session, the changes and the looks: {ended}");
    let guard = locks.acquire(exclusive("a", "ann")).await.unwrap();
    assert_eq!(locks.list(&LockFilter::all()).await.unwrap()[0].holder.lease, guard.id());
}

#[tokio::test]
async fn stepping_the_clock_of_the_server_lets_no_stale_write_pass() {
    let Some(store) = Postgres::new().await else { return };
    let (one, other) = (store.open().await, store.open().await);
    let mut conn = store.connect().await;
    let mut rights = Vec::new();
    // Forward by a century: every lease is over. Back to 1970: the lease of the future is over as soon as it is broken.
    for step_ms in [3_155_760_000_000, -4_000_000_000_000, 60_000] {
        let guard = one.acquire(exclusive("router/r1", "one")).await.unwrap();
        rights.push(guard.write_right());
        store.step_clock(step_ms).await;
        match other.acquire(exclusive("router/r1", "other")).await {
            Ok(successor) => {
                write(&mut conn, &successor.write_right(), "other").await.unwrap();
                let late = write(&mut conn, &guard.write_right(), "late").await;
                assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
                successor.release().await.unwrap();
            }
            Err(Error::Held { .. }) => write(&mut conn, &guard.write_right(), "still").await.unwrap(),
            Err(error) => panic!("{error}"),
        }
        let _ = guard.release().await;
    }
    let tokens: Vec<i64> = store.written().await.into_iter().map(|(_, token)| token).collect();
    assert_eq!(tokens.len(), 3);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    for right in rights {
        assert!(matches!(write(&mut conn, &right, "stale").await, Err(Error::Fenced { .. })));
    }
}

#[tokio::test]
async fn an_overlapping_check_waits_for_the_transaction_and_then_sees_its_token() {
    let Some(store) = Postgres::new().await else { return };
    let token = |number| FencingToken::new(number).unwrap();
    let (mut early, mut late, mut beside) = (store.connect().await, store.connect().await, store.connect().await);
    let mut first = early.begin().await.unwrap();
    fence::postgres::check(&mut first, &keys(&["router/r1"]), token(9)).await.unwrap();
    // Beside it nobody waits.
    let mut free = beside.begin().await.unwrap();
    fence::postgres::check(&mut free, &keys(&["router/r2", "router/r10/a"]), token(3)).await.unwrap();
    free.commit().await.unwrap();

    let stale = tokio::spawn(async move {
        let mut second = late.begin().await.unwrap();
        fence::postgres::check(&mut second, &keys(&["router/r1/resource/a"]), token(5)).await
    });
    let mut watch = store.connect().await;
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND relation IS NULL
                 AND pid IN (SELECT pid FROM pg_stat_activity WHERE query LIKE '%unnest($1::text[], $2::bool[])%')";
    until("the other check waits", async || {
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watch).await.unwrap() > 0
    })
    .await;
    assert!(!stale.is_finished());
    first.commit().await.unwrap();
    match stale.await.unwrap() {
        Err(Error::Fenced { key, seen: Seen::Token(seen), .. }) => {
            assert_eq!((key.as_str(), seen), ("router/r1", token(9)));
        }
        answer => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn a_fence_that_would_not_hold_is_refused() {
    let Some(store) = Postgres::new().await else { return };
    let (mut conn, set) = (store.connect().await, keys(&["router/r1"]));
    let token = FencingToken::new(7).unwrap();
    let bare = fence::postgres::check(&mut conn, &set, token).await;
    assert!(matches!(&bare, Err(Error::Postgres { .. })), "locks outside a transaction are gone at once: {bare:?}");
    for (begin, level) in [
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "repeatable read"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "serializable"),
    ] {
        sqlx::query(begin).execute(&mut conn).await.unwrap();
        let answer = fence::postgres::check(&mut conn, &set, token).await;
        assert!(matches!(&answer, Err(Error::Isolation { level: found }) if found == level), "{answer:?}");
        sqlx::query("ROLLBACK").execute(&mut conn).await.unwrap();
    }
    assert_eq!(fence::postgres::seen(&mut conn, set.first()).await.unwrap(), None);
}

#[tokio::test]
async fn an_equal_token_changes_no_row_and_only_the_keys_are_raised() {
    let Some(store) = Postgres::new().await else { return };
    let mut conn = store.connect().await;
    let set = keys(&["router/r1/resource/a", "router/r1/resource/b"]);
    let versions = "SELECT key, xmin::text || '/' || xmax::text FROM nasnet_fence ORDER BY key";
    let mut seen: Vec<Vec<(String, String)>> = Vec::new();
    for _ in 0..2 {
        let mut step = conn.begin().await.unwrap();
        fence::postgres::check(&mut step, &set, FencingToken::new(3).unwrap()).await.unwrap();
        step.commit().await.unwrap();
        seen.push(sqlx::query_as(versions).fetch_all(&mut conn).await.unwrap());
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].len(), 2);
    assert_eq!(fence::postgres::seen(&mut conn, &key("router/r1")).await.unwrap(), None);
}

#[tokio::test]
async fn migrations_run_once_go_back_and_refuse_a_newer_version() {
    let Some(store) = Postgres::new().await else { return };
    let mut conn = store.connect().await;
    fence::postgres::create(&mut conn).await.unwrap();
    for down in [
        include_str!("../migrations/postgres/0002_fence.down.sql"),
        include_str!("../migrations/postgres/0001_leases.down.sql"),
        "DROP TABLE nasnet_lock_migration",
    ] {
        sqlx::raw_sql(down).execute(&mut conn).await.unwrap();
    }
    let (one, two, three) = tokio::join!(store.open(), store.open(), store.open());
    for (locks, path) in [(one, "a"), (two, "b"), (three, "c")] {
        assert!(locks.acquire(exclusive(path, "ann")).await.is_ok());
    }
    let newer = "INSERT INTO nasnet_lock_migration (version, name) VALUES (1000, 'from the future')";
    sqlx::query(newer).execute(&mut conn).await.unwrap();
    let answer = nasnet_locking::LockManager::open_postgres(&store.connect, Default::default()).await;
    assert!(matches!(answer, Err(Error::NewerSchema { found: 1_000, .. })), "{answer:?}");
}

#[tokio::test]
async fn who_broke_what_outlasts_the_lease() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    let guard = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    locks.break_lock(guard.id(), guard.token(), "ops", "maintenance").await.unwrap();
    locks.shutdown().await.unwrap();
    let rows: Vec<(String, String, String, Vec<String>)> =
        sqlx::query_as("SELECT holder, broken_by, reason, keys FROM nasnet_lock_break")
            .fetch_all(&mut store.connect().await)
            .await
            .unwrap();
    assert_eq!(rows, [("ann".into(), "ops".into(), "maintenance".into(), vec!["router/r1".into()])]);
}

#[tokio::test]
async fn a_node_paused_while_it_changes_the_table_is_cut_off() {
    let Some(store) = Postgres::new().await else { return };
    let locks = store.open().await;
    let mut node = Node::start(&store).await;
    let (mut blocker, mut watch) = (store.connect().await, store.connect().await);
    // The node is to stand still in the middle of its transaction: it waits for a table, and is paused before it gets it.
    let mut block = blocker.begin().await.unwrap();
    sqlx::query("LOCK TABLE nasnet_lock_lease IN ACCESS EXCLUSIVE MODE").execute(&mut *block).await.unwrap();
    node.say("acquire");
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'nasnet_lock_lease'::regclass";
    until("the node waits for the table", async || {
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watch).await.unwrap() > 0
    })
    .await;
    node.pause();
    block.rollback().await.unwrap();
    // It holds what keeps all others off, until the server has had enough of it.
    let guard = locks.acquire(exclusive("elsewhere", "other")).await.unwrap();
    assert!(locks.inspect(&key("router/r1")).await.unwrap().leases.is_empty());
    guard.release().await.unwrap();
    node.child.kill().unwrap();
    node.child.wait().unwrap();
}
