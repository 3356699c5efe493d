//! One connection: how it is configured, how the configuration is verified, how it is interrupted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::sqlite::{LockedSqliteHandle, SqliteConnectOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Row, SqliteConnection};

use crate::budget::Ledger;
use crate::driver::during;
use crate::error::Error;
use crate::id::Class;
use crate::options::Tuning;
use crate::probe::{ProbedRow, first_rows};
use crate::room::Room;
use crate::schema::Profile;
use crate::space::Space;
use crate::vfs;

/// The page size of every database.
pub(crate) const PAGE_BYTES: u32 = 4096;

/// The part of a file's bytes that operations that are not critical may use.
const SOFT_PERCENT: u64 = 85;

/// How long SQLite waits for another process before it reports the database busy.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Virtual machine steps between two looks at the deadline: some tens of microseconds.
const STEPS_PER_LOOK: i32 = 1000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one connection that writes.
    Writer,
    /// One of several that only read.
    Reader,
}

/// How many bytes a file may have.
#[derive(Debug, Clone)]
pub(crate) enum Bound {
    /// Always as many.
    Fixed(u64),
    /// Its share of what there is for all; it changes with their number.
    Share {
        room: Arc<Room>,
        /// Whether it is the system database.
        system: bool,
    },
}

/// Everything needed to connect to a file again.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) tuning: Tuning,
    /// What bounds its bytes, critical operations included.
    pub(crate) bound: Bound,
    /// Where its writes are charged; none for files in memory.
    pub(crate) ledger: Option<Arc<Ledger>>,
    /// The room it shares with others; none for files in memory.
    pub(crate) space: Option<Arc<Space>>,
    /// The bytes of its annexes, which count as its own.
    pub(crate) annex_bytes: Arc<AtomicU64>,
}

