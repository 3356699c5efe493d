//! The system database from a backup, while nobody has the fleet open.
//!
//! An older registry and older counters would do harm, so both are brought up to what is on disk before the restored
//! file takes the place of the present one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sqlx::{Connection, SqliteConnection};

use crate::backup::copy::{self, Scratch};
use crate::backup::{self, names_in};
use crate::clock::Now;
use crate::connection::{Guarded, Role, Target, check_version};
use crate::custody;
use crate::error::Error;
use crate::external::{self, Replaced, ReplacedSystem};
use crate::fleet_files::FleetFiles;
use crate::high_water;
use crate::home::Home;
use crate::id::{RouterId, Scope};
use crate::layout;
use crate::manager::DbManager;
use crate::manifest::{self, Manifest, Which};
use crate::meta;
use crate::migrate;
use crate::open::Spec;
use crate::options::{OnOpen, Options};
use crate::schema::FileKind;
use crate::system::audit::{self, AuditEntry};
use crate::system::data_keys::{self, Wrapped};
use crate::system::routers::{self, Lifecycle, NewRouter};
use crate::system::{counters, schema_sets};
use crate::ulid_gen::UlidGen;

/// How far each counter is moved beyond everything known to be in use: what was reserved as a block and never written
/// anywhere is among it.
const BLOCK: u64 = 1024;

/// How many replaced system databases are kept: nothing lists them, since what would is the system database.
const SAFETY_KEPT: usize = 2;

/// What restoring the system database did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemRestored {
    /// When the backup was made, wall clock.
    pub backup_ms: i64,
    /// The directory with what was replaced; `None` when nothing was there.
    pub safety: Option<PathBuf>,
    /// The value of each counter now.
    pub counters: BTreeMap<String, u64>,
    /// The routers that have a database and were not in the backup; they are registered again, under their id alone.
    pub adopted: Vec<RouterId>,
    /// The routers that are registered and have no database.
    pub missing: Vec<RouterId>,
}

impl DbManager {
    /// Restores the system database of a fleet that nobody has open, this process included.
    ///
    /// What is there is kept. Every counter goes on beyond the largest value found in the backup, in what is replaced,
    /// in the run directory and in the routers (`Options::high_waters`), by a block. The registry is compared with the
    /// directories of the routers.
    ///
    /// # Errors
    /// With nothing changed: [`Error::BackupOfAnotherFleet`], [`Error::BadBackup`], [`Error::SchemaTooNew`],
    /// [`Error::InUse`], [`Error::NoSpace`], those of entering the data directory, and those of the medium when the
    /// counters of the present file cannot be read although it is not damaged.
    ///
    /// # Cancel safety
    /// Dropping the future, or a crash, leaves either the present or the restored database in place, whole.
    pub async fn restore_system(options: &Options, manifest: &Manifest) -> Result<SystemRestored, Error> {
        check_version().await?;
        let now = options.clock.now();
        let home = Home::enter_existing(options).await?;
        let mut sets = schema_sets();
        sets.extend(options.schemas.iter().cloned());
        let files = FleetFiles::new(home.layout.clone(), home.marker.fleet_id, sets, options.clone());
        manifest.check_fleet(home.marker.fleet_id)?;
        let file = manifest.file(&Scope::System).ok_or_else(|| Error::BadBackup {
            path: manifest.dir.clone(),
            detail: "it does not hold the system database".to_owned(),
        })?;
        let spec = files.single(FileKind::System, home.marker.system_uid());
        let _alone = spec.lock.exclusive(options.lock_timeout).await?;

        let name = manifest::directory_name(&Which::System, UlidGen::new(None).next(&now));
        let place = files.layout().safety(&name);
        layout::create_dir(&place)?;
        let built = place.join("system.db");
        let made = async {
            let any_uid = files.single(FileKind::System, None);
            let scratch = Scratch::new(&files.layout().run_dir);
            backup::unpack_checked(&manifest.path_of(&Scope::System), scratch.path(), file, &any_uid).await?;
            copy::put(scratch.path(), &built).await?;
            // The uid in the marker of the data directory stays the one of its system database.
            copy::make_usable(&built, home.marker.system_uid().unwrap_or_default()).await?;
            let (present, keys) = present_of(&spec.target).await?;
            let target = Target { path: built.clone(), ..spec.target.clone() };
            catch_up(&files, &target, (present, keys), manifest, now).await
        }
        .await;
        let restored = match made {
            Ok(restored) => restored,
            Err(error) => {
                layout::remove_tree(&place)?;
                return Err(error);
            }
        };
        let safety = put_in_place(&spec.target.path, &built, &place)?.then(|| place.clone());
        let names = names_in(&files.layout().data_dir.join("safety"))?;
        for name in manifest::beyond(&Which::System, names.iter().map(String::as_str), SAFETY_KEPT) {
            layout::remove_tree(&files.layout().safety(name))?;
        }
        Ok(SystemRestored { safety, ..restored })
    }
}

