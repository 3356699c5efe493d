//! The registry: which routers there are, and which database files must therefore exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::column;
use crate::clock::{BootId, ClockQuality, Now};
use crate::error::Error;
use crate::id::RouterId;

const INSERT: &str = "
    INSERT INTO routers (id, name, host, port, lifecycle, created_ms, created_quality, created_boot, updated_ms)
    VALUES (?1, ?2, ?3, ?4, 'provisioning', ?5, ?6, ?7, ?5)
    ON CONFLICT (id) DO NOTHING";

const INSERT_MANY: &str = "
    INSERT INTO routers (id, name, host, port, lifecycle, created_ms, created_quality, created_boot, updated_ms)
    SELECT value ->> 'id', value ->> 'name', value ->> 'host', value ->> 'port', 'provisioning', ?2, ?3, ?4, ?2
    FROM json_each(?1) WHERE TRUE
    ON CONFLICT (id) DO NOTHING
    RETURNING id";

const ACTIVATE: &str = "
    UPDATE routers SET lifecycle = 'active', file_uid = ?2, updated_ms = ?3
    WHERE id = ?1 AND lifecycle = 'provisioning'";

const ACTIVATE_MANY: &str = "
    UPDATE routers SET lifecycle = 'active', file_uid = unhex(made.value ->> 1), updated_ms = ?2
    FROM json_each(?1) AS made
    WHERE routers.id = made.value ->> 0 AND routers.lifecycle = 'provisioning'";

const ABANDON: &str = "DELETE FROM routers WHERE id = ?1 AND lifecycle = 'provisioning'";

const MOVE: &str = "UPDATE routers SET lifecycle = ?3, updated_ms = ?4 WHERE id = ?1 AND lifecycle = ?2";

const SET_STATUS: &str = "UPDATE routers SET status = ?2, updated_ms = ?3 WHERE id = ?1 AND status <> ?2";

const SET_CAPABILITIES: &str = "
    UPDATE routers SET capabilities = ?2, capabilities_as_of_ms = ?3, updated_ms = ?3 WHERE id = ?1";

const SET_DEVICE: &str = "
    UPDATE routers SET platform = ?2, model = ?3, version = ?4, updated_ms = ?5
    WHERE id = ?1 AND (platform, model, version) IS NOT (?2, ?3, ?4)";

const SET_SCHEMA_VERSIONS: &str = "
    UPDATE routers SET schema_versions = ?2, updated_ms = ?3 WHERE id = ?1 AND schema_versions <> ?2";

const GET: &str = "
    SELECT id, name, host, port, status, lifecycle, capabilities, capabilities_as_of_ms, platform, model, version,
           schema_versions, file_uid, last_backup_ms, created_ms, created_quality, created_boot, updated_ms
    FROM routers WHERE id = ?1";

const LIST: &str = "
    SELECT id, name, host, port, status, lifecycle, capabilities, capabilities_as_of_ms, platform, model, version,
           schema_versions, file_uid, last_backup_ms, created_ms, created_quality, created_boot, updated_ms
    FROM routers ORDER BY id";

const GET_MANY: &str = "
    SELECT id, name, host, port, status, lifecycle, capabilities, capabilities_as_of_ms, platform, model, version,
           schema_versions, file_uid, last_backup_ms, created_ms, created_quality, created_boot, updated_ms
    FROM routers WHERE id IN (SELECT value FROM json_each(?1))";

const COUNT: &str = "SELECT COUNT(*) FROM routers";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("routers::INSERT", INSERT),
    ("routers::INSERT_MANY", INSERT_MANY),
    ("routers::ACTIVATE", ACTIVATE),
    ("routers::ACTIVATE_MANY", ACTIVATE_MANY),
    ("routers::ABANDON", ABANDON),
    ("routers::MOVE", MOVE),
    ("routers::SET_STATUS", SET_STATUS),
    ("routers::SET_CAPABILITIES", SET_CAPABILITIES),
    ("routers::SET_DEVICE", SET_DEVICE),
    ("routers::SET_SCHEMA_VERSIONS", SET_SCHEMA_VERSIONS),
    ("routers::GET", GET),
    ("routers::GET_MANY", GET_MANY),
    ("routers::LIST", LIST),
    ("routers::COUNT", COUNT),
];

/// What the last contact with a router said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouterStatus {
    /// There was no contact yet.
    Unknown,
    /// It answers.
    Online,
    /// It does not answer.
    Offline,
    /// It answers in part.
    Degraded,
}

