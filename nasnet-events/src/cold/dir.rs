//! The directory of the cold tier: what is in it, how it is read, and how frames are added to it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nasnet_dbmanager::{DbManager, Scope};

use crate::chain::Digest;
use crate::cold::fence::{Fence, Site, absent};
use crate::cold::frame::{self, Header};
use crate::cold::index::{Index, Place, Source, Tail};
use crate::cold::month::FileName;
use crate::copied::{Copied, Link, Tip};
use crate::error::Error;
use crate::event::Recorded;
use crate::hot::log::Order;
use crate::merge::{Range, Slice};
use crate::options::ColdOptions;
use crate::position::Position;
use crate::query::Query;
use crate::read::PAGE_EVENTS;

/// Of which classes the events of a frame are that nothing is known of.
const ANY_CLASS: u8 = u8::MAX;
/// Bytes of a damaged tail that are set aside together.
const SET_ASIDE_BYTES: u64 = 1 << 20;
/// Frames that are opened for one page of a read: others wait for the directory meanwhile.
const FRAMES_MAX: usize = 8;
/// The most foreign or damaged files a report names.
const NAMED_MAX: usize = 32;
/// Parts of a month that are tried while files of their names are somebody else's, or damaged.
const PARTS_MAX: u16 = 16;

/// Whether the cold tier can be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColdState {
    /// There is none.
    Off,
    /// It is not there, and why. A normal state: archiving catches up when it returns.
    Absent(String),
    /// It is there.
    Present,
}

/// What the cold directory holds that is no frame of this store, and what was read of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColdFindings {
    /// Files of others, which are left alone; at most 32 are named.
    pub foreign: Vec<PathBuf>,
    /// Files with stretches that are damaged, and what was set aside of such files; at most 32 are named.
    pub damaged: Vec<PathBuf>,
    /// Files that the medium does not give back; at most 32 are named.
    pub unreadable: Vec<PathBuf>,
    /// Bytes read of the cold files since the store was opened.
    pub bytes_read: u64,
}

/// Sums over the cold tier.
#[derive(Debug, Default)]
pub(crate) struct ColdTotals {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) first: Option<Position>,
    pub(crate) last: Option<Position>,
    pub(crate) findings: ColdFindings,
}

/// The frame that an append to the cold tier added.
#[derive(Debug)]
pub(crate) struct Archived {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// Where the archive of the scope ends now.
    pub(crate) tip: Tip,
}

/// The archive of a scope on a medium.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// Where it ends.
    pub(crate) tip: Option<Tip>,
    /// Why files of it cannot be read. What is added goes into others.
    pub(crate) unreadable: Vec<Error>,
    /// A damaged last frame that is left where it is, for it cannot be written again.
    pub(crate) left: Option<Error>,
}

/// What mounting the archive of a scope came to.
#[derive(Debug)]
pub(crate) enum Mount {
    Done(Mounted),
    /// The last frame was confirmed, and is damaged: can it be written again?
    Asks(Box<Header>),
}

/// What became of the last frame of a file.
enum Last {
    Whole,
    Left(Error),
    Asks(Box<Header>),
}

/// The right to write to one medium, which no other store has at the same time.
#[derive(Debug)]
pub(crate) struct Session {
    fence: Fence,
    /// The month now, when the clock can be trusted.
    today: Option<FileName>,
    _lock: File,
}

/// What the database of a scope tells of its archive. It does not know on which medium.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// Frames up to here were read back once.
    pub(crate) confirmed: Position,
    /// Damaged frames that were confirmed, by the chain behind them, and whether the other tiers have all of their events.
    pub(crate) rewritable: HashMap<Digest, bool>,
}

/// A step of writing a frame, each of which may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    MakeDir,
    Open,
    Write,
    Sync,
    SyncDir,
    ReadBack,
    /// Of what an earlier run left.
    Settle,
}

/// The directory, and what is known of its files.
#[derive(Debug)]
pub(crate) struct ColdDir {
    pub(super) site: Site,
    indexes: HashMap<PathBuf, Index>,
    /// Files that could not be read when their scope was mounted. They stay out of what is added to the medium, also when
    /// they can be read a moment later.
    unreadable: HashSet<PathBuf>,
    bytes_read: Arc<AtomicU64>,
    /// The step that fails the next time it is taken.
    #[cfg(test)]
    pub(crate) failing: Option<Step>,
}

