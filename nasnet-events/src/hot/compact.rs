//! Joins small rows of the hot log: an event that was appended alone takes several times the memory it takes among others,
//! and whoever reads a hundred of them opens a hundred rows.

use std::ops::Range;

use nasnet_dbmanager::Cause;
use sqlx::SqliteConnection;

use crate::block::{self, Packing};
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::{self, JOINED_EVENTS_MAX, Order, PLAIN_EVENTS_MAX, Row, RowState};
use crate::store::EventStore;

/// It gives back more than it takes, but takes first.
const COMPACT: Cause = Cause::new("event-compact").critical();

/// Rows appended since the last time that are worth a look.
pub(crate) const SMALL_ROWS_MIN: u64 = 64;
/// Rows looked at in one transaction: appends wait for it.
const ROWS: i64 = 256;
/// Stored bytes of one row at most.
const ROW_BYTES_MAX: u64 = 256 << 10;
/// The last rows are joined again and again as others come: only when that at least doubles the longest of them.
const GROWTH: u64 = 2;
/// Nobody waits for this, so it may take longer than an append.
const PACKING: Packing<'static> = Packing::Zstd(3);

/// Longer rows than `?3` are compressed.
const SIZES: &str = "SELECT first_seq, count, state = 'block' AND shed = 0, COALESCE(length(body), 0), \
     CASE WHEN count <= ?3 THEN substr(body, 1, 2) END FROM hot_log \
     WHERE first_seq >= ?1 ORDER BY first_seq LIMIT ?2";
const JOIN: &str = "UPDATE hot_log SET count = ?2, body = ?3 WHERE first_seq = ?1";
const JOINED: &str = "DELETE FROM hot_log WHERE first_seq > ?1 AND first_seq <= ?2";

type FoundSize = (i64, i64, bool, i64, Option<Vec<u8>>);

/// What one row takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    first_seq: u64,
    count: u64,
    /// It holds all of its events, and they live here first.
    is_whole: bool,
    /// It may take less.
    is_plain: bool,
    bytes: u64,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Rows that were joined to others.
    pub joined: u64,
    /// Rows they became.
    pub rows: u64,
}

/// Which neighbours become one row, and from which on to look the next time. Pure.
///
/// A row that fits to none of its neighbours is a group of its own while it is not compressed. The last of `sizes` is the
/// newest row of the log or the first of the next look: it stays as it is.
fn groups(sizes: &[Size]) -> (Vec<Range<usize>>, usize) {
    let most = JOINED_EVENTS_MAX as u64;
    let Some(end) = sizes.len().checked_sub(1) else { return (Vec::new(), 0) };
    let mut found = Vec::new();
    let (mut from, mut events, mut bytes, mut longest) = (0, 0, 0, 0);
    for (index, size) in sizes[..end].iter().enumerate() {
        // A row that spans numbers it has no events for would be taken for a damaged one.
        let is_next =
            index.checked_sub(1).is_none_or(|before| sizes[before].first_seq + sizes[before].count == size.first_seq);
        let fits = size.is_whole && is_next && events + size.count <= most && bytes + size.bytes <= ROW_BYTES_MAX;
        if !fits {
            if index - from > 1 || sizes[from..index].iter().any(|lone| lone.is_plain) {
                found.push(from..index);
            }
            // One that is too long for its neighbours may begin the next row.
            (from, events, bytes, longest) = if size.is_whole { (index, 0, 0, 0) } else { (index + 1, 0, 0, 0) };
        }
        if size.is_whole {
            events += size.count;
            bytes += size.bytes;
            longest = size.count.max(longest);
        }
    }
    if end - from > 1 && events >= GROWTH * longest {
        found.push(from..end);
    }
    (found, from)
}

