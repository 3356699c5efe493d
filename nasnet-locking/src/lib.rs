#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

pub mod error;
pub mod fence;
pub mod key;
pub mod lease;
pub mod observe;
pub mod optimistic;
pub mod policy;
pub mod request;

mod guard;
mod keeper;
mod manager;
#[cfg(test)]
mod model;
mod operator;
mod schema;
mod session;
mod store;
mod token;
mod wait;

pub use error::{Error, KeyFault, LostReason, Seen, StaleView};
pub use guard::{LeaseGuard, WriteRight};
pub use key::{KeySet, LockKey};
pub use lease::{Holder, LockInfo, Mode};
pub use manager::{LockManager, LockOptions, TOKEN_BLOCK, TOKEN_COUNTER};
pub use operator::{BrokenLease, Inspection, LockFilter, LockView};
pub use policy::{LockPolicy, Locking, Reach};
pub use request::{AcquireRequest, Renew, Wait};
pub use schema::{high_waters, schema_sets};
pub use token::FencingToken;
