//! Sealed values survive a new master key without being sealed anew, and no key but the right one opens a fleet.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::{CAUSE, Dirs, id, snapshot, with_router};
use nasnet_dbmanager::{DbManager, Error, KeyFault, MasterKey, MasterKeySource, NewRouter, Which};

const CANARY: &[u8] = b"canary-2b7e-password-canary";

async fn with_secrets(dirs: &Dirs) -> DbManager {
    let manager = dirs.open().await;
    for name in ["home", "other"] {
        drop(with_router(&manager, name).await);
        manager.system().secrets().put(&id(name), "password", CANARY).await.unwrap();
    }
    manager
}

async fn sealed(manager: &DbManager) -> Vec<Vec<u8>> {
    let read: Result<Vec<Vec<u8>>, Error> = manager
        .system()
        .read(CAUSE, |conn| {
            Box::pin(async move {
                Ok(sqlx::query_scalar("SELECT sealed FROM router_secrets ORDER BY router_id").fetch_all(conn).await?)
            })
        })
        .await;
    read.unwrap()
}

async fn reveals(manager: &DbManager, router: &str) -> bool {
    let revealed = manager.system().secrets().reveal(&id(router), "password").await.unwrap();
    revealed.is_some_and(|value| **value == *CANARY)
}

fn key_file(dirs: &Dirs) -> std::path::PathBuf {
    dirs.data().join("master.key")
}

