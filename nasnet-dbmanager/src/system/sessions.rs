//! Sessions of logged-in users: found by the hash of their token, ended by age, revocation or their user.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use super::column;
use super::expiry::{Age, Issue};
use crate::clock::{ClockQuality, Now};
use crate::error::Error;

const INSERT: &str = "
    INSERT INTO sessions (id, token_hash, user_id, ttl_ms, issued_ms, issued_quality, issued_boot, issued_uptime_ms,
                          ip_address)
    SELECT ?1, ?2, id, ?4, ?5, ?6, ?7, ?8, ?9 FROM users WHERE name = ?3 AND disabled = 0";

const FIND: &str = "
    SELECT s.id, s.user_id, u.name AS user_name, u.role, u.disabled, s.ttl_ms, s.issued_ms, s.issued_quality,
           s.issued_boot, s.issued_uptime_ms, s.ip_address, s.revoked_ms, s.last_seen_ms
    FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.token_hash = ?1";

const LIST: &str = "
    SELECT s.id, s.user_id, u.name AS user_name, u.role, u.disabled, s.ttl_ms, s.issued_ms, s.issued_quality,
           s.issued_boot, s.issued_uptime_ms, s.ip_address, s.revoked_ms, s.last_seen_ms
    FROM users u JOIN sessions s ON s.user_id = u.id WHERE u.name = ?1 ORDER BY s.id";

const REVOKE: &str = "UPDATE sessions SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL";

const REVOKE_ALL: &str = "
    UPDATE sessions SET revoked_ms = ?2
    WHERE user_id = (SELECT id FROM users WHERE name = ?1) AND revoked_ms IS NULL";

const SET_LAST_SEEN: &str = "UPDATE sessions SET last_seen_ms = ?2 WHERE id = ?1 AND last_seen_ms IS NOT ?2";

/// Looks at every session: retention runs seldom, over a table its own rule keeps short.
const PRUNE: &str = "
    DELETE FROM sessions
    WHERE revoked_ms < ?1 OR (issued_quality = 'synced' AND issued_ms + ttl_ms < ?1)";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("sessions::INSERT", INSERT),
    ("sessions::FIND", FIND),
    ("sessions::LIST", LIST),
    ("sessions::REVOKE", REVOKE),
    ("sessions::REVOKE_ALL", REVOKE_ALL),
    ("sessions::SET_LAST_SEEN", SET_LAST_SEEN),
    ("sessions::PRUNE", PRUNE),
];

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// The id, to name it in lists and to revoke it by.
    pub id: Ulid,
    /// The user's id.
    pub user_id: Ulid,
    /// The user's name.
    pub user: String,
    /// The user's role.
    pub role: String,
    /// When it was issued, wall clock.
    pub issued_ms: i64,
    /// Where it was issued to.
    pub ip_address: Option<IpAddr>,
    /// When it was revoked, wall clock.
    pub revoked_ms: Option<i64>,
    /// When it was last seen, wall clock; exact to a minute in memory and to a day after the boot has ended.
    pub last_seen_ms: Option<i64>,
    issue: Issue,
    user_disabled: bool,
}

/// What became of a presented token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenCheck<T> {
    /// It is good.
    Valid(T),
    /// It was never issued, or its user is gone.
    Unknown,
    /// It was revoked, or its user is disabled.
    Revoked,
    /// Its time is over.
    Expired,
    /// It was issued in another boot and one of the clocks was not set: whether its time is over cannot be told, so it
    /// is refused until the clock is synced.
    AgeUnknown,
}

impl<T> TokenCheck<T> {
    /// Returns what a good token stands for.
    pub fn valid(self) -> Option<T> {
        match self {
            Self::Valid(value) => Some(value),
            _ => None,
        }
    }
}

