//! What taking a step back may do, given what the row shows now.
//!
//! The guard is the whole point: a row that shows neither of the step's own values belongs to somebody else and is left
//! alone. Undo never overwrites a third party's value.

use super::image::Fit;

/// What the undo of one step does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndoMove {
    /// The row already shows its old values.
    Nothing,
    /// Write the inverse step.
    Write,
    /// Somebody else changed the row: leave it alone and report it.
    Conflict,
    /// The device must be readable first.
    ReadAgain,
}

/// Decides the undo of one step.
///
/// A sight that shows both images (a hidden secret) is written: the old value is right in either case.
pub fn decide(fit: Fit) -> UndoMove {
    match fit {
        Fit { unreadable: true, .. } => UndoMove::ReadAgain,
        Fit { post: true, .. } | Fit { mixed: true, .. } => UndoMove::Write,
        Fit { pre: true, .. } => UndoMove::Nothing,
        _ => UndoMove::Conflict,
    }
}

/// Returns the order of the undo: the reverse of the order the steps were done in.
pub fn order(steps: usize) -> impl Iterator<Item = usize> {
    (0..steps).rev()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_of_our_own_are_written_over() {
        let fit = |pre, post, mixed, unreadable| Fit { pre, post, mixed, unreadable };
        assert_eq!(decide(fit(false, true, false, false)), UndoMove::Write);
        assert_eq!(decide(fit(false, false, true, false)), UndoMove::Write);
        assert_eq!(decide(fit(true, true, false, false)), UndoMove::Write);
        assert_eq!(decide(fit(true, false, false, false)), UndoMove::Nothing);
        assert_eq!(decide(fit(false, false, false, false)), UndoMove::Conflict);
        assert_eq!(decide(fit(false, false, false, true)), UndoMove::ReadAgain);
    }
}
