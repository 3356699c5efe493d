//! What an error says about the file: the table everything else follows.

use crate::driver::code;
use crate::error::Error;

/// When an error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moment {
    /// While opening a database that must exist.
    Opening,
    /// While using one that is open.
    Using,
}

/// What to do about an error of SQLite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The file is damaged or gone: stop using it, set it aside, replace it.
    Quarantine,
    /// The medium failed: close, open again and check before going on.
    Reopen,
    /// The medium is full: nothing is damaged, and space makes it go on.
    Full,
    /// The medium became read-only: reads go on.
    ReadOnly,
    /// It passes: try again later.
    Retry,
    /// The file has nothing to do with it: the statement is wrong, or was refused by the schema.
    Caller,
}

const IOERR_READ: i32 = 266;
const IOERR_SHORT_READ: i32 = 522;
const NOMEM: i32 = 7;

/// Decides what a result code of SQLite means for the file it came from.
///
/// Extended codes are understood where they differ from their primary code; an unknown code is the caller's.
pub const fn verdict(result_code: i32, moment: Moment) -> Verdict {
    match (result_code, moment) {
        // A file shorter than it says is no failure of the medium.
        (IOERR_SHORT_READ, _) => return Verdict::Quarantine,
        (IOERR_READ, _) => return Verdict::Reopen,
        _ => {}
    }
    match (result_code & 0xff, moment) {
        // A path that is registered and cannot be opened is a directory, or gone.
        (code::CORRUPT | code::NOTADB, _) | (code::CANTOPEN, Moment::Opening) => Verdict::Quarantine,
        (code::IOERR | code::CANTOPEN, _) => Verdict::Reopen,
        (code::FULL, _) => Verdict::Full,
        (code::READONLY, _) => Verdict::ReadOnly,
        (code::BUSY | code::LOCKED | code::PROTOCOL | code::INTERRUPT | NOMEM, _) => Verdict::Retry,
        _ => Verdict::Caller,
    }
}

impl Error {
    /// Tells whether the error says that a database is damaged or missing, so that only setting it aside and replacing
    /// it ([`DbManager::recover`](crate::DbManager::recover)) helps.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::MissingDatabase { .. } => true,
            Self::Medium { code, .. } => matches!(verdict(*code, Moment::Using), Verdict::Quarantine),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Moment::{Opening, Using};
    use super::*;

    #[test]
    fn every_measured_case_has_its_verdict() {
        use Verdict::{Caller, Full, Quarantine, ReadOnly, Reopen, Retry};
        let cases = [
            ("header or page size flipped, junk file", 26, Opening, Quarantine),
            ("page 1 flipped, file cut to half", 11, Opening, Quarantine),
            ("root of a table flipped", 11, Using, Quarantine),
            ("virtual table, sequence, index damaged", 267, Using, Quarantine),
            ("virtual table, sequence, index damaged", 523, Using, Quarantine),
            ("virtual table, sequence, index damaged", 779, Using, Quarantine),
            ("file shorter than it says", 522, Using, Quarantine),
            ("a directory as path, or the file is gone", 14, Opening, Quarantine),
            ("descriptors exhausted", 14, Using, Reopen),
            ("full on insert, delete, checkpoint, vacuum", 13, Using, Full),
            ("full while creating", 13, Opening, Full),
            ("write fails", 778, Using, Reopen),
            ("sync fails", 1034, Using, Reopen),
            ("read fails", 266, Using, Reopen),
            ("another failure of the medium", 10, Using, Reopen),
            ("file system aborted", 8, Using, ReadOnly),
            ("out of memory", 7, Using, Retry),
            ("busy", 5, Using, Retry),
            ("locked", 6, Using, Retry),
            ("busy recovering", 261, Opening, Retry),
            ("busy snapshot", 517, Using, Retry),
            ("interrupted", 9, Using, Retry),
            ("no such table, output file exists", 1, Using, Caller),
            ("unique", 2067, Using, Caller),
            ("misuse", 21, Using, Caller),
        ];
        for (case, code, moment, expected) in cases {
            assert_eq!(verdict(code, moment), expected, "{case}: {code} while {moment:?}");
        }
    }

    #[test]
    fn nothing_but_damage_ever_leads_to_quarantine_while_in_use() {
        for code in 0..4096 {
            if verdict(code, Using) == Verdict::Quarantine {
                assert!(matches!(code & 0xff, 11 | 26) || code == 522, "{code}");
            }
        }
    }
}
