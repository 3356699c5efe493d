//! The fleet: its directories entered, its single databases open, its router databases leased.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ulid::Ulid;

use crate::annex::Annexes;
use crate::budget::{BudgetLevel, FlashReport, MARKER_FILES, ULID_HIGH_WATER};
use crate::clock::{Clock, ClockQuality, Now};
use crate::connection;
use crate::database::Database;
use crate::error::Error;
use crate::external::{ExternalRestores, ReplacedSystem};
use crate::fleet_files::FleetFiles;
use crate::health::Failures;
use crate::high_water;
use crate::home::Home;
use crate::hot::HotDb;
use crate::id::{RouterId, Scope};
use crate::layout;
use crate::lease::OpenSet;
use crate::meta;
use crate::open::{self, Spec};
use crate::options::{OnDamage, OnOpen, Options};
use crate::quarantine::{Recoveries, alarm, is_recoverable};
use crate::registry::{self, Known};
use crate::restore;
use crate::rotation;
use crate::schema::{FileKind, Profile, check_sets};
use crate::seal::{MasterKey, Sealer};
use crate::stats::{DatabaseStats, Stats};
use crate::sweep;
use crate::system::routers::RouterRecord;
use crate::system::{SystemDb, schema_sets};
use crate::ulid_gen::UlidGen;

/// How far the newest id may be ahead of that counter when a fleet is opened, before the counter is moved: a write to
/// flash for each short run of a command would be too much.
const ULID_LAG_MS: u64 = 3_600_000;

/// An open fleet. Clones are cheap and share everything.
///
/// Several processes may open the same fleet. One that needs a database alone, to create or to migrate it, waits for
/// the others at most `Options::lock_timeout`.
#[derive(Clone)]
pub struct DbManager {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) home: Home,
    pub(crate) files: FleetFiles,
    pub(crate) system: SystemDb,
    pub(crate) hot: HotDb,
    pub(crate) runtime: Database,
    pub(crate) locks: Database,
    pub(crate) routers: Arc<OpenSet>,
    pub(crate) sealer: Sealer,
    pub(crate) ulids: Arc<UlidGen>,
    pub(crate) failures: Failures,
    pub(crate) recoveries: Recoveries,
    pub(crate) known: Known,
    pub(crate) external: ExternalRestores,
}

