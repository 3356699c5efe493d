//! Events about a subject: sealed wherever they are, readable while their key exists, and gone with it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use nasnet_dbmanager::{Scope, Which};
use nasnet_events::{
    Body, Durability, Error, EventStore, Expected, FlushReason, NewEvent, Query, StreamAppend, Subject,
    prepare_cold_dir, types,
};
use support::{Site, TEST, append_in, kind, read, router, stream, with_cold};

const CANARY: &str = "canary-81f3-the-facts";

fn anna() -> Subject {
    Subject::parse("user/anna").unwrap()
}

fn about(manager: &nasnet_dbmanager::DbManager, name: &str, subject: Subject) -> NewEvent {
    NewEvent::new(manager.next_ulid(), kind(name), &serde_json::json!({ "told": CANARY })).unwrap().subject(subject)
}

fn all_files(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_files(&path, found);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
}

fn files_with(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    all_files(dir, &mut files);
    assert!(files.len() > 5, "there is something to scan");
    let found = files.into_iter().filter(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle));
    found.map(|(path, _)| path).collect()
}

/// The keys of a subject as they are stored, sealed under the master key.
async fn stored_keys(manager: &nasnet_dbmanager::DbManager) -> Vec<Vec<u8>> {
    manager
        .system()
        .read(TEST, |conn| {
            Box::pin(async move {
                let sql = "SELECT sealed_key FROM event_subjects WHERE shredded_ms = 0 ORDER BY number";
                Ok::<_, Error>(sqlx::query_scalar(sql).fetch_all(conn).await?)
            })
        })
        .await
        .unwrap()
}

async fn bodies(store: &EventStore, query: Query) -> Vec<Body> {
    read(store, query).await.into_iter().map(|event| event.body).collect()
}

