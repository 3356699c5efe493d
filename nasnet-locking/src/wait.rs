//! Waiting for keys: first come first served, bounded, awake when something changes.

use std::time::Duration;

use crate::error::Error;
use crate::lease::{Deadline, Lease, Verdict};
use crate::manager::{LockManager, held};
use crate::store::{Queue, Request};

/// A waiter far back in the queue looks less often: it cannot be next.
const LOOK_EVERY_TICKS_MAX: u32 = 20;

impl LockManager {
    /// Draws a ticket if the keys are taken and waits for its turn.
    ///
    /// In this process, and from every node of a PostgreSQL store, a release wakes the waiters; other processes, deaths and
    /// expiry are looked for every tick. The write lock of the store is taken only when a look says that it is this
    /// request's turn.
    pub(crate) async fn queue_up(&self, request: &Request, longest: Duration) -> Result<Lease, Error> {
        let shared = &self.shared;
        let began = shared.store.now();
        let deadline = Deadline::after(&began, longest);
        let mut queue = Queue::Join(deadline);
        loop {
            let (mut obstacle, ticket) = match shared.store.attempt(request, queue).await? {
                Ok(lease) => return Ok(lease),
                Err((obstacle, Some(ticket))) => (obstacle, ticket),
                Err((obstacle, None)) => return Err(held(*obstacle, Duration::ZERO)),
            };
            queue = Queue::Keep(ticket);
            loop {
                let freed = shared.keeper.freed();
                self.check_open()?;
                let now = shared.store.now();
                if deadline.remaining(&now).is_zero() {
                    // What is left behind is the ticket alone: nobody grants it but this call.
                    let _ = shared.store.release(request.id).await?;
                    shared.keeper.wake();
                    return Err(held(*obstacle, longest));
                }
                match shared.store.look(request, ticket).await? {
                    Verdict::Grant { .. } => break,
                    Verdict::Blocked(found) => obstacle = found,
                }
                let ticks = u32::try_from(obstacle.ahead + 1).unwrap_or(u32::MAX).min(LOOK_EVERY_TICKS_MAX);
                tokio::select! {
                    () = freed => {}
                    () = tokio::time::sleep(shared.store.tick() * ticks) => {}
                }
            }
        }
    }
}
