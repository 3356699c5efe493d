//! The offline queue against a real web server that fails in every way it can.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;
#[allow(dead_code)]
#[path = "support/web.rs"]
mod web;

use std::time::Duration;

use nasnet_dbmanager::Scope;
use nasnet_events::forward::{Backoff, Forwarder, HttpSink};
use nasnet_events::{ConsumerName, Error, EventOptions, EventStore, Expected};
use support::watch::consumer;
use support::{PATIENCE, Site, event, normal, router, stream};
use web::{Answer, Web, any};

const MINUTE: Duration = Duration::from_secs(60);
const OK: Answer = Answer::Status(200);

fn name() -> ConsumerName {
    ConsumerName::parse("cloud").unwrap()
}

fn forwarder(store: &EventStore, url: &str) -> Forwarder<HttpSink> {
    forwarder_within(store, url, PATIENCE)
}

/// One that waits so long for an answer.
fn forwarder_within(store: &EventStore, url: &str, limit: Duration) -> Forwarder<HttpSink> {
    let sink = HttpSink::new(url).unwrap().timeout(limit);
    Forwarder::new(store.clone(), consumer("cloud"), sink).backoff(Backoff::default().tries_max(4))
}

async fn append(store: &EventStore, manager: &nasnet_dbmanager::DbManager, names: &[&str]) {
    for name in names {
        store.append(&router("r1"), &stream(name), Expected::Any, vec![normal(manager)]).await.unwrap();
    }
}

#[tokio::test]
async fn events_arrive_in_order_and_cost_no_flash_while_all_is_well() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|_| OK).await;
    let forwarder = forwarder(&store, &web.url()).batch_events(50);
    let mut forwarding = forwarder.open().await.unwrap();
    for _ in 0..120 {
        let low = event(&manager, "metric.sampled");
        store.append(&router("r1"), &stream("a"), Expected::Any, vec![low]).await.unwrap();
    }
    let before = manager.stats().flash_bytes();
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.failed, round.given_up), (120, 0, 0));
    assert_eq!(manager.stats().flash_bytes() - before, 0);
    let expected: Vec<String> = (1..=120).map(|version| format!("a@{version}")).collect();
    assert_eq!(web.accepted(), expected);
    assert_eq!(web.requests(), 3);
    assert_eq!(web.keys().iter().collect::<std::collections::HashSet<_>>().len(), 3);
    assert_eq!(forwarding.round().await.unwrap().delivered, 0);

    // It goes on where it was, and 409 says that the receiver has it.
    append(&store, &manager, &["a"]).await;
    forwarding.close().await.unwrap();
    web.script(|_| Answer::Status(409));
    let mut forwarding = forwarder.open().await.unwrap();
    assert_eq!(forwarding.round().await.unwrap().delivered, 1);
    assert_eq!(web.tries("a@121"), 1);
}

#[tokio::test]
async fn a_failed_event_blocks_its_stream_alone_waits_longer_each_time_and_is_given_up_after_its_last_try() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|lines| if any(lines, "bad") { Answer::Status(500) } else { OK }).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    append(&store, &manager, &["a", "bad", "b", "bad", "a"]).await;
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.failed), (3, 1));
    assert_eq!(web.accepted(), ["a@1", "a@2", "b@1"]);
    let blocked = store.blocked_streams(&name()).await.unwrap();
    assert_eq!((blocked.len(), blocked[0].stream.as_str(), blocked[0].tries), (1, "bad", 1));
    assert!(blocked[0].why.contains("500"), "{}", blocked[0].why);
    assert_eq!(store.guards().await.unwrap()[0].position.seq, 0, "what is blocked must not be pruned");
    let first_tries = web.tries("bad@1");

    let mut pauses = Vec::new();
    for tries in 2..=4 {
        append(&store, &manager, &["a", "bad"]).await;
        // The wall clock jumps, and nothing comes of it.
        site.clock.set_wall_ms(4_000_000_000_000);
        let before = web.tries("bad@1");
        assert_eq!(forwarding.round().await.unwrap().delivered, 1, "others go on");
        assert_eq!(web.tries("bad@1"), before, "not before its time");
        let pause = store.blocked_streams(&name()).await.unwrap()[0].due_in(&manager.now());
        pauses.push(pause);
        site.clock.advance(pause - Duration::from_millis(1));
        assert_eq!(forwarding.round().await.unwrap().failed, 0);
        site.clock.advance(Duration::from_millis(1));
        if tries == 4 {
            web.script(
                |lines| if lines.iter().any(|line| web::label(line) == "bad@1") { Answer::Status(503) } else { OK },
            );
        }
        let round = forwarding.round().await.unwrap();
        assert_eq!(round.failed, 1);
        assert_eq!(web.tries("bad@1"), before + 1, "the failed event alone");
        if tries < 4 {
            assert_eq!(store.blocked_streams(&name()).await.unwrap()[0].tries, tries);
        } else {
            assert_eq!(round.given_up, 1);
        }
    }
    for (pause, minutes) in pauses.iter().zip([2, 4, 8]) {
        assert!(*pause <= MINUTE * minutes && *pause >= MINUTE * minutes * 4 / 5, "{pause:?} of {minutes} minutes");
    }
    // The peer's bug: the limit was written down and never read.
    for _ in 0..5 {
        site.clock.advance(MINUTE * 120);
        forwarding.round().await.unwrap();
    }
    assert_eq!(web.tries("bad@1"), first_tries + 3);
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
    let bad: Vec<String> = web.accepted().into_iter().filter(|label| label.starts_with("bad")).collect();
    assert_eq!(bad, ["bad@2", "bad@3", "bad@4", "bad@5"], "its stream goes on behind it, in order");
    let dead = store.dead_letters(&name()).await.unwrap();
    assert_eq!((dead.len(), dead[0].tries, dead[0].event.version), (1, 4, 1));
    assert!(dead[0].why.contains("503"), "{}", dead[0].why);
}

