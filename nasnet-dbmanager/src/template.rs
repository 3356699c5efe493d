//! New router databases are copies: the first of a schema is built in the run directory, the others get its bytes.
//!
//! A copy differs from a built one in nothing but its marks and the time its migrations were applied.

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::connection::Target;
use crate::db_lock::DbLock;
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

/// Returns the bytes of a new router database.
pub(crate) async fn stamp(spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<Vec<u8>, Error> {
    let Templates { dir, lock } = &spec.templates;
    let _alone = lock.exclusive(policy.lock_timeout).await?;
    let template = dir.join(format!("router-{:08x}.db", spec.sets.fingerprint()));
    if layout::size_of(&template)? == 0 {
        layout::create_dir(dir)?;
        build(spec, policy, dir, &template).await?;
    }
    let copy = dir.join("next.db");
    remove(&copy)?;
    std::fs::copy(&template, &copy).map_err(|error| Error::io("copy", &template, error))?;
    let identity = Identity { file_uid: Some(file_uid), ..spec.identity.clone() };
    let marked = mark(&copy, spec, &identity, file_uid, policy.wall_ms).await;
    vfs::forget(&copy);
    let bytes = marked.and_then(|()| std::fs::read(&copy).map_err(|error| Error::io("read", &copy, error)));
    remove(&copy)?;
    if bytes.is_err() {
        // A template that cannot be used is worth nothing; the next database builds another.
        remove(&template)?;
    }
    bytes
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

/// Gives a copy its own marks and checks that it is what the program would have built.
async fn mark(path: &Path, spec: &Spec, identity: &Identity, uid: [u8; 16], wall_ms: i64) -> Result<(), Error> {
    vfs::register()?;
    let options = SqliteConnectOptions::new().filename(path).vfs(vfs::NAME).disable_statement_logging();
    // Nobody else knows the file, so it needs no index of its log in shared memory.
    let options = options.pragma("locking_mode", "EXCLUSIVE").pragma("synchronous", "OFF");
    let mut conn = options.connect().await.map_err(during("open a template"))?;
    let sql = format!("{}{}", marking(spec, uid, wall_ms), meta::QUESTIONS);
    let marked = match conn.lock_handle().await.map_err(during("open a template")) {
        Ok(mut handle) => first_rows(&mut handle, "mark a template", &sql),
        Err(error) => Err(error),
    };
    conn.close().await.map_err(during("close a template"))?;
    let mut rows = marked?;
    let answers = rows.split_off(rows.len().saturating_sub(meta::QUESTIONS_COUNT));
    let (_, version) = meta::judge_answers(answers, path, identity)?;
    let closed = layout::size_of(&layout::wal_of(path))? == 0;
    if version == spec.sets.fingerprint() && closed { Ok(()) } else { Err(spec.missing()) }
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
