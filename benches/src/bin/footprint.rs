//! Prints what open router databases cost in memory, descriptors and threads, beyond an opened fleet without any.
//!
//! Each number of databases is measured in a process of its own, after every database has been written to once and read
//! from once, so that its writer and its reader are both there.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the figures are the output of this program")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use nasnet_benches::footprint::{Footprint, measure};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Memory, descriptors and threads of open router databases")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// How many databases to open; the usual five numbers by default.
    #[arg(long, value_delimiter = ',')]
    databases: Vec<u32>,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Open this many and print the figures; started by the program itself.
    #[arg(long, hide = true)]
    child: Option<u32>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if let Some(databases) = args.child {
        // Two workers, as on the devices this is about.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let footprint = runtime.block_on(measure(databases, args.disk.as_deref()))?;
        println!("{}", serde_json::to_string(&footprint)?);
        return Ok(());
    }
    let numbers = if args.databases.is_empty() { vec![1, 10, 50, 200, 1000] } else { args.databases };
    let mut all = Vec::new();
    for databases in numbers {
        all.push(in_a_process(databases, args.disk.as_deref())?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&all)?);
        return Ok(());
    }
    println!(
        "{:>9} {:>9} {:>6} {:>8} {:>12} {:>8} {:>12}",
        "databases", "rss KiB", "fds", "threads", "KiB each", "fds each", "threads each"
    );
    for Footprint { databases, rss_kib, fds, threads, .. } in all {
        let each = |value: u64| f64::from(u32::try_from(value).unwrap_or(u32::MAX)) / f64::from(databases.max(1));
        println!(
            "{databases:>9} {rss_kib:>9} {fds:>6} {threads:>8} {:>12.1} {:>8.2} {:>12.2}",
            each(rss_kib),
            each(fds),
            each(threads)
        );
    }
    Ok(())
}

fn in_a_process(databases: u32, disk: Option<&Path>) -> Result<Footprint, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", &databases.to_string()]);
    if let Some(disk) = disk {
        command.arg("--disk").arg(disk);
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("measuring {databases} databases: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
