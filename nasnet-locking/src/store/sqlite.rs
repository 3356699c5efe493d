//! The lease table of one machine: `locks.db` on tmpfs, shared by its processes.
//!
//! Every change is one write op, so it is all-or-nothing. Rows that overlap a request are loaded and the pure rules of
//! [`crate::lease`] decide; a request that overlaps nothing is granted in one statement.

#[cfg(test)]
mod plans;

use std::time::Duration;

use nasnet_dbmanager::{BootId, Cause, Database, Now};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::fence::to_json;
use crate::key::KeySet;
use crate::lease::{self, Broken, Deadline, Lease, LockInfo, Mode, Obstacle, Ticket, Verdict, Want, millis};
use crate::session::Sessions;
use crate::store::storage;
pub(crate) use crate::store::{Queue, Request};
use crate::token::FencingToken;

const ACQUIRE: Cause = Cause::new("lease-acquire");
const RENEW: Cause = Cause::new("lease-renew");
const RELEASE: Cause = Cause::new("lease-release");
const BREAK: Cause = Cause::new("lease-break");
const SESSION: Cause = Cause::new("lock-session");
const LOOK: Cause = Cause::new("lease-look");

macro_rules! lease_columns {
    () => {
        "token, id, session, keys, mode, actor, purpose, origin, since_ms, ttl_ms, boot, deadline_ms, hold_until_ms, \
         broken_by, broken_reason"
    };
}

macro_rules! ticket_columns {
    () => {
        "number, id, session, keys, mode, actor, purpose, origin, since_ms, boot, deadline_ms"
    };
}

/// Tokens of the leases whose keys lie at, above (`?1`: the keys with all their ancestors) or below (`?2`: the keys).
macro_rules! related_tokens {
    () => {
        "SELECT k.token FROM json_each(?1) AS above CROSS JOIN lease_key AS k ON k.key = above.value
         UNION ALL
         SELECT k.token FROM json_each(?2) AS mine
         CROSS JOIN lease_key AS k ON k.key >= mine.value || '/' AND k.key < mine.value || '0'"
    };
}

/// The same for tickets.
macro_rules! related_numbers {
    () => {
        "SELECT k.number FROM json_each(?1) AS above CROSS JOIN ticket_key AS k ON k.key = above.value
         UNION ALL
         SELECT k.number FROM json_each(?2) AS mine
         CROSS JOIN ticket_key AS k ON k.key >= mine.value || '/' AND k.key < mine.value || '0'"
    };
}

/// Stores a lease under the next reserved token; no row means that none is left.
macro_rules! grant {
    () => {
        "INSERT INTO lease (token, id, session, keys, mode, actor, purpose, origin, since_ms, ttl_ms, boot, deadline_ms,
             hold_until_ms)
         SELECT next, ?3, ?4, ?2, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13 FROM next_token
         WHERE id = 1 AND next < block_end AND ?1 IS NOT NULL"
    };
}

const RELATED_LEASES: &str =
    concat!("SELECT ", lease_columns!(), " FROM lease WHERE token IN (", related_tokens!(), ") ORDER BY token");
const RELATED_TICKETS: &str =
    concat!("SELECT ", ticket_columns!(), " FROM ticket WHERE number IN (", related_numbers!(), ") ORDER BY number");
