//! The calls under test, and what their answers mean.

use nasnet_dbmanager::{DbManager, Error, KeyOutcome, Manifest, NewRouter, RestoreMode, RouterDb, RouterId, Which};
use sqlx::SqliteConnection;

use super::Bench;
use crate::Failure;
use crate::fleet;

/// A public call that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    WriteKeyed,
    Grouped,
    /// A group one operation of which wants more room than there is.
    GroupWithFull,
    /// A group one operation of which is interrupted.
    GroupWithInterrupt,
    Checkpoint,
    Counter,
    Secret,
    Setting,
    CreateRouter,
    CreateRouters,
    Reopen,
    Migrate,
    MigrateAll,
    Backup,
    BackupFleet,
    Restore,
    UndoRestore,
    Retire,
    Reinstate,
    RestoreSystem,
}

impl Call {
    pub(super) const ALL: [Self; 20] = [
        Self::WriteKeyed,
        Self::Grouped,
        Self::GroupWithFull,
        Self::GroupWithInterrupt,
        Self::Checkpoint,
        Self::Counter,
        Self::Secret,
        Self::Setting,
        Self::CreateRouter,
        Self::CreateRouters,
        Self::Reopen,
        Self::Migrate,
        Self::MigrateAll,
        Self::Backup,
        Self::BackupFleet,
        Self::Restore,
        Self::UndoRestore,
        Self::Retire,
        Self::Reinstate,
        Self::RestoreSystem,
    ];

    /// Whether it moves the directory of the router.
    pub(super) fn is_custody(self) -> bool {
        matches!(self, Self::Restore | Self::UndoRestore | Self::Retire | Self::Reinstate)
    }
}

/// What an operation of a group does besides its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misfortune {
    None,
    Full,
    Interrupt,
}

/// Makes the call and notes what it must have done; returns what is wrong with its answer.
pub(super) async fn make(bench: &mut Bench, call: Call) -> Result<Option<String>, Failure> {
    let id = fleet::router_id()?;
    match call {
        Call::WriteKeyed => {
            bench.tried += 1;
            let number = bench.tried;
            let router = match bench.router().await {
                Ok(router) => router,
                Err(error) => return Ok(untyped(Some(error))),
            };
            let answer = fleet::write_group(&router, number).await;
            Ok(settle(bench, &router, number, answer).await)
        }
        Call::Grouped => group(bench, Misfortune::None).await,
        Call::GroupWithFull => group(bench, Misfortune::Full).await,
        Call::GroupWithInterrupt => group(bench, Misfortune::Interrupt).await,
        Call::Checkpoint => {
            let done = async { bench.router().await?.checkpoint().await };
            Ok(untyped(done.await.err()))
        }
        Call::Counter => match bench.db.system().counters().reserve("soak", 10).await {
            Ok(first) if first <= bench.counter => {
                Ok(Some(format!("counter gave {first} again, after {}", bench.counter)))
            }
            Ok(first) => {
                bench.counter = first + 9;
                Ok(None)
            }
            Err(error) => Ok(untyped(Some(error))),
        },
        Call::Secret => Ok(untyped(bench.db.system().secrets().put(&id, "password", b"secret").await.err())),
        Call::Setting => {
            let value = serde_json::json!({ "tried": bench.tried });
            Ok(untyped(bench.db.system().settings().put("soak", "tried", &value, 1).await.err()))
        }
        Call::CreateRouter => create_routers(bench, 1).await,
        Call::CreateRouters => create_routers(bench, 3).await,
        Call::Reopen => {
            bench.db.shutdown().await.ok();
            open_twice(bench, None).await
        }
        Call::Migrate => open_twice(bench, None).await,
        Call::MigrateAll => {
            let report = match bench.db.migrate_all(2).await {
                Ok(report) => report,
                Err(error) => return Ok(untyped(Some(error))),
            };
            Ok(untyped(report.failures().next().map(|(_, error)| error.clone())))
        }
        Call::Backup => back_up(bench, Which::Router(id)).await,
        Call::BackupFleet => back_up(bench, Which::Fleet).await,
        Call::Restore => {
            let answer = bench.db.restore(&bench.backup, RestoreMode::Router(id)).await.map(|_| ());
            let backed_up = bench.backed_up.clone();
            Ok(moved(bench, backed_up, answer))
        }
        Call::UndoRestore => {
            // Before the call the router is what the backup holds.
            let (now, before) = (bench.backed_up.clone(), std::mem::take(&mut bench.there));
            bench.there = now;
            let safety = bench.safety.take().unwrap_or_default();
            let answer = bench.db.undo_restore(&id, &safety).await.map(|_| ());
            Ok(moved(bench, before, answer))
        }
        Call::Retire => Ok(untyped(bench.db.retire(&id).await.err())),
        Call::Reinstate => Ok(untyped(bench.db.reinstate(&id).await.err())),
        Call::RestoreSystem => {
            let answer = DbManager::restore_system(&bench.options(), &bench.system_backup).await;
            open_twice(bench, answer.err()).await
        }
    }
}

/// Notes what a call that replaces the router has left there.
fn moved(bench: &mut Bench, to: Vec<u64>, answer: Result<(), Error>) -> Option<String> {
    match answer {
        Ok(()) => {
            bench.there = to;
            None
        }
        Err(error) => {
            bench.instead = Some(to);
            untyped(Some(error))
        }
    }
}

/// Opens the fleet; the fault strikes once, so that opening again works.
async fn open_twice(bench: &mut Bench, first: Option<Error>) -> Result<Option<String>, Failure> {
    let answer = match bench.open().await {
        Ok(()) => first,
        Err(error) => {
            if let Err(again) = bench.open().await {
                return Ok(Some(format!("opening fails with {error}, and again with {again}")));
            }
            Some(error)
        }
    };
    Ok(untyped(answer))
}

