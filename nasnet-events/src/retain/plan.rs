//! The rule of retention: what may go, and what holds the rest back. Pure.
//!
//! What goes is a row, a segment of flushed events or a segment of sealed rows, each as a whole. One goes when every event
//! in it may: none is young, unarchived, needed for folding, or waited for by a consumer whose guard still counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use nasnet_dbmanager::{ClockQuality, Now, Scope};
use ulid::Ulid;

use crate::class::{Class, ClassRules};
use crate::consumer::Guard;
use crate::error::Error;
use crate::event::Level;
use crate::name::EventType;
use crate::position::Position;
use crate::retain::age::Ages;
use crate::retain::policy::Retention;

/// What is removed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum UnitKind {
    Row,
    /// A segment of rows that were sealed.
    Sealed,
    /// A segment of flushed events.
    Segment,
}

/// A row or a segment, without its events.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub(crate) kind: UnitKind,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) wall_max_ms: i64,
    /// The class of all its events; `None` when they may be of several.
    pub(crate) class: Option<Class>,
    /// Numbers of the types and streams in it.
    pub(crate) kinds: Vec<i64>,
    pub(crate) streams: Vec<i64>,
}

/// What is known of the warm tier of one scope.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) scope: Scope,
    pub(crate) units: Vec<Unit>,
    pub(crate) names: HashMap<i64, String>,
    /// First position of the newest segment of flushed events: it says how far the scope is flushed, so it stays.
    pub(crate) newest: Option<Position>,
    /// Up to where the cold tier has a copy that was read back; `None` when there is no cold tier.
    pub(crate) archived: Option<Position>,
    /// Up to where snapshots reach.
    pub(crate) snapshot: Option<Position>,
    /// Everything up to here is resolved.
    pub(crate) resolved: Position,
}

/// What the rule goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) policy: &'a Retention,
    pub(crate) classes: &'a ClassRules,
    pub(crate) ages: &'a Ages,
    pub(crate) now: &'a Now,
}

/// Why events that may go by their time or number stay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Blocker {
    /// A consumer has not come so far, and its guard still counts.
    Consumer {
        /// Its name.
        name: String,
        /// Where it stands on flash.
        position: Position,
    },
    /// The cold tier has no confirmed copy.
    NotArchived {
        /// Up to where it has.
        through: Position,
    },
    /// They are needed to tell what something was: no snapshot at or after them exists.
    NoSnapshot {
        /// Up to where one does, `None` = there is none.
        through: Option<Position>,
    },
    /// They are old by the wall clock alone. It may have jumped, or the machine was off; they wait until it was seen to
    /// run for long enough.
    Clock,
    /// A transaction before them has not ended.
    Unresolved {
        /// Everything up to here is resolved.
        through: Position,
    },
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consumer { name, position } => write!(f, "consumer {name} at {position}"),
            Self::NotArchived { through } => write!(f, "the archive, confirmed through {through}"),
            Self::NoSnapshot { through: Some(through) } => write!(f, "a snapshot, the last is at {through}"),
            Self::NoSnapshot { through: None } => f.write_str("a snapshot, there is none"),
            Self::Clock => f.write_str("running time: they are old by the wall clock alone"),
            Self::Unresolved { through } => write!(f, "a transaction behind {through}"),
        }
    }
}

/// Events that stay, and why. Of one event several may be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Why.
    pub by: Blocker,
    /// How many, with those that share a segment.
    pub events: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// Events that go although a consumer still wants them: it stood still for longer, or held back more, than its guard
/// allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// The consumer.
    pub consumer: String,
    /// How many.
    pub events: u64,
}

/// A row or segment that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doomed {
    pub(crate) kind: UnitKind,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// The mark of `event_retained` that lets it go.
    pub(crate) mark: i64,
    pub(crate) folded: bool,
    /// The consumer whose guard is passed.
    pub(crate) forced: Option<String>,
}

/// What retention would remove of one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopePlan {
    /// The scope.
    pub scope: Scope,
    /// Events that go.
    pub events: u64,
    /// Rows of theirs.
    pub rows: u64,
    /// Segments of theirs.
    pub segments: u64,
    /// Stored bytes of theirs.
    pub bytes: u64,
    /// The last position that goes. Not everything before it does.
    pub through: Option<Position>,
    /// Those of them that somebody still wants.
    pub forced: Vec<Forced>,
    /// What stays, and why.
    pub blocked: Vec<Blocked>,
    /// Oldest first.
    pub(crate) doomed: Vec<Doomed>,
}

