//! Destroys the key of a subject: what was sealed under it is noise from then on, in every tier and on every stick.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use nasnet_dbmanager::{Cause, DbManager, Scope};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::error::Error;
use crate::event::{NewEvent, StreamAppend};
use crate::expected::Expected;
use crate::name::{StreamName, Subject};
use crate::receipt::Receipt;
use crate::sealing::{SECURE_DELETE_OFF, SECURE_DELETE_ON};
use crate::store::{EventStore, blocking};
use crate::types;

/// What must be forgotten is forgotten on a full medium, too.
const SHRED: Cause = Cause::new("event-shred").critical();
/// Times a log that readers keep in use is tried again, and the pause between.
const CHECKPOINTS_MAX: u32 = 40;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a file looked at together.
const WINDOW_BYTES: usize = 1 << 20;
/// How a frame of zstd begins (RFC 8878).
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

const LIVE: &str = "SELECT key_id, sealed_key FROM event_subjects WHERE subject = ?1 AND shredded_ms = 0";
// As long as what it replaces, so that it is written over it.
const DESTROY: &str = "UPDATE event_subjects SET sealed_key = zeroblob(length(sealed_key)), shredded_ms = MAX(?2, 1) \
     WHERE subject = ?1 AND shredded_ms = 0";

const UNSEARCHED: &str = "SELECT COUNT(*) FROM event_subjects WHERE subject = ?1 AND shredded_ms <> 0 AND searched = 0";
const SEARCHED: &str = "UPDATE event_subjects SET searched = 1 WHERE key_id = ?1 AND shredded_ms <> 0";

/// A key that was destroyed in system.db, by its id, and its bytes as they were stored there: sealed under the master key.
pub(crate) type DestroyedKey = (Vec<u8>, Vec<u8>);

/// What a shredding did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Shredded {
    /// The subject.
    pub subject: Subject,
    /// Keys this call destroyed: 0 when there was none, or none any more.
    pub keys: u64,
    /// The tombstone event, when a key was destroyed.
    pub tombstone: Option<Receipt>,
    /// Files under the data directory that still hold a destroyed key, sealed under the master key: backups and what was
    /// set aside. Restoring one of them brings the facts back, so remove them. Of keys an earlier call destroyed they are
    /// told too, when it did not come that far. No key is put into the databases of routers in use or below the run
    /// directory, so these are not searched.
    pub copies: Vec<PathBuf>,
    /// Keys of the subject that were destroyed by a process which ended before it had searched for copies of them: nobody
    /// knows their bytes any more, so whether `copies` names all of them is not known, nor whether the log was emptied then.
    pub unsearched: u64,
}

impl EventStore {
    /// Destroys the key of a subject and appends a tombstone (`store.shredded`, on `subject/{subject}` of the system's
    /// scope) in the same transaction. Events about the subject are read as [`crate::Body::Shredded`] from then on,
    /// wherever copies of them are; chains and bundles still verify, since they are over what is stored. Events
    /// appended later get a new key.
    ///
    /// Before it returns the log of `system.db` was emptied into the file, and neither holds the key. Flash itself may
    /// keep old blocks until it reuses them, sealed under the master key like the copies that are reported.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::NotDurable`]: whether something was destroyed is not known; ask again.
    /// [`Error::ShredUnfinished`]: the key is destroyed, but the log is in use by a reader or a trace was found; ask again.
    /// [`Error::Io`]: the key may be destroyed, but a file could not be searched for traces of it; ask again.
    ///
    /// # Cancel safety
    /// A dropped call may have destroyed the key without emptying the log or searching for copies; asking the same store
    /// again does what is left.
    pub async fn shred(&self, subject: &Subject) -> Result<Shredded, Error> {
        let system = self.shared().manager.system();
        let (store, own) = (self.clone(), subject.clone());
        let now_ms = self.shared().manager.now().wall_ms;
        let (pending, keys) = system
            .write(SHRED, move |conn| {
                Box::pin(async move {
                    let found: Vec<DestroyedKey> =
                        sqlx::query_as(LIVE).bind(own.as_str()).fetch_all(&mut *conn).await?;
                    if found.is_empty() {
                        return Ok::<_, Error>((None, 0));
                    }
                    // Before they are gone: whoever comes after a failure, or a caller that left, could not search for them.
                    store.remember(&own, &found);
                    destroy(conn, &own, now_ms).await?;
                    let append = store.tombstone(&own, &found)?;
                    let pending = store.append_in(conn, &Scope::System, vec![append]).await?;
                    Ok((Some(pending), found.len() as u64))
                })
            })
            .await?;
        let tombstone = match pending {
            Some(pending) => self.published(pending).await.into_iter().next(),
            None => None,
        };
        self.empty_log(subject).await?;
        let destroyed = self.remembered(subject);
        let copies = self.traces(subject, &destroyed).await?;
        let unsearched = self.note_searched(subject, destroyed).await?;
        Ok(Shredded { subject: subject.clone(), keys, tombstone, copies, unsearched })
    }

