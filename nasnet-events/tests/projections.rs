//! A projection whose model lives in the same database applies each event exactly once, however often its process is killed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod support;

use std::path::Path;

use futures_util::StreamExt;
use nasnet_dbmanager::{DbManager, FileKind, Migration, SchemaSet};
use nasnet_events::{
    ConsumerName, Error, EventOptions, EventStore, Expected, Item, Query, Recorded, project_in, projected_through,
};
use sqlx::SqliteConnection;
use support::child::{self, Child};
use support::watch::consumer;
use support::{Site, TEST, event, normal, open_in, options, read, router, stream};

const MODEL: &str = "model";

fn model() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "model",
        up: "CREATE TABLE model (name TEXT PRIMARY KEY, events INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT",
        down: "DROP TABLE model",
    };
    SchemaSet::new("model", FileKind::Router, vec![first])
}

async fn open(dir: &Path) -> (DbManager, EventStore) {
    open_in(options(dir).schemas([model()]), EventOptions::default()).await
}

/// Adds the version of an event to the sum of its stream: applied twice or not at all, the sum is another.
async fn apply(conn: &mut SqliteConnection, name: &ConsumerName, event: &Recorded) -> Result<(), Error> {
    if !project_in(conn, name, event).await? {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO model (name, events, sum) VALUES (?1, 1, ?2) \
         ON CONFLICT (name) DO UPDATE SET events = events + 1, sum = sum + excluded.sum",
    )
    .bind(event.stream.as_str())
    .bind(event.version.cast_signed())
    .execute(conn)
    .await?;
    Ok(())
}

async fn project(manager: &DbManager, event: Recorded) {
    let database = manager.scope(&router("r1")).await.unwrap();
    let done = database.write(TEST, move |conn| {
        Box::pin(async move { apply(conn, &ConsumerName::parse(MODEL).unwrap(), &event).await })
    });
    done.await.unwrap();
}

/// What the model says, and what the events say.
async fn compare(manager: &DbManager, store: &EventStore) -> (Vec<(String, i64, i64)>, Vec<(String, i64, i64)>) {
    let database = manager.scope(&router("r1")).await.unwrap();
    let (found, through) = database
        .read(TEST, |conn| {
            Box::pin(async move {
                let rows =
                    sqlx::query_as("SELECT name, events, sum FROM model ORDER BY name").fetch_all(&mut *conn).await?;
                let through = projected_through(conn, &ConsumerName::parse(MODEL).unwrap()).await?;
                Ok::<(Vec<(String, i64, i64)>, _), Error>((rows, through))
            })
        })
        .await
        .unwrap();
    let mut expected = std::collections::BTreeMap::<String, (i64, i64)>::new();
    if let Some(through) = through {
        for event in read(store, Query::all().until(through)).await {
            let sums = expected.entry(event.stream.to_string()).or_default();
            *sums = (sums.0 + 1, sums.1 + event.version.cast_signed());
        }
    }
    (found, expected.into_iter().map(|(name, (events, sum))| (name, events, sum)).collect())
}

#[tokio::test]
async fn a_projection_that_is_shown_an_event_again_does_not_apply_it_again() {
    let site = Site::new();
    let (manager, store) = open(site.dir.path()).await;
    for _ in 0..5 {
        store.append(&router("r1"), &stream("a"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    }
    for _ in 0..3 {
        let mut subscription = store.subscribe(consumer(MODEL)).await.unwrap();
        while let Item::Event(event) = subscription.next().await.unwrap().unwrap() {
            // Never acknowledged, so everything is delivered each time.
            project(&manager, event).await;
        }
    }
    let (found, expected) = compare(&manager, &store).await;
    assert_eq!(found, [("a".to_owned(), 5, 15)]);
    assert_eq!(found, expected);
    // A transaction that rolls back takes its position along.
    let receipt = store.append(&router("r1"), &stream("a"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    let sixth = read(&store, Query::all().after(receipt.first.min(nasnet_events::Position::new(1, 5)))).await.remove(0);
    let database = manager.scope(&router("r1")).await.unwrap();
    let again = sixth.clone();
    let failed: Result<(), Error> = database
        .write(TEST, move |conn| {
            Box::pin(async move {
                apply(conn, &ConsumerName::parse(MODEL).unwrap(), &again).await?;
                Err(Error::Closed)
            })
        })
        .await;
    assert!(failed.is_err());
    assert_eq!(compare(&manager, &store).await.0, found);
    project(&manager, sixth).await;
    assert_eq!(compare(&manager, &store).await.0, [("a".to_owned(), 6, 21)]);
}

/// Runs as the child: appends and projects for ever, and says how far it has come.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(dir) = child::task() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, store) = open(Path::new(&dir)).await;
        for name in ["a", "b"] {
            let (manager, store) = (manager.clone(), store.clone());
            tokio::spawn(async move {
                let kind = if name == "a" { "resource.updated" } else { "config.applied" };
                loop {
                    let one = event(&manager, kind);
                    store.append(&router("r1"), &stream(name), Expected::Any, vec![one]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
        }
        let mut subscription = store.subscribe(consumer(MODEL)).await.unwrap();
        let mut seen = 0;
        while let Some(item) = subscription.next().await {
            let item = item.unwrap();
            let position = item.position();
            if let Item::Event(event) = item {
                project(&manager, event).await;
                println!("\napplied {position}");
            }
            seen += 1;
            if seen % 7 == 0 {
                subscription.ack(position).await.unwrap();
            }
        }
    });
}

#[test]
fn a_projection_whose_process_is_killed_again_and_again_has_applied_each_event_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut applied = 0;
    for (round, kill_after) in [1, 40, 3, 97, 60].into_iter().enumerate() {
        let mut child = Child::spawn(dir.path().display());
        assert_eq!(child.lines().filter(|line| line.starts_with("applied ")).take(kill_after).count(), kill_after);
        drop(child);
        runtime.block_on(async {
            let (manager, store) = open(dir.path()).await;
            store.resolve().await.unwrap();
            let (found, expected) = compare(&manager, &store).await;
            assert_eq!(found, expected, "round {round}");
            let now: i64 = found.iter().map(|(_, events, _)| events).sum();
            assert!(now >= applied, "round {round} took something back");
            applied = now;
            drop(store);
            manager.shutdown().await.unwrap();
        });
    }
    assert!(applied > 100, "only {applied} were applied");
    println!("killed 5 times, {applied} events applied exactly once each");
}
