//! The disk while a record is replayed: what is durable, what is pending, and what a power cut may leave of both.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use super::record::{Entry, FileRef};
use super::replay::Medium;

/// What a disk keeps whole or not at all.
const SECTOR: usize = 512;
/// What lies where a file has grown but its content was lost.
const GARBAGE: u8 = 0xa5;

/// Files with their content, directories without, by their path below the recorded directory.
pub(super) type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

type Node = usize;
const ROOT: Node = 0;

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { size: usize },
}

#[derive(Debug, Clone)]
enum Content {
    Directory { now: BTreeMap<OsString, Node>, durable: BTreeMap<OsString, Node> },
    File { durable: Vec<u8>, pending: Vec<(usize, Change)> },
}

/// A change of names that may not have reached the disk.
#[derive(Debug, Clone)]
struct NameChange {
    index: usize,
    /// The name that goes, and the directory it goes from.
    gone: Option<(Node, OsString)>,
    /// The names that come, and what they name: none, one, or two that are exchanged.
    come: Vec<(Node, OsString, Node)>,
    /// The directories that must still be synced to make it durable. A rename is one step on the disk, durable once the
    /// directory of the new name is.
    waits_for: Vec<Node>,
}

impl NameChange {
    fn touches(&self, other: &Self) -> bool {
        fn names(change: &NameChange) -> impl Iterator<Item = (Node, &OsString)> {
            let gone = change.gone.iter().map(|(dir, name)| (*dir, name));
            gone.chain(change.come.iter().map(|(dir, name, _)| (*dir, name)))
        }
        names(self).any(|name| names(other).any(|their| their == name))
    }
}

/// How much of what is pending a power cut leaves.
pub(super) enum Keep<'a> {
    Nothing,
    Everything,
    /// What happened before the entry of this number.
    Before(usize),
    /// Each sector and each name by the fall of a coin; with or without garbage where the content was lost.
    Some {
        coin: &'a mut dyn FnMut() -> bool,
        garbage: bool,
    },
}

/// The simulated disk.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    medium: Medium,
    nodes: Vec<Content>,
    names: Vec<NameChange>,
    handles: HashMap<u64, Node>,
}