/// One event about Anna in each place an event can be: archived, in a segment, in a row, and in hot.db only.
async fn everywhere(site: &Site) -> (nasnet_dbmanager::DbManager, EventStore) {
    let (manager, store) = site.open_with(with_cold(site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let (scope, name) = (router("r1"), stream("s"));
    for name_of in ["resource.updated", "config.applied", "metric.updated"] {
        let events = vec![about(&manager, name_of, anna())];
        store.append(&scope, &name, Expected::Any, events).await.unwrap();
    }
    store.archive().await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", anna())]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let inside = StreamAppend::new(name.clone(), Expected::Any, vec![about(&manager, "auth.login.failed", anna())]);
    append_in(&manager, &store, &scope, vec![inside]).await.unwrap();
    let inside = StreamAppend::new(name.clone(), Expected::Any, vec![about(&manager, "auth.login.failed", anna())]);
    append_in(&manager, &store, &Scope::System, vec![inside]).await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", anna())]).await.unwrap();
    (manager, store)
}

#[tokio::test]
async fn facts_about_a_subject_are_readable_and_in_clear_nowhere() {
    let site = Site::new();
    let (manager, store) = everywhere(&site).await;
    let events = read(&store, Query::all()).await;
    assert_eq!(events.len(), 7);
    for event in &events {
        assert_eq!(event.body_as::<serde_json::Value>().unwrap()["told"], CANARY);
        assert_eq!(event.subject, Some(anna()));
    }
    assert_eq!(files_with(site.dir.path(), CANARY.as_bytes()), Vec::<PathBuf>::new());
    // Whoever hands events on gets what is stored.
    let mut stored = store.read_stored(Query::all());
    while let Some(event) = stored.next().await {
        let event = event.unwrap();
        assert!(event.body.is_sealed());
        assert!(matches!(event.body_as::<serde_json::Value>(), Err(Error::Unopened { shredded: false, .. })));
        assert!(!serde_json::to_string(&event).unwrap().contains(CANARY));
    }
    // Nothing shows facts by accident.
    let event = about(&manager, "resource.updated", anna());
    assert!(!format!("{event:?} {:?} {:?}", events[0], events[0].body).contains(CANARY));
}

#[tokio::test]
async fn a_shredded_subject_is_gone_from_every_tier_and_its_key_from_every_file() {
    let site = Site::new();
    let (manager, store) = everywhere(&site).await;
    let (scope, name) = (router("r1"), stream("other"));
    let ben = Subject::parse("user/ben").unwrap();
    // Enough subjects that their keys fill pages, and change places if anything makes them.
    for number in 0..90 {
        let subject = Subject::parse(&format!("user/{number}")).unwrap();
        store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", subject)]).await.unwrap();
    }
    store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", ben.clone())]).await.unwrap();
    let keys = stored_keys(&manager).await;
    assert_eq!(keys.len(), 92);
    let tail = |key: &Vec<u8>| key[key.len() - 32..].to_vec();
    assert!(!files_with(site.dir.path(), &tail(&keys[0])).is_empty(), "the key is somewhere before");

    let shredded = store.shred(&anna()).await.unwrap();
    assert_eq!((shredded.keys, shredded.copies.len()), (1, 0));
    assert_eq!(files_with(site.dir.path(), &tail(&keys[0])), Vec::<PathBuf>::new());
    assert!(!files_with(site.dir.path(), &tail(&keys[91])).is_empty(), "the keys of others stay");

    let events = read(&store, Query::all().stream(stream("s"))).await;
    assert_eq!(events.len(), 7);
    for event in &events {
        assert_eq!(event.body, Body::Shredded);
        assert!(matches!(event.body_as::<serde_json::Value>(), Err(Error::Unopened { shredded: true, .. })));
    }
    assert_eq!(read(&store, Query::all().stream(name.clone())).await.len(), 91, "others are readable");
    let tombstones = read(&store, Query::all().kind(types::STORE_SHREDDED)).await;
    assert_eq!(tombstones.len(), 1);
    assert_eq!(tombstones[0].position, shredded.tombstone.unwrap().first);
    assert_eq!(tombstones[0].body_as::<serde_json::Value>().unwrap()["subject"], "user/anna");

    // Again: nothing left to destroy. A new event about the subject gets a new key and does not revive the old ones.
    assert_eq!(store.shred(&anna()).await.unwrap().keys, 0);
    store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", anna())]).await.unwrap();
    assert!(matches!(bodies(&store, Query::all().stream(name)).await[91], Body::Json(_)));
    assert!(bodies(&store, Query::all().stream(stream("s"))).await.iter().all(Body::is_shredded));
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    let (_manager, store) = site.open_with(with_cold(&site)).await;
    assert!(bodies(&store, Query::all().stream(stream("s"))).await.iter().all(Body::is_shredded));
}

#[tokio::test]
async fn a_copy_of_the_key_that_is_left_in_the_data_directory_is_reported() {
    let site = Site::new();
    let (manager, store) = everywhere(&site).await;
    manager.system().checkpoint().await.unwrap();
    let aside = site.data().join("backup/older-system.db");
    std::fs::create_dir_all(aside.parent().unwrap()).unwrap();
    std::fs::copy(manager.system().path(), &aside).unwrap();
    let shredded = store.shred(&anna()).await.unwrap();
    assert_eq!(shredded.copies, [aside]);
}

#[tokio::test]
async fn a_backup_in_the_data_directory_is_reported_though_it_is_compressed() {
    let site = Site::new();
    let (manager, store) = everywhere(&site).await;
    let backups = site.data().join("backup");
    manager.backup(Which::Fleet, &backups).await.unwrap();
    // Beside much text the key is not in it as it is anywhere.
    manager.system().checkpoint().await.unwrap();
    let mut state = 7_u64;
    let mut text = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b"abcdefghijklmnop"[usize::try_from(state >> 60).unwrap()]
    });
    let mut mixed = Vec::new();
    for page in std::fs::read(manager.system().path()).unwrap().chunks(4_096) {
        mixed.extend_from_slice(page);
        mixed.extend(text.by_ref().take(4_096));
    }
    let apart = backups.join("apart.zst");
    std::fs::write(&apart, zstd::encode_all(&mixed[..], 9).unwrap()).unwrap();
    std::fs::write(backups.join("torn.zst"), [0x28, 0xB5, 0x2F, 0xFD, 0]).unwrap();
    let mut shredded = store.shred(&anna()).await.unwrap();
    shredded.copies.sort();
    let [other, copy] = &shredded.copies[..] else { panic!("{:?}", shredded.copies) };
    assert!(copy.starts_with(&backups) && copy.ends_with("system.db.zst"), "{}", copy.display());
    assert_eq!(*other, apart);
}

