//! The keys of sealed values, each wrapped by the master key: one of the fleet, and one of each router with secrets.
//!
//! A value is sealed under the key of its scope, never under the master key. So a new master key means wrapping a few
//! keys anew and no value; and the key of a purged router is gone with its record, whatever copies of its data remain.

use sqlx::{Row, SqliteConnection};
use zeroize::{Zeroize, Zeroizing};

use super::column;
use crate::clock::Now;
use crate::error::{Error, KeyFault};
use crate::id::Scope;
use crate::seal::{MasterKey, Sealer};

const GET: &str = "SELECT wrapped, master_id FROM data_keys WHERE scope = ?1";

const ADD: &str = "
    INSERT INTO data_keys (scope, wrapped, master_id, created_ms) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (scope) DO NOTHING";

const LIST: &str = "SELECT scope, wrapped, master_id, created_ms FROM data_keys ORDER BY scope";

const REWRAP: &str = "UPDATE data_keys SET wrapped = ?2, master_id = ?3 WHERE scope = ?1";

const ADOPT: &str = "
    INSERT INTO data_keys (scope, wrapped, master_id, created_ms) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (scope) DO UPDATE SET wrapped = excluded.wrapped, master_id = excluded.master_id";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("data_keys::GET", GET),
    ("data_keys::ADD", ADD),
    ("data_keys::LIST", LIST),
    ("data_keys::REWRAP", REWRAP),
    ("data_keys::ADOPT", ADOPT),
];

/// Wraps the data keys of one fleet under one master key.
#[derive(Debug, Clone)]
pub(crate) struct Wrapper {
    sealer: Sealer,
    /// Tells master keys apart without showing anything of them.
    id: [u8; 16],
    /// Where the master key comes from, for errors.
    origin: String,
}

/// A wrapped key as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Wrapped {
    scope: String,
    wrapped: Vec<u8>,
    master_id: [u8; 16],
    created_ms: i64,
}

impl Wrapper {
    pub(crate) fn new(master: &MasterKey, fleet: &str, origin: String) -> Self {
        let sealer = Sealer::new(master, &format!("data-keys/{fleet}"));
        let id = sealer.fingerprint("master-key-id", fleet.as_bytes());
        Self { sealer, id, origin }
    }

    /// Tells whether a key was wrapped by this master key.
    pub(crate) fn wrapped(&self, key: &Wrapped) -> bool {
        key.master_id == self.id
    }

    fn wrap(&self, scope: &str, key: &[u8; 32]) -> Result<Vec<u8>, Error> {
        self.sealer.seal(&place(scope), key)
    }

    fn unwrap(&self, key: &Wrapped) -> Result<Zeroizing<[u8; 32]>, Error> {
        if !self.wrapped(key) {
            return Err(self.wrong());
        }
        let opened = self.sealer.open(&place(&key.scope), &key.wrapped)?;
        let bytes: [u8; 32] =
            opened.as_slice().try_into().map_err(|_| Error::Sealed { reason: "a data key has another length" })?;
        Ok(Zeroizing::new(bytes))
    }

    /// The error of a master key that wrapped none of the keys.
    pub(crate) fn wrong(&self) -> Error {
        Error::MasterKey { origin: self.origin.clone(), fault: KeyFault::Wrong }
    }
}

/// What a wrapped key is bound to.
fn place(scope: &str) -> Vec<u8> {
    format!("data-key/{scope}").into_bytes()
}

fn sealer_of(scope: &Scope, key: &Zeroizing<[u8; 32]>) -> Sealer {
    let mut bytes = **key;
    let sealer = Sealer::new(&MasterKey::from_bytes(bytes), scope.as_str());
    bytes.zeroize();
    sealer
}

/// Returns what seals the values of a scope; `None` when it has no key yet, and so no values.
///
/// # Errors
/// [`Error::MasterKey`] when another master key wrapped it, [`Error::Sealed`] when it was changed.
pub(crate) async fn get(
    conn: &mut SqliteConnection,
    wrapper: &Wrapper,
    scope: &Scope,
) -> Result<Option<Sealer>, Error> {
    let row = sqlx::query(GET).bind(scope.as_str()).fetch_optional(conn).await?;
    let Some(row) = row else { return Ok(None) };
    let wrapped = Wrapped {
        scope: scope.as_str().to_owned(),
        wrapped: row.try_get("wrapped")?,
        master_id: column::bytes_16("master key id", row.try_get("master_id")?)?,
        created_ms: 0,
    };
    Ok(Some(sealer_of(scope, &wrapper.unwrap(&wrapped)?)))
}

