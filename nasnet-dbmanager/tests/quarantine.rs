//! Damage stays where it is: it is set aside whole, replaced by the best there is, and what is lost is told.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::{CAUSE, Dirs, all, id, put, with_router};
use nasnet_dbmanager::{
    AsideReason, Database, DbHealth, DbManager, Error, OnDamage, Recovery, RestoredFrom, Scope, Which,
};

async fn fill(db: &Database, rows: i64) {
    db.write(CAUSE, move |conn| {
        Box::pin(async move {
            for k in 0..rows {
                sqlx::query("INSERT INTO kv (k, v) VALUES (?1, ?2)").bind(k).bind(k * 10).execute(&mut *conn).await?;
                sqlx::query("INSERT INTO child (k) VALUES (?1)").bind(k).execute(&mut *conn).await?;
            }
            Ok::<_, Error>(())
        })
    })
    .await
    .unwrap();
}

async fn fleet(rows: i64) -> (Dirs, DbManager) {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&*with_router(&manager, "home").await, rows).await;
    fill(&*with_router(&manager, "other").await, 3).await;
    (dirs, manager)
}

async fn health(manager: &DbManager, name: &str) -> DbHealth {
    let all = manager.health().await.unwrap();
    all.into_iter().find(|health| health.scope == Scope::Router(id(name))).unwrap().health
}

fn damage(file: &Path, page: usize) {
    let mut bytes = fs::read(file).unwrap();
    let at = page * 4096;
    bytes[at..at + 200].fill(0xa5);
    fs::write(file, bytes).unwrap();
}

