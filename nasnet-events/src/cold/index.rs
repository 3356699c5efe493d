//! Where the frames of one cold file are, found by hopping from description to description.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chain::Digest;
use crate::cold::frame::{self, Header, MAGIC, PREFIX_BYTES, SKIPPABLE};
use crate::error::Error;
use crate::event::Recorded;
use crate::merge::Range;
use crate::position::Position;
use crate::query::Query;

/// Bytes looked at together when the next frame has to be searched for.
const WINDOW_BYTES: usize = 1 << 20;

/// A file of the cold tier that counts what is read of it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: File,
    /// For people.
    pub(crate) path: PathBuf,
    pub(crate) bytes_read: Arc<AtomicU64>,
}

impl Source {
    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_exact_at(buffer, at).map_err(|error| Error::io("read", &self.path, error))
    }

    /// Reads `length` bytes.
    pub(crate) fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(length).map_err(|error| Error::corrupt(self.path.display().to_string(), error))?;
        let mut bytes = vec![0; length];
        self.read(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// A frame and its place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    packed_at: u64,
    pub(crate) header: Header,
}

impl Place {
    pub(crate) const fn end(&self) -> u64 {
        self.packed_at + self.header.packed_bytes
    }

    /// Reads and checks the events of the frame.
    pub(crate) fn open(&self, source: &Source) -> Result<Vec<Recorded>, Error> {
        let packed = source.bytes(self.packed_at, self.header.packed_bytes)?;
        let what = || format!("{} at byte {}", source.path.display(), self.offset);
        self.header.open(&packed).map_err(|error| Error::corrupt(what(), error))
    }

    /// As [`Place::open`], of the wanted events.
    pub(crate) fn open_wanted(&self, source: &Source, query: &Query) -> Result<Vec<Recorded>, Error> {
        let packed = source.bytes(self.packed_at, self.header.packed_bytes)?;
        let what = || format!("{} at byte {}", source.path.display(), self.offset);
        self.header.open_wanted(&packed, query).map_err(|error| Error::corrupt(what(), error))
    }
}

/// What stands after the last whole frame of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tail {
    /// Nothing.
    #[default]
    None,
    /// The beginning of a frame whose writing did not end: nothing in it was ever confirmed.
    Torn,
    /// Bytes that are no beginning of a frame: one that has been damaged, or what somebody else wrote.
    Damaged,
}

/// What is found at a place of a file.
enum Look {
    Frame(Box<Place>),
    Torn,
    Damaged,
}

/// The frames of a file.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Device and inode.
    file: (u64, u64),
    /// Time of the last change, so that a file replaced in place is noticed.
    changed: (i64, i64),
    /// Everything before this byte is indexed.
    pub(crate) whole_bytes: u64,
    pub(crate) frames: Vec<Place>,
    /// Stretches between whole frames that are no frame.
    pub(crate) damaged: Vec<(u64, u64)>,
    /// Bytes after the last whole frame, and what they are.
    pub(crate) tail_bytes: u64,
    pub(crate) tail: Tail,
    /// The file begins as those of this crate do.
    begins_as_ours: bool,
    /// The last frame is known to be on this medium, and not in the page cache alone, as long as the file is as it was.
    pub(crate) is_settled: bool,
    /// The last frame was found damaged, and cannot be written again: nothing is added behind it as long as the file is as
    /// it was.
    pub(crate) is_left: bool,
}

impl Index {
    /// Brings the index up to date with the file. Frames it knows are not read again, but for the last one: another
    /// medium may hold another file of this name.
    pub(crate) fn refresh(&mut self, source: &Source) -> Result<(), Error> {
        let metadata = source.file.metadata().map_err(|error| Error::io("examine", &source.path, error))?;
        let (changed, end) = ((metadata.mtime(), metadata.mtime_nsec()), metadata.len());
        let identity = (metadata.dev(), metadata.ino());
        let known_bytes = self.whole_bytes + self.tail_bytes;
        if identity == self.file && changed == self.changed && end == known_bytes {
            return Ok(());
        }
        let kept = identity == self.file && end > known_bytes && self.last_is_there(source, end)?;
        if !kept {
            *self = Self { file: identity, ..Self::default() };
        }
        if self.whole_bytes == 0 {
            self.begins_as_ours = begins_as_ours(source, end)?;
        }
        self.changed = changed;
        (self.is_settled, self.is_left) = (false, false);
        self.tail = Tail::None;
        while self.whole_bytes < end {
            let found = match look(source, self.whole_bytes, end)? {
                Look::Frame(place) => {
                    self.whole_bytes = place.end();
                    self.frames.push(*place);
                    continue;
                }
                Look::Torn => Tail::Torn,
                Look::Damaged => Tail::Damaged,
            };
            // In the middle of a file it is damage, whatever it looks like.
            match find_frame(source, self.whole_bytes + 1, end)? {
                Some(offset) => {
                    self.damaged.push((self.whole_bytes, offset));
                    self.whole_bytes = offset;
                }
                None => {
                    self.tail = found;
                    break;
                }
            }
        }
        self.tail_bytes = end - self.whole_bytes;
        Ok(())
    }

