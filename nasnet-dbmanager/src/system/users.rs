//! The people and programs that may use the fleet; their passwords as argon2id hashes.

use std::fmt;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use super::{column, name};
use crate::clock::Now;
use crate::error::Error;

const INSERT: &str = "
    INSERT INTO users (id, name, password_hash, role, created_ms, updated_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?5)
    ON CONFLICT (name) DO NOTHING";

const GET: &str = "SELECT id, name, role, disabled, created_ms, updated_ms FROM users WHERE name = ?1";

const HASH: &str = "SELECT password_hash, disabled FROM users WHERE name = ?1";

/// One user each at most, and a page of them: the one list of its table.
const LIST: &str = "
    SELECT id, name, role, disabled, created_ms, updated_ms FROM users WHERE name > ?1 ORDER BY name LIMIT ?2";

const SET_PASSWORD: &str = "UPDATE users SET password_hash = ?2, updated_ms = ?3 WHERE name = ?1";

const SET_ROLE: &str = "UPDATE users SET role = ?2, updated_ms = ?3 WHERE name = ?1 AND role <> ?2";

const SET_DISABLED: &str = "UPDATE users SET disabled = ?2, updated_ms = ?3 WHERE name = ?1 AND disabled <> ?2";

const REMOVE: &str = "DELETE FROM users WHERE name = ?1";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("users::INSERT", INSERT),
    ("users::GET", GET),
    ("users::HASH", HASH),
    ("users::LIST", LIST),
    ("users::SET_PASSWORD", SET_PASSWORD),
    ("users::SET_ROLE", SET_ROLE),
    ("users::SET_DISABLED", SET_DISABLED),
    ("users::REMOVE", REMOVE),
];

/// A user, without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// The id.
    pub id: Ulid,
    /// The name to log in with.
    pub name: String,
    /// What the user may do, in a form this crate does not look into.
    pub role: String,
    /// Whether logging in, every session and every key of this user are refused.
    pub disabled: bool,
    /// When the user was created, wall clock.
    pub created_ms: i64,
    /// When the user last changed, wall clock.
    pub updated_ms: i64,
}

/// A stored password hash; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub(super) String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// Creates a user.
///
/// # Errors
/// [`Error::Exists`], [`Error::InvalidName`], or an error of the database.
pub async fn create(
    conn: &mut SqliteConnection,
    id: Ulid,
    user: &str,
    hash: &PasswordHash,
    role: &str,
    now: &Now,
) -> Result<(), Error> {
    check(user)?;
    name::check("role", role)?;
    let query = sqlx::query(INSERT).bind(column::ulid(&id)).bind(user).bind(&hash.0).bind(role).bind(now.wall_ms);
    let done = query.execute(conn).await?;
    if done.rows_affected() == 0 { Err(Error::Exists { what: "user", name: user.to_owned() }) } else { Ok(()) }
}