const HAS_TABLE: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";

/// Reads the counters and the wrapped keys of the present file, and moves its log into it if it can be: a log must not
/// stay beside another file. A damaged file has none, but one that cannot be read for another reason stops the restore:
/// numbers given out would be given out again.
async fn present_of(target: &Target) -> Result<(BTreeMap<String, u64>, Vec<Wrapped>), Error> {
    if layout::size_of(&target.path)? == 0 {
        return Ok(Default::default());
    }
    let read = async {
        let mut guarded = target.connect(Role::Writer).await?;
        let found = read_present(&mut guarded.conn).await;
        guarded.close().await.ok();
        found
    };
    match read.await {
        Err(error) if error.is_damage() => Ok(Default::default()),
        read => read,
    }
}

async fn read_present(conn: &mut SqliteConnection) -> Result<(BTreeMap<String, u64>, Vec<Wrapped>), Error> {
    let mut present = [false; 2];
    for (present, table) in present.iter_mut().zip(["counters", "data_keys"]) {
        let found: Option<i64> = sqlx::query_scalar(HAS_TABLE).bind(table).fetch_optional(&mut *conn).await?;
        *present = found.is_some();
    }
    let counters = if present[0] { all_counters(conn).await? } else { BTreeMap::new() };
    let keys = if present[1] { data_keys::list(conn).await? } else { Vec::new() };
    Ok((counters, keys))
}

async fn all_counters(conn: &mut SqliteConnection) -> Result<BTreeMap<String, u64>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT name, value FROM counters").fetch_all(conn).await?;
    Ok(rows.into_iter().map(|(name, value)| (name, u64::try_from(value).unwrap_or(0))).collect())
}

/// Brings a restored database up to what is on disk.
async fn catch_up(
    files: &FleetFiles,
    target: &Target,
    (found, keys): (BTreeMap<String, u64>, Vec<Wrapped>),
    manifest: &Manifest,
    now: Now,
) -> Result<SystemRestored, Error> {
    let known = known_on_disk(files, found).await?;
    let mut guarded = target.connect(Role::Writer).await?;
    let caught_up = async {
        // Those of routers that came later, and all as the present master key wrapped them.
        data_keys::adopt(&mut guarded.conn, &keys).await?;
        let entry = AuditEntry::new("storage", "system.restored");
        note_all(&mut guarded, files, &known, (entry, manifest.id.to_string()), now).await
    }
    .await;
    let closed = guarded.close().await;
    let (counters, adopted, missing) = caught_up?;
    closed?;
    // The file goes to its place alone: what was caught up must be in it.
    layout::without_log(&target.path)?;
    layout::sync(&target.path)?;
    Ok(SystemRestored { backup_ms: manifest.created_ms, safety: None, counters, adopted, missing })
}

/// What the directories of a fleet say, whatever its registry does.
struct OnDisk {
    /// The largest value found of each counter.
    counters: BTreeMap<String, u64>,
    /// The routers that have a database, with its uid.
    routers: BTreeMap<RouterId, [u8; 16]>,
}

