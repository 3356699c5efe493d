//! The way forward: check, write, resolve, verify, confirm, merge.

use super::{Effect, Input, Machine, Outcome, Phase};
use crate::device::ErrorClass;
use crate::op::image::Sight;
use crate::op::journal::{ConfirmedRow, Record, StepOutcome};
use crate::op::report::{OpOutcome, StepState};
use crate::op::step::{Action, Direction};

/// What a refusal really means.
enum Meaning {
    /// The device said no and changed nothing.
    No,
    /// It did not get to it: worth another attempt.
    NotNow,
    /// It may have been done: only a read can tell.
    Unclear,
}

impl Machine {
    pub(super) fn check(&mut self, step: usize) -> Vec<Effect> {
        if self.cancelled {
            return self.abort("cancelled by the caller".to_owned());
        }
        if step == self.plan.steps.len() {
            self.phase = Phase::Verify { step: 0, tries: 1 };
            return vec![Effect::Read { step: 0 }];
        }
        self.phase = Phase::Check { step, tries: 1 };
        vec![Effect::Read { step }]
    }

    pub(super) fn on_check(&mut self, step: usize, tries: u32, sight: Sight) -> Vec<Effect> {
        if self.cancelled {
            return self.abort("cancelled by the caller".to_owned());
        }
        let fit = self.plan.steps[step].fit(&sight);
        if fit.unreadable {
            return self.read_again_or(step, tries, &sight, |tries| Phase::Check { step, tries }, Self::abort);
        }
        // A row that shows its new values here was either written by an attempt of ours that came late, or by
        // somebody else; only in the first case may it be taken as done.
        if fit.post && !fit.pre && self.tracks[step].sends > 0 {
            return self.done(step, sight);
        }
        if !fit.pre {
            self.tracks[step].state = Some(StepState::ExternalChange);
            self.remember(step, &sight);
            return self.abort(format!("{} was changed by somebody else since it was planned", self.title(step)));
        }
        let id = match sight {
            Sight::Row { id, .. } => id,
            _ => None,
        };
        let track = &mut self.tracks[step];
        track.state = Some(StepState::Sent);
        track.touched = true;
        track.sends += 1;
        self.phase = Phase::Writing { step };
        let sent = self.journal(Record::StepSent { step }, false);
        vec![sent, Effect::Write { step, direction: Direction::Forward, id }]
    }

    pub(super) fn on_written(&mut self, step: usize, outcome: Outcome) -> Vec<Effect> {
        let record = Record::StepOutcome { step, outcome: remembered(&outcome) };
        let mut effects = vec![self.journal(record, false)];
        let more = match outcome {
            Outcome::Done { echo: None } => {
                // Nothing to compare: verification reads every row back before the decision.
                self.tracks[step].state = Some(StepState::Done);
                self.check(step + 1)
            }
            Outcome::Done { echo: Some(sight) } if self.plan.steps[step].fit(&sight).post => self.done(step, sight),
            Outcome::Done { echo: Some(_) } => self.resolve(step, true),
            Outcome::NotSent { cause } => {
                let track = &mut self.tracks[step];
                track.unsent += 1;
                track.touched = track.unsent < track.sends;
                self.send_again(step, cause)
            }
            Outcome::Unknown { hint } => {
                self.tracks[step].detail = Some(hint);
                self.tracks[step].state = Some(StepState::Unknown);
                self.resolve(step, false)
            }
            Outcome::Rejected { class, detail } => match self.meaning(step, class) {
                Meaning::NotNow => self.send_again(step, detail),
                Meaning::Unclear => {
                    self.tracks[step].detail = Some(detail);
                    self.tracks[step].state = Some(StepState::Unknown);
                    self.resolve(step, false)
                }
                Meaning::No => {
                    let track = &mut self.tracks[step];
                    track.state = Some(StepState::Rejected);
                    track.detail = Some(detail.clone());
                    self.abort(format!("{} was refused: {detail}", self.title(step)))
                }
            },
        };
        effects.extend(more);
        effects
    }

