//! The offline queue: events leave for somewhere that is not always there.
//!
//! The store itself is the queue. A [`Forwarder`] reads as a consumer and hands batches to a [`Sink`]; what is written down
//! is the exception: one row for each stream that cannot be sent now, and the events that were given up.
//!
//! ```no_run
//! use nasnet_events::forward::{Forwarder, StoreSink};
//! use nasnet_events::{Consumer, ConsumerName, Error, EventStore};
//! use nasnet_dbmanager::Scope;
//!
//! # async fn run(store: EventStore, elsewhere: EventStore, stop: tokio::sync::oneshot::Receiver<()>) -> Result<(), Error> {
//! let sink = StoreSink::new(elsewhere, Scope::System);
//! let forwarder = Forwarder::new(store, Consumer::new(ConsumerName::parse("to-stick")?), sink);
//! forwarder.run(async move { drop(stop.await) }).await
//! # }
//! ```

mod backoff;
mod blocked;
mod dead;
mod forwarder;
mod forwarding;
#[cfg(feature = "http")]
mod http;
mod pause;
pub(crate) mod rows;
mod sink;
mod store_sink;

pub use backoff::Backoff;
pub use blocked::BlockedStream;
pub use dead::DeadLetter;
pub use forwarder::{Forwarder, Round};
pub use forwarding::Forwarding;
#[cfg(feature = "http")]
pub use http::HttpSink;
pub use sink::{Batch, Delivery, Sink};
pub use store_sink::StoreSink;

#[cfg(test)]
mod idle_tests;
