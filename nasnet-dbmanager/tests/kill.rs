//! A process killed in the middle of writing loses nothing it was told is written.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{CAUSE, all, id, options, put_in};
use nasnet_dbmanager::{DbManager, Error, KeyOutcome, NewRouter};
use ulid::Ulid;

/// Names the directory the child writes to; its presence makes this test the child.
const CHILD_DIR: &str = "NASNET_KILL_TEST_DIR";

/// Writes and waits until it is killed, telling each number and key before and after its commit.
async fn write_for_ever(root: PathBuf) {
    let manager = DbManager::open(options(&root)).await.unwrap();
    match manager.create_router(NewRouter::new(id("home"))).await {
        Ok(_) | Err(Error::RouterExists { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let router = manager.router(&id("home")).await.unwrap();
    let start = all(&router).await.last().map_or(0, |(k, _)| k + 1);
    // No more than the parent may be slow to hear of: the keys of all lives together are remembered.
    for base in (start..start + 200).step_by(4) {
        let writes = (base..base + 4).map(|k| {
            let (router, key) = (router.clone(), manager.next_ulid());
            async move {
                say(&format!("try {k} {key}"));
                let done: Result<(), Error> =
                    router.write_keyed(CAUSE, key, move |conn| Box::pin(put_in(conn, k, k * 2))).await;
                done.unwrap();
                say(&format!("done {k} {key}"));
            }
        });
        futures_util::future::join_all(writes).await;
    }
    std::future::pending::<()>().await;
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

#[test]
fn everything_acknowledged_is_there_after_a_kill() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD_DIR) {
        runtime().block_on(write_for_ever(root.into()));
    }
    let dirs = common::Dirs::new();
    let mut tried = BTreeMap::new();
    let mut done = BTreeMap::new();
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["everything_acknowledged_is_there_after_a_kill", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dirs.root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = done.len() + 40 + round * 17;
        for line in lines {
            // The pipe may end in the middle of a line.
            let Ok(line) = line else { break };
            let words: Vec<_> = line.split(' ').collect();
            // The test harness of the child begins the first line.
            let [.., verb, k, key] = words[..] else { continue };
            let (Ok(k), Ok(key)) = (k.parse::<i64>(), key.parse::<Ulid>()) else { continue };
            match verb {
                "try" => tried.insert(key, k),
                "done" => done.insert(key, k),
                _ => continue,
            };
            if done.len() >= enough {
                child.kill().ok();
            }
        }
        child.wait().unwrap();

        runtime().block_on(async {
            let manager = DbManager::open(options(dirs.root())).await.unwrap();
            let router = manager.router(&id("home")).await.unwrap();
            let rows: BTreeMap<i64, i64> = all(&router).await.into_iter().collect();
            for k in done.values() {
                assert_eq!(rows.get(k), Some(&(k * 2)), "acknowledged and lost in round {round}");
            }
            // The keys tell the truth about every write, answered or not: they account for exactly the rows there are.
            let mut committed = std::collections::BTreeSet::new();
            for (key, k) in &tried {
                match router.outcome(*key).await.unwrap() {
                    KeyOutcome::Committed => assert!(committed.insert(*k), "{k} committed twice"),
                    KeyOutcome::Absent => assert!(!done.contains_key(key), "{k} acknowledged and absent by key"),
                    KeyOutcome::Forgotten => panic!("{k} forgotten too early"),
                }
            }
            assert!(rows.keys().eq(committed.iter()), "rows {rows:?}, committed keys {committed:?}");
            manager.shutdown().await.unwrap();
        });
    }
    assert!(done.len() >= 160, "the children did not write: {}", done.len());
}
