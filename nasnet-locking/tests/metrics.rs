//! Requests for leases are counted by how they were decided, without a key or a holder.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../nasnet-dbmanager/tests/common/book.rs"]
mod book;
mod common;

use book::Book;
use common::{World, exclusive, manager};
use nasnet_locking::{Error, observe};

// The recorder is that of the process, so this is one test.
#[tokio::test]
async fn each_request_is_counted_once_when_it_is_decided() {
    let book = Book::default();
    metrics::set_global_recorder(book.clone()).unwrap();
    observe::describe();
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let counted = || {
        let of = |outcome: &str| {
            let label = format!("outcome={outcome}");
            assert_eq!(book.count(observe::ACQUIRES, &label), book.count(observe::WAIT_SECONDS, &label), "{outcome}");
            book.count(observe::ACQUIRES, &label)
        };
        (of("granted"), of("held"), of("failed"))
    };
    let guard = locks.acquire(exclusive("router/r1/wan", "ann")).await.unwrap();
    assert_eq!(counted(), (1, 0, 0));
    for _ in 0..2 {
        assert!(matches!(locks.acquire(exclusive("router/r1/wan", "bob")).await, Err(Error::Held { .. })));
    }
    assert_eq!(counted(), (1, 2, 0));
    guard.release().await.unwrap();
    db.shutdown().await.unwrap();
    assert!(locks.acquire(exclusive("router/r1/wan", "bob")).await.is_err());
    assert_eq!(counted(), (1, 2, 1));
    let sums = book.sums.lock().unwrap().clone();
    assert!(sums.keys().all(|series| !series.contains("wan") && !series.contains("bob")), "{sums:?}");
    book.is_documented("nasnet_lock_");
}
