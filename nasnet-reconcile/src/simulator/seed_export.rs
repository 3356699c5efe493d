//! Seeding from a parsed `/export`.

use super::seed::{SeedMenu, SeedPlace, SeedReport, SeedRow};
use super::sim::Sim;
use crate::routeros::export::{RowOrigin, Seed};

impl Sim {
    /// Loads a parsed export; see [`Sim::seed`].
    pub fn seed_from_export(&mut self, export: &Seed) -> SeedReport {
        let menus: Vec<SeedMenu> = export
            .order
            .iter()
            .filter_map(|menu| Some((menu, export.menus.get(menu)?)))
            .map(|(menu, rows)| {
                let mut rows: Vec<SeedRow> = rows.iter().map(row).collect();
                make_one_shape(&mut rows);
                SeedMenu { menu: menu.clone(), rows }
            })
            .collect();
        self.seed(&menus)
    }
}

/// A menu is a list or holds one row. Where an export adds rows and also has settings without a row, as two exports of
/// different versions in one file do, the settings become a row of the list, so that neither hides the other.
fn make_one_shape(rows: &mut [SeedRow]) {
    if rows.iter().any(|row| row.place == SeedPlace::Added) {
        rows.iter_mut().filter(|row| row.place == SeedPlace::Single).for_each(|row| row.place = SeedPlace::Added);
    }
}

fn row(row: &crate::routeros::export::SeedRow) -> SeedRow {
    let place = match &row.origin {
        RowOrigin::Single => SeedPlace::Single,
        RowOrigin::Found(fields) => SeedPlace::Found(fields.clone()),
        RowOrigin::Number(number) => SeedPlace::Number(usize::try_from(*number).unwrap_or(usize::MAX)),
        RowOrigin::Id(id) => SeedPlace::Id(id.clone()),
        RowOrigin::Named(name) => SeedPlace::Named(name.clone()),
        RowOrigin::Added => SeedPlace::Added,
    };
    let mut fields = row.fields.clone();
    fields.extend(row.unset.iter().map(|name| (format!("!{name}"), String::new())));
    SeedRow { place, fields }
}
