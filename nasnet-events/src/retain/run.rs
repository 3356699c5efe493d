//! Plans retention over all scopes, and carries a plan out.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::consumer::guard::guards;
use crate::epoch;
use crate::error::Error;
use crate::observe;
use crate::position::Position;
use crate::retain::age::Ages;
use crate::retain::plan::{self, Doomed, Due, Forced, RetentionPlan, ScopePlan, Terms, UnitKind};
use crate::retain::{facts, marks, remove};
use crate::shared::Shared;
use crate::store::EventStore;
use crate::warm::bodies;

const PLAN: Cause = Cause::new("event-retention");
/// It frees what others need, so a full medium and a budget that is used up let it pass.
const RETAIN: Cause = Cause::new("event-retain").critical();
const MARK_AGE: Cause = Cause::new("event-age").critical();
/// Rows and segments of one transaction: few enough that its log fits what a full file keeps back.
const STEP_UNITS: usize = 32;

/// What a retention removed.
#[derive(Debug, Default)]
pub struct RetentionReport {
    /// True when nothing was removed, because the plan was to be tried only: the numbers say what would have been.
    pub is_dry: bool,
    /// Events removed.
    pub events: u64,
    /// Rows of theirs.
    pub rows: u64,
    /// Segments of theirs.
    pub segments: u64,
    /// Stored bytes of theirs. The file gets smaller when the database is vacuumed.
    pub bytes: u64,
    /// Events removed although a consumer still wanted them.
    pub forced: Vec<Forced>,
    /// Rows and segments of the plan that stay, because something has changed since it was made.
    pub skipped: u64,
    /// Scopes whose database failed: what was removed of them before is counted.
    pub failed: Vec<(Scope, Error)>,
}

impl fmt::Display for RetentionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, segments, rows, bytes, .. } = self;
        let word = if self.is_dry { "would go" } else { "removed" };
        write!(f, "{events} events in {segments} segments and {rows} rows ({bytes} bytes) {word}")
    }
}

impl RetentionReport {
    fn add(&mut self, gone: &[Doomed]) {
        for unit in gone {
            self.events += unit.events;
            self.bytes += unit.bytes;
            match unit.kind {
                UnitKind::Row => self.rows += 1,
                UnitKind::Sealed | UnitKind::Segment => self.segments += 1,
            }
            let Some(consumer) = &unit.forced else { continue };
            match self.forced.iter_mut().find(|forced| forced.consumer == *consumer) {
                Some(forced) => forced.events += unit.events,
                None => self.forced.push(Forced { consumer: consumer.clone(), events: unit.events }),
            }
        }
    }
}

/// What one transaction is about.
struct Part {
    shared: Arc<Shared>,
    scope: Scope,
    units: Vec<Doomed>,
}

impl Part {
    async fn check(self, conn: &mut SqliteConnection) -> Result<remove::Step, Error> {
        let Self { shared, scope, units } = self;
        remove::check(conn, &scope, units, &shared.options.retention, shared.cold.is_some()).await
    }

    async fn remove(self, conn: &mut SqliteConnection, annexes: Option<&Annexes>) -> Result<remove::Step, Error> {
        let scope = self.scope.clone();
        let step = self.check(conn).await?;
        remove::remove(conn, annexes, &scope, &step).await?;
        Ok(step)
    }
}