const GRANT: &str = concat!(grant!(), " RETURNING token");
const GRANT_IF_ALONE: &str = concat!(
    grant!(),
    " AND NOT EXISTS (",
    related_tokens!(),
    ") AND NOT EXISTS (",
    related_numbers!(),
    ") RETURNING token"
);
const ADD_BLOCK: &str = "
INSERT INTO next_token (id, next, block_end) VALUES (1, ?1, ?2)
ON CONFLICT (id) DO UPDATE SET next = excluded.next, block_end = excluded.block_end
WHERE next_token.next >= next_token.block_end AND excluded.next >= next_token.block_end";
const LEASE_BY_ID: &str = concat!("SELECT ", lease_columns!(), " FROM lease WHERE id = ?1");
const LEASES: &str = concat!("SELECT ", lease_columns!(), " FROM lease ORDER BY token");
const LEASES_OF_SESSION: &str = concat!("SELECT ", lease_columns!(), " FROM lease WHERE session = ?1 ORDER BY token");
const TICKETS: &str = concat!("SELECT ", ticket_columns!(), " FROM ticket ORDER BY number");
const DELETE_LEASE: &str = concat!("DELETE FROM lease WHERE id = ?1 RETURNING ", lease_columns!());
const DRAW_TICKET: &str = "
INSERT INTO ticket (id, session, keys, mode, actor, purpose, origin, since_ms, boot, deadline_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING number";

/// The answer to one attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    Granted(Box<Lease>),
    /// Not granted; the ticket is the place in the queue, if one was asked for.
    Blocked {
        obstacle: Box<Obstacle>,
        ticket: Option<u64>,
    },
    /// The reserved block of tokens is used up, or this `locks.db` has none yet.
    NoTokens,
}

/// `locks.db` and the sessions it names.
#[derive(Debug, Clone)]
pub(crate) struct SqliteStore {
    pub(crate) db: Database,
    pub(crate) sessions: Sessions,
    /// The session this store acts for.
    pub(crate) own: Ulid,
    /// How long an expired or broken lease of a live session goes on blocking.
    pub(crate) delay: Duration,
}

impl SqliteStore {
    /// Makes the session known and removes what no live session holds.
    pub(crate) async fn begin_session(&self, now: Now) -> Result<(), Error> {
        let store = self.clone();
        self.db
            .write(SESSION, move |conn| {
                Box::pin(async move {
                    sqlx::query("INSERT INTO session (id, boot, opened_ms) VALUES (?1, ?2, ?3)")
                        .bind(blob(store.own))
                        .bind(now.boot.as_bytes().to_vec())
                        .bind(now.wall_ms)
                        .execute(&mut *conn)
                        .await
                        .map_err(storage("begin a session"))?;
                    store.sweep(conn, &now).await
                })
            })
            .await
    }

    /// Removes everything the session left.
    pub(crate) async fn end_session(&self) -> Result<(), Error> {
        let own = self.own;
        self.db.write(SESSION, move |conn| Box::pin(forget_session(conn, own))).await
    }

    async fn sweep(&self, conn: &mut SqliteConnection, now: &Now) -> Result<(), Error> {
        let fail = || storage("sweep dead sessions");
        for sql in [
            "DELETE FROM lease WHERE boot != ?1",
            "DELETE FROM ticket WHERE boot != ?1",
            "DELETE FROM session WHERE boot != ?1",
        ] {
            sqlx::query(sql).bind(now.boot.as_bytes().to_vec()).execute(&mut *conn).await.map_err(fail())?;
        }
        sqlx::query("DELETE FROM ticket WHERE deadline_ms <= ?1")
            .bind(to_i64(now.boottime_ms))
            .execute(&mut *conn)
            .await
            .map_err(fail())?;
        let sessions: Vec<Vec<u8>> = sqlx::query_scalar("SELECT id FROM session UNION SELECT session FROM lease")
            .fetch_all(&mut *conn)
            .await
            .map_err(fail())?;
        for id in sessions {
            let id = ulid(&id)?;
            if id != self.own && self.sessions.is_dead(id) {
                forget_session(conn, id).await?;
            }
        }
        Ok(())
    }

    /// Tries to grant a request.
    pub(crate) async fn attempt(&self, request: Request, queue: Queue, now: Now) -> Result<Attempt, Error> {
        let store = self.clone();
        self.db
            .write(ACQUIRE, move |conn| Box::pin(async move { store.attempt_in(conn, &request, queue, &now).await }))
            .await
    }

