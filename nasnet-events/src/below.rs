//! What the tiers below the hot one hold of a page: a few scopes at a time, each step bounded, and all of them together.
//!
//! A step ends after so much was looked at, wanted or not, and the page ends with the step that came least far. What comes
//! after it looks no further, so a page holds and reads what it can use, however many scopes there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::block::Peek;
use crate::cold::ColdDir;
use crate::copied::{self, Copied};
use crate::error::Error;
use crate::hot::log::Order;
use crate::merge::{self, Range, Slice};
use crate::query::Query;
use crate::read::PAGE_EVENTS;
use crate::shared::Shared;
use crate::store::blocking;
use crate::warm::segment::Lane;
use crate::warm::{names, rows, segment};

const READ: Cause = Cause::new("event-read");

/// Scopes whose databases are looked into at the same time.
const SCOPES_TOGETHER: usize = 4;
/// Most events of all places together that wait for the page to be complete, and most bytes of their bodies. A step more of
/// each of these scopes may come on top.
const HELD_EVENTS_MAX: usize = 16_384;
const HELD_BYTES_MAX: usize = 8 << 20;
/// Rows fetched by the first statement of a step, and by one at most: bodies may be large.
const ROWS_FIRST: usize = 8;
const ROWS_MAX: usize = 64;
/// Bytes of bodies after which a step through rows ends.
const ROWS_BYTES_MAX: usize = 1 << 20;
/// Segments looked up by one statement.
const SEGMENTS: u32 = 8;
/// Segments after which a step ends, those that were opened and those whose description was enough.
const OPENED_MAX: usize = 16;
const DESCRIBED_MAX: usize = 512;
/// Bytes of opened segments after which a step ends.
const OPENED_BYTES_MAX: u64 = 2 << 20;

/// A page of the tiers below the hot one that is being put together.
pub(crate) struct Below<'c> {
    shared: &'c Arc<Shared>,
    query: &'c Arc<Query>,
    /// What the page could be about.
    part: Range,
    /// What of it everybody so far has looked at.
    rest: Range,
    slices: Vec<Slice>,
    /// What need not be looked for in the archive of a scope, because its database has it.
    copied: HashMap<Scope, Copied>,
    held: (usize, usize),
}

impl<'c> Below<'c> {
    /// A page of which the hot tier may hold something.
    pub(crate) fn new(shared: &'c Arc<Shared>, query: &'c Arc<Query>, part: Range, hot: Option<Slice>) -> Self {
        let (slices, copied) = (Vec::new(), HashMap::new());
        let mut below = Self { shared, query, part, rest: part, slices, copied, held: (0, 0) };
        if let Some(slice) = hot {
            below.add(slice);
        }
        below
    }

    /// What all places have found, the nearest tier first.
    pub(crate) fn into_slices(self) -> Vec<Slice> {
        self.slices
    }

    fn add(&mut self, mut slice: Slice) {
        self.rest = slice.within(self.rest, self.query.order);
        // Segments and frames reach beyond both ends of a page.
        let rest = self.rest;
        slice.events.retain(|event| event.position > rest.low && event.position <= rest.high);
        let bytes: usize = slice.events.iter().map(|event| event.body.get().len()).sum();
        self.held = (self.held.0 + slice.events.len(), self.held.1 + bytes);
        self.slices.push(slice);
        if self.held.0 > HELD_EVENTS_MAX || self.held.1 > HELD_BYTES_MAX {
            // To half of it, so that this is not done for every scope.
            let limits = (HELD_EVENTS_MAX / 2, HELD_BYTES_MAX / 2);
            self.held = merge::cut(&mut self.slices, &mut self.rest, self.query.order, limits);
        }
    }

    /// Looks into the databases of scopes, a few at the same time: most of it is waiting for their threads. One that cannot
    /// be read is an error beside the events of the others, and so for all of the page: it is not asked again for the next.
    /// They tell what of it need not be looked for in the archive when that comes next.
    pub(crate) async fn look_at_warm(&mut self, scopes: &[Scope], before_cold: bool) {
        for together in scopes.chunks(SCOPES_TOGETHER) {
            if self.rest.is_empty() {
                return;
            }
            let found = join_all(together.iter().map(|scope| self.find_warm(scope, before_cold))).await;
            for (scope, found) in together.iter().zip(found) {
                self.take_warm(scope, found);
            }
        }
    }

