//! Rows of menus nobody has described: kept whole, as text.

use crate::kind::KindName;
use crate::schema::{KindSchema, Risk, UnknownFields};
use crate::value::Fields;

/// The kind of rows whose menu has no schema.
pub const OPAQUE_KIND: KindName = KindName::from_static("ros.opaque");

/// The field of an opaque resource that says which menu the row is from. No device field starts with a dot.
pub const MENU_FIELD: &str = ".menu";

static OPAQUE: KindSchema = KindSchema::new("ros.opaque", 1, &[]).risk(Risk::Low).unknown(UnknownFields::Intent);

impl KindSchema {
    /// Returns the schema of opaque rows: every field is text, and those whose names sound secret are sealed.
    pub fn opaque() -> &'static Self {
        &OPAQUE
    }

    /// Returns true for the schema of opaque rows.
    pub fn is_opaque(&self) -> bool {
        self.kind() == OPAQUE_KIND
    }
}

/// Proposes a name for an opaque row: the menu, and what people would call the row.
///
/// The name need not be unique; [`UniqueNames`](crate::UniqueNames) makes it so.
pub fn opaque_name(menu: &str, fields: &Fields) -> String {
    ["name", "list", "address", "interface", "comment"]
        .into_iter()
        .find_map(|field| fields.text(field).filter(|text| !text.is_empty()))
        .map_or_else(|| menu.to_owned(), |text| format!("{menu}:{text}"))
}