impl ColdDir {
    pub(crate) fn new(options: &ColdOptions, manager: &DbManager) -> Self {
        Self {
            site: Site::new(options, manager),
            indexes: HashMap::new(),
            unreadable: HashSet::new(),
            bytes_read: Arc::default(),
            #[cfg(test)]
            failing: None,
        }
    }

    /// Whether the directory can be used now: asked anew each time, for a stick comes and goes.
    pub(crate) fn state(&self) -> ColdState {
        match self.site.open() {
            Ok(_) => ColdState::Present,
            Err(Error::ColdAbsent { why, .. }) => ColdState::Absent(why),
            Err(error) => ColdState::Absent(error.to_string()),
        }
    }

    /// Begins to write to the medium that is there now, `None` while another store writes to it.
    pub(crate) fn begin(&self, today: Option<FileName>) -> Result<Option<Session>, Error> {
        let fence = self.site.open()?;
        let lock = fence.lock().map_err(|error| absent(&self.site.dir, format!("it takes no lock: {error}")))?;
        Ok(lock.map(|lock| Session { fence, today, _lock: lock }))
    }

    /// Files of a scope in the order of their names.
    pub(super) fn files(fence: &Fence, scope: &Scope) -> Result<Vec<(FileName, PathBuf)>, Error> {
        let dir = Path::new(scope.as_str());
        let names = fence.names(dir).map_err(|error| Error::io("read", fence.shown(dir), error))?;
        let parsed = names.into_iter().filter_map(|name| Some((name.parse::<FileName>().ok()?, dir.join(name))));
        let mut files: Vec<_> = parsed.collect();
        files.sort_unstable();
        Ok(files)
    }

    /// Scopes that have files, also those of routers that are gone.
    fn scopes(&self, fence: &Fence) -> Result<Vec<Scope>, Error> {
        let names = fence.names(Path::new(".")).map_err(|error| Error::io("read", &self.site.dir, error))?;
        let mut scopes: Vec<Scope> = names.into_iter().filter_map(|name| name.parse().ok()).collect();
        scopes.sort_unstable();
        Ok(scopes)
    }

    pub(super) fn source(&self, fence: &Fence, path: &Path) -> Result<Source, Error> {
        let shown = fence.shown(path);
        let file = fence.open_file(path).map_err(|error| Error::io("open", &shown, error))?;
        Ok(Source { file, path: shown, bytes_read: Arc::clone(&self.bytes_read) })
    }

    pub(super) fn index(&mut self, fence: &Fence, path: &Path) -> Result<(&mut Index, Source), Error> {
        let source = self.source(fence, path)?;
        let index = self.indexes.entry(path.to_owned()).or_default();
        index.refresh(&source)?;
        Ok((index, source))
    }

    /// Sums over all files that can be read; reading events tells of the others.
    pub(crate) fn totals(&mut self) -> Result<ColdTotals, Error> {
        let fence = self.site.open()?;
        let mut totals = ColdTotals::default();
        let scopes = self.scopes(&fence)?;
        let mut findings = ColdFindings::default();
        for name in fence.names(Path::new(".")).map_err(|error| Error::io("read", &self.site.dir, error))? {
            if !Fence::is_own(&name) && name.parse::<Scope>().is_err() {
                findings.foreign.push(fence.shown(Path::new(&name)));
            }
        }
        for scope in scopes {
            let dir = Path::new(scope.as_str());
            for name in fence.names(dir).map_err(|error| Error::io("read", fence.shown(dir), error))? {
                let path = dir.join(&name);
                if name.parse::<FileName>().is_err() {
                    let aside = name.contains(".damaged-");
                    (if aside { &mut findings.damaged } else { &mut findings.foreign }).push(fence.shown(&path));
                    continue;
                }
                let Ok((index, _)) = self.index(&fence, &path) else {
                    findings.unreadable.push(fence.shown(&path));
                    continue;
                };
                if index.is_foreign() {
                    findings.foreign.push(fence.shown(&path));
                } else if !index.damaged.is_empty() || index.tail == Tail::Damaged || index.is_left {
                    findings.damaged.push(fence.shown(&path));
                }
                totals.bytes += index.whole_bytes;
                for Place { header, .. } in &index.frames {
                    totals.events += header.events;
                    totals.first = Some(totals.first.map_or(header.first, |first| first.min(header.first)));
                    totals.last = totals.last.max(Some(header.last));
                }
            }
        }
        findings.foreign.truncate(NAMED_MAX);
        findings.damaged.truncate(NAMED_MAX);
        findings.unreadable.truncate(NAMED_MAX);
        findings.bytes_read = self.bytes_read.load(Ordering::Relaxed);
        totals.findings = findings;
        Ok(totals)
    }

