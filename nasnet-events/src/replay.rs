//! After a router database was restored: brings back the durable events that came later and survive elsewhere.
//!
//! They are looked for in the file that was replaced, in the hot tier, where each durable event is mirrored, and in the
//! cold tier. Each keeps its position, its version and its id, so readers and consumers meet it as before; the state
//! that was committed with it stays as old as the backup, which the difference between both tells.

use std::collections::BTreeMap;
use std::path::Path;

use nasnet_dbmanager::{
    Annexes, BoxFuture, Cause, Database, DbManager, Leaving, Replay, ReplayError, Replayed, Restored, Scope,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::class::Class;
use crate::cold::ColdDir;
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::flushed;
use crate::hot::log::{self, Order, RowState};
use crate::hot::purged;
use crate::merge::Range;
use crate::options::ColdOptions;
use crate::position::Position;
use crate::query::Query;
use crate::store::blocking;
use crate::truncation;
use crate::warm::segment::Lane;
use crate::warm::{rows, segment};

const REPLAY: Cause = Cause::new("event-replay");
/// Rows read at a time.
const PAGE: u32 = 128;

const HAS_TABLE: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'event_rows')";
const NEWEST: &str = "SELECT MAX(pos) FROM (SELECT MAX(pos) AS pos FROM event_rows \
     UNION ALL SELECT MAX(pos) FROM event_chain WHERE lane = 'rows')";
const RESTORED: &str = "INSERT INTO event_restored (one, until_pos) VALUES (1, ?1) \
     ON CONFLICT (one) DO UPDATE SET until_pos = excluded.until_pos";
const HAS_POSITION: &str = "SELECT EXISTS (SELECT 1 FROM event_rows WHERE pos = ?1)";
const HAS_VERSION: &str = "SELECT EXISTS (SELECT 1 FROM event_rows WHERE version = ?2 AND stream = \
     (SELECT id FROM event_names WHERE text = ?1))";

/// Brings durable events back into restored router databases; for `Options::replays`.
#[derive(Debug, Clone, Default)]
pub struct EventReplay {
    cold: Option<ColdOptions>,
}

impl EventReplay {
    /// Looks in the replaced database and in the hot tier.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks in a cold tier as well.
    #[must_use]
    pub fn cold(mut self, cold: ColdOptions) -> Self {
        self.cold = Some(cold);
        self
    }
}

impl Replay for EventReplay {
    fn replay<'a>(&'a self, restored: Restored<'a>) -> BoxFuture<'a, Result<Replayed, ReplayError>> {
        Box::pin(async move { Ok(self.run(restored).await?) })
    }

    fn leave<'a>(&'a self, leaving: Leaving<'a>) -> BoxFuture<'a, Result<(), ReplayError>> {
        Box::pin(async move { Ok(note_leaving(leaving).await?) })
    }
}

/// Tells whoever is behind what goes with a router.
async fn note_leaving(leaving: Leaving<'_>) -> Result<(), Error> {
    let Leaving { manager, router, conn, was_retired, is_purged, .. } = leaving;
    let hot = manager.hot();
    if is_purged && view_of(&hot).await?.is_some() {
        let scope = Scope::Router(router.clone());
        hot.write(REPLAY, move |conn| Box::pin(async move { purged::note(conn, &scope).await })).await?;
    }
    if was_retired {
        return Ok(());
    }
    let held = match conn {
        Some(conn) => {
            held(conn).await.inspect_err(|error| tracing::warn!(%router, %error, "it is not known what leaves"))
        }
        None => Err(Error::Closed),
    };
    let (events, after, through) = match held {
        Ok((0, ..)) => return Ok(()),
        Ok((events, Some(first), Some(last))) => (events, first.before(), last),
        _ => {
            let end = match view_of(&hot).await? {
                Some(view) => Position::new(view.epoch, view.end),
                None => hot_to_come(manager).await?,
            };
            (0, Position::START, end)
        }
    };
    if after >= through {
        return Ok(());
    }
    let scope = Scope::Router(router.clone());
    manager
        .system()
        .write(REPLAY, move |conn| {
            Box::pin(async move { truncation::note_left(conn, scope, (after, through), events).await })
        })
        .await
}

