//! Events a forwarder gave up, and what people do with them.

use nasnet_dbmanager::Cause;

use crate::consumer::ConsumerName;
use crate::error::Error;
use crate::event::Recorded;
use crate::forward::{BlockedStream, rows};
use crate::position::Position;
use crate::store::EventStore;

const DEAD: Cause = Cause::new("event-dead-letters");

/// An event that was rejected, or has had all of its tries. Kept by value, so retention does not reach it; sealed facts stay
/// sealed.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The event.
    pub event: Recorded,
    /// Times it was tried.
    pub tries: u32,
    /// Why it failed the last time.
    pub why: String,
    /// When it was given up, by the wall clock.
    pub wall_ms: i64,
    /// True while it waits for one more try somebody asked for.
    pub is_requested: bool,
}

impl EventStore {
    /// Lists the events the forwarder of this name gave up, oldest first.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be read, [`Error::Corrupt`] when a row does not check.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn dead_letters(&self, forwarder: &ConsumerName) -> Result<Vec<DeadLetter>, Error> {
        let name = forwarder.as_str().to_owned();
        let system = self.shared().manager.system();
        system.read(DEAD, move |conn| Box::pin(async move { rows::dead(conn, &name).await })).await
    }

    /// Asks the forwarder, in whatever process it runs, to try dead letters once more in its next round: those at
    /// `positions`, or all with `None`. Later events of their streams may have been delivered already, so they come late.
    /// Returns how many were found.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be written.
    ///
    /// # Cancel safety
    /// Safe to call again.
    pub async fn retry_dead_letters(
        &self,
        forwarder: &ConsumerName,
        positions: Option<Vec<Position>>,
    ) -> Result<u64, Error> {
        let name = forwarder.as_str().to_owned();
        let system = self.shared().manager.system();
        system
            .write(DEAD, move |conn| Box::pin(async move { rows::request(conn, &name, positions.as_deref()).await }))
            .await
    }

    /// Drops all dead letters of a forwarder but the newest `keep`. Returns how many.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be written.
    ///
    /// # Cancel safety
    /// Safe to call again.
    pub async fn prune_dead_letters(&self, forwarder: &ConsumerName, keep: u64) -> Result<u64, Error> {
        let name = forwarder.as_str().to_owned();
        let system = self.shared().manager.system();
        system.write(DEAD, move |conn| Box::pin(async move { rows::prune(conn, &name, keep).await })).await
    }

    /// Lists the streams the forwarder of this name cannot send now, by position.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db cannot be read, [`Error::Corrupt`] when a row does not check.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn blocked_streams(&self, forwarder: &ConsumerName) -> Result<Vec<BlockedStream>, Error> {
        let name = forwarder.as_str().to_owned();
        let system = self.shared().manager.system();
        system.read(DEAD, move |conn| Box::pin(async move { rows::blocked(conn, &name).await })).await
    }
}
