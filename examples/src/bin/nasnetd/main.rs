//! nasnetd: the thin daemon that wires the storage crates for a router.
//!
//! Today it has one verb a person uses, `demo`, which runs the main job end to end against a simulated router, and
//! `export-sample`, which writes an export of any length to try it on.
#![forbid(unsafe_code)]

mod demo;
mod sample;
mod summary;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Storage for router management: what the user wants, what the router is, and everything that happened.
#[derive(Debug, Parser)]
#[command(name = "nasnetd", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the main job on embedded defaults against a simulated RouterOS device.
    Demo(demo::Args),
    /// Prints a RouterOS export of the given length.
    ExportSample {
        /// How many lines.
        #[arg(long, default_value_t = 2_000)]
        lines: usize,
    },
    /// Plays the process that oversleeps its lease. Started by the demo.
    #[command(hide = true)]
    StaleHolder(demo::stale_holder::Args),
}

/// Exit codes: 0 all held, 1 something did not hold, 2 the input cannot be used and nothing was changed.
fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("no async runtime: {error}")),
    };
    match cli.verb {
        Verb::Demo(args) => runtime.block_on(demo::run(args)),
        Verb::ExportSample { lines } => print(&sample::export(lines)),
        Verb::StaleHolder(args) => runtime.block_on(demo::stale_holder::run(args)),
    }
}

/// Writes to stdout; a reader that went away is not an error of ours.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("stdout: {error}")),
    }
}

/// Says why, in one line, and gives the exit code.
#[expect(clippy::print_stderr, reason = "the one place where the program complains")]
fn fail(code: u8, why: &str) -> ExitCode {
    eprintln!("nasnetd: {why}");
    ExitCode::from(code)
}
