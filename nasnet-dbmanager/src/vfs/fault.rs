//! Faults on purpose, for tests of this crate and of whoever builds on it (feature `fault-injection`).
//!
//! Every file operation of this crate passes one place: those of SQLite the VFS, the rest (markers, keys, renames,
//! syncs of directories) one small module. With this feature both report to, and obey, what a test sets up for the
//! files below a directory:
//!
//! - [`Fault`] makes the Nth operation of a kind fail with a chosen result code, or ends the process there, also with
//!   the write half done.
//! - [`Recorder`] writes down every operation, together with marks the test sets when it was told that something is
//!   durable. [`Recording::crash_states`] then yields what a disk may hold after a power cut at each point: nothing
//!   unsynced, everything, a prefix, a random subset of 512-byte sectors, and the same with garbage where a file
//!   had grown. [`Recording::replay`] lays each of them out as a directory for a check of the caller.
//! - [`Medium`] says how the disk behaves; its two liars are controls a sound check must catch.
//!
//! # What is not simulated
//! The WAL index (`-shm`), which no crash survives; damage to what was synced before; every subset of the unsynced
//! sectors (they are sampled); operations outside of this crate. File names are taken to reach the medium only when
//! their directory is synced, which is stricter than most file systems.
//!
//! # Example
//! ```
//! use nasnet_dbmanager::vfs::fault::{Medium, Recorder, Replay};
//! use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId};
//!
//! # let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
//! let (disk, run) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! let recorder = Recorder::start(disk.path())?;
//! runtime.block_on(async {
//!     let manager = DbManager::open(Options::new(disk.path().join("data")).run_dir(run.path().join("run"))).await?;
//!     manager.create_router(NewRouter::new(RouterId::parse("home")?)).await?;
//!     recorder.ack(1); // From here on the router must be there, whatever happens.
//!     manager.shutdown().await
//! })?;
//! let recording = recorder.stop();
//! run.close()?; // The power cut takes it away.
//!
//! let look = |dir: &std::path::Path| {
//!     let run = tempfile::tempdir().map_err(|error| error.to_string())?;
//!     runtime.block_on(async {
//!         let manager = DbManager::open(Options::new(dir.join("data")).run_dir(run.path())).await?;
//!         let routers = manager.routers().await?.len();
//!         manager.shutdown().await?;
//!         Ok(routers)
//!     })
//!     .map_err(|error: nasnet_dbmanager::Error| error.to_string())
//! };
//! // Every 40th crash point only, to be quick.
//! let report = recording.replay(&Replay { every: 40, ..Replay::new(7) }, look, |state, routers| match routers {
//!     Ok(routers) if *routers >= state.acked().len() => None,
//!     other => Some(format!("{other:?} after {:?}", state.acked())),
//! })?;
//! assert!(report.states > 0 && report.failures.is_empty(), "{:?}", report.failures);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod disk;
mod inject;
mod record;
mod replay;

pub(crate) mod hook;

pub use inject::{Armed, Fault, Operation};
pub use record::{Recorder, Recording};
pub use replay::{CrashState, CrashStates, Failure, Medium, Replay, ReplayReport, Variant};
