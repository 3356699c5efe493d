//! Copies Normal events that are only in the hot tier into one new segment of each scope.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Scope};

use crate::class::Class;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::flushed::{self, Flushed};
use crate::hot::log::{self, Order, Row, RowState};
use crate::hot::{purged, truncated};
use crate::pace;
use crate::position::Position;
use crate::shared::{FlushTurn, Shared};
use crate::store::{EventStore, blocking};
use crate::truncation;
use crate::warm::segment::{self, Lane};
use crate::warm::{bodies, dictionary, overlap};

const FLUSH: Cause = Cause::new("event-flush");
/// What a full hot tier may give back hangs on how far it is noted to be flushed.
const NOTE: Cause = Cause::new("event-flush").critical();
/// Hot rows read by one statement.
const ROWS: u32 = 32;
/// Events gathered before they are written, so that a long backlog is flushed in steps.
const STEP_EVENTS: usize = 4_096;
/// Bytes of bodies after which a step ends early, so that a segment is never too long to be written.
const STEP_BYTES: usize = 8 << 20;

/// Why events are flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushReason {
    /// Someone asked for it.
    Requested,
    /// They are so many that a segment of them is worth its row ([`crate::EventOptions::flush_bytes`]).
    PageFull,
    /// They have waited long enough.
    Interval,
    /// An append was promised to be on flash by now.
    Promised,
    /// The hot tier has little room left.
    LowTmpfs,
    /// An archive needs them in the warm tier.
    Archive,
    /// The process ends.
    Shutdown,
}

/// What a flush did.
#[derive(Debug)]
pub struct FlushReport {
    /// Why it ran.
    pub reason: FlushReason,
    /// Every Normal event up to here is on flash, of every scope; blocks told in `failed` and events given up aside.
    pub through: Position,
    /// Those of the scopes that are not in `failed` are on flash up to here.
    pub until: Position,
    /// Segments written.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of their bodies; what the databases wrote in all is counted by their meters.
    pub body_bytes: u64,
    /// Events of routers that exist no more: nothing takes them.
    pub given_up: u64,
    /// Nothing was done: the flash budget is short, and these events can wait.
    pub postponed: bool,
    /// Scopes whose database did not take its events: they are tried again with the next flush, and `through` stays
    /// before them. Without a scope, damaged blocks of the hot log: what was in them is lost.
    pub failed: Vec<(Option<Scope>, Error)>,
}

impl fmt::Display for FlushReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { through, segments, events, body_bytes, .. } = self;
        write!(f, "{events} events in {segments} segments of {body_bytes} bytes, all through {through}")
    }
}

impl FlushReport {
    pub(crate) fn has_failed(&self, scope: &Scope) -> bool {
        self.failed.iter().any(|(failed, _)| failed.as_ref() == Some(scope))
    }

    /// Scopes whose database did not take its events.
    pub(crate) fn failed_scopes(&self) -> impl Iterator<Item = &Scope> {
        self.failed.iter().filter_map(|(scope, _)| scope.as_ref())
    }
}

impl EventStore {
    /// Flushes every Normal event up to the end of the hot log: by position, never by time. Several processes may
    /// flush at once; the database of a scope decides which events it still lacks. A scope that fails is caught up with
    /// by a later flush; events of a router that exists no more are given up, counted and told
    /// ([`crate::TruncatedBy::Retired`]).
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read, or system.db cannot take the record of events that were given up. A
    /// scope that fails is in the report and does not stop the others.
    ///
    /// # Cancel safety
    /// Safe: a segment is written whole or not at all, and the next flush goes on behind it.
    pub async fn flush(&self, reason: FlushReason) -> Result<FlushReport, Error> {
        self.shared().flush(reason).await
    }
}

impl Shared {
    async fn flush(&self, reason: FlushReason) -> Result<FlushReport, Error> {
        let turn = self.flush_turn().await;
        self.flush_bytes(turn, reason, u64::MAX).await
    }

