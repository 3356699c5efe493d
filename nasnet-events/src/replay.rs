//! After a router database was restored: brings back the durable events that came later and survive elsewhere.
//!
//! They are looked for in the file that was replaced, in the hot tier, where each durable event is mirrored, and in the
//! cold tier. Each keeps its position, its version and its id, so readers and consumers meet it as before; the state
//! that was committed with it stays as old as the backup, which the difference between both tells.

use std::path::Path;

use nasnet_dbmanager::{BoxFuture, Cause, Replay, ReplayError, Replayed, Restored, RestoredFrom, Scope};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::class::Class;
use crate::cold::ColdDir;
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::{self, Order, RowState};
use crate::merge::Range;
use crate::options::ColdOptions;
use crate::position::Position;
use crate::query::Query;
use crate::store::blocking;
use crate::warm::rows;

const REPLAY: Cause = Cause::new("event-replay");
/// Rows read at a time.
const PAGE: u32 = 128;

const HAS_TABLE: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'event_rows')";
const NEWEST_ROW: &str = "SELECT MAX(pos) FROM event_rows";
const NEWEST_SEGMENT: &str = "SELECT MAX(last_pos) FROM event_segments";
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
}

/// What is added where, and how far that goes.
struct Adding<'a> {
    conn: &'a mut SqliteConnection,
    scope: Scope,
    /// Everything up to here is in the restored database already.
    floor: Position,
    added: u64,
    refused: u64,
    first: Option<Position>,
    last: Option<Position>,
}

impl EventReplay {
    async fn run(&self, restored: Restored<'_>) -> Result<Replayed, Error> {
        let Restored { manager, router, from, conn, replaced, .. } = restored;
        let has_table: bool = sqlx::query_scalar(HAS_TABLE).fetch_one(&mut *conn).await?;
        if !has_table {
            return Ok(Replayed { what: "events".to_owned(), complete: true, ..Replayed::default() });
        }
        // What was salvaged may lack events in the middle; a backup lacks only what came after it.
        let floor = match from {
            RestoredFrom::Backup { .. } => newest(conn).await?,
            _ => Position::START,
        };
        let scope = Scope::Router(router.clone());
        let mut adding = Adding { conn, scope, floor, added: 0, refused: 0, first: None, last: None };
        let mut sources = Vec::new();
        let mut note = |source: &str, before: u64, adding: &Adding<'_>| {
            if adding.added > before {
                sources.push(format!("{} from {source}", adding.added - before));
            }
        };
        let whole_file = match replaced {
            Some(path) => from_replaced(path, &mut adding).await?,
            None => false,
        };
        note("the replaced database", 0, &adding);
        let before = adding.added;
        let whole_hot = from_hot(manager.hot(), &mut adding).await?;
        note("the hot tier", before, &adding);
        let before = adding.added;
        if let Some(options) = &self.cold {
            let cold = ColdDir::new(options, manager);
            if let Err(error) = from_cold(cold, &mut adding).await {
                tracing::warn!(%error, "the cold tier brings no events back");
            }
        }
        note("the cold tier", before, &adding);
        let complete = whole_file || whole_hot;
        let mut detail = match (adding.first, adding.last) {
            (Some(first), Some(last)) => format!("{first} to {last}: {}", sources.join(", ")),
            _ => "none".to_owned(),
        };
        if !complete {
            detail.push_str(&format!("; others after {} may be missing", adding.floor));
        }
        let (replayed, refused) = (adding.added, adding.refused);
        Ok(Replayed { what: "events".to_owned(), replayed, refused, complete, detail, failed: None })
    }
}

/// The newest position of the restored database. Rows tell it; where they are all sealed, segments do.
async fn newest(conn: &mut SqliteConnection) -> Result<Position, Error> {
    let row: Option<i64> = sqlx::query_scalar(NEWEST_ROW).fetch_one(&mut *conn).await?;
    let newest = match row {
        Some(row) => Some(row),
        None => sqlx::query_scalar(NEWEST_SEGMENT).fetch_one(conn).await?,
    };
    Ok(newest.and_then(Position::from_key).unwrap_or(Position::START))
}

