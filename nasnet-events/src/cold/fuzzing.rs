//! A frame as one run of bytes, for the fuzz target.

use crate::chain::Digest;
use crate::cold::frame::{self, Header, PREFIX_BYTES};
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
