//! Prints how many bytes reach flash for one event, counted by the VFS under every database.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the output of this program")]

use std::path::PathBuf;

use clap::Parser;
use nasnet_benches::flash::{self, Cost};
use nasnet_benches::leases::Failure;
use serde::Serialize;

#[derive(Parser)]
#[command(about = "Bytes that reach flash per event")]
struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A directory on disk to measure in; the system's temporary directory by default.
    #[arg(long)]
    disk: Option<PathBuf>,
}

/// How long flash lasts under a workload.
#[derive(Debug, Serialize)]
struct Wear {
    workload: &'static str,
    layout: String,
    mb_per_day: f64,
    years_10k: f64,
    years_100k: f64,
}

/// The workloads of a fleet with a 64 MiB data area, where the file system and garbage collection write three times what
/// is dirtied.
fn wear_table(rows: &[Cost]) -> Vec<Wear> {
    const AREA: f64 = 64.0 * 1_048_576.0;
    const FACTOR: f64 = 3.0;
    let polled = "10 routers every 5 s, 172,800 events a day";
    let critical = "500 critical events a day, each synced";
    let of = |workload: &'static str, events_per_day: f64, row: &Cost| {
        let per_day = events_per_day * row.dirty_4k_bytes_per_event;
        let years = |cycles: f64| AREA * cycles / FACTOR / per_day / 365.0;
        Wear {
            workload,
            layout: format!("{}, {} a commit", row.layout, row.commit),
            mb_per_day: per_day / 1e6,
            years_10k: years(10_000.0),
            years_100k: years(100_000.0),
        }
    };
    let mut table = Vec::new();
    for row in rows {
        let bulk = row.commit > 1 && !row.layout.starts_with("cold");
        if bulk || row.layout.ends_with("rows") {
            table.push(of(polled, 172_800.0, row));
        }
        if row.commit == 1 && (row.layout.ends_with("rows") || row.layout.starts_with("critical")) {
            table.push(of(critical, 500.0, row));
        }
    }
    table
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let disk = args.disk.as_deref();
    let mut rows = flash::plain_tables(disk).await?;
    rows.extend(flash::flushes(disk, &[10, 60, 100, 250, 1_000]).await?);
    rows.push(flash::cold(disk).await?);
    rows.extend(flash::criticals(disk).await?);
    let wear = wear_table(&rows);
    if args.json {
        println!("{}", serde_json::to_string(&serde_json::json!({ "costs": rows, "wear": wear }))?);
    } else {
        println!("{:<36} {:>7} {:>12} {:>12} {:>12}  goal", "layout", "commit", "written B", "dirty-4K B", "file B");
        for row in &rows {
            let Cost { goal, layout, commit, written_bytes_per_event, dirty_4k_bytes_per_event, file_bytes_per_event } =
                row;
            let goal = goal.map_or_else(String::new, |(id, most)| {
                format!("{id} <= {most}: {}", if *dirty_4k_bytes_per_event <= most { "yes" } else { "NO" })
            });
            println!(
                "{layout:<36} {commit:>7} {written_bytes_per_event:>12.1} {dirty_4k_bytes_per_event:>12.1} \
                 {file_bytes_per_event:>12.1}  {goal}"
            );
        }
        println!("\n{:<44} {:<40} {:>9} {:>12} {:>12}", "workload", "layout", "MB/day", "years @10k", "years @100k");
        for Wear { workload, layout, mb_per_day, years_10k, years_100k } in &wear {
            println!("{workload:<44} {layout:<40} {mb_per_day:>9.1} {years_10k:>12.1} {years_100k:>12.1}");
        }
    }
    Ok(())
}
