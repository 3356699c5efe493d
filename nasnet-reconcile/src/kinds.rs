//! What the engine knows about the device's menus: the managed kinds, and who provides the names they refer to.

use std::collections::{BTreeMap, BTreeSet};

use nasnet_state::{Fields, KindSchema, MENU_FIELD, Reference, Schemas};

use crate::op::plan::RefName;

/// The kinds an engine works with. Every menu without a kind is carried as opaque rows.
#[derive(Debug, Clone)]
pub struct Kinds {
    schemas: Schemas,
    providers: BTreeMap<String, String>,
    builtin: BTreeSet<RefName>,
}

impl Kinds {
    /// Works with these kinds.
    pub fn new(schemas: Schemas) -> Self {
        Self { schemas, providers: BTreeMap::new(), builtin: BTreeSet::new() }
    }

    /// Says that the rows of a menu without a kind provide names in a name space.
    #[must_use]
    pub fn provider(mut self, menu: impl Into<String>, space: impl Into<String>) -> Self {
        self.providers.insert(menu.into(), space.into());
        self
    }

    /// Says that a name exists on every device.
    #[must_use]
    pub fn builtin(mut self, space: impl Into<String>, name: impl Into<String>) -> Self {
        self.builtin.insert(RefName { space: space.into(), name: name.into() });
        self
    }

    /// Returns the schemas.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// Visits the names every device has.
    pub(crate) fn builtins(&self) -> impl Iterator<Item = &RefName> {
        self.builtin.iter()
    }

    /// Returns the names a row provides.
    pub(crate) fn provided(&self, schema: &KindSchema, fields: &Fields) -> BTreeSet<RefName> {
        let Some(name) = fields.text("name") else { return BTreeSet::new() };
        let spaces: Vec<String> = if schema.is_opaque() {
            let menu = fields.text(MENU_FIELD).unwrap_or_default();
            self.providers.get(menu).cloned().into_iter().collect()
        } else {
            let spaces = schema.provides.iter().map(|space| (*space).to_owned());
            spaces.chain([schema.kind().to_string()]).collect()
        };
        spaces.into_iter().map(|space| RefName { space, name: name.to_owned() }).collect()
    }

    /// Returns the names a row refers to, without those every device has.
    pub(crate) fn needed(&self, fields: &Fields) -> BTreeSet<RefName> {
        let references = fields.iter().flat_map(|(_, value)| value.references());
        references.map(ref_name).filter(|name| !self.builtin.contains(name)).collect()
    }
}

pub(crate) fn ref_name(reference: &Reference) -> RefName {
    RefName { space: reference.target.to_string(), name: reference.key.clone() }
}
