//! The loop that moves events down the tiers in time: flush, seal, train, archive, retain.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nasnet_dbmanager::Now;
use tokio::time::Instant;

use crate::cold::ColdState;
use crate::error::Error;
use crate::flush::{FlushReason, FlushReport};
use crate::options::{EventOptions, FlushPolicy};
use crate::position::Position;
use crate::retain::Forced;
use crate::schedule::{Archives, Rhythm, is_due_after_start, stretched};
use crate::shared::Shared;
use crate::store::{EventStore, blocking};

/// How often the loop looks what is due.
const LOOK: Duration = Duration::from_secs(60);
/// Frames of each scope archived before the loop looks at everything else again.
const FRAMES_PER_STEP: u64 = 16;
/// Rows are looked at this often.
const SEAL_EVERY: Duration = Duration::from_secs(60 * 60);
/// What may go is looked for this often, and so many rows and segments of each scope go at most.
const RETAIN_EVERY: Duration = Duration::from_secs(60 * 60);
const RETAIN_UNITS: usize = 512;
/// Ages are looked at this often, so that the marks early in a boot come in time. Nobody asks for them more often than
/// something may go, so the others are no closer than that.
const MARK_LOOK: Duration = Duration::from_secs(10 * 60);
/// The minute of the day at which dictionaries are trained.
const TRAIN_MINUTE: u16 = 180;
/// Tmpfs has little room when less than one part in this is left.
const LOW_TMPFS_PART: u64 = 10;

/// What was done when.
struct Done {
    flushed: Instant,
    /// The last flush that left nothing behind.
    flushed_at: Option<Now>,
    /// When one did not do everything, until one does.
    fell_short: Option<Instant>,
    expired: Instant,
    sealed: Option<Instant>,
    started: Now,
    trained: Option<Now>,
    marked: Option<Instant>,
    retained: Option<Instant>,
}

impl EventStore {
    /// Flushes as [`FlushPolicy`] says, joins small rows of the hot tier, seals old rows, forgets in the hot tier what
    /// is old, trains dictionaries, archives as [`crate::ArchivePolicy`] says and removes from the warm tier what
    /// [`crate::Retention`] does not keep, a bounded number of rows and segments an hour, until `shutdown` completes;
    /// then flushes once more. While a database takes nothing, only the time counts. A medium that is away is looked
    /// for every minute, and what it missed is archived in bounded steps when it returns. The caller owns the loop:
    /// spawn it, and await it after completing `shutdown`.
    ///
    /// # Errors
    /// Those of the last flush. Earlier ones, and the scopes that failed, are logged and tried again.
    ///
    /// # Cancel safety
    /// Safe: a dropped loop leaves events in the hot tier, and the next flush takes them.
    pub async fn maintain(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        // A medium takes its time, and one that fails may never answer: nothing else waits for it.
        tokio::select! {
            biased;
            ended = self.maintain_flash(shutdown) => ended,
            never = self.keep_archived() => match never {},
        }
    }

    /// All of it but the archive.
    async fn maintain_flash(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        let shared = Arc::clone(self.shared());
        let page_full = shared.options.flush == FlushPolicy::PageFull;
        let look = shared.options.flush_interval.clamp(EventOptions::FLUSH_INTERVAL_MIN, LOOK);
        let mut done = Done {
            flushed: Instant::now(),
            // The end of the last process flushed; a day that was missed is caught up with at once.
            flushed_at: None,
            fell_short: None,
            expired: Instant::now(),
            sealed: None,
            started: shared.manager.now(),
            trained: None,
            marked: None,
            retained: None,
        };
        // Whatever else wakes the loop, and be it often, this is looked at in time.
        let mut next_look = Instant::now() + look;
        // While nothing at all can be flushed, or the budget puts it off, every append would ask for it again.
        let mut held_back: Option<Instant> = None;
        loop {
            let may_ask = held_back.is_none_or(|at| at.elapsed() >= look);
            let mut reason = tokio::select! {
                biased;
                () = &mut shutdown => break,
                // Before what may be put off: appends ask for that faster than it is answered.
                () = due(&shared) => Some(FlushReason::Promised),
                () = shared.backlog.notified(), if page_full && may_ask => Some(FlushReason::PageFull),
                () = shared.crowded.notified() => None,
                () = tokio::time::sleep_until(next_look) => None,
            };
            if Instant::now() >= next_look {
                next_look = Instant::now() + look;
                reason = self.due_now(&done).await.or(reason);
            }
            if let Some(reason) = reason {
                let now = shared.manager.now();
                done.flushed = Instant::now();
                done.fell_short = Some(done.flushed);
                match self.flush(reason).await {
                    Ok(report) => {
                        held_back = report.postponed.then(Instant::now);
                        tell(&report);
                        if !report.postponed && report.failed_scopes().next().is_none() {
                            (done.flushed_at, done.fell_short) = (Some(now), None);
                        }
                    }
                    Err(error) => {
                        held_back = Some(Instant::now());
                        shared.postpone_promises();
                        tracing::warn!(%error, "flush failed");
                    }
                }
            }
            if shared.has_small_rows()
                && let Err(error) = self.compact().await
            {
                tracing::warn!(%error, "small rows stay in the hot tier");
            }
            self.seal_and_train(&mut done).await;
            self.mark_due(&mut done).await;
            self.retain_due(&mut done).await;
            if done.expired.elapsed() >= look {
                done.expired = Instant::now();
                if let Err(error) = self.expire().await {
                    tracing::warn!(%error, "what is old stays in the hot tier");
                }
            }
        }
        tell(&self.flush(FlushReason::Shutdown).await?);
        // What ran since the last note would not count in the next boot.
        if let Err(error) = self.mark_age_after(RETAIN_EVERY).await {
            tracing::warn!(%error, "the running time of the last hours is not noted");
        }
        Ok(())
    }

