//! What `system.db` knows of directories that are moved, set aside or backed up.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use crate::clock::{ClockQuality, Now};
use crate::error::Error;
use crate::id::RouterId;
use crate::quarantine::{LostRange, RestoredFrom};
use crate::schema::{FileKind, Migration, SchemaSet};
use crate::system::routers::Lifecycle;

const BEGIN: &str = "
    INSERT INTO router_intents (router_id, action, directory, cause, begun_ms) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (router_id) DO UPDATE SET
        action = excluded.action, directory = excluded.directory, cause = excluded.cause, begun_ms = excluded.begun_ms";
const END: &str = "DELETE FROM router_intents WHERE router_id = ?1";
const INTENTS: &str = "SELECT router_id, action, directory, cause FROM router_intents ORDER BY router_id";
const INTENT: &str = "SELECT router_id, action, directory, cause FROM router_intents WHERE router_id = ?1";
const SETTLE: &str = "
    UPDATE routers SET lifecycle = ?2, file_uid = COALESCE(?3, file_uid), updated_ms = ?4 WHERE id = ?1";
const RETIRED: &str = "
    INSERT INTO retired_routers (router_id, retired_ms, quality) VALUES (?1, ?2, ?3) ON CONFLICT (router_id) DO NOTHING";
const NOT_RETIRED: &str = "DELETE FROM retired_routers WHERE router_id = ?1";
const LIST_RETIRED: &str = "SELECT router_id, retired_ms, quality FROM retired_routers ORDER BY retired_ms, router_id";
const FORGET: &str = "DELETE FROM routers WHERE id = ?1";
const SET_ASIDE: &str = "
    INSERT INTO set_aside (directory, router_id, reason, cause, bytes, set_aside_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (directory) DO NOTHING";
const REPLACED: &str = "UPDATE set_aside SET restored_from = ?2, lost = ?3 WHERE directory = ?1";
const LIST_ASIDE: &str = "
    SELECT directory, router_id, reason, cause, bytes, set_aside_ms, restored_from, lost
    FROM set_aside ORDER BY set_aside_ms, directory";
const DROP_ASIDE: &str = "DELETE FROM set_aside WHERE directory = ?1";
const NOTE_BACKUP: &str = "
    INSERT INTO backups (id, path, which, created_ms, bytes) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
const BACKED_UP: &str = "UPDATE routers SET last_backup_ms = ?2 WHERE id = ?1";
const LIST_BACKUPS: &str = "SELECT id, path, which, created_ms, bytes FROM backups ORDER BY created_ms DESC, id DESC";
const DROP_BACKUP: &str = "DELETE FROM backups WHERE path = ?1";

/// For the test of the query plans.
#[cfg(test)]
pub(crate) const STATEMENTS: &[(&str, &str)] = &[
    ("custody::BEGIN", BEGIN),
    ("custody::END", END),
    ("custody::INTENTS", INTENTS),
    ("custody::INTENT", INTENT),
    ("custody::SETTLE", SETTLE),
    ("custody::RETIRED", RETIRED),
    ("custody::NOT_RETIRED", NOT_RETIRED),
    ("custody::LIST_RETIRED", LIST_RETIRED),
    ("custody::FORGET", FORGET),
    ("custody::SET_ASIDE", SET_ASIDE),
    ("custody::REPLACED", REPLACED),
    ("custody::LIST_ASIDE", LIST_ASIDE),
    ("custody::DROP_ASIDE", DROP_ASIDE),
    ("custody::NOTE_BACKUP", NOTE_BACKUP),
    ("custody::BACKED_UP", BACKED_UP),
    ("custody::LIST_BACKUPS", LIST_BACKUPS),
    ("custody::DROP_BACKUP", DROP_BACKUP),
];

/// Returns the tables of this module, a set of its own.
pub(crate) fn schema_set() -> SchemaSet {
    let first = Migration {
        version: 1,
        name: "custody",
        up: include_str!("../migrations/custody/0001_custody.up.sql"),
        down: include_str!("../migrations/custody/0001_custody.down.sql"),
    };
    SchemaSet::new("custody", FileKind::System, vec![first])
}

/// What is being done to the directory of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Retire,
    Reinstate,
    Purge,
    Quarantine,
    Restore,
}

