//! The lease table of several nodes: a PostgreSQL database.
//!
//! Changes are made by one transaction at a time among all nodes (an advisory lock), so it is all-or-nothing and decided by
//! the rules of [`crate::lease`] like the embedded one. The clock is the server's, told inside the transaction. A session
//! is an advisory lock held by a connection; the server drops it when that ends, which proves the session dead.

mod clock;
mod line;
mod migrate;
mod rows;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nasnet_dbmanager::{Clock, Now, SystemClock, UlidGen};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::key::KeySet;
use crate::lease::{Broken, Deadline, Lease, Obstacle, Verdict};
use crate::store::postgres::clock::{ServerClock, at};
use crate::store::postgres::line::Line;
use crate::store::postgres::rows::{Found, SessionId, bytes, change, tell_freed};
use crate::store::postgres::session::Sessions;
use crate::store::row::to_i64;
use crate::store::{LeaseStore, Queue, Queued, Request, Table};
use crate::token::FencingToken;

pub(crate) use migrate::migrate;
pub(crate) use rows::{paths, paths_with_ancestors};
pub(crate) use session::Life;

/// How often deaths and expiry are looked for; whatever is released or broken is told at once.
const TICK: Duration = Duration::from_millis(25);

/// The store of one node beside others.
#[derive(Debug)]
pub(crate) struct PostgresStore {
    /// Changes, in the order they were asked for.
    changes: Line,
    looks: Line,
    sessions: Sessions,
    /// Keeps two requests from beginning a session each.
    beginning: tokio::sync::Mutex<()>,
    clock: Arc<ServerClock>,
    ids: UlidGen,
    delay: Duration,
}

/// The answer to one attempt.
enum Attempt {
    Granted(Box<Lease>),
    Blocked(Box<Obstacle>, Option<u64>),
    /// The server dropped the session.
    SessionEnded,
}

impl PostgresStore {
    /// Migrates the database, begins a session and removes what no live session holds.
    pub(crate) async fn begin(
        connect: &PgConnectOptions,
        delay: Duration,
        freed: Arc<tokio::sync::Notify>,
    ) -> Result<(Self, Life), Error> {
        let mut conn = connect.connect().await.map_err(failed("connect to the lease store"))?;
        migrate(&mut conn).await?;
        drop(conn);
        let clock = Arc::new(ServerClock::new());
        let ids = UlidGen::new(None);
        let id = SessionId(ids.next(&SystemClock.now()));
        let (sessions, life) = Sessions::begin(connect.clone(), freed, id).await?;
        let store = Self {
            changes: Line::alone(connect.clone(), Arc::clone(&clock)),
            looks: Line::reading(connect.clone(), Arc::clone(&clock)),
            sessions,
            beginning: tokio::sync::Mutex::default(),
            clock,
            ids,
            delay,
        };
        store.changes.run(|conn, now_ms| Box::pin(sweep(conn, now_ms))).await?;
        Ok((store, life))
    }

    async fn begin_another(&self, lost: SessionId) -> Result<(), Error> {
        let _alone = self.beginning.lock().await;
        self.sessions.begin_another(lost, SessionId(self.next_id())).await
    }

    async fn attempt_in(&self, session: SessionId, request: &Request, queue: Queue) -> Result<Attempt, Error> {
        let (request, delay) = (request.clone(), self.delay);
        self.changes
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let ticket = if let Queue::Keep(number) = queue { Some(number) } else { None };
                    match rows::judge(conn, &request, ticket, delay, now_ms).await? {
                        Verdict::Grant { leases, tickets } => {
                            // The grant comes last: after a token is drawn nothing but the commit can fail.
                            remove(conn, leases, tickets.into_iter().chain(ticket).collect()).await?;
                            let granted = rows::grant(conn, &request, session, now_ms).await?;
                            Ok(granted.map_or(Attempt::SessionEnded, |lease| Attempt::Granted(Box::new(lease))))
                        }
                        Verdict::Blocked(obstacle) => {
                            let ticket = match queue {
                                Queue::Join(deadline) => {
                                    let drawn = rows::draw_ticket(conn, &request, session, deadline, now_ms).await?;
                                    if drawn.is_none() {
                                        return Ok(Attempt::SessionEnded);
                                    }
                                    drawn
                                }
                                Queue::Stay | Queue::Keep(_) => ticket,
                            };
                            Ok(Attempt::Blocked(obstacle, ticket))
                        }
                    }
                })
            })
            .await
    }
}

#[async_trait]
impl LeaseStore for PostgresStore {
    fn session(&self) -> Ulid {
        self.sessions.id().0
    }

