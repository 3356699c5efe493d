//! What every database says about itself: whose it is, which file it is, and the format of these marks.

use std::path::Path;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use ulid::Ulid;

use crate::connection::{pragma, run};
use crate::driver::during;
use crate::error::Error;
use crate::id::RouterId;
use crate::probe::ProbedRow;
use crate::schema::FileKind;

/// `NSDB`, in the header of every database of this crate.
pub(crate) const APPLICATION_ID: u32 = 0x4e53_4442;

/// The version of the marks in `_nasnet_meta`.
const FORMAT: i64 = 1;

const CREATE: &str = "
CREATE TABLE _nasnet_meta (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    format         INTEGER NOT NULL,
    fleet_id       BLOB NOT NULL CHECK (length(fleet_id) = 16),
    router_id      TEXT,                                             -- NULL except in router databases
    file_uid       BLOB NOT NULL CHECK (length(file_uid) = 16),      -- a copy under another name keeps it
    kind           TEXT NOT NULL CHECK (kind IN ('system', 'router', 'hot', 'locks', 'runtime')),
    keys_forgotten BLOB                                              -- the largest write key ever dropped
) STRICT;
CREATE TABLE _nasnet_keys (
    key BLOB PRIMARY KEY CHECK (length(key) = 16),
    seq INTEGER NOT NULL                                             -- the order of arrival, for dropping the oldest
) STRICT, WITHOUT ROWID;
";
const INSERT: &str =
    "INSERT INTO _nasnet_meta (one, format, fleet_id, router_id, file_uid, kind) VALUES (1, ?1, ?2, ?3, ?4, ?5)";
const SELECT: &str = "SELECT format, fleet_id, router_id, file_uid, kind FROM _nasnet_meta WHERE one = 1";

/// How many statements [`QUESTIONS`] has.
pub(crate) const QUESTIONS_COUNT: usize = 3;

/// Asks for the marks and the version of the schema.
pub(crate) const QUESTIONS: &str = "
    PRAGMA application_id; PRAGMA user_version;
    SELECT format, fleet_id, router_id, file_uid, kind FROM _nasnet_meta WHERE one = 1";

/// The marks a file must carry to be the one expected.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) kind: FileKind,
    pub(crate) fleet_id: Ulid,
    pub(crate) router_id: Option<RouterId>,
    /// `None` accepts any file of the fleet and kind: files in memory are made anew at will.
    pub(crate) file_uid: Option<[u8; 16]>,
}

/// Writes the marks into a file just created.
pub(crate) async fn write(conn: &mut SqliteConnection, identity: &Identity, file_uid: [u8; 16]) -> Result<(), Error> {
    run(conn, format!("PRAGMA application_id = {APPLICATION_ID}; BEGIN IMMEDIATE;{CREATE}")).await?;
    sqlx::query(INSERT)
        .bind(FORMAT)
        .bind(&identity.fleet_id.to_bytes()[..])
        .bind(identity.router_id.as_ref().map(RouterId::as_str))
        .bind(&file_uid[..])
        .bind(identity.kind.as_str())
        .execute(&mut *conn)
        .await
        .map_err(during("mark the database"))?;
    run(conn, "COMMIT".to_owned()).await
}

/// What a file says about itself.
#[derive(Debug)]
struct Marks {
    format: i64,
    fleet_id: Vec<u8>,
    router_id: Option<String>,
    file_uid: Vec<u8>,
    kind: String,
}

/// Compares the marks with what is expected and returns the uid of the file.
pub(crate) async fn verify(conn: &mut SqliteConnection, path: &Path, expected: &Identity) -> Result<[u8; 16], Error> {
    let application_id = pragma(conn, "application_id").await?.unwrap_or_default();
    check_application(&application_id, path)?;
    let what = during("read the marks of the database");
    let row = sqlx::query(SELECT).fetch_optional(conn).await.map_err(&what)?;
    let decode = |row: SqliteRow| {
        Ok(Marks {
            format: row.try_get("format")?,
            fleet_id: row.try_get("fleet_id")?,
            router_id: row.try_get("router_id")?,
            file_uid: row.try_get("file_uid")?,
            kind: row.try_get("kind")?,
        })
    };
    judge(row.map(decode).transpose().map_err(&what)?, path, expected)
}

/// Judges the answers to [`QUESTIONS`] and returns the uid of the file and the version of its schema.
pub(crate) fn judge_answers(
    answers: Vec<ProbedRow>,
    path: &Path,
    expected: &Identity,
) -> Result<([u8; 16], u32), Error> {
    let mut answers = answers.into_iter();
    let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut pragma = || text(answers.next().and_then(|row| row.into_iter().next()).flatten()).unwrap_or_default();
    let (application_id, version) = (pragma(), pragma());
    check_application(&application_id, path)?;
    let marks = match <[Option<Vec<u8>>; 5]>::try_from(answers.next().unwrap_or_default()) {
        Err(_) => None,
        Ok([format, fleet_id, router_id, file_uid, kind]) => Some(Marks {
            format: text(format).and_then(|format| format.parse().ok()).unwrap_or(-1),
            fleet_id: fleet_id.unwrap_or_default(),
            router_id: text(router_id),
            file_uid: file_uid.unwrap_or_default(),
            kind: text(kind).unwrap_or_default(),
        }),
    };
    let file_uid = judge(marks, path, expected)?;
    let undecodable = |_| Error::Decode { what: "schema version", detail: version.clone() };
    Ok((file_uid, version.parse().map_err(undecodable)?))
}

fn check_application(found: &str, path: &Path) -> Result<(), Error> {
    if found == APPLICATION_ID.to_string() {
        return Ok(());
    }
    Err(Error::WrongDatabase { path: path.to_owned(), detail: format!("its application id is {found}") })
}

fn judge(marks: Option<Marks>, path: &Path, expected: &Identity) -> Result<[u8; 16], Error> {
    let wrong = |detail: String| Error::WrongDatabase { path: path.to_owned(), detail };
    let Some(Marks { format, fleet_id, router_id, file_uid, kind }) = marks else {
        return Err(wrong("it has no marks".to_owned()));
    };
    if format != FORMAT {
        return Err(wrong(format!("its marks have format {format}")));
    }
    if kind != expected.kind.as_str() {
        return Err(wrong(format!("it is a {kind} database")));
    }
    if router_id.as_deref() != expected.router_id.as_ref().map(RouterId::as_str) {
        return Err(wrong(format!("it belongs to router {:?}", router_id.unwrap_or_default())));
    }
    if fleet_id != expected.fleet_id.to_bytes() {
        return Err(wrong("it belongs to another fleet".to_owned()));
    }
    let file_uid: [u8; 16] = file_uid.try_into().map_err(|_| wrong("its file uid has another length".to_owned()))?;
    match expected.file_uid {
        Some(uid) if uid != file_uid => Err(wrong("it is another file of the same router".to_owned())),
        _ => Ok(file_uid),
    }
}

/// Makes the uid of a new file.
pub(crate) fn new_file_uid() -> Result<[u8; 16], Error> {
    let mut uid = [0; 16];
    getrandom::fill(&mut uid).map_err(|_| Error::Random)?;
    Ok(uid)
}