impl Target {
    fn connect_options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .vfs(vfs::NAME)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(self.tuning.statements_cached)
            .disable_statement_logging()
    }

    /// Connects to an existing file and verifies that every setting took effect.
    pub(crate) async fn connect(&self, role: Role) -> Result<Guarded, Error> {
        Ok(self.connect_asking(role, "").await?.0)
    }

    /// As [`Target::connect`]; also returns the first rows of some statements, which must be short.
    pub(crate) async fn connect_asking(&self, role: Role, questions: &str) -> Result<(Guarded, Vec<ProbedRow>), Error> {
        vfs::register()?;
        if let Some(space) = &self.space {
            // A log and its index must find room.
            space.relieve();
        }
        let settings = settings(self, role);
        // The driver sends what it is told here in one go.
        let mut options = self.connect_options();
        for setting in &settings {
            if let Some(value) = &setting.set {
                options = options.pragma(setting.name, value.clone());
            }
        }
        let conn = options.connect().await.map_err(during("open the database"))?;
        Guarded::asking(conn, |handle| {
            verify(handle, &self.path, &settings)?;
            first_rows(handle, "read the marks of the database", questions)
        })
        .await
    }

    /// Connects for reading in a way that leaves the file and its log as they are, also when it is the last to close.
    pub(crate) async fn connect_for_examination(&self) -> Result<Guarded, Error> {
        vfs::register()?;
        let options = self.connect_options().read_only(true).pragma("trusted_schema", "0");
        Guarded::new(options.connect().await.map_err(during("open the database"))?).await
    }

    /// Returns the bytes the file may have now.
    pub(crate) fn bytes_max(&self) -> u64 {
        match &self.bound {
            Bound::Fixed(bytes) => *bytes,
            Bound::Share { room, system } => room.bytes_max(*system),
        }
    }

    /// Returns the pages the file may have.
    fn pages_max(&self) -> u64 {
        (self.own_bytes(self.bytes_max()) / u64::from(PAGE_BYTES)).clamp(1, u64::from(u32::MAX - 1))
    }

    /// Returns the pages it may have before only critical operations get more.
    fn pages_soft(&self) -> u64 {
        let soft = self.bytes_max() / 100 * SOFT_PERCENT;
        (self.own_bytes(soft) / u64::from(PAGE_BYTES)).min(u64::from(u32::MAX - 1))
    }

    /// Returns what is left of a number of bytes for the file itself.
    fn own_bytes(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.annex_bytes.load(Ordering::Relaxed))
    }

    /// Returns the bytes the file may grow to for operations of a class, given its annexes.
    pub(crate) fn bytes_for(&self, class: Class, tight: bool) -> u64 {
        self.pages_for(class, tight).saturating_mul(u64::from(PAGE_BYTES))
    }

    /// Returns the pages the file may grow to for operations of a class.
    pub(crate) fn pages_for(&self, class: Class, tight: bool) -> u64 {
        match class {
            Class::Critical => self.pages_max(),
            // SQLite takes what the file has for the least it accepts: it does not grow, and goes on working.
            _ if tight => 1,
            _ => self.pages_soft().max(1),
        }
    }

    /// Bounds the growth of the file and verifies that it is bounded.
    pub(crate) async fn limit_pages(&self, conn: &mut SqliteConnection, pages: u64) -> Result<(), Error> {
        let wanted = pages.to_string();
        let got = pragma(conn, &format!("{PAGES_MAX} = {wanted}")).await?.unwrap_or_default();
        if bounds(&got, &wanted) {
            return Ok(());
        }
        Err(Error::PragmaNotApplied { path: self.path.clone(), name: PAGES_MAX, wanted, got })
    }

    /// Creates the file and connects to it: the one place where the journal mode is chosen.
    pub(crate) async fn create(&self) -> Result<Guarded, Error> {
        vfs::register()?;
        let mut conn =
            self.connect_options().create_if_missing(true).connect().await.map_err(during("create the database"))?;
        // The order matters: page size and auto-vacuum take effect only while the file is empty, and EXTRA must hold
        // before the switch to WAL so that the directory entry of the rollback journal is synced as well.
        let synchronous = match self.profile {
            Profile::Flash => "EXTRA",
            Profile::Tmpfs => "OFF",
        };
        let sql = format!(
            "PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = {synchronous}; \
             PRAGMA journal_mode = WAL"
        );
        run(&mut conn, sql).await?;
        let settings = settings(self, Role::Writer);
        apply(&mut conn, &settings).await?;
        Ok(Guarded::asking(conn, |handle| verify(handle, &self.path, &settings)).await?.0)
    }
}

/// Bounds the growth of a file.
const PAGES_MAX: &str = "max_page_count";

/// Tells whether a bound on pages holds: a file that is larger already keeps its size.
fn bounds(got: &str, wanted: &str) -> bool {
    let unbounded = u64::from(u32::MAX - 1);
    match (got.parse::<u64>(), wanted.parse::<u64>()) {
        (Ok(got), Ok(wanted)) => got >= wanted && got < unbounded || wanted >= unbounded,
        _ => false,
    }
}

/// One PRAGMA: its name, the value to set (`None`: only verified) and the value it must read back as.
struct Setting {
    name: &'static str,
    set: Option<String>,
    want: String,
}

