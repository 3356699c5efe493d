//! The SQL of `locks.db`, and its rows as values.

use nasnet_dbmanager::{BootId, RawConn, RawRow, RawValue};
use ulid::Ulid;

use crate::error::Error;
use crate::fence::to_json;
use crate::key::KeySet;
use crate::lease::{Deadline, Lease, LockInfo, Ticket, millis};
use crate::store::Request;
use crate::store::row::{Common, LeaseRow, TicketRow, to_i64, to_u64};
use crate::token::FencingToken;

macro_rules! lease_columns {
    () => {
        "id, session, keys, mode, actor, purpose, origin, since_ms, boot, deadline_ms, token, ttl_ms, hold_until_ms, \
         broken_by, broken_reason"
    };
}

macro_rules! ticket_columns {
    () => {
        "id, session, keys, mode, actor, purpose, origin, since_ms, boot, deadline_ms, number"
    };
}

/// Leases whose keys lie at, above (`?1`: the keys with all their ancestors) or below (`?2`: the keys).
pub(super) const RELATED_LEASES: &str = concat!(
    "WITH found (of_session, of_id) AS (
         SELECT k.session, k.id FROM json_each(?1) AS above CROSS JOIN lease_key AS k ON k.key = above.value
         UNION
         SELECT k.session, k.id FROM json_each(?2) AS mine
         CROSS JOIN lease_key AS k ON k.key >= mine.value || '/' AND k.key < mine.value || '0'
     )
     SELECT ",
    lease_columns!(),
    " FROM found CROSS JOIN lease ON session = of_session AND id = of_id ORDER BY token"
);
/// The same for tickets.
pub(super) const RELATED_TICKETS: &str = concat!(
    "SELECT ",
    ticket_columns!(),
    " FROM ticket WHERE number IN (
         SELECT k.number FROM json_each(?1) AS above CROSS JOIN ticket_key AS k ON k.key = above.value
         UNION ALL
         SELECT k.number FROM json_each(?2) AS mine
         CROSS JOIN ticket_key AS k ON k.key >= mine.value || '/' AND k.key < mine.value || '0'
     ) ORDER BY number"
);
pub(super) const ANY_TICKET: &str = "SELECT 1 FROM ticket LIMIT 1";
pub(super) const LEASE_AT: &str = "SELECT 1 FROM lease_key WHERE key = ?1 LIMIT 1";
pub(super) const LEASE_BELOW: &str = "SELECT 1 FROM lease_key WHERE key >= ?1 || '/' AND key < ?1 || '0' LIMIT 1";

pub(super) const NEXT_TOKEN: &str = "SELECT next FROM next_token WHERE id = 1 AND next < block_end";
pub(super) const TAKE_TOKEN: &str = "UPDATE next_token SET next = next + 1 WHERE id = 1 AND next < block_end";
pub(super) const STORE: &str = concat!(
    "INSERT INTO lease (",
    lease_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, NULL, NULL)"
);
pub(super) const INDEX_KEY: &str = "INSERT INTO lease_key (key, session, id) VALUES (?1, ?2, ?3)";
pub(super) const REMOVE: &str = "DELETE FROM lease WHERE session = ?1 AND id = ?2";
pub(super) const REMOVE_KEY: &str = "DELETE FROM lease_key WHERE key = ?1 AND session = ?2 AND id = ?3";

pub(super) const LEASE: &str = concat!("SELECT ", lease_columns!(), " FROM lease WHERE session = ?1 AND id = ?2");
pub(super) const LEASES_OF_SESSION: &str =
    concat!("SELECT ", lease_columns!(), " FROM lease WHERE session = ?1 ORDER BY token");
/// For operators, who know no session: it looks at every lease, as listing them does.
pub(super) const LEASE_OF_ANYBODY: &str = concat!("SELECT ", lease_columns!(), " FROM lease WHERE id = ?1");
pub(super) const LEASES: &str = concat!("SELECT ", lease_columns!(), " FROM lease ORDER BY token");
pub(super) const TICKETS: &str = concat!("SELECT ", ticket_columns!(), " FROM ticket ORDER BY number");
pub(super) const EXTEND: &str = "UPDATE lease SET deadline_ms = ?3 WHERE session = ?1 AND id = ?2";
pub(super) const BREAK: &str =
    "UPDATE lease SET broken_by = ?3, broken_reason = ?4, deadline_ms = ?5 WHERE session = ?1 AND id = ?2";

