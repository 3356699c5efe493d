//! Copies events to the cold tier: append, read back, then confirm.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::{Cause, ClockQuality, Scope};
use sqlx::SqliteConnection;

use crate::chain;
use crate::class::Class;
use crate::cold::{Archived, ColdDir, FRAME_BYTES_MAX, FRAME_EVENTS_MAX, FileName, Header, Known, Mount, Session};
use crate::copied::{self, Copied};
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::flush::FlushReason;
use crate::hot::{flushed, log};
use crate::merge::Range;
use crate::options::ColdPolicy;
use crate::position::Position;
use crate::query::Query;
use crate::read::{Cursor, Tiers};
use crate::schedule::Turn;
use crate::store::{EventStore, blocking};

/// What it confirms is what retention may remove, so a full database lets it pass.
const ARCHIVE: Cause = Cause::new("event-archive").critical();
const CURSOR: &str = "archive";
/// Up to here a part of the archive, or all of it, was written without Low events.
const WITHOUT_LOW: &str = "archive-without-low";
/// How long another store may write before this one gives up.
const LOCK_RETRY: Duration = Duration::from_millis(100);
const LOCK_TRIES: u32 = 100;

const GET: &str = "SELECT pos FROM event_cursors WHERE name = ?1";
const SET: &str = "INSERT INTO event_cursors (name, pos) VALUES (?1, ?2) \
     ON CONFLICT (name) DO UPDATE SET pos = excluded.pos WHERE excluded.pos > event_cursors.pos";
const BACKLOG: &str = "SELECT (SELECT COUNT(*) FROM event_rows WHERE pos > ?1) \
     + (SELECT COALESCE(SUM(events), 0) FROM event_segments WHERE last_pos > ?1) \
     + (SELECT COALESCE(SUM(events), 0) FROM event_sealed WHERE last_pos > ?1)";

/// What an archive run did.
#[derive(Debug)]
pub struct ArchiveReport {
    /// Events up to here are in the cold tier, as far as the policy wants them and `failed` does not name their scope.
    pub through: Position,
    /// Frames written and read back.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What could not be read or written; the next run tries again where a scope failed.
    pub failed: Vec<(Scope, Error)>,
    /// Files of the cold tier that the medium has not given back for [`crate::EventOptions::stall_after`]: the archive of
    /// their scope goes on in others, with everything that is still warm behind those that can be read.
    pub unreadable: Vec<(Scope, Error)>,
    /// False when a step ended before everything was archived: the next one goes on behind it.
    pub complete: bool,
}

/// The last position of a scope whose copy in the cold tier was read back.
pub(crate) async fn confirmed(conn: &mut SqliteConnection) -> Result<Option<Position>, Error> {
    cursor(conn, CURSOR).await
}

async fn cursor(conn: &mut SqliteConnection, name: &'static str) -> Result<Option<Position>, Error> {
    let found: Option<i64> = sqlx::query_scalar(GET).bind(name).fetch_optional(conn).await?;
    Ok(found.and_then(Position::from_key))
}

/// What the database knows of the archive, up to where that was written without Low events, and what was copied from here.
async fn known(conn: &mut SqliteConnection, file_uid: [u8; 16]) -> Result<(Known, Position, Option<Copied>), Error> {
    let confirmed = confirmed(&mut *conn).await?.unwrap_or(Position::START);
    let without_low = cursor(&mut *conn, WITHOUT_LOW).await?.unwrap_or(Position::START);
    let copied = copied::noted(&mut *conn, file_uid).await?;
    Ok((Known { confirmed, rewritable: HashMap::new() }, without_low, copied))
}

/// Events of the warm tier behind a position.
pub(crate) async fn backlog(conn: &mut SqliteConnection, after: Position) -> Result<u64, Error> {
    let found: i64 = sqlx::query_scalar(BACKLOG).bind(after.to_key_clamped()).fetch_one(conn).await?;
    Ok(found.cast_unsigned())
}

