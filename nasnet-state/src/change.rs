//! What happened to a resource, as data: the body of its events, and the only way its state moves.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::canonical::{Domain, FieldMask, StateHash, hash};
use crate::diff::{FieldChange, apply, diff};
use crate::error::Error;
use crate::id::ScopedId;
use crate::kind::KindName;
use crate::layer::configuration::{Configuration, Settings};
use crate::layer::deployment::{Attempt, Deployment, DeploymentRevision, Outcome};
use crate::layer::metadata::{Metadata, Notes};
use crate::resource::{Resource, Versions};
use crate::stamp::Stamp;
use crate::value::Fields;

/// One change of one resource. Whoever writes the state appends it, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEvent {
    /// The resource.
    pub uid: Ulid,
    /// Who did it, when.
    pub stamp: Stamp,
    /// What was done.
    pub change: Change,
}

/// What was done to a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// It came to be.
    Created(Box<Creation>),
    /// The wish changed.
    Configured {
        /// The version of the configuration after the change.
        version: u64,
        /// The generation after the change.
        generation: u64,
        /// Digest of the fields after the change.
        desired_hash: StateHash,
        /// The fields that changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fields: Vec<FieldChange>,
        /// The settings after the change, where they changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        settings: Option<Settings>,
        /// The name after the change, where it changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A deployment was recorded.
    Deployed(DeploymentRevision),
    /// What people say about it changed.
    Described {
        /// The version of the metadata after the change.
        version: u64,
        /// All of it after the change.
        notes: Notes,
    },
    /// It is gone.
    Deleted,
}

/// A resource as it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// The identity people read.
    pub id: ScopedId,
    /// What it is.
    pub kind: KindName,
    /// Its name.
    pub name: String,
    /// The revision of the schema its fields are in.
    pub schema_revision: u32,
    /// What is wanted.
    pub configuration: Configuration,
    /// What people say about it.
    pub metadata: Metadata,
}

impl ChangeEvent {
    /// The version of the JSON form of this type.
    pub const SCHEMA_VERSION: u16 = 1;

    /// Every type name [`event_type`](Self::event_type) returns.
    pub const EVENT_TYPES: [&'static str; 7] = [
        "resource.created",
        "resource.updated",
        "resource.deployed",
        "resource.rolled_back",
        "resource.deploy_failed",
        "resource.metadata_changed",
        "resource.deleted",
    ];

