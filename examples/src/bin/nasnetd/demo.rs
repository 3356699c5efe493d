//! The main job, end to end: one simulated router, real files, real sockets, a real second process.
//!
//! Every step is a file; it does one thing and says what it claims. A claim that does not hold makes the run fail.

mod change;
mod checks;
mod drift;
mod fencing;
mod history;
mod import;
mod loss;
mod lost_reply;
mod reveal;
mod router;
pub(crate) mod stale_holder;
mod tiers;
mod trouble;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use nasnet_dbmanager::{ClockQuality, DbManager, Now, Options, RouterId, SchemaSet};
use nasnet_events::{ColdOptions, EventOptions, EventReplay, EventStore, prepare_cold_dir};
use nasnet_locking::{LockManager, LockOptions};
use nasnet_reconcile::Reconciler;
use nasnet_reconcile::op::OpReport;
use nasnet_reconcile::routeros::kinds;
use nasnet_state::Timestamp;
use ulid::Ulid;

use self::checks::Checks;
use self::router::Router;
use crate::summary::{Step, Summary};

const ROUTER: &str = "home-office";
const DATABASE_BYTES_MAX: u64 = 1 << 30;

/// What the demo takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the databases live; the simulator keeps its rows there too.
    #[arg(long, default_value = "nasnet-demo")]
    pub(crate) data: PathBuf,
    /// Where the volatile databases live; the default is a folder in the machine's tmpfs.
    #[arg(long)]
    pub(crate) run: Option<PathBuf>,
    /// Where archived events go; the default is a folder in the data directory.
    #[arg(long)]
    pub(crate) cold: Option<PathBuf>,
    /// A RouterOS export to seed the simulated router with, instead of the bundled one.
    #[arg(long)]
    pub(crate) export: Option<PathBuf>,
    /// The loopback port of the simulated router; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Prints one JSON object instead of the summary.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Input that cannot be used; nothing was changed.
#[derive(Debug)]
pub(crate) struct BadInput(pub(crate) String);

/// Why a step could not go on.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Everything the steps share.
pub(crate) struct Demo {
    pub(crate) manager: DbManager,
    pub(crate) events: EventStore,
    pub(crate) locks: LockManager,
    pub(crate) reconciler: Reconciler,
    pub(crate) router: Router,
    pub(crate) router_id: RouterId,
    pub(crate) cold: PathBuf,
    pub(crate) summary: Summary,
    /// The WireGuard interface of step 3.
    pub(crate) interface: Option<Ulid>,
    /// The firewall rule of step 3.
    pub(crate) rule: Option<Ulid>,
    /// Secrets this run gave away, to look for where they must not be.
    pub(crate) secrets: Vec<String>,
}

impl Demo {
    /// Notes an operation and its outcome for the summary.
    pub(crate) fn operation(&mut self, what: impl Into<String>, outcome: impl Into<String>) {
        self.summary.operations.push((what.into(), outcome.into()));
    }

    /// Notes an operation's report for the summary.
    pub(crate) fn report(&mut self, what: &str, report: &OpReport) {
        self.operation(what, format!("{:?}, {} steps", report.outcome, report.steps.len()));
    }

    async fn open(args: &Args) -> Result<Self, BadInput> {
        let bad = |error: &dyn std::fmt::Display| BadInput(error.to_string());
        // Reads and binds; writes nothing.
        let router = Router::start(args).await?;
        let mut options = Options::new(&args.data).schemas(schema_sets());
        options.run_dir.clone_from(&args.run);
        options.high_waters = nasnet_reconcile::high_waters();
        options.largest_ids = nasnet_reconcile::largest_ids();
        // The bound of a router's flash is not that of the machine the demo is tried on, with exports of any length.
        options.database_bytes_max = DATABASE_BYTES_MAX;
        options.flash_bytes_max = u64::MAX;
        // The demo's archive lies beside the data unless --cold names a stick.
        let cold = args.cold.clone().unwrap_or_else(|| args.data.join("cold"));
        let cold_options = ColdOptions::new(&cold).allow_same_device();
        options.replays = vec![Arc::new(EventReplay::new().cold(cold_options.clone()))];
        let manager = DbManager::open(options).await.map_err(|error| bad(&error))?;
        let router_id: RouterId = ROUTER.parse().map_err(|error| bad(&error))?;
        // A database that cannot be used is found before anything is written to the others.
        if let Err(error) = find_unusable(&manager).await {
            manager.shutdown().await.map_err(|error| bad(&error))?;
            return Err(bad(&error));
        }
        prepare_cold_dir(&manager, &cold).map_err(|error| bad(&error))?;
        let events = EventStore::open(&manager, EventOptions::default().cold(cold_options))
            .await
            .map_err(|error| bad(&error))?;
        let locks = LockManager::open(&manager, LockOptions::default()).await.map_err(|error| bad(&error))?;
        let reconciler = Reconciler::new(&manager, &events, &locks, kinds::kinds());
        let summary = Summary { data: args.data.display().to_string(), ..Summary::default() };
        Ok(Self {
            manager,
            events,
            locks,
            reconciler,
            router,
            router_id,
            cold,
            summary,
            interface: None,
            rule: None,
            secrets: Vec::new(),
        })
    }