impl Disk {
    /// Begins with a tree that is durable as a whole.
    pub(super) fn new(root: &Path, before: &Tree, medium: Medium) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            medium,
            nodes: vec![directory()],
            names: Vec::new(),
            handles: HashMap::new(),
        };
        // Parents sort before what is in them.
        for (path, content) in before {
            let node = disk.add(match content {
                None => directory(),
                Some(bytes) => Content::File { durable: bytes.clone(), pending: Vec::new() },
            });
            let parent = path.parent().and_then(|parent| disk.find_below(parent));
            if let (Some(parent), Some(name)) = (parent, path.file_name())
                && let Content::Directory { now, durable } = &mut disk.nodes[parent]
            {
                now.insert(name.to_owned(), node);
                durable.insert(name.to_owned(), node);
            }
        }
        disk
    }

    /// Carries one entry of the record out.
    pub(super) fn apply(&mut self, index: usize, entry: &Entry) {
        match entry {
            Entry::Ack { .. } => {}
            Entry::Open { handle, path, created } => {
                let found = self.find(path);
                let node = match found {
                    Some(node) => node,
                    None if *created => {
                        let node = self.add(Content::File { durable: Vec::new(), pending: Vec::new() });
                        self.name(index, None, &[(path, node)]);
                        node
                    }
                    None => return,
                };
                self.handles.insert(*handle, node);
            }
            Entry::Write { file, offset, bytes } => {
                let offset = usize::try_from(*offset).unwrap_or(usize::MAX);
                self.change(index, file, Change::Write { offset, bytes: bytes.clone() });
            }
            Entry::Truncate { file, size } => {
                let size = usize::try_from(*size).unwrap_or(usize::MAX);
                self.change(index, file, Change::Truncate { size });
            }
            Entry::Sync { file, covers } => self.sync(file, *covers),
            Entry::SyncDirectory { dir, covers } => self.sync_directory(dir, *covers),
            Entry::CreateDirectory { path } => {
                if self.find(path).is_none() {
                    let node = self.add(directory());
                    self.name(index, None, &[(path, node)]);
                }
            }
            Entry::Unlink { path } => self.name(index, Some(path), &[]),
            Entry::Rename { from, to } => {
                if let Some(node) = self.find(from) {
                    self.name(index, Some(from), &[(to, node)]);
                }
            }
            Entry::Link { from, to } => {
                if let Some(node) = self.find(from) {
                    self.name(index, None, &[(to, node)]);
                }
            }
            Entry::Exchange { one, other } => {
                if let (Some(first), Some(second)) = (self.find(one), self.find(other)) {
                    self.name(index, None, &[(one, second), (other, first)]);
                }
            }
        }
    }

    /// Returns what a power cut now leaves.
    pub(super) fn crash(&self, keep: &mut Keep<'_>) -> Tree {
        let mut dirs: HashMap<Node, BTreeMap<OsString, Node>> = HashMap::new();
        for (node, content) in self.nodes.iter().enumerate() {
            if let Content::Directory { durable, .. } = content {
                dirs.insert(node, durable.clone());
            }
        }
        for change in &self.names {
            let kept = match keep {
                Keep::Nothing => false,
                Keep::Everything => true,
                Keep::Before(index) => change.index < *index,
                Keep::Some { coin, .. } => coin(),
            };
            if kept {
                rename(&mut dirs, change);
            }
        }
        let mut tree = Tree::new();
        let mut waiting = vec![(PathBuf::new(), ROOT)];
        while let Some((path, node)) = waiting.pop() {
            match &self.nodes[node] {
                Content::Directory { .. } => {
                    let below = dirs.get(&node).into_iter().flatten();
                    waiting.extend(below.map(|(name, node)| (path.join(name), *node)));
                    if node != ROOT {
                        tree.insert(path, None);
                    }
                }
                Content::File { durable, pending } => {
                    tree.insert(path, Some(left_of(durable, pending, keep)));
                }
            }
        }
        tree
    }

    /// Returns the numbers of the entries that are pending.
    pub(super) fn pending(&self) -> Vec<usize> {
        let files = self.nodes.iter().flat_map(|content| match content {
            Content::File { pending, .. } => pending.as_slice(),
            Content::Directory { .. } => &[],
        });
        let mut all: Vec<_> =
            files.map(|(index, _)| *index).chain(self.names.iter().map(|change| change.index)).collect();
        all.sort_unstable();
        all
    }

    fn add(&mut self, content: Content) -> Node {
        self.nodes.push(content);
        self.nodes.len() - 1
    }

    fn find(&self, path: &Path) -> Option<Node> {
        self.find_below(path.strip_prefix(&self.root).ok()?)
    }

    fn find_below(&self, path: &Path) -> Option<Node> {
        path.components().try_fold(ROOT, |node, part| match (&self.nodes[node], part) {
            (Content::Directory { now, .. }, Component::Normal(name)) => now.get(name).copied(),
            _ => None,
        })
    }

    fn place<'a>(&self, path: &'a Path) -> Option<(Node, &'a OsStr)> {
        Some((self.find(path.parent()?)?, path.file_name()?))
    }

    /// Changes names now, and notes that the change is not durable.
    fn name(&mut self, index: usize, gone: Option<&PathBuf>, come: &[(&PathBuf, Node)]) {
        let gone = gone.and_then(|path| self.place(path)).map(|(dir, name)| (dir, name.to_owned()));
        let place = |(path, node): &(&PathBuf, Node)| {
            let (dir, name) = self.place(path)?;
            Some((dir, name.to_owned(), *node))
        };
        let come: Vec<_> = come.iter().filter_map(place).collect();
        if let Some((dir, name)) = &gone
            && let Content::Directory { now, .. } = &mut self.nodes[*dir]
        {
            now.remove(name);
        }
        for (dir, name, node) in &come {
            if let Content::Directory { now, .. } = &mut self.nodes[*dir] {
                now.insert(name.clone(), *node);
            }
        }
        let waits_for = match (&gone, come.is_empty()) {
            (Some((dir, _)), true) => vec![*dir],
            _ => come.iter().map(|(dir, ..)| *dir).collect(),
        };
        self.names.push(NameChange { index, gone, come, waits_for });
    }

    fn change(&mut self, index: usize, file: &FileRef, change: Change) {
        if let Some(node) = self.node_of(file)
            && let Content::File { pending, .. } = &mut self.nodes[node]
        {
            pending.push((index, change));
        }
    }

    fn node_of(&self, file: &FileRef) -> Option<Node> {
        self.handles.get(&file.handle).copied().or_else(|| self.find(&file.path))
    }

    fn sync(&mut self, file: &FileRef, covers: usize) {
        if self.medium == Medium::LiesAboutSync {
            return;
        }
        if let Some(node) = self.node_of(file)
            && let Content::File { durable, pending } = &mut self.nodes[node]
        {
            let (covered, rest) = std::mem::take(pending).into_iter().partition(|(index, _)| *index < covers);
            let covered: Vec<_> = covered;
            *durable = left_of(durable, &covered, &mut Keep::Everything);
            *pending = rest;
        }
    }

    fn sync_directory(&mut self, dir: &Path, covers: usize) {
        if self.medium != Medium::Honest {
            return;
        }
        let Some(dir) = self.find(dir) else { return };
        for change in self.names.iter_mut().filter(|change| change.index < covers) {
            change.waits_for.retain(|other| *other != dir);
        }
        // A change cannot be durable before an earlier one of the same name.
        let last = self.names.iter().rposition(|change| change.waits_for.is_empty());
        for at in (0..last.map_or(0, |last| last + 1)).rev() {
            let (earlier, later) = self.names.split_at_mut(at + 1);
            let Some(this) = earlier.last_mut() else { break };
            if later.iter().any(|change| change.waits_for.is_empty() && change.touches(this)) {
                this.waits_for.clear();
            }
        }
        let mut dirs: HashMap<Node, BTreeMap<OsString, Node>> = HashMap::new();
        for change in self.names.iter().filter(|change| change.waits_for.is_empty()) {
            for dir in change.gone.iter().map(|(dir, _)| dir).chain(change.come.iter().map(|(dir, ..)| dir)) {
                if let Content::Directory { durable, .. } = &mut self.nodes[*dir] {
                    dirs.entry(*dir).or_insert_with(|| std::mem::take(durable));
                }
            }
            rename(&mut dirs, change);
        }
        self.names.retain(|change| !change.waits_for.is_empty());
        for (node, entries) in dirs {
            if let Content::Directory { durable, .. } = &mut self.nodes[node] {
                *durable = entries;
            }
        }
    }
}

