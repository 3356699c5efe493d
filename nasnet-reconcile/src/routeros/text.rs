//! Bytes as text: RouterOS strings are bytes, and none of them may be lost on the way through Rust strings.
//!
//! A byte that is no part of valid UTF-8 becomes one character of the private range U+10FF80..=U+10FFFF and goes back to
//! the same byte when it is written. Text that really holds a character of that range is carried byte by byte, so
//! [`from_bytes`] followed by [`to_bytes`] gives the same bytes for every input. Everything else, backslashes and control
//! characters included, stands for itself.

const BYTE_PLANE: u32 = 0x0010_FF00;

/// Turns bytes into text without losing any.
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if carried_byte(c).is_some() {
                text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(carrier));
            } else {
                text.push(c);
            }
        }
        text.extend(chunk.invalid().iter().copied().map(carrier));
    }
    text
}

/// Turns text back into the bytes it was made of.
pub fn to_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match carried_byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn carrier(byte: u8) -> char {
    // Every value from U+10FF80 to U+10FFFF is a char.
    char::from_u32(BYTE_PLANE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn carried_byte(c: char) -> Option<u8> {
    let byte = u32::from(c).checked_sub(BYTE_PLANE)?;
    u8::try_from(byte).ok().filter(|b| *b >= 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_byte_string_comes_back(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            proptest::prop_assert_eq!(to_bytes(&from_bytes(&bytes)), bytes);
        }
    }

    #[test]
    fn a_real_character_of_the_private_range_is_not_mistaken_for_a_byte() {
        let bytes = "\u{10FFE9}".as_bytes();
        assert_eq!(to_bytes(&from_bytes(bytes)), bytes);
        assert_eq!(from_bytes(b"caf\xE9"), "caf\u{10FFE9}");
        assert_eq!(from_bytes("Büro \\ \u{0}".as_bytes()), "Büro \\ \u{0}");
    }
}
