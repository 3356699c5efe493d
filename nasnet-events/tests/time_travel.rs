//! What was known at some time.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use nasnet_dbmanager::ClockQuality;
use nasnet_events::history::{Snapshot, Until, events_after, events_until};
use nasnet_events::{Error, EventStore, Expected, FlushReason, Position, Query};
use support::{NOW_MS, Site, empty_hot, keep_nothing, normal, read, router, stream};

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

#[tokio::test]
async fn a_history_goes_on_behind_a_snapshot_of_what_retention_removed() {
    let site = Site::new();
    let (manager, store) = site.open_with(keep_nothing()).await;
    let (scope, name) = (router("r1"), stream("s"));
    let append = async || {
        store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    };
    for _ in 0..4 {
        append().await;
    }
    let all = read(&store, Query::all()).await;
    store.mark_age().await.unwrap();
    site.clock.advance(Duration::from_secs(60));
    store.mark_age().await.unwrap();
    append().await;
    // The four are old; the newest segment is not.
    assert_eq!(store.retain(store.retention_plan().await.unwrap()).await.unwrap().events, 4);
    append().await;
    empty_hot(&manager).await;

    let end = Until::Position(Position::END);
    let after = async |index: usize, until: Until| {
        let events = events_after(&store, &scope, &name, Snapshot::at(&all[index]), until).await?;
        Ok::<Vec<u64>, Error>(events.try_collect::<Vec<_>>().await?.into_iter().map(|event| event.version).collect())
    };
    assert_eq!(after(3, end).await.unwrap(), [5, 6]);
    assert_eq!(after(3, Until::WallMs(i64::MAX)).await.unwrap(), [5, 6]);
    assert_eq!(after(3, Until::Position(all[3].position)).await.unwrap(), [0_u64; 0], "the snapshot is all of it");
    for index in [0, 2] {
        let guess = after(index, end).await;
        assert!(matches!(guess, Err(Error::BeyondHorizon { .. })), "versions behind {} are gone: {guess:?}", index + 1);
    }
    let backwards = after(3, Until::Position(all[1].position)).await;
    assert!(matches!(backwards, Err(Error::Invalid { what: "snapshot", .. })), "{backwards:?}");
    let whole = events_until(&store, &scope, &name, end).await.err();
    assert!(matches!(whole, Some(Error::BeyondHorizon { .. })), "{whole:?}");
}

#[tokio::test]
async fn an_instant_within_what_cannot_be_read_is_told_as_unreadable() {
    const BREAK: &str = "DROP TRIGGER event_segments_are_immutable; UPDATE event_segments SET body = x'00' \
         WHERE first_pos = (SELECT first_pos FROM event_segments ORDER BY first_pos LIMIT 1 OFFSET 1)";
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("s"));
    for number in 0..9 {
        store.append(&scope, &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        site.clock.advance(Duration::from_secs(10));
        if number % 3 == 2 {
            store.flush(FlushReason::Requested).await.unwrap();
        }
    }
    empty_hot(&manager).await;
    support::on_scope(&manager, &scope, BREAK).await;
    let told = async |seconds: i64| -> Vec<String> {
        let events = events_until(&store, &scope, &name, Until::WallMs(NOW_MS + seconds * 1_000)).await.unwrap();
        let item = |item: Result<nasnet_events::Recorded, Error>| match item {
            Ok(event) => event.version.to_string(),
            Err(Error::Corrupt { .. }) => "damaged".to_owned(),
            Err(Error::VersionGap { .. }) => "gap".to_owned(),
            Err(error) => panic!("{error:?}"),
        };
        events.map(item).collect().await
    };
    assert_eq!(told(15).await, ["1", "2"], "before it nothing is missing");
    assert_eq!(told(45).await, ["1", "2", "3", "damaged"]);
    let beyond = told(65).await;
    assert!(beyond.contains(&"damaged".to_owned()) && beyond.ends_with(&["7".to_owned()]), "{beyond:?}");
}