async fn confirm(conn: &mut SqliteConnection, position: Position, without_low: Option<Position>) -> Result<(), Error> {
    let cursors = [(CURSOR, Some(position)), (WITHOUT_LOW, without_low)];
    for (name, position) in cursors.into_iter().filter_map(|(name, position)| Some((name, position?))) {
        sqlx::query(SET).bind(name).bind(position.to_key()?).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Files of each scope that could not be read the last time it was archived, as their error has it, and since when, by the
/// time since boot.
#[derive(Debug, Default)]
pub(crate) struct Failing(HashMap<Scope, HashMap<String, u64>>);

impl EventStore {
    /// Flushes, then appends what the cold tier lacks, scope by scope, frame by frame; a scope is confirmed as far as its
    /// new frames are synced and read back. Where to start follows from the cold tier itself, so another or an
    /// emptied medium gets everything that is still warm.
    ///
    /// # Errors
    /// [`Error::ColdAbsent`] when there is no cold tier now, [`Error::Storage`] when the flush cannot read. A scope that
    /// fails is in the report and does not stop the others. A file of it that could not be read for
    /// [`crate::EventOptions::stall_after`], in the warm tier or in the cold one, is told there and passed, as what is damaged
    /// is.
    ///
    /// # Cancel safety
    /// Safe: a frame is whole or cut off at the next run, and none is written twice.
    pub async fn archive(&self) -> Result<ArchiveReport, Error> {
        self.archive_step(Turn::All, u64::MAX).await
    }

    /// Flushes unless only some scopes are tried again, and archives at most `frames_max` frames of each scope, so that
    /// weeks of backlog do not keep everything else waiting.
    pub(crate) async fn archive_step(&self, turn: Turn, frames_max: u64) -> Result<ArchiveReport, Error> {
        let shared = Arc::clone(self.shared());
        let (Some(cold), Some(options)) = (&shared.cold, &shared.options.cold) else {
            return Err(Error::ColdAbsent { dir: std::path::PathBuf::new(), why: "none is configured".to_owned() });
        };
        let mut failing = shared.archiving.lock().await;
        // Before the flush, which would wear flash with each try while the medium takes nothing.
        let session = self.begin(cold, &options.dir).await?;
        let (scopes, through, failed) = match turn {
            Turn::All => {
                let flushed = self.flush(FlushReason::Archive).await?;
                let scopes = epoch::scopes(&shared.manager).await?;
                // What a scope could not flush would be passed over for ever.
                let scopes = scopes.into_iter().filter(|scope| !flushed.has_failed(scope));
                let scopes: Vec<_> = scopes.map(|scope| (scope, flushed.until)).collect();
                let unflushed = flushed.failed.into_iter().filter_map(|(scope, error)| Some((scope?, error)));
                (scopes, flushed.through, unflushed.collect())
            }
            Turn::Again(scopes) => {
                let hot = shared.hot().await?;
                let (epoch, flushed) = hot
                    .read(ARCHIVE, |conn| {
                        Box::pin(
                            async move { Ok::<_, Error>((log::view(conn).await?.epoch, flushed::read(conn).await?)) },
                        )
                    })
                    .await?;
                let scopes = scopes.into_iter().map(|scope| {
                    let until = Position::new(epoch, flushed.of(&scope));
                    (scope, until)
                });
                (scopes.collect(), Position::new(epoch, flushed.everywhere()), Vec::new())
            }
        };
        // Where a transaction is open, its scope is archived up to there only.
        let through = through.min(self.view().await?.resolved());
        let mut report =
            ArchiveReport { through, frames: 0, events: 0, bytes: 0, failed, unreadable: Vec::new(), complete: true };
        for (scope, until) in scopes {
            let run = Run { cold, session: &session, policy: options.policy, until, frames_max };
            match self.archive_scope(&scope, &run, &mut report, &mut failing).await {
                Ok(()) => {}
                Err(error @ Error::ColdAbsent { .. }) => return Err(error),
                Err(error) => report.failed.push((scope, error)),
            }
        }
        Ok(report)
    }

    /// Takes the medium for writing; another process may be about to finish with it.
    async fn begin(&self, cold: &Arc<Mutex<ColdDir>>, dir: &Path) -> Result<Arc<Session>, Error> {
        let now = self.shared().manager.now();
        let today = (now.quality == ClockQuality::Synced).then(|| FileName::of_wall_ms(now.wall_ms)).flatten();
        for _ in 0..LOCK_TRIES {
            if let Some(session) = with_cold(cold, move |cold| cold.begin(today)).await? {
                return Ok(Arc::new(session));
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
        Err(Error::ColdAbsent { dir: dir.to_owned(), why: "another store is writing to it".to_owned() })
    }

    async fn archive_scope(
        &self,
        scope: &Scope,
        run: &Run<'_>,
        report: &mut ArchiveReport,
        failing: &mut Failing,
    ) -> Result<(), Error> {
        let database = self.shared().manager.scope(scope).await?;
        let uid = database.file_uid();
        let (mut known, without_low, copied_before) =
            database.read(ARCHIVE, move |conn| Box::pin(known(conn, uid))).await?;
        let confirmed = known.confirmed;
        let mounted = loop {
            let (session, own, known_now) = (Arc::clone(run.session), scope.clone(), known.clone());
            match with_cold(run.cold, move |cold| cold.mount(&session, &own, &known_now)).await? {
                Mount::Done(mounted) => break mounted,
                Mount::Asks(header) => {
                    let is_rewritable = self.is_rewritable(scope, run.policy, &header).await;
                    known.rewritable.insert(header.chain.1, is_rewritable);
                }
            }
        };
        let failed_before = failing.0.remove(scope).unwrap_or_default();
        let mut waiting = None;
        for error in mounted.unreadable {
            match self.has_failed_for_long(scope, &error, &failed_before, failing) {
                true => report.unreadable.push((scope.clone(), error)),
                false => waiting = Some(error),
            }
        }
        if let Some(error) = waiting {
            return Err(error);
        }
        report.failed.extend(mounted.left.map(|error| (scope.clone(), error)));
        let mounted = mounted.tip;
        let last = mounted.map(|tip| tip.last);
        if let Some(last) = last.filter(|last| *last > run.until) {
            self.check_tip(scope, last).await?;
        }

        let query = archived(scope, run.policy).after(last.unwrap_or(Position::START)).until(run.until);
        let mut cursor = Cursor::new(Arc::clone(self.shared()), query, Tiers::HotAndWarm);
        let mut end = last;
        let mut frame: Vec<Recorded> = Vec::new();
        let (mut bytes, mut frames) = (0, 0);
        let (mut stopped, mut copied) = (None, None);
        loop {
            let next = cursor.next().await;
            let mut ended = next.is_none();
            match next {
                // What is damaged is told and left behind; it must not keep the rest from being archived.
                Some(Err(error)) if error.is_damage() || matches!(error, Error::SegmentBody { .. }) => {
                    report.failed.push((scope.clone(), error));
                }
                // Nor must a file that is never given back.
                Some(Err(error @ Error::Io { .. }))
                    if self.has_failed_for_long(scope, &error, &failed_before, failing) =>
                {
                    report.failed.push((scope.clone(), error));
                }
                // What cannot be read now is there later, and a later frame would bar the way for it. What stands before
                // it is archived and confirmed.
                Some(Err(error)) => {
                    stopped = Some(error);
                    ended = true;
                }
                Some(Ok(event)) => {
                    bytes += event.body.get().len();
                    frame.push(event);
                }
                None => {}
            }
            let full = frame.len() >= FRAME_EVENTS_MAX || bytes >= FRAME_BYTES_MAX;
            if full || (ended && !frame.is_empty()) {
                let through = frame.last().map(|event| event.position).max(end);
                let events = std::mem::take(&mut frame);
                bytes = 0;
                frames += 1;
                let (session, own) = (Arc::clone(run.session), scope.clone());
                let added = with_cold(run.cold, move |cold| cold.append(&session, &own, &events)).await;
                let added: Archived = match added {
                    Ok(added) => added,
                    // The frames before it were read back.
                    Err(error) => {
                        stopped = Some(error);
                        break;
                    }
                };
                end = through;
                copied = Some(Copied::grown(copied_before, mounted, added.tip));
                report.frames += 1;
                report.events += added.events;
                report.bytes += added.bytes;
            }
            if ended {
                break;
            }
            if frames >= run.frames_max {
                report.complete = false;
                report.through = report.through.min(end.unwrap_or(Position::START));
                break;
            }
        }
        // What was written without being on flash is in the archive alone once the hot tier has forgotten it.
        let copied = copied.and_then(|copied: Copied| copied.beyond(cursor.in_hot_alone()));
        let lacks_low = match run.policy {
            ColdPolicy::WarmOnly => end.filter(|end| *end > confirmed || Some(*end) > last),
            // Under which policy that was written nobody has noted.
            ColdPolicy::Everything => last.filter(|last| *last > confirmed),
        };
        if let Some(end) = end.filter(|end| *end > confirmed || lacks_low.is_some() || copied.is_some()) {
            database
                .write(ARCHIVE, move |conn| {
                    Box::pin(async move {
                        confirm(conn, end, lacks_low).await?;
                        match copied {
                            Some(copied) => copied::note(conn, uid, copied).await,
                            None => Ok(()),
                        }
                    })
                })
                .await?;
        }
        if let (ColdPolicy::Everything, Some(high)) = (run.policy, end) {
            let low = lacks_low.map_or(without_low, |lacking| lacking.max(without_low));
            self.shared().note_archived(scope, Range { low, high });
        }
        stopped.map_or(Ok(()), Err)
    }

    /// True when the events that would be archived now in the place of a frame are those the frame was made of, and all of
    /// them: they lead its chain from before it to behind it.
    async fn is_rewritable(&self, scope: &Scope, policy: ColdPolicy, frame: &Header) -> bool {
        let query = archived(scope, policy).after(frame.first.before()).until(frame.last);
        let mut cursor = Cursor::new(Arc::clone(self.shared()), query, Tiers::HotAndWarm);
        let mut state = frame.chain.0;
        while let Some(event) = cursor.next().await {
            // What cannot be read now is not written now either.
            let Ok(event) = event else { return false };
            state = chain::fold(state, [&event]);
        }
        state == frame.chain.1
    }

    /// An archive that goes on where this store has not come yet is of another history: of databases that were put back to an
    /// earlier state, say. What it has at the positions that are given from here on is not what is confirmed with it.
    async fn check_tip(&self, scope: &Scope, tip: Position) -> Result<(), Error> {
        // Another process may have appended and archived since.
        let view = self.view().await?;
        let end = Position::new(view.epoch, view.end);
        if tip <= end {
            return Ok(());
        }
        let why = format!("it goes on to {tip}, and the databases to {end} only: they are older than the archive");
        Err(Error::corrupt(format!("archive of {scope}"), why))
    }

    /// True once a file could not be read for so long that the rest of its scope must not wait. It is forgotten by a run
    /// that does not meet it.
    fn has_failed_for_long(
        &self,
        scope: &Scope,
        error: &Error,
        before: &HashMap<String, u64>,
        failing: &mut Failing,
    ) -> bool {
        let now_ms = self.shared().manager.now().boottime_ms;
        let what = error.to_string();
        let since_ms = before.get(&what).copied().unwrap_or(now_ms);
        failing.0.entry(scope.clone()).or_default().insert(what, since_ms);
        now_ms.saturating_sub(since_ms) >= self.shared().stall_after_ms()
    }
}

/// What the archive of a scope takes.
fn archived(scope: &Scope, policy: ColdPolicy) -> Query {
    let query = Query::scope(scope.clone());
    match policy {
        ColdPolicy::WarmOnly => query.class(Class::Normal).class(Class::Critical),
        ColdPolicy::Everything => query,
    }
}

/// What all scopes of one run have in common.
struct Run<'a> {
    cold: &'a Arc<Mutex<ColdDir>>,
    session: &'a Arc<Session>,
    policy: ColdPolicy,
    until: Position,
    frames_max: u64,
}

/// Works on the cold directory beside the runtime.
pub(crate) async fn with_cold<T: Send + 'static>(
    cold: &Arc<Mutex<ColdDir>>,
    work: impl FnOnce(&mut ColdDir) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let cold = Arc::clone(cold);
    blocking(move || work(&mut cold.lock().unwrap_or_else(PoisonError::into_inner))).await
}
