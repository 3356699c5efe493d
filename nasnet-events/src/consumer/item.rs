//! What a subscription yields.

use crate::consumer::LeftOut;
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
    /// The database of a scope cannot be read, and a consumer of several scopes has waited for it long enough: it goes on
    /// with the others. Of that scope nothing in the range is shown; what is behind it is. The store remembers the range
    /// ([`crate::EventStore::left_out`]) until it is settled, and keeps retention from it as far as the consumer's guard does.
    LeftOut {
        /// What is not shown.
        left: LeftOut,
        /// The place before it.
        position: Position,
    },
    /// What was left out can be read: with [`LeftOut::query`], and whoever has it settles it with
    /// [`crate::EventStore::settle`]. At least once for each subscription until then.
    Returned {
        /// What was not shown.
        left: LeftOut,
        /// What retention has removed of that scope and may have been among it.
        removed: Vec<Truncated>,
        /// The scope is a router that was retired meanwhile: what the cold tier has of it is all there is.
        retired: bool,
        /// Everything up to here was looked at.
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
            Self::CaughtUp { position }
            | Self::TailLost { position, .. }
            | Self::Truncated { position, .. }
            | Self::LeftOut { position, .. }
            | Self::Returned { position, .. } => *position,
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
