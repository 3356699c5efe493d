//! The engine: where databases, events, leases and a device meet.

mod apply;
mod drift;
mod history;
mod import;
mod matching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nasnet_dbmanager::{BoxFuture, Cause, Database, DbManager, RouterId};
use nasnet_events::EventStore;
use nasnet_locking::{AcquireRequest, LeaseGuard, LockInfo, LockKey, LockManager};
use nasnet_state::{Resource, Seal, SecretPlace, store};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::device::{Device, DeviceFacts, MenuPath, RawFields};
use crate::driver::list;
use crate::error::Error;
use crate::journal;
use crate::kinds::Kinds;
use crate::observe::{MenuView, read_rows};
use crate::op::Limits;
use crate::seal::StateSeal;

pub use history::When;
pub use import::ImportReport;

const LOAD: Cause = Cause::new("reconcile-load");
const DEVICE: Cause = Cause::new("device-facts");

/// Page size when all resources of a router are read.
const PAGE: u32 = 1_000;

/// Applies, confirms and merges changes; imports, watches and heals. Clones share everything.
#[derive(Clone)]
pub struct Reconciler {
    db: DbManager,
    events: EventStore,
    locks: LockManager,
    kinds: Arc<Kinds>,
    seal: StateSeal,
    limits: Limits,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Reconciler {
    /// Puts an engine together. The manager must have been opened with [`schema_sets`](crate::schema_sets).
    pub fn new(db: &DbManager, events: &EventStore, locks: &LockManager, kinds: Kinds) -> Self {
        Self {
            db: db.clone(),
            events: events.clone(),
            locks: locks.clone(),
            kinds: Arc::new(kinds),
            seal: StateSeal::new(db.sealer().clone()),
            limits: Limits::default(),
        }
    }

    /// Sets how often and how long operations try.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Returns the kinds the engine works with.
    pub fn kinds(&self) -> &Arc<Kinds> {
        &self.kinds
    }

    pub(crate) fn db(&self) -> &DbManager {
        &self.db
    }

    pub(crate) fn events(&self) -> &EventStore {
        &self.events
    }

    pub(crate) fn seal(&self) -> &StateSeal {
        &self.seal
    }

    /// Returns the live resources of a router, by uid.
    ///
    /// A row that cannot be read is left out and logged; the others are all there.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::State`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn resources(&self, router: &RouterId) -> Result<BTreeMap<Ulid, Resource>, Error> {
        let db = self.db.router(router).await?;
        self.load(&db).await
    }

