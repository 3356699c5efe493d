//! Runs a campaign of faults until its budget is used up and counts broken promises.
//!
//! Every campaign has a control: the same check on a program that breaks the promise on purpose. A campaign whose control
//! is not caught proves nothing, and says so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "results go to stdout, failing cases to stderr")]

#[path = "soak/kill.rs"]
mod kill;

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
}

fn main() -> Result<ExitCode, Failure> {
    let args = Args::parse();
    if let Some([dir, mode]) = args.child.as_deref() {
        kill::child(dir.as_ref(), mode)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(Campaign::Kill) = args.campaign else { return Ok(ExitCode::from(2)) };
    let report = run("kill", &args)?;
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
    }
    Ok(if report.violations == 0 && report.controls_caught { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(campaign: &'static str, args: &Args) -> Result<Report, Failure> {
    let start = Instant::now();
    let controls_caught = kill::control(args.seed)?;
    let (mut cases, mut violations) = (0, 0);
    let first = args.case.unwrap_or(0);
    for number in first.. {
        if cases > 0 && (args.case.is_some() || start.elapsed() >= args.budget) {
            break;
        }
        cases += 1;
        // Each case has a seed of its own, so that it can be replayed without those before it.
        let mut random = Random::new(args.seed.wrapping_mul(1_000_003).wrapping_add(number));
        for broken in kill::case(&mut random, kill::Mode::Honest)? {
            violations += 1;
            eprintln!("{campaign}, case {number}: {broken}");
            eprintln!(
                "replay: cargo run --release -p nasnet-benches --features soak --bin soak -- --campaign {campaign} \
                 --seed {} --case {number}",
                args.seed
            );
        }
    }
    Ok(Report { campaign, seed: args.seed, cases, violations, controls_caught, seconds: start.elapsed().as_secs_f64() })
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
