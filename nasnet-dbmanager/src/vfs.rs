//! A SQLite VFS that passes everything through to the default one and counts what is written.
//!
//! Connections use it by name: `SqliteConnectOptions::vfs(vfs::NAME)`, after [`register`]. Bytes, syncs and dirtied
//! 4 KiB pages are added up per main database file, whose WAL and rollback journal count as part of it.
//!
//! What the meter does not see: the WAL index (`-shm`, memory-mapped and dirtied by readers too), temporary files
//! (kept in memory by the connections of this crate), super-journals, and the metadata the file system writes by
//! itself. Every call passes through one function of `file.rs` or `shim.rs`, each a single place where an operation
//! can be observed before and after it happens.

#[cfg(feature = "fault-injection")]
pub mod fault;
mod file;
mod meter;
mod shim;

pub use meter::{Meter, Written, forget, written};
pub use shim::{NAME, register};
