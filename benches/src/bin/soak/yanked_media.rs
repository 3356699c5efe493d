//! Campaign `yanked-media`: the medium of the cold tier goes away at any moment of archiving, reading back, confirming and
//! retention, stays away for up to weeks, and comes back.
//!
//! A real file system is mounted as the cold directory. While `archive` and `retain` run it is unmounted, remounted
//! read-only, filled by others, or its driver gives up; then it returns, repaired as its owner would. Nothing may be lost, nothing may be
//! written to the empty mount point, no file may be unreadable with `zstd`, retention takes nothing that is not archived, and
//! the next run catches up. Half of the times the hot tier is emptied in between, as a reboot does: what was confirmed before
//! must be on the medium then, for nothing else has the Low events and what retention has removed since. Low events that
//! were not confirmed may be lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nasnet_benches::events::Random;
use nasnet_benches::place::Place;
use nasnet_dbmanager::ManualClock;
use nasnet_events::{ArchiveReport, Class, Error, EventStore, FlushReason, Retention, RetentionReport, Span};
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::enospc::take_all;
use crate::events::{self, NOW_MS, Numbers, Open, Promises, Site, Told, Way};
use crate::mount::{Kind, Mounted};
use crate::{Controls, Failure, Found, Turn};

/// Yanks of one medium before the next is made.
const YANKS: u64 = 12;
/// What somebody else keeps on the medium.
const OTHERS: &str = "others.bin";
/// Longest absence.
const WEEKS_MAX: u64 = 6;
const DAYS_BETWEEN: u64 = 7;
/// How long a run may go on after its medium went away.
const RUN_MAX: Duration = Duration::from_secs(120);
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yank {
    Unmounted,
    ReadOnly,
    Aborted,
    /// Somebody else takes all of its space.
    Full,
}

struct Bench {
    _place: Place,
    site: Site,
    medium: Mounted,
    clock: ManualClock,
    open: Open,
    numbers: Numbers,
    promises: Promises,
}

impl Bench {
    async fn new(kind: Kind) -> Result<Self, Failure> {
        let place = Place::new(Some(Path::new("/dev/shm")))?;
        let medium = Mounted::new(kind)?;
        let mut site = Site { run: place.tmpfs.path().join("run"), ..Site::new(place.disk.path(), medium.path()) };
        // No snapshot is waited for.
        site.options.retention = Retention::default().full_history([""; 0]);
        let clock = ManualClock::new(NOW_MS);
        let open = events::open(&site, &clock, true).await?;
        let (numbers, promises) = (Numbers::default(), Promises::default());
        Ok(Self { _place: place, site, medium, clock, open, numbers, promises })
    }

    /// Days pass, seen by the machine, in which something happens now and then.
    async fn pass(&mut self, days: u64, random: &mut Random) -> Result<(), Failure> {
        for _ in 0..days.div_ceil(DAYS_BETWEEN) {
            self.append(1 + random.below(3), random).await?;
            let flushed = self.open.store.flush(FlushReason::Requested).await?;
            if let Some(failed) = flushed.failed.first() {
                return Err(format!("a flush fails for {failed:?}").into());
            }
            self.open.store.mark_age().await?;
            self.clock.advance(DAY * u32::try_from(DAYS_BETWEEN)?);
        }
        Ok(())
    }

    /// The machine starts anew once all but the Low events are flushed: what is on flash and on the medium is all there is.
    async fn reboot(&mut self) -> Result<(), Failure> {
        self.end().await?;
        self.begin().await
    }

    async fn end(&mut self) -> Result<(), Failure> {
        self.open.store.shutdown().await?;
        self.open.db.shutdown().await?;
        std::fs::remove_dir_all(&self.site.run)?;
        self.clock.reboot();
        self.promises.lasting(&[], |told| told.class != Class::Low);
        self.promises.wiped();
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        self.open = events::open(&self.site, &self.clock, false).await?;
        Ok(())
    }

