//! The records of an operation's journal and what they add up to.
//!
//! Three records must be on disk before the next thing happens: the plan with every pre-image and undo (before the first
//! device write), the confirm intent (the commit point as long as no net on the device provides one) and the merge.
//! The others are kept in memory and ride with the next durable one: recovery reads the device anyway.

use serde::{Deserialize, Serialize};

use super::image::Image;
use super::plan::Plan;
use super::report::LeftOver;
use crate::device::{ErrorClass, RowId};

/// The version of the stored form of a [`Record`].
pub const RECORD_FORMAT: u16 = 1;

/// A row as it was when the operation was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmedRow {
    /// The step.
    pub step: usize,
    /// The row's handle; `None` after a removal and in a menu of one row.
    pub id: Option<RowId>,
    /// The row's content, `None` after a removal.
    pub image: Option<Image>,
}

/// How a write ended, as the journal remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StepOutcome {
    /// The device stored it.
    Done,
    /// The device refused it.
    Rejected {
        /// The kind of refusal.
        class: ErrorClass,
        /// The device's words.
        detail: String,
    },
    /// It never reached the device.
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

/// One record of an operation's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// The plan with every pre-image and every undo. Durable.
    OpPlanned {
        /// The plan.
        plan: Box<Plan>,
    },
    /// A step is being sent.
    StepSent {
        /// The step.
        step: usize,
    },
    /// A step was answered, or was not.
    StepOutcome {
        /// The step.
        step: usize,
        /// How.
        outcome: StepOutcome,
    },
    /// Every step was read back.
    Applied,
    /// The decision to keep the change, with everything the merge needs. Durable: the commit point.
    ConfirmIntent {
        /// The rows as read back.
        rows: Vec<ConfirmedRow>,
    },
    /// Nothing on the device can take the change back any more.
    Confirmed,
    /// State, events and this record were committed together. Durable.
    Merged,
    /// The decision to take the change back. Durable, but the undo goes on without it.
    UndoIntent {
        /// Why.
        reason: String,
    },
    /// A step's undo was answered.
    UndoStep {
        /// The step.
        step: usize,
        /// How.
        outcome: StepOutcome,
    },
    /// Every touched row shows its old values. Durable.
    RolledBack,
    /// The undo ended and left something. Durable.
    RollbackPartial {
        /// Exactly the difference.
        left: Vec<LeftOver>,
    },
    /// Nothing was written to the device. Durable.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// The operation cannot be decided now; it stays open.
    Indeterminate {
        /// Why.
        reason: String,
    },
}

impl Record {
    /// Returns the record's stored name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpPlanned { .. } => "op_planned",
            Self::StepSent { .. } => "step_sent",
            Self::StepOutcome { .. } => "step_outcome",
            Self::Applied => "applied",
            Self::ConfirmIntent { .. } => "confirm_intent",
            Self::Confirmed => "confirmed",
            Self::Merged => "merged",
            Self::UndoIntent { .. } => "undo_intent",
            Self::UndoStep { .. } => "undo_step",
            Self::RolledBack => "rolled_back",
            Self::RollbackPartial { .. } => "rollback_partial",
            Self::Cancelled { .. } => "cancelled",
            Self::Indeterminate { .. } => "indeterminate",
        }
    }
}

/// What a journal adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalState {
    /// No plan was written.
    None,
    /// A plan, and no decision.
    Planned,
    /// The decision to keep the change, not yet merged.
    ConfirmIntent,
    /// The decision to take it back.
    Undoing,
    /// Merged.
    Merged,
    /// Ended without writing, or fully taken back.
    RolledBack,
    /// Ended with something left.
    RollbackPartial,
    /// Ended before the first write.
    Cancelled,
}

impl JournalState {
    /// All states, for tables that must be total.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Planned,
        Self::ConfirmIntent,
        Self::Undoing,
        Self::Merged,
        Self::RolledBack,
        Self::RollbackPartial,
        Self::Cancelled,
    ];

    /// Folds records into a state. Records after an ending change nothing.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        records.into_iter().fold(Self::None, Self::then)
    }

    /// Returns the state after one more record.
    pub fn then(self, record: &Record) -> Self {
        if !self.is_open() && self != Self::None {
            return self;
        }
        match record {
            Record::OpPlanned { .. } => Self::Planned,
            Record::ConfirmIntent { .. } | Record::Confirmed => Self::ConfirmIntent,
            Record::Merged => Self::Merged,
            Record::UndoIntent { .. } if self == Self::ConfirmIntent => self,
            Record::UndoIntent { .. } => Self::Undoing,
            Record::RolledBack => Self::RolledBack,
            Record::RollbackPartial { .. } => Self::RollbackPartial,
            Record::Cancelled { .. } => Self::Cancelled,
            Record::StepSent { .. }
            | Record::StepOutcome { .. }
            | Record::Applied
            | Record::UndoStep { .. }
            | Record::Indeterminate { .. } => self,
        }
    }

    /// Returns whether recovery has something to do.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Planned | Self::ConfirmIntent | Self::Undoing)
    }

    /// Returns the stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Planned => "planned",
            Self::ConfirmIntent => "confirm_intent",
            Self::Undoing => "undoing",
            Self::Merged => "merged",
            Self::RolledBack => "rolled_back",
            Self::RollbackPartial => "rollback_partial",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads a stored name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_final() {
        let undo = Record::UndoIntent { reason: "late".into() };
        assert_eq!(JournalState::of([&Record::Merged, &undo, &Record::RolledBack]), JournalState::Merged);
        assert_eq!(JournalState::of([&Record::RolledBack, &Record::Merged]), JournalState::RolledBack);
    }

    #[test]
    fn an_undo_after_the_commit_point_is_ignored() {
        let intent = Record::ConfirmIntent { rows: vec![] };
        let undo = Record::UndoIntent { reason: "too late".into() };
        assert_eq!(JournalState::of([&intent, &undo]), JournalState::ConfirmIntent);
    }

    #[test]
    fn stored_names_are_read_back() {
        for state in JournalState::ALL {
            assert_eq!(JournalState::parse(state.as_str()), Some(state));
        }
        assert_eq!(JournalState::parse("else"), None);
    }
}
