//! The SQL of the lease table in PostgreSQL, and its rows as values.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use ulid::Ulid;

use crate::error::Error;
use crate::key::{KeySet, LockKey};
use crate::lease::{self, Deadline, Lease, LockInfo, Ticket, Verdict, Want, millis};
use crate::store::Request;
use crate::store::postgres::clock::at;
use crate::store::postgres::failed;
use crate::store::row::{Common, LeaseRow, TicketRow, to_i64, to_u64};
use crate::token::FencingToken;

macro_rules! lease_columns {
    () => {
        "token, id, session, keys, mode, actor, purpose, origin, since_ms, ttl_ms, deadline_ms, hold_until_ms, \
         broken_by, broken_reason"
    };
}

macro_rules! ticket_columns {
    () => {
        "number, id, session, keys, mode, actor, purpose, origin, since_ms, deadline_ms"
    };
}

/// Who can have the lock of a session has outlived it: the server drops it with the connection that held it.
macro_rules! is_dead {
    () => {
        "pg_try_advisory_xact_lock_shared(session_lock) AS dead"
    };
}

const RELATED_LEASES: &str = concat!(
    "SELECT ",
    lease_columns!(),
    ", ",
    is_dead!(),
    " FROM nasnet_lock_lease WHERE token IN (
        SELECT k.token FROM nasnet_lock_lease_key AS k WHERE k.key = ANY($1::text[])
        UNION ALL
        SELECT k.token FROM unnest($2::text[]) AS mine (key)
        JOIN nasnet_lock_lease_key AS k
          ON k.key >= (mine.key || '/') COLLATE \"C\" AND k.key < (mine.key || '0') COLLATE \"C\"
    ) ORDER BY token"
);
const RELATED_TICKETS: &str = concat!(
    "SELECT ",
    ticket_columns!(),
    ", ",
    is_dead!(),
    " FROM nasnet_lock_ticket WHERE number IN (
        SELECT k.number FROM nasnet_lock_ticket_key AS k WHERE k.key = ANY($1::text[])
        UNION ALL
        SELECT k.number FROM unnest($2::text[]) AS mine (key)
        JOIN nasnet_lock_ticket_key AS k
          ON k.key >= (mine.key || '/') COLLATE \"C\" AND k.key < (mine.key || '0') COLLATE \"C\"
    ) ORDER BY number"
);
/// A sequence never goes back, whatever is rolled back: tokens grow in the order in which leases are granted, since only
/// one transaction at a time grants. No row means that the session has ended.
const GRANT: &str = "
WITH granted AS (
    INSERT INTO nasnet_lock_lease (token, id, session, session_lock, keys, mode, actor, purpose, origin, since_ms, ttl_ms,
        deadline_ms, hold_until_ms)
    SELECT nextval('nasnet_lock_token'), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
    WHERE NOT pg_try_advisory_xact_lock_shared($3)
    RETURNING token, keys
), indexed AS (
    INSERT INTO nasnet_lock_lease_key (key, token) SELECT unnest(keys), token FROM granted
)
SELECT token FROM granted";
const DRAW_TICKET: &str = "
WITH drawn AS (
    INSERT INTO nasnet_lock_ticket (id, session, session_lock, keys, mode, actor, purpose, origin, since_ms, deadline_ms)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
    WHERE NOT pg_try_advisory_xact_lock_shared($3)
    RETURNING number, keys
), indexed AS (
    INSERT INTO nasnet_lock_ticket_key (key, number) SELECT unnest(keys), number FROM drawn
)
SELECT number FROM drawn";
const LEASE_BY_ID: &str =
    concat!("SELECT ", lease_columns!(), ", ", is_dead!(), " FROM nasnet_lock_lease WHERE id = $1");
const LEASES_BY_ID: &str =
    concat!("SELECT ", lease_columns!(), ", ", is_dead!(), " FROM nasnet_lock_lease WHERE id = ANY($1::bytea[])");
const LEASES: &str = concat!("SELECT ", lease_columns!(), ", ", is_dead!(), " FROM nasnet_lock_lease ORDER BY token");
const TICKETS: &str =
    concat!("SELECT ", ticket_columns!(), ", ", is_dead!(), " FROM nasnet_lock_ticket ORDER BY number");

/// The name others are woken by when keys have become free.
pub(super) const FREED: &str = "nasnet_lock_freed";
const TELL_FREED: &str = "SELECT pg_notify('nasnet_lock_freed', '')";