/// Returns a user.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::Decode`], or an error of the database.
pub async fn get(conn: &mut SqliteConnection, user: &str) -> Result<Option<User>, Error> {
    check(user)?;
    sqlx::query(GET).bind(user).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns up to `limit` users by name, those after the name `after`; the empty name starts at the beginning.
///
/// # Errors
/// [`Error::Decode`], or an error of the database.
pub async fn list(conn: &mut SqliteConnection, after: &str, limit: u32) -> Result<Vec<User>, Error> {
    sqlx::query(LIST).bind(after).bind(limit).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Returns the hash to check a password against: `None` for a user that does not exist or is disabled.
pub(super) async fn hash(conn: &mut SqliteConnection, user: &str) -> Result<Option<PasswordHash>, Error> {
    let Some(row) = sqlx::query(HASH).bind(user).fetch_optional(conn).await? else { return Ok(None) };
    if row.try_get("disabled")? {
        return Ok(None);
    }
    Ok(Some(PasswordHash(row.try_get("password_hash")?)))
}

/// Gives a user another password.
///
/// # Errors
/// [`Error::NotFound`], or an error of the database.
pub async fn set_password(
    conn: &mut SqliteConnection,
    user: &str,
    hash: &PasswordHash,
    now: &Now,
) -> Result<(), Error> {
    let done = sqlx::query(SET_PASSWORD).bind(user).bind(&hash.0).bind(now.wall_ms).execute(conn).await?;
    if done.rows_affected() == 0 { Err(missing(user)) } else { Ok(()) }
}

/// Gives a user another role; an unchanged one is not written.
///
/// # Errors
/// [`Error::NotFound`], [`Error::InvalidName`], or an error of the database.
pub async fn set_role(conn: &mut SqliteConnection, user: &str, role: &str, now: &Now) -> Result<(), Error> {
    name::check("role", role)?;
    let done = sqlx::query(SET_ROLE).bind(user).bind(role).bind(now.wall_ms).execute(&mut *conn).await?;
    must_exist(conn, user, done.rows_affected()).await
}

/// Refuses or admits a user from now on; an unchanged state is not written.
///
/// # Errors
/// [`Error::NotFound`], or an error of the database.
pub async fn set_disabled(conn: &mut SqliteConnection, user: &str, disabled: bool, now: &Now) -> Result<(), Error> {
    let done = sqlx::query(SET_DISABLED).bind(user).bind(disabled).bind(now.wall_ms).execute(&mut *conn).await?;
    must_exist(conn, user, done.rows_affected()).await
}

/// Removes a user with all sessions and keys; returns whether there was one.
///
/// # Errors
/// An error of the database.
pub async fn remove(conn: &mut SqliteConnection, user: &str) -> Result<bool, Error> {
    Ok(sqlx::query(REMOVE).bind(user).execute(conn).await?.rows_affected() > 0)
}

async fn must_exist(conn: &mut SqliteConnection, user: &str, changed: u64) -> Result<(), Error> {
    if changed == 0 && get(conn, user).await?.is_none() { Err(missing(user)) } else { Ok(()) }
}

pub(super) fn missing(user: &str) -> Error {
    Error::NotFound { what: "user", name: user.to_owned() }
}

pub(super) fn check(user: &str) -> Result<(), Error> {
    name::check("user", user)
}

fn decode(row: &SqliteRow) -> Result<User, Error> {
    Ok(User {
        id: column::read_ulid("user id", row.try_get("id")?)?,
        name: row.try_get("name")?,
        role: row.try_get("role")?,
        disabled: row.try_get("disabled")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::scratch::{Scratch, now};

    fn stored() -> PasswordHash {
        PasswordHash("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$canary".to_owned())
    }

    #[tokio::test]
    async fn a_user_is_created_once_changed_and_removed() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        create(conn, Ulid::from(1), "alice", &stored(), "admin", &now()).await.expect("create");
        let again = create(conn, Ulid::from(2), "alice", &stored(), "admin", &now()).await;
        assert!(matches!(again, Err(Error::Exists { what: "user", ref name }) if name == "alice"), "{again:?}");
        create(conn, Ulid::from(2), "bob", &stored(), "viewer", &now()).await.expect("create");
        set_role(conn, "alice", "viewer", &now()).await.expect("role");
        set_role(conn, "alice", "viewer", &now()).await.expect("unchanged");
        let alice = get(conn, "alice").await.expect("get").expect("there");
        assert_eq!((alice.id, alice.role.as_str(), alice.disabled), (Ulid::from(1), "viewer", false));
        let names: Vec<_> = list(conn, "", 9).await.expect("list").into_iter().map(|user| user.name).collect();
        assert_eq!(names, ["alice", "bob"]);
        assert_eq!(list(conn, "alice", 9).await.expect("list").len(), 1);
        assert!(remove(conn, "alice").await.expect("remove"));
        assert!(!remove(conn, "alice").await.expect("remove"));
    }

    #[tokio::test]
    async fn a_disabled_user_has_no_hash_to_check_against() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        create(conn, Ulid::from(1), "alice", &stored(), "admin", &now()).await.expect("create");
        assert_eq!(hash(conn, "alice").await.expect("hash"), Some(stored()));
        set_disabled(conn, "alice", true, &now()).await.expect("disable");
        assert_eq!(hash(conn, "alice").await.expect("hash"), None);
        assert_eq!(format!("{:?}", stored()), "PasswordHash(..)");
    }

    #[tokio::test]
    async fn what_is_missing_or_ill_formed_is_refused_by_name() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        for name in ["", "Alice", "a b", "../x", &"a".repeat(65)] {
            let refused = create(conn, Ulid::from(1), name, &stored(), "admin", &now()).await;
            assert!(matches!(refused, Err(Error::InvalidName { what: "user", .. })), "{name:?}");
        }
        assert!(matches!(set_role(conn, "eve", "admin", &now()).await, Err(Error::NotFound { what: "user", .. })));
        assert!(set_password(conn, "eve", &stored(), &now()).await.is_err());
        assert!(set_disabled(conn, "eve", true, &now()).await.is_err());
        let plain = PasswordHash("hunter2".to_owned());
        let refused = create(conn, Ulid::from(1), "eve", &plain, "admin", &now()).await.expect_err("no hash");
        assert!(matches!(refused, Error::Constraint { .. }) && !refused.to_string().contains("hunter2"));
    }
}
