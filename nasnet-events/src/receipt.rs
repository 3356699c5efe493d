//! What an append achieved.

use crate::position::Position;

/// How durable an appended event is at the time of the receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Achieved {
    /// In the hot tier: survives a killed process, not a power cut.
    Hot,
    /// Committed and synced in the scope's database on flash: survives a power cut.
    Synced,
}

impl Achieved {
    /// The word used in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Synced => "synced",
        }
    }
}

/// The answer to an append: where the events stand and how durable they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the first event of the append.
    pub first: Position,
    /// Position of its last event.
    pub last: Position,
    /// Version of the stream after its last event.
    pub version: u64,
    /// The durability that was reached, not the one that was asked for.
    pub achieved: Achieved,
    /// True when the events were known by their ids and nothing was written.
    pub deduplicated: bool,
}
