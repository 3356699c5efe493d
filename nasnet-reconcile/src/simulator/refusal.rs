//! How the simulated router says no: the status and the text of RouterOS.

use crate::routeros::rest::json::{ControlBytes, push_string};

/// A refused command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused with {status}: {}", detail.as_deref().unwrap_or(reason(*status)))]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The router's text; missing for a plain 401 or 404.
    pub detail: Option<String>,
}

/// Returns the reason phrase RouterOS puts into `message` (S13).
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        406 => "Not Acceptable",
        415 => "Unsupported Media Type",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

impl Refusal {
    fn with_detail(status: u16, detail: String) -> Self {
        Self { status, detail: Some(detail) }
    }

    /// S40: the argument is not one of this menu.
    pub(crate) fn unknown_parameter(name: &str) -> Self {
        Self::with_detail(400, format!("unknown parameter {name}"))
    }

    /// S40: the value does not have the argument's form.
    pub(crate) fn invalid_value(name: &str) -> Self {
        Self::with_detail(400, format!("invalid value for argument {name}"))
    }

    /// S40: the value names nothing that exists.
    pub(crate) fn no_match(name: &str) -> Self {
        Self::with_detail(400, format!("input does not match any value of {name}"))
    }

    /// S40: an argument that every row needs was not given.
    pub(crate) fn missing_value(name: &str) -> Self {
        Self::with_detail(400, format!("missing value(s) of argument(s) {name}"))
    }

    /// S40: the command was understood and failed.
    pub(crate) fn failure(text: &str) -> Self {
        Self::with_detail(400, format!("failure: {text}"))
    }

    /// S06, S17: the request does not name a row where one must be named.
    pub(crate) fn identifier() -> Self {
        Self::with_detail(400, "missing or invalid resource identifier".to_owned())
    }

    /// S24: the row does not exist.
    pub(crate) fn not_found() -> Self {
        Self { status: 404, detail: None }
    }

    /// S10: the login is not accepted.
    pub(crate) fn unauthorized() -> Self {
        Self { status: 401, detail: None }
    }

    /// S40: the menu or the command does not exist.
    pub(crate) fn no_command(status: u16, name: &str) -> Self {
        Self::with_detail(status, format!("no such command or directory ({name})"))
    }

    /// S10: the login lacks a policy.
    pub(crate) fn no_permission(status: u16) -> Self {
        Self::with_detail(status, "not enough permissions (9)".to_owned())
    }

    /// S16: the body is no JSON object of scalars.
    pub(crate) fn malformed_body() -> Self {
        Self::with_detail(400, "expected a JSON object".to_owned())
    }

    /// Prints the error body in RouterOS' order (S13).
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut out = b"{".to_vec();
        if let Some(detail) = &self.detail {
            out.extend_from_slice(b"\"detail\":");
            push_string(&mut out, detail, ControlBytes::Escaped);
            out.push(b',');
        }
        out.extend_from_slice(format!("\"error\":{},\"message\":", self.status).as_bytes());
        push_string(&mut out, reason(self.status), ControlBytes::Escaped);
        out.push(b'}');
        out
    }
}
