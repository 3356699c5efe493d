//! Resources in SQLite, on a connection the caller brings.
//!
//! Every function works inside the caller's transaction. Those that change something return the [`ChangeEvent`] the
//! caller appends in that same transaction, so that state and history can never part. A function that fails may have
//! done part of its work: roll back.

mod query;
mod row;
pub mod runtime;

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use ulid::Ulid;

use crate::canonical::{Domain, FieldMask, hash};
use crate::change::{Change, ChangeEvent, ConfigurationWrite, Creation, configure};
use crate::error::Error;
use crate::id::ScopedId;
use crate::kind::KindName;
use crate::layer::configuration::Configuration;
use crate::layer::deployment::{DeploymentRecord, DeploymentRevision, Outcome};
use crate::layer::metadata::{Metadata, Notes};
use crate::resource::{NewResource, Resource};
use crate::secret::{Fingerprint, SecretRef};
use crate::stamp::Stamp;
use crate::store::row::{json, storage};
use crate::value::{FieldName, Fields};

pub use crate::store::query::{Cursor, Filter, Page, find, get, get_by_id, list};

/// Creates one resource.
///
/// # Errors
/// [`Error::NameTaken`], [`Error::UidTaken`], [`Error::SecretMissing`], [`Error::Storage`].
pub async fn create(conn: &mut SqliteConnection, new: NewResource, stamp: &Stamp) -> Result<ChangeEvent, Error> {
    let uid = new.uid;
    let mut events = create_many(conn, vec![new], stamp).await?;
    events.pop().ok_or(Error::NotFound { uid })
}

/// Creates many resources with a handful of statements, all or none when the caller rolls back on an error.
///
/// # Errors
/// As [`create`]; the error names the first resource that does not fit.
pub async fn create_many(
    conn: &mut SqliteConnection,
    new: Vec<NewResource>,
    stamp: &Stamp,
) -> Result<Vec<ChangeEvent>, Error> {
    refuse_duplicates(&new)?;
    let proposals: Vec<_> = new
        .iter()
        .map(|new| {
            (new.uid.to_string(), new.kind.as_str(), new.name.as_str(), ScopedId::new(&new.kind, &new.name, new.uid))
        })
        .collect();
    let proposals = json("proposals", &proposals)?;
    let mut taken = taken_ids(conn, &proposals, &new).await?;

    let mut events = Vec::with_capacity(new.len());
    let mut rows = Vec::with_capacity(new.len());
    for new in &new {
        let id = ScopedId::untaken(&new.kind, &new.name, new.uid, &taken);
        taken.insert(id.to_string());
        let configuration =
            Configuration::first(&new.kind, new.schema_revision, redacted(&new.spec), new.settings.clone());
        let metadata = Metadata {
            created: stamp.clone(),
            updated: stamp.clone(),
            source: new.source.clone(),
            correlation_id: new.correlation_id,
            notes: new.notes.clone(),
        };
        rows.push((
            hex(&new.uid.to_bytes()),
            id.to_string(),
            new.kind.to_string(),
            new.name.clone(),
            new.schema_revision,
            json("configuration", &configuration)?,
            json("metadata", &metadata)?,
        ));
        let (kind, name, schema_revision) = (new.kind.clone(), new.name.clone(), new.schema_revision);
        let creation = Creation { id, kind, name, schema_revision, configuration, metadata };
        let change = Change::Created(Box::new(creation));
        events.push(ChangeEvent { uid: new.uid, stamp: stamp.clone(), change });
    }
    sqlx::query(
        "INSERT INTO resource (uid, scoped_id, kind, name, schema_revision, configuration, configuration_version,
             metadata, metadata_version)
         SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, 1, value ->> 6, 1
         FROM json_each(?1)",
    )
    .bind(json("rows", &rows)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("create resources"))?;
    for new in &new {
        keep_secrets(conn, new.uid, &new.spec).await?;
    }
    Ok(events)
}

