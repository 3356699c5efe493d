//! A process that shreds keeps the locks of its databases, so that another that comes and goes takes nothing from it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nasnet_dbmanager::{RouterId, Scope};
use nasnet_events::{Achieved, EventOptions, Expected, NewEvent, Query, Subject};
use support::child::{self, Child};
use support::{event, kind, open_in, options, read, router, stream};

/// Opens everything, reads, and leaves in good order.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(dir) = child::task() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open_in(options(Path::new(&dir)), EventOptions::default()).await;
        let _open = manager.router(&RouterId::parse("r1").unwrap()).await.unwrap();
        assert!(!read(&store, Query::all()).await.is_empty());
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    });
}

fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_comes_and_goes_after_a_shredding_leaves_the_logs_of_who_shredded() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, store) = open_in(options(dir.path()), EventOptions::default()).await;
    let subject = Subject::parse("user/anna").unwrap();
    let scopes = [Scope::System, router("r1")];
    for scope in &scopes {
        let about = NewEvent::new(manager.next_ulid(), kind("config.applied"), &1).unwrap().subject(subject.clone());
        store.append(scope, &stream("s"), Expected::Any, vec![about]).await.unwrap();
    }
    assert_eq!(store.shred(&subject).await.unwrap().keys, 1);

    let append = async |scope: &Scope| {
        let append = vec![event(&manager, "config.applied")];
        store.append(scope, &stream("s"), Expected::Any, append).await.unwrap()
    };
    let mut logs = Vec::new();
    for scope in &scopes {
        append(scope).await;
        let log = log_of(manager.scope(scope).await.unwrap().path());
        logs.push((std::fs::metadata(&log).unwrap().ino(), log));
    }
    let dir_name = dir.path().to_str().unwrap().to_owned();
    let left = tokio::task::spawn_blocking(move || Child::spawn(dir_name).wait()).await.unwrap();
    assert!(left.success(), "{left}");
    for (ino, log) in &logs {
        let found = std::fs::metadata(log).map(|found| found.ino());
        assert_eq!(found.ok(), Some(*ino), "{} was taken for left over", log.display());
    }
    for scope in &scopes {
        assert_eq!(append(scope).await.achieved, Achieved::Synced);
    }
}
