//! Which events are kept for how long: a total function of the type.

use foldhash::{HashMap, HashMapExt as _};
use serde::{Deserialize, Serialize};

use crate::event::Level;
use crate::name::EventType;

/// How long an event is kept in the warm tier, and whether it may wait for a flush to get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Hot tier only (24 h), and the cold tier when there is one.
    Low = 0,
    /// Hot first, flushed to flash in segments, 7 days.
    Normal = 1,
    /// On flash before the append returns, 30 days.
    Critical = 2,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::Critical];

    /// The bit that stands for it in a set of classes, also of a stored one.
    pub(crate) const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The word used in rows and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    class: Class,
    /// Events at least this loud get the other class.
    raised: Option<(Level, Class)>,
}

/// The rules that give every event type a class.
///
/// A pattern is a dotted prefix (`auth` covers `auth` and `auth.session.revoked`) or `*.word`, which covers every type
/// ending in that word. The most specific rule wins: the type itself, then `*.word`, then the longest prefix, and
/// [`Class::Normal`] when none applies. Of two rules with the same pattern the later one wins.
#[derive(Debug, Clone)]
pub struct ClassRules {
    /// By dotted prefix.
    prefixes: HashMap<String, Rule>,
    /// By last word.
    words: HashMap<String, Rule>,
}

impl ClassRules {
    /// What is given to a type that no rule knows.
    pub(crate) const DEFAULT: Class = Class::Normal;

    /// Makes rules that know no type at all: everything is [`Class::Normal`].
    #[must_use]
    pub fn empty() -> Self {
        Self { prefixes: HashMap::new(), words: HashMap::new() }
    }

    /// Adds or overrides a rule.
    #[must_use]
    pub fn with(self, pattern: &str, class: Class) -> Self {
        self.with_rule(pattern, Rule { class, raised: None })
    }

    /// Adds or overrides a rule whose events get class `raised` when they are at least as loud as `level`.
    #[must_use]
    pub fn with_level(self, pattern: &str, class: Class, level: Level, raised: Class) -> Self {
        self.with_rule(pattern, Rule { class, raised: Some((level, raised)) })
    }

    fn with_rule(mut self, pattern: &str, rule: Rule) -> Self {
        match pattern.strip_prefix("*.") {
            Some(word) => self.words.insert(word.to_owned(), rule),
            None => self.prefixes.insert(pattern.to_owned(), rule),
        };
        self
    }

    /// Classifies an event.
    #[must_use]
    pub fn classify(&self, kind: &EventType, level: Level) -> Class {
        self.explicit(kind, level).unwrap_or(Self::DEFAULT)
    }

    /// The class given by a rule, `None` when the type is unknown to all of them.
    #[must_use]
    pub fn explicit(&self, kind: &EventType, level: Level) -> Option<Class> {
        let rule = self.rule(kind.as_str())?;
        match rule.raised {
            Some((from, raised)) if level >= from => Some(raised),
            _ => Some(rule.class),
        }
    }

    fn rule(&self, kind: &str) -> Option<&Rule> {
        if let Some(rule) = self.prefixes.get(kind) {
            return Some(rule);
        }
        let (mut prefix, last) = kind.rsplit_once('.')?;
        if let Some(rule) = self.words.get(last) {
            return Some(rule);
        }
        loop {
            if let Some(rule) = self.prefixes.get(prefix) {
                return Some(rule);
            }
            prefix = prefix.rsplit_once('.')?.0;
        }
    }
}

