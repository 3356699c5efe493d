//! Consumers: who reads the order of events as it grows, and how far each has come.

pub(crate) mod guard;

mod definition;
mod filter;

pub use definition::{Consumer, ConsumerName, GuardLimits, StartAt};
pub use filter::Filter;
pub use guard::Guard;
