//! The SQL of hot.db: a log of rows whose numbers leave no gap.

use nasnet_dbmanager::{RawConn, RawRow, Scope};
use sqlx::SqliteConnection;

use crate::block::{self, Peek};
use crate::error::Error;
use crate::event::Recorded;
use crate::heads::{ReservedBy, Resolution};
use crate::name::StreamName;
use crate::position::Position;
use crate::query::Query;

/// The most events of one row: reading one event of a stream decodes a whole block.
pub(crate) const ROW_EVENTS_MAX: usize = 64;
/// The most events of a row that small ones are joined to. Fewer than what is appended together may have: what comes event by
/// event is of many streams and stays for a day, and a read by stream opens a row for each event.
pub(crate) const JOINED_EVENTS_MAX: usize = 32;
/// The most events of a row that may wait to be joined to one like it before it is compressed.
pub(crate) const PLAIN_EVENTS_MAX: usize = JOINED_EVENTS_MAX / 2;
/// Whether the log ends elsewhere than right before a number, as after writes of another process, or the file is of another
/// incarnation.
const TAKEN: &str = "SELECT COALESCE((SELECT first_seq + count FROM hot_log ORDER BY first_seq DESC LIMIT 1) <> ?1, 0) \
     OR (SELECT epoch FROM hot_meta WHERE one = 1) IS NOT ?2";
const INSERT: &str = "INSERT INTO hot_log (first_seq, count, state, scope, owner, reservation, body) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const PUBLISH: &str = "UPDATE hot_log SET state = 'mirrored', owner = NULL, stalled = 0 \
     WHERE first_seq BETWEEN ?1 AND ?2 AND reservation = ?1 AND state = 'reserved'";
const VOID: &str = "UPDATE hot_log SET state = 'void', owner = NULL, body = NULL, stalled = 0 \
     WHERE first_seq BETWEEN ?1 AND ?2 AND reservation = ?1 AND state = 'reserved'";

const VIEW: &str = "SELECT (SELECT epoch FROM hot_meta WHERE one = 1), \
     (SELECT MIN(first_seq) FROM hot_log), \
     (SELECT first_seq + count - 1 FROM hot_log ORDER BY first_seq DESC LIMIT 1), \
     (SELECT MIN(first_seq) FROM hot_log WHERE state = 'reserved' AND stalled = 0), \
     (SELECT MIN(first_seq) FROM hot_log WHERE state = 'reserved')";
const EMPTIED: &str =
    "SELECT first_seq, first_seq + count - 1 FROM hot_log WHERE state IN ('shed', 'void') ORDER BY first_seq";
const STALL: &str = "UPDATE hot_log SET stalled = 1 \
     WHERE first_seq BETWEEN ?1 AND ?2 AND reservation = ?1 AND state = 'reserved'";

const UNRESOLVED_OF: &str = "SELECT MIN(first_seq) FROM hot_log \
     WHERE state = 'reserved' AND scope IN (SELECT value FROM json_each(?1))";

/// The bodies of whole blocks within `?4..=?5` are left out. SQLite prepares a statement anew when a number that stands
/// alone behind LIMIT changes, which took a third of a read: hence the sign.
const PAGE_FORWARDS: &str = "SELECT first_seq, count, state, scope, owner, reservation, \
     CASE WHEN state = 'block' AND shed = 0 AND first_seq >= ?4 AND first_seq + count - 1 <= ?5 THEN NULL ELSE body END, \
     shed, stalled FROM hot_log \
     WHERE first_seq >= COALESCE((SELECT MAX(first_seq) FROM hot_log WHERE first_seq <= ?1), 0) AND first_seq <= ?2 \
     ORDER BY first_seq LIMIT +?3";
const PAGE_BACKWARDS: &str = "SELECT first_seq, count, state, scope, owner, reservation, \
     CASE WHEN state = 'block' AND shed = 0 AND first_seq >= ?4 AND first_seq + count - 1 <= ?5 THEN NULL ELSE body END, \
     shed, stalled FROM hot_log \
     WHERE first_seq >= COALESCE((SELECT MAX(first_seq) FROM hot_log WHERE first_seq <= ?1), 0) AND first_seq <= ?2 \
     ORDER BY first_seq DESC LIMIT +?3";

