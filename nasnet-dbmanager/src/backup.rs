//! Backups: a compressed copy of each database, proved by unpacking it again, under a manifest.
//!
//! A backup is built in a directory beside its place and moved there whole, so what has the name of a backup is
//! complete. Copies are made and checked in the run directory, in memory: the medium of the backup is written once.

pub(crate) mod copy;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ulid::Ulid;

use self::copy::{Inspection, Scratch, blocking};
use crate::annex::carry::{self, HeldAnnexes};
use crate::budget::BACKUP_FILES;
use crate::custody::{self, KnownBackup};
use crate::dir_lock::DirLock;
use crate::durable::{self, Access};
use crate::error::Error;
use crate::id::{Cause, Scope};
use crate::layout::{self, UNFINISHED};
use crate::manager::DbManager;
use crate::manifest::{self, BackupFile, FailedBackup, Manifest, Which};
use crate::open::Spec;
use crate::options::Preset;
use crate::schema::FileKind;
use crate::system::audit::{self, AuditEntry};

const BACKUP: Cause = Cause::new("backup");

impl DbManager {
    /// Makes a backup below `dir` and returns its manifest. Databases in use stay in use.
    ///
    /// Each database is copied as of one moment, compressed, brought to the medium, read back, unpacked, checked and
    /// counted. In a backup of the fleet a router that fails is named in [`Manifest::failed`] and the others go on.
    /// Afterwards only the newest `Options::backups_kept` of the same kind stay; on the medium of the databases
    /// themselves, under [`Preset::RouterFlash`], only the newest.
    ///
    /// # Errors
    /// [`Error::InUse`] while another backup is made there; [`Error::NoSpace`] in the run directory or in `dir`, [`Error::NotWritable`], [`Error::Corrupt`] for a damaged
    /// database; for a single database those of opening it. Nothing that looks like a backup is left then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a directory with another name that the next backup there removes.
    pub async fn backup(&self, which: Which, dir: impl AsRef<Path>) -> Result<Manifest, Error> {
        let dir = std::path::absolute(dir.as_ref()).map_err(|error| Error::io("resolve", dir.as_ref(), error))?;
        layout::create_dir(&dir)?;
        let id = self.next_ulid();
        // One at a time below one directory, whichever process it is.
        let _alone = DirLock::exclusive(&dir, self.inner.files.options().lock_timeout).await?;
        let name = manifest::directory_name(&which, id);
        let workshop = dir.join(format!("{UNFINISHED}{name}"));
        remove_unfinished(&dir)?;
        layout::create_dir(&workshop)?;
        let built = self.fill_backup(&which, id, &workshop).await;
        let made = match built {
            Ok(manifest) => put_in_place(&dir, &workshop, &name).map(|dir| Manifest { dir, ..manifest }),
            Err(error) => Err(error),
        };
        let manifest = match made {
            Ok(manifest) => manifest,
            Err(error) => {
                layout::remove_tree(&workshop)?;
                return Err(error);
            }
        };
        let manifest_bytes = layout::size_of(&manifest.dir.join(manifest::FILE))?;
        self.inner.files.charge_file(BACKUP_FILES, &manifest.dir, manifest.bytes() + manifest_bytes);
        self.note_backup(&manifest).await?;
        self.prune_backups(&which, &dir).await?;
        Ok(manifest)
    }