/// Looks at the files of a fleet that nobody has open; `found` are values of counters known already.
async fn known_on_disk(files: &FleetFiles, mut found: BTreeMap<String, u64>) -> Result<OnDisk, Error> {
    let mut note = |numbers: Vec<(&'static str, u64)>| {
        for (counter, number) in numbers {
            let known = found.entry(counter.to_owned()).or_default();
            *known = (*known).max(number);
        }
    };
    let high_waters = &files.options().high_waters;
    for kind in [FileKind::Hot, FileKind::Runtime, FileKind::Locks] {
        let path = files.layout().single(kind);
        if layout::size_of(&path)? > 0 {
            // A file in memory that cannot be read dies with the boot anyway; its numbers are in the routers too.
            note(high_water::in_file(high_waters, &path, kind).await.unwrap_or_default());
        }
    }
    let mut on_disk = BTreeMap::new();
    for (id, path) in router_files(files)? {
        let spec = files.router(&id, None);
        let Ok(mut guarded) = spec.target.connect(Role::Writer).await else { continue };
        let uid = meta::verify(&mut guarded.conn, &path, &spec.identity).await;
        guarded.close().await.ok();
        if let Ok(uid) = uid {
            note(high_water::in_file(high_waters, &path, FileKind::Router).await.unwrap_or_default());
            on_disk.insert(id, uid);
        }
    }
    Ok(OnDisk { counters: found, routers: on_disk })
}

fn router_files(files: &FleetFiles) -> Result<Vec<(RouterId, PathBuf)>, Error> {
    let names = names_in(&files.layout().routers())?;
    let ids = names.iter().filter_map(|name| RouterId::parse(name).ok());
    Ok(ids.map(|id| (id.clone(), files.layout().router(&id))).filter(|(_, path)| path.is_file()).collect())
}

/// The counters, the routers that were registered again, and those that have no database.
type CaughtUp = (BTreeMap<String, u64>, Vec<RouterId>, Vec<RouterId>);

async fn note_all(
    guarded: &mut Guarded,
    files: &FleetFiles,
    OnDisk { counters: found, routers: on_disk }: &OnDisk,
    (entry, origin): (AuditEntry, String),
    now: Now,
) -> Result<CaughtUp, Error> {
    let mut tx = guarded.conn.begin_with("BEGIN IMMEDIATE").await?;
    let mut values = all_counters(&mut tx).await?;
    for (name, value) in found {
        let known = values.entry(name.clone()).or_default();
        *known = (*known).max(*value);
    }
    for (name, value) in &mut values {
        *value = value.saturating_add(BLOCK).min(i64::MAX.unsigned_abs());
        counters::raise(&mut tx, name, *value).await?;
    }
    let registered = routers::list(&mut tx).await?;
    let (mut adopted, mut missing) = (Vec::new(), Vec::new());
    for (id, uid) in on_disk {
        if !registered.iter().any(|record| record.id == *id) {
            routers::insert(&mut tx, &NewRouter::new(id.clone()), &now).await?;
            adopted.push(id.clone());
        }
        custody::settle(&mut tx, id, Lifecycle::Active, Some(*uid), &now).await?;
    }
    for record in registered.iter().filter(|record| !on_disk.contains_key(&record.id)) {
        // A creation that was under way is carried out by the next open.
        if record.lifecycle == Lifecycle::Provisioning {
            continue;
        }
        if files.layout().retired(&record.id).is_dir() {
            custody::settle(&mut tx, &record.id, Lifecycle::Retired, None, &now).await?;
        } else {
            missing.push(record.id.clone());
        }
    }
    // Moves that were under way when the backup was made are over, one way or the other.
    for intent in custody::intents(&mut tx).await? {
        custody::end(&mut tx, &intent.id).await?;
    }
    let entry =
        entry.details(serde_json::json!({ "backup": origin, "adopted": adopted.len(), "missing": missing.len() }));
    audit::append_in(&mut tx, &entry, &now).await?;
    tx.commit().await?;
    Ok((values, adopted, missing))
}

