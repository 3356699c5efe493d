//! One transaction of raw operations: the same rules as for the others, on the calling thread.

use std::ops::DerefMut;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{After, End, Ran, RawOperation, judge_commit, millis, panic_message};
use crate::connection::Target;
use crate::driver::{extended_code_raw, translate_raw};
use crate::error::Error;
use crate::observe;
use crate::raw::{Held, RawConn};
use crate::vitals::Vitals;

/// Begins the transaction. A database that another process writes to is [`Error::Busy`] at once.
pub(super) fn begin(held: &Held, only_reads: bool) -> Result<(), Error> {
    // A read never waits for another process that writes.
    let begin = if only_reads { "BEGIN" } else { "BEGIN IMMEDIATE" };
    step(held.conn(), begin).map_err(|error| translate_raw("begin a write", error))?;
    held.rolled_back.store(false, Ordering::Release);
    Ok(())
}

/// Moves what it can of the log into the file.
pub(super) fn move_log(held: &Held) -> Result<(), Error> {
    let moved = held.conn().prepare_cached("PRAGMA wal_checkpoint(PASSIVE)");
    moved
        .and_then(|mut statement| statement.query_row([], |_| Ok(())))
        .map_err(|error| translate_raw("checkpoint", error))
}

/// Runs operations from the front of `waiting` in the transaction that has begun, until all are done or it is gone, and
/// commits it.
pub(super) fn run<O>(
    held: &Held,
    pages: &mut u64,
    waiting: &mut [O],
    limit: Duration,
    target: &Target,
    vitals: &Vitals,
) -> End
where
    O: DerefMut<Target = dyn RawOperation>,
{
    let (kind, grouped) = (vitals.kind(), waiting.len() > 1);
    let _group = observe::group_span(kind, waiting.len()).entered();
    let tight = target.space.as_ref().is_some_and(|space| space.is_tight());
    for at in 0..waiting.len() {
        let (done, rest) = waiting.split_at_mut(at);
        let Some(operation) = rest.first_mut() else { break };
        let started = Instant::now();
        held.deadline.set(limit);
        let allowed = target.pages_for(operation.cause().class(), tight);
        if allowed != *pages && limit_pages(held.conn(), allowed) {
            *pages = allowed;
        }
        let (what, span) = match operation.only_reads() {
            true => ("read", observe::read_span(kind, operation.cause())),
            false => ("write", observe::write_span(kind, operation.cause())),
        };
        let (ran, said) = span.in_scope(|| run_one(held.conn(), &mut **operation, grouped));
        let damaged = said.as_ref().is_some_and(|error| vitals.note_damage(error));
        if held.deadline.passed() && !matches!(ran, Ran::Done) {
            operation.fail(Error::WriteDeadline { limit_ms: millis(limit) });
        }
        // What the others wrote would go with the file.
        let gone = damaged || matches!(ran, Ran::TransactionGone) || held.rolled_back.load(Ordering::Acquire);
        observe::ran(kind, operation.cause(), started.elapsed(), what);
        if gone {
            if operation.succeeded() {
                operation.fail(Error::TransactionLost);
            }
            for other in done.iter_mut().filter(|other| other.succeeded()) {
                other.fail(Error::NotApplied);
            }
            return End { ran: at + 1, link: After::lost(said, vitals) };
        }
        held.deadline.clear();
    }
    let ran = waiting.len();
    if !waiting.iter().any(|operation| operation.succeeded()) {
        let link = if step(held.conn(), "ROLLBACK").is_ok() { After::Keep } else { After::Replace { check: false } };
        return End { ran, link };
    }
    held.may_commit.store(true, Ordering::Release);
    let committed = step(held.conn(), "COMMIT");
    held.may_commit.store(false, Ordering::Release);
    match committed {
        Ok(()) => {
            if waiting.iter().any(|operation| !operation.only_reads()) {
                vitals.note_commit();
            }
            End { ran, link: After::Keep }
        }
        Err(error) => {
            let (verdict, link) = judge_commit(extended_code_raw(&error), translate_raw("commit", error), ran == 1);
            vitals.note_trouble(&verdict);
            for operation in waiting.iter_mut().filter(|operation| operation.succeeded()) {
                operation.fail(verdict.clone());
            }
            End { ran, link }
        }
    }
}

/// Runs an operation so that its panic harms nobody else; also tells what SQLite said last when it failed.
fn run_one(conn: &Connection, operation: &mut dyn RawOperation, grouped: bool) -> (Ran, Option<Error>) {
    if grouped && let Err(error) = step(conn, "SAVEPOINT nasnet_op") {
        let error = translate_raw("begin a write", error);
        operation.fail(error.clone());
        return (Ran::TransactionGone, Some(error));
    }
    let mut raw = RawConn::new(conn, operation.only_reads());
    let succeeded = match std::panic::catch_unwind(AssertUnwindSafe(|| operation.run(&mut raw))) {
        Ok(succeeded) => succeeded,
        Err(panic) => {
            operation.fail(Error::Panicked { message: panic_message(panic.as_ref()) });
            false
        }
    };
    // Operations return errors of their own types, in which that of SQLite may be hidden.
    let said = if succeeded { None } else { raw.into_last_error() };
    if conn.is_autocommit() {
        return (Ran::TransactionGone, said);
    }
    if grouped
        && (!succeeded && step(conn, "ROLLBACK TO nasnet_op").is_err() || step(conn, "RELEASE nasnet_op").is_err())
    {
        return (Ran::TransactionGone, said);
    }
    (if succeeded { Ran::Done } else { Ran::Undone }, said)
}

/// Runs a statement without values or rows.
fn step(conn: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.raw_execute().map(|_| ())
}

/// Bounds the growth of the file. One that cannot be bounded goes on under its old bound, as long as that is known.
fn limit_pages(conn: &Connection, pages: u64) -> bool {
    // A file that is larger already keeps its size.
    conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
        .is_ok_and(|got| u64::try_from(got).is_ok_and(|got| got >= pages && got < u64::from(u32::MAX - 1)))
}
