//! Files that somebody replaced while no program of the fleet had them open, as `cp` of an old copy does.
//!
//! Each opening and each clean close leaves a note beside the lock of the database, in memory: which file it was and when it
//! was changed last. Comparing costs one look at the file. The dangerous case is a program that was killed, whose log is
//! left, and another file put in the place of its database: SQLite would play that log into it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::custody::{self, Action, AsideReason, Intent};
use crate::durable;
use crate::error::Error;
use crate::high_water;
use crate::id::{Cause, RouterId};
use crate::layout;
use crate::manager::{DbManager, Inner};
use crate::open::{self, Opened, Policy, Spec};
use crate::options::OnOpen;
use crate::quarantine::RestoredFrom;
use crate::replay::Replayed;
use crate::schema::FileKind;
use crate::system::audit::{self, AuditEntry};

const ADOPT: Cause = Cause::new("router-adopt").critical();

/// How far the time the machine was started is from what it says, in nanoseconds.
const BOOT_SLACK: i128 = 5_000_000_000;

/// A file that is not the one that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// The log beside it belongs to the file that was there before.
    pub(crate) stale_log: bool,
}

/// A file as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When its content was changed last, in nanoseconds.
    changed: i128,
}

impl Seen {
    fn of(path: &Path) -> Option<Self> {
        let facts = fs::metadata(path).ok()?;
        let changed = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
        Some(Self { device: facts.dev(), inode: facts.ino(), bytes: facts.len(), changed })
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// What was noted beside the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    /// Nothing: the machine was started since, or the file was made or moved.
    Nothing,
    /// It was closed and looked like this.
    Closed(Seen),
    /// It was opened at that time and looked like this; the log has that inode.
    Open { file: Seen, log: u64, at: i128 },
}

impl Note {
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let kind = words.next();
        let numbers: Option<Vec<i128>> = words.map(|word| word.parse().ok()).collect();
        let seen = |[device, inode, bytes, changed]: [i128; 4]| {
            let number = |value: i128| u64::try_from(value).ok();
            Some(Seen { device: number(device)?, inode: number(inode)?, bytes: number(bytes)?, changed })
        };
        let parsed = match (kind, numbers.as_deref()) {
            (Some("closed"), Some([a, b, c, d])) => seen([*a, *b, *c, *d]).map(Self::Closed),
            (Some("open"), Some([a, b, c, d, log, at])) => seen([*a, *b, *c, *d])
                .and_then(|file| Some(Self::Open { file, log: u64::try_from(*log).ok()?, at: *at })),
            _ => None,
        };
        parsed.unwrap_or(Self::Nothing)
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seen = |f: &mut std::fmt::Formatter<'_>, kind, Seen { device, inode, bytes, changed }: &Seen| {
            write!(f, "{kind} {device} {inode} {bytes} {changed}")
        };
        match self {
            Self::Nothing => Ok(()),
            Self::Closed(file) => seen(f, "closed", file),
            Self::Open { file, log, at } => {
                seen(f, "open", file)?;
                write!(f, " {log} {at}")
            }
        }
    }
}

/// Says how a database that was opened looks. `clock` is a file on which the kernel has just noted the time.
pub(crate) fn note_of_open(path: &Path, clock: &Path) -> String {
    // The clock first, since every note moves it: what others write to the file while this looks is not older than `at`.
    let note = match (Seen::of(clock), Seen::of(path), Seen::of(&layout::wal_of(path))) {
        (Some(clock), Some(file), log) => Note::Open { file, log: log.map_or(0, |log| log.inode), at: clock.changed },
        _ => Note::Nothing,
    };
    note.to_string()
}

/// Says how a database that was closed looks; `None` when a log is left.
pub(crate) fn note_of_close(path: &Path) -> Option<String> {
    let log = Seen::of(&layout::wal_of(path)).is_some_and(|log| log.bytes > 0);
    Seen::of(path).filter(|_| !log).map(|file| Note::Closed(file).to_string())
}

/// Tells whether a file is another one than was left. The caller has it alone.
pub(crate) fn look(path: &Path, note: &str) -> Result<Option<Replaced>, Error> {
    let Some(file) = Seen::of(path) else { return Ok(None) };
    let wal = layout::wal_of(path);
    let log = Seen::of(&wal).filter(|log| log.bytes > 0);
    let note = Note::parse(note);
    // The usual case needs no more than these.
    if log.is_none() || matches!(note, Note::Closed(_)) {
        return Ok(judge(note, file, log, || None, 0));
    }
    let progress = || Progress::of(path, &wal).ok().flatten();
    let booted = if note == Note::Nothing { booted_at() } else { i128::MAX };
    Ok(judge(note, file, log, progress, booted))
}

