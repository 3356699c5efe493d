//! What is where.

use std::sync::{Arc, PoisonError};

use nasnet_dbmanager::{Cause, FlashReport, Scope};

use crate::archive;
use crate::cold::{ColdFindings, ColdState};
use crate::epoch::{self, TailLost};
use crate::error::Error;
use crate::hot::{flushed, log, shed, truncated};
use crate::position::Position;
use crate::reads::Reads;
use crate::retain::{RetentionPlan, horizon};
use crate::store::{EventStore, blocking};
use crate::truncation;
use crate::warm::segment::Lane;
use crate::warm::{dictionary, rows, segment};

const STATUS: Cause = Cause::new("event-status");

/// How much a tier holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Events.
    pub events: u64,
    /// Bytes of their stored form.
    pub bytes: u64,
    /// Position of the oldest.
    pub oldest: Option<Position>,
    /// Position of the newest.
    pub newest: Option<Position>,
}

/// What the warm tier of one scope holds.
#[derive(Debug)]
pub struct ScopeStatus {
    /// The scope.
    pub scope: Scope,
    /// Events stored one by one.
    pub rows: Held,
    /// Flushed events, in segments.
    pub segments: Held,
    /// Number of those segments.
    pub segment_count: u64,
    /// Events that were rows once and are in segments now.
    pub sealed: Held,
    /// Versions of its compression dictionary.
    pub dictionaries: usize,
    /// Every Normal event of the scope up to here is on flash; `None` before its first segment.
    pub flushed_through: Option<Position>,
    /// Events up to here were read back from the cold tier.
    pub archived_through: Option<Position>,
    /// Events of the warm tier behind that, which wait for the medium; those of a segment that is archived in part are counted
    /// whole. `None` without a cold tier.
    pub unarchived: Option<u64>,
    /// How far retention has come, `None` when it has removed nothing. Not everything before it is gone.
    pub retained_through: Option<Position>,
}

/// What a store holds and how it fares.
#[derive(Debug)]
pub struct Status {
    /// Incarnation of the hot tier.
    pub epoch: u32,
    /// The last position given.
    pub end: Position,
    /// The last position readers see.
    pub stable: Position,
    /// Every Normal event up to here is on flash, of every scope.
    pub flushed_through: Position,
    /// Scopes that are not as far as the others: their database takes nothing, or came back from a backup; and up to where
    /// they are flushed.
    pub flushed_behind: Vec<(Scope, Position)>,
    /// Normal events that are not on flash yet, as far as this process knows.
    pub unflushed: u64,
    /// The hot tier; mirrors of durable events are counted.
    pub hot: Held,
    /// Positions that belong to rolled-back transactions.
    pub voids: u64,
    /// Positions whose transaction has not ended.
    pub unresolved: u64,
    /// Bytes of hot.db in use, and the most it may have.
    pub hot_bytes: (u64, u64),
    /// Events removed from this hot tier for want of room.
    pub shed: u64,
    /// Those of them that were to reach flash.
    pub lost: u64,
    /// Events that went with retired and purged routers, and those of them that had not reached flash.
    pub retired: (u64, u64),
    /// Low events of this hot tier whose time was over.
    pub expired: u64,
    /// What was written to flash today, by all crates and processes, and how far the budget is used up.
    pub flash: FlashReport,
    /// The warm tier by scope; a database that cannot be read has its error instead.
    pub warm: Vec<Result<ScopeStatus, Error>>,
    /// What retention would remove from the warm tier now, and what holds the rest back.
    pub retention: RetentionPlan,
    /// Whether the cold tier is there.
    pub cold_state: ColdState,
    /// The cold tier, when it is there and can be read.
    pub cold: Held,
    /// Why it cannot be read.
    pub cold_error: Option<Error>,
    /// What else is in its directory.
    pub cold_findings: ColdFindings,
    /// Hot tiers that were lost before everything in them was safe.
    pub losses: Vec<TailLost>,
    /// Events appended by this process whose type no rule names.
    pub unclassified: u64,
    /// How far down the reads of this process had to look.
    pub reads: Reads,
}

