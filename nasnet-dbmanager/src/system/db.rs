//! The handle of the system database, with its repositories as complete operations.

mod features;
mod metrics;

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::SqliteConnection;
use ulid::Ulid;
use zeroize::Zeroizing;

use super::access::{ApiKeys, Sessions, Users};
use super::audit::{self, AuditEntry, AuditLimits, AuditRecord};
use super::counters;
use super::data_keys::{self, Wrapper};
use super::last_use::{self, Used};
use super::look_up::{Answer, LookUps, Question, Recall};
use super::routers::{self, RouterRecord, RouterStatus};
use super::secrets::{self, SecretInfo};
use super::settings::{self, Setting};
use crate::clock::{Clock, Now};
use crate::connection::Target;
use crate::database::Database;
use crate::error::Error;
use crate::id::{Cause, RouterId, Scope};
use crate::seal::Sealer;
use crate::ulid_gen::UlidGen;

pub use features::Marketplace;
pub use metrics::FleetMetrics;

const COUNTER: Cause = Cause::new("counter");
const AUDIT: Cause = Cause::new("audit");
const REGISTRY: Cause = Cause::new("registry");
const SECRET: Cause = Cause::new("secret");
const SETTING: Cause = Cause::new("setting");

/// The system database: always open while its manager is.
///
/// Every write is one commit of `system.db`, on flash before it is answered. To combine several in one commit, or with
/// statements of another crate, use [`Database::write`] and the functions of [`system`](crate::system).
///
/// # Cancel safety
/// As [`Database::write`] and [`Database::read`]: dropping the future of a write leaves open whether it is committed.
#[derive(Clone)]
pub struct SystemDb {
    database: Database,
    runtime: Database,
    look_ups: Arc<LookUps>,
    clock: Arc<dyn Clock>,
    /// Unwraps the keys of what is sealed.
    keys: Wrapper,
    ulids: Arc<UlidGen>,
}

impl SystemDb {
    /// Puts the handle together; `target` is where the system database is.
    pub(crate) fn new(
        database: Database,
        runtime: Database,
        target: Target,
        clock: Arc<dyn Clock>,
        keys: Wrapper,
        ulids: Arc<UlidGen>,
    ) -> Self {
        Self { database, runtime, look_ups: Arc::new(LookUps::new(target)), clock, keys, ulids }
    }

    /// Brings what is kept in memory to flash, as far as its meaning changed since it was last.
    pub(crate) async fn settle(&self) {
        if let Err(error) = self.write_back_last_use().await {
            tracing::warn!(%error, "writing back the last uses failed");
        }
        if let Err(error) = self.fleet_metrics().save_day().await {
            tracing::warn!(%error, "saving the metrics of the day failed");
        }
    }

    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.look_ups.close().await;
        self.database.close().await
    }

    /// Writes back the sessions and keys whose last use is of another day than the one on flash; returns how many.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn write_back_last_use(&self) -> Result<u64, Error> {
        last_use::write_back(&self.database, &self.runtime).await
    }

    /// Returns how many token and setting look-ups were answered from memory.
    pub fn cache_hits(&self) -> u64 {
        self.look_ups.hits()
    }

    /// Returns the users.
    pub fn users(&self) -> Users<'_> {
        Users(self)
    }

    /// Returns the sessions.
    pub fn sessions(&self) -> Sessions<'_> {
        Sessions(self)
    }

    /// Returns the API keys.
    pub fn api_keys(&self) -> ApiKeys<'_> {
        ApiKeys(self)
    }

    /// Returns the features of the marketplace.
    pub fn marketplace(&self) -> Marketplace<'_> {
        Marketplace(self)
    }

    /// Returns the metrics of the fleet.
    pub fn fleet_metrics(&self) -> FleetMetrics<'_> {
        FleetMetrics(self)
    }

    /// Returns the numbers that only grow.
    pub fn counters(&self) -> Counters<'_> {
        Counters(self)
    }

    /// Returns the audit log.
    pub fn audit_log(&self) -> AuditLog<'_> {
        AuditLog(self)
    }

    /// Returns the registry of routers.
    pub fn routers(&self) -> Routers<'_> {
        Routers(self)
    }

    /// Returns the sealed secrets of routers.
    pub fn secrets(&self) -> Secrets<'_> {
        Secrets(self)
    }

    /// Returns the settings of the fleet.
    pub fn settings(&self) -> Settings<'_> {
        Settings(self)
    }

    /// Returns what seals the values of a router, giving it a key when it has none.
    pub(crate) async fn router_sealer(&self, id: &RouterId) -> Result<Sealer, Error> {
        let (scope, keys, now) = (Scope::Router(id.clone()), self.keys.clone(), self.now());
        let found: Option<Sealer> = self
            .read(SECRET, {
                let (scope, keys) = (scope.clone(), keys.clone());
                move |conn| Box::pin(async move { data_keys::get(conn, &keys, &scope).await })
            })
            .await?;
        if let Some(sealer) = found {
            return Ok(sealer);
        }
        let id = id.clone();
        self.write(SECRET, move |conn| {
            Box::pin(async move {
                if routers::get(conn, &id).await?.is_none() {
                    return Err(Error::RouterNotFound { id });
                }
                data_keys::ensure(conn, &keys, &scope, &now).await
            })
        })
        .await
    }

    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(super) fn next_id(&self) -> Ulid {
        self.ulids.next(&self.now())
    }

    pub(super) fn runtime(&self) -> &Database {
        &self.runtime
    }

    pub(super) fn look_ups(&self) -> &LookUps {
        &self.look_ups
    }

    /// Notes a use; one that cannot be noted is no reason to refuse whoever came.
    pub(super) async fn note_use(&self, used: Used) {
        let wall_ms = self.now().wall_ms;
        if !self.runtime.is_read_only()
            && self.look_ups.worth_noting(used, wall_ms)
            && let Err(error) = last_use::note(&self.runtime, used, wall_ms).await
        {
            tracing::warn!(%error, "noting the use of a token failed");
        }
    }
}