impl fmt::Display for ScopePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.scope)?;
        match self.through {
            Some(through) => {
                let Self { events, segments, rows, bytes, .. } = self;
                write!(
                    f,
                    "{events} events in {segments} segments and {rows} rows ({bytes} bytes) go, through {through}"
                )?;
            }
            None => f.write_str("nothing goes")?,
        }
        for Forced { consumer, events } in &self.forced {
            write!(f, "; {events} of them past consumer {consumer}")?;
        }
        for Blocked { by, events, .. } in &self.blocked {
            write!(f, "; {events} events wait for {by}")?;
        }
        Ok(())
    }
}

/// What retention would remove now, and what holds the rest back. Made by [`crate::EventStore::retention_plan`], carried out
/// by [`crate::EventStore::retain`]. Prints as one line.
#[derive(Debug)]
#[must_use]
pub struct RetentionPlan {
    pub(crate) fleet: Ulid,
    pub(crate) is_dry: bool,
    /// By scope; those of which nothing goes and nothing waits are in it too.
    pub scopes: Vec<ScopePlan>,
    /// Scopes whose database cannot be read now: nothing of them goes.
    pub failed: Vec<(Scope, Error)>,
}

impl RetentionPlan {
    /// Makes [`crate::EventStore::retain`] check everything, report what would go, and remove nothing.
    pub fn dry_run(mut self) -> Self {
        self.is_dry = true;
        self
    }

    /// Leaves the other scopes alone.
    pub fn only(mut self, scope: &Scope) -> Self {
        self.scopes.retain(|plan| plan.scope == *scope);
        self.failed.retain(|(failed, _)| failed == scope);
        self
    }

    /// True when nothing would go.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scopes.iter().all(|plan| plan.doomed.is_empty())
    }

    /// Events that would go.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.scopes.iter().map(|plan| plan.events).sum()
    }

    /// The plan of a scope.
    #[must_use]
    pub fn scope(&self, scope: &Scope) -> Option<&ScopePlan> {
        self.scopes.iter().find(|plan| plan.scope == *scope)
    }
}

impl fmt::Display for RetentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_first = true;
        for plan in self.scopes.iter().filter(|plan| plan.through.is_some() || !plan.blocked.is_empty()) {
            write!(f, "{}{plan}", if is_first { "" } else { " | " })?;
            is_first = false;
        }
        for (scope, error) in &self.failed {
            write!(f, "{}{scope}: {error}", if is_first { "" } else { " | " })?;
            is_first = false;
        }
        if is_first { f.write_str("nothing goes") } else { Ok(()) }
    }
}

/// What nothing but a guard may still hold back, and what stays for another reason.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) scope: Scope,
    names: HashMap<i64, String>,
    /// Oldest first, each with the mark that lets it go.
    units: Vec<(Unit, i64, bool)>,
    blocked: Tally,
}

/// Counts what stays.
#[derive(Debug, Default)]
struct Tally(BTreeMap<Blocker, (u64, u64)>);

impl Tally {
    fn add(&mut self, by: Blocker, unit: &Unit) {
        let (events, bytes) = self.0.entry(by).or_default();
        *events += unit.events;
        *bytes += unit.bytes;
    }
}

/// The number of a class in `event_retained`.
const fn class_mark(class: Class) -> i64 {
    match class {
        Class::Low => -1,
        Class::Normal => -2,
        Class::Critical => -3,
    }
}

/// What is kept of one type.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// By the rules in force: the longest-kept class that an event of the type may get.
    class: Class,
    /// The time of a rule of its own.
    own: Option<Option<Duration>>,
}

fn kept(kind: Option<&String>, terms: &Terms<'_>) -> Kept {
    // A name that is damaged stays as long as anything does.
    let Some(kind) = kind.and_then(|kind| EventType::parse(kind).ok()) else {
        return Kept { class: Class::Critical, own: None };
    };
    let classes = Level::ALL.into_iter().map(|level| terms.classes.classify(&kind, level));
    Kept { class: classes.max().unwrap_or(Class::Critical), own: terms.policy.of_type(&kind) }
}