#[tokio::test]
async fn a_rejected_event_becomes_a_dead_letter_at_once_and_can_be_retried_and_pruned() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|lines| if any(lines, "bad") { Answer::Status(400) } else { OK }).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    append(&store, &manager, &["bad", "good", "bad", "good"]).await;
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.given_up), (2, 2));
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
    let dead = store.dead_letters(&name()).await.unwrap();
    assert_eq!(dead.iter().map(|letter| letter.event.version).collect::<Vec<_>>(), [1, 2]);
    site.clock.advance(MINUTE * 600);
    assert_eq!(forwarding.round().await.unwrap().failed, 0, "nobody asked for it");

    // Asked for while it is still rejected: one try, and it stays.
    assert_eq!(store.retry_dead_letters(&name(), Some(vec![dead[0].event.position])).await.unwrap(), 1);
    assert_eq!(forwarding.round().await.unwrap().failed, 1);
    assert_eq!(forwarding.round().await.unwrap().failed, 0);
    assert_eq!(store.dead_letters(&name()).await.unwrap()[0].tries, 2);
    web.script(|_| OK);
    assert_eq!(store.retry_dead_letters(&name(), None).await.unwrap(), 2);
    assert_eq!(forwarding.round().await.unwrap().delivered, 2);
    assert_eq!(store.dead_letters(&name()).await.unwrap(), []);
    assert_eq!(web.late(), 3);
    assert_eq!(web.accepted(), ["good@1", "good@2", "bad@1", "bad@2"]);

    web.script(|_| Answer::Status(422));
    append(&store, &manager, &["x", "x", "x", "x"]).await;
    assert_eq!(forwarding.round().await.unwrap().given_up, 4);
    assert_eq!(store.prune_dead_letters(&name(), 1).await.unwrap(), 3);
    assert_eq!(store.dead_letters(&name()).await.unwrap()[0].event.version, 4);
    drop(forwarding);
    // There are never more than allowed.
    let bounded = forwarder.dead_letters_max(2);
    let mut forwarding = bounded.open().await.unwrap();
    append(&store, &manager, &["x", "x", "x"]).await;
    assert_eq!(forwarding.round().await.unwrap().dropped, 2);
    assert_eq!(store.dead_letters(&name()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_lost_answer_and_a_silent_server_cost_a_try_and_no_event_arrives_twice() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|_| Answer::DropReply).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    append(&store, &manager, &["a", "a", "a"]).await;
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.failed), (0, 1));
    drop(forwarding);
    web.script(|_| Answer::Hang);
    site.clock.advance(MINUTE * 2);
    let impatient = forwarder_within(&store, &web.url(), Duration::from_millis(300));
    let mut forwarding = impatient.open().await.unwrap();
    let round = forwarding.round().await.unwrap();
    assert_eq!(round.failed, 1);
    assert!(store.blocked_streams(&name()).await.unwrap()[0].why.contains("in time"));
    drop(forwarding);
    web.script(|_| OK);
    let mut forwarding = forwarder.open().await.unwrap();
    site.clock.advance(MINUTE * 4);
    assert_eq!(forwarding.round().await.unwrap().delivered, 3);
    assert_eq!(web.accepted(), ["a@1", "a@2", "a@3"], "the receiver knows them by their ids");
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_no_try() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    // Bound but not listened on, so that nobody else gets the port while the server is away.
    let place = tokio::net::TcpSocket::new_v4().unwrap();
    place.set_reuseaddr(true).unwrap();
    place.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = place.local_addr().unwrap();
    let web = Web::start_at(address, |_| Answer::Status(401)).await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    append(&store, &manager, &["a", "b"]).await;
    let refused = forwarding.round().await.unwrap();
    assert!(refused.offline.as_ref().is_some_and(|why| why.contains("401")), "{refused:?}");
    web.stop().await;
    for _ in 0..20 {
        site.clock.advance(MINUTE);
        let round = forwarding.round().await.unwrap();
        assert!(round.offline.is_some() && round.failed == 0, "{round:?}");
    }
    assert_eq!(store.blocked_streams(&name()).await.unwrap(), []);
    assert_eq!(store.dead_letters(&name()).await.unwrap(), []);
    let web = Web::start_at(address, |_| OK).await;
    assert_eq!(forwarding.round().await.unwrap().offline, None, "not before its minute is over");
    assert_eq!(web.requests(), 0);
    site.clock.advance(MINUTE);
    assert_eq!(forwarding.round().await.unwrap().delivered, 2);
    assert_eq!(web.accepted(), ["a@1", "b@1"]);
}