    /// Flushes until rows of so many bytes have been looked at, oldest first, and notes each step, so that what is done
    /// counts whatever becomes of the rest.
    pub(crate) async fn flush_bytes(
        &self,
        turn: FlushTurn,
        reason: FlushReason,
        bytes: u64,
    ) -> Result<FlushReport, Error> {
        let shared = self;
        let hot = shared.hot().await?;
        let (view, before) = hot
            .read(FLUSH, |conn| {
                Box::pin(async move { Ok::<_, Error>((log::view(conn).await?, flushed::read(conn).await?)) })
            })
            .await?;
        let epoch = view.epoch;
        // A block is final once it is in the log. Open transactions hold nothing up: their events are rows, not segments.
        let end = view.end;
        shared.forget_left(&hot, &view).await?;
        // Another process may have flushed what this one still counts.
        shared.note_flushed(epoch, &before);
        let mut report = FlushReport {
            reason,
            through: Position::new(epoch, before.everywhere()),
            until: Position::new(epoch, before.through),
            segments: 0,
            events: 0,
            body_bytes: 0,
            given_up: 0,
            postponed: false,
            failed: Vec::new(),
        };
        let now_ms = shared.manager.now().boottime_ms;
        let since = shared.last_flush_ms().map(|at| Duration::from_millis(now_ms.saturating_sub(at)));
        if !pace::goes_ahead(shared.manager.flash_level(), reason, shared.options.flush_interval, since) {
            report.postponed = true;
            return Ok(report);
        }
        if bytes == u64::MAX {
            // What a part leaves has not waited any less for it.
            shared.set_last_flush_ms(now_ms);
        }
        let (mut noted, mut flushed) = (before.clone(), before);
        let (mut looked_at, mut unnoted) = (0, None);
        let mut reached = self.beginning(&flushed, &mut report).await;
        while reached < end && looked_at < bytes {
            if !shared.is_current(&hot) {
                // What was read from a lost hot tier would come after its end was told.
                break;
            }
            let mut step =
                self.gather(&hot, epoch, (reached + 1, end), bytes - looked_at, &flushed, &mut report).await?;
            // A scope that failed keeps its events until the next flush: a later segment would bar the way for them.
            step.by_scope.retain(|scope, _| !report.has_failed(scope));
            if !step.damaged.is_empty() {
                let damaged = std::mem::take(&mut step.damaged);
                let lost = damaged.clone();
                hot.write(NOTE, move |conn| Box::pin(async move { truncated::note_damaged(conn, &damaged).await }))
                    .await?;
                self.heads().forget_lost(epoch, &lost);
            }
            truncation::save(self, &hot).await?;
            let through = Position::new(epoch, step.through);
            self.write_step(&turn, step.by_scope, through, &flushed, &mut report).await?;
            // Who fails now is on flash up to where this step began.
            for scope in report.failed_scopes() {
                flushed.behind.entry(scope.clone()).or_insert(flushed.through);
            }
            reached = step.through;
            looked_at += step.row_bytes;
            flushed.through = flushed.through.max(reached);
            for (scope, through) in &mut flushed.behind {
                if !report.has_failed(scope) {
                    *through = reached.max(*through);
                }
            }
            // What cannot be noted is on flash all the same: the next note tells it.
            unnoted = self.note_step(&hot, epoch, &mut noted, &mut flushed).await.err();
            if bytes < u64::MAX && !self.heads().backlog().waits_beside(|scope| report.has_failed(scope)) {
                // There is no more room to be had by reading on.
                break;
            }
        }
        if let Some(error) = unnoted {
            return Err(error);
        }
        (report.until, report.through) =
            (Position::new(epoch, flushed.through), Position::new(epoch, flushed.everywhere()));
        shared.hold(epoch, &report);
        shared.keep_promises(epoch, &flushed, &report);
        Ok(report)
    }

    /// Notes in the hot log how far everything is flushed, and tells whoever waits for room there.
    async fn note_step(
        &self,
        hot: &Database,
        epoch: u32,
        noted: &mut Flushed,
        flushed: &mut Flushed,
    ) -> Result<(), Error> {
        let through = flushed.through;
        flushed.behind.retain(|_, behind| *behind < through);
        self.note_flushed(epoch, flushed);
        let (before, now) = (noted.clone(), flushed.clone());
        hot.write(NOTE, move |conn| Box::pin(async move { flushed::note(conn, &before, &now).await })).await?;
        noted.clone_from(flushed);
        self.flushed.send_modify(|times| *times = times.wrapping_add(1));
        Ok(())
    }

