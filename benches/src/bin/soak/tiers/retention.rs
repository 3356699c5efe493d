//! The rules of retention, told anew from what a walk did, and compared unit by unit with what retention removes.
//!
//! A unit is a row or a segment. One goes when each event in it has been there for its time, told by the running time that
//! the walk let pass and had marked; when it is archived, where there is a cold tier; when nothing in it is folded, or a
//! snapshot at or after it exists; when the consumer has seen it, or has stood still for longer than its guard allows; and
//! unless it is the newest flushed segment of its scope.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::{BootId, BoxFuture, Cause, Now, Scope};
use nasnet_events::{
    Blocker, Class, ClassRules, Error, Guard, Level, Position, Retention, RetentionPlan, RetentionReport,
    SnapshotHorizon,
};
use sqlx::SqliteConnection;

use crate::Failure;
use crate::events::{self, Open, SCOPES, SCOPES_COUNT, STREAMS, Told};

const CAUSE: Cause = Cause::new("soak-retention");
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// Packed positions: the epoch above so many bits of sequence number.
const SEQ_BITS: u32 = 40;
const UNITS: &str = "SELECT 0, pos, pos, 1 FROM event_rows \
     UNION ALL SELECT 1, first_pos, last_pos, events FROM event_sealed \
     UNION ALL SELECT 2, first_pos, last_pos, events FROM event_segments \
     UNION ALL SELECT 3, pos, pos, 0 FROM event_cursors WHERE name = 'archive'";

const MARK: &str = "INSERT INTO event_retained (what, through_pos) VALUES (?1, ?2) \
     ON CONFLICT (what) DO UPDATE SET through_pos = MAX(through_pos, excluded.through_pos)";
const REMOVE: &str = "DELETE FROM event_rows WHERE pos = ?1";

/// Snapshots of what is folded reach up to here in every scope.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Option<Position>>);

impl Snapshots {
    pub(super) fn set(&self, through: Option<Position>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = through;
    }

    fn through(&self) -> Option<Position> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotHorizon for Snapshots {
    fn snapshot_through<'c>(
        &'c self,
        _: &'c mut SqliteConnection,
        _: &'c Scope,
    ) -> BoxFuture<'c, Result<Option<Position>, Error>> {
        let through = self.through();
        Box::pin(async move { Ok(through) })
    }
}

/// What the warm tier keeps in a walk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    /// One day of Low, a week of Normal, a month of Critical events.
    Default,
    /// Readings for three days, whatever their class.
    ReadingsLonger,
    /// Changes of resources for ever.
    ResourcesForEver,
    /// What was applied for two days.
    AppliedShorter,
}

impl Policy {
    pub(super) const ALL: [Self; 4] =
        [Self::Default, Self::ReadingsLonger, Self::ResourcesForEver, Self::AppliedShorter];

    /// The rule of one type, whose events are all of one class in a walk: pattern, class and days.
    const fn rule(self) -> Option<(&'static str, Class, Option<u32>)> {
        match self {
            Self::Default => None,
            Self::ReadingsLonger => Some(("metric.updated", Class::Low, Some(3))),
            Self::ResourcesForEver => Some(("resource", Class::Normal, None)),
            Self::AppliedShorter => Some(("*.applied", Class::Critical, Some(2))),
        }
    }

    pub(super) fn retention(self) -> Retention {
        match self.rule() {
            None => Retention::default(),
            Some((pattern, _, days)) => Retention::default().types(pattern, days.map(|days| DAY * days)),
        }
    }