fn settings(target: &Target, role: Role) -> Vec<Setting> {
    let tuning = &target.tuning;
    let set = |name, value: String| Setting { name, want: value.clone(), set: Some(value) };
    let only = |name, value: &str| Setting { name, want: value.to_owned(), set: None };
    let synchronous = match target.profile {
        Profile::Flash => 2,
        Profile::Tmpfs => 0,
    };
    // The log of a file in memory is moved between commits; a commit that finds it long has found nobody doing so.
    let log_factor = match target.profile {
        Profile::Flash => 1,
        Profile::Tmpfs => 4,
    };
    let cache_kib = match role {
        Role::Writer => tuning.writer_cache_kib,
        Role::Reader => tuning.reader_cache_kib,
    };
    let mut settings = vec![
        only("journal_mode", "wal"),
        only("page_size", &PAGE_BYTES.to_string()),
        only("auto_vacuum", "2"),
        only("busy_timeout", &BUSY_TIMEOUT.as_millis().to_string()),
        set("synchronous", synchronous.to_string()),
        set("foreign_keys", "1".to_owned()),
        set("cache_size", format!("-{cache_kib}")),
        set("temp_store", "2".to_owned()),
        set("trusted_schema", "0".to_owned()),
        set("wal_autocheckpoint", (log_factor * tuning.wal_autocheckpoint_pages).to_string()),
        set("journal_size_limit", (log_factor * tuning.journal_bytes_max).to_string()),
        set("mmap_size", "0".to_owned()),
    ];
    match role {
        Role::Reader => settings.push(set("query_only", "1".to_owned())),
        Role::Writer => settings.push(set(PAGES_MAX, target.pages_max().to_string())),
    }
    settings
}

async fn apply(conn: &mut SqliteConnection, settings: &[Setting]) -> Result<(), Error> {
    let sql: String =
        settings.iter().filter_map(|s| s.set.as_ref().map(|value| format!("PRAGMA {} = {value}; ", s.name))).collect();
    run(conn, sql).await
}

/// Runs statements made of constants and numbers of this crate.
pub(crate) async fn run(conn: &mut SqliteConnection, sql: String) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map_err(during("configure the database"))?;
    Ok(())
}

/// Reads every setting back.
fn verify(handle: &mut LockedSqliteHandle<'_>, path: &Path, settings: &[Setting]) -> Result<(), Error> {
    let sql: String = settings.iter().map(|setting| format!("PRAGMA {}; ", setting.name)).collect();
    let rows = first_rows(handle, "read the settings", &sql)?;
    for (setting, row) in settings.iter().zip(rows) {
        let got = row.into_iter().next().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let same = match &got {
            Some(got) if setting.name == PAGES_MAX => bounds(got, &setting.want),
            Some(got) => *got == setting.want,
            // A VFS that cannot map memory says nothing.
            None => setting.name == "mmap_size",
        };
        if !same {
            return Err(Error::PragmaNotApplied {
                path: path.to_owned(),
                name: setting.name,
                wanted: setting.want.clone(),
                got: got.unwrap_or_default(),
            });
        }
    }
    Ok(())
}

/// Reads a PRAGMA as text.
pub(crate) async fn pragma(conn: &mut SqliteConnection, name: &str) -> Result<Option<String>, Error> {
    let row = sqlx::raw_sql(AssertSqlSafe(format!("PRAGMA {name}")))
        .fetch_optional(conn)
        .await
        .map_err(during("read a pragma"))?;
    row.map(|row| row.try_get_unchecked::<String, _>(0)).transpose().map_err(during("read a pragma"))
}

/// Runs `PRAGMA quick_check` and acts on what it says.
pub(crate) async fn quick_check(conn: &mut SqliteConnection) -> Result<(), Error> {
    let said: Vec<String> =
        sqlx::query_scalar("PRAGMA quick_check(10)").fetch_all(conn).await.map_err(during("check the database"))?;
    if said == ["ok"] { Ok(()) } else { Err(Error::Corrupt { detail: said.join("; ") }) }
}

/// An instant after which the running statement is interrupted; shared with the thread that runs it.
#[derive(Debug)]
pub(crate) struct Deadline {
    base: Instant,
    /// Microseconds after `base`; `u64::MAX` means none.
    at_us: AtomicU64,
}

impl Deadline {
    fn new() -> Self {
        Self { base: Instant::now(), at_us: AtomicU64::new(u64::MAX) }
    }

    pub(crate) fn set(&self, limit: Duration) {
        let at = (self.base.elapsed() + limit).as_micros();
        self.at_us.store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.at_us.store(u64::MAX, Ordering::Release);
    }

