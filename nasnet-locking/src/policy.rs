//! Which changes need a lease, and which only an expected version.

use std::collections::BTreeMap;

/// How a change of a resource is kept from trampling on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Locking {
    /// A lease is taken before the change begins, since a collision could cut the router off or open it.
    Pessimistic,
    /// The change names the version it was decided on; a collision is found when it is stored, and decided again.
    Optimistic,
}

/// Whether a change can touch the path over which the router is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// It cannot.
    Ordinary,
    /// It can: an address, interface, route or service the management session runs over.
    ManagementPath,
}

/// Rules by kind: the longest dotted prefix decides, what no rule names is optimistic.
///
/// The default leases WAN, VPN, firewall, routing and users; whatever reaches the management path is leased under every
/// rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockPolicy {
    rules: BTreeMap<String, Locking>,
}

impl Default for LockPolicy {
    fn default() -> Self {
        let leased = ["wan", "vpn", "firewall", "routing", "users"];
        Self { rules: leased.map(|prefix| (prefix.to_owned(), Locking::Pessimistic)).into() }
    }
}

impl LockPolicy {
    /// Returns a policy without rules.
    #[must_use]
    pub fn empty() -> Self {
        Self { rules: BTreeMap::new() }
    }

    /// Sets the rule for a kind and everything below it, over a shorter rule or the same one.
    #[must_use]
    pub fn rule(mut self, prefix: impl Into<String>, locking: Locking) -> Self {
        self.rules.insert(prefix.into(), locking);
        self
    }

    /// Tells how a change of a resource of this kind is protected.
    #[must_use]
    pub fn for_kind(&self, kind: &str, reach: Reach) -> Locking {
        if reach == Reach::ManagementPath {
            return Locking::Pessimistic;
        }
        std::iter::successors(Some(kind), |prefix| prefix.rsplit_once('.').map(|(above, _)| above))
            .find_map(|prefix| self.rules.get(prefix))
            .copied()
            .unwrap_or(Locking::Optimistic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_kinds_are_leased_and_the_rest_is_optimistic() {
        let policy = LockPolicy::default();
        for (kind, expected) in [
            ("wan", Locking::Pessimistic),
            ("vpn.wg.client", Locking::Pessimistic),
            ("firewall.filter", Locking::Pessimistic),
            ("routing.route", Locking::Pessimistic),
            ("users", Locking::Pessimistic),
            ("wanderer", Locking::Optimistic),
            ("dhcp.lease", Locking::Optimistic),
            ("", Locking::Optimistic),
        ] {
            assert_eq!(policy.for_kind(kind, Reach::Ordinary), expected, "{kind}");
        }
    }

    #[test]
    fn the_management_path_is_leased_under_every_rule() {
        assert_eq!(LockPolicy::empty().for_kind("dns", Reach::ManagementPath), Locking::Pessimistic);
    }

    #[test]
    fn the_longest_rule_wins() {
        let policy = LockPolicy::default().rule("vpn.pptp", Locking::Optimistic);
        assert_eq!(policy.for_kind("vpn.pptp.client", Reach::Ordinary), Locking::Optimistic);
        assert_eq!(policy.for_kind("vpn.wg", Reach::Ordinary), Locking::Pessimistic);
    }
}
