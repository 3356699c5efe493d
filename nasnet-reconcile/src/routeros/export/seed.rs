//! The rows an export leaves behind on an empty device.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::statement::{Header, Value};
use crate::device::{MenuPath, RawFields, Row, is_secret_name};

/// The rows an export leaves behind on an empty device, and everything that could not be turned into rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// What the export says about the device.
    pub header: Header,
    /// The rows of every menu: first the rows a device has by itself, then the added ones, each in their order.
    pub menus: BTreeMap<MenuPath, Vec<SeedRow>>,
    /// The menus in the order in which the export first mentions them; references point to earlier menus mostly.
    pub order: Vec<MenuPath>,
    /// Statements that are not in the rows; printing writes them back.
    pub unapplied: Vec<Unapplied>,
    /// What a person should know, in the order of the lines.
    pub problems: Vec<Problem>,
    /// How many commands ended up in the rows.
    pub applied: usize,
}

/// One row.
///
/// Comparing two rows compares what they configure, not the lines they come from. `Debug` shows no secrets.
#[derive(Clone, Eq)]
pub struct SeedRow {
    /// Where the row comes from.
    pub origin: RowOrigin,
    /// The line that first mentions the row.
    pub line: u32,
    /// The fields with their decoded values.
    pub fields: RawFields,
    /// The fields among them whose value is code as it was written, such as `$name`: only a device knows the value.
    pub expressions: BTreeSet<String>,
    /// The fields among them that are written without a value, such as `blackhole`; their value is empty.
    pub flags: BTreeSet<String>,
    /// The fields the export says have no value (`!name`).
    pub unset: BTreeSet<String>,
}

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowOrigin {
    /// The one row of its menu.
    Single,
    /// A row the device has by itself, found by fields: `[ find default-name=ether1 ]`.
    Found(BTreeMap<String, String>),
    /// A row the device has by itself, at a place counted from 0 in the device's own list.
    Number(u32),
    /// A row the device has by itself, with a fixed id such as `*0`.
    Id(String),
    /// A row the device has by itself, with a fixed name such as `telnet`.
    Named(String),
    /// A row the export adds.
    Added,
}

/// A statement that is not in the rows.
#[derive(Clone, PartialEq, Eq)]
pub struct Unapplied {
    /// The line.
    pub line: u32,
    /// The menu it was written in.
    pub menu: Option<MenuPath>,
    /// The statement as it would be printed.
    pub text: String,
    /// Why it is not in the rows.
    pub reason: String,
}

impl fmt::Debug for Unapplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text can hold passwords.
        write!(f, "Unapplied(line {}, {:?}, {})", self.line, self.menu, self.reason)
    }
}

/// Something in the export that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line.
    pub line: u32,
    /// What it is; never a value of a field.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl SeedRow {
    /// Writes a field, whatever it was before.
    pub(super) fn write(&mut self, name: &str, value: &Value) {
        self.expressions.remove(name);
        self.flags.remove(name);
        self.unset.remove(name);
        match value {
            Value::Word(text) | Value::Quoted(text) => {
                self.fields.insert(name.to_owned(), text.clone());
            }
            Value::Expression(code) => {
                self.fields.insert(name.to_owned(), code.clone());
                self.expressions.insert(name.to_owned());
            }
            Value::Flag => {
                self.fields.insert(name.to_owned(), String::new());
                self.flags.insert(name.to_owned());
            }
            Value::Unset => {
                self.fields.remove(name);
                self.unset.insert(name.to_owned());
            }
        }
    }

    /// Makes a row without fields.
    pub fn new(origin: RowOrigin, line: u32) -> Self {
        let (expressions, flags, unset) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { origin, line, fields: RawFields::new(), expressions, flags, unset }
    }
}

impl PartialEq for SeedRow {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.fields == other.fields
            && self.expressions == other.expressions
            && self.flags == other.flags
            && self.unset == other.unset
    }
}

