//! What leaves the hot and the warm tier is counted by its reason, what is lost apart from it, and how far down reads look.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../../nasnet-dbmanager/tests/common/book.rs"]
mod book;
mod support;

use std::time::Duration;

use book::Book;
use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{
    Consumer, ConsumerName, EventOptions, EventStore, Expected, Filter, GuardLimits, NewEvent, Query, observe,
};
use support::{Site, event, kind, normal, on_scope, router, stream};

const MAX: u64 = 512 << 10;
const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'full'); END";

/// Appends events whose bodies do not get smaller by compression.
async fn append_bulky(manager: &DbManager, store: &EventStore, name: &str, count: usize) {
    for _ in 0..count {
        let ids: Vec<String> = (0..80).map(|_| manager.next_ulid().random().to_string()).collect();
        let event = NewEvent::new(manager.next_ulid(), kind(name), &ids).unwrap();
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
}

// The recorder is that of the process, so this is one test.
#[tokio::test]
async fn what_is_shed_expired_lost_removed_and_read_is_counted_as_the_store_reports_it() {
    let book = Book::default();
    metrics::set_global_recorder(book.clone()).unwrap();
    nasnet_dbmanager::observe::describe();
    observe::describe();
    let site = Site::new();
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(MAX);
    let (manager, store) = site.open_with(options).await;

    store.append(&router("r1"), &stream("s"), Expected::Any, vec![event(&manager, "metric.updated")]).await.unwrap();
    site.clock.advance(Duration::from_secs(25 * 60 * 60));
    // The newest block stays.
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(store.expire().await.unwrap(), 1);
    assert_eq!((book.count(observe::SHED, "why=expired"), book.count(observe::SHED, "why=room")), (1, 0));

    append_bulky(&manager, &store, "metric.updated", 600).await;
    let status = store.status().await.unwrap();
    assert!(status.shed > 0 && status.lost == 0, "{} {}", status.shed, status.lost);
    assert_eq!(book.count(observe::SHED, "why=room"), status.shed);
    assert_eq!(book.count(observe::LOST, ""), 0);

    // Nothing can be flushed, so what is to reach flash has to go in the end.
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    on_scope(&manager, &router("r1"), REFUSE).await;
    append_bulky(&manager, &store, "resource.updated", 600).await;
    let status = store.status().await.unwrap();
    assert!(status.lost > 0);
    assert_eq!(book.count(observe::LOST, ""), status.lost);
    assert_eq!(book.count(observe::SHED, "why=room"), status.shed - status.lost);

    assert_eq!(book.count(observe::TAILS_LOST, ""), 0);
    drop(store);
    manager.shutdown().await.unwrap();
    drop(manager);
    site.wipe_hot();
    let (manager, store) = site.open().await;
    assert_eq!((store.losses().len(), book.count(observe::TAILS_LOST, "")), (1, 1));

    // Many callers come first to a router at once: its database is read once for all of them.
    let windows =
        || book.count(nasnet_dbmanager::observe::OPERATIONS, "cause=event-window,database=router,outcome=read");
    let before = windows();
    let r2 = router("r2");
    let first = (0..32).map(|_| async {
        store.append(&r2, &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    });
    futures_util::future::join_all(first).await;
    assert_eq!(windows() - before, 1);

    // One event goes past a consumer that waits for too long, the other is wanted by nobody.
    let waiting = Filter::all().kind_prefix("auth");
    let waiting = Consumer::new(ConsumerName::parse("slow").unwrap()).filter(waiting).guard(GuardLimits::default());
    store.subscribe(waiting).await.unwrap().close().await.unwrap();
    for name in ["config.applied", "auth.session.revoked"] {
        store.append(&Scope::System, &stream("s"), Expected::Any, vec![event(&manager, name)]).await.unwrap();
    }
    store.mark_age().await.unwrap();
    site.clock.advance(Duration::from_secs(31 * 86_400));
    let report = store.retain(store.retention_plan().await.unwrap().only(&Scope::System)).await.unwrap();
    assert_eq!((report.events, report.forced.len()), (2, 1), "{report:?}");
    assert_eq!((book.count(observe::PRUNED, "why=retention"), book.count(observe::PRUNED, "why=guard")), (1, 1));

    // Each read counts once for each tier it had to look into.
    let looked = || ["tier=hot", "tier=warm", "tier=cold"].map(|tier| book.count(observe::READS, tier));
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    assert_eq!(support::read(&store, Query::all().backwards().limit(1)).await.len(), 1);
    assert_eq!(looked(), [1, 0, 0]);
    support::read(&store, Query::all()).await;
    assert_eq!(looked(), [2, 1, 0], "there is no cold tier");
    let reads = store.status().await.unwrap().reads;
    assert_eq!([reads.hot, reads.warm, reads.cold], looked());
    drop(store);
    manager.shutdown().await.unwrap();
    book.is_documented("nasnet_events_");
}
