//! A database that is full for everything else takes what is Critical, and what gives room back.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use nasnet_dbmanager::{DbManager, Error as DbError, Scope};
use nasnet_events::{Durability, Error, EventOptions, EventStore, Expected, Query, Subject};
use support::{Site, TEST, alike, event, open_in, options, read_ids, router, stream};

const DATABASE_MAX: u64 = 1 << 20;
const ROWS_MAX: u64 = 64;

async fn open(site: &Site) -> (DbManager, EventStore) {
    let mut fleet = options(site.dir.path());
    fleet.database_bytes_max = DATABASE_MAX;
    let mut options = EventOptions::default();
    options.rows_max = ROWS_MAX;
    open_in(fleet, options).await
}

/// Fills a database until it takes no row from an operation that is not critical.
async fn fill(manager: &DbManager, scope: &Scope) {
    let database = manager.scope(scope).await.unwrap();
    let sql = "CREATE TABLE IF NOT EXISTS filler (bytes BLOB)";
    let made = database.write(TEST, move |conn| {
        Box::pin(async move { Ok::<_, Error>(sqlx::query(sql).execute(conn).await.map(drop)?) })
    });
    made.await.unwrap();
    for bytes in [30_000, 3_000, 100] {
        loop {
            let filled = database.write(TEST, move |conn| {
                Box::pin(async move {
                    let insert = sqlx::query("INSERT INTO filler VALUES (zeroblob(?1))").bind(bytes);
                    Ok::<_, Error>(insert.execute(conn).await.map(drop)?)
                })
            });
            match filled.await {
                Ok(()) => {}
                Err(error) if is_full(&error) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::Storage { source } => matches!(**source, DbError::NoSpace { .. }),
        Error::NotDurable { source: Some(source), .. } => is_full(source),
        _ => false,
    }
}

#[tokio::test]
async fn what_is_critical_is_admitted_where_nothing_else_is() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let scope = router("r1");
    fill(&manager, &scope).await;
    let events = (0..200).map(|number| alike(&manager, number)).collect();
    let durable = store.append_with(&scope, &stream("normal"), Expected::Any, events, Durability::Durable).await;
    let error = durable.unwrap_err();
    assert!(is_full(&error) && error.is_retryable(), "what can wait leaves the reserve alone: {error:?}");

    let mut ids = Vec::new();
    for number in 0..4 * ROWS_MAX {
        let event = event(&manager, "config.applied");
        ids.push(event.id);
        let appended = store.append(&scope, &stream("critical"), Expected::Exact(number), vec![event]).await;
        appended.unwrap_or_else(|error| panic!("{number}: {error:?}"));
    }
    assert_eq!(read_ids(&store, Query::scope(scope.clone())).await, ids);
    // What makes room again must not want for it.
    let sealed = store.seal().await.unwrap();
    assert!(sealed.failed.is_empty() && sealed.events >= 2 * ROWS_MAX, "{sealed:?}");
    assert_eq!(read_ids(&store, Query::scope(scope)).await, ids);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_full_system_database_gives_the_keys_of_what_is_critical_and_forgets_them() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    fill(&manager, &Scope::System).await;
    let subject = |number: usize| Subject::parse(&format!("user-{number}-{}", "x".repeat(80))).unwrap();
    for number in 0..100 {
        let mut event = event(&manager, "config.applied");
        event.subject = Some(subject(number));
        let appended = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await;
        appended.unwrap_or_else(|error| panic!("{number}: {error:?}"));
    }
    for number in 0..100 {
        let shredded = store.shred(&subject(number)).await;
        assert_eq!(shredded.unwrap_or_else(|error| panic!("{number}: {error:?}")).keys, 1);
    }
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}
