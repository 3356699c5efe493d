//! Runs the commands of an export on an empty device.
//!
//! The rules are those of the console: `add` appends, `set` changes the rows its selector finds. An export also says
//! `set` about rows the device has by itself and does not list, such as `[ find default-name=ether1 ]`, `telnet` or `0`:
//! such a row appears with the first `set` that names it, before all added rows, as it would on the device.

use std::collections::{BTreeMap, BTreeSet};

use super::print;
use super::seed::{Problem, RowOrigin, Seed, SeedRow, Unapplied};
use super::selector::{Condition, Item, Selector, equalities};
use super::statement::{Argument, Command, Export, StatementKind, Value};
use crate::device::MenuPath;

/// The most rows all commands together may look at; an export of a real device needs a small part of it.
const ROWS_VISITED_MAX: usize = 10_000_000;

/// Fields that exports write without a value.
const KNOWN_FLAGS: &[&str] = &["blackhole", "fib", "passive"];

/// Menus whose rows come with the device: `set [ find ]` speaks of rows there that the export does not list.
const OWN_ROWS: &[&str] = &[
    "/interface/ethernet",
    "/interface/ethernet/switch",
    "/interface/ethernet/switch/port",
    "/interface/lte",
    "/interface/wifi",
    "/interface/wireless",
    "/ip/firewall/service-port",
    "/ip/service",
    "/ipv6/nd",
    "/port",
    "/system/console",
];

/// Fields that identify a row the device has by itself.
const IDENTIFYING: &[&str] = &["default-name", "name", "default", "port", "interface"];

/// Runs the commands of an export on an empty device and returns the rows.
pub fn apply(export: &Export) -> Seed {
    let mut machine = Machine::default();
    for error in &export.errors {
        machine.problem(error.line, format!("not understood: {}", error.message));
    }
    for statement in &export.statements {
        let line = statement.line;
        match &statement.kind {
            StatementKind::Menu(_) => {}
            StatementKind::Comment(text) => {
                let text = text.trim_start();
                if text.starts_with("error exporting") || text.starts_with("interrupted") {
                    machine.problem(line, "the device says that the export is not complete here".to_owned());
                }
            }
            StatementKind::Noise(_) => machine.problem(line, "a console prompt was skipped".to_owned()),
            StatementKind::Script { menu, text } => {
                let reason = "script code runs on a device only".to_owned();
                machine.keep(Unapplied { line, menu: menu.clone(), text: text.clone(), reason });
            }
            StatementKind::Command(command) => match machine.run(command, line) {
                Ok(()) => machine.seed.applied += 1,
                Err(reason) => {
                    let text = print::command(command);
                    machine.keep(Unapplied { line, menu: Some(command.menu.clone()), text, reason });
                }
            },
        }
    }
    machine.finish(export)
}

#[derive(Debug, Default)]
struct Machine {
    seed: Seed,
    menus: BTreeMap<MenuPath, Rows>,
    visited: usize,
}

/// The rows of one menu.
#[derive(Debug, Default)]
struct Rows {
    /// Rows the device has by itself.
    own: Vec<SeedRow>,
    /// Rows the export adds.
    added: Vec<SeedRow>,
    /// The menu has its place in [`Seed::order`].
    listed: bool,
}

/// The place of a row in [`Rows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Own(usize),
    Added(usize),
}

impl Machine {
    fn problem(&mut self, line: u32, message: String) {
        self.seed.problems.push(Problem { line, message });
    }

    fn keep(&mut self, unapplied: Unapplied) {
        let subject = match &unapplied.menu {
            Some(menu) => format!("a statement in {menu}"),
            None => "a statement".to_owned(),
        };
        self.problem(unapplied.line, format!("{subject} is kept but not applied: {}", unapplied.reason));
        self.seed.unapplied.push(unapplied);
    }

    fn finish(mut self, export: &Export) -> Seed {
        self.seed.header = export.header.clone();
        for (menu, mut rows) in self.menus {
            rows.own.append(&mut rows.added);
            if !rows.own.is_empty() {
                self.seed.menus.insert(menu, rows.own);
            }
        }
        let menus = &self.seed.menus;
        self.seed.order.retain(|menu| menus.contains_key(menu));
        self.seed.problems.sort_by_key(|problem| problem.line);
        self.seed
    }