    /// Where the flush begins: at the first event of a scope that is behind and whose database can be asked again.
    async fn beginning(&self, flushed: &Flushed, report: &mut FlushReport) -> u64 {
        let mut from = flushed.through;
        for (scope, through) in &flushed.behind {
            match self.manager.scope(scope).await {
                Ok(_) | Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => from = from.min(*through),
                Err(error) => report.failed.push((Some(scope.clone()), error.into())),
            }
        }
        from
    }

    /// Reads hot blocks of a range until enough events that are not on flash, enough rows, or its end are reached.
    async fn gather(
        &self,
        hot: &Database,
        epoch: u32,
        (from, to): (u64, u64),
        row_bytes: u64,
        flushed: &Flushed,
        report: &mut FlushReport,
    ) -> Result<Step, Error> {
        let mut step = Step {
            by_scope: BTreeMap::new(),
            through: from.saturating_sub(1),
            events: 0,
            bytes: 0,
            row_bytes: 0,
            damaged: Vec::new(),
        };
        let is_open = |step: &Step| step.is_open() && step.row_bytes < row_bytes;
        while step.through < to && is_open(&step) {
            let next = step.through + 1;
            let rows: Vec<Row> = hot
                .read(FLUSH, move |conn| {
                    Box::pin(async move { log::page(conn, epoch, (next, to), Order::Forwards, ROWS, None).await })
                })
                .await?;
            if rows.is_empty() {
                step.through = to;
            }
            for row in rows {
                if !is_open(&step) {
                    break;
                }
                let last = row.last_seq().min(to);
                step.through = last;
                step.row_bytes += row.body_bytes();
                match (&row.state, row.events()) {
                    (RowState::Block, Ok(events)) => step.add(events, (next, to), flushed),
                    // Mirrored events are rows on flash already.
                    (_, Ok(_)) => {}
                    (_, Err(error)) => {
                        if row.first_seq > flushed.through {
                            step.damaged.push((row.first_seq, last));
                        }
                        report.failed.push((None, error));
                    }
                }
            }
        }
        Ok(step)
    }

    /// Writes the segments of a step, one transaction a scope. The last one, when all before it are on flash, carries
    /// the claim that every scope is flushed through this position, those aside that are behind.
    async fn write_step(
        &self,
        turn: &FlushTurn,
        by_scope: BTreeMap<Scope, Vec<Recorded>>,
        through: Position,
        flushed: &Flushed,
        report: &mut FlushReport,
    ) -> Result<(), Error> {
        let mut left = by_scope.len();
        for (scope, events) in by_scope {
            left -= 1;
            let others = flushed.behind.iter().filter(|(behind, _)| **behind != scope && report.has_failed(behind));
            let failed_now = report.failed_scopes().any(|failed| !flushed.behind.contains_key(failed));
            let complete = others.map(|(_, through)| *through).fold(through.seq, u64::min);
            let complete = (left == 0 && !failed_now).then_some(Position::new(through.epoch, complete));
            let claims = (through, complete);
            match self.write_segment(turn, &scope, events, claims, flushed, &mut report.given_up).await {
                Ok(Written::Segment { events, bytes }) => {
                    report.segments += 1;
                    report.events += events;
                    report.body_bytes += bytes;
                }
                Ok(Written::Nothing) => {}
                Ok(Written::GivenUp(events)) => report.given_up += truncation::give_up(self, &scope, &events).await?,
                Err(error) => report.failed.push((Some(scope), error)),
            }
        }
        Ok(())
    }

