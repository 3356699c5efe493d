//! What the measurements share: deterministic events, medians, and rows of the tables they print.
#![forbid(unsafe_code)]

pub mod day;
pub mod events;
pub mod flash;
pub mod footprint;
pub mod hot;
pub mod leases;
pub mod measure;
pub mod naive;
pub mod place;
pub mod rows;
