//! A bundle of evidence that goes where events go: whoever receives it needs nothing else to believe it.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;
#[allow(dead_code)]
#[path = "support/web.rs"]
mod web;

use nasnet_events::evidence::{self, Bundle};
use nasnet_events::forward::{Forwarder, HttpSink, StoreSink};
use nasnet_events::{Error, Expected, Filter, Query, Span, types};
use support::watch::consumer;
use support::{Site, event, large, normal, read, router, stream};
use web::{Answer, Web};

#[tokio::test]
async fn a_bundle_arrives_by_value_in_both_sinks_and_is_verified_there() {
    let (here, there) = (Site::new(), Site::new());
    let (manager, store) = here.open().await;
    let (_target_manager, target) = there.open().await;
    for name in ["config.applied", "resource.updated", "auth.login.failed"] {
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![event(&manager, name)]).await.unwrap();
    }
    let bundle = evidence::export(&store, Span::scope(router("r1")), vec!["A.8.15".to_owned()]).await.unwrap();
    let witnessed = bundle.head().clone();
    let carrier = bundle.to_event(manager.next_ulid()).unwrap();
    store.append(&router("r1"), &stream("evidence/1"), Expected::Unwritten, vec![carrier]).await.unwrap();

    let web = Web::start(|_| Answer::Status(200)).await;
    let only = |name: &str| consumer(name).filter(Filter::all().kind_prefix("evidence"));
    let post = Forwarder::new(store.clone(), only("web"), HttpSink::new(&web.url()).unwrap());
    assert_eq!(post.open().await.unwrap().round().await.unwrap().delivered, 1);
    let copy = Forwarder::new(store.clone(), only("disk"), StoreSink::new(target.clone(), router("r2")));
    assert_eq!(copy.open().await.unwrap().round().await.unwrap().delivered, 1);

    // The web server has taken the JSON apart, and spells it in its own way.
    let posted = web.lines().remove(0)["body"].to_string();
    let kept = read(&target, Query::all().kind(types::EVIDENCE_EXPORTED)).await.remove(0);
    for body in [posted.as_str(), kept.body.get()] {
        let arrived = Bundle::from_body(body).unwrap();
        assert_eq!(arrived, bundle);
        assert_eq!((arrived.verify(&witnessed).unwrap().events, arrived.controls()), (3, &["A.8.15".to_owned()][..]));
        let changed = body.replacen("wg0", "wg1", 1);
        assert!(matches!(Bundle::from_body(&changed), Err(Error::Corrupt { .. })), "one letter on the way");
    }
    assert!(matches!(Bundle::from_body("{}"), Err(Error::Corrupt { .. })));
}

#[tokio::test]
async fn a_bundle_that_is_larger_than_an_event_may_be_is_refused_and_a_smaller_span_is_not() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    for _ in 0..3 {
        let event = large(&manager, "config.applied", 120_000);
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    let events = read(&store, Query::all()).await;
    let append = async |span: Span| {
        let bundle = evidence::export(&store, span, Vec::new()).await.unwrap();
        let carrier = bundle.to_event(manager.next_ulid()).unwrap();
        store.append(&router("r1"), &stream("evidence/1"), Expected::Any, vec![carrier]).await
    };
    let refused = append(Span::scope(router("r1"))).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    append(Span::scope(router("r1")).until(events[0].position)).await.unwrap();
}
