//! Texts as small integers, one table for each scope.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::SqliteConnection;

use crate::error::Error;

const FIND: &str = "SELECT id, text FROM event_names WHERE text IN (SELECT value FROM json_each(?1))";
const ADD: &str = "INSERT INTO event_names (text) SELECT value FROM json_each(?1) WHERE TRUE \
     ON CONFLICT (text) DO NOTHING RETURNING id, text";
const ALL: &str = "SELECT id, text FROM event_names";
const STARTING: &str = "SELECT id FROM event_names WHERE substr(text, 1, length(?1)) = ?1";

fn json(texts: &BTreeSet<&str>) -> Result<String, Error> {
    serde_json::to_string(texts).map_err(|error| Error::corrupt("names of a batch", error))
}

/// The numbers of `texts`, giving numbers to new ones. Runs in the caller's write transaction: nothing is remembered
/// beyond it, because it may roll back.
pub(crate) async fn intern<'a>(
    conn: &mut SqliteConnection,
    texts: &BTreeSet<&'a str>,
) -> Result<HashMap<String, i64>, Error> {
    let found: Vec<(i64, String)> = sqlx::query_as(FIND).bind(json(texts)?).fetch_all(&mut *conn).await?;
    let mut ids: HashMap<String, i64> = found.into_iter().map(|(id, text)| (text, id)).collect();
    let missing: BTreeSet<&'a str> = texts.iter().copied().filter(|text| !ids.contains_key(*text)).collect();
    if !missing.is_empty() {
        let added: Vec<(i64, String)> = sqlx::query_as(ADD).bind(json(&missing)?).fetch_all(conn).await?;
        ids.extend(added.into_iter().map(|(id, text)| (text, id)));
    }
    Ok(ids)
}

/// The number given to `text` by [`intern`].
pub(crate) fn number(ids: &HashMap<String, i64>, text: &str) -> Result<i64, Error> {
    ids.get(text).copied().ok_or_else(|| Error::corrupt("event_names", format!("{text:?} got no number")))
}

/// All texts by number.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<HashMap<i64, String>, Error> {
    let found: Vec<(i64, String)> = sqlx::query_as(ALL).fetch_all(conn).await?;
    Ok(found.into_iter().collect())
}

/// Numbers of the texts that start with `prefix`.
pub(crate) async fn starting(conn: &mut SqliteConnection, prefix: &str) -> Result<HashSet<i64>, Error> {
    let found: Vec<i64> = sqlx::query_scalar(STARTING).bind(prefix).fetch_all(conn).await?;
    Ok(found.into_iter().collect())
}