    /// Returns the dotted type name of the event.
    pub fn event_type(&self) -> &'static str {
        let [created, updated, deployed, rolled_back, deploy_failed, metadata_changed, deleted] = Self::EVENT_TYPES;
        match &self.change {
            Change::Created(_) => created,
            Change::Configured { .. } => updated,
            Change::Deployed(revision) => match revision.record.outcome {
                Outcome::Confirmed => deployed,
                Outcome::RolledBack => rolled_back,
                Outcome::Failed | Outcome::Indeterminate => deploy_failed,
            },
            Change::Described { .. } => metadata_changed,
            Change::Deleted => deleted,
        }
    }

    /// Returns the resource after the change.
    ///
    /// # Errors
    /// [`Error::BrokenHistory`] when the change does not continue `before`: another resource, a version left out, a
    /// field with another value, anything at all after a deletion.
    pub fn apply_to(&self, before: Option<Resource>) -> Result<Resource, Error> {
        let broken = |detail: String| Error::BrokenHistory { uid: self.uid, detail };
        let mut resource = match (before, &self.change) {
            (None, Change::Created(creation)) => return Ok(born(self.uid, creation)),
            (None, _) => return Err(broken("it starts with something other than its creation".to_owned())),
            (Some(_), Change::Created(_)) => return Err(broken("it is created twice".to_owned())),
            (Some(resource), _) => resource,
        };
        if resource.uid != self.uid {
            return Err(broken(format!("it continues with a change of {}", resource.uid)));
        }
        if resource.deleted.is_some() {
            return Err(broken("it goes on after its deletion".to_owned()));
        }
        let follows = |layer: &str, before: u64, after: u64| {
            if after == before + 1 {
                Ok(())
            } else {
                Err(broken(format!("{layer} goes from version {before} to {after}")))
            }
        };
        match &self.change {
            Change::Created(_) => {}
            Change::Configured { version, generation, desired_hash, fields, settings, name } => {
                follows("configuration", resource.versions.configuration, *version)?;
                let configuration = &mut resource.configuration;
                configuration.spec = apply(&configuration.spec, fields).map_err(|error| broken(error.to_string()))?;
                configuration.generation = *generation;
                configuration.desired_hash = *desired_hash;
                if let Some(settings) = settings {
                    configuration.settings = settings.clone();
                }
                if let Some(name) = name {
                    resource.name.clone_from(name);
                }
                resource.versions.configuration = *version;
            }
            Change::Deployed(revision) => {
                follows("deployment", resource.versions.deployment, revision.revision)?;
                let before = resource.deployment.take().and_then(|deployment| deployment.current);
                let confirmed = revision.record.outcome == Outcome::Confirmed;
                resource.versions.deployment = revision.revision;
                resource.deployment = Some(Deployment {
                    current: if confirmed { Some(revision.clone()) } else { before },
                    latest: Attempt {
                        revision: revision.revision,
                        generation: revision.record.generation,
                        operation: revision.record.operation,
                        outcome: revision.record.outcome,
                    },
                });
            }
            Change::Described { version, notes } => {
                follows("metadata", resource.versions.metadata, *version)?;
                resource.metadata.notes = notes.clone();
                resource.metadata.updated = self.stamp.clone();
                resource.versions.metadata = *version;
            }
            Change::Deleted => resource.deleted = Some(self.stamp.clone()),
        }
        Ok(resource)
    }
}

fn born(uid: Ulid, creation: &Creation) -> Resource {
    let Creation { id, kind, name, schema_revision, configuration, metadata } = creation.clone();
    Resource {
        uid,
        id,
        kind,
        name,
        schema_revision,
        versions: Versions { configuration: 1, deployment: 0, metadata: 1 },
        deleted: None,
        configuration,
        validation: None,
        deployment: None,
        runtime: None,
        telemetry: None,
        metadata,
        relationships: None,
        platform: None,
    }
}

/// What a write of the configuration wants; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigurationWrite {
    /// All fields after the write.
    pub spec: Option<Fields>,
    /// All settings after the write.
    pub settings: Option<Settings>,
    /// The name after the write.
    pub name: Option<String>,
}

impl ConfigurationWrite {
    /// Replaces all fields.
    pub fn spec(spec: Fields) -> Self {
        Self { spec: Some(spec), ..Self::default() }
    }

    /// Replaces the settings.
    pub fn settings(settings: Settings) -> Self {
        Self { settings: Some(settings), ..Self::default() }
    }

    /// Changes the name along with the rest of the write.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// Returns the change a write makes, `None` when it makes none.
///
/// The generation grows when the meaning does: a field, the name or the intent. Reasons and owners do not count.
pub(crate) fn configure(resource: &Resource, write: &ConfigurationWrite) -> Option<Change> {
    let before = &resource.configuration;
    let spec = write.spec.as_ref().unwrap_or(&before.spec);
    let fields = diff(&before.spec, spec);
    let settings = write.settings.clone().filter(|settings| *settings != before.settings);
    let name = write.name.clone().filter(|name| *name != resource.name);
    if fields.is_empty() && settings.is_none() && name.is_none() {
        return None;
    }
    let intent_changed = settings.as_ref().is_some_and(|settings| settings.intent != before.settings.intent);
    let meaning_changed = !fields.is_empty() || name.is_some() || intent_changed;
    Some(Change::Configured {
        version: resource.versions.configuration + 1,
        generation: before.generation + u64::from(meaning_changed),
        desired_hash: hash(Domain::Desired, &resource.kind, resource.schema_revision, &FieldMask::All, spec),
        fields,
        settings,
        name,
    })
}
