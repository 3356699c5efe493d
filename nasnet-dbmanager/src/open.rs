//! The open protocol: what is checked before a database is used, and under which lock.
//!
//! A shared lock is held while a database is open. Whatever needs it alone (creating, checking after an unclean stop,
//! migrating) takes the exclusive lock first, closes its connection, lets go, takes the shared lock and looks again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::backup::copy;
use crate::budget::PUT_IN_PLACE;
use crate::connection::{Guarded, Role, Target, quick_check};
use crate::db_lock::{DbLock, FileLock};
use crate::durable::{self, Access};
use crate::error::Error;
use crate::external;
use crate::health::Migrating;
use crate::layout::{self, UNFINISHED};
use crate::meta::{self, Identity};
use crate::migrate::{self, Sets};
use crate::options::OnOpen;
use crate::schema::{FileKind, Profile, SchemaSet};
use crate::template::{self, Templates};
use crate::vfs;

/// How often another process may change the file between two looks before opening gives up.
const LOOKS_MAX: u32 = 5;

/// The database that is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) target: Target,
    pub(crate) lock: DbLock,
    pub(crate) identity: Identity,
    pub(crate) sets: Arc<Sets>,
    pub(crate) templates: Templates,
    /// Where changing its schema is noted.
    pub(crate) migrating: Arc<Migrating>,
}

/// What the options say about opening.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) on_open: OnOpen,
    pub(crate) lock_timeout: Duration,
    pub(crate) wall_ms: i64,
}

/// An open database, verified, with its shared lock.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) target: Target,
    /// `None` when it may only be read.
    pub(crate) writer: Option<Guarded>,
    pub(crate) lock: FileLock,
    pub(crate) file_uid: [u8; 16],
    /// Somebody put this file in the place of the one that was closed last.
    pub(crate) is_replaced: bool,
}

impl Spec {
    pub(crate) fn path(&self) -> &Path {
        &self.target.path
    }

    pub(crate) fn is_missing(&self) -> Result<bool, Error> {
        Ok(layout::size_of(self.path())? == 0)
    }

    pub(crate) fn missing(&self) -> Error {
        Error::MissingDatabase { path: self.path().to_owned() }
    }

    /// What is renamed into place when the database is created: the directory of a router, or the single file.
    fn unit(&self) -> &Path {
        match self.identity.kind {
            FileKind::Router => self.path().parent().unwrap_or(self.path()),
            _ => self.path(),
        }
    }

    /// Names the directory a database is built in, beside its place, and the file there.
    fn workshop(&self) -> Result<(PathBuf, PathBuf), Error> {
        let unit = self.unit();
        match (unit.parent(), unit.file_name(), self.path().file_name()) {
            (Some(parent), Some(unit_name), Some(file_name)) => {
                let workshop = parent.join(format!("{UNFINISHED}{}", unit_name.to_string_lossy()));
                let file = workshop.join(file_name);
                Ok((workshop, file))
            }
            _ => Err(self.missing()),
        }
    }
}

/// Opens a database.
pub(crate) async fn open(spec: &Spec, policy: &Policy) -> Result<Opened, Error> {
    open_if(spec, policy, |_| true).await?.ok_or_else(|| spec.missing())
}

/// As [`open`], for a database whose record was not asked for again; `None` when somebody had it alone since it was used
/// last, as whoever moves it has.
pub(crate) async fn open_again(spec: &Spec, policy: &Policy) -> Result<Option<Opened>, Error> {
    open_if(spec, policy, |look| look.was_left).await
}

