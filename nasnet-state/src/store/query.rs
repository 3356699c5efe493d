//! Reading resources.

use sqlx::{Row, SqliteConnection, query};
use ulid::Ulid;

use crate::error::Error;
use crate::id::ScopedId;
use crate::kind::KindName;
use crate::resource::Resource;
use crate::store::row::{decode, identity, select_resource, storage};

/// Reads a resource, or the tombstone that is left of it.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Malformed`], [`Error::Storage`].
pub async fn get(conn: &mut SqliteConnection, uid: Ulid) -> Result<Resource, Error> {
    let row = query(select_resource!("WHERE r.uid = ?1"))
        .bind(uid.to_bytes().to_vec())
        .fetch_optional(&mut *conn)
        .await
        .map_err(storage("read a resource"))?;
    decode(&row.ok_or(Error::NotFound { uid })?)
}

/// Reads a resource by its readable id.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Storage`].
pub async fn get_by_id(conn: &mut SqliteConnection, id: &ScopedId) -> Result<Option<Resource>, Error> {
    let row = query(select_resource!("WHERE r.scoped_id = ?1"))
        .bind(id.as_str())
        .fetch_optional(&mut *conn)
        .await
        .map_err(storage("read a resource"))?;
    row.as_ref().map(decode).transpose()
}

/// Finds the live resource of a kind by its name.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Storage`].
pub async fn find(conn: &mut SqliteConnection, kind: &KindName, name: &str) -> Result<Option<Resource>, Error> {
    let row = query(select_resource!("WHERE r.kind = ?1 AND r.name = ?2 AND r.deleted IS NULL"))
        .bind(kind.as_str())
        .bind(name)
        .fetch_optional(&mut *conn)
        .await
        .map_err(storage("find a resource"))?;
    row.as_ref().map(decode).transpose()
}

/// Which resources to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<KindName>,
}

/// Where a page ends and the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    kind: String,
    name: String,
}

/// Part of a list.
#[derive(Debug)]
pub struct Page {
    /// The resources, ordered by kind and name.
    pub resources: Vec<Resource>,
    /// Rows that could not be read, as [`Error::Malformed`]. The others are all there.
    pub malformed: Vec<Error>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Lists live resources, ordered by kind and name, `limit` rows from `after` on.
///
/// # Errors
/// [`Error::Storage`]. A row that cannot be read is part of the page, not an error.
pub async fn list(
    conn: &mut SqliteConnection,
    filter: &Filter,
    after: Option<&Cursor>,
    limit: u32,
) -> Result<Page, Error> {
    let (kind, name) = after.map_or(("", ""), |cursor| (&cursor.kind, &cursor.name));
    let rows = match &filter.kind {
        Some(kind) => {
            query(select_resource!("WHERE r.deleted IS NULL AND r.kind = ?1 AND r.name > ?2 ORDER BY r.name LIMIT ?3"))
                .bind(kind.as_str())
        }
        None => query(select_resource!(
            "WHERE r.deleted IS NULL AND (r.kind, r.name) > (?1, ?2) ORDER BY r.kind, r.name LIMIT ?3"
        ))
        .bind(kind),
    }
    .bind(name)
    .bind(i64::from(limit))
    .fetch_all(&mut *conn)
    .await
    .map_err(storage("list resources"))?;

    let mut page = Page { resources: Vec::with_capacity(rows.len()), malformed: Vec::new(), next: None };
    for row in &rows {
        match decode(row) {
            Ok(resource) => page.resources.push(resource),
            Err(error) => page.malformed.push(error),
        }
    }
    if let Some(last) = rows.last().filter(|_| rows.len() == limit as usize) {
        let column = |name| last.try_get::<String, _>(name).map_err(storage("list resources"));
        page.next = Some(Cursor { kind: column("kind")?, name: column("name")? });
    }
    Ok(page)
}

/// Kinds and names of all live resources, for resolving references without reading the resources.
///
/// # Errors
/// [`Error::Storage`]; a row whose kind is damaged is left out.
pub async fn names(conn: &mut SqliteConnection) -> Result<Vec<(Ulid, KindName, String)>, Error> {
    let rows = query("SELECT uid, kind, name FROM resource WHERE deleted IS NULL ORDER BY kind, name")
        .fetch_all(&mut *conn)
        .await
        .map_err(storage("list names"))?;
    Ok(rows.iter().filter_map(|row| identity(row).ok()).collect())
}
