//! What a caller decides when opening a fleet, and the presets that decide the rest.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::FlashBudget;
use crate::clock::{Clock, SystemClock};
use crate::collect::FleetMetric;
use crate::error::{Error, KeyFault};
use crate::high_water::{HighWater, LargestId};
use crate::replay::Replay;
use crate::schema::SchemaSet;
use crate::seal::MasterKey;

/// The class of device the databases live on; it decides memory and the size of the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preset {
    /// A router or single-board computer: small caches, one reader per database, little flash.
    #[default]
    RouterFlash,
    /// A laptop or server.
    Server,
}

impl Preset {
    pub(crate) const fn tuning(self) -> Tuning {
        match self {
            Self::RouterFlash => Tuning {
                writer_cache_kib: 256,
                reader_cache_kib: 128,
                readers: 1,
                reader_keepers: 16,
                wal_autocheckpoint_pages: 32,
                journal_bytes_max: 128 * 1024,
                statements_cached: 32,
            },
            Self::Server => Tuning {
                writer_cache_kib: 2048,
                reader_cache_kib: 1024,
                readers: 4,
                reader_keepers: 256,
                wal_autocheckpoint_pages: 64,
                journal_bytes_max: 256 * 1024,
                statements_cached: 100,
            },
        }
    }

    const fn open_max(self) -> usize {
        match self {
            // Each takes about half a megabyte, and one that takes turns with others costs flash whenever it is closed.
            Self::RouterFlash => 16,
            Self::Server => 256,
        }
    }
}

/// What a preset says about room.
impl Preset {
    const fn database_bytes_max(self) -> u64 {
        match self {
            Self::RouterFlash => 64 * 1024 * 1024,
            Self::Server => 8 * 1024 * 1024 * 1024,
        }
    }

    const fn flash_bytes_max(self) -> u64 {
        match self {
            Self::RouterFlash => 72 * 1024 * 1024,
            Self::Server => u64::MAX,
        }
    }

    const fn reserve_bytes(self) -> u64 {
        match self {
            Self::RouterFlash => 512 * 1024,
            Self::Server => 4 * 1024 * 1024,
        }
    }
}

/// The numbers a preset stands for, per database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    pub(crate) writer_cache_kib: u32,
    pub(crate) reader_cache_kib: u32,
    pub(crate) readers: usize,
    /// How many databases of a process keep readers between two reads.
    pub(crate) reader_keepers: usize,
    pub(crate) wal_autocheckpoint_pages: u32,
    pub(crate) journal_bytes_max: u32,
    pub(crate) statements_cached: usize,
}

/// What opening does with a database whose schema is older than the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnOpen {
    /// Runs the missing migrations.
    #[default]
    Migrate,
    /// Fails with [`Error::MigrationPending`].
    Refuse,
    /// Opens it for reading only. A newer schema is then readable too.
    ReadOnly,
}

/// What asking for a router does when its database turns out to be damaged or missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDamage {
    /// Fails, and leaves everything as it is for a person to look at.
    #[default]
    Refuse,
    /// Sets it aside and replaces it by the best there is: a backup, what can be read of it, an empty database.
    Recover,
}

/// Where the master key that seals secrets comes from.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum MasterKeySource {
    /// The file `master.key` in the data directory, created with the fleet.
    #[default]
    DataDir,
    /// Another file, created with the fleet when missing.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A key the caller already holds.
    Key(Arc<MasterKey>),
}

/// What a caller decides when opening a fleet.
///
/// [`Options::new`] gives defaults for everything but the data directory.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of the databases that last; created when missing.
    pub data_dir: PathBuf,
    /// The directory of the databases that die with the boot. `None` takes the one the data directory names, or for
    /// a new data directory a folder in `$XDG_RUNTIME_DIR`, `/dev/shm` or the temporary directory, whichever
    /// comes first.
    pub run_dir: Option<PathBuf>,
    /// The class of device.
    pub preset: Preset,
    /// The number of router databases open at once, at least 1.
    pub max_open: usize,
    /// What to do with an older schema.
    pub on_open: OnOpen,
    /// The schemas of the crates that store something in these files.
    pub schemas: Vec<SchemaSet>,
    /// The source of time.
    pub clock: Arc<dyn Clock>,
    /// The source of the master key.
    pub master_key: MasterKeySource,
    /// How long creating or migrating a database waits for other processes to let go of it.
    pub lock_timeout: Duration,
    /// How long [`DbManager::router`](crate::DbManager::router) waits for a lease when all open databases are in use.
    pub lease_timeout: Duration,
    /// How long one read may take, waiting for a reader included.
    pub read_deadline: Duration,
    /// How long one operation may hold the writer.
    pub write_deadline: Duration,
    /// What to do about a damaged router database.
    pub on_damage: OnDamage,
    /// How many backups of one kind are kept in a directory, at least 1.
    pub backups_kept: usize,
    /// How to find numbers in use that a restore must not give out again.
    pub high_waters: Vec<HighWater>,
    /// How to find the newest id in use in a file, for ids that never go back.
    pub largest_ids: Vec<LargestId>,
    /// What [`Housekeeper`](crate::Housekeeper) collects of each open router database.
    pub fleet_metrics: Vec<FleetMetric>,
    /// Who brings back what happened after the backup that takes a router's place.
    pub replays: Vec<Arc<dyn Replay>>,
    /// How many bytes a day may reach flash.
    pub budget: FlashBudget,
    /// Bytes one database file may have. Operations that are not [critical](crate::Cause::critical) get 85 % of it.
    pub database_bytes_max: u64,
    /// Bytes that all databases on flash may have together: each router gets an equal share of them, at most
    /// `database_bytes_max` and at least 2 MiB. [`Stats::fits`](crate::Stats::fits) tells whether they do fit.
    pub flash_bytes_max: u64,
    /// Bytes of the file `.reserve` in the data directory, which is removed when the medium is full and written again
    /// afterwards; it exists only where space is scarce. 0 keeps none.
    pub reserve_bytes: u64,
    /// How many operations wait for one writer before the next is refused with [`Error::Overloaded`].
    pub write_queue: usize,
}

