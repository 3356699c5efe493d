//! Consumers: everything once and in order, whatever happens around them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use nasnet_dbmanager::Scope;
use nasnet_events::{
    Class, Consumer, ConsumerName, Error, EventOptions, EventStore, Expected, Filter, FlushReason, GuardLimits, Item,
    Level, Position, Query, StartAt, StreamAppend, TailLost,
};
use support::watch::{consumer, events, ids, last, next, shown, until_caught_up};
use support::{Site, append_in, event, normal, read_ids, router, stream};
use tokio::sync::watch;
use ulid::Ulid;

async fn append(store: &EventStore, scope: &Scope, name: &str, event: nasnet_events::NewEvent) -> Ulid {
    let id = event.id;
    store.append(scope, &stream(name), Expected::Any, vec![event]).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_goes_over_to_live_without_a_gap_or_a_repetition_under_load() {
    const PRODUCERS: usize = 4;
    const EACH: usize = 400;
    const READERS: [&str; 3] = ["quick", "windowed", "small"];
    let site = Site::new();
    let (manager, store) = site.open().await;
    for _ in 0..300 {
        append(&store, &router("r1"), "before", normal(&manager)).await;
    }
    // Half of it comes while they catch up, the rest when each of them has been live.
    let live_readers = watch::Sender::new(0);
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let (manager, store, mut are_live) = (manager.clone(), store.clone(), live_readers.subscribe());
            tokio::spawn(async move {
                let scope = if number % 2 == 0 { router("r1") } else { router("r2") };
                for round in 0..EACH {
                    if round == EACH / 2 {
                        are_live.wait_for(|count| *count == READERS.len()).await.unwrap();
                    }
                    let name = format!("s{number}");
                    match round % 40 {
                        7 => {
                            let durable = StreamAppend::new(stream(&name), Expected::Any, vec![normal(&manager)]);
                            append_in(&manager, &store, &scope, vec![durable]).await.unwrap();
                        }
                        // A transaction that rolls back leaves a void behind.
                        23 => {
                            let void = StreamAppend::new(stream(&name), Expected::Any, vec![normal(&manager)]);
                            drop(support::transaction(&manager, &store, &scope, vec![void], false).await);
                        }
                        _ => drop(append(&store, &scope, &name, normal(&manager)).await),
                    }
                }
            })
        })
        .collect();
    let flusher = {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                store.flush(FlushReason::Requested).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    let expected = 300 + PRODUCERS * (EACH - EACH / 40);
    let readers: Vec<_> = READERS
        .into_iter()
        .map(|name| {
            let (store, live_readers) = (store.clone(), live_readers.clone());
            tokio::spawn(async move {
                let consumer = match name {
                    "windowed" => consumer(name).batch(Consumer::CRITICAL),
                    "small" => consumer(name).capacity(3),
                    _ => consumer(name),
                };
                let mut subscription = store.subscribe(consumer).await.unwrap();
                let (mut positions, mut live) = (Vec::new(), 0);
                while positions.len() < expected {
                    match next(&mut subscription).await {
                        Item::Event(event) => {
                            positions.push(event.position);
                            if name == "quick" && positions.len() % 100 == 0 {
                                subscription.ack(event.position).await.unwrap();
                            }
                        }
                        Item::CaughtUp { .. } => {
                            live += 1;
                            live_readers.send_modify(|count| *count += usize::from(live == 1));
                        }
                        Item::Lagged { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
                (positions, live)
            })
        })
        .collect();
    // Time passes only for the one that gathers.
    let clock = site.clock.clone();
    let ticking = tokio::spawn(async move {
        loop {
            clock.advance(Duration::from_millis(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    for producer in producers {
        producer.await.unwrap();
    }
    let mut all = Vec::new();
    for reader in readers {
        all.push(reader.await.unwrap());
    }
    flusher.abort();
    ticking.abort();
    let stored: Vec<Position> = support::read(&store, Query::all()).await.iter().map(|event| event.position).collect();
    assert_eq!(stored.len(), expected);
    for (positions, live) in all {
        assert!(live > 0);
        assert_eq!(positions, stored);
    }
}

#[tokio::test]
async fn an_event_appended_while_live_arrives_at_once_and_one_of_an_open_transaction_after_its_end() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut subscription = store.subscribe(consumer("live")).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await, []);
    let first = append(&store, &router("r1"), "s", normal(&manager)).await;
    assert_eq!(events(&mut subscription, 1).await, [first]);

    let open = StreamAppend::new(stream("s"), Expected::Any, vec![normal(&manager)]);
    let pending = support::transaction(&manager, &store, &router("r1"), vec![open], true).await.unwrap();
    let behind = append(&store, &router("r2"), "s", normal(&manager)).await;
    assert!(subscription.next().now_or_never().is_none(), "nothing may overtake an open transaction");
    let receipts = store.published(pending).await;
    let Item::Event(durable) = next(&mut subscription).await else { panic!() };
    assert_eq!(durable.position, receipts[0].first);
    assert_eq!(events(&mut subscription, 1).await, [behind]);
}

#[tokio::test]
async fn a_consumer_goes_on_behind_what_it_acknowledged() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut written = Vec::new();
    for _ in 0..10 {
        written.push(append(&store, &router("r1"), "s", normal(&manager)).await);
    }
    let mut subscription = store.subscribe(consumer("c")).await.unwrap();
    assert_eq!(events(&mut subscription, 6).await, written[..6]);
    let fourth = support::read(&store, Query::all()).await[3].position;
    subscription.ack(fourth).await.unwrap();
    assert_eq!(subscription.position(), fourth);
    let beyond = subscription.ack(Position::new(1, 9)).await;
    assert!(matches!(beyond, Err(Error::Invalid { .. })), "{beyond:?}");
    drop(subscription);
    let again = shown(&store, "c").await;
    assert_eq!(ids(&again), written[4..], "tmpfs remembers");
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    // After a reboot the checkpoint on flash counts.
    site.clock.reboot();
    std::fs::remove_dir_all(site.run()).unwrap();
    let (manager, store) = site.open().await;
    let items = shown(&store, "c").await;
    assert_eq!(ids(&items), written[4..]);
    let listed = store.consumers().await.unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].saved), ("c", fourth));
    assert!(store.forget_consumer(&ConsumerName::parse("c").unwrap()).await.unwrap());
    assert_eq!(store.consumers().await.unwrap(), []);
    assert_eq!(ids(&shown(&store, "c").await), written);
    drop(manager);
}

#[tokio::test]
async fn acknowledgements_cost_no_flash_until_a_checkpoint_is_due() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    for _ in 0..50 {
        for _ in 0..50 {
            append(&store, &router("r1"), "s", event(&manager, "metric.sampled")).await;
        }
    }
    let mut subscription = store.subscribe(consumer("a")).await.unwrap();
    let mut other = store.subscribe(consumer("b")).await.unwrap();
    let flash = || manager.stats().flash_bytes();
    let before = flash();
    for number in 1..1_000 {
        let Item::Event(event) = next(&mut subscription).await else { panic!() };
        subscription.ack(event.position).await.unwrap();
        assert_eq!(flash() - before, 0, "acknowledgement {number} reached flash");
    }
    for _ in 0..10 {
        let position = next(&mut other).await.position();
        other.ack(position).await.unwrap();
    }
    assert_eq!(flash() - before, 0);
    // The thousandth event, and the other consumer comes along in the same write.
    let position = next(&mut subscription).await.position();
    subscription.ack(position).await.unwrap();
    let one = flash() - before;
    assert!(one > 0);
    let saved =
        |listed: Vec<nasnet_events::ConsumerStatus>| listed.into_iter().map(|c| c.saved.seq).collect::<Vec<_>>();
    assert_eq!(saved(store.consumers().await.unwrap()), [1_000, 10]);

    // Time alone writes nothing when nothing moved; a moved position is written after a quarter of an hour.
    site.clock.advance(Duration::from_secs(3_600));
    subscription.ack(position).await.unwrap();
    assert_eq!(flash() - before, one);
    let position = next(&mut other).await.position();
    other.ack(position).await.unwrap();
    assert!(flash() - before > one);
    assert_eq!(saved(store.consumers().await.unwrap()), [1_000, 11]);
    println!("flash bytes of 1,000 acknowledgements: {one}, of a checkpoint per acknowledgement about {}", one * 1_000);
}

#[tokio::test]
async fn one_that_falls_behind_is_told_and_misses_nothing() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut subscription = store.subscribe(consumer("slow").capacity(20)).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await, []);
    let mut written = Vec::new();
    for _ in 0..20 {
        written.push(append(&store, &router("r1"), "s", normal(&manager)).await);
    }
    assert_eq!(events(&mut subscription, 20).await, written, "that much it may be behind");
    written.clear();
    for _ in 0..500 {
        written.push(append(&store, &router("r1"), "s", normal(&manager)).await);
    }
    let Item::Lagged { after, through } = next(&mut subscription).await else { panic!() };
    assert_eq!((after, through), (Position::new(1, 20), Position::new(1, 520)));
    let missed = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&missed), written);
    assert_eq!(missed.len(), written.len(), "it is told once");
}

