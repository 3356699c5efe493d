//! The way back: guarded inverse steps in reverse order.

use super::forward::remembered;
use super::{Effect, Machine, Outcome, Phase};
use crate::device::ErrorClass;
use crate::op::image::Sight;
use crate::op::journal::Record;
use crate::op::report::{LeftOver, OpOutcome, StepState};
use crate::op::step::{Action, Direction};
use crate::op::undo::{self, UndoMove};

impl Machine {
    /// Takes back the next touched step below `end`, or closes.
    pub(super) fn undo_from(&mut self, end: usize) -> Vec<Effect> {
        let Some(step) = undo::order(end).find(|step| self.tracks[*step].touched) else {
            return self.close(if self.left.is_empty() { OpOutcome::RolledBack } else { OpOutcome::RollbackPartial });
        };
        self.phase = Phase::UndoRead { step, tries: 1, writes: 0 };
        vec![Effect::Read { step }]
    }

    pub(super) fn on_undo_read(&mut self, step: usize, tries: u32, writes: u32, sight: Sight) -> Vec<Effect> {
        self.tracks[step].last = Some(sight.clone());
        match undo::decide(self.plan.steps[step].fit(&sight)) {
            UndoMove::ReadAgain => {
                let again = |tries| Phase::UndoRead { step, tries, writes };
                self.read_again_or(step, tries, &sight, again, Self::suspend)
            }
            UndoMove::Nothing => {
                let state = if writes > 0 { StepState::Undone } else { StepState::NothingToUndo };
                self.settle_undo(step, &sight, state)
            }
            UndoMove::Conflict => {
                self.leave(step, sight, StepState::UndoConflict, "somebody else changed the row".to_owned())
            }
            // A hidden secret shows both sides for ever: once written, the old value is there.
            UndoMove::Write if writes > 0 && self.plan.steps[step].fit(&sight).pre => {
                self.settle_undo(step, &sight, StepState::Undone)
            }
            UndoMove::Write => {
                if let Some(needed_by) = self.still_needed_by(step) {
                    let why = format!("{} still needs it", self.title(needed_by));
                    return self.leave(step, sight, StepState::UndoFailed, why);
                }
                if writes >= self.limits.attempts_max {
                    let why = format!("not taken back in {writes} attempts");
                    return self.leave(step, sight, StepState::UndoFailed, why);
                }
                let id = match sight {
                    Sight::Row { id, .. } => id,
                    _ => None,
                };
                self.phase = Phase::UndoWriting { step, writes: writes + 1 };
                vec![Effect::Write { step, direction: Direction::Backward, id }]
            }
        }
    }

    pub(super) fn on_undo_written(&mut self, step: usize, writes: u32, outcome: Outcome) -> Vec<Effect> {
        let record = Record::UndoStep { step, outcome: remembered(&outcome) };
        let mut effects = vec![self.journal(record, false)];
        let read = Phase::UndoRead { step, tries: 1, writes };
        match outcome {
            // Every answer leads to a read: only what the row shows counts as taken back.
            Outcome::Done { .. } => {
                self.phase = read;
                effects.push(Effect::Read { step });
            }
            Outcome::Rejected { class, detail } if is_final(class, self.plan.steps[step].action.inverse(), writes) => {
                let unread = || Sight::Unreadable { cause: detail.clone() };
                let sight = self.tracks[step].last.clone().unwrap_or_else(unread);
                let why = format!("the device refused to take it back: {detail}");
                effects.extend(self.leave(step, sight, StepState::UndoFailed, why));
            }
            Outcome::Rejected { detail: cause, .. } | Outcome::NotSent { cause } | Outcome::Unknown { hint: cause } => {
                self.tracks[step].detail = Some(cause);
                effects.extend(self.later(writes, read, Effect::Read { step }));
            }
        }
        effects
    }

    fn settle_undo(&mut self, step: usize, sight: &Sight, state: StepState) -> Vec<Effect> {
        let rejected = self.tracks[step].state == Some(StepState::Rejected);
        if !(rejected && state == StepState::NothingToUndo) {
            self.tracks[step].state = Some(state);
        }
        self.remember(step, sight);
        self.undo_from(step)
    }

    fn leave(&mut self, step: usize, sight: Sight, state: StepState, why: String) -> Vec<Effect> {
        self.tracks[step].state = Some(state);
        self.remember(step, &sight);
        let planned = &self.plan.steps[step];
        self.left.push(LeftOver {
            step,
            uid: planned.uid,
            menu: planned.key.menu.clone(),
            expected: planned.pre.clone(),
            actual: sight,
            why,
        });
        self.undo_from(step)
    }

    /// Returns a later step that was left in place and refers to what this step's undo would take away.
    fn still_needed_by(&self, step: usize) -> Option<usize> {
        if self.plan.steps[step].action == Action::Remove {
            return None;
        }
        let left = self.left.iter().map(|left| left.step);
        left.filter(|later| !matches!(self.left_sight(*later), Some(Sight::Absent)))
            .find(|later| self.plan.steps[*later].requires.contains(&step))
    }

    fn left_sight(&self, step: usize) -> Option<&Sight> {
        self.left.iter().find(|left| left.step == step).map(|left| &left.actual)
    }
}

/// Returns whether a refusal of an undo is worth no further attempt.
fn is_final(class: ErrorClass, action: Action, writes: u32) -> bool {
    match (class, action) {
        (ErrorClass::Busy | ErrorClass::Timeout | ErrorClass::SessionClosed, _) => false,
        (ErrorClass::AlreadyExists, Action::Add) | (ErrorClass::NoSuchItem, Action::Remove) => writes <= 1,
        _ => true,
    }
}
