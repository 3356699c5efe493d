//! Resources in SQLite, on a connection the caller brings.
//!
//! Every function works inside the caller's transaction. Those that change something return the [`ChangeEvent`] the
//! caller appends in that same transaction, so that state and history can never part.
//!
//! # Cancel safety
//!
//! A function that fails, or whose future is dropped, may have done part of its work: roll the transaction back. Nothing
//! is kept between calls, so everything can be tried again.

mod deployment;
mod query;
mod row;
pub mod runtime;
mod sealed;

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use ulid::Ulid;

use crate::change::{Change, ChangeEvent, ConfigurationWrite, Creation, configure};
use crate::error::Error;
use crate::id::ScopedId;
use crate::layer::configuration::Configuration;
use crate::layer::metadata::{Metadata, Notes};
use crate::resource::{NewResource, Resource};
use crate::stamp::Stamp;
use crate::store::row::{json, storage};
use crate::store::sealed::{keep_secrets, redacted};

pub use crate::store::deployment::{record_deployment, record_deployments};
pub use crate::store::query::{Cursor, Filter, Page, find, get, get_by_id, list, names};
pub use crate::store::sealed::sealed_secret;

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

/// Turns a resource into a tombstone and destroys its sealed secrets. Its name is free again; its uid never is.
///
/// # Errors
/// [`Error::Conflict`] when the configuration is not at `expected_version`, [`Error::Protected`], [`Error::Deleted`],
/// [`Error::NotFound`], [`Error::Storage`].
pub async fn delete(
    conn: &mut SqliteConnection,
    uid: Ulid,
    expected_version: u64,
    stamp: &Stamp,
) -> Result<ChangeEvent, Error> {
    let before = get_live(conn, uid).await?;
    expect_version(uid, "configuration", expected_version, before.versions.configuration)?;
    if before.configuration.settings.prevent_destroy {
        return Err(Error::Protected { uid });
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
        _ => now.versions.metadata,
    };
    Ok(Error::Conflict { uid, layer, expected, actual })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_i64(number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(|_| Error::invalid("version", &number.to_string()))
}
