//! nasnet-dbmanager: see the README.

mod clock;
mod error;
mod id;
mod seal;
mod ulid_gen;
pub mod vfs;

pub use futures_util::future::BoxFuture;

pub use clock::{BootId, Clock, ClockQuality, ManualClock, Now, SystemClock};
pub use error::{Error, KeyFault};
pub use id::{Cause, RouterId, Scope};
pub use seal::{MasterKey, Sealer};
pub use ulid_gen::UlidGen;