    /// The scopes a query may find events of here.
    pub(crate) fn scopes_of(&self, query: &Query) -> Result<Vec<Scope>, Error> {
        let fence = self.site.open()?;
        match &query.scopes {
            Some(scopes) => Ok(scopes.clone()),
            None => self.scopes(&fence),
        }
    }

    /// Events of one scope for a page. Frames outside of the range, the time, the types or the classes are not read, nor
    /// those that were `copied` from a database that has been looked at, and no more than a few, whatever is in them. What is
    /// damaged between two frames is told unless it lies outside of the range, or was copied, whatever its classes.
    pub(crate) fn read(
        &mut self,
        scope: &Scope,
        query: &Query,
        range: Range,
        copied: Option<Copied>,
    ) -> Result<Slice, Error> {
        let fence = self.site.open()?;
        let order = query.order;
        let mut slice = Slice::whole(range, order);
        let mut wanted: Vec<(PathBuf, Place)> = Vec::new();
        let (mut links, mut damaged) = (Vec::new(), Vec::new());
        for (_, path) in Self::files(&fence, scope)? {
            let index = match self.index(&fence, &path) {
                Ok((index, _)) => index,
                // One file that cannot be read hides no other.
                Err(error) => {
                    slice.errors.push(error);
                    continue;
                }
            };
            let tail = (index.whole_bytes, index.whole_bytes + index.tail_bytes);
            let rotten = (index.tail == Tail::Damaged && !index.is_foreign()).then_some(tail);
            for (from, to) in index.damaged.iter().copied().chain(rotten) {
                let (between, chained) = index.around(from);
                if between.high > range.low && between.low < range.high {
                    let what = format!("{} at byte {from}", fence.shown(&path).display());
                    let error = Error::corrupt(what, format!("{} bytes are no frame", to - from));
                    damaged.push((between, chained, error));
                }
            }
            let meets = |place: &&Place| {
                let header = &place.header;
                header.last > range.low
                    && header.first <= range.high
                    && query.wants_span(header.wall_ms)
                    && header.classes & query.class_bits() != 0
                    && header.kinds.iter().any(|kind| query.wants_kind(kind))
            };
            wanted.extend(index.frames.iter().filter(meets).map(|place| (path.clone(), place.clone())));
            if copied.is_some() {
                links.extend(index.frames.iter().map(|place| place.header.link()));
            }
        }
        if let Some(copied) = copied.filter(|_| !wanted.is_empty() || !damaged.is_empty()) {
            let chained = copied.chained(range.low, links);
            // The chain behind it begins where it ended.
            damaged.retain(|(between, behind, _)| {
                let part = Range { low: between.low.max(range.low), high: between.high.min(range.high) };
                !behind.is_some_and(|behind| chained.contains(&behind)) || !copied.has(part, ANY_CLASS, query)
            });
            wanted.retain(|(_, Place { header, .. })| {
                let part = Range { low: header.first.before().max(range.low), high: header.last.min(range.high) };
                !chained.contains(&header.chain.1) || !copied.has(part, header.classes, query)
            });
        }
        slice.errors.extend(damaged.into_iter().map(|(.., error)| error));
        match order {
            Order::Forwards => wanted.sort_by_key(|(_, place)| place.header.first),
            Order::Backwards => wanted.sort_by_key(|(_, place)| std::cmp::Reverse(place.header.last)),
        }
        let mut wanted = wanted.into_iter().enumerate().peekable();
        while let Some((number, (path, place))) = wanted.next() {
            match self.source(&fence, &path).and_then(|source| place.open_wanted(&source, query)) {
                Ok(events) => slice.events.extend(events),
                Err(error) => slice.errors.push(error),
            }
            // Everything before the next one begins is complete.
            if (slice.events.len() >= PAGE_EVENTS || number + 1 >= FRAMES_MAX)
                && let Some((_, (_, next))) = wanted.peek()
            {
                let near = match order {
                    Order::Forwards => next.header.first.before(),
                    Order::Backwards => next.header.last,
                };
                let progress = near > range.low && near < range.high;
                if progress {
                    slice.covered = near;
                    break;
                }
            }
        }
        Ok(slice)
    }

