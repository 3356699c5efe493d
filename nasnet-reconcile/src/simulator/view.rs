//! How stored rows are printed: flags, fixed fields and hidden secrets.

use super::interfaces;
use super::names;
use super::spec::{self, Spec};
use super::store::{Origin, Store, StoredRow, id_text};
use crate::device::{RawFields, is_secret_name};

/// Whether the login may see secrets (S29).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrets {
    Shown,
    Hidden,
}

/// Prints a row of a list.
pub(crate) fn row(store: &Store, menu: &str, row: &StoredRow, secrets: Secrets) -> RawFields {
    let mut out = row.fields.clone();
    out.insert(".id".to_owned(), id_text(row.id));
    let dynamic = matches!(row.origin, Origin::Dynamic { .. });
    let spec = spec::of(menu);
    if spec.is_some() || dynamic {
        out.insert("dynamic".to_owned(), dynamic.to_string());
    }
    if let Some(spec) = spec {
        for (name, value) in spec.printed {
            out.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        if spec.prints_invalid {
            out.insert("invalid".to_owned(), is_invalid(store, spec, row).to_string());
        }
    }
    match menu {
        "/interface/list" => {
            out.insert("builtin".to_owned(), (row.origin == Origin::Builtin).to_string());
        }
        "/ip/address" => {
            let interface = row.field("interface").unwrap_or_default().to_owned();
            out.insert("actual-interface".to_owned(), interface);
        }
        "/ip/route" => {
            let active = !row.is_disabled();
            out.insert("active".to_owned(), active.to_string());
            out.insert("inactive".to_owned(), (!active).to_string());
            out.insert("static".to_owned(), (!dynamic).to_string());
        }
        "/user" => {
            out.remove("password");
        }
        _ => {}
    }
    if interfaces::type_of(menu).is_some() {
        out.insert("running".to_owned(), (!row.is_disabled()).to_string());
    }
    hide(&mut out, secrets);
    out
}

/// Prints the row of a menu of one.
pub(crate) fn singleton(fields: &RawFields, secrets: Secrets) -> RawFields {
    let mut out = fields.clone();
    hide(&mut out, secrets);
    out
}

fn hide(fields: &mut RawFields, secrets: Secrets) {
    if secrets == Secrets::Hidden {
        fields.retain(|name, _| !is_secret_name(name));
    }
}

fn is_invalid(store: &Store, spec: &Spec, row: &StoredRow) -> bool {
    spec.fields.iter().any(|field| {
        row.field(field.name).is_some_and(|value| !value.is_empty() && !names::resolves(store, field.kind, value))
    })
}
