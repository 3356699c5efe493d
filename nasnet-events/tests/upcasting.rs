//! Old forms of a body are read as the current one; what is stored stays as it was.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use futures_util::StreamExt;
use nasnet_events::{Error, EventOptions, Expected, FlushReason, NewEvent, Query, Upcasters};
use serde_json::{Value, json};
use support::{Site, kind, read, router, stream};

fn steps() -> Upcasters {
    let renamed = |mut body: Value| {
        let name = body["nom"].take();
        Ok(json!({ "name": name }))
    };
    let split = |body: Value| match body["name"].as_str() {
        Some(name) => Ok(json!({ "first": name.split(' ').next() })),
        None => Err("it has no name".to_owned()),
    };
    Upcasters::new().with(kind("person.moved"), 1, 2, renamed).unwrap().with(kind("person.moved"), 2, 4, split).unwrap()
}

#[tokio::test]
async fn bodies_of_every_schema_are_read_as_the_current_one() {
    let site = Site::new();
    let (manager, store) = site.open_with(EventOptions::default().upcasters(steps())).await;
    let (scope, name) = (router("r1"), stream("s"));
    let bodies = [
        (1, json!({ "nom": "Anna B" })),
        (2, json!({ "name": "Ben C" })),
        (4, json!({ "first": "Cleo" })),
        (2, json!({ "oops": 1 })),
        (3, json!({ "unknown": true })),
    ];
    for (schema, body) in &bodies {
        let event = NewEvent::new(manager.next_ulid(), kind("person.moved"), body).unwrap().schema(*schema);
        store.append(&scope, &name, Expected::Any, vec![event]).await.unwrap();
    }
    for flushed in [false, true] {
        if flushed {
            store.flush(FlushReason::Requested).await.unwrap();
            support::empty_hot(&manager).await;
        }
        let items: Vec<_> = store.read(Query::all().stream(name.clone())).collect().await;
        let shown: Vec<Value> = items.iter().flatten().map(|event| event.body_as().unwrap()).collect();
        let current = [json!({ "first": "Anna" }), json!({ "first": "Ben" }), json!({ "first": "Cleo" })];
        assert_eq!(shown[..3], current);
        assert_eq!(shown[3], bodies[4].1, "a schema no step starts from is read as it is");
        assert_eq!(items.iter().flatten().map(|event| event.schema).collect::<Vec<_>>(), [4, 4, 4, 3]);
        let Err(Error::Upcast { schema: 2, kind: failed, why, .. }) = &items[3] else { panic!("{:?}", items[3]) };
        assert_eq!((failed.as_str(), why.as_str()), ("person.moved", "it has no name"));

        // Nothing is rewritten.
        let stored = store.read_stored(Query::all().stream(name.clone()));
        let stored: Vec<(u16, Value)> =
            stored.map(|event| event.unwrap()).map(|event| (event.schema, event.body_as().unwrap())).collect().await;
        assert_eq!(stored, bodies);
    }
}

#[test]
fn a_step_that_leads_nowhere_is_refused() {
    let same = |body: Value| Ok(body);
    assert!(matches!(Upcasters::new().with(kind("a.b"), 2, 2, same), Err(Error::Invalid { .. })));
    assert!(matches!(Upcasters::new().with(kind("a.b"), 3, 1, same), Err(Error::Invalid { .. })));
    assert_eq!(format!("{:?}", steps()), r#"Upcasters([("person.moved", 1, 2), ("person.moved", 2, 4)])"#);
}

#[tokio::test]
async fn events_without_steps_are_left_alone() {
    let site = Site::new();
    let (manager, store) = site.open_with(EventOptions::default().upcasters(steps())).await;
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![support::normal(&manager)]).await.unwrap();
    assert_eq!(read(&store, Query::all()).await[0].schema, 1);
}

/// What serde says quotes what it found: facts, which shredding does not reach once they are in a log.
#[tokio::test]
async fn an_error_about_a_body_says_where_and_nothing_of_what_is_there() {
    const CANARY: &str = "+49 170 1234567";
    let site = support::Site::new();
    let (manager, store) = site.open().await;
    let event = nasnet_events::NewEvent::new(manager.next_ulid(), support::kind("user.called"), &CANARY).unwrap();
    store
        .append(&support::router("r1"), &support::stream("s"), nasnet_events::Expected::Any, vec![event])
        .await
        .unwrap();
    let event = support::read(&store, nasnet_events::Query::all()).await.remove(0);
    let error = event.body_as::<u32>().unwrap_err();
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("170"), "{text}");
        assert!(text.contains("line 1 column"), "{text}");
    }
}
