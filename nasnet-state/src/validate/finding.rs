//! One thing a stage has to say.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Can be applied, but is probably not meant.
    Warning,
    /// Cannot be applied.
    Error,
}

/// One thing a stage has to say. It never quotes a sensitive value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Which resource, then which field: `wg0.listen-port`; only the field where there is one row.
    pub path: String,
    /// A stable name of what is wrong; see [`codes`].
    pub code: Cow<'static, str>,
    /// How much it weighs.
    pub severity: Severity,
    /// What is wrong, for people.
    pub message: String,
    /// What was probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl Finding {
    /// Makes a finding without a suggestion.
    pub fn new(code: &'static str, severity: Severity, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), code: Cow::Borrowed(code), severity, message: message.into(), suggestion: None }
    }

    /// Adds what was probably meant, if anything.
    #[must_use]
    pub fn suggest(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

/// The stable names of what can be wrong.
pub mod codes {
    /// The kind is not known.
    pub const UNKNOWN_KIND: &str = "schema.unknown-kind";
    /// The kind has no such field.
    pub const UNKNOWN_FIELD: &str = "schema.unknown-field";
    /// A required field is absent.
    pub const MISSING_FIELD: &str = "schema.missing-field";
    /// Only the device sets this field.
    pub const READ_ONLY_FIELD: &str = "schema.read-only-field";
    /// The value has another type than the field.
    pub const WRONG_TYPE: &str = "schema.wrong-type";
    /// A sensitive field holds text in clear.
    pub const UNSEALED_SECRET: &str = "schema.unsealed-secret";
    /// The text is not a value of the field's type.
    pub const NOT_UNDERSTOOD: &str = "syntax.not-understood";
    /// The device will show the value in another spelling than it was typed in.
    pub const RESPELLED: &str = "syntax.respelled";
    /// The named resource does not exist.
    pub const UNRESOLVED_REFERENCE: &str = "dependency.unresolved-reference";
    /// Nothing is known about the name space a reference points into.
    pub const UNCHECKED_REFERENCE: &str = "dependency.unchecked-reference";
    /// Resources refer to each other in a circle.
    pub const CYCLE: &str = "dependency.cycle";
    /// Something that stays refers to something that goes.
    pub const STILL_IN_USE: &str = "dependency.still-in-use";
    /// Two resources of one kind claim one name.
    pub const NAME_TWICE: &str = "dependency.name-twice";
}

/// Returns the candidate closest to what was typed, if one is close enough to be meant.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const COMPARED_CHARS_MAX: usize = 64;
    let typed: Vec<char> = typed.chars().take(COMPARED_CHARS_MAX + 1).collect();
    if typed.is_empty() || typed.len() > COMPARED_CHARS_MAX {
        return None;
    }
    let allowed = (typed.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&typed, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

fn edit_distance(typed: &[char], candidate: &str) -> usize {
    let mut row: Vec<usize> = (0..=typed.len()).collect();
    for (at, there) in candidate.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, here) in typed.iter().enumerate() {
            let replaced = diagonal + usize::from(*here != there);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[typed.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_finger_is_suggested_and_a_stranger_is_not() {
        let fields = ["listen-port", "private-key", "mtu", "name"];
        assert_eq!(nearest("listen-prot", fields).as_deref(), Some("listen-port"));
        assert_eq!(nearest("mut", fields), None);
        assert_eq!(nearest("mtu2", fields).as_deref(), Some("mtu"));
        assert_eq!(nearest("comment", fields), None);
        assert_eq!(nearest("", ["a", "b"]), None);
    }
}
