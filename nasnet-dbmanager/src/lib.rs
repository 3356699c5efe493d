//! nasnet-dbmanager: see the README.

mod clock;
mod error;
mod id;
mod seal;
mod ulid_gen;

mod options;
mod schema;
mod stats;

mod database;
mod keys;
mod manager;

mod connection;
mod driver;
mod evict;
mod file_lock;
mod fleet_files;
mod home;
mod layout;
mod lease;
mod meta;
mod migrate;
mod open;
mod reader;
mod registry;
mod writer;

pub mod system;
pub mod vfs;

pub use futures_util::future::BoxFuture;

pub use clock::{BootId, Clock, ClockQuality, ManualClock, Now, SystemClock};
pub use database::Database;
pub use error::{ConstraintKind, Error, KeyFault};
pub use id::{Cause, RouterId, Scope};
pub use keys::KeyOutcome;
pub use manager::{DbManager, RouterDb, ScopeDb};
pub use options::{MasterKeySource, OnOpen, Options, Preset};
pub use schema::{FileKind, Migration, Profile, SchemaSet};
pub use seal::{MasterKey, Sealer};
pub use stats::{DatabaseStats, Stats};
pub use system::SystemDb;
pub use system::routers::{NewRouter, RouterRecord};
pub use ulid_gen::UlidGen;
pub use vfs::Written;
pub use writer::Checkpoint;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct ReadmeDoctests;