    /// Reads page by page, each in a read of its own: a router may have more resources than one read has time for.
    async fn load(&self, db: &Database) -> Result<BTreeMap<Ulid, Resource>, Error> {
        let mut resources = BTreeMap::new();
        let mut after: Option<store::Cursor> = None;
        loop {
            let from = after.take();
            let list = op(move |conn| {
                Box::pin(async move { Ok(store::list(conn, &store::Filter::default(), from.as_ref(), PAGE).await?) })
            });
            let page: store::Page = db.read(LOAD, list).await?;
            for error in page.malformed {
                tracing::warn!(%error, "a stored resource cannot be read and is left out");
            }
            resources.extend(page.resources.into_iter().map(|resource| (resource.uid, resource)));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(resources),
            }
        }
    }

    /// Takes the lease of a whole router. One operation at a time: nobody waits.
    async fn lease(&self, router: &RouterId, actor: &str, purpose: &str) -> Result<LeaseGuard, Error> {
        let request = AcquireRequest::exclusive(LockKey::router(router), LockInfo::new(actor, purpose));
        Ok(self.locks.acquire(request.renew_automatically()).await?)
    }

    /// Checks that the device is the one the router was registered with, and remembers it the first time.
    async fn check_device(&self, router: &RouterId, db: &Database, device: &dyn Device) -> Result<DeviceFacts, Error> {
        let facts = device.facts().await?;
        let known: Option<DeviceFacts> = db.read(DEVICE, op(|conn| Box::pin(journal::device(conn)))).await?;
        if let Some(known) = &known
            && known.serial != facts.serial
        {
            let (expected, found) = (known.serial.clone(), facts.serial);
            return Err(Error::WrongDevice { router: router.clone(), expected, found });
        }
        // The uptime changes with every reading and would cost a flash write each time.
        let timeless = |facts: &DeviceFacts| DeviceFacts { uptime_ms: 0, ..facts.clone() };
        if known.as_ref().map(timeless) != Some(timeless(&facts)) {
            let (new, now_ms) = (timeless(&facts), self.db.now().wall_ms);
            let write = op(move |conn| Box::pin(async move { journal::put_device(conn, &new, now_ms).await }));
            db.write(DEVICE, write).await?;
        }
        Ok(facts)
    }

    /// Reads menus one after the other; a device has one session for us.
    async fn read_menus(
        &self,
        device: &dyn Device,
        menus: impl IntoIterator<Item = MenuPath>,
    ) -> Result<BTreeMap<MenuPath, MenuView>, Error> {
        let mut views = BTreeMap::new();
        for menu in menus {
            let rows = list(device, &menu).await?;
            let schema = self.kinds.schemas().for_menu(menu.as_str());
            let rows = read_rows(schema, &menu, rows, &self.seal)?;
            views.insert(menu, MenuView { schema, rows });
        }
        Ok(views)
    }

    /// Reveals the stored secrets of resources, by device name: what an undo must be able to write back.
    async fn reveal(&self, db: &Database, resources: Vec<Resource>) -> Result<BTreeMap<Ulid, RawFields>, Error> {
        let (seal, kinds) = (self.seal.clone(), self.kinds.clone());
        let read = op(move |conn| {
            Box::pin(async move {
                let mut revealed: BTreeMap<Ulid, RawFields> = BTreeMap::new();
                for resource in &resources {
                    let applied = resource.deployment.as_ref().and_then(|deployment| deployment.current.as_ref());
                    let applied = applied.map(|current| &current.record.last_applied);
                    let sources = applied.into_iter().chain([&resource.configuration.spec]);
                    // What was confirmed comes first: it is what the undo brings back.
                    for (field, secret) in sources.flat_map(nasnet_state::Fields::secrets) {
                        let schema = kinds.schemas().kind(&resource.kind);
                        let spec = schema.and_then(|schema| schema.field(field.as_str()));
                        let name = spec.map_or_else(|| field.to_string(), |spec| spec.device.to_owned());
                        let known = revealed.entry(resource.uid).or_default();
                        if known.contains_key(&name) {
                            continue;
                        }
                        let sealed = match store::sealed_secret(conn, resource.uid, field, secret.fingerprint).await {
                            Err(nasnet_state::Error::SecretMissing { .. }) => continue,
                            other => other?,
                        };
                        let place = SecretPlace {
                            kind: &resource.kind,
                            uid: Some(resource.uid),
                            field,
                            version: sealed.version,
                        };
                        let failed =
                            |source| nasnet_state::Error::Seal { action: "open", field: field.to_string(), source };
                        let clear = seal.open(&place, &sealed).map_err(failed)?;
                        if let Ok(text) = std::str::from_utf8(clear.expose()) {
                            known.insert(name, text.to_owned());
                        }
                    }
                }
                Ok(revealed)
            })
        });
        db.read(LOAD, read).await
    }
}

/// Lets the compiler see that an operation works with a connection of any lifetime.
pub(crate) fn op<F, T>(operation: F) -> F
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
{
    operation
}

/// Returns the menus of resources that have a confirmed row.
fn menus_of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> BTreeSet<MenuPath> {
    let rows = resources.into_iter().filter_map(|resource| {
        let current = resource.deployment.as_ref()?.current.as_ref()?;
        current.record.rows.first()?.menu.parse().ok()
    });
    rows.collect()
}
