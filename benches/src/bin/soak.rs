//! Runs a campaign of faults until its budget is used up and counts broken promises.
//!
//! Every campaign has a control: the same check on a program that breaks the promise on purpose. A campaign whose control
//! is not caught proves nothing, and says so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "results go to stdout, failing cases to stderr")]

#[path = "soak/kill.rs"]
mod kill;
#[path = "soak/locks.rs"]
mod locks;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use nasnet_benches::events::Random;
use serde::Serialize;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Fault campaigns with a budget")]
struct Args {
    /// What to break.
    #[arg(long, value_enum, required_unless_present = "child")]
    campaign: Option<Campaign>,
    /// How long to go on: `10s`, `5m`, `1h`.
    #[arg(long, default_value = "60s", value_parser = budget)]
    budget: Duration,
    /// Where the random choices start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replay this case only.
    #[arg(long)]
    case: Option<u64>,
    /// Fewest attempts that prove something: with fewer the campaign fails.
    #[arg(long, default_value_t = 1)]
    floor: u64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Be the program under test; started by the campaign itself.
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR", "MODE"])]
    child: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Campaign {
    /// A process that writes durably is killed by SIGKILL at random points.
    Kill,
    /// Processes that hold leases are stopped, killed, restarted and lied to by their clocks.
    Locks,
}

impl Campaign {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Locks => "locks",
        }
    }

    fn control(self, seed: u64) -> Result<bool, Failure> {
        match self {
            Self::Kill => kill::control(seed),
            Self::Locks => locks::control(seed),
        }
    }

    fn case(self, random: &mut Random, left: Duration) -> Result<Case, Failure> {
        match self {
            Self::Kill => kill::case(random, kill::Mode::Honest),
            Self::Locks => locks::case(random, left),
        }
    }
}

/// What one case did and which promises it found broken.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) broken: Vec<String>,
    /// How often what happened; `attempts` is held against the floor.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Case {
    pub(crate) fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }
}

/// What a campaign found.
#[derive(Debug, Serialize)]
struct Report {
    campaign: &'static str,
    seed: u64,
    cases: u64,
    violations: u64,
    controls_caught: bool,
    seconds: f64,
    #[serde(flatten)]
    counts: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode, Failure> {
    let args = Args::parse();
    if let Some([dir, mode]) = args.child.as_deref() {
        match mode.strip_prefix("locks:") {
            Some(mode) => locks::worker::child(dir, mode)?,
            None => kill::child(dir, mode)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(campaign) = args.campaign else { return Ok(ExitCode::from(2)) };
    let report = run(campaign, &args)?;
    let attempts = report.counts.get("attempts").copied().unwrap_or(0);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{}: {} cases in {:.1} s, {} violations, control {}",
            report.campaign,
            report.cases,
            report.seconds,
            report.violations,
            if report.controls_caught { "caught" } else { "NOT CAUGHT" }
        );
        for (what, count) in &report.counts {
            println!("  {what}: {count}");
        }
    }
    if attempts < args.floor {
        eprintln!("{} attempts prove nothing: at least {} are asked for", attempts, args.floor);
    }
    let held = report.violations == 0 && report.controls_caught && attempts >= args.floor;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(campaign: Campaign, args: &Args) -> Result<Report, Failure> {
    let controls_caught = campaign.control(args.seed)?;
    let start = Instant::now();
    let (mut cases, mut violations, mut counts) = (0, 0, BTreeMap::<String, u64>::new());
    let first = args.case.unwrap_or(0);
    for number in first.. {
        if cases > 0 && (args.case.is_some() || start.elapsed() >= args.budget) {
            break;
        }
        cases += 1;
        // Each case has a seed of its own, so that it can be replayed without those before it.
        let mut random = Random::new(args.seed.wrapping_mul(1_000_003).wrapping_add(number));
        let case = campaign.case(&mut random, args.budget.saturating_sub(start.elapsed()))?;
        for (what, times) in case.counts {
            *counts.entry(what).or_default() += times;
        }
        for broken in case.broken {
            violations += 1;
            eprintln!("{}, case {number}: {broken}", campaign.as_str());
            eprintln!(
                "replay: cargo run --release -p nasnet-benches --features soak --bin soak -- --campaign {} --seed {} \
                 --case {number}",
                campaign.as_str(),
                args.seed
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report { campaign: campaign.as_str(), seed: args.seed, cases, violations, controls_caught, seconds, counts })
}

fn budget(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().ok_or("an empty budget")?;
    let (number, seconds) = match unit {
        's' => (&text[..text.len() - 1], 1),
        'm' => (&text[..text.len() - 1], 60),
        'h' => (&text[..text.len() - 1], 3_600),
        _ => return Err(format!("{text:?} has no unit: s, m or h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no number with a unit"))?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}
