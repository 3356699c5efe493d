//! nasnet-dbmanager: see the README.

mod clock;
mod driver;
mod error;
mod id;
mod schema;
mod seal;
pub mod system;
mod ulid_gen;
pub mod vfs;

pub use futures_util::future::BoxFuture;

pub use clock::{BootId, Clock, ClockQuality, ManualClock, Now, SystemClock};
pub use error::{ConstraintKind, Error, KeyFault};
pub use id::{Cause, RouterId, Scope};
pub use schema::{FileKind, Migration, Profile, SchemaSet};
pub use seal::{MasterKey, Sealer};
pub use ulid_gen::UlidGen;
