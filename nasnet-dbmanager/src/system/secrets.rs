//! Passwords and keys of routers, sealed.
//!
//! Only sealed bytes reach SQLite. A sealed value is bound to its router, its name and its version, so it does not
//! open anywhere else. Reading one is the explicit call [`reveal`]; nothing else returns or shows a value.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use zeroize::Zeroizing;

use super::{column, name};
use crate::clock::Now;
use crate::error::{ConstraintKind, Error};
use crate::id::RouterId;
use crate::seal::Sealer;

const GET: &str = "
    SELECT version, sealed, fingerprint FROM router_secrets WHERE router_id = ?1 AND name = ?2";

const LIST: &str = "
    SELECT name, version, updated_ms FROM router_secrets WHERE router_id = ?1 AND sealed IS NOT NULL ORDER BY name";

const PUT: &str = "
    INSERT INTO router_secrets (router_id, name, version, sealed, fingerprint, updated_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (router_id, name) DO UPDATE
    SET version = excluded.version, sealed = excluded.sealed, fingerprint = excluded.fingerprint,
        updated_ms = excluded.updated_ms";

const REMOVE: &str = "
    UPDATE router_secrets SET sealed = NULL, fingerprint = NULL, updated_ms = ?3
    WHERE router_id = ?1 AND name = ?2 AND sealed IS NOT NULL";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] =
    &[("secrets::GET", GET), ("secrets::LIST", LIST), ("secrets::PUT", PUT), ("secrets::REMOVE", REMOVE)];

/// What may be known of a secret without revealing it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretInfo {
    /// The name of the secret.
    pub name: String,
    /// Grows with each change of the value.
    pub version: u64,
    /// When the value last changed, wall clock.
    pub updated_ms: i64,
}

/// Stores a secret and returns its version; an unchanged value is not written again and keeps its version.
///
/// # Errors
/// [`Error::RouterNotFound`], [`Error::InvalidName`], or an error of the database. None shows the value.
pub async fn put(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    router: &RouterId,
    name: &str,
    value: &[u8],
    now: &Now,
) -> Result<u64, Error> {
    name::check("secret", name)?;
    let fingerprint = fingerprint(sealer, router, name, value);
    let stored = find(conn, router, name).await?;
    let version = match &stored {
        Some(found) if found.fingerprint == Some(fingerprint) => return Ok(found.version),
        Some(found) => found.version + 1,
        None => 1,
    };
    let sealed = sealer.seal(&place(router, name, version), value)?;
    sqlx::query(PUT)
        .bind(router.as_str())
        .bind(name)
        .bind(column::signed("secret version", version)?)
        .bind(sealed)
        .bind(&fingerprint[..])
        .bind(now.wall_ms)
        .execute(conn)
        .await
        .map_err(|error| match Error::from(error) {
            Error::Constraint { kind: ConstraintKind::ForeignKey, .. } => Error::RouterNotFound { id: router.clone() },
            other => other,
        })?;
    Ok(version)
}

/// Opens a secret; `None` when there is none of that name.
///
/// # Errors
/// [`Error::Sealed`] when the stored value was changed or sealed under another master key, [`Error::InvalidName`],
/// or an error of the database.
pub async fn reveal(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    router: &RouterId,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    name::check("secret", name)?;
    match find(conn, router, name).await? {
        Some(Stored { version, sealed: Some(sealed), .. }) => {
            sealer.open(&place(router, name, version), &sealed).map(Some)
        }
        _ => Ok(None),
    }
}

/// Lists the secrets of a router by name, without their values.
///
/// # Errors
/// An error of the database.
pub async fn list(conn: &mut SqliteConnection, router: &RouterId) -> Result<Vec<SecretInfo>, Error> {
    sqlx::query(LIST).bind(router.as_str()).fetch_all(conn).await?.iter().map(decode_info).collect()
}

/// Removes a secret; returns whether it was there.
///
/// Its version stays, so that the removed value cannot be put back in the file and open again.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn remove(conn: &mut SqliteConnection, router: &RouterId, name: &str, now: &Now) -> Result<bool, Error> {
    name::check("secret", name)?;
    let done = sqlx::query(REMOVE).bind(router.as_str()).bind(name).bind(now.wall_ms).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

struct Stored {
    version: u64,
    sealed: Option<Vec<u8>>,
    fingerprint: Option<[u8; 16]>,
}

async fn find(conn: &mut SqliteConnection, router: &RouterId, name: &str) -> Result<Option<Stored>, Error> {
    let row = sqlx::query(GET).bind(router.as_str()).bind(name).fetch_optional(conn).await?;
    row.map(|row| {
        Ok(Stored {
            version: column::unsigned("secret version", row.try_get("version")?)?,
            sealed: row.try_get("sealed")?,
            fingerprint: column::optional(&row, "fingerprint", |bytes: &[u8]| column::bytes_16("fingerprint", bytes))?,
        })
    })
    .transpose()
}

