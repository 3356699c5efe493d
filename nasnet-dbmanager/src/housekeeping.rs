//! What is due from time to time: one owned task that somebody starts and stops.
//!
//! Each round looks at the open databases alone. What it writes to flash waits for an idle database, since a
//! checkpoint or a vacuum in the middle of a burst writes pages that are written again right after.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use ulid::Ulid;

use crate::backup::names_in;
use crate::clock::{ClockQuality, Now};
use crate::collect::Collector;
use crate::custody::{self, AsideReason, RetiredRouter, SetAside};
use crate::database::Database;
use crate::error::Error;
use crate::id::{Cause, RouterId};
use crate::layout::{self, UNFINISHED};
use crate::lease::HoldWhen;
use crate::manager::DbManager;
use crate::manifest::{self, Which};
use crate::system::audit::AuditLimits;
use crate::system::routers::Lifecycle;

const HOUSEKEEPING: Cause = Cause::new("housekeeping");
const VACUUM: Cause = Cause::new("vacuum");

/// The most pages one round gives back per database: a bound on how long its writer is held.
const VACUUM_PAGES: u32 = 256;

/// The time between two looks at the whole audit log.
const AUDIT_EVERY_MS: u64 = 3_600_000;

/// When a backup is made by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSchedule {
    /// Where.
    pub dir: PathBuf,
    /// How old the newest backup of the fleet may be.
    pub every: Duration,
}

/// What is due, and when.
#[derive(Debug, Clone)]
pub struct HousekeepingOptions {
    /// The time between two rounds.
    pub interval: Duration,
    /// How long the directory of a retired router is kept before it is purged.
    pub retired_kept: Duration,
    /// Where the database of a purged router goes as a compressed file; `None` deletes it. While that place is away the
    /// router is kept.
    pub retired_archive: Option<PathBuf>,
    /// The time between two collections of the metrics of the fleet.
    pub metrics_every: Duration,
    /// How long what was set aside is kept.
    pub aside_kept: Duration,
    /// The bytes of what was set aside; beyond them the oldest goes first.
    pub aside_bytes_max: u64,
    /// What is kept of the audit log.
    pub audit: AuditLimits,
    /// A write-ahead log longer than this is emptied even when its database is in use.
    pub wal_bytes_max: u64,
    /// An idle database with this many unused pages gives them back.
    pub vacuum_from_pages: u32,
    /// Backups, if any.
    pub backup: Option<BackupSchedule>,
}

impl Default for HousekeepingOptions {
    fn default() -> Self {
        let month = Duration::from_secs(30 * 86_400);
        Self {
            interval: Duration::from_secs(60),
            retired_kept: month,
            retired_archive: None,
            metrics_every: Duration::from_secs(60),
            aside_kept: month,
            aside_bytes_max: 16 << 20,
            audit: AuditLimits::default(),
            wal_bytes_max: 512 << 10,
            vacuum_from_pages: 64,
            backup: None,
        }
    }
}

/// What one round did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct HousekeepingReport {
    /// The databases whose log was moved into the file.
    pub checkpointed: Vec<PathBuf>,
    /// The databases whose log could not be emptied because somebody reads it.
    pub busy: Vec<PathBuf>,
    /// The files that were removed or replaced while open; what was written to them since is lost. Routers among them
    /// are closed.
    pub displaced: Vec<PathBuf>,
    /// The pages given back to the file system.
    pub pages_freed: u64,
    /// The retired routers that were purged.
    pub purged: Vec<RouterId>,
    /// The files that hold the databases of routers among them.
    pub archived: Vec<PathBuf>,
    /// The open databases whose metrics were looked up, because they had changed.
    pub collected: usize,
    /// The directories set aside that were removed.
    pub expired: Vec<String>,
    /// The entries removed from the audit log.
    pub audit_removed: u64,
    /// The backup that was made.
    pub backup: Option<Ulid>,
    /// Directories that belong to nobody; found in the first round and left alone.
    pub orphans: Vec<PathBuf>,
    /// What went wrong, and with what; the rest was done all the same.
    pub failed: Vec<(&'static str, Error)>,
}

