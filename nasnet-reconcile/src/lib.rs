#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;

pub mod device;

pub mod op;

mod kinds;
mod observe;
mod resolve;
mod seal;

mod change;
pub mod drift;

#[cfg(feature = "routeros")]
pub mod routeros;
#[cfg(feature = "simulator")]
pub mod simulator;

mod driver;
mod engine;
mod journal;
mod merge;
mod schema;

pub use change::{Change, ChangeSet};
pub use engine::{ImportReport, Reconciler, When};
pub use error::Error;
pub use kinds::Kinds;
pub use schema::{high_waters, largest_ids, schema_sets};
pub use seal::StateSeal;
