//! Brings what the warm tier knows of a scope into memory: stream versions and the ids of its durable rows.

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::name::StreamName;
use crate::retain::horizon;
use crate::shared::Shared;
use crate::warm::rows::RowHead;
use crate::warm::segment::{self, StreamTops};
use crate::warm::{names, rows};

const LOAD: Cause = Cause::new("event-window");

/// Found in the database of a scope.
struct Window {
    rows: Vec<RowHead>,
    tops: Vec<(StreamName, u64)>,
}

async fn fetch(conn: &mut SqliteConnection, annexes: Option<&Annexes>, scope: &Scope) -> Result<Window, Error> {
    let rows = rows::window(conn).await?;
    let StreamTops { mut by_number, by_name: mut tops } = segment::stream_tops(conn, annexes, scope).await?;
    for (stream, version) in horizon::tops(conn).await? {
        let top = by_number.entry(stream).or_default();
        *top = version.max(*top);
    }
    let texts = if by_number.is_empty() { std::collections::HashMap::new() } else { names::all(conn).await? };
    tops.reserve(by_number.len());
    for (number, top) in by_number {
        let text = texts.get(&number).ok_or_else(|| Error::corrupt("event_names", "a stream's name is missing"))?;
        tops.push((StreamName::parse(text)?, top));
    }
    Ok(Window { rows, tops })
}

/// Takes it into the heads it was read beside; false when those are of another hot tier by now. What that one's events have
/// become since, the next look shows.
fn note(shared: &Shared, scope: &Scope, beside: [u8; 16], window: Window) -> bool {
    let mut heads = shared.heads();
    if heads.file() != beside {
        return false;
    }
    for row in window.rows {
        heads.note_row(scope, &row.stream, row.position, row.version, row.id);
    }
    for (stream, version) in window.tops {
        heads.note_version(scope, &stream, version);
    }
    heads.set_loaded(scope);
    true
}

/// Loads a scope once, through a reader.
///
/// Once is enough while the hot tier lasts: what is committed to the warm tier later passes through its log first. Callers
/// who come meanwhile wait for the first, instead of all reading the same.
pub(crate) async fn load(shared: &Shared, scope: &Scope) -> Result<(), Error> {
    if shared.heads().is_loaded(scope) {
        return Ok(());
    }
    let loading = shared.loading(scope);
    let _one = loading.lock().await;
    if shared.heads().is_loaded(scope) {
        return Ok(());
    }
    let database = shared.manager.scope(scope).await?;
    loop {
        let beside = shared.heads().file();
        let (annexes, own_scope) = (database.annexes().cloned(), scope.clone());
        let window = database
            .read(LOAD, move |conn| Box::pin(async move { fetch(conn, annexes.as_ref(), &own_scope).await }))
            .await?;
        if note(shared, scope, beside, window) {
            break;
        }
    }
    shared.note_loaded(scope);
    Ok(())
}
