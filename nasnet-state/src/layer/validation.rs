//! Layer 2, whether the wish can work. Written by the validation pipeline only; a result is never edited, and it says of
//! which inputs it is the result, so it goes stale by itself.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::canonical::StateHash;
use crate::stamp::Timestamp;
use crate::validate::finding::{Finding, Severity};

/// The result of a run of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validation {
    /// The generation that was looked at.
    pub for_generation: u64,
    /// Digest of everything the result depends on.
    pub inputs: StateHash,
    /// What each stage said, in order.
    pub stages: Vec<StageReport>,
    /// When.
    pub validated_at: Timestamp,
    /// The plan made from it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<Ulid>,
}

/// What one stage said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReport {
    /// Which stage.
    pub stage: Stage,
    /// How it ended.
    pub outcome: StageOutcome,
    /// What it found, in a stable order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// The stages, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Names, types, presence, access.
    Schema,
    /// Every value means something.
    Syntax,
    /// The values of one resource go together.
    Semantic,
    /// Resources do not contradict each other.
    CrossResource,
    /// References resolve and can be put in an order.
    Dependency,
    /// The device can do it.
    Platform,
    /// It was tried where it cannot hurt.
    DryRun,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageOutcome {
    /// Nothing stands in the way.
    Pass,
    /// Something does.
    Fail,
    /// It could not be told.
    Unknown,
    /// It did not run.
    Skipped(String),
}

impl Validation {
    /// Returns true when no stage failed and none that ran was left in doubt.
    pub fn can_apply(&self) -> bool {
        self.stages.iter().all(|report| match &report.outcome {
            StageOutcome::Pass => true,
            StageOutcome::Fail | StageOutcome::Unknown | StageOutcome::Skipped(_) => false,
        })
    }

    /// Returns true when the inputs have changed since: the result says nothing any more.
    pub fn is_stale(&self, inputs: StateHash) -> bool {
        self.inputs != inputs
    }

    /// Visits the findings of all stages.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.stages.iter().flat_map(|report| &report.findings)
    }

    /// Visits the findings that stand in the way.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings().filter(|finding| finding.severity == Severity::Error)
    }
}