/// Up to where each class may go because there is more of it than is kept.
fn surplus(units: &[Unit], class_of: impl Fn(&Unit) -> Class, policy: &Retention) -> HashMap<Class, Position> {
    let mut newest_first: Vec<&Unit> = units.iter().collect();
    newest_first.sort_by_key(|unit| std::cmp::Reverse(unit.last));
    let mut sums: HashMap<Class, (u64, u64)> = HashMap::new();
    let mut through = HashMap::new();
    for unit in newest_first {
        let class = class_of(unit);
        let keep = policy.of_class(class);
        let (events, bytes) = sums.entry(class).or_default();
        *events += unit.events;
        *bytes += unit.bytes;
        let is_over =
            keep.events_max.is_some_and(|max| *events > max) || keep.bytes_max.is_some_and(|max| *bytes > max);
        if is_over {
            through.entry(class).or_insert(unit.last);
        }
    }
    through
}

/// What may go of a scope as far as its own database tells.
pub(crate) fn due(facts: Facts, terms: &Terms<'_>) -> Due {
    let Facts { scope, mut units, names, newest, archived, snapshot, resolved } = facts;
    let mut known: HashMap<i64, Kept> = HashMap::new();
    for kind in units.iter().flat_map(|unit| &unit.kinds) {
        known.entry(*kind).or_insert_with(|| kept(names.get(kind), terms));
    }
    let unknown = Kept { class: Class::Critical, own: None };
    let kept_of = |kind: &i64| known.get(kind).copied().unwrap_or(unknown);
    let class_of = |unit: &Unit| {
        let by_rule = || unit.kinds.iter().map(|kind| kept_of(kind).class).max().unwrap_or(Class::Critical);
        unit.class.unwrap_or_else(by_rule)
    };
    let surplus = surplus(&units, class_of, terms.policy);
    let mut through: HashMap<Duration, Position> = HashMap::new();
    let mut blocked = Tally::default();
    let mut may_go = Vec::new();
    units.sort_by_key(|unit| (unit.last, unit.first));
    for unit in units {
        if unit.kind == UnitKind::Segment && newest.is_none_or(|newest| unit.first >= newest) {
            continue;
        }
        let is_surplus = surplus.get(&class_of(&unit)).is_some_and(|through| unit.last <= *through);
        // For how long a type is kept; a type without a rule of its own may also go for their number.
        let ages: Vec<(Option<Duration>, bool)> = unit
            .kinds
            .iter()
            .map(kept_of)
            .map(|kept| match kept.own {
                Some(age) => (age, false),
                None => (terms.policy.of_class(unit.class.unwrap_or(kept.class)).age, is_surplus),
            })
            .collect();
        let mut is_old = |age: Option<Duration>| {
            age.is_some_and(|age| unit.last <= *through.entry(age).or_insert_with(|| terms.ages.through(age)))
        };
        if ages.is_empty() || !ages.iter().all(|(age, is_surplus)| *is_surplus || is_old(*age)) {
            let by_wall = |age: Option<Duration>| {
                let passed = u64::try_from(terms.now.wall_ms.saturating_sub(unit.wall_max_ms)).unwrap_or(0);
                age.is_some_and(|age| u128::from(passed) >= age.as_millis())
            };
            let is_synced = terms.now.quality == ClockQuality::Synced && !ages.is_empty();
            if is_synced && ages.iter().all(|(age, is_surplus)| *is_surplus || by_wall(*age)) {
                blocked.add(Blocker::Clock, &unit);
            }
            continue;
        }
        let is_folded = |stream: &i64| names.get(stream).is_none_or(|stream| terms.policy.is_folded(stream));
        let folded = unit.streams.iter().any(is_folded);
        let mut is_free = true;
        let mut hold = |by: Blocker| {
            blocked.add(by, &unit);
            is_free = false;
        };
        if unit.last > resolved {
            hold(Blocker::Unresolved { through: resolved });
        }
        if let Some(through) = archived.filter(|through| unit.last > *through) {
            hold(Blocker::NotArchived { through });
        }
        if folded && snapshot.is_none_or(|through| unit.last > through) {
            hold(Blocker::NoSnapshot { through: snapshot });
        }
        if is_free {
            let own = unit.kinds.first().filter(|kind| kept_of(kind).own.is_some()).copied();
            let mark = match unit.kind {
                UnitKind::Segment => 0,
                UnitKind::Sealed => -5,
                UnitKind::Row => own.unwrap_or_else(|| class_mark(class_of(&unit))),
            };
            may_go.push((unit, mark, folded));
        }
    }
    Due { scope, names, units: may_go, blocked }
}

