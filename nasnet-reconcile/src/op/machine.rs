//! The step machine: one operation from its plan to its end, one input at a time.
//!
//! The caller performs every [`Effect`] in order and feeds back its answer. Exactly one answer is outstanding at a time,
//! except for lazy journal records, which need none. An input that does not belong to the present phase is ignored, so a
//! late answer cannot do harm.

mod forward;
mod recovering;
mod undoing;

use super::image::{Image, Sight};
use super::journal::{ConfirmedRow, JournalState, Record};
use super::plan::Plan;
use super::report::{LeftOver, OpOutcome, OpReport, StepReport, StepState};
use super::step::Direction;
use crate::device::{ErrorClass, RowId};

/// How often and how long the machine tries. Every loop of it is bounded by one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attempts at a write that did not get through, at a read that fails, and at a journal write.
    pub attempts_max: u32,
    /// Reads before a row that does not show its new values yet counts as not applied.
    pub settle_reads_max: u32,
    /// The first pause between attempts; it doubles each time.
    pub backoff_ms: u64,
    /// The longest pause.
    pub backoff_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attempts_max: 5, settle_reads_max: 4, backoff_ms: 50, backoff_max_ms: 2_000 }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Begin.
    Start,
    /// The durable journal record asked for last is on disk.
    JournalDurable,
    /// It is not.
    JournalFailed {
        /// Why.
        cause: String,
    },
    /// The row of a step was read.
    Sighted {
        /// The step.
        step: usize,
        /// What was seen.
        sight: Sight,
    },
    /// A write was answered, or was not.
    Written {
        /// The step.
        step: usize,
        /// How it ended.
        outcome: Outcome,
    },
    /// The timer ended.
    Timer,
    /// The caller wants the operation stopped. Before the commit point it is taken back; afterwards it is too late.
    Cancel,
    /// State, events and journal were committed.
    Merged,
    /// They were not; the database is as before.
    MergeFailed {
        /// Why.
        cause: String,
    },
    /// The lease ended: somebody else may be at work, so nothing more is written here.
    LeaseLost {
        /// Why.
        cause: String,
    },
    /// Another device answers at the address.
    WrongDevice {
        /// The serial number the plan was made for.
        expected: String,
        /// The one that answered.
        found: String,
    },
}

