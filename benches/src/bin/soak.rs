//! Runs a campaign of faults until its budget is used up and counts broken promises.
//!
//! Every campaign has a control: the same check on a program, or a disk, that breaks the promise on purpose. A campaign whose
//! control is not caught proves nothing, and says so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "results go to stdout, failing cases to stderr")]

#[path = "soak/cancel.rs"]
mod cancel;
#[path = "soak/corruption.rs"]
mod corruption;
#[path = "soak/enospc.rs"]
mod enospc;
#[path = "soak/fleet.rs"]
mod fleet;
#[path = "soak/io_faults.rs"]
mod io_faults;
#[path = "soak/kill.rs"]
mod kill;
#[path = "soak/kill_events.rs"]
mod kill_events;
#[path = "soak/locks.rs"]
mod locks;
#[path = "soak/power_loss.rs"]
mod power_loss;
#[path = "soak/subscribers.rs"]
mod subscribers;

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
    /// Fail when fewer cases than this were tried: a campaign that does nothing finds nothing.
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
    /// Futures are dropped at every step and after random times.
    Cancel,
    /// Closed databases and logs get flipped bits and lose their ends.
    Corruption,
    /// Real file systems of 2 and 8 MB run full.
    Enospc,
    /// Every operation on a file fails once, in every public call that writes.
    IoFaults,
    /// A process that writes durably is killed at random points, and at its Nth write.
    Kill,
    /// A process that appends events beside its rows is killed at random points.
    KillEvents,
    /// Processes that hold leases are stopped, killed, restarted and lied to by their clocks.
    Locks,
    /// The power is cut at every point of founding, writing, migrating and recovering.
    PowerLoss,
    /// Two processes append and read as consumers, are killed and lose their tmpfs.
    Subscribers,
}

/// What one case found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// States, kills, faults, drops or requests tried: what is held against the floor.
    pub(crate) cases: u64,
    /// Broken promises.
    pub(crate) broken: Vec<String>,
    /// How often what else happened.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Found {
    /// Counts something besides the cases.
    pub(crate) fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }
}

/// A campaign: its name, whether its control is caught, and one of its cases.
struct Plan {
    name: &'static str,
    control: fn(u64) -> Result<bool, Failure>,
    case: fn(&mut Random, Duration) -> Result<Found, Failure>,
}

impl Campaign {
    const fn plan(self) -> Plan {
        match self {
            Self::Cancel => Plan { name: "cancel", control: cancel::control, case: |random, _| cancel::case(random) },
            Self::Corruption => {
                Plan { name: "corruption", control: corruption::control, case: |random, _| corruption::case(random) }
            }
            Self::Enospc => Plan { name: "enospc", control: enospc::control, case: |random, _| enospc::case(random) },
            Self::IoFaults => {
                Plan { name: "io-faults", control: io_faults::control, case: |random, _| io_faults::case(random) }
            }
            Self::Kill => Plan { name: "kill", control: kill::control, case: |random, _| kill::honest_case(random) },
            Self::KillEvents => Plan {
                name: "kill-events",
                control: kill_events::control,
                case: |random, _| kill_events::case(random, kill_events::Mode::Honest),
            },
            Self::Locks => Plan { name: "locks", control: locks::control, case: locks::case },
            Self::PowerLoss => {
                Plan { name: "power-loss", control: power_loss::control, case: |random, _| power_loss::case(random) }
            }
            Self::Subscribers => {
                Plan { name: "subscribers", control: subscribers::control, case: |random, _| subscribers::case(random) }
            }
        }
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
    /// Damages that nothing answered to, because they changed nothing that is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    undetectable: Option<u64>,
    #[serde(flatten)]
    counts: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode, Failure> {
    let args = Args::parse();
    if let Some([dir, mode]) = args.child.as_deref() {
        if let Some(mode) = mode.strip_prefix("locks:") {
            locks::worker::child(dir, mode)?;
        } else if let Some(mode) = mode.strip_prefix("events:") {
            kill_events::child(dir, mode)?;
        } else if let Some(task) = mode.strip_prefix("subscribers:") {
            subscribers::child(dir, task)?;
        } else {
            kill::child(dir.as_ref(), mode)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(campaign) = args.campaign else { return Ok(ExitCode::from(2)) };
    if matches!(campaign, Campaign::Enospc) && !enospc::enter()? {
        return Ok(ExitCode::SUCCESS);
    }
    let report = run(&campaign.plan(), &args)?;
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
        if let Some(undetectable) = report.undetectable {
            println!("undetectable: {undetectable}");
        }
        for (what, count) in &report.counts {
            println!("  {what}: {count}");
        }
    }
    if report.cases < args.floor {
        eprintln!("{}: {} cases are fewer than {}", report.campaign, report.cases, args.floor);
    }
    let sound = report.violations == 0 && report.controls_caught && report.cases >= args.floor;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(plan: &Plan, args: &Args) -> Result<Report, Failure> {
    let start = Instant::now();
    let controls_caught = (plan.control)(args.seed)?;
    let (mut cases, mut violations, mut counts) = (0, 0, BTreeMap::<String, u64>::new());
    let first = args.case.unwrap_or(0);
    for number in first.. {
        if number > first && (args.case.is_some() || start.elapsed() >= args.budget) {
            break;
        }
        // Each case has a seed of its own, so that it can be replayed without those before it.
        let mut random = Random::new(args.seed.wrapping_mul(1_000_003).wrapping_add(number));
        let found = (plan.case)(&mut random, args.budget.saturating_sub(start.elapsed()))?;
        cases += found.cases;
        for (what, times) in found.counts {
            *counts.entry(what).or_default() += times;
        }
        for broken in found.broken {
            violations += 1;
            eprintln!("{}, case {number}: {broken}", plan.name);
            eprintln!(
                "replay: cargo run --release -p nasnet-benches --features soak --bin soak -- --campaign {} \
                 --seed {} --case {number}",
                plan.name, args.seed
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let undetectable = matches!(args.campaign, Some(Campaign::Corruption)).then(corruption::undetectable);
    Ok(Report {
        campaign: plan.name,
        seed: args.seed,
        cases,
        violations,
        controls_caught,
        seconds,
        undetectable,
        counts,
    })
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
