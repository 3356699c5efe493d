//! Where events go.

use nasnet_dbmanager::BoxFuture;

use crate::event::Recorded;

/// Events to be delivered together, oldest first. Facts about a subject are sealed, as they are stored.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Fleet and consumer: positions of different sources cannot be compared.
    pub source: &'a str,
    /// Same events, same key: what a receiver needs to know a repetition. Each event has an id and a position besides.
    pub key: &'a str,
    /// The events, at least one.
    pub events: &'a [Recorded],
    /// True for an event that was given up once: later ones of its stream may have been delivered.
    pub late: bool,
}

/// What became of a batch, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// All of it has arrived, now or before.
    Delivered,
    /// It may or may not have arrived and is to be sent again. Counts as a try of its streams.
    Retry {
        /// Why, without secrets.
        why: String,
    },
    /// It will never be accepted. Sent one by one, the events it is about become dead letters.
    Rejected {
        /// Why, without secrets.
        why: String,
    },
    /// Nothing can be delivered now, whatever it is. Costs no try: it is nobody's fault.
    Offline {
        /// Why, without secrets.
        why: String,
    },
}

/// A receiver of events.
///
/// A batch may come again, whole or in other company, when an answer was lost or a process died: `deliver` must be
/// idempotent by event id, or by source, stream and position. An implementation needs a deadline of its own; one that is
/// silent for half a minute is taken for [`Delivery::Retry`].
pub trait Sink: Send + Sync {
    /// Delivers a batch.
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery>;
}

impl<S: Sink + ?Sized> Sink for std::sync::Arc<S> {
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        (**self).deliver(batch)
    }
}