/// Asking again after an unfinished shredding looks again, and says so when nobody can look any more.
#[tokio::test]
async fn a_shredding_that_is_asked_for_again_is_not_taken_for_finished_without_a_look() {
    let site = Site::new();
    let (manager, store) = everywhere(&site).await;
    manager.system().checkpoint().await.unwrap();
    let backup = site.data().join("backup/older-system.db");
    std::fs::create_dir_all(backup.parent().unwrap()).unwrap();
    std::fs::copy(manager.system().path(), &backup).unwrap();
    let live = site.data().join("system.db-copied");
    std::fs::copy(manager.system().path(), &live).unwrap();
    for attempt in 0..2 {
        let unfinished = store.shred(&anna()).await;
        assert!(matches!(&unfinished, Err(Error::ShredUnfinished { .. })), "{attempt}: {unfinished:?}");
    }
    std::fs::remove_file(&live).unwrap();
    let shredded = store.shred(&anna()).await.unwrap();
    assert_eq!((shredded.keys, shredded.copies, shredded.unsearched), (0, vec![backup.clone()], 0));
    let again = store.shred(&anna()).await.unwrap();
    assert_eq!((again.keys, again.copies.len(), again.unsearched), (0, 0, 0), "it was told once");

    // The next one does not come to an end in this process.
    let ben = Subject::parse("user/ben").unwrap();
    let event = about(&manager, "resource.updated", ben.clone());
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    manager.system().checkpoint().await.unwrap();
    std::fs::copy(manager.system().path(), &live).unwrap();
    assert!(matches!(store.shred(&ben).await, Err(Error::ShredUnfinished { .. })));
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    let (_manager, store) = site.open_with(with_cold(&site)).await;
    let shredded = store.shred(&ben).await.unwrap();
    assert_eq!((shredded.keys, shredded.unsearched), (0, 1), "nobody knows what to look for");
}

#[tokio::test]
async fn repeating_a_sealed_append_is_recognised_and_other_facts_are_not() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for event in [about(&manager, "resource.updated", anna()), about(&manager, "config.applied", anna())] {
        let first = store.append(&scope, &name, Expected::Any, vec![event.clone()]).await.unwrap();
        let again = store.append(&scope, &name, Expected::Any, vec![event.clone()]).await.unwrap();
        assert!(again.deduplicated);
        assert_eq!(again.first, first.first);
        let mut other = event;
        other.body = serde_json::value::to_raw_value(&"other").unwrap();
        let other = store.append(&scope, &name, Expected::Any, vec![other]).await;
        assert!(matches!(other, Err(Error::IdReused { .. })), "{other:?}");
    }
}

#[tokio::test]
async fn a_missing_key_is_an_error_of_its_events_and_of_no_other() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    store.append(&scope, &name, Expected::Any, vec![about(&manager, "resource.updated", anna())]).await.unwrap();
    store.append(&scope, &name, Expected::Any, vec![support::normal(&manager)]).await.unwrap();
    // As after the restore of an older system.db.
    support::on_scope(&manager, &Scope::System, "DELETE FROM event_subjects").await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert!(matches!(&items[0], Err(Error::KeyMissing { subject, .. }) if *subject == anna()), "{items:?}");
    assert!(items[1].is_ok());
    assert_eq!(store.read_stored(Query::all()).count().await, 2);
}

#[tokio::test]
async fn a_damaged_key_is_an_error_of_its_events_and_of_no_other() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name, ben) = (router("r1"), stream("s"), Subject::parse("user/ben").unwrap());
    for event in [
        about(&manager, "resource.updated", anna()),
        support::normal(&manager),
        about(&manager, "resource.updated", ben),
    ] {
        store.append(&scope, &name, Expected::Any, vec![event]).await.unwrap();
    }
    support::on_scope(
        &manager,
        &Scope::System,
        "UPDATE event_subjects SET sealed_key = CAST(substr(sealed_key, 1, 30) || x'00ff' || substr(sealed_key, 33) AS BLOB)
            WHERE subject = 'user/anna'",
    )
    .await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert_eq!(items.len(), 3, "{items:?}");
    assert!(matches!(&items[0], Err(Error::Corrupt { .. })), "{items:?}");
    assert!(
        items[1..].iter().all(|item| matches!(item, Ok(event) if matches!(event.body, Body::Json(_)))),
        "{items:?}"
    );
    // A consumer is told and goes on.
    let mut reading = store.subscribe(support::watch::consumer("c")).await.unwrap();
    let (mut shown, mut told) = (0, 0);
    loop {
        match reading.next().await.unwrap() {
            Ok(nasnet_events::Item::CaughtUp { .. }) => break,
            Ok(_) => shown += 1,
            Err(error) => told += usize::from(matches!(error, Error::Corrupt { .. })),
        }
    }
    assert_eq!((shown, told), (2, 1));
}

#[tokio::test]
async fn a_key_of_a_transaction_that_rolls_back_is_used_by_nobody() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let inside = StreamAppend::new(stream("s"), Expected::Any, vec![about(&manager, "config.applied", anna())]);
    let rolled_back = support::transaction(&manager, &store, &Scope::System, vec![inside], false).await;
    assert!(rolled_back.is_err());
    assert_eq!(stored_keys(&manager).await.len(), 0);
    let event = about(&manager, "resource.updated", anna());
    store.append_with(&Scope::System, &stream("s"), Expected::Any, vec![event], Durability::Durable).await.unwrap();
    assert_eq!(stored_keys(&manager).await.len(), 1);
    assert!(matches!(bodies(&store, Query::all()).await[0], Body::Json(_)));
}