/// The events a database holds, and the first and the last of them.
async fn held(conn: &mut SqliteConnection) -> Result<(u64, Option<Position>, Option<Position>), Error> {
    let has_table: bool = sqlx::query_scalar(HAS_TABLE).fetch_one(&mut *conn).await?;
    if !has_table {
        return Ok((0, None, None));
    }
    let (mut events, _, mut first, mut last) = rows::totals(&mut *conn).await?;
    for lane in [Lane::Flushed, Lane::Sealed] {
        let totals = segment::totals(&mut *conn, lane).await?;
        events += totals.events;
        first = first.into_iter().chain(totals.first).min();
        last = last.max(totals.last);
    }
    Ok((events, first, last))
}

/// The beginning of the hot tier that is to be opened.
async fn hot_to_come(manager: &DbManager) -> Result<Position, Error> {
    let last = u32::try_from(manager.system().counters().get(epoch::COUNTER).await?).unwrap_or(u32::MAX);
    Ok(Position::new(last.saturating_add(1), 0))
}

/// Where events were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Replaced,
    Hot,
    Cold,
}

/// The events of a scope that were found. All of them are gathered before the first is added: the rows of a scope are a
/// chain in the order of their positions, and no source has all.
struct Found {
    scope: Scope,
    /// Everything up to here is in the restored database already, or is lost to the chain.
    floor: Position,
    events: BTreeMap<Position, (Recorded, Source)>,
}

impl Found {
    fn note(&mut self, events: impl IntoIterator<Item = Recorded>, source: Source) {
        for event in events {
            if event.scope == self.scope && event.position > self.floor {
                self.events.entry(event.position).or_insert((event, source));
            }
        }
    }
}

/// What was added.
#[derive(Default)]
struct Added {
    events: u64,
    refused: u64,
    /// Everything before the first of them, and the last.
    refused_span: Option<(Position, Position)>,
    from: [u64; 3],
    span: Option<(Position, Position)>,
}

impl EventReplay {
    async fn run(&self, restored: Restored<'_>) -> Result<Replayed, Error> {
        let Restored { manager, router, conn, replaced, replaced_annexes, .. } = restored;
        let has_table: bool = sqlx::query_scalar(HAS_TABLE).fetch_one(&mut *conn).await?;
        if !has_table {
            return Ok(Replayed { what: "events".to_owned(), complete: true, ..Replayed::default() });
        }
        let newest: Option<i64> = sqlx::query_scalar(NEWEST).fetch_one(&mut *conn).await?;
        let floor = newest.and_then(Position::from_key).unwrap_or(Position::START);
        let mut found = Found { scope: Scope::Router(router.clone()), floor, events: BTreeMap::new() };
        let (whole_file, replaced_tail) = match replaced {
            Some(path) => from_replaced(path, replaced_annexes, &mut found).await?,
            None => (false, None),
        };
        let (whole_hot, hot_from) = from_hot(manager, &mut found).await?;
        if let Some(options) = &self.cold
            && let Err(error) = from_cold(ColdDir::new(options, manager), &mut found).await
        {
            tracing::warn!(%error, "the cold tier brings no events back");
        }
        let added = add(conn, &found).await?;
        let tail = segment::tail(&mut *conn, &found.scope).await?.through;
        // The next flush writes those again that the hot tier still has.
        let whole_flushed =
            flush_again(&manager.hot(), conn, &found.scope, tail).await? || (whole_file && replaced_tail == Some(tail));
        let whole_rows = whole_file || whole_hot;
        let complete = whole_rows && whole_flushed;
        // Whoever had not come so far is told: what the hot tier has is shown from there.
        let missing = [(whole_rows, floor), (whole_flushed, tail)];
        let after = missing.iter().filter(|(whole, _)| !whole).map(|(_, after)| *after).min();
        let unknown = after.map(|after| (after, hot_from)).filter(|(after, _)| *after < hot_from);
        let gone = unknown.into_iter().chain(added.refused_span);
        if let Some((after, through)) = gone.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1))) {
            truncation::note_restored(conn, after, through, added.refused).await?;
        }
        let mut detail = match added.span {
            Some((first, last)) => {
                let names = ["the replaced database", "the hot tier", "the cold tier"];
                let parts = names.iter().zip(added.from).filter(|(_, count)| *count > 0);
                let parts: Vec<String> = parts.map(|(name, count)| format!("{count} from {name}")).collect();
                format!("{first} to {last}: {}", parts.join(", "))
            }
            None => "none".to_owned(),
        };
        if !whole_rows {
            detail.push_str(&format!("; others after {floor} may be missing"));
        }
        if !whole_flushed {
            detail.push_str(&format!("; flushed ones after {tail} may be missing"));
        }
        let (replayed, refused) = (added.events, added.refused);
        Ok(Replayed { what: "events".to_owned(), replayed, refused, complete, detail, failed: None })
    }
}