pub(super) const DRAW_TICKET: &str = "
INSERT INTO ticket (id, session, keys, mode, actor, purpose, origin, since_ms, boot, deadline_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING number";
pub(super) const REMOVE_TICKET: &str = "DELETE FROM ticket WHERE number = ?1";
pub(super) const GIVE_TICKET_UP: &str = "DELETE FROM ticket WHERE id = ?1";

/// Tells whether nobody waits and nobody has a lease at, above or below the keys.
pub(super) fn is_alone(raw: &mut RawConn<'_>, keys: &KeySet) -> Result<bool, Error> {
    let mut any = |sql, values: &[RawValue<'_>]| raw.query_optional(sql, values, |_| Ok::<_, Error>(()));
    if any(ANY_TICKET, &[])?.is_some() {
        return Ok(false);
    }
    for path in keys.with_ancestors() {
        if any(LEASE_AT, &[(&*path).into()])?.is_some() {
            return Ok(false);
        }
    }
    for key in keys {
        if any(LEASE_BELOW, &[key.as_str().into()])?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the next reserved token; `None` when there is none left.
pub(super) fn next_token(raw: &mut RawConn<'_>) -> Result<Option<FencingToken>, Error> {
    raw.query_optional(NEXT_TOKEN, &[], |row| FencingToken::from_sql(row.get(0)?))
}

/// Stores a lease under the next token and indexes its keys.
pub(super) fn store(raw: &mut RawConn<'_>, lease: &Lease) -> Result<(), Error> {
    let (id, session) = (lease.id.to_bytes(), lease.session.to_bytes());
    raw.execute(TAKE_TOKEN, &[])?;
    raw.execute(
        STORE,
        &[
            (&id).into(),
            (&session).into(),
            to_json(lease.keys.as_slice())?.as_str().into(),
            lease.mode.as_str().into(),
            lease.info.actor.as_str().into(),
            lease.info.purpose.as_str().into(),
            lease.info.origin.as_str().into(),
            lease.since_ms.into(),
            lease.deadline.boot.as_bytes().as_slice().into(),
            to_i64(lease.deadline.boottime_ms).into(),
            lease.token.to_sql().into(),
            to_i64(millis(lease.ttl)).into(),
            lease.hold_until_ms.map(to_i64).into(),
        ],
    )?;
    for key in &lease.keys {
        raw.execute(INDEX_KEY, &[key.as_str().into(), (&session).into(), (&id).into()])?;
    }
    Ok(())
}

/// Removes a lease with its keys.
pub(super) fn remove(raw: &mut RawConn<'_>, lease: &Lease) -> Result<(), Error> {
    let (id, session) = (lease.id.to_bytes(), lease.session.to_bytes());
    raw.execute(REMOVE, &[(&session).into(), (&id).into()])?;
    for key in &lease.keys {
        raw.execute(REMOVE_KEY, &[key.as_str().into(), (&session).into(), (&id).into()])?;
    }
    Ok(())
}

pub(super) fn lease(raw: &mut RawConn<'_>, session: Ulid, id: Ulid) -> Result<Option<Lease>, Error> {
    raw.query_optional(LEASE, &[(&session.to_bytes()).into(), (&id.to_bytes()).into()], lease_of)
}

pub(super) fn lease_of_anybody(raw: &mut RawConn<'_>, id: Ulid) -> Result<Option<Lease>, Error> {
    raw.query_optional(LEASE_OF_ANYBODY, &[(&id.to_bytes()).into()], lease_of)
}

/// Loads the leases and the tickets that overlap keys.
pub(super) fn related(raw: &mut RawConn<'_>, keys: &KeySet) -> Result<(Vec<Lease>, Vec<Ticket>), Error> {
    let (above, mine) = (to_json(&keys.with_ancestors())?, to_json(keys.as_slice())?);
    let values = [above.as_str().into(), mine.as_str().into()];
    Ok((raw.query_all(RELATED_LEASES, &values, lease_of)?, raw.query_all(RELATED_TICKETS, &values, ticket_of)?))
}

/// Puts a request at the end of the queue.
pub(super) fn draw_ticket(
    raw: &mut RawConn<'_>,
    request: &Request,
    session: Ulid,
    deadline: Deadline,
    since_ms: i64,
) -> Result<u64, Error> {
    let number = raw.query_optional(
        DRAW_TICKET,
        &[
            (&request.id.to_bytes()).into(),
            (&session.to_bytes()).into(),
            to_json(request.keys.as_slice())?.as_str().into(),
            request.mode.as_str().into(),
            request.info.actor.as_str().into(),
            request.info.purpose.as_str().into(),
            request.info.origin.as_str().into(),
            since_ms.into(),
            deadline.boot.as_bytes().as_slice().into(),
            to_i64(deadline.boottime_ms).into(),
        ],
        |row| to_u64(row.get(0)?, "ticket number"),
    )?;
    number.ok_or_else(|| Error::Corrupt { what: "ticket number", detail: "none was drawn".to_owned() })
}

pub(super) fn lease_of(row: &RawRow<'_>) -> Result<Lease, Error> {
    LeaseRow {
        common: common_of(row)?,
        token: row.get(10)?,
        ttl_ms: row.get(11)?,
        hold_until_ms: row.get(12)?,
        broken_by: row.get(13)?,
        broken_reason: row.get(14)?,
    }
    .check()
}

pub(super) fn ticket_of(row: &RawRow<'_>) -> Result<Ticket, Error> {
    TicketRow { common: common_of(row)?, number: row.get(10)? }.check()
}

fn common_of<'s>(row: &'s RawRow<'_>) -> Result<Common<'s>, Error> {
    let corrupt = |error: serde_json::Error| Error::Corrupt { what: "key list", detail: error.to_string() };
    Ok(Common {
        id: row.get(0)?,
        session: row.get(1)?,
        keys: serde_json::from_str(row.get(2)?).map_err(corrupt)?,
        mode: row.get(3)?,
        info: LockInfo { actor: row.get(4)?, purpose: row.get(5)?, origin: row.get(6)? },
        since_ms: row.get(7)?,
        boot: BootId::from_bytes(row.get(8)?),
        deadline_ms: row.get(9)?,
    })
}
