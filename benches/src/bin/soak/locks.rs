//! Campaign `locks`: no stale write is committed, whatever happens to the processes that hold leases.
//!
//! Four processes of 32 tasks each take leases on overlapping keys of one data directory and write under them. The
//! campaign stops holders (SIGSTOP) until their leases have run out, kills and restarts processes, lets their wall clocks
//! jump, and between two lives empties the run directory, as a reboot does.
//!
//! A *stale write* is a commit with a lower token after one with a higher token on the same key, above or below it, or one
//! whose lease was already lost when its transaction began; the rows in the router database tell both.

#[path = "locks/worker.rs"]
pub(crate) mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Cause, SystemClock};
use nasnet_locking::{LockFilter, LockKey, LockManager, LockOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::{Controls, Failure, Found, Turn};
use worker::{Line, Mode, Tally};

const PROCESSES: usize = 4;
const LIFE: Duration = Duration::from_secs(6);
const CAUSE: Cause = Cause::new("soak-locks-check");
/// Lives of a control: it cheats in a race that each life runs many times, and on a busy machine seldom wins. The first one
/// that is caught is the last.
const CONTROL_LIVES: u64 = 40;

/// Tells whether the check catches programs that do not fence, or not where it counts.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    let mut controls = Controls::new();
    for (name, mode) in [("unfenced", Mode::Unfenced), ("fenced before the transaction", Mode::FencedBefore)] {
        let mut caught = false;
        for life in 0..CONTROL_LIVES {
            let place = Place::new(None)?;
            let mut random = Random::new(seed.wrapping_add(life));
            let mut case = Found::default();
            live(&place, &mut random, mode, Duration::from_secs(3), &mut case)?;
            check_rows(&place, &mut case)?;
            caught = case.counts.get("stale_writes_committed").is_some_and(|count| *count > 0);
            if caught {
                break;
            }
        }
        controls.push((name, caught));
    }
    Ok(controls)
}

/// Runs one data directory through two lives, with an empty run directory in between.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let Turn { random, left, .. } = turn;
    let place = Place::new(None)?;
    let mut case = Found::default();
    let mut highest = 0;
    let length = LIFE.min(*left / 2).max(Duration::from_secs(2));
    for life in 0..2 {
        let tokens = live(&place, random, Mode::Fenced, length, &mut case)?;
        if let Some(lowest) = tokens.first()
            && *lowest <= highest
        {
            case.broken.push(format!("life {life}: token {lowest} was granted after {highest}"));
        }
        highest = tokens.last().copied().unwrap_or(highest);
        for entry in std::fs::read_dir(place.tmpfs.path())? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
    }
    check_rows(&place, &mut case)?;
    let stale = case.counts.get("stale_writes_committed").copied().unwrap_or(0);
    if stale > 0 {
        case.broken.push(format!("{stale} stale writes were committed"));
    }
    Ok(case)
}

/// A worker and what it said.
struct Process {
    child: Child,
    session: Arc<Mutex<Option<String>>>,
    reader: std::thread::JoinHandle<Tally>,
}

impl Process {
    fn start(place: &Place, mode: Mode, seed: u64) -> Result<Self, Failure> {
        let data = place.disk.path().join("data");
        let directories = format!("{}\n{}\n{seed}", data.display(), place.tmpfs.path().display());
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--child", &directories, &format!("locks:{}", mode.as_str())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("a worker without stdout")?;
        let session = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&session);
        let reader = std::thread::spawn(move || {
            let mut tally = Tally::default();
            // The last line of a killed worker may be torn.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(Line::Ready(id)) => *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(id),
                    Ok(Line::Tally(more)) => tally.add(more),
                    Err(_) => break,
                }
            }
            tally
        });
        Ok(Self { child, session, reader })
    }

    fn session(&self) -> Option<String> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).ok_or("a worker without pid")?;
        Ok(kill_process(pid, signal)?)
    }

    fn end(mut self) -> Result<Tally, Failure> {
        self.child.kill()?;
        self.child.wait()?;
        self.reader.join().map_err(|_| "a reader panicked".into())
    }
}

