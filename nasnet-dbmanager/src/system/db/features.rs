//! The features of the marketplace as complete operations.

use super::SystemDb;
use crate::error::Error;
use crate::id::Cause;
use crate::system::marketplace::{self, Feature, FeatureOffer, FeatureState};

const FEATURE: Cause = Cause::new("marketplace");

/// The features of the marketplace; see [`marketplace`].
#[derive(Debug, Clone, Copy)]
pub struct Marketplace<'a>(pub(super) &'a SystemDb);

impl Marketplace<'_> {
    /// Returns a feature.
    ///
    /// # Errors
    /// As [`marketplace::get`].
    pub async fn get(&self, id: &str) -> Result<Option<Feature>, Error> {
        let id = id.to_owned();
        self.0.read(FEATURE, move |conn| Box::pin(async move { marketplace::get(conn, &id).await })).await
    }

    /// Returns up to `limit` features by id, those after the id `after`; the empty id starts at the beginning.
    ///
    /// # Errors
    /// As [`marketplace::list`].
    pub async fn list(&self, after: &str, limit: u32) -> Result<Vec<Feature>, Error> {
        let after = after.to_owned();
        self.0.read(FEATURE, move |conn| Box::pin(async move { marketplace::list(conn, &after, limit).await })).await
    }

    /// Stores an offer; a known feature keeps its state.
    ///
    /// # Errors
    /// As [`marketplace::put`].
    pub async fn put(&self, offer: FeatureOffer) -> Result<(), Error> {
        let now = self.0.now();
        self.0.write(FEATURE, move |conn| Box::pin(async move { marketplace::put(conn, &offer, &now).await })).await
    }

    /// Moves a feature from one state to another; returns whether it was in the first.
    ///
    /// # Errors
    /// As [`marketplace::set_state`].
    pub async fn set_state(&self, id: &str, from: FeatureState, to: FeatureState) -> Result<bool, Error> {
        let (id, now) = (id.to_owned(), self.0.now());
        self.0
            .write(FEATURE, move |conn| {
                Box::pin(async move { marketplace::set_state(conn, &id, from, to, &now).await })
            })
            .await
    }

    /// Removes a feature; returns whether there was one.
    ///
    /// # Errors
    /// As [`marketplace::remove`].
    pub async fn remove(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        self.0.write(FEATURE, move |conn| Box::pin(async move { marketplace::remove(conn, &id).await })).await
    }
}