/// A row and whether its session has ended.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) dead: bool,
}

/// The session a store acts for, and the lock that proves it alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionId(pub(super) Ulid);

impl SessionId {
    /// Returns the key of the advisory lock: the random half of the id, so that sessions of all schemas keep apart.
    pub(super) fn lock(self) -> i64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0.to_bytes()[8..]);
        i64::from_be_bytes(low)
    }
}

/// Loads what overlaps a request and decides it.
pub(super) async fn judge(
    conn: &mut PgConnection,
    request: &Request,
    ticket: Option<u64>,
    delay: Duration,
    now_ms: u64,
) -> Result<Verdict, Error> {
    let (above, mine) = (paths_with_ancestors(&request.keys), paths(&request.keys));
    let leases = sqlx::query(RELATED_LEASES)
        .bind(&above)
        .bind(&mine)
        .fetch_all(&mut *conn)
        .await
        .map_err(failed("load leases"))?;
    let tickets =
        sqlx::query(RELATED_TICKETS).bind(above).bind(mine).fetch_all(conn).await.map_err(failed("load tickets"))?;
    let leases = leases.iter().map(lease_of).collect::<Result<Vec<_>, _>>()?;
    let tickets = tickets.iter().map(ticket_of).collect::<Result<Vec<_>, _>>()?;
    let dead: BTreeSet<Ulid> = dead_leases(&leases).chain(dead_tickets(&tickets)).collect();
    let want = Want { keys: &request.keys, mode: request.mode, ticket };
    let leases = leases.iter().map(|found| &found.value);
    let tickets = tickets.iter().map(|found| &found.value);
    Ok(lease::judge(want, leases, tickets, &at(now_ms), delay, |session| dead.contains(&session)))
}

fn dead_leases(found: &[Found<Lease>]) -> impl Iterator<Item = Ulid> + '_ {
    found.iter().filter(|found| found.dead).map(|found| found.value.session)
}

fn dead_tickets(found: &[Found<Ticket>]) -> impl Iterator<Item = Ulid> + '_ {
    found.iter().filter(|found| found.dead).map(|found| found.value.session)
}

/// Stores a lease under the next token; `None` when the session has ended.
pub(super) async fn grant(
    conn: &mut PgConnection,
    request: &Request,
    session: SessionId,
    now_ms: u64,
) -> Result<Option<Lease>, Error> {
    let now = at(now_ms);
    // Every number a sequence gives is a token; the one of this lease is not known yet.
    let lease = request.granted(FencingToken::MIN, session.0, &now);
    let token: Option<i64> = sqlx::query_scalar(GRANT)
        .bind(bytes(request.id))
        .bind(bytes(session.0))
        .bind(session.lock())
        .bind(paths(&request.keys))
        .bind(request.mode.as_str())
        .bind(&request.info.actor)
        .bind(&request.info.purpose)
        .bind(&request.info.origin)
        .bind(lease.since_ms)
        .bind(to_i64(millis(lease.ttl)))
        .bind(to_i64(lease.deadline.boottime_ms))
        .bind(lease.hold_until_ms.map(to_i64))
        .fetch_optional(conn)
        .await
        .map_err(failed("store a lease"))?;
    token.map(|token| Ok(Lease { token: FencingToken::from_sql(token)?, ..lease })).transpose()
}

/// Puts a request at the end of the queue; `None` when the session has ended.
pub(super) async fn draw_ticket(
    conn: &mut PgConnection,
    request: &Request,
    session: SessionId,
    deadline: Deadline,
    now_ms: u64,
) -> Result<Option<u64>, Error> {
    let number: Option<i64> = sqlx::query_scalar(DRAW_TICKET)
        .bind(bytes(request.id))
        .bind(bytes(session.0))
        .bind(session.lock())
        .bind(paths(&request.keys))
        .bind(request.mode.as_str())
        .bind(&request.info.actor)
        .bind(&request.info.purpose)
        .bind(&request.info.origin)
        .bind(to_i64(now_ms))
        .bind(to_i64(deadline.boottime_ms))
        .fetch_optional(conn)
        .await
        .map_err(failed("draw a ticket"))?;
    number.map(|number| to_u64(number, "ticket number")).transpose()
}