async fn replaced(manager: &DbManager) -> (String, RestoredFrom, nasnet_dbmanager::LostRange) {
    match manager.recover(&id("home")).await.unwrap() {
        Recovery::Replaced { quarantine, restored_from, lost, .. } => (quarantine, restored_from, lost),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_sound_router_is_left_alone() {
    let (_dirs, manager) = fleet(5).await;
    assert_eq!(manager.recover(&id("home")).await.unwrap(), Recovery::Sound);
    assert_eq!(health(&manager, "home").await, DbHealth::Ok);
    assert!(manager.set_aside().await.unwrap().is_empty());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_damaged_router_comes_back_from_its_backup_and_the_others_never_notice() {
    let (dirs, manager) = fleet(50).await;
    let manifest = manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    let router = manager.router(&id("home")).await.unwrap();
    put(&router, 1000, 1).await.unwrap();
    drop(router);
    manager.shutdown().await.unwrap();
    drop(manager);
    let file = dirs.router_file(&id("home"));
    fs::write(&file, &fs::read(&file).unwrap()[..6000]).unwrap();
    let evidence = fs::read(&file).unwrap();

    let manager = dirs.open().await;
    let other = manager.router(&id("other")).await.unwrap();
    let error = match manager.router(&id("home")).await {
        Err(error) => error,
        Ok(_) => manager.check(&Scope::Router(id("home"))).await.unwrap_err(),
    };
    assert!(error.is_damage(), "{error}");
    let (quarantine, from, lost) = replaced(&manager).await;
    assert_eq!(from, RestoredFrom::Backup { id: manifest.id, created_ms: manifest.created_ms });
    assert_eq!(lost.from_ms, Some(manifest.created_ms));
    assert!(lost.until_ms >= manifest.created_ms);
    assert_eq!(lost.tables.iter().find(|t| t.table == "kv").unwrap().kept, 50);
    assert_eq!(fs::read(dirs.data().join("quarantine").join(&quarantine).join("router-home.db")).unwrap(), evidence);
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&router).await.len(), 50);
    put(&router, 2000, 1).await.unwrap();
    put(&other, 2000, 1).await.unwrap();
    let DbHealth::Quarantined { restored_from, lost_range, .. } = health(&manager, "home").await else { panic!() };
    assert_eq!((restored_from, lost_range), (Some(from), Some(lost)));
    assert_eq!(health(&manager, "other").await, DbHealth::Ok);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_backup_that_no_longer_verifies_is_passed_over() {
    let (dirs, manager) = fleet(5).await;
    let older = manager.backup(Which::Fleet, dirs.root().join("older")).await.unwrap();
    put(&manager.router(&id("home")).await.unwrap(), 77, 1).await.unwrap();
    let newer = manager.backup(Which::Router(id("home")), dirs.root().join("newer")).await.unwrap();
    damage_backup(&newer.dir.join("router-home.db.zst"));
    manager.quarantine(&id("home"), "told by a test").await.unwrap();
    assert!(matches!(manager.router(&id("home")).await, Err(Error::Quarantined { .. })));
    let (_, from, _) = replaced(&manager).await;
    assert_eq!(from, RestoredFrom::Backup { id: older.id, created_ms: older.created_ms });
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await.len(), 5);
    manager.shutdown().await.unwrap();
}

fn damage_backup(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0xff;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn without_a_backup_the_rows_around_the_damage_are_saved() {
    let (dirs, manager) = fleet(3000).await;
    manager.shutdown().await.unwrap();
    drop(manager);
    let file = dirs.router_file(&id("home"));
    let pages = fs::metadata(&file).unwrap().len() / 4096;
    // One leaf in the middle of the larger table.
    damage(&file, usize::try_from(pages / 2).unwrap());
    let manager = dirs.open().await;
    let (_, from, lost) = replaced(&manager).await;
    assert_eq!(from, RestoredFrom::Salvage, "{lost:?}");
    let router = manager.router(&id("home")).await.unwrap();
    let rows = all(&router).await;
    assert!(rows.len() > 1500, "{}", rows.len());
    assert!(rows.iter().all(|(k, v)| *v == k * 10), "no row is invented");
    let kv = lost.tables.iter().find(|t| t.table == "kv").unwrap();
    assert_eq!(kv.kept, rows.len() as u64);
    assert!(lost.tables.iter().any(|table| !table.complete), "{lost:?}");
    // No reference dangles, so the next migration is not refused.
    let dangling: i64 = router
        .read(CAUSE, |conn| {
            Box::pin(async move {
                let query = sqlx::query_scalar("SELECT count(*) FROM pragma_foreign_key_check");
                Ok::<_, Error>(query.fetch_one(conn).await?)
            })
        })
        .await
        .unwrap();
    assert_eq!(dangling, 0);
    manager.check(&Scope::Router(id("home"))).await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_gone_empty_or_junk_ends_in_a_fresh_database_and_is_told() {
    for content in [None, Some(Vec::new()), Some(vec![0x5a; 9000])] {
        let (dirs, manager) = fleet(5).await;
        manager.shutdown().await.unwrap();
        drop(manager);
        let file = dirs.router_file(&id("home"));
        match &content {
            None => fs::remove_dir_all(file.parent().unwrap()).unwrap(),
            Some(bytes) => fs::write(&file, bytes).unwrap(),
        }
        let manager = dirs.open().await;
        let error = manager.router(&id("home")).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
        assert!(matches!(health(&manager, "home").await, DbHealth::Degraded { .. }));
        let (_, from, lost) = replaced(&manager).await;
        assert_eq!((from, lost.from_ms), (RestoredFrom::Fresh, None));
        let router = manager.router(&id("home")).await.unwrap();
        assert!(all(&router).await.is_empty());
        put(&router, 1, 10).await.unwrap();
        assert_eq!(all(&manager.router(&id("other")).await.unwrap()).await.len(), 3);
        manager.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn damage_found_while_in_use_closes_the_handles_and_nothing_else() {
    let (_dirs, manager) = fleet(5).await;
    let router = manager.router(&id("home")).await.unwrap();
    let other = manager.router(&id("other")).await.unwrap();
    manager.quarantine(&id("home"), "told by a test").await.unwrap();
    assert!(matches!(put(&router, 1, 1).await, Err(Error::Closed { .. })));
    put(&other, 9, 9).await.unwrap();
    let aside = manager.set_aside().await.unwrap();
    assert_eq!((aside.len(), aside[0].reason), (1, AsideReason::Damaged));
    assert!(aside[0].bytes > 0);
    let (_, from, lost) = replaced(&manager).await;
    assert_eq!(from, RestoredFrom::Salvage);
    assert!(lost.tables.iter().all(|table| table.complete), "{lost:?}");
    assert_eq!(all(&manager.router(&id("home")).await.unwrap()).await.len(), 5);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_for_a_damaged_router_at_once_replace_it_once() {
    let (dirs, manager) = fleet(5).await;
    manager.backup(Which::Fleet, dirs.root().join("backup")).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    fs::write(dirs.router_file(&id("home")), b"").unwrap();
    let mut options = dirs.options();
    options.on_damage = OnDamage::Recover;
    let manager = DbManager::open(options).await.unwrap();
    let asking: Vec<_> = (0..20)
        .map(|k| {
            let manager = manager.clone();
            tokio::spawn(async move {
                let router = manager.router(&id("home")).await?;
                put(&router, 100 + k, 1).await
            })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap().unwrap();
    }
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(all(&router).await.len(), 25, "what was written to the replacement stays");
    assert_eq!(manager.set_aside().await.unwrap().len(), 1);
    assert!(matches!(health(&manager, "home").await, DbHealth::Quarantined { restored_from: Some(_), .. }));
    manager.shutdown().await.unwrap();
}
