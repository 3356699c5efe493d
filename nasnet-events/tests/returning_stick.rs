//! The loop while the medium of the archive is away and when it returns: nothing is lost, nobody has to help.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{ColdState, EventStore, Expected, Query, Status, prepare_cold_dir};
use support::{Site, empty_hot, empty_warm, event, normal, read_ids, router, stream, with_cold};
use ulid::Ulid;

const DAY: Duration = Duration::from_secs(24 * 3_600);

fn scopes() -> [Scope; 3] {
    [Scope::System, router("r1"), router("r2")]
}

/// Two events of each scope, one of them durable at once.
async fn append(manager: &DbManager, store: &EventStore) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for scope in scopes() {
        for event in [normal(manager), event(manager, "config.applied")] {
            ids.push(event.id);
            store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
        }
    }
    ids
}

fn unarchived(status: &Status) -> u64 {
    status.warm.iter().flatten().map(|scope| scope.unarchived.unwrap()).sum()
}

/// Looks until the store is as wanted; the loop works meanwhile.
async fn until(store: &EventStore, wanted: impl Fn(&Status) -> bool) -> Status {
    loop {
        let status = store.status().await.unwrap();
        if wanted(&status) {
            return status;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_goes_on_without_the_stick_shows_what_waits_and_catches_up_by_itself() {
    let site = Site::new();
    let mut options = with_cold(&site);
    options.flush_interval = Duration::from_millis(10);
    let (manager, store) = site.open_with(options).await;
    let away = site.dir.path().join("away");
    let own = store.clone();
    let mut ids = Vec::new();
    own.maintain(async {
        // It was never there.
        ids.extend(append(&manager, &store).await);
        let status = until(&store, |status| unarchived(status) == 6).await;
        assert!(matches!(status.cold_state, ColdState::Absent(_)));
        assert!(!site.cold().exists(), "nothing is written under an absent mount point");
        prepare_cold_dir(&manager, &site.cold()).unwrap();
        let status = until(&store, |status| unarchived(status) == 0).await;
        assert_eq!((status.cold_state, status.cold.events), (ColdState::Present, 6));

        // Gone for weeks: far longer than anything is kept on flash once it is archived.
        std::fs::rename(site.cold(), &away).unwrap();
        for week in 1..=5 {
            ids.extend(append(&manager, &store).await);
            site.clock.advance(7 * DAY);
            let status = until(&store, |status| unarchived(status) == week * 6 && status.unflushed == 0).await;
            assert!(matches!(status.cold_state, ColdState::Absent(_)));
        }
        assert!(!site.cold().exists());
        assert_eq!(read_ids(&store, Query::all()).await[..6].len(), 6);

        // An empty directory in its place is not taken for it.
        std::fs::create_dir(site.cold()).unwrap();
        site.clock.advance(DAY);
        ids.extend(append(&manager, &store).await);
        until(&store, |status| unarchived(status) == 36 && status.unflushed == 0).await;
        assert_eq!(std::fs::read_dir(site.cold()).unwrap().count(), 0);
        std::fs::remove_dir(site.cold()).unwrap();

        std::fs::rename(&away, site.cold()).unwrap();
        let status = until(&store, |status| unarchived(status) == 0).await;
        assert_eq!((status.cold_state, status.cold.events), (ColdState::Present, 42));
    })
    .await
    .unwrap();
    empty_hot(&manager).await;
    for scope in scopes() {
        empty_warm(&manager, &scope).await;
    }
    assert_eq!(read_ids(&store, Query::all()).await, ids, "all of it is on the stick, once");
}
