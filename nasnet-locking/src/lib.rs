#![forbid(unsafe_code)]
//! Leases that cost no flash, whose fencing token is checked inside the transaction it protects.

pub mod error;
pub mod fence;
pub mod key;
pub mod lease;
pub mod policy;
pub mod request;
mod session;
mod store;
mod token;
pub use error::{Error, KeyFault, LostReason, Seen, StaleView};
pub use key::{KeySet, LockKey};
pub use lease::{Holder, LockInfo, Mode};
pub use token::FencingToken;