    /// Checks that a backup is what its manifest says: digests, sizes, integrity, marks, rows and schema versions.
    ///
    /// # Errors
    /// [`Error::BackupOfAnotherFleet`], [`Error::BadBackup`] naming what differs, [`Error::Corrupt`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    pub async fn verify_backup(&self, manifest: &Manifest) -> Result<(), Error> {
        manifest.check_fleet(self.fleet_id())?;
        for file in &manifest.files {
            self.verify_file(manifest, file).await?;
        }
        Ok(())
    }

    /// Returns the backups this fleet knows of, the newest first. Their medium may be away.
    ///
    /// # Errors
    /// Those of a read of the system database.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn backups(&self) -> Result<Vec<KnownBackup>, Error> {
        self.system().read(BACKUP, |conn| Box::pin(custody::backups(conn))).await
    }

    async fn fill_backup(&self, which: &Which, id: Ulid, workshop: &Path) -> Result<Manifest, Error> {
        let scopes: Vec<Scope> = match which {
            Which::System => vec![Scope::System],
            Which::Router(id) => vec![Scope::Router(id.clone())],
            Which::Fleet => {
                let routers = self.routers().await?;
                [Scope::System].into_iter().chain(routers.into_iter().map(|record| Scope::Router(record.id))).collect()
            }
        };
        let (mut files, mut failed) = (Vec::new(), Vec::new());
        for scope in scopes {
            match self.back_up_one(&scope, workshop).await {
                Ok(file) => files.push(file),
                // A medium that is full is not the fault of one router.
                Err(error)
                    if *which == Which::Fleet && scope != Scope::System && !matches!(error, Error::NoSpace { .. }) =>
                {
                    tracing::warn!(%scope, %error, "backing up a router failed");
                    failed.push(FailedBackup { scope, detail: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        let manifest = Manifest {
            format: manifest::FORMAT,
            id,
            fleet_id: self.fleet_id(),
            which: which.clone(),
            created_ms: self.now().wall_ms,
            files,
            failed,
            dir: workshop.to_owned(),
        };
        write_manifest(workshop, &manifest)?;
        Ok(manifest)
    }

    async fn back_up_one(&self, scope: &Scope, workshop: &Path) -> Result<BackupFile, Error> {
        // Leased for as long as it is read.
        let _database = self.scope(scope).await?;
        let spec = self.spec_of(scope);
        let scratch = Scratch::new(self.run_dir());
        let mut annexes = HeldAnnexes::of(&spec.target.path)?;
        copy::vacuum_into(&spec.target, scratch.path()).await?;
        annexes.add_new()?;
        let found = copy::inspect(scratch.path(), &spec.identity).await?;
        let (from, to) = (scratch.path().to_owned(), workshop.join(BackupFile::file_name(scope)));
        let packed = blocking(move || copy::pack(&from, &to)).await?;
        let (of, to) = (scope.clone(), workshop.to_owned());
        let annexes = blocking(move || annexes.copy_to(&to, &of)).await?;
        let file = BackupFile {
            scope: scope.clone(),
            file_uid: hex(found.file_uid),
            sha256: packed.sha256,
            bytes: packed.bytes,
            database_sha256: packed.database_sha256,
            database_bytes: packed.database_bytes,
            rows: found.rows,
            schemas: found.schemas,
            annexes,
        };
        drop(scratch);
        self.verify_at(&workshop.join(BackupFile::file_name(scope)), &file).await?;
        Ok(file)
    }

    pub(crate) async fn verify_file(&self, manifest: &Manifest, file: &BackupFile) -> Result<(), Error> {
        self.verify_at(&manifest.path_of(&file.scope), file).await
    }

    async fn verify_at(&self, path: &Path, file: &BackupFile) -> Result<(), Error> {
        let scratch = Scratch::new(self.run_dir());
        unpack_checked(path, scratch.path(), file, &self.spec_of(&file.scope)).await?;
        verify_annexes(path.parent().unwrap_or(path), file).await
    }

    /// Returns what the database of a scope must be, whatever its uid.
    pub(crate) fn spec_of(&self, scope: &Scope) -> Spec {
        match scope {
            Scope::System => self.inner.files.single(FileKind::System, None),
            Scope::Router(id) => self.inner.files.router(id, None),
        }
    }

    async fn note_backup(&self, manifest: &Manifest) -> Result<(), Error> {
        if self.system().is_read_only() {
            return Ok(());
        }
        let known = KnownBackup {
            id: manifest.id,
            path: manifest.dir.clone(),
            which: manifest.which.to_string(),
            created_ms: manifest.created_ms,
            bytes: manifest.bytes(),
        };
        let (routers, now) = (manifest.routers(), self.now());
        let entry = AuditEntry::new("storage", "backup.made")
            .target(known.which.clone())
            .details(serde_json::json!({ "id": known.id, "bytes": known.bytes, "failed": manifest.failed.len() }));
        self.system()
            .write(BACKUP, move |conn| {
                Box::pin(async move {
                    custody::note_backup(conn, &known, &routers).await?;
                    audit::append_in(conn, &entry, &now).await.map(|_| ())
                })
            })
            .await
    }

    async fn prune_backups(&self, which: &Which, dir: &Path) -> Result<(), Error> {
        let options = self.inner.files.options();
        let own_medium = device_of(dir)? == device_of(self.data_dir())?;
        let kept = if own_medium && options.preset == Preset::RouterFlash { 1 } else { options.backups_kept };
        let names = names_in(dir)?;
        for name in manifest::beyond(which, names.iter().map(String::as_str), kept) {
            let path = dir.join(name);
            // Another fleet may keep its backups in the same place.
            let own = Manifest::read(&path).is_ok_and(|manifest| manifest.fleet_id == self.fleet_id());
            if !own {
                continue;
            }
            // Under its own name it is a backup or is not there: half of one goes by another name, and with the next.
            let going = dir.join(format!("{UNFINISHED}{name}"));
            layout::rename_new(&path, &going)?;
            layout::remove_tree(&going)?;
            if !self.system().is_read_only() {
                self.system()
                    .write(BACKUP, move |conn| Box::pin(async move { custody::drop_backup(conn, &path).await }))
                    .await?;
            }
        }
        Ok(())
    }
}

/// Unpacks one database of a backup to a new file, after comparing all that its manifest says.
pub(crate) async fn unpack_checked(path: &Path, to: &Path, file: &BackupFile, spec: &Spec) -> Result<(), Error> {
    let bad = |detail: String| Error::BadBackup { path: path.to_owned(), detail };
    let (from, out, bytes_max) = (path.to_owned(), to.to_owned(), file.database_bytes);
    let (sha256, bytes) = {
        let from = from.clone();
        blocking(move || if from.exists() { copy::digest(&from) } else { Ok((String::new(), 0)) }).await?
    };
    if sha256.is_empty() {
        return Err(bad("it is missing".to_owned()));
    }
    if (&sha256, bytes) != (&file.sha256, file.bytes) {
        return Err(bad(format!("it has {bytes} bytes and digest {sha256}, its manifest says otherwise")));
    }
    let packed = blocking(move || copy::unpack(&from, &out, bytes_max)).await?;
    if (&packed.database_sha256, packed.database_bytes) != (&file.database_sha256, file.database_bytes) {
        return Err(bad("the database in it is not the one its manifest says".to_owned()));
    }
    let found = copy::inspect(to, &spec.identity).await?;
    compare(&found, file).map_err(bad)?;
    for set in spec.sets.iter() {
        let found = file.schemas.get(set.name).copied().unwrap_or(0);
        if found > set.version() {
            let (path, set, known) = (path.to_owned(), set.name.to_owned(), set.version());
            return Err(Error::SchemaTooNew { path, set, found, known });
        }
    }
    Ok(())
}

/// Compares the annexes in a directory with what the manifest says.
pub(crate) async fn verify_annexes(dir: &Path, file: &BackupFile) -> Result<(), Error> {
    let (dir, scope, annexes) = (dir.to_owned(), file.scope.clone(), file.annexes.clone());
    blocking(move || carry::verify(&dir, &scope, &annexes)).await
}

/// Compares what is in a database with what the manifest says is in it.
fn compare(found: &Inspection, file: &BackupFile) -> Result<(), String> {
    if hex(found.file_uid) != file.file_uid {
        return Err("its uid is not the one its manifest says".to_owned());
    }
    if found.schemas != file.schemas {
        return Err(format!("its schemas are {:?}, its manifest says {:?}", found.schemas, file.schemas));
    }
    for table in found.rows.keys().chain(file.rows.keys()) {
        let (has, says) = (found.rows.get(table), file.rows.get(table));
        if has != says {
            return Err(format!("table {table} has {has:?} rows, its manifest says {says:?}"));
        }
    }
    Ok(())
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = dir.join(manifest::FILE);
    let text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Error::Encode { what: "manifest", detail: error.to_string() })?;
    durable::write_file(&path, &text, Access::Owner).map_err(|error| Error::io("write", &path, error))
}

fn put_in_place(dir: &Path, workshop: &Path, name: &str) -> Result<PathBuf, Error> {
    layout::sync(workshop)?;
    let place = dir.join(name);
    if !layout::rename_new(workshop, &place)? {
        return Err(Error::BadBackup { path: place, detail: "something else has its name".to_owned() });
    }
    layout::sync(dir)?;
    Ok(place)
}

/// Removes what interrupted backups left. The caller holds the directory alone.
fn remove_unfinished(dir: &Path) -> Result<(), Error> {
    for name in names_in(dir)?.iter().filter(|name| name.starts_with(UNFINISHED)) {
        layout::remove_tree(&dir.join(name))?;
    }
    Ok(())
}

/// Lists the names in a directory; none when it is missing.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<std::io::Result<_>>().map_err(|error| Error::io("list", dir, error))
}

fn device_of(path: &Path) -> Result<u64, Error> {
    Ok(fs::metadata(path).map_err(|error| Error::io("examine", path, error))?.dev())
}

fn hex(uid: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(uid))
}
