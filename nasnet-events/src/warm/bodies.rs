//! Where the body of a segment is: in its row when it is small, otherwise in an annex of the database.
//!
//! A row of the database is written twice, into the log and into the file, in whole pages. A body in an annex is written once,
//! but costs a page that is begun and a sync of its own. `system.db` has no annexes, and few events.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::{AnnexFamily, AnnexPlace, Annexes, Cause, Class, Database};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::warm::segment::Lane;

const REMOVE: Cause = Cause::new("event-annexes");

/// The largest body that stays in its row.
const IN_ROW_MAX: usize = 2 << 10;

/// How long a file is kept that no row names any more: longer than a reader looks at one snapshot.
pub(crate) const UNNAMED_KEPT: Duration = Duration::from_secs(60);

/// Segments of one lane go together when they are old, so they share files.
const FLUSHED: AnnexFamily = AnnexFamily::new("flushed");
const SEALED: AnnexFamily = AnnexFamily::new("sealed");

const IS_FLUSHED_NAMED: &str = "SELECT EXISTS (SELECT 1 FROM event_segments WHERE file = ?1 AND file_offset = ?2)";
const IS_SEALED_NAMED: &str = "SELECT EXISTS (SELECT 1 FROM event_sealed WHERE file = ?1 AND file_offset = ?2)";
const FLUSHED_FILES: &str = "SELECT DISTINCT file FROM event_segments WHERE file IS NOT NULL";
const SEALED_FILES: &str = "SELECT DISTINCT file FROM event_sealed WHERE file IS NOT NULL";

impl Lane {
    const fn family(self) -> AnnexFamily {
        match self {
            Self::Flushed => FLUSHED,
            Self::Sealed => SEALED,
        }
    }
}

/// The columns that say where a body is: file, offset, length, or the body itself.
pub(crate) type Columns = (Option<i64>, Option<i64>, Option<i64>, Option<Vec<u8>>);

/// A body, and the file it was read from unless that is the database.
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) path: Option<PathBuf>,
}

/// Why a body cannot be read.
pub(crate) enum Unread {
    /// It is not where its row says, in this file or in no file of this database.
    Damaged(Option<PathBuf>, String),
    /// The medium fails.
    Failed(nasnet_dbmanager::Error),
}

impl Unread {
    /// The error of the crate; `damaged` knows which segment it is about.
    pub(crate) fn about(self, damaged: impl Fn(Option<PathBuf>, &str) -> Error) -> Error {
        match self {
            Self::Damaged(path, why) => damaged(path, &why),
            Self::Failed(error) => error.into(),
        }
    }
}

/// Brings a body to an annex, if it is to be in one, in the caller's write transaction; otherwise it belongs into its row.
pub(crate) async fn store(
    conn: &mut SqliteConnection,
    annexes: Option<&Annexes>,
    lane: Lane,
    body: &Arc<[u8]>,
) -> Result<Option<AnnexPlace>, Error> {
    let Some(annexes) = annexes.filter(|_| body.len() > IN_ROW_MAX) else { return Ok(None) };
    let family = lane.family();
    // A transaction that failed, or of which nobody knows how it ended: by now its row is there or will never be.
    if let Some(left) = annexes.unconfirmed(family) {
        if is_named(conn, lane, left).await? {
            annexes.confirm(family, left);
        } else {
            annexes.retract(family, left).await?;
        }
    }
    Ok(Some(annexes.append(family, Class::Normal, Arc::clone(body)).await?))
}

/// Notes that the row of a body is committed.
pub(crate) fn confirm(annexes: Option<&Annexes>, lane: Lane, place: Option<AnnexPlace>) {
    if let (Some(annexes), Some(place)) = (annexes, place) {
        annexes.confirm(lane.family(), place);
    }
}

async fn is_named(conn: &mut SqliteConnection, lane: Lane, place: AnnexPlace) -> Result<bool, Error> {
    let sql = match lane {
        Lane::Flushed => IS_FLUSHED_NAMED,
        Lane::Sealed => IS_SEALED_NAMED,
    };
    let query = sqlx::query_scalar(sql).bind(i64::from(place.file)).bind(place.offset.cast_signed());
    Ok(query.fetch_one(conn).await?)
}

/// Reads a body. Its checksum is the caller's to compare.
pub(crate) fn load(annexes: Option<&Annexes>, lane: Lane, columns: Columns) -> Result<Body, Unread> {
    let misplaced = |why: &str| Unread::Damaged(None, why.to_owned());
    let (file, offset, bytes) = match columns {
        (None, None, None, Some(bytes)) => return Ok(Body { bytes, path: None }),
        (Some(file), Some(offset), Some(bytes), None) => (file, offset, bytes),
        _ => return Err(misplaced("its row does not say where its body is")),
    };
    let annexes = annexes.ok_or_else(|| misplaced("its body is in an annex, and this database has none"))?;
    let (Ok(file), Ok(offset), Ok(bytes)) = (u32::try_from(file), u64::try_from(offset), u64::try_from(bytes)) else {
        return Err(misplaced("its row names no place in an annex"));
    };
    match annexes.read(lane.family(), AnnexPlace { file, offset, bytes }) {
        Ok(bytes) => Ok(Body { bytes, path: Some(annexes.path(lane.family(), file)) }),
        Err(nasnet_dbmanager::Error::Annex { path, detail }) => Err(Unread::Damaged(Some(path), detail)),
        Err(error) => Err(Unread::Failed(error)),
    }
}

/// Removes files that no row of a scope names any more, once they were found so `kept` ago; returns the bytes freed.
///
/// The caller lets nothing be flushed or sealed meanwhile by this process. Doing it again does what is left, so it need
/// not be known when the last rows of a file went.
pub(crate) async fn remove_unnamed(database: &Database, kept: Duration) -> Result<u64, Error> {
    let Some(annexes) = database.annexes().cloned() else { return Ok(0) };
    let mut freed = 0;
    for (lane, sql) in [(Lane::Flushed, FLUSHED_FILES), (Lane::Sealed, SEALED_FILES)] {
        // Before the snapshot: see there.
        let closed = annexes.closed_files(lane.family())?;
        if closed.is_empty() {
            continue;
        }
        let named: Vec<i64> = database
            .read(REMOVE, move |conn| {
                Box::pin(async move { Ok::<_, Error>(sqlx::query_scalar(sql).fetch_all(conn).await?) })
            })
            .await?;
        let named: BTreeSet<u32> = named.into_iter().filter_map(|file| u32::try_from(file).ok()).collect();
        freed += annexes.remove_unnamed(lane.family(), closed, named, kept).await?;
    }
    Ok(freed)
}
