//! One row change each way: create, change, remove, with images and undo.

use std::collections::BTreeSet;

use nasnet_state::diff::{self, FieldChange};
use nasnet_state::{FieldName, Fields, KindName, KindSchema};
use ulid::Ulid;

use crate::device::{MenuPath, RawFields};
use crate::kinds::Kinds;
use crate::observe::{MenuView, ObservedRow, image_of, natural_key, raw_secrets, settable, touched};
use crate::op::plan::RowChange;
use crate::op::row_key::{mark_comment, marker_of};
use crate::op::{Action, Direction, Intent, RowImage, RowKey, SecretSlot, Step, Touched, Wire};

/// Secret values to be put into the plan's vault, before the step has a number.
pub(crate) type SlotValues = Vec<(Direction, String, String)>;

/// A row change with the secrets it writes.
pub(crate) struct Drafted {
    pub(crate) change: RowChange,
    pub(crate) secrets: SlotValues,
    /// The place of a row that is removed from a list whose order counts.
    pub(crate) place: Option<usize>,
}

/// What a step is for.
pub(crate) struct Subject<'a> {
    pub(crate) uid: Ulid,
    pub(crate) kind: KindName,
    pub(crate) name: &'a str,
    pub(crate) why: String,
    pub(crate) intent: Intent,
    pub(crate) expected_version: Option<u64>,
    pub(crate) schema: &'static KindSchema,
    pub(crate) menu: MenuPath,
}

/// Why a row change cannot be made.
pub(crate) enum Refusal {
    /// A field can only change by making the row anew.
    Recreate(FieldName),
    /// The device hides a secret the undo would have to write, and nobody else knows it.
    Irreversible(String),
}

/// Drafts the creation of a row. `raw` holds the fields to write, secrets included.
pub(crate) fn add(
    kinds: &Kinds,
    subject: Subject<'_>,
    fields: &Fields,
    raw: &RawFields,
    place_before: Option<RowKey>,
) -> Drafted {
    let schema = subject.schema;
    let marker = marker_of(subject.uid);
    let secrets = raw_secrets(schema, raw);
    let names: Vec<String> = secrets.iter().map(|(name, _)| name.clone()).collect();
    let plain: RawFields =
        schema.print(fields).into_iter().filter(|(name, _)| !names.contains(name) && name != "comment").collect();
    let comment = fields.text("comment").unwrap_or_default();
    let mut forward = Wire { fields: plain.clone(), unset: Vec::new(), secrets: names.clone() };
    let mut asked = forward.clone();
    if !comment.is_empty() {
        asked.fields.insert("comment".to_owned(), comment.to_owned());
    }
    forward.fields.insert("comment".to_owned(), mark_comment(comment, &marker));
    let mut wanted: BTreeSet<FieldName> = fields.names().cloned().collect();
    if schema.field("disabled").is_some() {
        wanted.insert("disabled".into());
    }
    let post = touched(schema, fields, &wanted);
    let step = Step {
        key: RowKey {
            menu: subject.menu.clone(),
            marker: Some(marker),
            natural: natural_key(schema, fields).into_iter().collect(),
            handle: None,
        },
        action: Action::Add,
        pre: RowImage::Absent,
        post: RowImage::Present(post),
        asked,
        forward,
        place_before,
        ..blank(&subject, hidden_names(schema, fields))
    };
    let change = RowChange {
        step,
        provides_before: BTreeSet::new(),
        provides_after: kinds.provided(schema, fields),
        needs_before: BTreeSet::new(),
        needs_after: kinds.needed(fields),
    };
    let secrets = secrets.into_iter().map(|(name, value)| (Direction::Forward, name, value)).collect();
    Drafted { change, secrets, place: None }
}

