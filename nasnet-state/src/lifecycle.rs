//! In one word, where a resource stands. Nothing stores the word, so it can never be stuck: it follows from the layers
//! and from what the engine is doing.

use serde::{Deserialize, Serialize};

use crate::layer::configuration::Intent;
use crate::layer::deployment::Outcome;
use crate::layer::runtime::{DriftState, Runtime};
use crate::layer::validation::Validation;
use crate::resource::Resource;
use crate::value::FieldValue;

/// Where a resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Wanted, and nobody has looked at it in its present form.
    Draft,
    /// Being looked at.
    Validating,
    /// Cannot be applied as it is.
    Invalid,
    /// Can be applied, and waits for it.
    Pending,
    /// Being applied.
    Deploying,
    /// Confirmed by the device; what it does since is not known.
    Deployed,
    /// The last attempt at this generation did not work.
    DeployFailed,
    /// Confirmed, and at work.
    Active,
    /// Confirmed, but not as it should be.
    Degraded,
    /// Confirmed, and switched off on purpose.
    Disabled,
    /// To be taken away.
    Deleting,
    /// Gone.
    Deleted,
}

impl Lifecycle {
    /// Every state.
    pub const ALL: [Self; 12] = [
        Self::Draft,
        Self::Validating,
        Self::Invalid,
        Self::Pending,
        Self::Deploying,
        Self::Deployed,
        Self::DeployFailed,
        Self::Active,
        Self::Degraded,
        Self::Disabled,
        Self::Deleting,
        Self::Deleted,
    ];
}

/// What the state follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Only the tombstone is left.
    pub is_deleted: bool,
    /// Whether it should be there.
    pub intent: Intent,
    /// What the engine is doing with it right now.
    pub activity: Activity,
    /// What validation says about the present generation.
    pub validity: Validity,
    /// How the present generation was deployed.
    pub deployment: DeploymentStanding,
    /// What was seen of it.
    pub condition: RuntimeStanding,
}

/// What the engine is doing with a resource right now, told by its journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Nothing.
    #[default]
    None,
    /// Running the stages.
    Validating,
    /// Writing to the device.
    Applying,
}

/// What validation says about the present generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Validity {
    /// Nothing, or nothing that still counts.
    Unknown,
    /// It can be applied.
    Valid,
    /// It cannot.
    Invalid,
}

/// How the present generation was deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeploymentStanding {
    /// Not at all.
    Never,
    /// The device confirmed it.
    Confirmed,
    /// It was tried and did not end confirmed.
    Failed,
}

/// What was seen of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuntimeStanding {
    /// Nothing, or too long ago.
    Unknown,
    /// It works as it should.
    Healthy,
    /// It is gone, broken, idle, or differs from what was confirmed.
    Impaired,
    /// It is switched off, as wanted.
    Disabled,
}

impl Standing {
    /// Reads the standing of a resource from its layers.
    ///
    /// `validation` is the newest result that is not stale; `runtime` the newest reading.
    pub fn of(
        resource: &Resource,
        validation: Option<&Validation>,
        runtime: Option<&Runtime>,
        activity: Activity,
    ) -> Self {
        let generation = resource.configuration.generation;
        let validity = match validation.filter(|validation| validation.for_generation == generation) {
            None => Validity::Unknown,
            Some(validation) if validation.can_apply() => Validity::Valid,
            Some(_) => Validity::Invalid,
        };
        let deployment = match &resource.deployment {
            Some(deployment) if deployment.latest.generation == generation => match deployment.latest.outcome {
                Outcome::Confirmed => DeploymentStanding::Confirmed,
                Outcome::RolledBack | Outcome::Failed | Outcome::Indeterminate => DeploymentStanding::Failed,
            },
            _ => DeploymentStanding::Never,
        };
        let wants_disabled = resource.configuration.spec.get("disabled") == Some(&FieldValue::Bool(true));
        Self {
            is_deleted: resource.deleted.is_some(),
            intent: resource.configuration.settings.intent,
            activity,
            validity,
            deployment,
            condition: runtime.map_or(RuntimeStanding::Unknown, |runtime| condition(runtime, wants_disabled)),
        }
    }

