//! All menus as they are printed: the stored ones and those that follow from the router itself.

use super::interfaces;
use super::profile::SimProfile;
use super::store::{Store, id_text};
use super::value::duration_text;
use super::view::{self, Secrets};
use crate::device::RawFields;
use crate::routeros::menus::{self, Shape};

/// The router at one moment.
pub(crate) struct World<'a> {
    pub(crate) store: &'a Store,
    pub(crate) profile: &'a SimProfile,
    pub(crate) sessions: &'a [(String, String)],
    pub(crate) uptime_ms: u64,
}

/// Menus that cannot be written to.
const READ_ONLY: &[(&str, Shape)] = &[
    ("/system/license", Shape::Singleton),
    ("/system/package", Shape::List),
    ("/system/resource", Shape::Singleton),
    ("/system/routerboard", Shape::Singleton),
    ("/user/active", Shape::List),
];

/// Returns whether a menu follows from the router itself and takes no writes.
pub(crate) fn is_read_only(menu: &str) -> bool {
    READ_ONLY.iter().any(|(known, _)| *known == menu)
}

/// Returns the shape of a menu; `None` when the router does not have it.
pub(crate) fn shape(store: &Store, menu: &str) -> Option<Shape> {
    if menu == "/interface" || store.has_list(menu) {
        return Some(Shape::List);
    }
    if store.singleton(menu).is_some() {
        return Some(Shape::Singleton);
    }
    READ_ONLY.iter().find(|(known, _)| *known == menu).map(|(_, shape)| *shape).or_else(|| menus::shape(menu))
}

impl World<'_> {
    /// Prints the rows of a list.
    pub(crate) fn rows(&self, menu: &str, secrets: Secrets) -> Vec<RawFields> {
        match menu {
            "/interface" => interfaces::all(self.store).map(|(menu, row)| interfaces::summary(menu, row)).collect(),
            "/user/active" => self.active_users(),
            "/system/package" => vec![fields([
                (".id", "*1".to_owned()),
                ("name", "routeros".to_owned()),
                ("version", self.version_number().to_owned()),
                ("disabled", "false".to_owned()),
            ])],
            _ => self.store.rows(menu).iter().map(|row| view::row(self.store, menu, row, secrets)).collect(),
        }
    }

    /// Prints the row of a menu of one.
    pub(crate) fn singleton(&self, menu: &str, secrets: Secrets) -> RawFields {
        match menu {
            "/system/resource" => fields([
                ("uptime", duration_text(self.uptime_ms / 1_000 * 1_000)),
                ("version", self.profile.version.clone()),
                ("board-name", self.profile.board.clone()),
                ("architecture-name", self.profile.architecture.clone()),
                ("platform", "MikroTik".to_owned()),
                ("cpu-count", "4".to_owned()),
                ("total-memory", "1073741824".to_owned()),
                ("free-memory", "805306368".to_owned()),
            ]),
            "/system/routerboard" if self.profile.serial.is_empty() => fields([("routerboard", "false".to_owned())]),
            "/system/routerboard" => fields([
                ("routerboard", "true".to_owned()),
                ("board-name", self.profile.board.clone()),
                ("serial-number", self.profile.serial.clone()),
                ("current-firmware", self.version_number().to_owned()),
                ("upgrade-firmware", self.version_number().to_owned()),
            ]),
            "/system/license" => {
                fields([("system-id", format!("sim{:08X}", self.profile.random_seed)), ("level", "free".to_owned())])
            }
            _ => view::singleton(&self.store.singleton(menu).cloned().unwrap_or_default(), secrets),
        }
    }

    fn version_number(&self) -> &str {
        self.profile.version.split_whitespace().next().unwrap_or_default()
    }

    /// S33: a REST login shows as two rows.
    fn active_users(&self) -> Vec<RawFields> {
        let rows =
            self.sessions.iter().flat_map(|(name, address)| [("web", name, address), ("rest-api", name, address)]);
        rows.zip(1..)
            .map(|((via, name, address), number)| {
                fields([
                    (".id", id_text(number)),
                    ("name", name.clone()),
                    ("address", address.clone()),
                    ("via", via.to_owned()),
                ])
            })
            .collect()
    }
}

fn fields<const N: usize>(pairs: [(&str, String); N]) -> RawFields {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