/// Rows that hold one of the numbers, without the bodies of whole blocks within `?2..=?3`.
const HOLDING: &str = "SELECT first_seq, count, state, scope, owner, reservation, \
     CASE WHEN state = 'block' AND shed = 0 AND first_seq >= ?2 AND first_seq + count - 1 <= ?3 THEN NULL ELSE body END, \
     shed, stalled FROM hot_log \
     WHERE first_seq IN (SELECT (SELECT MAX(first_seq) FROM hot_log WHERE first_seq <= value) FROM json_each(?1)) \
     ORDER BY first_seq";

const STATES: &str = "SELECT first_seq, state FROM hot_log WHERE first_seq IN (SELECT value FROM json_each(?1))";
const REMOVED: &str = "SELECT MAX(COALESCE((SELECT MIN(first_seq) FROM hot_log), 1) - 1, \
     COALESCE((SELECT MAX(first_seq + count - 1) FROM hot_log WHERE shed > 0), 0))";
const EPOCH: &str = "SELECT epoch FROM hot_meta WHERE one = 1";
const SET_EPOCH: &str = "INSERT INTO hot_meta (one, epoch) VALUES (1, ?1)";

const TOTALS: &str = "SELECT COALESCE(SUM(count), 0), COALESCE(SUM(length(body)), 0), \
     COALESCE(SUM(CASE WHEN state = 'void' THEN count ELSE 0 END), 0), \
     COALESCE(SUM(CASE WHEN state = 'reserved' THEN count ELSE 0 END), 0), COALESCE(SUM(shed), 0) FROM hot_log";

/// A row to be inserted.
#[derive(Debug)]
pub(crate) struct NewRow {
    pub(crate) first_seq: u64,
    pub(crate) count: u64,
    /// `None` = a block of events that live here first.
    pub(crate) reserved: Option<ReservedBy>,
    pub(crate) body: Vec<u8>,
}

/// What a stored row is.
#[derive(Debug, Clone)]
pub(crate) enum RowState {
    Block,
    Reserved(ReservedBy),
    Mirrored,
    Void,
    /// None of its events is here any more.
    Shed,
}

/// A stored row. Its events are put together when they are asked for.
#[derive(Debug)]
pub(crate) struct Row {
    epoch: u32,
    pub(crate) first_seq: u64,
    pub(crate) count: u64,
    pub(crate) state: RowState,
    /// Events that are not here any more.
    pub(crate) shed: u64,
    /// A reservation that readers of all scopes do not wait for.
    pub(crate) stalled: bool,
    content: Content,
}

/// What a row holds.
#[derive(Debug)]
enum Content {
    Nothing,
    Bytes(Vec<u8>),
    /// There is a body, but it was not asked for.
    LeftOut,
    /// The wanted events, as they were appended.
    Events(Vec<Recorded>),
}

/// The numbers between which the bodies of whole blocks need not be fetched.
pub(crate) type Known = Option<(u64, u64)>;

impl Row {
    /// Whether there are events that were not fetched.
    pub(crate) const fn is_left_out(&self) -> bool {
        matches!(self.content, Content::LeftOut)
    }

    /// Gives the row those of its events that are wanted, as they were appended.
    pub(crate) fn fill(&mut self, events: Vec<Recorded>) {
        self.content = Content::Events(events);
    }

