//! The one error of the crate.

use ulid::Ulid;

use crate::kind::KindName;

/// What can go wrong in the resource model and its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not a valid name, id or value of its type.
    #[error("invalid {what} {given:?}")]
    Invalid {
        /// Which type was wanted.
        what: &'static str,
        /// What was given, shortened.
        given: String,
    },
    /// No resource has this uid.
    #[error("resource {uid} does not exist")]
    NotFound {
        /// The uid asked for.
        uid: Ulid,
    },
    /// The resource was deleted; only its tombstone is left.
    #[error("resource {uid} is deleted")]
    Deleted {
        /// The uid asked for.
        uid: Ulid,
    },
    /// The resource is protected by `prevent_destroy`.
    #[error("resource {uid} is protected from deletion")]
    Protected {
        /// The uid asked for.
        uid: Ulid,
    },
    /// A live resource of this kind already has this name.
    #[error("a resource {kind} named {name:?} already exists")]
    NameTaken {
        /// The kind both share.
        kind: KindName,
        /// The name both claim.
        name: String,
    },
    /// A resource, live or deleted, already has this uid.
    #[error("uid {uid} is already in use")]
    UidTaken {
        /// The uid both claim.
        uid: Ulid,
    },
    /// Somebody else wrote the layer since the caller read it.
    #[error("{layer} of resource {uid} is at version {actual}, not {expected}")]
    Conflict {
        /// The resource written to.
        uid: Ulid,
        /// The layer group whose version did not match.
        layer: &'static str,
        /// The version the caller had read.
        expected: u64,
        /// The version in the store.
        actual: u64,
    },
    /// A write carries the reference of a secret, but neither the write nor the store has its sealed bytes.
    #[error("field {field} of resource {uid} refers to a secret whose sealed bytes are not stored")]
    SecretMissing {
        /// The resource.
        uid: Ulid,
        /// The sensitive field.
        field: String,
    },
    /// Sealing or opening a secret failed.
    #[error("cannot {action} the secret of field {field}")]
    Seal {
        /// `seal` or `open`.
        action: &'static str,
        /// The sensitive field.
        field: String,
        /// What the sealing side said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored row cannot be read back.
    #[error("{layer} of resource {uid} cannot be read: {detail}")]
    Malformed {
        /// The resource, or the raw key in hexadecimal when even that is broken.
        uid: String,
        /// The layer that is damaged.
        layer: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A sequence of changes does not continue the state it is applied to.
    #[error("history of resource {uid} does not fold: {detail}")]
    BrokenHistory {
        /// The resource.
        uid: Ulid,
        /// Which step failed.
        detail: String,
    },
    /// Resources refer to each other in a circle.
    #[error("dependency cycle: {}", .path.join(" -> "))]
    Cycle {
        /// The members in order; the first is repeated at the end.
        path: Vec<String>,
    },
    /// SQLite refused or failed a statement.
    #[error("cannot {operation}")]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
}

impl Error {
    /// Returns true when the same call can succeed later without the caller changing anything.
    pub fn is_retryable(&self) -> bool {
        const BUSY: &str = "5";
        const LOCKED: &str = "6";
        match self {
            Self::Storage { source: sqlx::Error::Database(error), .. } => {
                // Extended result codes carry the primary one in their low byte.
                let primary =
                    error.code().and_then(|code| code.parse::<u32>().ok()).map(|code| (code & 0xff).to_string());
                matches!(primary.as_deref(), Some(BUSY | LOCKED))
            }
            Self::Storage { source: sqlx::Error::PoolTimedOut, .. } => true,
            _ => false,
        }
    }

    pub(crate) fn invalid(what: &'static str, given: &str) -> Self {
        Self::Invalid { what, given: given.chars().take(120).collect() }
    }
}