/// Does the rounds.
#[derive(Debug)]
pub struct Housekeeper {
    manager: DbManager,
    options: HousekeepingOptions,
    /// What each database had written to its log when it was last looked at, and whether that is in the file.
    seen: HashMap<PathBuf, (u64, bool)>,
    first: bool,
    collector: Collector,
    /// When the audit log was last looked at, by the clock of this boot.
    audited_ms: Option<u64>,
}

/// The running task. Dropping this value asks it to stop without waiting for it.
#[derive(Debug)]
pub struct Housekeeping {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Housekeeping {
    /// Stops after the round under way, and waits for its end.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task on its way to its end.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        self.task.await.ok();
    }
}

impl Housekeeper {
    /// Prepares housekeeping for a fleet.
    pub fn new(manager: &DbManager, options: HousekeepingOptions) -> Self {
        let (manager, collector) = (manager.clone(), Collector::default());
        Self { manager, options, seen: HashMap::new(), first: true, collector, audited_ms: None }
    }

    /// Starts the rounds in a task of their own. It also ends with the manager.
    pub fn start(mut self) -> Housekeeping {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                let report = self.round().await;
                for (what, error) in &report.failed {
                    tracing::warn!(what, %error, "housekeeping failed");
                }
                if report.failed.iter().any(|(_, error)| matches!(error, Error::Closed { .. })) {
                    return;
                }
                let stop = tokio::time::timeout(self.options.interval, stopped.wait_for(|stop| *stop));
                if stop.await.is_ok() {
                    return;
                }
            }
        });
        Housekeeping { stop, task }
    }

    /// Does everything that is due now.
    ///
    /// # Cancel safety
    /// Each step is complete in itself; dropping the future leaves out the rest.
    pub async fn round(&mut self) -> HousekeepingReport {
        let mut report = HousekeepingReport::default();
        let now = self.manager.now();
        for (router, database) in self.databases() {
            if !database.is_in_place() {
                report.displaced.push(database.path().to_owned());
                if let Err(error) = self.let_go(router, database).await {
                    report.failed.push(("closing a displaced database", error));
                }
                continue;
            }
            if let Err(error) = self.tidy(&database, &mut report).await {
                report.failed.push(("tidying a database", error));
            }
        }
        let every_ms = u64::try_from(self.options.metrics_every.as_millis()).unwrap_or(u64::MAX);
        match self.collector.collect(&self.manager, every_ms, now).await {
            Ok(collected) => report.collected = collected,
            Err(error) => report.failed.push(("collecting metrics", error)),
        }
        if !self.manager.system().is_read_only() {
            // Other processes create and purge routers too.
            if let Err(error) = self.manager.count_routers().await {
                report.failed.push(("counting routers", error));
            }
            if std::mem::take(&mut self.first) {
                match self.orphans().await {
                    Ok(orphans) => report.orphans = orphans,
                    Err(error) => report.failed.push(("looking for orphans", error)),
                }
            }
            if let Err(error) = self.expire(now, &mut report).await {
                report.failed.push(("expiring", error));
            }
            // It looks at every entry, so it is not done each round.
            if self.audited_ms.is_none_or(|then| now.boottime_ms.saturating_sub(then) >= AUDIT_EVERY_MS) {
                self.audited_ms = Some(now.boottime_ms);
                match self.manager.system().audit_log().retain(self.options.audit).await {
                    Ok(removed) => report.audit_removed = removed,
                    Err(error) => report.failed.push(("retaining the audit log", error)),
                }
            }
            match self.back_up(now).await {
                Ok(made) => report.backup = made,
                Err(error) => report.failed.push(("backing up", error)),
            }
        }
        report
    }

    fn databases(&self) -> Vec<(Option<RouterId>, Database)> {
        let inner = &self.manager.inner;
        let singles = [Database::clone(&inner.system), inner.hot.current(), inner.runtime.clone(), inner.locks.clone()];
        let routers = inner.routers.open_databases().into_iter().map(|(id, _, database)| (Some(id), database));
        singles.into_iter().map(|database| (None, database)).chain(routers).collect()
    }

    /// Closes a router whose file was removed or replaced while open, so that the next to ask for it meets what is there
    /// now. The databases that are always open cannot be closed: that is for whoever reads the report.
    async fn let_go(&self, router: Option<RouterId>, database: Database) -> Result<(), Error> {
        tracing::error!(path = %database.path().display(), "a database was removed or replaced while open");
        let Some(id) = router else { return Ok(()) };
        drop(database);
        let inner = &self.manager.inner;
        let lock = inner.files.layout().router(&id);
        inner.routers.hold(&id, HoldWhen::Now, &lock).await.map(drop)
    }

    async fn tidy(&mut self, database: &Database, report: &mut HousekeepingReport) -> Result<(), Error> {
        if database.is_read_only() {
            return Ok(());
        }
        let path = database.path().to_owned();
        let logged = database.written().wal_bytes;
        let before = self.seen.get(&path).copied();
        let idle = before.is_some_and(|(then, _)| then == logged);
        let done = before.is_some_and(|(_, done)| done) && idle;
        let wal_bytes = layout::size_of(&layout::wal_of(&path))?;
        let step = checkpoint_step(wal_bytes, self.options.wal_bytes_max, idle, done);
        let mut in_file = done;
        let result = match step {
            Step::Nothing => Ok(None),
            Step::Passive => database.checkpoint_passive().await.map(Some),
            Step::Truncate => database.checkpoint().await.map(Some),
        };
        match result {
            // Evicted in the meantime: closing it was a checkpoint too.
            Err(Error::Closed { .. }) if !path.ends_with("system.db") => return Ok(()),
            Ok(Some(checkpoint)) if checkpoint.busy || checkpoint.checkpointed_pages < checkpoint.wal_pages => {
                report.busy.push(path.clone());
            }
            Ok(Some(_)) => {
                in_file = true;
                report.checkpointed.push(path.clone());
            }
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        self.seen.insert(path.clone(), (logged, in_file));
        if idle && step == Step::Nothing {
            report.pages_freed += self.vacuum(database).await?;
        }
        Ok(())
    }

    async fn vacuum(&self, database: &Database) -> Result<u64, Error> {
        let unused = free_pages(database).await?;
        if unused < u64::from(self.options.vacuum_from_pages.max(1)) {
            return Ok(0);
        }
        let vacuumed: Result<(), Error> = database
            .write(VACUUM, |conn| {
                Box::pin(async move {
                    let sql = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(conn).await?;
                    Ok(())
                })
            })
            .await;
        vacuumed?;
        Ok(unused.saturating_sub(free_pages(database).await?))
    }

    async fn expire(&self, now: Now, report: &mut HousekeepingReport) -> Result<(), Error> {
        for retired in self.manager.retired_routers().await? {
            if is_over(&retired, self.options.retired_kept, now) {
                match &self.options.retired_archive {
                    Some(dir) => report.archived.push(self.manager.purge_to(&retired.id, dir).await?),
                    None => self.manager.purge(&retired.id).await?,
                }
                report.purged.push(retired.id);
            }
        }
        let aside = self.manager.set_aside().await?;
        for gone in beyond(&aside, &self.options, now) {
            let place = match gone.reason {
                AsideReason::Damaged => self.manager.inner.files.layout().quarantine(&gone.directory),
                AsideReason::Replaced => self.manager.inner.files.layout().safety(&gone.directory),
            };
            layout::remove_tree(&place)?;
            let directory = gone.directory.clone();
            let dropped: Result<(), Error> = self
                .manager
                .system()
                .write(HOUSEKEEPING, move |conn| Box::pin(async move { custody::drop_aside(conn, &directory).await }))
                .await;
            dropped?;
            report.expired.push(gone.directory.clone());
        }
        Ok(())
    }

    /// Lists the directories that the registry does not know of. They may be all that is left of something: nobody
    /// but a person removes them.
    async fn orphans(&self) -> Result<Vec<PathBuf>, Error> {
        let layout = self.manager.inner.files.layout();
        let records = self.manager.system().routers().list().await?;
        let aside = self.manager.set_aside().await?;
        let in_state = |name: &str, retired: bool| {
            records.iter().any(|r| r.id.as_str() == name && (r.lifecycle == Lifecycle::Retired) == retired)
        };
        let is_aside = |name: &str, reason| aside.iter().any(|a| a.directory == name && a.reason == reason);
        let mut orphans = Vec::new();
        for name in names_in(&layout.routers())? {
            if !name.starts_with(UNFINISHED) && !in_state(&name, false) {
                orphans.push(layout.routers().join(name));
            }
        }
        for name in names_in(&layout.data_dir.join("retired"))? {
            if !in_state(&name, true) {
                orphans.push(layout.data_dir.join("retired").join(name));
            }
        }
        for name in names_in(&layout.data_dir.join("quarantine"))? {
            if !is_aside(&name, AsideReason::Damaged) {
                orphans.push(layout.quarantine(&name));
            }
        }
        for name in names_in(&layout.data_dir.join("safety"))? {
            // A replaced system database is on no list.
            if !is_aside(&name, AsideReason::Replaced) && !manifest::is_of(&Which::System, &name) {
                orphans.push(layout.safety(&name));
            }
        }
        Ok(orphans)
    }

    async fn back_up(&self, now: Now) -> Result<Option<Ulid>, Error> {
        let Some(schedule) = &self.options.backup else { return Ok(None) };
        let known = self.manager.backups().await?;
        let newest = known.iter().find(|backup| backup.which == Which::Fleet.to_string()).map(|b| b.created_ms);
        if !is_due(newest, schedule.every, now.wall_ms) {
            return Ok(None);
        }
        self.manager.backup(Which::Fleet, &schedule.dir).await.map(|manifest| Some(manifest.id))
    }
}

