//! What a subscription yields.

use crate::epoch::TailLost;
use crate::event::Recorded;
use crate::position::Position;
use crate::truncation::Truncated;

/// One thing a consumer is shown. Each has a position to be acknowledged.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Item {
    /// An event.
    Event(Recorded),
    /// Everything there was has been shown; from now on events come as they are appended.
    CaughtUp {
        /// Everything up to here was looked at.
        position: Position,
    },
    /// The end of an epoch was lost with tmpfs: events the consumer has seen may not be there any more, and others it has
    /// not seen never will be. Once for each loss.
    TailLost {
        /// What was lost.
        lost: TailLost,
        /// The place between the two epochs.
        position: Position,
    },
    /// Events were removed before the consumer saw them. Once for each removal.
    Truncated {
        /// What was removed.
        removed: Truncated,
        /// The place directly before the last event removed.
        position: Position,
    },
    /// The consumer was live and has fallen behind by more than its capacity: what it missed is read from the store, up to
    /// the next `CaughtUp`. Nothing is lost.
    Lagged {
        /// The last position it was shown.
        after: Position,
        /// The last position there was.
        through: Position,
    },
}

impl Item {
    /// The position to acknowledge once this and everything before it is handled. Markers share the position of the event
    /// before them: an acknowledgement covers every item of its position that was taken from the stream by then.
    #[must_use]
    pub const fn position(&self) -> Position {
        match self {
            Self::Event(event) => event.position,
            Self::CaughtUp { position } | Self::TailLost { position, .. } | Self::Truncated { position, .. } => {
                *position
            }
            Self::Lagged { after, .. } => *after,
        }
    }

    /// The event, if it is one.
    #[must_use]
    pub const fn event(&self) -> Option<&Recorded> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}