    async fn steps(&mut self) {
        macro_rules! step {
            ($number:literal, $title:literal, $step:path) => {{
                progress(&format!("[{}/11] {}", $number, $title));
                let started = Instant::now();
                let mut checks = Checks::default();
                let result = $step(self, &mut checks).await;
                self.finish_step($number, $title, started, checks, result);
            }};
        }
        step!(1, "router simulated from an export", import::started);
        step!(2, "databases made, configuration imported", import::step);
        step!(3, "change set applied, confirmed, merged", change::step);
        step!(4, "foreign edit found, reported, healed", drift::step);
        step!(5, "lost reply ends as done, once", lost_reply::step);
        step!(6, "stale holder fenced out", fencing::step);
        step!(7, "events moved from tmpfs to flash to archive", tiers::step);
        step!(8, "history asked", history::step);
        step!(9, "one router lost and restored, the other goes on", loss::step);
        step!(10, "stick missing and returning, tmpfs wiped and full", trouble::step);
        step!(11, "secrets looked for, figures taken", reveal::step);
    }

    fn finish_step(
        &mut self,
        number: u8,
        title: &'static str,
        started: Instant,
        mut checks: Checks,
        result: Result<(), Failure>,
    ) {
        if let Err(Failure(why)) = result {
            checks.that("the step ran to its end", false, why);
        }
        if let Err(why) = self.router.save() {
            checks.that("the simulator's rows were saved", false, why);
        }
        let checks = checks.into_list();
        let ok = !checks.is_empty() && checks.iter().all(|check| check.held);
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        progress(&format!(
            "      {} of {} checks held, {millis} ms",
            checks.iter().filter(|c| c.held).count(),
            checks.len()
        ));
        for check in checks.iter().filter(|check| !check.held) {
            progress(&format!("      did not hold: {} (seen: {})", check.what, check.seen));
        }
        self.summary.steps.push(Step { number, title, checks, millis, ok });
    }

    /// Ends everything in order; what fails here fails the run.
    async fn close(self) -> (Summary, Result<(), Failure>) {
        let Self { manager, events, locks, router, summary, reconciler, .. } = self;
        drop(reconciler);
        let closed = async {
            events.shutdown().await?;
            locks.shutdown().await?;
            manager.shutdown().await?;
            Ok(())
        }
        .await;
        router.server.shutdown().await;
        (summary, closed)
    }
}

/// Opens the database of every router there is. A missing one is restored where there is a backup of it: a run that was
/// killed in step 9 leaves that behind.
async fn find_unusable(manager: &DbManager) -> Result<(), nasnet_dbmanager::Error> {
    for router in manager.routers().await? {
        match manager.router(&router.id).await {
            Err(nasnet_dbmanager::Error::MissingDatabase { .. }) => loss::restore_newest(manager, &router.id).await?,
            opened => drop(opened?),
        }
    }
    Ok(())
}

/// Runs the demo and prints what it found.
pub(crate) async fn run(args: Args) -> ExitCode {
    let started = Instant::now();
    let mut demo = match Demo::open(&args).await {
        Ok(demo) => demo,
        Err(BadInput(why)) => return crate::fail(2, &why),
    };
    demo.steps().await;
    let (mut summary, closed) = demo.close().await;
    summary.ok = closed.is_ok() && summary.steps.len() == 11 && summary.steps.iter().all(|step| step.ok);
    summary.millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Err(Failure(why)) = closed {
        return crate::fail(1, &format!("shutdown failed: {why}"));
    }
    let text = if args.json {
        match serde_json::to_string(&summary) {
            Ok(text) => text + "\n",
            Err(error) => return crate::fail(1, &format!("summary: {error}")),
        }
    } else {
        summary.table()
    };
    let printed = crate::print(&text);
    if summary.ok { printed } else { ExitCode::FAILURE }
}

/// The schemas of everything the daemon stores.
pub(crate) fn schema_sets() -> Vec<SchemaSet> {
    nasnet_reconcile::schema_sets()
}

/// The time as the model records it.
pub(crate) fn timestamp(now: &Now) -> Timestamp {
    match now.quality {
        ClockQuality::Synced => Timestamp::synced(now.wall_ms),
        ClockQuality::Unsynced => Timestamp::unsynced(now.wall_ms),
    }
}

/// Tells a person what goes on.
#[expect(clippy::print_stderr, reason = "progress is for people; stdout holds the result")]
pub(crate) fn progress(line: &str) {
    eprintln!("{line}");
}

/// Bytes written so far to each database on flash.
pub(crate) fn flash_bytes(manager: &DbManager) -> BTreeMap<String, u64> {
    let stats = manager.stats();
    let on_flash = stats.open.iter().filter(|database| database.on_flash);
    on_flash
        .map(|database| {
            let name = database.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, database.written.bytes)
        })
        .collect()
}
