//! Processes that share the cases of one campaign, and what they report to the one that started them.
//!
//! A process each, since what a campaign sets up (faults, recorders, the VFS) belongs to the whole process.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nasnet_benches::events::Random;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::{Args, Controls, Failure, Plan, Turn};

/// Failing cases whose commands a report names.
const REPLAYS_MAX: usize = 10;

/// Which cases a process takes: every `of`th, from `first` on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    first: u64,
    of: u64,
}

/// Parses `1/2`.
pub(crate) fn share(text: &str) -> Result<Share, String> {
    let parts = text.split_once('/').and_then(|(first, of)| Some((first.parse().ok()?, of.parse().ok()?)));
    match parts {
        Some((first, of)) if first < of => Ok(Share { first, of }),
        _ => Err(format!("{text:?} is not a share such as 1/2")),
    }
}

/// What some cases of a campaign found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    pub(crate) violations: u64,
    /// Commands that repeat the failing cases.
    pub(crate) replays: Vec<String>,
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, more: Self) {
        self.cases += more.cases;
        self.violations += more.violations;
        self.replays.extend(more.replays);
        self.replays.truncate(REPLAYS_MAX);
        for (what, times) in more.counts {
            *self.counts.entry(what).or_default() += times;
        }
    }
}

/// Keeps this process to one of the cores it may use. Best effort: it is slower without.
fn keep_to_one_core(number: u64) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = usize::try_from(number).ok().and_then(|number| cores.get(number % cores.len().max(1))) else {
        return;
    };
    let mut one = CpuSet::new();
    one.set(*core);
    if let Err(error) = sched_setaffinity(None, &one) {
        eprintln!("this process is not kept to one core: {error}");
    }
}

/// Tries cases until the budget is used up, and one at least; with `--until-floor` until there are enough; with `--case` that
/// one only.
pub(crate) fn work(plan: &Plan, args: &Args, share: Share) -> Result<Tally, Failure> {
    let start = Instant::now();
    if plan.on_one_core && share.of > 1 {
        keep_to_one_core(share.first);
    }
    let mut tally = Tally::default();
    let mut number = args.case.unwrap_or(share.first);
    loop {
        let mut turn = Turn {
            number,
            random: Random::new(args.seed.wrapping_mul(1_000_003).wrapping_add(number)),
            left: args.budget.saturating_sub(start.elapsed()),
        };
        let found = (plan.case)(&mut turn)?;
        let mut replays = Vec::new();
        for broken in &found.broken {
            eprintln!("{}, case {number}: {broken}", plan.name);
        }
        if !found.broken.is_empty() {
            let replay = format!(
                "cargo run --release -p nasnet-benches --features soak --bin soak -- --campaign {} --seed {} --case {number}",
                plan.name, args.seed
            );
            eprintln!("replay: {replay}");
            replays.push(replay);
        }
        let violations = found.broken.len() as u64;
        tally.add(Tally { cases: found.cases, violations, replays, counts: found.counts });
        let is_enough = !args.until_floor || tally.cases >= args.floor.div_ceil(share.of);
        if args.case.is_some() || (start.elapsed() >= args.budget && is_enough) {
            return Ok(tally);
        }
        number += share.of;
    }
}

/// Runs the control while other processes try the cases, or, alone, after having tried them all.
pub(crate) fn run(plan: &Plan, args: &Args) -> Result<(Tally, Controls), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let workers = args.workers.unwrap_or(cores * plan.workers_per_core).max(1);
    if args.case.is_some() || !plan.shared || workers == 1 {
        let caught = (plan.control)(args.seed)?;
        return Ok((work(plan, args, Share { first: 0, of: 1 })?, caught));
    }
    let started: Vec<Child> = (0..workers)
        .map(|first| {
            Ok(Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .args(["--share", &format!("{first}/{workers}")])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?)
        })
        .collect::<Result<_, Failure>>()?;
    let caught = (plan.control)(args.seed);
    let mut tally = Tally::default();
    let mut failed = None;
    for worker in started {
        let output = worker.wait_with_output()?;
        match serde_json::from_slice(&output.stdout) {
            Ok(more) if output.status.success() => tally.add(more),
            // The others are waited for all the same.
            _ => failed = Some(format!("a process that shares the cases ended with {}", output.status)),
        }
    }
    match failed {
        Some(failed) => Err(failed.into()),
        None => Ok((tally, caught?)),
    }
}
