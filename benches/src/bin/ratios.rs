//! Prints the ratios that are really measured here, each from one run with its peer beside it.
//!
//! A row is the median of interleaved rounds, taken once with an idle and once with a busy second core; the worse of the
//! two is printed.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the output of this program")]

#[path = "ratios/archive.rs"]
mod archive;
#[path = "ratios/day.rs"]
mod day;
#[path = "ratios/flash.rs"]
mod flash;
#[path = "ratios/hot.rs"]
mod hot;
#[path = "ratios/p13.rs"]
mod p13;
#[path = "ratios/p14.rs"]
mod p14;
#[path = "ratios/p17.rs"]
mod p17;
#[path = "ratios/p18.rs"]
mod p18;
#[path = "ratios/p4.rs"]
mod p4;
#[path = "ratios/p8.rs"]
mod p8;
#[path = "ratios/peers.rs"]
mod peers;
#[path = "ratios/s5.rs"]
mod s5;
#[path = "ratios/s7.rs"]
mod s7;
#[path = "ratios/single.rs"]
mod single;

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
    /// The program of `benches/peers`; without it the rows against event stores and key-value stores are left out.
    #[arg(long, env = "NASNET_PEERS")]
    peers: Option<PathBuf>,
    /// Events of a round of the rows about the hot tier. Fewer flatter every store.
    #[arg(long, default_value_t = 500_000)]
    events: usize,
    /// Rounds of these rows, each once with an idle and once with a busy second core.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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
    let peers = args.peers.map(peers::Peers);
    if peers.is_none() {
        eprintln!("no --peers: P1, P2, P3 and P7 are left out");
    }
    rows.extend(hot::rows(peers.as_ref(), hot::Size { rounds: args.rounds, events: args.events }, wanted).await?);
    if wanted("P4") {
        rows.extend(p4::rows().await?);
    }
    if wanted("P8") || wanted("P11") {
        rows.extend(p8::rows().await?);
    }
    rows.extend(flash::rows(disk, wanted).await?);
    if wanted("P12") {
        rows.extend(archive::rows(disk).await?);
    }
    if wanted("P14") {
        rows.extend(p14::rows(disk).await?);
    }
    if wanted("P13") {
        rows.extend(p13::rows(disk).await?);
    }
    if wanted("P17") {
        rows.extend(p17::rows(disk).await?);
    }
    if wanted("S1") || wanted("S2") {
        rows.extend(single::rows().await?);
    }
    if ["S3", "S4", "S6"].into_iter().any(wanted) {
        rows.extend(day::rows(disk, wanted).await?);
    }
    if wanted("S5") {
        rows.extend(s5::rows(disk).await?);
    }
    if wanted("S7") {
        rows.extend(s7::rows(disk).await?);
    }
    if wanted("P18") {
        rows.extend(p18::rows(disk).await?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        println!("{:<5} {:>10} {:>8}  {:<5} {:>8} {:>8}  what", "id", "value", "target", "holds", "idle", "busy");
        for Ratio { id, what, value, target, holds, idle, busy } in &rows {
            let [idle, busy] = [idle, busy].map(|value| value.map_or_else(String::new, |value| format!("{value:.2}")));
            let holds = if *holds { "yes" } else { "NO" };
            println!("{id:<5} {value:>10.2} {target:>8.2}  {holds:<5} {idle:>8} {busy:>8}  {what}");
        }
    }
    Ok(())
}
