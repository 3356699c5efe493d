//! One transaction of operations whose statements go through the driver.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::{Connection, Sqlite, Transaction};
use tracing::Instrument;

use super::{After, End, GRACE, Operation, Ran, fail_all, judge_commit, millis, panic_message, within};
use crate::connection::{Guarded, Target};
use crate::driver::{extended_code, translate};
use crate::error::Error;
use crate::keys::KeyRing;
use crate::observe;
use crate::vitals::{self, Vitals};

/// Runs operations from the front of `waiting` in one transaction, until all are done or the transaction is gone.
pub(super) async fn transact(
    guarded: &mut Guarded,
    keys: &mut KeyRing,
    pages: &mut u64,
    waiting: &mut [Box<dyn Operation>],
    limit: Duration,
    target: &Target,
    vitals: &Vitals,
) -> End {
    let Guarded { conn, deadline, may_commit, rolled_back } = guarded;
    let mut tx = match conn.begin_with("BEGIN IMMEDIATE").await {
        Ok(tx) => tx,
        Err(error) => {
            let error = translate("begin a write", error);
            let link = After::failed_begin(&error, vitals);
            return End { ran: fail_all(waiting, &error), link };
        }
    };
    rolled_back.store(false, Ordering::Release);
    let (kind, grouped) = (vitals.kind(), waiting.len() > 1);
    let tight = target.space.as_ref().is_some_and(|space| space.is_tight());
    for at in 0..waiting.len() {
        let (done, rest) = waiting.split_at_mut(at);
        let Some(operation) = rest.first_mut() else { break };
        let started = Instant::now();
        deadline.set(limit);
        let allowed = target.pages_for(operation.cause().class(), tight);
        if allowed != *pages
            && let Ok(()) = target.limit_pages(&mut tx, allowed).await
        {
            *pages = allowed;
        }
        let span = observe::write_span(kind, operation.cause());
        let (ran, said) = run_one(&mut tx, keys, operation.as_mut(), grouped, limit, vitals).instrument(span).await;
        let damaged = said.as_ref().is_some_and(|error| vitals.note_damage(error));
        if deadline.passed() && !matches!(ran, Ran::Done) {
            operation.fail(Error::WriteDeadline { limit_ms: millis(limit) });
        }
        // What the others wrote would go with the file.
        let gone = damaged || matches!(ran, Ran::TransactionGone) || rolled_back.load(Ordering::Acquire);
        observe::ran(kind, operation.cause(), started.elapsed(), "write");
        if gone {
            if operation.succeeded() {
                operation.fail(Error::TransactionLost);
            }
            for other in done.iter_mut().filter(|other| other.succeeded()) {
                other.fail(Error::NotApplied);
            }
            drop(tx);
            return End { ran: at + 1, link: After::lost(said, vitals) };
        }
        deadline.clear();
    }
    let ran = waiting.len();
    if !waiting.iter().any(|operation| operation.succeeded()) {
        let link = if tx.rollback().await.is_ok() { After::Keep } else { After::Replace { check: false } };
        return End { ran, link };
    }
    may_commit.store(true, Ordering::Release);
    let committed = tx.commit().await;
    may_commit.store(false, Ordering::Release);
    match committed {
        Ok(()) => {
            vitals.note_commit();
            End { ran, link: After::Keep }
        }
        Err(error) => {
            let (verdict, link) = judge_commit(extended_code(&error), translate("commit", error), ran == 1);
            vitals.note_trouble(&verdict);
            for operation in waiting.iter_mut().filter(|operation| operation.succeeded()) {
                operation.fail(verdict.clone());
            }
            End { ran, link }
        }
    }
}

/// Runs one operation behind its savepoint; also tells what SQLite said last when it failed.
async fn run_one(
    tx: &mut Transaction<'_, Sqlite>,
    keys: &mut KeyRing,
    operation: &mut dyn Operation,
    grouped: bool,
    limit: Duration,
    vitals: &Vitals,
) -> (Ran, Option<Error>) {
    if grouped && let Err(error) = sqlx::query("SAVEPOINT nasnet_op").execute(&mut **tx).await {
        let error = translate("begin a write", error);
        operation.fail(error.clone());
        return (Ran::TransactionGone, Some(error));
    }
    let ended = guarded_run(tx, keys, operation, limit).await;
    let half_done = vitals.take_half_done();
    let succeeded = match ended {
        Some(true) if half_done => {
            operation.fail(Error::HalfDone);
            false
        }
        Some(succeeded) => succeeded,
        None => return (Ran::TransactionGone, None),
    };
    // Before anything else is run on the connection, which would forget it.
    let said = if succeeded { None } else { vitals::last_error(tx).await };
    if !grouped {
        return (if succeeded { Ran::Done } else { Ran::Undone }, said);
    }
    let end = if succeeded { "RELEASE nasnet_op" } else { "ROLLBACK TO nasnet_op; RELEASE nasnet_op" };
    match sqlx::raw_sql(end).execute(&mut **tx).await {
        Ok(_) if succeeded => (Ran::Done, None),
        Ok(_) => (Ran::Undone, said),
        Err(error) => (Ran::TransactionGone, said.or_else(|| Some(translate("end an operation", error)))),
    }
}

/// Runs an operation so that neither its panic nor its silence harms anybody else; `None` when it had to be given up
/// in the middle of a statement.
async fn guarded_run(
    tx: &mut Transaction<'_, Sqlite>,
    keys: &mut KeyRing,
    operation: &mut dyn Operation,
    limit: Duration,
) -> Option<bool> {
    if let Some(key) = operation.key()
        && let Err(error) = keys.record(tx, key).await
    {
        operation.fail(error);
        return Some(false);
    }
    let running = AssertUnwindSafe(async { operation.run(tx).await }).catch_unwind();
    match within(limit + GRACE, running).await {
        Some(Ok(succeeded)) => Some(succeeded),
        Some(Err(panic)) => {
            operation.fail(Error::Panicked { message: panic_message(panic.as_ref()) });
            Some(false)
        }
        None => {
            operation.fail(Error::WriteDeadline { limit_ms: millis(limit) });
            None
        }
    }
}