impl DbManager {
    /// Opens a fleet, founding it when the data directory is new.
    ///
    /// # Errors
    /// One for each thing that can be wrong, before anything in the data directory is changed:
    /// [`Error::ForeignDirectory`], [`Error::NotWritable`], [`Error::RunDirMismatch`], [`Error::VersionTooOld`],
    /// [`Error::BadSchemaSet`], [`Error::MissingDatabase`], [`Error::WrongDatabase`], [`Error::SchemaTooNew`],
    /// [`Error::MigrationPending`], [`Error::MigrationChanged`], [`Error::InUse`]; [`Error::Corrupt`] after an unclean
    /// stop that damaged a file; [`Error::MigrationFailed`], with that migration rolled back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a fleet that opens again; what was half built is removed then.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let mut sets = schema_sets();
        sets.extend(options.schemas.iter().cloned());
        check_sets(&sets)?;
        connection::check_version().await?;
        let now = options.clock.now();
        let home = Home::enter(&options, || Ok((UlidGen::new(None).next(&now), meta::new_file_uid()?))).await?;
        let fleet_id = home.marker.fleet_id;
        let files = FleetFiles::new(home.layout.clone(), fleet_id, sets, options);
        let (home, key, system, replaced) = open_system(home, &files, now).await?;
        let opened = Self::open_rest(home, files, key, system.clone(), now).await;
        if let (Ok(opened), Some(replaced)) = (&opened, replaced) {
            opened.inner.external.note_system(replaced);
        }
        if opened.is_err() {
            system.close().await.ok();
        }
        opened
    }

    async fn open_rest(
        home: Home,
        files: FleetFiles,
        key: Arc<MasterKey>,
        system: Database,
        now: Now,
    ) -> Result<Self, Error> {
        let options = files.options().clone();
        let fleet = home.marker.fleet_id.to_string();
        let (wrapper, sealer) = rotation::unlock(&options, key, &fleet, &system).await?;
        layout::create_dir(&files.layout().routers())?;
        let hot = open_single(&files, FileKind::Hot, now).await?;
        let runtime = open_single(&files, FileKind::Runtime, now).await?;
        let locks = open_single(&files, FileKind::Locks, now).await?;
        sweep::sweep(&system, &files, now).await?;
        registry::sweep(&system, &files, now).await?;
        let high_water_ms = registry::counter(&system, ULID_HIGH_WATER).await?;
        let ulids = Arc::clone(files.ulids());
        if high_water_ms > 0 {
            ulids.observe(Ulid::from_parts(high_water_ms, u128::MAX));
        }
        files.room().set_routers(registry::count(&system).await?);
        if let Some(bytes) = home.marker_written {
            files.ledger().charge_file(MARKER_FILES, bytes);
        }
        let look_ups = files.single(FileKind::System, None).target;
        let clock = Arc::clone(&options.clock);
        let system = SystemDb::new(system, runtime.clone(), look_ups, clock, wrapper, Arc::clone(&ulids));
        let wall_ms = u64::try_from(now.wall_ms).unwrap_or(0);
        if wall_ms > high_water_ms + ULID_LAG_MS && now.quality == ClockQuality::Synced && !system.is_read_only() {
            registry::raise_counter(&system, ULID_HIGH_WATER, wall_ms).await?;
        }
        let routers = OpenSet::new(options.max_open, options.lease_timeout, files.layout().data_dir.clone());
        let inner = Inner {
            home,
            system,
            hot: HotDb::new(hot),
            runtime,
            locks,
            routers: Arc::new(routers),
            sealer,
            ulids,
            files,
            failures: Failures::default(),
            recoveries: Recoveries::default(),
            known: Known::default(),
            external: ExternalRestores::default(),
        };
        let inner = Arc::new(inner);
        inner.files.ledger().resume(&inner.system, &inner.runtime, &now).await?;
        tokio::spawn(keep_ledger(Arc::downgrade(&inner), now.boottime_ms));
        tokio::spawn(alarm::watch(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Takes the database of a scope back to an earlier version of one schema set, running the down texts stored in it,
    /// and returns how many ran. Nobody may have the database open, this process included.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::MigrationFailed`] with that step rolled back, and those of [`DbManager::open`].
    ///
    /// # Cancel safety
    /// Each step is one transaction; dropping the future leaves the file between two steps.
    pub async fn migrate_to(options: &Options, scope: &Scope, set: &str, version: u32) -> Result<u32, Error> {
        connection::check_version().await?;
        let now = options.clock.now();
        let home = Home::enter_existing(options).await?;
        let files = FleetFiles::new(home.layout.clone(), home.marker.fleet_id, Vec::new(), options.clone());
        let spec = match scope {
            Scope::System => files.single(FileKind::System, home.marker.system_uid()),
            Scope::Router(id) => files.router(id, None),
        };
        open::migrate_down(&spec, &files.policy(now), set, version).await
    }

    /// Returns the system database.
    pub fn system(&self) -> &SystemDb {
        &self.inner.system
    }

    /// Returns `runtime.db`: what is true only now, in memory.
    pub fn runtime(&self) -> &Database {
        &self.inner.runtime
    }

    /// Returns `locks.db`: leases, in memory.
    pub fn locks(&self) -> &Database {
        &self.inner.locks
    }

    /// Leases the database of a router, opening it if needed. It stays open while a handle to it lives.
    ///
    /// Callers who ask for the same router at once share one opening; opening one router never delays another that
    /// has a place in the open set.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`]; [`Error::AllLeased`] when no place came free within `Options::lease_timeout`;
    /// [`Error::MissingDatabase`], [`Error::WrongDatabase`], [`Error::Corrupt`], [`Error::SchemaTooNew`] and the other
    /// errors of opening a file; [`Error::Quarantined`]. None of them affects another router. With
    /// [`OnDamage::Recover`] a damaged, missing or quarantined database is replaced first ([`DbManager::recover`]);
    /// [`DbManager::health`] tells what was lost.
    ///
    /// # Cancel safety
    /// Safe: an opening that has begun goes on, for whoever asks next.
    pub async fn router(&self, id: &RouterId) -> Result<RouterDb, Error> {
        let opened = match self.lease(id).await {
            Err(error) if self.finish_move(id, &error).await => self.lease(id).await,
            opened => opened,
        };
        let recovers = self.inner.files.options().on_damage == OnDamage::Recover && !self.system().is_read_only();
        let database = match opened {
            Err(error) if recovers && is_recoverable(&error) => self.lease_recovered(id).await?,
            opened => opened?,
        };
        Ok(RouterDb { id: id.clone(), database })
    }

    /// Leases a router as it is, whatever is to be done about damage.
    pub(crate) async fn lease(&self, id: &RouterId) -> Result<Database, Error> {
        // Nobody gets at a file again in which damage was found.
        self.settle_suspicion(id).await?;
        let inner = Arc::clone(&self.inner);
        let open_id = id.clone();
        let open = move || async move { inner.open_router(&open_id).await };
        let leased = self.inner.routers.lease(id, open).await;
        self.inner.failures.note(id, &leased);
        leased
    }

    /// Returns the database of a scope: the system's, or a leased router's.
    ///
    /// # Errors
    /// As [`DbManager::router`].
    ///
    /// # Cancel safety
    /// As [`DbManager::router`].
    pub async fn scope(&self, scope: &Scope) -> Result<ScopeDb, Error> {
        let database = match scope {
            Scope::System => Database::clone(&self.inner.system),
            Scope::Router(id) => self.router(id).await?.database,
        };
        Ok(ScopeDb { scope: scope.clone(), database })
    }

    /// Returns the active routers, by id.
    ///
    /// # Errors
    /// Those of a read of the system database.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn routers(&self) -> Result<Vec<RouterRecord>, Error> {
        registry::list_active(&self.inner.system).await
    }

    /// Reads the clock.
    pub fn now(&self) -> Now {
        self.clock().now()
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.files.options().clock
    }

    /// Makes the next id; ids of one fleet grow even when the clock goes back.
    pub fn next_ulid(&self) -> Ulid {
        self.inner.ulids.next(&self.now())
    }

    /// Returns what seals the values of the whole fleet, under its own data key.
    pub fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// Returns what seals the values of one router, under a data key of its own that goes with the router when it is
    /// purged. The first call gives it one.
    ///
    /// # Errors
    /// [`Error::RouterNotFound`], [`Error::Sealed`], and those of reading or writing the system database.
    ///
    /// # Cancel safety
    /// Safe: a key that was made stays for whoever asks next.
    pub async fn router_sealer(&self, id: &RouterId) -> Result<Sealer, Error> {
        self.system().router_sealer(id).await
    }

    /// Returns the id of the fleet.
    pub fn fleet_id(&self) -> Ulid {
        self.inner.home.marker.fleet_id
    }

    /// Returns the data directory.
    pub fn data_dir(&self) -> &Path {
        &self.inner.files.layout().data_dir
    }

    /// Returns the run directory.
    pub fn run_dir(&self) -> &Path {
        &self.inner.files.layout().run_dir
    }

    /// Tells whether the run directory really is in memory.
    pub fn run_dir_is_tmpfs(&self) -> bool {
        self.inner.home.run_dir_is_tmpfs
    }

    /// Returns what is open and what it has written.
    pub fn stats(&self) -> Stats {
        let singles = [
            (Profile::Flash, Database::clone(&self.inner.system)),
            (Profile::Tmpfs, self.inner.hot.current()),
            (Profile::Tmpfs, self.inner.runtime.clone()),
            (Profile::Tmpfs, self.inner.locks.clone()),
        ];
        let room = self.inner.files.room();
        let singles = singles.iter().map(|(profile, db)| DatabaseStats {
            bytes_max: (*profile == Profile::Flash).then(|| room.bytes_max(true)),
            ..database_stats(None, *profile, 0, db)
        });
        let mut open: Vec<_> = singles.collect();
        let mut routers = self.inner.routers.open_databases();
        routers.sort_by(|a, b| a.0.cmp(&b.0));
        open.extend(routers.iter().map(|(id, leases, db)| DatabaseStats {
            bytes_max: Some(room.bytes_max(false)),
            ..database_stats(Some(id), Profile::Flash, *leases, db)
        }));
        let (max_open, room) = (self.inner.files.options().max_open, self.inner.files.room());
        Stats { max_open, open, flash_bytes_max: room.total, fits: room.shares().fits }
    }

    /// Closes every database, after what was queued is done. Handles that still live get [`Error::Closed`].
    ///
    /// # Errors
    /// The first error of closing a file; the others are closed all the same.
    ///
    /// # Cancel safety
    /// Call it again to wait for the rest.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.inner.routers.shut_down().await;
        let system = &self.inner.system;
        if !system.is_read_only() {
            let high_water_ms = self.inner.ulids.high_water().timestamp_ms();
            // Raising to the same value writes nothing.
            match registry::raise_counter(system, ULID_HIGH_WATER, high_water_ms).await {
                Ok(()) | Err(Error::Closed { .. }) => {}
                Err(error) => tracing::warn!(%error, "saving the newest id failed"),
            }
        }
        if !system.is_read_only() {
            system.settle().await;
        }
        if let Err(error) = self.inner.settle_ledger(true).await {
            tracing::warn!(%error, "saving the flash ledger failed");
        }
        // Whoever waits for damage has nothing more to wait for.
        self.inner.files.suspects().found.notify_one();
        let closed = [
            self.inner.hot.current().close().await,
            self.inner.runtime.close().await,
            self.inner.locks.close().await,
            system.close().await,
        ];
        closed.into_iter().collect()
    }
}