    /// What the databases say the archive has is promised from now on, with its Low events: how many these are.
    async fn hold_to_confirmed(&mut self) -> Result<u64, Failure> {
        let gone = self.promises.gone;
        let mut confirmed = 0;
        for warm in self.open.store.status().await?.warm {
            let warm = warm?;
            let Some(through) = warm.archived_through else { continue };
            for told in self.promises.told.iter_mut().filter(|told| told.position <= through) {
                // What was lost with a hot tier before is not in the archive.
                let is_held = told.synced || told.position.epoch <= gone || events::scope(told.scope)? != warm.scope;
                confirmed += u64::from(!is_held);
                told.synced |= !is_held;
            }
        }
        Ok(confirmed)
    }

    async fn append(&mut self, times: u64, random: &mut Random) -> Result<(), Failure> {
        for _ in 0..times {
            let way = if random.below(4) == 0 { Way::Commit } else { Way::Append };
            let told = events::append(&self.open, &mut self.numbers, way, None, random).await?;
            self.promises.told.extend(told.map_err(|(_, error)| error)?);
            self.clock.advance(Duration::from_secs(60));
        }
        Ok(())
    }
}

/// The file systems a stick may have.
fn kinds() -> Vec<Kind> {
    let of_sticks = |kind: &Kind| matches!(kind, Kind::Ext4 | Kind::Ext2 | Kind::Xfs | Kind::Vfat);
    Kind::available().iter().copied().filter(of_sticks).collect()
}

/// What the campaign needs and this machine has not.
pub(crate) fn missing() -> Option<&'static str> {
    if kinds().is_empty() {
        return Some("a file system that can be mounted from an image");
    }
    Command::new("zstd").arg("--version").output().is_err().then_some("the zstd command")
}

/// Yanks one medium several times.
pub(crate) fn case(turn: &mut Turn) -> Result<Found, Failure> {
    let random = &mut turn.random;
    let kinds = kinds();
    let kind = kinds[usize::try_from(turn.number % kinds.len() as u64)?];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut bench = Bench::new(kind).await?;
        let mut found = Found::default();
        for _ in 0..YANKS {
            let yanks = [Yank::Unmounted, Yank::ReadOnly, Yank::Full, Yank::Aborted];
            let choices = if kind.can_abort() { 4 } else { 3 };
            let yank = yanks[usize::try_from(random.below(choices))?];
            found.cases += 1;
            found.count(&format!("{yank:?}").to_lowercase(), 1);
            found.count(&format!("on_{kind:?}").to_lowercase(), 1);
            if let Some(what) = once(&mut bench, yank, random, &mut found).await? {
                found.broken.push(format!("{kind:?}, {yank:?}: {what}"));
                break;
            }
        }
        if found.broken.is_empty() {
            bench.reboot().await?;
            let what = events::look(&bench.open).await.judge(&bench.promises);
            found.broken.extend(what.map(|what| format!("{kind:?}, after a reboot: {what}")));
        }
        bench.open.close(false).await?;
        Ok(found)
    })
}

/// Archives, then removes what may go.
async fn archive_and_retain(store: EventStore) -> Result<(ArchiveReport, RetentionReport), Error> {
    let archived = store.archive().await?;
    store.mark_age().await?;
    let retained = store.retain(store.retention_plan().await?).await?;
    Ok((archived, retained))
}

