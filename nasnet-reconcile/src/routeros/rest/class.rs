//! The rule that sorts RouterOS' refusals into kinds, from the words it uses.

use crate::device::ErrorClass;

/// What a request was aimed at, needed because some refusals mean different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// A whole menu or a menu of one row.
    Menu,
    /// A row named by its id.
    Row,
    /// Creating a row.
    Add,
}

/// Sorts a refusal by its HTTP status and its `detail` (empty when there was none).
pub(crate) fn classify(status: u16, detail: &str, aim: Aim) -> ErrorClass {
    let text = detail.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["not allowed by device-mode"]) {
        ErrorClass::DeviceMode
    } else if has(&["not enough permissions", "permission denied", "cannot log in", "invalid user name"]) {
        ErrorClass::NotPermitted
    } else if has(&["session closed"]) {
        ErrorClass::SessionClosed
    } else if has(&["timed out", "timeout"]) {
        ErrorClass::Timeout
    } else if has(&["unknown parameter"]) {
        ErrorClass::UnknownField
    } else if has(&["input does not match any value of"]) {
        ErrorClass::MissingReference
    } else if has(&["already have", "already exists", "already added", "name exists", "entry exists"]) {
        ErrorClass::AlreadyExists
    } else if has(&["invalid value", "out of range", "missing value", "ambiguous value", "value required"]) {
        ErrorClass::InvalidValue
    } else if has(&["dynamic", "builtin", "built-in", "default entry", "read-only", "read only"]) {
        ErrorClass::ReadOnlyRow
    } else if has(&["no such item"]) {
        ErrorClass::NoSuchItem
    } else if has(&["no such command", "bad command name", "no such directory"]) {
        ErrorClass::NoSuchMenu
    } else if has(&["missing or invalid resource identifier"]) {
        match aim {
            // Some menus say this for a row that is gone.
            Aim::Row => ErrorClass::NoSuchItem,
            // A menu without an `add` command says this to a creation.
            Aim::Add => ErrorClass::NoSuchMenu,
            Aim::Menu => ErrorClass::Malformed,
        }
    } else if has(&["busy", "already running", "in progress"]) {
        ErrorClass::Busy
    } else if has(&["json", "expected", "syntax error", "bad request body"]) {
        ErrorClass::Malformed
    } else {
        match (status, aim) {
            (401 | 403, _) => ErrorClass::NotPermitted,
            (404, Aim::Row) => ErrorClass::NoSuchItem,
            (404..=406, _) => ErrorClass::NoSuchMenu,
            (415, _) => ErrorClass::Malformed,
            _ => ErrorClass::Other,
        }
    }
}

/// Returns whether the device may have performed the command although it answered with this refusal.
pub(crate) fn may_have_happened(class: ErrorClass) -> bool {
    // The time limit ends the session, not necessarily the command.
    matches!(class, ErrorClass::SessionClosed | ErrorClass::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_text_has_its_class() {
        let cases = [
            (400, "unknown parameter frobnicate", Aim::Add, ErrorClass::UnknownField),
            (400, "invalid value for argument address", Aim::Add, ErrorClass::InvalidValue),
            (400, "invalid value of mtu, must be in range 68..65535", Aim::Row, ErrorClass::InvalidValue),
            (400, "value of vlan-id out of range (1..4094)", Aim::Add, ErrorClass::InvalidValue),
            (400, "input does not match any value of interface", Aim::Add, ErrorClass::MissingReference),
            (400, "failure: already have such address", Aim::Add, ErrorClass::AlreadyExists),
            (400, "failure: user with the same name already exists", Aim::Add, ErrorClass::AlreadyExists),
            (400, "failure: device already added as bridge port", Aim::Add, ErrorClass::AlreadyExists),
            (404, "", Aim::Row, ErrorClass::NoSuchItem),
            (400, "no such item", Aim::Menu, ErrorClass::NoSuchItem),
            (400, "missing or invalid resource identifier", Aim::Row, ErrorClass::NoSuchItem),
            (400, "missing or invalid resource identifier", Aim::Add, ErrorClass::NoSuchMenu),
            (400, "missing or invalid resource identifier", Aim::Menu, ErrorClass::Malformed),
            (406, "no such command or directory (remove)", Aim::Row, ErrorClass::NoSuchMenu),
            (400, "no such command prefix", Aim::Menu, ErrorClass::NoSuchMenu),
            (500, "not enough permissions (9)", Aim::Row, ErrorClass::NotPermitted),
            (401, "", Aim::Menu, ErrorClass::NotPermitted),
            (400, "failure: not allowed by device-mode", Aim::Add, ErrorClass::DeviceMode),
            (400, "failure: can not change dynamic item", Aim::Row, ErrorClass::ReadOnlyRow),
            (400, "Session closed", Aim::Menu, ErrorClass::SessionClosed),
            (400, "action timed out - try again", Aim::Menu, ErrorClass::Timeout),
            (400, "failure: something new", Aim::Add, ErrorClass::Other),
        ];
        for (status, detail, aim, class) in cases {
            assert_eq!(classify(status, detail, aim), class, "{status} {detail:?} {aim:?}");
        }
    }
}