    async fn attempt_in(
        &self,
        conn: &mut SqliteConnection,
        request: &Request,
        queue: Queue,
        now: &Now,
    ) -> Result<Attempt, Error> {
        if matches!(queue, Queue::Stay | Queue::Join(_))
            && let Some(lease) = self.grant(conn, GRANT_IF_ALONE, request, now).await?
        {
            return Ok(Attempt::Granted(Box::new(lease)));
        }
        let ticket = if let Queue::Keep(number) = queue { Some(number) } else { None };
        match self.judge(conn, request, ticket, now).await? {
            Verdict::Grant { leases, tickets } => {
                // First the grant: without a token nothing has been changed.
                let Some(lease) = self.grant(conn, GRANT, request, now).await? else { return Ok(Attempt::NoTokens) };
                for token in leases {
                    delete(conn, "DELETE FROM lease WHERE token = ?1", token.to_sql()).await?;
                }
                for number in tickets.into_iter().chain(ticket) {
                    delete(conn, "DELETE FROM ticket WHERE number = ?1", to_i64(number)).await?;
                }
                Ok(Attempt::Granted(Box::new(lease)))
            }
            Verdict::Blocked(obstacle) => {
                let ticket = match queue {
                    Queue::Join(deadline) => Some(self.draw_ticket(conn, request, deadline, now).await?),
                    Queue::Stay | Queue::Keep(_) => ticket,
                };
                Ok(Attempt::Blocked { obstacle, ticket })
            }
        }
    }
    async fn grant(
        &self,
        conn: &mut SqliteConnection,
        statement: &'static str,
        request: &Request,
        now: &Now,
    ) -> Result<Option<Lease>, Error> {
        let hold_until_ms = request.max_hold.map(|hold| now.boottime_ms.saturating_add(millis(hold)));
        let deadline = Deadline { boot: now.boot, boottime_ms: lease::reach_ms(now, request.ttl, hold_until_ms) };
        let token: Option<i64> = sqlx::query_scalar(statement)
            .bind(to_json(&request.keys.with_ancestors())?)
            .bind(to_json(request.keys.as_slice())?)
            .bind(blob(request.id))
            .bind(blob(self.own))
            .bind(request.mode.as_str())
            .bind(&request.info.actor)
            .bind(&request.info.purpose)
            .bind(&request.info.origin)
            .bind(now.wall_ms)
            .bind(to_i64(millis(request.ttl)))
            .bind(now.boot.as_bytes().to_vec())
            .bind(to_i64(deadline.boottime_ms))
            .bind(hold_until_ms.map(to_i64))
            .fetch_optional(conn)
            .await
            .map_err(storage("store a lease"))?;
        let Some(token) = token else { return Ok(None) };
        Ok(Some(Lease {
            id: request.id,
            token: FencingToken::from_sql(token)?,
            session: self.own,
            keys: request.keys.clone(),
            mode: request.mode,
            info: request.info.clone(),
            since_ms: now.wall_ms,
            ttl: request.ttl,
            deadline,
            hold_until_ms,
            broken: None,
        }))
    }

    async fn judge(
        &self,
        conn: &mut SqliteConnection,
        request: &Request,
        ticket: Option<u64>,
        now: &Now,
    ) -> Result<Verdict, Error> {
        let above = to_json(&request.keys.with_ancestors())?;
        let mine = to_json(request.keys.as_slice())?;
        let leases = sqlx::query(RELATED_LEASES)
            .bind(&above)
            .bind(&mine)
            .fetch_all(&mut *conn)
            .await
            .map_err(storage("load leases"))?;
        let tickets = sqlx::query(RELATED_TICKETS)
            .bind(above)
            .bind(mine)
            .fetch_all(conn)
            .await
            .map_err(storage("load tickets"))?;
        let leases = leases.iter().map(lease_of).collect::<Result<Vec<_>, _>>()?;
        let tickets = tickets.iter().map(ticket_of).collect::<Result<Vec<_>, _>>()?;
        let want = Want { keys: &request.keys, mode: request.mode, ticket };
        Ok(lease::judge(want, &leases, &tickets, now, self.delay, self.sessions.probe(self.own)))
    }

