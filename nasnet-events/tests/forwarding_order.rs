//! The order of each stream, and every event of it, whatever is not there for a while: the receiver or a router.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;
#[allow(dead_code)]
#[path = "support/web.rs"]
mod web;

use std::time::Duration;

use nasnet_dbmanager::DbManager;
use nasnet_events::forward::{Backoff, Forwarder, HttpSink};
use nasnet_events::{ConsumerName, EventOptions, EventStore, Expected, FlushReason};
use support::watch::consumer;
use support::{PATIENCE, Site, empty_hot, normal, on_scope, router, stream};
use web::{Answer, Web, any};

const MINUTE: Duration = Duration::from_secs(60);
const OK: Answer = Answer::Status(200);
const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
const MEND: &str = "ALTER TABLE elsewhere RENAME TO event_segments";

fn name() -> ConsumerName {
    ConsumerName::parse("cloud").unwrap()
}

fn forwarder(store: &EventStore, url: &str) -> Forwarder<HttpSink> {
    let sink = HttpSink::new(url).unwrap().timeout(PATIENCE);
    Forwarder::new(store.clone(), consumer("cloud"), sink).backoff(Backoff::default().tries_max(4))
}

async fn append(store: &EventStore, manager: &DbManager, id: &str, names: &[&str]) {
    for name in names {
        store.append(&router(id), &stream(name), Expected::Any, vec![normal(manager)]).await.unwrap();
    }
}

async fn open(site: &Site) -> (DbManager, EventStore) {
    let mut options = EventOptions::default();
    options.stall_after = Duration::ZERO;
    site.open_with(options).await
}

async fn below_hot(manager: &DbManager, store: &EventStore) {
    store.flush(FlushReason::Requested).await.unwrap();
    empty_hot(manager).await;
}

#[tokio::test]
async fn a_receiver_that_goes_away_while_a_stream_is_blocked_misses_nothing_of_that_stream() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let web = Web::start(|lines| match lines.len() {
        1 if any(lines, "b") => Answer::Status(401),
        _ => Answer::Status(500),
    })
    .await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    append(&store, &manager, "r1", &["a", "b", "a", "b"]).await;
    let round = forwarding.round().await.unwrap();
    assert!(round.offline.is_some() && round.failed == 1, "a is blocked, then nobody is there: {round:?}");
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    assert_eq!(forwarding.round().await.unwrap().delivered, 4);
    let mut accepted = web.accepted();
    accepted.sort();
    assert_eq!(accepted, ["a@1", "a@2", "b@1", "b@2"]);
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
}

#[tokio::test]
async fn an_event_that_retention_removed_while_its_stream_was_blocked_is_not_passed_in_silence() {
    const FIRST_GOES: &str = "INSERT INTO event_retained (what, through_pos) VALUES (0, 9223372036854775807)
            ON CONFLICT (what) DO NOTHING;
        DELETE FROM event_segments WHERE first_pos = (SELECT MIN(first_pos) FROM event_segments)";
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let web = Web::start(|_| Answer::Status(500)).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    for _ in 0..2 {
        append(&store, &manager, "r1", &["a"]).await;
        store.flush(FlushReason::Requested).await.unwrap();
    }
    assert_eq!(forwarding.round().await.unwrap().failed, 1, "a waits from its first event on");
    empty_hot(&manager).await;
    on_scope(&manager, &router("r1"), FIRST_GOES).await;
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.missed), (1, 1), "{round:?}");
    assert_eq!(web.accepted(), ["a@2"]);
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.missed), (0, 0), "once");

    // And when nothing of the stream is left behind it.
    web.script(|_| Answer::Status(500));
    append(&store, &manager, "r1", &["a"]).await;
    assert_eq!(forwarding.round().await.unwrap().failed, 1);
    empty_hot(&manager).await;
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.missed), (0, 1), "{round:?}");
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
}

#[tokio::test]
async fn a_router_that_cannot_be_read_holds_up_no_other_and_its_streams_come_later_in_order() {
    let site = Site::new();
    let web = Web::start(|_| OK).await;
    let (manager, store) = open(&site).await;
    append(&store, &manager, "r2", &["x", "y", "x"]).await;
    append(&store, &manager, "r1", &["a", "a"]).await;
    below_hot(&manager, &store).await;
    on_scope(&manager, &router("r2"), BREAK).await;
    {
        let forwarder = forwarder(&store, &web.url());
        let mut forwarding = forwarder.open().await.unwrap();
        assert_eq!(forwarding.round().await.unwrap().delivered, 2);
        // What comes of it in the hot tier could be read, and waits for what is before it.
        append(&store, &manager, "r2", &["x"]).await;
        append(&store, &manager, "r1", &["a"]).await;
        assert_eq!(forwarding.round().await.unwrap().delivered, 1);
        assert_eq!(web.accepted(), ["a@1", "a@2", "a@3"]);
        forwarding.close().await.unwrap();
    }
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    // The next process knows what is left.
    let (manager, store) = open(&site).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 0);
    on_scope(&manager, &router("r2"), MEND).await;
    append(&store, &manager, "r2", &["y"]).await;
    // The receiver is away when the router is back.
    web.script(|_| Answer::Status(401));
    assert!(forwarding.round().await.unwrap().offline.is_some());
    assert_eq!(store.left_out(&name()).await.unwrap().len(), 1);
    // And then it does not want one of the streams for a while.
    web.script(|lines| if any(lines, "x") { Answer::Status(500) } else { OK });
    site.clock.advance(MINUTE * 2);
    assert_eq!(forwarding.round().await.unwrap().failed, 1);
    assert_eq!(store.left_out(&name()).await.unwrap(), [], "what is left of it is a blocked stream");
    assert_eq!(store.blocked_streams(&name()).await.unwrap().len(), 1);
    append(&store, &manager, "r2", &["x", "y"]).await;
    forwarding.round().await.unwrap();
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    forwarding.round().await.unwrap();
    for (name, count) in [("x", 4), ("y", 3)] {
        let sent: Vec<String> = web.accepted().into_iter().filter(|label| label.starts_with(name)).collect();
        let wanted: Vec<String> = (1..=count).map(|version| format!("{name}@{version}")).collect();
        assert_eq!(sent, wanted);
    }
    assert_eq!(web.accepted().len(), 3 + 7);
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
}
