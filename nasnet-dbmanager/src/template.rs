//! New router databases are copies: the first of a schema is built in the run directory, the others get its bytes.
//!
//! A copy differs from a built one in nothing but its marks and the time its migrations were applied.

use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use crate::connection::Target;
use crate::db_lock::{DbLock, FileLock};
use crate::driver::during;
use crate::error::Error;
use crate::id::RouterId;
use crate::layout;
use crate::meta::{self, Identity};
use crate::migrate;
use crate::open::{self, Policy, Spec};
use crate::probe::first_rows;
use crate::schema::Profile;
use crate::vfs;

/// Where the templates of a fleet are.
#[derive(Debug, Clone)]
pub(crate) struct Templates {
    pub(crate) dir: PathBuf,
    /// Processes that create routers take turns; it is the matter of a millisecond in memory.
    pub(crate) lock: DbLock,
}

/// A copy of the template that is marked anew for each database, in the run directory.
pub(crate) struct Stamp {
    conn: SqliteConnection,
    copy: PathBuf,
    template: PathBuf,
    /// Whoever else creates routers waits: the copy has one name.
    _alone: FileLock,
}

/// Returns the bytes of a new router database.
pub(crate) async fn stamp(spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<Vec<u8>, Error> {
    let mut stamp = Stamp::ready(spec, policy).await?;
    let bytes = stamp.bytes(spec, policy, file_uid).await;
    stamp.put_away().await;
    bytes
}

impl Stamp {
    /// Gets ready to make databases of the schemas of a spec.
    pub(crate) async fn ready(spec: &Spec, policy: &Policy) -> Result<Self, Error> {
        let Templates { dir, lock } = &spec.templates;
        let alone = lock.exclusive(policy.lock_timeout).await?;
        let template = dir.join(format!("router-{:08x}.db", spec.sets.fingerprint()));
        if layout::size_of(&template)? == 0 {
            layout::create_dir(dir)?;
            build(spec, policy, dir, &template).await?;
        }
        let copy = dir.join("next.db");
        remove(&copy)?;
        std::fs::copy(&template, &copy).map_err(|error| Error::io("copy", &template, error))?;
        vfs::register()?;
        let options = SqliteConnectOptions::new().filename(&copy).vfs(vfs::NAME).disable_statement_logging();
        // Nobody else knows the file, so it needs no index of its log in shared memory.
        let options = options.pragma("locking_mode", "EXCLUSIVE").pragma("synchronous", "OFF");
        let conn = options.connect().await.map_err(during("open a template"))?;
        Ok(Self { conn, copy, template, _alone: alone })
    }

    /// Returns the bytes of the database of a spec, whose schemas are those of the template.
    pub(crate) async fn bytes(&mut self, spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<Vec<u8>, Error> {
        let marked = self.mark(spec, policy, file_uid).await;
        let bytes = marked.and_then(|()| {
            // The locks of SQLite on the copy may go with the descriptor this closes: nobody else has it.
            std::fs::read(&self.copy).map_err(|error| Error::io("read", &self.copy, error))
        });
        if bytes.is_err() {
            // A template that cannot be used is worth nothing; the next database builds another.
            remove(&self.template)?;
        }
        bytes
    }

    /// Gives the copy the marks of a database and checks that it is what the program would have built.
    async fn mark(&mut self, spec: &Spec, policy: &Policy, uid: [u8; 16]) -> Result<(), Error> {
        let what = "mark a template";
        let sql = format!("{}PRAGMA wal_checkpoint(TRUNCATE); {}", marking(spec, uid, policy.wall_ms), meta::QUESTIONS);
        let mut rows = {
            let mut handle = self.conn.lock_handle().await.map_err(during(what))?;
            first_rows(&mut handle, what, &sql)?
        };
        let answers = rows.split_off(rows.len().saturating_sub(meta::QUESTIONS_COUNT));
        let identity = Identity { file_uid: Some(uid), ..spec.identity.clone() };
        let (_, version) = meta::judge_answers(answers, &self.copy, &identity)?;
        let moved = layout::size_of(&layout::wal_of(&self.copy))? == 0;
        if version == spec.sets.fingerprint() && moved { Ok(()) } else { Err(spec.missing()) }
    }

    /// Removes the copy.
    pub(crate) async fn put_away(self) {
        let Self { conn, copy, .. } = self;
        // In memory, and made anew by whoever comes next.
        conn.close().await.ok();
        vfs::forget(&copy);
        remove(&copy).ok();
    }
}

async fn build(spec: &Spec, policy: &Policy, dir: &Path, template: &Path) -> Result<(), Error> {
    let first = dir.join("first.db");
    remove(&first)?;
    let target = Target { path: first.clone(), profile: Profile::Tmpfs, ..spec.target.clone() };
    let built = open::fill(&target, spec, policy, meta::new_file_uid()?).await;
    vfs::forget(&first);
    built?;
    std::fs::rename(&first, template).map_err(|error| Error::io("rename", &first, error))
}

/// Writes the statements that turn a copy into the database of a router; ids and set names are plain words.
fn marking(spec: &Spec, uid: [u8; 16], wall_ms: i64) -> String {
    let router = spec.identity.router_id.as_ref().map_or("NULL".to_owned(), |id| format!("'{}'", RouterId::as_str(id)));
    let uid = u128::from_be_bytes(uid);
    let set = |name| format!("UPDATE \"{}\" SET applied_wall_ms = {wall_ms}; ", migrate::table_of(name));
    let sets = spec.sets.iter().filter(|set| !set.migrations.is_empty());
    let dates: String = sets.map(|of| set(of.name)).collect();
    format!(
        "BEGIN IMMEDIATE; UPDATE _nasnet_meta SET router_id = {router}, file_uid = x'{uid:032x}' WHERE one = 1; \
         {dates}COMMIT; "
    )
}

fn remove(path: &Path) -> Result<(), Error> {
    let wal = layout::wal_of(path);
    let mut shm = path.as_os_str().to_owned();
    shm.push("-shm");
    for path in [path.to_owned(), wal, PathBuf::from(shm)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}