    /// Tells whether Normal events are to be flushed now under [`FlushPolicy::PageFull`], by the clock of the databases:
    /// for whoever calls [`EventStore::flush`] at times of its own instead of running [`EventStore::maintain`].
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn flush_due(&self) -> Option<FlushReason> {
        let shared = self.shared();
        if shared.options.flush != FlushPolicy::PageFull {
            return None;
        }
        if shared.is_page_full() {
            return Some(FlushReason::PageFull);
        }
        self.has_waited(shared.unflushed_for()).await.then_some(FlushReason::Interval)
    }

    /// True when events have waited long enough.
    async fn has_waited(&self, waited: Duration) -> bool {
        let shared = self.shared();
        let interval = shared.options.flush_interval;
        // Who is registered is asked only when the answer may matter.
        waited >= interval && {
            let routers = shared.manager.routers().await.map_or(0, |routers| routers.len());
            waited >= stretched(interval, routers, shared.open_max())
        }
    }

    async fn due_now(&self, done: &Done) -> Option<FlushReason> {
        let shared = self.shared();
        if self.is_tmpfs_low().await && shared.heads().backlog().events() > 0 {
            return Some(FlushReason::LowTmpfs);
        }
        let is_due = match shared.options.flush {
            // A day that was missed is caught up with as soon as that can be: what was not flushed is in tmpfs alone.
            FlushPolicy::Daily { minute } => {
                done.fell_short.is_none_or(|at| at.elapsed() >= shared.options.flush_interval)
                    && Rhythm::daily(minute).is_due(done.flushed_at.as_ref(), &shared.manager.now())
            }
            FlushPolicy::PageFull => self.has_waited(done.flushed.elapsed()).await,
        };
        is_due.then_some(FlushReason::Interval)
    }

    async fn is_tmpfs_low(&self) -> bool {
        let dir = self.shared().manager.run_dir().to_owned();
        let room = blocking(move || rustix::fs::statvfs(&dir)).await;
        room.is_ok_and(|room| room.f_blocks > 0 && room.f_bavail < room.f_blocks / LOW_TMPFS_PART)
    }

    async fn seal_and_train(&self, done: &mut Done) {
        if done.sealed.is_none_or(|sealed| sealed.elapsed() >= SEAL_EVERY) {
            done.sealed = Some(Instant::now());
            match self.seal().await {
                Ok(report) => {
                    for (scope, error) in report.failed {
                        tracing::warn!(%scope, %error, "rows cannot be sealed");
                    }
                }
                Err(error) => tracing::warn!(%error, "rows cannot be sealed"),
            }
        }
        let now = self.shared().manager.now();
        if is_due_after_start(Rhythm::daily(TRAIN_MINUTE), done.trained.as_ref(), &done.started, &now) {
            done.trained = Some(now);
            if let Err(error) = self.train().await {
                tracing::warn!(%error, "no dictionaries can be made");
            }
        }
    }

    /// Marks how far the order has come, which is what ages are told by.
    async fn mark_due(&self, done: &mut Done) {
        if done.marked.is_some_and(|marked| marked.elapsed() < MARK_LOOK) {
            return;
        }
        done.marked = Some(Instant::now());
        let every = self.shared().options.retention.mark_every().max(RETAIN_EVERY);
        if let Err(error) = self.mark_age_after(every).await {
            tracing::warn!(%error, "ages are not marked, so nothing gets older");
        }
    }