    async fn draw_ticket(
        &self,
        conn: &mut SqliteConnection,
        request: &Request,
        deadline: Deadline,
        now: &Now,
    ) -> Result<u64, Error> {
        let number: i64 = sqlx::query_scalar(DRAW_TICKET)
            .bind(blob(request.id))
            .bind(blob(self.own))
            .bind(to_json(request.keys.as_slice())?)
            .bind(request.mode.as_str())
            .bind(&request.info.actor)
            .bind(&request.info.purpose)
            .bind(&request.info.origin)
            .bind(now.wall_ms)
            .bind(deadline.boot.as_bytes().to_vec())
            .bind(to_i64(deadline.boottime_ms))
            .fetch_one(conn)
            .await
            .map_err(storage("draw a ticket"))?;
        to_u64(number, "ticket number")
    }

    /// Looks at what is in the way of a waiting request without taking the write lock.
    pub(crate) async fn look(&self, request: Request, ticket: u64, now: Now) -> Result<Verdict, Error> {
        let store = self.clone();
        self.db
            .read(LOOK, move |conn| Box::pin(async move { store.judge(conn, &request, Some(ticket), &now).await }))
            .await
    }

    /// Installs a block of tokens reserved in system.db, unless another process was quicker. A block below tokens this
    /// `locks.db` has handed out is refused, since tokens only grow: the number to start above is returned.
    pub(crate) async fn add_block(&self, first: u64, count: u64) -> Result<Option<u64>, Error> {
        let (first, end) = (to_i64(first.max(1)), to_i64(first.saturating_add(count)));
        self.db
            .write(ACQUIRE, move |conn| {
                Box::pin(async move {
                    let fail = || storage("install a block of tokens");
                    sqlx::query(ADD_BLOCK).bind(first).bind(end).execute(&mut *conn).await.map_err(fail())?;
                    let used_up: Option<i64> =
                        sqlx::query_scalar("SELECT block_end FROM next_token WHERE id = 1 AND next >= block_end")
                            .fetch_optional(conn)
                            .await
                            .map_err(fail())?;
                    used_up.map(|end| to_u64(end, "block of tokens")).transpose()
                })
            })
            .await
    }

    /// Extends a lease of this session; the outer error is a failure, the inner one says how the lease was lost.
    pub(crate) async fn renew(
        &self,
        id: Ulid,
        token: FencingToken,
        now: Now,
    ) -> Result<Result<Deadline, LostReason>, Error> {
        self.db
            .write(RENEW, move |conn| {
                Box::pin(async move {
                    let Some(lease) = load(conn, id).await?.filter(|lease| lease.token == token) else {
                        return Ok(Err(LostReason::Ended));
                    };
                    let deadline = match lease.renewal(&now) {
                        Ok(deadline) => deadline,
                        Err(why) => return Ok(Err(why)),
                    };
                    sqlx::query("UPDATE lease SET deadline_ms = ?2 WHERE token = ?1")
                        .bind(token.to_sql())
                        .bind(to_i64(deadline.boottime_ms))
                        .execute(conn)
                        .await
                        .map_err(storage("renew a lease"))?;
                    Ok(Ok(deadline))
                })
            })
            .await
    }

    /// Removes a lease, or the ticket of a request that gave up, and tells whether the lease still stood.
    pub(crate) async fn release(&self, id: Ulid, now: Now) -> Result<Result<(), LostReason>, Error> {
        self.db
            .write(RELEASE, move |conn| {
                Box::pin(async move {
                    let row = sqlx::query(DELETE_LEASE)
                        .bind(blob(id))
                        .fetch_optional(&mut *conn)
                        .await
                        .map_err(storage("release a lease"))?;
                    match row {
                        Some(row) => Ok(lease_of(&row)?.standing(&now, |_| false)),
                        None => {
                            sqlx::query("DELETE FROM ticket WHERE id = ?1")
                                .bind(blob(id))
                                .execute(conn)
                                .await
                                .map_err(storage("give up a ticket"))?;
                            Ok(Err(LostReason::Ended))
                        }
                    }
                })
            })
            .await
    }

    /// Tells whether a lease still stands.
    pub(crate) async fn standing(
        &self,
        id: Ulid,
        token: FencingToken,
        now: Now,
    ) -> Result<Result<(), LostReason>, Error> {
        self.db
            .read(LOOK, move |conn| {
                Box::pin(async move {
                    let lease = load(conn, id).await?.filter(|lease| lease.token == token);
                    Ok(lease.map_or(Err(LostReason::Ended), |lease| lease.standing(&now, |_| false)))
                })
            })
            .await
    }

