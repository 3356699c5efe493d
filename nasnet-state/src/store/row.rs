//! One place where rows become resources.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use ulid::Ulid;

use crate::error::Error;
use crate::kind::KindName;
use crate::layer::deployment::{Attempt, Deployment, Outcome};
use crate::resource::{Resource, Versions};

/// The columns [`decode`] reads, and the joins they come from. `r` is the resource.
macro_rules! select_resource {
    ($rest:literal) => {
        concat!(
            "SELECT r.uid, r.scoped_id, r.kind, r.name, r.schema_revision, r.configuration, r.configuration_version, ",
            "r.metadata, r.metadata_version, r.latest_revision, r.deleted, c.body AS current_body, ",
            "l.generation AS latest_generation, l.operation AS latest_operation, l.outcome AS latest_outcome ",
            "FROM resource AS r ",
            "LEFT JOIN resource_deployment AS c ON c.resource = r.id AND c.revision = r.current_revision ",
            "LEFT JOIN resource_deployment AS l ON l.resource = r.id AND l.revision = r.latest_revision ",
            $rest
        )
    };
}
pub(crate) use select_resource;

/// Maps a driver error, naming what was being done.
pub(crate) fn storage(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Storage { operation, source }
}

/// Writes a layer as JSON.
pub(crate) fn json(what: &'static str, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::invalid(what, &error.to_string()))
}

pub(crate) fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Confirmed => "confirmed",
        Outcome::RolledBack => "rolled_back",
        Outcome::Failed => "failed",
        Outcome::Indeterminate => "indeterminate",
    }
}

/// Reads uid, kind and name.
pub(crate) fn identity(row: &SqliteRow) -> Result<(Ulid, KindName, String), Error> {
    let uid = uid(row)?;
    let field = Damaged::new(uid, "identity");
    Ok((uid, field.parse(row, "kind")?, field.get(row, "name")?))
}

fn uid(row: &SqliteRow) -> Result<Ulid, Error> {
    let unknown = Damaged { uid: "unknown".to_owned(), layer: "identity" };
    ulid_of(&unknown, &unknown.get::<Vec<u8>>(row, "uid")?)
}

fn ulid_of(damaged: &Damaged, bytes: &[u8]) -> Result<Ulid, Error> {
    <[u8; 16]>::try_from(bytes).map(Ulid::from_bytes).map_err(|_| {
        let shown: String = bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        damaged.error(format!("{shown:?} is not an id of 16 bytes"))
    })
}

/// Reads a resource. Damage is an error that names resource and layer, never a panic and never a guess.
pub(crate) fn decode(row: &SqliteRow) -> Result<Resource, Error> {
    let uid = uid(row)?;
    let layer = |layer| Damaged::new(uid, layer);
    let identity = layer("identity");
    let versions = Versions {
        configuration: identity.number(row, "configuration_version")?,
        deployment: identity.number(row, "latest_revision")?,
        metadata: identity.number(row, "metadata_version")?,
    };
    let deleted = match identity.get::<Option<String>>(row, "deleted")? {
        Some(text) => Some(identity.json(&text)?),
        None => None,
    };
    Ok(Resource {
        uid,
        id: identity.parse(row, "scoped_id")?,
        kind: identity.parse(row, "kind")?,
        name: identity.get(row, "name")?,
        schema_revision: identity.schema_revision(row)?,
        versions,
        deleted,
        configuration: layer("configuration").json_column(row, "configuration")?,
        validation: None,
        deployment: deployment(&layer("deployment"), row, versions.deployment)?,
        runtime: None,
        telemetry: None,
        metadata: layer("metadata").json_column(row, "metadata")?,
        relationships: None,
        platform: None,
    })
}

fn deployment(layer: &Damaged, row: &SqliteRow, revision: u64) -> Result<Option<Deployment>, Error> {
    if revision == 0 {
        return Ok(None);
    }
    let current = match layer.get::<Option<String>>(row, "current_body")? {
        Some(text) => Some(layer.json(&text)?),
        None => None,
    };
    let outcome: String = layer.get(row, "latest_outcome")?;
    let outcome = [Outcome::Confirmed, Outcome::RolledBack, Outcome::Failed, Outcome::Indeterminate]
        .into_iter()
        .find(|known| outcome_text(*known) == outcome)
        .ok_or_else(|| layer.error(format!("unknown outcome {outcome:?}")))?;
    let operation = ulid_of(layer, &layer.get::<Vec<u8>>(row, "latest_operation")?)?;
    let generation = layer.number(row, "latest_generation")?;
    Ok(Some(Deployment { current, latest: Attempt { revision, generation, operation, outcome } }))
}

/// What to say when a column cannot be read.
pub(crate) struct Damaged {
    uid: String,
    layer: &'static str,
}

impl Damaged {
    pub(crate) fn new(uid: Ulid, layer: &'static str) -> Self {
        Self { uid: uid.to_string(), layer }
    }

    fn error(&self, detail: String) -> Error {
        Error::Malformed { uid: self.uid.clone(), layer: self.layer, detail }
    }

    pub(crate) fn get<'r, T>(&self, row: &'r SqliteRow, column: &str) -> Result<T, Error>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        row.try_get(column).map_err(|error| self.error(error.to_string()))
    }

    pub(crate) fn number(&self, row: &SqliteRow, column: &str) -> Result<u64, Error> {
        let number: i64 = self.get(row, column)?;
        u64::try_from(number).map_err(|_| self.error(format!("{column} is {number}")))
    }

    pub(crate) fn schema_revision(&self, row: &SqliteRow) -> Result<u32, Error> {
        let revision = self.number(row, "schema_revision")?;
        u32::try_from(revision).map_err(|_| self.error("schema revision is out of range".to_owned()))
    }

    fn parse<T: std::str::FromStr<Err = Error>>(&self, row: &SqliteRow, column: &str) -> Result<T, Error> {
        self.get::<String>(row, column)?.parse().map_err(|error: Error| self.error(error.to_string()))
    }

    pub(crate) fn json_column<T: DeserializeOwned>(&self, row: &SqliteRow, column: &str) -> Result<T, Error> {
        self.json(&self.get::<String>(row, column)?)
    }

    /// Reads JSON. The parser may quote what it stumbled over: no layer holds a secret.
    fn json<T: DeserializeOwned>(&self, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|error| self.error(error.to_string()))
    }
}
