//! The one place where errors of the driver become errors of this crate.

use std::sync::Arc;

use crate::error::{ConstraintKind, Error};

/// Result codes of SQLite (<https://www.sqlite.org/rescode.html>); the low byte of an extended code is its primary code.
pub(crate) mod code {
    pub(crate) const BUSY: i32 = 5;
    pub(crate) const LOCKED: i32 = 6;
    pub(crate) const READONLY: i32 = 8;
    pub(crate) const INTERRUPT: i32 = 9;
    pub(crate) const IOERR: i32 = 10;
    pub(crate) const CORRUPT: i32 = 11;
    pub(crate) const FULL: i32 = 13;
    pub(crate) const CANTOPEN: i32 = 14;
    pub(crate) const PROTOCOL: i32 = 15;
    pub(crate) const CONSTRAINT: i32 = 19;
    pub(crate) const NOTADB: i32 = 26;
    pub(crate) const CONSTRAINT_CHECK: i32 = 275;
    pub(crate) const CONSTRAINT_FOREIGNKEY: i32 = 787;
    pub(crate) const CONSTRAINT_NOTNULL: i32 = 1299;
    pub(crate) const CONSTRAINT_PRIMARYKEY: i32 = 1555;
    pub(crate) const CONSTRAINT_TRIGGER: i32 = 1811;
    pub(crate) const CONSTRAINT_UNIQUE: i32 = 2067;
    pub(crate) const CONSTRAINT_ROWID: i32 = 2579;
}

/// Returns the extended result code, when the error comes from SQLite.
pub(crate) fn extended_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Names what a result code means to a caller; `None` when it has no variant of its own.
fn classify(code: i32, detail: String) -> Option<Error> {
    Some(match code & 0xff {
        code::BUSY | code::LOCKED | code::PROTOCOL => Error::Busy { detail },
        code::READONLY => Error::ReadOnly { detail },
        code::INTERRUPT => Error::Interrupted,
        code::IOERR | code::CANTOPEN => Error::Medium { code, detail },
        code::CORRUPT | code::NOTADB => Error::Corrupt { detail },
        code::FULL => Error::NoSpace { detail },
        code::CONSTRAINT => Error::Constraint { kind: constraint_kind(code), detail },
        _ => return None,
    })
}

fn constraint_kind(code: i32) -> ConstraintKind {
    match code {
        code::CONSTRAINT_UNIQUE | code::CONSTRAINT_PRIMARYKEY | code::CONSTRAINT_ROWID => ConstraintKind::Unique,
        code::CONSTRAINT_FOREIGNKEY => ConstraintKind::ForeignKey,
        code::CONSTRAINT_NOTNULL => ConstraintKind::NotNull,
        code::CONSTRAINT_CHECK => ConstraintKind::Check,
        code::CONSTRAINT_TRIGGER => ConstraintKind::Trigger,
        _ => ConstraintKind::Other,
    }
}

/// Translates an error of the driver, naming the operation when it has no variant of its own.
pub(crate) fn translate(operation: &'static str, error: sqlx::Error) -> Error {
    if let Some(code) = extended_code(&error) {
        let detail = error.as_database_error().map(|e| e.message().to_owned()).unwrap_or_default();
        if let Some(known) = classify(code, detail) {
            return known;
        }
    }
    Error::Storage { operation, source: Arc::new(error) }
}

/// Translates a result code of SQLite itself.
pub(crate) fn translate_code(operation: &'static str, code: i32, message: String) -> Error {
    let unnamed = || Error::Storage { operation, source: Arc::new(sqlx::Error::Protocol(message.clone())) };
    classify(code, message.clone()).unwrap_or_else(unnamed)
}

/// Returns the extended result code of an error of a raw statement, when it comes from SQLite.
pub(crate) fn extended_code_raw(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|failure| failure.extended_code)
}

/// Translates an error of a raw statement as [`translate`] does one of the driver.
pub(crate) fn translate_raw(operation: &'static str, error: rusqlite::Error) -> Error {
    if let Some(known) = extended_code_raw(&error).and_then(|code| classify(code, error.to_string())) {
        return known;
    }
    Error::Storage { operation, source: Arc::new(sqlx::Error::AnyDriverError(Box::new(error))) }
}

/// A shorthand for `map_err`: `.map_err(during("read the registry"))`.
pub(crate) fn during(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| translate(operation, error)
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        translate("run a statement", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measured_code_has_the_variant_its_remedy_needs() {
        let of = |code| classify(code, String::new());
        for code in [5, 6, 261, 517] {
            assert!(matches!(of(code), Some(Error::Busy { .. })), "{code}");
        }
        for code in [11, 26, 267, 523, 779] {
            assert!(matches!(of(code), Some(Error::Corrupt { .. })), "{code}");
        }
        for code in [266, 778, 1034, 14, 526] {
            assert!(matches!(of(code), Some(Error::Medium { code: c, .. }) if c == code), "{code}");
        }
        assert!(matches!(of(13), Some(Error::NoSpace { .. })));
        assert!(matches!(of(8), Some(Error::ReadOnly { .. })));
        assert!(matches!(of(9), Some(Error::Interrupted)));
        assert!(matches!(of(2067), Some(Error::Constraint { kind: ConstraintKind::Unique, .. })));
        assert!(matches!(of(787), Some(Error::Constraint { kind: ConstraintKind::ForeignKey, .. })));
        assert!(of(1).is_none());
    }
}
