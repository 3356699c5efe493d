//! Readers that wait for the next read: each costs a thread and two descriptors, so a process keeps a bounded number.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Semaphore;

use crate::connection::Guarded;

/// The databases of this process that keep readers, the one read from longest ago first.
static KEEPERS: Mutex<VecDeque<Weak<Idle>>> = Mutex::new(VecDeque::new());

/// The readers one database keeps.
#[derive(Debug)]
pub(crate) struct Idle {
    readers: Mutex<Vec<Guarded>>,
    /// The permits of the pool: whoever closes a reader holds one, so that closing the pool waits for it.
    permits: Arc<Semaphore>,
}

impl Idle {
    pub(crate) fn new(permits: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { readers: Mutex::new(Vec::new()), permits })
    }

    pub(crate) fn take(&self) -> Option<Guarded> {
        self.readers().pop()
    }

    pub(crate) fn take_all(&self) -> Vec<Guarded> {
        std::mem::take(&mut *self.readers())
    }

    /// Keeps a reader. When more than `keepers_max` databases of this process then keep some, those of the database read
    /// from longest ago are closed in the background, unless it is being read from.
    pub(crate) fn keep(self: &Arc<Self>, reader: Guarded, keepers_max: usize) {
        self.readers().push(reader);
        let surplus = {
            let mut keepers = KEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
            keepers.retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(self)));
            keepers.push_back(Arc::downgrade(self));
            let surplus = keepers.len().saturating_sub(keepers_max.max(1));
            keepers.drain(..surplus).collect::<Vec<_>>()
        };
        for keeper in surplus.iter().filter_map(Weak::upgrade) {
            // One that is being read from comes back when that read is done.
            let Ok(permit) = Arc::clone(&keeper.permits).try_acquire_owned() else { continue };
            let readers = keeper.take_all();
            tokio::spawn(async move {
                for reader in readers {
                    if let Err(error) = reader.close().await {
                        tracing::warn!(%error, "closing an idle reader failed");
                    }
                }
                drop(permit);
            });
        }
    }

    fn readers(&self) -> MutexGuard<'_, Vec<Guarded>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
