//! A router that cannot be read keeps a consumer of all scopes from none of the others, and nothing of it is skipped in
//! silence.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, NewRouter, RouterId, Scope, Which};
use nasnet_events::forward::{Forwarder, StoreSink};
use nasnet_events::{
    ConsumerName, Error, EventStore, Expected, Filter, FlushReason, Item, LeftOut, Query, StreamAppend, Subscription,
};
use support::watch::{consumer, next, until_caught_up};
use support::{Site, empty_hot, normal, on_scope, read, read_ids, router, stream};
use ulid::Ulid;

const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
const UNTELLABLE: &str = "INSERT INTO event_truncated (after_pos, through_pos, events, lost, by, scope)
    SELECT MAX(last_pos) - 1, MAX(last_pos), 1, 0, 'retention', '!' FROM event_segments";
const MEND: &str = "ALTER TABLE elsewhere RENAME TO event_segments";

/// Three routers; nobody waits for what fails.
async fn fleet(site: &Site) -> (DbManager, EventStore) {
    fleet_with(site, Duration::ZERO).await
}

async fn fleet_with(site: &Site, stall_after: Duration) -> (DbManager, EventStore) {
    let mut options = support::with_cold(site);
    options.stall_after = stall_after;
    let (manager, store) = site.open_with(options).await;
    if manager.system().routers().list().await.unwrap().len() == 2 {
        manager.create_router(NewRouter::new(RouterId::parse("r3").unwrap())).await.unwrap();
        nasnet_events::prepare_cold_dir(&manager, &site.cold()).unwrap();
    }
    (manager, store)
}

async fn append(manager: &DbManager, store: &EventStore, id: &str) -> Ulid {
    let event = normal(manager);
    let ulid = event.id;
    store.append(&router(id), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    ulid
}

/// Appends to all three routers, some rounds, and leaves all of it below the hot tier.
async fn fill(manager: &DbManager, store: &EventStore, rounds: usize) -> Vec<(&'static str, Ulid)> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        for id in ["r1", "r2", "r3"] {
            all.push((id, append(manager, store, id).await));
        }
    }
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(manager).await;
    all
}

fn of(all: &[(&str, Ulid)], wanted: &[&str]) -> Vec<Ulid> {
    all.iter().filter(|(id, _)| wanted.contains(id)).map(|(_, ulid)| *ulid).collect()
}

fn ids(items: &[Item]) -> Vec<Ulid> {
    items.iter().filter_map(Item::event).map(|event| event.id).collect()
}

fn left(items: &[Item]) -> Vec<LeftOut> {
    let left = |item: &Item| match item {
        Item::LeftOut { left, position } => {
            assert_eq!(*position, left.after);
            Some(left.clone())
        }
        _ => None,
    };
    items.iter().filter_map(left).collect()
}

/// The next return that is told, and whether the router is gone.
async fn returned(subscription: &mut Subscription) -> (LeftOut, bool) {
    loop {
        if let Item::Returned { left, retired, .. } = next(subscription).await {
            return (left, retired);
        }
    }
}

fn name() -> ConsumerName {
    ConsumerName::parse("all").unwrap()
}