/// As [`get`], giving the scope a new random key when it has none.
pub(crate) async fn ensure(
    conn: &mut SqliteConnection,
    wrapper: &Wrapper,
    scope: &Scope,
    now: &Now,
) -> Result<Sealer, Error> {
    if let Some(sealer) = get(conn, wrapper, scope).await? {
        return Ok(sealer);
    }
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(|_| Error::Random)?;
    let wrapped = wrapper.wrap(scope.as_str(), &key)?;
    let query = sqlx::query(ADD).bind(scope.as_str()).bind(wrapped).bind(&wrapper.id[..]).bind(now.wall_ms);
    query.execute(&mut *conn).await?;
    Ok(sealer_of(scope, &key))
}

/// Returns every key, wrapped as it is.
pub(crate) async fn list(conn: &mut SqliteConnection) -> Result<Vec<Wrapped>, Error> {
    let decode = |row: &sqlx::sqlite::SqliteRow| {
        Ok(Wrapped {
            scope: row.try_get("scope")?,
            wrapped: row.try_get("wrapped")?,
            master_id: column::bytes_16("master key id", row.try_get("master_id")?)?,
            created_ms: row.try_get("created_ms")?,
        })
    };
    sqlx::query(LIST).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Wraps every key with another master key, and returns how many there are. No value is touched.
///
/// # Errors
/// [`Error::MasterKey`] when `old` wrapped one of them not, [`Error::Sealed`].
pub(crate) async fn rewrap(conn: &mut SqliteConnection, old: &Wrapper, new: &Wrapper) -> Result<u64, Error> {
    let keys = list(conn).await?;
    for key in &keys {
        let wrapped = new.wrap(&key.scope, &*old.unwrap(key)?)?;
        sqlx::query(REWRAP).bind(&key.scope).bind(wrapped).bind(&new.id[..]).execute(&mut *conn).await?;
    }
    Ok(keys.len() as u64)
}

/// Takes keys over from another file of the same fleet: those of a backup may be older, or wrapped by an older key.
pub(crate) async fn adopt(conn: &mut SqliteConnection, keys: &[Wrapped]) -> Result<(), Error> {
    for key in keys {
        let query = sqlx::query(ADOPT).bind(&key.scope).bind(&key.wrapped).bind(&key.master_id[..]);
        query.bind(key.created_ms).execute(&mut *conn).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::routers;
    use crate::system::scratch::{Scratch, now};

    fn wrapper(byte: u8) -> Wrapper {
        Wrapper::new(&MasterKey::from_bytes([byte; 32]), "fleet", "a test".to_owned())
    }

    #[tokio::test]
    async fn each_scope_has_a_key_of_its_own_that_comes_back_and_opens_nothing_elsewhere() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let scope = Scope::Router(id);
        let conn = &mut scratch.conn;
        assert!(get(conn, &wrapper(1), &scope).await.expect("get").is_none());
        let sealer = ensure(conn, &wrapper(1), &scope, &now()).await.expect("ensure");
        let sealed = sealer.seal(b"place", b"value").expect("seal");
        let again = ensure(conn, &wrapper(1), &scope, &now()).await.expect("ensure");
        assert_eq!(**again.open(b"place", &sealed).expect("open"), *b"value");
        let fleet = ensure(conn, &wrapper(1), &Scope::System, &now()).await.expect("ensure");
        assert!(fleet.open(b"place", &sealed).is_err());
        // A wrapped key put in the place of another does not open.
        let swap = "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE scope = 'system')";
        sqlx::query(swap).execute(&mut *conn).await.expect("swap");
        assert!(matches!(get(conn, &wrapper(1), &scope).await, Err(Error::Sealed { .. })));
    }

    #[tokio::test]
    async fn another_master_key_is_told_apart_and_rewrapping_touches_no_value() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let scope = Scope::Router(id);
        let conn = &mut scratch.conn;
        let sealed = ensure(conn, &wrapper(1), &scope, &now()).await.expect("key").seal(b"", b"value").expect("seal");
        let error = get(conn, &wrapper(2), &scope).await.expect_err("another key");
        assert!(matches!(&error, Error::MasterKey { fault: KeyFault::Wrong, .. }), "{error:?}");
        assert!(rewrap(conn, &wrapper(3), &wrapper(2)).await.is_err(), "nobody without the old key makes a new one");
        assert_eq!(rewrap(conn, &wrapper(1), &wrapper(2)).await.expect("rewrap"), 1);
        let opened = get(conn, &wrapper(2), &scope).await.expect("get").expect("key").open(b"", &sealed);
        assert_eq!(**opened.expect("open"), *b"value");
        assert!(get(conn, &wrapper(1), &scope).await.is_err());
    }

    #[tokio::test]
    async fn the_key_of_a_router_goes_with_its_record() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let scope = Scope::Router(id.clone());
        ensure(&mut scratch.conn, &wrapper(1), &scope, &now()).await.expect("ensure");
        assert!(routers::abandon(&mut scratch.conn, &id).await.expect("abandon"));
        assert!(list(&mut scratch.conn).await.expect("list").is_empty());
    }
}
