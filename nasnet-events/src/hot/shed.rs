//! Takes events out of the hot log: those whose time is over, and for want of room those that can best be spared.
//!
//! A row keeps its numbers whatever is taken out of it, so the order has no gap. Reservations and the newest row stay.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{BootId, Cause, Database, Scope};
use sqlx::SqliteConnection;
use tokio::time::Instant;
use ulid::Ulid;

use crate::block::{self, Packing};
use crate::class::Class;
use crate::error::Error;
use crate::event::Recorded;
use crate::flush::FlushReason;
use crate::hot::flushed::{self, Flushed};
use crate::hot::log::{self, Order, Row, RowState};
use crate::hot::tops;
use crate::hot::truncated::{self, Removed};
use crate::merge::Range;
use crate::observe;
use crate::options::ColdPolicy;
use crate::shared::Shared;
use crate::store::EventStore;

/// How long appends wait for a flush that makes room, and for how long they wait for none after one that took longer.
const FLUSH_WAIT: Duration = Duration::from_secs(1);
const SLOW_FLUSH_LASTS: Duration = Duration::from_secs(10);

/// Rows looked at in one transaction.
const ROWS: u32 = 128;

const KEEP: &str = "UPDATE hot_log SET body = ?2, shed = ?3 WHERE first_seq = ?1";
const EMPTY: &str = "UPDATE hot_log SET state = 'shed', scope = NULL, reservation = NULL, body = NULL, shed = count \
     WHERE first_seq = ?1";
/// Neighbours that hold nothing become one row: an emptied row alone would keep its page.
const JOIN: &str = "UPDATE hot_log SET count = count + ?2, shed = shed + ?2 \
     WHERE first_seq = (SELECT MAX(first_seq) FROM hot_log WHERE first_seq < ?1) AND state = 'shed'";
const JOINED: &str = "DELETE FROM hot_log WHERE first_seq = ?1";
/// What holds nothing any more leaves the front of the log; the newest row says where the order goes on.
const ADVANCE: &str = "DELETE FROM hot_log WHERE first_seq < MIN((SELECT MAX(first_seq) FROM hot_log), \
     COALESCE((SELECT MIN(first_seq) FROM hot_log WHERE state NOT IN ('shed', 'void')), 9223372036854775807))";
const PAGES: &str =
    "SELECT (SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count)";
const PAGE_BYTES: u64 = 4096;

/// Which events go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spare {
    /// Those of this boot up to a time since it, and those of earlier boots, as far as they are on flash or need not be.
    Older { boot: BootId, boottime_ms: u64, low: bool },
    /// Low ones.
    Low,
    /// Those that are on flash.
    OnFlash,
    /// Normal ones that are not on flash yet: they are lost.
    Unflushed,
}

/// What one pass did.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// Where the next pass goes on, `None` at the end.
    pub(crate) next: Option<u64>,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// Events that were to reach flash and are lost.
    pub(crate) lost: Vec<Recorded>,
    /// Ids of those that are nowhere else.
    pub(crate) gone: Vec<Ulid>,
}

/// Bytes of the file that are in use.
pub(crate) async fn used_bytes(conn: &mut SqliteConnection) -> Result<u64, Error> {
    let pages: i64 = sqlx::query_scalar(PAGES).fetch_one(conn).await?;
    Ok(pages.cast_unsigned().saturating_mul(PAGE_BYTES))
}