/// How far the log of a program that ended was moved into its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Nobody had begun: the database had no reason to change.
    untouched: bool,
    /// What was moved is in the database.
    agrees: bool,
}

fn judge(
    note: Note,
    file: Seen,
    log: Option<Seen>,
    progress: impl FnOnce() -> Option<Progress>,
    booted: i128,
) -> Option<Replaced> {
    let replaced = |stale_log| Some(Replaced { stale_log });
    match note {
        // Nobody has opened it since the machine was started, so nobody moved anything of the log into it. A log that is as
        // young was copied together with it.
        Note::Nothing => {
            let is_young = |seen: Seen| seen.changed > booted.saturating_add(BOOT_SLACK);
            log.filter(|log| is_young(file) && !is_young(*log)).and_then(|_| replaced(true))
        }
        Note::Closed(left) if left == file => None,
        // There was no log then: one that is there now came with the file.
        Note::Closed(_) => replaced(false),
        Note::Open { file: left, log: left_log, at } => {
            let is_old_copy = !left.is_same_file(&file) || file.changed != left.changed && file.changed < at;
            match log {
                None => is_old_copy.then_some(Replaced { stale_log: false }),
                // What the program wrote is younger than its opening.
                Some(log) if log.inode != left_log || log.changed < at => {
                    (!left.is_same_file(&file)).then_some(Replaced { stale_log: false })
                }
                Some(_) if is_old_copy => replaced(true),
                Some(log) if file.changed <= log.changed => None,
                // Moving the log is the last thing a program of ours can have done to the file.
                Some(_) => match progress() {
                    Some(Progress { untouched: true, .. } | Progress { agrees: false, .. }) => replaced(true),
                    _ => None,
                },
            }
        }
    }
}

/// Returns when the machine was started, in nanoseconds; never, if it does not say.
fn booted_at() -> i128 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i128>().ok());
    seconds.map_or(i128::MAX, |seconds| seconds * 1_000_000_000)
}

/// Where the index of a log keeps what is read here (<https://www.sqlite.org/walformat.html>), in bytes of this machine.
mod index {
    pub(super) const FRAMES: usize = 16;
    pub(super) const PAGES: usize = 20;
    pub(super) const SALT: std::ops::Range<usize> = 32..40;
    pub(super) const BACKFILLED: usize = 96;
    pub(super) const ATTEMPTED: usize = 128;
    pub(super) const BYTES: usize = 136;
}

const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