impl RouterStatus {
    const ALL: [Self; 4] = [Self::Unknown, Self::Online, Self::Offline, Self::Degraded];

    /// Returns the stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Degraded => "degraded",
        }
    }
}

/// Where a router stands in its life in this fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifecycle {
    /// It is being created: its database file may or may not exist yet.
    Provisioning,
    /// Its database file must exist.
    Active,
    /// It was taken out of the fleet and can be reinstated.
    Retired,
    /// Its database file was damaged and set aside.
    Quarantined,
}

impl Lifecycle {
    const ALL: [Self; 4] = [Self::Provisioning, Self::Active, Self::Retired, Self::Quarantined];

    /// Returns the stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Quarantined => "quarantined",
        }
    }
}

macro_rules! spelt {
    ($type:ty, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::ALL
                    .into_iter()
                    .find(|value| value.as_str() == text)
                    .ok_or_else(|| Error::Decode { what: $what, detail: format!("unknown value {text:?}") })
            }
        }
    };
}

spelt!(RouterStatus, "router status");
spelt!(Lifecycle, "router lifecycle");

/// A router to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRouter {
    id: RouterId,
    name: Option<String>,
    host: Option<String>,
    port: Option<u16>,
}

impl NewRouter {
    /// Starts with the id alone; it is the name too until another is given.
    pub fn new(id: RouterId) -> Self {
        Self { id, name: None, host: None, port: None }
    }

    /// Gives it a name for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Says where it is reached: a host name or an address.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Says on which port it is reached.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Returns the id.
    pub fn id(&self) -> &RouterId {
        &self.id
    }
}

/// What a router can do, in a form this crate does not look into.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The capabilities.
    pub value: Value,
    /// When they were asked for, wall clock.
    pub as_of_ms: i64,
}

/// A registered router.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RouterRecord {
    /// Its id.
    pub id: RouterId,
    /// Its name for people.
    pub name: String,
    /// Where it is reached.
    pub host: Option<String>,
    /// On which port it is reached.
    pub port: Option<u16>,
    /// What the last contact said.
    pub status: RouterStatus,
    /// Where it stands in its life.
    pub lifecycle: Lifecycle,
    /// What it can do.
    pub capabilities: Option<Capabilities>,
    /// The platform, such as `routeros`.
    pub platform: Option<String>,
    /// The model of the device.
    pub model: Option<String>,
    /// The version of its system software.
    pub version: Option<String>,
    /// The version of each schema set in its database when it was last migrated.
    pub schema_versions: BTreeMap<String, u32>,
    /// The mark inside its database file; `None` while it is being created.
    pub file_uid: Option<[u8; 16]>,
    /// When its database was last backed up, wall clock.
    pub last_backup_ms: Option<i64>,
    /// When it was registered, wall clock.
    pub created_ms: i64,
    /// How far that clock could be trusted.
    pub created_quality: ClockQuality,
    /// In which boot it was registered.
    pub created_boot: BootId,
    /// When this record last changed, wall clock.
    pub updated_ms: i64,
}

/// Registers a router as being created: the intent behind its database file, which is made next.
///
/// # Errors
/// [`Error::RouterExists`] when the id is taken, whatever the state of that router, or an error of the database.
pub async fn insert(conn: &mut SqliteConnection, new: &NewRouter, now: &Now) -> Result<(), Error> {
    let done = sqlx::query(INSERT)
        .bind(new.id.as_str())
        .bind(new.name.as_deref().unwrap_or(new.id.as_str()))
        .bind(&new.host)
        .bind(new.port)
        .bind(now.wall_ms)
        .bind(now.quality.as_str())
        .bind(&now.boot.as_bytes()[..])
        .execute(conn)
        .await?;
    if done.rows_affected() == 0 { Err(Error::RouterExists { id: new.id.clone() }) } else { Ok(()) }
}

/// Registers routers as [`insert`] does, in one statement, and returns those whose id was free; of two with one id the
/// first is taken.
///
/// # Errors
/// An error of the database.
pub async fn insert_many(
    conn: &mut SqliteConnection,
    new: &[NewRouter],
    now: &Now,
) -> Result<BTreeSet<RouterId>, Error> {
    let row = |new: &NewRouter| {
        let name = new.name.as_deref().unwrap_or(new.id.as_str());
        json!({ "id": new.id.as_str(), "name": name, "host": new.host, "port": new.port })
    };
    let rows: Value = new.iter().map(row).collect();
    let query = sqlx::query_scalar(INSERT_MANY).bind(rows.to_string()).bind(now.wall_ms).bind(now.quality.as_str());
    let inserted: Vec<String> = query.bind(&now.boot.as_bytes()[..]).fetch_all(conn).await?;
    inserted.iter().map(|id| id.parse()).collect()
}

