//! One operation on one router, as a state machine without I/O.
//!
//! Everything here is pure: no clock, no randomness, no SQL, no device. [`Machine::step`](machine::Machine::step) takes
//! one [`Input`] and answers with [`Effect`]s; a driver performs them. That is what makes it affordable to try every crash
//! point against every outcome.

pub mod image;
pub mod journal;
pub mod machine;
pub mod plan;
pub mod recover;
pub mod report;
pub mod row_key;
pub mod secret;
pub mod step;
pub mod undo;

pub use image::{Fit, Image, RowClass, RowImage, Sight, Touched};
pub use journal::{JournalState, Record};
pub use machine::{Effect, Input, Limits, Machine};
pub use plan::{Plan, PlanError, RowChange};
pub use recover::Decision;
pub use report::{LeftOver, OpOutcome, OpReport, StepReport, StepState};
pub use row_key::RowKey;
pub use secret::{SecretSlot, Vault};
pub use step::{Action, Direction, Intent, Step, Wire};