    fn remember(&self, subject: &Subject, keys: &[DestroyedKey]) {
        let mut searching = self.shared().searching.lock().unwrap_or_else(PoisonError::into_inner);
        let known = searching.entry(subject.clone()).or_default();
        // A transaction may be rolled back and come again.
        known.extend(keys.iter().filter(|key| !known.contains(key)).cloned().collect::<Vec<_>>());
    }

    fn remembered(&self, subject: &Subject) -> Vec<DestroyedKey> {
        let searching = self.shared().searching.lock().unwrap_or_else(PoisonError::into_inner);
        searching.get(subject).cloned().unwrap_or_default()
    }

    /// Notes that keys were searched for; returns how many of the subject's never were.
    async fn note_searched(&self, subject: &Subject, keys: Vec<DestroyedKey>) -> Result<u64, Error> {
        let (system, own) = (self.shared().manager.system(), subject.clone());
        let unsearched = async move |conn: &mut SqliteConnection| -> Result<i64, Error> {
            Ok(sqlx::query_scalar(UNSEARCHED).bind(own.as_str()).fetch_one(conn).await?)
        };
        let ids: Vec<Vec<u8>> = keys.iter().map(|(id, _)| id.clone()).collect();
        let left = if ids.is_empty() {
            system.read(SHRED, move |conn| Box::pin(async move { unsearched(conn).await })).await?
        } else {
            system
                .write(SHRED, move |conn| {
                    Box::pin(async move {
                        for id in ids {
                            sqlx::query(SEARCHED).bind(id).execute(&mut *conn).await?;
                        }
                        unsearched(conn).await
                    })
                })
                .await?
        };
        let mut searching = self.shared().searching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = searching.get_mut(subject) {
            known.retain(|key| !keys.contains(key));
            if known.is_empty() {
                searching.remove(subject);
            }
        }
        Ok(left.cast_unsigned())
    }

    fn tombstone(&self, subject: &Subject, keys: &[DestroyedKey]) -> Result<StreamAppend, Error> {
        let id = |bytes: &Vec<u8>| bytes.as_slice().try_into().map(Ulid::from_bytes).ok();
        let keys: Vec<Ulid> = keys.iter().filter_map(|(key, _)| id(key)).collect();
        let body = serde_json::json!({ "subject": subject, "keys": keys });
        let event = NewEvent::new(self.shared().manager.next_ulid(), types::STORE_SHREDDED, &body)?;
        let stream = StreamName::parse(&format!("subject/{subject}"))?;
        Ok(StreamAppend::new(stream, Expected::Any, vec![event]))
    }

    async fn empty_log(&self, subject: &Subject) -> Result<(), Error> {
        for _ in 0..CHECKPOINTS_MAX {
            if !self.shared().manager.system().checkpoint().await?.busy {
                return Ok(());
            }
            tokio::time::sleep(CHECKPOINT_PAUSE).await;
        }
        let why = "a reader keeps the log of system.db in use".to_owned();
        Err(Error::ShredUnfinished { subject: subject.clone(), why })
    }

