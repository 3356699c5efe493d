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
    Failed(Error),
}

impl Unread {
    /// The error of the crate; `damaged` knows which segment it is about.
    pub(crate) fn about(self, damaged: impl Fn(Option<PathBuf>, &str) -> Error) -> Error {
        match self {
            Self::Damaged(path, why) => damaged(path, &why),
            Self::Failed(error) => error,
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
    // As the transaction: what is flushed can wait, and what is sealed gives back more than it takes.
    let class = match lane {
        Lane::Flushed => Class::Normal,
        Lane::Sealed => Class::Critical,
    };
    Ok(Some(annexes.append(family, class, Arc::clone(body)).await?))
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
        // About this file alone: other segments are read, and this one may be there the next time.
        Err(nasnet_dbmanager::Error::Io { operation, path, source }) => {
            Err(Unread::Failed(Error::Io { operation, path, source }))
        }
        Err(error) => Err(Unread::Failed(error.into())),
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

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId, Scope};

    use super::*;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::flush::FlushReason;
    use crate::name::{EventType, StreamName};
    use crate::options::EventOptions;
    use crate::store::EventStore;

    /// Flushes a segment of some 400 KiB.
    async fn flush(manager: &DbManager, store: &EventStore, scope: &Scope) {
        let mut state = 7_u64;
        let mut noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'A' + u8::try_from(state >> 59).unwrap() % 26)
        });
        for _ in 0..3 {
            let body: String = noise.by_ref().take(250_000).collect();
            let event =
                NewEvent::new(manager.next_ulid(), EventType::parse("resource.updated").unwrap(), &body).unwrap();
            store.append(scope, &StreamName::parse("s").unwrap(), Expected::Any, vec![event]).await.unwrap();
        }
        assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
    }

    async fn forget_segments(database: &Database) {
        const SQL: &str = "INSERT INTO event_retained (what, through_pos) VALUES (0, 9223372036854775807)
            ON CONFLICT (what) DO NOTHING; DELETE FROM event_segments";
        database
            .write(REMOVE, |conn| {
                Box::pin(async move {
                    sqlx::raw_sql(SQL).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn files_go_once_no_segment_is_in_them_and_later_ones_get_numbers_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
        let manager = DbManager::open(options.schemas(crate::schema_sets())).await.unwrap();
        let id = RouterId::parse("r1").unwrap();
        manager.create_router(NewRouter::new(id.clone())).await.unwrap();
        let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let scope = Scope::Router(id.clone());
        for _ in 0..4 {
            flush(&manager, &store, &scope).await;
        }
        let router = manager.router(&id).await.unwrap();
        let annexes = router.annexes().unwrap();
        assert_eq!(annexes.closed_files(FLUSHED).unwrap(), [1]);
        assert_eq!(remove_unnamed(&router, Duration::ZERO).await.unwrap(), 0, "rows name it");
        forget_segments(&router).await;
        assert_eq!(remove_unnamed(&router, UNNAMED_KEPT).await.unwrap(), 0, "somebody may be reading");
        let before = annexes.bytes();
        let freed = remove_unnamed(&router, Duration::ZERO).await.unwrap();
        assert!(freed > 400_000 && annexes.bytes() == before - freed, "{freed}");
        assert!(!annexes.path(FLUSHED, 1).exists() && annexes.path(FLUSHED, 2).exists());
        for _ in 0..3 {
            flush(&manager, &store, &scope).await;
        }
        assert!(remove_unnamed(&router, Duration::ZERO).await.unwrap() > 400_000, "the second is closed by now");
        assert!(!annexes.path(FLUSHED, 2).exists() && annexes.path(FLUSHED, 3).exists());
        assert_eq!(remove_unnamed(&router, Duration::ZERO).await.unwrap(), 0);
    }
}