#[tokio::test]
async fn filters_choose_by_scope_stream_kind_class_and_level() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let loud = append(&store, &router("r1"), "log/a", event(&manager, "log.firewall").level(Level::Error)).await;
    let quiet = append(&store, &router("r1"), "log/b", event(&manager, "log.firewall").level(Level::Debug)).await;
    let resource = append(&store, &router("r2"), "resource/1", event(&manager, "resource.created")).await;
    let applied = append(&store, &Scope::System, "resource/2", event(&manager, "config.applied")).await;
    let cases = [
        ("all", Filter::all(), vec![loud, quiet, resource, applied]),
        ("scopes", Filter::all().scope(router("r2")).scope(Scope::System), vec![resource, applied]),
        ("stream", Filter::all().stream(stream("log/a")), vec![loud]),
        ("prefix", Filter::all().stream_prefix("resource/"), vec![resource, applied]),
        ("kind", Filter::all().kind_prefix("log"), vec![loud, quiet]),
        ("class", Filter::all().class(Class::Critical), vec![applied]),
        ("level", Filter::all().level_min(Level::Warning), vec![loud]),
    ];
    let mut subscriptions = Vec::new();
    for (name, filter, wanted) in cases {
        let mut subscription = store.subscribe(consumer(name).filter(filter)).await.unwrap();
        assert_eq!(ids(&until_caught_up(&mut subscription).await), wanted, "{name}");
        subscriptions.push((name, subscription));
    }
    // Live, too.
    let more = append(&store, &router("r1"), "log/a", event(&manager, "log.firewall").level(Level::Error)).await;
    for (name, mut subscription) in subscriptions {
        if ["scopes", "prefix", "class"].contains(&name) {
            assert!(subscription.next().now_or_never().is_none(), "{name}");
        } else {
            assert_eq!(events(&mut subscription, 1).await, [more], "{name}");
        }
    }
    assert!(matches!(store.subscribe(consumer("none").capacity(0)).await, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn what_a_consumer_does_not_want_does_not_hold_its_checkpoint_back() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let first = append(&store, &router("r1"), "wanted", normal(&manager)).await;
    let wanted = consumer("c").filter(Filter::all().stream(stream("wanted")));
    let mut subscription = store.subscribe(wanted.clone()).await.unwrap();
    let shown = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&shown), [first]);
    subscription.ack(last(&shown)).await.unwrap();
    for _ in 0..40 {
        append(&store, &router("r1"), "other", normal(&manager)).await;
    }
    let second = append(&store, &router("r1"), "wanted", normal(&manager)).await;
    let Item::Event(event) = next(&mut subscription).await else { panic!() };
    assert_eq!(event.id, second);
    for _ in 0..40 {
        append(&store, &router("r1"), "other", normal(&manager)).await;
    }
    assert_eq!(store.consumers().await.unwrap()[0].position, Position::new(1, 1));
    subscription.ack(event.position).await.unwrap();
    // It looks, finds nothing, and waits.
    while subscription.position() < Position::new(1, 82) {
        assert!(subscription.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    subscription.close().await.unwrap();
    assert_eq!(store.consumers().await.unwrap()[0].saved, Position::new(1, 82));
}

#[tokio::test]
async fn a_lost_tail_is_shown_once_between_the_epochs() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let flushed = append(&store, &router("r1"), "s", normal(&manager)).await;
    store.flush(FlushReason::Requested).await.unwrap();
    let synced = append(&store, &router("r1"), "s", event(&manager, "config.applied")).await;
    let gone = append(&store, &router("r1"), "s", normal(&manager)).await;
    // One consumer has seen what will be lost, one has not begun.
    let mut subscription = store.subscribe(consumer("ahead")).await.unwrap();
    let seen = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&seen), [flushed, synced, gone]);
    subscription.ack(last(&seen)).await.unwrap();
    subscription.close().await.unwrap();
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);

    site.wipe_hot();
    let (manager, store) = site.open().await;
    let lost = TailLost { epoch: 1, after_seq: 1 };
    let marker = Item::TailLost { lost, position: Position::new(2, 0) };
    let mut ahead = store.subscribe(consumer("ahead")).await.unwrap();
    assert_eq!(until_caught_up(&mut ahead).await, std::slice::from_ref(&marker));
    let after = append(&store, &router("r1"), "s", normal(&manager)).await;
    assert_eq!(events(&mut ahead, 1).await, [after]);
    drop(ahead);
    // Nothing was acknowledged: it is shown again, and then no more.
    let mut ahead = store.subscribe(consumer("ahead")).await.unwrap();
    assert_eq!(next(&mut ahead).await, marker);
    ahead.ack(marker.position()).await.unwrap();
    drop(ahead);
    assert_eq!(ids(&shown(&store, "ahead").await), [after]);
    let late = shown(&store, "late").await;
    assert_eq!(ids(&late), [flushed, synced, after]);
    assert_eq!(late[2], marker);
    assert_eq!(late.len(), 4);
}

