//! Reading as a consumer in tests.

use futures_util::StreamExt;
use nasnet_events::{Consumer, ConsumerName, EventStore, Item, Position, Subscription};
use ulid::Ulid;

pub fn consumer(name: &str) -> Consumer {
    Consumer::new(ConsumerName::parse(name).unwrap())
}

pub async fn next(subscription: &mut Subscription) -> Item {
    subscription.next().await.unwrap().unwrap()
}

/// Everything up to and without the next `CaughtUp`.
pub async fn until_caught_up(subscription: &mut Subscription) -> Vec<Item> {
    let mut items = Vec::new();
    loop {
        match next(subscription).await {
            Item::CaughtUp { .. } => return items,
            item => items.push(item),
        }
    }
}

/// The next events, whatever else comes between them.
pub async fn events(subscription: &mut Subscription, count: usize) -> Vec<Ulid> {
    let mut ids = Vec::new();
    while ids.len() < count {
        if let Item::Event(event) = next(subscription).await {
            ids.push(event.id);
        }
    }
    ids
}

pub fn ids(items: &[Item]) -> Vec<Ulid> {
    items.iter().filter_map(Item::event).map(|event| event.id).collect()
}

/// What one consumer is shown of a store from the beginning.
pub async fn shown(store: &EventStore, name: &str) -> Vec<Item> {
    until_caught_up(&mut store.subscribe(consumer(name)).await.unwrap()).await
}

pub fn last(items: &[Item]) -> Position {
    items.last().unwrap().position()
}
