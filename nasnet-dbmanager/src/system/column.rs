//! Columns and the types they hold: what is read is checked as strictly as what is written.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use ulid::Ulid;

use crate::error::Error;

pub(super) fn unsigned(what: &'static str, value: i64) -> Result<u64, Error> {
    u64::try_from(value).map_err(|_| Error::Decode { what, detail: format!("{value} is negative") })
}

pub(super) fn signed(what: &'static str, value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Encode { what, detail: format!("{value} is too large") })
}

pub(super) fn small<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::Decode { what, detail: format!("{value} is out of range") })
}

pub(super) fn bytes_16(what: &'static str, value: &[u8]) -> Result<[u8; 16], Error> {
    value.try_into().map_err(|_| Error::Decode { what, detail: format!("it has {} bytes instead of 16", value.len()) })
}

/// The column form of an id.
pub(super) fn ulid(id: &Ulid) -> Vec<u8> {
    id.to_bytes().to_vec()
}

pub(super) fn read_ulid(what: &'static str, value: &[u8]) -> Result<Ulid, Error> {
    bytes_16(what, value).map(Ulid::from_bytes)
}

pub(super) fn address(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::Decode { what: "address", detail: format!("{text:?} is none") })
}

pub(super) fn json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Decode { what, detail: error.to_string() })
}

/// Reads an optional column and parses what it holds.
pub(super) fn optional<'r, S, T>(
    row: &'r SqliteRow,
    column: &str,
    parse: impl FnOnce(S) -> Result<T, Error>,
) -> Result<Option<T>, Error>
where
    S: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get::<Option<S>, _>(column)?.map(parse).transpose()
}