    pub(crate) const fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }

    /// Events it may have for whoever fetched it: the wanted ones where those are known, else all.
    pub(crate) const fn counted(&self) -> u64 {
        if let Content::Events(events) = &self.content { events.len() as u64 } else { self.count }
    }

    /// Bytes of the body.
    pub(crate) fn body_bytes(&self) -> u64 {
        if let Content::Bytes(body) = &self.content { body.len() as u64 } else { 0 }
    }

    /// Its events: none for a void, an error when its bytes do not check.
    pub(crate) fn events(&self) -> Result<Vec<Recorded>, Error> {
        self.pick(None, &|_| true)
    }

    /// Those that a query wants.
    pub(crate) fn into_picked(mut self, query: &Query) -> Result<Vec<Recorded>, Error> {
        match &mut self.content {
            Content::Events(events) => Ok(std::mem::take(events)),
            _ => self.pick(query.stream.as_ref().map(StreamName::as_str), &|peek| query.wants(peek)),
        }
    }

    fn pick(&self, stream: Option<&str>, wanted: &dyn Fn(&Peek<'_>) -> bool) -> Result<Vec<Recorded>, Error> {
        let what = || format!("hot.db hot_log row {}", self.first_seq);
        let body = match &self.content {
            Content::Nothing => return Ok(Vec::new()),
            Content::Bytes(body) => body,
            Content::LeftOut | Content::Events(_) => return Err(Error::corrupt(what(), "its events were not fetched")),
        };
        let picked = block::pick(body, None, stream, wanted).map_err(|error| Error::corrupt(what(), error))?;
        let seqs = self.first_seq..=self.first_seq.saturating_add(self.count.saturating_sub(1));
        // Positions ascend, so those between the ends are in place as well.
        let in_place = |position: Position| position.epoch == self.epoch && seqs.contains(&position.seq);
        let all_in_place = picked.ends.is_none_or(|(first, last)| in_place(first) && in_place(last));
        if all_in_place && picked.count as u64 + self.shed == self.count {
            Ok(picked.events)
        } else {
            Err(Error::corrupt(what(), "its events stand elsewhere"))
        }
    }
}

/// The shape of the log at one instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) epoch: u32,
    /// First number still in the log, `None` when it is empty.
    pub(crate) floor: Option<u64>,
    /// Last number in the log.
    pub(crate) end: u64,
    /// First number of the first unresolved reservation that readers of all scopes wait for.
    pub(crate) unresolved: Option<u64>,
    /// First number of the first unresolved reservation.
    pub(crate) reserved: Option<u64>,
}

impl View {
    /// The last position before anything that is not resolved.
    pub(crate) fn resolved(&self) -> Position {
        let seq = self.reserved.map_or(self.end, |first| first.saturating_sub(1));
        Position::new(self.epoch, seq)
    }

    /// The last position readers may see.
    pub(crate) fn stable(&self) -> Position {
        let seq = self.unresolved.map_or(self.end, |first| first.saturating_sub(1));
        Position::new(self.epoch, seq)
    }
}

/// Inserts rows directly after the end of the log. False when the log has grown meanwhile; then nothing was inserted.
pub(crate) fn insert(conn: &mut RawConn<'_>, epoch: u32, rows: &[NewRow]) -> Result<bool, Error> {
    let Some(first) = rows.first() else { return Ok(true) };
    let taken = conn.query_optional(
        TAKEN,
        &[first.first_seq.cast_signed().into(), i64::from(epoch).into()],
        |row| -> Result<i64, Error> { Ok(row.get(0)?) },
    )?;
    if taken != Some(0) {
        return Ok(false);
    }
    for row in rows {
        let reserved = row.reserved.as_ref();
        conn.execute(
            INSERT,
            &[
                row.first_seq.cast_signed().into(),
                row.count.cast_signed().into(),
                if reserved.is_some() { "reserved" } else { "block" }.into(),
                reserved.map(|reserved| reserved.scope.as_str()).into(),
                reserved.map(|reserved| reserved.owner.as_slice()).into(),
                reserved.map(|reserved| reserved.first_seq.cast_signed()).into(),
                row.body.as_slice().into(),
            ],
        )?;
    }
    Ok(true)
}

/// Ends a reservation; without effect when another process has ended it.
pub(crate) fn resolve(
    conn: &mut RawConn<'_>,
    first_seq: u64,
    last_seq: u64,
    resolution: Resolution,
) -> Result<(), Error> {
    let sql = match resolution {
        Resolution::Published => PUBLISH,
        Resolution::Void => VOID,
    };
    conn.execute(sql, &[first_seq.cast_signed().into(), last_seq.cast_signed().into()])?;
    Ok(())
}

/// The incarnation of the file, `None` when it has just been created.
pub(crate) async fn epoch(conn: &mut SqliteConnection) -> Result<Option<u32>, Error> {
    let epoch: Option<i64> = sqlx::query_scalar(EPOCH).fetch_optional(conn).await?;
    epoch.map(|epoch| u32::try_from(epoch).map_err(|error| Error::corrupt("hot.db hot_meta", error))).transpose()
}

