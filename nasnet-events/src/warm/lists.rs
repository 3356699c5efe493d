//! The lists of types and streams of a segment: read without its body, so they have checksums of their own. Pure.

use std::collections::BTreeMap;

use crate::varint::{self, Malformed, Reader};

/// Reads the lists of types and streams of a segment from any bytes, as they are and behind a checksum that is right.
#[cfg(feature = "fuzzing")]
pub(crate) fn parse_any(bytes: &[u8]) -> Result<(), Malformed> {
    drop((parse_ids(bytes), parse_streams(bytes)));
    let right = with_checksum(bytes.to_vec());
    drop(parse_ids(&right));
    parse_streams(&right).map(drop)
}

/// A list with a checksum of its own in front: it is used without the body, which would tell that it is damaged.
fn with_checksum(mut list: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&list).to_le_bytes();
    list.splice(0..0, crc);
    list
}

fn checked(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let (crc, list) = bytes.split_first_chunk().ok_or(Malformed("ends early"))?;
    if u32::from_le_bytes(*crc) == crc32c::crc32c(list) { Ok(list) } else { Err(Malformed("checksum differs")) }
}

/// A list of types.
pub(crate) fn put_ids(ids: impl IntoIterator<Item = i64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in ids {
        varint::put(&mut bytes, id.cast_unsigned());
    }
    with_checksum(bytes)
}

/// Reads a list of types.
pub(crate) fn parse_ids(bytes: &[u8]) -> Result<Vec<i64>, Malformed> {
    let mut reader = Reader::new(checked(bytes)?);
    let mut ids = Vec::new();
    while !reader.is_empty() {
        ids.push(reader.varint()?.cast_signed());
    }
    Ok(ids)
}

/// Reads a list of streams with the highest version of each.
pub(crate) fn parse_streams(bytes: &[u8]) -> Result<Vec<(i64, u64)>, Malformed> {
    let mut reader = Reader::new(checked(bytes)?);
    let mut streams = Vec::new();
    let mut id = 0_u64;
    while !reader.is_empty() {
        id = id.checked_add(reader.varint()?).ok_or(Malformed("stream number too large"))?;
        streams.push((id.cast_signed(), reader.varint()?));
    }
    Ok(streams)
}

/// The list of streams with the highest version of each: numbers ascend, and each is the distance from the one before, since
/// most are neighbours.
pub(crate) fn put_streams(streams: &BTreeMap<i64, u64>) -> Vec<u8> {
    let (mut bytes, mut before) = (Vec::new(), 0);
    for (id, top) in streams {
        varint::put(&mut bytes, id.cast_unsigned() - before);
        varint::put(&mut bytes, *top);
        before = id.cast_unsigned();
    }
    with_checksum(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_of_streams_comes_back(streams in prop::collection::btree_map(1..i64::MAX, any::<u64>(), 0..50)) {
            let expected: Vec<_> = streams.iter().map(|(id, top)| (*id, *top)).collect();
            prop_assert_eq!(parse_streams(&put_streams(&streams)), Ok(expected));
        }

        #[test]
        fn a_list_of_types_comes_back_and_a_changed_bit_is_an_error(
            ids in prop::collection::btree_set(1..i64::MAX, 0..9),
            at: prop::sample::Index,
            bit in 0..8_u32,
        ) {
            let mut bytes = put_ids(ids.iter().copied());
            prop_assert_eq!(parse_ids(&bytes), Ok(ids.iter().copied().collect()));
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(parse_ids(&bytes), Err(Malformed("checksum differs")));
        }

        #[test]
        fn a_changed_bit_of_a_list_is_an_error(
            streams in prop::collection::btree_map(1..i64::MAX, any::<u64>(), 0..9),
            at: prop::sample::Index,
            bit in 0..8_u32,
        ) {
            let mut bytes = put_streams(&streams);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(parse_streams(&bytes), Err(Malformed("checksum differs")));
        }
    }

    #[test]
    fn numbers_that_run_over_are_refused() {
        let mut bytes = Vec::new();
        for number in [u64::MAX, 1, 1, 1] {
            varint::put(&mut bytes, number);
        }
        assert_eq!(parse_streams(&with_checksum(bytes)), Err(Malformed("stream number too large")));
    }
}