impl DbManager {
    /// Returns what all processes of the fleet wrote to databases on flash today, by cause.
    ///
    /// # Errors
    /// Those of a read and a write of `runtime.db`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn flash_report(&self) -> Result<FlashReport, Error> {
        self.inner.files.ledger().report(&self.inner.runtime, &self.now()).await
    }

    /// Tells how far the flash budget is used up, for whoever decides what to write. Writes of a low cause are refused by
    /// themselves once it is scarce ([`Error::OverBudget`]); others are only reported.
    pub fn flash_level(&self) -> BudgetLevel {
        self.inner.files.ledger().level()
    }
}

impl Inner {
    async fn open_router(self: &Arc<Self>, id: &RouterId) -> Result<Database, Error> {
        // Whoever takes a router out of the fleet or gives it another file has it alone for that, in this process or
        // another, and has said so beside the lock before anything is begun. So what was registered once need not be
        // asked for again unless somebody had it alone since.
        if let Some(uid) = self.known.get(id) {
            let spec = self.files.router(id, Some(uid));
            match open::open_again(&spec, &self.policy()).await {
                Ok(Some(opened)) => return self.start_router(id, &spec, opened).await,
                Ok(None) => self.known.forget(id),
                Err(error) if error.is_retryable() => return Err(error),
                Err(_) => self.known.forget(id),
            }
        }
        let record = self.settled(id).await?;
        let spec = self.files.router(id, record.file_uid);
        let opened = open::open(&spec, &self.policy()).await?;
        let started = self.start_router(id, &spec, opened).await?;
        self.known.remember(id, started.file_uid());
        Ok(started)
    }

