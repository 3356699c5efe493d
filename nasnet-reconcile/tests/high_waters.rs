//! What a restore must raise the counters past is found in the files that use the numbers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use nasnet_dbmanager::{Cause, DbManager, Error, FileKind, NewRouter, Options, RouterId, Scope};
use nasnet_events::{Class, ClassRules, EventOptions, EventStore, Expected, NewEvent, StreamName, types};
use nasnet_locking::{AcquireRequest, LockInfo, LockKey, LockManager, LockOptions};
use nasnet_reconcile::{high_waters, schema_sets};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_epochs_in_use_are_found_in_a_routers_file() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run")).schemas(schema_sets());
    let manager = DbManager::open(options).await.unwrap();
    let id: RouterId = "r1".parse().unwrap();
    manager.create_router(NewRouter::new(id.clone())).await.unwrap();
    let events = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    let locks = LockManager::open(&manager, LockOptions::default()).await.unwrap();

    let request = AcquireRequest::exclusive(LockKey::router(&id), LockInfo::new("test", "guard a write"));
    let lease = locks.acquire(request).await.unwrap();
    let (token, right) = (lease.token().get(), lease.write_right());
    let router = manager.router(&id).await.unwrap();
    let guarded = router.write::<_, nasnet_locking::Error, _>(Cause::new("test"), move |conn| {
        Box::pin(async move { right.check(conn).await })
    });
    guarded.await.unwrap();
    assert_eq!(ClassRules::default().classify(&types::CONFIG_APPLIED, nasnet_events::Level::Info), Class::Critical);
    let event = NewEvent::new(manager.next_ulid(), types::CONFIG_APPLIED, &"done").unwrap();
    let stream = StreamName::parse("operation/1").unwrap();
    let receipt = events.append(&Scope::Router(id.clone()), &stream, Expected::Unwritten, vec![event]).await.unwrap();

    let mut found = BTreeMap::new();
    for high_water in high_waters().into_iter().filter(|high_water| high_water.file == FileKind::Router) {
        let number = router
            .read::<_, Error, _>(Cause::new("test"), move |conn| {
                Box::pin(async move { Ok(sqlx::query_scalar::<_, Option<i64>>(high_water.sql).fetch_one(conn).await?) })
            })
            .await
            .unwrap();
        let largest = found.entry(high_water.counter).or_insert(0);
        *largest = (*largest).max(number.unwrap_or(0));
    }
    let wanted = BTreeMap::from([
        ("fencing_token", i64::try_from(token).unwrap()),
        ("event_epoch", i64::from(receipt.last.epoch)),
    ]);
    assert_eq!(found, wanted);
    lease.release().await.unwrap();
    drop(router);
    events.shutdown().await.unwrap();
    locks.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}