/// Adds the events that are not there. One whose version another has is left out: after an earlier restore the stream
/// went on without it.
async fn add(conn: &mut SqliteConnection, found: &Found) -> Result<Added, Error> {
    let mut added = Added::default();
    for (position, (event, source)) in &found.events {
        if sqlx::query_scalar(HAS_POSITION).bind(position.to_key()?).fetch_one(&mut *conn).await? {
            continue;
        }
        let query = sqlx::query_scalar(HAS_VERSION).bind(event.stream.as_str());
        if query.bind(event.version.cast_signed()).fetch_one(&mut *conn).await? {
            added.refused += 1;
            added.refused_span = Some((added.refused_span.map_or(position.before(), |(after, _)| after), *position));
            continue;
        }
        rows::insert(conn, &[event]).await?;
        added.events += 1;
        match source {
            Source::Replaced => added.from[0] += 1,
            Source::Hot => added.from[1] += 1,
            Source::Cold => added.from[2] += 1,
        }
        added.span = Some((added.span.map_or(*position, |(first, _)| first), *position));
    }
    Ok(added)
}

/// Reads the durable events of a file that may be damaged, its rows from its start and where that ends early from its end; tells whether
/// all of them could be read, and up to where its events were flushed.
async fn from_replaced(path: &Path, annexes: &Annexes, found: &mut Found) -> Result<(bool, Option<Position>), Error> {
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    let Ok(mut replaced) = options.connect().await else { return Ok((false, None)) };
    let mut whole = true;
    for order in [Order::Forwards, Order::Backwards] {
        let (mut low, mut high) = (found.floor, Position::END);
        let ended = loop {
            let Ok(page) = rows::page(&mut replaced, &found.scope, (low, high), None, order, PAGE).await else {
                break false;
            };
            let Some(reached) = page.last().map(|row| row.position) else { break true };
            match order {
                Order::Forwards => low = reached,
                Order::Backwards => high = reached.before(),
            }
            whole &= page.iter().all(|row| row.event.is_ok());
            found.note(page.into_iter().filter_map(|row| row.event.ok()), Source::Replaced);
        };
        if ended {
            break;
        }
        whole = false;
    }
    whole &= from_sealed(&mut replaced, annexes, found).await;
    let tail = segment::tail(&mut replaced, &found.scope).await.ok().map(|tail| tail.through);
    // It is a copy.
    drop(replaced.close().await);
    Ok((whole, tail))
}

/// Reads what was sealed of its rows since the backup; tells whether all of that could be read.
async fn from_sealed(replaced: &mut SqliteConnection, annexes: &Annexes, found: &mut Found) -> bool {
    let (mut low, mut whole) = (found.floor, true);
    loop {
        let range = (low, Position::END);
        let page = segment::metas(replaced, &found.scope, Lane::Sealed, range, Order::Forwards, PAGE).await;
        let Ok(page) = page else { return false };
        let Some(reached) = page.last().map(|meta| meta.last) else { return whole };
        low = reached;
        for meta in page {
            match segment::events(replaced, Some(annexes), &found.scope, &meta).await {
                Ok(events) => found.note(events, Source::Replaced),
                Err(error) => {
                    whole = false;
                    tracing::warn!(%error, "sealed events of the replaced database cannot be read");
                }
            }
        }
    }
}