    async fn find_warm(&self, scope: &Scope, before_cold: bool) -> Result<(Vec<Slice>, Option<Copied>), Error> {
        let range = self.rest;
        match self.shared.manager.scope(scope).await {
            Ok(database) => {
                let (query, scope) = (Arc::clone(self.query), scope.clone());
                let (annexes, uid) = (database.annexes().cloned(), database.file_uid());
                database
                    .read(READ, move |conn| {
                        Box::pin(async move {
                            let slices = read_warm(conn, annexes.as_ref(), &query, &scope, range).await?;
                            // What is damaged here may be in the archive.
                            let is_whole = slices.iter().all(|slice| slice.errors.is_empty());
                            let copied = if before_cold && is_whole { copied::read(conn, uid).await? } else { None };
                            Ok((slices, copied))
                        })
                    })
                    .await
            }
            // A router that is gone has no warm tier; the cold one may remember it.
            Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => Ok((Vec::new(), None)),
            Err(error) => Err(error.into()),
        }
    }

    fn take_warm(&mut self, scope: &Scope, found: Result<(Vec<Slice>, Option<Copied>), Error>) {
        match found {
            Ok((slices, copied)) => {
                self.copied.extend(copied.map(|copied| (scope.clone(), copied)));
                self.shared.note_readable(scope);
                slices.into_iter().for_each(|slice| self.add(slice));
            }
            Err(error) => {
                let (after, through) = (self.part.low, self.part.high);
                let error = Error::Unreadable { scope: scope.clone(), after, through, source: Box::new(error) };
                self.add(Slice { errors: vec![error], ..Slice::whole(self.part, self.query.order) });
            }
        }
    }

