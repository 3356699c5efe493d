//! What open databases cost a process, as the kernel tells it.

use std::error::Error;
use std::path::Path;
use std::{fs, io};

use nasnet_dbmanager::{Cause, DbManager, FileKind, Migration, NewRouter, Options, RouterDb, RouterId, SchemaSet};
use serde::{Deserialize, Serialize};

use crate::place::Place;

const CAUSE: Cause = Cause::new("footprint");

/// Memory, descriptors and threads of this process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub rss_kib: u64,
    /// Open descriptors.
    pub fds: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0)
        };
        // The listing itself needs a descriptor.
        let fds = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
        Ok(Self { rss_kib: field("VmRSS:"), fds: u64::try_from(fds).unwrap_or(u64::MAX), threads: field("Threads:") })
    }
}

/// What some open databases cost together, beyond an opened fleet without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// How many router databases were open.
    pub databases: u32,
    /// Their resident memory.
    pub rss_kib: u64,
    /// Their descriptors.
    pub fds: u64,
    /// Their threads.
    pub threads: u64,
    /// The resident memory of the whole process.
    pub process_rss_kib: u64,
}

impl Footprint {
    /// Takes the difference of two moments.
    #[must_use]
    pub fn between(databases: u32, before: Usage, after: Usage) -> Self {
        Self {
            databases,
            rss_kib: after.rss_kib.saturating_sub(before.rss_kib),
            fds: after.fds.saturating_sub(before.fds),
            threads: after.threads.saturating_sub(before.threads),
            process_rss_kib: after.rss_kib,
        }
    }
}

fn schema() -> SchemaSet {
    let up = "CREATE TABLE kv (k INTEGER PRIMARY KEY, v BLOB NOT NULL) STRICT";
    SchemaSet::new("footprint", FileKind::Router, vec![Migration { version: 1, name: "kv", up, down: "DROP TABLE kv" }])
}

/// Opens databases, writes to each and reads from each once, and takes the difference to an opened fleet without any.
///
/// # Errors
/// Those of the databases and of the kernel.
pub async fn measure(databases: u32, disk: Option<&Path>) -> Result<Footprint, Box<dyn Error + Send + Sync>> {
    let place = Place::new(disk)?;
    let options = || {
        let mut options = Options::new(place.disk.path().join("data")).schemas([schema()]);
        options.run_dir = Some(place.tmpfs.path().to_path_buf());
        options.max_open = usize::try_from(databases).unwrap_or(usize::MAX).max(1);
        options
    };
    let ids = (0..databases).map(|number| RouterId::parse(&format!("r{number}"))).collect::<Result<Vec<_>, _>>()?;
    let manager = DbManager::open(options()).await?;
    let created = manager.create_routers(ids.iter().cloned().map(NewRouter::new)).await;
    if let Some((id, error)) = created.failures().next() {
        return Err(format!("{id}: {error}").into());
    }
    manager.shutdown().await?;

    let manager = DbManager::open(options()).await?;
    // What the first of anything costs is not the cost of one more.
    manager.routers().await?;
    let before = Usage::of_this_process()?;
    let mut open = Vec::new();
    for id in &ids {
        let database = manager.router(id).await?;
        touch(&database).await?;
        open.push(database);
    }
    let after = Usage::of_this_process()?;
    drop(open);
    manager.shutdown().await?;
    Ok(Footprint::between(databases, before, after))
}

async fn touch(database: &RouterDb) -> Result<(), nasnet_dbmanager::Error> {
    let written: Result<(), nasnet_dbmanager::Error> = database
        .write(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("INSERT INTO kv (k, v) VALUES (1, zeroblob(400))").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    written?;
    database
        .read(CAUSE, |conn| {
            Box::pin(async move {
                sqlx::query("SELECT v FROM kv WHERE k = 1").fetch_one(conn).await?;
                Ok(())
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_more_is_counted() {
        let before = Usage::of_this_process().expect("usage");
        let file = fs::File::open("/proc/self/status").expect("open");
        let after = Usage::of_this_process().expect("usage");
        drop(file);
        assert!(before.rss_kib > 0 && before.threads > 0);
        // Other tests of this process open files too, so only a lower bound holds.
        assert!(after.fds > 0);
        let twice =
            Footprint::between(2, Usage { rss_kib: 10, fds: 3, threads: 1 }, Usage { rss_kib: 30, fds: 9, threads: 5 });
        assert_eq!((twice.rss_kib, twice.fds, twice.threads, twice.process_rss_kib), (20, 6, 4, 30));
    }
}