async fn open_if(spec: &Spec, policy: &Policy, wanted: fn(&Look) -> bool) -> Result<Option<Opened>, Error> {
    let mut is_replaced = false;
    for _ in 0..LOOKS_MAX {
        let look = look(spec, policy).await?;
        if !wanted(&look) {
            return Ok(None);
        }
        let Look { lock, is_first, is_replaced: found, .. } = look;
        is_replaced |= found;
        if spec.is_missing()? {
            if spec.target.profile == Profile::Flash {
                return Err(spec.missing());
            }
            drop(lock);
            let _alone = spec.lock.exclusive(policy.lock_timeout).await?;
            look_alone(spec, policy, "").await?;
            continue;
        }
        let (mut guarded, file_uid, version) = connect(spec).await?;
        let due = match migrate::pending_since(&mut guarded.conn, spec.path(), &spec.sets, version).await {
            Err(Error::SchemaTooNew { .. }) if policy.on_open == OnOpen::ReadOnly => Ok(Vec::new()),
            due => due,
        };
        match judge(due, spec, policy) {
            Err(error) => {
                guarded.close().await.ok();
                return Err(error);
            }
            Ok(Verdict::Migrate) => {
                guarded.close().await?;
                drop(lock);
                let _alone = spec.lock.exclusive(policy.lock_timeout).await?;
                migrate_alone(spec, policy).await?;
            }
            Ok(Verdict::Use) => {
                let writer = match policy.on_open {
                    OnOpen::ReadOnly => {
                        guarded.close().await?;
                        None
                    }
                    _ => Some(guarded),
                };
                // A file that took the place of another goes on being noticed until it is adopted.
                let lock = if is_replaced || !is_noted(spec, policy) { lock } else { noting(lock, spec, is_first)? };
                return Ok(Some(Opened { target: spec.target.clone(), writer, lock, file_uid, is_replaced }));
            }
        }
    }
    Err(Error::InUse { path: spec.lock.database().to_owned() })
}

/// The shared lock, and what was seen while nobody else had the file.
struct Look {
    lock: FileLock,
    is_first: bool,
    is_replaced: bool,
    /// Others use it, or whoever did last closed it and nobody had it alone since.
    was_left: bool,
}

/// Takes the shared lock. Whoever finds the file unused has a look at it first, and nobody comes in between.
async fn look(spec: &Spec, policy: &Policy) -> Result<Look, Error> {
    match spec.lock.try_exclusive()? {
        Some(alone) => {
            let note = alone.noted()?;
            let is_replaced = look_alone(spec, policy, &note).await;
            // A look changes nothing about how the file was left, so the note stays when this fails.
            let lock = alone.downgrade()?;
            Ok(Look { lock, is_first: true, is_replaced: is_replaced?, was_left: !note.is_empty() })
        }
        None => {
            let lock = spec.lock.shared(policy.lock_timeout).await?;
            Ok(Look { lock, is_first: false, is_replaced: false, was_left: true })
        }
    }
}

/// Tells whether it is noted how the file is left: for those that are never made anew, by whoever may adopt another.
fn is_noted(spec: &Spec, policy: &Policy) -> bool {
    match spec.identity.kind {
        FileKind::Router => true,
        FileKind::System => policy.on_open != OnOpen::ReadOnly,
        _ => false,
    }
}

impl Opened {
    /// Notes that a file which took the place of another is the one of this database from now on.
    pub(crate) fn adopted(mut self, spec: &Spec) -> Result<Self, Error> {
        self.lock = noting(self.lock, spec, true)?;
        Ok(self)
    }
}

/// Notes how the file is, now that it is open, and has it noted when it is closed.
fn noting(lock: FileLock, spec: &Spec, is_first: bool) -> Result<FileLock, Error> {
    if is_first {
        // The time comes from the kernel, as that of the file does.
        lock.note("")?;
        lock.note(&external::note_of_open(spec.path(), lock.notes()))?;
    }
    Ok(lock.noting_at_the_end(spec.path(), external::note_of_close))
}

/// Connects to a file that carries the right marks; also returns its uid and the version of its schema.
async fn connect(spec: &Spec) -> Result<(Guarded, [u8; 16], u32), Error> {
    let (guarded, answers) = match spec.target.connect_asking(Role::Writer, meta::QUESTIONS).await {
        Ok(connected) => connected,
        Err(Error::Storage { .. }) => return connect_to_unmarked(spec).await,
        Err(error) => return Err(error),
    };
    match meta::judge_answers(answers, spec.path(), &spec.identity) {
        Ok((file_uid, version)) => Ok((guarded, file_uid, version)),
        Err(error) => {
            guarded.close().await.ok();
            Err(error)
        }
    }
}

