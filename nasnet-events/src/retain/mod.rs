//! Retention of the warm tier: what may go, why the rest stays, and the removal itself.

mod age;
mod facts;
pub(crate) mod horizon;
mod marks;
mod plan;
mod policy;
mod remove;
mod run;
mod snapshot;
pub(crate) mod versions;

pub(crate) use plan::Doomed;
pub use plan::{Blocked, Blocker, Forced, RetentionPlan, ScopePlan};
pub use policy::{Keep, Retention};
pub use run::RetentionReport;
pub use snapshot::SnapshotHorizon;
