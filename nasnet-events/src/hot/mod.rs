//! The hot tier: the log in tmpfs, the task that appends to it, and who owns its reservations.

pub(crate) mod appender;
pub(crate) mod index;
pub(crate) mod log;
pub(crate) mod session;
#[allow(dead_code, reason = "written by what is built next")]
pub(crate) mod truncated;