impl fmt::Debug for SeedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |name: &str| is_secret_name(name) || matches!(name, "source" | "on-event" | "value");
        let fields = self.fields.iter().map(|(name, value)| (name, if hidden(name) { "(hidden)" } else { value }));
        f.debug_struct("SeedRow")
            .field("origin", &self.origin)
            .field("line", &self.line)
            .field("fields", &fields.collect::<BTreeMap<_, _>>())
            .field("unset", &self.unset)
            .finish_non_exhaustive()
    }
}

impl Seed {
    /// Makes a seed of rows as a device lists them; rows with an id become added rows.
    pub fn from_rows(menus: impl IntoIterator<Item = (MenuPath, Vec<Row>)>) -> Self {
        let mut seed = Self::default();
        for (menu, rows) in menus {
            if rows.is_empty() {
                continue;
            }
            let mut rows: Vec<SeedRow> = rows
                .into_iter()
                .map(|row| {
                    let origin = if row.id.is_some() { RowOrigin::Added } else { RowOrigin::Single };
                    SeedRow { fields: row.fields, ..SeedRow::new(origin, 0) }
                })
                .collect();
            rows.sort_by_key(|row| row.origin == RowOrigin::Added);
            seed.order.push(menu.clone());
            seed.menus.insert(menu, rows);
        }
        seed
    }

    /// Returns the rows of a menu.
    pub fn rows(&self, menu: &MenuPath) -> &[SeedRow] {
        self.menus.get(menu).map_or(&[], Vec::as_slice)
    }

    /// Returns the number of rows in all menus.
    pub fn row_count(&self) -> usize {
        self.menus.values().map(Vec::len).sum()
    }

    /// Returns the menus with their rows, in the order of the export.
    pub fn ordered(&self) -> impl Iterator<Item = (&MenuPath, &[SeedRow])> {
        let listed: BTreeSet<&MenuPath> = self.order.iter().collect();
        let first = self.order.iter().collect::<Vec<_>>();
        let rest = self.menus.keys().filter(move |menu| !listed.contains(menu)).collect::<Vec<_>>();
        first.into_iter().chain(rest).filter_map(|menu| Some((menu, self.menus.get(menu)?.as_slice())))
    }

    /// Returns the interfaces that rows refer to and no row defines, such as an ethernet port at its defaults.
    ///
    /// An export leaves out what is as it came from the factory, so whoever seeds a device from it has to add these.
    /// Names of interface lists, keywords such as `all`, addresses and dangling ids (`*1A`) are left out.
    pub fn referenced_interfaces(&self) -> BTreeSet<String> {
        let mut defined = BTreeSet::new();
        for (menu, rows) in &self.menus {
            if !menu.as_str().starts_with("/interface") {
                continue;
            }
            for field in ["name", "default-name"] {
                defined.extend(rows.iter().filter_map(|row| row.fields.get(field)).map(String::as_str));
            }
        }
        let mut found = BTreeSet::new();
        for rows in self.menus.values() {
            for row in rows {
                for (field, value) in &row.fields {
                    if row.expressions.contains(field) {
                        continue;
                    }
                    match field.as_str() {
                        "interface" | "in-interface" | "out-interface" | "bridge" | "master-interface"
                        | "in-bridge-port" | "out-bridge-port" | "interfaces" | "slaves" | "tagged" | "untagged"
                        | "ports" | "parent-interface" => {
                            found.extend(value.split(',').map(|name| name.strip_prefix('!').unwrap_or(name)));
                        }
                        "gateway" => found.extend(value.split(',').map(gateway_interface)),
                        _ => {}
                    }
                }
            }
        }
        let is_interface = |name: &&str| {
            !name.is_empty()
                && !matches!(*name, "all" | "none" | "any" | "dynamic" | "static" | "auto" | "main")
                && !name.starts_with('*')
                && !is_address_like(name)
                && !defined.contains(name)
        };
        found.into_iter().filter(is_interface).map(str::to_owned).collect()
    }
}

/// Returns the interface part of a gateway: `10.0.0.1%ether1`, `ether1@main`, `pppoe-out1`.
fn gateway_interface(gateway: &str) -> &str {
    let before_table = gateway.split('@').next().unwrap_or_default();
    before_table.rsplit('%').next().unwrap_or_default()
}

fn is_address_like(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    host.parse::<std::net::IpAddr>().is_ok() || name.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}
