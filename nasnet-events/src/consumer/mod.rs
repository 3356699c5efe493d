//! Consumers: who reads the order of events as it grows, and how far each has come.

pub(crate) mod guard;
pub(crate) mod left_out;
pub(crate) mod progress;

mod away;
mod checkpoint;
mod claim;
mod definition;
mod filter;
mod item;
mod list;
mod marker;
mod projection;
pub(crate) mod rows;
mod subscription;

pub use definition::{Consumer, ConsumerName, GuardLimits, StartAt};
pub use filter::Filter;
pub use guard::Guard;
pub use item::Item;
pub use left_out::LeftOut;
pub use list::ConsumerStatus;
pub use projection::{project_in, projected_through};
pub use subscription::Subscription;

#[cfg(test)]
mod window_tests;
