//! The verdict over one resource, and the report over a router.

use std::fmt;

use nasnet_state::canonical::StateHash;
use nasnet_state::diff::{FieldState, Verdict};
use nasnet_state::{FieldValue, KindName, Timestamp};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::device::{MenuPath, RowId};

/// How a resource stands to its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftClass {
    /// The row shows what was confirmed.
    InSync,
    /// As far as can be seen the row shows what was confirmed; some fields are hidden.
    Unverifiable,
    /// The wish moved on and was not applied yet. Not drift.
    PendingChange,
    /// Somebody changed the row on the device.
    Changed,
    /// The wish and the row moved apart.
    Conflict,
    /// The row is gone.
    RowMissing,
    /// Several rows answer to the resource's key.
    Ambiguous,
}

impl DriftClass {
    /// Judges the fields of a row that was found.
    pub fn of(fields: &[FieldState]) -> Self {
        let has = |verdict: Verdict| fields.iter().any(|field| field.verdict == verdict);
        if has(Verdict::Conflict) {
            Self::Conflict
        } else if has(Verdict::DeviceDrift) {
            Self::Changed
        } else if has(Verdict::PendingChange) {
            Self::PendingChange
        } else if has(Verdict::Unverifiable) {
            Self::Unverifiable
        } else {
            Self::InSync
        }
    }

    /// Returns whether the device differs from what was confirmed.
    pub fn is_drift(self) -> bool {
        matches!(self, Self::Changed | Self::Conflict | Self::RowMissing | Self::Ambiguous)
    }
}

/// One resource that is not plainly in sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceDrift {
    /// The resource.
    pub uid: Ulid,
    /// Its kind.
    pub kind: KindName,
    /// Its name.
    pub name: String,
    /// The menu of its row.
    pub menu: MenuPath,
    /// The row's handle when it was read; `None` if it is gone.
    pub row: Option<RowId>,
    /// The verdict.
    pub class: DriftClass,
    /// The fields that are not in sync, with what was confirmed, what is wanted and what is there.
    pub fields: Vec<FieldState>,
    /// Digest of what was confirmed.
    pub base_hash: StateHash,
    /// Digest of what is wanted.
    pub desired_hash: StateHash,
    /// Digest of what is there, over the same fields; `None` if the row is gone.
    pub actual_hash: Option<StateHash>,
}

/// A row of a managed menu that belongs to no resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraRow {
    /// Its menu.
    pub menu: MenuPath,
    /// Its handle.
    pub row: Option<RowId>,
    /// What people would call it.
    pub name: String,
}

/// What a pass over one router found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// The router, as its id is written.
    pub router: String,
    /// When, for people.
    pub detected_at: Timestamp,
    /// How many resources were compared.
    pub checked: usize,
    /// How many show what was confirmed.
    pub in_sync: usize,
    /// The others, one entry each.
    pub resources: Vec<ResourceDrift>,
    /// Rows nobody manages.
    pub extra: Vec<ExtraRow>,
    /// Menus that could not be read, with the reason: their resources were not compared.
    pub unreadable: Vec<(MenuPath, String)>,
}

impl DriftReport {
    /// Returns whether the device differs from what was confirmed, or holds rows nobody manages.
    pub fn has_drift(&self) -> bool {
        !self.extra.is_empty() || self.drifted().next().is_some()
    }

    /// Visits the resources whose rows differ from what was confirmed.
    pub fn drifted(&self) -> impl Iterator<Item = &ResourceDrift> {
        self.resources.iter().filter(|resource| resource.class.is_drift())
    }
}

/// Prints the report as people read it: a line a resource, a line a field.
impl fmt::Display for DriftReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} of {} resources in sync", self.router, self.in_sync, self.checked)?;
        for resource in &self.resources {
            writeln!(f, "  {} {:?} in {}: {:?}", resource.kind, resource.name, resource.menu, resource.class)?;
            for field in &resource.fields {
                let [base, desired, actual] = [&field.base, &field.desired, &field.actual].map(show);
                writeln!(
                    f,
                    "    {}: confirmed {base}, wanted {desired}, there {actual} ({:?})",
                    field.field, field.verdict
                )?;
            }
        }
        for row in &self.extra {
            writeln!(f, "  unmanaged row in {}: {}", row.menu, row.name)?;
        }
        for (menu, cause) in &self.unreadable {
            writeln!(f, "  {menu} could not be read: {cause}")?;
        }
        Ok(())
    }
}

fn show(value: &Option<FieldValue>) -> String {
    match value {
        None => "-".to_owned(),
        Some(FieldValue::Secret(_)) => "(secret)".to_owned(),
        Some(value) => match value.text() {
            Some(text) => format!("{text:?}"),
            None => serde_json::to_string(value).unwrap_or_else(|_| "?".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(verdict: Verdict) -> FieldState {
        FieldState { field: "mtu".into(), verdict, base: None, desired: None, actual: None }
    }

    #[test]
    fn the_worst_field_decides_and_a_pending_wish_is_not_drift() {
        use Verdict::{Conflict, DeviceDrift, InSync, PendingChange, Unverifiable};
        let class = |verdicts: &[Verdict]| DriftClass::of(&verdicts.iter().copied().map(state).collect::<Vec<_>>());
        assert_eq!(class(&[]), DriftClass::InSync);
        assert_eq!(class(&[InSync, Unverifiable]), DriftClass::Unverifiable);
        assert_eq!(class(&[PendingChange, Unverifiable]), DriftClass::PendingChange);
        assert_eq!(class(&[PendingChange, DeviceDrift]), DriftClass::Changed);
        assert_eq!(class(&[DeviceDrift, Conflict]), DriftClass::Conflict);
        assert!(!class(&[PendingChange]).is_drift() && !class(&[Unverifiable]).is_drift());
    }
}
