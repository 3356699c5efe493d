//! Walks along the chains of a scope, tier by tier, and shows each event with what is recorded of its chain.

use std::sync::{Arc, PoisonError};

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::archive;
use crate::chain::Digest;
use crate::copied::Tip;
use crate::error::Error;
use crate::event::Recorded;
use crate::head::Lane;
use crate::hot::log::Order;
use crate::position::Position;
use crate::store::{EventStore, blocking};
use crate::warm::{rows, segment};

const WALK: Cause = Cause::new("event-verify");
const ROWS: u32 = 512;
const SEGMENTS: u32 = 8;

const RECORDS: &str = "SELECT pos, digest FROM event_chain WHERE lane = ?1 AND pos > ?2 AND pos <= ?3 ORDER BY pos";
/// What sealing took is in segments.
const RETAINED: &str =
    "SELECT MAX(through_pos) FROM event_retained WHERE (what = 0 AND ?1) OR (what NOT IN (0, -4) AND NOT ?1)";

/// What is met along a chain.
#[derive(Debug)]
pub(crate) enum Step {
    /// The chain as it is recorded behind everything up to `position`: where the walk begins, and behind what was removed.
    At { position: Position, digest: Digest, may_be_removed: bool },
    /// The next event.
    Event(Box<Recorded>),
    /// The chain as it is recorded behind the events met so far.
    After(Digest),
    /// An event, or a whole segment or frame, that cannot be read, and the chain behind it where that is known.
    Damaged { position: Option<Position>, through: Option<Position>, error: Error, after: Option<Digest> },
}

/// A part of the order: after one position, up to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    pub(crate) after: Position,
    pub(crate) until: Position,
}