/// Says what is wrong with a file that does not even have the table of the marks.
async fn connect_to_unmarked(spec: &Spec) -> Result<(Guarded, [u8; 16], u32), Error> {
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let verified = meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await;
    guarded.close().await.ok();
    let detail = "its marks cannot be read".to_owned();
    verified.and(Err(Error::WrongDatabase { path: spec.path().to_owned(), detail }))
}

enum Verdict {
    Use,
    Migrate,
}

fn judge(due: Result<Vec<(SchemaSet, u32)>, Error>, spec: &Spec, policy: &Policy) -> Result<Verdict, Error> {
    match (due?.first(), policy.on_open) {
        (None, _) | (Some(_), OnOpen::ReadOnly) => Ok(Verdict::Use),
        (Some(_), OnOpen::Migrate) => Ok(Verdict::Migrate),
        (Some((set, found)), OnOpen::Refuse) => Err(Error::MigrationPending {
            path: spec.path().to_owned(),
            set: set.name.to_owned(),
            found: *found,
            wanted: set.version(),
        }),
    }
}

/// What the first to open a file does while nobody else can: it makes a file that lives in memory, and checks one that
/// was not closed properly, or is not the one that was closed; tells whether that is so.
async fn look_alone(spec: &Spec, policy: &Policy, note: &str) -> Result<bool, Error> {
    if spec.is_missing()? {
        if spec.target.profile == Profile::Tmpfs {
            make_in_memory(spec, policy).await?;
        }
        return Ok(false);
    }
    let replaced = match spec.identity.kind {
        FileKind::Router => external::look(spec.path(), note)?,
        _ => None,
    };
    if replaced.is_some_and(|replaced| replaced.stale_log) {
        tracing::warn!(path = %spec.path().display(), "the log of another file is set aside");
        external::set_log_aside(spec.path())?;
    }
    let is_replaced =
        replaced.is_some() || spec.identity.kind == FileKind::Router && external::stale_log_of(spec.path()).exists();
    if !is_replaced && layout::size_of(&layout::wal_of(spec.path()))? == 0 {
        return Ok(false);
    }
    tracing::info!(path = %spec.path().display(), is_replaced, "database is not as it was left; checking it");
    // Closing after that must not move the log into a file that is damaged, another one, or of a later program.
    let mut guarded = spec.target.connect_for_examination().await?;
    let examined = async {
        if is_replaced {
            copy::integrity_check(&mut guarded.conn).await?;
        } else {
            quick_check(&mut guarded.conn).await?;
        }
        meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await?;
        migrate::pending(&mut guarded.conn, spec.path(), &spec.sets).await.map(|_| ())
    }
    .await;
    let closed = guarded.close().await;
    match examined.and(closed) {
        // Reading it is allowed; whoever does that leaves it as it is too.
        Err(Error::SchemaTooNew { .. }) if policy.on_open == OnOpen::ReadOnly => Ok(is_replaced),
        examined => examined.map(|()| is_replaced),
    }
}

/// Makes a file that lives in memory unless it is there. Others may still have the file open that was in its place: they
/// hold the lock of the database, so the makers have a lock of their own.
pub(crate) async fn make_in_memory(spec: &Spec, policy: &Policy) -> Result<(), Error> {
    let _making = lock_making(spec).await?;
    if !spec.is_missing()? {
        return Ok(());
    }
    // What a wipe left of a log would be taken for the new file's.
    remove_files(spec, &["-wal", "-shm"])?;
    build(spec, policy).await.map(drop)
}

/// Removes a file that lives in memory, if it is still wanted once nobody makes one.
pub(crate) async fn remove_from_memory(spec: &Spec, wanted: impl FnOnce() -> bool) -> Result<(), Error> {
    let _making = lock_making(spec).await?;
    if wanted() { remove_files(spec, &["", "-wal", "-shm"]) } else { Ok(()) }
}

/// Keeps others from making a file that lives in memory.
async fn lock_making(spec: &Spec) -> Result<std::fs::File, Error> {
    let path = spec.path().with_extension("db-making");
    let lock = tokio::task::spawn_blocking(move || {
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.and_then(|file| file.lock().map(|()| file));
        file.map_err(|error| Error::io("lock", &path, error))
    });
    lock.await.map_err(|error| Error::Panicked { message: error.to_string() })?
}