/// Looks at some rows from a number on, in the caller's transaction, until enough bytes are free.
pub(crate) async fn sweep(
    conn: &mut SqliteConnection,
    epoch: u32,
    from: u64,
    spare: Spare,
    archived: &HashMap<Scope, Range>,
    bytes_wanted: u64,
) -> Result<Swept, Error> {
    let view = log::view(conn).await?;
    if view.epoch != epoch {
        return Ok(Swept::default());
    }
    let flushed = flushed::read(conn).await?;
    // Blocks that have not reached flash stay, so their bodies are not needed.
    let unread = matches!(spare, Spare::OnFlash).then_some((flushed.through + 1, view.end));
    let rows = log::page(conn, epoch, (from, view.end), Order::Forwards, ROWS, unread).await?;
    let mut swept = Swept::default();
    for row in rows {
        let (first_seq, last_seq) = (row.first_seq, row.last_seq());
        // The newest row.
        if last_seq >= view.end {
            swept.next = None;
            break;
        }
        swept.next = Some(last_seq + 1);
        let Some(part) = part(row, spare, &flushed, archived) else { continue };
        match part {
            Part::Done => {
                swept.next = None;
                break;
            }
            Part::Goes { body_bytes, kept, shed, archived, gone, unflushed } => {
                let left = if kept.is_empty() {
                    let (first, count) = (first_seq.cast_signed(), (last_seq - first_seq + 1).cast_signed());
                    let joined = sqlx::query(JOIN).bind(first).bind(count).execute(&mut *conn).await?;
                    let sql = if joined.rows_affected() > 0 { JOINED } else { EMPTY };
                    sqlx::query(sql).bind(first).execute(&mut *conn).await?;
                    0
                } else {
                    let refs: Vec<&Recorded> = kept.iter().collect();
                    let (body, _) = block::encode(&refs, Packing::Zstd(1))
                        .map_err(|error| Error::corrupt("hot.db hot_log", error))?;
                    sqlx::query(KEEP)
                        .bind(first_seq.cast_signed())
                        .bind(body.as_slice())
                        .bind(shed.cast_signed())
                        .execute(&mut *conn)
                        .await?;
                    body.len() as u64
                };
                swept.bytes += body_bytes.saturating_sub(left);
                swept.events += gone.len() as u64 + unflushed.len() as u64;
                let (events, lost) = ((gone.len() + unflushed.len()) as u64, unflushed.len() as u64);
                let ends = gone.iter().chain(&unflushed).map(|event| event.position.seq);
                if let (Some(first_seq), Some(last_seq)) = (ends.clone().min(), ends.max()) {
                    let expired = matches!(spare, Spare::Older { .. });
                    truncated::note(conn, &Removed { first_seq, last_seq, events, lost, expired }).await?;
                }
                tops::note(conn, archived.iter().chain(&gone).chain(&unflushed)).await?;
                swept.gone.extend(gone.iter().chain(&unflushed).map(|event| event.id));
                swept.lost.extend(unflushed);
            }
        }
        if swept.bytes >= bytes_wanted {
            break;
        }
    }
    sqlx::query(ADVANCE).execute(&mut *conn).await?;
    Ok(swept)
}

enum Part {
    /// Everything further on is younger.
    Done,
    Goes {
        body_bytes: u64,
        kept: Vec<Recorded>,
        shed: u64,
        /// In the archive, and in no database.
        archived: Vec<Recorded>,
        /// Nowhere else, by their class.
        gone: Vec<Recorded>,
        unflushed: Vec<Recorded>,
    },
}

