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
#[path = "soak/events.rs"]
mod events;
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
#[path = "soak/mount.rs"]
mod mount;
#[path = "soak/power_loss.rs"]
mod power_loss;
#[path = "soak/power_loss_events.rs"]
mod power_loss_events;
#[path = "soak/subscribers.rs"]
mod subscribers;
#[path = "soak/tiers.rs"]
mod tiers;
#[path = "soak/workers.rs"]
mod workers;
#[path = "soak/yanked_media.rs"]
mod yanked_media;

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
    /// Go on past the budget until the floor is reached: how long that takes says something of the machine alone. Whoever
    /// starts it sets an end.
    #[arg(long)]
    until_floor: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Processes that share the cases of a campaign that can be shared; one or two for each core when not given.
    #[arg(long)]
    workers: Option<u64>,
    /// Be one of them: `1/2` takes every second case, from the second on.
    #[arg(long, hide = true, value_parser = workers::share)]
    share: Option<workers::Share>,
    /// Be the program under test; started by the campaign itself.
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR", "MODE"])]
    child: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Campaign {
    /// Futures are dropped at every step and after random times.
    Cancel,
    /// An event store is walked through while its wall clock jumps by decades.
    Clock,
    /// Closed databases and logs get flipped bits and lose their ends.
    Corruption,
    /// Small real file systems run full, out of inodes, read-only and give up.
    Enospc,
    /// Every operation on a file fails once, in every public call that writes.
    IoFaults,
    /// A process that writes durably is killed at random points, and at its Nth write.
    Kill,
    /// A process that appends events beside its rows is killed at random points.
    KillEvents,
    /// Processes that hold leases are stopped, killed, restarted and lied to by their clocks.
    Locks,
    /// The power is cut at every point of founding, writing, migrating, moving and recovering.
    PowerLoss,
    /// The power is cut at every point of appending, flushing, archiving, sealing and removing events.
    PowerLossEvents,
    /// Two processes append and read as consumers, are killed and lose their tmpfs.
    Subscribers,
    /// An event store is walked through restarts, reboots, retention, clock jumps and media without space.
    Tiers,
    /// The medium of the cold tier goes away while events are archived, and comes back.
    YankedMedia,
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

/// One case that is to be tried.
pub(crate) struct Turn {
    /// Its number: what a campaign goes through in turn follows from it.
    pub(crate) number: u64,
    /// Its own, so that it can be replayed without those before it.
    pub(crate) random: Random,
    /// What is left of the budget.
    pub(crate) left: Duration,
}

/// The liars a campaign must catch, and whether it does.
pub(crate) type Controls = Vec<(&'static str, bool)>;

/// A campaign: its name, its floor, its controls and one of its cases.
struct Plan {
    name: &'static str,
    /// Cases that two free cores must reach in 120 s, built with optimisation.
    floor_120s: u64,
    /// Whether processes may share the cases.
    shared: bool,
    /// More than one where a process mostly waits for the threads of its databases and leaves its core to another.
    workers_per_core: u64,
    /// Whether each process keeps to one core: its threads take turns, and waking one on another core costs more than the
    /// turn. Not where they are to run at the same time.
    on_one_core: bool,
    control: fn(u64) -> Result<Controls, Failure>,
    case: fn(&mut Turn) -> Result<Found, Failure>,
}

impl Campaign {
    fn plan(self) -> Plan {
        type Control = fn(u64) -> Result<Controls, Failure>;
        type Case = fn(&mut Turn) -> Result<Found, Failure>;
        let (name, floor_120s, control, case): (_, _, Control, Case) = match self {
            Self::Cancel => ("cancel", 2_000, cancel::control, cancel::case),
            Self::Clock => ("clock", 500, tiers::clock_control, tiers::clock_case),
            Self::Corruption => ("corruption", 2_000, corruption::control, corruption::case),
            Self::Enospc => ("enospc", 5, enospc::control, enospc::case),
            Self::IoFaults => ("io-faults", 3_000, io_faults::control, io_faults::case),
            Self::Kill => ("kill", 300, kill::control, kill::case),
            Self::KillEvents => ("kill-events", 300, kill_events::control, kill_events::case),
            Self::Locks => ("locks", 10_000, locks::control, locks::case),
            Self::PowerLoss => ("power-loss", 10_000, power_loss::control, power_loss::case),
            Self::PowerLossEvents => ("power-loss-events", 20_000, power_loss_events::control, power_loss_events::case),
            Self::Subscribers => ("subscribers", 5_000, subscribers::control, subscribers::case),
            Self::Tiers => ("tiers", 500, tiers::control, tiers::case),
            Self::YankedMedia => ("yanked-media", 200, yanked_media::control, yanked_media::case),
        };
        // The locks campaign is four processes by itself, and times how they wait for each other.
        let shared = !matches!(self, Self::Locks);
        let waits = matches!(self, Self::PowerLoss | Self::PowerLossEvents | Self::Tiers | Self::Clock);
        let workers_per_core = if waits { 2 } else { 1 };
        let on_one_core = matches!(self, Self::PowerLoss | Self::PowerLossEvents);
        Plan { name, floor_120s, shared, workers_per_core, on_one_core, control, case }
    }

    /// Whether it mounts file systems.
    const fn mounts(self) -> bool {
        matches!(self, Self::Enospc | Self::YankedMedia)
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
    controls: BTreeMap<&'static str, bool>,
    seconds: f64,
    /// Fewer cases than this fail this run.
    floor: u64,
    /// Cases that 120 s on two free cores must reach, built with optimisation.
    floor_120s: u64,
    /// Cases that 120 s would reach at the pace of this run.
    cases_120s: u64,
    /// Whether this build is one whose pace says something.
    optimised: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replays: Vec<String>,
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
    if campaign.mounts() && !mount::enter(campaign.plan().name)? {
        return Ok(ExitCode::SUCCESS);
    }
    if let (Campaign::YankedMedia, None) = (campaign, args.share)
        && let Some(missing) = yanked_media::missing()
    {
        mount::skip(campaign.plan().name, missing)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(share) = args.share {
        println!("{}", serde_json::to_string(&workers::work(&campaign.plan(), &args, share)?)?);
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
    let (tally, controls) = workers::run(plan, args)?;
    let seconds = start.elapsed().as_secs_f64();
    let pace = u128::from(tally.cases) * 120_000 / start.elapsed().as_millis().max(1);
    Ok(Report {
        campaign: plan.name,
        seed: args.seed,
        cases: tally.cases,
        violations: tally.violations,
        controls_caught: !controls.is_empty() && controls.iter().all(|(_, caught)| *caught),
        controls: controls.into_iter().collect(),
        seconds,
        floor: args.floor,
        floor_120s: plan.floor_120s,
        cases_120s: u64::try_from(pace)?,
        optimised: !cfg!(debug_assertions),
        replays: tally.replays,
        counts: tally.counts,
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