fn remove_files(spec: &Spec, suffixes: &[&str]) -> Result<(), Error> {
    for suffix in suffixes {
        let mut name = spec.path().as_os_str().to_owned();
        name.push(suffix);
        let left = Path::new(&name);
        if left.exists() {
            crate::durable::remove_file(left).map_err(|error| Error::io("remove", left, error))?;
        }
    }
    Ok(())
}

/// A set that was behind, with the version it had and the one it has.
pub(crate) type BroughtUp = (&'static str, u32, u32);

/// Brings a database to the schema of the program without keeping it open; returns the sets that were behind. `None` for
/// a file that was replaced, which has to be adopted first.
pub(crate) async fn migrate(spec: &Spec, policy: &Policy) -> Result<Option<Vec<BroughtUp>>, Error> {
    let Look { lock, is_replaced, .. } = look(spec, policy).await?;
    if spec.is_missing()? {
        return Err(spec.missing());
    }
    if is_replaced {
        return Ok(None);
    }
    let (mut guarded, _, version) = connect(spec).await?;
    let behind = migrate::pending_since(&mut guarded.conn, spec.path(), &spec.sets, version).await;
    let closed = guarded.close().await;
    let behind: Vec<_> = behind?.iter().map(|(set, found)| (set.name, *found, set.version())).collect();
    closed?;
    if behind.is_empty() {
        return Ok(Some(behind));
    }
    drop(lock);
    let _alone = spec.lock.exclusive(policy.lock_timeout).await?;
    migrate_alone(spec, policy).await?;
    Ok(Some(behind))
}

async fn migrate_alone(spec: &Spec, policy: &Policy) -> Result<(), Error> {
    let _under_way = spec.migrating.begin(spec.path());
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let migrated = async {
        meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await?;
        // Another process may have migrated between the two looks.
        let pending = migrate::pending(&mut guarded.conn, spec.path(), &spec.sets).await?;
        migrate::run_pending(&mut guarded, spec.path(), &pending, policy.wall_ms).await
    }
    .await;
    let closed = guarded.close().await;
    migrated.and(closed)
}

/// Creates the database of a spec unless it is there, and returns its uid.
pub(crate) async fn create(spec: &Spec, policy: &Policy) -> Result<[u8; 16], Error> {
    let _alone = spec.lock.exclusive(policy.lock_timeout).await?;
    create_alone(spec, policy).await
}

/// As [`create`], but gives up at once when another process has the lock.
pub(crate) async fn try_create(spec: &Spec, policy: &Policy) -> Result<Option<[u8; 16]>, Error> {
    let Some(_alone) = spec.lock.try_exclusive()? else { return Ok(None) };
    create_alone(spec, policy).await.map(Some)
}

/// As [`create`], for a caller who holds the exclusive lock.
pub(crate) async fn create_alone(spec: &Spec, policy: &Policy) -> Result<[u8; 16], Error> {
    if spec.is_missing()? {
        return build(spec, policy).await;
    }
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let verified = meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await;
    guarded.close().await?;
    verified
}

/// Builds a database in a directory beside its place and moves it there whole. The caller holds the exclusive lock.
async fn build(spec: &Spec, policy: &Policy) -> Result<[u8; 16], Error> {
    let (workshop, path) = spec.workshop()?;
    let file_uid = match spec.identity.file_uid {
        Some(uid) => uid,
        None => meta::new_file_uid()?,
    };
    enter(&workshop)?;
    let target = Target { path, ..spec.target.clone() };
    let built = match spec.identity.kind {
        FileKind::Router => copy_template(&target, spec, policy, file_uid).await,
        _ => fill_synced(&target, spec, policy, file_uid).await,
    };
    vfs::forget(&target.path);
    let moved = built.and_then(|()| put_in_place(spec, &target.path, &workshop)).and_then(|()| settle(spec));
    if moved.is_err() || spec.unit() == spec.path() {
        layout::remove_tree(&workshop)?;
    }
    moved.map(|()| file_uid)
}

/// Makes the directory a database is built in.
fn enter(workshop: &Path) -> Result<(), Error> {
    // What an interrupted attempt left is worthless: nothing refers to it.
    layout::remove_tree(workshop)?;
    // It need not outlive a power cut before it is renamed.
    durable::create_dir(workshop).map_err(|error| Error::io("create", workshop, error))
}

/// Gives a router that has none a database of these bytes. What it is called is on the medium only once the directory of
/// all routers is synced, which may be done for many. The caller holds the exclusive lock.
pub(crate) fn place(spec: &Spec, bytes: &[u8]) -> Result<(), Error> {
    let (workshop, path) = spec.workshop()?;
    enter(&workshop)?;
    let placed = write_charged(&path, &spec.target, bytes).and_then(|()| put_in_place(spec, &path, &workshop));
    if placed.is_err() {
        layout::remove_tree(&workshop)?;
    }
    placed
}

fn write_charged(path: &Path, target: &Target, bytes: &[u8]) -> Result<(), Error> {
    let written = durable::write_file(path, bytes, Access::Umask);
    if let Some(ledger) = &target.ledger {
        ledger.charge_file(PUT_IN_PLACE, bytes.len() as u64);
    }
    written.map_err(|error| Error::io("write", path, error))
}

/// Writes the bytes of the template; one that cannot be used is no reason to have no database.
async fn copy_template(target: &Target, spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<(), Error> {
    match template::stamp(spec, policy, file_uid).await {
        Ok(bytes) => write_charged(&target.path, target, &bytes),
        Err(error) => {
            tracing::debug!(path = %spec.path().display(), %error, "no template; building the database itself");
            fill_synced(target, spec, policy, file_uid).await
        }
    }
}

async fn fill_synced(target: &Target, spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<(), Error> {
    fill(target, spec, policy, file_uid).await?;
    if target.profile == Profile::Flash { layout::sync(&target.path) } else { Ok(()) }
}

/// Creates a database file and fills it with its marks and schemas.
pub(crate) async fn fill(target: &Target, spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<(), Error> {
    let mut guarded = target.create().await?;
    let filled = async {
        meta::write(&mut guarded.conn, &spec.identity, file_uid).await?;
        let all: Vec<_> = spec.sets.iter().map(|set| (set.clone(), 0)).collect();
        migrate::run_pending(&mut guarded, &target.path, &all, policy.wall_ms).await
    }
    .await;
    // Closing the last connection moves the log into the file and removes it.
    let closed = guarded.close().await;
    filled.and(closed)
}

/// Gives what was built its name, with all that is in it on the medium before.
fn put_in_place(spec: &Spec, built: &Path, workshop: &Path) -> Result<(), Error> {
    let unit = spec.unit();
    let flash = spec.target.profile == Profile::Flash;
    layout::without_log(built)?;
    if flash {
        layout::sync(workshop)?;
    }
    let from = if unit == spec.path() { built } else { workshop };
    // A file of no bytes is what a power cut leaves of one that was never written; it holds nothing to replace.
    if spec.target.profile == Profile::Tmpfs && unit.exists() && spec.is_missing()? {
        crate::durable::remove_file(unit).map_err(|error| Error::io("remove", unit, error))?;
    }
    if !layout::rename_new(from, unit)? {
        return Err(Error::WrongDatabase { path: unit.to_owned(), detail: "something else has its place".to_owned() });
    }
    Ok(())
}

/// Brings the name of a database that was put in place to the medium.
fn settle(spec: &Spec) -> Result<(), Error> {
    match spec.unit().parent() {
        Some(parent) if spec.target.profile == Profile::Flash => layout::sync(parent),
        _ => Ok(()),
    }
}

/// Takes a database that nobody has open back to an earlier version of one schema set.
pub(crate) async fn migrate_down(spec: &Spec, policy: &Policy, set: &str, version: u32) -> Result<u32, Error> {
    let _alone = spec.lock.exclusive(policy.lock_timeout).await?;
    if spec.is_missing()? {
        return Err(spec.missing());
    }
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let migrated = async {
        meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await?;
        migrate::run_down(&mut guarded, spec.path(), set, version).await
    }
    .await;
    let closed = guarded.close().await;
    migrated.and_then(|steps| closed.map(|()| steps))
}