/// What of a row goes; `None` when nothing does. Pure.
fn part(row: Row, spare: Spare, flushed: &Flushed, archived: &HashMap<Scope, Range>) -> Option<Part> {
    let mirrored = match row.state {
        RowState::Block => false,
        RowState::Mirrored => true,
        RowState::Reserved(_) | RowState::Void | RowState::Shed => return None,
    };
    // Bodies are opened only where they can matter: a log that is full of what must stay is looked at again and again.
    match spare {
        Spare::Low | Spare::Unflushed if mirrored => return None,
        Spare::OnFlash if !mirrored && row.first_seq > flushed.through => return None,
        _ => {}
    }
    let events = if mirrored && matches!(spare, Spare::OnFlash) { Vec::new() } else { row.events().ok()? };
    if let Spare::Older { boot, boottime_ms, .. } = spare
        && events.iter().any(|event| event.boot == boot && event.boottime_ms > boottime_ms)
    {
        return Some(Part::Done);
    }
    if mirrored {
        return Some(Part::Goes {
            body_bytes: row.body_bytes(),
            kept: Vec::new(),
            shed: row.count,
            archived: Vec::new(),
            gone: Vec::new(),
            unflushed: Vec::new(),
        });
    }
    let (mut kept, mut archived_low, mut gone, mut unflushed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let count = events.len();
    for event in events {
        let on_flash = event.class != Class::Low && event.position.seq <= flushed.of(&event.scope);
        let in_archive = || {
            event.class == Class::Low && archived.get(&event.scope).is_some_and(|range| range.contains(event.position))
        };
        match (spare, event.class) {
            // It is read from there, and nobody misses it.
            (Spare::Low | Spare::Older { .. }, Class::Low) if in_archive() => archived_low.push(event),
            (Spare::Low | Spare::Older { low: true, .. }, Class::Low) => gone.push(event),
            (Spare::OnFlash | Spare::Older { .. }, _) if on_flash => {}
            (Spare::Unflushed, Class::Normal) if !on_flash => unflushed.push(event),
            _ => kept.push(event),
        }
    }
    (kept.len() < count).then(|| Part::Goes {
        body_bytes: row.body_bytes(),
        shed: row.count - kept.len() as u64,
        kept,
        archived: archived_low,
        gone,
        unflushed,
    })
}

const SHED: Cause = Cause::new("event-shed").critical();
const EXPIRE: Cause = Cause::new("event-expire").critical();

/// Makes room for bytes that are about to be appended: Low events go first, then those that are on flash already; the rest
/// is flushed then, and only what cannot be flushed is given up at last, the oldest first. `full` = the file system has
/// none left.
pub(crate) async fn make_room(
    shared: &Shared,
    hot: &Database,
    epoch: u32,
    bytes: u64,
    full: bool,
) -> Result<(), Error> {
    let max = shared.hot_bytes_max;
    // Looking costs a read, so it is done once in a while.
    if !shared.is_room_unknown(bytes, max / 64) && !full {
        return Ok(());
    }
    let (used, view, flushed) = hot
        .read(SHED, |conn| {
            Box::pin(async move {
                Ok::<_, Error>((used_bytes(conn).await?, log::view(conn).await?, flushed::read(conn).await?))
            })
        })
        .await?;
    // Another process may do all the flushing and removing; what is known of events in memory goes with them all the same.
    shared.note_flushed(view.epoch, &flushed);
    shared.forget_left(hot, &view).await?;
    if used > max / 4 * 3 {
        // What is flushed now need not be lost later.
        shared.backlog.notify_one();
    }
    let over = (used + bytes).saturating_sub(max);
    let wanted = match (full, over) {
        (true, _) => (used / 8).max(2 * bytes),
        (false, 0) => return Ok(()),
        (false, over) => over + max / 16,
    };
    if full {
        // Its log has to grow before it can shrink.
        drop(hot.checkpoint().await);
    }
    // What frees little is no reason to give more up than is needed now.
    let needed = if full { 2 * bytes } else { over };
    let mut freed = 0;
    for spare in [Spare::Low, Spare::OnFlash] {
        freed += free(shared, hot, epoch, spare, wanted.saturating_sub(freed)).await?;
    }
    if freed < needed {
        // What reaches flash now is not lost.
        let wait = flush_for(shared, hot, epoch, needed - freed, wanted - freed).await?;
        freed += wait.freed;
        if freed < needed && !wait.in_time && !full {
            // The database lets the tier grow a little beyond its bound. When that is used up, `full` says so.
            shared.backlog.notify_one();
            return Ok(());
        }
    }
    if freed < needed {
        freed += free(shared, hot, epoch, Spare::Unflushed, wanted.saturating_sub(freed)).await?;
    }
    tracing::debug!(used, max, freed, full, "room was looked for in the hot tier");
    if full {
        drop(hot.checkpoint().await);
    }
    Ok(())
}

/// What came of waiting for a flush.
struct Waited {
    freed: u64,
    /// False when nothing more was awaited.
    in_time: bool,
}

/// Flushes a part and takes it out of the log, or takes out what another flush, step by step, has brought to flash. Appends
/// cannot wait for long: a transaction may hold the database a segment is to go to, and wait for positions from the very
/// task that asks for room.
async fn flush_for(shared: &Shared, hot: &Database, epoch: u32, needed: u64, wanted: u64) -> Result<Waited, Error> {
    if shared.is_flush_slow() {
        // What others have flushed meanwhile goes all the same.
        return Ok(Waited { freed: free(shared, hot, epoch, Spare::OnFlash, wanted).await?, in_time: false });
    }
    let until = Instant::now() + FLUSH_WAIT;
    let (mut steps, mut freed, mut part) = (shared.flushed.subscribe(), 0, wanted);
    loop {
        let flushed = tokio::time::timeout_at(until, async {
            tokio::select! {
                turn = shared.flush_turn() => {
                    Some(shared.flush_bytes(turn, FlushReason::LowTmpfs, part).await)
                }
                _ = steps.changed() => None,
            }
        });
        let flushed = flushed.await;
        steps.mark_unchanged();
        freed += free(shared, hot, epoch, Spare::OnFlash, wanted - freed).await?;
        match flushed {
            Ok(_) if freed >= needed => return Ok(Waited { freed, in_time: true }),
            // Somebody else's step was not enough; nor was the oldest part, where a scope may be behind.
            Ok(None) => {}
            Ok(Some(Ok(_))) if part < shared.hot_bytes_max => part = part.saturating_mul(8),
            // When it fails, flash has no room or no life left either.
            Ok(Some(result)) => {
                match result {
                    Ok(report) if report.failed.is_empty() => {}
                    Ok(report) => {
                        tracing::warn!(failed = ?report.failed, "not everything could be flushed for want of room");
                    }
                    Err(error) => tracing::warn!(%error, "nothing could be flushed for want of room"),
                }
                return Ok(Waited { freed, in_time: true });
            }
            Err(_) => {
                if freed < needed {
                    tracing::warn!("a flush for want of room takes too long to wait for");
                    shared.note_slow_flush(SLOW_FLUSH_LASTS);
                }
                return Ok(Waited { freed, in_time: false });
            }
        }
    }
}

/// Takes events of one kind out, oldest first, until enough bytes are free; returns how many were freed.
async fn free(shared: &Shared, hot: &Database, epoch: u32, spare: Spare, wanted: u64) -> Result<u64, Error> {
    // What was appended Low is gone up to where the last search ended, and none comes there any more.
    let mut from = if matches!(spare, Spare::Low) { shared.low_swept(epoch) } else { 1 };
    let mut freed = 0;
    while freed < wanted {
        let (left, archived) = (wanted - freed, shared.archived());
        let swept = hot
            .write(SHED, move |conn| Box::pin(async move { sweep(conn, epoch, from, spare, &archived, left).await }))
            .await?;
        freed += swept.bytes;
        observe::removed(&swept, "room");
        if !swept.lost.is_empty() {
            tracing::warn!(
                events = swept.lost.len(),
                "events that had not reached flash were given up for want of room"
            );
        }
        shared.forget_backlog(epoch, &swept.lost);
        shared.forget_given_up(epoch, &swept.gone);
        let Some(next) = swept.next else { break };
        from = next;
        if matches!(spare, Spare::Low) {
            shared.set_low_swept(epoch, next);
        }
    }
    Ok(freed)
}

impl EventStore {
    /// Removes from the hot tier what has been there for longer than [`crate::EventOptions::hot_keep`], by the time since
    /// boot: what is on flash, and Low events unless a cold tier is still to take them. Those it has taken, as far as an
    /// [`EventStore::archive`] of this process has seen, leave it without having ended. Called by
    /// [`EventStore::maintain`]. Returns how many Low events ended.
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read or written.
    ///
    /// # Cancel safety
    /// Safe: it removes in steps.
    pub async fn expire(&self) -> Result<u64, Error> {
        let shared = self.shared();
        let now = shared.manager.now();
        let keep_ms = u64::try_from(shared.options.hot_keep.as_millis()).unwrap_or(u64::MAX);
        let Some(boottime_ms) = now.boottime_ms.checked_sub(keep_ms) else { return Ok(0) };
        let low = shared.options.cold.as_ref().is_none_or(|cold| cold.policy == ColdPolicy::WarmOnly);
        let spare = Spare::Older { boot: now.boot, boottime_ms, low };
        let hot = shared.hot().await?;
        let epoch = shared.heads().epoch();
        let (mut from, mut events) = (1, 0);
        loop {
            let archived: Arc<HashMap<Scope, Range>> = shared.archived();
            let swept = hot
                .write(EXPIRE, move |conn| {
                    Box::pin(async move { sweep(conn, epoch, from, spare, &archived, u64::MAX).await })
                })
                .await?;
            events += swept.events;
            observe::removed(&swept, "expired");
            match swept.next {
                Some(next) => from = next,
                None => break,
            }
        }
        let view = hot.read(EXPIRE, |conn| Box::pin(log::view(conn))).await?;
        shared.forget_left(&hot, &view).await?;
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{NewRouter, RouterId};

    use super::*;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::name::{EventType, StreamName};
    use crate::options::EventOptions;
    use crate::place::Place;

    /// What a router that takes nothing holds back at the start of the log keeps nothing of the others in memory.
    #[tokio::test]
    async fn what_stays_for_long_keeps_nothing_in_memory_that_has_gone() {
        const ROUND: usize = 1_000;
        let Place { dir: _dir, clock, manager } = Place::new().await;
        let id = RouterId::parse("r1").unwrap();
        manager.create_router(NewRouter::new(id.clone())).await.unwrap();
        let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let stream = StreamName::parse("s").unwrap();
        let append = async |scope: &Scope, count: usize| {
            let kind = EventType::parse("resource.updated").unwrap();
            let event = || NewEvent::new(manager.next_ulid(), kind.clone(), &0).unwrap();
            let events = std::iter::repeat_with(event).take(count).collect();
            store.append(scope, &stream, Expected::Any, events).await.unwrap();
        };
        let stuck = Scope::Router(id);
        append(&stuck, 1).await;
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'full'); END";
        let database = manager.scope(&stuck).await.unwrap();
        let refused = database.write(SHED, move |conn| {
            Box::pin(async move { Ok::<_, Error>(sqlx::query(refuse).execute(conn).await.map(drop)?) })
        });
        refused.await.unwrap();
        for _ in 0..8 {
            append(&Scope::System, ROUND).await;
            let report = store.flush(FlushReason::Requested).await.unwrap();
            assert_eq!(report.failed_scopes().collect::<Vec<_>>(), [&stuck]);
            clock.advance(Duration::from_secs(25 * 60 * 60));
            append(&Scope::System, 1).await;
            store.expire().await.unwrap();
        }
        let known = store.shared().heads().ids_known();
        assert!(known <= 3 * ROUND, "{known} ids");
        store.shutdown().await.unwrap();
    }
}