    /// Loads the leases of this session.
    pub(crate) async fn own_leases(&self) -> Result<Vec<Lease>, Error> {
        let own = self.own;
        self.db
            .read(LOOK, move |conn| {
                Box::pin(async move {
                    let rows = sqlx::query(LEASES_OF_SESSION)
                        .bind(blob(own))
                        .fetch_all(conn)
                        .await
                        .map_err(storage("load leases"))?;
                    rows.iter().map(lease_of).collect()
                })
            })
            .await
    }

    /// Tells what has become of a lease that is not held under this token.
    pub(crate) async fn stale_view(&self, id: Ulid, token: FencingToken) -> Result<StaleView, Error> {
        self.db
            .read(LOOK, move |conn| Box::pin(async move { Ok(StaleView::of(load(conn, id).await?.as_ref(), token)) }))
            .await
    }

    /// Loads the whole table.
    pub(crate) async fn all(&self) -> Result<(Vec<Lease>, Vec<Ticket>), Error> {
        self.db
            .read(LOOK, |conn| {
                Box::pin(async move {
                    let leases = sqlx::query(LEASES).fetch_all(&mut *conn).await.map_err(storage("list leases"))?;
                    let tickets = sqlx::query(TICKETS).fetch_all(conn).await.map_err(storage("list tickets"))?;
                    Ok((
                        leases.iter().map(lease_of).collect::<Result<_, _>>()?,
                        tickets.iter().map(ticket_of).collect::<Result<_, Error>>()?,
                    ))
                })
            })
            .await
    }

    /// Breaks a lease if it is the one that was looked at, and skips a token so that the next one is no neighbour of it.
    pub(crate) async fn break_lease(
        &self,
        id: Ulid,
        token: FencingToken,
        broken: Broken,
        now: Now,
    ) -> Result<Result<Lease, StaleView>, Error> {
        self.db
            .write(BREAK, move |conn| {
                Box::pin(async move {
                    let fail = || storage("break a lease");
                    let found = load(conn, id).await?;
                    let standing = |lease: &Lease| lease.token == token && lease.standing(&now, |_| false).is_ok();
                    let Some(lease) = found.clone().filter(standing) else {
                        return Ok(Err(StaleView::of(found.as_ref(), token)));
                    };
                    sqlx::query(
                        "UPDATE lease SET broken_by = ?2, broken_reason = ?3, deadline_ms = ?4 WHERE token = ?1",
                    )
                    .bind(token.to_sql())
                    .bind(&broken.by)
                    .bind(&broken.reason)
                    .bind(to_i64(now.boottime_ms))
                    .execute(&mut *conn)
                    .await
                    .map_err(fail())?;
                    sqlx::query("UPDATE next_token SET next = next + 1 WHERE id = 1 AND next < block_end")
                        .execute(conn)
                        .await
                        .map_err(fail())?;
                    Ok(Ok(Lease { broken: Some(broken), ..lease }))
                })
            })
            .await
    }
}

async fn load(conn: &mut SqliteConnection, id: Ulid) -> Result<Option<Lease>, Error> {
    let row = sqlx::query(LEASE_BY_ID).bind(blob(id)).fetch_optional(conn).await.map_err(storage("load a lease"))?;
    row.as_ref().map(lease_of).transpose()
}

async fn delete(conn: &mut SqliteConnection, statement: &'static str, key: i64) -> Result<(), Error> {
    sqlx::query(statement).bind(key).execute(conn).await.map_err(storage("remove what has ended"))?;
    Ok(())
}

async fn forget_session(conn: &mut SqliteConnection, id: Ulid) -> Result<(), Error> {
    for sql in [
        "DELETE FROM lease WHERE session = ?1",
        "DELETE FROM ticket WHERE session = ?1",
        "DELETE FROM session WHERE id = ?1",
    ] {
        sqlx::query(sql).bind(blob(id)).execute(&mut *conn).await.map_err(storage("end a session"))?;
    }
    Ok(())
}