    /// Where the archive of a scope on the medium ends, after cutting what a torn write left. Nothing else is ever cut: what
    /// was confirmed, be it on another medium, and a tail that is no torn frame are set aside in a file of their own, so
    /// that the ones to come stay readable by `zstd -dc`. A file that cannot be read is left as it is, and the archive ends
    /// where the others do.
    pub(crate) fn mount(&mut self, session: &Session, scope: &Scope, known: &Known) -> Result<Mount, Error> {
        let fence = &session.fence;
        let (mut tip, mut left): (Option<Tip>, _) = (None, None);
        let unreadable = self.find_unreadable(fence, scope, known.confirmed)?;
        let current = self.current(fence, scope)?.map(|(name, _)| name);
        for (name, path) in Self::files(fence, scope)? {
            if self.unreadable.contains(&path) {
                continue;
            }
            let (index, _) = self.index(fence, &path)?;
            if index.is_foreign() {
                continue;
            }
            let is_unconfirmed = index.frames.last().is_some_and(|place| place.header.last > known.confirmed);
            // A frame is written once those before it were read back, whatever the medium, so only the last is in doubt.
            if is_unconfirmed || (current == Some(name) && !index.is_settled) {
                self.settle(fence, &path)?;
                match self.drop_unwritten(fence, &path, known)? {
                    Last::Whole => {}
                    Last::Left(error) => left = Some(error),
                    Last::Asks(header) => return Ok(Mount::Asks(header)),
                }
            }
            let (index, source) = self.index(fence, &path)?;
            let (shown, from, bytes) = (&source.path, index.whole_bytes, index.tail_bytes);
            let is_empty = from + bytes == 0;
            match index.tail {
                Tail::None => {}
                Tail::Torn => tracing::warn!(file = %shown.display(), bytes, "a torn frame is cut off"),
                Tail::Damaged => {
                    tracing::error!(file = %shown.display(), from, bytes, "a damaged end is set aside");
                    set_aside(fence, &path, &source, (from, bytes))?;
                }
            }
            if index.tail != Tail::None || is_empty {
                fence.cut(&path, from).map_err(|error| Error::io("cut", shown, error))?;
                index.forget_tail();
            }
            if from == 0 {
                self.indexes.remove(&path);
                continue;
            }
            let newest = index.frames.iter().map(|place| place.header.tip()).max_by_key(|tip| tip.last);
            tip = tip.into_iter().chain(newest).max_by_key(|tip| tip.last);
        }
        Ok(Mount::Done(Mounted { tip, unreadable, left }))
    }

