//! A fleet of SQLite files you can trust: one always-open `system.db` and any number of lazily opened, mutually
//! isolated router databases, each with one fair writer, a few readers, verified settings and safe migrations.
//!
//! It is not an object mapper, not a server, and not a pool of equal connections. Operations are closures over a plain
//! `sqlx` connection; the README has the first example. Start at [`DbManager::open`]; [`Database`] says what a write
//! and a read promise; [`SchemaSet`] is how a crate brings its tables along; [`system`] holds the registry, secrets,
//! settings, counters and the audit log.
//!
//! # What survives what
//!
//! | | end of the process | power cut | cancelled future |
//! |---|---|---|---|
//! | an answered write on flash (`system.db`, router databases) | yes | yes | yes |
//! | an answered write in memory (`hot.db`, `runtime.db`, `locks.db`) | yes | no | yes |
//! | an unanswered write | whole or not at all | whole or not at all | runs on; ask for its key |
//! | a router being created | finished at the next open | finished at the next open | finished at the next open |
//! | a router being retired, reinstated, purged or quarantined | the same | the same | the same |
//! | a router being restored | the old or the new data, whole; cleared up at the next open | the same | the same |
//! | a backup being made | nothing has its name yet | the same | the same |

mod clock;
mod error;
mod id;
mod seal;
mod ulid_gen;

mod options;
mod schema;
mod stats;

mod create;
mod database;
mod keys;
mod manager;
mod raw;

mod annex;
mod attach;
mod fleet;
mod loader;

mod budget;
mod connection;
mod db_lock;
mod dir_lock;
mod driver;
mod durable;
mod evict;
mod external;
mod fleet_files;
mod home;
mod hot;
mod idle;
mod layout;
mod lease;
mod meta;
mod migrate;
mod open;
mod probe;
mod reader;
mod registry;
mod room;
mod rotation;
mod space;
mod writer;

mod backup;
mod collect;
mod custody;
mod dump;
mod health;
mod high_water;
mod housekeeping;
mod manifest;
mod quarantine;
mod replay;
mod restore;
mod retire;
mod sweep;
mod template;
mod vitals;
mod whole;

pub mod observe;
pub mod system;
pub mod vfs;

pub use futures_util::future::BoxFuture;

pub use annex::carry::AnnexFile;
pub use annex::{AnnexFamily, AnnexPlace, Annexes};
pub use attach::AttachedRows;
pub use budget::{BudgetLevel, Charge, FlashBudget, FlashReport};
pub use clock::{BootId, Clock, ClockQuality, ManualClock, Now, SystemClock};
pub use collect::FleetMetric;
pub use custody::{AsideReason, KnownBackup, RetiredRouter, SetAside};
pub use database::Database;
pub use error::{ConstraintKind, Error, KeyFault};
pub use external::ExternalRestore;
pub use fleet::migrate::{MigratedSet, MigrationOutcome};
pub use fleet::references::{DanglingReport, KeyValue, Reference, ReferenceTarget};
pub use fleet::{Fleet, FleetMap, FleetReport};
pub use health::{DatabaseHealth, DbHealth};
pub use high_water::{HighWater, LargestId};
pub use housekeeping::{BackupSchedule, Housekeeper, Housekeeping, HousekeepingOptions, HousekeepingReport};
pub use id::{Cause, Class, RouterId, Scope};
pub use keys::KeyOutcome;
pub use loader::Loader;
pub use manager::{DbManager, RouterDb, ScopeDb};
pub use manifest::{BackupFile, FailedBackup, Manifest, Which};
pub use options::{MasterKeySource, OnDamage, OnOpen, Options, Preset};
pub use quarantine::{LostRange, Moment, Recovery, RestoredFrom, TableLoss, Verdict, verdict};
pub use raw::{FromColumn, RawConn, RawRow, RawValue};
pub use replay::{Leaving, Replay, ReplayError, Replayed, Restored};
pub use restore::system::SystemRestored;
pub use restore::{RestoreMode, RestoreReport, RestoredRouter};
pub use schema::{FileKind, Migration, Profile, SchemaSet};
pub use seal::{MasterKey, Sealer};
pub use stats::{DatabaseStats, Stats};
pub use system::SystemDb;
pub use system::routers::{NewRouter, RouterRecord};
pub use ulid_gen::UlidGen;
pub use vfs::Written;
pub use whole::Whole;
pub use writer::Checkpoint;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct ReadmeDoctests;
