//! The loop that sends, and who may run it.

use std::future::Future;
use std::pin::pin;

use crate::consumer::Consumer;
use crate::error::Error;
use crate::forward::forwarding::Forwarding;
use crate::forward::pause::IDLE_PAUSE;
use crate::forward::{Backoff, Sink};
use crate::store::EventStore;

/// Sends the events of a consumer to a sink, each at least once, those of a stream in order.
///
/// - One process at a time sends as a consumer: it claims the consumer as [`EventStore::subscribe`] does, and another takes
///   over at once when it dies, or after a minute of silence.
/// - A batch that fails is taken apart by stream. A stream whose event fails waits by itself, as [`Backoff`] says, and is
///   resumed with that event alone; all others go on. After the last try, or when an event is rejected, it becomes a dead
///   letter and its stream goes on behind it.
/// - A sink that is offline costs no try; the forwarder asks again every minute. When every stream of a batch fails, the
///   fault is taken for the sink's: nothing new is begun until the first of them is due.
/// - On flash: nothing while all goes well beyond the consumer's checkpoint, one transaction for a round in which something
///   failed. After a power cut up to 1,000 events or 15 minutes are sent again.
/// - Markers of lost and removed events are logged and counted in [`Round::missed`]; they are not sent.
#[derive(Debug)]
#[must_use]
pub struct Forwarder<S> {
    pub(crate) store: EventStore,
    pub(crate) consumer: Consumer,
    pub(crate) sink: S,
    pub(crate) backoff: Backoff,
    pub(crate) dead_letters_max: u64,
}

impl<S: Sink> Forwarder<S> {
    /// Makes a forwarder; `consumer.capacity` is the size of a batch.
    pub fn new(store: EventStore, consumer: Consumer, sink: S) -> Self {
        Self { store, consumer: consumer.capacity(100), sink, backoff: Backoff::default(), dead_letters_max: 1_000 }
    }

    /// Sets the size of a batch. Default 100.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.consumer.capacity = events;
        self
    }

    /// Sets the schedule of tries.
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how many dead letters are kept; the oldest go first. Default 1,000.
    pub const fn dead_letters_max(mut self, letters: u64) -> Self {
        self.dead_letters_max = letters;
        self
    }

    /// Claims the consumer and loads its queue.
    ///
    /// # Errors
    /// Those of [`EventStore::subscribe`]; [`Error::ConsumerBusy`] when another process sends.
    ///
    /// # Cancel safety
    /// As [`EventStore::subscribe`].
    pub async fn open(&self) -> Result<Forwarding<'_, S>, Error> {
        Forwarding::open(self).await
    }

    /// Sends until `shutdown` completes or the store is closed. Failures of this store are logged and tried again; while
    /// another process sends, this one stands by. The caller owns the loop: spawn it, and await it after completing
    /// `shutdown`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a consumer that cannot be; those of writing the last checkpoint.
    ///
    /// # Cancel safety
    /// Safe: what was sent and not noted is sent again.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        loop {
            let opened = tokio::select! {
                () = &mut shutdown => return Ok(()),
                opened = self.open() => opened,
            };
            let failed = match opened {
                Err(Error::Closed) => return Ok(()),
                Err(error @ Error::Invalid { .. }) => return Err(error),
                Err(error) => error,
                Ok(mut forwarding) => loop {
                    let (round, is_last) = forwarding.round_until(shutdown.as_mut()).await;
                    match round {
                        Ok(round) => round.tell(&self.consumer),
                        Err(Error::Closed) => return Ok(()),
                        Err(error) if is_last => return Err(error),
                        Err(error) => break error,
                    }
                    if is_last {
                        return forwarding.close().await;
                    }
                    let pause = forwarding.idle_for();
                    tokio::select! {
                        () = &mut shutdown => return forwarding.close().await,
                        () = forwarding.more(pause) => {}
                    }
                },
            };
            if !matches!(failed, Error::ConsumerBusy { .. }) {
                tracing::warn!(consumer = %self.consumer.name, error = %failed, "forwarding begins anew");
            }
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = tokio::time::sleep(IDLE_PAUSE) => {}
            }
        }
    }
}

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// Events delivered.
    pub delivered: u64,
    /// Events that became dead letters.
    pub given_up: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Dead letters that were dropped because there were too many.
    pub dropped: u64,
    /// Markers of lost or removed events, damaged places, and events at which a stream was blocked and that were removed
    /// meanwhile.
    pub missed: u64,
    /// Why nothing can be sent now, when that is so.
    pub offline: Option<String>,
}

impl Round {
    fn tell(&self, consumer: &Consumer) {
        let name = &consumer.name;
        if let Some(why) = &self.offline {
            tracing::info!(consumer = %name, %why, "the receiver is not there");
        }
        if self.failed + self.given_up + self.dropped + self.missed > 0 {
            tracing::warn!(consumer = %name, round = ?self, "not everything was forwarded");
        }
    }
}