/// Lets guards speak, over all scopes at once: what they may hold back is limited in all.
pub(crate) fn decide(mut dues: Vec<Due>, guards: &[Guard], ages: &Ages, now: &Now) -> Vec<ScopePlan> {
    // The guards that hold a unit back, and the one it is taken from with the oldest position.
    let mut held: HashSet<(usize, usize)> = HashSet::new();
    let mut forced: HashMap<(usize, usize), &Guard> = HashMap::new();
    for guard in guards {
        // Oldest first: scope, unit, bytes.
        let mut waits: Vec<(usize, usize, u64)> = Vec::new();
        for (scope, due) in dues.iter().enumerate().filter(|(_, due)| guard.filter.wants_scope(&due.scope)) {
            let text = |number: &i64| due.names.get(number).map(String::as_str);
            let wants = |unit: &Unit| {
                unit.last > guard.position
                    && guard.filter.may_want(unit.class, unit.kinds.iter().map(text), unit.streams.iter().map(text))
            };
            let wanted = due.units.iter().enumerate().filter(|(_, (unit, ..))| wants(unit));
            waits.extend(wanted.map(|(number, (unit, ..))| (scope, number, unit.bytes)));
        }
        waits.sort_by_key(|(scope, unit, _)| dues[*scope].units[*unit].0.last);
        let age = ages.since(guard.moved_boot, guard.moved_boottime_ms).unwrap_or_else(|| guard.age(now));
        let mut over = match age > guard.max_age {
            true => u64::MAX,
            false => waits.iter().map(|(.., bytes)| bytes).sum::<u64>().saturating_sub(guard.bytes_max),
        };
        for (scope, number, bytes) in waits {
            if over > 0 {
                over = over.saturating_sub(bytes);
                let taken = forced.entry((scope, number)).or_insert(guard);
                if guard.position < taken.position {
                    *taken = guard;
                }
            } else {
                held.insert((scope, number));
                let by = Blocker::Consumer { name: guard.consumer.clone(), position: guard.position };
                let due = &mut dues[scope];
                due.blocked.add(by, &due.units[number].0);
            }
        }
    }
    let plan = |(scope, due): (usize, Due)| {
        let units = due.units.into_iter().enumerate().filter(|(unit, _)| !held.contains(&(scope, *unit)));
        let doomed = units.map(|(number, (unit, mark, folded))| Doomed {
            kind: unit.kind,
            first: unit.first,
            last: unit.last,
            events: unit.events,
            bytes: unit.bytes,
            mark,
            folded,
            forced: forced.get(&(scope, number)).map(|guard| guard.consumer.clone()),
        });
        let blocked = due.blocked.0.into_iter().map(|(by, (events, bytes))| Blocked { by, events, bytes });
        ScopePlan::of(due.scope, doomed.collect(), blocked.collect())
    };
    dues.into_iter().enumerate().map(plan).collect()
}

impl ScopePlan {
    /// Sums up what goes.
    pub(crate) fn of(scope: Scope, doomed: Vec<Doomed>, blocked: Vec<Blocked>) -> Self {
        let mut forced: BTreeMap<&str, u64> = BTreeMap::new();
        for unit in &doomed {
            if let Some(consumer) = &unit.forced {
                *forced.entry(consumer).or_default() += unit.events;
            }
        }
        let forced =
            forced.into_iter().map(|(consumer, events)| Forced { consumer: consumer.to_owned(), events }).collect();
        let rows = doomed.iter().filter(|unit| unit.kind == UnitKind::Row).count() as u64;
        Self {
            scope,
            events: doomed.iter().map(|unit| unit.events).sum(),
            rows,
            segments: doomed.len() as u64 - rows,
            bytes: doomed.iter().map(|unit| unit.bytes).sum(),
            through: doomed.iter().map(|unit| unit.last).max(),
            forced,
            blocked,
            doomed,
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