fn decode_info(row: &SqliteRow) -> Result<SecretInfo, Error> {
    Ok(SecretInfo {
        name: row.try_get("name")?,
        version: column::unsigned("secret version", row.try_get("version")?)?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

/// The place a sealed value is bound to.
fn place(router: &RouterId, name: &str, version: u64) -> Vec<u8> {
    // Neither part may hold a slash, so no two places are spelt alike.
    format!("router-secret/{router}/{name}/{version}").into_bytes()
}

/// Two equal secrets of different routers or names have different fingerprints.
fn fingerprint(sealer: &Sealer, router: &RouterId, name: &str, value: &[u8]) -> [u8; 16] {
    sealer.fingerprint(&format!("router-secret/{router}/{name}"), value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::MasterKey;
    use crate::system::scratch::{Scratch, now};

    const CANARY: &[u8] = b"canary-7f3a-password-canary";

    fn sealer() -> Sealer {
        Sealer::new(&MasterKey::from_bytes([3; 32]), "router-secrets")
    }

    async fn stored_bytes(scratch: &mut Scratch) -> Vec<u8> {
        let query = sqlx::query_scalar("SELECT sealed FROM router_secrets");
        query.fetch_one(&mut scratch.conn).await.expect("sealed")
    }

    #[tokio::test]
    async fn a_secret_comes_back_only_through_reveal() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        let conn = &mut scratch.conn;
        assert_eq!(put(conn, &sealer(), &id, "api.password", CANARY, &now()).await.expect("put"), 1);
        let revealed = reveal(conn, &sealer(), &id, "api.password").await.expect("reveal").expect("stored");
        assert_eq!(&*revealed, CANARY);
        assert!(reveal(conn, &sealer(), &id, "other").await.expect("reveal").is_none());
        let infos = list(conn, &id).await.expect("list");
        assert_eq!(infos.iter().map(|info| (&*info.name, info.version)).collect::<Vec<_>>(), [("api.password", 1)]);
    }

    #[tokio::test]
    async fn the_plain_value_is_in_no_file_no_debug_output_and_no_error() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put");
        put(&mut scratch.conn, &sealer(), &id, "password", b"another-canary-value", &now()).await.expect("put");
        put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put");

        let mut seen = format!("{:?} {:?}", sealer(), list(&mut scratch.conn, &id).await.expect("list"));
        let unknown = RouterId::parse("unknown").expect("id");
        for error in [
            put(&mut scratch.conn, &sealer(), &unknown, "password", CANARY, &now()).await.expect_err("unknown"),
            put(&mut scratch.conn, &sealer(), &id, "Bad Name", CANARY, &now()).await.expect_err("name"),
            reveal(&mut scratch.conn, &Sealer::new(&MasterKey::from_bytes([4; 32]), "x"), &id, "password")
                .await
                .expect_err("other key"),
        ] {
            seen.push_str(&format!("{error} {error:?}"));
        }
        assert!(!seen.contains("canary"), "{seen}");

        let mut scanned = 0;
        for entry in std::fs::read_dir(scratch.directory.path()).expect("list") {
            let bytes = std::fs::read(entry.expect("entry").path()).expect("read");
            assert!(!bytes.windows(6).any(|window| window == b"canary"));
            scanned += bytes.len();
        }
        assert!(scanned > 4096, "the database and its WAL were there to be scanned");
    }

    #[tokio::test]
    async fn an_unchanged_secret_is_not_written_again() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put");
        let before = crate::vfs::written(&scratch.path());
        assert_eq!(put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put"), 1);
        assert_eq!((crate::vfs::written(&scratch.path()) - before).bytes, 0);
        assert_eq!(put(&mut scratch.conn, &sealer(), &id, "password", b"new", &now()).await.expect("put"), 2);
    }

    #[tokio::test]
    async fn a_sealed_value_copied_to_another_router_or_name_does_not_open() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put");
        for sql in [
            "INSERT INTO router_secrets SELECT router_id, 'other', version, sealed, fingerprint, 0 FROM router_secrets",
            "UPDATE router_secrets SET version = 9",
        ] {
            sqlx::query(sql).execute(&mut scratch.conn).await.expect(sql);
        }
        for name in ["other", "password"] {
            let error = reveal(&mut scratch.conn, &sealer(), &id, name).await.expect_err(name);
            assert!(matches!(error, Error::Sealed { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_removed_value_put_back_into_the_file_does_not_open() {
        let (mut scratch, id) = Scratch::with_router("r1").await;
        put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect("put");
        let old = stored_bytes(&mut scratch).await;
        assert!(remove(&mut scratch.conn, &id, "password", &now()).await.expect("remove"));
        assert!(!remove(&mut scratch.conn, &id, "password", &now()).await.expect("remove"));
        assert!(reveal(&mut scratch.conn, &sealer(), &id, "password").await.expect("reveal").is_none());
        assert_eq!(list(&mut scratch.conn, &id).await.expect("list"), []);

        assert_eq!(put(&mut scratch.conn, &sealer(), &id, "password", b"new", &now()).await.expect("put"), 2);
        let put_back = sqlx::query("UPDATE router_secrets SET sealed = ?").bind(old);
        put_back.execute(&mut scratch.conn).await.expect("update");
        assert!(reveal(&mut scratch.conn, &sealer(), &id, "password").await.is_err());
    }

    #[tokio::test]
    async fn a_secret_needs_a_registered_router() {
        let mut scratch = Scratch::new().await;
        let id = RouterId::parse("r1").expect("id");
        let error = put(&mut scratch.conn, &sealer(), &id, "password", CANARY, &now()).await.expect_err("no router");
        assert!(matches!(error, Error::RouterNotFound { .. }), "{error:?}");
    }
}