/// How a device write ended, in the machine's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Stored; with the row as echoed, if the device echoes.
    Done {
        /// The row as the device says it stored it.
        echo: Option<Sight>,
    },
    /// Refused.
    Rejected {
        /// The kind of refusal.
        class: ErrorClass,
        /// The device's words.
        detail: String,
    },
    /// Never reached the device.
    NotSent {
        /// The transport's words.
        cause: String,
    },
    /// No trustworthy answer.
    Unknown {
        /// What was seen instead.
        hint: String,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Append a record. Durable ones answer with [`Input::JournalDurable`] or [`Input::JournalFailed`]; the others are
    /// kept in memory and written with the next durable one.
    Journal {
        /// The record.
        record: Record,
        /// Whether it must be on disk before anything else happens.
        durable: bool,
    },
    /// Read the row of a step.
    Read {
        /// The step.
        step: usize,
    },
    /// Write one direction of a step.
    Write {
        /// The step.
        step: usize,
        /// The step itself or its undo.
        direction: Direction,
        /// The row's handle as just read.
        id: Option<RowId>,
    },
    /// Answer with [`Input::Timer`] after this time.
    SetTimer {
        /// How long, before jitter.
        after_ms: u64,
    },
    /// Commit state, events and [`Record::Merged`] in one transaction.
    Merge {
        /// The confirmed rows.
        rows: Vec<ConfirmedRow>,
    },
    /// The operation has ended, or cannot go on now.
    Finish(Box<OpReport>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    New,
    AwaitPlan,
    /// Reading the row before its write.
    Check {
        step: usize,
        tries: u32,
    },
    /// The write is out.
    Writing {
        step: usize,
    },
    /// Reading what became of the write; `answered` = the device said yes but the echo was not the post-image.
    Resolve {
        step: usize,
        tries: u32,
        answered: bool,
    },
    /// Reading everything back before the decision.
    Verify {
        step: usize,
        tries: u32,
    },
    AwaitIntent {
        tries: u32,
    },
    AwaitMerge {
        tries: u32,
    },
    AwaitUndoIntent,
    UndoRead {
        step: usize,
        tries: u32,
        writes: u32,
    },
    UndoWriting {
        step: usize,
        writes: u32,
    },
    AwaitClose {
        outcome: OpOutcome,
        tries: u32,
    },
    /// Reading all rows after an interruption.
    Recovering {
        step: usize,
        tries: u32,
    },
    /// Waiting for the timer, then going on there.
    Wait {
        then: Box<Phase>,
        effect: Box<Effect>,
    },
    Finished,
}

#[derive(Debug, Clone, Default)]
struct Track {
    state: Option<StepState>,
    /// Whether a write of ours may have reached the row.
    touched: bool,
    sends: u32,
    /// How many of the sends provably never reached the device.
    unsent: u32,
    /// The last sight of the row during the undo.
    last: Option<Sight>,
    id: Option<RowId>,
    after: Option<Image>,
    detail: Option<String>,
    class: Option<super::image::RowClass>,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Machine {
    plan: Plan,
    limits: Limits,
    phase: Phase,
    tracks: Vec<Track>,
    cancelled: bool,
    reason: Option<String>,
    left: Vec<LeftOver>,
    rows: Vec<ConfirmedRow>,
    journal: JournalState,
}

impl Machine {
    /// Prepares an operation; nothing happens before [`Input::Start`].
    pub fn new(plan: Plan, limits: Limits) -> Self {
        let tracks = vec![Track::default(); plan.steps.len()];
        Self {
            plan,
            limits,
            phase: Phase::New,
            tracks,
            cancelled: false,
            reason: None,
            left: Vec::new(),
            rows: Vec::new(),
            journal: JournalState::None,
        }
    }

    /// Returns the plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns whether [`Effect::Finish`] was given.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// Takes one input and returns what to do.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Cancel => {
                self.cancelled = true;
                return Vec::new();
            }
            Input::LeaseLost { cause } if !self.is_finished() => {
                return self.suspend(format!("the lease was lost: {cause}"));
            }
            Input::WrongDevice { expected, found } if !self.is_finished() => {
                let reason = format!("the device has serial number {found}, the plan was made for {expected}");
                let mut effects = self.suspend(reason);
                if let Some(Effect::Finish(report)) = effects.last_mut() {
                    report.requires_manual_intervention = true;
                }
                return effects;
            }
            _ => {}
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Finished);
        match (phase, input) {
            (Phase::New, Input::Start) => {
                if self.plan.steps.is_empty() {
                    return vec![self.finish(OpOutcome::NoChange, None)];
                }
                self.phase = Phase::AwaitPlan;
                vec![self.journal(Record::OpPlanned { plan: Box::new(self.plan.clone()) }, true)]
            }
            (Phase::Wait { then, effect }, Input::Timer) => {
                self.phase = *then;
                vec![*effect]
            }
            (Phase::AwaitPlan, Input::JournalDurable) => self.check(0),
            (Phase::AwaitPlan, Input::JournalFailed { cause }) => {
                self.journal = JournalState::None;
                vec![self.finish(OpOutcome::Cancelled, Some(format!("the plan could not be stored: {cause}")))]
            }
            (Phase::Check { step, tries }, Input::Sighted { step: at, sight }) if at == step => {
                self.on_check(step, tries, sight)
            }
            (Phase::Writing { step }, Input::Written { step: at, outcome }) if at == step => {
                self.on_written(step, outcome)
            }
            (Phase::Resolve { step, tries, answered }, Input::Sighted { step: at, sight }) if at == step => {
                self.on_resolve(step, tries, answered, sight)
            }
            (Phase::Verify { step, tries }, Input::Sighted { step: at, sight }) if at == step => {
                self.on_verify(step, tries, sight)
            }
            (Phase::AwaitIntent { .. }, Input::JournalDurable) => {
                let confirmed = self.journal(Record::Confirmed, false);
                self.phase = Phase::AwaitMerge { tries: 1 };
                vec![confirmed, Effect::Merge { rows: self.rows.clone() }]
            }
            (Phase::AwaitIntent { tries }, Input::JournalFailed { cause }) => self.retry_intent(tries, cause),
            (Phase::AwaitMerge { .. }, Input::Merged) => {
                self.journal = JournalState::Merged;
                vec![self.finish(OpOutcome::Merged, None)]
            }
            (Phase::AwaitMerge { tries }, Input::MergeFailed { cause }) => self.retry_merge(tries, cause),
            (Phase::AwaitUndoIntent, Input::JournalDurable | Input::JournalFailed { .. }) => {
                self.undo_from(self.plan.steps.len())
            }
            (Phase::UndoRead { step, tries, writes }, Input::Sighted { step: at, sight }) if at == step => {
                self.on_undo_read(step, tries, writes, sight)
            }
            (Phase::UndoWriting { step, writes }, Input::Written { step: at, outcome }) if at == step => {
                self.on_undo_written(step, writes, outcome)
            }
            (Phase::AwaitClose { outcome, .. }, Input::JournalDurable) => {
                let reason = self.reason.clone();
                vec![self.finish(outcome, reason)]
            }
            (Phase::AwaitClose { outcome, tries }, Input::JournalFailed { cause }) => {
                self.retry_close(outcome, tries, cause)
            }
            (Phase::Recovering { step, tries }, Input::Sighted { step: at, sight }) if at == step => {
                self.on_recovering(step, tries, sight)
            }
            (phase, _) => {
                self.phase = phase;
                Vec::new()
            }
        }
    }

    fn journal(&mut self, record: Record, durable: bool) -> Effect {
        self.journal = self.journal.then(&record);
        Effect::Journal { record, durable }
    }

    /// Pauses, then goes on with `effect` in `then`. The pause doubles with every attempt.
    fn later(&mut self, attempt: u32, then: Phase, effect: Effect) -> Vec<Effect> {
        let factor = 1u64 << attempt.saturating_sub(1).min(16);
        let after_ms = self.limits.backoff_ms.saturating_mul(factor).min(self.limits.backoff_max_ms);
        self.phase = Phase::Wait { then: Box::new(then), effect: Box::new(effect) };
        vec![Effect::SetTimer { after_ms }]
    }

    /// Writes the closing record and finishes once it is durable.
    fn close(&mut self, outcome: OpOutcome) -> Vec<Effect> {
        let record = self.closing_record(outcome);
        self.phase = Phase::AwaitClose { outcome, tries: 1 };
        vec![Effect::Journal { record, durable: true }]
    }

    fn closing_record(&self, outcome: OpOutcome) -> Record {
        match outcome {
            OpOutcome::RolledBack => Record::RolledBack,
            OpOutcome::RollbackPartial => Record::RollbackPartial { left: self.left.clone() },
            _ => Record::Cancelled { reason: self.reason.clone().unwrap_or_default() },
        }
    }

    fn retry_close(&mut self, outcome: OpOutcome, tries: u32, cause: String) -> Vec<Effect> {
        if tries >= self.limits.attempts_max {
            // The device is in its final state; only the record is missing. Recovery finds the same and writes it.
            let reason = format!("{}; its end could not be stored: {cause}", self.reason.clone().unwrap_or_default());
            return vec![self.finish_open(outcome, Some(reason))];
        }
        let record = self.closing_record(outcome);
        let then = Phase::AwaitClose { outcome, tries: tries + 1 };
        self.later(tries, then, Effect::Journal { record, durable: true })
    }

    /// Ends without a decision: the journal keeps the operation open and recovery takes it up again.
    fn suspend(&mut self, reason: String) -> Vec<Effect> {
        let record = self.journal(Record::Indeterminate { reason: reason.clone() }, false);
        vec![record, self.finish_open(OpOutcome::Indeterminate, Some(reason))]
    }

    fn finish_open(&mut self, outcome: OpOutcome, reason: Option<String>) -> Effect {
        let open = self.journal.is_open();
        let mut effect = self.finish(outcome, reason);
        if let Effect::Finish(report) = &mut effect {
            report.open = open;
        }
        effect
    }

    fn finish(&mut self, outcome: OpOutcome, reason: Option<String>) -> Effect {
        self.phase = Phase::Finished;
        let steps = self.plan.steps.iter().zip(&self.tracks).map(|(step, track)| StepReport {
            index: step.index,
            uid: step.uid,
            kind: step.kind.clone(),
            name: step.name.clone(),
            menu: step.key.menu.clone(),
            action: step.action,
            why: step.why.clone(),
            state: track.state.unwrap_or(StepState::Planned),
            before: step.pre.clone(),
            planned: step.post.clone(),
            after: track.after.clone(),
            detail: track.detail.clone(),
        });
        Effect::Finish(Box::new(OpReport {
            op_id: self.plan.op_id,
            router: self.plan.router.clone(),
            plan_hash: self.plan.hash.clone(),
            outcome,
            reason,
            steps: steps.collect(),
            left_over: self.left.clone(),
            open: false,
            requires_manual_intervention: !self.left.is_empty(),
        }))
    }
}

#[cfg(test)]
mod tests;