impl Action {
    const ALL: [Self; 5] = [Self::Retire, Self::Reinstate, Self::Purge, Self::Quarantine, Self::Restore];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Retire => "retire",
            Self::Reinstate => "reinstate",
            Self::Purge => "purge",
            Self::Quarantine => "quarantine",
            Self::Restore => "restore",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) id: RouterId,
    pub(crate) action: Action,
    pub(crate) directory: String,
    pub(crate) cause: String,
}

/// Notes what is about to be done; a second intent for one router replaces the first.
pub(crate) async fn begin(conn: &mut SqliteConnection, intent: &Intent, now: &Now) -> Result<(), Error> {
    let query = sqlx::query(BEGIN).bind(intent.id.as_str()).bind(intent.action.as_str());
    query.bind(&intent.directory).bind(&intent.cause).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

pub(crate) async fn end(conn: &mut SqliteConnection, id: &RouterId) -> Result<(), Error> {
    sqlx::query(END).bind(id.as_str()).execute(conn).await?;
    Ok(())
}

pub(crate) async fn intents(conn: &mut SqliteConnection) -> Result<Vec<Intent>, Error> {
    sqlx::query(INTENTS).fetch_all(conn).await?.iter().map(decode_intent).collect()
}

/// Returns what was begun with a router and not brought to its end.
pub(crate) async fn intent(conn: &mut SqliteConnection, id: &RouterId) -> Result<Option<Intent>, Error> {
    sqlx::query(INTENT).bind(id.as_str()).fetch_optional(conn).await?.as_ref().map(decode_intent).transpose()
}

fn decode_intent(row: &SqliteRow) -> Result<Intent, Error> {
    let action: &str = row.try_get("action")?;
    let action = Action::ALL.into_iter().find(|known| known.as_str() == action);
    Ok(Intent {
        id: row.try_get::<&str, _>("router_id")?.parse()?,
        action: action.ok_or_else(|| undecodable("intent", "its action is unknown"))?,
        directory: row.try_get("directory")?,
        cause: row.try_get("cause")?,
    })
}

/// Sets the state of a router and, if given, the uid of its file.
pub(crate) async fn settle(
    conn: &mut SqliteConnection,
    id: &RouterId,
    lifecycle: Lifecycle,
    file_uid: Option<[u8; 16]>,
    now: &Now,
) -> Result<(), Error> {
    let query = sqlx::query(SETTLE).bind(id.as_str()).bind(lifecycle.as_str());
    query.bind(file_uid.as_ref().map(|uid| &uid[..])).bind(now.wall_ms).execute(&mut *conn).await?;
    match lifecycle {
        Lifecycle::Retired => {
            let query = sqlx::query(RETIRED).bind(id.as_str()).bind(now.wall_ms).bind(now.quality.as_str());
            query.execute(conn).await?;
        }
        _ => {
            sqlx::query(NOT_RETIRED).bind(id.as_str()).execute(conn).await?;
        }
    }
    Ok(())
}

/// Removes a router, with everything `system.db` holds of it.
pub(crate) async fn forget(conn: &mut SqliteConnection, id: &RouterId) -> Result<(), Error> {
    sqlx::query(FORGET).bind(id.as_str()).execute(conn).await?;
    Ok(())
}

/// A router taken out of the fleet, whose directory is kept for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetiredRouter {
    /// The router.
    pub id: RouterId,
    /// When it was retired, wall clock.
    pub retired_ms: i64,
    /// How far that clock could be trusted.
    pub quality: ClockQuality,
}

pub(crate) async fn retired(conn: &mut SqliteConnection) -> Result<Vec<RetiredRouter>, Error> {
    let decode = |row: &SqliteRow| {
        Ok(RetiredRouter {
            id: row.try_get::<&str, _>("router_id")?.parse()?,
            retired_ms: row.try_get("retired_ms")?,
            quality: row.try_get::<&str, _>("quality")?.parse()?,
        })
    };
    sqlx::query(LIST_RETIRED).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Why a directory was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsideReason {
    /// Its database was damaged.
    Damaged,
    /// A restore put another one in its place.
    Replaced,
}

impl AsideReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Replaced => "replaced",
        }
    }
}

/// A directory that was set aside.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SetAside {
    /// Its name below the directory its reason implies.
    pub directory: String,
    /// The router it belonged to.
    pub router: RouterId,
    /// Why it is there.
    pub reason: AsideReason,
    /// What was found, or which backup replaced it.
    pub cause: String,
    /// Its size.
    pub bytes: u64,
    /// When, wall clock.
    pub at_ms: i64,
    /// What took its place.
    pub restored_from: Option<RestoredFrom>,
    /// What is missing there.
    pub lost: Option<LostRange>,
}

