//! Recording deployments: revisions are added, never changed, and a pointer moves.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Row, SqliteConnection, query};
use ulid::Ulid;

use crate::canonical::{Domain, FieldMask, hash};
use crate::change::{Change, ChangeEvent};
use crate::error::Error;
use crate::kind::KindName;
use crate::layer::configuration::Configuration;
use crate::layer::deployment::{DeploymentRecord, DeploymentRevision, Outcome};
use crate::stamp::Stamp;
use crate::store::hex;
use crate::store::row::{self, json, storage};
use crate::store::sealed::{keep_secrets, redacted};

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
    record: DeploymentRecord,
    stamp: &Stamp,
) -> Result<ChangeEvent, Error> {
    let mut events = record_deployments(conn, vec![(uid, record)], stamp).await?;
    events.pop().ok_or(Error::NotFound { uid })
}

/// Records the deployments of many resources with a handful of statements, one for each resource: what an import of a
/// running router does, whose rows are confirmed by having been read.
///
/// # Errors
/// As [`record_deployment`], and [`Error::UidTaken`] when a resource is named twice. The error names the first resource
/// that does not fit.
pub async fn record_deployments(
    conn: &mut SqliteConnection,
    records: Vec<(Ulid, DeploymentRecord)>,
    stamp: &Stamp,
) -> Result<Vec<ChangeEvent>, Error> {
    let mut named = BTreeSet::new();
    if let Some((uid, _)) = records.iter().find(|(uid, _)| !named.insert(*uid)) {
        return Err(Error::UidTaken { uid: *uid });
    }
    let before = standings(conn, &records).await?;
    let mut events = Vec::with_capacity(records.len());
    let mut rows = Vec::with_capacity(records.len());
    for (uid, mut record) in records {
        let standing = before.get(&uid).ok_or(Error::NotFound { uid })?;
        if standing.is_deleted {
            return Err(Error::Deleted { uid });
        }
        if record.generation == 0 || record.generation > standing.generation {
            return Err(Error::invalid("deployed generation", &record.generation.to_string()));
        }
        keep_secrets(conn, uid, &record.last_applied).await?;
        keep_secrets(conn, uid, &record.generated).await?;
        record.last_applied = redacted(&record.last_applied);
        record.generated = redacted(&record.generated);
        let last_applied_hash =
            hash(Domain::Desired, &standing.kind, standing.schema_revision, &FieldMask::All, &record.last_applied);
        let revision = standing.latest_revision + 1;
        let recorded = stamp.clone();
        let revision = DeploymentRevision { revision, last_applied_hash, recorded, record };
        rows.push((
            standing.row,
            revision.revision,
            revision.record.generation,
            hex(&revision.record.operation.to_bytes()),
            row::outcome_text(revision.record.outcome),
            json("deployment", &revision)?,
            revision.record.outcome == Outcome::Confirmed,
        ));
        events.push(ChangeEvent { uid, stamp: stamp.clone(), change: Change::Deployed(revision) });
    }
    let rows = json("rows", &rows)?;
    query(
        "INSERT INTO resource_deployment (resource, revision, generation, operation, outcome, body)
         SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), value ->> 4, value ->> 5 FROM json_each(?1)",
    )
    .bind(&rows)
    .execute(&mut *conn)
    .await
    .map_err(storage("record deployments"))?;
    query(
        "UPDATE resource SET latest_revision = d.value ->> 1,
             current_revision = CASE WHEN d.value ->> 6 THEN d.value ->> 1 ELSE current_revision END
         FROM json_each(?1) AS d WHERE resource.id = d.value ->> 0",
    )
    .bind(&rows)
    .execute(&mut *conn)
    .await
    .map_err(storage("record deployments"))?;
    Ok(events)
}

/// What has to be known of a resource to record a deployment of it.
struct Standing {
    row: i64,
    kind: KindName,
    schema_revision: u32,
    generation: u64,
    latest_revision: u64,
    is_deleted: bool,
}

async fn standings(
    conn: &mut SqliteConnection,
    records: &[(Ulid, DeploymentRecord)],
) -> Result<BTreeMap<Ulid, Standing>, Error> {
    let uids: Vec<String> = records.iter().map(|(uid, _)| hex(&uid.to_bytes())).collect();
    let rows = query(
        "SELECT r.id, r.uid, r.kind, r.name, r.schema_revision, r.configuration, r.latest_revision, r.deleted
         FROM json_each(?1) AS u JOIN resource AS r ON r.uid = unhex(u.value)",
    )
    .bind(json("uids", &uids)?)
    .fetch_all(&mut *conn)
    .await
    .map_err(storage("read deployments"))?;
    rows.iter()
        .map(|row| {
            let (uid, kind, _) = row::identity(row)?;
            let identity = row::Damaged::new(uid, "identity");
            let configuration: Configuration =
                row::Damaged::new(uid, "configuration").json_column(row, "configuration")?;
            let standing = Standing {
                row: row.try_get("id").map_err(storage("read deployments"))?,
                kind,
                schema_revision: identity.schema_revision(row)?,
                generation: configuration.generation,
                latest_revision: identity.number(row, "latest_revision")?,
                is_deleted: identity.get::<Option<String>>(row, "deleted")?.is_some(),
            };
            Ok((uid, standing))
        })
        .collect()
}