    /// Returns the record of an active router, once nothing is under way with it. A move that failed, here or in another
    /// process, is finished first: its router would leave the fleet behind the back of whoever uses it now.
    async fn settled(&self, id: &RouterId) -> Result<RouterRecord, Error> {
        let (record, is_moving) = registry::active_or_moving(&self.system, id).await?;
        if !is_moving || self.system.is_read_only() {
            return Ok(record);
        }
        sweep::finish_alone(&self.system, &self.files, id, self.files.options().clock.now()).await?;
        registry::active(&self.system, id).await
    }

    fn policy(&self) -> open::Policy {
        self.files.policy(self.files.options().clock.now())
    }

    async fn start_router(
        self: &Arc<Self>,
        id: &RouterId,
        spec: &Spec,
        mut opened: open::Opened,
    ) -> Result<Database, Error> {
        observe_newest(&self.files, spec, &mut opened).await?;
        if opened.is_replaced {
            opened = self.adopt(id, spec, opened).await?;
        }
        let vitals = self.files.vitals(spec, opened.file_uid);
        Ok(Database::start(opened, self.files.limits(), vitals))
    }

    /// Adds what was written to the ledger; `save` also where it outlives the boot, if that is worth a write.
    async fn settle_ledger(&self, save: bool) -> Result<(), Error> {
        let now = self.files.options().clock.now();
        let ledger = self.files.ledger();
        let settled = match ledger.settle(&self.runtime, &now).await {
            Err(Error::Closed { .. }) => return Ok(()),
            settled => settled,
        };
        if save && !self.system.is_read_only() {
            ledger.save(&self.system, &now, self.ulids.high_water().timestamp_ms()).await?;
        }
        settled
    }
}