    /// How long an event stays that is in a unit of this kind, `None` = for ever.
    fn keep(self, told: &Told, unit: UnitKind) -> Result<Option<Duration>, Failure> {
        if let Some((_, class, days)) = self.rule()
            && class == told.class
        {
            return Ok(days.map(|days| DAY * days));
        }
        let class = match unit {
            UnitKind::Row => told.class,
            UnitKind::Segment => Class::Normal,
            // Its rows are of several classes: each is kept as long as any event of its type.
            UnitKind::Sealed => {
                let (rules, kind) = (ClassRules::default(), events::kind_of(told.class)?);
                let levels = [Level::Debug, Level::Info, Level::Warning, Level::Error];
                levels.map(|level| rules.classify(&kind, level)).into_iter().max().unwrap_or(Class::Critical)
            }
        };
        Ok(Some(match class {
            Class::Low => DAY,
            Class::Normal => 7 * DAY,
            Class::Critical => 30 * DAY,
        }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UnitKind {
    Row,
    Sealed,
    Segment,
}

/// A row or a segment as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unit {
    scope: u64,
    kind: UnitKind,
    first: Position,
    pub(super) last: Position,
    events: u64,
}

/// What the warm tier holds.
#[derive(Debug, Default)]
pub(super) struct Warm {
    pub(super) units: BTreeSet<Unit>,
    /// Up to where each scope is archived.
    archived: [Option<Position>; SCOPES_COUNT],
}

impl Warm {
    /// As if nothing had been flushed since.
    pub(super) fn without_new_segments(mut self, before: &Self) -> Self {
        self.units.retain(|unit| unit.kind != UnitKind::Segment || before.units.contains(unit));
        self
    }

    /// Looks at the tables themselves.
    pub(super) async fn look(open: &Open) -> Result<Self, Failure> {
        let mut warm = Self::default();
        for (number, archived) in (0..SCOPES).zip(0_usize..) {
            let database = open.db.scope(&events::scope(number)?).await?;
            let found: Vec<(i64, i64, i64, i64)> = database
                .read(CAUSE, |conn| {
                    Box::pin(async move { Ok::<_, Error>(sqlx::query_as(UNITS).fetch_all(conn).await?) })
                })
                .await?;
            for (kind, first, last, events) in found {
                let kind = match kind {
                    0 => UnitKind::Row,
                    1 => UnitKind::Sealed,
                    2 => UnitKind::Segment,
                    _ => {
                        warm.archived[archived] = Some(position(first)?);
                        continue;
                    }
                };
                let (first, last, events) = (position(first)?, position(last)?, u64::try_from(events)?);
                warm.units.insert(Unit { scope: number, kind, first, last, events });
            }
        }
        Ok(warm)
    }

    /// First positions of the newest flushed segments.
    fn newest(&self, scope: u64) -> Option<Position> {
        let flushed = self.units.iter().filter(|unit| unit.scope == scope && unit.kind == UnitKind::Segment);
        flushed.map(|unit| unit.first).max()
    }

    /// The events of a unit that somebody was told of, by number in the list.
    pub(super) fn members(&self, unit: &Unit, told: &[Told]) -> Vec<usize> {
        let is_row = |told: &Told| {
            let row = Unit { kind: UnitKind::Row, first: told.position, last: told.position, events: 1, ..*unit };
            self.units.contains(&row)
        };
        let is_in = |told: &Told| {
            let of_kind = match unit.kind {
                UnitKind::Row => true,
                UnitKind::Sealed => told.is_row && !is_row(told),
                UnitKind::Segment => !told.is_row && told.class == Class::Normal,
            };
            told.scope == unit.scope && unit.first <= told.position && told.position <= unit.last && of_kind
        };
        told.iter().enumerate().filter(|(_, told)| is_in(told)).map(|(number, _)| number).collect()
    }
}

fn position(key: i64) -> Result<Position, Failure> {
    let key = u64::try_from(key)?;
    Ok(Position::new(u32::try_from(key >> SEQ_BITS)?, key & ((1 << SEQ_BITS) - 1)))
}

/// Where the order stood after how much running time.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Events that somebody was told of until then.
    told: usize,
    counted_ms: u64,
    boot: BootId,
    boottime_ms: u64,
}

/// Running time as it may be counted: within a boot, between two marks and after the last one.
#[derive(Debug, Default)]
pub(super) struct Ages(Vec<Mark>);

impl Ages {
    fn counted_ms(&self, now: &Now) -> u64 {
        let Some(last) = self.0.last() else { return 0 };
        let since = if last.boot == now.boot { now.boottime_ms - last.boottime_ms } else { 0 };
        last.counted_ms + since
    }

    pub(super) fn mark(&mut self, told: usize, now: &Now) {
        let counted_ms = self.counted_ms(now);
        self.0.push(Mark { told, counted_ms, boot: now.boot, boottime_ms: now.boottime_ms });
    }

    /// How old a position is; `None` before the first mark behind it.
    fn age(&self, position: Position, told: &[Told], now: &Now) -> Option<Duration> {
        let is_behind = |mark: &&Mark| told.get(mark.told).is_none_or(|next| next.position > position);
        let mark = self.0.iter().find(is_behind)?;
        Some(Duration::from_millis(self.counted_ms(now) - mark.counted_ms))
    }

    /// How long a consumer has stood still.
    fn stood_still(&self, guard: &Guard, now: &Now) -> Duration {
        let Some(mark) = self.0.iter().rev().find(|mark| mark.boot == guard.moved_boot) else {
            return guard.age(now);
        };
        let since = self.counted_ms(now) - mark.counted_ms;
        Duration::from_millis((since + mark.boottime_ms).saturating_sub(guard.moved_boottime_ms))
    }
}

/// What the rules say of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Goes,
    /// Although the consumer has not seen it.
    IsTaken,
    /// Too young, or the newest segment.
    Stays,
    Waits(Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Archive,
    Snapshot,
    Consumer,
}

impl Why {
    fn is(self, by: &Blocker) -> bool {
        match self {
            Self::Archive => matches!(by, Blocker::NotArchived { .. }),
            Self::Snapshot => matches!(by, Blocker::NoSnapshot { .. }),
            Self::Consumer => matches!(by, Blocker::Consumer { .. }),
        }
    }
}

/// What the rules go by.
pub(super) struct Terms<'a> {
    pub(super) policy: Policy,
    pub(super) ages: &'a Ages,
    pub(super) told: &'a [Told],
    /// How long each of them has been there in truth.
    pub(super) there_for: &'a dyn Fn(usize) -> Duration,
    pub(super) snapshots: &'a Snapshots,
    pub(super) has_cold: bool,
    pub(super) guard: Option<Guard>,
    pub(super) now: Now,
}

impl Terms<'_> {
    /// The fates of a unit by the rules: several reasons may hold it.
    fn fates(&self, warm: &Warm, unit: &Unit, members: &[usize]) -> Result<Vec<Fate>, Failure> {
        if unit.kind == UnitKind::Segment && warm.newest(unit.scope) == Some(unit.first) {
            return Ok(vec![Fate::Stays]);
        }
        let age = self.ages.age(unit.last, self.told, &self.now);
        for number in members {
            let keep = self.policy.keep(&self.told[*number], unit.kind)?;
            if keep.is_none_or(|keep| age.is_none_or(|age| age < keep)) {
                return Ok(vec![Fate::Stays]);
            }
        }
        let mut fates = Vec::new();
        let archived = warm.archived[usize::try_from(unit.scope)?];
        if self.has_cold && archived.is_none_or(|through| unit.last > through) {
            fates.push(Fate::Waits(Why::Archive));
        }
        let is_folded = members.iter().any(|number| STREAMS[self.told[*number].stream].starts_with("resource/"));
        if is_folded && self.snapshots.through().is_none_or(|through| unit.last > through) {
            fates.push(Fate::Waits(Why::Snapshot));
        }
        if !fates.is_empty() {
            return Ok(fates);
        }
        let waits = self.guard.as_ref().filter(|guard| guard.position < unit.last);
        Ok(vec![match waits {
            None => Fate::Goes,
            Some(guard) if self.ages.stood_still(guard, &self.now) > guard.max_age => Fate::IsTaken,
            Some(_) => Fate::Waits(Why::Consumer),
        }])
    }

