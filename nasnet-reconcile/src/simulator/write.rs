//! The rules of adding, changing, removing and moving rows. Everything is checked before anything changes.

use super::derive;
use super::generate;
use super::interfaces;
use super::names;
use super::profile::{DynamicEdit, SimProfile};
use super::refusal::Refusal;
use super::spec::{self, Need, Rows, Spec};
use super::store::{Origin, Store, id_of, id_text};
use super::value::{Type, boolean, canonical};
use crate::device::RawFields;

/// What to do with a value the router would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Refuse the write.
    Strict,
    /// Keep the value as it is and report it: a real export may refer to what it does not print.
    Lenient,
}

/// Fields after a check, with what was wrong with them.
pub(crate) struct Checked {
    pub(crate) fields: RawFields,
    pub(crate) problems: Vec<Refusal>,
}

/// Applies arguments to a row's fields and checks the result's form (S22, S23).
pub(crate) fn apply(
    store: &Store,
    spec: Option<&Spec>,
    current: RawFields,
    arguments: &RawFields,
    check: Check,
) -> Result<Checked, Refusal> {
    let mut out = Checked { fields: current, problems: Vec::new() };
    for (name, value) in arguments {
        // `!field` clears a field, whatever its value (S23b).
        let (name, value) = match name.strip_prefix('!') {
            Some(name) if spec.is_none() => {
                out.fields.remove(name);
                continue;
            }
            Some(name) => (name, ""),
            None => (name.as_str(), value.as_str()),
        };
        if let Err(refusal) = apply_one(store, spec, &mut out.fields, name, value) {
            if check == Check::Strict {
                return Err(refusal);
            }
            out.problems.push(refusal);
            out.fields.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(out)
}

fn apply_one(
    store: &Store,
    spec: Option<&Spec>,
    fields: &mut RawFields,
    name: &str,
    value: &str,
) -> Result<(), Refusal> {
    let Some(spec) = spec else { return apply_opaque(fields, name, value) };
    let kind = spec.kind_of(name).ok_or_else(|| Refusal::unknown_parameter(name))?;
    if let Type::Flag = kind {
        match boolean(value) {
            Some(false) => fields.remove(name),
            _ => fields.insert(name.to_owned(), String::new()),
        };
        return Ok(());
    }
    if value.is_empty() {
        let field = spec.field(name);
        if field.is_some_and(|field| field.need == Need::Required) {
            return Err(Refusal::invalid_value(name));
        }
        match field.and_then(|field| field.default) {
            Some(default) => fields.insert(name.to_owned(), default.to_owned()),
            None => fields.remove(name),
        };
        return Ok(());
    }
    let printed = canonical(kind, value).ok_or_else(|| match kind {
        Type::OneOf(_) => Refusal::no_match(name),
        _ => Refusal::invalid_value(name),
    })?;
    // The id of a removed row stands where its name stood, and may be written back unchanged.
    let unchanged = fields.get(name) == Some(&printed);
    if !unchanged && !names::resolves(store, kind, &printed) {
        return Err(Refusal::no_match(name));
    }
    fields.insert(name.to_owned(), printed);
    Ok(())
}

/// A menu without a table takes everything as it comes; only the flag all menus share is a truth value.
fn apply_opaque(fields: &mut RawFields, name: &str, value: &str) -> Result<(), Refusal> {
    let value = match (name, value) {
        ("comment", "") => {
            fields.remove(name);
            return Ok(());
        }
        ("disabled", value) => boolean(value).ok_or_else(|| Refusal::invalid_value(name))?.to_string(),
        (_, value) => value.to_owned(),
    };
    fields.insert(name.to_owned(), value);
    Ok(())
}

fn fill_defaults(spec: &Spec, fields: &mut RawFields) {
    for field in spec.fields {
        if let Some(default) = field.default {
            fields.entry(field.name.to_owned()).or_insert_with(|| default.to_owned());
        }
    }
}

fn check_required(spec: &Spec, fields: &RawFields) -> Result<(), Refusal> {
    let missing = |name: &str| fields.get(name).is_none_or(String::is_empty);
    match spec.fields.iter().find(|field| field.need == Need::Required && missing(field.name)) {
        Some(field) => Err(Refusal::missing_value(field.name)),
        None => Ok(()),
    }
}

/// S22a: one text for every type of interface.
pub(crate) const SAME_INTERFACE_NAME: &str = "already have interface with such name";

/// S22a: refuses fields that another row already has.
fn check_unique(store: &Store, menu: &str, own: Option<u64>, fields: &RawFields) -> Result<(), Refusal> {
    let own_row = |id: u64| own == Some(id);
    if interfaces::type_of(menu).is_some() {
        let name = fields.get("name").map(String::as_str).unwrap_or_default();
        if interfaces::all(store).any(|(_, row)| !own_row(row.id) && row.field("name") == Some(name)) {
            return Err(Refusal::failure(SAME_INTERFACE_NAME));
        }
    }
    let Some(spec) = spec::of(menu) else { return Ok(()) };
    for unique in spec.unique {
        let same = |row: &super::store::StoredRow| {
            unique.fields.iter().all(|name| fields.contains_key(*name) && row.fields.get(*name) == fields.get(*name))
        };
        if store.rows(menu).iter().any(|row| !own_row(row.id) && same(row)) {
            return Err(Refusal::failure(unique.text));
        }
    }
    Ok(())
}

/// Finds the position a `place-before` or `destination` names.
fn position(store: &Store, menu: &str, before: &str) -> Result<usize, Refusal> {
    let id = id_of(before).ok_or_else(|| Refusal::no_match("place-before"))?;
    store.rows(menu).iter().position(|row| row.id == id).ok_or_else(|| Refusal::failure("no such item"))
}

/// Adds a row and returns its id (S22).
pub(crate) fn add(store: &mut Store, menu: &str, mut arguments: RawFields) -> Result<u64, Refusal> {
    if spec::rows_of(menu) == Rows::Fixed {
        return Err(Refusal::identifier());
    }
    let spec = spec::of(menu);
    let before = match arguments.remove("place-before") {
        Some(_) if !spec::is_ordered(menu) => return Err(Refusal::unknown_parameter("place-before")),
        Some(before) => Some(position(store, menu, &before)?),
        None => None,
    };
    let mut fields = apply(store, spec, RawFields::new(), &arguments, Check::Strict)?.fields;
    if let Some(spec) = spec {
        fill_defaults(spec, &mut fields);
    }
    generate::complete(store, menu, &mut fields, Check::Strict)?;
    if let Some(spec) = spec {
        check_required(spec, &fields)?;
    }
    check_unique(store, menu, None, &fields)?;
    let id = store.push(menu, Origin::Static, fields);
    if let Some(before) = before {
        let rows = store.rows_mut(menu);
        rows[before..].rotate_right(1);
    }
    derive::refresh(store);
    Ok(id)
}

/// Loads a row as an export has it: nothing is refused, everything unusual but uniqueness is reported (S50).
pub(crate) fn load(
    store: &mut Store,
    menu: &str,
    existing: Option<u64>,
    origin: Origin,
    arguments: &RawFields,
) -> (u64, Vec<Refusal>) {
    let spec = spec::of(menu);
    let current = existing.and_then(|id| store.row(menu, id)).map(|row| row.fields.clone()).unwrap_or_default();
    let Checked { mut fields, mut problems } = apply(store, spec, current, arguments, Check::Lenient)
        // Lenient checks report instead of failing; this keeps the row should they ever fail.
        .unwrap_or_else(|refusal| Checked { fields: arguments.clone(), problems: vec![refusal] });
    if let Some(spec) = spec {
        fill_defaults(spec, &mut fields);
    }
    problems.extend(generate::complete(store, menu, &mut fields, Check::Lenient).err());
    if let Some(spec) = spec {
        problems.extend(check_required(spec, &fields).err());
    }
    let id = match existing.and_then(|id| store.row_mut(menu, id)) {
        Some(row) => {
            row.fields = fields;
            row.id
        }
        None => store.push(menu, origin, fields),
    };
    (id, problems)
}

/// Changes a row (S23).
pub(crate) fn set(
    store: &mut Store,
    profile: &SimProfile,
    menu: &str,
    id: u64,
    arguments: &RawFields,
) -> Result<(), Refusal> {
    let row = store.row(menu, id).ok_or_else(Refusal::not_found)?;
    if let Origin::Dynamic { .. } = row.origin {
        return Err(match profile.dynamic_edit {
            DynamicEdit::Refused => Refusal::failure("can not change dynamic row"),
            DynamicEdit::NotFound => Refusal::not_found(),
        });
    }
    let before = row.fields.clone();
    let spec = spec::of(menu);
    let mut fields = apply(store, spec, before.clone(), arguments, Check::Strict)?.fields;
    generate::forget(menu, &mut fields, arguments);
    generate::complete(store, menu, &mut fields, Check::Strict)?;
    if let Some(spec) = spec {
        check_required(spec, &fields)?;
    }
    check_unique(store, menu, Some(id), &fields)?;
    let renamed = match (before.get("name"), fields.get("name")) {
        (Some(old), Some(new)) if old != new => Some((old.clone(), new.clone())),
        _ => None,
    };
    if let Some(row) = store.row_mut(menu, id) {
        row.fields = fields;
    }
    if let Some((old, new)) = renamed {
        names::rename(store, menu, &old, &new);
    }
    derive::refresh(store);
    Ok(())
}

/// Changes a menu of one row (S06).
pub(crate) fn set_singleton(store: &mut Store, menu: &str, arguments: &RawFields) -> Result<(), Refusal> {
    let current = store.singleton(menu).cloned().unwrap_or_default();
    let fields = apply(store, None, current, arguments, Check::Strict)?.fields;
    *store.singleton_mut(menu) = fields;
    Ok(())
}

/// Removes a row (S24).
pub(crate) fn remove(store: &mut Store, menu: &str, id: u64) -> Result<(), Refusal> {
    if spec::rows_of(menu) == Rows::Fixed {
        return Err(Refusal::no_command(406, "remove"));
    }
    let row = store.row(menu, id).ok_or_else(Refusal::not_found)?;
    match row.origin {
        Origin::Dynamic { .. } => return Err(Refusal::failure("can not remove dynamic row")),
        Origin::Builtin => return Err(Refusal::failure("can not remove builtin row")),
        Origin::Static => {}
    }
    let name = row.field("name").map(str::to_owned);
    store.rows_mut(menu).retain(|row| row.id != id);
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        names::dangle(store, menu, &name, id);
    }
    derive::refresh(store);
    Ok(())
}

/// Moves rows in front of another, or to the end (S26).
pub(crate) fn move_rows(store: &mut Store, menu: &str, ids: &[u64], before: Option<&str>) -> Result<(), Refusal> {
    if !spec::is_ordered(menu) {
        return Err(Refusal::no_command(400, "move"));
    }
    if let Some(unknown) = ids.iter().find(|id| store.row(menu, **id).is_none()) {
        return Err(Refusal::failure(&format!("no such item ({})", id_text(*unknown))));
    }
    let anchor = match before {
        Some(before) => {
            Some(id_of(before).filter(|id| store.row(menu, *id).is_some()).ok_or_else(Refusal::identifier)?)
        }
        None => None,
    };
    if anchor.is_some_and(|anchor| ids.contains(&anchor)) {
        return Err(Refusal::failure("can not move a row before itself"));
    }
    let rows = store.rows_mut(menu);
    let (mut moved, kept): (Vec<_>, Vec<_>) = rows.drain(..).partition(|row| ids.contains(&row.id));
    moved.sort_by_key(|row| ids.iter().position(|id| *id == row.id));
    *rows = kept;
    let at = anchor.and_then(|anchor| rows.iter().position(|row| row.id == anchor)).unwrap_or(rows.len());
    rows.splice(at..at, moved);
    Ok(())
}