    /// Writes one segment of the events the database of the scope lacks.
    async fn write_segment(
        &self,
        turn: &FlushTurn,
        scope: &Scope,
        mut events: Vec<Recorded>,
        (through, complete): (Position, Option<Position>),
        flushed: &Flushed,
        given_up: &mut u64,
    ) -> Result<Written, Error> {
        let database = match self.manager.scope(scope).await {
            // Nothing will ever take them: waiting for it would hold everybody's events in tmpfs.
            Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => return Ok(Written::GivenUp(events)),
            found => found?,
        };
        // Opening it may have shown that another file is in its place, which lacks what is before these events.
        let hot = self.hot().await?;
        let own = scope.clone();
        let (now, purged) = hot
            .read(FLUSH, |conn| {
                Box::pin(
                    async move { Ok::<_, Error>((flushed::read(conn).await?, purged::through(conn, &own).await?)) },
                )
            })
            .await?;
        // Or that of another router which has the id of one that was purged: what that one had left goes with it.
        let gone: Vec<Recorded> = events.extract_if(.., |event| event.position.seq <= purged).collect();
        *given_up += truncation::give_up(self, scope, &gone).await?;
        if now.of(scope) < flushed.of(scope) {
            let detail = "its database is an older one: it is flushed from there on with the next flush".to_owned();
            return Err(nasnet_dbmanager::Error::Busy { detail }.into());
        }
        // Another process may flush the same events between the look at the tail and the write: then look again.
        loop {
            let own = scope.clone();
            let (tail, dictionary) = database
                .read(FLUSH, move |conn| {
                    Box::pin(async move {
                        Ok::<_, Error>((segment::tail(conn, &own).await?, dictionary::newest(conn).await?))
                    })
                })
                .await?;
            let had: Vec<Recorded> = events.extract_if(.., |event| event.position <= tail.through).collect();
            if !had.is_empty() {
                let (own, annexes) = (scope.clone(), database.annexes().cloned());
                database
                    .read(FLUSH, move |conn| {
                        Box::pin(async move { overlap::check(conn, annexes.as_ref(), &own, &tail, &had).await })
                    })
                    .await?;
            }
            if events.is_empty() {
                return Ok(Written::Nothing);
            }
            let taken = std::mem::take(&mut events);
            let prepared = blocking(move || segment::prepare(taken, dictionary.as_ref())).await?;
            let complete = complete.map_or(tail.complete, |complete| complete.max(tail.complete));
            let (own, annexes, turn) = (scope.clone(), database.annexes().cloned(), Arc::clone(turn));
            let (done, prepared) = database
                .write(FLUSH, move |conn| {
                    Box::pin(async move {
                        let _until_it_ends = turn;
                        let now = segment::tail(conn, &own).await?;
                        if now.through != tail.through {
                            return Ok::<_, Error>((None, prepared));
                        }
                        let annexes = annexes.as_ref();
                        let place =
                            segment::insert(conn, annexes, Lane::Flushed, &prepared, &now, through, complete).await?;
                        Ok((Some(place), prepared))
                    })
                })
                .await?;
            if let Some(place) = done {
                bodies::confirm(database.annexes(), Lane::Flushed, place);
                let (events, bytes) = (prepared.events.len() as u64, prepared.body.len() as u64);
                return Ok(Written::Segment { events, bytes });
            }
            events = prepared.events;
        }
    }
}

/// What became of the events of one scope.
enum Written {
    Segment {
        events: u64,
        bytes: u64,
    },
    /// The database has all of them.
    Nothing,
    /// There is no database any more.
    GivenUp(Vec<Recorded>),
}

/// Events gathered for one round of segments.
struct Step {
    by_scope: BTreeMap<Scope, Vec<Recorded>>,
    /// Every hot event up to here has been looked at.
    through: u64,
    events: usize,
    bytes: usize,
    /// Bytes the rows take in the hot log.
    row_bytes: u64,
    /// Rows that cannot be read: what is in them never reaches flash.
    damaged: Vec<(u64, u64)>,
}

impl Step {
    const fn is_open(&self) -> bool {
        self.events < STEP_EVENTS && self.bytes < STEP_BYTES
    }

    fn add(&mut self, events: Vec<Recorded>, (from, to): (u64, u64), flushed: &Flushed) {
        let wanted = events.into_iter().filter(|event| {
            let seq = event.position.seq;
            event.class == Class::Normal && (from..=to).contains(&seq) && seq > flushed.of(&event.scope)
        });
        for event in wanted {
            self.events += 1;
            self.bytes += event.body.get().len();
            self.by_scope.entry(event.scope.clone()).or_default().push(event);
        }
    }
}