    fn fleet(&self) -> Option<Ulid> {
        None
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn next_id(&self) -> Ulid {
        self.ids.next(&SystemClock.now())
    }

    fn tick(&self) -> Duration {
        TICK
    }

    /// Every key may be granted: the registry of routers is not here.
    async fn check_keys(&self, _keys: &KeySet) -> Result<(), Error> {
        Ok(())
    }

    async fn attempt(&self, request: &Request, queue: Queue) -> Result<Result<Lease, Queued>, Error> {
        loop {
            let session = self.sessions.id();
            let lost = self.sessions.is_lost();
            let answer = if lost { Attempt::SessionEnded } else { self.attempt_in(session, request, queue).await? };
            match answer {
                Attempt::Granted(lease) => return Ok(Ok(*lease)),
                Attempt::Blocked(obstacle, ticket) => return Ok(Err((obstacle, ticket))),
                // The place in the queue has gone with the session.
                Attempt::SessionEnded if matches!(queue, Queue::Keep(_)) => return Err(Error::SessionEnded),
                Attempt::SessionEnded => self.begin_another(session).await?,
            }
        }
    }

    async fn look(&self, request: &Request, ticket: u64) -> Result<Verdict, Error> {
        if self.sessions.is_lost() {
            return Err(Error::SessionEnded);
        }
        let (request, delay) = (request.clone(), self.delay);
        self.looks
            .run(move |conn, now_ms| {
                Box::pin(async move { rows::judge(conn, &request, Some(ticket), delay, now_ms).await })
            })
            .await
    }

    async fn renew(&self, id: Ulid, token: FencingToken) -> Result<Result<Deadline, LostReason>, Error> {
        const EXTEND: &str = "UPDATE nasnet_lock_lease SET deadline_ms = $2 WHERE token = $1";
        self.changes
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let found = rows::load(conn, id).await?.filter(|found| found.value.token == token);
                    if let Err(why) = standing(found.as_ref(), now_ms) {
                        return Ok(Err(why));
                    }
                    let deadline = match found.map_or(Err(LostReason::Ended), |found| found.value.renewal(&at(now_ms)))
                    {
                        Ok(deadline) => deadline,
                        Err(why) => return Ok(Err(why)),
                    };
                    sqlx::query(EXTEND)
                        .bind(token.to_sql())
                        .bind(to_i64(deadline.boottime_ms))
                        .execute(conn)
                        .await
                        .map_err(failed("renew a lease"))?;
                    Ok(Ok(deadline))
                })
            })
            .await
    }

    async fn release(&self, id: Ulid) -> Result<Result<(), LostReason>, Error> {
        const LEASE: &str = "DELETE FROM nasnet_lock_lease WHERE id = $1";
        const TICKET: &str = "DELETE FROM nasnet_lock_ticket WHERE id = $1";
        self.changes
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let found = rows::load(conn, id).await?;
                    let gone = match found {
                        Some(_) => change(conn, "release a lease", LEASE, bytes(id)).await?,
                        None => change(conn, "give up a ticket", TICKET, bytes(id)).await?,
                    };
                    if gone > 0 {
                        tell_freed(conn).await?;
                    }
                    Ok(standing(found.as_ref(), now_ms))
                })
            })
            .await
    }

    async fn standing(&self, id: Ulid, token: FencingToken) -> Result<Result<(), LostReason>, Error> {
        self.looks
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let found = rows::load(conn, id).await?.filter(|found| found.value.token == token);
                    Ok(standing(found.as_ref(), now_ms))
                })
            })
            .await
    }

    async fn lost(&self, held: &[Ulid]) -> Result<Vec<(Ulid, LostReason)>, Error> {
        let held = held.to_vec();
        self.looks
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let found = rows::load_these(conn, &held).await?;
                    let lost = |id: Ulid| {
                        let found = found.iter().find(|found| found.value.id == id);
                        Some((id, standing(found, now_ms).err()?))
                    };
                    Ok(held.iter().copied().filter_map(lost).collect())
                })
            })
            .await
    }

    async fn table(&self) -> Result<Table, Error> {
        self.looks
            .run(|conn, now_ms| {
                Box::pin(async move {
                    let (leases, tickets) = rows::load_all(conn).await?;
                    let now = at(now_ms);
                    let leases = leases.into_iter().map(|found| {
                        let standing = standing(Some(&found), now_ms);
                        (found.value, standing)
                    });
                    let tickets = tickets.into_iter().filter(|found| found.value.stands(&now, |_| found.dead));
                    Ok(Table { leases: leases.collect(), tickets: tickets.map(|found| found.value).collect(), now })
                })
            })
            .await
    }

    /// Table `nasnet_lock_break` tells who did it and why, in the transaction that does it.
    async fn break_lease(
        &self,
        id: Ulid,
        token: FencingToken,
        broken: Broken,
    ) -> Result<Result<Lease, StaleView>, Error> {
        const BREAK: &str = "
            UPDATE nasnet_lock_lease SET broken_by = $2, broken_reason = $3, deadline_ms = $4 WHERE token = $1";
        const RECORD: &str = "
            INSERT INTO nasnet_lock_break (lease, token, keys, holder, broken_by, reason)
            VALUES ($1, $2, $3, $4, $5, $6)";
        self.changes
            .run(move |conn, now_ms| {
                Box::pin(async move {
                    let fail = || failed("break a lease");
                    let found = rows::load(conn, id).await?;
                    let stands =
                        |found: &&Found<Lease>| found.value.token == token && standing(Some(found), now_ms).is_ok();
                    let Some(lease) = found.as_ref().filter(stands).map(|found| found.value.clone()) else {
                        return Ok(Err(StaleView::of(found.as_ref().map(|found| &found.value), token)));
                    };
                    sqlx::query(BREAK)
                        .bind(token.to_sql())
                        .bind(&broken.by)
                        .bind(&broken.reason)
                        .bind(to_i64(now_ms))
                        .execute(&mut *conn)
                        .await
                        .map_err(fail())?;
                    sqlx::query(RECORD)
                        .bind(bytes(id))
                        .bind(token.to_sql())
                        .bind(paths(&lease.keys))
                        .bind(&lease.info.actor)
                        .bind(&broken.by)
                        .bind(&broken.reason)
                        .execute(&mut *conn)
                        .await
                        .map_err(fail())?;
                    // As in the embedded store the next token is no neighbour of the broken one.
                    sqlx::query("SELECT nextval('nasnet_lock_token')").execute(&mut *conn).await.map_err(fail())?;
                    tell_freed(conn).await?;
                    Ok(Ok(Lease { broken: Some(broken), ..lease }))
                })
            })
            .await
    }

    async fn end_session(&self) -> Result<(), Error> {
        let own = self.sessions.id();
        self.changes
            .run(move |conn, _| {
                Box::pin(async move {
                    for sql in [
                        "DELETE FROM nasnet_lock_lease WHERE session = $1",
                        "DELETE FROM nasnet_lock_ticket WHERE session = $1",
                    ] {
                        change(conn, "end a session", sql, bytes(own.0)).await?;
                    }
                    tell_freed(conn).await
                })
            })
            .await
    }
}

