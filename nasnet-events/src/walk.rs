//! Walks along the chains of a scope, tier by tier, and shows each event with what is recorded of its chain.

use std::sync::{Arc, PoisonError};

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::chain::Digest;
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

const RECORDS: &str = "SELECT pos, digest FROM event_chain WHERE lane = 'rows' AND pos > ?1 AND pos <= ?2 ORDER BY pos";
const RETAINED: &str = "SELECT MAX(through_pos) FROM event_retained WHERE (what = 0) = ?1";

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

    async fn walk_frames(
        &self,
        scope: &Scope,
        stretch: Stretch,
        see: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Error> {
        let Some(cold) = self.shared().cold.clone() else { return Ok(()) };
        let (own, shared) = (scope.clone(), Arc::clone(&cold));
        let found = blocking(move || shared.lock().unwrap_or_else(PoisonError::into_inner).frames(&own)).await?;
        found.damaged.into_iter().for_each(|error| {
            see(Step::Damaged { position: None, through: None, error, after: None });
        });
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
                Err(error) => {
                    let (position, through) = (Some(header.first), Some(header.last));
                    see(Step::Damaged { position, through, error, after: Some(header.chain.1) });
                }
            }
        }
        Ok(())
    }
}

/// One page of rows; with the last position shown when more may follow.
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
        // Sealed rows come before those that are still rows, in the same chain.
        let mut after = stretch.after;
        loop {
            let range = (after, stretch.until);
            let (sealed, last) = lane_steps(conn, annexes, scope, segment::Lane::Sealed, range).await?;
            steps.extend(sealed);
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
    }
    let page = rows::page(conn, scope, (stretch.after, stretch.until), None, Order::Forwards, ROWS).await?;
    let more = page.len() >= ROWS as usize;
    let last = page.last().map(|row| row.position).filter(|_| more);
    let records: Vec<(i64, Vec<u8>)> = sqlx::query_as(RECORDS)
        .bind(stretch.after.to_key_clamped())
        .bind(last.unwrap_or(stretch.until).to_key_clamped())
        .fetch_all(&mut *conn)
        .await?;
    let removed = removed_through(conn, false).await?;
    let mut records =
        records.into_iter().filter_map(|(pos, digest)| Some((Position::from_key(pos)?, Digest::from_slice(&digest)?)));
    let mut next = records.next();
    let mut behind = |steps: &mut Vec<Step>, before: Position| {
        while let Some((position, digest)) = next.filter(|(position, _)| *position < before) {
            steps.push(Step::At { position, digest, may_be_removed: position <= removed });
            next = records.next();
        }
    };
    for row in page {
        behind(&mut steps, row.position);
        match row.event {
            Ok(event) => {
                steps.push(Step::Event(Box::new(event)));
                steps.extend(row.digest.map(Step::After));
            }
            Err(error) => {
                let position = Some(row.position);
                steps.push(Step::Damaged { position, through: position, error, after: row.digest });
            }
        }
    }
    behind(&mut steps, Position::END);
    Ok((steps, last))
}

async fn segment_steps(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    range: (Position, Position),
    start: bool,
) -> Result<(Vec<Step>, Option<Position>), Error> {
    let (mut steps, last) = lane_steps(conn, annexes, scope, segment::Lane::Flushed, range).await?;
    if start && steps.is_empty() {
        let chained = segment::chained(conn, scope).await?;
        steps.extend(chained.map(|(position, digest)| Step::At { position, digest, may_be_removed: true }));
    }
    Ok((steps, last))
}

/// One page of segments; with the last position shown when more may follow.
async fn lane_steps(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    lane: segment::Lane,
    range: (Position, Position),
) -> Result<(Vec<Step>, Option<Position>), Error> {
    let mut steps = Vec::new();
    let metas = segment::metas(conn, scope, lane, range, Order::Forwards, SEGMENTS).await?;
    let removed = removed_through(conn, lane == segment::Lane::Flushed).await?;
    let last = metas.last().map(|meta| meta.last).filter(|_| metas.len() >= SEGMENTS as usize);
    for meta in metas {
        let position = meta.first.before();
        steps.push(Step::At { position, digest: meta.prev_digest, may_be_removed: position <= removed });
        match segment::events(conn, annexes, scope, &meta).await {
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
    }
    Ok((steps, last))
}

/// Up to where retention has moved its marks: rows and segments above it were never removed by it.
async fn removed_through(conn: &mut SqliteConnection, segments: bool) -> Result<Position, Error> {
    let found: Option<i64> = sqlx::query_scalar(RETAINED).bind(segments).fetch_one(conn).await?;
    Ok(found.and_then(Position::from_key).unwrap_or(Position::START))
}
