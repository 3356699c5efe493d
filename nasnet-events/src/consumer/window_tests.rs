//! Delivery windows, looked at without waiting for any.

use std::time::Duration;

use nasnet_dbmanager::Scope;

use crate::consumer::{Consumer, ConsumerName, StartAt};
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