#[tokio::test]
async fn gaps_that_stall_subscribers_the_other_routers_are_read_live_and_the_broken_one_comes_later() {
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let mut all = fill(&manager, &store, 700).await;
    manager.backup(Which::Router(RouterId::parse("r2").unwrap()), site.dir.path().join("backup")).await.unwrap();
    manager.quarantine(&RouterId::parse("r2").unwrap(), "told by a test").await.unwrap();

    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), of(&all, &["r1", "r3"]));
    let told = left(&items);
    assert_eq!((told.len(), &told[0].scope), (1, &router("r2")), "once, whatever the number of pages: {told:?}");
    assert!(told[0].why.contains("quarantined"), "{}", told[0].why);
    for id in ["r1", "r3"] {
        all.push((id, append(&manager, &store, id).await));
        let Item::Event(event) = next(&mut subscription).await else { panic!() };
        assert_eq!(event.id, all.last().unwrap().1, "live");
        subscription.ack(event.position).await.unwrap();
    }
    let listed = store.left_out(&name()).await.unwrap();
    assert_eq!(listed, told);

    // What was left out outlives the subscription, and the process.
    subscription.close().await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((store, manager));
    let (manager, store) = fleet(&site).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    assert_eq!(ids(&until_caught_up(&mut subscription).await), []);

    manager.recover(&RouterId::parse("r2").unwrap()).await.unwrap();
    // It appends again before anybody has read what it had.
    all.push(("r2", append(&manager, &store, "r2").await));
    let mut live = Vec::new();
    let back = loop {
        match next(&mut subscription).await {
            Item::Event(event) => live.push(event.id),
            Item::Returned { left, removed, retired, .. } => {
                assert!(removed.is_empty() && !retired);
                break left;
            }
            _ => {}
        }
    };
    while live.is_empty() {
        live.extend(next(&mut subscription).await.event().map(|event| event.id));
    }
    assert_eq!(live, [all.last().unwrap().1]);
    assert_eq!(back, listed[0]);
    let late = read_ids(&store, back.query(&Filter::all())).await;
    assert_eq!(late, of(&all[..2_100], &["r2"]), "all of it, and nothing that was shown");
    store.settle(&name(), &back).await.unwrap();
    assert_eq!(store.left_out(&name()).await.unwrap(), []);
}

#[tokio::test]
async fn a_router_that_is_retired_instead_of_repaired_is_told_as_gone() {
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let all = fill(&manager, &store, 10).await;
    store.archive().await.unwrap();
    let late = fill(&manager, &store, 1).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), [of(&all, &["r1", "r3"]), of(&late, &["r1", "r3"])].concat());
    let told = left(&items);
    assert_eq!(told.len(), 1, "what the archive has of the router is left out too, to come in order: {told:?}");

    manager.retire(&RouterId::parse("r2").unwrap()).await.unwrap();
    let (back, retired) = returned(&mut subscription).await;
    assert_eq!((&back, retired), (&told[0], true));
    let archived = read_ids(&store, back.query(&Filter::all())).await;
    assert_eq!(archived, of(&all, &["r2"]), "what the archive has is all there is");
}

#[tokio::test]
async fn others_wait_for_a_while_before_they_go_on() {
    let site = Site::new();
    let (manager, store) = fleet_with(&site, Duration::from_secs(30)).await;
    let all = fill(&manager, &store, 2).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    use futures_util::StreamExt;
    let first = subscription.next().await.unwrap();
    assert!(matches!(&first, Err(Error::Unreadable { scope, .. }) if *scope == router("r2")), "{first:?}");
    // It was for a moment only: nothing is left out.
    on_scope(&manager, &router("r2"), MEND).await;
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), of(&all, &["r1", "r2", "r3"]));
    drop(subscription);

    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("another")).await.unwrap();
    let waits = subscription.next().await.unwrap();
    assert!(matches!(&waits, Err(Error::Unreadable { scope, .. }) if *scope == router("r2")), "{waits:?}");
    site.clock.advance(Duration::from_secs(30));
    let items = until_caught_up(&mut subscription).await;
    assert_eq!((ids(&items), left(&items).len()), (of(&all, &["r1", "r3"]), 1));
    // Whoever comes next does not wait again.
    let items = until_caught_up(&mut store.subscribe(consumer("third")).await.unwrap()).await;
    assert_eq!(left(&items).len(), 1);
}

#[tokio::test]
async fn a_consumer_of_one_router_waits_for_it_and_leaves_nothing_out() {
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let all = fill(&manager, &store, 2).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let one = consumer("one").filter(Filter::all().scope(router("r2")));
    let mut subscription = store.subscribe(one).await.unwrap();
    use futures_util::StreamExt;
    assert!(matches!(subscription.next().await.unwrap(), Err(Error::Unreadable { .. })));
    on_scope(&manager, &router("r2"), MEND).await;
    assert_eq!(ids(&until_caught_up(&mut subscription).await), of(&all, &["r2"]));
}