/// Names the incarnation of a new file.
pub(crate) async fn set_epoch(conn: &mut SqliteConnection, epoch: u32) -> Result<(), Error> {
    sqlx::query(SET_EPOCH).bind(i64::from(epoch)).execute(conn).await?;
    Ok(())
}

/// The last number of an event that is not in the log any more.
pub(crate) async fn removed_through(conn: &mut SqliteConnection) -> Result<u64, Error> {
    let found: i64 = sqlx::query_scalar(REMOVED).fetch_one(conn).await?;
    Ok(found.cast_unsigned())
}

/// The shape of the log in the caller's snapshot.
pub(crate) async fn view(conn: &mut SqliteConnection) -> Result<View, Error> {
    view_of(sqlx::query_as(VIEW).fetch_one(conn).await?)
}

/// As [`view`], without a change of threads.
pub(crate) fn view_now(conn: &mut RawConn<'_>) -> Result<View, Error> {
    let found = conn.query_optional(VIEW, &[], |row| {
        Ok::<_, Error>((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    })?;
    view_of(found.unwrap_or_default())
}

type FoundView = (Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

fn view_of((epoch, floor, end, unresolved, reserved): FoundView) -> Result<View, Error> {
    let corrupt = || Error::corrupt("hot.db", "its incarnation is not recorded");
    Ok(View {
        epoch: epoch.and_then(|epoch| u32::try_from(epoch).ok()).ok_or_else(corrupt)?,
        floor: floor.map(i64::cast_unsigned),
        end: end.map_or(0, i64::cast_unsigned),
        unresolved: unresolved.map(i64::cast_unsigned),
        reserved: reserved.map(i64::cast_unsigned),
    })
}

/// First and last numbers of the rows that hold nothing any more.
pub(crate) async fn emptied(conn: &mut SqliteConnection) -> Result<Vec<(u64, u64)>, Error> {
    let found: Vec<(i64, i64)> = sqlx::query_as(EMPTIED).fetch_all(conn).await?;
    Ok(found.into_iter().map(|(first, last)| (first.cast_unsigned(), last.cast_unsigned())).collect())
}

/// First number of the first unresolved reservation of one of the scopes.
pub(crate) fn unresolved_of(conn: &mut RawConn<'_>, scopes: &[Scope]) -> Result<Option<u64>, Error> {
    let wanted: Vec<&str> = scopes.iter().map(Scope::as_str).collect();
    let wanted = serde_json::to_string(&wanted).map_err(|error| Error::corrupt("scopes of a query", error))?;
    let found = conn
        .query_optional(UNRESOLVED_OF, &[wanted.as_str().into()], |row| Ok::<_, Error>(row.get::<Option<i64>>(0)?))?;
    Ok(found.flatten().map(i64::cast_unsigned))
}

/// Sums over the whole log: numbers given, bytes, void numbers, reserved numbers, events that are not here any more.
pub(crate) async fn totals(conn: &mut SqliteConnection) -> Result<[u64; 5], Error> {
    let found: (i64, i64, i64, i64, i64) = sqlx::query_as(TOTALS).fetch_one(conn).await?;
    Ok([found.0, found.1, found.2, found.3, found.4].map(i64::cast_unsigned))
}

/// Direction of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Forwards,
    Backwards,
}

impl Order {
    const fn page_sql(self) -> &'static str {
        match self {
            Self::Forwards => PAGE_FORWARDS,
            Self::Backwards => PAGE_BACKWARDS,
        }
    }
}

/// Rows that hold numbers in `from..=to`, at most `limit`, in the given order, without the bodies that are `known`.
pub(crate) async fn page(
    conn: &mut SqliteConnection,
    epoch: u32,
    (from, to): (u64, u64),
    order: Order,
    limit: u32,
    known: Known,
) -> Result<Vec<Row>, Error> {
    let (low, high) = ends_of(known);
    let found: Vec<FoundRow> = sqlx::query_as(order.page_sql())
        .bind(from.cast_signed())
        .bind(to.cast_signed())
        .bind(i64::from(limit))
        .bind(low)
        .bind(high)
        .fetch_all(conn)
        .await?;
    rows_of(epoch, found)
}

/// As [`page`], without a change of threads.
pub(crate) fn page_now(
    conn: &mut RawConn<'_>,
    epoch: u32,
    (from, to): (u64, u64),
    order: Order,
    limit: u32,
    known: Known,
) -> Result<Vec<Row>, Error> {
    let (low, high) = ends_of(known);
    let values = [from.cast_signed().into(), to.cast_signed().into(), i64::from(limit).into(), low.into(), high.into()];
    rows_of(epoch, conn.query_all(order.page_sql(), &values, found_row)?)
}

/// Rows that hold one of the numbers, oldest first, without the bodies that are `known`. Numbers that are gone have none.
pub(crate) fn holding(conn: &mut RawConn<'_>, epoch: u32, seqs: &[u64], known: Known) -> Result<Vec<Row>, Error> {
    let wanted = serde_json::to_string(seqs).map_err(|error| Error::corrupt("numbers of a query", error))?;
    let (low, high) = ends_of(known);
    rows_of(epoch, conn.query_all(HOLDING, &[wanted.as_str().into(), low.into(), high.into()], found_row)?)
}

fn ends_of(known: Known) -> (Option<i64>, Option<i64>) {
    (known.map(|(first, _)| first.cast_signed()), known.map(|(_, last)| last.cast_signed()))
}

fn found_row(row: &RawRow<'_>) -> Result<FoundRow, Error> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
        row.get(6)?,
        row.get(7)?,
        row.get(8)?,
    ))
}