    pub(crate) fn passed(&self) -> bool {
        let at = self.at_us.load(Ordering::Acquire);
        at != u64::MAX && self.base.elapsed().as_micros() >= u128::from(at)
    }
}

/// A connection whose transactions only its owner can end, and whose statements end at a deadline.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) conn: SqliteConnection,
    pub(crate) deadline: Arc<Deadline>,
    /// While false, a COMMIT becomes a ROLLBACK: an operation cannot commit half a group.
    pub(crate) may_commit: Arc<AtomicBool>,
    /// Set when SQLite rolled a whole transaction back, whoever asked for it.
    pub(crate) rolled_back: Arc<AtomicBool>,
}

impl Guarded {
    pub(crate) async fn new(conn: SqliteConnection) -> Result<Self, Error> {
        Ok(Self::asking(conn, |_| Ok(())).await?.0)
    }

    /// As [`Guarded::new`], with something to ask while the handle is out of the thread of the driver anyway.
    async fn asking<T>(
        mut conn: SqliteConnection,
        ask: impl FnOnce(&mut LockedSqliteHandle<'_>) -> Result<T, Error>,
    ) -> Result<(Self, T), Error> {
        let deadline = Arc::new(Deadline::new());
        let may_commit = Arc::new(AtomicBool::new(true));
        let rolled_back = Arc::new(AtomicBool::new(false));
        let mut handle = conn.lock_handle().await.map_err(during("configure the database"))?;
        let (look, gate, flag) = (Arc::clone(&deadline), Arc::clone(&may_commit), Arc::clone(&rolled_back));
        handle.set_progress_handler(STEPS_PER_LOOK, move || !look.passed());
        handle.set_commit_hook(move || gate.load(Ordering::Acquire));
        handle.set_rollback_hook(move || flag.store(true, Ordering::Release));
        let answer = ask(&mut handle);
        drop(handle);
        let guarded = Self { conn, deadline, may_commit, rolled_back };
        match answer {
            Ok(answer) => Ok((guarded, answer)),
            Err(error) => {
                // Whoever is told may move the file.
                guarded.close().await.ok();
                Err(error)
            }
        }
    }

    /// Closes the connection and waits for its thread.
    pub(crate) async fn close(self) -> Result<(), Error> {
        self.conn.close().await.map_err(during("close the database"))
    }
}

/// The first release without the corruption by a WAL reset under way.
const SQLITE_REQUIRED: &str = "3.51.3";

/// Refuses a SQLite that is too old, without touching any file.
pub(crate) async fn check_version() -> Result<(), Error> {
    let options = SqliteConnectOptions::new().in_memory(true).disable_statement_logging();
    let mut conn = options.connect().await.map_err(during("start sqlite"))?;
    let found: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(&mut conn)
        .await
        .map_err(during("read the version of sqlite"))?;
    conn.close().await.map_err(during("close a connection"))?;
    check_version_text(found)
}

fn check_version_text(found: String) -> Result<(), Error> {
    let parts = |text: &str| text.split('.').map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>();
    if parts(&found) >= parts(SQLITE_REQUIRED) {
        return Ok(());
    }
    Err(Error::VersionTooOld { found, required: SQLITE_REQUIRED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["3.51.3", "3.51.10", "3.52.0", "4.0.0"] {
            assert!(check_version_text(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["3.51.2", "3.9.9", "3.51", "2.99.99", ""] {
            assert!(matches!(check_version_text(bad.to_owned()), Err(Error::VersionTooOld { .. })), "{bad}");
        }
    }

    #[test]
    fn a_deadline_passes_once_set_and_not_before() {
        let deadline = Deadline::new();
        assert!(!deadline.passed());
        deadline.set(Duration::from_secs(3600));
        assert!(!deadline.passed());
        deadline.set(Duration::ZERO);
        assert!(deadline.passed());
        deadline.clear();
        assert!(!deadline.passed());
    }
}
