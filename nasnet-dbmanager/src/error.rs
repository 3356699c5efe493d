//! The one error type of the crate.

use std::io;
use std::path::PathBuf;

/// What went wrong; each variant is something a caller does differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a router id.
    #[error("invalid router id {input:?}: {reason}")]
    InvalidRouterId {
        /// The refused text.
        input: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The master key cannot be used.
    #[error("master key from {origin}: {fault}")]
    MasterKey {
        /// The path or the environment variable.
        origin: String,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// A sealed value does not open.
    #[error("sealed value refused: {reason}")]
    Sealed {
        /// Why, without a word of the value.
        reason: &'static str,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system")]
    Random,
    /// A stored value has a form that is never written.
    #[error("stored {what} cannot be read: {detail}")]
    Decode {
        /// The kind of value.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// What is wrong with a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// There is none.
    #[error("it is not set")]
    Missing,
    /// The path is not a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file has another length.
    #[error("it holds {actual} bytes instead of 32")]
    Length {
        /// The length found.
        actual: u64,
    },
    /// The group or others may use the file.
    #[error("its mode is {mode:04o}; only its owner may have access (0600)")]
    Permissions {
        /// The permission bits found.
        mode: u32,
    },
    /// The text is neither hexadecimal nor base64 of 32 bytes.
    #[error("it is neither 64 hexadecimal digits nor base64 of 32 bytes")]
    Encoding,
}
