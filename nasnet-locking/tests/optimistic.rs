//! `update_with` over a real table: no change is lost, and a conflict tells what happened in between.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use common::World;
use nasnet_dbmanager::{Cause, Database, Error};
use nasnet_locking::optimistic::{Conflict, Retry, Stored, UpdateError, Versioned, update_with};

const CAUSE: Cause = Cause::new("test");

async fn create(db: &Database) {
    db.write(CAUSE, |conn| {
        Box::pin(async move {
            sqlx::raw_sql(
                "CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER, version INTEGER, by_whom TEXT) STRICT;
                 CREATE TABLE change (version INTEGER PRIMARY KEY, by_whom TEXT NOT NULL) STRICT;
                 INSERT INTO counter VALUES (1, 0, 0, 'nobody')",
            )
            .execute(conn)
            .await?;
            Ok::<_, Error>(())
        })
    })
    .await
    .unwrap();
}

async fn read(db: Database) -> Result<Versioned<i64>, Error> {
    db.read(CAUSE, |conn| {
        Box::pin(async move {
            let (value, version): (i64, i64) =
                sqlx::query_as("SELECT value, version FROM counter WHERE id = 1").fetch_one(conn).await?;
            Ok(Versioned { value, version: version.unsigned_abs() })
        })
    })
    .await
}

async fn write(db: Database, expected: u64, value: i64, who: String) -> Result<Stored<u64, String>, Error> {
    db.write(CAUSE, move |conn| {
        Box::pin(async move {
            let over = i64::try_from(expected).unwrap();
            let stored: Option<i64> = sqlx::query_scalar(
                "UPDATE counter SET value = ?1, version = version + 1, by_whom = ?2 WHERE id = 1 AND version = ?3
                 RETURNING version",
            )
            .bind(value)
            .bind(&who)
            .bind(over)
            .fetch_optional(&mut *conn)
            .await?;
            if let Some(version) = stored {
                sqlx::query("INSERT INTO change VALUES (?1, ?2)").bind(version).bind(who).execute(conn).await?;
                return Ok(Stored::Done(version.unsigned_abs()));
            }
            let changes: Vec<String> =
                sqlx::query_scalar("SELECT by_whom FROM change WHERE version > ?1 ORDER BY version")
                    .bind(over)
                    .fetch_all(conn)
                    .await?;
            let actual = expected + changes.len() as u64;
            Ok(Stored::Conflict(Conflict { expected, actual, by: changes.last().cloned(), at_ms: None, changes }))
        })
    })
    .await
}

#[tokio::test]
async fn no_increment_is_lost_among_racing_writers() {
    let world = World::new();
    let db = world.open().await;
    let runtime = db.runtime().clone();
    create(&runtime).await;
    let mut tasks = Vec::new();
    for task in 0..8 {
        let runtime = runtime.clone();
        tasks.push(tokio::spawn(async move {
            let mut retry = Retry::default();
            retry.attempts_max = 1_000;
            for _ in 0..10 {
                update_with(
                    &retry,
                    || read(runtime.clone()),
                    |value, _| Ok(*value + 1),
                    |expected, value| write(runtime.clone(), expected, value, format!("task {task}")),
                )
                .await
                .unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(read(runtime).await.unwrap(), Versioned { value: 80, version: 80 });
}

#[tokio::test]
async fn a_conflict_carries_the_changes_in_between() {
    let world = World::new();
    let db = world.open().await;
    let runtime = db.runtime().clone();
    create(&runtime).await;
    for who in ["ann", "bob"] {
        let current = read(runtime.clone()).await.unwrap();
        write(runtime.clone(), current.version, 1, who.to_owned()).await.unwrap();
    }
    let outdated = update_with(
        &Retry::never(),
        || std::future::ready(Ok(Versioned { value: 0, version: 0 })),
        |_, _| Ok(9),
        |expected, value| write(runtime.clone(), expected, value, "eve".to_owned()),
    )
    .await;
    match outdated {
        Err(UpdateError::Conflict { attempts: 1, last }) => {
            assert_eq!((last.expected, last.actual, last.by.as_deref()), (0, 2, Some("bob")));
            assert_eq!(last.changes, ["ann", "bob"]);
        }
        other => panic!("{other:?}"),
    }
}