#[tokio::test]
async fn a_server_that_fails_for_everyone_is_left_alone_and_takes_no_more_streams_down() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|_| Answer::Status(500)).await;
    let forwarder = forwarder(&store, &web.url()).batch_events(4);
    let mut forwarding = forwarder.open().await.unwrap();
    let names: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    append(&store, &manager, &names).await;
    assert_eq!(forwarding.round().await.unwrap().failed, 4);
    let requests = web.requests();
    for _ in 0..10 {
        assert_eq!(forwarding.round().await.unwrap().failed, 0);
    }
    assert_eq!(web.requests(), requests);
    assert_eq!(store.blocked_streams(&name()).await.unwrap().len(), 4);
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    assert_eq!(forwarding.round().await.unwrap().delivered, 40);
}

#[tokio::test]
async fn the_queue_survives_restarts_and_reboots_and_is_worked_by_one_at_a_time() {
    let site = Site::new();
    let web = Web::start(|lines| if any(lines, "bad") { Answer::Status(500) } else { OK }).await;
    let (manager, store) = site.open().await;
    {
        let forwarder = forwarder(&store, &web.url());
        let mut forwarding = forwarder.open().await.unwrap();
        append(&store, &manager, &["bad", "a", "bad"]).await;
        assert_eq!(forwarding.round().await.unwrap().failed, 1);

        // Another store, as another process would be, stands by.
        let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let beside = self::forwarder(&other, &web.url());
        assert!(matches!(beside.open().await, Err(Error::ConsumerBusy { .. })));
        site.clock.advance(Duration::from_secs(61));
        let mut taken = beside.open().await.unwrap();
        append(&store, &manager, &["a"]).await;
        let sent = web.requests();
        assert!(matches!(forwarding.round().await, Err(Error::ConsumerTaken { .. })));
        assert_eq!(web.requests(), sent, "the one that was silent sends nothing any more");
        assert_eq!(taken.round().await.unwrap().delivered, 1);
        taken.close().await.unwrap();
        other.shutdown().await.unwrap();
    }
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));

    site.clock.reboot();
    std::fs::remove_dir_all(site.run()).unwrap();
    let (_manager, store) = site.open().await;
    let forwarder = forwarder(&store, &web.url());
    let mut forwarding = forwarder.open().await.unwrap();
    let tries = web.tries("bad@1");
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.delivered, round.failed), (0, 0), "{round:?}");
    assert_eq!(web.tries("bad@1"), tries);
    assert_eq!(store.blocked_streams(&name()).await.unwrap()[0].tries, 1, "tries are not forgotten");
    web.script(|_| OK);
    site.clock.advance(MINUTE * 2);
    assert_eq!(forwarding.round().await.unwrap().delivered, 2);
    assert_eq!(web.accepted(), ["a@1", "a@2", "bad@1", "bad@2"]);
}

#[tokio::test]
async fn the_loop_sends_what_is_appended_and_ends_when_told() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let web = Web::start(|_| OK).await;
    let forwarder = forwarder(&store, &web.url());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { forwarder.run(async move { drop(stopped.await) }).await });
    append(&store, &manager, &["a", "b"]).await;
    store.append(&Scope::System, &stream("c"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    while web.accepted().len() < 3 {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(web.accepted(), ["a@1", "b@1", "c@1"]);
    assert_eq!(store.consumers().await.unwrap()[0].saved.seq, 3, "the checkpoint is on flash");
}
