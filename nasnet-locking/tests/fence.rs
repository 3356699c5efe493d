//! `fence::check` against a real SQLite file: who is rejected, what is raised, and invariant 7 against a model.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;

use nasnet_locking::{Error, FencingToken, KeySet, LockKey, Seen, fence};
use proptest::prelude::*;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

const SCHEMA: &str = include_str!("../migrations/0001_fence.up.sql");

fn token(number: u64) -> FencingToken {
    FencingToken::new(number).unwrap()
}

fn keys(paths: &[&str]) -> KeySet {
    KeySet::new(paths.iter().map(|path| LockKey::parse(*path).unwrap())).unwrap()
}

async fn database(dir: &tempfile::TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(dir.path().join("guarded.db")).create_if_missing(true);
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&mut conn).await.unwrap();
    conn
}

async fn rows(conn: &mut SqliteConnection) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT key, token FROM fence").fetch_all(conn).await.unwrap();
    rows.into_iter().collect()
}

/// What [`fence::check`] promises, in a map.
fn model(rows: &mut BTreeMap<String, i64>, keys: &KeySet, token: i64) -> bool {
    let overtaken = rows.iter().any(|(seen, other)| {
        *other > token && keys.iter().any(|key| key.overlaps(&LockKey::parse(seen.as_str()).unwrap()))
    });
    if !overtaken {
        for key in keys {
            rows.insert(key.to_string(), token);
        }
    }
    !overtaken
}

#[tokio::test]
async fn a_higher_token_on_the_key_above_or_below_rejects_and_beside_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = database(&dir).await;
    fence::check(&mut conn, &keys(&["router/r1/resource/a"]), token(9)).await.unwrap();
    for (path, allowed) in [
        ("router/r1/resource/a", false),
        ("router/r1", false),
        ("router/r1/resource/a/field", false),
        ("router/r1/resource/b", true),
        ("router/r10", true),
    ] {
        match fence::check(&mut conn, &keys(&[path]), token(5)).await {
            Ok(()) => assert!(allowed, "{path}"),
            Err(Error::Fenced { key, token: rejected, seen: Seen::Token(seen) }) => {
                assert!(!allowed, "{path}");
                assert_eq!((key.as_str(), rejected, seen), ("router/r1/resource/a", token(5), token(9)));
            }
            Err(other) => panic!("{path}: {other}"),
        }
    }
}

#[tokio::test]
async fn one_overtaken_key_rejects_the_whole_set_and_raises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = database(&dir).await;
    fence::check(&mut conn, &keys(&["b"]), token(9)).await.unwrap();
    let before = rows(&mut conn).await;
    assert!(matches!(
        fence::check(&mut conn, &keys(&["a", "b", "c"]), token(8)).await,
        Err(Error::Fenced { key, .. }) if key.as_str() == "b"
    ));
    assert_eq!(rows(&mut conn).await, before);
}

#[tokio::test]
async fn only_the_keys_are_raised_and_an_equal_token_changes_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = database(&dir).await;
    let set = keys(&["router/r1/resource/a", "router/r1/resource/b"]);
    fence::check(&mut conn, &set, token(3)).await.unwrap();
    assert_eq!(rows(&mut conn).await.into_keys().collect::<Vec<_>>(), ["router/r1/resource/a", "router/r1/resource/b"]);
    let changes = "SELECT total_changes()";
    let before: i64 = sqlx::query_scalar(changes).fetch_one(&mut conn).await.unwrap();
    fence::check(&mut conn, &set, token(3)).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(changes).fetch_one(&mut conn).await.unwrap(), before);
    assert_eq!(fence::seen(&mut conn, set.first()).await.unwrap(), Some(token(3)));
    assert_eq!(fence::seen(&mut conn, &LockKey::parse("router/r1").unwrap()).await.unwrap(), None);
}

prop_compose! {
    fn any_set()(paths in prop::collection::vec("[ab](/[ab0]){0,2}", 1..4)) -> KeySet {
        KeySet::new(paths.into_iter().map(|path| LockKey::parse(path).unwrap())).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_token_commits_under_a_higher_one(writes in prop::collection::vec((any_set(), 1_u64..12), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut conn = database(&dir).await;
            let mut expected = BTreeMap::new();
            for (set, number) in writes {
                let allowed = model(&mut expected, &set, i64::try_from(number).unwrap());
                let answer = fence::check(&mut conn, &set, token(number)).await;
                assert_eq!(answer.is_ok(), allowed, "{set:?} {number} {answer:?}");
                assert_eq!(rows(&mut conn).await, expected);
            }
        });
    }
}