impl Progress {
    /// Reads it from the index the program left; `None` when that index is not of this log.
    fn of(path: &Path, wal: &Path) -> io::Result<Option<Self>> {
        let mut name = path.as_os_str().to_owned();
        name.push("-shm");
        let mut index = [0; index::BYTES];
        File::open(PathBuf::from(name))?.read_exact_at(&mut index, 0)?;
        let number = |at: usize| {
            let bytes = index.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let (backfilled, attempted) = (number(index::BACKFILLED), number(index::ATTEMPTED));
        let log = File::open(wal)?;
        let mut header = [0; 32];
        log.read_exact_at(&mut header, 0)?;
        if header.get(16..24) != index.get(index::SALT) || backfilled > attempted {
            return Ok(None);
        }
        let page_bytes = u64::from(u32::from_be_bytes([header[8], header[9], header[10], header[11]]));
        let reach = Reach { frames: number(index::FRAMES), backfilled, pages: number(index::PAGES), page_bytes };
        let agrees = agrees(&File::open(path)?, &log, reach)?;
        Ok(Some(Self { untouched: attempted == 0, agrees }))
    }
}

/// How far a log reaches and was moved, in frames, and how many pages the database has with all of it.
#[derive(Debug, Clone, Copy)]
struct Reach {
    frames: u32,
    backfilled: u32,
    pages: u32,
    page_bytes: u64,
}

/// Tells whether the pages that were moved are in the database.
///
/// A checkpoint passes over a page of which the log has a later version than it may move, because a reader holds it up, and
/// counts the earlier ones as moved all the same; and over one that was cut off the database since. So only a page counts
/// whose latest version in the whole log is one that was moved.
fn agrees(file: &File, log: &File, reach: Reach) -> io::Result<bool> {
    let place = |frame: u32| LOG_HEADER + u64::from(frame - 1) * (FRAME_HEADER + reach.page_bytes);
    let mut latest = BTreeMap::new();
    for frame in 1..=reach.frames {
        let mut number = [0; 4];
        log.read_exact_at(&mut number, place(frame))?;
        latest.insert(u32::from_be_bytes(number), frame);
    }
    latest.retain(|page, frame| *frame <= reach.backfilled && *page <= reach.pages);
    let bytes = usize::try_from(reach.page_bytes).unwrap_or(0);
    let (mut wanted, mut found) = (vec![0; bytes], vec![0; bytes]);
    for (page, frame) in latest {
        if file.read_exact_at(&mut found, u64::from(page.saturating_sub(1)) * reach.page_bytes).is_err() {
            return Ok(false);
        }
        log.read_exact_at(&mut wanted, place(frame) + FRAME_HEADER)?;
        if wanted != found {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Names what a log is called that does not belong to its database.
pub(crate) fn stale_log_of(path: &Path) -> PathBuf {
    let mut name = layout::wal_of(path).into_os_string();
    name.push(".stale");
    PathBuf::from(name)
}

/// Gives the log of another file a name under which SQLite does not look, and removes its index. The caller has the
/// database alone.
pub(crate) fn set_log_aside(path: &Path) -> Result<(), Error> {
    let wal = layout::wal_of(path);
    let failed = |error| Error::io("rename", &wal, error);
    durable::rename(&wal, &stale_log_of(path)).map_err(failed)?;
    let mut index = path.as_os_str().to_owned();
    index.push("-shm");
    match durable::remove_file(Path::new(&index)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    path.parent().map_or(Ok(()), layout::sync)
}

/// A router whose file was replaced from outside and adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalRestore {
    /// The router.
    pub router: RouterId,
    /// When it was adopted, wall clock.
    pub at_ms: i64,
    /// The name below `safety/` of the log that belonged to the file before.
    pub log: Option<String>,
    /// What was brought back of what the file lacks (`Options::replays`).
    pub replayed: Vec<Replayed>,
}

/// A system database that was replaced from outside and adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplacedSystem {
    pub(crate) at_ms: i64,
    pub(crate) log: Option<String>,
}

/// The files this process adopted.
#[derive(Debug, Default)]
pub(crate) struct ExternalRestores(Mutex<Adopted>);

#[derive(Debug, Default)]
struct Adopted {
    system: Option<ReplacedSystem>,
    routers: BTreeMap<RouterId, ExternalRestore>,
}

impl ExternalRestores {
    pub(crate) fn of(&self, id: &RouterId) -> Option<ExternalRestore> {
        self.adopted().routers.get(id).cloned()
    }

    pub(crate) fn of_system(&self) -> Option<ReplacedSystem> {
        self.adopted().system.clone()
    }

    fn note(&self, restore: ExternalRestore) {
        self.adopted().routers.insert(restore.router.clone(), restore);
    }

    pub(crate) fn note_system(&self, restore: ReplacedSystem) {
        self.adopted().system = Some(restore);
    }

    fn adopted(&self) -> MutexGuard<'_, Adopted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DbManager {
    /// Returns the routers whose files were replaced while they were closed, as this process found and adopted them. The
    /// audit log has them all, as `router.restored_externally`.
    pub fn external_restores(&self) -> Vec<ExternalRestore> {
        self.inner.external.adopted().routers.values().cloned().collect()
    }
}

impl Inner {
    /// Takes over a file that was checked. As long as that fails, the file is met as replaced by whoever opens it next.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        id: &RouterId,
        spec: &Spec,
        mut opened: Opened,
    ) -> Result<Opened, Error> {
        if self.system.is_read_only() {
            let at_ms = self.files.options().clock.now().wall_ms;
            self.external.note(ExternalRestore { router: id.clone(), at_ms, log: None, replayed: Vec::new() });
            return Ok(opened);
        }
        match self.note_adoption(id, spec.path()).await {
            Ok(()) => opened.adopted(spec),
            Err(error) => {
                if let Some(writer) = opened.writer.take() {
                    writer.close().await.ok();
                }
                Err(error)
            }
        }
    }

    /// Moves counters past what a file uses, puts a log that is not its own into `safety/`, and notes both.
    async fn note_adoption(self: &Arc<Self>, id: &RouterId, path: &Path) -> Result<(), Error> {
        let now = self.files.options().clock.now();
        for (counter, found) in high_water::in_file(&self.files.options().high_waters, path, FileKind::Router).await? {
            self.system.counters().raise(counter, found).await?;
        }
        // What it replaced is gone. Before anything is noted: whoever is stopped here meets the file as replaced again.
        let manager = DbManager { inner: Arc::clone(self) };
        let replayed = manager.run_replays(id, path, &RestoredFrom::Outside, None).await?;
        let directory = format!("{id}-{}", self.ulids.next(&now).to_string().to_ascii_lowercase());
        let stale = stale_log_of(path);
        let bytes = layout::size_of(&stale)?;
        let log = match fs::exists(&stale) {
            Ok(true) => Some(directory),
            _ => None,
        };
        let cause = "the log of a file that was replaced from outside".to_owned();
        let aside = log.clone().map(|directory| Intent { id: id.clone(), action: Action::Restore, directory, cause });
        let details = serde_json::json!({ "log": log, "replayed": replayed });
        let entry = AuditEntry::new("storage", "router.restored_externally").target(id.as_str()).details(details);
        if let Some(directory) = &log {
            move_log(&stale, &self.files.layout().safety(directory))?;
        }
        tracing::warn!(router = %id, ?log, "a database was replaced from outside and is adopted");
        let noted: Result<(), Error> = self
            .system
            .write(ADOPT, move |conn| {
                Box::pin(async move {
                    if let Some(aside) = &aside {
                        custody::set_aside(conn, aside, AsideReason::Replaced, bytes, &now).await?;
                    }
                    audit::append_in(conn, &entry, &now).await.map(|_| ())
                })
            })
            .await;
        noted?;
        self.external.note(ExternalRestore { router: id.clone(), at_ms: now.wall_ms, log, replayed });
        Ok(())
    }

    /// Opens a replaced file as far as it takes to adopt it.
    pub(crate) async fn adopt_replaced(self: &Arc<Self>, id: &RouterId, spec: &Spec) -> Result<(), Error> {
        let policy = self.files.policy(self.files.options().clock.now());
        let opened = open::open(spec, &Policy { on_open: OnOpen::ReadOnly, ..policy }).await?;
        if opened.is_replaced { self.adopt(id, spec, opened).await.map(drop) } else { Ok(()) }
    }
}

pub(crate) fn move_log(stale: &Path, place: &Path) -> Result<(), Error> {
    layout::create_dir(place)?;
    let Some(name) = stale.file_name() else { return Ok(()) };
    durable::rename(stale, &place.join(name)).map_err(|error| Error::io("rename", stale, error))?;
    layout::sync(place)?;
    stale.parent().map_or(Ok(()), layout::sync)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

    use super::*;

    fn seen(inode: u64, changed: i128) -> Seen {
        Seen { device: 1, inode, bytes: 4096, changed }
    }

    fn said(note: Note, file: Seen, log: Option<Seen>, progress: Option<Progress>) -> Option<bool> {
        judge(note, file, log, || progress, 1_000).map(|replaced| replaced.stale_log)
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let file = seen(7, 123_456_789_012_345);
        for note in [Note::Nothing, Note::Closed(file), Note::Open { file, log: 9, at: -1 }] {
            assert_eq!(Note::parse(&note.to_string()), note);
        }
        for garbage in ["closed", "closed 1 2 3", "closed 1 2 3 x", "open 1 2 3 4", "else 1 2 3 4", "closed -1 2 3 4"] {
            assert_eq!(Note::parse(garbage), Note::Nothing, "{garbage}");
        }
    }

    #[test]
    fn a_closed_file_is_the_same_or_it_was_replaced_together_with_its_log() {
        let note = Note::Closed(seen(7, 100));
        assert_eq!(said(note, seen(7, 100), None, None), None);
        for other in [seen(8, 100), seen(7, 99), seen(7, 101)] {
            assert_eq!(said(note, other, None, None), Some(false));
            assert_eq!(said(note, other, Some(seen(9, 90)), None), Some(false));
        }
    }

    #[test]
    fn what_a_killed_program_left_is_told_from_what_took_its_place() {
        // Opened at 200, when the file had last been changed at 100.
        let note = Note::Open { file: seen(7, 100), log: 9, at: 200 };
        let log = Some(seen(9, 300));
        let (untouched, moved) =
            (Some(Progress { untouched: true, agrees: true }), Some(Progress { untouched: false, agrees: true }));
        let other = Some(Progress { untouched: false, agrees: false });
        // Not touched, or changed by moving the log into it.
        assert_eq!(said(note, seen(7, 100), log, untouched), None);
        assert_eq!(said(note, seen(7, 250), log, untouched), None);
        assert_eq!(said(note, seen(7, 310), log, moved), None);
        assert_eq!(said(note, seen(7, 310), log, None), None, "without evidence the log is kept");
        // Another inode, an old date kept by the copy, a new date with no reason for it, pages that are not there.
        assert_eq!(said(note, seen(8, 100), log, untouched), Some(true));
        assert_eq!(said(note, seen(7, 150), log, untouched), Some(true));
        assert_eq!(said(note, seen(7, 310), log, untouched), Some(true));
        assert_eq!(said(note, seen(7, 310), log, other), Some(true));
        // The log was brought along, or taken away.
        assert_eq!(said(note, seen(8, 310), Some(seen(10, 300)), untouched), Some(false));
        assert_eq!(said(note, seen(8, 310), None, None), Some(false));
        assert_eq!(said(note, seen(7, 150), Some(seen(9, 160)), untouched), None);
        assert_eq!(said(note, seen(7, 100), None, None), None);
    }

    /// What a program leaves that is killed now.
    fn left_now(database: &Path, to: &Path) -> Option<Progress> {
        for suffix in ["", "-wal", "-shm"] {
            let named = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            fs::copy(named(database), named(to)).expect("copy");
        }
        Progress::of(to, &layout::wal_of(to)).expect("an index")
    }

    /// A page of which the log has a version that is not to be moved yet is left out, though an older one counts as moved.
    #[tokio::test]
    async fn a_log_that_was_moved_as_far_as_a_reader_allowed_belongs_to_its_database() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("a.db"), dir.path().join("b.db"));
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).pragma("wal_autocheckpoint", "0");
        let mut writer = options.connect().await.expect("a writer");
        let mut run = async |sql: &'static str| assert!(writer.execute(sql).await.is_ok(), "{sql}");
        run("CREATE TABLE t (n INTEGER); CREATE TABLE u (body TEXT); INSERT INTO t VALUES (0)").await;
        run("PRAGMA wal_checkpoint(TRUNCATE)").await;
        // The page of `t` is written before and after the reader begins, those of `u` before it only.
        run("UPDATE t SET n = 1; INSERT INTO u VALUES (hex(zeroblob(9000)))").await;
        let mut reader = options.connect().await.expect("a reader");
        let mut reading = reader.begin().await.expect("a transaction");
        assert_eq!(sqlx::query_scalar("SELECT n FROM t").fetch_one(&mut *reading).await.ok(), Some(1_i64));
        run("UPDATE t SET n = 2").await;
        run("PRAGMA wal_checkpoint(PASSIVE)").await;
        let whole = Some(Progress { untouched: false, agrees: true });
        assert_eq!(left_now(&path, &other), whole);

