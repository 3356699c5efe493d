//! Annexes: what is appended beside a database goes where the database goes, and comes back with it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{CAUSE, Dirs, id, put, snapshot, with_router};
use nasnet_dbmanager::{
    AnnexFamily, AnnexPlace, Class, Database, DbManager, Error, Manifest, Recovery, RestoreMode, RestoredFrom, Which,
};

const FAMILY: AnnexFamily = AnnexFamily::new("bodies");

fn body(number: u64, bytes: usize) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

/// Appends in a write operation and confirms; the place is the row's.
async fn append(database: &Database, number: u64, bytes: usize) -> Result<AnnexPlace, Error> {
    let annexes = database.annexes().unwrap().clone();
    let content: Arc<[u8]> = body(number, bytes).into();
    let place = database
        .write(CAUSE, move |conn| {
            Box::pin(async move {
                let place = annexes.append(FAMILY, Class::Normal, content).await?;
                common::put_in(conn, i64::try_from(number).unwrap(), i64::try_from(place.offset).unwrap()).await?;
                Ok::<_, Error>(place)
            })
        })
        .await?;
    database.annexes().unwrap().confirm(FAMILY, place);
    Ok(place)
}

fn read(database: &Database, place: AnnexPlace) -> Result<Vec<u8>, Error> {
    database.annexes().unwrap().read(FAMILY, place)
}

fn annex_dir(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.router_file(&id(name)).with_extension("annex")
}

async fn fill(manager: &DbManager, name: &str, count: u64) -> Vec<AnnexPlace> {
    let router = with_router(manager, name).await;
    let mut places = Vec::new();
    for number in 0..count {
        places.push(append(&router, number, 10_000).await.unwrap());
    }
    places
}

async fn holds(manager: &DbManager, name: &str, places: &[AnnexPlace]) {
    let router = manager.router(&id(name)).await.unwrap();
    for (number, place) in (0..).zip(places) {
        assert_eq!(read(&router, *place).unwrap(), body(number, 10_000), "{place:?}");
    }
}

#[tokio::test]
async fn what_is_appended_is_read_back_also_after_reopening_and_files_are_bounded() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    assert!(manager.system().annexes().is_none(), "only routers have a directory of their own");
    let places = fill(&manager, "home", 250).await;
    assert_eq!(places.last().unwrap().file, 3, "a mebibyte each");
    assert!(places.windows(2).all(|pair| pair[1].file > pair[0].file || pair[1].offset == pair[0].offset + 10_000));
    manager.shutdown().await.unwrap();
    drop(manager);
    let manager = dirs.open().await;
    holds(&manager, "home", &places).await;
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(router.annexes().unwrap().bytes(), 2_500_000);
    assert_eq!(append(&router, 250, 5).await.unwrap().offset, places.last().unwrap().offset + 10_000);
}