impl EventStore {
    /// Notes how far the order of events has come by now: retention tells ages by such notes, not by the clock, so what
    /// was appended after the last one has no age yet. [`EventStore::maintain`] does it every few hours; whoever does not
    /// run that calls it, say, once a day and at the end. One small write to flash.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read or system.db not be written.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn mark_age(&self) -> Result<(), Error> {
        self.note_age(Duration::ZERO, Duration::ZERO).await
    }

    /// Makes a note unless there is one of this boot that is younger, or as many as this part of a boot gets.
    pub(crate) async fn mark_age_after(&self, every: Duration) -> Result<(), Error> {
        self.note_age(every, self.shared().options.retention.mark_every()).await
    }

    /// `within` = how far notes may be apart.
    async fn note_age(&self, every: Duration, within: Duration) -> Result<(), Error> {
        let shared = self.shared();
        let view = self.view().await?;
        let (now, end) = (shared.manager.now(), Position::new(view.epoch, view.end));
        let system = shared.manager.system();
        let known = system.read(MARK_AGE, |conn| Box::pin(marks::list(conn))).await?;
        if Ages::new(known, &now, end).next(&now, every).is_none() {
            return Ok(());
        }
        system
            .write(MARK_AGE, move |conn| {
                Box::pin(async move {
                    // Another process may have been quicker.
                    let ages = Ages::new(marks::list(conn).await?, &now, end);
                    match ages.next(&now, every) {
                        Some(mark) => marks::add(conn, &mark, ages.spare(&now, within)).await,
                        None => Ok(()),
                    }
                })
            })
            .await
    }

    /// Tells what retention would remove from the warm tier now, and what holds the rest back. Opens every router's
    /// database.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db or system.db cannot be read, [`Error::Corrupt`] when the row of a consumer does not
    /// check. A router's failure is in the plan.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn retention_plan(&self) -> Result<RetentionPlan, Error> {
        let shared = self.shared();
        let (now, view) = (shared.manager.now(), self.view().await?);
        let end = Position::new(view.epoch, view.end);
        let marks = shared.manager.system().read(PLAN, |conn| Box::pin(marks::list(conn))).await?;
        let ages = Ages::new(marks, &now, end);
        let options = &shared.options;
        let terms = Terms { policy: &options.retention, classes: &options.classes, ages: &ages, now: &now };
        let (mut dues, mut failed) = (Vec::new(), Vec::new());
        for scope in epoch::scopes(&shared.manager).await? {
            match self.due(&scope, &terms, view.resolved()).await {
                Ok(due) => dues.push(due),
                Err(error) => failed.push((scope, error)),
            }
        }
        let guards = guards(shared).await?;
        let scopes = plan::decide(dues, &guards, &ages, &now);
        Ok(RetentionPlan { fleet: shared.manager.fleet_id(), is_dry: false, scopes, failed })
    }

    async fn due(&self, scope: &Scope, terms: &Terms<'_>, resolved: Position) -> Result<Due, Error> {
        let shared = Arc::clone(self.shared());
        let database = shared.manager.scope(scope).await?;
        let own = scope.clone();
        let facts = database
            .read(PLAN, move |conn| {
                Box::pin(async move {
                    let policy = &shared.options.retention;
                    facts::gather(conn, &own, policy, shared.cold.is_some(), resolved).await
                })
            })
            .await?;
        Ok(plan::due(facts, terms))
    }

    /// Carries a plan out. It is checked against how things are now: what may not go any more stays, and nothing goes
    /// that was not planned, so a plan may be old, and two processes may carry out theirs at once. The events, the marks
    /// that let them go, the ends of the chains, the highest versions of their streams and the record for consumers
    /// ([`crate::Item::Truncated`]) change in one transaction, a few dozen rows and segments at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a plan of another fleet, and those of [`EventStore::retention_plan`]. A scope that fails is
    /// in the report and does not stop the others.
    ///
    /// # Cancel safety
    /// Safe: it ends between two transactions.
    pub async fn retain(&self, plan: RetentionPlan) -> Result<RetentionReport, Error> {
        self.retain_step(plan, usize::MAX).await
    }

    /// Carries out the oldest part of a plan, at most so many rows and segments of each scope.
    pub(crate) async fn retain_step(&self, plan: RetentionPlan, units_max: usize) -> Result<RetentionReport, Error> {
        let fleet = self.shared().manager.fleet_id();
        if plan.fleet != fleet {
            let value = plan.fleet.to_string();
            return Err(Error::Invalid { what: "retention plan", value, why: "it is of another fleet" });
        }
        let mut report = RetentionReport { is_dry: plan.is_dry, ..RetentionReport::default() };
        if plan.is_empty() {
            return Ok(report);
        }
        let as_is = self.retention_plan().await?;
        for planned in plan.scopes.into_iter().filter(|planned| !planned.doomed.is_empty()) {
            let Some(as_is) = as_is.scope(&planned.scope) else {
                report.skipped += planned.doomed.len() as u64;
                continue;
            };
            if let Err(error) = self.retain_scope(&planned, as_is, units_max, &mut report).await {
                report.failed.push((planned.scope, error));
            }
        }
        report.failed.extend(as_is.failed);
        Ok(report)
    }

    async fn retain_scope(
        &self,
        planned: &ScopePlan,
        as_is: &ScopePlan,
        units_max: usize,
        report: &mut RetentionReport,
    ) -> Result<(), Error> {
        let key = |unit: &Doomed| (unit.kind, unit.first, unit.last);
        let wanted: HashSet<_> = planned.doomed.iter().map(key).collect();
        let both: Vec<Doomed> = as_is.doomed.iter().filter(|unit| wanted.contains(&key(unit))).cloned().collect();
        report.skipped += (planned.doomed.len() - both.len()) as u64;
        let both = &both[..both.len().min(units_max)];
        let database = self.shared().manager.scope(&planned.scope).await?;
        for units in both.chunks(STEP_UNITS) {
            let part = Part { shared: Arc::clone(self.shared()), scope: planned.scope.clone(), units: units.to_vec() };
            let step = if report.is_dry {
                database.read(PLAN, move |conn| Box::pin(part.check(conn))).await?
            } else {
                let annexes = database.annexes().cloned();
                let step = database
                    .write(RETAIN, move |conn| Box::pin(async move { part.remove(conn, annexes.as_ref()).await }))
                    .await?;
                observe::pruned(&step.gone);
                step
            };
            report.add(&step.gone);
            report.skipped += step.skipped;
        }
        if !report.is_dry {
            // A file of bodies goes once no segment is left in it, and is noted as such now.
            let _nothing_is_flushed = self.shared().flush_turn().await;
            bodies::remove_unnamed(&database, bodies::UNNAMED_KEPT).await?;
        }
        Ok(())
    }
}