    /// Returns the one state the standing amounts to.
    pub fn lifecycle(&self) -> Lifecycle {
        if self.is_deleted {
            return Lifecycle::Deleted;
        }
        if self.intent == Intent::Absent {
            return Lifecycle::Deleting;
        }
        match self.activity {
            Activity::Applying => return Lifecycle::Deploying,
            Activity::Validating => return Lifecycle::Validating,
            Activity::None => {}
        }
        match (self.deployment, self.validity) {
            (DeploymentStanding::Confirmed, _) => match self.condition {
                RuntimeStanding::Unknown => Lifecycle::Deployed,
                RuntimeStanding::Healthy => Lifecycle::Active,
                RuntimeStanding::Impaired => Lifecycle::Degraded,
                RuntimeStanding::Disabled => Lifecycle::Disabled,
            },
            (DeploymentStanding::Failed, _) => Lifecycle::DeployFailed,
            (DeploymentStanding::Never, Validity::Unknown) => Lifecycle::Draft,
            (DeploymentStanding::Never, Validity::Invalid) => Lifecycle::Invalid,
            (DeploymentStanding::Never, Validity::Valid) => Lifecycle::Pending,
        }
    }
}

fn condition(runtime: &Runtime, wants_disabled: bool) -> RuntimeStanding {
    let off = runtime.flags.disabled == Some(true);
    match &runtime.drift {
        DriftState::Stale | DriftState::Error(_) => RuntimeStanding::Unknown,
        DriftState::Drifted(_) | DriftState::Missing | DriftState::Orphaned => RuntimeStanding::Impaired,
        DriftState::Unknown | DriftState::InSync | DriftState::Unverifiable(_) => {
            if off && wants_disabled {
                RuntimeStanding::Disabled
            } else if off || runtime.flags.invalid == Some(true) || runtime.flags.running == Some(false) {
                RuntimeStanding::Impaired
            } else if runtime.drift == DriftState::Unknown && runtime.flags.running.is_none() {
                RuntimeStanding::Unknown
            } else {
                RuntimeStanding::Healthy
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn every_standing() -> impl Iterator<Item = Standing> {
        let intents = [Intent::Present, Intent::Absent, Intent::Paused, Intent::Observe];
        let activities = [Activity::None, Activity::Validating, Activity::Applying];
        let validities = [Validity::Unknown, Validity::Valid, Validity::Invalid];
        let deployments = [DeploymentStanding::Never, DeploymentStanding::Confirmed, DeploymentStanding::Failed];
        let conditions =
            [RuntimeStanding::Unknown, RuntimeStanding::Healthy, RuntimeStanding::Impaired, RuntimeStanding::Disabled];
        let count = 2 * intents.len() * activities.len() * validities.len() * deployments.len() * conditions.len();
        (0..count).map(move |mut at| {
            let mut pick = |choices: usize| {
                let picked = at % choices;
                at /= choices;
                picked
            };
            Standing {
                is_deleted: pick(2) == 1,
                intent: intents[pick(intents.len())],
                activity: activities[pick(activities.len())],
                validity: validities[pick(validities.len())],
                deployment: deployments[pick(deployments.len())],
                condition: conditions[pick(conditions.len())],
            }
        })
    }

    #[test]
    fn every_combination_has_one_state_and_every_state_a_combination() {
        let standings: BTreeSet<_> = every_standing().map(|standing| format!("{standing:?}")).collect();
        assert_eq!(standings.len(), 864, "the enumeration repeats itself");
        let reached: BTreeSet<_> = every_standing().map(|standing| standing.lifecycle()).collect();
        assert_eq!(reached, BTreeSet::from(Lifecycle::ALL));
    }

    #[test]
    fn the_states_mean_what_they_say() {
        for standing in every_standing() {
            let state = standing.lifecycle();
            let live = !standing.is_deleted && standing.intent != Intent::Absent;
            let idle = live && standing.activity == Activity::None;
            let confirmed = idle && standing.deployment == DeploymentStanding::Confirmed;
            let never = idle && standing.deployment == DeploymentStanding::Never;
            assert_eq!(state == Lifecycle::Deleted, standing.is_deleted, "{standing:?}");
            assert_eq!(state == Lifecycle::Deleting, !standing.is_deleted && standing.intent == Intent::Absent);
            assert_eq!(state == Lifecycle::Deploying, live && standing.activity == Activity::Applying);
            assert_eq!(state == Lifecycle::Validating, live && standing.activity == Activity::Validating);
            assert_eq!(state == Lifecycle::Active, confirmed && standing.condition == RuntimeStanding::Healthy);
            assert_eq!(state == Lifecycle::Degraded, confirmed && standing.condition == RuntimeStanding::Impaired);
            assert_eq!(state == Lifecycle::Disabled, confirmed && standing.condition == RuntimeStanding::Disabled);
            assert_eq!(state == Lifecycle::Deployed, confirmed && standing.condition == RuntimeStanding::Unknown);
            assert_eq!(state == Lifecycle::Pending, never && standing.validity == Validity::Valid);
            assert_eq!(state == Lifecycle::Invalid, never && standing.validity == Validity::Invalid);
            assert_eq!(state == Lifecycle::Draft, never && standing.validity == Validity::Unknown);
        }
    }
}