/// Lists a directory as set aside.
pub(crate) async fn set_aside(
    conn: &mut SqliteConnection,
    intent: &Intent,
    reason: AsideReason,
    bytes: u64,
    now: &Now,
) -> Result<(), Error> {
    let query = sqlx::query(SET_ASIDE).bind(&intent.directory).bind(intent.id.as_str()).bind(reason.as_str());
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    query.bind(&intent.cause).bind(bytes).bind(now.wall_ms).execute(conn).await?;
    Ok(())
}

/// Notes what took the place of a directory set aside.
pub(crate) async fn note_replacement(
    conn: &mut SqliteConnection,
    directory: &str,
    from: &RestoredFrom,
    lost: &LostRange,
) -> Result<(), Error> {
    let query = sqlx::query(REPLACED).bind(directory).bind(to_json("restore", from)?);
    query.bind(to_json("lost range", lost)?).execute(conn).await?;
    Ok(())
}

pub(crate) async fn list_aside(conn: &mut SqliteConnection) -> Result<Vec<SetAside>, Error> {
    let decode = |row: &SqliteRow| {
        Ok(SetAside {
            directory: row.try_get("directory")?,
            router: row.try_get::<&str, _>("router_id")?.parse()?,
            reason: match row.try_get("reason")? {
                "damaged" => AsideReason::Damaged,
                _ => AsideReason::Replaced,
            },
            cause: row.try_get("cause")?,
            bytes: u64::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or(0),
            at_ms: row.try_get("set_aside_ms")?,
            restored_from: from_json("restore", row.try_get("restored_from")?)?,
            lost: from_json("lost range", row.try_get("lost")?)?,
        })
    };
    sqlx::query(LIST_ASIDE).fetch_all(conn).await?.iter().map(decode).collect()
}

pub(crate) async fn drop_aside(conn: &mut SqliteConnection, directory: &str) -> Result<(), Error> {
    sqlx::query(DROP_ASIDE).bind(directory).execute(conn).await?;
    Ok(())
}

/// A backup this fleet made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownBackup {
    /// Its id.
    pub id: Ulid,
    /// Its directory; it may be on a medium that is not there now.
    pub path: PathBuf,
    /// What it holds: `fleet`, `system` or `router-{id}`.
    pub which: String,
    /// When it was made, wall clock.
    pub created_ms: i64,
    /// The size of its files.
    pub bytes: u64,
}

pub(crate) async fn note_backup(
    conn: &mut SqliteConnection,
    backup: &KnownBackup,
    routers: &[RouterId],
) -> Result<(), Error> {
    let query = sqlx::query(NOTE_BACKUP).bind(backup.id.to_string()).bind(backup.path.to_string_lossy());
    let query = query.bind(&backup.which).bind(backup.created_ms);
    query.bind(i64::try_from(backup.bytes).unwrap_or(i64::MAX)).execute(&mut *conn).await?;
    for id in routers {
        sqlx::query(BACKED_UP).bind(id.as_str()).bind(backup.created_ms).execute(&mut *conn).await?;
    }
    Ok(())
}

pub(crate) async fn backups(conn: &mut SqliteConnection) -> Result<Vec<KnownBackup>, Error> {
    let decode = |row: &SqliteRow| {
        let id: &str = row.try_get("id")?;
        Ok(KnownBackup {
            id: id.parse().map_err(|_| undecodable("backup", "its id is no ULID"))?,
            path: PathBuf::from(row.try_get::<&str, _>("path")?),
            which: row.try_get("which")?,
            created_ms: row.try_get("created_ms")?,
            bytes: u64::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or(0),
        })
    };
    sqlx::query(LIST_BACKUPS).fetch_all(conn).await?.iter().map(decode).collect()
}

pub(crate) async fn drop_backup(conn: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    sqlx::query(DROP_BACKUP).bind(path.to_string_lossy()).execute(conn).await?;
    Ok(())
}

fn undecodable(what: &'static str, detail: &str) -> Error {
    Error::Decode { what, detail: detail.to_owned() }
}

fn to_json(what: &'static str, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Encode { what, detail: error.to_string() })
}

fn from_json<T: DeserializeOwned>(what: &'static str, text: Option<&str>) -> Result<Option<T>, Error> {
    let parse = |text| serde_json::from_str(text).map_err(|error| undecodable(what, &error.to_string()));
    text.map(parse).transpose()
}
