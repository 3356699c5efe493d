//! New router databases are copies: the first of a schema is built in the run directory, the others get its bytes.
//!
//! A copy differs from a built one in nothing but its marks and the time its migrations were applied.

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use crate::connection::{Target, run};
use crate::driver::during;
use crate::error::Error;
use crate::file_lock::FileLock;
use crate::layout;
use crate::meta::{self, Identity};
use crate::migrate;
use crate::open::{self, Policy, Spec};
use crate::schema::Profile;
use crate::vfs;

const MARK: &str = "UPDATE _nasnet_meta SET router_id = ?1, file_uid = ?2 WHERE one = 1";

/// Returns the bytes of a new router database.
pub(crate) async fn stamp(spec: &Spec, policy: &Policy, file_uid: [u8; 16]) -> Result<Vec<u8>, Error> {
    let fingerprint = migrate::fingerprint_of_program(&spec.sets);
    // Lock files lie in a folder of the run directory.
    let locks = spec.lock.parent().ok_or_else(|| spec.missing())?;
    let run_dir = locks.parent().ok_or_else(|| spec.missing())?;
    let dir = run_dir.join("templates");
    // Processes that create routers take turns; it is the matter of a millisecond in memory.
    let _alone = FileLock::exclusive(&locks.join("template.lock"), policy.lock_timeout).await?;
    layout::create_dir(&dir)?;
    let template = dir.join(format!("router-{fingerprint:08x}.db"));
    if layout::size_of(&template)? == 0 {
        build(spec, policy, &dir, &template).await?;
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
    let mut conn = options.connect().await.map_err(during("open a template"))?;
    let marked = async {
        run(&mut conn, "PRAGMA synchronous = OFF; BEGIN IMMEDIATE".to_owned()).await?;
        let router = spec.identity.router_id.as_ref().map(crate::id::RouterId::as_str);
        sqlx::query(MARK).bind(router).bind(&uid[..]).execute(&mut conn).await.map_err(during("mark a template"))?;
        set_times(&mut conn, spec, wall_ms).await?;
        run(&mut conn, "COMMIT".to_owned()).await?;
        meta::verify(&mut conn, path, identity).await?;
        match migrate::pending(&mut conn, path, &spec.sets).await?.first() {
            None => Ok(()),
            Some((set, found)) => Err(Error::MigrationPending {
                path: path.to_owned(),
                set: set.name.to_owned(),
                found: *found,
                wanted: set.version(),
            }),
        }
    }
    .await;
    let closed = conn.close().await.map_err(during("close a template"));
    marked?;
    closed?;
    if layout::size_of(&layout::wal_of(path))? == 0 { Ok(()) } else { Err(spec.missing()) }
}

async fn set_times(conn: &mut SqliteConnection, spec: &Spec, wall_ms: i64) -> Result<(), Error> {
    for set in spec.sets.iter().filter(|set| !set.migrations.is_empty()) {
        let sql = format!("UPDATE \"{}\" SET applied_wall_ms = ?1", migrate::table_of(set.name));
        let done = sqlx::query(AssertSqlSafe(sql)).bind(wall_ms).execute(&mut *conn).await;
        done.map_err(during("date the migrations of a template"))?;
    }
    Ok(())
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
