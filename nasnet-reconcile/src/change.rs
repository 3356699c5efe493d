//! What a caller asks for: several resources in one operation.

use std::fmt;

use nasnet_state::KindName;
use ulid::Ulid;

use crate::device::RawFields;

/// Changes that are done together or not at all. `Debug` shows no values.
#[derive(Clone)]
pub struct ChangeSet {
    /// Why, for the plan, the journal and the events.
    pub reason: String,
    /// Who asks.
    pub actor: String,
    /// The changes; their order is only a wish, references decide.
    pub changes: Vec<Change>,
}

/// One change to one resource. Values are in the device's spelling and checked before anything is locked.
#[derive(Clone)]
pub enum Change {
    /// Creates a resource and its row.
    Create {
        /// The identity it will have; chosen by the engine if absent.
        uid: Option<Ulid>,
        /// Its kind.
        kind: KindName,
        /// Its name among the resources of its kind.
        name: String,
        /// Its fields.
        fields: RawFields,
        /// The resource before whose row it is placed; the end of the list otherwise.
        before: Option<Ulid>,
    },
    /// Changes fields of a resource and its row.
    Update {
        /// The resource.
        uid: Ulid,
        /// Fields to set.
        set: RawFields,
        /// Fields to take back.
        unset: Vec<String>,
        /// The version of the configuration the caller has read.
        expected_version: Option<u64>,
    },
    /// Removes a resource and its row.
    Delete {
        /// The resource.
        uid: Ulid,
    },
}

impl ChangeSet {
    /// Starts an empty change set.
    pub fn new(reason: impl Into<String>, actor: impl Into<String>) -> Self {
        Self { reason: reason.into(), actor: actor.into(), changes: Vec::new() }
    }

    /// Adds the creation of a resource.
    #[must_use]
    pub fn create<'a>(
        self,
        kind: KindName,
        name: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        self.with(Change::Create { uid: None, kind, name: name.into(), fields: raw(fields), before: None })
    }

    /// Adds the creation of a resource in front of another one's row.
    #[must_use]
    pub fn create_before<'a>(
        self,
        before: Ulid,
        kind: KindName,
        name: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        self.with(Change::Create { uid: None, kind, name: name.into(), fields: raw(fields), before: Some(before) })
    }

    /// Adds a change of fields.
    #[must_use]
    pub fn update<'a>(self, uid: Ulid, set: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.with(Change::Update { uid, set: raw(set), unset: Vec::new(), expected_version: None })
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(self, uid: Ulid) -> Self {
        self.with(Change::Delete { uid })
    }

    /// Adds a change.
    #[must_use]
    pub fn with(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }
}

fn raw<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> RawFields {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl fmt::Debug for ChangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeSet")
            .field("reason", &self.reason)
            .field("actor", &self.actor)
            .field("changes", &self.changes)
            .finish()
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { kind, name, fields, .. } => f
                .debug_struct("Create")
                .field("kind", kind)
                .field("name", name)
                .field("fields", &fields.keys())
                .finish(),
            Self::Update { uid, set, unset, .. } => {
                f.debug_struct("Update").field("uid", uid).field("set", &set.keys()).field("unset", unset).finish()
            }
            Self::Delete { uid } => f.debug_struct("Delete").field("uid", uid).finish(),
        }
    }
}