/// Marks a router that was being created as active, its file now being in place; returns whether it was being created.
///
/// # Errors
/// An error of the database.
pub async fn activate(
    conn: &mut SqliteConnection,
    id: &RouterId,
    file_uid: &[u8; 16],
    now: &Now,
) -> Result<bool, Error> {
    let query = sqlx::query(ACTIVATE).bind(id.as_str()).bind(&file_uid[..]).bind(now.wall_ms);
    Ok(query.execute(conn).await?.rows_affected() > 0)
}

/// Marks routers as [`activate`] does, in one statement; those that were not being created stay as they are.
///
/// # Errors
/// An error of the database.
pub async fn activate_many(conn: &mut SqliteConnection, made: &[(RouterId, [u8; 16])], now: &Now) -> Result<(), Error> {
    let row = |(id, uid): &(RouterId, [u8; 16])| json!([id.as_str(), format!("{:032x}", u128::from_be_bytes(*uid))]);
    let rows: Value = made.iter().map(row).collect();
    sqlx::query(ACTIVATE_MANY).bind(rows.to_string()).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Takes back the registration of a router that was never completed; returns whether there was one.
///
/// # Errors
/// An error of the database.
pub async fn abandon(conn: &mut SqliteConnection, id: &RouterId) -> Result<bool, Error> {
    Ok(sqlx::query(ABANDON).bind(id.as_str()).execute(conn).await?.rows_affected() > 0)
}

/// Moves a router from one state of its life to another; returns whether it was in the first.
///
/// # Errors
/// An error of the database.
pub async fn move_lifecycle(
    conn: &mut SqliteConnection,
    id: &RouterId,
    from: Lifecycle,
    to: Lifecycle,
    now: &Now,
) -> Result<bool, Error> {
    let query = sqlx::query(MOVE).bind(id.as_str()).bind(from.as_str()).bind(to.as_str()).bind(now.wall_ms);
    Ok(query.execute(conn).await?.rows_affected() > 0)
}

/// Records what a contact said; an unchanged status is not written.
///
/// # Errors
/// An error of the database.
pub async fn set_status(
    conn: &mut SqliteConnection,
    id: &RouterId,
    status: RouterStatus,
    now: &Now,
) -> Result<(), Error> {
    sqlx::query(SET_STATUS).bind(id.as_str()).bind(status.as_str()).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Records what a router can do, as of `now`.
///
/// # Errors
/// An error of the database.
pub async fn set_capabilities(
    conn: &mut SqliteConnection,
    id: &RouterId,
    capabilities: &Value,
    now: &Now,
) -> Result<(), Error> {
    let query = sqlx::query(SET_CAPABILITIES).bind(id.as_str()).bind(capabilities.to_string()).bind(now.wall_ms);
    query.execute(conn).await?;
    Ok(())
}

/// Records what a router says of itself; unchanged facts are not written.
///
/// # Errors
/// An error of the database.
pub async fn set_device(
    conn: &mut SqliteConnection,
    id: &RouterId,
    platform: &str,
    model: &str,
    version: &str,
    now: &Now,
) -> Result<(), Error> {
    let query = sqlx::query(SET_DEVICE).bind(id.as_str()).bind(platform).bind(model).bind(version).bind(now.wall_ms);
    query.execute(conn).await?;
    Ok(())
}

/// Records the schema versions of a router's database; unchanged versions are not written.
///
/// # Errors
/// An error of the database.
pub async fn set_schema_versions(
    conn: &mut SqliteConnection,
    id: &RouterId,
    versions: &BTreeMap<String, u32>,
    now: &Now,
) -> Result<(), Error> {
    let text = serde_json::to_string(versions)
        .map_err(|error| Error::Encode { what: "schema versions", detail: error.to_string() })?;
    sqlx::query(SET_SCHEMA_VERSIONS).bind(id.as_str()).bind(text).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Returns a router, in whatever state.
///
/// # Errors
/// [`Error::Decode`] for a damaged record, or an error of the database.
pub async fn get(conn: &mut SqliteConnection, id: &RouterId) -> Result<Option<RouterRecord>, Error> {
    sqlx::query(GET).bind(id.as_str()).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns those of these routers that are registered, in whatever state.
///
/// # Errors
/// [`Error::Decode`] for a damaged record, or an error of the database.
pub async fn get_many(conn: &mut SqliteConnection, ids: &[RouterId]) -> Result<Vec<RouterRecord>, Error> {
    let ids: Value = ids.iter().map(|id| json!(id.as_str())).collect();
    sqlx::query(GET_MANY).bind(ids.to_string()).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Returns how many routers there are, in whatever state.
///
/// # Errors
/// An error of the database.
pub async fn count(conn: &mut SqliteConnection) -> Result<usize, Error> {
    let count: i64 = sqlx::query_scalar(COUNT).fetch_one(conn).await?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Returns all routers, in whatever state, by id.
///
/// # Errors
/// [`Error::Decode`] for a damaged record, or an error of the database.
pub async fn list(conn: &mut SqliteConnection) -> Result<Vec<RouterRecord>, Error> {
    sqlx::query(LIST).fetch_all(conn).await?.iter().map(decode).collect()
}

fn decode(row: &SqliteRow) -> Result<RouterRecord, Error> {
    let value = column::optional(row, "capabilities", |text: &str| column::json("capabilities", text))?;
    let as_of_ms: Option<i64> = row.try_get("capabilities_as_of_ms")?;
    Ok(RouterRecord {
        id: row.try_get::<&str, _>("id")?.parse()?,
        name: row.try_get("name")?,
        host: row.try_get("host")?,
        port: column::optional(row, "port", |port: i64| column::small("port", port))?,
        status: row.try_get::<&str, _>("status")?.parse()?,
        lifecycle: row.try_get::<&str, _>("lifecycle")?.parse()?,
        capabilities: value.zip(as_of_ms).map(|(value, as_of_ms)| Capabilities { value, as_of_ms }),
        platform: row.try_get("platform")?,
        model: row.try_get("model")?,
        version: row.try_get("version")?,
        schema_versions: column::json("schema versions", row.try_get("schema_versions")?)?,
        file_uid: column::optional(row, "file_uid", |bytes: &[u8]| column::bytes_16("file uid", bytes))?,
        last_backup_ms: row.try_get("last_backup_ms")?,
        created_ms: row.try_get("created_ms")?,
        created_quality: row.try_get::<&str, _>("created_quality")?.parse()?,
        created_boot: BootId::from_bytes(column::bytes_16("boot id", row.try_get("created_boot")?)?),
        updated_ms: row.try_get("updated_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::scratch::{Scratch, now};

    const UID: [u8; 16] = [5; 16];

    #[test]
    fn every_status_and_lifecycle_survives_its_spelling() {
        for status in RouterStatus::ALL {
            assert_eq!(status.to_string().parse::<RouterStatus>().expect("status"), status);
        }
        for lifecycle in Lifecycle::ALL {
            assert_eq!(lifecycle.to_string().parse::<Lifecycle>().expect("lifecycle"), lifecycle);
        }
        assert!("Active".parse::<Lifecycle>().is_err());
    }

    #[tokio::test]
    async fn a_router_is_provisioned_then_active_and_its_id_is_taken() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        let id = RouterId::parse("home").expect("id");
        let new = NewRouter::new(id.clone()).name("Home").host("192.168.88.1").port(8728);
        insert(conn, &new, &now()).await.expect("insert");
        let record = get(conn, &id).await.expect("get").expect("registered");
        assert_eq!((record.lifecycle, record.file_uid), (Lifecycle::Provisioning, None));
        assert_eq!((&*record.name, record.host.as_deref(), record.port), ("Home", Some("192.168.88.1"), Some(8728)));
        assert_eq!(record.status, RouterStatus::Unknown);

        assert!(activate(conn, &id, &UID, &now()).await.expect("activate"));
        assert!(!activate(conn, &id, &[6; 16], &now()).await.expect("activate"), "only once");
        let record = get(conn, &id).await.expect("get").expect("registered");
        assert_eq!((record.lifecycle, record.file_uid), (Lifecycle::Active, Some(UID)));

        let error = insert(conn, &NewRouter::new(id.clone()), &now()).await.expect_err("taken");
        assert!(matches!(error, Error::RouterExists { .. }), "{error:?}");
        assert!(!abandon(conn, &id).await.expect("abandon"), "an active router is never swept");
        assert_eq!(get(conn, &id).await.expect("get"), Some(record));
    }

    #[tokio::test]
    async fn many_are_registered_and_made_active_as_one_by_one() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        let id = |name: &str| RouterId::parse(name).expect("id");
        insert(conn, &NewRouter::new(id("there")), &now()).await.expect("insert");
        let full = NewRouter::new(id("b")).name("\"B\" \u{1f4e1}").host("192.0.2.1").port(8728);
        let twice = NewRouter::new(id("b")).name("another");
        let new = [NewRouter::new(id("a")), full, NewRouter::new(id("there")), twice];
        let inserted = insert_many(conn, &new, &now()).await.expect("insert");
        assert_eq!(inserted, BTreeSet::from([id("a"), id("b")]));
        activate_many(conn, &[(id("b"), UID), (id("gone"), UID)], &now()).await.expect("activate");
        let found = get_many(conn, &[id("b"), id("a"), id("gone")]).await.expect("get");
        let [a, b] = &found[..] else { panic!("{found:?}") };
        assert_eq!((&*a.name, a.lifecycle, a.host.as_deref(), a.port), ("a", Lifecycle::Provisioning, None, None));
        assert_eq!((&*b.name, b.lifecycle, b.file_uid), ("\"B\" \u{1f4e1}", Lifecycle::Active, Some(UID)));
        assert_eq!((b.host.as_deref(), b.port, b.created_boot), (Some("192.0.2.1"), Some(8728), now().boot));
        assert_eq!(count(conn).await.expect("count"), 3);
    }

    #[tokio::test]
    async fn a_registration_never_completed_can_be_taken_back() {
        let (mut scratch, id) = Scratch::with_router("half").await;
        assert!(abandon(&mut scratch.conn, &id).await.expect("abandon"));
        assert_eq!(list(&mut scratch.conn).await.expect("list"), []);
    }

    #[tokio::test]
    async fn the_lifecycle_moves_only_from_the_expected_state() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let conn = &mut scratch.conn;
        activate(conn, &id, &UID, &now()).await.expect("activate");
        let (active, retired) = (Lifecycle::Active, Lifecycle::Retired);
        assert!(move_lifecycle(conn, &id, active, retired, &now()).await.expect("move"));
        assert!(!move_lifecycle(conn, &id, active, Lifecycle::Quarantined, &now()).await.expect("move"));
        assert_eq!(get(conn, &id).await.expect("get").expect("registered").lifecycle, retired);
    }

    #[tokio::test]
    async fn an_active_router_without_a_file_mark_cannot_be_stored() {
        let (mut scratch, _) = Scratch::with_router("r1").await;
        scratch.refusal("UPDATE routers SET lifecycle = 'active'").await;
        scratch.refusal("UPDATE routers SET lifecycle = 'gone'").await;
        scratch.refusal("UPDATE routers SET port = 70000").await;
        scratch.refusal("UPDATE routers SET capabilities = '{}'").await;
    }

    #[tokio::test]
    async fn facts_are_recorded_and_unchanged_facts_are_not_written() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let versions = BTreeMap::from([("events".to_owned(), 2), ("state".to_owned(), 1)]);
        for repeat in [false, true] {
            let before = crate::vfs::written(&scratch.path());
            let conn = &mut scratch.conn;
            set_status(conn, &id, RouterStatus::Degraded, &now()).await.expect("status");
            set_device(conn, &id, "routeros", "hEX", "7.16", &now()).await.expect("device");
            set_schema_versions(conn, &id, &versions, &now()).await.expect("versions");
            let bytes = (crate::vfs::written(&scratch.path()) - before).bytes;
            assert_eq!(bytes == 0, repeat, "{bytes} bytes");
        }
        set_capabilities(&mut scratch.conn, &id, &json!({ "wireguard": true }), &now()).await.expect("capabilities");

        let record = get(&mut scratch.conn, &id).await.expect("get").expect("registered");
        assert_eq!(record.status, RouterStatus::Degraded);
        let device = (record.platform.as_deref(), record.model.as_deref(), record.version.as_deref());
        assert_eq!(device, (Some("routeros"), Some("hEX"), Some("7.16")));
        assert_eq!(record.schema_versions, versions);
        let capabilities = record.capabilities.expect("capabilities");
        assert_eq!((capabilities.value, capabilities.as_of_ms), (json!({ "wireguard": true }), now().wall_ms));
    }
}
