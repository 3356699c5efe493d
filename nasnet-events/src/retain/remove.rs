//! The SQL of removing rows and segments: in one transaction the marks move, the versions of streams and the end of the
//! chains are kept, the events go, and the record of it is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nasnet_dbmanager::{Annexes, Scope};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::hot::log::Order;
use crate::position::Position;
use crate::retain::facts;
use crate::retain::horizon::{self, Removed};
use crate::retain::plan::{Doomed, UnitKind};
use crate::retain::policy::Retention;
use crate::retain::versions::Versions;
use crate::truncation::{self, Truncated, TruncatedBy};
use crate::warm::segment::{self, Lane};
use crate::warm::{lists, names};

const ROWS: &str = "SELECT pos, pos, 1, stream, version FROM event_rows WHERE pos IN (SELECT value FROM json_each(?1))";
/// The newest one says how far the scope is flushed.
const SEGMENTS: &str = "SELECT first_pos, last_pos, events, streams FROM event_segments \
     WHERE first_pos IN (SELECT value FROM json_each(?1)) AND first_pos < (SELECT MAX(first_pos) FROM event_segments)";
const SEALED: &str = "SELECT first_pos, last_pos, events, streams FROM event_sealed \
     WHERE first_pos IN (SELECT value FROM json_each(?1))";

const MARK: &str = "INSERT INTO event_retained (what, through_pos) SELECT ?1, ?2 \
     WHERE NOT EXISTS (SELECT 1 FROM event_retained WHERE what = ?1 AND through_pos >= ?2) \
     ON CONFLICT (what) DO UPDATE SET through_pos = excluded.through_pos";
const DELETE_ROWS: &str = "DELETE FROM event_rows WHERE pos IN (SELECT value FROM json_each(?1))";
const DELETE_SEGMENTS: &str = "DELETE FROM event_segments WHERE first_pos IN (SELECT value FROM json_each(?1))";
const DELETE_SEALED: &str = "DELETE FROM event_sealed WHERE first_pos IN (SELECT value FROM json_each(?1))";
/// The two newest stay: one is in use, and a segment made with the other may be on its way.
const DELETE_DICTIONARIES: &str = "DELETE FROM event_dictionaries WHERE made_pos < \
     (SELECT made_pos FROM event_dictionaries ORDER BY made_pos DESC LIMIT 1 OFFSET 1) \
     AND NOT EXISTS (SELECT 1 FROM event_segments s WHERE s.dictionary = event_dictionaries.id) \
     AND NOT EXISTS (SELECT 1 FROM event_sealed s WHERE s.dictionary = event_dictionaries.id)";

/// What one transaction removed.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) gone: Vec<Doomed>,
    /// Rows and segments that are not any more what they were when the plan was made.
    pub(super) skipped: u64,
    /// What is to be remembered of the streams of each.
    held: Vec<Held>,
}

/// The versions that one row or segment holds.
#[derive(Debug)]
struct Held {
    kind: UnitKind,
    first: Position,
    last: Position,
    /// The highest version of each stream.
    tops: Vec<(i64, u64)>,
}

/// A row or segment as it is stored now.
struct Stored {
    last: Position,
    events: u64,
    /// The highest version of each stream.
    tops: Vec<(i64, u64)>,
}

/// Checks, in the transaction that removes it, that what is to go still may.
pub(super) async fn check(
    conn: &mut SqliteConnection,
    scope: &Scope,
    doomed: Vec<Doomed>,
    policy: &Retention,
    has_cold: bool,
) -> Result<Step, Error> {
    let archived = facts::archived(conn, has_cold).await?;
    let snapshot = match doomed.iter().any(|unit| unit.folded) {
        true => facts::snapshot(conn, policy, scope).await?,
        false => None,
    };
    let mut stored: HashMap<(UnitKind, Position), Stored> = HashMap::new();
    for kind in [UnitKind::Row, UnitKind::Sealed, UnitKind::Segment] {
        let keys = keys_of(&doomed, kind)?;
        if keys != "[]" {
            find(conn, scope, kind, keys, &mut stored).await?;
        }
    }
    let wanted = doomed.len();
    let may_go = |unit: &Doomed| {
        let is_there = stored
            .get(&(unit.kind, unit.first))
            .is_some_and(|stored| stored.last == unit.last && stored.events == unit.events);
        is_there
            && archived.is_none_or(|through| unit.last <= through)
            && (!unit.folded || snapshot.is_some_and(|through| unit.last <= through))
    };
    let gone: Vec<Doomed> = doomed.into_iter().filter(may_go).collect();
    let held = |unit: &Doomed| {
        let tops = stored.get(&(unit.kind, unit.first)).map(|stored| stored.tops.clone()).unwrap_or_default();
        Held { kind: unit.kind, first: unit.first, last: unit.last, tops }
    };
    Ok(Step { skipped: (wanted - gone.len()) as u64, held: gone.iter().map(held).collect(), gone })
}

/// Which versions of which streams a step removes.
async fn removed(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    held: &[Held],
) -> Result<BTreeMap<i64, Removed>, Error> {
    let mut all: BTreeMap<i64, Removed> = BTreeMap::new();
    for unit in held {
        let of_segment = versions(conn, annexes, scope, unit).await?;
        for (stream, top) in &unit.tops {
            let nothing = Removed { versions: Versions::default(), through: Position::START };
            let removed = all.entry(*stream).or_insert(nothing);
            removed.through = removed.through.max(unit.last);
            match &of_segment {
                Some(known) if known.get(stream).is_some_and(|versions| versions.top() == Some(*top)) => {
                    known.get(stream).into_iter().for_each(|versions| removed.versions.add_all(versions));
                }
                _ if unit.kind == UnitKind::Row => removed.versions.add(*top..=*top),
                // Nobody can tell any more which of them it held.
                _ => removed.versions.add(1..=*top),
            }
        }
    }
    Ok(all)
}

