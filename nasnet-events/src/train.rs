//! Makes dictionaries from what the warm tier holds, beside everything else.

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::position::Position;
use crate::store::{EventStore, blocking};
use crate::warm::dictionary::{self, Dictionary, SAMPLES_MAX, SAMPLES_MIN, VERSIONS_MAX};
use crate::warm::segment::{self, Lane};

const TRAIN: Cause = Cause::new("event-train");
/// Segments looked at for samples.
const SEGMENTS: u32 = 32;

impl EventStore {
    /// Trains a new version of the dictionary of each scope that has enough new events, and keeps it when segments become
    /// smaller by it. Later segments are written with it; a database carries the dictionaries its segments need, also
    /// into a backup. Returns the number of versions made.
    ///
    /// # Errors
    /// [`Error::Storage`] when the registry cannot be read. A scope that fails is logged and passed over.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn train(&self) -> Result<u64, Error> {
        let mut made = 0;
        for scope in epoch::scopes(&self.shared().manager).await? {
            match self.train_scope(&scope).await {
                Ok(true) => made += 1,
                Ok(false) => {}
                Err(error) => tracing::warn!(%scope, %error, "no dictionary can be made"),
            }
        }
        Ok(made)
    }

    async fn train_scope(&self, scope: &Scope) -> Result<bool, Error> {
        let database = self.shared().manager.scope(scope).await?;
        let tried = self.shared().trained_through(scope);
        let (own, annexes) = (scope.clone(), database.annexes().cloned());
        let found = database
            .read(TRAIN, move |conn| Box::pin(async move { samples(conn, annexes.as_ref(), &own, tried).await }))
            .await?;
        let Some((events, in_use)) = found else { return Ok(false) };
        let through = events.iter().map(|event| event.position).max().unwrap_or(Position::START);
        let (events, trained) = blocking(move || {
            let trained = dictionary::train(&events, in_use.as_ref());
            (events, trained)
        })
        .await;
        self.shared().note_trained(scope, through);
        let Some(trained) = trained else { return Ok(false) };
        database
            .write(TRAIN, move |conn| Box::pin(async move { dictionary::insert(conn, &trained, &events).await }))
            .await?;
        Ok(true)
    }
}

/// The newest events in segments and the dictionary in use, `None` when there is no reason to make another.
async fn samples(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    tried: Position,
) -> Result<Option<(Vec<Recorded>, Option<Dictionary>)>, Error> {
    if dictionary::count(conn).await? >= VERSIONS_MAX {
        return Ok(None);
    }
    let in_use = dictionary::newest(conn).await?;
    let after = dictionary::made_through(conn).await?.max(tried);
    let mut events = Vec::new();
    for lane in [Lane::Flushed, Lane::Sealed] {
        for meta in segment::metas(conn, scope, lane, (after, Position::END), Order::Backwards, SEGMENTS).await? {
            if events.len() >= SAMPLES_MAX {
                break;
            }
            // A damaged segment is told where it is read.
            if let Ok(found) = segment::events(conn, annexes, scope, &meta).await {
                events.extend(found);
            }
        }
    }
    events.truncate(SAMPLES_MAX);
    // The first version from the first events; a later one has to be made from many more.
    let wanted = if in_use.is_none() { SAMPLES_MIN } else { SAMPLES_MAX };
    Ok((events.len() >= wanted).then_some((events, in_use)))
}