impl EventStore {
    /// Reports what every tier holds. Opens every router's database, so it is for people and not for loops.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db or the registry cannot be read. A router's failure is in the report.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn status(&self) -> Result<Status, Error> {
        let shared = self.shared();
        let ((view, flushed, [given, bytes, voids, unresolved, removed]), [shed, expired, lost], used) = shared
            .hot()
            .await?
            .read(STATUS, |conn| {
                Box::pin(async move {
                    let totals = (log::view(conn).await?, flushed::read(conn).await?, log::totals(conn).await?);
                    Ok::<_, Error>((totals, truncated::totals(conn).await?, shed::used_bytes(conn).await?))
                })
            })
            .await?;
        shared.note_flushed(view.epoch, &flushed);
        let unflushed = shared.heads().backlog().events();
        let mut warm = Vec::new();
        for scope in epoch::scopes(&shared.manager).await? {
            warm.push(self.scope_status(&scope).await);
        }
        let (cold_state, cold, cold_error, cold_findings) = match &shared.cold {
            None => (ColdState::Off, Held::default(), None, ColdFindings::default()),
            Some(cold) => {
                let cold = Arc::clone(cold);
                blocking(move || {
                    let mut cold = cold.lock().unwrap_or_else(PoisonError::into_inner);
                    let (totals, error) = match cold.totals() {
                        Ok(totals) => (totals, None),
                        Err(error) => (Default::default(), Some(error)),
                    };
                    let (oldest, newest) = (totals.first, totals.last);
                    let held = Held { events: totals.events, bytes: totals.bytes, oldest, newest };
                    (cold.state(), held, error, totals.findings)
                })
                .await
            }
        };
        Ok(Status {
            epoch: view.epoch,
            end: Position::new(view.epoch, view.end),
            stable: view.stable(),
            flushed_through: Position::new(view.epoch, flushed.everywhere()),
            flushed_behind: flushed
                .behind
                .iter()
                .map(|(scope, through)| (scope.clone(), Position::new(view.epoch, *through)))
                .collect(),
            unflushed,
            hot: Held {
                events: given.saturating_sub(voids + unresolved + removed),
                bytes,
                oldest: view.floor.map(|floor| Position::new(view.epoch, floor)),
                newest: (view.end > 0).then_some(Position::new(view.epoch, view.end)),
            },
            voids,
            unresolved,
            hot_bytes: (used, shared.hot_bytes_max),
            shed,
            lost,
            retired: shared.manager.system().read(STATUS, |conn| Box::pin(truncation::retired(conn))).await?,
            expired,
            flash: shared.manager.flash_report().await?,
            warm,
            retention: self.retention_plan().await?,
            cold_state,
            cold,
            cold_error,
            losses: shared.losses(),
            cold_findings,
            unclassified: shared.unclassified(),
            reads: shared.reads.totals(),
        })
    }

    async fn scope_status(&self, scope: &Scope) -> Result<ScopeStatus, Error> {
        let database = self.shared().manager.scope(scope).await?;
        let (scope, has_cold) = (scope.clone(), self.shared().cold.is_some());
        database
            .read(STATUS, move |conn| {
                Box::pin(async move {
                    let (events, bytes, oldest, newest) = rows::totals(conn).await?;
                    let totals = segment::totals(conn, Lane::Flushed).await?;
                    let sealed = segment::totals(conn, Lane::Sealed).await?;
                    let tail = segment::tail(conn, &scope).await?;
                    let archived = archive::confirmed(conn).await?;
                    let unarchived = match has_cold {
                        true => Some(archive::backlog(conn, archived.unwrap_or(Position::START)).await?),
                        false => None,
                    };
                    Ok(ScopeStatus {
                        rows: Held { events, bytes, oldest, newest },
                        segments: Held {
                            events: totals.events,
                            bytes: totals.bytes,
                            oldest: totals.first,
                            newest: totals.last,
                        },
                        segment_count: totals.segments,
                        sealed: Held {
                            events: sealed.events,
                            bytes: sealed.bytes,
                            oldest: sealed.first,
                            newest: sealed.last,
                        },
                        dictionaries: dictionary::count(conn).await?,
                        flushed_through: (totals.segments > 0).then_some(tail.through),
                        archived_through: archived,
                        unarchived,
                        retained_through: horizon::retained(conn).await?,
                        scope,
                    })
                })
            })
            .await
    }
}
