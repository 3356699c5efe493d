//! JSON as RouterOS writes it: raw control characters and bytes that are no UTF-8 must neither fail nor be lost.
//!
//! Bytes that are no UTF-8 are carried as [`text`] says and go back to what they were.

use serde_json::{Map, Value};

use crate::device::{RawFields, Row, RowId};
use crate::routeros::text;

/// Whether control characters are written as `\u00XX` or as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlBytes {
    /// As JSON demands.
    Escaped,
    /// As RouterOS is known to print them.
    #[cfg(any(test, feature = "simulator"))]
    Raw,
}

/// Returns the same document with its control characters inside strings escaped and without a byte order mark.
pub(crate) fn sanitise(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = text::from_bytes(bytes);
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
pub(crate) fn push_string(out: &mut Vec<u8>, value: &str, control: ControlBytes) {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c < '\u{20}' && control == ControlBytes::Escaped => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    out.extend_from_slice(&text::to_bytes(&quoted));
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
        Value::String(value) => value,
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
            let text = text::from_bytes(&bytes);
            let mut document = Vec::new();
            push_string(&mut document, &text, ControlBytes::Raw);
            let parsed = parse(&document).unwrap();
            let mut again = Vec::new();
            push_string(&mut again, parsed.as_str().unwrap(), ControlBytes::Raw);
            proptest::prop_assert_eq!(document, again);
        }
    }
}
