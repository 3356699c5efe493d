//! How long another process takes to notice: that keys became free, and that its lease was broken.
//!
//! Moments are read from CLOCK_BOOTTIME, which processes of one machine share; a sample is exact to 1 ms.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nasnet_dbmanager::{Clock, DbManager, SystemClock};
use nasnet_locking::{LockFilter, LockManager, LockOptions};

use crate::{Failure, LONG, Row, open, request};

const ROUNDS: usize = 60;
const KEY: &str = "bench/handover";

/// The other process: acquires and waits, or waits for its lease to be broken, as it is told.
pub(crate) async fn child(data: &Path, run: &Path) -> Result<(), Failure> {
    let db = open(data, run).await?;
    let locks = LockManager::open(&db, LockOptions::default()).await?;
    for line in std::io::stdin().lines() {
        let guard = locks.acquire(request(KEY)?.wait(LONG)).await?;
        if line? == "lose" {
            let lost = guard.lost();
            say("held")?;
            lost.await;
            say(&boottime_ms().to_string())?;
            drop(guard);
        } else {
            say(&boottime_ms().to_string())?;
            guard.release().await?;
        }
    }
    Ok(())
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn boottime_ms() -> u64 {
    SystemClock::new().now().boottime_ms
}

pub(crate) async fn measure(db: &DbManager, locks: &LockManager, data: &Path, run: &Path) -> Result<[Row; 2], Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--child")
        .args([data, run])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("a child without stdin")?;
    let mut output = BufReader::new(child.stdout.take().ok_or("a child without stdout")?).lines();
    let mut hear = || -> Result<String, Failure> { Ok(output.next().ok_or("the child has ended")??) };
    let (mut freed, mut lost) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let holder = locks.acquire(request(KEY)?.wait(LONG)).await?;
        writeln!(input, "wait")?;
        while locks.inspect(holder.keys().first()).await?.queue.is_empty() {
            tokio::task::yield_now().await;
        }
        // Not in step with the child's looks.
        tokio::time::sleep(Duration::from_millis(5 + (round as u64 * 7) % 13)).await;
        let began = db.now().boottime_ms;
        holder.release().await?;
        freed.push(Duration::from_millis(hear()?.parse::<u64>()?.saturating_sub(began)));

        writeln!(input, "lose")?;
        hear()?;
        let held = locks.list(&LockFilter::all().key(request(KEY)?.keys.first().clone())).await?;
        let held = held.iter().find(|view| view.ended.is_none()).ok_or("the child holds nothing")?;
        tokio::time::sleep(Duration::from_millis(5 + (round as u64 * 7) % 13)).await;
        let began = db.now().boottime_ms;
        locks.break_lock(held.holder.lease, held.holder.token.ok_or("no token")?, "bench", "measure").await?;
        lost.push(Duration::from_millis(hear()?.parse::<u64>()?.saturating_sub(began)));
    }
    drop(input);
    child.wait()?;
    Ok([
        Row::new("lease, release until a waiter of another process has it", false, freed),
        Row::new("lease, break until the holder in another process knows", false, lost),
    ])
}