#[tokio::test]
async fn a_power_cut_before_the_checkpoint_reads_again_what_was_left_out() {
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let all = fill(&manager, &store, 3).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(left(&items).len(), 1);
    // Nothing was acknowledged.
    drop(subscription);
    on_scope(&manager, &router("r2"), MEND).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), of(&all, &["r1", "r2", "r3"]), "all of it is shown, so nothing is left out");
    assert_eq!(store.left_out(&name()).await.unwrap(), []);
}

#[tokio::test]
async fn a_failure_right_after_a_router_was_left_out_does_not_swallow_what_tells_of_it() {
    use futures_util::StreamExt;
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let all = fill(&manager, &store, 2).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    on_scope(&manager, &router("r2"), BREAK).await;
    // What a page is arranged with is looked up in system.db, too.
    on_scope(&manager, &Scope::System, "ALTER TABLE event_epochs RENAME TO elsewhere").await;
    let failed = subscription.next().await.unwrap();
    assert!(failed.unwrap_err().to_string().contains("event_epochs"));
    on_scope(&manager, &Scope::System, "ALTER TABLE elsewhere RENAME TO event_epochs").await;
    let items = until_caught_up(&mut subscription).await;
    assert_eq!((ids(&items), left(&items)), (of(&all, &["r1", "r3"]), store.left_out(&name()).await.unwrap()));
    assert_eq!(left(&items).len(), 1);
}

#[tokio::test]
async fn retention_waits_for_what_was_left_out_and_for_nothing_else() {
    let site = Site::new();
    let mut options = support::keep_nothing();
    options.stall_after = Duration::ZERO;
    let (manager, store) = site.open_with(options).await;
    let mut all = Vec::new();
    for id in ["r1", "r2"] {
        all.push(append(&manager, &store, id).await);
    }
    store.flush(FlushReason::Requested).await.unwrap();
    // The newest segment of a scope stays.
    for id in ["r1", "r2"] {
        append(&manager, &store, id).await;
    }
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    subscription.ack(items.last().unwrap().position()).await.unwrap();
    subscription.close().await.unwrap();
    on_scope(&manager, &router("r2"), MEND).await;
    let guards = store.guards().await.unwrap();
    assert_eq!(guards.len(), 2, "{guards:?}");
    assert!(guards[0].filter.wants_scope(&router("r2")) && !guards[0].filter.wants_scope(&router("r1")));

    store.mark_age().await.unwrap();
    site.clock.advance(Duration::from_secs(60));
    store.mark_age().await.unwrap();
    store.retain(store.retention_plan().await.unwrap()).await.unwrap();
    let kept: Vec<Scope> = read(&store, Query::all()).await.into_iter().map(|event| event.scope).collect();
    assert_eq!(kept, [router("r2"), router("r1"), router("r2")]);
    let left = store.left_out(&name()).await.unwrap();
    store.settle(&name(), &left[0]).await.unwrap();
    store.retain(store.retention_plan().await.unwrap()).await.unwrap();
    let kept: Vec<Scope> = read(&store, Query::all()).await.into_iter().map(|event| event.scope).collect();
    assert_eq!(kept, [router("r1"), router("r2")]);
}