async fn free_pages(database: &Database) -> Result<u64, Error> {
    let pages: Result<i64, Error> = database
        .read(HOUSEKEEPING, |conn| {
            Box::pin(async move {
                Ok(sqlx::query_scalar("SELECT freelist_count FROM pragma_freelist_count").fetch_one(conn).await?)
            })
        })
        .await;
    pages.map(|pages| u64::try_from(pages).unwrap_or(0))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Passive,
    Truncate,
}

/// Decides about the log of one database. `idle`: nothing was logged since the last look; `done`: and all of it is in
/// the file.
fn checkpoint_step(wal_bytes: u64, wal_bytes_max: u64, idle: bool, done: bool) -> Step {
    match (wal_bytes, idle, done) {
        (0, ..) | (_, true, true) if wal_bytes <= wal_bytes_max => Step::Nothing,
        _ if wal_bytes > wal_bytes_max => Step::Truncate,
        (_, true, false) => Step::Passive,
        _ => Step::Nothing,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Tells whether a retired router has been kept long enough. A clock that was not set tells nothing.
fn is_over(retired: &RetiredRouter, kept: Duration, now: Now) -> bool {
    let synced = retired.quality == ClockQuality::Synced && now.quality == ClockQuality::Synced;
    synced && now.wall_ms.saturating_sub(retired.retired_ms) >= millis(kept)
}

/// Tells whether the next backup is due. One from the future says that the clock went back, not when it was made.
fn is_due(newest_ms: Option<i64>, every: Duration, now_ms: i64) -> bool {
    newest_ms.is_none_or(|newest| newest > now_ms || now_ms - newest >= millis(every))
}

/// Returns what was set aside and is too old or too much. What nothing has replaced yet stays whatever its size: it is
/// all there is of that router.
fn beyond<'a>(aside: &'a [SetAside], options: &HousekeepingOptions, now: Now) -> Vec<&'a SetAside> {
    let mut bytes = 0_u64;
    let mut gone = Vec::new();
    for one in aside.iter().rev() {
        bytes = bytes.saturating_add(one.bytes);
        let pending = one.reason == AsideReason::Damaged && one.restored_from.is_none();
        let old =
            now.quality == ClockQuality::Synced && now.wall_ms.saturating_sub(one.at_ms) >= millis(options.aside_kept);
        if !pending && (old || bytes > options.aside_bytes_max) {
            gone.push(one);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::quarantine::RestoredFrom;

    const DAY: i64 = 86_400_000;
    const START: i64 = 1_750_000_000_000;

    fn now(wall_ms: i64) -> Now {
        ManualClock::new(wall_ms).now()
    }

    fn aside(at_ms: i64, bytes: u64, reason: AsideReason, replaced: bool) -> SetAside {
        SetAside {
            directory: format!("d{at_ms}-{bytes}"),
            router: RouterId::parse("home").expect("id"),
            reason,
            cause: String::new(),
            bytes,
            at_ms,
            restored_from: replaced.then_some(RestoredFrom::Fresh),
            lost: None,
        }
    }

    #[test]
    fn a_log_is_moved_once_when_idle_and_emptied_when_too_long() {
        for (wal, idle, done, expected) in [
            (0, false, false, Step::Nothing),
            (0, true, true, Step::Nothing),
            (50, false, false, Step::Nothing),
            (50, true, false, Step::Passive),
            (50, true, true, Step::Nothing),
            (101, false, false, Step::Truncate),
            (101, true, true, Step::Truncate),
        ] {
            assert_eq!(checkpoint_step(wal, 100, idle, done), expected, "{wal} {idle} {done}");
        }
    }

    #[test]
    fn a_router_is_purged_after_its_time_by_clocks_that_were_set() {
        let id = RouterId::parse("home").expect("id");
        let retired = |quality| RetiredRouter { id: id.clone(), retired_ms: START, quality };
        let kept = Duration::from_secs(30 * 86_400);
        assert!(!is_over(&retired(ClockQuality::Synced), kept, now(START + 30 * DAY - 1)));
        assert!(is_over(&retired(ClockQuality::Synced), kept, now(START + 30 * DAY)));
        assert!(!is_over(&retired(ClockQuality::Unsynced), kept, now(START + 60 * DAY)));
        let unset = Now { quality: ClockQuality::Unsynced, ..now(START + 60 * DAY) };
        assert!(!is_over(&retired(ClockQuality::Synced), kept, unset));
        assert!(!is_over(&retired(ClockQuality::Synced), kept, now(0)), "the clock went back");
    }

    #[test]
    fn a_backup_is_due_when_there_is_none_or_the_newest_is_old_or_from_the_future() {
        let day = Duration::from_secs(86_400);
        assert!(is_due(None, day, START));
        assert!(!is_due(Some(START), day, START + DAY - 1));
        assert!(is_due(Some(START), day, START + DAY));
        assert!(is_due(Some(START), day, START - 1));
    }

    proptest! {
        #[test]
        fn what_nothing_replaced_is_kept_and_the_rest_fits(
            all in prop::collection::vec((0_i64..60, 0_u64..100, any::<bool>(), any::<bool>()), 0..12),
            bytes_max in 0_u64..400,
        ) {
            let mut all = all;
            all.sort_by_key(|one| one.0);
            let aside: Vec<_> = all.iter().map(|(day, bytes, damaged, replaced)| {
                let reason = if *damaged { AsideReason::Damaged } else { AsideReason::Replaced };
                aside(START + day * DAY, *bytes, reason, *replaced)
            }).collect();
            let options = HousekeepingOptions { aside_bytes_max: bytes_max, ..HousekeepingOptions::default() };
            let now = now(START + 60 * DAY);
            let gone = beyond(&aside, &options, now);
            let pending = |one: &SetAside| one.reason == AsideReason::Damaged && one.restored_from.is_none();
            prop_assert!(!gone.iter().any(|one| pending(one)));
            let kept: Vec<_> = aside.iter().filter(|one| !gone.iter().any(|g| std::ptr::eq(*g, *one))).collect();
            for one in kept.iter().filter(|one| !pending(one)) {
                prop_assert!(now.wall_ms - one.at_ms < 30 * DAY);
            }
            let free: u64 = kept.iter().filter(|one| !pending(one)).map(|one| one.bytes).sum();
            prop_assert!(free <= bytes_max);
        }
    }
}
