//! The lease table of one machine: `locks.db` on tmpfs, shared by its processes.
//!
//! Every change is one raw write op, so it is all-or-nothing. A request that nobody stands in the way of is granted by a
//! few searches and inserts; for any other, the rows that overlap it are loaded and the pure rules of [`crate::lease`] decide.

#[cfg(test)]
mod plans;
mod rows;

use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Now, RawConn};
use ulid::Ulid;

use crate::error::{Error, LostReason, StaleView};
use crate::lease::{self, Broken, Deadline, Lease, Obstacle, Ticket, Verdict, Want};
use crate::session::Sessions;
use crate::store::row::{to_i64, to_u64, ulid};
pub(crate) use crate::store::{Queue, Request};
use crate::token::FencingToken;

const ACQUIRE: Cause = Cause::new("lease-acquire");
const RENEW: Cause = Cause::new("lease-renew");
const RELEASE: Cause = Cause::new("lease-release");
const BREAK: Cause = Cause::new("lease-break");
const SESSION: Cause = Cause::new("lock-session");
const LOOK: Cause = Cause::new("lease-look");

const ADD_BLOCK: &str = "
INSERT INTO next_token (id, next, block_end) VALUES (1, ?1, ?2)
ON CONFLICT (id) DO UPDATE SET next = excluded.next, block_end = excluded.block_end
WHERE next_token.next >= next_token.block_end AND excluded.next >= next_token.block_end";
const USED_UP: &str = "SELECT block_end FROM next_token WHERE id = 1 AND next >= block_end";

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
        const BEGIN: &str = "INSERT INTO session (id, boot, opened_ms) VALUES (?1, ?2, ?3)";
        let store = self.clone();
        self.db
            .write_raw(SESSION, move |raw| {
                let own = store.own.to_bytes();
                raw.execute(BEGIN, &[(&own).into(), now.boot.as_bytes().as_slice().into(), now.wall_ms.into()])?;
                store.sweep(raw, &now)
            })
            .await
    }

    /// Removes everything the session left.
    pub(crate) async fn end_session(&self) -> Result<(), Error> {
        let own = self.own;
        self.db.write_raw(SESSION, move |raw| forget_session(raw, own)).await
    }

    fn sweep(&self, raw: &mut RawConn<'_>, now: &Now) -> Result<(), Error> {
        for sql in [
            "DELETE FROM lease_key WHERE (session, id) IN (SELECT session, id FROM lease WHERE boot != ?1)",
            "DELETE FROM lease WHERE boot != ?1",
            "DELETE FROM ticket WHERE boot != ?1",
            "DELETE FROM session WHERE boot != ?1",
        ] {
            raw.execute(sql, &[now.boot.as_bytes().as_slice().into()])?;
        }
        raw.execute("DELETE FROM ticket WHERE deadline_ms <= ?1", &[to_i64(now.boottime_ms).into()])?;
        let known = "SELECT id FROM session UNION SELECT session FROM lease";
        for id in raw.query_all(known, &[], |row| ulid(row.get(0)?))? {
            if id != self.own && self.sessions.is_dead(id) {
                forget_session(raw, id)?;
            }
        }
        Ok(())
    }

    /// Tries to grant a request.
    pub(crate) async fn attempt(&self, request: Request, queue: Queue, now: Now) -> Result<Attempt, Error> {
        let store = self.clone();
        self.db.write_raw(ACQUIRE, move |raw| store.attempt_in(raw, &request, queue, &now)).await
    }

    fn attempt_in(&self, raw: &mut RawConn<'_>, request: &Request, queue: Queue, now: &Now) -> Result<Attempt, Error> {
        if matches!(queue, Queue::Stay | Queue::Join(_)) && rows::is_alone(raw, &request.keys)? {
            return self.grant(raw, request, now);
        }
        let ticket = if let Queue::Keep(number) = queue { Some(number) } else { None };
        let (verdict, found) = self.judge(raw, request, ticket, now)?;
        match verdict {
            Verdict::Grant { leases, tickets } => {
                // First the grant: without a token nothing has been changed.
                let attempt = self.grant(raw, request, now)?;
                if matches!(attempt, Attempt::Granted(_)) {
                    for ended in found.iter().filter(|lease| leases.contains(&lease.token)) {
                        rows::remove(raw, ended)?;
                    }
                    for number in tickets.into_iter().chain(ticket) {
                        raw.execute(rows::REMOVE_TICKET, &[to_i64(number).into()])?;
                    }
                }
                Ok(attempt)
            }
            Verdict::Blocked(obstacle) => {
                let ticket = match queue {
                    Queue::Join(deadline) => Some(rows::draw_ticket(raw, request, self.own, deadline, now.wall_ms)?),
                    Queue::Stay | Queue::Keep(_) => ticket,
                };
                Ok(Attempt::Blocked { obstacle, ticket })
            }
        }
    }

    fn grant(&self, raw: &mut RawConn<'_>, request: &Request, now: &Now) -> Result<Attempt, Error> {
        let Some(token) = rows::next_token(raw)? else { return Ok(Attempt::NoTokens) };
        let lease = request.granted(token, self.own, now);
        rows::store(raw, &lease)?;
        Ok(Attempt::Granted(Box::new(lease)))
    }

    fn judge(
        &self,
        raw: &mut RawConn<'_>,
        request: &Request,
        ticket: Option<u64>,
        now: &Now,
    ) -> Result<(Verdict, Vec<Lease>), Error> {
        let (leases, tickets) = rows::related(raw, &request.keys)?;
        let want = Want { keys: &request.keys, mode: request.mode, ticket };
        let verdict = lease::judge(want, &leases, &tickets, now, self.delay, self.sessions.probe(self.own));
        Ok((verdict, leases))
    }

    /// Looks at what is in the way of a waiting request without taking the write lock.
    pub(crate) async fn look(&self, request: Request, ticket: u64, now: Now) -> Result<Verdict, Error> {
        let store = self.clone();
        self.db.read_raw(LOOK, move |raw| Ok(store.judge(raw, &request, Some(ticket), &now)?.0)).await
    }

    /// Installs a block of tokens reserved in system.db, unless another process was quicker. A block below tokens this
    /// `locks.db` has handed out is refused, since tokens only grow: the number to start above is returned.
    pub(crate) async fn add_block(&self, first: u64, count: u64) -> Result<Option<u64>, Error> {
        let (first, end) = (to_i64(first.max(1)), to_i64(first.saturating_add(count)));
        self.db
            .write_raw(ACQUIRE, move |raw| {
                raw.execute(ADD_BLOCK, &[first.into(), end.into()])?;
                raw.query_optional(USED_UP, &[], |row| to_u64(row.get(0)?, "block of tokens"))
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
        let own = self.own;
        self.db
            .write_raw(RENEW, move |raw| {
                let Some(lease) = rows::lease(raw, own, id)?.filter(|lease| lease.token == token) else {
                    return Ok(Err(LostReason::Ended));
                };
                let deadline = match lease.renewal(&now) {
                    Ok(deadline) => deadline,
                    Err(why) => return Ok(Err(why)),
                };
                let (session, id) = (own.to_bytes(), id.to_bytes());
                raw.execute(rows::EXTEND, &[(&session).into(), (&id).into(), to_i64(deadline.boottime_ms).into()])?;
                Ok(Ok(deadline))
            })
            .await
    }

    /// Removes a lease of this session, or the ticket of a request that gave up, and tells whether the lease still stood.
    pub(crate) async fn release(&self, id: Ulid, now: Now) -> Result<Result<(), LostReason>, Error> {
        let own = self.own;
        self.db
            .write_raw(RELEASE, move |raw| match rows::lease(raw, own, id)? {
                Some(lease) => {
                    rows::remove(raw, &lease)?;
                    Ok(lease.standing(&now, |_| false))
                }
                None => {
                    raw.execute(rows::GIVE_TICKET_UP, &[(&id.to_bytes()).into()])?;
                    Ok(Err(LostReason::Ended))
                }
            })
            .await
    }

    /// Tells whether a lease of this session still stands.
    pub(crate) async fn standing(
        &self,
        id: Ulid,
        token: FencingToken,
        now: Now,
    ) -> Result<Result<(), LostReason>, Error> {
        let own = self.own;
        self.db
            .read_raw(LOOK, move |raw| {
                let lease = rows::lease(raw, own, id)?.filter(|lease| lease.token == token);
                Ok(lease.map_or(Err(LostReason::Ended), |lease| lease.standing(&now, |_| false)))
            })
            .await
    }

    /// Loads the leases of this session.
    pub(crate) async fn own_leases(&self) -> Result<Vec<Lease>, Error> {
        let own = self.own;
        self.db
            .read_raw(LOOK, move |raw| {
                raw.query_all(rows::LEASES_OF_SESSION, &[(&own.to_bytes()).into()], rows::lease_of)
            })
            .await
    }

    /// Tells what has become of a lease of anybody if it does not stand under this token any more.
    pub(crate) async fn stale_view(&self, id: Ulid, token: FencingToken, now: Now) -> Result<Option<StaleView>, Error> {
        self.db
            .read_raw(LOOK, move |raw| {
                let found = rows::lease_of_anybody(raw, id)?;
                let stands = found.as_ref().is_some_and(|lease| stands_under(lease, token, &now));
                Ok((!stands).then(|| StaleView::of(found.as_ref(), token)))
            })
            .await
    }

    /// Loads the whole table.
    pub(crate) async fn all(&self) -> Result<(Vec<Lease>, Vec<Ticket>), Error> {
        self.db
            .read_raw(LOOK, |raw| {
                Ok((
                    raw.query_all(rows::LEASES, &[], rows::lease_of)?,
                    raw.query_all(rows::TICKETS, &[], rows::ticket_of)?,
                ))
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
            .write_raw(BREAK, move |raw| {
                let found = rows::lease_of_anybody(raw, id)?;
                let Some(lease) = found.clone().filter(|lease| stands_under(lease, token, &now)) else {
                    return Ok(Err(StaleView::of(found.as_ref(), token)));
                };
                raw.execute(
                    rows::BREAK,
                    &[
                        (&lease.session.to_bytes()).into(),
                        (&id.to_bytes()).into(),
                        broken.by.as_str().into(),
                        broken.reason.as_str().into(),
                        to_i64(now.boottime_ms).into(),
                    ],
                )?;
                raw.execute(rows::TAKE_TOKEN, &[])?;
                Ok(Ok(Lease { broken: Some(broken), ..lease }))
            })
            .await
    }
}

fn stands_under(lease: &Lease, token: FencingToken, now: &Now) -> bool {
    lease.token == token && lease.standing(now, |_| false).is_ok()
}

/// Removes what a session left without looking at it, so that nothing unreadable keeps it here.
fn forget_session(raw: &mut RawConn<'_>, id: Ulid) -> Result<(), Error> {
    for sql in [
        "DELETE FROM lease_key WHERE session = ?1",
        "DELETE FROM lease WHERE session = ?1",
        "DELETE FROM ticket WHERE session = ?1",
        "DELETE FROM session WHERE id = ?1",
    ] {
        raw.execute(sql, &[(&id.to_bytes()).into()])?;
    }
    Ok(())
}
