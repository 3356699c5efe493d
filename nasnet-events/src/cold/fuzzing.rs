//! A frame, a whole file of them and the name of one as bytes, for the fuzz targets.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use crate::chain::Digest;
use crate::cold::frame::{self, Header, PREFIX_BYTES};
use crate::cold::index::{Index, Source, Tail};
use crate::cold::month::FileName;
use crate::error::Error;
use crate::event::Recorded;
use crate::varint::Malformed;

/// The description and the lines of a frame.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let short = Malformed("ends early");
    let prefix: [u8; PREFIX_BYTES] =
        bytes.get(..PREFIX_BYTES).and_then(|prefix| prefix.try_into().ok()).ok_or(short)?;
    let length = frame::header_length(prefix).ok_or(Malformed("not a frame"))?;
    bytes.get(PREFIX_BYTES..).and_then(|rest| rest.split_at_checked(length)).ok_or(short)
}

/// Decodes a frame: the chain before it and its events.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Digest, Vec<Recorded>), Malformed> {
    let (described, packed) = split(bytes)?;
    let header = Header::decode(described)?;
    Ok((header.chain.0, header.open(packed)?))
}

/// Encodes a frame.
pub(crate) fn encode(events: &[Recorded], before: Digest) -> Result<Vec<u8>, Malformed> {
    frame::encode(events, before).map(|(_, bytes)| bytes)
}

/// The same bytes with the checksum a description of them would have, so that damage gets past it.
pub(crate) fn with_right_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let length = split(&bytes).map_or(0, |(described, _)| described.len());
    if length >= 4
        && let Some(described) = bytes.get_mut(PREFIX_BYTES..PREFIX_BYTES + length)
    {
        let (body, stored) = described.split_at_mut(length - 4);
        stored.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
    bytes
}

/// What an index says about a file: its frames, how many of them hold what they describe, and the length it counts on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) frames: usize,
    pub(crate) readable: usize,
    pub(crate) is_whole: bool,
}

/// Indexes a file of these bytes, and what is left of it when its end is cut as a mount cuts it.
///
/// # Panics
/// When the index contradicts itself: bytes that are neither frame nor damage nor tail, or other frames after the cut.
pub(crate) fn index(bytes: &[u8]) -> Result<Indexed, Error> {
    let (index, source) = indexed(bytes)?;
    assert_eq!(index.whole_bytes + index.tail_bytes, bytes.len() as u64, "the index covers another length");
    assert_eq!(index.tail_bytes == 0, index.tail == Tail::None, "an end is of no kind");
    let framed: u64 = index.frames.iter().map(|place| place.end() - place.offset).sum();
    let damaged: u64 = index.damaged.iter().map(|(from, to)| to - from).sum();
    assert_eq!(framed + damaged, index.whole_bytes, "bytes are neither frame nor damage, or both");
    let cut = usize::try_from(index.whole_bytes).ok().and_then(|end| bytes.get(..end)).unwrap_or_default();
    let (again, _) = indexed(cut)?;
    let offsets = |index: &Index| index.frames.iter().map(|place| place.offset).collect::<Vec<_>>();
    assert_eq!((offsets(&again), again.tail), (offsets(&index), Tail::None), "cutting the end changes the rest");
    let readable = index.frames.iter().filter(|place| place.open(&source).is_ok()).count();
    let is_whole = index.tail == Tail::None && index.damaged.is_empty();
    Ok(Indexed { frames: index.frames.len(), readable, is_whole })
}

fn indexed(bytes: &[u8]) -> Result<(Index, Source), Error> {
    let path = PathBuf::from("fuzzed");
    let failed = |error: std::io::Error| Error::io("write", &path, error);
    let memory = rustix::fs::memfd_create("fuzzed", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(memory);
    file.write_all(bytes).map_err(failed)?;
    let source = Source { file, path, bytes_read: Arc::default() };
    let mut index = Index::default();
    index.refresh(&source)?;
    Ok((index, source))
}

/// True when a name is one of a file of the cold tier, which then is spelled as it would be written.
pub(crate) fn is_file_name(text: &str) -> bool {
    text.parse::<FileName>().is_ok_and(|name| name.to_string() == text)
}