pub(super) async fn load(conn: &mut PgConnection, id: Ulid) -> Result<Option<Found<Lease>>, Error> {
    let row = sqlx::query(LEASE_BY_ID).bind(bytes(id)).fetch_optional(conn).await.map_err(failed("load a lease"))?;
    row.as_ref().map(lease_of).transpose()
}

pub(super) async fn load_these(conn: &mut PgConnection, ids: &[Ulid]) -> Result<Vec<Found<Lease>>, Error> {
    let ids: Vec<Vec<u8>> = ids.iter().map(|id| bytes(*id)).collect();
    let rows = sqlx::query(LEASES_BY_ID).bind(ids).fetch_all(conn).await.map_err(failed("load leases"))?;
    rows.iter().map(lease_of).collect()
}

pub(super) async fn load_all(conn: &mut PgConnection) -> Result<(Vec<Found<Lease>>, Vec<Found<Ticket>>), Error> {
    let leases = sqlx::query(LEASES).fetch_all(&mut *conn).await.map_err(failed("list leases"))?;
    let tickets = sqlx::query(TICKETS).fetch_all(conn).await.map_err(failed("list tickets"))?;
    Ok((
        leases.iter().map(lease_of).collect::<Result<_, _>>()?,
        tickets.iter().map(ticket_of).collect::<Result<_, _>>()?,
    ))
}

/// Runs a statement that names what it is about in its first parameter, and returns how many rows it changed.
pub(super) async fn change<'q, T>(
    conn: &mut PgConnection,
    operation: &'static str,
    statement: &'static str,
    about: T,
) -> Result<u64, Error>
where
    T: sqlx::Encode<'q, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + 'q,
{
    Ok(sqlx::query(statement).bind(about).execute(conn).await.map_err(failed(operation))?.rows_affected())
}

/// Wakes who waits, on every node, once the transaction is committed.
pub(super) async fn tell_freed(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(TELL_FREED).execute(conn).await.map_err(failed("wake who waits"))?;
    Ok(())
}

fn lease_of(row: &PgRow) -> Result<Found<Lease>, Error> {
    let read = || failed("read a lease");
    let value = LeaseRow {
        common: common_of(row)?,
        token: row.try_get("token").map_err(read())?,
        ttl_ms: row.try_get("ttl_ms").map_err(read())?,
        hold_until_ms: row.try_get("hold_until_ms").map_err(read())?,
        broken_by: row.try_get("broken_by").map_err(read())?,
        broken_reason: row.try_get("broken_reason").map_err(read())?,
    };
    Ok(Found { value: value.check()?, dead: row.try_get("dead").map_err(read())? })
}

fn ticket_of(row: &PgRow) -> Result<Found<Ticket>, Error> {
    let read = || failed("read a ticket");
    let value = TicketRow { common: common_of(row)?, number: row.try_get("number").map_err(read())? };
    Ok(Found { value: value.check()?, dead: row.try_get("dead").map_err(read())? })
}

fn common_of(row: &PgRow) -> Result<Common<'_>, Error> {
    let read = || failed("read a lease or a ticket");
    let keys: Vec<String> = row.try_get("keys").map_err(read())?;
    Ok(Common {
        id: row.try_get("id").map_err(read())?,
        session: row.try_get("session").map_err(read())?,
        keys: KeySet::new(keys.into_iter().map(LockKey::parse).collect::<Result<Vec<_>, _>>()?)?,
        mode: row.try_get("mode").map_err(read())?,
        info: LockInfo {
            actor: row.try_get("actor").map_err(read())?,
            purpose: row.try_get("purpose").map_err(read())?,
            origin: row.try_get("origin").map_err(read())?,
        },
        since_ms: row.try_get("since_ms").map_err(read())?,
        boot: at(0).boot,
        deadline_ms: row.try_get("deadline_ms").map_err(read())?,
    })
}

pub(super) fn bytes(id: Ulid) -> Vec<u8> {
    id.to_bytes().to_vec()
}

/// Returns the keys as a text array.
pub(crate) fn paths(keys: &KeySet) -> Vec<String> {
    keys.iter().map(|key| key.as_str().to_owned()).collect()
}

/// Returns the keys and everything above them as a text array.
pub(crate) fn paths_with_ancestors(keys: &KeySet) -> Vec<String> {
    keys.with_ancestors().into_iter().map(std::borrow::Cow::into_owned).collect()
}
