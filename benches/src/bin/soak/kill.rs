//! Campaign `kill`: what was acknowledged is there after SIGKILL, and nothing is there by half.
//!
//! The child writes groups of rows to a router database, each group one keyed write op, and says `ack N` once the write
//! has answered. It dies at a random moment, often while it still opens its databases, or at its Nth write to a file,
//! also with that write half done; then the parent opens the same directories and looks.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::vfs::fault::{Fault, Operation};

use crate::fleet::{self, Schema, Seen};
use crate::{Controls, Failure, Found, Turn};

/// Groups a child writes at most; it dies long before.
const GROUPS_MAX: u64 = 100_000;
/// Attempts to catch the control, which cheats only for the length of one commit.
const CONTROL_CASES: u64 = 300;

/// Who is under test, and how it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Acknowledges what is committed; killed from outside.
    Honest,
    /// Kills itself instead of its Nth write.
    AtWrite(u64),
    /// Kills itself in the middle of its Nth write.
    HalfWritten(u64),
    /// The control: acknowledges before it commits.
    AckFirst,
}

impl Mode {
    fn text(self) -> String {
        match self {
            Self::Honest => "honest".to_owned(),
            Self::AtWrite(number) => format!("at-write:{number}"),
            Self::HalfWritten(number) => format!("half-written:{number}"),
            Self::AckFirst => "ack-first".to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "honest" => Some(Self::Honest),
            None if text == "ack-first" => Some(Self::AckFirst),
            Some(("at-write", number)) => number.parse().ok().map(Self::AtWrite),
            Some(("half-written", number)) => number.parse().ok().map(Self::HalfWritten),
            _ => None,
        }
    }

    /// Chooses how a child of an honest case dies.
    fn choose(random: &mut Random) -> Self {
        match random.below(3) {
            0 => Self::AtWrite(1 + random.below(160)),
            1 => Self::HalfWritten(1 + random.below(160)),
            _ => Self::Honest,
        }
    }
}

/// Tells whether the check catches a program that acknowledges too early.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    for number in 0..CONTROL_CASES {
        let mut random = Random::new(seed.wrapping_add(number));
        if !lives(&mut random, true)?.broken.is_empty() {
            return Ok(vec![("acknowledged before the commit", true)]);
        }
    }
    Ok(vec![("acknowledged before the commit", false)])
}

/// Runs one directory through several lives of an honest child.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    lives(&mut turn.random, false)
}

fn lives(random: &mut Random, control: bool) -> Result<Found, Failure> {
    let place = Place::new(None)?;
    let runtime = fleet::runtime()?;
    let mut found = Found::default();
    let mut acknowledged = 0;
    for life in 0..=random.below(3) {
        let mode = if control { Mode::AckFirst } else { Mode::choose(random) };
        let heard = live_and_die(&place, random, mode, acknowledged)?;
        found.cases += 1;
        acknowledged = heard.unwrap_or(acknowledged);
        match runtime.block_on(check(&place, acknowledged)) {
            Ok((broken, last)) => {
                found.broken.extend(broken.into_iter().map(|what| format!("life {life}, {}: {what}", mode.text())));
                // What was committed but not acknowledged counts from now on.
                acknowledged = acknowledged.max(last);
            }
            Err(error) => {
                found.broken.push(format!("life {life}, {}: the databases do not open: {error}", mode.text()));
            }
        }
        if !found.broken.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Starts a child, lets it die and returns the last group it acknowledged.
fn live_and_die(place: &Place, random: &mut Random, mode: Mode, written: u64) -> Result<Option<u64>, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--child", &directories(place), &mode.text()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("a child without stdout")?;
    let (mut lines, mut last) = (BufReader::new(output).lines(), None);
    match mode {
        Mode::AtWrite(_) | Mode::HalfWritten(_) => {}
        Mode::Honest if random.below(4) == 0 => {
            // Before the first acknowledgement: most of these kills meet a database that is being made or opened.
            pass(Duration::from_micros(random.below(60_000)));
            child.kill()?;
        }
        Mode::Honest | Mode::AckFirst => {
            let target = written + 1 + random.below(60);
            while last.is_none_or(|group| group < target) {
                let Some(line) = lines.next().transpose()? else { break };
                last = acknowledged_in(&line).or(last);
            }
            if mode == Mode::Honest {
                pass(Duration::from_micros(random.below(3_000)));
            }
            child.kill()?;
        }
    }
    // What the child still said before it died is acknowledged too.
    for line in lines {
        last = acknowledged_in(&line?).or(last);
    }
    child.wait()?;
    Ok(last)
}

fn acknowledged_in(line: &str) -> Option<u64> {
    line.strip_prefix("ack ")?.parse().ok()
}

fn pass(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::yield_now();
    }
}

fn directories(place: &Place) -> String {
    format!("{}\n{}", place.disk.path().display(), place.tmpfs.path().display())
}

/// Writes groups until it dies.
pub(crate) fn child(directories: &str, mode: &str) -> Result<(), Failure> {
    let (disk, run) = directories.split_once('\n').ok_or("two directories are needed")?;
    let mode = Mode::parse(mode).ok_or("unknown mode")?;
    let disk = Path::new(disk);
    let _armed = match mode {
        Mode::AtWrite(number) => Some(Fault::kill(Operation::Write, number).arm(disk)?),
        Mode::HalfWritten(number) => Some(Fault::kill_half_written(number).arm(disk)?),
        Mode::Honest | Mode::AckFirst => None,
    };
    fleet::runtime()?.block_on(async {
        let (db, id) = fleet::open(fleet::options(&disk.join("data"), run.as_ref(), Schema::Old)).await?;
        let router = db.router(&id).await?;
        let first = fleet::look(&router).await?.last() + 1;
        for number in first..first + GROUPS_MAX {
            if mode == Mode::AckFirst {
                acknowledge(number)?;
            }
            fleet::write_group(&router, number).await?;
            if mode != Mode::AckFirst {
                acknowledge(number)?;
            }
        }
        Ok(())
    })
}

fn acknowledge(number: u64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {number}")?;
    out.flush()
}

/// Looks at what a dead child left; returns the broken promises and the last group that is there.
async fn check(place: &Place, acknowledged: u64) -> Result<(Vec<String>, u64), Failure> {
    let options = fleet::options(&place.disk.path().join("data"), place.tmpfs.path(), Schema::Old);
    let (db, id) = fleet::open(options).await?;
    let router = db.router(&id).await?;
    let Seen { mut faults, groups } = fleet::look(&router).await?;
    for number in 1..=acknowledged {
        if !groups.contains_key(&number) {
            faults.push(format!("group {number} was acknowledged and is gone"));
        }
    }
    drop(router);
    db.shutdown().await?;
    Ok((faults, groups.last_key_value().map_or(0, |(number, _)| *number)))
}
