//! What differs between two sets of fields, as data that can be applied, turned round and shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::schema::{DriftRule, KindSchema};
use crate::value::{FieldName, FieldValue, Fields};

/// One field that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Which field.
    pub field: FieldName,
    /// What happened to it.
    #[serde(flatten)]
    pub edit: Edit,
}

/// What happened to a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Edit {
    /// Some members of a set left, others came.
    Members {
        /// Members that are gone.
        removed: BTreeSet<FieldValue>,
        /// Members that are new.
        added: BTreeSet<FieldValue>,
    },
    /// The value as a whole; `None` stands for an absent field.
    Replace {
        /// The value before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<FieldValue>,
        /// The value after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<FieldValue>,
    },
}

/// A change that does not fit the fields it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the change of field {field} starts from another value")]
pub struct DoesNotApply {
    /// The field that holds something else than the change says.
    pub field: FieldName,
}

/// Returns what turns `before` into `after`, in the order of field names. It is empty exactly when they are equal.
pub fn diff(before: &Fields, after: &Fields) -> Vec<FieldChange> {
    let names: BTreeSet<&FieldName> = before.names().chain(after.names()).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let (old, new) = (before.get(name.as_str()), after.get(name.as_str()));
            (old != new).then(|| FieldChange { field: name.clone(), edit: edit(old, new) })
        })
        .collect()
}

fn edit(before: Option<&FieldValue>, after: Option<&FieldValue>) -> Edit {
    match (before, after) {
        (Some(FieldValue::Set(before)), Some(FieldValue::Set(after))) => Edit::Members {
            removed: before.difference(after).cloned().collect(),
            added: after.difference(before).cloned().collect(),
        },
        (before, after) => Edit::Replace { before: before.cloned(), after: after.cloned() },
    }
}

/// Returns `fields` with the changes made.
///
/// # Errors
/// [`DoesNotApply`] when a field is not what the change says it was; nothing is half done.
pub fn apply(fields: &Fields, changes: &[FieldChange]) -> Result<Fields, DoesNotApply> {
    let mut result = fields.clone();
    for change in changes {
        let name = change.field.as_str();
        let mismatch = || DoesNotApply { field: change.field.clone() };
        match &change.edit {
            Edit::Replace { before, after } => {
                if result.get(name) != before.as_ref() {
                    return Err(mismatch());
                }
                match after {
                    Some(value) => result.insert(change.field.clone(), value.clone()),
                    None => result.remove(name),
                };
            }
            Edit::Members { removed, added } => {
                let Some(FieldValue::Set(members)) = result.get(name) else { return Err(mismatch()) };
                if !removed.is_subset(members) || !added.is_disjoint(members) {
                    return Err(mismatch());
                }
                let members = members.difference(removed).chain(added).cloned().collect();
                result.insert(change.field.clone(), FieldValue::Set(members));
            }
        }
    }
    Ok(result)
}

/// Returns the changes that undo `changes`. Twice inverted is unchanged.
pub fn invert(changes: &[FieldChange]) -> Vec<FieldChange> {
    let inverted = |change: &FieldChange| FieldChange {
        field: change.field.clone(),
        edit: match &change.edit {
            Edit::Replace { before, after } => Edit::Replace { before: after.clone(), after: before.clone() },
            Edit::Members { removed, added } => Edit::Members { removed: added.clone(), added: removed.clone() },
        },
    };
    changes.iter().rev().map(inverted).collect()
}

/// How one field stands between what was applied, what is wanted and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldState {
    /// Which field.
    pub field: FieldName,
    /// The verdict.
    pub verdict: Verdict,
    /// What was confirmed last.
    pub base: Option<FieldValue>,
    /// What is wanted.
    pub desired: Option<FieldValue>,
    /// What is there.
    pub actual: Option<FieldValue>,
}

/// The verdict of a three-way comparison of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What is wanted is there.
    InSync,
    /// The device still has what was applied; the wish has moved on.
    PendingChange,
    /// The wish is what was applied; the device has something else.
    DeviceDrift,
    /// Both moved, to different values.
    Conflict,
    /// The device does not show the field, and nothing new is wanted.
    Unverifiable,
}

/// Compares wish and device field by field, over the fields somebody has wanted: those in `desired` and `base`.
///
/// A field that is absent stands for its default. Without a `base` nothing was applied yet, so every difference is a
/// pending change. `hidden` are fields the device has but does not show. Fields only the device sets, and fields whose
/// drift means nothing, are left out.
pub fn three_way(
    schema: &KindSchema,
    base: Option<&Fields>,
    desired: &Fields,
    actual: &Fields,
    hidden: &BTreeSet<FieldName>,
) -> Vec<FieldState> {
    let wanted: BTreeSet<&FieldName> = desired.names().chain(base.into_iter().flat_map(Fields::names)).collect();
    let defaults: BTreeMap<&str, FieldValue> =
        schema.fields.iter().filter_map(|spec| Some((spec.name, spec.default_value()?))).collect();
    let effective =
        |fields: &Fields, name: &FieldName| fields.get(name.as_str()).or_else(|| defaults.get(name.as_str())).cloned();
    wanted
        .into_iter()
        .filter(|name| {
            schema.field(name.as_str()).is_none_or(|spec| spec.is_settable() && spec.drift == DriftRule::Compare)
        })
        .map(|name| {
            let wish = effective(desired, name);
            let there = effective(actual, name);
            let applied = match base {
                Some(base) => effective(base, name),
                None => there.clone(),
            };
            let verdict = match (hidden.contains(name), base) {
                (true, Some(_)) if wish == applied => Verdict::Unverifiable,
                (true, _) => Verdict::PendingChange,
                (false, _) => verdict(&applied, &wish, &there),
            };
            let there = if hidden.contains(name) { None } else { there };
            FieldState { field: name.clone(), verdict, base: base.and(applied), desired: wish, actual: there }
        })
        .collect()
}

fn verdict<T: PartialEq>(base: &T, desired: &T, actual: &T) -> Verdict {
    if actual == desired {
        Verdict::InSync
    } else if actual == base {
        Verdict::PendingChange
    } else if desired == base {
        Verdict::DeviceDrift
    } else {
        Verdict::Conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(words: &[&str]) -> Fields {
        let members = words.iter().map(|word| FieldValue::Str((*word).to_owned())).collect();
        Fields::new().with("list", FieldValue::Set(members))
    }

    #[test]
    fn members_are_added_and_removed_one_by_one_and_only_where_they_fit() {
        let changes = diff(&members(&["a", "b"]), &members(&["b", "c"]));
        let [FieldChange { edit: Edit::Members { removed, added }, .. }] = &changes[..] else {
            panic!("a set was replaced: {changes:?}")
        };
        assert_eq!((removed.len(), added.len()), (1, 1));
        assert_eq!(apply(&members(&["a", "b", "x"]), &changes), Ok(members(&["b", "c", "x"])));
        let wrong = Err(DoesNotApply { field: "list".into() });
        assert_eq!(apply(&members(&["b"]), &changes), wrong, "what is to go is not there");
        assert_eq!(apply(&members(&["a", "c"]), &changes), wrong, "what is to come is there");
        assert_eq!(apply(&Fields::new().with("list", "a,b"), &changes), wrong, "the field holds no set");
    }
}