impl Default for ClassRules {
    /// The rules for the types this workspace knows, listed in [`crate::types`].
    fn default() -> Self {
        const CRITICAL: [&str; 29] = [
            "*.applied",
            "*.deleted",
            "auth",
            "config",
            "database",
            "evidence",
            "feature.crashed",
            "feature.installed",
            "lease.fenced",
            "lease.stolen",
            "operation.confirmed",
            "operation.failed",
            "operation.partially_failed",
            "operation.rolled_back",
            "operation.unknown",
            "provisioning",
            "quota",
            "resource.adopted",
            "resource.deployed",
            "resource.firewall.modified",
            "resource.rolled_back",
            "resource.vpn.created",
            "resource.wan.created",
            "router.registered",
            "router.retired",
            "secret",
            "store.shredded",
            "store.tail_lost",
            "store.truncated",
        ];
        const NORMAL: [&str; 17] = [
            "alert",
            "backup",
            "boot",
            "dependency",
            "drift",
            "feature",
            "lease",
            "operation",
            "resource",
            "router",
            "safety_net",
            "store",
            "tunnel",
            "validation",
            "vpn",
            "wan",
            "webhook",
        ];
        const LOW: [&str; 7] =
            ["health", "lease.renewed", "log", "metric", "resource.observed", "runtime", "telemetry"];

        let mut rules = Self::empty();
        for (patterns, class) in
            [(&CRITICAL[..], Class::Critical), (&NORMAL[..], Class::Normal), (&LOW[..], Class::Low)]
        {
            for pattern in patterns {
                rules = rules.with(pattern, class);
            }
        }
        rules.with_level("log", Class::Low, Level::Warning, Class::Normal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types;

    fn class_of(text: &str) -> Class {
        ClassRules::default().classify(&EventType::parse(text).unwrap(), Level::Info)
    }

    #[test]
    fn every_type_constant_is_classified_by_a_rule_and_not_by_the_default() {
        let rules = ClassRules::default();
        for kind in types::ALL {
            for level in Level::ALL {
                assert!(rules.explicit(kind, level).is_some(), "{kind} is in no class");
            }
        }
    }

    #[test]
    fn every_type_an_audit_needs_is_critical() {
        for kind in types::ALL {
            let text = kind.as_str();
            let audited = text.ends_with(".applied")
                || text.ends_with(".deleted")
                || ["auth.", "quota.", "provisioning.", "config."].iter().any(|prefix| text.starts_with(prefix));
            if audited {
                assert_eq!(ClassRules::default().classify(kind, Level::Debug), Class::Critical, "{kind}");
            }
        }
    }

    #[test]
    fn the_types_that_an_earlier_list_forgot_are_not_hot_only() {
        for text in [
            "provisioning.session.applied",
            "provisioning.session.failed",
            "wan.link.applied",
            "tunnel.applied",
            "vpn.wireguard.client.applied",
            "vpn.wireguard.client.connected",
            "vpn.wireguard.client.disconnected",
            "quota.warning.80",
            "quota.warning.90",
            "quota.exceeded",
            "quota.reset",
            "dependency.added",
            "dependency.removed",
            "boot.sequence.started",
            "boot.layer.complete",
            "boot.sequence.complete",
        ] {
            assert_ne!(class_of(text), Class::Low, "{text}");
        }
    }

    #[test]
    fn the_most_specific_rule_wins_and_the_unknown_is_normal() {
        assert_eq!(class_of("never.heard.of"), Class::Normal);
        assert_eq!(class_of("authority.changed"), Class::Normal);
        assert_eq!(class_of("resource.created"), Class::Normal);
        assert_eq!(class_of("resource.deleted"), Class::Critical);
        assert_eq!(class_of("metric.deleted"), Class::Critical);
        assert_eq!(class_of("lease.acquired"), Class::Normal);
        let rules = ClassRules::default().with("metric.deleted", Class::Low).with("vpn.wireguard", Class::Low);
        let classify = |text: &str| rules.classify(&EventType::parse(text).unwrap(), Level::Info);
        assert_eq!(classify("metric.deleted"), Class::Low);
        assert_eq!(classify("vpn.wireguard.polled"), Class::Low);
        assert_eq!(classify("vpn.wireguard.applied"), Class::Critical);
        assert_eq!(classify("vpn.ipsec.polled"), Class::Normal);
    }

    #[test]
    fn loud_log_lines_are_kept() {
        let rules = ClassRules::default();
        let line = EventType::parse("log.wireless.appended").unwrap();
        assert_eq!(rules.classify(&line, Level::Info), Class::Low);
        assert_eq!(rules.classify(&line, Level::Warning), Class::Normal);
        assert_eq!(rules.classify(&line, Level::Error), Class::Normal);
    }

    proptest::proptest! {
        #[test]
        fn classification_is_total(text in "[a-z0-9_]{1,12}(\\.[a-z0-9_]{1,12}){0,5}") {
            let kind = EventType::parse(&text).unwrap();
            for level in Level::ALL {
                let class = ClassRules::default().classify(&kind, level);
                proptest::prop_assert!(Class::ALL.contains(&class));
            }
        }
    }
}
