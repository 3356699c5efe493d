//! Rows the router keeps for other rows: connected routes (S04).

use super::interfaces;
use super::store::{Origin, Store, StoredRow};
use super::value::{network_of, prefix};
use crate::device::RawFields;

const ROUTES: &str = "/ip/route";

/// Brings the dynamic rows in line with the rows they follow from.
pub(crate) fn refresh(store: &mut Store) {
    let wanted: Vec<(u64, RawFields)> = store
        .rows("/ip/address")
        .iter()
        .filter_map(|row| connected_route(store, row).map(|fields| (row.id, fields)))
        .collect();
    let source = |row: &StoredRow| match row.origin {
        Origin::Dynamic { from } => Some(from),
        Origin::Static | Origin::Builtin => None,
    };
    if store.has_list(ROUTES) {
        store.rows_mut(ROUTES).retain(|row| source(row).is_none_or(|from| wanted.iter().any(|(id, _)| *id == from)));
    }
    for (from, fields) in wanted {
        let existing = store.rows(ROUTES).iter().find(|row| source(row) == Some(from)).map(|row| row.id);
        match existing.and_then(|id| store.row_mut(ROUTES, id)) {
            Some(row) => row.fields = fields,
            None => {
                store.push(ROUTES, Origin::Dynamic { from }, fields);
            }
        }
    }
}

/// S04a: an enabled address on an enabled interface has a connected route.
fn connected_route(store: &Store, row: &StoredRow) -> Option<RawFields> {
    if row.is_disabled() {
        return None;
    }
    let (host, length) = prefix(row.field("address")?)?;
    let interface = row.field("interface")?;
    let (_, carrier) = interfaces::named(store, interface)?;
    if carrier.is_disabled() {
        return None;
    }
    let network = match row.field("network") {
        Some(network) if length == 32 => network.to_owned(),
        _ => network_of(host, length).to_string(),
    };
    let fields = [
        ("dst-address", format!("{network}/{length}")),
        ("gateway", interface.to_owned()),
        ("immediate-gw", interface.to_owned()),
        ("local-address", format!("{host}%{interface}")),
        ("distance", "0".to_owned()),
        ("scope", "10".to_owned()),
        ("target-scope", "5".to_owned()),
        ("routing-table", "main".to_owned()),
        ("suppress-hw-offload", "false".to_owned()),
        ("connect", "true".to_owned()),
        ("disabled", "false".to_owned()),
    ];
    Some(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