    fn meaning(&self, step: usize, class: ErrorClass) -> Meaning {
        let sent_before = self.tracks[step].sends > 1;
        match (class, self.plan.steps[step].action) {
            (ErrorClass::Busy, _) => Meaning::NotNow,
            (ErrorClass::Timeout | ErrorClass::SessionClosed, _) => Meaning::Unclear,
            // "Already there" or "not there" on a repeated attempt may well be the first attempt, done late.
            (ErrorClass::AlreadyExists, Action::Add) | (ErrorClass::NoSuchItem, Action::Remove) if sent_before => {
                Meaning::Unclear
            }
            _ => Meaning::No,
        }
    }

    fn resolve(&mut self, step: usize, answered: bool) -> Vec<Effect> {
        self.phase = Phase::Resolve { step, tries: 1, answered };
        vec![Effect::Read { step }]
    }

    /// Decides by reading what became of a write. A create is never sent again before this read.
    pub(super) fn on_resolve(&mut self, step: usize, tries: u32, answered: bool, sight: Sight) -> Vec<Effect> {
        let fit = self.plan.steps[step].fit(&sight);
        if fit.unreadable {
            // Nothing on the device would take the change back, and nothing can be read: say so and stay open.
            let again = |tries| Phase::Resolve { step, tries, answered };
            return self.read_again_or(step, tries, &sight, again, Self::suspend);
        }
        if fit.post && (!fit.pre || answered) {
            return self.done(step, sight);
        }
        if fit.pre && !answered {
            let cause = self.tracks[step].detail.clone().unwrap_or_else(|| "the write was lost".to_owned());
            return self.send_again(step, cause);
        }
        if tries < self.limits.settle_reads_max {
            let then = Phase::Resolve { step, tries: tries + 1, answered };
            return self.later(tries, then, Effect::Read { step });
        }
        self.remember(step, &sight);
        self.abort(format!("{} does not show what was written", self.title(step)))
    }

    fn send_again(&mut self, step: usize, cause: String) -> Vec<Effect> {
        self.tracks[step].detail = Some(cause.clone());
        let sends = self.tracks[step].sends;
        if sends >= self.limits.attempts_max {
            return self.abort(format!("{} could not be written in {sends} attempts: {cause}", self.title(step)));
        }
        // The row is read again first: its handle may have changed, and a late first attempt must be seen.
        self.later(sends, Phase::Check { step, tries: 1 }, Effect::Read { step })
    }

    fn done(&mut self, step: usize, sight: Sight) -> Vec<Effect> {
        self.tracks[step].state = Some(StepState::Done);
        self.remember(step, &sight);
        self.check(step + 1)
    }

    pub(super) fn remember(&mut self, step: usize, sight: &Sight) {
        let track = &mut self.tracks[step];
        match sight {
            Sight::Row { id, image } => {
                track.id.clone_from(id);
                track.after = Some(image.clone());
            }
            Sight::Absent => {
                track.id = None;
                track.after = None;
            }
            Sight::Ambiguous { rows } => track.detail = Some(format!("{rows} rows answer to the same key")),
            Sight::Unreadable { cause } => track.detail = Some(cause.clone()),
        }
    }

