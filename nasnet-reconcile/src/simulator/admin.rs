//! Another administrator: edits that do not go through the REST API.

use super::interfaces;
use super::profile::SimProfile;
use super::refusal::Refusal;
use super::store::{Store, id_of, id_text};
use super::view::Secrets;
use super::world::{World, shape};
use super::write;
use crate::device::{MenuPath, RawFields, Row, RowId};
use crate::routeros::menus::Shape;

/// Edits and reads the configuration with all rights.
pub struct Admin<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) profile: &'a SimProfile,
}

impl std::fmt::Debug for Admin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

fn owned(fields: &[(&str, &str)]) -> RawFields {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Admin<'_> {
    /// Adds a row.
    ///
    /// # Errors
    ///
    /// The router's refusal.
    pub fn add(&mut self, menu: &MenuPath, fields: &[(&str, &str)]) -> Result<RowId, Refusal> {
        write::add(self.store, menu.as_str(), owned(fields)).map(|id| RowId(id_text(id)))
    }

    /// Changes fields of a row; an empty value clears.
    ///
    /// # Errors
    ///
    /// The router's refusal.
    pub fn set(&mut self, menu: &MenuPath, id: &RowId, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        let id = id_of(&id.0).ok_or_else(Refusal::identifier)?;
        let mut owner = menu.as_str();
        if owner == "/interface" {
            owner = interfaces::menu_of(self.store, id).ok_or_else(Refusal::not_found)?;
        }
        write::set(self.store, self.profile, owner, id, &owned(fields))
    }

    /// Changes fields of a menu of one row.
    ///
    /// # Errors
    ///
    /// The router's refusal.
    pub fn set_singleton(&mut self, menu: &MenuPath, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        write::set_singleton(self.store, menu.as_str(), &owned(fields))
    }

    /// Removes a row.
    ///
    /// # Errors
    ///
    /// The router's refusal.
    pub fn remove(&mut self, menu: &MenuPath, id: &RowId) -> Result<(), Refusal> {
        let id = id_of(&id.0).ok_or_else(Refusal::identifier)?;
        write::remove(self.store, menu.as_str(), id)
    }

    /// Moves a row in front of another, or to the end.
    ///
    /// # Errors
    ///
    /// The router's refusal.
    pub fn move_row(&mut self, menu: &MenuPath, id: &RowId, before: Option<&RowId>) -> Result<(), Refusal> {
        let id = id_of(&id.0).ok_or_else(Refusal::identifier)?;
        write::move_rows(self.store, menu.as_str(), &[id], before.map(|id| id.0.as_str()))
    }

    /// Reads a menu with its secrets.
    pub fn rows(&self, menu: &MenuPath) -> Vec<Row> {
        let world = World { store: self.store, profile: self.profile, sessions: &[], uptime_ms: 0 };
        let row = |mut fields: RawFields| Row { id: fields.remove(".id").map(RowId), fields };
        match shape(self.store, menu.as_str()) {
            Some(Shape::Singleton) => vec![row(world.singleton(menu.as_str(), Secrets::Shown))],
            _ => world.rows(menu.as_str(), Secrets::Shown).into_iter().map(row).collect(),
        }
    }

    /// Finds the first row with this value.
    pub fn find(&self, menu: &MenuPath, field: &str, value: &str) -> Option<RowId> {
        self.rows(menu).into_iter().find(|row| row.fields.get(field).is_some_and(|own| own == value))?.id
    }

    /// Sets a user's password and group and enables the user, and adds the user if there is none of that name.
    ///
    /// # Errors
    ///
    /// The router's refusal, such as for a group that does not exist.
    pub fn set_login(&mut self, name: &str, password: &str, group: &str) -> Result<(), Refusal> {
        let fields = owned(&[("name", name), ("password", password), ("group", group), ("disabled", "no")]);
        let existing = self.store.rows("/user").iter().find(|row| row.field("name") == Some(name)).map(|row| row.id);
        match existing {
            Some(id) => write::set(self.store, self.profile, "/user", id, &fields),
            None => write::add(self.store, "/user", fields).map(|_| ()),
        }
    }
}
