//! Ends the reservations nobody else will end: of dropped receipts and of dead processes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::heads::{Reservation, Resolution};
use crate::hot::appender::{Command, Resolve};
use crate::hot::seat::Seat;
use crate::hot::{log, session};
use crate::position::Position;
use crate::shared::Shared;
use crate::warm::rows;

const RESOLVE: Cause = Cause::new("event-resolve");
/// Readers wait for it, so a full medium and a budget that is used up let it pass.
const BURY: Cause = Cause::new("event-void").critical();
const VOIDED: &str = "INSERT INTO event_cursors (name, pos) VALUES ('voided', ?1) \
     ON CONFLICT (name) DO UPDATE SET pos = MAX(pos, excluded.pos)";
/// Until a reservation whose database could not be asked is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Resolves what is left to it whenever it is woken, until the store closes.
pub(crate) async fn run(shared: Arc<Shared>, seat: Weak<Seat>) {
    let mut retry = false;
    while !shared.is_closing() {
        if retry {
            tokio::select! {
                () = shared.resolver.notified() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        } else {
            shared.resolver.notified().await;
        }
        let Some(seat) = seat.upgrade() else { return };
        if shared.is_closing() {
            return;
        }
        // A reader may have met a reservation this store has not heard of.
        retry = catch_up(&seat).await.is_err() || !sweep(&shared, &seat).await;
    }
}

/// Resolves every reservation that has no living owner. False when one could not be resolved.
pub(crate) async fn sweep(shared: &Shared, seat: &Seat) -> bool {
    let (own, dir) = (shared.owner(), shared.sessions_dir());
    // While the log is being read, a reservation may be known in part.
    let is_caught_up = shared.heads().is_caught_up();
    if !is_caught_up && catch_up(seat).await.is_err() {
        return false;
    }
    let (epoch, left): (u32, Vec<Reservation>) = {
        let heads = shared.heads();
        if !heads.is_caught_up() {
            return false;
        }
        (heads.epoch(), heads.reservations().cloned().collect())
    };
    let mut all = true;
    for reservation in left {
        let ours = reservation.owner == own;
        let forsaken = reservation.abandoned || (!ours && !session::is_alive(&dir, reservation.owner));
        if !forsaken {
            continue;
        }
        if let Err(error) = resolve(shared, seat, epoch, &reservation).await {
            tracing::warn!(%error, scope = %reservation.scope, first_seq = reservation.first_seq,
                "a reservation cannot be resolved yet");
            all = false;
            let (first, last) = (Position::new(epoch, reservation.first_seq), reservation.last_seq());
            if shared.is_stalled(first)
                && let Err(error) = stall(shared, first, last).await
            {
                tracing::warn!(%error, %first, "readers of all scopes go on waiting for a reservation");
            }
        }
    }
    all
}

/// Lets readers of all scopes go on without a reservation. It is resolved all the same once its database can be asked.
async fn stall(shared: &Shared, first: Position, last_seq: u64) -> Result<(), Error> {
    let hot = shared.hot().await?;
    if shared.heads().epoch() == first.epoch {
        hot.write(RESOLVE, move |conn| Box::pin(async move { log::stall(conn, first.seq, last_seq).await })).await?;
    }
    Ok(())
}

/// Looks into the database of the scope: found = published, absent = void.
async fn resolve(shared: &Shared, seat: &Seat, epoch: u32, reservation: &Reservation) -> Result<(), Error> {
    let first = Position::new(epoch, reservation.first_seq);
    let last = Position::new(epoch, reservation.last_seq());
    let resolution = match shared.manager.scope(&reservation.scope).await {
        // A database that does not exist any more cannot commit the transaction.
        Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => Resolution::Void,
        Err(error) => return Err(error.into()),
        Ok(database) => {
            // Through the writer: the transaction that holds the reservation comes before this question in its queue,
            // and that of a dead process has let go of the file.
            let found = database
                .write(RESOLVE, move |conn| Box::pin(async move { rows::count(conn, first, last).await }))
                .await?;
            match found {
                0 if reservation.owner == shared.owner() => Resolution::Void,
                0 => bury(&database, first, last, reservation.count).await?,
                all if all == reservation.count => Resolution::Published,
                part => {
                    let what = format!("{} event_rows {first} to {last}", reservation.scope);
                    return Err(Error::corrupt(what, format!("{part} of {} events are there", reservation.count)));
                }
            }
        }
    };
    end(seat, first, last.seq, resolution).await
}

/// Makes sure that a transaction of a dead process, of which nothing can be seen, stays without effect.
///
/// A process may die while its commit is synced. Its frames are in the log of the database then, whole, and not in the
/// index of the log by which all who have the database open read. Whoever opens it next as the first one makes the index
/// anew from the log, and would find the transaction after readers had been told that it never was. The next commit is
/// written over its frames, so there must be one.
async fn bury(database: &Database, first: Position, last: Position, count: u64) -> Result<Resolution, Error> {
    let found = database
        .write(BURY, move |conn| {
            Box::pin(async move {
                let found = rows::count(conn, first, last).await?;
                if found == 0 {
                    sqlx::query(VOIDED).bind(last.to_key()?).execute(conn).await?;
                }
                Ok::<_, Error>(found)
            })
        })
        .await?;
    if found == count { Ok(Resolution::Published) } else { Ok(Resolution::Void) }
}

/// Has the appender end a reservation.
pub(crate) async fn end(seat: &Seat, first: Position, last_seq: u64, resolution: Resolution) -> Result<(), Error> {
    let (reply, answer) = oneshot::channel();
    let command = Command::Resolve(Resolve { first, last_seq, resolution, reply });
    seat.send(command)?;
    answer.await.map_err(|_| Error::Closed)?
}

/// Has the appender take the work of other processes into account.
pub(crate) async fn catch_up(seat: &Seat) -> Result<(), Error> {
    let (reply, answer) = oneshot::channel();
    seat.send(Command::CatchUp(reply))?;
    answer.await.map_err(|_| Error::Closed)?
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::Scope;

    use super::*;
    use crate::event::{NewEvent, StreamAppend};
    use crate::expected::Expected;
    use crate::heads::ReservedBy;
    use crate::hot::log::{Order, RowState};
    use crate::name::{EventType, StreamName};
    use crate::options::EventOptions;
    use crate::place::Place;
    use crate::store::EventStore;

    #[tokio::test]
    async fn a_reservation_that_is_known_in_part_is_resolved_as_a_whole() {
        let Place { dir: _dir, clock: _, manager } = Place::new().await;
        let open = async || EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let (store, dying) = (open().await, open().await);
        let kind = EventType::parse("config.applied").unwrap();
        let event = || NewEvent::new(manager.next_ulid(), kind.clone(), &0).unwrap();
        let events: Vec<NewEvent> = std::iter::repeat_with(event).take(10_000).collect();
        let append = StreamAppend::new(StreamName::parse("s").unwrap(), Expected::Any, events);
        let (own, scope) = (dying.clone(), Scope::System);
        let written = manager
            .system()
            .write(RESOLVE, move |conn| Box::pin(async move { own.append_in(conn, &scope, vec![append]).await }));
        // It dies before it can publish them.
        std::mem::forget(written.await.unwrap());

        let rows = async || {
            let hot = manager.hot();
            let page = hot.read(RESOLVE, |conn| {
                Box::pin(async move { log::page(conn, 1, (1, u64::MAX >> 1), Order::Forwards, 1_000, None).await })
            });
            page.await.unwrap()
        };
        let all = rows().await;
        assert!(all.len() > 100, "{} rows", all.len());
        {
            // As after the first page of a catch-up.
            let mut heads = store.shared().heads();
            heads.set_caught_up(false);
            let reserved = ReservedBy { first_seq: 1, scope: Scope::System, owner: dying.shared().owner() };
            for row in &all[..64] {
                heads.note_reserved(&reserved, true, row.count, &row.events().unwrap());
                heads.advance_to(row.last_seq() + 1);
            }
        }
        assert!(sweep(store.shared(), store.seat()).await);
        assert!(rows().await.iter().all(|row| matches!(row.state, RowState::Mirrored)));
        assert_eq!(store.shared().heads().reservations().count(), 0);
        store.shutdown().await.unwrap();
    }
}