impl Adding<'_> {
    /// Adds the events that are not there. One whose version another has is left out: after an earlier restore the
    /// stream went on without it.
    async fn add(&mut self, events: &[Recorded]) -> Result<(), Error> {
        for event in events.iter().filter(|event| event.scope == self.scope && event.position > self.floor) {
            let key = event.position.to_key()?;
            if sqlx::query_scalar(HAS_POSITION).bind(key).fetch_one(&mut *self.conn).await? {
                continue;
            }
            let query = sqlx::query_scalar(HAS_VERSION).bind(event.stream.as_str());
            if query.bind(event.version.cast_signed()).fetch_one(&mut *self.conn).await? {
                self.refused += 1;
                continue;
            }
            rows::insert(self.conn, &[event]).await?;
            self.added += 1;
            self.first = Some(self.first.map_or(event.position, |first| first.min(event.position)));
            self.last = self.last.max(Some(event.position));
        }
        Ok(())
    }
}

/// Reads the rows of a file that may be damaged, from its start and where that ends early from its end; tells whether
/// all of them could be read.
async fn from_replaced(path: &Path, adding: &mut Adding<'_>) -> Result<bool, Error> {
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    let Ok(mut replaced) = options.connect().await else { return Ok(false) };
    let mut whole = true;
    for order in [Order::Forwards, Order::Backwards] {
        let (mut low, mut high) = (adding.floor, Position::END);
        let ended = loop {
            let Ok(page) = rows::page(&mut replaced, &adding.scope, (low, high), None, order, PAGE).await else {
                break false;
            };
            let Some((reached, _)) = page.last() else { break true };
            match order {
                Order::Forwards => low = *reached,
                Order::Backwards => high = reached.before(),
            }
            whole &= page.iter().all(|(_, event)| event.is_ok());
            let events: Vec<Recorded> = page.into_iter().filter_map(|(_, event)| event.ok()).collect();
            adding.add(&events).await?;
        };
        if ended {
            break;
        }
        whole = false;
    }
    // It is a copy.
    drop(replaced.close().await);
    Ok(whole)
}

/// Adds the durable events that the hot tier mirrors; tells whether it reaches back far enough to have them all.
async fn from_hot(hot: &nasnet_dbmanager::Database, adding: &mut Adding<'_>) -> Result<bool, Error> {
    let view = hot.read(REPLAY, |conn| Box::pin(log::view(conn))).await?;
    let oldest = Position::new(view.epoch, view.floor.unwrap_or(view.end + 1));
    let mut whole = adding.floor >= oldest.before() && adding.floor.epoch == view.epoch;
    let mut next = view.floor.unwrap_or(1);
    if adding.floor.epoch == view.epoch {
        next = next.max(adding.floor.seq);
    }
    while next <= view.end {
        let range = (next, view.end);
        let page: Vec<log::Row> = hot
            .read(REPLAY, move |conn| {
                Box::pin(async move { log::page(conn, view.epoch, range, Order::Forwards, PAGE).await })
            })
            .await?;
        let Some(last) = page.last() else { break };
        next = last.last_seq() + 1;
        for row in page {
            if !matches!(row.state, RowState::Mirrored) {
                continue;
            }
            match row.events {
                Ok(events) => adding.add(&events).await?,
                Err(error) => {
                    whole = false;
                    tracing::warn!(%error, "mirrored events cannot be read");
                }
            }
        }
    }
    Ok(whole)
}

/// Adds the critical events of the cold tier: the others lived in segments, and are read from where they are.
async fn from_cold(mut cold: ColdDir, adding: &mut Adding<'_>) -> Result<(), Error> {
    let mut low = adding.floor;
    loop {
        let query = Query::scope(adding.scope.clone()).class(Class::Critical).after(low);
        let (back, slice) = blocking(move || {
            let slice = cold.read(&query, Range { low, high: Position::END })?;
            Ok::<_, Error>((cold, slice))
        })
        .await?;
        cold = back;
        for error in slice.errors {
            tracing::warn!(%error, "events of the cold tier cannot be read");
        }
        adding.add(&slice.events).await?;
        if slice.covered >= Position::END || slice.covered <= low {
            return Ok(());
        }
        low = slice.covered;
    }
}