/// How often each process adds what it wrote to the ledger.
const LEDGER_EVERY: Duration = Duration::from_secs(1);
/// After how much time of the injected clock the sum is saved on flash.
const LEDGER_SAVED_EVERY_MS: u64 = 3_600_000;

/// Keeps the ledger of a fleet as long as it is open.
async fn keep_ledger(inner: Weak<Inner>, mut saved_ms: u64) {
    loop {
        tokio::time::sleep(LEDGER_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let now_ms = inner.files.options().clock.now().boottime_ms;
        let save = now_ms.saturating_sub(saved_ms) >= LEDGER_SAVED_EVERY_MS;
        if save {
            saved_ms = now_ms;
        }
        match inner.settle_ledger(save).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "adding to the flash ledger failed"),
        }
        if inner.system.is_closed() {
            return;
        }
    }
}

impl fmt::Debug for DbManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbManager").field("data_dir", &self.data_dir()).finish_non_exhaustive()
    }
}

/// Opens the system database, creating it and the master key in a fleet that is being founded.
async fn open_system(
    mut home: Home,
    files: &FleetFiles,
    now: Now,
) -> Result<(Home, Arc<MasterKey>, Database, Option<ReplacedSystem>), Error> {
    let spec = files.single(FileKind::System, home.marker.system_uid());
    let founding = home.is_unfinished();
    if founding && files.options().on_open == OnOpen::ReadOnly {
        return Err(Error::MissingDatabase { path: spec.target.path });
    }
    let key = files.options().load_master_key(founding)?;
    if founding {
        open::create(&spec, &files.policy(now)).await?;
        home.finish()?;
    }
    let home = home.share(files.options()).await?;
    let replaced = restore::system::adopt_replaced(files, &spec, now).await?;
    let system = start(files, &spec, now).await?;
    Ok((home, key, system, replaced))
}

pub(crate) async fn open_single(files: &FleetFiles, kind: FileKind, now: Now) -> Result<Database, Error> {
    start(files, &files.single(kind, None), now).await
}

async fn start(files: &FleetFiles, spec: &Spec, now: Now) -> Result<Database, Error> {
    let mut opened = open::open(spec, &files.policy(now)).await?;
    observe_newest(files, spec, &mut opened).await?;
    let vitals = files.vitals(spec, opened.file_uid);
    Ok(Database::start(opened, files.limits(), vitals))
}

/// Keeps new ids greater than those found in a file.
async fn observe_newest(files: &FleetFiles, spec: &Spec, opened: &mut open::Opened) -> Result<(), Error> {
    let ids = &files.options().largest_ids;
    if let Some(writer) = &mut opened.writer
        && let Some(id) = high_water::largest_id(ids, &mut writer.conn, spec.identity.kind).await?
    {
        files.ulids().observe(id);
    }
    Ok(())
}

fn database_stats(router: Option<&RouterId>, profile: Profile, leases: usize, database: &Database) -> DatabaseStats {
    DatabaseStats {
        router: router.cloned(),
        path: database.path().to_owned(),
        on_flash: profile == Profile::Flash,
        leases,
        queue_depth: database.queue_depth(),
        bytes: layout::size_of(database.path()).unwrap_or(0) + database.annexes().map_or(0, Annexes::bytes),
        bytes_max: None,
        written: database.written(),
    }
}

/// A leased router database: it is not closed while a clone of this handle lives.
#[derive(Debug, Clone)]
pub struct RouterDb {
    id: RouterId,
    database: Database,
}

impl RouterDb {
    /// Returns the id of the router.
    pub fn id(&self) -> &RouterId {
        &self.id
    }
}

impl Deref for RouterDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

/// The database of a scope, leased if it is a router's.
#[derive(Debug, Clone)]
pub struct ScopeDb {
    scope: Scope,
    database: Database,
}

impl ScopeDb {
    /// Returns the scope.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl Deref for ScopeDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}
