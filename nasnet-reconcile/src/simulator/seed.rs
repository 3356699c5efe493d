//! Seeding from an `/export`: what it prints is loaded as it is, and what it refers to without printing is created.

use std::collections::HashSet;

use super::base;
use super::derive;
use super::interfaces;
use super::refusal::Refusal;
use super::spec::{self, Unique};
use super::store::{Origin, Store, StoredRow, id_of};
use super::value::Type;
use super::write;
use crate::device::{MenuPath, RawFields};

/// Which row of the router an export's row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedPlace {
    /// A row the export adds.
    Added,
    /// The one row of a menu of settings.
    Single,
    /// A row the router has by itself, found by these values.
    Found(RawFields),
    /// A row the router has by itself, at a place counted from 0.
    Number(usize),
    /// A row the router has by itself, with a fixed id such as `*0`.
    Id(String),
    /// A row the router has by itself, with a fixed name.
    Named(String),
}

/// One row of an export. `Debug` shows no values: some are secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedRow {
    /// Which row it is.
    pub place: SeedPlace,
    /// Its fields; a name with `!` before it clears the field.
    pub fields: RawFields,
}

impl std::fmt::Debug for SeedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.fields.keys().collect();
        f.debug_struct("SeedRow").field("place", &self.place).field("fields", &names).finish()
    }
}

/// The rows of one menu as an export has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedMenu {
    /// The menu.
    pub menu: MenuPath,
    /// The rows in their order.
    pub rows: Vec<SeedRow>,
}

impl SeedMenu {
    /// Names the rows of a list; those of rows the router has by itself are recognised by `default-name` or `name`.
    pub fn list(menu: MenuPath, rows: impl IntoIterator<Item = RawFields>) -> Self {
        let rows = rows.into_iter().map(|fields| SeedRow { place: SeedPlace::Added, fields }).collect();
        Self { menu, rows }
    }

    /// Names the settings of a menu of one row.
    pub fn single(menu: MenuPath, fields: RawFields) -> Self {
        Self { menu, rows: vec![SeedRow { place: SeedPlace::Single, fields }] }
    }
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
    let mut taken = Taken::of(store, menu);
    // Numbers count what the router has by itself, not the rows that loading this menu makes.
    let own: Vec<u64> = own_rows(store, menu);
    for (index, row) in seed.rows.iter().enumerate() {
        let mut refusals;
        if row.place == SeedPlace::Single {
            refusals = write::set_singleton(store, menu, &row.fields).err().into_iter().collect();
        } else if is_every_row(row) && !own.is_empty() {
            refusals = own.iter().flat_map(|id| load_row(store, menu, Some(*id), row).1).collect();
        } else {
            let existing = existing(store, menu, &own, row);
            let id;
            (id, refusals) = load_row(store, menu, existing, row);
            if existing.is_none()
                && let Some(row) = store.row(menu, id)
            {
                refusals.extend(taken.take(row));
            }
        }
        report.problems.extend(refusals.into_iter().map(|refusal| SeedProblem {
            menu: seed.menu.clone(),
            row: index,
            refusal,
        }));
        report.rows += 1;
    }
}

fn own_rows(store: &Store, menu: &str) -> Vec<u64> {
    store.rows(menu).iter().filter(|row| row.origin == Origin::Builtin).map(|row| row.id).collect()
}

/// Returns whether a row stands for all rows the router has by itself: `set [ find ]`.
fn is_every_row(row: &SeedRow) -> bool {
    matches!(&row.place, SeedPlace::Found(wanted) if wanted.is_empty())
}

fn load_row(store: &mut Store, menu: &str, existing: Option<u64>, row: &SeedRow) -> (u64, Vec<Refusal>) {
    let mut fields = row.fields.clone();
    if let (None, Some(name)) = (existing, fields.get("default-name").cloned()) {
        // A port keeps its default name until it gets another.
        fields.entry("name".to_owned()).or_insert(name);
    }
    if let (None, SeedPlace::Found(found)) = (existing, &row.place) {
        for (name, value) in found {
            fields.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    let origin = if row.place == SeedPlace::Added { Origin::Static } else { Origin::Builtin };
    let fixed = match &row.place {
        SeedPlace::Id(text) if existing.is_none() => id_of(text).map(|id| store.push_reserved(menu, id)),
        _ => None,
    };
    write::load(store, menu, existing.or(fixed), origin, &fields)
}

/// What the rows of a menu have that no other row may have; an index, since exports hold lists of many thousand rows.
struct Taken {
    uniques: Vec<(&'static [&'static str], &'static str, HashSet<String>)>,
}

impl Taken {
    fn of(store: &Store, menu: &str) -> Self {
        let unique = |unique: &Unique| (unique.fields, unique.text, HashSet::new());
        let mut taken =
            Self { uniques: spec::of(menu).map_or(&[][..], |spec| spec.unique).iter().map(unique).collect() };
        store.rows(menu).iter().for_each(|row| drop(taken.take(row)));
        if interfaces::type_of(menu).is_some() {
            let names = interfaces::all(store).filter_map(|(_, row)| row.field("name").map(str::to_owned)).collect();
            taken.uniques.push((&["name"], write::SAME_INTERFACE_NAME, names));
        }
        taken
    }

    fn take(&mut self, row: &StoredRow) -> Option<Refusal> {
        let mut refusal = None;
        for (fields, text, seen) in &mut self.uniques {
            let key: Option<Vec<&str>> = fields.iter().map(|name| row.field(name)).collect();
            if key.is_some_and(|key| !seen.insert(key.join("\0"))) {
                refusal = Some(Refusal::failure(text));
            }
        }
        refusal
    }
}

/// Finds the row an export changes instead of adding.
fn existing(store: &Store, menu: &str, own_rows: &[u64], row: &SeedRow) -> Option<u64> {
    let rows = store.rows(menu);
    // The origin is looked at first: it is cheap, and nearly all rows of a long list are static.
    let own = |row: &&StoredRow| row.origin == Origin::Builtin || menu == "/user";
    let by = |name: &str, value: &str| rows.iter().filter(own).find(|row| row.field(name) == Some(value));
    match &row.place {
        SeedPlace::Single => None,
        SeedPlace::Found(wanted) => {
            rows.iter().filter(own).find(|row| wanted.iter().all(|(name, value)| row.field(name) == Some(value)))
        }
        SeedPlace::Number(number) => own_rows.get(*number).and_then(|id| store.row(menu, *id)),
        SeedPlace::Id(text) => id_of(text).and_then(|id| store.row(menu, id)),
        SeedPlace::Named(name) => by("name", name),
        SeedPlace::Added => match (row.fields.get("default-name"), row.fields.get("name")) {
            (Some(port), _) => by("default-name", port),
            (None, Some(name)) => by("name", name),
            (None, None) => None,
        },
    }
    .map(|row| row.id)
}

/// S51: creates the ports that rows refer to and that the export does not print because nothing about them was changed.
fn create_ports(store: &mut Store, seeds: &[SeedMenu], report: &mut SeedReport) {
    for seed in seeds {
        for row in &seed.rows {
            for name in referenced_interfaces(seed.menu.as_str(), &row.fields) {
                let Some(menu) = port_menu(name) else { continue };
                let named_elsewhere =
                    seeds.iter().filter(|other| interfaces::type_of(other.menu.as_str()).is_some()).any(|other| {
                        other.rows.iter().any(|row| row.fields.get("name").is_some_and(|other| other == name))
                    });
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
