//! The repositories of the system database, as the manager gives them out.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use nasnet_dbmanager::system::audit::AuditEntry;
use nasnet_dbmanager::{DbManager, Error, ManualClock, NewRouter, Options, RouterId};
use serde_json::json;

const CANARY: &[u8] = b"canary-61c0-password-canary";

async fn open(directory: &Path) -> DbManager {
    let mut options = Options::new(directory.join("data")).run_dir(directory.join("run"));
    options.clock = Arc::new(ManualClock::new(1_800_000_000_000));
    DbManager::open(options).await.unwrap()
}

async fn with_router(directory: &Path) -> (DbManager, RouterId) {
    let manager = open(directory).await;
    let id = RouterId::parse("r1").unwrap();
    manager.create_router(NewRouter::new(id.clone()).name("One").host("192.0.2.1").port(443)).await.unwrap();
    (manager, id)
}

/// All bytes of all files below a directory.
fn bytes_below(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            bytes.extend(bytes_below(&entry.path()));
        } else {
            bytes.extend(std::fs::read(entry.path()).unwrap());
        }
    }
    bytes
}

#[tokio::test]
async fn everything_stored_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, id) = with_router(directory.path()).await;
    let system = manager.system();
    system.secrets().put(&id, "password", CANARY).await.unwrap();
    system.settings().put("ui", "theme", &json!({ "dark": true }), 3).await.unwrap();
    system.routers().set_device(&id, "routeros", "hEX", "7.16").await.unwrap();
    let audited =
        system.audit_log().append(AuditEntry::new("config", "resource.changed").actor("alice")).await.unwrap();
    assert_eq!(system.counters().reserve("token", 1024).await.unwrap(), 1);
    manager.shutdown().await.unwrap();

    let manager = open(directory.path()).await;
    let system = manager.system();
    assert_eq!(&**system.secrets().reveal(&id, "password").await.unwrap().unwrap(), CANARY);
    let theme = system.settings().get("ui", "theme").await.unwrap().unwrap();
    assert_eq!((theme.value, theme.schema_version), (json!({ "dark": true }), 3));
    assert_eq!(system.routers().get(&id).await.unwrap().unwrap().model.as_deref(), Some("hEX"));
    assert!(system.audit_log().list(None, 100).await.unwrap().iter().any(|record| record.id == audited));
    assert_eq!(system.counters().reserve("token", 1).await.unwrap(), 1025);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_secret_is_in_no_file_of_the_fleet_and_showing_it_is_audited() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, id) = with_router(directory.path()).await;
    let secrets = manager.system().secrets();
    secrets.put(&id, "password", CANARY).await.unwrap();

    let audit = manager.system().audit_log();
    let entries = audit.list(None, 100).await.unwrap().len();
    secrets.reveal(&id, "password").await.unwrap().unwrap();
    assert_eq!(audit.list(None, 100).await.unwrap().len(), entries);
    let shown = secrets.reveal_to(&id, "password", "alice", Some("192.0.2.7".parse().unwrap())).await.unwrap();
    assert_eq!(&**shown.unwrap(), CANARY);
    let newest = audit.list(None, 1).await.unwrap().remove(0);
    assert_eq!((&*newest.action, newest.actor.as_deref()), ("secret.revealed", Some("alice")));
    assert_eq!((newest.target.as_deref(), newest.details), (Some("r1"), Some(json!({ "name": "password" }))));

    let debug = format!("{manager:?} {:?} {:?}", manager.system(), secrets.list(&id).await.unwrap());
    assert!(!debug.contains("canary"), "{debug}");
    let scan = |when: &str| {
        let bytes = bytes_below(directory.path());
        assert!(bytes.len() > 4096);
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "{when}");
    };
    scan("open");
    manager.shutdown().await.unwrap();
    scan("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_reserving_at_once_share_out_every_number_once() {
    let directory = tempfile::tempdir().unwrap();
    let manager = open(directory.path()).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let manager = manager.clone();
            tokio::spawn(async move {
                let mut firsts = Vec::new();
                for _ in 0..8 {
                    firsts.push(manager.system().counters().reserve("token", 3).await.unwrap());
                }
                assert!(firsts.is_sorted());
                firsts
            })
        })
        .collect();
    let mut firsts = Vec::new();
    for task in tasks {
        firsts.extend(task.await.unwrap());
    }
    firsts.sort_unstable();
    assert_eq!(firsts, (0..16 * 8).map(|index| index * 3 + 1).collect::<Vec<u64>>());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_refused_operation_leaves_the_audit_log_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (manager, _) = with_router(directory.path()).await;
    let unknown = RouterId::parse("unknown").unwrap();
    let system = manager.system();
    let entries = system.audit_log().list(None, 100).await.unwrap();
    assert!(matches!(system.secrets().put(&unknown, "a", b"x").await, Err(Error::RouterNotFound { .. })));
    assert!(system.secrets().reveal_to(&unknown, "a", "alice", None).await.unwrap().is_none());
    assert!(matches!(system.audit_log().append(AuditEntry::new("", "x")).await, Err(Error::InvalidName { .. })));
    assert_eq!(system.audit_log().list(None, 100).await.unwrap(), entries);
    manager.shutdown().await.unwrap();
}