/// Tells how a lease stands that was found, or was not.
fn standing(found: Option<&Found<Lease>>, now_ms: u64) -> Result<(), LostReason> {
    let found = found.ok_or(LostReason::Ended)?;
    found.value.standing(&at(now_ms), |_| found.dead)
}

async fn remove(conn: &mut PgConnection, leases: Vec<FencingToken>, tickets: Vec<u64>) -> Result<(), Error> {
    if !leases.is_empty() {
        let tokens: Vec<i64> = leases.into_iter().map(FencingToken::to_sql).collect();
        change(conn, "remove what has ended", "DELETE FROM nasnet_lock_lease WHERE token = ANY($1)", tokens).await?;
    }
    if !tickets.is_empty() {
        let numbers: Vec<i64> = tickets.into_iter().map(to_i64).collect();
        change(conn, "remove what has ended", "DELETE FROM nasnet_lock_ticket WHERE number = ANY($1)", numbers).await?;
    }
    Ok(())
}

/// Removes what dead sessions left and the tickets whose time is over.
async fn sweep(conn: &mut PgConnection, now_ms: u64) -> Result<(), Error> {
    let fail = || failed("sweep dead sessions");
    for sql in [
        "DELETE FROM nasnet_lock_lease WHERE pg_try_advisory_xact_lock_shared(session_lock)",
        "DELETE FROM nasnet_lock_ticket WHERE pg_try_advisory_xact_lock_shared(session_lock)",
    ] {
        sqlx::query(sql).execute(&mut *conn).await.map_err(fail())?;
    }
    let late = "DELETE FROM nasnet_lock_ticket WHERE deadline_ms <= $1";
    change(conn, "sweep dead sessions", late, to_i64(now_ms)).await?;
    Ok(())
}

/// Names the operation in which PostgreSQL failed.
pub(crate) fn failed(operation: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Postgres { operation, source }
}