/// Adopts a system database that somebody put in the place of the one that was closed last, before anybody uses it: as in
/// a restore, its counters and its registry are brought up to what is on disk. Keys and counters that were nowhere else than
/// in the file that is gone are lost with it, but for the block that every counter is moved by.
pub(crate) async fn adopt_replaced(files: &FleetFiles, spec: &Spec, now: Now) -> Result<Option<ReplacedSystem>, Error> {
    if files.options().on_open != OnOpen::Migrate {
        return Ok(None);
    }
    // Whoever uses it has looked.
    let Some(alone) = spec.lock.try_exclusive()? else { return Ok(None) };
    match adopt_alone(files, spec, &alone.noted()?, now).await {
        Ok(Some(adopted)) => Ok(Some(adopted)),
        // What was noted of the file stays as it is, for whoever looks next.
        other => alone.downgrade().and(other),
    }
}

async fn adopt_alone(files: &FleetFiles, spec: &Spec, note: &str, now: Now) -> Result<Option<ReplacedSystem>, Error> {
    let path = spec.path();
    if spec.is_missing()? {
        return Ok(None);
    }
    let stale = external::stale_log_of(path);
    match external::look(path, note)? {
        Some(Replaced { stale_log: true }) => external::set_log_aside(path)?,
        None if !stale.exists() => return Ok(None),
        _ => {}
    }
    tracing::warn!(path = %path.display(), "the system database was replaced from outside and is adopted");
    let mut guarded = spec.target.connect_for_examination().await?;
    let examined = async {
        copy::integrity_check(&mut guarded.conn).await?;
        meta::verify(&mut guarded.conn, path, &spec.identity).await
    }
    .await;
    let closed = guarded.close().await;
    examined?;
    closed?;
    let known = known_on_disk(files, BTreeMap::new()).await?;
    let mut guarded = spec.target.connect(Role::Writer).await?;
    let caught_up = async {
        let pending = migrate::pending(&mut guarded.conn, path, &spec.sets).await?;
        migrate::run_pending(&mut guarded, path, &pending, now.wall_ms).await?;
        let entry = AuditEntry::new("storage", "system.restored_externally");
        note_all(&mut guarded, files, &known, (entry, "outside".to_owned()), now).await
    }
    .await;
    let closed = guarded.close().await;
    caught_up?;
    closed?;
    let log = stale.exists().then(|| manifest::directory_name(&Which::System, UlidGen::new(None).next(&now)));
    if let Some(log) = &log {
        external::move_log(&stale, &files.layout().safety(log))?;
    }
    Ok(Some(ReplacedSystem { at_ms: now.wall_ms, log }))
}

/// Makes the built and the present file change places; tells whether there was a present one.
fn put_in_place(live: &Path, built: &Path, place: &Path) -> Result<bool, Error> {
    // What is left of a log belongs to the file that is there: it goes with it, or stays with it.
    let replaced = live.exists();
    let logs: Vec<_> = ["-wal", "-shm"]
        .iter()
        .map(|suffix| {
            let beside = |path: &Path| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            };
            (beside(live), beside(built))
        })
        .filter(|(log, _)| log.exists())
        .collect();
    for (log, aside) in &logs {
        layout::rename_new(log, aside)?;
    }
    if replaced {
        if let Err(error) = layout::exchange(built, live) {
            for (log, aside) in &logs {
                layout::rename_new(aside, log)?;
            }
            return Err(error);
        }
    } else if !layout::rename_new(built, live)? {
        return Err(Error::WrongDatabase { path: live.to_owned(), detail: "something has its place".to_owned() });
    }
    layout::sync(place)?;
    live.parent().map_or(Ok(()), layout::sync)?;
    if !replaced {
        layout::remove_tree(place)?;
    }
    Ok(replaced)
}
