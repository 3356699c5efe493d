//! Forwarding into a second store: exactly once, whatever is sent again.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::forward::{Forwarder, StoreSink};
use nasnet_events::{Consumer, ConsumerName, EventStore, Expected, Filter, Level, Query, Recorded};
use support::watch::consumer;
use support::{Site, empty_hot, event, normal, read, router, stream};

async fn append(store: &EventStore, manager: &DbManager, name: &str) {
    store.append(&router("r1"), &stream(name), Expected::Any, vec![normal(manager)]).await.unwrap();
}

fn facts(event: &Recorded) -> (ulid::Ulid, String, i64, String) {
    (event.id, event.body.get().to_owned(), event.wall_ms, event.kind.to_string())
}

#[tokio::test]
async fn a_second_store_gets_every_event_once_though_many_are_sent_again() {
    let (here, there) = (Site::new(), Site::new());
    let (target_manager, target) = there.open().await;
    let (manager, store) = here.open().await;
    for round in 0..30 {
        append(&store, &manager, if round % 3 == 0 { "a" } else { "b" }).await;
        here.clock.advance(Duration::from_secs(1));
    }
    let synced = event(&manager, "config.applied");
    store.append(&Scope::System, &stream("a"), Expected::Any, vec![synced]).await.unwrap();
    let original = read(&store, Query::all()).await;
    let forwarder = Forwarder::new(store.clone(), consumer("stick"), StoreSink::new(target.clone(), router("r1")));
    let forwarder = forwarder.batch_events(7);
    let mut forwarding = forwarder.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 31);
    drop(forwarding);

    // The source forgets how far it has come, as after a power cut, and sends everything again.
    assert!(store.forget_consumer(&ConsumerName::parse("stick").unwrap()).await.unwrap());
    append(&store, &manager, "a").await;
    let again = Forwarder::new(store.clone(), consumer("stick"), StoreSink::new(target.clone(), router("r1")));
    let mut forwarding = again.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 32);
    let arrived = read(&target, Query::all()).await;
    let original_facts: Vec<_> = original.iter().map(facts).collect();
    let mut arrived_facts: Vec<_> = arrived.iter().map(facts).collect();
    arrived_facts.sort();
    let mut expected = original_facts.clone();
    expected.push(facts(&read(&store, Query::all()).await[31]));
    expected.sort();
    assert_eq!(arrived_facts, expected, "same ids, facts and times, once each");
    for (from, to) in [("a", "r1/a"), ("b", "r1/b")] {
        let order = |events: &[Recorded], scope: &Scope, name: &str| {
            let of = events.iter().filter(|event| event.scope == *scope && event.stream.as_str() == name);
            of.map(|event| event.id).collect::<Vec<_>>()
        };
        let sent = order(&read(&store, Query::all()).await, &router("r1"), from);
        assert_eq!(order(&arrived, &router("r1"), to), sent, "the order of {from}");
    }
    drop(target_manager);
}

#[tokio::test]
async fn what_an_earlier_consumer_of_the_name_was_not_shown_arrives_and_what_was_removed_there_stays_so() {
    let (here, there) = (Site::new(), Site::new());
    let (target_manager, target) = there.open_with(support::keep_nothing()).await;
    let (manager, store) = here.open().await;
    for (number, name) in ["a", "a", "a", "a", "b", "b"].into_iter().enumerate() {
        let level = if number % 2 == 0 { Level::Warning } else { Level::Info };
        store.append(&router("r1"), &stream(name), Expected::Any, vec![normal(&manager).level(level)]).await.unwrap();
    }
    let deliver = async |definition: Consumer, target: &EventStore| {
        let forwarder = Forwarder::new(store.clone(), definition, StoreSink::new(target.clone(), router("r1")));
        let mut forwarding = forwarder.open().await.unwrap();
        let delivered = forwarding.round().await.unwrap().delivered;
        drop(forwarding);
        assert!(store.forget_consumer(&ConsumerName::parse("stick").unwrap()).await.unwrap());
        delivered
    };
    let warnings = Filter::all().level_min(Level::Warning);
    assert_eq!(deliver(consumer("stick").filter(warnings), &target).await, 3);
    assert_eq!(deliver(consumer("stick"), &target).await, 6);
    let ids = |events: Vec<Recorded>| {
        let mut ids: Vec<_> = events.iter().map(|event| event.id).collect();
        ids.sort();
        ids
    };
    let sent = ids(read(&store, Query::all()).await);
    assert_eq!(ids(read(&target, Query::all()).await), sent, "all of them, once");

    // All of a stream goes but its last, and does not come back.
    target.mark_age().await.unwrap();
    there.clock.advance(Duration::from_secs(1));
    assert!(target.retain(target.retention_plan().await.unwrap()).await.unwrap().events > 0);
    empty_hot(&target_manager).await;
    let left = ids(read(&target, Query::all()).await);
    assert!(left.len() < sent.len());
    target.shutdown().await.unwrap();
    let target = EventStore::open(&target_manager, support::keep_nothing()).await.unwrap();
    assert_eq!(deliver(consumer("stick"), &target).await, 6);
    assert_eq!(ids(read(&target, Query::all()).await), left);
}

#[tokio::test]
async fn a_second_store_that_is_closed_is_offline() {
    let (here, there) = (Site::new(), Site::new());
    let (target_manager, target) = there.open().await;
    let (manager, store) = here.open().await;
    append(&store, &manager, "a").await;
    let forwarder = Forwarder::new(store.clone(), consumer("stick"), StoreSink::new(target.clone(), Scope::System));
    let mut forwarding = forwarder.open().await.unwrap();
    target.shutdown().await.unwrap();
    target_manager.shutdown().await.unwrap();
    let round = forwarding.round().await.unwrap();
    assert!(round.offline.is_some() && round.failed == 0, "{round:?}");
}