impl Deref for SystemDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

impl fmt::Debug for SystemDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemDb").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// The counters of the system database; see [`counters`].
#[derive(Debug, Clone, Copy)]
pub struct Counters<'a>(&'a SystemDb);

impl Counters<'_> {
    /// Returns the largest number given out so far, 0 when there was none.
    ///
    /// # Errors
    /// As [`counters::get`].
    pub async fn get(&self, name: &str) -> Result<u64, Error> {
        let name = name.to_owned();
        self.0.read(COUNTER, move |conn| Box::pin(async move { counters::get(conn, &name).await })).await
    }

    /// Reserves the next `count` numbers and returns the first of them, once they are durably reserved.
    ///
    /// # Errors
    /// As [`counters::reserve`]. After [`Error::Unknown`] numbers may have been reserved that nobody has; reserving
    /// again is safe.
    pub async fn reserve(&self, name: &str, count: u64) -> Result<u64, Error> {
        let name = name.to_owned();
        self.0.write(COUNTER, move |conn| Box::pin(async move { counters::reserve(conn, &name, count).await })).await
    }

    /// Makes sure that every number reserved from now on is greater than `at_least`; never lowers the counter.
    ///
    /// # Errors
    /// As [`counters::raise`].
    pub async fn raise(&self, name: &str, at_least: u64) -> Result<(), Error> {
        let name = name.to_owned();
        self.0.write(COUNTER, move |conn| Box::pin(async move { counters::raise(conn, &name, at_least).await })).await
    }
}

/// The audit log of the system database; see [`audit`].
#[derive(Debug, Clone, Copy)]
pub struct AuditLog<'a>(&'a SystemDb);

impl AuditLog<'_> {
    /// Appends an entry and returns its id.
    ///
    /// # Errors
    /// As [`audit::append_in`].
    pub async fn append(&self, entry: AuditEntry) -> Result<u64, Error> {
        let now = self.0.now();
        self.0.write(AUDIT, move |conn| Box::pin(async move { audit::append_in(conn, &entry, &now).await })).await
    }

    /// Returns up to `limit` entries, the newest first, starting below the id `before` if there is one.
    ///
    /// # Errors
    /// As [`audit::list`].
    pub async fn list(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        self.0.read(AUDIT, move |conn| Box::pin(async move { audit::list(conn, before, limit).await })).await
    }

    /// Removes what is beyond the limits of each category; returns how many entries that were.
    ///
    /// # Errors
    /// As [`audit::retain`].
    pub async fn retain(&self, limits: AuditLimits) -> Result<u64, Error> {
        let now = self.0.now();
        self.0.write(AUDIT, move |conn| Box::pin(async move { audit::retain(conn, &limits, &now).await })).await
    }
}