fn key(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn assert_no_canary(dir: &Path) {
    let files = snapshot(dir);
    let scanned: usize = files.values().map(Vec::len).sum();
    assert!(scanned > 100_000, "{scanned}");
    for (path, bytes) in files {
        assert!(!bytes.windows(12).any(|window| window == &CANARY[..12]), "{}", path.display());
    }
}

#[tokio::test]
async fn a_new_master_key_wraps_the_keys_anew_and_leaves_every_sealed_value_as_it_is() {
    let dirs = Dirs::new();
    let manager = with_secrets(&dirs).await;
    let before = sealed(&manager).await;
    assert_ne!(before[0], before[1]);
    let fleet = manager.sealer().seal(b"place", b"of the fleet").unwrap();
    let busy = DbManager::rotate_master_key(
        &nasnet_dbmanager::Options { lock_timeout: std::time::Duration::ZERO, ..dirs.options() },
        &key(9),
    )
    .await;
    assert!(matches!(busy, Err(Error::InUse { .. })), "not while it is open: {busy:?}");
    manager.shutdown().await.unwrap();
    drop(manager);
    let old_key = fs::read(key_file(&dirs)).unwrap();
    assert_eq!(DbManager::rotate_master_key(&dirs.options(), &key(9)).await.unwrap(), 3, "two routers and the fleet");
    assert_eq!(fs::read(key_file(&dirs)).unwrap(), [9; 32]);

    let manager = dirs.open().await;
    assert!(reveals(&manager, "home").await && reveals(&manager, "other").await);
    assert_eq!(sealed(&manager).await, before, "no value was sealed anew");
    assert_eq!(**manager.sealer().open(b"place", &fleet).unwrap(), *b"of the fleet");
    let audit = manager.system().audit_log().list(None, 10).await.unwrap();
    assert!(audit.iter().any(|record| record.action == "master_key.rotated"));
    manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    assert_no_canary(dirs.root());
    manager.shutdown().await.unwrap();
    drop(manager);
    assert_no_canary(dirs.root());

    // The old key opens nothing any more, and says so.
    fs::write(key_file(&dirs), &old_key).unwrap();
    let error = DbManager::open(dirs.options()).await.unwrap_err();
    assert!(matches!(&error, Error::MasterKey { fault: KeyFault::Wrong, .. }), "{error}");
    assert!(error.to_string().contains("master.key"), "{error}");
}

#[tokio::test]
async fn a_rotation_that_was_interrupted_anywhere_is_finished_or_never_was() {
    let dirs = Dirs::new();
    with_secrets(&dirs).await.shutdown().await.unwrap();
    let old_key = fs::read(key_file(&dirs)).unwrap();
    let next = dirs.data().join("master.key.next");
    // Before the database named the new key.
    fs::copy(key_file(&dirs), &next).unwrap();
    fs::write(&next, [8; 32]).unwrap();
    let manager = dirs.open().await;
    assert!(reveals(&manager, "home").await);
    assert_eq!(fs::read(key_file(&dirs)).unwrap(), old_key);
    manager.shutdown().await.unwrap();
    drop(manager);
    // After it did and before the file was replaced.
    DbManager::rotate_master_key(&dirs.options(), &key(7)).await.unwrap();
    fs::rename(key_file(&dirs), &next).unwrap();
    fs::write(&next, [7; 32]).unwrap();
    fs::copy(&next, key_file(&dirs)).unwrap();
    fs::write(key_file(&dirs), &old_key).unwrap();
    let manager = dirs.open().await;
    assert!(reveals(&manager, "home").await);
    assert_eq!(fs::read(key_file(&dirs)).unwrap(), [7; 32]);
    assert!(!next.exists());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_key_of_the_caller_is_exchanged_and_the_wrong_one_is_refused() {
    let dirs = Dirs::new();
    let with = |byte| {
        let mut options = dirs.options();
        options.master_key = MasterKeySource::Key(std::sync::Arc::new(key(byte)));
        options
    };
    let manager = DbManager::open(with(1)).await.unwrap();
    drop(with_router(&manager, "home").await);
    manager.system().secrets().put(&id("home"), "password", CANARY).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    for refused in
        [DbManager::open(with(2)).await.map(drop), DbManager::rotate_master_key(&with(2), &key(3)).await.map(drop)]
    {
        assert!(matches!(refused, Err(Error::MasterKey { fault: KeyFault::Wrong, .. })), "{refused:?}");
    }
    DbManager::rotate_master_key(&with(1), &key(2)).await.unwrap();
    let manager = DbManager::open(with(2)).await.unwrap();
    assert!(reveals(&manager, "home").await);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_purged_router_takes_its_key_along_and_its_successor_gets_another() {
    let dirs = Dirs::new();
    let manager = with_secrets(&dirs).await;
    let sealer = manager.router_sealer(&id("home")).await.unwrap();
    let old = sealer.seal(b"place", b"value").unwrap();
    assert!(manager.router_sealer(&id("other")).await.unwrap().open(b"place", &old).is_err());
    assert!(matches!(manager.router_sealer(&id("nobody")).await, Err(Error::RouterNotFound { .. })));
    manager.retire(&id("home")).await.unwrap();
    manager.purge(&id("home")).await.unwrap();
    manager.create_router(NewRouter::new(id("home"))).await.unwrap();
    assert!(manager.router_sealer(&id("home")).await.unwrap().open(b"place", &old).is_err());
    assert!(!reveals(&manager, "home").await);
    manager.system().secrets().put(&id("home"), "password", CANARY).await.unwrap();
    assert!(reveals(&manager, "home").await);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_older_system_database_that_is_restored_opens_with_the_present_key() {
    let dirs = Dirs::new();
    let manager = with_secrets(&dirs).await;
    let manifest = manager.backup(Which::System, dirs.root().join("backup")).await.unwrap();
    drop(with_router(&manager, "later").await);
    let later = manager.router_sealer(&id("later")).await.unwrap().seal(b"place", b"value").unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    DbManager::rotate_master_key(&dirs.options(), &key(5)).await.unwrap();
    DbManager::restore_system(&dirs.options(), &manifest).await.unwrap();
    let manager = dirs.open().await;
    assert!(reveals(&manager, "home").await);
    let sealer = manager.router_sealer(&id("later")).await.unwrap();
    assert_eq!(**sealer.open(b"place", &later).unwrap(), *b"value", "what its database holds sealed is not lost");
    manager.shutdown().await.unwrap();
}
