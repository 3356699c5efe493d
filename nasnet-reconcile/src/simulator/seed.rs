//! Seeding from an `/export`: what it prints is loaded as it is, and what it refers to without printing is created.

use super::base;
use super::derive;
use super::interfaces;
use super::refusal::Refusal;
use super::spec;
use super::store::{Origin, Store};
use super::value::Type;
use super::write;
use crate::device::{MenuPath, RawFields};
use crate::routeros::menus::{self, Shape};

/// The rows of one menu as an export has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedMenu {
    /// The menu.
    pub menu: MenuPath,
    /// Whether the rows are one row of settings or a list; `None` leaves it to the table of known menus.
    pub shape: Option<Shape>,
    /// The rows in their order; those of a menu of one row are merged into it.
    pub rows: Vec<RawFields>,
}

/// Something unusual that was loaded all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedProblem {
    /// The menu.
    pub menu: MenuPath,
    /// The row's position among those given for the menu.
    pub row: usize,
    /// What the router would have said to such a write.
    pub refusal: Refusal,
}

/// What seeding did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeedReport {
    /// Rows and settings loaded.
    pub rows: usize,
    /// Ports that the rows refer to and that were created (S51).
    pub created_ports: Vec<String>,
    /// Rows that a router would have refused as they are.
    pub problems: Vec<SeedProblem>,
}

/// Loads rows into a store, interfaces first (S50).
pub(crate) fn load(store: &mut Store, seeds: &[SeedMenu]) -> SeedReport {
    let mut report = SeedReport::default();
    let mut ordered: Vec<&SeedMenu> = seeds.iter().collect();
    ordered.sort_by_key(|seed| rank(seed.menu.as_str()));
    let mut ports_known = false;
    for seed in ordered {
        if !ports_known && rank(seed.menu.as_str()) > PORT_RANK {
            create_ports(store, seeds, &mut report);
            ports_known = true;
        }
        load_menu(store, seed, &mut report);
    }
    if !ports_known {
        create_ports(store, seeds, &mut report);
    }
    derive::refresh(store);
    report
}

const PORT_RANK: u8 = 0;

/// What others refer to is loaded before what refers to it.
fn rank(menu: &str) -> u8 {
    match menu {
        "/interface/ethernet" | "/interface/wifi" | "/interface/wireless" | "/interface/lte" => PORT_RANK,
        "/interface/bridge" | "/interface/bonding" | "/interface/wireguard" | "/interface/veth" => 1,
        _ if interfaces::type_of(menu).is_some() => 2,
        "/interface/list" | "/ip/pool" | "/routing/table" | "/user/group" => 3,
        "/ip/dhcp-server" => 4,
        _ => 5,
    }
}

fn load_menu(store: &mut Store, seed: &SeedMenu, report: &mut SeedReport) {
    let menu = seed.menu.as_str();
    if shape_of(seed) == Shape::Singleton {
        for (index, row) in seed.rows.iter().enumerate() {
            if let Err(refusal) = write::set_singleton(store, menu, row) {
                report.problems.push(SeedProblem { menu: seed.menu.clone(), row: index, refusal });
            }
            report.rows += 1;
        }
        return;
    }
    // A menu named by an export exists, even when the export has no row of it.
    store.rows_mut(menu);
    for (index, row) in seed.rows.iter().enumerate() {
        let existing = existing(store, menu, row);
        let mut row = row.clone();
        if let (None, Some(name)) = (existing, row.get("default-name").cloned()) {
            // A port keeps its default name until it gets another.
            row.entry("name".to_owned()).or_insert(name);
        }
        for refusal in write::load(store, menu, existing, Origin::Static, &row) {
            report.problems.push(SeedProblem { menu: seed.menu.clone(), row: index, refusal });
        }
        report.rows += 1;
    }
}

fn shape_of(seed: &SeedMenu) -> Shape {
    seed.shape.or_else(|| menus::shape(seed.menu.as_str())).unwrap_or(Shape::List)
}

/// Finds the row an export changes instead of adding: a port by its default name, any other built-in row by its name.
fn existing(store: &Store, menu: &str, row: &RawFields) -> Option<u64> {
    let by = |name: &str| {
        let value = row.get(name)?;
        let found = store.rows(menu).iter().find(|row| row.field(name) == Some(value))?;
        Some((found.id, found.origin))
    };
    if let Some((id, _)) = by("default-name") {
        return Some(id);
    }
    if row.contains_key("default-name") && menu != "/interface/ethernet" {
        return None;
    }
    by("name").filter(|(_, origin)| *origin == Origin::Builtin || menu == "/user").map(|(id, _)| id)
}

/// S51: creates the ports that rows refer to and that the export does not print because nothing about them was changed.
fn create_ports(store: &mut Store, seeds: &[SeedMenu], report: &mut SeedReport) {
    for seed in seeds {
        for row in &seed.rows {
            for name in referenced_interfaces(seed.menu.as_str(), row) {
                let Some(menu) = port_menu(name) else { continue };
                let named_elsewhere = seeds
                    .iter()
                    .filter(|other| interfaces::type_of(other.menu.as_str()).is_some())
                    .any(|other| other.rows.iter().any(|row| row.get("name").is_some_and(|other| other == name)));
                if named_elsewhere || interfaces::named(store, name).is_some() {
                    continue;
                }
                base::add_port(store, menu, name);
                report.created_ports.push(name.to_owned());
            }
        }
    }
}

fn referenced_interfaces<'a>(menu: &str, row: &'a RawFields) -> impl Iterator<Item = &'a str> {
    let spec = spec::of(menu);
    row.iter()
        .filter(move |(name, _)| match spec.and_then(|spec| spec.kind_of(name)) {
            Some(Type::Name(..) | Type::NegatableName(..) | Type::NameList(_) | Type::Gateway) => true,
            Some(_) => false,
            None => name.contains("interface") || matches!(name.as_str(), "slaves" | "port" | "bridge"),
        })
        .flat_map(|(_, value)| value.split(','))
        .map(|name| name.trim_start_matches('!'))
        .map(|name| name.rsplit_once('%').map_or(name, |(_, interface)| interface))
}

/// Returns the menu of a port by the style of its name.
fn port_menu(name: &str) -> Option<&'static str> {
    let numbered =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if ["ether", "combo", "sfp", "sfp-sfpplus", "sfp28-", "qsfp", "qsfpplus", "qsfp28-"].iter().any(|p| numbered(p))
        || name == "sfp"
    {
        Some("/interface/ethernet")
    } else if numbered("wifi") {
        Some("/interface/wifi")
    } else if numbered("wlan") {
        Some("/interface/wireless")
    } else if numbered("lte") {
        Some("/interface/lte")
    } else {
        None
    }
}
