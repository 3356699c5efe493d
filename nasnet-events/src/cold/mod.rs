//! The cold tier: monthly files of self-describing frames in a directory outside of flash.

mod dir;
mod frame;
mod index;
mod month;

pub(crate) use dir::{Archived, ColdDir};
pub use dir::{ColdState, prepare_cold_dir};
pub(crate) use frame::{FRAME_BYTES_MAX, FRAME_EVENTS_MAX};