/// Lets the workers live for a while among stops and kills; returns every token they reported, sorted.
fn live(
    place: &Place,
    random: &mut Random,
    mode: Mode,
    length: Duration,
    case: &mut Found,
) -> Result<Vec<u64>, Failure> {
    let runtime = Runtime::new()?;
    let (db, _) = runtime.block_on(worker::open(
        &place.disk.path().join("data"),
        place.tmpfs.path(),
        Arc::new(SystemClock::new()),
    ))?;
    let locks = runtime.block_on(LockManager::open(&db, LockOptions::default()))?;
    let mut total = Tally::default();
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(Process::start(place, mode, random.number())?);
    }
    let ready = Instant::now();
    while processes.iter().any(|process| process.session().is_none()) {
        if ready.elapsed() > Duration::from_secs(60) {
            return Err("the workers do not start".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    while start.elapsed() < length {
        std::thread::sleep(Duration::from_millis(20 + random.below(60)));
        let at = usize::try_from(random.below(PROCESSES as u64))?;
        if random.below(12) == 0 {
            let fresh = Process::start(place, mode, random.number())?;
            total.add(std::mem::replace(&mut processes[at], fresh).end()?);
            case.count("kills", 1);
        } else if let Some(session) = processes[at].session() {
            processes[at].signal(Signal::STOP)?;
            let outlived = runtime.block_on(outlive(&locks, &session));
            std::thread::sleep(Duration::from_millis(random.below(60)));
            processes[at].signal(Signal::CONT)?;
            case.count("pauses_past_a_lease", u64::from(outlived?));
        }
    }
    for process in processes {
        total.add(process.end()?);
    }
    runtime.block_on(async {
        locks.shutdown().await?;
        db.shutdown().await?;
        Ok::<_, Failure>(())
    })?;
    case.broken.extend(total.surprises.iter().take(5).map(|what| format!("a surprising answer: {what}")));
    for (what, count) in total.counts {
        if what == "attempts" {
            case.cases += count;
        } else {
            case.count(&what, count);
        }
    }
    let mut tokens = total.tokens;
    let granted = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.len() < granted {
        case.broken.push(format!("{} tokens were granted twice", granted - tokens.len()));
    }
    Ok(tokens)
}

/// Waits until the leases a stopped process holds have run out; false when it held none.
async fn outlive(locks: &LockManager, session: &str) -> Result<bool, Failure> {
    let mut held = false;
    loop {
        let standing = match locks.list(&LockFilter::all()).await {
            Ok(standing) => standing,
            // It was stopped where nobody else can read; then it has to go on before anybody knows more.
            Err(error) if error.is_retryable() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let longest = standing
            .iter()
            .filter(|view| view.holder.session.to_string() == session && view.ended.is_none())
            .map(|view| view.expires_in)
            .max();
        let Some(longest) = longest else { return Ok(held) };
        held = true;
        tokio::time::sleep(longest + Duration::from_millis(2)).await;
    }
}

/// Counts the stale writes among what was committed.
fn check_rows(place: &Place, case: &mut Found) -> Result<(), Failure> {
    Runtime::new()?.block_on(async {
        let clock = Arc::new(SystemClock::new());
        let (db, id) = worker::open(&place.disk.path().join("data"), place.tmpfs.path(), clock).await?;
        let router = db.router(&id).await?;
        let rows: Vec<(String, i64, bool)> = router
            .read(CAUSE, |conn| {
                Box::pin(async move {
                    let rows = sqlx::query_as("SELECT key, token, lost FROM guarded ORDER BY number");
                    Ok::<_, nasnet_dbmanager::Error>(rows.fetch_all(conn).await?)
                })
            })
            .await?;
        drop(router);
        db.shutdown().await?;
        let (below, late) = stale(&rows)?;
        case.count("rows_checked", rows.len() as u64);
        case.count("stale_by_token", below);
        case.count("stale_by_lease", late);
        case.count("stale_writes_committed", below + late);
        Ok(())
    })
}

/// Counts commits under a token that had been passed, and commits under a lease that was lost.
fn stale(rows: &[(String, i64, bool)]) -> Result<(u64, u64), Failure> {
    let mut highest: BTreeMap<LockKey, i64> = BTreeMap::new();
    let (mut below, mut late) = (0, 0);
    let paths: BTreeSet<&String> = rows.iter().map(|(path, ..)| path).collect();
    let keys = paths
        .into_iter()
        .map(|path| Ok((path, LockKey::parse(path.as_str())?)))
        .collect::<Result<BTreeMap<_, _>, Failure>>()?;
    for (path, token, lost) in rows {
        let key = &keys[path];
        late += u64::from(*lost);
        below += u64::from(highest.iter().any(|(other, seen)| other.overlaps(key) && seen > token));
        let seen = highest.entry(key.clone()).or_insert(*token);
        *seen = (*seen).max(*token);
    }
    Ok((below, late))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_token_above_or_below_a_higher_one_is_stale() {
        let row = |path: &str, token, lost| (path.to_owned(), token, lost);
        let rows = [row("a/b", 5, false), row("a/c", 4, false), row("a", 5, false), row("a/c", 4, false)];
        assert_eq!(stale(&rows).unwrap(), (1, 0));
        assert_eq!(stale(&[row("a", 1, true), row("a", 2, false)]).unwrap(), (0, 1));
    }
}