    /// Looks for the destroyed keys in every file they may be in.
    async fn traces(&self, subject: &Subject, keys: &[DestroyedKey]) -> Result<Vec<PathBuf>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<Vec<u8>> = keys.iter().map(|(_, sealed)| sealed.clone()).collect();
        let manager = &self.shared().manager;
        let system = manager.system().path().to_owned();
        let unfinished = |path: &Path| {
            let why = format!("{} still holds its bytes", path.display());
            Error::ShredUnfinished { subject: subject.clone(), why }
        };
        if self.is_in_system(keys.clone()).await? {
            return Err(unfinished(&system));
        }
        let (data, open) = (manager.data_dir().to_owned(), OpenFiles::of(manager));
        let found = blocking(move || {
            let mut found = Vec::new();
            search(&data, &open, &keys, &mut found).map(|()| found)
        })
        .await?;
        let name = system.as_os_str().to_owned();
        let is_live = |path: &PathBuf| path.as_os_str().as_encoded_bytes().starts_with(name.as_encoded_bytes());
        match found.iter().find(|path| is_live(path)) {
            None => Ok(found),
            Some(path) => Err(unfinished(path)),
        }
    }

    /// Looks at all pages of system.db, through the database: nobody else may open its file, see [`OpenFiles`].
    async fn is_in_system(&self, keys: Vec<Vec<u8>>) -> Result<bool, Error> {
        let system = self.shared().manager.system();
        let pages =
            system.read(SHRED, |conn| Box::pin(async move { Ok::<_, Error>(conn.serialize(None).await?) })).await?;
        Ok(blocking(move || keys.iter().any(|key| contains(&pages, key))).await)
    }
}

/// The files that this process may have open as databases. SQLite's locks are those of the process (`fcntl`), and closing any
/// descriptor of a file drops all of them: another process would then take the log of a database in use for left over, or
/// write beside a transaction that is open here (<https://www.sqlite.org/howtocorrupt.html>, section 2.2). None of these
/// holds a subject's key but `system.db`, which is asked itself; and nothing is locked by way of the logs.
struct OpenFiles {
    system: PathBuf,
    routers: PathBuf,
    run: PathBuf,
}

impl OpenFiles {
    fn of(manager: &DbManager) -> Self {
        let (system, run) = (manager.system().path().to_owned(), manager.run_dir().to_owned());
        Self { system, routers: manager.data_dir().join("routers"), run }
    }

    fn has(&self, path: &Path) -> bool {
        let is = |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
        let is_router = path.starts_with(&self.routers) && is("db");
        is_router || path == self.system || is("db-shm") || path.starts_with(&self.run)
    }
}

async fn destroy(conn: &mut SqliteConnection, subject: &Subject, now_ms: i64) -> Result<(), Error> {
    sqlx::raw_sql(SECURE_DELETE_ON).execute(&mut *conn).await?;
    sqlx::query(DESTROY).bind(subject.as_str()).bind(now_ms).execute(&mut *conn).await?;
    sqlx::raw_sql(SECURE_DELETE_OFF).execute(conn).await?;
    Ok(())
}

/// Collects the files below `dir` that hold one of the keys.
fn search(dir: &Path, open: &OpenFiles, keys: &[Vec<u8>], found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("read", dir, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read", dir, error))?;
        let (path, kind) = (entry.path(), entry.file_type());
        match kind {
            _ if open.has(&path) => {}
            Ok(kind) if kind.is_dir() => search(&path, open, keys, found)?,
            Ok(kind) if kind.is_file() && holds(&path, keys)? => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

fn holds(path: &Path, keys: &[Vec<u8>]) -> Result<bool, Error> {
    let io = |error| Error::io("read", path, error);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        // Another process may remove its files meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(error)),
    };
    let mut file = BufReader::new(file);
    if !file.fill_buf().map_err(io)?.starts_with(&ZSTD_MAGIC) {
        return is_in(file, keys).map_err(io);
    }
    // A backup: what it holds is not in it as it was.
    match zstd::Decoder::with_buffer(file).and_then(|decoder| is_in(decoder, keys)) {
        Ok(is_there) => Ok(is_there),
        // What cannot be decoded is restored by nobody either.
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a compressed file cannot be searched to its end");
            Ok(false)
        }
    }
}

fn is_in(mut bytes: impl Read, keys: &[Vec<u8>]) -> std::io::Result<bool> {
    let overlap = keys.iter().map(Vec::len).max().unwrap_or(0);
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW_BYTES + overlap);
    loop {
        let read = bytes.by_ref().take(WINDOW_BYTES as u64).read_to_end(&mut window)?;
        if keys.iter().any(|key| contains(&window, key)) {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        window.drain(..window.len().saturating_sub(overlap));
    }
}

/// Looks for the end of a sealed key: nonce and version stand before it.
fn contains(window: &[u8], key: &[u8]) -> bool {
    let needle = key.get(key.len().saturating_sub(32)..).unwrap_or(key);
    let Some(first) = needle.first() else { return false };
    let mut rest = window;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}