/// Drafts a change of named fields of an existing row to the values they have in `wanted` (absent = not set).
///
/// `raw` holds the new values as they are written, secrets included; `known` are old secrets the device may hide.
pub(crate) fn set(
    kinds: &Kinds,
    subject: Subject<'_>,
    row: &ObservedRow,
    key: RowKey,
    names: &BTreeSet<FieldName>,
    wanted: &Fields,
    raw: &RawFields,
    known: &RawFields,
) -> Result<Drafted, Refusal> {
    let schema = subject.schema;
    let only = |fields: &Fields| -> Fields {
        let named = fields.iter().filter(|(name, _)| names.contains(*name));
        named.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let (before, after) = (only(&row.fields), only(wanted));
    let changes = changes_between(names, &before, &after);
    let back = diff::invert(&changes);
    let (ahead, undo) = (schema.print_changes(&before, &changes), schema.print_changes(&after, &back));
    if let Some(field) = ahead.recreate.first().or(undo.recreate.first()) {
        return Err(Refusal::Recreate(field.clone()));
    }
    let mut secrets: SlotValues = Vec::new();
    for name in ahead.secrets.keys() {
        let value = raw.get(name).or_else(|| known.get(name));
        let value = value.ok_or_else(|| Refusal::Irreversible(name.clone()))?;
        secrets.push((Direction::Forward, name.clone(), value.clone()));
    }
    // A secret the device hides is not in `undo.secrets`, since nothing was observed; it has to be known from elsewhere.
    let hidden_before = names.iter().filter(|name| row.hidden.contains(*name)).map(ToString::to_string);
    let undo_secrets: BTreeSet<String> = undo.secrets.keys().cloned().chain(hidden_before).collect();
    for name in &undo_secrets {
        let value = row.raw.get(name).filter(|value| !value.is_empty() && !value.bytes().all(|b| b == b'*'));
        let value = value.or_else(|| known.get(name)).ok_or_else(|| Refusal::Irreversible(name.clone()))?;
        secrets.push((Direction::Backward, name.clone(), value.clone()));
    }
    let mut forward = Wire { fields: ahead.set, unset: ahead.unset, secrets: ahead.secrets.keys().cloned().collect() };
    let device_name =
        |name: &FieldName| schema.field(name.as_str()).map_or(name.as_str(), |spec| spec.device).to_owned();
    let (given, taken): (Vec<&FieldName>, Vec<&FieldName>) =
        names.iter().partition(|name| wanted.contains(name.as_str()));
    let given: BTreeSet<String> = given.into_iter().map(device_name).collect();
    let mut asked = forward.clone();
    asked.fields.retain(|name, _| given.contains(name));
    asked.unset = taken.into_iter().map(device_name).collect();
    let mut backward = Wire { fields: undo.set, unset: undo.unset, secrets: undo_secrets.into_iter().collect() };
    backward.fields.retain(|name, _| !backward.secrets.contains(name));
    if let Some(marker) = &row.seen.marker {
        keep_marker(&mut forward, marker);
        keep_marker(&mut backward, marker);
    }
    let mut all_after = row.fields.clone();
    for name in names {
        match wanted.get(name.as_str()) {
            Some(value) => _ = all_after.insert(name.clone(), value.clone()),
            None => _ = all_after.remove(name.as_str()),
        }
    }
    let mut natural: Vec<_> = natural_key(schema, &row.fields).into_iter().collect();
    natural.extend(natural_key(schema, &all_after).filter(|key| !natural.contains(key)));
    let hidden = names.iter().filter(|name| is_sensitive(schema, name)).map(|name| name.to_string()).collect();
    let step = Step {
        key: RowKey { natural, ..key },
        action: Action::Set,
        pre: RowImage::Present(touched(schema, &row.fields, names)),
        post: RowImage::Present(touched(schema, wanted, names)),
        asked,
        forward,
        backward,
        ..blank(&subject, hidden)
    };
    let change = RowChange {
        step,
        provides_before: kinds.provided(schema, &row.fields),
        provides_after: kinds.provided(schema, &all_after),
        needs_before: kinds.needed(&row.fields),
        needs_after: kinds.needed(&all_after),
    };
    Ok(Drafted { change, secrets, place: None })
}

/// Drafts the removal of a row. `known` are secrets the device may hide, `marker_at` says which marker a row of the menu
/// has or would come back with.
pub(crate) fn remove(
    kinds: &Kinds,
    subject: Subject<'_>,
    view: &MenuView,
    at: usize,
    key: RowKey,
    known: &RawFields,
    marker_at: impl Fn(&ObservedRow) -> Option<String>,
) -> Result<Drafted, Refusal> {
    let schema = subject.schema;
    let row = &view.rows[at];
    let whole = settable(schema, &row.fields);
    let mut secrets: SlotValues = Vec::new();
    for (name, value) in raw_secrets(schema, &row.raw) {
        secrets.push((Direction::Backward, name, value));
    }
    for name in &row.hidden {
        let value = known.get(name.as_str()).ok_or_else(|| Refusal::Irreversible(name.to_string()))?;
        secrets.push((Direction::Backward, name.to_string(), value.clone()));
    }
    let names: Vec<String> = secrets.iter().map(|(_, name, _)| name.clone()).collect();
    let wanted = schema.intent_of(&whole);
    let mut backward = Wire { fields: schema.print(&wanted), unset: Vec::new(), secrets: names.clone() };
    backward.fields.retain(|name, _| !names.contains(name));
    // The row comes back with another handle, so it must be marked: without, nobody could tell that it is back, and a
    // lost reply would bring it back twice.
    let marker = row.seen.marker.clone().unwrap_or_else(|| marker_of(subject.uid));
    let comment = backward.fields.remove("comment").unwrap_or_default();
    backward.fields.insert("comment".to_owned(), mark_comment(&comment, &marker));
    let pre: Touched = image_of(schema, &whole)
        .into_iter()
        .filter(|(name, _)| schema.device_field(name).is_none_or(nasnet_state::FieldSpec::is_settable))
        .map(|(name, value)| (name, Some(value)))
        .collect();
    let neighbour = view.rows.get(at + 1).filter(|_| schema.ordered).map(|next| RowKey {
        menu: subject.menu.clone(),
        marker: marker_at(next),
        natural: natural_key(schema, &next.fields).into_iter().collect(),
        handle: next.seen.id.clone(),
    });
    let step = Step {
        key: RowKey { marker: Some(marker), ..key },
        action: Action::Remove,
        pre: RowImage::Present(pre),
        post: RowImage::Absent,
        backward,
        undo_place_before: neighbour,
        ..blank(&subject, names.into_iter().collect())
    };
    let change = RowChange {
        step,
        provides_before: kinds.provided(schema, &row.fields),
        provides_after: BTreeSet::new(),
        needs_before: kinds.needed(&row.fields),
        needs_after: BTreeSet::new(),
    };
    Ok(Drafted { change, secrets, place: schema.ordered.then_some(at) })
}

/// Puts the secrets of numbered steps into their slots.
pub(crate) fn slot(step: usize, secrets: &SlotValues) -> impl Iterator<Item = (SecretSlot, String)> + '_ {
    secrets.iter().map(move |(direction, field, value)| {
        (SecretSlot { step, direction: *direction, field: field.clone() }, value.clone())
    })
}