    /// Why files of a scope cannot be read. It is an error when one of them may hold what was never confirmed, between frames
    /// that others hold: nobody would write that again.
    fn find_unreadable(&mut self, fence: &Fence, scope: &Scope, confirmed: Position) -> Result<Vec<Error>, Error> {
        self.unreadable.retain(|path| path.parent() != Some(Path::new(scope.as_str())));
        let (mut unreadable, mut links) = (Vec::new(), Vec::new());
        for (_, path) in Self::files(fence, scope)? {
            match self.index(fence, &path) {
                Ok((index, _)) => links.extend(index.frames.iter().map(|place| place.header.link())),
                Err(error @ Error::Io { .. }) => {
                    self.unreadable.insert(path);
                    unreadable.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        match unreadable.pop() {
            Some(error) if !is_chained_from(confirmed, links) => Err(error),
            last => Ok(unreadable.into_iter().chain(last).collect()),
        }
    }

    /// Makes sure that what is read of a file is on the medium. A sync that failed leaves what it should have written in the
    /// page cache, clean and readable until the medium is away: a frame that was never confirmed may be nowhere else.
    fn settle(&mut self, fence: &Fence, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("sync", fence.shown(path), error);
        self.step(Step::Settle).map_err(failed)?;
        let file = fence.open_end(path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fence.sync_dir(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        drop_from_cache(&file);
        self.indexes.remove(path);
        Ok(())
    }

    /// Takes the last frames of a file out of its index when their lines are not there, as after a power cut. One that was
    /// confirmed goes only if all of its events can be written again; else it stays where it is, and reads tell of it.
    fn drop_unwritten(&mut self, fence: &Fence, path: &Path, known: &Known) -> Result<Last, Error> {
        let (index, source) = self.index(fence, path)?;
        let mut found = Last::Whole;
        while let Some(Place { header, .. }) = index.frames.last() {
            let is_confirmed = header.last <= known.confirmed;
            match index.frames.last().map(|place| place.open(&source)) {
                Some(Err(Error::Corrupt { .. })) if !is_confirmed => index.drop_last(Tail::Torn),
                Some(Err(error @ Error::Corrupt { .. })) => match known.rewritable.get(&header.chain.1) {
                    Some(true) => index.drop_last(Tail::Damaged),
                    Some(false) => {
                        index.is_left = true;
                        found = Last::Left(error);
                        break;
                    }
                    None => return Ok(Last::Asks(Box::new(header.clone()))),
                },
                Some(Err(error)) if !is_confirmed => return Err(error),
                _ => break,
            }
        }
        index.is_settled = true;
        Ok(found)
    }

    /// The file that holds the newest frame of a scope, and where the chain of its archived events stands.
    fn current(&mut self, fence: &Fence, scope: &Scope) -> Result<Option<(FileName, Digest)>, Error> {
        let mut newest: Option<(Position, FileName, Digest)> = None;
        for (name, path) in Self::files(fence, scope)? {
            if self.unreadable.contains(&path) {
                continue;
            }
            let (index, _) = self.index(fence, &path)?;
            let Some(place) = index.frames.iter().max_by_key(|place| place.header.last) else { continue };
            if newest.is_none_or(|(last, ..)| last < place.header.last) {
                newest = Some((place.header.last, name, place.header.chain.1));
            }
        }
        Ok(newest.map(|(_, name, chained)| (name, chained)))
    }

    /// The file for a frame: one that is ours and ends well, or new.
    fn file_for(
        &mut self,
        session: &Session,
        scope: &Scope,
        events: &[Recorded],
        current: Option<FileName>,
    ) -> Result<PathBuf, Error> {
        let dir = Path::new(scope.as_str());
        let mut name = FileName::of(events, current, session.today);
        for _ in 0..PARTS_MAX {
            let path = dir.join(name.to_string());
            let is_unreadable = self.unreadable.contains(&path);
            match self.index(&session.fence, &path) {
                _ if is_unreadable => {}
                Ok((index, _)) if index.is_foreign() || index.is_left => {}
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(path),
                Err(error) => return Err(error),
                Ok(_) => return Ok(path),
            }
            match name.next_part() {
                Some(next) => name = next,
                None => break,
            }
        }
        let shown = session.fence.shown(&dir.join(name.to_string()));
        Err(Error::corrupt(shown.display().to_string(), "the file is somebody else's, or damaged"))
    }

    /// Adds a frame, syncs it, reads it back from the medium and compares.
    pub(crate) fn append(&mut self, session: &Session, scope: &Scope, events: &[Recorded]) -> Result<Archived, Error> {
        let fence = &session.fence;
        let current = self.current(fence, scope)?;
        let path = self.file_for(session, scope, events, current.map(|(name, _)| name))?;
        let shown = fence.shown(&path);
        let before = current.map_or(Digest::GENESIS, |(_, chained)| chained);
        let (header, bytes) = frame::encode(events, before)
            .map_err(|error| Error::corrupt(format!("frame for {}", shown.display()), error))?;
        let dir = Path::new(scope.as_str());
        self.step(Step::MakeDir)
            .and_then(|()| fence.make_dir(dir))
            .map_err(|error| Error::io("create", fence.shown(dir), error))?;
        let mut file = self
            .step(Step::Open)
            .and_then(|()| fence.open_end(&path))
            .map_err(|error| Error::io("open", &shown, error))?;
        let offset = file.metadata().map_err(|error| Error::io("examine", &shown, error))?.len();
        if let Err(error) = self.write(fence, dir, &mut file, offset == 0, &bytes) {
            // Best effort: what stays behind is a torn tail, and the next mount cuts it.
            drop(fence.cut(&path, offset));
            return Err(Error::io("append to", shown, error));
        }
        drop_from_cache(&file);
        let failed = self.step(Step::ReadBack).is_err();
        let (index, source) = self.index(fence, &path)?;
        let stored = index.frames.last().filter(|place| place.offset == offset && place.header == header).cloned();
        let verified = match stored {
            Some(place) => !failed && place.open(&source)?.as_slice() == events,
            None => false,
        };
        index.is_settled = verified;
        if !verified {
            drop(fence.cut(&path, offset));
            return Err(Error::corrupt(
                format!("{} at byte {offset}", shown.display()),
                "the frame does not read back as it was written",
            ));
        }
        Ok(Archived { events: header.events, bytes: bytes.len() as u64, tip: header.tip() })
    }

    fn write(&mut self, fence: &Fence, dir: &Path, file: &mut File, is_first: bool, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.step(Step::Write) {
            // As a full medium does: a part of it arrives.
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        file.write_all(bytes)?;
        self.step(Step::Sync)?;
        file.sync_all()?;
        // Not only by who created the file: the name may have failed to reach the medium then.
        if is_first {
            self.step(Step::SyncDir)?;
            fence.sync_dir(dir)?;
            fence.sync_dir(Path::new("."))?;
        }
        Ok(())
    }

    /// Fails when a test asks for it.
    #[cfg(test)]
    fn step(&mut self, step: Step) -> io::Result<()> {
        match self.failing.take_if(|failing| *failing == step) {
            Some(step) => Err(io::Error::other(format!("{step:?} was made to fail"))),
            None => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::needless_pass_by_ref_mut, reason = "steps fail in tests alone")]
    const fn step(&mut self, _step: Step) -> io::Result<()> {
        Ok(())
    }
}

/// True when the newest frames stand one behind the other, back to one that was confirmed or to the first of their medium.
fn is_chained_from(confirmed: Position, mut links: Vec<Link>) -> bool {
    links.sort_unstable_by_key(|link| std::cmp::Reverse(link.last));
    let mut before = None;
    for Link { last, chain } in links {
        if before.is_some_and(|before| before != chain.1) {
            return false;
        }
        if last <= confirmed {
            return true;
        }
        before = Some(chain.0);
    }
    before.is_none_or(|before| before == Digest::GENESIS)
}

/// Asks the system to read the file from its medium the next time. Only a hint.
fn drop_from_cache(file: &File) {
    #[cfg(target_os = "linux")]
    let _only_a_hint = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Copies a stretch of a file to one of its own, durably.
fn set_aside(fence: &Fence, path: &Path, source: &Source, (from, bytes): (u64, u64)) -> Result<(), Error> {
    let failed = |error| Error::io("set aside the end of", &source.path, error);
    let (mut file, mut aside) = (None, path.to_owned());
    for attempt in 0..100_u32 {
        let suffix = if attempt == 0 { String::new() } else { format!(".{attempt}") };
        aside = PathBuf::from(format!("{}.damaged-{from}{suffix}", path.display()));
        match fence.create(&aside) {
            Ok(created) => {
                file = Some(created);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut file = file.ok_or_else(|| failed(io::Error::from(io::ErrorKind::AlreadyExists)))?;
    let mut at = from;
    while at < from + bytes {
        let length = (from + bytes - at).min(SET_ASIDE_BYTES);
        file.write_all(&source.bytes(at, length)?).map_err(failed)?;
        at += length;
    }
    let dir = aside.parent().unwrap_or(Path::new("."));
    file.sync_all().and_then(|()| fence.sync_dir(dir)).map_err(failed)
}
