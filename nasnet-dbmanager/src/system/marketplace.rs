//! The features a fleet may install, and which of them it has.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{column, name};
use crate::clock::Now;
use crate::error::Error;

const GET: &str = "
    SELECT id, name, version, category, state, manifest, updated_ms FROM marketplace_features WHERE id = ?1";

const LIST: &str = "
    SELECT id, name, version, category, state, manifest, updated_ms
    FROM marketplace_features WHERE id > ?1 ORDER BY id LIMIT ?2";

// What did not change is not written again; the state is the fleet's own and survives a newer offer.
const PUT: &str = "
    INSERT INTO marketplace_features (id, name, version, category, state, manifest, updated_ms)
    VALUES (?1, ?2, ?3, ?4, 'available', ?5, ?6)
    ON CONFLICT (id) DO UPDATE
    SET name = excluded.name, version = excluded.version, category = excluded.category, manifest = excluded.manifest,
        updated_ms = excluded.updated_ms
    WHERE (name, version, category, manifest)
          IS NOT (excluded.name, excluded.version, excluded.category, excluded.manifest)";

const SET_STATE: &str = "
    UPDATE marketplace_features SET state = ?3, updated_ms = ?4 WHERE id = ?1 AND state = ?2";

const REMOVE: &str = "DELETE FROM marketplace_features WHERE id = ?1";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("marketplace::GET", GET),
    ("marketplace::LIST", LIST),
    ("marketplace::PUT", PUT),
    ("marketplace::SET_STATE", SET_STATE),
    ("marketplace::REMOVE", REMOVE),
];

/// What the fleet did with a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FeatureState {
    /// It can be installed.
    Available,
    /// It is installed.
    Installed,
    /// It is installed and switched off.
    Disabled,
    /// It is no longer offered.
    Withdrawn,
}

impl FeatureState {
    const ALL: [Self; 4] = [Self::Available, Self::Installed, Self::Disabled, Self::Withdrawn];

    /// Returns the stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Installed => "installed",
            Self::Disabled => "disabled",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl fmt::Display for FeatureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FeatureState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| Error::Decode { what: "feature state", detail: format!("unknown value {text:?}") })
    }
}

/// A feature as it is offered.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureOffer {
    /// The id.
    pub id: String,
    /// The name for people.
    pub name: String,
    /// The offered version.
    pub version: String,
    /// The category it is shown in.
    pub category: String,
    /// Everything else, a JSON object of up to 64 KiB in a form this crate does not look into.
    pub manifest: Value,
}

/// A stored feature.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Feature {
    /// The offer.
    pub offer: FeatureOffer,
    /// What the fleet did with it.
    pub state: FeatureState,
    /// When it last changed, wall clock.
    pub updated_ms: i64,
}

/// Returns a feature.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::Decode`], or an error of the database.
pub async fn get(conn: &mut SqliteConnection, id: &str) -> Result<Option<Feature>, Error> {
    name::check("feature", id)?;
    sqlx::query(GET).bind(id).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns up to `limit` features by id, those after the id `after`; the empty id starts at the beginning.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn list(conn: &mut SqliteConnection, after: &str, limit: u32) -> Result<Vec<Feature>, Error> {
    sqlx::query(LIST).bind(after).bind(limit).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Stores an offer. A new one is available; a known one keeps its state, and an unchanged one is not written.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::Constraint`] for a manifest that is too large or no object, or an error of the
/// database.
pub async fn put(conn: &mut SqliteConnection, offer: &FeatureOffer, now: &Now) -> Result<(), Error> {
    name::check("feature", &offer.id)?;
    name::check("feature category", &offer.category)?;
    sqlx::query(PUT)
        .bind(&offer.id)
        .bind(&offer.name)
        .bind(&offer.version)
        .bind(&offer.category)
        .bind(offer.manifest.to_string())
        .bind(now.wall_ms)
        .execute(conn)
        .await?;
    Ok(())
}

/// Moves a feature from one state to another; returns whether it was in the first.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn set_state(
    conn: &mut SqliteConnection,
    id: &str,
    from: FeatureState,
    to: FeatureState,
    now: &Now,
) -> Result<bool, Error> {
    name::check("feature", id)?;
    let query = sqlx::query(SET_STATE).bind(id).bind(from.as_str()).bind(to.as_str()).bind(now.wall_ms);
    Ok(query.execute(conn).await?.rows_affected() > 0)
}

/// Removes a feature; returns whether there was one.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn remove(conn: &mut SqliteConnection, id: &str) -> Result<bool, Error> {
    name::check("feature", id)?;
    Ok(sqlx::query(REMOVE).bind(id).execute(conn).await?.rows_affected() > 0)
}

fn decode(row: &SqliteRow) -> Result<Feature, Error> {
    let offer = FeatureOffer {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        category: row.try_get("category")?,
        manifest: column::json("feature manifest", row.try_get("manifest")?)?,
    };
    Ok(Feature { offer, state: row.try_get::<&str, _>("state")?.parse()?, updated_ms: row.try_get("updated_ms")? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::system::scratch::{Scratch, now};

    fn offer(version: &str) -> FeatureOffer {
        FeatureOffer {
            id: "vpn-kill-switch".to_owned(),
            name: "VPN kill switch".to_owned(),
            version: version.to_owned(),
            category: "vpn".to_owned(),
            manifest: json!({ "images": ["x"] }),
        }
    }

    #[tokio::test]
    async fn a_newer_offer_keeps_what_the_fleet_did_with_the_feature() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        put(conn, &offer("1"), &now()).await.expect("put");
        let id = "vpn-kill-switch";
        let install = set_state(conn, id, FeatureState::Available, FeatureState::Installed, &now()).await;
        assert!(install.expect("install"));
        let again = set_state(conn, id, FeatureState::Available, FeatureState::Installed, &now()).await;
        assert!(!again.expect("install"), "only from the state it was in");
        put(conn, &offer("2"), &now()).await.expect("put");
        let feature = get(conn, id).await.expect("get").expect("there");
        assert_eq!((feature.offer, feature.state), (offer("2"), FeatureState::Installed));
        assert_eq!(list(conn, "", 9).await.expect("list").len(), 1);
        assert_eq!(list(conn, id, 9).await.expect("list").len(), 0);
        assert!(remove(conn, id).await.expect("remove"));
        assert_eq!(get(conn, id).await.expect("get"), None);
    }

    #[tokio::test]
    async fn an_unchanged_offer_writes_nothing_and_an_odd_one_is_refused() {
        let mut scratch = Scratch::new().await;
        put(&mut scratch.conn, &offer("1"), &now()).await.expect("put");
        let before = crate::vfs::written(&scratch.path());
        put(&mut scratch.conn, &offer("1"), &now()).await.expect("put");
        assert_eq!((crate::vfs::written(&scratch.path()) - before).bytes, 0);
        let odd = FeatureOffer { manifest: json!([1]), ..offer("1") };
        assert!(matches!(put(&mut scratch.conn, &odd, &now()).await, Err(Error::Constraint { .. })));
        let odd = FeatureOffer { id: "../x".to_owned(), ..offer("1") };
        assert!(matches!(put(&mut scratch.conn, &odd, &now()).await, Err(Error::InvalidName { .. })));
    }
}
