//! Sealed secrets: the one table that holds their bytes.

use sqlx::{Row, SqliteConnection, query};
use ulid::Ulid;

use crate::error::Error;
use crate::secret::{Fingerprint, SecretRef};
use crate::store::row::storage;
use crate::value::{FieldName, FieldValue, Fields};

/// Returns the sealed bytes behind a reference. Asking is a deliberate act: readings carry references only.
///
/// # Errors
/// [`Error::SecretMissing`] when the store has no such secret, [`Error::Storage`].
pub async fn sealed_secret(
    conn: &mut SqliteConnection,
    uid: Ulid,
    field: &FieldName,
    fingerprint: Fingerprint,
) -> Result<SecretRef, Error> {
    let row = query(
        "SELECT s.version, s.sealed FROM resource_secret AS s JOIN resource AS r ON r.id = s.resource
         WHERE r.uid = ?1 AND s.field = ?2 AND s.fingerprint = ?3",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(field.as_str())
    .bind(fingerprint.0.to_vec())
    .fetch_optional(&mut *conn)
    .await
    .map_err(storage("read a secret"))?
    .ok_or_else(|| Error::SecretMissing { uid, field: field.to_string() })?;
    let version: i64 = row.try_get("version").map_err(storage("read a secret"))?;
    let version = u32::try_from(version).map_err(|_| Error::Malformed {
        uid: uid.to_string(),
        layer: "secret",
        detail: format!("version {version} is out of range"),
    })?;
    Ok(SecretRef { fingerprint, version, sealed: Some(row.try_get("sealed").map_err(storage("read a secret"))?) })
}

/// Stores the sealed bytes that come with references, and checks that those that come without are known.
pub(crate) async fn keep_secrets(conn: &mut SqliteConnection, uid: Ulid, fields: &Fields) -> Result<(), Error> {
    for (field, secret) in fields.secrets() {
        let Some(sealed) = &secret.sealed else {
            sealed_secret(conn, uid, field, secret.fingerprint).await?;
            continue;
        };
        query(
            "INSERT INTO resource_secret (resource, field, fingerprint, version, sealed)
             SELECT id, ?2, ?3, ?4, ?5 FROM resource WHERE uid = ?1
             ON CONFLICT (resource, field, fingerprint) DO NOTHING",
        )
        .bind(uid.to_bytes().to_vec())
        .bind(field.as_str())
        .bind(secret.fingerprint.0.to_vec())
        .bind(i64::from(secret.version))
        .bind(sealed.as_slice())
        .execute(&mut *conn)
        .await
        .map_err(storage("keep a secret"))?;
    }
    Ok(())
}

pub(crate) fn redacted(fields: &Fields) -> Fields {
    let redact = |value: &FieldValue| match value {
        FieldValue::Secret(secret) => FieldValue::Secret(secret.redacted()),
        other => other.clone(),
    };
    fields.iter().map(|(name, value)| (name.clone(), redact(value))).collect()
}
