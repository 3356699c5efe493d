//! What to do with an operation that was interrupted: a total, pure table.
//!
//! Inputs are what the journal adds up to, how every touched row stands, and whether it is the same device. The windows
//! W0-W22 of the specification that exist without a net on the device are each a named test below.

use super::image::RowClass;
use super::journal::JournalState;

/// What recovery does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nothing was promised: forget it.
    Forget,
    /// No row was touched: close as cancelled.
    Cancel,
    /// Every row shows its new values: verify again and go on to confirm.
    Confirm,
    /// The commit point was passed: merge.
    Merge,
    /// Take back what was done, guarded row by row.
    Undo,
    /// Every row shows its old values: close as rolled back.
    CloseRolledBack,
    /// The device cannot be read: keep the operation open and try again later.
    Wait,
    /// Another device answers: write nothing, a person must look.
    Halt,
    /// The operation has ended; what differs now is drift.
    Ended,
}

/// Decides. Total: every combination has exactly one answer.
pub fn decide(state: JournalState, rows: &[RowClass], same_device: bool) -> Decision {
    use JournalState as S;
    match state {
        S::None => return Decision::Forget,
        S::Merged | S::RolledBack | S::RollbackPartial | S::Cancelled => return Decision::Ended,
        S::Planned | S::ConfirmIntent | S::Undoing if !same_device => return Decision::Halt,
        // The decision was made after every row had been read back, and the record holds all the merge needs. Whatever
        // the rows show now happened afterwards and is drift.
        S::ConfirmIntent => return Decision::Merge,
        S::Planned | S::Undoing => {}
    }
    let all = |class: RowClass| rows.iter().all(|row| *row == class);
    if rows.contains(&RowClass::Unreadable) {
        Decision::Wait
    } else if all(RowClass::Pre) {
        if state == S::Undoing { Decision::CloseRolledBack } else { Decision::Cancel }
    } else if all(RowClass::Post) && state == S::Planned {
        Decision::Confirm
    } else {
        Decision::Undo
    }
}

#[cfg(test)]
mod tests {
    use super::Decision::*;
    use super::JournalState as S;
    use super::RowClass::*;
    use super::*;

    #[test]
    fn w0_a_crash_before_the_plan_was_durable_is_forgotten() {
        assert_eq!(decide(S::None, &[], true), Forget);
    }

    #[test]
    fn w1_a_plan_without_any_write_is_cancelled() {
        assert_eq!(decide(S::Planned, &[Pre, Pre], true), Cancel);
    }

    #[test]
    fn w4_a_crash_in_the_middle_of_applying_is_taken_back() {
        assert_eq!(decide(S::Planned, &[Post, Pre], true), Undo);
        assert_eq!(decide(S::Planned, &[Post, Mixed], true), Undo);
    }

    #[test]
    fn w6_an_unreadable_device_keeps_the_operation_open() {
        assert_eq!(decide(S::Planned, &[Post, Unreadable], true), Wait);
        assert_eq!(decide(S::Undoing, &[Unreadable], true), Wait);
    }

    #[test]
    fn w7_a_change_that_was_fully_applied_goes_on_to_confirm() {
        assert_eq!(decide(S::Planned, &[Post, Post], true), Confirm);
    }

    #[test]
    fn w10_an_operation_past_its_commit_point_is_merged_whatever_the_rows_show() {
        for rows in [[Post, Post], [Pre, Post], [Other, Unreadable]] {
            assert_eq!(decide(S::ConfirmIntent, &rows, true), Merge);
        }
    }

    #[test]
    fn w11_a_merged_operation_is_over() {
        assert_eq!(decide(S::Merged, &[Post], true), Ended);
    }

    #[test]
    fn w14_a_row_of_somebody_else_is_never_confirmed() {
        assert_eq!(decide(S::Planned, &[Post, Other], true), Undo);
    }

    #[test]
    fn w17_an_undo_that_was_begun_is_finished_and_never_turned_around() {
        assert_eq!(decide(S::Undoing, &[Post, Post], true), Undo);
        assert_eq!(decide(S::Undoing, &[Pre, Pre], true), CloseRolledBack);
    }

    #[test]
    fn w20_old_values_after_the_merge_are_drift_and_not_applied_again() {
        assert_eq!(decide(S::Merged, &[Pre], true), Ended);
    }

    #[test]
    fn w22_another_device_stops_everything() {
        for state in [S::Planned, S::ConfirmIntent, S::Undoing] {
            assert_eq!(decide(state, &[Post], false), Halt);
        }
    }

    /// Every state with every combination of up to three rows on both devices, against rules stated independently.
    #[test]
    fn the_table_is_total_and_keeps_its_rules() {
        let mut combinations: Vec<Vec<RowClass>> = vec![vec![]];
        for _ in 0..3 {
            let longer: Vec<Vec<RowClass>> = combinations
                .iter()
                .flat_map(|rows| RowClass::ALL.map(|class| rows.iter().copied().chain([class]).collect()))
                .collect();
            combinations.extend(longer);
        }
        let mut cases = 0;
        for state in S::ALL {
            for rows in &combinations {
                for same_device in [true, false] {
                    let decision = decide(state, rows, same_device);
                    cases += 1;
                    let writes = matches!(decision, Undo);
                    assert!(!writes || same_device, "{state:?} {rows:?}: writes to another device");
                    assert!(!writes || !rows.contains(&Unreadable), "{state:?} {rows:?}: writes blindly");
                    assert!(!writes || state.is_open(), "{state:?} {rows:?}: writes after the end");
                    assert!(decision != Merge || state == S::ConfirmIntent, "{state:?} {rows:?}: merges undecided");
                    assert!(
                        decision != Confirm || (state == S::Planned && rows.iter().all(|row| *row == Post)),
                        "{state:?} {rows:?}: confirms what is not there"
                    );
                    assert!(
                        !matches!(decision, Cancel | CloseRolledBack) || rows.iter().all(|row| *row == Pre),
                        "{state:?} {rows:?}: claims to be untouched"
                    );
                    assert_eq!(state.is_open(), !matches!(decision, Forget | Ended), "{state:?} {rows:?}");
                }
            }
        }
        assert!(cases > 2_000);
    }
}