#[tokio::test]
async fn a_delivery_window_gathers_until_it_is_over_or_the_batch_is_full() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let windowed = consumer("w").batch(Consumer::BACKGROUND).capacity(5).from(StartAt::Now);
    let mut subscription = store.subscribe(windowed).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await, []);
    let mut written = vec![append(&store, &router("r1"), "s", event(&manager, "config.applied")).await];
    site.clock.advance(Consumer::BACKGROUND - Duration::from_millis(1));
    written.push(append(&store, &router("r1"), "s", normal(&manager)).await);
    site.clock.advance(Duration::from_millis(1));
    assert_eq!(events(&mut subscription, 2).await, written, "the window began with the first event");

    // Full before the window is over.
    written.clear();
    for _ in 0..5 {
        written.push(append(&store, &router("r1"), "s", normal(&manager)).await);
    }
    assert_eq!(events(&mut subscription, 5).await, written);
    let presets = [Consumer::IMMEDIATE, Consumer::CRITICAL, Consumer::NORMAL, Consumer::LOW, Consumer::BACKGROUND];
    assert_eq!(presets.map(|window| window.as_millis()), [0, 100, 1_000, 5_000, 30_000]);
}

#[tokio::test]
async fn one_subscription_at_a_time_reads_as_a_consumer() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let mut first = store.subscribe(consumer("c")).await.unwrap();
    for store in [&store, &other] {
        let refused = store.subscribe(consumer("c").filter(Filter::all().kind_prefix("config")).unguarded()).await;
        assert!(matches!(&refused, Err(Error::ConsumerBusy { consumer }) if consumer == "c"), "{refused:?}");
    }
    let guards = store.guards().await.unwrap();
    assert_eq!(guards.len(), 1, "who is turned away changes nothing for who reads");
    assert_eq!(guards[0].filter, Filter::all());
    append(&store, &router("r1"), "s", normal(&manager)).await;
    let position = next(&mut first).await.position();

    // It shows no sign of life for a minute: another may take over, and the first is told.
    site.clock.advance(Duration::from_secs(61));
    let mut second = other.subscribe(consumer("c")).await.unwrap();
    let taken = first.ack(position).await;
    assert!(matches!(taken, Err(Error::ConsumerTaken { .. })), "{taken:?}");
    assert_eq!(next(&mut second).await.position(), position, "what was not acknowledged comes again");
    second.ack(position).await.unwrap();
    second.close().await.unwrap();
    drop(first);
    store.subscribe(consumer("c").unguarded()).await.unwrap().close().await.unwrap();
    assert_eq!(store.guards().await.unwrap().len(), 0, "who reads says what is kept");
    // Closed: free at once, for either store.
    store.subscribe(consumer("c")).await.unwrap().close().await.unwrap();
    other.subscribe(consumer("c")).await.unwrap();
}

