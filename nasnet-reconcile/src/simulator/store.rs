//! The rows of every menu in order, and the ids that name them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::interfaces;
use crate::device::RawFields;

/// Where a row comes from (S04).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// Someone added it.
    Static,
    /// It exists always and cannot be removed.
    Builtin,
    /// The router keeps it for another row, whose id this is.
    Dynamic {
        /// The row it follows from.
        from: u64,
    },
}

/// One stored row.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRow {
    pub(crate) id: u64,
    pub(crate) origin: Origin,
    pub(crate) fields: RawFields,
}

impl StoredRow {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.field("disabled") == Some("true")
    }
}

/// Prints an id (S03).
pub(crate) fn id_text(id: u64) -> String {
    format!("*{id:X}")
}

/// Reads an id; `None` when the text has not the form of one.
pub(crate) fn id_of(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('*')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// The menus of single interface types show rows of `/interface`, so they share its ids.
fn id_space(menu: &str) -> &str {
    if interfaces::type_of(menu).is_some() { "/interface" } else { menu }
}

/// Everything the router keeps.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Store {
    lists: BTreeMap<String, Vec<StoredRow>>,
    singletons: BTreeMap<String, RawFields>,
    next_ids: BTreeMap<String, u64>,
    /// Ids that rows of the router itself have, whatever was counted to.
    reserved_ids: BTreeMap<String, BTreeSet<u64>>,
    random_seed: u64,
    random_count: u64,
}

impl Store {
    pub(crate) fn new(random_seed: u64) -> Self {
        Self {
            lists: BTreeMap::new(),
            singletons: BTreeMap::new(),
            next_ids: BTreeMap::new(),
            reserved_ids: BTreeMap::new(),
            random_seed,
            random_count: 0,
        }
    }

    pub(crate) fn rows(&self, menu: &str) -> &[StoredRow] {
        self.lists.get(menu).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn rows_mut(&mut self, menu: &str) -> &mut Vec<StoredRow> {
        self.lists.entry(menu.to_owned()).or_default()
    }

    pub(crate) fn lists(&self) -> impl Iterator<Item = (&str, &[StoredRow])> {
        self.lists.iter().map(|(menu, rows)| (menu.as_str(), rows.as_slice()))
    }

    pub(crate) fn lists_mut(&mut self) -> impl Iterator<Item = (&str, &mut Vec<StoredRow>)> {
        self.lists.iter_mut().map(|(menu, rows)| (menu.as_str(), rows))
    }

    pub(crate) fn has_list(&self, menu: &str) -> bool {
        self.lists.contains_key(menu)
    }

    pub(crate) fn row(&self, menu: &str, id: u64) -> Option<&StoredRow> {
        self.rows(menu).iter().find(|row| row.id == id)
    }

    pub(crate) fn row_mut(&mut self, menu: &str, id: u64) -> Option<&mut StoredRow> {
        self.lists.get_mut(menu)?.iter_mut().find(|row| row.id == id)
    }

    pub(crate) fn singleton(&self, menu: &str) -> Option<&RawFields> {
        self.singletons.get(menu)
    }

    pub(crate) fn singleton_mut(&mut self, menu: &str) -> &mut RawFields {
        self.singletons.entry(menu.to_owned()).or_default()
    }

    /// Hands out an id of a menu; no id is handed out twice (S03).
    pub(crate) fn fresh_id(&mut self, menu: &str) -> u64 {
        let space = id_space(menu);
        let reserved = self.reserved_ids.get(space);
        let next = self.next_ids.entry(space.to_owned()).or_insert(1);
        while reserved.is_some_and(|ids| ids.contains(next)) {
            *next += 1;
        }
        let id = *next;
        *next += 1;
        id
    }

    /// Appends an empty row of the router itself with an id of its own, unless the id was handed out already.
    pub(crate) fn push_reserved(&mut self, menu: &str, id: u64) -> u64 {
        let space = id_space(menu);
        if self.next_ids.get(space).is_some_and(|next| id < *next) {
            return self.push(menu, Origin::Builtin, RawFields::new());
        }
        self.reserved_ids.entry(space.to_owned()).or_default().insert(id);
        self.rows_mut(menu).push(StoredRow { id, origin: Origin::Builtin, fields: RawFields::new() });
        id
    }

    /// Appends a row and returns its id.
    pub(crate) fn push(&mut self, menu: &str, origin: Origin, fields: RawFields) -> u64 {
        let id = self.fresh_id(menu);
        self.rows_mut(menu).push(StoredRow { id, origin, fields });
        id
    }

    /// Generates 32 bytes that depend on the seed and on how many were generated before.
    pub(crate) fn random(&mut self) -> [u8; 32] {
        self.random_count += 1;
        let mut hash = Sha256::new();
        hash.update(b"nasnet-simulator");
        hash.update(self.random_seed.to_be_bytes());
        hash.update(self.random_count.to_be_bytes());
        hash.finalize().into()
    }

    /// Generates a locally administered MAC address.
    pub(crate) fn random_mac(&mut self) -> String {
        let bytes = self.random();
        let tail: Vec<String> = bytes[..5].iter().map(|byte| format!("{byte:02X}")).collect();
        format!("02:{}", tail.join(":"))
    }
}
