//! Errors of running a simulator, as opposed to what a simulated router answers.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a simulator could not be started, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// Another program listens on the address.
    #[error("address {address} is in use")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The simulator listens on loopback only.
    #[error("address {address} is not a loopback address")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// Listening failed.
    #[error("listening on {address} failed")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A file operation failed.
    #[error("{operation} of {} failed", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a saved simulator, or was changed since it was saved.
    #[error("{} is not an intact simulator file: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The file was written by a later version.
    #[error("{} has format {found}, this version reads up to {supported}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that can be read.
        supported: u32,
    },
}

impl SimError {
    /// Returns whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::AddressInUse { .. } | Self::Listen { .. })
    }
}
