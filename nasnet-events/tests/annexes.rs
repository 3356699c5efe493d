//! Bodies of segments in annexes: they are read as those in rows, survive what rows survive, and damage is told.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::fs;
use std::path::PathBuf;

use futures_util::StreamExt;
use nasnet_dbmanager::{DbManager, Manifest, Recovery, RestoreMode, RouterId, Scope, Which};
use nasnet_events::{Error, EventOptions, EventStore, Expected, FlushReason, Query, Recorded, Span};
use support::{Site, empty_hot, large, on_scope, read, read_ids, router, stream};
use ulid::Ulid;

const SEGMENT_EVENTS: usize = 16;

/// Appends events that make a segment too large for its row, and flushes them.
async fn flush_large(manager: &DbManager, store: &EventStore, scope: &Scope) -> Vec<Ulid> {
    let ids = append_large(manager, store, scope).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    ids
}

async fn append_large(manager: &DbManager, store: &EventStore, scope: &Scope) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for _ in 0..SEGMENT_EVENTS {
        let event = large(manager, "resource.updated", 300);
        ids.push(event.id);
        store.append(scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    ids
}

fn annex_dir(site: &Site) -> PathBuf {
    site.data().join("routers/r1/router-r1.annex")
}

fn annex_bytes(site: &Site) -> u64 {
    let Ok(entries) = fs::read_dir(annex_dir(site)) else { return 0 };
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

async fn count(manager: &DbManager, sql: &'static str) -> i64 {
    manager
        .scope(&router("r1"))
        .await
        .unwrap()
        .read(support::TEST, move |conn| {
            Box::pin(async move { Ok::<_, Error>(sqlx::query_scalar(sql).fetch_one(conn).await?) })
        })
        .await
        .unwrap()
}

const NAMED_BYTES: &str = "SELECT COALESCE(SUM(file_bytes), 0) FROM
    (SELECT file_bytes FROM event_segments UNION ALL SELECT file_bytes FROM event_sealed)";

async fn named_bytes(manager: &DbManager) -> u64 {
    u64::try_from(count(manager, NAMED_BYTES).await).unwrap()
}

#[tokio::test]
async fn a_large_body_goes_to_an_annex_and_a_small_one_or_one_of_the_fleet_itself_to_its_row() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = flush_large(&manager, &store, &router("r1")).await;
    let small = support::normal(&manager);
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![small.clone()]).await.unwrap();
    flush_large(&manager, &store, &Scope::System).await;
    assert_eq!(count(&manager, "SELECT COUNT(*) FROM event_segments WHERE file IS NOT NULL").await, 1);
    assert_eq!(count(&manager, "SELECT COUNT(*) FROM event_segments WHERE file IS NULL").await, 1);
    assert!(annex_bytes(&site) > 2_000);
    assert_eq!(annex_bytes(&site), named_bytes(&manager).await);
    assert!(!site.data().join("system.annex").exists());
    let status = store.status().await.unwrap();
    let warm = status.warm.into_iter().flatten().find(|warm| warm.scope == router("r1")).unwrap();
    assert!(warm.segments.bytes > annex_bytes(&site), "bytes of both are counted: {:?}", warm.segments);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();

    let (_manager, store) = site.open().await;
    let mut expected = ids;
    expected.push(small.id);
    let query = || Query::scope(router("r1"));
    assert_eq!(read_ids(&store, query()).await, expected);
    expected.reverse();
    assert_eq!(read_ids(&store, query().backwards()).await, expected);
    let found = store.verify(Span::all()).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
}