/// Joins rows from a number on; returns where the next look begins and whether there is more to look at now.
async fn step(
    conn: &mut SqliteConnection,
    epoch: u32,
    from: u64,
    report: &mut CompactReport,
) -> Result<(u64, bool), Error> {
    // Another process may have joined the row with others.
    let sizes: Vec<FoundSize> = sqlx::query_as(SIZES)
        .bind(from.cast_signed())
        .bind(ROWS)
        .bind(i64::try_from(PLAIN_EVENTS_MAX).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await?;
    let more = sizes.len() == usize::try_from(ROWS).unwrap_or(usize::MAX);
    let sizes: Vec<Size> = sizes
        .into_iter()
        .map(|(first_seq, count, is_whole, bytes, head)| Size {
            first_seq: first_seq.cast_unsigned(),
            count: count.cast_unsigned(),
            is_whole,
            is_plain: is_whole && head.is_some_and(|head| block::is_plain(&head)),
            bytes: bytes.cast_unsigned(),
        })
        .collect();
    let (groups, next) = groups(&sizes);
    for group in groups {
        let (first, last) = (sizes[group.start], sizes[group.end - 1]);
        let end = last.first_seq + last.count - 1;
        let limit = u32::try_from(group.len()).unwrap_or(u32::MAX);
        let rows = log::page(conn, epoch, (first.first_seq, end), Order::Forwards, limit, None).await?;
        // Damage stays where it is, so that it hides nothing else.
        let Some(events) = events_of(rows) else { continue };
        let refs: Vec<&Recorded> = events.iter().collect();
        let (body, _) = block::encode(&refs, PACKING).map_err(|error| Error::corrupt("hot.db hot_log", error))?;
        sqlx::query(JOIN)
            .bind(first.first_seq.cast_signed())
            .bind((end - first.first_seq + 1).cast_signed())
            .bind(body)
            .execute(&mut *conn)
            .await?;
        let removed = sqlx::query(JOINED)
            .bind(first.first_seq.cast_signed())
            .bind(last.first_seq.cast_signed())
            .execute(&mut *conn)
            .await?;
        if group.len() > 1 {
            report.joined += removed.rows_affected() + 1;
            report.rows += 1;
        }
    }
    Ok((sizes.get(next).map_or(from, |size| size.first_seq), more && next > 0))
}

fn events_of(rows: Vec<Row>) -> Option<Vec<Recorded>> {
    let mut events = Vec::new();
    for row in rows {
        match (&row.state, row.events()) {
            (RowState::Block, Ok(held)) => events.extend(held),
            _ => return None,
        }
    }
    Some(events)
}

impl EventStore {
    /// Joins small rows of the hot tier into rows of up to 32 events, and compresses those that stay alone: what was appended
    /// event by event then takes a fraction of the memory, and is read faster. Nothing changes for readers. Called by
    /// [`EventStore::maintain`].
    ///
    /// # Errors
    /// [`Error::Storage`] when hot.db cannot be read or written.
    ///
    /// # Cancel safety
    /// Safe: rows are joined in one transaction each time.
    pub async fn compact(&self) -> Result<CompactReport, Error> {
        let shared = self.shared();
        let mut total = CompactReport::default();
        let hot = shared.hot().await?;
        let epoch = shared.heads().epoch();
        shared.note_compacted();
        loop {
            let from = shared.compact_from(epoch);
            let (next, more, report) = hot
                .write(COMPACT, move |conn| {
                    Box::pin(async move {
                        let mut report = CompactReport::default();
                        if log::epoch(conn).await? != Some(epoch) {
                            return Ok::<_, Error>((from, false, report));
                        }
                        let (next, more) = step(conn, epoch, from, &mut report).await?;
                        Ok((next, more, report))
                    })
                })
                .await?;
            shared.set_compact_from(epoch, next);
            total.joined += report.joined;
            total.rows += report.rows;
            if !more {
                return Ok(total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Those of an odd length are not compressed.
    fn sizes(rows: &[(u64, bool, u64)]) -> Vec<Size> {
        let mut first_seq = 1;
        rows.iter()
            .map(|(count, is_whole, bytes)| {
                let is_plain = *is_whole && bytes % 2 == 1;
                let size = Size { first_seq, count: *count, is_whole: *is_whole, is_plain, bytes: *bytes };
                first_seq += count;
                size
            })
            .collect()
    }

    #[test]
    fn rows_on_both_sides_of_a_gap_stay_apart() {
        let mut sizes = sizes(&[(2, true, 9), (2, true, 9), (2, true, 9), (2, true, 9), (1, true, 9)]);
        assert!(groups(&sizes).0.iter().eq([&(0..4)]));
        sizes[2..].iter_mut().for_each(|size| size.first_seq += 1);
        assert_eq!(groups(&sizes).0, [0..2, 2..4]);
    }

    proptest! {
        #[test]
        fn rows_that_are_joined_are_whole_neighbours_and_not_too_long(
            rows in prop::collection::vec((1..200_u64, prop::bool::weighted(0.9), 1..100_000_u64), 0..60),
        ) {
            let sizes = sizes(&rows);
            let (groups, next) = groups(&sizes);
            let mut end = 0;
            for group in &groups {
                prop_assert!(group.start >= end && group.end < sizes.len(), "the newest stays");
                end = group.end;
                let joined = &sizes[group.clone()];
                prop_assert!(joined.len() > 1 || joined[0].is_plain, "nothing is done for nothing");
                prop_assert!(joined.iter().all(|size| size.is_whole));
                if joined.len() == 1 {
                    continue;
                }
                prop_assert!(joined.iter().map(|size| size.count).sum::<u64>() <= JOINED_EVENTS_MAX as u64);
                prop_assert!(joined.iter().map(|size| size.bytes).sum::<u64>() <= ROW_BYTES_MAX);
            }
            prop_assert!(next <= sizes.len());
            let is_left = |at: usize| sizes[at].is_plain && !groups.iter().any(|group| group.contains(&at));
            prop_assert!(!(0..next.min(sizes.len())).any(is_left), "none that is passed stays as it is");
            prop_assert!(groups.iter().all(|group| group.start == next || group.end <= next), "nothing is left out");
        }

        #[test]
        fn single_events_are_rewritten_few_times(events in 200..1_500_usize, every in 1..100_usize) {
            // As the log grows: rows of one event, joined every so often.
            let mut log: Vec<u64> = Vec::new();
            let (mut from, mut written) = (0, 0);
            for event in 0..events {
                log.push(1);
                if event % every == 0 {
                    let rows: Vec<_> = log[from..].iter().map(|count| (*count, true, 100)).collect();
                    let (groups, next) = groups(&sizes(&rows));
                    for group in groups.iter().rev() {
                        let joined: u64 = log[from + group.start..from + group.end].iter().sum();
                        written += joined;
                        log.splice(from + group.start..from + group.end, [joined]);
                    }
                    // Groups before the last shrink what lies before it.
                    let before: usize = groups.iter().filter(|group| group.end <= next).map(|group| group.len() - 1).sum();
                    from += next - before;
                }
            }
            prop_assert_eq!(log.iter().sum::<u64>(), events as u64);
            prop_assert!(written <= 9 * events as u64, "{} events written for {}", written, events);
            // Beside the long rows: what came since the last time, and a tail shorter than twice its longest row.
            prop_assert!(log.len() <= 2 * events / JOINED_EVENTS_MAX + every + JOINED_EVENTS_MAX / 2 + 2, "{} rows of {} events", log.len(), events);
        }
    }
}
