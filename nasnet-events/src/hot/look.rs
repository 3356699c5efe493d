//! One look at the hot log for a page of a read: the rows are fetched in one step on the calling thread, and put together
//! afterwards, when nobody waits for the database.

use nasnet_dbmanager::{RawConn, Scope};

use crate::error::Error;
use crate::hot::log::{self, Order, Row, RowState, View};
use crate::hot::summary::Wanted;
use crate::merge::{Range, Slice, end_of};
use crate::name::StreamName;
use crate::position::Position;
use crate::query::Query;
use crate::shared::Shared;

/// Rows of one stream that are fetched together.
const STREAM_ROWS_MAX: usize = 128;
/// Rows fetched first, before it is known how many events are in each, and at most.
const ROWS_FIRST: u32 = 2;
const ROWS_MAX: usize = 128;
const ROWS_STEP_MAX: u32 = 64;
/// What a transaction is called whose end is not known.
const STALLED: &str = "events";

/// What the hot log says about the next page.
pub(crate) struct Hot {
    /// The whole range, its end fixed by the first page.
    pub(crate) range: Range,
    /// The part of it this page is about.
    pub(crate) part: Range,
    /// The hot tier's events in that part, `None` when it lies below the hot log.
    pub(crate) slice: Option<Slice>,
    /// Some of its events may be in the other tiers only.
    pub(crate) has_holes: bool,
    pub(crate) unresolved: bool,
}

/// What was fetched of the hot log for one page, still to be put together.
pub(crate) struct Fetched {
    range: Range,
    part: Range,
    unresolved: bool,
    epoch: u32,
    rows: Rows,
}

enum Rows {
    /// The page lies below the hot log.
    Below,
    /// Rows one after the other from the near end of a range; `whole` = there are no more in it.
    Log { range: Range, rows: Vec<Row>, whole: bool },
    /// The rows that hold the next events of a stream; the slice says how far that is.
    Stream { slice: Slice, rows: Vec<Row> },
}

impl Fetched {
    /// Puts the wanted events together. Appends do not wait for this.
    pub(crate) fn into_hot(self, query: &Query, left: usize) -> Hot {
        let (order, epoch) = (query.order, self.epoch);
        let mut has_holes = false;
        let slice = match self.rows {
            Rows::Below => None,
            Rows::Stream { mut slice, mut rows } => {
                if order == Order::Backwards {
                    rows.reverse();
                }
                let next = end_with_kind(&mut rows);
                for row in rows {
                    has_holes |= row.shed > 0;
                    take(&mut slice, row, query, epoch);
                }
                if let Some((first, last)) = next {
                    slice.covered = match order {
                        Order::Forwards => Position::new(epoch, first).before(),
                        Order::Backwards => Position::new(epoch, last),
                    };
                }
                Some(slice)
            }
            Rows::Log { range, mut rows, whole } => {
                let mut slice = Slice::whole(range, order);
                let is_whole = end_with_kind(&mut rows).is_none() && whole;
                let mut rows = rows.into_iter();
                for row in rows.by_ref() {
                    let (first, last) = (Position::new(epoch, row.first_seq), Position::new(epoch, row.last_seq()));
                    has_holes |= row.shed > 0;
                    take(&mut slice, row, query, epoch);
                    slice.stop_at(first, last, order);
                    if slice.events.len() >= left {
                        break;
                    }
                }
                if is_whole && rows.len() == 0 {
                    slice.covered = end_of(range, order);
                }
                Some(slice)
            }
        };
        Hot { range: self.range, part: self.part, slice, has_holes, unresolved: self.unresolved }
    }
}

/// Ends a page where rows that have lost events begin, or end: for those alone other tiers are asked, which takes as long as
/// the page does there. Returns the ends of the first row that is left to the next page.
fn end_with_kind(rows: &mut Vec<Row>) -> Option<(u64, u64)> {
    let has_lost = rows.first()?.shed > 0;
    let end = rows.iter().position(|row| (row.shed > 0) != has_lost)?;
    let next = rows.get(end).map(|row| (row.first_seq, row.last_seq()));
    rows.truncate(end);
    next
}

/// Fetches rows of the next page that hold so many `events`, of a stream those that hold its next `left`.
pub(crate) fn fetch(
    conn: &mut RawConn<'_>,
    shared: &Shared,
    query: &Query,
    mut range: Range,
    started: bool,
    (left, events): (usize, u64),
) -> Result<Fetched, Error> {
    let order = query.order;
    let view = log::view_now(conn)?;
    let mut unresolved = view.reserved.is_some();
    if !started {
        let mut seen = view;
        if let (Some(scopes), true) = (&query.scopes, unresolved) {
            // The transactions of other scopes add nothing to these.
            seen.unresolved = log::unresolved_of(conn, scopes)?;
            unresolved = seen.unresolved.is_some();
        }
        range.high = range.high.min(seen.stable());
    }
    let below = view.floor.map_or(Position::END, |floor| Position::new(view.epoch, floor).before());
    let (is_hot, part) = match order {
        Order::Forwards if range.low < below => (false, Range { low: range.low, high: range.high.min(below) }),
        Order::Backwards if range.high <= below => (false, range),
        Order::Forwards => (true, range),
        Order::Backwards => (true, Range { low: range.low.max(below), high: range.high }),
    };
    let rows = match &query.stream {
        _ if !is_hot => Rows::Below,
        Some(stream) => fetch_stream(conn, shared, query, stream, &view, part, (left, events))?,
        None => fetch_log(conn, shared, query, &view, part, events)?,
    };
    Ok(Fetched { range, part, unresolved, epoch: view.epoch, rows })
}