async fn once(
    bench: &mut Bench,
    yank: Yank,
    random: &mut Random,
    found: &mut Found,
) -> Result<Option<String>, Failure> {
    bench.append(5 + random.below(40), random).await?;
    let archiving = tokio::spawn(archive_and_retain(bench.open.store.clone()));
    // At once, or with all that happens without the medium, or not at all.
    let reboot = random.below(4);
    // A driver that gives up tells a sync that waits for its journal that it is done: what that confirms is only made up
    // for while the hot tier is there.
    let at_rest = yank == Yank::Aborted && reboot < 2;
    // At any moment of the run: before it, between two of its steps, after it.
    let wait = Duration::from_micros(random.below(16_000));
    let pulled = tokio::task::block_in_place(|| {
        if at_rest {
            wait_for(&archiving);
        } else {
            std::thread::sleep(wait);
        }
        match yank {
            Yank::Unmounted => bench.medium.unmount(),
            // Refused while a file is being written: then it is pulled a little later.
            Yank::ReadOnly => {
                let start = Instant::now();
                loop {
                    match bench.medium.remount("ro") {
                        Err(_) if start.elapsed() < RUN_MAX => std::thread::sleep(Duration::from_micros(200)),
                        done => break done,
                    }
                }
            }
            Yank::Full => take_all(&bench.medium.path().join(OTHERS)),
            Yank::Aborted => bench.medium.abort(),
        }
    });
    pulled?;
    match tokio::time::timeout(RUN_MAX, archiving).await {
        Err(_) => return Ok(Some("archiving hangs".to_owned())),
        Ok(answer) => match answer? {
            // A frame that does not read back is no surprise while its medium goes away.
            Ok((_, retained)) if !retained.failed.is_empty() => {
                return Ok(Some(format!("a retention fails: {retained:?}")));
            }
            Ok((report, retained)) => {
                found.count("retained_while_it_went", retained.events);
                match report.failed.iter().find(|(_, error)| !is_absence(error) && !is_unread(error)) {
                    Some(failed) => return Ok(Some(format!("archiving fails for {failed:?}"))),
                    None => found.count("runs_that_were_told_of_it", u64::from(!report.failed.is_empty())),
                }
            }
            Err(error) if is_absence(&error) => found.count("runs_that_were_told_of_it", 1),
            Err(error) => return Ok(Some(format!("archiving says {error:?}"))),
        },
    }
    found.count("confirmed_as_it_went", bench.hold_to_confirmed().await?);
    if reboot == 0 {
        bench.reboot().await?;
        found.count("reboots_without_it", 1);
    }
    // Without the medium the store goes on, for weeks if need be.
    bench.append(3, random).await?;
    if random.below(2) == 0 {
        bench.pass(random.below(WEEKS_MAX * 7), random).await?;
        found.count("weeks_without_it", 1);
    }
    let plan = bench.open.store.retention_plan().await?;
    let retained = bench.open.store.retain(plan).await?;
    found.count("retained_without_it", retained.events);
    if !retained.failed.is_empty() {
        return Ok(Some(format!("a retention without a medium fails: {retained:?}")));
    }
    match bench.open.store.archive().await {
        Err(error) if is_absence(&error) => {}
        Ok(report) if report.frames == 0 || !report.failed.is_empty() => {}
        // A small frame may fit into what the last block of a file has left.
        Ok(_) if yank == Yank::Full => {}
        other => return Ok(Some(format!("archiving without a medium says {other:?}"))),
    }
    if yank == Yank::Unmounted && std::fs::read_dir(bench.medium.path())?.next().is_some() {
        return Ok(Some("something was written to the empty mount point".to_owned()));
    }
    if reboot == 1 {
        bench.reboot().await?;
        found.count("reboots_without_it", 1);
    }
    bring_back(&bench.medium, yank)?;
    catch_up(bench, found).await
}

