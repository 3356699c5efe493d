//! What was removed is told to whoever might have wanted it, also when it cannot be looked up for a while.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::{RouterId, Scope};
use nasnet_events::{Error, EventOptions, Filter, FlushReason, Item, Subscription, Truncated, TruncatedBy};
use support::watch::{consumer, ids, last, next, until_caught_up};
use support::{Site, append_normal, empty_hot, on_scope, router};

/// The first event of the first epoch.
const REMOVE_FIRST: &str = "INSERT INTO event_truncated (after_pos, through_pos, events, lost, by)
    VALUES (1 << 40, (1 << 40) + 1, 1, 0, 'retention')";
const HIDE: &str = "ALTER TABLE event_truncated RENAME TO removals_elsewhere";
const SHOW: &str = "ALTER TABLE removals_elsewhere RENAME TO event_truncated";
const STALL_AFTER: Duration = Duration::from_secs(30);

fn options(stall_after: Duration) -> EventOptions {
    let mut options = EventOptions::default();
    options.stall_after = stall_after;
    options
}

fn told(items: &[Item]) -> Vec<Truncated> {
    let removed = |item: &Item| match item {
        Item::Truncated { removed, .. } => Some(removed.clone()),
        _ => None,
    };
    items.iter().filter_map(removed).collect()
}

async fn is_refused(subscription: &mut Subscription, router: &Scope) {
    let failed = subscription.next().await.unwrap();
    assert!(matches!(&failed, Err(Error::Unreadable { scope, .. }) if scope == router), "{failed:?}");
}

#[tokio::test]
async fn a_page_waits_while_it_is_not_known_what_was_removed_from_a_router() {
    let site = Site::new();
    let (manager, store) = site.open_with(options(STALL_AFTER)).await;
    let mut all = append_normal(&manager, &store, &router("r1"), 2).await;
    all.extend(append_normal(&manager, &store, &router("r2"), 1).await);
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r1"), REMOVE_FIRST).await;
    on_scope(&manager, &router("r1"), HIDE).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    is_refused(&mut subscription, &router("r1")).await;
    on_scope(&manager, &router("r1"), SHOW).await;
    let items = until_caught_up(&mut subscription).await;
    assert_eq!((ids(&items), told(&items).len()), (all, 1));
}

#[tokio::test]
async fn others_go_on_in_time_without_a_router_whose_removals_are_not_known_and_both_come_later() {
    let site = Site::new();
    let (manager, store) = site.open_with(options(STALL_AFTER)).await;
    append_normal(&manager, &store, &router("r1"), 2).await;
    let others = append_normal(&manager, &store, &router("r2"), 1).await;
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r1"), REMOVE_FIRST).await;
    on_scope(&manager, &router("r1"), HIDE).await;
    let mut of_one = store.subscribe(consumer("one").filter(Filter::all().scope(router("r1")))).await.unwrap();
    let mut of_all = store.subscribe(consumer("all")).await.unwrap();
    is_refused(&mut of_one, &router("r1")).await;
    is_refused(&mut of_all, &router("r1")).await;
    site.clock.advance(STALL_AFTER);
    is_refused(&mut of_one, &router("r1")).await;
    let items = until_caught_up(&mut of_all).await;
    assert_eq!(ids(&items), others);
    assert!(
        matches!(&items[..], [Item::LeftOut { left, .. }, Item::Event(_)] if left.scope == router("r1")),
        "{items:?}"
    );

    on_scope(&manager, &router("r1"), SHOW).await;
    site.clock.advance(STALL_AFTER);
    let Item::Returned { left, removed, .. } = next(&mut of_all).await else { panic!() };
    assert_eq!((left.scope, removed.len()), (router("r1"), 1));
    let items = until_caught_up(&mut of_one).await;
    assert_eq!((ids(&items).len(), told(&items).len()), (2, 1));
}

#[tokio::test]
async fn a_router_is_back_only_when_it_is_known_what_was_removed_from_it() {
    const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
    const MEND: &str = "ALTER TABLE elsewhere RENAME TO event_segments";
    let site = Site::new();
    let (manager, store) = site.open_with(options(Duration::ZERO)).await;
    append_normal(&manager, &store, &router("r2"), 2).await;
    append_normal(&manager, &store, &router("r1"), 1).await;
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert!(matches!(items[0], Item::LeftOut { .. }), "{items:?}");

    on_scope(&manager, &router("r2"), REMOVE_FIRST).await;
    on_scope(&manager, &router("r2"), HIDE).await;
    on_scope(&manager, &router("r2"), MEND).await;
    let live = append_normal(&manager, &store, &router("r1"), 1).await;
    let item = next(&mut subscription).await;
    assert_eq!(ids(std::slice::from_ref(&item)), live, "{item:?}");
    on_scope(&manager, &router("r2"), SHOW).await;
    let Item::Returned { left, removed, .. } = next(&mut subscription).await else { panic!() };
    assert_eq!((left.scope, removed.len()), (router("r2"), 1));
}

#[tokio::test]
async fn what_a_retired_router_took_along_is_told_to_a_consumer_that_names_its_routers() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let seen = append_normal(&manager, &store, &router("r2"), 1).await;
    let both = || consumer("both").filter(Filter::all().scope(router("r1")).scope(router("r2")));
    let other = || consumer("other").filter(Filter::all().scope(router("r2")));
    for consumer in [both(), other()] {
        let mut subscription = store.subscribe(consumer).await.unwrap();
        let items = until_caught_up(&mut subscription).await;
        assert_eq!(ids(&items), seen);
        subscription.ack(last(&items)).await.unwrap();
        subscription.close().await.unwrap();
    }

    append_normal(&manager, &store, &router("r1"), 3).await;
    let kept = append_normal(&manager, &store, &router("r2"), 1).await;
    manager.retire(&RouterId::parse("r1").unwrap()).await.unwrap();
    assert_eq!(store.flush(FlushReason::Requested).await.unwrap().given_up, 3);
    empty_hot(&manager).await;
    let items = until_caught_up(&mut store.subscribe(both()).await.unwrap()).await;
    assert_eq!(ids(&items), kept);
    let told = told(&items);
    let [removed] = &told[..] else { panic!("{items:?}") };
    assert_eq!((removed.events, &removed.by, &removed.scope), (3, &TruncatedBy::Retired, &Some(router("r1"))));
    let items = until_caught_up(&mut store.subscribe(other()).await.unwrap()).await;
    assert_eq!((ids(&items), items.len()), (kept, 1), "nobody else is told");
}