    fn run(&mut self, command: &Command, line: u32) -> Result<(), String> {
        let has_selector = command.verb != "add";
        let mut selected: Vec<&Value> = Vec::new();
        let mut fields: Vec<(&str, &Value)> = Vec::new();
        for Argument { name, value } in &command.arguments {
            match (name.as_deref(), value) {
                (Some("numbers"), _) if has_selector && selected.is_empty() => selected.push(value),
                (Some(name), value) => fields.push((name, value)),
                (None, value) if has_selector && (selected.is_empty() || command.verb == "move") => {
                    selected.push(value);
                }
                (None, Value::Word(word)) if is_flag_name(word) => fields.push((word, &Value::Flag)),
                (None, _) => return Err("it has a value without a field name".to_owned()),
            }
        }
        let menu = &command.menu;
        if !self.menus.contains_key(menu) {
            self.menus.insert(menu.clone(), Rows::default());
        }
        let result = match (command.verb.as_str(), selected.as_slice()) {
            ("add", []) => self.add(menu, &fields, line),
            ("set", []) => self.set(menu, None, &fields, line),
            ("set", [rows]) => self.set(menu, Some(rows), &fields, line),
            ("enable", [rows]) if fields.is_empty() => {
                self.set(menu, Some(rows), &[("disabled", &Value::Word("no".to_owned()))], line)
            }
            ("disable", [rows]) if fields.is_empty() => {
                self.set(menu, Some(rows), &[("disabled", &Value::Word("yes".to_owned()))], line)
            }
            ("remove", [rows]) if fields.is_empty() => self.remove(menu, rows),
            ("move", [from, to]) if fields.is_empty() => self.reorder(menu, from, to),
            ("move", [from]) => match fields.as_slice() {
                [("destination", to)] => self.reorder(menu, from, to),
                _ => Err("the rows to move are not in the export".to_owned()),
            },
            (verb, _) => Err(format!("`{verb}` does not describe configuration in this form")),
        };
        if result.is_ok()
            && let Some(rows) = self.menus.get_mut(menu)
            && !std::mem::replace(&mut rows.listed, true)
        {
            self.seed.order.push(menu.clone());
        }
        result
    }

    fn add(&mut self, menu: &MenuPath, fields: &[(&str, &Value)], line: u32) -> Result<(), String> {
        if fields.iter().any(|(name, _)| *name == "copy-from") {
            return Err("copying a row is not understood".to_owned());
        }
        let before = fields.iter().find(|(name, _)| *name == "place-before").map(|(_, value)| *value);
        let place = before.and_then(|value| {
            let place = self.added_place(menu, value);
            if place.is_none() {
                self.problem(line, "the row to place a new row before is not in the export; it comes last".to_owned());
            }
            place
        });
        let fields: Vec<(&str, &Value)> = fields.iter().copied().filter(|(name, _)| *name != "place-before").collect();
        self.note_fields(&fields, line);
        let mut row = SeedRow::new(RowOrigin::Added, line);
        fields.iter().for_each(|(name, value)| row.write(name, value));
        let Some(rows) = self.menus.get_mut(menu) else { return Ok(()) };
        rows.added.insert(place.unwrap_or(rows.added.len()), row);
        Ok(())
    }

    fn set(
        &mut self,
        menu: &MenuPath,
        selected: Option<&Value>,
        fields: &[(&str, &Value)],
        line: u32,
    ) -> Result<(), String> {
        let places = self.select_or_create(menu, selected, line)?;
        let size: usize = fields.iter().map(|(_, value)| value_size(value)).sum();
        self.charge(places.len().saturating_sub(1).saturating_mul(1 + size / 8))?;
        self.note_fields(fields, line);
        let Some(rows) = self.menus.get_mut(menu) else { return Ok(()) };
        for place in places {
            if let Some(row) = rows.get_mut(place) {
                fields.iter().for_each(|(name, value)| row.write(name, value));
            }
        }
        Ok(())
    }

    fn remove(&mut self, menu: &MenuPath, selected: &Value) -> Result<(), String> {
        let mut places = self.select(menu, &Selector::of(Some(selected)))?;
        if places.is_empty() {
            return Err("it removes no row of this export".to_owned());
        }
        places.sort_unstable();
        let own = places.iter().any(|place| matches!(place, Place::Own(_)));
        if let Some(rows) = self.menus.get_mut(menu) {
            retain_places(&mut rows.own, &places, Place::Own);
            retain_places(&mut rows.added, &places, Place::Added);
        }
        if own { Err("it removes a row that the device has by itself".to_owned()) } else { Ok(()) }
    }

