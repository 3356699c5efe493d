//! From a change set to row changes: every resource is matched to its row, every value is parsed, every undo is drafted.

pub(crate) mod rows;

use std::collections::{BTreeMap, BTreeSet};

use nasnet_state::layer::configuration::Intent as WishIntent;
use nasnet_state::validate::finding::{Finding, Severity, codes};
use nasnet_state::validate::{Candidate, Request, Universe};
use nasnet_state::{FieldName, Fields, KindSchema, MENU_FIELD, Resource, Seal, SecretIntake, Timestamp};
use ulid::Ulid;

use crate::change::{Change, ChangeSet};
use crate::device::{MenuPath, RawFields};
use crate::error::Error;
use crate::kinds::Kinds;
use crate::observe::{MenuView, ObservedRow, natural_key};
use crate::op::plan::{Plan, PlanHead, RowChange};
use crate::op::row_key::marker_of;
use crate::op::{Intent, RowKey, Sight, Vault, plan};
use rows::{Drafted, Refusal, Subject};

/// The code of a finding about a row that is not where it should be.
const ROW_NOT_FOUND: &str = "cross.row-not-found";
/// The code of a finding about a row that is there already.
const ROW_EXISTS: &str = "cross.row-exists";
/// The code of a finding about a change that could not be taken back.
const IRREVERSIBLE: &str = "platform.irreversible";
/// The code of a finding about a field that can only change with its row.
const RECREATE: &str = "platform.recreate";
/// The code of a finding about a resource that does not exist.
const NO_RESOURCE: &str = "schema.no-such-resource";
/// The code of a finding about a uid that is in use, by a resource or what is left of one.
pub(crate) const UID_TAKEN: &str = "schema.uid-taken";
/// The code of a finding about a resource that must not be deleted.
const PROTECTED: &str = "semantic.protected";
/// The code of a finding about a version that moved on.
const CONFLICT: &str = "schema.version-conflict";

/// What is known of the router when a plan is made.
pub(crate) struct Known<'a> {
    pub(crate) kinds: &'a Kinds,
    /// The live resources by uid.
    pub(crate) resources: &'a BTreeMap<Ulid, Resource>,
    /// The menus that were read.
    pub(crate) menus: &'a BTreeMap<MenuPath, MenuView>,
    /// Secrets of resources, revealed for their undo: resource, field, value.
    pub(crate) secrets: &'a BTreeMap<Ulid, RawFields>,
}

/// A change set with its values parsed: what can be checked without the device.
pub(crate) struct Parsed {
    pub(crate) items: Vec<Item>,
}

/// One parsed change.
pub(crate) struct Item {
    pub(crate) uid: Ulid,
    pub(crate) schema: &'static KindSchema,
    pub(crate) menu: MenuPath,
    pub(crate) name: String,
    pub(crate) deed: Deed,
}

pub(crate) enum Deed {
    Create { fields: Fields, raw: RawFields, before: Option<Ulid> },
    Update { names: BTreeSet<FieldName>, values: Fields, raw: RawFields, version: u64, after: Fields },
    Delete { version: u64 },
}

/// Parses a change set against the stored resources. `fresh` makes the uid of a new resource.
///
/// # Errors
/// [`Error::Refused`] with every finding of the stages schema, syntax and dependency.
pub(crate) fn parse(
    kinds: &Kinds,
    seal: &dyn Seal,
    resources: &BTreeMap<Ulid, Resource>,
    set: &ChangeSet,
    now: Timestamp,
    mut fresh: impl FnMut() -> Ulid,
) -> Result<Parsed, Error> {
    let mut findings = Vec::new();
    let mut items = Vec::new();
    for change in &set.changes {
        match parse_one(kinds, seal, resources, change, &mut fresh, &mut findings)? {
            Some(item) => items.push(item),
            None => continue,
        }
    }
    validate(kinds, resources, &items, now, &mut findings);
    if findings.is_empty() { Ok(Parsed { items }) } else { Err(Error::Refused { findings }) }
}

