//! Delivery windows, looked at without waiting for any.

use std::time::Duration;

use nasnet_dbmanager::Scope;

use crate::consumer::{Consumer, ConsumerName, Filter, StartAt};
use crate::error::Error;
use crate::event::NewEvent;
use crate::expected::Expected;
use crate::name::{EventType, StreamName};
use crate::options::EventOptions;
use crate::place::Place;
use crate::store::EventStore;

#[tokio::test]
async fn nothing_is_handed_out_before_the_window_is_over_whatever_its_class() {
    let Place { dir: _dir, clock, manager } = Place::new().await;
    let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let append = async |kind: &str| {
        let event = NewEvent::new(manager.next_ulid(), EventType::parse(kind).unwrap(), &1).unwrap();
        let stream = StreamName::parse("s").unwrap();
        store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
    };
    let consumer = Consumer::new(ConsumerName::parse("w").unwrap()).batch(Consumer::BACKGROUND).from(StartAt::Now);
    let mut subscription = store.subscribe(consumer).await.unwrap();
    assert!(subscription.take().await.unwrap().is_empty());
    append("config.applied").await;
    assert!(subscription.take().await.unwrap().is_empty(), "its class does not shorten the window");
    clock.advance(Consumer::BACKGROUND - Duration::from_millis(1));
    append("resource.updated").await;
    assert!(subscription.take().await.unwrap().is_empty(), "a millisecond is left");
    clock.advance(Duration::from_millis(1));
    assert_eq!(subscription.take().await.unwrap().len(), 2, "the window began with the first event");
}

/// As a forwarder does that finds nothing it wants in a long archive.
#[tokio::test]
async fn who_reads_past_what_it_does_not_want_is_alive_and_gets_on() {
    let Place { dir: _dir, clock, manager } = Place::new().await;
    let open = async || EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let (store, other) = (open().await, open().await);
    let (stream, unwanted) = (StreamName::parse("s").unwrap(), EventType::parse("metric.updated").unwrap());
    let event = NewEvent::new(manager.next_ulid(), unwanted, &1).unwrap();
    let last = store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap().last;
    let filter = Filter::all().kind_prefix("config");
    let consumer = Consumer::new(ConsumerName::parse("w").unwrap()).filter(filter);
    let mut subscription = store.subscribe(consumer.clone()).await.unwrap();
    clock.advance(Duration::from_secs(50));
    assert!(subscription.take().await.unwrap().is_empty());
    clock.advance(Duration::from_secs(50));
    let busy = other.subscribe(consumer.clone()).await;
    assert!(matches!(busy, Err(Error::ConsumerBusy { .. })), "{busy:?}");
    clock.advance(Duration::from_secs(20));
    let taken_over = other.subscribe(consumer).await.unwrap();
    assert_eq!(taken_over.position(), last, "what was looked at need not be looked at again");
}