    fn reorder(&mut self, menu: &MenuPath, from: &Value, to: &Value) -> Result<(), String> {
        let unclear = || "the rows to move are not in the export".to_owned();
        let from = self.added_place(menu, from).ok_or_else(unclear)?;
        let to = self.added_place(menu, to).ok_or_else(unclear)?;
        if let Some(rows) = self.menus.get_mut(menu) {
            // The console moves a row in front of the one that stands at the destination.
            let row = rows.added.remove(from);
            rows.added.insert(if from < to { to - 1 } else { to }, row);
        }
        Ok(())
    }

    /// Finds the one added row a value names.
    fn added_place(&mut self, menu: &MenuPath, value: &Value) -> Option<usize> {
        match self.select(menu, &Selector::of(Some(value))).ok()?.as_slice() {
            [Place::Added(index)] => Some(*index),
            _ => None,
        }
    }

    /// Finds rows without making new ones.
    fn select(&mut self, menu: &MenuPath, selector: &Selector) -> Result<Vec<Place>, String> {
        self.charge(self.menus.get(menu).map_or(0, |rows| rows.own.len() + rows.added.len()))?;
        let Some(rows) = self.menus.get(menu) else { return Ok(Vec::new()) };
        Ok(match selector {
            Selector::Unsupported => return Err("its rows are chosen by an expression".to_owned()),
            Selector::Single => rows.by_origin(&RowOrigin::Single).into_iter().collect(),
            Selector::Where(conditions) => rows.matching(conditions),
            Selector::Items(items) => {
                let mut places: Vec<Place> = items.iter().filter_map(|item| rows.item(menu, item)).collect();
                places.dedup();
                places
            }
        })
    }

    /// Finds rows and makes the rows that the device must have by itself.
    fn select_or_create(&mut self, menu: &MenuPath, selected: Option<&Value>, line: u32) -> Result<Vec<Place>, String> {
        let selector = Selector::of(selected);
        self.charge(self.menus.get(menu).map_or(0, |rows| rows.own.len()))?;
        match &selector {
            Selector::Single => Ok(vec![self.own_row(menu, RowOrigin::Single, line)]),
            Selector::Unsupported => Err("its rows are chosen by an expression".to_owned()),
            Selector::Items(items) => {
                let rows = self.menus.get(menu).map_or(0, |rows| rows.own.len() + rows.added.len() + 1);
                self.charge(items.len().saturating_mul(rows))?;
                Ok(items
                    .iter()
                    .map(|item| match self.menus.get(menu).and_then(|rows| rows.item(menu, item)) {
                        Some(place) => place,
                        None => self.own_row(menu, item_origin(item), line),
                    })
                    .collect())
            }
            Selector::Where(conditions) => {
                let identity = equalities(conditions)
                    .filter(|fields| !fields.is_empty() && fields.keys().all(|f| IDENTIFYING.contains(&f.as_str())));
                if let Some(fields) = &identity {
                    let origin = RowOrigin::Found(fields.clone());
                    if let Some(place) = self.menus.get(menu).and_then(|rows| rows.by_origin(&origin)) {
                        return Ok(vec![place]);
                    }
                }
                let found = self.select(menu, &selector)?;
                match identity {
                    _ if !found.is_empty() => Ok(found),
                    Some(fields) => Ok(vec![self.own_row(menu, RowOrigin::Found(fields), line)]),
                    None if conditions.is_empty() && OWN_ROWS.contains(&menu.as_str()) => {
                        Ok(vec![self.own_row(menu, RowOrigin::Found(BTreeMap::new()), line)])
                    }
                    None => Err("it finds no row of this export".to_owned()),
                }
            }
        }
    }

    /// Returns the row of the given origin, which appears when it was not mentioned before.
    fn own_row(&mut self, menu: &MenuPath, origin: RowOrigin, line: u32) -> Place {
        let rows = self.menus.entry(menu.clone()).or_default();
        if let Some(place) = rows.by_origin(&origin) {
            return place;
        }
        let mut row = SeedRow::new(origin, line);
        row.fields = implied_fields(menu, &row.origin);
        rows.own.push(row);
        Place::Own(rows.own.len() - 1)
    }