#[tokio::test]
async fn appends_are_metered_charged_and_bounded_together_with_the_database() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.database_bytes_max = 2 << 20;
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    let before = router.written();
    append(&router, 0, 10_000).await.unwrap();
    let written = router.written() - before;
    assert_eq!(written.annex_bytes, 10_000);
    assert!(written.bytes > 10_000 && written.dirty_4k_bytes >= 3 * 4096 && written.syncs >= 2, "{written:?}");
    let report = manager.flash_report().await.unwrap();
    let charge = report.charges.iter().find(|charge| charge.cause == "test").unwrap();
    assert!(charge.bytes >= 10_000, "{charge:?}");
    let mut number = 1;
    let refused = loop {
        match append(&router, number, 100_000).await {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    let file = fs::metadata(router.path()).unwrap().len();
    assert!(router.annexes().unwrap().bytes() + file <= 2 << 20);
    // The pages of the database stop where its annexes leave no room, and what critical operations have is theirs.
    let error = loop {
        let filled: Result<(), Error> = router
            .write(CAUSE, |conn| {
                Box::pin(async move {
                    sqlx::query("CREATE TABLE IF NOT EXISTS ballast (body BLOB)").execute(&mut *conn).await?;
                    sqlx::query("INSERT INTO ballast VALUES (zeroblob(50000))").execute(conn).await?;
                    Ok(())
                })
            })
            .await;
        if let Err(error) = filled {
            break error;
        }
        assert!(fs::metadata(router.path()).unwrap().len() < 2 << 20, "it grew as if it had no annexes");
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    put(&router, 0, 1).await.unwrap();
}

#[tokio::test]
async fn a_place_no_row_names_is_given_back_by_the_next_append() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    let annexes = router.annexes().unwrap().clone();
    let (own, content) = (annexes.clone(), Arc::from(body(1, 5_000)));
    let failed: Result<(), Error> = router
        .write(CAUSE, move |_| {
            Box::pin(async move {
                own.append(FAMILY, Class::Normal, content).await?;
                Err(Error::NotApplied)
            })
        })
        .await;
    failed.unwrap_err();
    let left = annexes.unconfirmed(FAMILY).unwrap();
    assert_eq!(left.bytes, 5_000);
    annexes.retract(FAMILY, left).await.unwrap();
    assert_eq!((annexes.unconfirmed(FAMILY), annexes.bytes()), (None, 0));
    let place = append(&router, 2, 100).await.unwrap();
    assert_eq!((place.file, place.offset), (1, 0));
    annexes.retract(FAMILY, left).await.unwrap();
    assert_eq!(read(&router, place).unwrap(), body(2, 100), "what came after it stays");
}

#[tokio::test]
async fn damage_is_told_with_the_file_and_the_rest_can_be_read() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let places = fill(&manager, "home", 250).await;
    let router = manager.router(&id("home")).await.unwrap();
    let file = |number: u32| router.annexes().unwrap().path(FAMILY, number);
    fs::remove_file(file(1)).unwrap();
    fs::File::options().write(true).open(file(3)).unwrap().set_len(places.last().unwrap().offset + 9_999).unwrap();
    for (place, number) in [(places[0], 1), (*places.last().unwrap(), 3)] {
        let error = read(&router, place).unwrap_err();
        assert!(matches!(&error, Error::Annex { path, .. } if *path == file(number)), "{error}");
        assert!(error.to_string().contains(&format!("bodies-0000000{number}")), "{error}");
    }
    assert_eq!(read(&router, places[120]).unwrap(), body(120, 10_000));
    assert!(read(&router, AnnexPlace { file: 2, offset: u64::MAX, bytes: 2 }).is_err());
    assert!(append(&router, 300, 50).await.is_ok());
}

#[tokio::test]
async fn only_closed_files_that_no_row_names_are_removed_and_not_before_readers_are_through() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let places = fill(&manager, "home", 250).await;
    let router = manager.router(&id("home")).await.unwrap();
    let annexes = router.annexes().unwrap();
    let remove = |named: &[u32], kept| {
        annexes.remove_unnamed(FAMILY, annexes.closed_files(FAMILY).unwrap(), named.iter().copied().collect(), kept)
    };
    assert_eq!(annexes.closed_files(FAMILY).unwrap(), [1, 2]);
    assert_eq!(remove(&[2], Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(remove(&[2], Duration::ZERO).await.unwrap(), 1_040_000);
    assert_eq!(remove(&[2], Duration::ZERO).await.unwrap(), 0, "once is enough");
    assert_eq!(annexes.bytes(), 2_500_000 - 1_040_000);
    assert_eq!(read(&router, places[120]).unwrap(), body(120, 10_000));
    remove(&[], Duration::ZERO).await.unwrap();
    assert_eq!(append(&router, 250, 10).await.unwrap().file, 3, "the newest stays, so no number comes twice");
}

#[tokio::test]
async fn a_backup_brings_annexes_back_and_an_undone_restore_too() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let mut places = fill(&manager, "home", 150).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    assert_eq!(manifest.files[0].annexes.iter().map(|annex| annex.bytes).sum::<u64>(), 1_500_000);
    assert_eq!(Manifest::read(&manifest.dir).unwrap(), manifest);
    assert!(manifest.bytes() > 1_500_000);
    manager.verify_backup(&manifest).await.unwrap();
    let backed_up = places.clone();
    let router = manager.router(&id("home")).await.unwrap();
    places.push(append(&router, 150, 10_000).await.unwrap());
    drop(router);
    fs::write(annex_dir(&dirs, "home").join("bodies-00000001"), b"gone").unwrap();
    let damaged = snapshot(&annex_dir(&dirs, "home"));
    let report = manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap();
    holds(&manager, "home", &backed_up).await;
    let router = manager.router(&id("home")).await.unwrap();
    assert_eq!(append(&router, 150, 10_000).await.unwrap(), places[150], "it goes on where the backup ended");
    drop(router);
    let safety = report.restored[0].safety.clone().unwrap();
    manager.undo_restore(&id("home"), &safety).await.unwrap();
    assert_eq!(snapshot(&annex_dir(&dirs, "home")), damaged, "byte for byte");
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_backup_whose_annex_is_changed_missing_or_misnamed_is_refused_and_nothing_changes() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    fill(&manager, "home", 3).await;
    let manifest = manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
    let annex = manifest.dir.join("router-home.annex-bodies-00000001");
    let whole = fs::read(&annex).unwrap();
    let before = snapshot(&dirs.data().join("routers"));
    let mut flipped = whole.clone();
    flipped[12_345] ^= 1;
    for bytes in [flipped.as_slice(), &whole[1..], b""] {
        fs::write(&annex, bytes).unwrap();
        refused(&manager, &manifest.dir).await;
    }
    fs::remove_file(&annex).unwrap();
    refused(&manager, &manifest.dir).await;
    fs::write(&annex, &whole).unwrap();
    let text = fs::read_to_string(manifest.dir.join("manifest.json")).unwrap();
    for name in ["../../../x-00000001", "bodies-1", ""] {
        let lie = text.replace("bodies-00000001", name);
        fs::write(manifest.dir.join("manifest.json"), lie).unwrap();
        assert!(matches!(Manifest::read(&manifest.dir), Err(Error::BadBackup { .. })), "{name}");
    }
    assert_eq!(snapshot(&dirs.data().join("routers")), before);
}