fn refuse_duplicates(new: &[NewResource]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    let mut uids = BTreeSet::new();
    for new in new {
        if new.name.is_empty() {
            return Err(Error::invalid("resource name", &new.name));
        }
        if !names.insert((&new.kind, new.name.as_str())) {
            return Err(Error::NameTaken { kind: new.kind.clone(), name: new.name.clone() });
        }
        if !uids.insert(new.uid) {
            return Err(Error::UidTaken { uid: new.uid });
        }
    }
    Ok(())
}

/// Checks names and uids against the store and returns the scoped ids that are taken there.
async fn taken_ids(
    conn: &mut SqliteConnection,
    proposals: &str,
    new: &[NewResource],
) -> Result<BTreeSet<String>, Error> {
    let clashes = sqlx::query(
        "SELECT p.key AS at FROM json_each(?1) AS p
         JOIN resource AS r ON r.kind = p.value ->> 1 AND r.name = p.value ->> 2 AND r.deleted IS NULL
         ORDER BY p.key LIMIT 1",
    )
    .bind(proposals)
    .fetch_optional(&mut *conn)
    .await
    .map_err(storage("look for taken names"))?;
    if let Some(at) = clashes.as_ref().map(|row: &SqliteRow| row.try_get::<i64, _>("at")) {
        let at = at.map_err(storage("look for taken names"))?;
        if let Some(new) = usize::try_from(at).ok().and_then(|at| new.get(at)) {
            return Err(Error::NameTaken { kind: new.kind.clone(), name: new.name.clone() });
        }
    }
    let uids: Vec<String> = new.iter().map(|new| hex(&new.uid.to_bytes())).collect();
    let taken =
        sqlx::query("SELECT key AS at FROM json_each(?1) JOIN resource ON uid = unhex(value) ORDER BY key LIMIT 1")
            .bind(json("uids", &uids)?)
            .fetch_optional(&mut *conn)
            .await
            .map_err(storage("look for taken uids"))?;
    if let Some(row) = taken {
        let at: i64 = row.try_get("at").map_err(storage("look for taken uids"))?;
        if let Some(new) = usize::try_from(at).ok().and_then(|at| new.get(at)) {
            return Err(Error::UidTaken { uid: new.uid });
        }
    }
    let rows =
        sqlx::query("SELECT r.scoped_id FROM json_each(?1) AS p JOIN resource AS r ON r.scoped_id = p.value ->> 3")
            .bind(proposals)
            .fetch_all(&mut *conn)
            .await
            .map_err(storage("look for taken ids"))?;
    rows.iter().map(|row| row.try_get("scoped_id").map_err(storage("look for taken ids"))).collect()
}