/// Whatever fails begins the forwarding anew, which must not begin the patience anew.
#[tokio::test]
async fn a_forwarder_leaves_out_a_router_that_cannot_tell_what_was_removed_from_it() {
    let (site, elsewhere) = (Site::new(), Site::new());
    let (manager, store) = fleet_with(&site, Duration::from_secs(30)).await;
    let (_target_manager, target) = elsewhere.open().await;
    let all = fill(&manager, &store, 3).await;
    on_scope(&manager, &router("r1"), UNTELLABLE).await;
    let forwarder = Forwarder::new(store.clone(), consumer("all"), StoreSink::new(target.clone(), router("r2")));
    for _ in 0..2 {
        let mut forwarding = forwarder.open().await.unwrap();
        let failed = forwarding.round().await.unwrap_err();
        assert!(matches!(&failed, Error::Unreadable { scope, .. } if *scope == router("r1")), "{failed}");
        forwarding.close().await.unwrap();
        site.clock.advance(Duration::from_secs(15));
    }
    let mut forwarding = forwarder.open().await.unwrap();
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.missed), (6, 0), "{round:?}");
    let mut arrived = read_ids(&target, Query::all()).await;
    arrived.sort();
    assert_eq!(arrived, of(&all, &["r2", "r3"]));

    on_scope(&manager, &router("r1"), "DELETE FROM event_truncated WHERE scope = '!'").await;
    site.clock.advance(Duration::from_secs(30));
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.missed), (3, 0), "{round:?}");
    // What fails anew is waited for anew.
    append(&manager, &store, "r1").await;
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(&manager).await;
    on_scope(&manager, &router("r1"), UNTELLABLE).await;
    assert!(matches!(forwarding.round().await, Err(Error::Unreadable { .. })));
}

#[tokio::test]
async fn a_plain_read_says_once_which_range_of_which_router_it_misses() {
    use futures_util::StreamExt;
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let all = fill(&manager, &store, 700).await;
    let newest = append(&manager, &store, "r2").await;
    let end = store.status().await.unwrap().end;
    on_scope(&manager, &router("r2"), BREAK).await;
    let mut expected = of(&all, &["r1", "r3"]);
    expected.push(newest);
    for backwards in [false, true] {
        let query = if backwards { Query::all().backwards() } else { Query::all() };
        let items: Vec<_> = store.read(query).collect().await;
        let mut found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect();
        if backwards {
            found.reverse();
        }
        assert_eq!(found, expected);
        let errors: Vec<_> = items.iter().filter_map(|item| item.as_ref().err()).collect();
        let [Error::Unreadable { scope, after, through, .. }] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(*scope, router("r2"));
        assert!(after.seq == 0 && through.seq >= 2_100 && *through < end, "{after} {through}");
    }
}

#[tokio::test]
async fn a_transaction_whose_end_is_not_known_is_left_out_in_its_place_and_comes_later() {
    let site = Site::new();
    let (manager, store) = fleet(&site).await;
    let first = append(&manager, &store, "r2").await;
    let append_to_r2 = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let inside = append_to_r2.events[0].id;
    let pending = support::transaction(&manager, &store, &router("r2"), vec![append_to_r2], true).await.unwrap();
    // The database breaks before anybody hears of the commit.
    on_scope(&manager, &router("r2"), "ALTER TABLE event_rows RENAME TO elsewhere").await;
    drop(pending);
    let second = append(&manager, &store, "r1").await;
    store.resolve().await.unwrap();

    let mut subscription = store.subscribe(consumer("all")).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), [first, second]);
    let [Item::Event(_), Item::LeftOut { left, position }, Item::Event(_)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((left.after.seq, left.through.seq, position.seq), (1, 2, 1));
    subscription.ack(items.last().unwrap().position()).await.unwrap();
    // Live, while the end of the transaction is still not known.
    let third = append(&manager, &store, "r1").await;
    assert_eq!(next(&mut subscription).await.event().unwrap().id, third);
    assert_eq!(store.left_out(&name()).await.unwrap().len(), 1);

    on_scope(&manager, &router("r2"), "ALTER TABLE elsewhere RENAME TO event_rows").await;
    store.resolve().await.unwrap();
    let (back, retired) = returned(&mut subscription).await;
    assert_eq!((&back, retired), (left, false));
    assert_eq!(read_ids(&store, back.query(&Filter::all())).await, [inside]);
}
