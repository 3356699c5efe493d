//! API keys: a prefix that may be shown, the hash of the rest, and the scopes it opens.

use std::time::Duration;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use super::expiry::Issue;
use super::sessions::{TokenCheck, judge};
use super::{column, name, token};
use crate::clock::Now;
use crate::error::Error;

/// Most scopes of one key.
const SCOPES_MAX: usize = 64;

const INSERT: &str = "
    INSERT INTO api_keys (id, prefix, key_hash, user_id, name, scopes, ttl_ms, issued_ms, issued_quality, issued_boot,
                          issued_uptime_ms)
    SELECT ?1, ?2, ?3, id, ?5, ?6, ?7, ?8, ?9, ?10, ?11 FROM users WHERE name = ?4 AND disabled = 0";

const FIND: &str = "
    SELECT k.id, k.prefix, k.key_hash, k.user_id, u.name AS user_name, u.role, u.disabled, k.name, k.scopes, k.ttl_ms,
           k.issued_ms, k.issued_quality, k.issued_boot, k.issued_uptime_ms, k.revoked_ms, k.last_used_ms
    FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.prefix = ?1";

const LIST: &str = "
    SELECT k.id, k.prefix, k.key_hash, k.user_id, u.name AS user_name, u.role, u.disabled, k.name, k.scopes, k.ttl_ms,
           k.issued_ms, k.issued_quality, k.issued_boot, k.issued_uptime_ms, k.revoked_ms, k.last_used_ms
    FROM users u JOIN api_keys k ON k.user_id = u.id WHERE u.name = ?1 ORDER BY k.id";

const REVOKE: &str = "UPDATE api_keys SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL";

const REMOVE: &str = "DELETE FROM api_keys WHERE id = ?1";

const SET_LAST_USED: &str = "UPDATE api_keys SET last_used_ms = ?2 WHERE id = ?1 AND last_used_ms IS NOT ?2";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("api_keys::INSERT", INSERT),
    ("api_keys::FIND", FIND),
    ("api_keys::LIST", LIST),
    ("api_keys::REVOKE", REVOKE),
    ("api_keys::REMOVE", REMOVE),
    ("api_keys::SET_LAST_USED", SET_LAST_USED),
];

/// An API key, without the key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiKey {
    /// The id, to revoke it by.
    pub id: Ulid,
    /// The first characters of the key, to recognise it.
    pub prefix: String,
    /// The user's id.
    pub user_id: Ulid,
    /// The user's name.
    pub user: String,
    /// The user's role.
    pub role: String,
    /// What people call the key.
    pub name: String,
    /// What it opens, in a form this crate does not look into.
    pub scopes: Vec<String>,
    /// When it was issued, wall clock.
    pub issued_ms: i64,
    /// When it was revoked, wall clock.
    pub revoked_ms: Option<i64>,
    /// When it was last used, wall clock; exact to a minute in memory and to a day after the boot has ended.
    pub last_used_ms: Option<i64>,
    pub(super) hash: [u8; 32],
    issue: Issue,
    user_disabled: bool,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey")
            .field("prefix", &self.prefix)
            .field("user", &self.user)
            .field("name", &self.name)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

impl ApiKey {
    pub(super) fn check(&self, now: &Now) -> TokenCheck<Self> {
        judge(self, &self.issue, self.revoked_ms.is_some() || self.user_disabled, now)
    }
}

/// An API key to be issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    pub(super) user: String,
    pub(super) name: String,
    pub(super) scopes: Vec<String>,
    pub(super) ttl: Option<Duration>,
}

impl NewApiKey {
    /// Starts with whose it is and what people call it; it opens nothing and does not expire.
    pub fn new(user: impl Into<String>, name: impl Into<String>) -> Self {
        Self { user: user.into(), name: name.into(), scopes: Vec::new(), ttl: None }
    }

    /// Adds a scope, such as `routers.read`.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// Ends it after some time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        name::check("api key", &self.name)?;
        if self.scopes.len() > SCOPES_MAX {
            let detail = format!("it has {} scopes, {SCOPES_MAX} are possible", self.scopes.len());
            return Err(Error::Encode { what: "api key", detail });
        }
        self.scopes.iter().try_for_each(|scope| name::check("scope", scope))
    }
}

pub(super) async fn insert(
    conn: &mut SqliteConnection,
    id: Ulid,
    key: &token::Token,
    new: &NewApiKey,
    now: &Now,
) -> Result<(), Error> {
    let issue = Issue::new(now, new.ttl);
    let hash = token::hash_of(key.expose()).unwrap_or_default();
    let done = sqlx::query(INSERT)
        .bind(column::ulid(&id))
        .bind(key.prefix())
        .bind(&hash[..])
        .bind(&new.user)
        .bind(&new.name)
        .bind(serde_json::Value::from(new.scopes.clone()).to_string())
        .bind(issue.ttl_column())
        .bind(issue.wall_ms)
        .bind(issue.quality.as_str())
        .bind(&issue.boot.as_bytes()[..])
        .bind(issue.uptime_column())
        .execute(conn)
        .await?;
    if done.rows_affected() == 0 { Err(super::users::missing(&new.user)) } else { Ok(()) }
}

/// Finds a key by the part of it that may be shown; whether the rest is right is for the caller to compare.
pub(super) async fn find(conn: &mut SqliteConnection, prefix: &str) -> Result<Option<ApiKey>, Error> {
    sqlx::query(FIND).bind(prefix).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns the keys of a user, revoked ones included, by id.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn list(conn: &mut SqliteConnection, user: &str) -> Result<Vec<ApiKey>, Error> {
    sqlx::query(LIST).bind(user).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Revokes a key; returns whether it was not revoked before.
///
/// # Errors
/// An error of the database.
pub async fn revoke(conn: &mut SqliteConnection, id: Ulid, now: &Now) -> Result<bool, Error> {
    Ok(sqlx::query(REVOKE).bind(column::ulid(&id)).bind(now.wall_ms).execute(conn).await?.rows_affected() > 0)
}

/// Removes a key and every trace of its use; returns whether there was one.
///
/// # Errors
/// An error of the database.
pub async fn remove(conn: &mut SqliteConnection, id: Ulid) -> Result<bool, Error> {
    Ok(sqlx::query(REMOVE).bind(column::ulid(&id)).execute(conn).await?.rows_affected() > 0)
}

pub(super) async fn set_last_used(conn: &mut SqliteConnection, id: Ulid, wall_ms: i64) -> Result<(), Error> {
    sqlx::query(SET_LAST_USED).bind(column::ulid(&id)).bind(wall_ms).execute(conn).await?;
    Ok(())
}

fn decode(row: &SqliteRow) -> Result<ApiKey, Error> {
    let hash: &[u8] = row.try_get("key_hash")?;
    let hash = hash.try_into().map_err(|_| Error::Decode { what: "api key hash", detail: "its length".to_owned() })?;
    Ok(ApiKey {
        id: column::read_ulid("api key id", row.try_get("id")?)?,
        prefix: row.try_get("prefix")?,
        user_id: column::read_ulid("user id", row.try_get("user_id")?)?,
        user: row.try_get("user_name")?,
        role: row.try_get("role")?,
        name: row.try_get("name")?,
        scopes: column::json("scopes", row.try_get("scopes")?)?,
        issued_ms: row.try_get("issued_ms")?,
        revoked_ms: row.try_get("revoked_ms")?,
        last_used_ms: row.try_get("last_used_ms")?,
        hash,
        issue: Issue::decode(row)?,
        user_disabled: row.try_get("disabled")?,
    })
}
