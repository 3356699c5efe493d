//! Prints the ratios that are really measured here, each from one run with its peer beside it.
//!
//! A row is the median of interleaved rounds, taken once with an idle and once with a busy second core; the worse of the
//! two is printed.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the output of this program")]

#[path = "ratios/p13.rs"]
mod p13;
#[path = "ratios/p14.rs"]
mod p14;
#[path = "ratios/p17.rs"]
mod p17;
#[path = "ratios/p18.rs"]
mod p18;

use std::path::PathBuf;

use clap::Parser;
pub(crate) use nasnet_benches::leases::Failure;
use nasnet_benches::measure::Ratio;

#[derive(Parser)]
#[command(about = "Ratios against peers and floors, measured side by side")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Measure this row only.
    #[arg(long)]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let disk = args.disk.as_deref();
    let wanted = |id: &str| args.only.as_deref().is_none_or(|only| only.eq_ignore_ascii_case(id));
    let mut rows = Vec::new();
    if wanted("P14") {
        rows.extend(p14::rows(disk).await?);
    }
    if wanted("P13") {
        rows.extend(p13::rows(disk).await?);
    }
    if wanted("P17") {
        rows.extend(p17::rows(disk).await?);
    }
    if wanted("P18") {
        rows.extend(p18::rows(disk).await?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        println!("{:<5} {:>10} {:>8}  {:<5} what", "id", "value", "target", "holds");
        for Ratio { id, what, value, target, holds } in &rows {
            println!("{id:<5} {value:>10.2} {target:>8.2}  {:<5} {what}", if *holds { "yes" } else { "NO" });
        }
    }
    Ok(())
}
