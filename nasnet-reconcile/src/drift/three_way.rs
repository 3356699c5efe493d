//! The comparison of one row, field by field.

use std::collections::BTreeSet;

use nasnet_state::diff::{self, FieldState, Verdict};
use nasnet_state::{DriftRule, FieldName, Fields, KindSchema};

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
    let mut states = diff::three_way(schema, Some(base), desired, actual, hidden);
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