/// The registry of the system database; see [`routers`].
///
/// Registering and retiring belong to the manager, since they move files too.
#[derive(Debug, Clone, Copy)]
pub struct Routers<'a>(&'a SystemDb);

impl Routers<'_> {
    /// Returns a router, in whatever state.
    ///
    /// # Errors
    /// As [`routers::get`].
    pub async fn get(&self, id: &RouterId) -> Result<Option<RouterRecord>, Error> {
        let id = id.clone();
        self.0.read(REGISTRY, move |conn| Box::pin(async move { routers::get(conn, &id).await })).await
    }

    /// Returns all routers, in whatever state, by id.
    ///
    /// # Errors
    /// As [`routers::list`].
    pub async fn list(&self) -> Result<Vec<RouterRecord>, Error> {
        self.0.read(REGISTRY, |conn| Box::pin(routers::list(conn))).await
    }

    /// Records what a contact said; an unchanged status is not written.
    ///
    /// # Errors
    /// As [`routers::set_status`].
    pub async fn set_status(&self, id: &RouterId, status: RouterStatus) -> Result<(), Error> {
        let (id, now) = (id.clone(), self.0.now());
        self.0
            .write(REGISTRY, move |conn| Box::pin(async move { routers::set_status(conn, &id, status, &now).await }))
            .await
    }

    /// Records what a router can do.
    ///
    /// # Errors
    /// As [`routers::set_capabilities`].
    pub async fn set_capabilities(&self, id: &RouterId, capabilities: Value) -> Result<(), Error> {
        let (id, now) = (id.clone(), self.0.now());
        self.0
            .write(REGISTRY, move |conn| {
                Box::pin(async move { routers::set_capabilities(conn, &id, &capabilities, &now).await })
            })
            .await
    }

    /// Records what a router says of itself; unchanged facts are not written.
    ///
    /// # Errors
    /// As [`routers::set_device`].
    pub async fn set_device(&self, id: &RouterId, platform: &str, model: &str, version: &str) -> Result<(), Error> {
        let (id, now) = (id.clone(), self.0.now());
        let (platform, model, version) = (platform.to_owned(), model.to_owned(), version.to_owned());
        self.0
            .write(REGISTRY, move |conn| {
                Box::pin(async move { routers::set_device(conn, &id, &platform, &model, &version, &now).await })
            })
            .await
    }
}

/// The secrets of the system database; see [`secrets`].
#[derive(Debug, Clone, Copy)]
pub struct Secrets<'a>(&'a SystemDb);