/// The shape of the hot log; `None` before its incarnation is numbered: it holds nothing then.
async fn view_of(hot: &Database) -> Result<Option<log::View>, Error> {
    hot.read(REPLAY, |conn| {
        Box::pin(async move {
            match log::epoch(conn).await? {
                Some(_) => log::view(conn).await.map(Some),
                None => Ok(None),
            }
        })
    })
    .await
}

/// Has the next flush write again what the hot tier holds of a scope behind the end of its newest segment; tells whether that
/// is everything that was flushed since.
async fn flush_again(
    hot: &Database,
    restored: &mut SqliteConnection,
    scope: &Scope,
    tail: Position,
) -> Result<bool, Error> {
    let Some(view) = view_of(hot).await? else { return Ok(false) };
    if tail.epoch > view.epoch {
        return Ok(false);
    }
    // Should the hot tier be lost before that, nobody may take these events for safe.
    let until = Position::new(view.epoch, view.end).to_key()?;
    sqlx::query(RESTORED).bind(until).execute(restored).await?;
    let through = if tail.epoch == view.epoch { tail.seq } else { 0 };
    let own = scope.clone();
    let removed = hot
        .write(REPLAY, move |conn| {
            Box::pin(async move {
                flushed::fall_behind(&mut *conn, &own, through).await?;
                Ok::<_, Error>(log::removed_through(conn).await? > through)
            })
        })
        .await?;
    // What earlier incarnations held is not here.
    let is_first = tail == Position::START && view.epoch == 1;
    Ok(!removed && (tail.epoch == view.epoch || is_first))
}

/// Finds the durable events that the hot tier mirrors; tells whether it reaches back far enough to have them all, and
/// behind which position it has everything.
async fn from_hot(manager: &DbManager, found: &mut Found) -> Result<(bool, Position), Error> {
    let hot = manager.hot();
    let Some(view) = view_of(&hot).await? else {
        return Ok((false, hot_to_come(manager).await?));
    };
    let removed = hot.read(REPLAY, |conn| Box::pin(log::removed_through(conn))).await?;
    let from = Position::new(view.epoch, removed);
    let is_first = found.floor == Position::START && from == Position::new(1, 0);
    let mut whole = is_first || found.floor.epoch == view.epoch && found.floor >= from;
    let mut next = view.floor.unwrap_or(1);
    if found.floor.epoch == view.epoch {
        next = next.max(found.floor.seq);
    }
    while next <= view.end {
        let range = (next, view.end);
        let page: Vec<log::Row> = hot
            .read(REPLAY, move |conn| {
                Box::pin(async move { log::page(conn, view.epoch, range, Order::Forwards, PAGE, None).await })
            })
            .await?;
        let Some(last) = page.last() else { break };
        next = last.last_seq() + 1;
        for row in page {
            if !matches!(row.state, RowState::Mirrored) {
                continue;
            }
            match row.events() {
                Ok(events) => found.note(events, Source::Hot),
                Err(error) => {
                    whole = false;
                    tracing::warn!(%error, "mirrored events cannot be read");
                }
            }
        }
    }
    Ok((whole, from))
}

/// Finds the durable events of the cold tier: the others lived in segments, and are read from where they are.
async fn from_cold(mut cold: ColdDir, found: &mut Found) -> Result<(), Error> {
    let mut low = found.floor;
    loop {
        let scope = found.scope.clone();
        let query = Query::scope(scope.clone()).after(low);
        let (back, slice) = blocking(move || {
            let slice = cold.read(&scope, &query, Range { low, high: Position::END }, None)?;
            Ok::<_, Error>((cold, slice))
        })
        .await?;
        cold = back;
        for error in slice.errors {
            tracing::warn!(%error, "events of the cold tier cannot be read");
        }
        let durable = slice.events.into_iter().filter(|event| event.synced || event.class == Class::Critical);
        found.note(durable, Source::Cold);
        if slice.covered >= Position::END || slice.covered <= low {
            return Ok(());
        }
        low = slice.covered;
    }
}