/// The versions that a segment holds, `None` for a row and for a segment that is damaged.
async fn versions(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    unit: &Held,
) -> Result<Option<BTreeMap<i64, Versions>>, Error> {
    let lane = match unit.kind {
        UnitKind::Row => return Ok(None),
        UnitKind::Sealed => Lane::Sealed,
        UnitKind::Segment => Lane::Flushed,
    };
    let within = (unit.first.before(), unit.first);
    let metas = segment::metas(conn, scope, lane, within, Order::Forwards, 1).await?;
    let Some(meta) = metas.first().filter(|meta| meta.first == unit.first) else { return Ok(None) };
    let events = match segment::events(conn, annexes, scope, meta).await {
        Ok(events) => events,
        Err(error @ Error::Storage { .. }) => return Err(error),
        // It goes all the same: that its body cannot be read is told to whoever reads it until then.
        Err(_) => return Ok(None),
    };
    let streams: BTreeSet<&str> = events.iter().map(|event| event.stream.as_str()).collect();
    let ids = names::intern(conn, &streams).await?;
    let mut held: BTreeMap<i64, Versions> = BTreeMap::new();
    for event in &events {
        let stream = names::number(&ids, event.stream.as_str())?;
        held.entry(stream).or_default().add(event.version..=event.version);
    }
    Ok(Some(held))
}

/// Removes what was checked, in the same transaction.
pub(super) async fn remove(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    scope: &Scope,
    step: &Step,
) -> Result<(), Error> {
    if step.gone.is_empty() {
        return Ok(());
    }
    let mut marks: BTreeMap<i64, Position> = BTreeMap::new();
    for unit in &step.gone {
        let mark = marks.entry(unit.mark).or_insert(Position::START);
        *mark = unit.last.max(*mark);
    }
    let removed = removed(conn, annexes, scope, &step.held).await?;
    horizon::raise(conn, &removed).await?;
    for (what, through) in marks {
        sqlx::query(MARK).bind(what).bind(through.to_key()?).execute(&mut *conn).await?;
    }
    for (kind, sql) in
        [(UnitKind::Row, DELETE_ROWS), (UnitKind::Sealed, DELETE_SEALED), (UnitKind::Segment, DELETE_SEGMENTS)]
    {
        let keys = keys_of(&step.gone, kind)?;
        let expected = step.gone.iter().filter(|unit| unit.kind == kind).count() as u64;
        if expected > 0 {
            let deleted = sqlx::query(sql).bind(keys).execute(&mut *conn).await?.rows_affected();
            if deleted != expected {
                let why = format!("{deleted} of {expected} were removed");
                return Err(Error::corrupt(format!("{scope} warm tier"), why));
            }
        }
    }
    if step.gone.iter().any(|unit| unit.kind != UnitKind::Row) {
        sqlx::query(DELETE_DICTIONARIES).execute(&mut *conn).await?;
    }
    record(conn, scope, &step.gone).await
}

fn keys_of(doomed: &[Doomed], kind: UnitKind) -> Result<String, Error> {
    let of_kind = doomed.iter().filter(|unit| unit.kind == kind);
    let keys = of_kind.map(|unit| unit.first.to_key()).collect::<Result<Vec<i64>, Error>>()?;
    serde_json::to_string(&keys).map_err(|error| Error::corrupt("positions", error))
}

async fn find(
    conn: &mut SqliteConnection,
    scope: &Scope,
    kind: UnitKind,
    keys: String,
    stored: &mut HashMap<(UnitKind, Position), Stored>,
) -> Result<(), Error> {
    let position =
        |key: i64| Position::from_key(key).ok_or_else(|| Error::corrupt(format!("{scope} warm tier"), "negative key"));
    let sql = match kind {
        UnitKind::Row => {
            let found: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(ROWS).bind(keys).fetch_all(conn).await?;
            for (first, last, events, stream, version) in found {
                let tops = vec![(stream, version.cast_unsigned())];
                let row = Stored { last: position(last)?, events: events.cast_unsigned(), tops };
                stored.insert((kind, position(first)?), row);
            }
            return Ok(());
        }
        UnitKind::Sealed => SEALED,
        UnitKind::Segment => SEGMENTS,
    };
    let found: Vec<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(sql).bind(keys).fetch_all(conn).await?;
    for (first, last, events, streams) in found {
        // Without its list nobody knows which versions are given, so it stays.
        let Ok(tops) = lists::parse_streams(&streams) else { continue };
        let segment = Stored { last: position(last)?, events: events.cast_unsigned(), tops };
        stored.insert((kind, position(first)?), segment);
    }
    Ok(())
}

/// Writes what consumers are told: one record for what nobody waited for, one for each guard that was passed.
async fn record(conn: &mut SqliteConnection, scope: &Scope, gone: &[Doomed]) -> Result<(), Error> {
    let whose: BTreeSet<Option<&String>> = gone.iter().map(|unit| unit.forced.as_ref()).collect();
    for consumer in whose {
        let of = || gone.iter().filter(|unit| unit.forced.as_ref() == consumer);
        let (Some(first), Some(through)) = (of().map(|unit| unit.first).min(), of().map(|unit| unit.last).max()) else {
            continue;
        };
        let by = match consumer {
            Some(consumer) => TruncatedBy::Guard { consumer: consumer.clone() },
            None => TruncatedBy::Retention,
        };
        let events = of().map(|unit| unit.events).sum();
        let truncated = Truncated { after: first.before(), through, events, lost: 0, by, scope: Some(scope.clone()) };
        truncation::note(conn, &truncated).await?;
    }
    Ok(())
}