impl Secrets<'_> {
    /// Stores a secret and returns its version; an unchanged value is not written again and keeps its version.
    ///
    /// # Errors
    /// As [`secrets::put`].
    pub async fn put(&self, router: &RouterId, name: &str, value: &[u8]) -> Result<u64, Error> {
        let (router, name, now, keys) = (router.clone(), name.to_owned(), self.0.now(), self.0.keys.clone());
        let value = Zeroizing::new(value.to_vec());
        self.0
            .write(SECRET, move |conn| {
                Box::pin(async move {
                    // Without the router, both are rolled back.
                    let sealer = data_keys::ensure(conn, &keys, &Scope::Router(router.clone()), &now).await?;
                    secrets::put(conn, &sealer, &router, &name, &value, &now).await
                })
            })
            .await
    }

    /// Opens a secret for the program's own use, such as logging in to the router; `None` when there is none.
    ///
    /// # Errors
    /// As [`secrets::reveal`].
    pub async fn reveal(&self, router: &RouterId, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let (router, name, keys) = (router.clone(), name.to_owned(), self.0.keys.clone());
        self.0.read(SECRET, move |conn| Box::pin(async move { reveal(conn, &keys, &router, &name).await })).await
    }

    /// Opens a secret to be shown to a person, and audits that in the same transaction; `None` when there is none.
    ///
    /// # Errors
    /// As [`secrets::reveal`] and [`audit::append_in`]; without the audit entry the value is not returned.
    pub async fn reveal_to(
        &self,
        router: &RouterId,
        name: &str,
        actor: &str,
        ip_address: Option<IpAddr>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let (router, name, keys, now) = (router.clone(), name.to_owned(), self.0.keys.clone(), self.0.now());
        let mut entry = AuditEntry::new("secrets", "secret.revealed")
            .actor(actor)
            .target(router.as_str())
            .details(json!({ "name": name }));
        if let Some(address) = ip_address {
            entry = entry.ip_address(address);
        }
        self.0
            .write(SECRET, move |conn| {
                Box::pin(async move {
                    let value = reveal(conn, &keys, &router, &name).await?;
                    if value.is_some() {
                        audit::append_in(conn, &entry, &now).await?;
                    }
                    Ok(value)
                })
            })
            .await
    }

    /// Lists the secrets of a router by name, without their values.
    ///
    /// # Errors
    /// As [`secrets::list`].
    pub async fn list(&self, router: &RouterId) -> Result<Vec<SecretInfo>, Error> {
        let router = router.clone();
        self.0.read(SECRET, move |conn| Box::pin(async move { secrets::list(conn, &router).await })).await
    }

    /// Removes a secret; returns whether it was there.
    ///
    /// # Errors
    /// As [`secrets::remove`].
    pub async fn remove(&self, router: &RouterId, name: &str) -> Result<bool, Error> {
        let (router, name, now) = (router.clone(), name.to_owned(), self.0.now());
        self.0
            .write(SECRET, move |conn| Box::pin(async move { secrets::remove(conn, &router, &name, &now).await }))
            .await
    }
}

/// Opens a secret; a router without a key has none.
async fn reveal(
    conn: &mut SqliteConnection,
    keys: &Wrapper,
    router: &RouterId,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    match data_keys::get(conn, keys, &Scope::Router(router.clone())).await? {
        Some(sealer) => secrets::reveal(conn, &sealer, router, name).await,
        None => Ok(None),
    }
}

/// The settings of the system database; see [`settings`].
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a>(&'a SystemDb);

impl Settings<'_> {
    /// Returns a setting.
    ///
    /// # Errors
    /// As [`settings::get`].
    pub async fn get(&self, category: &str, key: &str) -> Result<Option<Setting>, Error> {
        let (category, key) = (category.to_owned(), key.to_owned());
        let question = Question::Setting(category.clone(), key.clone());
        let version = match self.0.look_ups().recall(&question).await? {
            Recall::Known(Answer::Setting(setting)) => return Ok(setting),
            Recall::Known(_) => None,
            Recall::Ask { version } => Some(version),
        };
        let setting: Option<Setting> = self
            .0
            .read(SETTING, move |conn| Box::pin(async move { settings::get(conn, &category, &key).await }))
            .await?;
        if let Some(version) = version {
            self.0.look_ups().remember(version, question, Answer::Setting(setting.clone()));
        }
        Ok(setting)
    }

    /// Returns the settings of a category, by key.
    ///
    /// # Errors
    /// As [`settings::list`].
    pub async fn list(&self, category: &str) -> Result<Vec<Setting>, Error> {
        let category = category.to_owned();
        self.0.read(SETTING, move |conn| Box::pin(async move { settings::list(conn, &category).await })).await
    }

    /// Stores a setting, replacing an earlier value; an unchanged one is not written.
    ///
    /// # Errors
    /// As [`settings::put`].
    pub async fn put(
        &self,
        category: &str,
        key: &str,
        value: &(impl Serialize + Sync),
        schema_version: u32,
    ) -> Result<(), Error> {
        let value = settings::encode(value)?;
        let (category, key, now) = (category.to_owned(), key.to_owned(), self.0.now());
        self.0
            .write(SETTING, move |conn| {
                Box::pin(async move { settings::put(conn, &category, &key, &value, schema_version, &now).await })
            })
            .await
    }

    /// Removes a setting; returns whether it was there.
    ///
    /// # Errors
    /// As [`settings::remove`].
    pub async fn remove(&self, category: &str, key: &str) -> Result<bool, Error> {
        let (category, key) = (category.to_owned(), key.to_owned());
        self.0.write(SETTING, move |conn| Box::pin(async move { settings::remove(conn, &category, &key).await })).await
    }
}