    /// Between which positions the events of what is damaged at a byte were, by the frames before and behind it, and the chain
    /// behind that which follows.
    pub(crate) fn around(&self, byte: u64) -> (Range, Option<Digest>) {
        let (before, behind) = self.frames.split_at(self.frames.partition_point(|place| place.offset < byte));
        let low = before.last().map_or(Position::START, |place| place.header.last);
        let high = behind.first().map_or(Position::END, |place| place.header.first.before());
        (Range { low, high }, behind.first().map(|place| place.header.chain.1))
    }

    fn last_is_there(&self, source: &Source, end: u64) -> Result<bool, Error> {
        let Some(last) = self.frames.last() else { return Ok(true) };
        Ok(matches!(look(source, last.offset, end)?, Look::Frame(place) if place.header == last.header))
    }

    /// Forgets the last frame, whose bytes turned out not to be there.
    pub(crate) fn drop_last(&mut self, tail: Tail) {
        if let Some(place) = self.frames.pop() {
            self.tail_bytes += self.whole_bytes - place.offset;
            self.whole_bytes = place.offset;
            self.tail = tail;
        }
    }

    /// Takes note that the tail is gone.
    pub(crate) fn forget_tail(&mut self) {
        (self.tail, self.tail_bytes) = (Tail::None, 0);
    }

    /// True when the file holds no frame of ours at all, nor the beginning of one, whole or damaged.
    pub(crate) fn is_foreign(&self) -> bool {
        self.frames.is_empty() && self.damaged.is_empty() && self.tail == Tail::Damaged && !self.begins_as_ours
    }
}

/// True when either of the two magic numbers stands where the first frame has it: damage to one does not make the file
/// somebody else's.
fn begins_as_ours(source: &Source, end: u64) -> Result<bool, Error> {
    let start = source.bytes(0, end.min((PREFIX_BYTES + MAGIC.len()) as u64))?;
    Ok(start.starts_with(&SKIPPABLE) || start.get(PREFIX_BYTES..).is_some_and(|described| described == MAGIC))
}

/// What stands at `offset`, which lies before `end`.
fn look(source: &Source, offset: u64, end: u64) -> Result<Look, Error> {
    let left = end - offset;
    if left < PREFIX_BYTES as u64 {
        let bytes = source.bytes(offset, left)?;
        let begins = SKIPPABLE.iter().zip(&bytes).all(|(ours, found)| ours == found);
        return Ok(if begins || all_zero(&bytes) { Look::Torn } else { Look::Damaged });
    }
    let mut prefix = [0; PREFIX_BYTES];
    source.read(&mut prefix, offset)?;
    let Some(length) = frame::header_length(prefix) else {
        let torn = all_zero(&prefix) && zeros_from(source, offset, end)?;
        return Ok(if torn { Look::Torn } else { Look::Damaged });
    };
    let described_at = offset + PREFIX_BYTES as u64;
    if left < (PREFIX_BYTES + length) as u64 {
        // Either the description ends with the file, or its length is damaged and it is all there.
        let found = source.bytes(described_at, end - described_at)?;
        return Ok(if Header::is_whole_at(&found) { Look::Damaged } else { Look::Torn });
    }
    let described = source.bytes(described_at, length as u64)?;
    let Ok(header) = Header::decode(&described) else {
        // The file has its length already, but not all of its bytes.
        let written = described.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let torn = written + 4 <= length && zeros_from(source, described_at + written as u64, end)?;
        return Ok(if torn { Look::Torn } else { Look::Damaged });
    };
    let packed_at = described_at + length as u64;
    let whole = packed_at.checked_add(header.packed_bytes).is_some_and(|frame_end| frame_end <= end);
    Ok(if whole { Look::Frame(Box::new(Place { offset, packed_at, header })) } else { Look::Torn })
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// True when the file ends in nothing but zeros.
fn zeros_from(source: &Source, from: u64, end: u64) -> Result<bool, Error> {
    let mut at = from;
    while at < end {
        let length = (end - at).min(WINDOW_BYTES as u64);
        if !all_zero(&source.bytes(at, length)?) {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}

/// The first whole frame at or after `from`.
fn find_frame(source: &Source, from: u64, end: u64) -> Result<Option<u64>, Error> {
    let mut at = from;
    while at < end {
        let length = (end - at).min(WINDOW_BYTES as u64);
        let window = source.bytes(at, length)?;
        let starts = window.windows(SKIPPABLE.len()).enumerate().filter(|(_, bytes)| *bytes == SKIPPABLE);
        for (start, _) in starts {
            let offset = at + start as u64;
            if matches!(look(source, offset, end)?, Look::Frame(_)) {
                return Ok(Some(offset));
            }
        }
        if length < SKIPPABLE.len() as u64 {
            break;
        }
        // The magic number may lie across two windows.
        at += length - (SKIPPABLE.len() as u64 - 1);
    }
    Ok(None)
}
