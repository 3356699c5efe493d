//! Many routers in one call: each as if it were created alone, and one that fails is no trouble to the others.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use common::{Dirs, all, id, put};
use nasnet_dbmanager::system::routers::Lifecycle;
use nasnet_dbmanager::{DbManager, Error, NewRouter, RouterRecord};

fn new(names: &[&str]) -> Vec<NewRouter> {
    names.iter().map(|name| NewRouter::new(id(name)).name(format!("the {name}")).host("192.0.2.1")).collect()
}

fn created(routers: &[(nasnet_dbmanager::RouterId, Result<RouterRecord, Error>)]) -> Vec<(&str, bool)> {
    routers.iter().map(|(id, result)| (id.as_str(), result.is_ok())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_routers_are_created_in_one_call_each_with_a_file_of_its_own() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    // More than share one transaction.
    let names: Vec<String> = (0..150).map(|number| format!("r{number}")).collect();
    let report = manager.create_routers(names.iter().map(|name| NewRouter::new(id(name)))).await;
    assert!(report.is_complete(), "{:?}", report.failures().next());
    let order: Vec<_> = report.answers().map(|(id, _)| id.to_string()).collect();
    assert_eq!(order, names);
    let uids: BTreeSet<_> = report.answers().map(|(_, record)| record.file_uid.unwrap()).collect();
    assert_eq!(uids.len(), names.len());
    assert!(report.answers().all(|(_, record)| record.lifecycle == Lifecycle::Active));
    for name in ["r0", "r63", "r64", "r149"] {
        put(&manager.router(&id(name)).await.unwrap(), 1, 1).await.unwrap();
    }
    manager.shutdown().await.unwrap();
    drop(manager);
    let manager = dirs.open().await;
    assert_eq!(manager.routers().await.unwrap().len(), names.len());
    assert_eq!(all(&manager.router(&id("r64")).await.unwrap()).await, [(1, 1)]);
    assert!(manager.migrate_all(4).await.unwrap().is_complete(), "what was copied has the schema of the program");
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_cannot_be_created_are_answered_with_their_error_and_change_nothing() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.lock_timeout = Duration::from_millis(20);
    let manager = DbManager::open(options).await.unwrap();
    manager.create_router(NewRouter::new(id("there"))).await.unwrap();
    put(&manager.router(&id("there")).await.unwrap(), 1, 10).await.unwrap();
    // A directory that belongs to nobody is never taken over.
    fs::create_dir_all(dirs.data().join("routers/taken/something")).unwrap();
    // Another process is at work on this one. The record of its lock is made by creating and purging it.
    manager.create_router(NewRouter::new(id("locked"))).await.unwrap();
    manager.retire(&id("locked")).await.unwrap();
    manager.purge(&id("locked")).await.unwrap();
    let lock = dirs.lock(&id("locked"), true).unwrap();

    let report = manager.create_routers(new(&["a", "there", "taken", "locked", "b", "a"])).await;
    let expected = [("a", true), ("there", false), ("taken", false), ("locked", false), ("b", true), ("a", false)];
    assert_eq!(created(&report.routers), expected);
    let errors: Vec<_> = report.failures().map(|(_, error)| error).collect();
    assert!(matches!(errors[0], Error::RouterExists { id } if id.as_str() == "there"), "{errors:?}");
    assert!(matches!(errors[1], Error::WrongDatabase { path, .. } if path.ends_with("routers/taken")), "{errors:?}");
    assert!(matches!(errors[2], Error::InUse { .. }), "{errors:?}");
    assert!(matches!(errors[3], Error::RouterExists { id } if id.as_str() == "a"), "{errors:?}");
    let registered: Vec<_> = manager.routers().await.unwrap().into_iter().map(|record| record.id.to_string()).collect();
    assert_eq!(registered, ["a", "b", "there"]);
    assert!(dirs.data().join("routers/taken/something").is_dir());
    assert_eq!(all(&manager.router(&id("there")).await.unwrap()).await, [(1, 10)]);

    // Their ids are free once what was in the way is gone.
    drop(lock);
    fs::remove_dir_all(dirs.data().join("routers/taken")).unwrap();
    let report = manager.create_routers(new(&["taken", "locked"])).await;
    assert!(report.is_complete(), "{report:?}");
    let leftovers = fs::read_dir(dirs.data().join("routers")).unwrap();
    let leftovers: Vec<_> = leftovers
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    assert_eq!(manager.create_routers([]).await.routers.len(), 0);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_waits_for_any_more_is_brought_to_its_end() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    for number in 0..6_usize {
        let names: Vec<_> = (0..10).map(|index| NewRouter::new(id(&format!("c{number}-{index}")))).collect();
        // Dropped after so many steps.
        let mut call = Box::pin(manager.create_routers(names));
        for _ in 0..=number * 3 {
            if poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let active = async || manager.routers().await.unwrap().len();
        tokio::time::timeout(common::PATIENCE, async {
            while active().await < (number + 1) * 10 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        put(&manager.router(&id(&format!("c{number}-9"))).await.unwrap(), 1, 1).await.unwrap();
    }
    manager.shutdown().await.unwrap();
}

#[cfg(feature = "fault-injection")]
mod faults {
    use std::path::Path;

    use nasnet_dbmanager::Options;
    use nasnet_dbmanager::vfs::fault::{Fault, Medium, Operation, Recorder, Recording, Replay, ReplayReport, Variant};
    use tokio::runtime::Runtime;

    use super::*;
    use common::kv;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whichever_operation_fails_each_router_is_created_or_its_id_is_free() {
        let dirs = Dirs::new();
        let manager = dirs.open().await;
        let mut failed = 0;
        let operations = [
            (Operation::Write, Fault::FULL),
            (Operation::Sync, Fault::IOERR_FSYNC),
            (Operation::SyncDirectory, Fault::IOERR_FSYNC),
            (Operation::Rename, Fault::FULL),
        ];
        for (operation, code) in operations {
            for nth in 1..60 {
                let names: Vec<_> = (0..3).map(|index| id(&format!("f{code}-{nth}-{index}"))).collect();
                let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
                let report = manager.create_routers(names.iter().cloned().map(NewRouter::new)).await;
                let fired = armed.fired();
                drop(armed);
                failed += report.failures().count();
                // What was answered as created is there, the rest can be created now.
                for (name, answer) in &report.routers {
                    if let Err(error) = answer {
                        let again = manager.create_router(NewRouter::new(name.clone())).await;
                        let created = matches!(again, Ok(_) | Err(Error::RouterExists { .. }));
                        assert!(created, "{operation:?} {nth}: {error}, then {again:?}");
                    }
                    put(&manager.router(name).await.unwrap(), 1, 1).await.unwrap();
                }
                if fired == 0 {
                    break;
                }
            }
        }
        assert!(failed > 20, "{failed}");
        manager.shutdown().await.unwrap();
    }

    const MANY: u64 = 5;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    fn options(disk: &Path, run: &Path) -> Options {
        common::patient(Options::new(disk.join("data")).run_dir(run.join("run")).schemas([kv()]))
    }

    fn name(number: u64) -> nasnet_dbmanager::RouterId {
        id(&format!("r{number}"))
    }

    fn record() -> Recording {
        let (disk, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let runtime = runtime();
        runtime.block_on(async {
            DbManager::open(options(disk.path(), run.path())).await.unwrap().shutdown().await.unwrap();
        });
        let recorder = Recorder::start(disk.path()).unwrap();
        runtime.block_on(async {
            let manager = DbManager::open(options(disk.path(), run.path())).await.unwrap();
            let report = manager.create_routers((0..MANY).map(|number| NewRouter::new(name(number)))).await;
            assert!(report.is_complete());
            recorder.ack(MANY);
            manager.shutdown().await.unwrap();
        });
        recorder.stop()
    }

    /// Counts the routers that take a write; one that is registered and does not is an error.
    async fn look(disk: &Path, run: &Path) -> Result<u64, Error> {
        let manager = DbManager::open(options(disk, run)).await?;
        let mut sound = 0;
        for record in manager.system().routers().list().await? {
            put(&*manager.router(&record.id).await?, 1, 1).await?;
            sound += 1;
        }
        // Those that are not there can be created.
        for (number, answer) in manager.create_routers((0..MANY).map(|n| NewRouter::new(name(n)))).await.routers {
            match answer {
                Ok(_) | Err(Error::RouterExists { .. }) => put(&*manager.router(&number).await?, 2, 2).await?,
                Err(error) => return Err(error),
            }
        }
        manager.shutdown().await?;
        Ok(sound)
    }

    fn cut(recording: &Recording, replay: &Replay) -> ReplayReport {
        let runtime = runtime();
        let look = |disk: &Path| {
            let run = tempfile::tempdir_in("/dev/shm").unwrap();
            runtime.block_on(look(disk, run.path())).map_err(|error| error.to_string())
        };
        let judge = |state: &nasnet_dbmanager::vfs::fault::CrashState, seen: &Result<u64, String>| match seen {
            Err(error) => Some(error.clone()),
            Ok(sound) if state.acked() == [MANY] && *sound < MANY => Some(format!("{sound} of {MANY} are there")),
            Ok(_) => None,
        };
        recording.replay(replay, look, judge).unwrap()
    }

    #[test]
    fn a_power_cut_while_many_are_created_leaves_each_whole_or_absent_and_none_that_was_acknowledged_is_lost() {
        let recording = record();
        let report = cut(&recording, &Replay { every: 3, ..Replay::new(5) });
        assert!(report.states > 60 && report.distinct > 30, "{} {}", report.states, report.distinct);
        assert!(report.failures.is_empty(), "{} of {}: {:?}", report.failures.len(), report.states, report.failures[0]);
        // The check sees what it must: names that are not synced are lost with everything below them.
        let few = Replay { every: 8, variants: vec![Variant::DropAll], ..Replay::new(5) };
        let names_lost = cut(&recording, &few.clone().medium(Medium::NoDirectorySync));
        assert!(!names_lost.failures.is_empty(), "no failure in {} states", names_lost.states);
        let lies = cut(&recording, &few.medium(Medium::LiesAboutSync));
        assert!(!lies.failures.is_empty(), "no failure in {} states", lies.states);
    }
}