fn blank(subject: &Subject<'_>, hidden: BTreeSet<String>) -> Step {
    Step {
        index: 0,
        uid: subject.uid,
        kind: subject.kind.to_string(),
        name: subject.name.to_owned(),
        why: subject.why.clone(),
        key: RowKey { menu: subject.menu.clone(), marker: None, natural: Vec::new(), handle: None },
        action: Action::Set,
        intent: subject.intent,
        expected_version: subject.expected_version,
        pre: RowImage::Absent,
        post: RowImage::Absent,
        hidden,
        asked: Wire::default(),
        forward: Wire::default(),
        backward: Wire::default(),
        place_before: None,
        undo_place_before: None,
        requires: Vec::new(),
    }
}

/// Returns a change for every named field, also for those that already have the wanted value: the device is told again,
/// so that a value it hides or that another admin is just changing is certain afterwards.
fn changes_between(names: &BTreeSet<FieldName>, before: &Fields, after: &Fields) -> Vec<FieldChange> {
    let whole = |name: &FieldName| FieldChange {
        field: name.clone(),
        edit: diff::Edit::Replace {
            before: before.get(name.as_str()).cloned(),
            after: after.get(name.as_str()).cloned(),
        },
    };
    names.iter().map(whole).collect()
}

fn keep_marker(wire: &mut Wire, marker: &str) {
    if wire.unset.iter().any(|name| name == "comment") {
        wire.unset.retain(|name| name != "comment");
        wire.fields.insert("comment".to_owned(), marker.to_owned());
    } else if let Some(comment) = wire.fields.get_mut("comment") {
        *comment = mark_comment(comment, marker);
    }
}

fn hidden_names(schema: &KindSchema, fields: &Fields) -> BTreeSet<String> {
    fields.names().filter(|name| is_sensitive(schema, name)).map(ToString::to_string).collect()
}

fn is_sensitive(schema: &KindSchema, name: &FieldName) -> bool {
    let spec = schema.field(name.as_str());
    spec.map_or_else(|| nasnet_state::is_sensitive_name(name.as_str()), |spec| spec.sensitive)
}