pub(super) fn judge<T: Clone>(value: &T, issue: &Issue, refused: bool, now: &Now) -> TokenCheck<T> {
    if refused {
        return TokenCheck::Revoked;
    }
    match issue.age(now) {
        Age::Fresh => TokenCheck::Valid(value.clone()),
        Age::Expired => TokenCheck::Expired,
        Age::Untold => TokenCheck::AgeUnknown,
    }
}

impl Session {
    pub(super) fn check(&self, now: &Now) -> TokenCheck<Self> {
        judge(self, &self.issue, self.revoked_ms.is_some() || self.user_disabled, now)
    }
}

/// Records a session of a user that exists and is not disabled.
pub(super) async fn insert(
    conn: &mut SqliteConnection,
    id: Ulid,
    token_hash: &[u8; 32],
    user: &str,
    ttl: Duration,
    ip_address: Option<IpAddr>,
    now: &Now,
) -> Result<(), Error> {
    let issue = Issue::new(now, Some(ttl));
    let done = sqlx::query(INSERT)
        .bind(column::ulid(&id))
        .bind(&token_hash[..])
        .bind(user)
        .bind(issue.ttl_column())
        .bind(issue.wall_ms)
        .bind(issue.quality.as_str())
        .bind(&issue.boot.as_bytes()[..])
        .bind(issue.uptime_column())
        .bind(ip_address.map(|address| address.to_string()))
        .execute(conn)
        .await?;
    if done.rows_affected() == 0 { Err(super::users::missing(user)) } else { Ok(()) }
}

pub(super) async fn find(conn: &mut SqliteConnection, token_hash: &[u8; 32]) -> Result<Option<Session>, Error> {
    sqlx::query(FIND).bind(&token_hash[..]).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns the sessions of a user, ended ones included, by id.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn list(conn: &mut SqliteConnection, user: &str) -> Result<Vec<Session>, Error> {
    sqlx::query(LIST).bind(user).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Revokes a session; returns whether it was not revoked before.
///
/// # Errors
/// An error of the database.
pub async fn revoke(conn: &mut SqliteConnection, id: Ulid, now: &Now) -> Result<bool, Error> {
    Ok(sqlx::query(REVOKE).bind(column::ulid(&id)).bind(now.wall_ms).execute(conn).await?.rows_affected() > 0)
}

/// Revokes every session of a user; returns how many.
///
/// # Errors
/// An error of the database.
pub async fn revoke_all(conn: &mut SqliteConnection, user: &str, now: &Now) -> Result<u64, Error> {
    Ok(sqlx::query(REVOKE_ALL).bind(user).bind(now.wall_ms).execute(conn).await?.rows_affected())
}

pub(super) async fn set_last_seen(conn: &mut SqliteConnection, id: Ulid, wall_ms: i64) -> Result<(), Error> {
    sqlx::query(SET_LAST_SEEN).bind(column::ulid(&id)).bind(wall_ms).execute(conn).await?;
    Ok(())
}

/// Removes sessions that ended longer ago than `keep`; returns how many. With an unsynced clock it removes none.
///
/// # Errors
/// An error of the database.
pub async fn prune(conn: &mut SqliteConnection, keep: Duration, now: &Now) -> Result<u64, Error> {
    if now.quality != ClockQuality::Synced {
        return Ok(0);
    }
    let before = now.wall_ms.saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
    Ok(sqlx::query(PRUNE).bind(before).execute(conn).await?.rows_affected())
}

fn decode(row: &SqliteRow) -> Result<Session, Error> {
    Ok(Session {
        id: column::read_ulid("session id", row.try_get("id")?)?,
        user_id: column::read_ulid("user id", row.try_get("user_id")?)?,
        user: row.try_get("user_name")?,
        role: row.try_get("role")?,
        issued_ms: row.try_get("issued_ms")?,
        ip_address: column::optional(row, "ip_address", column::address)?,
        revoked_ms: row.try_get("revoked_ms")?,
        last_seen_ms: row.try_get("last_seen_ms")?,
        issue: Issue::decode(row)?,
        user_disabled: row.try_get("disabled")?,
    })
}