async fn refused(manager: &DbManager, dir: &Path) {
    let manifest = Manifest::read(dir).unwrap();
    let verified = manager.verify_backup(&manifest).await.unwrap_err();
    assert!(matches!(&verified, Error::BadBackup { path, .. } if path.ends_with("router-home.annex-bodies-00000001")));
    let error = manager.restore(&manifest, RestoreMode::Router(id("home"))).await.unwrap_err();
    assert!(matches!(error, Error::BadBackup { .. }), "{error}");
}

#[tokio::test]
async fn annexes_go_with_their_router_when_it_is_retired_reinstated_and_archived() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let places = fill(&manager, "home", 5).await;
    let files = snapshot(&annex_dir(&dirs, "home"));
    manager.retire(&id("home")).await.unwrap();
    assert!(!annex_dir(&dirs, "home").exists());
    manager.reinstate(&id("home")).await.unwrap();
    assert_eq!(snapshot(&annex_dir(&dirs, "home")), files);
    holds(&manager, "home", &places).await;
    manager.retire(&id("home")).await.unwrap();
    let archived = manager.purge_to(&id("home"), &dirs.root().join("archive")).await.unwrap();
    let beside = archived.with_extension("").with_extension("annex").join("bodies-00000001");
    assert_eq!(fs::read(beside).unwrap().len(), 50_000);
    assert!(!dirs.data().join("retired").join("home").exists());
}

#[tokio::test]
async fn a_quarantined_router_keeps_its_annexes_and_what_replaces_it_has_them() {
    for backed_up in [false, true] {
        let dirs = Dirs::new();
        let manager = dirs.open().await;
        let places = fill(&manager, "home", 5).await;
        if backed_up {
            manager.backup(Which::Router(id("home")), dirs.root().join("backup")).await.unwrap();
        }
        let files: BTreeSet<Vec<u8>> = snapshot(&annex_dir(&dirs, "home")).into_values().collect();
        manager.quarantine(&id("home"), "a test").await.unwrap();
        let Recovery::Replaced { quarantine, restored_from, .. } = manager.recover(&id("home")).await.unwrap() else {
            panic!("not replaced")
        };
        assert_eq!(matches!(restored_from, RestoredFrom::Backup { .. }), backed_up, "{restored_from:?}");
        holds(&manager, "home", &places).await;
        let aside = dirs.data().join("quarantine").join(quarantine).join("router-home.annex");
        assert_eq!(snapshot(&aside).into_values().collect::<BTreeSet<_>>(), files);
        manager.shutdown().await.unwrap();
    }
}