fn lease_of(row: &SqliteRow) -> Result<Lease, Error> {
    let read = || storage("read a lease");
    let broken_by: Option<String> = row.try_get("broken_by").map_err(read())?;
    let broken_reason: Option<String> = row.try_get("broken_reason").map_err(read())?;
    let hold_until_ms: Option<i64> = row.try_get("hold_until_ms").map_err(read())?;
    Ok(Lease {
        id: ulid_of(row, "id")?,
        token: FencingToken::from_sql(row.try_get("token").map_err(read())?)?,
        session: ulid_of(row, "session")?,
        keys: keys_of(row)?,
        mode: mode_of(row)?,
        info: info_of(row)?,
        since_ms: row.try_get("since_ms").map_err(read())?,
        ttl: Duration::from_millis(to_u64(row.try_get("ttl_ms").map_err(read())?, "time to live")?),
        deadline: deadline_of(row)?,
        hold_until_ms: hold_until_ms.map(|ms| to_u64(ms, "longest hold")).transpose()?,
        broken: broken_by.zip(broken_reason).map(|(by, reason)| Broken { by, reason }),
    })
}

fn ticket_of(row: &SqliteRow) -> Result<Ticket, Error> {
    let read = || storage("read a ticket");
    Ok(Ticket {
        number: to_u64(row.try_get("number").map_err(read())?, "ticket number")?,
        id: ulid_of(row, "id")?,
        session: ulid_of(row, "session")?,
        keys: keys_of(row)?,
        mode: mode_of(row)?,
        info: info_of(row)?,
        since_ms: row.try_get("since_ms").map_err(read())?,
        deadline: deadline_of(row)?,
    })
}

fn keys_of(row: &SqliteRow) -> Result<KeySet, Error> {
    let keys: &str = row.try_get("keys").map_err(storage("read keys"))?;
    serde_json::from_str(keys).map_err(|error| Error::Corrupt { what: "key list", detail: error.to_string() })
}

fn mode_of(row: &SqliteRow) -> Result<Mode, Error> {
    match row.try_get::<&str, _>("mode").map_err(storage("read a mode"))? {
        "exclusive" => Ok(Mode::Exclusive),
        "shared" => Ok(Mode::Shared),
        other => Err(Error::Corrupt { what: "lease mode", detail: other.to_owned() }),
    }
}

fn info_of(row: &SqliteRow) -> Result<LockInfo, Error> {
    let read = || storage("read a holder");
    Ok(LockInfo {
        actor: row.try_get("actor").map_err(read())?,
        purpose: row.try_get("purpose").map_err(read())?,
        origin: row.try_get("origin").map_err(read())?,
    })
}

fn deadline_of(row: &SqliteRow) -> Result<Deadline, Error> {
    let read = || storage("read a deadline");
    let boot: &[u8] = row.try_get("boot").map_err(read())?;
    let boot =
        boot.try_into().map_err(|_| Error::Corrupt { what: "boot id", detail: format!("{} bytes", boot.len()) })?;
    Ok(Deadline {
        boot: BootId::from_bytes(boot),
        boottime_ms: to_u64(row.try_get("deadline_ms").map_err(read())?, "deadline")?,
    })
}

fn ulid_of(row: &SqliteRow, column: &str) -> Result<Ulid, Error> {
    ulid(row.try_get(column).map_err(storage("read an id"))?)
}

fn ulid(bytes: &[u8]) -> Result<Ulid, Error> {
    let bytes =
        bytes.try_into().map_err(|_| Error::Corrupt { what: "id", detail: format!("{} bytes", bytes.len()) })?;
    Ok(Ulid::from_bytes(bytes))
}

fn blob(id: Ulid) -> Vec<u8> {
    id.to_bytes().to_vec()
}

/// Times and numbers beyond what SQLite stores are as good as "never".
fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_u64(number: i64, what: &'static str) -> Result<u64, Error> {
    u64::try_from(number).map_err(|_| Error::Corrupt { what, detail: number.to_string() })
}