    /// Compares what a retention did with the rules; `None` when they agree. After a `trouble` less may be gone.
    pub(super) fn judge(
        &self,
        before: &Warm,
        after: &Warm,
        plan: Option<&RetentionPlan>,
        report: Option<&RetentionReport>,
    ) -> Result<Option<String>, Failure> {
        if let Some(new) = after.units.difference(&before.units).next() {
            return Ok(Some(format!("{new:?} was not there before a retention")));
        }
        let (mut taken, mut why): (u64, Vec<(u64, Why, bool)>) = (0, Vec::new());
        for unit in &before.units {
            let is_gone = !after.units.contains(unit);
            let members = before.members(unit, self.told);
            // Events of a refused call may be there, and nobody was told of them.
            let is_known = members.len() as u64 == unit.events;
            let fates = self.fates(before, unit, &members)?;
            let may_go = matches!(fates[..], [Fate::Goes | Fate::IsTaken]);
            if is_gone && !may_go {
                return Ok(Some(format!("{unit:?} is gone, and {fates:?} by the rules")));
            }
            for number in members.iter().filter(|_| is_gone) {
                let (keep, there) = (self.policy.keep(&self.told[*number], unit.kind)?, (self.there_for)(*number));
                if keep.is_none_or(|keep| there < keep) {
                    return Ok(Some(format!("{:?} is gone after {there:?}", self.told[*number])));
                }
            }
            if !is_gone && may_go && is_known && report.is_some() {
                return Ok(Some(format!("{unit:?} is still there, and {fates:?} by the rules")));
            }
            taken += if is_gone && fates == [Fate::IsTaken] { unit.events } else { 0 };
            why.extend(fates.iter().filter_map(|fate| match fate {
                Fate::Waits(reason) => Some((unit.scope, *reason, is_known)),
                _ => None,
            }));
        }
        let (Some(plan), Some(report)) = (plan, report) else { return Ok(None) };
        let gone: Vec<&Unit> = before.units.difference(&after.units).collect();
        let events: u64 = gone.iter().map(|unit| unit.events).sum();
        let rows = gone.iter().filter(|unit| unit.kind == UnitKind::Row).count() as u64;
        let told =
            (report.events, report.rows, report.segments, report.forced.iter().map(|forced| forced.events).sum());
        if told != (events, rows, gone.len() as u64 - rows, taken) || plan.events() != events || report.skipped > 0 {
            return Ok(Some(format!("{events} events in {gone:?} are gone, planned was {plan}, told {report:?}")));
        }
        self.judge_reasons(plan, &why)
    }

