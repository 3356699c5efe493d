//! Where the consumers of one open store stand: each acknowledgement goes to tmpfs, and from time to time one write takes
//! all that moved to flash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nasnet_dbmanager::Cause;

use crate::consumer::checkpoint::Checkpoint;
use crate::consumer::marker::{Mark, Placed};
use crate::consumer::rows::{self, Advanced, Identity, Moved, Reader, Uid};
use crate::error::Error;
use crate::position::Position;
use crate::shared::Shared;

const ACK: Cause = Cause::new("event-ack");
/// The first to wait when the flash budget runs out: what it costs to lose is a second delivery.
const SAVE: Cause = Cause::new("event-checkpoint").low();
const SAVE_LAST: Cause = Cause::new("event-checkpoint");

/// How long a consumer stays taken without a sign of life of a reader whose process lives. That of a dead process is free
/// at once.
pub(crate) const CLAIM_MS: u64 = 60_000;
/// How often a reader that has nothing to acknowledge gives one.
const CONFIRM_MS: u64 = 15_000;

/// The consumers this store reads as, or has read as.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    known: Mutex<BTreeMap<String, Arc<Progress>>>,
    /// One at a time begins to read as a consumer, or forgets it. As many as were asked for by name.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// One save at a time.
    saving: tokio::sync::Mutex<()>,
}

impl Consumers {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Progress>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when this store reads as the consumer by this subscription, and it is not dropped.
    pub(crate) fn is_read_by(&self, name: &str, instance: [u8; 16]) -> bool {
        let known = self.known();
        known.get(name).is_some_and(|progress| progress.reader.instance == instance && progress.is_open())
    }

    /// Waits until nobody else of this store begins to read as the consumer: between its claim and `add` it could be taken
    /// for one that is gone.
    pub(crate) async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(name.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    pub(crate) fn add(&self, progress: &Arc<Progress>) {
        self.known().insert(progress.name.clone(), Arc::clone(progress));
    }

    /// Lets go of a consumer that is being forgotten: whoever reads as it is told with its next sign of life, and as long as
    /// the guard lives nothing is saved.
    pub(crate) async fn forget(&self, name: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let nothing_is_saved = self.saving.lock().await;
        if let Some(progress) = self.known().remove(name) {
            progress.lose();
        }
        nothing_is_saved
    }

    /// Writes the positions of all consumers that moved in one transaction. Without `at_last` a budget that refuses it is
    /// no error: it is tried again.
    pub(crate) async fn save(&self, shared: &Shared, at_last: bool) -> Result<(), Error> {
        let _one_at_a_time = self.saving.lock().await;
        let moved: Vec<Arc<Progress>> =
            self.known().values().filter(|known| known.lock().is_moved()).cloned().collect();
        if moved.is_empty() {
            return Ok(());
        }
        let now = shared.manager.now();
        let marks: Vec<Moved> = moved.iter().map(|known| known.moved()).collect();
        let (cause, written) = (if at_last { SAVE_LAST } else { SAVE }, marks.clone());
        let saved = shared
            .manager
            .system()
            .write(cause, move |conn| Box::pin(async move { rows::save(conn, &written, now).await }));
        match saved.await {
            Ok(()) => {}
            Err(Error::Storage { source })
                if matches!(*source, nasnet_dbmanager::Error::OverBudget { .. }) && !at_last =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        for (progress, written) in moved.iter().zip(marks) {
            progress.lock().saved(written.mark, now);
        }
        Ok(())
    }
}

/// One consumer, shared by its subscription and the store.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) name: String,
    /// Of the consumer it began to read as.
    uid: Uid,
    pub(crate) reader: Reader,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    checkpoint: Checkpoint,
    /// When runtime.db was written last, and what.
    written: Mark,
    written_ms: u64,
    is_open: bool,
    /// Somebody else reads as the consumer, or it was forgotten: where this one stands must not reach flash any more.
    is_lost: bool,
}

impl State {
    fn is_moved(&self) -> bool {
        !self.is_lost && self.checkpoint.is_moved()
    }

    fn is_due(&self, now: &nasnet_dbmanager::Now) -> bool {
        !self.is_lost && self.checkpoint.is_due(now)
    }

    fn mark(&self) -> Mark {
        self.checkpoint.mark()
    }

    fn saved(&mut self, mark: Mark, now: nasnet_dbmanager::Now) {
        self.checkpoint.saved(mark, now);
    }
}

impl Progress {
    pub(crate) fn new(name: String, uid: Uid, reader: Reader, checkpoint: Checkpoint, boottime_ms: u64) -> Self {
        let written = checkpoint.mark();
        let state = State { checkpoint, written, written_ms: boottime_ms, is_open: true, is_lost: false };
        Self { name, uid, reader, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.lock().is_open
    }

    pub(crate) fn close(&self) {
        self.lock().is_open = false;
    }

    /// Takes note that the consumer is no longer this one's.
    fn lose(&self) {
        self.lock().is_lost = true;
    }

    pub(crate) fn mark(&self) -> Mark {
        self.lock().mark()
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), uid: self.uid }
    }

