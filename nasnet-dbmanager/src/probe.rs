//! What a connection just opened says about itself and its file, read on the calling thread.
//!
//! The driver answers each statement from a thread of its own, and opening asks some twenty questions. Here the handle
//! is taken from that thread once and all of them are answered in a row.
#![expect(unsafe_code, reason = "statements on a handle locked out of the thread of the driver")]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use libsqlite3_sys as ffi;
use sqlx::sqlite::LockedSqliteHandle;

use crate::driver::translate_code;
use crate::error::Error;

/// The values of one row, each as the bytes of its text or blob; empty when there was no row.
pub(crate) type ProbedRow = Vec<Option<Vec<u8>>>;

/// Returns the first row of each statement of `sql`.
///
/// The statements must be short and wait for nobody: they run on the calling thread.
///
/// # Errors
/// What SQLite reports for the first statement that fails.
pub(crate) fn first_rows(
    handle: &mut LockedSqliteHandle<'_>,
    operation: &'static str,
    sql: &str,
) -> Result<Vec<ProbedRow>, Error> {
    let db = handle.as_raw_handle().as_ptr();
    let mut rows = Vec::new();
    let mut rest = sql.as_bytes();
    while !rest.is_empty() {
        let (statement, used) = Statement::prepare(db, rest, operation)?;
        rest = rest.get(used..).unwrap_or_default();
        // Nothing but white space and comments.
        let Some(mut statement) = statement else { break };
        rows.push(statement.first_row(operation)?);
    }
    Ok(rows)
}

/// A statement of a handle that is borrowed for longer than it lives.
struct Statement {
    db: *mut ffi::sqlite3,
    statement: *mut ffi::sqlite3_stmt,
}

impl Statement {
    /// Prepares the first statement of a text; also returns how many bytes of it that is.
    fn prepare(db: *mut ffi::sqlite3, sql: &[u8], operation: &'static str) -> Result<(Option<Self>, usize), Error> {
        let mut statement = ptr::null_mut();
        let mut tail = ptr::null();
        let start = sql.as_ptr().cast::<c_char>();
        let len = c_int::try_from(sql.len()).unwrap_or(c_int::MAX);
        // SAFETY: the caller of `first_rows` has the handle, so it is open and nobody else uses it; the text is readable
        // for `len` bytes, and SQLite reads no further than that.
        let code = unsafe { ffi::sqlite3_prepare_v2(db, start, len, &raw mut statement, &raw mut tail) };
        if code != ffi::SQLITE_OK {
            return Err(failure(db, operation));
        }
        // SAFETY: on success SQLite points the tail into the same text or just behind it.
        let used = unsafe { tail.offset_from(start) };
        let used = usize::try_from(used).unwrap_or(sql.len());
        Ok(((!statement.is_null()).then_some(Self { db, statement }), used))
    }

    fn first_row(&mut self, operation: &'static str) -> Result<ProbedRow, Error> {
        // SAFETY: the statement was prepared and is finalised only by `drop`.
        match unsafe { ffi::sqlite3_step(self.statement) } {
            ffi::SQLITE_DONE => Ok(Vec::new()),
            // SAFETY: as above, and it stands on a row.
            ffi::SQLITE_ROW => {
                Ok((0..unsafe { ffi::sqlite3_column_count(self.statement) }).map(|c| self.column(c)).collect())
            }
            _ => Err(failure(self.db, operation)),
        }
    }

    fn column(&self, column: c_int) -> Option<Vec<u8>> {
        // SAFETY: the statement stands on a row that has this column. The bytes stay valid until the next call on the
        // statement, and are copied before that; asking for the bytes first makes SQLite convert numbers to text.
        unsafe {
            if ffi::sqlite3_column_type(self.statement, column) == ffi::SQLITE_NULL {
                return None;
            }
            let bytes = ffi::sqlite3_column_blob(self.statement, column).cast::<u8>();
            let len = usize::try_from(ffi::sqlite3_column_bytes(self.statement, column)).unwrap_or(0);
            if bytes.is_null() || len == 0 {
                return Some(Vec::new());
            }
            Some(std::slice::from_raw_parts(bytes, len).to_vec())
        }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: it was prepared by `prepare` and is finalised nowhere else. What it returns was reported before.
        unsafe { ffi::sqlite3_finalize(self.statement) };
    }
}

fn failure(db: *mut ffi::sqlite3, operation: &'static str) -> Error {
    // SAFETY: the handle is open and nobody else uses it; the message is null-terminated and copied at once.
    let (code, message) = unsafe {
        let message = ffi::sqlite3_errmsg(db);
        let text =
            if message.is_null() { String::new() } else { CStr::from_ptr(message).to_string_lossy().into_owned() };
        (ffi::sqlite3_extended_errcode(db), text)
    };
    translate_code(operation, code, message)
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    async fn ask(sql: &str) -> Result<Vec<ProbedRow>, Error> {
        let mut conn = SqliteConnectOptions::new().in_memory(true).connect().await.expect("connect");
        let mut handle = conn.lock_handle().await.expect("handle");
        first_rows(&mut handle, "ask", sql)
    }

    #[tokio::test]
    async fn each_statement_answers_with_its_first_row() {
        let rows = ask("SELECT 1, NULL, x'00ff', ''; SELECT 2 WHERE 0; SELECT 'ä' UNION ALL SELECT 'b'; -- end").await;
        let bytes = |bytes: &[u8]| Some(bytes.to_vec());
        let first = vec![bytes(b"1"), None, bytes(&[0, 255]), bytes(b"")];
        assert_eq!(rows.expect("rows"), [first, vec![], vec![bytes("ä".as_bytes())]]);
        assert_eq!(ask("").await.expect("nothing").len(), 0);
    }

    #[tokio::test]
    async fn the_first_that_fails_is_told() {
        let error = ask("SELECT 1; SELECT * FROM missing; SELECT 2").await.expect_err("a missing table");
        assert!(matches!(&error, Error::Storage { operation: "ask", .. }), "{error}");
        assert!(format!("{:?}", error).contains("missing"), "{error:?}");
    }
}
