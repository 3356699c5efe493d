//! What was known at some time.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::TryStreamExt;
use nasnet_dbmanager::ClockQuality;
use nasnet_events::history::{Until, events_until};
use nasnet_events::{EventStore, Expected, FlushReason};
use support::{NOW_MS, Site, normal, router, stream};

async fn versions(store: &EventStore, until: Until) -> Vec<u64> {
    let events = events_until(store, &router("r1"), &stream("s"), until).await.unwrap();
    events.try_collect::<Vec<_>>().await.unwrap().into_iter().map(|event| event.version).collect()
}

#[tokio::test]
async fn a_history_ends_at_a_position_or_an_instant() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let mut positions = Vec::new();
    for number in 0..6 {
        if number > 0 {
            site.clock.advance(Duration::from_secs(10));
        }
        let receipt = store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        store.append(&scope, &stream("other"), Expected::Any, vec![normal(&manager)]).await.unwrap();
        positions.push(receipt.first);
        if number == 2 {
            store.flush(FlushReason::Requested).await.unwrap();
        }
    }
    for (index, position) in positions.iter().enumerate() {
        let expected: Vec<u64> = (1..=index as u64 + 1).collect();
        assert_eq!(versions(&store, Until::Position(*position)).await, expected);
        let at = NOW_MS + i64::try_from(index).unwrap() * 10_000;
        assert_eq!(versions(&store, Until::WallMs(at)).await, expected);
        assert_eq!(versions(&store, Until::WallMs(at + 9_999)).await, expected);
    }
    assert!(versions(&store, Until::WallMs(NOW_MS - 1)).await.is_empty());
    assert_eq!(versions(&store, Until::WallMs(i64::MAX)).await.len(), 6);
}

#[tokio::test]
async fn a_clock_in_1970_hides_no_event_of_the_same_boot() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    let append = || async { store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap() };
    append().await;
    // The clock is lost and goes on from 1970; the time since the boot does not.
    site.clock.set_quality(ClockQuality::Unsynced);
    site.clock.set_wall_ms(0);
    site.clock.advance(Duration::from_secs(10));
    append().await;
    site.clock.advance(Duration::from_secs(10));
    append().await;
    site.clock.set_quality(ClockQuality::Synced);
    site.clock.set_wall_ms(NOW_MS + 30_000);
    append().await;
    assert_eq!(versions(&store, Until::WallMs(NOW_MS)).await, [1]);
    assert_eq!(versions(&store, Until::WallMs(NOW_MS + 10_000)).await, [1, 2]);
    assert_eq!(versions(&store, Until::WallMs(NOW_MS + 29_999)).await, [1, 2, 3]);
    assert_eq!(versions(&store, Until::WallMs(NOW_MS + 30_000)).await, [1, 2, 3, 4]);
}