    /// Reports what a person should know about the fields of a command.
    fn note_fields(&mut self, fields: &[(&str, &Value)], line: u32) {
        let mut seen = BTreeSet::new();
        for (name, value) in fields {
            if !seen.insert(*name) {
                self.problem(line, format!("the field `{name}` is given twice; the last one counts"));
            }
            match value {
                Value::Expression(_) => {
                    self.problem(line, format!("the value of `{name}` is an expression, kept as it was written"));
                }
                Value::Flag if !KNOWN_FLAGS.contains(name) => {
                    self.problem(line, format!("the field `{name}` has no value"));
                }
                _ => {}
            }
        }
    }

    fn charge(&mut self, rows: usize) -> Result<(), String> {
        self.visited = self.visited.saturating_add(rows);
        if self.visited > ROWS_VISITED_MAX {
            return Err("too many commands that look through too many rows".to_owned());
        }
        Ok(())
    }
}

impl Rows {
    fn get_mut(&mut self, place: Place) -> Option<&mut SeedRow> {
        match place {
            Place::Own(index) => self.own.get_mut(index),
            Place::Added(index) => self.added.get_mut(index),
        }
    }

    fn places(&self) -> impl Iterator<Item = (Place, &SeedRow)> {
        let own = self.own.iter().enumerate().map(|(index, row)| (Place::Own(index), row));
        own.chain(self.added.iter().enumerate().map(|(index, row)| (Place::Added(index), row)))
    }

    fn by_origin(&self, origin: &RowOrigin) -> Option<Place> {
        self.own.iter().position(|row| row.origin == *origin).map(Place::Own)
    }

    fn matching(&self, conditions: &[Condition]) -> Vec<Place> {
        let holds = |row: &SeedRow| conditions.iter().all(|condition| condition.holds(&row.fields));
        self.places().filter(|(_, row)| holds(row)).map(|(place, _)| place).collect()
    }

    fn item(&self, menu: &MenuPath, item: &Item) -> Option<Place> {
        if let Some(place) = self.by_origin(&item_origin(item)) {
            return Some(place);
        }
        match item {
            // Numbers count the device's own rows first, and those the export does not list.
            Item::Number(number) => {
                let index = usize::try_from(*number).ok()?;
                (self.own.is_empty() && index < self.added.len()).then_some(Place::Added(index))
            }
            Item::Id(_) => None,
            Item::Name(name) => {
                let key = key_field(menu);
                let named = |row: &SeedRow| {
                    row.fields.get(key).is_some_and(|value| value == name) && !row.expressions.contains(key)
                };
                self.places().find(|(_, row)| named(row)).map(|(place, _)| place)
            }
        }
    }
}

fn item_origin(item: &Item) -> RowOrigin {
    match item {
        Item::Number(number) => RowOrigin::Number(*number),
        Item::Id(id) => RowOrigin::Id(id.clone()),
        Item::Name(name) => RowOrigin::Named(name.clone()),
    }
}

/// Returns the field that names the rows of a menu.
pub(super) fn key_field(menu: &MenuPath) -> &'static str {
    match menu.as_str() {
        "/queue/interface" | "/interface/bridge/port" | "/ip/dhcp-client" => "interface",
        _ => "name",
    }
}

/// Returns the fields a row has just because of the way the export names it.
pub(super) fn implied_fields(menu: &MenuPath, origin: &RowOrigin) -> BTreeMap<String, String> {
    match origin {
        RowOrigin::Found(fields) => {
            let mut fields = fields.clone();
            // A port is called by its default name until the export says otherwise.
            if let Some(name) = fields.get("default-name").cloned() {
                fields.entry("name".to_owned()).or_insert(name);
            }
            fields
        }
        RowOrigin::Named(name) => BTreeMap::from([(key_field(menu).to_owned(), name.clone())]),
        RowOrigin::Single | RowOrigin::Number(_) | RowOrigin::Id(_) | RowOrigin::Added => BTreeMap::new(),
    }
}

fn retain_places(rows: &mut Vec<SeedRow>, sorted: &[Place], place: fn(usize) -> Place) {
    let mut index = 0;
    rows.retain(|_| {
        index += 1;
        sorted.binary_search(&place(index - 1)).is_err()
    });
}

fn is_flag_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Word(text) | Value::Quoted(text) | Value::Expression(text) => text.len(),
        Value::Flag | Value::Unset => 0,
    }
}
