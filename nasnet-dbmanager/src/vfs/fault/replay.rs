//! What a power cut may leave at each point of a record, and the check of each.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use super::disk::{Disk, Keep, Tree};
use super::record::{Entry, Recording};

/// How the simulated disk keeps its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Medium {
    /// What was synced is there.
    #[default]
    Honest,
    /// Control: syncs answer and do nothing.
    LiesAboutSync,
    /// Control: syncs of files work, those of directories do nothing.
    NoDirectorySync,
}

/// What a power cut leaves of the operations that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variant {
    /// Nothing.
    DropAll,
    /// Everything.
    KeepAll,
    /// Those before a random one.
    Prefix,
    /// A random subset of 512-byte sectors and of changes of names.
    Sectors,
    /// The same, with garbage where a file had grown and the content was lost.
    Garbage,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::DropAll, Self::KeepAll, Self::Prefix, Self::Sectors, Self::Garbage];
}

/// How a record is replayed.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Where the random choices start.
    pub seed: u64,
    /// How the disk behaves.
    pub medium: Medium,
    /// What is tried at each crash point.
    pub variants: Vec<Variant>,
    /// Takes only each crash point of this many.
    pub every: usize,
    /// Leaves out the crash points before this one.
    pub first: usize,
}

impl Replay {
    /// Replays every crash point in every variant on an honest disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, medium: Medium::default(), variants: Variant::ALL.to_vec(), every: 1, first: 0 }
    }

    /// Chooses the disk.
    #[must_use]
    pub fn medium(mut self, medium: Medium) -> Self {
        self.medium = medium;
        self
    }
}

/// What a disk holds after a power cut.
#[derive(Debug, Clone)]
pub struct CrashState {
    point: usize,
    variant: Variant,
    acked: Vec<u64>,
    tree: Tree,
}

impl CrashState {
    /// Returns the number of the crash point, from 0.
    pub fn point(&self) -> usize {
        self.point
    }

    /// Returns what became of the operations that were not synced.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Returns the marks set before the power cut.
    pub fn acked(&self) -> &[u64] {
        &self.acked
    }

    /// Returns a number that two states share only if they hold the same.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.tree.hash(&mut hasher);
        hasher.finish()
    }

    /// Lays the state out in an empty directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn materialise(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for (path, content) in &self.tree {
            let path = dir.join(path);
            match content {
                None => std::fs::create_dir_all(&path)?,
                Some(bytes) => {
                    std::fs::write(&path, bytes)?;
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
                }
            }
        }
        Ok(())
    }
}

/// Yields the crash states of a record.
#[derive(Debug)]
pub struct CrashStates<'a> {
    entries: &'a [Entry],
    disk: Disk,
    replay: Replay,
    /// Entries carried out.
    done: usize,
    /// Crash points passed.
    point: usize,
    acked: Vec<u64>,
    /// The next variant of this point; none left means to go on.
    variant: usize,
}

impl CrashStates<'_> {
    /// Goes to the next crash point that is asked for.
    fn advance(&mut self) -> Option<()> {
        loop {
            let entry = self.entries.get(self.done)?;
            self.disk.apply(self.done, entry);
            self.done += 1;
            if let Entry::Ack { value } = entry {
                self.acked.push(*value);
            }
            if !entry.matters() {
                continue;
            }
            self.point += 1;
            // Marks that follow directly were set before the next operation: the cut comes right before that one.
            while let Some(Entry::Ack { value }) = self.entries.get(self.done) {
                self.acked.push(*value);
                self.done += 1;
            }
            let point = self.point - 1;
            if point >= self.replay.first && (point - self.replay.first).is_multiple_of(self.replay.every.max(1)) {
                return Some(());
            }
        }
    }
}

impl Iterator for CrashStates<'_> {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        if self.point == 0 || self.variant >= self.replay.variants.len() {
            if self.replay.variants.is_empty() {
                return None;
            }
            self.variant = 0;
            self.advance()?;
        }
        let variant = self.replay.variants[self.variant];
        self.variant += 1;
        let mut random = Random::new(self.replay.seed, self.point, variant);
        let tree = match variant {
            Variant::DropAll => self.disk.crash(&mut Keep::Nothing),
            Variant::KeepAll => self.disk.crash(&mut Keep::Everything),
            Variant::Prefix => {
                let pending = self.disk.pending();
                let at = random.below(pending.len() as u64 + 1);
                let limit = usize::try_from(at).ok().and_then(|at| pending.get(at)).copied();
                self.disk.crash(&mut Keep::Before(limit.unwrap_or(usize::MAX)))
            }
            Variant::Sectors | Variant::Garbage => {
                let mut coin = || random.below(2) == 0;
                self.disk.crash(&mut Keep::Some { coin: &mut coin, garbage: variant == Variant::Garbage })
            }
        };
        Some(CrashState { point: self.point - 1, variant, acked: self.acked.clone(), tree })
    }
}

/// A state that did not pass its check.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The crash point.
    pub point: usize,
    /// What became of the operations that were not synced.
    pub variant: Variant,
    /// What the check said.
    pub what: String,
}

/// What a replay found.
#[derive(Debug, Clone, Default)]
pub struct ReplayReport {
    /// States judged.
    pub states: u64,
    /// Those among them that were laid out and looked at: the others hold the same as one before.
    pub distinct: u64,
    /// States that did not pass.
    pub failures: Vec<Failure>,
}

impl Recording {
    /// Yields what a disk may hold after a power cut, point by point.
    pub fn crash_states(&self, replay: &Replay) -> CrashStates<'_> {
        CrashStates {
            entries: &self.entries,
            disk: Disk::new(&self.dir, &self.before, replay.medium),
            replay: replay.clone(),
            done: 0,
            point: 0,
            acked: Vec::new(),
            variant: 0,
        }
    }

    /// Lays out each crash state in a directory, lets `look` open it, and lets `judge` compare what it saw with the
    /// marks set before the power cut. States that hold the same are looked at once and judged each.
    ///
    /// # Errors
    /// When a state cannot be laid out.
    pub fn replay<T>(
        &self,
        replay: &Replay,
        look: impl Fn(&Path) -> T,
        judge: impl Fn(&CrashState, &T) -> Option<String>,
    ) -> io::Result<ReplayReport> {
        let mut report = ReplayReport::default();
        let mut seen: HashMap<u64, T> = HashMap::new();
        for state in self.crash_states(replay) {
            report.states += 1;
            let looked = match seen.entry(state.digest()) {
                Slot::Occupied(slot) => slot.into_mut(),
                Slot::Vacant(slot) => {
                    report.distinct += 1;
                    let dir = scratch()?;
                    state.materialise(dir.path())?;
                    slot.insert(look(dir.path()))
                }
            };
            if let Some(what) = judge(&state, looked) {
                report.failures.push(Failure { point: state.point, variant: state.variant, what });
            }
        }
        Ok(report)
    }
}

/// A directory in memory, where there is one: what is laid out there lives for one look.
fn scratch() -> io::Result<Scratch> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = base.join(format!("nasnet-crash-{}-{number}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(Scratch(dir))
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: a leftover in memory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Random choices that depend on the seed and the state alone, so that one state can be replayed without the others.
struct Random(u64);

impl Random {
    fn new(seed: u64, point: usize, variant: Variant) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, point, variant).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// splitmix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}
