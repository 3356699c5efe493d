//! Which row is which resource, when a router is imported again.

use std::collections::HashMap;

use nasnet_state::{Fields, KindSchema, Resource};

use crate::device::RowId;
use crate::observe::{ObservedRow, image_of, natural_key, settable};
use crate::op::{Image, RowKey};
use crate::resolve::row_key;

/// Fields of rows without a kind that only tell what the row is doing. They are observed, but no part of the wish.
const VOLATILE: [&str; 40] = [
    "active",
    "active-address",
    "active-mac-address",
    "actual-mtu",
    "bytes",
    "current-address",
    "current-tx-power",
    "dynamic",
    "expires-after",
    "fp-rx-byte",
    "fp-rx-packet",
    "fp-tx-byte",
    "fp-tx-packet",
    "hw-offload",
    "inactive",
    "invalid",
    "invalid-after",
    "last-link-down-time",
    "last-link-up-time",
    "last-seen",
    "link-downs",
    "next-run",
    "packets",
    "rate",
    "run-count",
    "running",
    "rx-byte",
    "rx-drop",
    "rx-error",
    "rx-packet",
    "slave",
    "status",
    "tx-byte",
    "tx-drop",
    "tx-error",
    "tx-packet",
    "tx-queue-drop",
    "uptime",
    "used",
    "last-started",
];

/// By what rows and resources are matched, in this order; each resource is matched once.
#[derive(Clone, Copy)]
enum Pass {
    Marker,
    NaturalKey,
    HandleAndContent,
    /// For rows that nothing tells apart: a router restored from an export numbers them anew.
    Content,
    /// For rows that nothing tells apart and whose content changed.
    Handle,
}

const PASSES: [Pass; 5] = [Pass::Marker, Pass::NaturalKey, Pass::HandleAndContent, Pass::Content, Pass::Handle];

/// What is compared in a pass; equal labels match.
#[derive(PartialEq, Eq, Hash)]
enum Label {
    Marker(String),
    Image(Image),
    Handle(RowId),
    Both(RowId, Image),
}

struct Candidate {
    marker: Option<String>,
    natural: Option<Image>,
    handle: Option<RowId>,
    content: Image,
}

impl Candidate {
    fn label(&self, pass: Pass, by_nature: bool) -> Option<Label> {
        match pass {
            Pass::Marker => self.marker.clone().map(Label::Marker),
            Pass::NaturalKey => self.natural.clone().map(Label::Image),
            Pass::HandleAndContent => Some(Label::Both(self.handle.clone()?, self.content.clone())),
            Pass::Content if !by_nature => Some(Label::Image(self.content.clone())),
            Pass::Handle if !by_nature => self.handle.clone().map(Label::Handle),
            Pass::Content | Pass::Handle => None,
        }
    }
}

/// Says for each row which of the resources it is.
pub(super) fn match_rows(schema: &'static KindSchema, owned: &[&Resource], rows: &[ObservedRow]) -> Vec<Option<usize>> {
    let owners: Vec<Option<Candidate>> = owned.iter().map(|resource| owner(schema, resource)).collect();
    let candidates: Vec<Candidate> = rows.iter().map(|row| candidate(schema, row)).collect();
    let by_nature = !schema.natural_key.is_empty();
    let mut matched: Vec<Option<usize>> = vec![None; rows.len()];
    let mut taken = vec![false; owned.len()];
    for pass in PASSES {
        let mut waiting: HashMap<Label, Vec<usize>> = HashMap::new();
        // Reversed, so that among equals the first resource is taken for the first row.
        for (at, owner) in owners.iter().enumerate().rev().filter(|(at, _)| !taken[*at]) {
            if let Some(label) = owner.as_ref().and_then(|owner| owner.label(pass, by_nature)) {
                waiting.entry(label).or_default().push(at);
            }
        }
        for (row, owner) in matched.iter_mut().enumerate().filter(|(_, owner)| owner.is_none()) {
            let label = candidates[row].label(pass, by_nature);
            if let Some(at) = label.and_then(|label| waiting.get_mut(&label)?.pop()) {
                taken[at] = true;
                *owner = Some(at);
            }
        }
    }
    matched
}

fn owner(schema: &KindSchema, resource: &Resource) -> Option<Candidate> {
    let RowKey { marker, mut natural, handle, .. } = row_key(schema, resource)?;
    let record = &resource.deployment.as_ref()?.current.as_ref()?.record;
    Some(Candidate { marker, natural: natural.pop(), handle, content: content(schema, &record.last_applied) })
}

fn candidate(schema: &KindSchema, row: &ObservedRow) -> Candidate {
    Candidate {
        marker: row.seen.marker.clone(),
        natural: natural_key(schema, &row.fields),
        handle: row.seen.id.clone(),
        content: content(schema, &row.fields),
    }
}

/// What a row holds besides what it is doing, in comparable form.
pub(super) fn content(schema: &KindSchema, fields: &Fields) -> Image {
    image_of(schema, &without_volatile(schema, settable(schema, fields)))
        .into_iter()
        .filter(|(name, _)| schema.device_field(name).is_none_or(nasnet_state::FieldSpec::is_settable))
        .collect()
}

/// Leaves out what a row without a kind is doing.
pub(super) fn without_volatile(schema: &KindSchema, mut fields: Fields) -> Fields {
    if schema.is_opaque() {
        fields.retain(|name, _| VOLATILE.iter().all(|volatile| name.as_str() != *volatile));
    }
    fields
}
