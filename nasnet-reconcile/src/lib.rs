//! Changes routers by apply, confirm and merge, so that the stored state is always what the router confirmed.
#![forbid(unsafe_code)]

pub mod device;
pub mod op;
#[cfg(feature = "routeros")]
pub mod routeros;
#[cfg(feature = "simulator")]
pub mod simulator;
