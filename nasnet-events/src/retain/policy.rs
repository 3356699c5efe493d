//! How long the warm tier keeps what. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::class::Class;
use crate::name::EventType;
use crate::retain::snapshot::SnapshotHorizon;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Where the changes of resources are recorded, which are folded to tell what a resource was.
const RESOURCES: &str = "resource/";

/// How much of a class the warm tier of one scope keeps: whatever exceeds one of the limits may go, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Keep {
    /// For how long, in time the machine was seen to run; `None` = for ever.
    pub age: Option<Duration>,
    /// How many events at most, `None` = any number. Events leave with the row or segment they are in, so a few less stay.
    pub events_max: Option<u64>,
    /// How many stored bytes at most, `None` = any number.
    pub bytes_max: Option<u64>,
}

impl Keep {
    /// Everything for ever.
    pub const FOR_EVER: Self = Self { age: None, events_max: None, bytes_max: None };

    /// For as long as said.
    pub const fn age(age: Duration) -> Self {
        Self { age: Some(age), ..Self::FOR_EVER }
    }

    /// For so many days.
    pub const fn days(days: u32) -> Self {
        Self::age(Duration::from_secs(days as u64 * 24 * 60 * 60))
    }

    /// And no more than so many events.
    pub const fn events_max(self, events: u64) -> Self {
        Self { events_max: Some(events), ..self }
    }

    /// And no more than so many stored bytes.
    pub const fn bytes_max(self, bytes: u64) -> Self {
        Self { bytes_max: Some(bytes), ..self }
    }
}

/// What the warm tier keeps, by class and by type.
///
/// Whatever it says, nothing goes before the cold tier has confirmed its copy (when there is one), past the guard of a
/// consumer, or before a snapshot of what is folded; and no reading of a clock makes anything old: only time in which the
/// machine was seen to run counts ([`crate::EventStore::mark_age`]).
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct Retention {
    /// Critical events. Default 30 days.
    pub critical: Keep,
    /// Normal events. Default 7 days, and no more than 8 MiB of each scope.
    pub normal: Keep,
    /// Low events that were written in a transaction, or asked to be durable. Default one day.
    pub low: Keep,
    /// Streams whose name starts so are folded: none of their events goes before a snapshot at or after it exists.
    /// Default `resource/`. With no snapshots at all their events stay for ever, and so do those that share a segment with
    /// them.
    pub full_history: Vec<String>,
    /// Who knows of snapshots. Default nobody: there are none.
    pub snapshots: Option<Arc<dyn SnapshotHorizon>>,
    types: Vec<(String, Option<Duration>)>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            critical: Keep::days(30),
            normal: Keep::days(7).bytes_max(8 << 20),
            low: Keep::days(1),
            full_history: vec![RESOURCES.to_owned()],
            snapshots: None,
            types: Vec::new(),
        }
    }
}

impl Retention {
    /// Keeps everything.
    pub fn for_ever() -> Self {
        let all = Keep::FOR_EVER;
        Self { critical: all, normal: all, low: all, ..Self::default() }
    }

    /// Sets what is kept of a class.
    pub const fn class(mut self, class: Class, keep: Keep) -> Self {
        match class {
            Class::Critical => self.critical = keep,
            Class::Normal => self.normal = keep,
            Class::Low => self.low = keep,
        }
        self
    }

    /// Keeps some types for another time than their class, `None` = for ever. A pattern is a type, a dotted prefix of
    /// types, or `*.word`; the most specific one counts, as in [`crate::ClassRules`]. Normal events share segments, and a
    /// segment stays as long as one of the types in it.
    pub fn types(mut self, pattern: impl Into<String>, age: Option<Duration>) -> Self {
        let pattern = pattern.into();
        self.types.retain(|(known, _)| *known != pattern);
        self.types.push((pattern, age));
        self
    }

    /// Replaces the prefixes of the streams whose history is folded.
    pub fn full_history<S: Into<String>>(mut self, prefixes: impl IntoIterator<Item = S>) -> Self {
        self.full_history = prefixes.into_iter().map(Into::into).collect();
        self
    }

    /// Names who knows of snapshots.
    pub fn snapshots(mut self, snapshots: Arc<dyn SnapshotHorizon>) -> Self {
        self.snapshots = Some(snapshots);
        self
    }

    pub(crate) const fn of_class(&self, class: Class) -> Keep {
        match class {
            Class::Critical => self.critical,
            Class::Normal => self.normal,
            Class::Low => self.low,
        }
    }

    /// The time of a type that has a rule of its own.
    pub(crate) fn of_type(&self, kind: &EventType) -> Option<Option<Duration>> {
        let kind = kind.as_str();
        let last = kind.rsplit('.').next().unwrap_or(kind);
        let rank = |pattern: &str| match pattern.strip_prefix("*.") {
            _ if pattern == kind => Some(usize::MAX),
            Some(word) => (word == last && kind.len() > last.len()).then_some(usize::MAX - 1),
            None => kind.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.')).then_some(pattern.len()),
        };
        let ranked = self.types.iter().filter_map(|(pattern, age)| Some((rank(pattern)?, *age)));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, age)| age)
    }

    /// True when the events of a stream are folded.
    pub(crate) fn is_folded(&self, stream: &str) -> bool {
        self.full_history.iter().any(|prefix| stream.starts_with(prefix.as_str()))
    }

    /// How often ages have to be marked, so that what is kept stays no more than a quarter longer than it has to.
    pub(crate) fn mark_every(&self) -> Duration {
        const LEAST: Duration = Duration::from_secs(600);
        let classes = [self.critical, self.normal, self.low].into_iter().filter_map(|keep| keep.age);
        let shortest = classes.chain(self.types.iter().filter_map(|(_, age)| *age)).min().unwrap_or(DAY);
        (shortest / 4).clamp(LEAST, DAY / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_of_a_type_counts() {
        let age = |hours: u64| Some(Duration::from_secs(hours * 3_600));
        let retention = Retention::default()
            .types("vpn", age(1))
            .types("vpn.wireguard", age(2))
            .types("*.applied", age(3))
            .types("vpn.wireguard.client.applied", None)
            .types("backup", age(4))
            .types("backup", age(5));
        let of = |kind: &str| retention.of_type(&EventType::parse(kind).unwrap());
        assert_eq!(of("vpn.ipsec.polled"), Some(age(1)));
        assert_eq!(of("vpn"), Some(age(1)));
        assert_eq!(of("vpn.wireguard.client.polled"), Some(age(2)));
        assert_eq!(of("vpn.wireguard.applied"), Some(age(3)));
        assert_eq!(of("vpn.wireguard.client.applied"), Some(None));
        assert_eq!(of("backup.made"), Some(age(5)));
        assert_eq!(of("vpnx.made"), None);
        assert_eq!(of("applied"), None);
    }

    #[test]
    fn the_shortest_time_decides_how_often_ages_are_marked() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        assert_eq!(Retention::default().mark_every(), hours(6));
        assert_eq!(Retention::for_ever().mark_every(), hours(6));
        assert_eq!(Retention::default().types("log", Some(hours(2))).mark_every(), hours(1) / 2);
        assert_eq!(Retention::default().types("log", Some(Duration::ZERO)).mark_every(), Duration::from_secs(600));
    }
}
