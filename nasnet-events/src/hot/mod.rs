//! The hot tier: the log in tmpfs, what appends to it, and who owns its reservations.

pub(crate) mod appender;
pub(crate) mod compact;
pub(crate) mod flushed;
pub(crate) mod index;
pub(crate) mod log;
pub(crate) mod look;
pub(crate) mod newest;
pub(crate) mod purged;
pub(crate) mod seat;
pub(crate) mod session;
pub(crate) mod shed;
pub(crate) mod summary;
pub(crate) mod tops;
pub(crate) mod truncated;
