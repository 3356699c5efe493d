//! What an answer means: the rows it holds, the refusal it gives, or that it cannot be trusted.

use serde_json::Value;

use super::class::{Aim, classify, may_have_happened};
use super::connection::Reply;
use super::json;
use crate::device::{DeviceError, ErrorClass, RawFields, Row, WriteOutcome, is_secret_name};

/// A refusal in RouterOS' error format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) class: ErrorClass,
    pub(super) detail: String,
}

/// Reads a refusal; `None` when the answer is not one the router itself would give.
pub(super) fn refusal(reply: &Reply, aim: Aim) -> Option<Refusal> {
    if !(400..500).contains(&reply.status) {
        return None;
    }
    let body = json::parse(&reply.body).ok()?;
    let object = body.as_object()?;
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    if !object.contains_key("error") && !object.contains_key("detail") {
        return None;
    }
    let (detail, message) = (text("detail"), text("message"));
    let class = classify(reply.status, detail, aim);
    Some(Refusal { class, detail: if detail.is_empty() { message.to_owned() } else { detail.to_owned() } })
}

/// Reads the rows of a printed menu.
pub(super) fn rows(reply: &Reply, request: &str) -> Result<Vec<Row>, DeviceError> {
    let malformed = |cause: String| DeviceError::Malformed { request: request.to_owned(), cause };
    match json::parse(&reply.body).map_err(|error| malformed(format!("not JSON: {error}")))? {
        Value::Object(object) => Ok(vec![json::row(object)]),
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(object) => Ok(json::row(object)),
                other => Err(malformed(format!("a row is {}", name_of(&other)))),
            })
            .collect(),
        other => Err(malformed(format!("the reply is {}", name_of(&other)))),
    }
}

/// Turns an answer that is not a success into the error of a read.
pub(super) fn read_error(reply: &Reply, request: &str, aim: Aim) -> DeviceError {
    match refusal(reply, aim) {
        Some(Refusal { class, detail }) => DeviceError::Refused { request: request.to_owned(), class, detail },
        None => DeviceError::Malformed {
            request: request.to_owned(),
            cause: format!("status {} without RouterOS' error body", reply.status),
        },
    }
}

/// What a successful answer to a write must hold to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// The row with its id.
    RowWithId,
    /// The row, or nothing.
    RowOrNothing,
    /// Nothing.
    Nothing,
}

/// Turns a whole answer to a write into what became of it.
pub(super) fn write_outcome(reply: &Reply, aim: Aim, expect: Expect, sent: &RawFields) -> WriteOutcome {
    if (200..300).contains(&reply.status) {
        return match confirmed_row(reply, expect) {
            Ok(row) => WriteOutcome::Done { row },
            Err(hint) => WriteOutcome::Unknown { hint },
        };
    }
    match refusal(reply, aim) {
        Some(Refusal { class, .. }) if may_have_happened(class) => {
            WriteOutcome::Unknown { hint: format!("the device gave up waiting ({class:?})") }
        }
        Some(Refusal { class, detail }) => WriteOutcome::Rejected { class, detail: redact(&detail, sent) },
        None => WriteOutcome::Unknown { hint: format!("status {} without RouterOS' error body", reply.status) },
    }
}

fn confirmed_row(reply: &Reply, expect: Expect) -> Result<Option<Row>, String> {
    let nothing = reply.body.iter().all(u8::is_ascii_whitespace);
    if expect == Expect::Nothing || (nothing && expect == Expect::RowOrNothing) {
        return Ok(None);
    }
    let body =
        json::parse(&reply.body).map_err(|error| format!("the device said yes with no readable row: {error}"))?;
    match body {
        Value::Object(object) => {
            let row = json::row(object);
            if row.id.is_none() && expect == Expect::RowWithId {
                return Err("the device said yes with a row that has no id".to_owned());
            }
            Ok(Some(row))
        }
        Value::Array(items) if items.is_empty() && expect == Expect::RowOrNothing => Ok(None),
        other => Err(format!("the device said yes with {}", name_of(&other))),
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Removes the values of secret fields that were sent from what the device answered.
fn redact(detail: &str, sent: &RawFields) -> String {
    sent.iter()
        .filter(|(field, value)| is_secret_name(field) && !value.is_empty())
        .fold(detail.to_owned(), |text, (_, value)| text.replace(value.as_str(), "(secret)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_the_device_repeats_is_removed() {
        let sent =
            RawFields::from([("private-key".to_owned(), "aGVsbG8=".to_owned()), ("name".to_owned(), "wg0".to_owned())]);
        assert_eq!(redact("invalid value aGVsbG8= for wg0", &sent), "invalid value (secret) for wg0");
    }

    #[test]
    fn only_a_whole_answer_of_the_router_itself_is_trusted() {
        let outcome = |status: u16, body: &[u8], expect| {
            let reply = Reply { status, body: bytes::Bytes::copy_from_slice(body) };
            write_outcome(&reply, Aim::Row, expect, &RawFields::new())
        };
        let unknown = |outcome: WriteOutcome| matches!(outcome, WriteOutcome::Unknown { .. });
        assert!(unknown(outcome(201, b"{\"address\":\"1", Expect::RowWithId)));
        assert!(unknown(outcome(201, b"{}", Expect::RowWithId)));
        assert!(unknown(outcome(200, b"<html>", Expect::RowOrNothing)));
        assert!(unknown(outcome(503, b"<html>busy</html>", Expect::Nothing)));
        assert!(unknown(outcome(400, b"<html>from a proxy</html>", Expect::Nothing)));
        assert!(unknown(outcome(400, b"{\"detail\":\"Session closed\",\"error\":400}", Expect::RowOrNothing)));
        assert_eq!(outcome(204, b"", Expect::Nothing), WriteOutcome::Done { row: None });
        assert_eq!(outcome(200, b"[]", Expect::RowOrNothing), WriteOutcome::Done { row: None });
        assert_eq!(
            outcome(404, b"{\"error\":404,\"message\":\"Not Found\"}", Expect::Nothing),
            WriteOutcome::Rejected { class: ErrorClass::NoSuchItem, detail: "Not Found".to_owned() }
        );
    }
}
