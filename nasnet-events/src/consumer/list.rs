//! The consumers of a fleet, for people.

use std::collections::BTreeMap;

use nasnet_dbmanager::Cause;

use crate::consumer::{ConsumerName, Filter, GuardLimits, rows};
use crate::error::Error;
use crate::position::Position;
use crate::store::EventStore;

const LIST: Cause = Cause::new("event-consumers");

/// A consumer and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerStatus {
    /// Its name.
    pub name: String,
    /// What it wants.
    pub filter: Filter,
    /// What it may hold back from retention.
    pub guard: Option<GuardLimits>,
    /// Everything up to here is handled.
    pub position: Position,
    /// The part of that which a power cut does not take.
    pub saved: Position,
}

impl EventStore {
    /// Lists the consumers of the fleet by name, whoever reads as them.
    ///
    /// # Errors
    /// [`Error::Storage`] when system.db or runtime.db cannot be read, [`Error::Corrupt`] when a row does not check.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn consumers(&self) -> Result<Vec<ConsumerStatus>, Error> {
        let manager = &self.shared().manager;
        let defined = manager.system().read(LIST, |conn| Box::pin(rows::all(conn))).await?;
        let standing = manager.runtime().read(LIST, |conn| Box::pin(rows::standings(conn))).await?;
        let standing: BTreeMap<rows::Uid, Position> = standing.into_iter().collect();
        let status = |consumer: rows::Defined| {
            let saved = consumer.mark.position;
            let position = standing.get(&consumer.uid).copied().unwrap_or(saved).max(saved);
            let rows::Defined { name, filter, guard, .. } = consumer;
            ConsumerStatus { name, filter, guard, position, saved }
        };
        Ok(defined.into_iter().map(status).collect())
    }

    /// Removes a consumer with its checkpoint, its guard, its blocked streams and its dead letters. A subscription that still
    /// reads as it, here or in another process, is told with its next acknowledgement or sign of life
    /// ([`Error::ConsumerTaken`]); a [`crate::forward::Forwarder`] that runs as it begins anew. False when there was none.
    ///
    /// # Errors
    /// [`Error::Storage`] when a database cannot be written.
    ///
    /// # Cancel safety
    /// Safe to call again.
    pub async fn forget_consumer(&self, consumer: &ConsumerName) -> Result<bool, Error> {
        let shared = self.shared();
        let _turn = shared.consumers.turn(consumer.as_str()).await;
        let _nothing_is_saved = shared.consumers.forget(consumer.as_str()).await;
        // First, so that nothing of it is left behind should this end between the two.
        self.forget_standing(consumer).await?;
        let name = consumer.as_str().to_owned();
        let system = shared.manager.system();
        let was_known =
            system.write(LIST, move |conn| Box::pin(async move { rows::forget(conn, &name).await })).await?;
        // As long as system.db knew it, another process that reads as it may have put it back.
        self.forget_standing(consumer).await?;
        Ok(was_known)
    }

    async fn forget_standing(&self, consumer: &ConsumerName) -> Result<(), Error> {
        let name = consumer.as_str().to_owned();
        let runtime = self.shared().manager.runtime();
        runtime.write(LIST, move |conn| Box::pin(async move { rows::forget_standing(conn, &name).await })).await
    }
}