    /// Reads everything back. A failing read is not a failing apply: it never takes a good change back.
    pub(super) fn on_verify(&mut self, step: usize, tries: u32, sight: Sight) -> Vec<Effect> {
        if self.cancelled {
            return self.abort("cancelled by the caller".to_owned());
        }
        let fit = self.plan.steps[step].fit(&sight);
        if fit.unreadable {
            return self.read_again_or(step, tries, &sight, |tries| Phase::Verify { step, tries }, Self::suspend);
        }
        if !fit.post {
            if tries < self.limits.settle_reads_max {
                let then = Phase::Verify { step, tries: tries + 1 };
                return self.later(tries, then, Effect::Read { step });
            }
            self.tracks[step].state = Some(StepState::ExternalChange);
            self.remember(step, &sight);
            return self.abort(format!("{} did not stay as written", self.title(step)));
        }
        self.tracks[step].state = Some(StepState::Done);
        self.remember(step, &sight);
        if step + 1 < self.plan.steps.len() {
            self.phase = Phase::Verify { step: step + 1, tries: 1 };
            return vec![Effect::Read { step: step + 1 }];
        }
        let rows = self.tracks.iter().enumerate().map(|(step, track)| ConfirmedRow {
            step,
            id: track.id.clone(),
            image: track.after.clone(),
        });
        self.rows = rows.collect();
        let applied = self.journal(Record::Applied, false);
        self.phase = Phase::AwaitIntent { tries: 1 };
        vec![applied, Effect::Journal { record: Record::ConfirmIntent { rows: self.rows.clone() }, durable: true }]
    }

    pub(super) fn retry_intent(&mut self, tries: u32, cause: String) -> Vec<Effect> {
        if tries >= self.limits.attempts_max {
            return self.suspend(format!("the decision to confirm could not be stored: {cause}"));
        }
        let record = Record::ConfirmIntent { rows: self.rows.clone() };
        self.later(tries, Phase::AwaitIntent { tries: tries + 1 }, Effect::Journal { record, durable: true })
    }

    /// A merge that fails never takes the router back: the device is right, only the database is behind.
    pub(super) fn retry_merge(&mut self, tries: u32, cause: String) -> Vec<Effect> {
        if tries >= self.limits.attempts_max {
            let reason = format!("confirmed, but the merge could not be stored: {cause}");
            self.journal = crate::op::journal::JournalState::ConfirmIntent;
            return vec![self.finish_open(OpOutcome::ConfirmedNotMerged, Some(reason))];
        }
        let rows = self.rows.clone();
        self.later(tries, Phase::AwaitMerge { tries: tries + 1 }, Effect::Merge { rows })
    }

    /// Stops going forward: cancels if no write was sent, takes back otherwise.
    pub(super) fn abort(&mut self, reason: String) -> Vec<Effect> {
        self.reason = Some(reason.clone());
        if self.tracks.iter().any(|track| track.touched) {
            self.phase = Phase::AwaitUndoIntent;
            vec![self.journal(Record::UndoIntent { reason }, true)]
        } else {
            self.close(OpOutcome::Cancelled)
        }
    }

    /// Reads again after a pause, or gives up in the way of the phase.
    pub(super) fn read_again_or(
        &mut self,
        step: usize,
        tries: u32,
        sight: &Sight,
        again: impl FnOnce(u32) -> Phase,
        give_up: impl FnOnce(&mut Self, String) -> Vec<Effect>,
    ) -> Vec<Effect> {
        if tries < self.limits.attempts_max {
            return self.later(tries, again(tries + 1), Effect::Read { step });
        }
        let cause = match sight {
            Sight::Unreadable { cause } => cause.clone(),
            _ => "unreadable".to_owned(),
        };
        self.tracks[step].detail = Some(cause.clone());
        give_up(self, format!("{} could not be read in {tries} attempts: {cause}", self.title(step)))
    }

    pub(super) fn title(&self, step: usize) -> String {
        let step = &self.plan.steps[step];
        format!("{} {:?}", step.kind, step.name)
    }
}

pub(super) fn remembered(outcome: &Outcome) -> StepOutcome {
    match outcome.clone() {
        Outcome::Done { .. } => StepOutcome::Done,
        Outcome::Rejected { class, detail } => StepOutcome::Rejected { class, detail },
        Outcome::NotSent { cause } => StepOutcome::NotSent { cause },
        Outcome::Unknown { hint } => StepOutcome::Unknown { hint },
    }
}

/// The inputs that end a wait for the device, for drivers that want to know what they are waiting for.
impl Input {
    /// Returns whether the input answers a read or a write.
    pub fn is_device_answer(&self) -> bool {
        matches!(self, Self::Sighted { .. } | Self::Written { .. })
    }
}
