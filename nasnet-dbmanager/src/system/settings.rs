//! Settings of the whole fleet: JSON values by category and key.

use serde::Serialize;
use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{column, name};
use crate::clock::Now;
use crate::error::Error;

const GET: &str = "
    SELECT key, value, schema_version, updated_ms FROM global_settings WHERE category = ?1 AND key = ?2";

const LIST: &str = "
    SELECT key, value, schema_version, updated_ms FROM global_settings WHERE category = ?1 ORDER BY key";

// A value that did not change is not written again.
const PUT: &str = "
    INSERT INTO global_settings (category, key, value, schema_version, updated_ms)
    VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (category, key) DO UPDATE
    SET value = excluded.value, schema_version = excluded.schema_version, updated_ms = excluded.updated_ms
    WHERE (value, schema_version) IS NOT (excluded.value, excluded.schema_version)";

const REMOVE: &str = "DELETE FROM global_settings WHERE category = ?1 AND key = ?2";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] =
    &[("settings::GET", GET), ("settings::LIST", LIST), ("settings::PUT", PUT), ("settings::REMOVE", REMOVE)];

/// One stored setting.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Setting {
    /// The key within its category.
    pub key: String,
    /// The value.
    pub value: Value,
    /// The version of the value's form, as its owner counts it.
    pub schema_version: u32,
    /// When it was last changed, wall clock.
    pub updated_ms: i64,
}

/// Returns a setting.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::Decode`], or an error of the database.
pub async fn get(conn: &mut SqliteConnection, category: &str, key: &str) -> Result<Option<Setting>, Error> {
    check(category, key)?;
    sqlx::query(GET).bind(category).bind(key).fetch_optional(conn).await?.as_ref().map(decode).transpose()
}

/// Returns the settings of a category, by key.
///
/// # Errors
/// As [`get`].
pub async fn list(conn: &mut SqliteConnection, category: &str) -> Result<Vec<Setting>, Error> {
    name::check("setting category", category)?;
    sqlx::query(LIST).bind(category).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Stores a setting, replacing an earlier value.
///
/// # Errors
/// [`Error::InvalidName`], [`Error::Encode`] when the value has no JSON form, or an error of the database.
pub async fn put(
    conn: &mut SqliteConnection,
    category: &str,
    key: &str,
    value: &(impl Serialize + Sync),
    schema_version: u32,
    now: &Now,
) -> Result<(), Error> {
    check(category, key)?;
    let value = encode(value)?.to_string();
    sqlx::query(PUT).bind(category).bind(key).bind(value).bind(schema_version).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Removes a setting; returns whether it was there.
///
/// # Errors
/// [`Error::InvalidName`], or an error of the database.
pub async fn remove(conn: &mut SqliteConnection, category: &str, key: &str) -> Result<bool, Error> {
    check(category, key)?;
    let done = sqlx::query(REMOVE).bind(category).bind(key).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

/// Turns a value into JSON.
pub(crate) fn encode(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Encode { what: "setting", detail: error.to_string() })
}

fn check(category: &str, key: &str) -> Result<(), Error> {
    name::check("setting category", category)?;
    name::check("setting key", key)
}

fn decode(row: &SqliteRow) -> Result<Setting, Error> {
    Ok(Setting {
        key: row.try_get("key")?,
        value: column::json("setting", row.try_get("value")?)?,
        schema_version: column::small("setting version", row.try_get("schema_version")?)?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::system::scratch::{Scratch, now};

    #[tokio::test]
    async fn a_setting_is_what_was_put_last() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        assert_eq!(get(conn, "ui", "theme").await.expect("get"), None);
        put(conn, "ui", "theme", &"dark", 1, &now()).await.expect("put");
        put(conn, "ui", "theme", &json!({ "name": "light" }), 2, &now()).await.expect("put");
        put(conn, "ui", "columns", &[1, 2], 1, &now()).await.expect("put");
        put(conn, "other", "theme", &Value::Null, 0, &now()).await.expect("put");

        let theme = get(conn, "ui", "theme").await.expect("get").expect("stored");
        assert_eq!((theme.value, theme.schema_version), (json!({ "name": "light" }), 2));
        let keys: Vec<_> = list(conn, "ui").await.expect("list").into_iter().map(|setting| setting.key).collect();
        assert_eq!(keys, ["columns", "theme"]);

        assert!(remove(conn, "ui", "theme").await.expect("remove"));
        assert!(!remove(conn, "ui", "theme").await.expect("remove"));
        assert_eq!(get(conn, "other", "theme").await.expect("get").expect("stored").value, Value::Null);
    }

    #[tokio::test]
    async fn putting_an_unchanged_setting_writes_nothing() {
        let mut scratch = Scratch::new().await;
        put(&mut scratch.conn, "ui", "theme", &"dark", 1, &now()).await.expect("put");
        let before = crate::vfs::written(&scratch.path());
        put(&mut scratch.conn, "ui", "theme", &"dark", 1, &now()).await.expect("put");
        assert_eq!((crate::vfs::written(&scratch.path()) - before).bytes, 0);
    }

    #[tokio::test]
    async fn a_value_without_a_json_form_is_refused() {
        let mut scratch = Scratch::new().await;
        let value = std::collections::HashMap::from([((1, 2), 3)]);
        let error = put(&mut scratch.conn, "ui", "map", &value, 1, &now()).await.expect_err("no form");
        assert!(matches!(error, Error::Encode { what: "setting", .. }));
        assert!(matches!(get(&mut scratch.conn, "UI", "x").await, Err(Error::InvalidName { .. })));
    }
}
