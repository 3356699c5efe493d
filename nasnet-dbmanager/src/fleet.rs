//! The fleet as a whole: one operation on many router databases, with an answer or an error for each.

pub(crate) mod migrate;
pub(crate) mod references;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_core::Stream;
use futures_util::stream::{self, StreamExt};

use crate::error::Error;
use crate::id::RouterId;
use crate::manager::{DbManager, RouterDb};
use crate::registry;
use crate::system::routers::Lifecycle;

/// How many routers are asked at once unless the caller says otherwise.
const CONCURRENCY: usize = 4;

/// The routers of a fleet, or some of them; made by [`DbManager::fleet`].
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(crate) manager: DbManager,
    ids: Option<Vec<RouterId>>,
}

/// One operation on many router databases; made by [`Fleet::map`].
pub struct FleetMap<F> {
    fleet: Fleet,
    op: F,
    concurrency: usize,
}

/// What became of each router.
#[derive(Debug, Clone)]
pub struct FleetReport<T, E = Error> {
    /// An answer or an error for each router, by id.
    pub routers: Vec<(RouterId, Result<T, E>)>,
}

impl<T, E> FleetReport<T, E> {
    /// Returns the answers.
    pub fn answers(&self) -> impl Iterator<Item = (&RouterId, &T)> {
        self.routers.iter().filter_map(|(id, result)| Some((id, result.as_ref().ok()?)))
    }

    /// Returns the errors.
    pub fn failures(&self) -> impl Iterator<Item = (&RouterId, &E)> {
        self.routers.iter().filter_map(|(id, result)| Some((id, result.as_ref().err()?)))
    }

    /// Tells whether every router answered.
    pub fn is_complete(&self) -> bool {
        self.routers.iter().all(|(_, result)| result.is_ok())
    }
}

impl DbManager {
    /// Returns the routers of the fleet, for operations on all of them.
    pub fn fleet(&self) -> Fleet {
        Fleet { manager: self.clone(), ids: None }
    }
}

impl Fleet {
    /// Narrows it to some routers, in this order; those that are not in the fleet, or retired, are answered with their
    /// error.
    #[must_use]
    pub fn of(mut self, ids: impl IntoIterator<Item = RouterId>) -> Self {
        self.ids = Some(ids.into_iter().collect());
        self
    }

    /// Prepares an operation on each router database, which is leased while it runs.
    pub fn map<F, O, T, E>(self, op: F) -> FleetMap<F>
    where
        F: Fn(RouterDb) -> O,
        O: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        FleetMap { fleet: self, op, concurrency: CONCURRENCY }
    }

    /// Names the routers: those asked for, or all but the retired ones. A quarantined one is among them, so that it is
    /// missing from no answer without a word.
    pub(crate) async fn ids(&self) -> Result<Vec<RouterId>, Error> {
        if let Some(ids) = &self.ids {
            return Ok(ids.clone());
        }
        let all = registry::list(self.manager.system()).await?;
        Ok(all.into_iter().filter(|record| record.lifecycle != Lifecycle::Retired).map(|record| record.id).collect())
    }
}

impl<F, O, T, E> FleetMap<F>
where
    F: Fn(RouterDb) -> O,
    O: Future<Output = Result<T, E>>,
    E: From<Error>,
{
    /// Sets how many routers are asked at once, at least 1. More than `Options::max_open` only wait for each other.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// Asks the routers and yields each answer or error as it comes.
    ///
    /// # Errors
    /// Each item has its own: those of [`DbManager::router`], and what the operation returned. The stream itself starts
    /// only if the registry can be read.
    ///
    /// # Cancel safety
    /// Dropping the stream drops the operations under way, as [`Database`](crate::Database) says of each, and starts no
    /// more.
    pub async fn stream(self) -> Result<impl Stream<Item = (RouterId, Result<T, E>)>, Error> {
        let Self { fleet, op, concurrency } = self;
        let ids = fleet.ids().await?;
        let manager = fleet.manager;
        let op = Arc::new(op);
        let each = move |id: RouterId| {
            let (manager, op) = (manager.clone(), Arc::clone(&op));
            async move {
                let result = match manager.router(&id).await {
                    Ok(database) => op(database).await,
                    Err(error) => Err(error.into()),
                };
                (id, result)
            }
        };
        Ok(stream::iter(ids).map(each).buffer_unordered(concurrency))
    }

    /// Asks the routers and waits for all of them.
    ///
    /// # Errors
    /// As [`FleetMap::stream`]; a router that fails is in the report and keeps no other from answering.
    ///
    /// # Cancel safety
    /// As [`FleetMap::stream`].
    pub async fn collect(self) -> Result<FleetReport<T, E>, Error> {
        let mut routers: Vec<_> = self.stream().await?.collect().await;
        routers.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(FleetReport { routers })
    }
}

impl<F> fmt::Debug for FleetMap<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetMap").field("fleet", &self.fleet).field("concurrency", &self.concurrency).finish()
    }
}
