//! One database as a compressed file: how it is copied, checked and unpacked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use crate::connection::{Role, Target, run};
use crate::driver::during;
use crate::durable::{self, Access, NewFile};
use crate::error::Error;
use crate::layout;
use crate::meta::{self, Identity};
use crate::vfs;

/// Small files matter more than speed: a backup is written once and lies on flash.
const ZSTD_LEVEL: i32 = 9;

const CHUNK_BYTES: usize = 64 * 1024;

/// The prefix of copies in the run directory; the number of the process follows.
const SCRATCH: &str = ".nasnet-copy-";

/// A file that is removed with this value.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Names a file in the run directory. Those of processes that are gone are removed.
    pub(crate) fn new(run_dir: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if let Ok(entries) = fs::read_dir(run_dir) {
            for entry in entries.flatten() {
                let name = entry.file_name();
                let owner = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)?.split('-').next());
                let gone = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
                if owner.is_some_and(gone) {
                    fs::remove_file(entry.path()).ok();
                }
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(run_dir.join(format!("{SCRATCH}{}-{number}.db", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        vfs::forget(&self.0);
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut name = self.0.as_os_str().to_owned();
            name.push(suffix);
            fs::remove_file(PathBuf::from(name)).ok();
        }
    }
}

/// What is in a database file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub(crate) file_uid: [u8; 16],
    pub(crate) rows: BTreeMap<String, u64>,
    pub(crate) schemas: BTreeMap<String, u32>,
}

/// The sizes and digests of a file before and after compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) database_sha256: String,
    pub(crate) database_bytes: u64,
}

/// Writes a consistent copy of a database that may be in use, its log included.
pub(crate) async fn vacuum_into(target: &Target, to: &Path) -> Result<(), Error> {
    // A connection of its own: the writer may go on, and one that only reads may not write the copy.
    let mut guarded = target.connect(Role::Writer).await?;
    let copied = sqlx::query("VACUUM INTO ?1")
        .bind(to.to_string_lossy())
        .execute(&mut guarded.conn)
        .await
        .map_err(during("copy the database"));
    let closed = guarded.close().await;
    copied.map(|_| ())?;
    closed
}

/// Checks a whole database file that nobody else uses, and counts its rows.
pub(crate) async fn inspect(path: &Path, identity: &Identity) -> Result<Inspection, Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("open the copy"))?;
    let inspected = inspect_on(&mut conn, path, identity).await;
    conn.close().await.map_err(during("close the copy"))?;
    inspected
}

async fn inspect_on(conn: &mut SqliteConnection, path: &Path, identity: &Identity) -> Result<Inspection, Error> {
    integrity_check(conn).await?;
    let file_uid = meta::verify(conn, path, identity).await?;
    Ok(Inspection { file_uid, rows: count_rows(conn).await?, schemas: schema_versions(conn).await? })
}

/// Runs `PRAGMA integrity_check` and acts on what it says.
pub(crate) async fn integrity_check(conn: &mut SqliteConnection) -> Result<(), Error> {
    let said: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check(10)").fetch_all(conn).await.map_err(during("check the database"))?;
    if said == ["ok"] { Ok(()) } else { Err(Error::Corrupt { detail: said.join("; ") }) }
}

/// Lists the ordinary tables of a database.
pub(crate) async fn tables(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT GLOB 'sqlite_*' ORDER BY name",
    )
    .fetch_all(conn)
    .await
    .map_err(during("list the tables"))
}

async fn count_rows(conn: &mut SqliteConnection) -> Result<BTreeMap<String, u64>, Error> {
    let mut rows = BTreeMap::new();
    for table in tables(conn).await? {
        let sql = format!("SELECT count(*) FROM {}", quoted(&table));
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *conn).await.map_err(during("count rows"))?;
        rows.insert(table, u64::try_from(count).unwrap_or(0));
    }
    Ok(rows)
}

async fn schema_versions(conn: &mut SqliteConnection) -> Result<BTreeMap<String, u32>, Error> {
    let mut versions = BTreeMap::new();
    for table in tables(conn).await? {
        let Some(set) = table.strip_prefix("_nasnet_").and_then(|rest| rest.strip_suffix("_migrations")) else {
            continue;
        };
        let sql = format!("SELECT COALESCE(MAX(version), 0) FROM {}", quoted(&table));
        let version: u32 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *conn)
            .await
            .map_err(during("read schema versions"))?;
        versions.insert(set.to_owned(), version);
    }
    Ok(versions)
}

/// Quotes a name found in a database.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Runs file work where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Panicked { message: error.to_string() }))
}

