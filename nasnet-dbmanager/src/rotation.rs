//! A new master key: every data key is wrapped anew, and no sealed value is touched.
//!
//! The key file and the database cannot change in one step, so the new key waits beside the old one until the database
//! names it. Whatever is interrupted, one of the two files opens the fleet, and opening it tells which and puts it in
//! place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::Connection;

use crate::connection::{Role, check_version};
use crate::database::Database;
use crate::driver::during;
use crate::durable;
use crate::error::Error;
use crate::fleet_files::FleetFiles;
use crate::home::Home;
use crate::id::{Cause, Scope};
use crate::manager::DbManager;
use crate::meta;
use crate::options::Options;
use crate::schema::FileKind;
use crate::seal::{MasterKey, Sealer};
use crate::system::audit::{self, AuditEntry};
use crate::system::data_keys::{self, Wrapped, Wrapper};

const KEYS: Cause = Cause::new("data-keys");

impl DbManager {
    /// Replaces the master key of a fleet that nobody has open, this process included; returns how many data keys were
    /// wrapped anew. Sealed values stay as they are.
    ///
    /// A key file is replaced. A key from the environment or from the caller must be the new one from here on. Backups
    /// of the system database made before need the old key.
    ///
    /// # Errors
    /// With nothing changed: [`Error::MasterKey`] when the present key cannot be read or is not that of the fleet,
    /// [`Error::InUse`], [`Error::NoSpace`], and those of entering the data directory.
    ///
    /// # Cancel safety
    /// Dropping the future, or a crash, leaves a fleet that opens with either the old or the new key, whichever its key
    /// file or the file beside it holds.
    pub async fn rotate_master_key(options: &Options, new: &MasterKey) -> Result<u64, Error> {
        check_version().await?;
        let now = options.clock.now();
        let home = Home::enter_existing(options).await?;
        let fleet = home.marker.fleet_id.to_string();
        let files = FleetFiles::new(home.layout.clone(), home.marker.fleet_id, Vec::new(), options.clone());
        let spec = files.single(FileKind::System, home.marker.system_uid());
        let _alone = spec.lock.exclusive(options.lock_timeout).await?;
        let mut guarded = spec.target.connect(Role::Writer).await?;
        let rotated = async {
            meta::verify(&mut guarded.conn, &spec.target.path, &spec.identity).await?;
            let keys = data_keys::list(&mut guarded.conn).await?;
            let old = match_key(options, options.load_master_key(false)?, &fleet, &keys)?;
            let (old, wrapper) = (wrapper_of(options, &old, &fleet), wrapper_of(options, new, &fleet));
            if let Some(path) = options.master_key_file() {
                let next = next_of(&path);
                new.write(&next)?;
            }
            let mut tx = guarded.conn.begin_with("BEGIN IMMEDIATE").await.map_err(during("begin a rotation"))?;
            let count = data_keys::rewrap(&mut tx, &old, &wrapper).await?;
            let entry = AuditEntry::new("secrets", "master_key.rotated").details(serde_json::json!({ "keys": count }));
            audit::append_in(&mut tx, &entry, &now).await?;
            tx.commit().await.map_err(during("commit a rotation"))?;
            Ok::<_, Error>(count)
        }
        .await;
        let closed = guarded.close().await;
        let count = rotated?;
        closed?;
        if let Some(path) = options.master_key_file() {
            put_in_place(&next_of(&path), &path)?;
        }
        Ok(count)
    }
}

/// Finds the master key that wrapped the keys of a fleet, and returns what unwraps them and the sealer of the fleet.
pub(crate) async fn unlock(
    options: &Options,
    loaded: Arc<MasterKey>,
    fleet: &str,
    system: &Database,
) -> Result<(Wrapper, Sealer), Error> {
    let keys: Vec<Wrapped> = system.read(KEYS, |conn| Box::pin(data_keys::list(conn))).await?;
    let key = match_key(options, loaded, fleet, &keys)?;
    let wrapper = wrapper_of(options, &key, fleet);
    let (wanted, now) = (wrapper.clone(), options.clock.now());
    let found: Option<Sealer> = system
        .read(KEYS, {
            let wanted = wanted.clone();
            move |conn| Box::pin(async move { data_keys::get(conn, &wanted, &Scope::System).await })
        })
        .await?;
    let sealer = match found {
        Some(sealer) => sealer,
        // It has sealed nothing and cannot begin to.
        None if system.is_read_only() => Sealer::new(&key, fleet),
        None => {
            system
                .write(KEYS, move |conn| {
                    Box::pin(async move { data_keys::ensure(conn, &wanted, &Scope::System, &now).await })
                })
                .await?
        }
    };
    Ok((wrapper, sealer))
}

/// Returns the key that wrapped the keys: the one that was loaded, or the one a rotation left beside its file when it was
/// interrupted after the database named it; that is then put in place.
fn match_key(
    options: &Options,
    loaded: Arc<MasterKey>,
    fleet: &str,
    keys: &[Wrapped],
) -> Result<Arc<MasterKey>, Error> {
    let fits = |wrapper: &Wrapper| keys.iter().all(|key| wrapper.wrapped(key));
    let wrapper = wrapper_of(options, &loaded, fleet);
    if fits(&wrapper) {
        return Ok(loaded);
    }
    if let Some(path) = options.master_key_file() {
        let next = next_of(&path);
        if let Ok(waiting) = MasterKey::load(&next)
            && fits(&wrapper_of(options, &waiting, fleet))
        {
            tracing::warn!(path = %path.display(), "finishing a rotation of the master key");
            put_in_place(&next, &path)?;
            return Ok(Arc::new(waiting));
        }
    }
    Err(wrapper.wrong())
}

fn wrapper_of(options: &Options, key: &MasterKey, fleet: &str) -> Wrapper {
    Wrapper::new(key, fleet, options.master_key_origin())
}

/// Names the file a new key waits in.
fn next_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

fn put_in_place(next: &Path, path: &Path) -> Result<(), Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let replaced = durable::rename(next, path).and_then(|()| durable::sync_dir(dir));
    replaced.map_err(|error| Error::io("replace master key", path, error))
}
