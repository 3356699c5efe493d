//! Brings what the warm tier knows of a scope into memory: stream versions and the ids of its durable rows.

use std::sync::Arc;

use nasnet_dbmanager::{Annexes, Cause, Scope};
use sqlx::SqliteConnection;

use crate::error::Error;
use crate::loaded::RowsKnown;
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
    let rows = rows::window(conn, RowsKnown::NONE).await?;
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
    for (stream, version) in window.tops {
        heads.note_version(scope, &stream, version);
    }
    let known = heads.note_rows(scope, RowsKnown::NONE, window.rows);
    heads.set_loaded(scope, known);
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

/// Takes the rows into account that come later, in the scopes that have many of them, until the store closes. Nobody waits for
/// it: until then the transactions that add rows look at them all.
pub(crate) async fn keep_up(shared: Arc<Shared>) {
    while !shared.is_closing() {
        let grown = shared.heads().take_grown();
        if grown.is_empty() {
            shared.grown.notified().await;
        }
        for scope in grown {
            tokio::select! {
                looked = look_again(&shared, &scope) => if let Err(error) = looked {
                    tracing::debug!(%error, %scope, "what durable rows have come is not looked at yet");
                },
                () = closing(&shared) => return,
            }
        }
    }
}

/// Waits until the store closes. Who is woken for more looks for it afterwards.
async fn closing(shared: &Shared) {
    while !shared.is_closing() {
        shared.grown.notified().await;
    }
}

async fn look_again(shared: &Shared, scope: &Scope) -> Result<(), Error> {
    let database = shared.manager.scope(scope).await?;
    let (beside, known) = {
        let heads = shared.heads();
        (heads.file(), heads.rows_known(scope))
    };
    let rows = database.read(LOAD, move |conn| Box::pin(async move { rows::window(conn, known).await })).await?;
    let mut heads = shared.heads();
    if heads.file() == beside {
        let known = heads.note_rows(scope, known, rows);
        heads.set_looked(scope, known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::chain::Digest;
    use crate::event::NewEvent;
    use crate::expected::Expected;
    use crate::name::EventType;
    use crate::options::EventOptions;
    use crate::place::Place;
    use crate::store::EventStore;

    /// Waits until the rows up to a number are taken into account.
    async fn until_looked_at(store: &EventStore, scope: &Scope, seq: u64) {
        let looked = async {
            while store.shared().heads().rows_known(scope).through.seq < seq {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), looked).await.expect("rows are taken into account in time");
    }

    /// As another process does.
    #[tokio::test]
    async fn rows_that_another_store_adds_are_taken_into_account() {
        let Place { dir: _dir, clock: _, manager } = Place::new().await;
        let open = async || EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let (store, other) = (open().await, open().await);
        let (scope, stream) = (Scope::System, StreamName::parse("s").unwrap());
        let append = async |store: &EventStore, count: usize| {
            let kind = EventType::parse("config.applied").unwrap();
            let event = || NewEvent::new(manager.next_ulid(), kind.clone(), &0).unwrap();
            let events = std::iter::repeat_with(event).take(count).collect();
            store.append(&scope, &stream, Expected::Any, events).await.unwrap()
        };
        append(&store, 1).await;
        for _ in 0..20 {
            append(&other, 10).await;
        }
        assert_eq!(append(&store, 1).await.version, 202);
        until_looked_at(&store, &scope, 201).await;
        for store in [store, other] {
            store.shutdown().await.unwrap();
        }
        manager.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_transaction_looks_at_the_rows_that_came_lately_only() {
        const ROWS: u64 = 200;
        let Place { dir: _dir, clock: _, manager } = Place::new().await;
        let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let (scope, stream) = (Scope::System, StreamName::parse("s").unwrap());
        let critical = |version: u64| {
            let kind = EventType::parse("config.applied").unwrap();
            vec![NewEvent::new(manager.next_ulid(), kind, &serde_json::json!({ "version": version })).unwrap()]
        };
        for version in 1..=ROWS {
            let receipt = store.append(&scope, &stream, Expected::Exact(version - 1), critical(version)).await.unwrap();
            assert_eq!(receipt.version, version);
        }
        let database = manager.scope(&scope).await.unwrap();
        let known = || store.shared().heads().rows_known(&scope);
        until_looked_at(&store, &scope, ROWS / 2).await;

        let seen = async |known: RowsKnown| {
            let look = database.read(LOAD, move |conn| {
                Box::pin(async move { rows::versions(conn, &BTreeSet::from(["s"]), known).await })
            });
            look.await.unwrap().remove("s")
        };
        let known = known();
        assert_eq!(seen(known).await, Some(ROWS), "what came behind it is seen");
        assert_eq!(
            seen(RowsKnown { digest: Digest([9; 32]), ..known }).await,
            Some(ROWS),
            "nothing is known of another file"
        );
        store.append(&scope, &StreamName::parse("other").unwrap(), Expected::Any, critical(1)).await.unwrap();
        store.resolve().await.unwrap();
        look_again(store.shared(), &scope).await.unwrap();
        let all = store.shared().heads().rows_known(&scope);
        assert_eq!((all.through.seq, seen(all).await), (ROWS + 1, None), "and nothing that is known");
        assert_eq!(seen(RowsKnown { digest: Digest([9; 32]), ..all }).await, Some(ROWS));
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    }
}