/// Rows of one stream in a range that lies within the hot log: only those that hold some of its events.
fn fetch_stream(
    conn: &mut RawConn<'_>,
    shared: &Shared,
    query: &Query,
    stream: &StreamName,
    view: &View,
    range: Range,
    (left, events): (usize, u64),
) -> Result<Rows, Error> {
    let order = query.order;
    // What another process has just appended is not known here yet, so that stretch is scanned.
    let (epoch, known) = {
        let heads = shared.heads();
        (heads.epoch(), heads.next_seq().saturating_sub(1))
    };
    if epoch != view.epoch || range.low.seq >= known || (order == Order::Backwards && range.high.seq > known) {
        let low = if epoch == view.epoch { range.low.max(Position::new(epoch, known)) } else { range.low };
        let above = if order == Order::Backwards { Range { low, ..range } } else { range };
        return fetch_log(conn, shared, query, view, above, events);
    }
    let part = Range { high: range.high.min(Position::new(epoch, known)), ..range };
    let scopes = query.scopes.as_deref();
    let within = (part.low.seq.saturating_add(1), part.high.seq);
    let wanted = left.clamp(1, STREAM_ROWS_MAX);
    let (seqs, end) = shared.heads().next_of_stream(scopes, stream, within, order, wanted);
    let mut slice = Slice::whole(part, order);
    if let Some(end) = end.map(|end| Position::new(epoch, end)) {
        slice.stop_at(end, end, order);
    }
    let mut rows = Vec::new();
    if !seqs.is_empty() {
        let known = shared.newest().ends(epoch);
        rows = log::holding(conn, epoch, &seqs, known)?;
        fill(conn, shared, query, epoch, &mut rows)?;
    }
    Ok(Rows::Stream { slice, rows })
}

/// Rows of the hot log in a range that lies within it, until they hold so many events. Of those in memory only the wanted ones
/// count: passing over the others costs nothing beside going to the log again. Where nothing wanted can be, nothing is
/// fetched.
fn fetch_log(
    conn: &mut RawConn<'_>,
    shared: &Shared,
    query: &Query,
    view: &View,
    range: Range,
    events: u64,
) -> Result<Rows, Error> {
    let (order, wanted) = (query.order, Wanted::of(query));
    let known = shared.newest().ends(view.epoch);
    let (mut from, mut to) = (range.low.seq.saturating_add(1), range.high.seq);
    let (mut rows, mut held, mut limit) = (Vec::new(), 0, ROWS_FIRST);
    let mut whole = range.is_empty();
    while !whole && from <= to && held < events && rows.len() < ROWS_MAX {
        let near = match &wanted {
            Some(wanted) => shared.heads().next_wanted(view.epoch, wanted, (from, to), order),
            None => Some((from, to)),
        };
        let Some((first, last)) = near else {
            whole = true;
            break;
        };
        let mut page = log::page_now(conn, view.epoch, (first, last), order, limit, known)?;
        fill(conn, shared, query, view.epoch, &mut page)?;
        if page.len() < limit as usize {
            match order {
                Order::Forwards => from = last + 1,
                Order::Backwards => to = first.saturating_sub(1),
            }
        }
        for row in &page {
            held += row.counted();
            match order {
                Order::Forwards => from = from.max(row.last_seq() + 1),
                Order::Backwards => to = to.min(row.first_seq.saturating_sub(1)),
            }
        }
        rows.extend(page);
        limit = (limit * 2).min(ROWS_STEP_MAX);
    }
    Ok(Rows::Log { range, rows, whole: whole || from > to })
}

/// Gives the rows that were fetched without their bodies the wanted events.
fn fill(conn: &mut RawConn<'_>, shared: &Shared, query: &Query, epoch: u32, rows: &mut [Row]) -> Result<(), Error> {
    let mut gone = Vec::new();
    {
        let newest = shared.newest();
        for row in rows.iter_mut().filter(|row| row.is_left_out()) {
            match newest.of_row(epoch, row.first_seq, row.count) {
                Some(events) => row.fill(events.filter(|event| query.matches(event)).cloned().collect()),
                None => gone.push(row.first_seq),
            }
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    // Others have taken their place since.
    for fetched in log::holding(conn, epoch, &gone, None)? {
        if let Some(row) = rows.iter_mut().find(|row| row.first_seq == fetched.first_seq) {
            *row = fetched;
        }
    }
    Ok(())
}

/// Takes the wanted events of a row, or what stands for them.
fn take(slice: &mut Slice, row: Row, query: &Query, epoch: u32) {
    if let (RowState::Reserved(reserved), true) = (&row.state, row.stalled)
        && query.scopes.as_ref().is_none_or(|scopes| scopes.contains(&reserved.scope))
    {
        slice.errors.push(stalled(&reserved.scope, epoch, row.first_seq, row.last_seq()));
        return;
    }
    match row.into_picked(query) {
        Ok(events) if query.order == Order::Backwards => slice.events.extend(events.into_iter().rev()),
        Ok(events) => slice.events.extend(events),
        Err(error) => slice.errors.push(error),
    }
}

/// What a reader of all scopes sees in the place of events nobody can tell about now.
fn stalled(scope: &Scope, epoch: u32, first: u64, last: u64) -> Error {
    let (first, through) = (Position::new(epoch, first), Position::new(epoch, last));
    let why = "whether their transaction committed is not known while the database cannot be asked";
    let source = Box::new(Error::Invalid { what: STALLED, value: format!("{first} to {through}"), why });
    Error::Unreadable { scope: scope.clone(), after: first.before(), through, source }
}

/// True for what stands in the place of a transaction whose end is not known, for which readers have waited already.
pub(crate) fn is_stalled(error: &Error) -> bool {
    matches!(error, Error::Unreadable { source, .. } if matches!(**source, Error::Invalid { what: STALLED, .. }))
}