type FoundRow = (i64, i64, String, Option<String>, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>, i64, i64);

fn rows_of(epoch: u32, found: Vec<FoundRow>) -> Result<Vec<Row>, Error> {
    found
        .into_iter()
        .map(|(first_seq, count, state, scope, owner, reservation, body, shed, stalled)| {
            let what = || format!("hot.db hot_log row {first_seq}");
            let (first_seq, count, shed) = (first_seq.cast_unsigned(), count.cast_unsigned(), shed.cast_unsigned());
            let state = match (state.as_str(), scope, owner, reservation) {
                ("block", ..) => RowState::Block,
                ("mirrored", ..) => RowState::Mirrored,
                ("void", ..) => RowState::Void,
                ("shed", ..) => RowState::Shed,
                ("reserved", Some(scope), Some(owner), Some(reservation)) => RowState::Reserved(ReservedBy {
                    first_seq: reservation.cast_unsigned(),
                    scope: scope.parse::<Scope>().map_err(|error| Error::corrupt(what(), error))?,
                    owner: owner.try_into().map_err(|_| Error::corrupt(what(), "owner is not 16 bytes long"))?,
                }),
                _ => return Err(Error::corrupt(what(), "unknown state")),
            };
            let content = match (body, &state) {
                (Some(body), _) => Content::Bytes(body),
                (None, RowState::Block) => Content::LeftOut,
                (None, _) => Content::Nothing,
            };
            Ok(Row { epoch, first_seq, count, state, shed, stalled: stalled != 0, content })
        })
        .collect()
}

/// Lets readers of all scopes go on without a reservation whose database cannot be asked.
pub(crate) async fn stall(conn: &mut SqliteConnection, first_seq: u64, last_seq: u64) -> Result<(), Error> {
    sqlx::query(STALL).bind(first_seq.cast_signed()).bind(last_seq.cast_signed()).execute(conn).await?;
    Ok(())
}

/// What the log says of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Open,
    Ended(Resolution),
    /// Its row has left the log.
    Gone,
}

/// The current state of reservations, by first number.
pub(crate) async fn resolutions(conn: &mut SqliteConnection, first_seqs: &[u64]) -> Result<Vec<(u64, Found)>, Error> {
    let wanted = serde_json::to_string(first_seqs).unwrap_or_default();
    let found: Vec<(i64, String)> = sqlx::query_as(STATES).bind(wanted).fetch_all(conn).await?;
    let state_of = |seq: u64| {
        let state = found.iter().find(|(found, _)| found.cast_unsigned() == seq).map(|(_, state)| state.as_str());
        match state {
            Some("reserved") => Found::Open,
            Some("void") => Found::Ended(Resolution::Void),
            Some("mirrored") => Found::Ended(Resolution::Published),
            _ => Found::Gone,
        }
    };
    Ok(first_seqs.iter().map(|seq| (*seq, state_of(*seq))).collect())
}
