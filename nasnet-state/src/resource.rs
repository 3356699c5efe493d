//! A resource: its identity and its layers.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::id::ScopedId;
use crate::kind::KindName;
use crate::layer::configuration::{Configuration, Settings};
use crate::layer::deployment::Deployment;
use crate::layer::metadata::{Metadata, Notes, Source};
use crate::layer::platform::Platform;
use crate::layer::relationships::Relationships;
use crate::layer::runtime::Runtime;
use crate::layer::telemetry::Telemetry;
use crate::layer::validation::Validation;
use crate::stamp::Stamp;
use crate::value::Fields;

/// One thing a router has or should have. Which router it belongs to is told by the file it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// The identity everything refers to.
    pub uid: Ulid,
    /// The identity people read.
    pub id: ScopedId,
    /// What it is.
    pub kind: KindName,
    /// Its name, unique among the live resources of its kind.
    pub name: String,
    /// The revision of the schema its fields are in.
    pub schema_revision: u32,
    /// How often each group of layers was written.
    pub versions: Versions,
    /// When and by whom it was deleted; what is left is a tombstone.
    pub deleted: Option<Stamp>,
    /// What is wanted.
    pub configuration: Configuration,
    /// Whether it can work.
    pub validation: Option<Validation>,
    /// What the device confirmed.
    pub deployment: Option<Deployment>,
    /// What the device is doing now; kept in another file, so absent unless asked for there.
    pub runtime: Option<Runtime>,
    /// What was measured.
    pub telemetry: Option<Telemetry>,
    /// What people say about it.
    pub metadata: Metadata,
    /// What it has to do with others.
    pub relationships: Option<Relationships>,
    /// What its device can do.
    pub platform: Option<Platform>,
}

/// How often each group of layers was written. A write of one group never conflicts with one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Versions {
    /// Writes of the configuration.
    pub configuration: u64,
    /// Deployment revisions recorded.
    pub deployment: u64,
    /// Writes of the metadata.
    pub metadata: u64,
}

/// What a caller says about a resource that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewResource {
    /// Its identity, made by the caller.
    pub uid: Ulid,
    /// What it is.
    pub kind: KindName,
    /// Its name.
    pub name: String,
    /// The revision of the schema its fields are in.
    pub schema_revision: u32,
    /// What is wanted.
    pub spec: Fields,
    /// How the wish is to be treated.
    pub settings: Settings,
    /// Where it came from.
    pub source: Source,
    /// What people say about it.
    pub notes: Notes,
    /// The request that makes it.
    pub correlation_id: Option<Ulid>,
}

impl NewResource {
    /// Describes a resource that should be present.
    pub fn new(uid: Ulid, kind: KindName, schema_revision: u32, name: impl Into<String>, spec: Fields) -> Self {
        Self {
            uid,
            kind,
            name: name.into(),
            schema_revision,
            spec,
            settings: Settings::default(),
            source: Source::Api,
            notes: Notes::default(),
            correlation_id: None,
        }
    }

    /// Says where it came from.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }
}