#[tokio::test]
async fn of_two_that_begin_at_once_one_reads_as_the_consumer() {
    let site = Site::new();
    let (_manager, store) = site.open().await;
    for round in 0..30 {
        let name = format!("c{round}");
        let both = tokio::join!(store.subscribe(consumer(&name)), store.subscribe(consumer(&name)));
        let (reads, refused) = match both {
            (Ok(reads), Err(refused)) | (Err(refused), Ok(reads)) => (reads, refused),
            both => panic!("{both:?}"),
        };
        assert!(matches!(refused, Error::ConsumerBusy { .. }), "{refused:?}");
        reads.confirm().await.unwrap();
        // And it is free again for the next.
        drop(reads);
        store.subscribe(consumer(&name)).await.unwrap();
    }
}

#[tokio::test]
async fn guards_stand_at_the_durable_position_and_age_without_the_wall_clock() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let limits = GuardLimits { max_age: Duration::from_secs(3_600), bytes_max: 1_000 };
    let mut held = store.subscribe(consumer("held").guard(limits)).await.unwrap();
    store.subscribe(consumer("free").unguarded()).await.unwrap();
    append(&store, &router("r1"), "s", normal(&manager)).await;
    let position = next(&mut held).await.position();
    held.ack(position).await.unwrap();
    let guards = store.guards().await.unwrap();
    assert_eq!(guards.len(), 1);
    assert_eq!(
        (guards[0].consumer.as_str(), guards[0].position),
        ("held", Position::START),
        "a power cut takes the rest"
    );
    held.close().await.unwrap();
    let guard = store.guards().await.unwrap().remove(0);
    assert_eq!((guard.position, guard.bytes_max), (position, 1_000));
    site.clock.set_wall_ms(i64::MAX / 2);
    assert!(!guard.is_expired(&manager.now()));
    site.clock.advance(Duration::from_secs(3_601));
    assert!(guard.is_expired(&manager.now()));
    // A later boot counts from its own start.
    site.clock.reboot();
    assert!(!guard.is_expired(&manager.now()));
    site.clock.advance(Duration::from_secs(3_601));
    assert!(guard.is_expired(&manager.now()));
}

#[tokio::test]
async fn the_stream_ends_when_the_store_is_shut_down_and_the_position_is_on_flash() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut subscription = store.subscribe(consumer("c")).await.unwrap();
    append(&store, &router("r1"), "s", normal(&manager)).await;
    let position = next(&mut subscription).await.position();
    subscription.ack(position).await.unwrap();
    let waiting = tokio::spawn(async move {
        while let Some(item) = subscription.next().await {
            drop(item.unwrap());
        }
    });
    store.shutdown().await.unwrap();
    waiting.await.unwrap();
    assert_eq!(store.consumers().await.unwrap()[0].saved, position);
    assert!(matches!(store.subscribe(consumer("c")).await, Err(Error::Closed)));
    assert_eq!(read_ids(&store, Query::all()).await.len(), 1);
}
