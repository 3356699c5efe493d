//! Where the frames of one cold file are, found by hopping from description to description.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::cold::frame::{self, Header, PREFIX_BYTES, SKIPPABLE};
use crate::error::Error;
use crate::event::Recorded;

/// Bytes looked at together when the next frame has to be searched for.
const WINDOW_BYTES: usize = 1 << 20;

/// A frame and its place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    packed_at: u64,
    pub(crate) header: Header,
}

impl Place {
    const fn end(&self) -> u64 {
        self.packed_at + self.header.packed_bytes
    }

    /// Reads and checks the events of the frame.
    pub(crate) fn open(&self, path: &Path, file: &File) -> Result<Vec<Recorded>, Error> {
        let what = || format!("{} at byte {}", path.display(), self.offset);
        let length = usize::try_from(self.header.packed_bytes).map_err(|error| Error::corrupt(what(), error))?;
        let mut packed = vec![0; length];
        file.read_exact_at(&mut packed, self.packed_at).map_err(|error| Error::io("read", path, error))?;
        self.header.open(&packed).map_err(|error| Error::corrupt(what(), error))
    }
}

/// The frames of a file.
#[derive(Debug, Default)]
pub(crate) struct Index {
    inode: u64,
    /// Time of the last change, so that a file replaced in place is noticed.
    changed: (i64, i64),
    /// Everything before this byte is indexed.
    pub(crate) whole_bytes: u64,
    pub(crate) frames: Vec<Place>,
    /// Stretches between whole frames that are no frame: damage, as opposed to a torn tail.
    pub(crate) damaged: Vec<(u64, u64)>,
    /// Bytes after the last whole frame.
    pub(crate) torn_bytes: u64,
}

impl Index {
    /// Brings the index up to date with the file. Frames it knows are not read again.
    pub(crate) fn refresh(&mut self, path: &Path, file: &File) -> Result<(), Error> {
        let metadata = file.metadata().map_err(|error| Error::io("examine", path, error))?;
        let (changed, end) = ((metadata.mtime(), metadata.mtime_nsec()), metadata.len());
        let grown = end > self.whole_bytes + self.torn_bytes;
        if metadata.ino() != self.inode || end < self.whole_bytes || (changed != self.changed && !grown) {
            *self = Self { inode: metadata.ino(), ..Self::default() };
        }
        self.changed = changed;
        while self.whole_bytes < end {
            if let Some(place) = read_place(path, file, self.whole_bytes, end)? {
                self.whole_bytes = place.end();
                self.frames.push(place);
                continue;
            }
            // Not a whole frame: damage when another one follows, else a torn tail.
            match find_frame(path, file, self.whole_bytes + 1, end)? {
                Some(offset) => {
                    self.damaged.push((self.whole_bytes, offset));
                    self.whole_bytes = offset;
                }
                None => break,
            }
        }
        self.torn_bytes = end - self.whole_bytes;
        Ok(())
    }

    /// Forgets the last frame, whose bytes turned out to be damaged.
    pub(crate) fn drop_last(&mut self) {
        if let Some(place) = self.frames.pop() {
            self.torn_bytes += self.whole_bytes - place.offset;
            self.whole_bytes = place.offset;
        }
    }
}

/// The whole frame at `offset`, `None` when there is none.
fn read_place(path: &Path, file: &File, offset: u64, end: u64) -> Result<Option<Place>, Error> {
    let read =
        |buffer: &mut [u8], at: u64| file.read_exact_at(buffer, at).map_err(|error| Error::io("read", path, error));
    let left = end - offset;
    if left < PREFIX_BYTES as u64 {
        return Ok(None);
    }
    let mut prefix = [0; PREFIX_BYTES];
    read(&mut prefix, offset)?;
    let Some(length) = frame::header_length(prefix) else { return Ok(None) };
    if left < (PREFIX_BYTES + length) as u64 {
        return Ok(None);
    }
    let mut described = vec![0; length];
    read(&mut described, offset + PREFIX_BYTES as u64)?;
    let Ok(header) = Header::decode(&described) else { return Ok(None) };
    let packed_at = offset + (PREFIX_BYTES + length) as u64;
    let whole = packed_at.checked_add(header.packed_bytes).is_some_and(|frame_end| frame_end <= end);
    Ok(whole.then_some(Place { offset, packed_at, header }))
}

/// The first whole frame at or after `from`.
fn find_frame(path: &Path, file: &File, from: u64, end: u64) -> Result<Option<u64>, Error> {
    let mut window = vec![0; WINDOW_BYTES];
    let mut at = from;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(WINDOW_BYTES);
        let Some(window) = window.get_mut(..length) else { break };
        file.read_exact_at(window, at).map_err(|error| Error::io("read", path, error))?;
        let starts = window.windows(SKIPPABLE.len()).enumerate().filter(|(_, bytes)| *bytes == SKIPPABLE);
        for (start, _) in starts {
            let offset = at + start as u64;
            if read_place(path, file, offset, end)?.is_some() {
                return Ok(Some(offset));
            }
        }
        // The magic number may lie across two windows.
        at += (length - (SKIPPABLE.len() - 1).min(length - 1)) as u64;
    }
    Ok(None)
}
