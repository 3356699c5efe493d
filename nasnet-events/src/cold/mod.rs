//! The cold tier: monthly files of self-describing frames in a directory outside of flash.

mod dir;
mod fence;
mod frame;
mod frames;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod index;
mod month;

#[cfg(test)]
mod tests;

pub(crate) use dir::{Archived, ColdDir, Known, Mount, Session};
pub use dir::{ColdFindings, ColdState};
pub use fence::prepare_cold_dir;
pub(crate) use frame::{FRAME_BYTES_MAX, FRAME_EVENTS_MAX, Header};
pub(crate) use month::FileName;
