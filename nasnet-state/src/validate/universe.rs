//! What exists around the resources that are looked at.

use std::collections::{BTreeMap, BTreeSet};

use ulid::Ulid;

use crate::kind::KindName;
use crate::schema::Schemas;
use crate::value::{Fields, Reference};

/// The names that can be referred to, and who refers to which.
#[derive(Debug, Clone, Default)]
pub struct Universe {
    provided: BTreeMap<KindName, BTreeMap<String, BTreeSet<Option<Ulid>>>>,
    uses: Vec<Use>,
}

/// A resource outside the change that refers to something.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    pub(crate) by: Ulid,
    pub(crate) label: String,
    pub(crate) reference: Reference,
}

impl Universe {
    /// Starts empty: no name space is known, so nothing said about references into one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a name that exists without being a resource of ours: a port of the device, a built-in list.
    pub fn provide(&mut self, name_space: KindName, name: impl Into<String>) {
        self.insert(name_space, name.into(), None);
    }

    /// Adds a live resource: its name in its kind and in the name spaces the kind provides, and what it refers to.
    ///
    /// Resources that are part of the change may be added too; the change counts for them.
    pub fn add(&mut self, schemas: &Schemas, uid: Ulid, kind: &KindName, name: &str, fields: &Fields) {
        for space in spaces(schemas, kind) {
            self.insert(space, referred_name(name, fields).to_owned(), Some(uid));
        }
        let references = fields.iter().flat_map(|(_, value)| value.references());
        self.uses.extend(references.map(|reference| Use {
            by: uid,
            label: label(kind, name),
            reference: reference.clone(),
        }));
    }

    /// Returns true when the name exists without the resources of `change`.
    pub(crate) fn resolves(&self, reference: &Reference, change: &BTreeSet<Ulid>) -> bool {
        let providers = self.provided.get(&reference.target).and_then(|names| names.get(&reference.key));
        providers.is_some_and(|providers| providers.iter().any(|uid| uid.is_none_or(|uid| !change.contains(&uid))))
    }

    /// Visits the names of a name space; `None` when nothing is known about it.
    pub(crate) fn names(&self, name_space: &KindName) -> Option<impl Iterator<Item = &str>> {
        self.provided.get(name_space).map(|names| names.keys().map(String::as_str))
    }

    /// Visits the references of resources that are not part of `change`.
    pub(crate) fn uses_outside<'a>(&'a self, change: &'a BTreeSet<Ulid>) -> impl Iterator<Item = &'a Use> {
        self.uses.iter().filter(|used| !change.contains(&used.by))
    }

    fn insert(&mut self, name_space: KindName, name: String, by: Option<Ulid>) {
        self.provided.entry(name_space).or_default().entry(name).or_default().insert(by);
    }
}

/// The kind itself and the name spaces it provides names for.
pub(crate) fn spaces(schemas: &Schemas, kind: &KindName) -> Vec<KindName> {
    let provided = schemas.kind(kind).map_or(&[][..], |schema| schema.provides);
    std::iter::once(kind.clone()).chain(provided.iter().map(|space| KindName::from_static(space))).collect()
}

/// The name others refer to: the field `name` where there is one.
pub(crate) fn referred_name<'a>(name: &'a str, fields: &'a Fields) -> &'a str {
    fields.text("name").unwrap_or(name)
}

pub(crate) fn label(kind: &KindName, name: &str) -> String {
    format!("{kind} {name}")
}