impl EventStore {
    /// Shows the steps of one chain. Units that reach beyond the stretch are shown whole.
    pub(crate) async fn walk(
        &self,
        scope: &Scope,
        lane: Lane,
        stretch: Stretch,
        see: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Error> {
        match lane {
            Lane::Rows => self.walk_rows(scope, stretch, see).await,
            Lane::Segments => self.walk_segments(scope, stretch, see).await,
            Lane::Frames => self.walk_frames(scope, stretch, see).await,
        }
    }

    async fn walk_rows(
        &self,
        scope: &Scope,
        stretch: Stretch,
        see: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Error> {
        let database = self.shared().manager.scope(scope).await?;
        let mut after = stretch.after;
        let mut is_first = true;
        loop {
            let (own, low, start) = (scope.clone(), after, is_first);
            let annexes = database.annexes().cloned();
            let (steps, last) = database
                .read(WALK, move |conn| {
                    let stretch = Stretch { after: low, until: stretch.until };
                    Box::pin(async move { row_steps(conn, annexes.as_ref(), &own, stretch, start).await })
                })
                .await?;
            steps.into_iter().for_each(&mut *see);
            is_first = false;
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    async fn walk_segments(
        &self,
        scope: &Scope,
        stretch: Stretch,
        see: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Error> {
        let database = self.shared().manager.scope(scope).await?;
        let mut after = stretch.after;
        let mut is_first = true;
        loop {
            let (own, range, start) = (scope.clone(), (after, stretch.until), is_first);
            let annexes = database.annexes().cloned();
            let (steps, last) = database
                .read(WALK, move |conn| {
                    Box::pin(async move { segment_steps(conn, annexes.as_ref(), &own, range, start).await })
                })
                .await?;
            is_first = false;
            steps.into_iter().for_each(&mut *see);
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    /// Up to where the archive of a scope was read back; `None` when its database cannot tell, and all of it counts.
    async fn confirmed_of(&self, scope: &Scope) -> Option<Position> {
        let database = self.shared().manager.scope(scope).await.ok()?;
        let confirmed = database.read(WALK, |conn| Box::pin(archive::confirmed(conn))).await.ok()?;
        Some(confirmed.unwrap_or(Position::START))
    }

    async fn walk_frames(
        &self,
        scope: &Scope,
        stretch: Stretch,
        see: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Error> {
        let Some(cold) = self.shared().cold.clone() else { return Ok(()) };
        let (own, shared) = (scope.clone(), Arc::clone(&cold));
        let found = blocking(move || shared.lock().unwrap_or_else(PoisonError::into_inner).frames(&own)).await?;
        let confirmed = self.confirmed_of(scope).await;
        found.damaged.into_iter().for_each(|error| {
            see(Step::Damaged { position: None, through: None, error, after: None });
        });
        let before = found.places.iter().map(|(_, place)| place.header.tip()).filter(|tip| tip.last <= stretch.after);
        if let Some(Tip { last, digest }) = before.max_by_key(|tip| tip.last) {
            see(Step::At { position: last, digest, may_be_removed: false });
        }
        for frame in found.places {
            let header = frame.1.header.clone();
            if header.last <= stretch.after || header.first > stretch.until {
                continue;
            }
            see(Step::At { position: header.first.before(), digest: header.chain.0, may_be_removed: false });
            let shared = Arc::clone(&cold);
            let opened = blocking(move || shared.lock().unwrap_or_else(PoisonError::into_inner).open_frame(&frame));
            match opened.await {
                Ok(events) => {
                    events.into_iter().for_each(|event| see(Step::Event(Box::new(event))));
                    see(Step::After(header.chain.1));
                }
                // It was never read back, so its events are where they were; the next archive drops it.
                Err(Error::Corrupt { .. }) if confirmed.is_some_and(|confirmed| header.last > confirmed) => break,
                Err(error) => {
                    let (position, through) = (Some(header.first), Some(header.last));
                    see(Step::Damaged { position, through, error, after: Some(header.chain.1) });
                }
            }
        }
        Ok(())
    }
}

/// One page of rows, those that were sealed included; with the last position shown when more may follow.
async fn row_steps(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    stretch: Stretch,
    start: bool,
) -> Result<(Vec<Step>, Option<Position>), Error> {
    let mut steps = Vec::new();
    if start {
        let (position, digest) =
            rows::chained_at(conn, stretch.after).await?.unwrap_or((Position::START, Digest::GENESIS));
        steps.push(Step::At { position, digest, may_be_removed: true });
    }
    // Sealed rows stand among those that are still rows, in the same chain: a short run behind a hole is not sealed.
    let range = (stretch.after, stretch.until);
    let mut sealed = segment::metas(conn, scope, segment::Lane::Sealed, range, Order::Forwards, SEGMENTS).await?;
    let mut last = sealed.last().map(|meta| meta.last).filter(|_| sealed.len() >= SEGMENTS as usize);
    let until = last.unwrap_or(stretch.until).min(stretch.until);
    let page = rows::page(conn, scope, (stretch.after, until), None, Order::Forwards, ROWS).await?;
    if page.len() >= ROWS as usize {
        last = page.last().map(|row| row.position);
    }
    let through = last.unwrap_or(stretch.until);
    sealed.retain(|meta| meta.first <= through);
    let removed = removed_through(conn, false).await?;

    let mut places: Vec<Place> = Vec::new();
    for meta in sealed {
        places.push((meta.first, false, steps_of(conn, annexes, scope, &meta).await?));
    }
    for row in page {
        let steps = match row.event {
            Ok(event) => {
                let after = row.digest.map(Step::After);
                std::iter::once(Step::Event(Box::new(event))).chain(after).collect()
            }
            Err(error) => {
                let position = Some(row.position);
                vec![Step::Damaged { position, through: position, error, after: row.digest }]
            }
        };
        places.push((row.position, false, steps));
    }
    places.extend(records(conn, "rows", (stretch.after, through), removed).await?);
    Ok((in_order(steps, places), last))
}

async fn segment_steps(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    range: (Position, Position),
    start: bool,
) -> Result<(Vec<Step>, Option<Position>), Error> {
    let metas = segment::metas(conn, scope, segment::Lane::Flushed, range, Order::Forwards, SEGMENTS).await?;
    let removed = removed_through(conn, true).await?;
    let last = metas.last().map(|meta| meta.last).filter(|_| metas.len() >= SEGMENTS as usize);
    let mut steps = Vec::new();
    if start {
        let (position, digest) =
            segment::chained_at(conn, scope, range.0).await?.unwrap_or((Position::START, Digest::GENESIS));
        steps.push(Step::At { position, digest, may_be_removed: true });
    }
    let mut places: Vec<Place> = Vec::new();
    for meta in metas {
        places.push((meta.first, false, steps_of(conn, annexes, scope, &meta).await?));
    }
    places.extend(records(conn, "segments", (range.0, last.unwrap_or(range.1)), removed).await?);
    Ok((in_order(steps, places), last))
}

/// What is shown at a position, and whether it is the record of something that was removed there.
type Place = (Position, bool, Vec<Step>);

/// How the chain is recorded behind what was removed.
async fn records(
    conn: &mut SqliteConnection,
    lane: &'static str,
    (after, through): (Position, Position),
    removed: Position,
) -> Result<Vec<Place>, Error> {
    let query = sqlx::query_as(RECORDS).bind(lane).bind(after.to_key_clamped()).bind(through.to_key_clamped());
    let found: Vec<(i64, Vec<u8>)> = query.fetch_all(conn).await?;
    let place = |(pos, digest): (i64, Vec<u8>)| {
        let (position, digest) = (Position::from_key(pos)?, Digest::from_slice(&digest)?);
        Some((position, true, vec![Step::At { position, digest, may_be_removed: position <= removed }]))
    };
    Ok(found.into_iter().filter_map(place).collect())
}

/// Steps in the order of positions; what is recorded behind a place comes after what stands there.
fn in_order(mut steps: Vec<Step>, mut places: Vec<Place>) -> Vec<Step> {
    places.sort_by_key(|(position, is_record, _)| (*position, *is_record));
    steps.extend(places.into_iter().flat_map(|(.., steps)| steps));
    steps
}

/// The steps through one segment. What was removed before it has left a record.
async fn steps_of(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    meta: &segment::Meta,
) -> Result<Vec<Step>, Error> {
    let position = meta.first.before();
    let mut steps = vec![Step::At { position, digest: meta.prev_digest, may_be_removed: false }];
    match segment::events(conn, annexes, scope, meta).await {
        Ok(events) => {
            steps.extend(events.into_iter().map(|event| Step::Event(Box::new(event))));
            steps.push(Step::After(meta.digest));
        }
        Err(error) if error.is_of_one_segment() => {
            let (position, through) = (Some(meta.first), Some(meta.last));
            steps.push(Step::Damaged { position, through, error, after: Some(meta.digest) });
        }
        Err(error) => return Err(error),
    }
    Ok(steps)
}

/// Up to where retention has moved its marks: rows and segments above it were never removed by it.
async fn removed_through(conn: &mut SqliteConnection, segments: bool) -> Result<Position, Error> {
    let found: Option<i64> = sqlx::query_scalar(RETAINED).bind(segments).fetch_one(conn).await?;
    Ok(found.and_then(Position::from_key).unwrap_or(Position::START))
}
