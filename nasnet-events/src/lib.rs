#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(test)]
mod arbitrary;
mod block;
mod class;
mod error;
mod event;
mod expected;
mod line;
mod name;
mod options;
mod position;
mod receipt;
//mod schema;
pub mod types;
mod varint;

pub use class::{Class, ClassRules};
pub use error::{Conflict, Error};
pub use event::{Head, Level, NewEvent, Recorded, StreamAppend};
pub use expected::Expected;
pub use name::{EventType, StreamName};
pub use options::{ColdOptions, ColdPolicy, EventOptions};
pub use position::Position;
pub use receipt::{Achieved, Receipt};
//pub use schema::schema_sets;
