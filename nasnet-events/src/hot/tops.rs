//! Which versions were given to events that have left the hot log and are in no database: whoever did not see them would give
//! them again.

use std::collections::BTreeMap;

use nasnet_dbmanager::Scope;
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::event::Recorded;
use crate::name::StreamName;

const NOTE: &str = "INSERT INTO hot_tops (scope, stream, version) VALUES (?1, ?2, ?3) \
     ON CONFLICT (scope, stream) DO UPDATE SET version = MAX(version, excluded.version)";
const LIST: &str = "SELECT scope, stream, version FROM hot_tops";

/// Notes the versions of events that leave, in the caller's transaction.
pub(crate) async fn note<'a>(
    conn: &mut SqliteConnection,
    events: impl Iterator<Item = &'a Recorded>,
) -> Result<(), Error> {
    let mut tops: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for event in events {
        let top = tops.entry((event.scope.as_str(), event.stream.as_str())).or_default();
        *top = event.version.max(*top);
    }
    for ((scope, stream), version) in tops {
        sqlx::query(NOTE).bind(scope).bind(stream).bind(version.cast_signed()).execute(&mut *conn).await?;
    }
    Ok(())
}

/// All of them.
pub(crate) async fn list(conn: &mut SqliteConnection) -> Result<Vec<(Scope, StreamName, u64)>, Error> {
    let found: Vec<(String, String, i64)> = sqlx::query_as(LIST).fetch_all(conn).await?;
    let all = found.into_iter().map(|(scope, stream, version)| {
        let scope = scope.parse().map_err(|error| Error::corrupt("hot.db hot_tops", error))?;
        Ok((scope, StreamName::parse(&stream)?, version.cast_unsigned()))
    });
    all.collect()
}