        // So does one of which pages were cut off the database since.
        reading.rollback().await.expect("the end of a transaction");
        run("PRAGMA wal_checkpoint(TRUNCATE)").await;
        run("PRAGMA auto_vacuum = INCREMENTAL; VACUUM; INSERT INTO u VALUES (hex(zeroblob(90000)))").await;
        run("DELETE FROM u; PRAGMA incremental_vacuum").await;
        run("PRAGMA wal_checkpoint(PASSIVE)").await;
        assert_eq!(left_now(&path, &other), whole);
        // And another database does not.
        let log = layout::wal_of(&other);
        fs::write(&other, vec![7; 1 << 16]).expect("write");
        assert_eq!(Progress::of(&other, &log).expect("an index"), Some(Progress { untouched: false, agrees: false }));
    }

    #[test]
    fn after_a_start_of_the_machine_only_a_file_changed_since_then_is_another() {
        let after = 2 * BOOT_SLACK;
        assert_eq!(said(Note::Nothing, seen(7, after), Some(seen(9, 500)), None), Some(true));
        assert_eq!(said(Note::Nothing, seen(7, 900), Some(seen(9, 500)), None), None);
        assert_eq!(said(Note::Nothing, seen(7, after), Some(seen(9, after - 1)), None), None, "copied together");
        assert_eq!(said(Note::Nothing, seen(7, after), None, None), None);
    }
}
