//! From a printed row to values that can be compared.
//!
//! Everything the engine compares goes through here once: the marker is split from the comment, values become canonical,
//! secrets become keyed fingerprints, and fields the device leaves out stand for their defaults.

use std::collections::BTreeSet;

use nasnet_state::{
    Access, DriftRule, FieldName, FieldSpec, FieldValue, Fields, KindSchema, MENU_FIELD, Seal, SecretIntake,
};

use crate::device::{MenuPath, RawFields, Row};
use crate::error::Error;
use crate::op::row_key::{SeenRow, split_comment};
use crate::op::{Image, RowKey, Sight, Touched};

/// One row as observed. It holds secrets in clear as the device showed them, so it has no `Debug`.
#[derive(Clone)]
pub(crate) struct ObservedRow {
    /// Handle, marker and content in comparable form.
    pub(crate) seen: SeenRow,
    /// All values.
    pub(crate) fields: Fields,
    /// Secrets the device has and does not show.
    pub(crate) hidden: BTreeSet<FieldName>,
    /// Whether a protocol made the row, or it is always there: nobody can own it.
    pub(crate) unowned: bool,
    /// The fields as printed, without the marker.
    pub(crate) raw: RawFields,
}

impl ObservedRow {
    /// Reads a row. With `intake` for a resource the secrets are sealed for it, otherwise only fingerprinted.
    pub(crate) fn read(
        schema: &'static KindSchema,
        menu: &MenuPath,
        row: Row,
        intake: &SecretIntake<'_>,
    ) -> Result<Self, Error> {
        let mut raw = row.fields;
        let mut marker = None;
        if let Some(comment) = raw.remove("comment") {
            let (own, found) = split_comment(&comment);
            marker = found.map(str::to_owned);
            if !own.is_empty() {
                raw.insert("comment".to_owned(), own.to_owned());
            }
        }
        let flag = |name: &str| raw.get(name).is_some_and(|value| matches!(value.as_str(), "true" | "yes"));
        let unowned = flag("dynamic") || flag("builtin");
        if schema.is_opaque() {
            raw.insert(MENU_FIELD.to_owned(), menu.to_string());
        }
        let parsed = schema.parse(&raw, intake)?;
        let image = image_of(schema, &parsed.fields);
        raw.remove(MENU_FIELD);
        let seen = SeenRow { id: row.id, marker, image };
        Ok(Self { seen, fields: parsed.fields, hidden: parsed.hidden, unowned, raw })
    }
}

/// The rows of one menu.
pub(crate) struct MenuView {
    /// The kind of its rows.
    pub(crate) schema: &'static KindSchema,
    /// The rows in the device's order.
    pub(crate) rows: Vec<ObservedRow>,
}

impl MenuView {
    /// Returns the place of the one row a key names; `Err` says why there is none.
    pub(crate) fn find(&self, key: &RowKey) -> Result<usize, Sight> {
        key.locate(self.rows.iter().map(|row| &row.seen))
    }

    /// Returns what a key shows.
    pub(crate) fn sight(&self, key: &RowKey) -> Sight {
        match self.find(key) {
            Ok(at) => {
                let SeenRow { id, image, .. } = self.rows[at].seen.clone();
                Sight::Row { id, image }
            }
            Err(none) => none,
        }
    }
}

/// Reads all rows of a menu only to compare them.
pub(crate) fn read_rows(
    schema: &'static KindSchema,
    menu: &MenuPath,
    rows: Vec<Row>,
    seal: &dyn Seal,
) -> Result<Vec<ObservedRow>, Error> {
    let intake = SecretIntake::compare(seal);
    rows.into_iter().map(|row| ObservedRow::read(schema, menu, row, &intake)).collect()
}

/// Returns the comparable form of fields: device names, canonical spelling, defaults filled in, secrets as fingerprints.
/// Fields that only tell what the row is doing stay out.
pub(crate) fn image_of(schema: &KindSchema, fields: &Fields) -> Image {
    let described = schema.fields.iter().filter(|spec| is_compared(spec)).filter_map(|spec| {
        let value = fields.get(spec.name).cloned().or_else(|| spec.default_value())?;
        Some((spec.device.to_owned(), image_value(Some(spec), &value)))
    });
    let mut image: Image = described.collect();
    if schema.is_opaque() {
        let rest = fields.iter().filter(|(name, _)| name.as_str() != MENU_FIELD);
        image.extend(rest.map(|(name, value)| (name.to_string(), image_value(None, value))));
    }
    image
}

fn is_compared(spec: &FieldSpec) -> bool {
    !(spec.access == Access::ReadOnly && spec.drift == DriftRule::Ignore)
}

/// Returns one value in comparable form.
pub(crate) fn image_value(spec: Option<&FieldSpec>, value: &FieldValue) -> String {
    match (value, spec) {
        (FieldValue::Secret(secret), _) => format!("hmac:{}", secret.fingerprint),
        (value, Some(spec)) => spec.print(value),
        (value, None) => value.text().map_or_else(String::new, str::to_owned),
    }
}

/// Returns the touched form of named fields: absent ones are expected to be absent, or at their default.
pub(crate) fn touched<'a>(
    schema: &KindSchema,
    fields: &Fields,
    names: impl IntoIterator<Item = &'a FieldName>,
) -> Touched {
    let names = names.into_iter().map(|name| {
        let spec = schema.field(name.as_str());
        let value = fields.get(name.as_str()).cloned().or_else(|| spec.and_then(FieldSpec::default_value));
        let device = spec.map_or_else(|| name.to_string(), |spec| spec.device.to_owned());
        (device, value.map(|value| image_value(spec, &value)))
    });
    names.collect()
}

/// Returns the part of an observation that can be written: what a removal must be able to bring back.
pub(crate) fn settable(schema: &KindSchema, fields: &Fields) -> Fields {
    let settable = fields.iter().filter(|(name, _)| match schema.field(name.as_str()) {
        Some(spec) => spec.is_settable(),
        None => schema.is_opaque() && name.as_str() != MENU_FIELD,
    });
    settable.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns what the device made of its own accord: read-only fields that do not change by themselves, and generated ones
/// that nobody had asked for.
pub(crate) fn generated(schema: &KindSchema, observed: &Fields, asked: &Fields) -> Fields {
    let made = observed.iter().filter(|(name, _)| {
        schema.field(name.as_str()).is_some_and(|spec| match spec.access {
            Access::ReadOnly => spec.drift == DriftRule::Compare,
            Access::Generated => !asked.contains(name.as_str()),
            _ => false,
        })
    });
    made.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns the natural key of fields in comparable form; `None` if the kind has none or a part is missing.
pub(crate) fn natural_key(schema: &KindSchema, fields: &Fields) -> Option<Image> {
    if schema.natural_key.is_empty() {
        return None;
    }
    let parts = schema.natural_key.iter().map(|name| {
        let spec = schema.field(name)?;
        let value = fields.get(name).cloned().or_else(|| spec.default_value())?;
        Some((spec.device.to_owned(), image_value(Some(spec), &value)))
    });
    parts.collect()
}

/// Returns the raw secrets of a row by device name, to be put into a vault.
pub(crate) fn raw_secrets(schema: &KindSchema, raw: &RawFields) -> Vec<(String, String)> {
    let shown = raw.iter().filter(|(name, value)| {
        let sensitive =
            schema.device_field(name).map_or_else(|| nasnet_state::is_sensitive_name(name), |spec| spec.sensitive);
        sensitive && !value.is_empty() && !value.bytes().all(|b| b == b'*')
    });
    shown.map(|(name, value)| (name.clone(), value.clone())).collect()
}