fn parse_one(
    kinds: &Kinds,
    seal: &dyn Seal,
    resources: &BTreeMap<Ulid, Resource>,
    change: &Change,
    fresh: &mut impl FnMut() -> Ulid,
    findings: &mut Vec<Finding>,
) -> Result<Option<Item>, Error> {
    let mut refuse = |code: &'static str, path: String, message: String| {
        findings.push(Finding::new(code, Severity::Error, path, message));
    };
    match change {
        Change::Create { uid, kind, name, fields, before } => {
            let Some(schema) = kinds.schemas().kind(kind).filter(|schema| !schema.is_opaque()) else {
                refuse(codes::UNKNOWN_KIND, name.clone(), format!("kind {kind} cannot be created"));
                return Ok(None);
            };
            if uid.is_some_and(|uid| resources.contains_key(&uid)) {
                refuse(UID_TAKEN, name.clone(), "a resource has this uid".to_owned());
            }
            if resources.values().any(|other| other.kind == *kind && other.name == *name) {
                refuse(codes::NAME_TWICE, name.clone(), format!("a resource {kind} named {name:?} exists"));
            }
            let parsed = schema.parse(fields, &SecretIntake::compare(seal))?;
            Ok(Some(Item {
                uid: uid.unwrap_or_else(fresh),
                schema,
                menu: menu_of(schema, &parsed.fields)?,
                name: name.clone(),
                deed: Deed::Create { fields: parsed.fields, raw: fields.clone(), before: *before },
            }))
        }
        Change::Update { uid, set, unset, expected_version } => {
            let Some(resource) = resources.get(uid) else {
                refuse(NO_RESOURCE, uid.to_string(), "the resource does not exist".to_owned());
                return Ok(None);
            };
            let version = resource.versions.configuration;
            if expected_version.is_some_and(|expected| expected != version) {
                refuse(CONFLICT, resource.name.clone(), format!("the configuration is at version {version}"));
            }
            let schema = schema_of(kinds, resource)?;
            let parsed = schema.parse(set, &SecretIntake::compare(seal))?;
            let mut names: BTreeSet<FieldName> = parsed.fields.names().cloned().collect();
            // An empty value of a field that keeps none means the same as taking the field back.
            let emptied = set.keys().filter(|name| !parsed.fields.contains(name)).chain(unset);
            names.extend(emptied.map(|name| FieldName::from(name.as_str())));
            let mut after = resource.configuration.spec.clone();
            for name in &names {
                match parsed.fields.get(name.as_str()) {
                    Some(value) => _ = after.insert(name.clone(), value.clone()),
                    None => _ = after.remove(name.as_str()),
                }
            }
            Ok(Some(Item {
                uid: *uid,
                schema,
                menu: menu_of(schema, &resource.configuration.spec)?,
                name: resource.name.clone(),
                deed: Deed::Update { names, values: parsed.fields, raw: set.clone(), version, after },
            }))
        }
        Change::Delete { uid } => {
            let Some(resource) = resources.get(uid) else {
                refuse(NO_RESOURCE, uid.to_string(), "the resource does not exist".to_owned());
                return Ok(None);
            };
            let schema = schema_of(kinds, resource)?;
            if resource.configuration.settings.prevent_destroy {
                refuse(PROTECTED, resource.name.clone(), "the resource is protected from deletion".to_owned());
            }
            if schema.is_opaque() {
                let message = "nobody knows how a row of this menu could be brought back".to_owned();
                refuse(IRREVERSIBLE, resource.name.clone(), message);
                return Ok(None);
            }
            Ok(Some(Item {
                uid: *uid,
                schema,
                menu: menu_of(schema, &resource.configuration.spec)?,
                name: resource.name.clone(),
                deed: Deed::Delete { version: resource.versions.configuration },
            }))
        }
    }
}

/// Runs the stages of the resource model over the change; a finding about a field the change does not touch is not its
/// fault and does not stop it.
fn validate(
    kinds: &Kinds,
    resources: &BTreeMap<Ulid, Resource>,
    items: &[Item],
    now: Timestamp,
    findings: &mut Vec<Finding>,
) {
    let candidates: Vec<Candidate> = items.iter().map(|item| item.candidate(resources)).collect();
    let universe = universe(kinds, resources);
    let request = Request { schemas: kinds.schemas(), candidates: &candidates, universe: &universe };
    for (item, validation) in items.iter().zip(nasnet_state::validate::run(&request, now)) {
        let stages = validation.stages.into_iter().flat_map(|report| report.findings);
        let errors = stages.filter(|finding| finding.severity == Severity::Error);
        findings.extend(errors.filter(|finding| match &item.deed {
            Deed::Update { names, .. } => {
                let field = finding.path.strip_prefix(item.name.as_str()).and_then(|rest| rest.strip_prefix('.'));
                field.is_none_or(|field| names.contains(field))
            }
            _ => true,
        }));
    }
}