impl Options {
    /// Makes options with the defaults of [`Preset::RouterFlash`].
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let preset = Preset::default();
        Self {
            data_dir: data_dir.into(),
            run_dir: None,
            preset,
            max_open: preset.open_max(),
            on_open: OnOpen::default(),
            schemas: Vec::new(),
            clock: Arc::new(SystemClock::new()),
            master_key: MasterKeySource::default(),
            lock_timeout: Duration::from_secs(5),
            lease_timeout: Duration::from_secs(5),
            read_deadline: Duration::from_secs(2),
            write_deadline: Duration::from_secs(10),
            on_damage: OnDamage::default(),
            backups_kept: 2,
            high_waters: Vec::new(),
            largest_ids: Vec::new(),
            fleet_metrics: Vec::new(),
            replays: Vec::new(),
            budget: FlashBudget::of(preset),
            database_bytes_max: preset.database_bytes_max(),
            flash_bytes_max: preset.flash_bytes_max(),
            reserve_bytes: preset.reserve_bytes(),
            write_queue: 512,
        }
    }

    /// Switches to a preset, its number of open databases included.
    #[must_use]
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self.max_open = preset.open_max();
        self.budget = FlashBudget::of(preset);
        self.database_bytes_max = preset.database_bytes_max();
        self.flash_bytes_max = preset.flash_bytes_max();
        self.reserve_bytes = preset.reserve_bytes();
        self
    }

    /// Sets the run directory.
    #[must_use]
    pub fn run_dir(mut self, run_dir: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(run_dir.into());
        self
    }

    /// Adds schema sets to those given before.
    #[must_use]
    pub fn schemas(mut self, sets: impl IntoIterator<Item = SchemaSet>) -> Self {
        self.schemas.extend(sets);
        self
    }

    /// Returns the file of the master key, if it is in one.
    pub(crate) fn master_key_file(&self) -> Option<PathBuf> {
        match &self.master_key {
            MasterKeySource::DataDir => Some(self.data_dir.join("master.key")),
            MasterKeySource::File(path) => Some(path.clone()),
            MasterKeySource::Env(_) | MasterKeySource::Key(_) => None,
        }
    }

    /// Says where the master key comes from.
    pub(crate) fn master_key_origin(&self) -> String {
        match (&self.master_key, self.master_key_file()) {
            (_, Some(path)) => path.display().to_string(),
            (MasterKeySource::Env(variable), None) => format!("environment variable {variable}"),
            _ => "the caller".to_owned(),
        }
    }

    /// Gets the master key. A key file is created only with a new fleet: a fresh key in the place of a lost one would
    /// make every stored secret unreadable without a word.
    pub(crate) fn load_master_key(&self, founding: bool) -> Result<Arc<MasterKey>, Error> {
        let path = match (&self.master_key, self.master_key_file()) {
            (_, Some(path)) => path,
            (MasterKeySource::Env(variable), None) => return MasterKey::from_env(variable).map(Arc::new),
            (MasterKeySource::Key(key), None) => return Ok(Arc::clone(key)),
            (MasterKeySource::DataDir | MasterKeySource::File(_), None) => self.data_dir.join("master.key"),
        };
        let key = if founding { MasterKey::load_or_create(&path) } else { MasterKey::load(&path) };
        key.map(Arc::new).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Error::MasterKey { origin: path.display().to_string(), fault: KeyFault::Missing }
            }
            other => other,
        })
    }
}
