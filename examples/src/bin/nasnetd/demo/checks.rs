//! Collects what a step claims and whether it held.

use std::fmt::Display;

use crate::summary::Check;

/// The claims of one step.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    list: Vec<Check>,
}

impl Checks {
    /// Notes a claim, whether it held, and what was seen.
    pub(crate) fn that(&mut self, what: impl Into<String>, held: bool, seen: impl Display) {
        self.list.push(Check { what: what.into(), held, seen: seen.to_string() });
    }

    /// Notes that two values are equal.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: impl Into<String>, seen: &T, wanted: &T) {
        self.that(what, seen == wanted, format!("{seen:?}, wanted {wanted:?}"));
    }

    /// Gives the claims away.
    pub(crate) fn into_list(self) -> Vec<Check> {
        self.list
    }
}
