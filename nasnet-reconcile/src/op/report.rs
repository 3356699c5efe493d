//! What an operation did, as data: every step with its before, planned, after and undo, and exactly what is left.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::image::{Image, RowImage, Sight};
use super::step::Action;
use crate::device::MenuPath;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpOutcome {
    /// Nothing had to change.
    NoChange,
    /// Confirmed by the router and merged into the stored state.
    Merged,
    /// Confirmed by the router, but the merge could not be stored: the operation stays open and recovery repeats it.
    ConfirmedNotMerged,
    /// Ended before the first write reached the device.
    Cancelled,
    /// Taken back: every touched row shows its old values.
    RolledBack,
    /// Taken back as far as allowed: [`OpReport::left_over`] lists exactly the difference.
    RollbackPartial,
    /// Not decidable now, mostly because the device cannot be read: the operation stays open for recovery.
    Indeterminate,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Planned,
    /// Sent, no answer yet.
    Sent,
    /// Stored by the device, and read back once the operation is confirmed.
    Done,
    /// Refused by the device.
    Rejected,
    /// The row was somebody else's by the time the step came up.
    ExternalChange,
    /// Sent, and no read could tell what became of it.
    Unknown,
    /// Found as before the step, so there was nothing to take back.
    NothingToUndo,
    /// Taken back.
    Undone,
    /// Not taken back, since somebody else changed the row.
    UndoConflict,
    /// Not taken back: the device refused or another step had to be left.
    UndoFailed,
}

/// One step of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's place in the plan.
    pub index: usize,
    /// The resource.
    pub uid: Ulid,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The menu of its row.
    pub menu: MenuPath,
    /// What was done.
    pub action: Action,
    /// Why.
    pub why: String,
    /// Where it stands.
    pub state: StepState,
    /// The row before.
    pub before: RowImage,
    /// The row as planned.
    pub planned: RowImage,
    /// The row as last read, if it was.
    pub after: Option<Image>,
    /// The device's or the transport's words, if something went wrong.
    pub detail: Option<String>,
}

/// A row that the undo could not or must not bring back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOver {
    /// The step that touched it.
    pub step: usize,
    /// The resource.
    pub uid: Ulid,
    /// The menu of the row.
    pub menu: MenuPath,
    /// What it should show.
    pub expected: RowImage,
    /// What it shows.
    pub actual: Sight,
    /// Why it was left.
    pub why: String,
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpReport {
    /// The operation.
    pub op_id: Ulid,
    /// The router.
    pub router: String,
    /// The plan's hash.
    pub plan_hash: String,
    /// How it ended.
    pub outcome: OpOutcome,
    /// Why it ended other than merged.
    pub reason: Option<String>,
    /// Every step.
    pub steps: Vec<StepReport>,
    /// Exactly what the undo left.
    pub left_over: Vec<LeftOver>,
    /// Whether the journal still holds the operation open.
    pub open: bool,
    /// Whether a person must look at it.
    pub requires_manual_intervention: bool,
}

impl OpReport {
    /// Returns whether the change is on the router and in the stored state.
    pub fn is_merged(&self) -> bool {
        matches!(self.outcome, OpOutcome::Merged | OpOutcome::NoChange)
    }

    /// Counts the steps in a state.
    pub fn count(&self, state: StepState) -> usize {
        self.steps.iter().filter(|step| step.state == state).count()
    }
}