/// Archives what waits for the medium, and looks whether everything promised is there.
async fn catch_up(bench: &mut Bench, found: &mut Found) -> Result<Option<String>, Failure> {
    let (report, retained) = match archive_and_retain(bench.open.store.clone()).await {
        Ok(reports) => reports,
        Err(error) => return Ok(Some(format!("archiving does not catch up: {error:?}"))),
    };
    found.count("retained_after_catching_up", retained.events);
    if let Some(failed) = report.failed.first().or(retained.failed.first()) {
        return Ok(Some(format!("catching up fails for {failed:?}")));
    }
    if let Some(fault) = bench.open.store.verify(Span::all()).await?.faults.first() {
        return Ok(Some(format!("after catching up there is {fault:?}")));
    }
    let archived = match archived(bench.medium.path()) {
        Ok(archived) => archived,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let gone = bench.promises.gone;
    let is_archived = |told: &Told| archived.contains(&(told.position.epoch, told.position.seq));
    bench.promises.lasting(&[], |told| told.position.epoch > gone || is_archived(told));
    let lost =
        bench.promises.told.iter().find(|told| told.synced && told.position <= report.through && !is_archived(told));
    if let Some(lost) = lost {
        return Ok(Some(format!("{lost:?} is not in the archive")));
    }
    Ok(events::look(&bench.open).await.judge(&bench.promises))
}

/// Waits until a run ends, or takes too long.
fn wait_for<T>(run: &JoinHandle<T>) {
    let start = Instant::now();
    while !run.is_finished() && start.elapsed() < RUN_MAX {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What archiving may say when the medium is away.
fn is_absence(error: &Error) -> bool {
    matches!(error, Error::ColdAbsent { .. } | Error::Io { .. })
}

fn is_unread(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. })
}

fn bring_back(medium: &Mounted, yank: Yank) -> Result<(), Failure> {
    match yank {
        Yank::Unmounted => {
            medium.repair().ok();
            medium.mount("rw")
        }
        Yank::ReadOnly => medium.remount("rw"),
        Yank::Full => Ok(std::fs::remove_file(medium.path().join(OTHERS))?),
        Yank::Aborted => {
            medium.unmount()?;
            medium.repair()?;
            medium.mount("rw")
        }
    }
}

#[derive(Deserialize)]
struct Line {
    epoch: u32,
    seq: u64,
}

/// The positions in every file of the archive, as `zstd -dc` prints them: each once.
fn archived(dir: &Path) -> Result<BTreeSet<(u32, u64)>, Failure> {
    let mut positions = BTreeSet::new();
    for path in files(dir)? {
        let output = Command::new("zstd").args(["-dcq"]).arg(&path).output()?;
        if !output.status.success() {
            return Err(format!("zstd cannot read {}", path.display()).into());
        }
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line).map_err(|error| format!("{}: {error}", path.display()))?;
            if !positions.insert((line.epoch, line.seq)) {
                return Err(format!("{}:{} is archived twice", line.epoch, line.seq).into());
            }
        }
    }
    Ok(positions)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "lost+found") {
            files.extend(files_of(&path)?);
        }
    }
    Ok(files)
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    Ok(std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "zst"))
        .collect())
}

/// Takes the medium back to `before`, as if it had confirmed frames that it does not have, while the hot tier is emptied.
async fn come_back_with(before: &[(PathBuf, u64)], bench: &mut Bench) -> Result<Option<String>, Failure> {
    bench.hold_to_confirmed().await?;
    bench.end().await?;
    for (path, bytes) in before {
        std::fs::OpenOptions::new().write(true).open(path)?.set_len(*bytes)?;
    }
    bench.begin().await?;
    catch_up(bench, &mut Found::default()).await
}

/// Files of the archive, and how long they are.
fn lengths(dir: &Path) -> Result<Vec<(PathBuf, u64)>, Failure> {
    files(dir)?.into_iter().map(|path| Ok((path.clone(), path.metadata()?.len()))).collect()
}

/// A damaged file of the archive must be noticed, and so must confirmed frames that are not on the medium.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    events::runtime()?.block_on(async {
        let mut random = Random::new(seed);
        let mut bench = Bench::new(Kind::Tmpfs).await?;
        bench.append(30, &mut random).await?;
        bench.open.store.archive().await?;
        let honest = archived(bench.medium.path())?.len() >= 30;
        for path in files(bench.medium.path())? {
            let mut bytes = std::fs::read(&path)?;
            let middle = bytes.len() / 2;
            bytes.truncate(middle);
            std::fs::write(&path, bytes)?;
        }
        let noticed = archived(bench.medium.path()).is_err();
        bench.open.close(false).await?;
        let mut bench = Bench::new(Kind::Tmpfs).await?;
        bench.append(30, &mut random).await?;
        bench.open.store.archive().await?;
        let early = lengths(bench.medium.path())?;
        bench.append(30, &mut random).await?;
        bench.open.store.archive().await?;
        let late = lengths(bench.medium.path())?;
        let kept = come_back_with(&late, &mut bench).await?;
        let lost = come_back_with(&early, &mut bench).await?;
        bench.open.close(false).await?;
        Ok(vec![
            ("half a file", noticed),
            ("whole files pass", honest),
            ("confirmed frames cut off", lost.is_some()),
            ("confirmed frames kept pass", kept.is_none()),
        ])
    })
}