    fn moved(&self) -> Moved {
        Moved { name: self.name.clone(), uid: self.uid, mark: self.mark() }
    }

    pub(crate) fn hand_out(&self, placed: &Placed) {
        self.lock().checkpoint.hand_out(placed);
    }

    pub(crate) fn look(&self, position: Position) {
        self.lock().checkpoint.look(position);
    }

    /// Acknowledges everything up to a position: in tmpfs now, on flash when it is time.
    pub(crate) async fn ack(&self, shared: &Shared, position: Position) -> Result<(), Error> {
        let is_due = {
            let mut state = self.lock();
            if !state.checkpoint.ack(position) {
                let why = "it was not handed out yet";
                return Err(Error::Invalid { what: "acknowledged position", value: position.to_string(), why });
            }
            state.is_due(&shared.manager.now())
        };
        self.write(shared).await?;
        if is_due { shared.consumers.save(shared, false).await } else { Ok(()) }
    }

    /// Confirms the claim and what was looked at, when that is due.
    pub(crate) async fn keep(&self, shared: &Shared) -> Result<(), Error> {
        let now = shared.manager.now();
        let (is_stale, is_due) = {
            let state = self.lock();
            (now.boottime_ms.saturating_sub(state.written_ms) >= CONFIRM_MS, state.is_due(&now))
        };
        if is_stale {
            self.write(shared).await?;
        }
        if is_due { shared.consumers.save(shared, false).await } else { Ok(()) }
    }

    /// Writes the position to runtime.db and confirms the claim.
    pub(crate) async fn write(&self, shared: &Shared) -> Result<(), Error> {
        let taken = || Error::ConsumerTaken { consumer: self.name.clone() };
        if self.lock().is_lost {
            return Err(taken());
        }
        let (name, reader, boottime_ms) = (self.name.clone(), self.reader, shared.manager.now().boottime_ms);
        let mark = self.mark();
        let runtime = shared.manager.runtime();
        let advanced = runtime
            .write(ACK, move |conn| {
                Box::pin(async move { rows::advance(conn, &name, mark, reader, boottime_ms).await })
            })
            .await?;
        let is_ours = match advanced {
            Advanced::Confirmed => true,
            Advanced::Taken => false,
            Advanced::Absent => self.claim_anew(shared, mark, boottime_ms).await?,
        };
        if !is_ours {
            self.lose();
            return Err(taken());
        }
        let mut state = self.lock();
        state.written = state.written.max(mark);
        state.written_ms = boottime_ms;
        Ok(())
    }

    /// Puts the consumer back into a runtime.db that was made anew; false when it was forgotten, or another was quicker. It is
    /// looked for before and behind the write, because whoever forgets it removes it from runtime.db behind system.db.
    async fn claim_anew(&self, shared: &Shared, mark: Mark, boottime_ms: u64) -> Result<bool, Error> {
        if !self.is_defined(shared).await? {
            return Ok(false);
        }
        let (own, reader) = (Moved { name: self.name.clone(), uid: self.uid, mark }, self.reader);
        let runtime = shared.manager.runtime();
        let claimed = runtime
            .write(ACK, move |conn| Box::pin(async move { rows::claim(conn, &own, reader, None, boottime_ms).await }))
            .await?;
        if claimed.is_none() || self.is_defined(shared).await? {
            return Ok(claimed.is_some());
        }
        self.unclaim(shared).await?;
        Ok(false)
    }

    /// Takes the claim back, with the position that came with it.
    pub(crate) async fn unclaim(&self, shared: &Shared) -> Result<(), Error> {
        let (name, reader) = (self.name.clone(), self.reader);
        let runtime = shared.manager.runtime();
        runtime.write(ACK, move |conn| Box::pin(async move { rows::unclaim(conn, &name, reader).await })).await
    }

    pub(crate) async fn is_defined(&self, shared: &Shared) -> Result<bool, Error> {
        let name = self.name.clone();
        let system = shared.manager.system();
        let found = system.read(ACK, move |conn| Box::pin(async move { rows::find(conn, &name).await })).await?;
        Ok(found.is_some_and(|found| found.uid == self.uid))
    }

    /// Lets others read as this consumer.
    pub(crate) async fn release(&self, shared: &Shared) -> Result<(), Error> {
        self.close();
        let (name, reader) = (self.name.clone(), self.reader);
        let runtime = shared.manager.runtime();
        runtime.write(ACK, move |conn| Box::pin(async move { rows::release(conn, &name, reader).await })).await
    }
}
