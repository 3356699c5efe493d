//! Step 10: the tiers in trouble, in a small fleet of its own: the stick with the archive is missing and comes back, tmpfs is
//! wiped under the running store, and has too little room.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    ColdOptions, EventOptions, EventStore, Expected, FlushReason, Level, NewEvent, Position, Query, StreamName,
    prepare_cold_dir, types,
};
use serde_json::json;

use super::checks::Checks;
use super::{Demo, Failure};

const ROUTER: &str = "field-office";
/// As little room as a small router's tmpfs has.
const HOT_BYTES_MAX: u64 = 512 << 10;
/// Rounds of polls that come in faster than they find room.
const POLLS_MAX: u32 = 1_000;

/// A fleet that may be damaged.
struct Trial {
    manager: DbManager,
    events: EventStore,
    scope: Scope,
    stick: PathBuf,
}

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let dir = demo.manager.data_dir().join("trial");
    remove(&dir)?;
    let run = demo.manager.run_dir().join("trial");
    remove(&run)?;
    let trial = Trial::open(&dir, &run).await?;
    trial.missing_stick(checks).await?;
    trial.wiped_tmpfs(checks).await?;
    trial.pressure(checks).await?;
    trial.close().await?;
    remove(&dir)?;
    remove(&run)?;
    demo.operation("a stick missing, a tmpfs wiped, a tmpfs full", "told, and nothing that was on flash is lost");
    Ok(())
}

/// What an earlier run left.
fn remove(dir: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Trial {
    async fn open(dir: &Path, run: &Path) -> Result<Self, Failure> {
        let options = nasnet_events::register(Options::new(dir.join("data")).run_dir(run));
        let manager = DbManager::open(options).await?;
        let router: RouterId = ROUTER.parse()?;
        manager.create_router(NewRouter::new(router.clone())).await?;
        // The mount point is there, the stick is not: without its marker a folder is no archive.
        let stick = dir.join("stick");
        std::fs::create_dir_all(&stick)?;
        let mut options = EventOptions::default().cold(ColdOptions::new(&stick).allow_same_device());
        options.hot_bytes_max = Some(HOT_BYTES_MAX);
        let events = EventStore::open(&manager, options).await?;
        Ok(Self { manager, events, scope: Scope::Router(router), stick })
    }

    /// Appends log lines that reach flash with a flush.
    async fn append(&self, lines: u64) -> Result<(), Failure> {
        let stream = StreamName::parse("log/warnings")?;
        for line in 0..lines {
            let body = json!({ "topics": "interface,warning", "message": format!("ether{line} link down") });
            let event = NewEvent::new(self.manager.next_ulid(), types::LOG_APPENDED, &body)?.level(Level::Warning);
            self.events.append(&self.scope, &stream, Expected::Any, vec![event]).await?;
        }
        Ok(())
    }

    async fn count(&self) -> Result<usize, Failure> {
        let all: Vec<_> = self.events.read(Query::scope(self.scope.clone())).try_collect().await?;
        Ok(all.len())
    }

    async fn missing_stick(&self, checks: &mut Checks) -> Result<(), Failure> {
        self.append(100).await?;
        self.events.flush(FlushReason::Requested).await?;
        let refused = self.events.archive().await;
        let seen = refused.as_ref().err().map_or_else(|| "archived".to_owned(), ToString::to_string);
        checks.that("a missing stick is told, not written to", refused.is_err(), seen);
        checks.equal("its mount point stays empty", &std::fs::read_dir(&self.stick)?.count(), &0);

        prepare_cold_dir(&self.manager, &self.stick)?;
        let archived = self.events.archive().await?;
        checks.equal("the returning stick gets what it missed", &archived.events, &100);
        checks.equal("and every event is read once", &self.count().await?, &100);
        Ok(())
    }

    async fn wiped_tmpfs(&self, checks: &mut Checks) -> Result<(), Failure> {
        self.append(10).await?;
        for suffix in ["", "-wal", "-shm"] {
            remove_file(&self.manager.run_dir().join(format!("hot.db{suffix}")))?;
        }
        self.append(5).await?;
        let losses = self.events.losses();
        checks.equal("a tmpfs wiped under the store is one recorded loss", &losses.len(), &1);
        for loss in losses {
            checks.that("which says where it begins", loss.after_seq >= 100, format!("{loss:?}"));
        }
        checks.equal("what was flushed or came later is there", &self.count().await?, &105);
        Ok(())
    }

    /// Readings come in faster than tmpfs has room for: they go first, and what is to reach flash stays.
    async fn pressure(&self, checks: &mut Checks) -> Result<(), Failure> {
        let mut lines = self.count().await?;
        let stream = StreamName::parse("interface/ether1")?;
        for _ in 0..POLLS_MAX {
            let mut readings = Vec::new();
            for _ in 0..20 {
                // Compression makes random digits half as long, but no shorter.
                let counters: Vec<String> = (0..40).map(|_| self.manager.next_ulid().random().to_string()).collect();
                readings.push(NewEvent::new(self.manager.next_ulid(), types::METRIC_UPDATED, &counters)?);
            }
            self.events.append(&self.scope, &stream, Expected::Any, readings).await?;
            self.append(1).await?;
            lines += 1;
            if self.events.status().await?.shed > 0 {
                break;
            }
        }
        let status = self.events.status().await?;
        checks.that("a full tmpfs sheds readings", status.shed > 0, format!("{} shed", status.shed));
        checks.equal("and nothing that is to reach flash", &status.lost, &0);
        let (used, max) = status.hot_bytes;
        checks.that("it stays within its bound", used <= max + (64 << 10), format!("{used} of {max} bytes"));
        let told: u64 = self.events.truncated(Position::START).await?.iter().map(|removed| removed.events).sum();
        checks.equal("whoever reads is told how many are gone", &told, &status.shed);
        let query = Query::scope(self.scope.clone()).kind(types::LOG_APPENDED);
        let read: Vec<_> = self.events.read(query).try_collect().await?;
        checks.equal("every log line is there", &read.len(), &lines);
        Ok(())
    }

    async fn close(self) -> Result<(), Failure> {
        self.events.shutdown().await?;
        self.manager.shutdown().await?;
        Ok(())
    }
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