/// Creates routers, one as the call for one does and more in one call.
async fn create_routers(bench: &mut Bench, count: u64) -> Result<Option<String>, Failure> {
    let mut new = Vec::new();
    for _ in 0..count {
        bench.routers += 1;
        let id = RouterId::parse(&format!("made-{}", bench.routers))?;
        new.push(NewRouter::new(id).host("192.0.2.2"));
    }
    let answers: Vec<_> = match &new[..] {
        [one] => vec![bench.db.create_router(one.clone()).await.map(|_| ())],
        _ => {
            let report = bench.db.create_routers(new.iter().cloned()).await;
            report.routers.into_iter().map(|(_, answer)| answer.map(|_| ())).collect()
        }
    };
    for (new, answer) in new.iter().zip(answers) {
        let answered = answer.is_ok();
        let wrong = untyped(answer.err());
        if wrong.is_some() {
            return Ok(wrong);
        }
        // Whatever it answered, the same id works or is taken.
        let wrong = match bench.db.create_router(new.clone()).await {
            Ok(_) if answered => Some(format!("{} was created twice", new.id())),
            Ok(_) | Err(Error::RouterExists { .. }) => None,
            // The fault may strike only now.
            Err(error) => untyped(Some(error)),
        };
        if wrong.is_some() {
            return Ok(wrong);
        }
    }
    Ok(None)
}

/// What has the name of a backup afterwards is one.
async fn back_up(bench: &mut Bench, which: Which) -> Result<Option<String>, Failure> {
    let made = bench.made();
    let wrong = match bench.db.backup(which, &made).await {
        Ok(manifest) if !manifest.dir.exists() => Some(format!("{} is not there", manifest.dir.display())),
        // In a backup of the fleet the fault may have met one router.
        Ok(_) => None,
        Err(error) => untyped(Some(error)),
    };
    if wrong.is_some() {
        return Ok(wrong);
    }
    for entry in std::fs::read_dir(&made).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let verified = async { bench.db.verify_backup(&Manifest::read(entry.path())?).await };
        let first = verified.await;
        // The fault may strike only now.
        if first.is_err()
            && let Err(error) = async { bench.db.verify_backup(&Manifest::read(entry.path())?).await }.await
        {
            return Ok(Some(format!("{} is no backup: {error}", entry.path().display())));
        }
    }
    Ok(None)
}

async fn unlucky(conn: &mut SqliteConnection, misfortune: Misfortune) -> Result<(), Error> {
    match misfortune {
        Misfortune::None => Ok(()),
        Misfortune::Full => {
            let more = "INSERT INTO soak (number, part, body) VALUES (0, 0, zeroblob(2000000))";
            sqlx::query(more).execute(conn).await?;
            Ok(())
        }
        Misfortune::Interrupt => {
            let interrupt = |error: sqlx::Error| Error::Storage { operation: "interrupt", source: error.into() };
            conn.lock_handle().await.map_err(interrupt)?.set_progress_handler(1, || false);
            let done = sqlx::query("UPDATE soak SET body = zeroblob(9)").execute(&mut *conn).await;
            conn.lock_handle().await.map_err(interrupt)?.remove_progress_handler();
            done?;
            Ok(())
        }
    }
}

/// Four operations that share a commit, the third with a misfortune of its own.
async fn group(bench: &mut Bench, misfortune: Misfortune) -> Result<Option<String>, Failure> {
    let router = match bench.router().await {
        Ok(router) => router,
        Err(error) => return Ok(untyped(Some(error))),
    };
    let numbers: Vec<_> = (bench.tried + 1..=bench.tried + 4).collect();
    bench.tried += 4;
    let writes: Vec<_> = numbers
        .iter()
        .zip(0..)
        .map(|(number, place)| {
            let (router, number) = (router.clone(), *number);
            let misfortune = if place == 2 { misfortune } else { Misfortune::None };
            tokio::spawn(async move {
                router
                    .write_keyed(fleet::CAUSE, fleet::key(number), move |conn| {
                        Box::pin(async move {
                            fleet::insert_group(conn, number).await?;
                            unlucky(conn, misfortune).await
                        })
                    })
                    .await
            })
        })
        .collect();
    for (place, (number, write)) in numbers.into_iter().zip(writes).enumerate() {
        let answer = write.await?;
        if place == 2 && misfortune != Misfortune::None && answer.is_ok() {
            return Ok(Some(format!("group {number} answers well in spite of {misfortune:?}")));
        }
        if let Some(what) = settle(bench, &router, number, answer).await {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Notes what the answer of a keyed write means, asking for the key when it does not say.
async fn settle(bench: &mut Bench, router: &RouterDb, number: u64, answer: Result<(), Error>) -> Option<String> {
    match answer {
        Ok(()) => bench.there.push(number),
        Err(Error::Unknown { .. }) => {
            // The fault may strike again on the way; it strikes only once.
            let first = router.outcome(fleet::key(number)).await;
            let outcome = match first {
                Err(_) => router.outcome(fleet::key(number)).await,
                first => first,
            };
            match outcome {
                Ok(KeyOutcome::Committed) => bench.there.push(number),
                Ok(KeyOutcome::Absent) => {}
                other => return Some(format!("the outcome of group {number} stays unknown: {other:?}")),
            }
        }
        Err(error) => return untyped(Some(error)),
    }
    None
}

/// Says so when an error is not one a caller can act on.
fn untyped(error: Option<Error>) -> Option<String> {
    match error {
        Some(error @ (Error::Panicked { .. } | Error::Corrupt { .. } | Error::TransactionLost)) => {
            Some(format!("answered {error:?}"))
        }
        _ => None,
    }
}
