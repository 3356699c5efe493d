//! Copies Normal events that are only in the hot tier into one new segment of each scope.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Scope};

use crate::class::Class;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::{self, Order, Row, RowState};
use crate::pace;
use crate::position::Position;
use crate::shared::Shared;
use crate::store::{EventStore, blocking};
use crate::truncation;
use crate::warm::segment::{self, Lane};
use crate::warm::{bodies, dictionary};

const FLUSH: Cause = Cause::new("event-flush");
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
    /// Every Normal event up to here is on flash, blocks told in `failed` aside.
    pub through: Position,
    /// Everything up to here was looked at: further than `through` when a scope failed.
    pub until: Position,
    /// Segments written.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of their bodies; what the databases wrote in all is counted by their meters.
    pub body_bytes: u64,
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

    fn all_scopes_took_theirs(&self) -> bool {
        self.failed.iter().all(|(scope, _)| scope.is_none())
    }
}

impl EventStore {
    /// Flushes every Normal event up to the end of the hot log: by position, never by time. Several processes may
    /// flush at once; the database of a scope decides which events it still lacks.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read, or system.db cannot take the record of events that were given up for
    /// want of room. A scope that fails is in the report and does not stop the others.
    ///
    /// # Cancel safety
    /// Safe: a segment is written whole or not at all, and the next flush goes on behind it.
    pub async fn flush(&self, reason: FlushReason) -> Result<FlushReport, Error> {
        self.shared().flush(reason).await
    }
}

impl Shared {
    /// [`EventStore::flush`]; the appender calls it too, before it gives events up for want of room.
    pub(crate) async fn flush(&self, reason: FlushReason) -> Result<FlushReport, Error> {
        let shared = self;
        let _one_at_a_time = shared.flushing.lock().await;
        let hot = shared.hot().await?;
        let view = hot.read(FLUSH, |conn| Box::pin(log::view(conn))).await?;
        let epoch = view.epoch;
        // A block is final once it is in the log. Open transactions hold nothing up: their events are rows, not segments.
        let end = view.end;
        shared.forget_below(&view);
        let start = Position::new(epoch, view.flushed_through);
        let mut report = FlushReport {
            reason,
            through: start,
            until: start,
            segments: 0,
            events: 0,
            body_bytes: 0,
            failed: Vec::new(),
        };
        let now_ms = shared.manager.now().boottime_ms;
        let since = shared.last_flush_ms().map(|at| Duration::from_millis(now_ms.saturating_sub(at)));
        if !pace::goes_ahead(shared.manager.flash_level(), reason, shared.options.flush_interval, since) {
            return Ok(report);
        }
        shared.set_last_flush_ms(now_ms);
        while report.until.seq < end {
            if !shared.is_current(&hot) {
                // What was read from a lost hot tier would come after its end was told.
                break;
            }
            let mut step = self.gather(&hot, epoch, report.until.seq + 1, end, &mut report).await?;
            // A scope that failed keeps its events until the next flush: a later segment would bar the way for them.
            step.by_scope.retain(|scope, _| !report.has_failed(scope));
            report.until = Position::new(epoch, step.through);
            truncation::save(self, &hot).await?;
            self.write_step(step.by_scope, &mut report).await;
            if report.all_scopes_took_theirs() {
                report.through = report.until;
            }
        }
        shared.keep_promises(report.through);
        if report.through > start {
            let seq = report.through.seq;
            hot.write(FLUSH, move |conn| Box::pin(log::set_flushed(conn, seq))).await?;
        }
        Ok(report)
    }

    /// Reads hot blocks from `from` on until enough events or the end are reached.
    async fn gather(
        &self,
        hot: &Database,
        epoch: u32,
        from: u64,
        to: u64,
        report: &mut FlushReport,
    ) -> Result<Step, Error> {
        let mut step = Step { by_scope: BTreeMap::new(), through: from.saturating_sub(1), events: 0, bytes: 0 };
        while step.through < to && step.is_open() {
            let next = step.through + 1;
            let rows: Vec<Row> = hot
                .read(FLUSH, move |conn| {
                    Box::pin(async move { log::page(conn, epoch, (next, to), Order::Forwards, ROWS).await })
                })
                .await?;
            if rows.is_empty() {
                step.through = to;
            }
            for row in rows {
                if !step.is_open() {
                    break;
                }
                let last = row.last_seq().min(to);
                step.through = last;
                match (&row.state, row.events()) {
                    (RowState::Block, Ok(events)) => step.add(events, next, to),
                    // Mirrored events are rows on flash already.
                    (_, Ok(_)) => {}
                    (_, Err(error)) => report.failed.push((None, error)),
                }
            }
        }
        Ok(step)
    }

    /// Writes the segments of a step, one transaction a scope. The last one, when all before it are on flash, carries
    /// the claim that every scope is flushed through this position.
    async fn write_step(&self, by_scope: BTreeMap<Scope, Vec<Recorded>>, report: &mut FlushReport) {
        let through = report.until;
        let mut left = by_scope.len();
        for (scope, events) in by_scope {
            left -= 1;
            let complete = (left == 0 && report.all_scopes_took_theirs()).then_some(through);
            match self.write_segment(&scope, events, through, complete).await {
                Ok(Some((events, bytes))) => {
                    report.segments += 1;
                    report.events += events;
                    report.body_bytes += bytes;
                }
                Ok(None) => {}
                Err(error) => report.failed.push((Some(scope), error)),
            }
        }
    }

    /// Writes one segment; `None` when the scope has all of the events already.
    async fn write_segment(
        &self,
        scope: &Scope,
        mut events: Vec<Recorded>,
        through: Position,
        complete: Option<Position>,
    ) -> Result<Option<(u64, u64)>, Error> {
        let shared = self;
        let all = events.clone();
        let database = shared.manager.scope(scope).await?;
        // Another process may flush the same events between the look at the tail and the write: then look again.
        let written = loop {
            let own = scope.clone();
            let (tail, dictionary) = database
                .read(FLUSH, move |conn| {
                    Box::pin(async move {
                        Ok::<_, Error>((segment::tail(conn, &own).await?, dictionary::newest(conn).await?))
                    })
                })
                .await?;
            events.retain(|event| event.position > tail.through);
            if events.is_empty() {
                break None;
            }
            let taken = std::mem::take(&mut events);
            let prepared = blocking(move || segment::prepare(taken, dictionary.as_ref())).await?;
            let complete = complete.unwrap_or(tail.complete);
            let (own, annexes) = (scope.clone(), database.annexes().cloned());
            let (done, prepared) = database
                .write(FLUSH, move |conn| {
                    Box::pin(async move {
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
                break Some((prepared.events.len() as u64, prepared.body.len() as u64));
            }
            events = prepared.events;
        };
        shared.heads().flushed(scope, &all);
        Ok(written)
    }
}

/// Events gathered for one round of segments.
struct Step {
    by_scope: BTreeMap<Scope, Vec<Recorded>>,
    /// Every hot event up to here has been looked at.
    through: u64,
    events: usize,
    bytes: usize,
}

impl Step {
    const fn is_open(&self) -> bool {
        self.events < STEP_EVENTS && self.bytes < STEP_BYTES
    }

    fn add(&mut self, events: Vec<Recorded>, from: u64, to: u64) {
        let wanted = events
            .into_iter()
            .filter(|event| event.class == Class::Normal && (from..=to).contains(&event.position.seq));
        for event in wanted {
            self.events += 1;
            self.bytes += event.body.get().len();
            self.by_scope.entry(event.scope.clone()).or_default().push(event);
        }
    }
}