/// Compresses a file to a new one and brings it to the medium.
pub(crate) fn pack(from: &Path, to: &Path) -> Result<Packed, Error> {
    let mut source = File::open(from).map_err(|error| Error::io("read", from, error))?;
    let failed = |error: io::Error| of_write(to, error);
    let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(failed)?;
    encoder.include_checksum(true).map_err(failed)?;
    let (database_sha256, database_bytes) = pump(&mut source, &mut encoder, u64::MAX, from, to)?;
    // A fifth of the database in memory, for one write that is seen as a whole by whoever watches the medium.
    let compressed = encoder.finish().map_err(failed)?;
    durable::write_file(to, &compressed, Access::Owner).map_err(failed)?;
    let (sha256, bytes) = (hex(Sha256::new_with_prefix(&compressed)), compressed.len() as u64);
    Ok(Packed { sha256, bytes, database_sha256, database_bytes })
}

/// Unpacks a file to a new one, never writing more than `bytes_max`, and tells what it found.
pub(crate) fn unpack(from: &Path, to: &Path, bytes_max: u64) -> Result<Packed, Error> {
    let source = File::open(from).map_err(|error| Error::io("read", from, error))?;
    let bad = |detail: String| Error::BadBackup { path: from.to_owned(), detail };
    let mut decoder = zstd::Decoder::new(Hashing::new(source)).map_err(|error| bad(error.to_string()))?;
    let mut out = NewFile::create(to).map_err(|error| of_write(to, error))?;
    let (database_sha256, database_bytes) = pump(&mut decoder, &mut out, bytes_max, from, to)?;
    out.finish().map_err(|error| of_write(to, error))?;
    let mut rest = decoder.finish();
    // What follows the compressed data belongs to the digest of the file too.
    io::copy(&mut rest, &mut io::sink()).map_err(|error| Error::io("read", from, error))?;
    let source = rest.into_inner();
    Ok(Packed { sha256: hex(source.hash), bytes: source.bytes, database_sha256, database_bytes })
}

/// Computes the digest and size of a file.
pub(crate) fn digest(path: &Path) -> Result<(String, u64), Error> {
    let mut file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    let mut out = Hashing::new(io::sink());
    io::copy(&mut file, &mut out).map_err(|error| Error::io("read", path, error))?;
    Ok((hex(out.hash), out.bytes))
}

fn pump(
    source: &mut impl Read,
    out: &mut impl Write,
    bytes_max: u64,
    from: &Path,
    to: &Path,
) -> Result<(String, u64), Error> {
    let (mut hash, mut total, mut chunk) = (Sha256::new(), 0_u64, vec![0; CHUNK_BYTES]);
    loop {
        let count = match source.read(&mut chunk) {
            Ok(0) => return Ok((hex(hash), total)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::BadBackup { path: from.to_owned(), detail: error.to_string() }),
        };
        total += count as u64;
        if total > bytes_max {
            let detail = format!("it unpacks to more than the {bytes_max} bytes its manifest says");
            return Err(Error::BadBackup { path: from.to_owned(), detail });
        }
        hash.update(&chunk[..count]);
        out.write_all(&chunk[..count]).map_err(|error| of_write(to, error))?;
    }
}

/// Tells a medium that is full from one that fails.
pub(crate) fn of_write(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::NoSpace { detail: format!("{}: {error}", path.display()) }
        }
        _ => Error::io("write", path, error),
    }
}

struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.count(&bytes[..count]);
        Ok(count)
    }
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a checked database that nobody else uses to its place.
pub(crate) async fn put(from: &Path, to: &Path) -> Result<(), Error> {
    vfs::register()?;
    let options = SqliteConnectOptions::new().filename(from).vfs(vfs::NAME).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("open the copy"))?;
    let put = sqlx::query("VACUUM INTO ?1").bind(to.to_string_lossy()).execute(&mut conn).await;
    conn.close().await.map_err(during("close the copy"))?;
    put.map(|_| ()).map_err(during("copy the database"))
}

/// Turns a copy into a database that can be opened for use: its journal is a write-ahead log, and it has a uid of its
/// own, since it is another file than the one it was copied from.
pub(crate) async fn make_usable(path: &Path, file_uid: [u8; 16]) -> Result<(), Error> {
    vfs::register()?;
    let options = SqliteConnectOptions::new().filename(path).vfs(vfs::NAME).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("open the copy"))?;
    let made = async {
        run(&mut conn, "PRAGMA synchronous = EXTRA; PRAGMA journal_mode = WAL".to_owned()).await?;
        let query = sqlx::query("UPDATE _nasnet_meta SET file_uid = ?1 WHERE one = 1").bind(&file_uid[..]);
        query.execute(&mut conn).await.map_err(during("mark the copy"))
    }
    .await;
    // Closing the last connection moves the log into the file and removes it.
    let closed = conn.close().await.map_err(during("close the copy"));
    vfs::forget(path);
    made?;
    closed?;
    layout::without_log(path)?;
    layout::sync(path)
}