    /// Looks into the archive, with its lock for one scope at a time.
    pub(crate) async fn look_at_cold(&mut self, cold: &Arc<Mutex<ColdDir>>) {
        let query = Arc::clone(self.query);
        let scopes = match with_cold(cold, move |cold| cold.scopes_of(&query)).await {
            Ok(scopes) => scopes,
            // A stick that is not plugged in is a normal event; `status` tells.
            Err(Error::ColdAbsent { .. }) => return,
            Err(error) => return self.add(self.failed(error)),
        };
        for scope in scopes {
            if self.rest.is_empty() {
                return;
            }
            let (query, range, copied) = (Arc::clone(self.query), self.rest, self.copied.get(&scope).copied());
            match with_cold(cold, move |cold| cold.read(&scope, &query, range, copied)).await {
                Ok(slice) => self.add(slice),
                Err(Error::ColdAbsent { .. }) => return,
                Err(error) => self.add(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: Error) -> Slice {
        Slice { errors: vec![error], ..Slice::whole(self.rest, self.query.order) }
    }
}

async fn with_cold<T: Send + 'static>(
    cold: &Arc<Mutex<ColdDir>>,
    look: impl FnOnce(&mut ColdDir) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let cold = Arc::clone(cold);
    blocking(move || look(&mut cold.lock().unwrap_or_else(PoisonError::into_inner))).await
}

async fn read_warm(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    query: &Query,
    scope: &Scope,
    range: Range,
) -> Result<Vec<Slice>, Error> {
    let kinds = match (&query.kind, &query.kind_prefix) {
        (Some(kind), _) => Some(names::starting(conn, kind.as_str()).await?),
        (None, Some(prefix)) => Some(names::starting(conn, prefix).await?),
        (None, None) => None,
    };
    let streams = match (&query.stream, &query.stream_prefix) {
        (Some(stream), _) => Some(names::starting(conn, stream.as_str()).await?),
        (None, Some(prefix)) => Some(names::starting(conn, prefix).await?),
        (None, None) => None,
    };
    // Rows first: what is sealed meanwhile is in a segment before it is no row any more.
    let single = read_rows(conn, query, scope, range).await?;
    let mut rest = single.within(range, query.order);
    let mut slices = vec![single];
    for lane in [Lane::Sealed, Lane::Flushed] {
        let wanted = (kinds.as_ref(), streams.as_ref());
        let packed = read_segments(conn, annexes, query, scope, lane, rest, wanted).await?;
        rest = packed.within(rest, query.order);
        slices.push(packed);
    }
    Ok(slices)
}

/// Events that are rows, as many as a page has or as have the bytes of a step.
async fn read_rows(conn: &mut SqliteConnection, query: &Query, scope: &Scope, range: Range) -> Result<Slice, Error> {
    let order = query.order;
    let mut single = Slice::whole(range, order);
    let (mut rest, mut limit) = (range, ROWS_FIRST);
    let (mut looked_at, mut bytes) = (0, 0);
    while !rest.is_empty() {
        let span = (rest.low, rest.high);
        let most = u32::try_from(limit).unwrap_or(u32::MAX);
        let page = rows::page(conn, scope, span, query.stream.as_ref(), order, most).await?;
        let exhausted = page.len() < limit;
        looked_at += page.len();
        let mut last = None;
        for row in page {
            last = Some(row.position);
            match row.event {
                Ok(event) => {
                    bytes += event.body.get().len();
                    if query.matches(&event) {
                        single.events.push(event);
                    }
                }
                Err(error) => single.errors.push(error),
            }
        }
        let Some(last) = last.filter(|_| !exhausted) else { break };
        match order {
            Order::Forwards => rest.low = last,
            Order::Backwards => rest.high = last.before(),
        }
        if looked_at >= PAGE_EVENTS || bytes >= ROWS_BYTES_MAX {
            single.stop_at(last, last, order);
            break;
        }
        limit = (limit * 2).min(ROWS_MAX).min(PAGE_EVENTS - looked_at);
    }
    Ok(single)
}

/// Events of one lane of segments. What does not hold the wanted numbers of types and streams is not read.
async fn read_segments(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    query: &Query,
    scope: &Scope,
    lane: Lane,
    range: Range,
    (kinds, streams): (Option<&HashSet<i64>>, Option<&HashSet<i64>>),
) -> Result<Slice, Error> {
    let order = query.order;
    let mut packed = Slice::whole(range, order);
    let mut rest = range;
    let (mut described, mut opened, mut bytes) = (0, 0, 0_u64);
    'pages: while !rest.is_empty() {
        let metas = segment::metas(conn, scope, lane, (rest.low, rest.high), order, SEGMENTS).await?;
        let exhausted = metas.len() < SEGMENTS as usize;
        for meta in metas {
            match order {
                Order::Forwards => rest.low = meta.last,
                Order::Backwards => rest.high = meta.first.before(),
            }
            described += 1;
            if meta.may_hold(kinds, streams) && query.wants_span(meta.wall_ms) {
                opened += 1;
                bytes = bytes.saturating_add(meta.raw_bytes());
                let wanted = |peek: &Peek<'_>| query.wants(peek);
                match segment::wanted_events(conn, annexes, scope, &meta, &wanted).await {
                    Ok(events) => packed.events.extend(events),
                    Err(error) if error.is_of_one_segment() => packed.errors.push(error),
                    Err(error) => return Err(error),
                }
            }
            let is_much = opened >= OPENED_MAX || bytes >= OPENED_BYTES_MAX || described >= DESCRIBED_MAX;
            if is_much || packed.events.len() >= PAGE_EVENTS {
                packed.stop_at(meta.first, meta.last, order);
                break 'pages;
            }
        }
        if exhausted {
            break;
        }
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId};
    use ulid::Ulid;

    use super::*;
    use crate::cold::prepare_cold_dir;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::flush::FlushReason;
    use crate::name::{EventType, StreamName};
    use crate::options::{ColdOptions, EventOptions};
    use crate::position::Position;
    use crate::read::{Cursor, Page, Tiers};
    use crate::store::EventStore;

    const EMPTY_HOT: &str = "INSERT INTO hot_log (first_seq, count, state, scope, reservation)
            SELECT MAX(first_seq + count), 1, 'void', 'system', MAX(first_seq + count) FROM hot_log;
        DELETE FROM hot_log WHERE first_seq < (SELECT MAX(first_seq) FROM hot_log)";
    const EMPTY_WARM: &str = "INSERT INTO event_retained (what, through_pos) VALUES (0, 9223372036854775807)
            ON CONFLICT (what) DO NOTHING; DELETE FROM event_segments";

    struct Place {
        dir: tempfile::TempDir,
        manager: DbManager,
        store: EventStore,
    }

    impl Place {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
            let manager = DbManager::open(options.schemas(crate::schema_sets())).await.unwrap();
            prepare_cold_dir(&manager, &dir.path().join("cold")).unwrap();
            let cold = ColdOptions::new(dir.path().join("cold")).allow_same_device();
            let store = EventStore::open(&manager, EventOptions::default().cold(cold)).await.unwrap();
            Self { dir, manager, store }
        }

        async fn append(&self, scope: &Scope, body_bytes: usize) -> Ulid {
            let id = self.manager.next_ulid();
            let event = NewEvent::new(id, EventType::parse("resource.updated").unwrap(), &"x".repeat(body_bytes));
            let stream = StreamName::parse("s").unwrap();
            self.store.append(scope, &stream, Expected::Any, vec![event.unwrap()]).await.unwrap();
            id
        }

        async fn run(&self, database: &nasnet_dbmanager::Database, sql: &'static str) {
            let run = database.write(READ, move |conn| {
                Box::pin(async move {
                    sqlx::raw_sql(sql).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            });
            run.await.unwrap();
        }

        async fn pages(&self, query: Query, tiers: Tiers) -> Vec<Page> {
            let mut cursor = Cursor::new(Arc::clone(self.store.shared()), query, tiers);
            let mut pages: Vec<Page> = Vec::new();
            while let Some(page) = cursor.next_page().await.unwrap() {
                assert!(pages.last().is_none_or(|last| last.through < page.through), "a page makes progress");
                pages.push(page);
            }
            pages
        }
    }

    fn ids(pages: Vec<Page>) -> Vec<Ulid> {
        pages.into_iter().flat_map(|page| page.items).map(|item| item.unwrap().id).collect()
    }

    #[tokio::test]
    async fn a_query_that_wants_next_to_nothing_looks_at_no_more_for_one_page_than_any_other() {
        let place = Place::new().await;
        let mut all = Vec::new();
        for _ in 0..40 {
            all.push(place.append(&Scope::System, 20).await);
            assert_eq!(place.store.archive().await.unwrap().frames, 1);
        }
        place.run(&place.manager.hot(), EMPTY_HOT).await;
        // As one that is not known any more: a known one is looked for in its place.
        let wanted = *all.last().unwrap();
        let rare = |order: Order| Query { id: Some(wanted), order, ..Query::all() };
        place.store.shared().heads().forget_ids();
        let pages = place.pages(rare(Order::Forwards), Tiers::HotAndWarm).await;
        assert!(pages.len() > 40_usize.div_ceil(OPENED_MAX), "{} pages of 40 segments", pages.len());
        assert_eq!(ids(pages), [wanted]);

        place.run(place.manager.system(), EMPTY_WARM).await;
        let pages = place.pages(rare(Order::Forwards), Tiers::All).await;
        assert!(pages.len() > 40 / 8, "{} pages of 40 frames", pages.len());
        assert_eq!(ids(pages), [wanted]);
        assert_eq!(ids(place.pages(Query::all(), Tiers::All).await), all);
        drop(place.dir);
    }

    #[tokio::test]
    async fn a_page_of_many_routers_with_large_events_holds_a_part_of_what_one_step_of_each_finds() {
        const LARGE: usize = 250_000;
        let place = Place::new().await;
        let mut all = Vec::new();
        let routers: Vec<Scope> = (0..6).map(|number| format!("r{number}").parse().unwrap()).collect();
        for router in &routers {
            place.manager.create_router(NewRouter::new(RouterId::parse(router.as_str()).unwrap())).await.unwrap();
        }
        for _ in 0..9 {
            for router in &routers {
                all.push(place.append(router, LARGE).await);
            }
        }
        assert!(place.store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
        place.run(&place.manager.hot(), EMPTY_HOT).await;
        let pages = place.pages(Query::all(), Tiers::HotAndWarm).await;
        for page in &pages {
            assert!(page.items.len() * LARGE <= HELD_BYTES_MAX, "{} events in one page", page.items.len());
        }
        assert!(pages.len() > 1 && pages.iter().all(|page| page.through > Position::START));
        assert_eq!(ids(pages), all);
    }
}
