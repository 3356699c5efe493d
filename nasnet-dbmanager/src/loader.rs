//! Looking up many keys in many databases: one read for each router, the answers in the order of the questions.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::id::{Cause, RouterId};
use crate::manager::DbManager;

/// How many keys one read is given: their marks fit into one statement.
const BATCH: usize = 500;

/// How many routers are asked at once.
const CONCURRENCY: usize = 4;

/// Looks up keys of many routers; made by [`DbManager::loader`].
pub struct Loader<F> {
    manager: DbManager,
    cause: Cause,
    find: Arc<F>,
}

impl DbManager {
    /// Makes a loader around a function that finds many keys of one router in one read. It is given each key once, and
    /// at most 500 at a time; keys it leaves out of its answer do not exist.
    pub fn loader<K, V, F>(&self, cause: Cause, find: F) -> Loader<F>
    where
        F: for<'c> Fn(&'c mut SqliteConnection, Vec<K>) -> BoxFuture<'c, Result<HashMap<K, V>, Error>>
            + Send
            + Sync
            + 'static,
    {
        Loader { manager: self.clone(), cause, find: Arc::new(find) }
    }
}

impl<F> Loader<F> {
    /// Looks up keys, each in the database of its router, and answers in their order.
    ///
    /// # Errors
    /// Each key has its own: the error of a router is the answer to every key of it, and of no other. A key that does
    /// not exist is `Ok(None)`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn load<K, V>(&self, keys: Vec<(RouterId, K)>) -> Vec<Result<Option<V>, Error>>
    where
        K: Clone + Eq + Hash + Send + 'static,
        V: Clone + Send + 'static,
        F: for<'c> Fn(&'c mut SqliteConnection, Vec<K>) -> BoxFuture<'c, Result<HashMap<K, V>, Error>>
            + Send
            + Sync
            + 'static,
    {
        let mut by_router: BTreeMap<RouterId, Vec<K>> = BTreeMap::new();
        for (router, key) in &keys {
            by_router.entry(router.clone()).or_default().push(key.clone());
        }
        let found: HashMap<RouterId, Result<HashMap<K, V>, Error>> = stream::iter(by_router)
            .map(|(router, keys)| async move {
                let found = self.load_one(&router, keys).await;
                (router, found)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let answer = |(router, key): &(RouterId, K)| match found.get(router) {
            Some(Ok(found)) => Ok(found.get(key).cloned()),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(None),
        };
        keys.iter().map(answer).collect()
    }

    async fn load_one<K, V>(&self, router: &RouterId, mut keys: Vec<K>) -> Result<HashMap<K, V>, Error>
    where
        K: Clone + Eq + Hash + Send + 'static,
        V: Send + 'static,
        F: for<'c> Fn(&'c mut SqliteConnection, Vec<K>) -> BoxFuture<'c, Result<HashMap<K, V>, Error>>
            + Send
            + Sync
            + 'static,
    {
        let mut seen = std::collections::HashSet::new();
        keys.retain(|key| seen.insert(key.clone()));
        let database = self.manager.router(router).await?;
        let find = Arc::clone(&self.find);
        // One read for all batches: the answers of one router are of one moment.
        database
            .read(self.cause, move |conn| {
                Box::pin(async move {
                    let mut all = HashMap::with_capacity(keys.len());
                    while !keys.is_empty() {
                        let rest = keys.split_off(keys.len().min(BATCH));
                        let batch = std::mem::replace(&mut keys, rest);
                        all.extend(find(&mut *conn, batch).await?);
                    }
                    Ok(all)
                })
            })
            .await
    }
}

impl<F> fmt::Debug for Loader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("cause", &self.cause).finish_non_exhaustive()
    }
}
