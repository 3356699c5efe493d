//! What differs between the router and what was confirmed, and what to do about it.
//!
//! Three values decide who moved: what was confirmed last, what is wanted, what is there. A wish that has not been applied
//! yet is not drift, and a field the device hides is neither right nor wrong but unverifiable.

pub mod classify;
pub mod policy;
pub mod three_way;

pub use classify::{DriftClass, DriftReport, ExtraRow, ResourceDrift};
pub use policy::{Policies, Response};