    /// Removes what may go.
    async fn retain_due(&self, done: &mut Done) {
        if done.retained.is_some_and(|retained| retained.elapsed() < RETAIN_EVERY) {
            return;
        }
        done.retained = Some(Instant::now());
        let removed = match self.retention_plan().await {
            Ok(plan) => self.retain_step(plan, RETAIN_UNITS).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(report) => {
                for (scope, error) in &report.failed {
                    tracing::warn!(%scope, %error, "its old events stay");
                }
                for forced in &report.forced {
                    let Forced { consumer, events } = forced;
                    tracing::warn!(%consumer, events, "events were removed before the consumer saw them");
                }
                if report.events > 0 {
                    tracing::info!(%report, "old events were removed from the warm tier");
                }
            }
            Err(error) => tracing::warn!(%error, "old events stay"),
        }
    }

    /// Archives what is due, step by step.
    async fn keep_archived(&self) -> Infallible {
        let look = self.shared().options.flush_interval.clamp(EventOptions::FLUSH_INTERVAL_MIN, LOOK);
        let mut archives = Archives::default();
        loop {
            if !self.archive_due(&mut archives).await {
                tokio::time::sleep(look).await;
            }
        }
    }

    /// Archives a step when it is due and the medium is there. True when there is more to do at once.
    async fn archive_due(&self, archives: &mut Archives) -> bool {
        let shared = self.shared();
        let (Some(cold), Some(options)) = (&shared.cold, &shared.options.cold) else { return false };
        let now = shared.manager.now();
        let end = {
            let heads = shared.heads();
            Position::new(heads.epoch(), heads.next_seq().saturating_sub(1))
        };
        let Some(turn) = archives.turn(options.archive, Instant::now(), &now, end) else { return false };
        let cold = Arc::clone(cold);
        let state = blocking(move || cold.lock().unwrap_or_else(PoisonError::into_inner).state()).await;
        if state != ColdState::Present {
            // Still due: looked for again with the next round.
            return false;
        }
        match self.archive_step(turn.clone(), FRAMES_PER_STEP).await {
            Ok(report) => {
                for (scope, error) in &report.failed {
                    tracing::warn!(%scope, %error, "archive failed");
                }
                for (scope, error) in &report.unreadable {
                    tracing::warn!(%scope, %error, "a file of the archive cannot be read");
                }
                if report.complete {
                    // What is damaged stays so: the next run of all tells it again.
                    let failed = report.failed.into_iter().filter(|(_, error)| !error.is_damage());
                    let failed = failed.map(|(scope, _)| scope).collect();
                    archives.done(&turn, Instant::now(), now, end, failed);
                }
                !report.complete
            }
            Err(error) => {
                tracing::warn!(%error, "archive failed");
                archives.put_off(Instant::now() + LOOK);
                false
            }
        }
    }
}

/// Waits until a flush is due because of what was promised.
async fn due(shared: &Shared) {
    loop {
        let moved = shared.promised.notified();
        match shared.flush_due() {
            None => moved.await,
            Some(at) => tokio::select! {
                () = moved => {}
                () = tokio::time::sleep_until(at) => return,
            },
        }
    }
}

/// Logs what a flush could not do.
pub(crate) fn tell(report: &FlushReport) {
    for (scope, error) in &report.failed {
        tracing::warn!(scope = scope.as_ref().map(|scope| scope.as_str()), %error, "flush failed");
    }
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::Scope;

    use super::*;
    use crate::cold::prepare_cold_dir;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::name::{EventType, StreamName};
    use crate::options::ColdOptions;
    use crate::place::Place;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_medium_that_does_not_answer_keeps_nothing_but_the_archive_waiting() {
        let place = Place::new().await;
        let dir = place.dir.path().join("cold");
        prepare_cold_dir(&place.manager, &dir).unwrap();
        let mut options = EventOptions::default().cold(ColdOptions::new(dir).allow_same_device());
        options.flush_interval = Duration::from_millis(10);
        let store = EventStore::open(&place.manager, options).await.unwrap();
        let cold = store.shared().cold.clone().unwrap();
        let (held, is_held) = tokio::sync::oneshot::channel();
        let (release, is_released) = std::sync::mpsc::channel::<()>();
        let medium = std::thread::spawn(move || {
            let _busy = cold.lock().unwrap();
            held.send(()).unwrap();
            is_released.recv().ok();
        });
        is_held.await.unwrap();

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let own = store.clone();
        let running = tokio::spawn(async move { own.maintain(async { drop(stopped.await) }).await });
        for _ in 0..3 {
            let kind = EventType::parse("resource.updated").unwrap();
            let event = NewEvent::new(place.manager.next_ulid(), kind, &1).unwrap();
            let stream = StreamName::parse("s").unwrap();
            store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
            let flushed = async {
                while store.shared().heads().backlog().events() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, flushed).await.expect("it is flushed by time");
        }
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, running).await.expect("the loop ends").unwrap().unwrap();
        release.send(()).unwrap();
        medium.join().unwrap();
    }
}