fn directory() -> Content {
    Content::Directory { now: BTreeMap::new(), durable: BTreeMap::new() }
}

/// Carries a change of names out, as far as what it starts from is there.
fn rename(dirs: &mut HashMap<Node, BTreeMap<OsString, Node>>, change: &NameChange) {
    if let Some((dir, name)) = &change.gone {
        let removed = dirs.get_mut(dir).and_then(|entries| entries.remove(name));
        if !change.come.is_empty() && removed.is_none() {
            return;
        }
    }
    for (dir, name, node) in &change.come {
        if let Some(entries) = dirs.get_mut(dir) {
            entries.insert(name.clone(), *node);
        }
    }
}

/// What is left of a file.
fn left_of(durable: &[u8], pending: &[(usize, Change)], keep: &mut Keep<'_>) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    // Where the file had grown to, whatever is left of its content.
    let mut grown = durable.len();
    for (index, change) in pending {
        match (change, &mut *keep) {
            (_, Keep::Nothing) => {}
            (_, Keep::Before(limit)) if *index >= *limit => {}
            (Change::Truncate { size }, Keep::Some { coin, .. }) => {
                if coin() {
                    bytes.resize(*size, 0);
                    grown = *size;
                }
            }
            (Change::Truncate { size }, _) => bytes.resize(*size, 0),
            (Change::Write { offset, bytes: new }, Keep::Some { coin, garbage }) => {
                let end = offset + new.len();
                if *garbage && end > bytes.len() {
                    bytes.resize(end, GARBAGE);
                }
                grown = grown.max(end);
                let mut at = *offset;
                while at < end {
                    let next = ((at / SECTOR + 1) * SECTOR).min(end);
                    if coin() {
                        put(&mut bytes, at, &new[at - offset..next - offset]);
                    }
                    at = next;
                }
            }
            (Change::Write { offset, bytes: new }, Keep::Everything | Keep::Before(_)) => put(&mut bytes, *offset, new),
        }
    }
    if let Keep::Some { garbage: true, .. } = keep
        && bytes.len() < grown
    {
        bytes.resize(grown, GARBAGE);
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    let end = offset + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(handle: u64) -> FileRef {
        FileRef { handle, path: PathBuf::from("/d/none") }
    }

    fn replay(entries: &[Entry], medium: Medium) -> Disk {
        let mut disk = Disk::new(Path::new("/d"), &Tree::new(), medium);
        for (index, entry) in entries.iter().enumerate() {
            disk.apply(index, entry);
        }
        disk
    }

    fn path(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    fn created_and_written() -> Vec<Entry> {
        vec![
            Entry::Open { handle: 1, path: path("/d/f"), created: true },
            Entry::Write { file: file(1), offset: 0, bytes: vec![1; 1024] },
        ]
    }

    #[test]
    fn a_file_is_there_once_its_directory_is_synced_and_full_once_it_is_synced_itself() {
        let mut entries = created_and_written();
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Nothing), Tree::new());
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 2 });
        let empty = Tree::from([(path("f"), Some(Vec::new()))]);
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Nothing), empty);
        entries.push(Entry::Sync { file: file(1), covers: 3 });
        let full = Tree::from([(path("f"), Some(vec![1; 1024]))]);
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Nothing), full);
        assert_eq!(replay(&entries, Medium::LiesAboutSync).crash(&mut Keep::Nothing), Tree::new());
        assert_eq!(replay(&entries, Medium::NoDirectorySync).crash(&mut Keep::Nothing), Tree::new());
        assert_eq!(replay(&entries, Medium::LiesAboutSync).crash(&mut Keep::Everything), full);
    }

    #[test]
    fn a_sync_covers_only_what_was_written_before_it_began() {
        let mut entries = created_and_written();
        entries.push(Entry::Write { file: file(1), offset: 0, bytes: vec![2; 512] });
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 2 });
        entries.push(Entry::Sync { file: file(1), covers: 2 });
        let tree = replay(&entries, Medium::Honest).crash(&mut Keep::Nothing);
        assert_eq!(tree[&path("f")], Some(vec![1; 1024]));
    }

    #[test]
    fn a_lost_extension_is_missing_or_zero_or_garbage() {
        let mut entries = created_and_written();
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 2 });
        let disk = replay(&entries, Medium::Honest);
        let with = |falls: [bool; 2], garbage: bool| {
            let mut falls = falls.into_iter();
            let mut coin = || falls.next().unwrap_or(false);
            disk.crash(&mut Keep::Some { coin: &mut coin, garbage })[&path("f")].clone().expect("a file")
        };
        assert_eq!(with([true, false], false), vec![1; 512]);
        assert_eq!(with([false, true], false), [vec![0; 512], vec![1; 512]].concat());
        assert_eq!(with([false, false], false), Vec::<u8>::new());
        assert_eq!(with([false, true], true), [vec![GARBAGE; 512], vec![1; 512]].concat());
        assert_eq!(with([false, false], true), vec![GARBAGE; 1024]);
    }

    #[test]
    fn a_rename_happens_whole_or_not_at_all() {
        let mut entries = created_and_written();
        entries.push(Entry::Sync { file: file(1), covers: 2 });
        entries.push(Entry::CreateDirectory { path: path("/d/sub") });
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 4 });
        entries.push(Entry::Rename { from: path("/d/f"), to: path("/d/sub/g") });
        let names = |entries: &[Entry], keep: &mut Keep<'_>| {
            let tree = replay(entries, Medium::Honest).crash(keep);
            tree.into_iter().filter(|(_, content)| content.is_some()).map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(names(&entries, &mut Keep::Nothing), [path("f")]);
        assert_eq!(names(&entries, &mut Keep::Everything), [path("sub/g")]);
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 6 });
        assert_eq!(names(&entries, &mut Keep::Nothing), [path("f")], "the directory of the new name is not synced");
        entries.push(Entry::SyncDirectory { dir: path("/d/sub"), covers: 7 });
        assert_eq!(names(&entries, &mut Keep::Nothing), [path("sub/g")]);
    }

    #[test]
    fn an_unlink_that_is_not_synced_can_come_back() {
        let mut entries = created_and_written();
        entries.push(Entry::Sync { file: file(1), covers: 2 });
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 3 });
        entries.push(Entry::Unlink { path: path("/d/f") });
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Nothing).len(), 1);
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Everything).len(), 0);
        entries.push(Entry::SyncDirectory { dir: path("/d"), covers: 5 });
        assert_eq!(replay(&entries, Medium::Honest).crash(&mut Keep::Nothing).len(), 0);
    }

    #[test]
    fn a_prefix_ends_where_it_is_told() {
        let mut entries = created_and_written();
        entries.push(Entry::Write { file: file(1), offset: 1024, bytes: vec![2; 10] });
        let disk = replay(&entries, Medium::Honest);
        assert_eq!(disk.pending(), [0, 1, 2]);
        assert_eq!(disk.crash(&mut Keep::Before(2))[&path("f")], Some(vec![1; 1024]));
    }
}
