//! JSON as RouterOS writes it: raw control characters and bytes that are no UTF-8 must neither fail nor be lost.
//!
//! A byte that is no part of valid UTF-8 becomes one character of the private range U+10FF80..=U+10FFFF, and goes back
//! to the same byte when it is written. Text that really holds a character of that range is carried byte by byte, so
//! decoding and encoding are inverse to each other.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::device::{RawFields, Row, RowId};

const BYTE_PLANE: u32 = 0x0010_FF00;

/// Whether control characters are written as `\u00XX` or as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlBytes {
    /// As JSON demands.
    Escaped,
    /// As RouterOS is known to print them.
    #[cfg(any(test, feature = "simulator"))]
    Raw,
}

fn char_of_byte(byte: u8) -> char {
    // Every value from U+10FF80 to U+10FFFF is a char.
    char::from_u32(BYTE_PLANE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of_char(c: char) -> Option<u8> {
    let byte = u32::from(c).checked_sub(BYTE_PLANE)?;
    u8::try_from(byte).ok().filter(|b| *b >= 0x80)
}

/// Turns bytes into text without losing any.
pub(crate) fn text_of_bytes(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(|c| byte_of_char(c).is_some())
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if byte_of_char(c).is_some() {
                out.extend(c.encode_utf8(&mut [0; 4]).bytes().map(char_of_byte));
            } else {
                out.push(c);
            }
        }
        out.extend(chunk.invalid().iter().copied().map(char_of_byte));
    }
    Cow::Owned(out)
}

/// Returns the same document with its control characters inside strings escaped and without a byte order mark.
pub(crate) fn sanitise(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = text_of_bytes(bytes);
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if !in_string {
            in_string = c == '"';
            out.push(c);
            continue;
        }
        if c < '\u{20}' {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
            escaped = false;
            continue;
        }
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == '"' {
            in_string = false;
        }
        out.push(c);
    }
    out
}

/// Parses a reply or a request body.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&sanitise(bytes))
}

/// Appends a JSON string, turning carried bytes back into what they were.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str, control: ControlBytes) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c < '\u{20}' && control == ControlBytes::Escaped => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => match byte_of_char(c) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            },
        }
    }
    out.push(b'"');
}

/// Appends a JSON object whose values are all strings.
pub(crate) fn push_object<'a>(
    out: &mut Vec<u8>,
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    control: ControlBytes,
) {
    out.push(b'{');
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_string(out, key, control);
        out.push(b':');
        push_string(out, value, control);
    }
    out.push(b'}');
}

/// Returns a JSON value in the device's spelling: strings as they are, everything else as compact JSON.
pub(crate) fn scalar(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Reads one printed row; without `.id` it is the row of a menu of one.
pub(crate) fn row(object: Map<String, Value>) -> Row {
    let mut fields: RawFields = object.into_iter().map(|(key, value)| (key, scalar(value))).collect();
    let id = fields.remove(".id").map(RowId);
    Row { id, fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_control_bytes_and_invalid_utf8_survive_the_round_trip() {
        let reply = b"\xEF\xBB\xBF[{\"comment\":\"bell\x07 tab\t caf\xE9 \\\"q\\\"\"}]";
        let parsed = parse(reply).unwrap();
        let comment = parsed[0]["comment"].as_str().unwrap().to_owned();
        assert!(comment.starts_with("bell\u{7} tab\t caf"));
        let mut out = Vec::new();
        push_string(&mut out, &comment, ControlBytes::Raw);
        assert_eq!(out, b"\"bell\x07 tab\\t caf\xE9 \\\"q\\\"\"");
    }

    #[test]
    fn text_from_the_private_range_is_not_mistaken_for_bytes() {
        let mut document = Vec::new();
        document.push(b'"');
        document.extend_from_slice("\u{10FFE9}".as_bytes());
        document.push(b'"');
        let carried = parse(&document).unwrap();
        let mut out = Vec::new();
        push_string(&mut out, carried.as_str().unwrap(), ControlBytes::Escaped);
        assert_eq!(out, document);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_a_string_come_back_as_they_were(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let text = text_of_bytes(&bytes).into_owned();
            let mut document = Vec::new();
            push_string(&mut document, &text, ControlBytes::Raw);
            let parsed = parse(&document).unwrap();
            let mut again = Vec::new();
            push_string(&mut again, parsed.as_str().unwrap(), ControlBytes::Raw);
            proptest::prop_assert_eq!(document, again);
        }
    }
}
