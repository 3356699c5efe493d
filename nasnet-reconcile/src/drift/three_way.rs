//! The comparison of one row, field by field.

use std::collections::BTreeSet;

use nasnet_state::diff::{self, FieldState, Verdict};
use nasnet_state::{Access, DriftRule, FieldName, Fields, KindSchema};

/// Compares what was confirmed, what is wanted and what is there.
///
/// Besides the fields somebody wanted, this covers settable fields that nobody had and that are there now: a rule somebody
/// switched off differs although no one ever asked for it to be on. Fields of a menu without a description all count.
pub fn compare(
    schema: &KindSchema,
    base: &Fields,
    desired: &Fields,
    actual: &Fields,
    hidden: &BTreeSet<FieldName>,
) -> Vec<FieldState> {
    // What the device made because nobody asked for a value is as good as wanted once it was confirmed.
    let mut desired = desired.clone();
    for (name, value) in base.iter().filter(|(name, _)| is_generated(schema, name)) {
        if !desired.contains(name.as_str()) {
            desired.insert(name.clone(), value.clone());
        }
    }
    let mut states = diff::three_way(schema, Some(base), &desired, actual, hidden);
    for (name, value) in actual.iter() {
        if base.contains(name.as_str()) || desired.contains(name.as_str()) {
            continue;
        }
        let compared = match schema.field(name.as_str()) {
            Some(spec) => spec.is_settable() && spec.drift == DriftRule::Compare,
            None => schema.is_opaque(),
        };
        let default = schema.field(name.as_str()).and_then(nasnet_state::FieldSpec::default_value);
        if compared && default.as_ref() != Some(value) {
            states.push(FieldState {
                field: name.clone(),
                verdict: Verdict::DeviceDrift,
                base: default.clone(),
                desired: default,
                actual: Some(value.clone()),
            });
        }
    }
    states
}

fn is_generated(schema: &KindSchema, name: &FieldName) -> bool {
    schema.field(name.as_str()).is_some_and(|spec| spec.access == Access::Generated)
}

#[cfg(test)]
mod tests {
    use nasnet_state::{FieldSpec, FieldType};

    use super::*;

    static RULE: KindSchema = KindSchema::new(
        "test.rule",
        1,
        &[
            FieldSpec::new("name", FieldType::Str).required(),
            FieldSpec::new("disabled", FieldType::Bool).default("no"),
            FieldSpec::new("comment", FieldType::Str),
            FieldSpec::new("port", FieldType::Int { min: 0, max: 65_535 }).generated(),
            FieldSpec::new("packets", FieldType::Str).read_only(),
        ],
    );

    fn verdicts(base: Fields, desired: Fields, actual: Fields) -> Vec<(String, Verdict)> {
        let states = compare(&RULE, &base, &desired, &actual, &BTreeSet::new());
        let differing = states.into_iter().filter(|state| state.verdict != Verdict::InSync);
        differing.map(|state| (state.field.to_string(), state.verdict)).collect()
    }

    #[test]
    fn what_nobody_asked_for_is_drift_when_it_appears() {
        let known = Fields::new().with("name", "a");
        let there = known.clone().with("disabled", true).with("packets", "7");
        assert_eq!(verdicts(known.clone(), known.clone(), there), [("disabled".to_owned(), Verdict::DeviceDrift)]);
        let at_default = known.clone().with("disabled", false);
        assert_eq!(verdicts(known.clone(), known, at_default), []);
    }

    #[test]
    fn what_the_device_made_is_neither_drift_nor_a_pending_wish_until_it_changes() {
        let wish = Fields::new().with("name", "a");
        let made = wish.clone().with("port", 51_820);
        assert_eq!(verdicts(made.clone(), wish.clone(), made.clone()), []);
        let changed = wish.clone().with("port", 1);
        assert_eq!(verdicts(made, wish, changed), [("port".to_owned(), Verdict::DeviceDrift)]);
    }
}