/// Collects the names that can be referred to.
fn universe(kinds: &Kinds, resources: &BTreeMap<Ulid, Resource>) -> Universe {
    let mut universe = Universe::new();
    for name in kinds.builtins() {
        if let Ok(space) = name.space.parse() {
            universe.provide(space, name.name.clone());
        }
    }
    for resource in resources.values() {
        let spec = &resource.configuration.spec;
        universe.add(kinds.schemas(), resource.uid, &resource.kind, &resource.name, spec);
        let opaque = kinds.schemas().kind(&resource.kind).filter(|schema| schema.is_opaque());
        for name in opaque.map(|schema| kinds.provided(schema, spec)).into_iter().flatten() {
            if let Ok(space) = name.space.parse() {
                universe.provide(space, name.name);
            }
        }
    }
    universe
}

impl Item {
    fn candidate(&self, resources: &BTreeMap<Ulid, Resource>) -> Candidate {
        let before = resources.get(&self.uid);
        let generation = before.map_or(1, |resource| resource.configuration.generation + 1);
        let (intent, spec) = match &self.deed {
            Deed::Create { fields, .. } => (WishIntent::Present, fields.clone()),
            Deed::Update { after, .. } => (WishIntent::Present, after.clone()),
            Deed::Delete { .. } => {
                let spec = before.map(|resource| resource.configuration.spec.clone());
                (WishIntent::Absent, spec.unwrap_or_default())
            }
        };
        Candidate { uid: self.uid, kind: self.schema.kind(), name: self.name.clone(), generation, intent, spec }
    }
}

/// Drafts the steps against the observed rows and orders them.
///
/// # Errors
/// [`Error::Refused`] for rows that are missing, doubled or in the way, and for changes without an undo; [`Error::Plan`].
pub(crate) fn plan(known: &Known<'_>, parsed: Parsed, head: PlanHead) -> Result<(Plan, Vault), Error> {
    let mut drafts = Vec::new();
    let mut findings = Vec::new();
    let owners = owners(known.resources);
    for item in parsed.items {
        match draft(known, &owners, &item, &head.reason) {
            Ok(drafted) => drafts.push(drafted),
            Err(finding) => findings.push(*finding),
        }
    }
    if !findings.is_empty() {
        return Err(Error::Refused { findings });
    }
    top_down(&mut drafts);
    assemble(head, drafts)
}

/// Sorts the removals of each list by the place of their rows. Undone in reverse, every row finds the one it stood
/// before in its place again.
fn top_down(drafts: &mut [Drafted]) {
    let mut lists: BTreeMap<MenuPath, Vec<usize>> = BTreeMap::new();
    for (at, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.place.is_some()) {
        lists.entry(draft.change.step.key.menu.clone()).or_default().push(at);
    }
    for slots in lists.into_values() {
        // Few enough for a simple insertion: a plan has at most a thousand steps.
        for end in 1..slots.len() {
            let mut at = end;
            while at > 0 && drafts[slots[at - 1]].place > drafts[slots[at]].place {
                drafts.swap(slots[at - 1], slots[at]);
                at -= 1;
            }
        }
    }
}

/// Who owns the rows of the device, by menu and handle.
type Owners = BTreeMap<(String, String), Ulid>;

fn owners(resources: &BTreeMap<Ulid, Resource>) -> Owners {
    let rows = resources.values().filter_map(|resource| {
        let row = resource.deployment.as_ref()?.current.as_ref()?.record.rows.first()?;
        Some(((row.menu.clone(), row.id.clone()?), resource.uid))
    });
    rows.collect()
}

/// Orders drafts into a plan and files their secrets under the numbers of their steps.
pub(crate) fn assemble(head: PlanHead, drafts: Vec<Drafted>) -> Result<(Plan, Vault), Error> {
    let mut secrets = BTreeMap::new();
    let mut changes: Vec<RowChange> = Vec::with_capacity(drafts.len());
    for draft in drafts {
        secrets.insert(draft.change.step.uid, draft.secrets);
        changes.push(draft.change);
    }
    let plan = plan::build(head, changes)?;
    let mut vault = Vault::default();
    for step in &plan.steps {
        let slots = secrets.get(&step.uid).map(|values| rows::slot(step.index, values)).into_iter().flatten();
        for (slot, value) in slots {
            vault.insert(slot, value);
        }
    }
    Ok((plan, vault))
}

