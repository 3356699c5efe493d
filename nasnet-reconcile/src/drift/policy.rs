//! What is done about drift, by kind.

use std::collections::BTreeMap;

use nasnet_state::KindName;
use nasnet_state::layer::configuration::DriftPolicy;

use super::classify::DriftClass;

/// What follows from a policy for one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Response {
    /// Nothing differs.
    Nothing,
    /// Say so.
    Report,
    /// Bring back what was confirmed last.
    Heal,
    /// Take the device's values as the wish.
    Adopt,
    /// Let somebody decide.
    Ask,
}

/// The policy of each kind; the longest dotted prefix decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    default: DriftPolicy,
    rules: BTreeMap<String, DriftPolicy>,
}

impl Default for Policies {
    /// Reports everything: nothing is written to a router unless somebody asked for it.
    fn default() -> Self {
        Self { default: DriftPolicy::Report, rules: BTreeMap::new() }
    }
}

impl Policies {
    /// Sets the policy for kinds no rule names.
    #[must_use]
    pub fn otherwise(mut self, policy: DriftPolicy) -> Self {
        self.default = policy;
        self
    }

    /// Sets the policy for a kind and everything below it.
    #[must_use]
    pub fn rule(mut self, prefix: impl Into<String>, policy: DriftPolicy) -> Self {
        self.rules.insert(prefix.into(), policy);
        self
    }

    /// Returns the policy of a kind; `own` is what the resource itself asks for.
    pub fn of(&self, kind: &KindName, own: Option<DriftPolicy>) -> DriftPolicy {
        let by_rule = || {
            let within = self.rules.iter().filter(|(prefix, _)| kind.is_within(prefix));
            within.max_by_key(|(prefix, _)| prefix.len()).map(|(_, policy)| *policy)
        };
        own.or_else(by_rule).unwrap_or(self.default)
    }
}

/// Decides. Where the wish and the device moved apart, and where several rows answer, no policy acts by itself.
pub fn respond(policy: DriftPolicy, class: DriftClass) -> Response {
    match (class, policy) {
        (DriftClass::InSync | DriftClass::PendingChange, _) => Response::Nothing,
        (DriftClass::Unverifiable, _) | (_, DriftPolicy::Report) => Response::Report,
        (DriftClass::Conflict | DriftClass::Ambiguous, _) | (_, DriftPolicy::Ask) => Response::Ask,
        (DriftClass::RowMissing, DriftPolicy::Adopt) => Response::Ask,
        (_, DriftPolicy::Heal) => Response::Heal,
        (_, DriftPolicy::Adopt) => Response::Adopt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_and_then_the_resource_itself_decide() {
        let policies = Policies::default().rule("vpn", DriftPolicy::Heal).rule("vpn.wireguard.peer", DriftPolicy::Ask);
        let kind = |name: &'static str| KindName::from_static(name);
        assert_eq!(policies.of(&kind("vpn.wireguard"), None), DriftPolicy::Heal);
        assert_eq!(policies.of(&kind("vpn.wireguard.peer"), None), DriftPolicy::Ask);
        assert_eq!(policies.of(&kind("net.vlan"), None), DriftPolicy::Report);
        assert_eq!(policies.of(&kind("net.vlan"), Some(DriftPolicy::Adopt)), DriftPolicy::Adopt);
    }

    #[test]
    fn conflicts_and_ambiguous_rows_are_never_written_by_a_policy() {
        for policy in [DriftPolicy::Report, DriftPolicy::Heal, DriftPolicy::Adopt, DriftPolicy::Ask] {
            for class in [DriftClass::Conflict, DriftClass::Ambiguous, DriftClass::PendingChange, DriftClass::InSync] {
                assert!(!matches!(respond(policy, class), Response::Heal | Response::Adopt), "{policy:?} {class:?}");
            }
        }
        assert_eq!(respond(DriftPolicy::Heal, DriftClass::Changed), Response::Heal);
        assert_eq!(respond(DriftPolicy::Heal, DriftClass::RowMissing), Response::Heal);
    }
}