#[tokio::test]
async fn sealed_rows_have_files_of_their_own() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.rows_max = 8;
    let (manager, store) = site.open_with(options).await;
    let mut ids = flush_large(&manager, &store, &router("r1")).await;
    for _ in 0..64 {
        let event = large(&manager, "config.applied", 300);
        ids.push(event.id);
        store.append(&router("r1"), &stream("c"), Expected::Any, vec![event]).await.unwrap();
    }
    assert!(store.seal().await.unwrap().events > 0);
    let mut names: Vec<String> = fs::read_dir(annex_dir(&site))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["flushed-00000001", "sealed-00000001"]);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn a_missing_short_or_changed_annex_is_told_with_segment_and_file_and_hides_nothing_else() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let first = flush_large(&manager, &store, &scope).await;
    let second = flush_large(&manager, &store, &scope).await;
    let small = support::normal(&manager);
    store.append(&scope, &stream("s"), Expected::Any, vec![small.clone()]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    let path = annex_dir(&site).join("flushed-00000001");
    let whole = fs::read(&path).unwrap();
    let end = fs::metadata(&path).unwrap().len();
    let mut flipped = whole.clone();
    flipped[100] ^= 4;
    let lost = |bytes: &[u8]| -> Vec<Ulid> {
        let cut = (bytes.len() as u64) < end;
        let changed = bytes.get(100) != whole.get(100);
        [&first[..], &second, &[small.id]]
            .into_iter()
            .enumerate()
            .filter(|(number, _)| !(*number == 0 && changed || *number == 1 && cut))
            .flat_map(|(_, ids)| ids.to_vec())
            .collect()
    };
    for bytes in [Some(&flipped[..]), Some(&whole[..whole.len() - 1]), Some(&[]), None] {
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let items: Vec<Result<Recorded, Error>> = store.read(Query::all()).collect().await;
        let found: Vec<Ulid> = items.iter().flatten().map(|event| event.id).collect();
        assert_eq!(found, lost(bytes.unwrap_or_default()));
        let errors: Vec<&Error> = items.iter().filter_map(|item| item.as_ref().err()).collect();
        assert!(!errors.is_empty());
        for error in errors {
            assert!(
                matches!(error, Error::SegmentBody { scope: of, path: file, .. } if *of == scope && file.ends_with("flushed-00000001")),
                "{error}"
            );
            assert!(error.to_string().contains("segment 1:"), "{error}");
        }
        assert!(!store.verify(Span::all()).await.unwrap().is_sound());
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(read(&store, Query::all()).await.len(), 2 * SEGMENT_EVENTS + 1);
}

#[tokio::test]
async fn what_a_failed_flush_left_is_overwritten_by_the_next() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let mut ids = flush_large(&manager, &store, &scope).await;
    let before = annex_bytes(&site);
    on_scope(
        &manager,
        &scope,
        "CREATE TRIGGER refuse AFTER INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    .await;
    ids.extend(append_large(&manager, &store, &scope).await);
    for _ in 0..3 {
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert_eq!(report.failed.len(), 1);
    }
    assert!(annex_bytes(&site) < before * 3, "each attempt takes the place of the one before");
    on_scope(&manager, &scope, "DROP TRIGGER refuse").await;
    assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
    assert_eq!(annex_bytes(&site), named_bytes(&manager).await);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn two_processes_append_to_one_scope_and_neither_harms_the_other() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    // A fleet opened twice shares no memory about its annexes.
    let other_manager = site.manager().await;
    let other = EventStore::open(&other_manager, EventOptions::default()).await.unwrap();
    let (mut ids, scope) = (Vec::new(), router("r1"));
    for _ in 0..3 {
        ids.extend(flush_large(&manager, &store, &scope).await);
        ids.extend(flush_large(&other_manager, &other, &scope).await);
    }
    let both = tokio::join!(append_large(&manager, &store, &scope), append_large(&other_manager, &other, &scope));
    ids.extend(both.0);
    ids.extend(both.1);
    let (one, two) = tokio::join!(store.flush(FlushReason::Requested), other.flush(FlushReason::Requested));
    assert!(one.unwrap().failed.is_empty() && two.unwrap().failed.is_empty());
    empty_hot(&manager).await;
    let mut found = read_ids(&other, Query::all()).await;
    ids.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, ids);
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_backup_holds_the_annexes_and_what_comes_back_verifies_and_goes_on() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let id = RouterId::parse("r1").unwrap();
    let mut ids = flush_large(&manager, &store, &scope).await;
    ids.extend(flush_large(&manager, &store, &scope).await);
    let manifest = manager.backup(Which::Fleet, site.dir.path().join("backup")).await.unwrap();
    let file = manifest.file(&Scope::Router(id.clone())).unwrap();
    assert_eq!(file.annexes.len(), 1);
    store.shutdown().await.unwrap();
    fs::remove_dir_all(annex_dir(&site)).unwrap();
    manager.restore(&Manifest::read(&manifest.dir).unwrap(), RestoreMode::Router(id.clone())).await.unwrap();
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (manager, store) = site.open().await;
    let query = || Query::scope(scope.clone());
    assert_eq!(read_ids(&store, query()).await, ids);
    ids.extend(flush_large(&manager, &store, &scope).await);
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    store.shutdown().await.unwrap();

    // And without a backup, by what is left of the rows.
    fs::remove_dir_all(&manifest.dir).unwrap();
    manager.quarantine(&id, "a test").await.unwrap();
    assert!(matches!(manager.recover(&id).await.unwrap(), Recovery::Replaced { .. }));
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(read_ids(&store, query()).await, ids);
}
