//! Taking up an interrupted operation.

use super::{Effect, Limits, Machine, Phase};
use crate::op::image::{RowClass, Sight};
use crate::op::journal::{JournalState, Record};
use crate::op::plan::Plan;
use crate::op::recover::{self, Decision};
use crate::op::report::OpOutcome;

impl Machine {
    /// Takes up an operation from its journal: reads every row and goes on as [`recover::decide`] says.
    ///
    /// Which steps had been sent is not asked of the journal, since those records are lazy: every row may have been
    /// written by us, and the guards of the undo hold for all of them. Recovery that is itself interrupted starts over.
    pub fn recover(plan: Plan, records: &[Record], limits: Limits) -> (Self, Vec<Effect>) {
        let mut machine = Self::new(plan, limits);
        machine.journal = JournalState::of(records);
        for track in &mut machine.tracks {
            track.touched = true;
        }
        machine.reason = records.iter().rev().find_map(|record| match record {
            Record::UndoIntent { reason } => Some(reason.clone()),
            _ => None,
        });
        machine.left = records
            .iter()
            .find_map(|record| match record {
                Record::RollbackPartial { left } => Some(left.clone()),
                _ => None,
            })
            .unwrap_or_default();
        let effects = match machine.journal {
            JournalState::ConfirmIntent | JournalState::Merged => {
                machine.rows = records
                    .iter()
                    .find_map(|record| match record {
                        Record::ConfirmIntent { rows } => Some(rows.clone()),
                        _ => None,
                    })
                    .unwrap_or_default();
                for row in machine.rows.clone() {
                    if let Some(track) = machine.tracks.get_mut(row.step) {
                        track.state = Some(crate::op::report::StepState::Done);
                        track.id = row.id;
                        track.after = row.image;
                    }
                }
                machine.follow(recover::decide(machine.journal, &[], true))
            }
            state if !state.is_open() => machine.follow(recover::decide(state, &[], true)),
            state if machine.plan.steps.is_empty() => machine.follow(recover::decide(state, &[], true)),
            _ => {
                machine.phase = Phase::Recovering { step: 0, tries: 1 };
                vec![Effect::Read { step: 0 }]
            }
        };
        (machine, effects)
    }

    pub(super) fn on_recovering(&mut self, step: usize, tries: u32, sight: Sight) -> Vec<Effect> {
        let class = self.plan.steps[step].class(&sight);
        if class == RowClass::Unreadable && tries < self.limits.attempts_max {
            let then = Phase::Recovering { step, tries: tries + 1 };
            return self.later(tries, then, Effect::Read { step });
        }
        self.remember(step, &sight);
        self.tracks[step].class = Some(class);
        if step + 1 < self.plan.steps.len() && class != RowClass::Unreadable {
            self.phase = Phase::Recovering { step: step + 1, tries: 1 };
            return vec![Effect::Read { step: step + 1 }];
        }
        // One unreadable row decides; the rows behind it need no reading.
        let classes: Vec<RowClass> = self.tracks.iter().filter_map(|track| track.class).collect();
        let decision = recover::decide(self.journal, &classes, true);
        self.follow(decision)
    }

    fn follow(&mut self, decision: Decision) -> Vec<Effect> {
        match decision {
            Decision::Forget | Decision::Ended => {
                let outcome = match self.journal {
                    JournalState::Merged => OpOutcome::Merged,
                    JournalState::RolledBack => OpOutcome::RolledBack,
                    JournalState::RollbackPartial => OpOutcome::RollbackPartial,
                    _ => OpOutcome::Cancelled,
                };
                vec![self.finish(outcome, Some("the operation had ended before".to_owned()))]
            }
            Decision::Cancel => {
                self.reason = Some("interrupted before the first write".to_owned());
                self.close(OpOutcome::Cancelled)
            }
            Decision::CloseRolledBack => self.close(OpOutcome::RolledBack),
            Decision::Confirm => {
                self.phase = Phase::Verify { step: 0, tries: 1 };
                vec![Effect::Read { step: 0 }]
            }
            Decision::Merge => {
                self.phase = Phase::AwaitMerge { tries: 1 };
                vec![Effect::Merge { rows: self.rows.clone() }]
            }
            Decision::Undo => {
                self.abort(self.reason.clone().unwrap_or_else(|| "interrupted while applying".to_owned()))
            }
            Decision::Wait => self.suspend("the device cannot be read; the operation stays open".to_owned()),
            Decision::Halt => self.suspend("another device answers".to_owned()),
        }
    }
}