/// Writes the configuration, when it is still at the version the caller has read.
///
/// Returns `None`, and writes nothing, when nothing changes.
///
/// # Errors
/// [`Error::Conflict`] with the version found, [`Error::NameTaken`], [`Error::Deleted`], [`Error::NotFound`],
/// [`Error::SecretMissing`], [`Error::Storage`].
pub async fn write_configuration(
    conn: &mut SqliteConnection,
    uid: Ulid,
    expected_version: u64,
    write: ConfigurationWrite,
    stamp: &Stamp,
) -> Result<Option<ChangeEvent>, Error> {
    let before = get_live(conn, uid).await?;
    expect_version(uid, "configuration", expected_version, before.versions.configuration)?;
    if let Some(spec) = &write.spec {
        keep_secrets(conn, uid, spec).await?;
    }
    if let Some(name) = write.name.as_ref().filter(|name| **name != before.name) {
        if name.is_empty() {
            return Err(Error::invalid("resource name", name));
        }
        if find(conn, &before.kind, name).await?.is_some() {
            return Err(Error::NameTaken { kind: before.kind, name: name.clone() });
        }
    }
    let write = ConfigurationWrite { spec: write.spec.as_ref().map(redacted), ..write };
    let Some(change) = configure(&before, &write) else { return Ok(None) };
    let event = ChangeEvent { uid, stamp: stamp.clone(), change };
    let after = event.apply_to(Some(before))?;
    let written = sqlx::query(
        "UPDATE resource SET name = ?3, configuration = ?4, configuration_version = configuration_version + 1
         WHERE uid = ?1 AND configuration_version = ?2 AND deleted IS NULL",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(to_i64(expected_version)?)
    .bind(&after.name)
    .bind(json("configuration", &after.configuration)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("write a configuration"))?;
    if written.rows_affected() == 0 {
        return Err(lost_race(conn, uid, "configuration", expected_version).await?);
    }
    Ok(Some(event))
}

/// Writes what people say about a resource, when it is still at the version the caller has read.
///
/// # Errors
/// As [`write_configuration`].
pub async fn write_notes(
    conn: &mut SqliteConnection,
    uid: Ulid,
    expected_version: u64,
    notes: Notes,
    stamp: &Stamp,
) -> Result<Option<ChangeEvent>, Error> {
    let before = get_live(conn, uid).await?;
    expect_version(uid, "metadata", expected_version, before.versions.metadata)?;
    if before.metadata.notes == notes {
        return Ok(None);
    }
    let change = Change::Described { version: expected_version + 1, notes };
    let event = ChangeEvent { uid, stamp: stamp.clone(), change };
    let after = event.apply_to(Some(before))?;
    let written = sqlx::query(
        "UPDATE resource SET metadata = ?3, metadata_version = metadata_version + 1
         WHERE uid = ?1 AND metadata_version = ?2 AND deleted IS NULL",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(to_i64(expected_version)?)
    .bind(json("metadata", &after.metadata)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("write metadata"))?;
    if written.rows_affected() == 0 {
        return Err(lost_race(conn, uid, "metadata", expected_version).await?);
    }
    Ok(Some(event))
}

/// Records a deployment as the next revision; the pointer moves to it when it was confirmed.
///
/// Only the engine calls this, and only once the device has confirmed, refused or lost the change.
///
/// # Errors
/// [`Error::Deleted`], [`Error::NotFound`], [`Error::SecretMissing`], [`Error::Invalid`] for a generation that was never
/// configured, [`Error::Storage`].
pub async fn record_deployment(
    conn: &mut SqliteConnection,
    uid: Ulid,
    mut record: DeploymentRecord,
    stamp: &Stamp,
) -> Result<ChangeEvent, Error> {
    let before = get_live(conn, uid).await?;
    if record.generation == 0 || record.generation > before.configuration.generation {
        return Err(Error::invalid("deployed generation", &record.generation.to_string()));
    }
    keep_secrets(conn, uid, &record.last_applied).await?;
    keep_secrets(conn, uid, &record.generated).await?;
    record.last_applied = redacted(&record.last_applied);
    record.generated = redacted(&record.generated);
    let last_applied_hash =
        hash(Domain::Desired, &before.kind, before.schema_revision, &FieldMask::All, &record.last_applied);
    let revision = DeploymentRevision {
        revision: before.versions.deployment + 1,
        last_applied_hash,
        recorded: stamp.clone(),
        record,
    };
    let latest = to_i64(before.versions.deployment)?;
    sqlx::query(
        "INSERT INTO resource_deployment (resource, revision, generation, operation, outcome, body)
         SELECT id, ?2, ?3, ?4, ?5, ?6 FROM resource WHERE uid = ?1",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(latest + 1)
    .bind(to_i64(revision.record.generation)?)
    .bind(revision.record.operation.to_bytes().to_vec())
    .bind(row::outcome_text(revision.record.outcome))
    .bind(json("deployment", &revision)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("record a deployment"))?;
    let confirmed = revision.record.outcome == Outcome::Confirmed;
    let written = sqlx::query(
        "UPDATE resource SET latest_revision = ?3, current_revision = CASE WHEN ?4 THEN ?3 ELSE current_revision END
         WHERE uid = ?1 AND latest_revision = ?2 AND deleted IS NULL",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(latest)
    .bind(latest + 1)
    .bind(confirmed)
    .execute(&mut *conn)
    .await
    .map_err(storage("record a deployment"))?;
    if written.rows_affected() == 0 {
        return Err(lost_race(conn, uid, "deployment", before.versions.deployment).await?);
    }
    Ok(ChangeEvent { uid, stamp: stamp.clone(), change: Change::Deployed(revision) })
}

/// Turns a resource into a tombstone and destroys its sealed secrets. Its name is free again; its uid never is.
///
/// # Errors
/// [`Error::Conflict`] when the configuration is not at `expected_version`, [`Error::Invalid`] when the resource is
/// protected by `prevent_destroy`, [`Error::Deleted`], [`Error::NotFound`], [`Error::Storage`].
pub async fn delete(
    conn: &mut SqliteConnection,
    uid: Ulid,
    expected_version: u64,
    stamp: &Stamp,
) -> Result<ChangeEvent, Error> {
    let before = get_live(conn, uid).await?;
    expect_version(uid, "configuration", expected_version, before.versions.configuration)?;
    if before.configuration.settings.prevent_destroy {
        return Err(Error::invalid("deletion of a protected resource", before.id.as_str()));
    }
    let written = sqlx::query(
        "UPDATE resource SET deleted = ?3 WHERE uid = ?1 AND configuration_version = ?2 AND deleted IS NULL",
    )
    .bind(uid.to_bytes().to_vec())
    .bind(to_i64(expected_version)?)
    .bind(json("deletion", stamp)?)
    .execute(&mut *conn)
    .await
    .map_err(storage("delete a resource"))?;
    if written.rows_affected() == 0 {
        return Err(lost_race(conn, uid, "configuration", expected_version).await?);
    }
    sqlx::query("DELETE FROM resource_secret WHERE resource = (SELECT id FROM resource WHERE uid = ?1)")
        .bind(uid.to_bytes().to_vec())
        .execute(&mut *conn)
        .await
        .map_err(storage("destroy secrets"))?;
    Ok(ChangeEvent { uid, stamp: stamp.clone(), change: Change::Deleted })
}

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
    let row = sqlx::query(
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
async fn keep_secrets(conn: &mut SqliteConnection, uid: Ulid, fields: &Fields) -> Result<(), Error> {
    for (field, secret) in fields.secrets() {
        let Some(sealed) = &secret.sealed else {
            sealed_secret(conn, uid, field, secret.fingerprint).await?;
            continue;
        };
        sqlx::query(
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

fn redacted(fields: &Fields) -> Fields {
    use crate::value::FieldValue;
    let redact = |value: &FieldValue| match value {
        FieldValue::Secret(secret) => FieldValue::Secret(secret.redacted()),
        other => other.clone(),
    };
    fields.iter().map(|(name, value)| (name.clone(), redact(value))).collect()
}

async fn get_live(conn: &mut SqliteConnection, uid: Ulid) -> Result<Resource, Error> {
    let resource = get(conn, uid).await?;
    if resource.deleted.is_some() { Err(Error::Deleted { uid }) } else { Ok(resource) }
}

fn expect_version(uid: Ulid, layer: &'static str, expected: u64, actual: u64) -> Result<(), Error> {
    if expected == actual { Ok(()) } else { Err(Error::Conflict { uid, layer, expected, actual }) }
}

/// The guarded write found another version than the read before it: tells which.
async fn lost_race(conn: &mut SqliteConnection, uid: Ulid, layer: &'static str, expected: u64) -> Result<Error, Error> {
    let now = get_live(conn, uid).await?;
    let actual = match layer {
        "configuration" => now.versions.configuration,
        "metadata" => now.versions.metadata,
        _ => now.versions.deployment,
    };
    Ok(Error::Conflict { uid, layer, expected, actual })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_i64(number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(|_| Error::invalid("version", &number.to_string()))
}

/// Kinds and names of all live resources, for resolving references without reading the resources.
///
/// # Errors
/// [`Error::Storage`]; a row whose kind is damaged is left out.
pub async fn names(conn: &mut SqliteConnection) -> Result<Vec<(Ulid, KindName, String)>, Error> {
    let rows = sqlx::query("SELECT uid, kind, name FROM resource WHERE deleted IS NULL ORDER BY kind, name")
        .fetch_all(&mut *conn)
        .await
        .map_err(storage("list names"))?;
    Ok(rows.iter().filter_map(|row| row::identity(row).ok()).collect())
}
