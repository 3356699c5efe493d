//! One step of a plan: one write to one row, with both images and its inverse.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::image::{Fit, RowClass, RowImage, Sight};
use super::row_key::RowKey;
use super::secret::Vault;
use crate::device::{RawFields, RowId, WriteOp};

/// What a step does to its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Creates the row.
    Add,
    /// Changes fields of the row.
    Set,
    /// Removes the row.
    Remove,
}

impl Action {
    /// Returns the word used in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Set => "set",
            Self::Remove => "remove",
        }
    }

    /// Returns the action that takes this one back.
    pub fn inverse(self) -> Self {
        match self {
            Self::Add => Self::Remove,
            Self::Set => Self::Set,
            Self::Remove => Self::Add,
        }
    }
}

/// Whether a step is done or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The step itself.
    Forward,
    /// Its undo.
    Backward,
}

/// What merging a confirmed step does to the stored resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Creates the resource with the written fields as its configuration.
    Create,
    /// Changes the configuration by the written fields.
    Configure,
    /// Deletes the resource.
    Delete,
    /// Leaves the configuration alone: the row was only brought back to what had been confirmed.
    Restore,
}

/// The fields one direction writes, in the device's spelling.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Fields to set, without secrets.
    pub fields: RawFields,
    /// Fields to clear.
    pub unset: Vec<String>,
    /// Names of fields whose values lie in the plan's [`Vault`].
    pub secrets: Vec<String>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the plan.
    pub index: usize,
    /// The resource it serves.
    pub uid: Ulid,
    /// The resource's kind.
    pub kind: String,
    /// The resource's name, for people.
    pub name: String,
    /// Why the step is in the plan, for people.
    pub why: String,
    /// Which row.
    pub key: RowKey,
    /// What is done to it.
    pub action: Action,
    /// What merging it does to the stored resource.
    pub intent: Intent,
    /// The configuration version the change was made against, for an existing resource.
    pub expected_version: Option<u64>,
    /// The row before.
    pub pre: RowImage,
    /// The row after.
    pub post: RowImage,
    /// Secret fields: a device that hides them cannot contradict an image.
    pub hidden: BTreeSet<String>,
    /// What the caller asked for, without markers: what a merge writes into the configuration.
    pub asked: Wire,
    /// What the step writes.
    pub forward: Wire,
    /// What its undo writes.
    pub backward: Wire,
    /// The row before which an added row is placed; the end of the list otherwise.
    pub place_before: Option<RowKey>,
    /// The row before which the undo of a removal puts it back.
    pub undo_place_before: Option<RowKey>,
    /// Steps that must be done before this one, and whose undo must wait for this one's.
    pub requires: Vec<usize>,
}

impl Step {
    /// Compares what a read shows with both images.
    pub fn fit(&self, sight: &Sight) -> Fit {
        Fit::of(&self.pre, &self.post, &self.hidden, sight)
    }

    /// Returns the class of what a read shows.
    pub fn class(&self, sight: &Sight) -> RowClass {
        self.fit(sight).class()
    }

    /// Returns the action of one direction.
    pub fn action_of(&self, direction: Direction) -> Action {
        match direction {
            Direction::Forward => self.action,
            Direction::Backward => self.action.inverse(),
        }
    }

    /// Returns the placement of one direction.
    pub fn placement_of(&self, direction: Direction) -> Option<&RowKey> {
        match direction {
            Direction::Forward => self.place_before.as_ref(),
            Direction::Backward => self.undo_place_before.as_ref(),
        }
    }

    /// Builds the device write of one direction; `None` if a removal has no handle to name its row by.
    pub fn write_op(&self, direction: Direction, id: Option<RowId>, vault: &Vault) -> Option<WriteOp> {
        let wire = match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        };
        let mut fields = wire.fields.clone();
        for name in &wire.secrets {
            if let Some(value) = vault.get(self.index, direction, name) {
                fields.insert(name.clone(), value.to_owned());
            }
        }
        let menu = self.key.menu.clone();
        Some(match self.action_of(direction) {
            Action::Add => WriteOp::Add { menu, fields },
            Action::Set => WriteOp::Set { menu, id, fields, unset: wire.unset.clone() },
            Action::Remove => WriteOp::Remove { menu, id: id? },
        })
    }
}
