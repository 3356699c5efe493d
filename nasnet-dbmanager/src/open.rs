//! The open protocol: what is checked before a database is used, and under which lock.
//!
//! A shared lock is held while a database is open. Whatever needs it alone (creating, checking after an unclean stop,
//! migrating) takes the exclusive lock first, closes its connection, lets go, takes the shared lock and looks again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::connection::{Guarded, Role, Target, quick_check};
use crate::durable::{self, Access};
use crate::error::Error;
use crate::file_lock::FileLock;
use crate::health::Migrating;
use crate::layout::{self, UNFINISHED};
use crate::meta::{self, Identity};
use crate::migrate;
use crate::options::OnOpen;
use crate::schema::{FileKind, Profile, SchemaSet};
use crate::template;
use crate::vfs;

/// How often another process may change the file between two looks before opening gives up.
const LOOKS_MAX: u32 = 5;

/// The database that is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) target: Target,
    pub(crate) lock: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) sets: Vec<SchemaSet>,
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
}

impl Spec {
    fn path(&self) -> &Path {
        &self.target.path
    }

    fn is_missing(&self) -> Result<bool, Error> {
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
}

/// Opens a database.
pub(crate) async fn open(spec: &Spec, policy: &Policy) -> Result<Opened, Error> {
    for _ in 0..LOOKS_MAX {
        if let Some(alone) = FileLock::try_exclusive(&spec.lock)? {
            look_alone(spec, policy).await?;
            drop(alone);
        }
        let lock = FileLock::shared(&spec.lock, policy.lock_timeout).await?;
        if spec.is_missing()? {
            if spec.target.profile == Profile::Flash {
                return Err(spec.missing());
            }
            drop(lock);
            let _alone = FileLock::exclusive(&spec.lock, policy.lock_timeout).await?;
            look_alone(spec, policy).await?;
            continue;
        }
        let mut guarded = spec.target.connect(Role::Writer).await?;
        match verify(&mut guarded, spec, policy).await {
            Err(error) => {
                guarded.close().await.ok();
                return Err(error);
            }
            Ok(Verdict::Migrate) => {
                guarded.close().await?;
                drop(lock);
                let _alone = FileLock::exclusive(&spec.lock, policy.lock_timeout).await?;
                migrate_alone(spec, policy).await?;
            }
            Ok(Verdict::Use { file_uid }) => {
                let writer = match policy.on_open {
                    OnOpen::ReadOnly => {
                        guarded.close().await?;
                        None
                    }
                    _ => Some(guarded),
                };
                return Ok(Opened { target: spec.target.clone(), writer, lock, file_uid });
            }
        }
    }
    Err(Error::InUse { path: spec.lock.clone() })
}

enum Verdict {
    Use { file_uid: [u8; 16] },
    Migrate,
}

async fn verify(guarded: &mut Guarded, spec: &Spec, policy: &Policy) -> Result<Verdict, Error> {
    let file_uid = meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await?;
    let pending = migrate::pending(&mut guarded.conn, spec.path(), &spec.sets).await;
    let pending = match (pending, policy.on_open) {
        (Err(Error::SchemaTooNew { .. }), OnOpen::ReadOnly) => Vec::new(),
        (pending, _) => pending?,
    };
    match (pending.first(), policy.on_open) {
        (None, _) | (Some(_), OnOpen::ReadOnly) => Ok(Verdict::Use { file_uid }),
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
/// was not closed properly.
async fn look_alone(spec: &Spec, policy: &Policy) -> Result<(), Error> {
    if spec.is_missing()? {
        if spec.target.profile == Profile::Tmpfs {
            build(spec, policy).await?;
        }
        return Ok(());
    }
    if layout::size_of(&layout::wal_of(spec.path()))? == 0 {
        return Ok(());
    }
    tracing::info!(path = %spec.path().display(), "database was not closed properly; checking it");
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let checked = quick_check(&mut guarded.conn).await;
    let closed = guarded.close().await;
    checked.and(closed)
}

/// Brings a database to the schema of the program without keeping it open; returns the sets that were behind, with the
/// versions they had and have.
pub(crate) async fn migrate(spec: &Spec, policy: &Policy) -> Result<Vec<(&'static str, u32, u32)>, Error> {
    if let Some(alone) = FileLock::try_exclusive(&spec.lock)? {
        look_alone(spec, policy).await?;
        drop(alone);
    }
    let lock = FileLock::shared(&spec.lock, policy.lock_timeout).await?;
    if spec.is_missing()? {
        return Err(spec.missing());
    }
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let behind = async {
        meta::verify(&mut guarded.conn, spec.path(), &spec.identity).await?;
        migrate::pending(&mut guarded.conn, spec.path(), &spec.sets).await
    }
    .await;
    let closed = guarded.close().await;
    let behind: Vec<_> = behind?.iter().map(|(set, found)| (set.name, *found, set.version())).collect();
    closed?;
    if behind.is_empty() {
        return Ok(behind);
    }
    drop(lock);
    let _alone = FileLock::exclusive(&spec.lock, policy.lock_timeout).await?;
    migrate_alone(spec, policy).await?;
    Ok(behind)
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
    let _alone = FileLock::exclusive(&spec.lock, policy.lock_timeout).await?;
    create_alone(spec, policy).await
}

/// As [`create`], but gives up at once when another process has the lock.
pub(crate) async fn try_create(spec: &Spec, policy: &Policy) -> Result<Option<[u8; 16]>, Error> {
    let Some(_alone) = FileLock::try_exclusive(&spec.lock)? else { return Ok(None) };
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
    let unit = spec.unit();
    let (Some(parent), Some(unit_name), Some(file_name)) = (unit.parent(), unit.file_name(), spec.path().file_name())
    else {
        return Err(spec.missing());
    };
    let workshop = parent.join(format!("{UNFINISHED}{}", unit_name.to_string_lossy()));
    let file_uid = match spec.identity.file_uid {
        Some(uid) => uid,
        None => meta::new_file_uid()?,
    };
    // What an interrupted attempt left is worthless: nothing refers to it.
    layout::remove_tree(&workshop)?;
    layout::create_dir(&workshop)?;
    let target = Target { path: workshop.join(file_name), ..spec.target.clone() };
    let built = match spec.identity.kind {
        FileKind::Router => copy_template(&target, spec, policy, file_uid).await,
        _ => fill(&target, spec, policy, file_uid).await,
    };
    vfs::forget(&target.path);
    let moved = built.and_then(|()| put_in_place(spec, &target.path, &workshop));
    if moved.is_err() || unit == spec.path() {
        layout::remove_tree(&workshop)?;
    }
    moved.map(|()| file_uid)
}

/// Writes the bytes of the template; one that cannot be used is no reason to have no database.
async fn copy_template(target: &Target, spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<(), Error> {
    match template::stamp(spec, policy, file_uid).await {
        Ok(bytes) => durable::write_file(&target.path, &bytes, Access::Umask)
            .map_err(|error| Error::io("write", &target.path, error)),
        Err(error) => {
            tracing::debug!(path = %spec.path().display(), %error, "no template; building the database itself");
            fill(target, spec, policy, file_uid).await
        }
    }
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

fn put_in_place(spec: &Spec, built: &Path, workshop: &Path) -> Result<(), Error> {
    let unit = spec.unit();
    let parent = unit.parent().unwrap_or(unit);
    let flash = spec.target.profile == Profile::Flash;
    layout::without_log(built)?;
    if flash {
        layout::sync(built)?;
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
    if flash { layout::sync(parent) } else { Ok(()) }
}

/// Takes a database that nobody has open back to an earlier version of one schema set.
pub(crate) async fn migrate_down(spec: &Spec, policy: &Policy, set: &str, version: u32) -> Result<u32, Error> {
    let _alone = FileLock::exclusive(&spec.lock, policy.lock_timeout).await?;
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