fn draft(known: &Known<'_>, owners: &Owners, item: &Item, reason: &str) -> Result<Drafted, Box<Finding>> {
    let finding =
        |code: &'static str, message: String| Box::new(Finding::new(code, Severity::Error, item.name.clone(), message));
    let view = known
        .menus
        .get(&item.menu)
        .ok_or_else(|| finding(ROW_NOT_FOUND, format!("menu {} was not read", item.menu)))?;
    let (intent, expected_version) = match &item.deed {
        Deed::Create { .. } => (Intent::Create, None),
        Deed::Update { version, .. } => (Intent::Configure, Some(*version)),
        Deed::Delete { version } => (Intent::Delete, Some(*version)),
    };
    let subject = Subject {
        uid: item.uid,
        kind: item.schema.kind(),
        name: &item.name,
        why: reason.to_owned(),
        intent,
        expected_version,
        schema: item.schema,
        menu: item.menu.clone(),
    };
    let none = RawFields::new();
    let secrets = known.secrets.get(&item.uid).unwrap_or(&none);
    let refused = |refusal: Refusal| match refusal {
        Refusal::Recreate(field) => finding(RECREATE, format!("field {field} can only change with its row")),
        Refusal::Irreversible(field) => {
            finding(IRREVERSIBLE, format!("the device hides {field}, so the change could not be taken back"))
        }
    };
    match &item.deed {
        Deed::Create { fields, raw, before } => {
            if let Some(key) = natural_key(item.schema, fields) {
                let taken = view.rows.iter().any(|row| key.iter().all(|(name, v)| row.seen.image.get(name) == Some(v)));
                if taken {
                    let key: Vec<String> = key.values().cloned().collect();
                    let message = format!("a row {} exists in {}: import it first", key.join(" / "), item.menu);
                    return Err(finding(ROW_EXISTS, message));
                }
            }
            let place = match before {
                None => None,
                Some(uid) => {
                    let other = known.resources.get(uid).and_then(|resource| row_key(item.schema, resource));
                    let key = other.filter(|key| view.find(key).is_ok());
                    Some(key.ok_or_else(|| finding(ROW_NOT_FOUND, format!("no row of {uid} to place before")))?)
                }
            };
            Ok(rows::add(known.kinds, subject, fields, raw, place))
        }
        Deed::Update { names, values, raw, .. } => {
            let (key, at) = locate(known, item, view)?;
            rows::set(known.kinds, subject, &view.rows[at], key, names, values, raw, secrets).map_err(refused)
        }
        Deed::Delete { .. } => {
            let (key, at) = locate(known, item, view)?;
            let marker_at = |row: &ObservedRow| {
                let owner = || owners.get(&(item.menu.to_string(), row.seen.id.as_ref()?.to_string())).copied();
                row.seen.marker.clone().or_else(|| owner().map(marker_of))
            };
            rows::remove(known.kinds, subject, view, at, key, secrets, marker_at).map_err(refused)
        }
    }
}

fn locate(known: &Known<'_>, item: &Item, view: &MenuView) -> Result<(RowKey, usize), Box<Finding>> {
    let finding = |message: String| Box::new(Finding::new(ROW_NOT_FOUND, Severity::Error, item.name.clone(), message));
    let key = known.resources.get(&item.uid).and_then(|resource| row_key(item.schema, resource));
    let key = key.ok_or_else(|| finding("it was never confirmed on the device".to_owned()))?;
    match view.find(&key) {
        Ok(at) => Ok((key, at)),
        Err(Sight::Ambiguous { rows }) => Err(finding(format!("{rows} rows of {} answer to its key", item.menu))),
        Err(_) => Err(finding(format!("its row is not in {}: look at the drift first", item.menu))),
    }
}

/// Returns what identifies the row of a resource: what was recorded when the device confirmed it last, and the marker it
/// would carry. A row that was adopted has none until the undo of its removal brings it back with one.
pub(crate) fn row_key(schema: &KindSchema, resource: &Resource) -> Option<RowKey> {
    let record = &resource.deployment.as_ref()?.current.as_ref()?.record;
    let row = record.rows.first()?;
    Some(RowKey {
        menu: row.menu.parse().ok()?,
        marker: Some(row.marker.clone().unwrap_or_else(|| marker_of(resource.uid))),
        natural: natural_key(schema, &record.last_applied).into_iter().collect(),
        handle: row.id.clone().map(crate::device::RowId),
    })
}

/// Returns the schema of a stored resource.
pub(crate) fn schema_of(kinds: &Kinds, resource: &Resource) -> Result<&'static KindSchema, Error> {
    let known = kinds.schemas().kind(&resource.kind);
    known.ok_or_else(|| Error::corrupt("kind of a resource", format!("{} is not known", resource.kind)))
}

/// Returns the menu of a row: the kind's, or the one an opaque row carries itself.
pub(crate) fn menu_of(schema: &KindSchema, fields: &Fields) -> Result<MenuPath, Error> {
    let text = if schema.is_opaque() { fields.text(MENU_FIELD).unwrap_or_default() } else { schema.menu };
    text.parse().map_err(|error| Error::corrupt("menu of a resource", error))
}
