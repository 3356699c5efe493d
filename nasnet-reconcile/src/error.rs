//! The one error of the crate.

use nasnet_dbmanager::RouterId;
use nasnet_state::validate::finding::Finding;
use ulid::Ulid;

use crate::device::DeviceError;
use crate::op::PlanError;

/// Why the engine could not do what it was asked to. How an operation itself went is never an error but an
/// [`OpReport`](crate::op::OpReport).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The change set cannot be applied; nothing was locked or written.
    #[error("change set refused with {} findings, first: {}", findings.len(), first(findings))]
    Refused {
        /// What is wrong, most important first.
        findings: Vec<Finding>,
    },
    /// No plan can be made.
    #[error("no plan can be made: {0}")]
    Plan(#[from] PlanError),
    /// Another device answers: nothing is written until a person has looked.
    #[error("router {router} is the device with serial number {expected}, but {found} answers")]
    WrongDevice {
        /// The router.
        router: RouterId,
        /// The serial number it was registered with.
        expected: String,
        /// The one that answered.
        found: String,
    },
    /// An operation of the router is open: it must be recovered first.
    #[error("operation {op_id} of router {router} is open and must be recovered first")]
    OperationOpen {
        /// The router.
        router: RouterId,
        /// The open operation.
        op_id: Ulid,
    },
    /// One idempotency key was used for two different requests.
    #[error("idempotency key {key} was used for another request")]
    KeyReused {
        /// The key.
        key: Ulid,
    },
    /// What the drift report says about a resource is no longer what the device shows.
    #[error("the drift report is out of date: {detail}")]
    Stale {
        /// What differs.
        detail: String,
    },
    /// The device could not be asked.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The lease could not be had, or was lost.
    #[error(transparent)]
    Lock(#[from] nasnet_locking::Error),
    /// The resource model refused.
    #[error(transparent)]
    State(#[from] nasnet_state::Error),
    /// The event store refused.
    #[error(transparent)]
    Events(#[from] nasnet_events::Error),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] nasnet_dbmanager::Error),
    /// What the journal holds cannot be read.
    #[error("{what} of the journal cannot be read: {detail}")]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl Error {
    /// Returns whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Device(error) => error.is_retryable(),
            Self::Lock(error) => error.is_retryable(),
            Self::State(error) => error.is_retryable(),
            Self::Events(error) => error.is_retryable(),
            Self::Database(error) => error.is_retryable(),
            Self::Stale { .. } => true,
            Self::Refused { .. }
            | Self::Plan(_)
            | Self::WrongDevice { .. }
            | Self::OperationOpen { .. }
            | Self::KeyReused { .. }
            | Self::Corrupt { .. } => false,
        }
    }

    pub(crate) fn corrupt(what: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Corrupt { what, detail: error.to_string() }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self::Database(source.into())
    }
}

fn first(findings: &[Finding]) -> String {
    findings.first().map_or_else(|| "none".to_owned(), |finding| format!("{}: {}", finding.path, finding.message))
}
