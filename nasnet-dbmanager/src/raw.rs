//! Statements that run on the calling thread: what an operation of [`crate::Database::write_raw`] gets.
//!
//! The driver sends each statement to a thread of its own and waits for the answer. That costs more than a small statement
//! on tmpfs does. Here an operation is a plain function, its statements are prepared once and kept, and nothing waits.

mod column;
mod held;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection};

use crate::driver::translate_raw;
use crate::error::Error;

pub use column::FromColumn;
pub(crate) use held::Held;

/// A value bound to a parameter of a statement.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RawValue<'a> {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating point number.
    Real(f64),
    /// A text.
    Text(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
}

impl From<i64> for RawValue<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for RawValue<'_> {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl<'a> From<&'a str> for RawValue<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for RawValue<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Blob(value)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for RawValue<'a> {
    fn from(value: &'a [u8; N]) -> Self {
        Self::Blob(value)
    }
}

impl<'a, T: Into<RawValue<'a>>> From<Option<T>> for RawValue<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl ToSql for RawValue<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Null => ValueRef::Null,
            Self::Integer(value) => ValueRef::Integer(value),
            Self::Real(value) => ValueRef::Real(value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

/// One row of a result.
pub struct RawRow<'r> {
    row: &'r rusqlite::Row<'r>,
}

impl RawRow<'_> {
    /// Returns a column, counted from 0.
    ///
    /// # Errors
    /// [`Error::Decode`] naming the column when it holds another type or there is none.
    pub fn get<'s, T: FromColumn<'s>>(&'s self, column: usize) -> Result<T, Error> {
        let value = self.row.get_ref(column).map_err(|error| wrong_column(self.name(column), &error.to_string()))?;
        T::from_column(value).map_err(|wanted| {
            wrong_column(self.name(column), &format!("it holds {} where {wanted} is wanted", value.data_type()))
        })
    }

    fn name(&self, column: usize) -> String {
        let name = self.row.as_ref().column_name(column).unwrap_or("not in the result");
        format!("{column} ({name})")
    }
}

impl std::fmt::Debug for RawRow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its values may be secret.
        f.debug_struct("RawRow").finish_non_exhaustive()
    }
}

fn wrong_column(column: String, detail: &str) -> Error {
    Error::Decode { what: "column", detail: format!("{column}: {detail}") }
}

/// The writing connection inside a transaction, in the hands of an operation of [`crate::Database::write_raw`] or
/// [`crate::Database::read_raw`].
///
/// Each statement is prepared once and kept with the connection; this is why its text lives as long as the program.
pub struct RawConn<'c> {
    conn: &'c Connection,
    /// Whether statements that write are refused.
    only_reads: bool,
    /// What SQLite said of the last statement that failed.
    last_error: Option<Error>,
}

impl<'c> RawConn<'c> {
    pub(crate) fn new(conn: &'c Connection, only_reads: bool) -> Self {
        Self { conn, only_reads, last_error: None }
    }

    pub(crate) fn into_last_error(self) -> Option<Error> {
        self.last_error
    }

    /// Runs a statement and returns how many rows it changed. The rows it returns, if any, are dropped.
    ///
    /// # Errors
    /// What SQLite reports, as [`crate::Database::write`] reports it; [`Error::Encode`] when the number of values is not
    /// that of its parameters.
    pub fn execute(&mut self, sql: &'static str, values: &[RawValue<'_>]) -> Result<u64, Error> {
        let mut statement = self.bound(sql, values)?;
        let mut rows = statement.raw_query();
        while rows.next().map_err(|error| self.failed(error))?.is_some() {}
        drop(rows);
        Ok(if statement.readonly() { 0 } else { self.conn.changes() })
    }

    /// Runs a statement and returns what `decode` makes of its first row; `None` when it has none.
    ///
    /// # Errors
    /// As [`RawConn::execute`], and what `decode` returned.
    pub fn query_optional<T, E, D>(
        &mut self,
        sql: &'static str,
        values: &[RawValue<'_>],
        decode: D,
    ) -> Result<Option<T>, E>
    where
        E: From<Error>,
        D: FnOnce(&RawRow<'_>) -> Result<T, E>,
    {
        let mut statement = self.bound(sql, values)?;
        let writes = !statement.readonly();
        let mut rows = statement.raw_query();
        let Some(row) = rows.next().map_err(|error| self.failed(error))? else { return Ok(None) };
        let found = decode(&RawRow { row })?;
        // A statement that changes rows runs to its end; a query ends here.
        while writes && rows.next().map_err(|error| self.failed(error))?.is_some() {}
        Ok(Some(found))
    }

    /// Runs a statement and returns what `decode` makes of each of its rows.
    ///
    /// # Errors
    /// As [`RawConn::query_optional`].
    pub fn query_all<T, E, D>(&mut self, sql: &'static str, values: &[RawValue<'_>], mut decode: D) -> Result<Vec<T>, E>
    where
        E: From<Error>,
        D: FnMut(&RawRow<'_>) -> Result<T, E>,
    {
        let mut statement = self.bound(sql, values)?;
        let mut rows = statement.raw_query();
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(|error| self.failed(error))? {
            all.push(decode(&RawRow { row })?);
        }
        Ok(all)
    }

    fn bound(&mut self, sql: &'static str, values: &[RawValue<'_>]) -> Result<CachedStatement<'c>, Error> {
        let mut statement = self.conn.prepare_cached(sql).map_err(|error| self.failed(error))?;
        if self.only_reads && !statement.readonly() {
            return Err(Error::ReadOnly { detail: "a raw read cannot run a statement that writes".to_owned() });
        }
        if statement.parameter_count() != values.len() {
            let detail = format!("it takes {} values, {} were given", statement.parameter_count(), values.len());
            return Err(Error::Encode { what: "statement", detail });
        }
        for (at, value) in values.iter().enumerate() {
            statement.raw_bind_parameter(at + 1, value).map_err(|error| self.failed(error))?;
        }
        Ok(statement)
    }

    fn failed(&mut self, error: rusqlite::Error) -> Error {
        let error = translate_raw("run a statement", error);
        self.last_error = Some(error.clone());
        error
    }
}

impl std::fmt::Debug for RawConn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawConn").finish_non_exhaustive()
    }
}