    /// Each reason that the rules have must be in the plan, and no other.
    fn judge_reasons(&self, plan: &RetentionPlan, why: &[(u64, Why, bool)]) -> Result<Option<String>, Failure> {
        for number in 0..SCOPES {
            let scope = events::scope(number)?;
            let told = plan.scope(&scope).map(|plan| plan.blocked.as_slice()).unwrap_or_default();
            for reason in [Why::Archive, Why::Snapshot, Why::Consumer] {
                let is_told = told.iter().any(|blocked| reason.is(&blocked.by));
                let mut of = why.iter().filter(|(of, other, _)| *of == number && *other == reason).peekable();
                let (may_be, must_be) = (of.peek().is_some(), of.any(|(.., is_known)| *is_known));
                if (is_told && !may_be) || (must_be && !is_told) {
                    return Ok(Some(format!("{reason:?} holds something back in {scope}: {may_be}, told is {plan}")));
                }
            }
        }
        Ok(None)
    }
}

/// What a broken retention would do: one row goes, whatever its age.
pub(super) async fn remove_row(open: &Open, told: &Told) -> Result<(), Failure> {
    let database = open.db.scope(&events::scope(told.scope)?).await?;
    let key = i64::from(told.position.epoch) << SEQ_BITS | i64::try_from(told.position.seq)?;
    let removed = database.write(CAUSE, move |conn| {
        Box::pin(async move {
            for mark in [-1, -2, -3] {
                sqlx::query(MARK).bind(mark).bind(key).execute(&mut *conn).await?;
            }
            Ok::<_, Error>(sqlx::query(REMOVE).bind(key).execute(conn).await?.rows_affected())
        })
    });
    if removed.await? == 1 { Ok(()) } else { Err("there is no such row".into()) }
}
